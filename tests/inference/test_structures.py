"""Some of a model's structures: they alone are in every file, and each is what it is beside the others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import metricunet as mu
from metricunet.errors import InputError
from metricunet.files.dicom.series import CtSeries, find_series
from metricunet.files.nifti import read_labels
from metricunet.files.rtstruct.read import read_rtstruct
from metricunet.files.seg.read import read_seg
from metricunet.inference.case_files import checked_formats, chosen_structures
from metricunet.inference.predict import predict
from tests.support.command import Command
from tests.support.dicom_series import write_series
from tests.support.threshold_model import GLAND_BAND, GLAND_HU, ball, drawn_scan, write_bands_model

LABELS = {"prostate": 1, "bladder": 2, "bulb": 3}
#: No voxel of the scan is a bulb.
BANDS = (GLAND_BAND, (160.0, 280.0), (900.0, 1000.0))
FORMATS = ("nifti", "rtstruct", "seg")


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> CtSeries:
    """A gland, and a bladder on top of it that it touches."""
    scan = drawn_scan((ball((0, 0, 0), 16), GLAND_HU), (ball((0, 0, 20), (14, 12, 9)), 220.0), shape=(32, 40, 44))
    folder = tmp_path_factory.mktemp("dicom")
    write_series(folder, scan.array, spacing_mm=scan.spacing_mm, frame_of_reference_uid="1.2.3")
    (found,) = find_series(folder).series
    return found


@pytest.fixture(scope="module")
def model(bands_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bands_model(tmp_path_factory.mktemp("three") / "model.safetensors", LABELS, BANDS)


@pytest.fixture(scope="module")
def whole(series: CtSeries, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prediction of all structures."""
    out = tmp_path_factory.mktemp("whole")
    predict([series.folder], [model], out, formats=FORMATS, device="cpu")
    return out


def written(folder: Path, suffix: str) -> Path:
    (path,) = folder.glob(f"*{suffix}")
    return path


def verdict(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(written(folder, ".quality.json").read_text())
    return content


def test_they_alone_are_written_and_as_they_are_beside_the_others(
    metricunet: Command, series: CtSeries, model: Path, whole: Path, tmp_path: Path
) -> None:
    ended = metricunet(
        "predict", series.folder, "-m", model, "-o", tmp_path, "--device", "cpu", "--structures", "bladder",
        "--output_type", "nifti,dicom_rtstruct,dicom_seg",
    )  # fmt: skip
    assert (ended.status, ended.err) == (0, "")
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in whole.iterdir()}

    full, part = (read_labels(written(folder, ".nii.gz")) for folder in (whole, tmp_path))
    assert set(np.unique(full.array)) == {0, 1, 2}
    np.testing.assert_array_equal(part.array, np.where(full.array == 2, 2, 0))
    assert part.array.dtype == full.array.dtype

    beside, alone = (read_rtstruct(written(folder, ".rtstruct.dcm"), series) for folder in (whole, tmp_path))
    assert [entry.name for entry in alone.structures] == ["Bladder^auto"]
    drawn = [entry.structure("Bladder^auto").contours for entry in (beside, alone)]
    assert len(drawn[0]) == len(drawn[1]) > 5
    for one, other in zip(*drawn, strict=True):
        np.testing.assert_array_equal(one, other)
    segments = read_seg(written(tmp_path, ".seg.dcm"), series)
    assert list(segments) == ["Bladder^auto"]

    before, now = verdict(whole), verdict(tmp_path)
    assert list(before["structures"]) == ["prostate", "bladder"]
    assert list(now["structures"]) == list(now["labels"]) == list(now["tg263"]) == now["chosen"] == ["bladder"]
    assert {k: v for k, v in now["structures"]["bladder"].items() if k != "contours"} == {
        k: v for k, v in before["structures"]["bladder"].items() if k != "contours"
    }
    said_of_all = (
        "verdict",
        "doubt",
        "flags",
        "agreement",
        "hu",
        "crops",
        "boundary",
        "input_sha256",
        "model_sha256",
    )
    assert {name: now[name] for name in said_of_all} == {name: before[name] for name in said_of_all}
    assert json.loads((tmp_path / "run.json").read_text())["arguments"]["structures"] == ["bladder"]


def test_nothing_is_said_of_a_choice_where_there_is_none(
    series: CtSeries, model: Path, whole: Path, tmp_path: Path
) -> None:
    assert "chosen" not in verdict(whole)
    assert "structures" not in json.loads((whole / "run.json").read_text())["arguments"]
    predict([series.folder], [model], tmp_path, structures=["bulb", "bladder", "prostate"], device="cpu")
    assert "chosen" not in verdict(tmp_path)  # all of them is no choice


