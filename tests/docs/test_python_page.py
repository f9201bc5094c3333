"""Every line of the page on Python runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import metricunet as mu
from metricunet.files.nifti import write_nifti
from tests.support.dicom_series import write_series
from tests.support.threshold_model import GLAND_HU, ball, bands_known, drawn_scan, write_bands_model

DOCS = Path(__file__).parents[2] / "docs"
PAGE = DOCS / "python.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)


def test_every_block_runs(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One after the other, in one namespace, in a folder with the files that the page names."""
    volume = drawn_scan((ball((2, -3, 0), (19, 16, 18)), GLAND_HU), shape=(40, 50, 52))
    truth = volume.with_array((abs(volume.array.astype(int) - GLAND_HU) < 40).astype("uint8"))
    write_nifti(tmp_path / "scan.nii.gz", volume)
    write_nifti(tmp_path / "reference.nii.gz", truth)
    for name in ("more_scans", "references"):
        (tmp_path / name).mkdir()
    write_nifti(tmp_path / "more_scans" / "second.nii.gz", volume)
    write_nifti(tmp_path / "references" / "scan.nii.gz", truth)
    write_series(tmp_path / "ct_folder", volume.array, spacing_mm=volume.spacing_mm)
    trained: list[Any] = []

    def train(cohort: Path, output: Path, **settings: Any) -> Path:
        """Training takes its time, and is tested elsewhere."""
        trained.append((cohort, settings["config"].segment.epochs))
        return tiny_model

    monkeypatch.setattr("metricunet.training.fit.train", train)
    monkeypatch.chdir(tmp_path)
    space: dict[str, Any] = {"__name__": "page"}
    with bands_known():
        write_bands_model(tmp_path / "model.safetensors")
        for block in BLOCKS:
            exec(compile(block, str(PAGE), "exec"), space)
    assert capsys.readouterr().out == "nowhere.nii.gz: no such file or folder\n"
    assert space["mask"].array.any()
    assert [case.verdict for case in space["outcome"].cases] == ["pass", "pass"]
    assert trained == [(Path("cohort"), 2)]
    assert len(list((tmp_path / "out").glob("*.rtstruct.dcm"))) == 1


def test_the_page_uses_every_name_of_the_front_door() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for name in set(mu.__all__) - {"__version__"}:
        assert re.search(rf"\b{name}\b", text), name
