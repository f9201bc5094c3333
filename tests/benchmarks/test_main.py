"""The command line of the benchmarks."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks.__main__ import main


def test_a_part_on_a_scan(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tiny_cohort: Path, tiny_presets: None
) -> None:
    scan = tiny_cohort / "imagesTr" / "case_01_0000.nii.gz"
    monkeypatch.setattr(sys, "argv", ["benchmarks", "io", "--scan", str(scan), "--repeats", "1", "--json"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert rows[0]["name"] == "DICOM read, uncompressed"
    assert rows[0]["ours"]["n"] == 1


def test_an_error_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for words, error in (
        (["locate", "--scan", str(tmp_path / "none.nii.gz")], "none.nii.gz: no such file or folder"),
        (["segment", "--model", str(tmp_path / "none.safetensors")], "no such model file"),
        (
            ["branch", "--device", "abacus"],
            "device must be auto, cpu, cuda, cuda:N, gpu, gpu:N or mps; got 'abacus'",
        ),
    ):
        monkeypatch.setattr(sys, "argv", ["benchmarks", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 2
        found = capsys.readouterr().err
        assert error in found
        assert found.count("\n") == 1