def test_another_choice_is_made_anew_and_the_same_is_not(series: CtSeries, model: Path, tmp_path: Path) -> None:
    def done_before(structures: list[str] | None) -> bool:
        outcome = predict([series.folder], [model], tmp_path, structures=structures, device="cpu")
        return outcome.cases[0].skipped

    orders = [["prostate", "bulb"], ["bulb", "prostate", "bulb"], ["prostate"], None, None, ["prostate"]]
    assert [done_before(one) for one in orders] == [False, True, False, False, True, False]
    assert set(np.unique(read_labels(written(tmp_path, ".nii.gz")).array)) == {0, 1}


def test_none_of_them_found_is_a_failed_case_without_a_mask(
    metricunet: Command, series: CtSeries, model: Path, tmp_path: Path
) -> None:
    ended = metricunet(
        "predict", series.folder, "-m", model, "-o", tmp_path, "--device", "cpu", "--structures", "bulb",
        "--format", ",".join(FORMATS),
    )  # fmt: skip
    assert ended.status == 1
    assert ": fail, found" in ended.out
    assert "  no voxel of bulb was found, so there is no mask" in ended.out
    assert {path.name for path in tmp_path.iterdir()} == {written(tmp_path, ".quality.json").name, "run.json"}
    assert verdict(tmp_path)["flags"][0]["code"] == "not_found"


def test_a_result_saves_what_the_command_writes(
    series: CtSeries, model: Path, whole: Path, tmp_path: Path
) -> None:
    result = mu.load_model(model, device="cpu").predict(series.folder)
    result.save(tmp_path / "saved", ["nifti", "dicom_seg"], structures="Bladder")
    outcome = mu.predict(
        series.folder, model, tmp_path / "written", formats=["nifti", "seg"], structures="bladder", device="cpu"
    )
    assert not outcome.failed()
    saved, other = verdict(tmp_path / "saved"), verdict(tmp_path / "written")
    assert saved["chosen"] == other["chosen"] == ["bladder"]
    assert saved["structures"] == other["structures"]
    masks = [read_labels(written(tmp_path / name, ".nii.gz")).array for name in ("saved", "written")]
    np.testing.assert_array_equal(masks[0], masks[1])
    assert result.mask("prostate").array.any()  # the result itself has lost nothing
    again = mu.predict(
        series.folder, model, tmp_path / "saved", formats=["nifti", "seg"], structures="bladder", device="cpu"
    )
    assert again.cases[0].skipped
    with pytest.raises(InputError, match="structures: the model segments no 'liver'; choose of prostate, bladder"):
        result.save(tmp_path / "none", structures=["bladder", "liver"])
    assert not (tmp_path / "none").exists()


def test_names_of_the_same_standard_name_are_understood() -> None:
    labels, tg263 = {"prostate": 1, "bladder": 2, "left": 3}, {"left": "Femur_Head_L", "prostate": "Gland"}

    def chosen(*names: str) -> tuple[str, ...]:
        return chosen_structures(names, labels, tg263)

    assert chosen_structures(None, labels, tg263) == ()
    assert chosen("urinary_bladder") == chosen("Bladder") == chosen("bladder", "Bladder") == ("bladder",)
    assert chosen("Femur_Head_L", "prostate") == ("prostate", "left")
    for names, said in (
        (
            ("liver", "bladder", "spleen"),
            "the model segments no 'liver', 'spleen'; choose of prostate, bladder, left",
        ),
        (("",), "the model segments no ''"),
        ((), "structures: names none; choose of prostate"),
    ):
        with pytest.raises(InputError, match=said):
            chosen(*names)


def test_an_unknown_structure_is_refused_with_those_that_there_are(
    metricunet: Command, series: CtSeries, model: Path, tmp_path: Path
) -> None:
    words = ["predict", series.folder, "-m", model, "-o", tmp_path / "out", "--device", "cpu"]
    ended = metricunet(*words, "--roi_subset", "prostate,gland", "--structures", "uterus")
    assert (ended.status, ended.out) == (2, "")
    assert ended.err == (
        "error: --structures: the model segments no 'gland', 'uterus'; choose of prostate, bladder, bulb\n"
    )
    assert not (tmp_path / "out").exists()


def test_formats_have_other_words_too() -> None:
    assert checked_formats(["dicom_seg", "nifti", "seg", "dicom_rtstruct"]) == FORMATS
    with pytest.raises(InputError, match=r"must be of nifti, rtstruct, seg, .*; got 'dicom'"):
        checked_formats(["dicom"])
