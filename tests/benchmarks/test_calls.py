"""Part `calls`: the processes that it starts, and what it makes of their outputs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import calls as part
from benchmarks.calls import bench_calls, mask_sha256, target_of
from benchmarks.subject import Subject
from metricunet.errors import InputError
from metricunet.files.nifti import read_labels, write_nifti
from metricunet.inference.predict import predict as run_predict
from metricunet.workflows.bench.process import Ended

CPU = torch.device("cpu")
Call = tuple[int, str, Mapping[str, str] | None]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Call]:
    """Run the command in this process instead of one of its own; note scans, formats and environment."""
    seen: list[Call] = []

    def run(words: Sequence[object], environment: Mapping[str, str] | None = None) -> Ended:
        texts = [str(w) for w in words]
        model, output, formats = (texts[texts.index(flag) + 1] for flag in ("-m", "-o", "--format"))
        scans = [Path(t) for t in texts[1 : texts.index("-m")]]
        run_predict(scans, [Path(model)], Path(output), formats=formats.split(","), device="cpu")
        seen.append((len(scans), formats, environment))
        return Ended(0, 5.0 + len(scans), 100.0 + len(seen), "")

    monkeypatch.setattr(part, "run_metricunet", run)
    return seen


def test_a_dicom_scan(phantom: Subject, calls: list[Call]) -> None:
    ticks: list[tuple[int, int]] = []
    found = bench_calls(phantom, CPU, repeats=2, cases=4, progress=lambda *tick: ticks.append(tick))
    assert ticks[-1] == (8, 8)
    assert [c[:2] for c in calls] == [
        *[(1, "nifti,rtstruct")] * 2, *[(1, "nifti")] * 2, (4, "nifti"), *[(1, "nifti")] * 2,
    ]  # fmt: skip
    assert [c[2]["OMP_NUM_THREADS"] for c in calls if c[2]] == ["1", "2"]
    content = json.loads(json.dumps(found.to_json()))
    assert content["formats"] == ["nifti", "rtstruct"]
    assert content["peak_mib"] == 102
    # Four calls of 6 s against one of 9 s.
    assert content["saved_s"] == pytest.approx(15)
    assert content["one"]["median_s"] - content["startup_s"] < 6
    assert (content["same_masks"], content["same_contours"]) == (True, True)
    assert content["differing_share"] == 0
    assert content["precisions_dice"] is None
    assert content["target_s"] is None
    assert "bf16 against fp32: not compared" in found.text()


def test_a_users_model_is_compared_between_precisions(phantom: Subject, calls: list[Call]) -> None:
    phantom.trained = True
    found = bench_calls(phantom, CPU, cases=2)
    assert found.precisions_dice == pytest.approx(1, abs=0.1)
    assert found.dice_difference == pytest.approx(0, abs=0.1)
    assert "Dice in bf16 less Dice in fp32" in found.text()
    worse = replace(found, dice_difference=-0.003, same_masks=False, differing_share=2e-5)
    assert worse.text().count("MISSED") >= 3


def test_a_nifti_scan_gets_no_structure_set(subject: Subject, calls: list[Call]) -> None:
    found = bench_calls(subject, CPU, repeats=1, cases=2)
    assert found.formats == ("nifti",)
    assert found.same_contours is None
    assert found.whole.n == 2  # two at least, to compare them


def test_a_model_that_finds_nothing_is_named(subject: Subject, calls: list[Call]) -> None:
    air = subject.scan.with_array(np.full_like(subject.scan.array, -1000))
    air.array[0, 0, 0] = -990  # a scan of one value alone is refused
    subject.given = subject.folder / "air.nii.gz"
    write_nifti(subject.given, air)
    with pytest.raises(InputError, match=r"finds nothing in .*choose another scan or model"):
        bench_calls(subject, CPU)


def test_equal_masks_have_equal_hashes(tmp_path: Path, tiny_cohort: Path) -> None:
    labels = read_labels(tiny_cohort / "labelsTr" / "case_00.nii.gz")
    other = labels.array.copy()
    other[0, 0, 0] ^= 1
    for name, array in (("a", labels.array), ("b", labels.array), ("c", other)):
        (tmp_path / name).mkdir()
        write_nifti(tmp_path / name / "case.nii.gz", labels.with_array(array))
    one, two, three = (mask_sha256(tmp_path / name) for name in "abc")
    assert one == two != three


def test_targets_go_by_the_scans_size() -> None:
    assert target_of((235, 512, 512)) == (20.0, 1536.0)
    assert target_of((236, 512, 512)) == (30.0, 2048.0)
    assert target_of((651, 512, 512)) == (None, None)
    assert target_of((100, 256, 256)) == (None, None)
