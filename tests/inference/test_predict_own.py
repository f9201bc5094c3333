"""What `metricunet predict` may replace, and what one case may cost another: nothing."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import Tag

from metricunet.files.claim import claimed
from metricunet.files.nifti import read_labels, write_nifti
from metricunet.inference import case_files
from metricunet.inference import predict as module
from tests.support.command import Command
from tests.support.dicom_series import write_series
from tests.support.threshold_model import GLAND_HU, ball, drawn_scan

SMALL = drawn_scan((ball((0, 0, 0), 14), GLAND_HU), shape=(20, 40, 40), spacing_mm=(3, 2, 2))
UIDS = {f"p{k}": f"1.2.3.{k}" for k in range(3)}
GLAND = drawn_scan((ball((0, 0, 0), 18), GLAND_HU))


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """Three scans, one without a gland."""
    folder = tmp_path / "scans"
    write_nifti(folder / "a.nii.gz", GLAND)
    write_nifti(folder / "b_0000.nii.gz", drawn_scan())
    write_nifti(folder / "c.nii.gz", drawn_scan((ball((4, 0, 2), 16), GLAND_HU)))
    return folder


def bytes_in(*folders: Path) -> dict[Path, str]:
    paths = sorted(path for folder in folders for path in folder.rglob("*") if path.is_file())
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def call(scans: Path, model: Path, out: Path, *words: object) -> list[object]:
    return ["predict", scans, "-m", model, "-o", out, "--device", "cpu", *words]


@pytest.mark.parametrize("what", ["folder", "file", "file without a gland"])
@pytest.mark.parametrize("way", ["same", "link", "other case", "hard link"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_mask_never_replaces_the_scan(
    metricunet: Command, bands_model: Path, scans: Path, tmp_path: Path, what: str, way: str, overwrite: bool
) -> None:
    (scans / "b_0000.nii.gz").rename(scans / "b.nii.gz")
    given = {"folder": scans, "file": scans / "a.nii.gz", "file without a gland": scans / "b.nii.gz"}[what]
    out = scans
    if way == "link":
        (tmp_path / "linked").symlink_to(scans)
        out = tmp_path / "linked"
    elif way == "other case":
        out = tmp_path / "links"
        out.mkdir()
        for path in scans.iterdir():
            (out / path.name).symlink_to(path)
    elif way == "hard link":
        out = tmp_path / "hard"
        out.mkdir()
        for path in scans.iterdir():
            os.link(path, out / path.name)
    before = bytes_in(tmp_path)
    ended = metricunet(*call(given, bands_model, out, *(["--overwrite"] if overwrite else [])))
    assert ended.status == 2
    assert "is an input and would be overwritten; choose another folder" in ended.err
    assert ended.err.count("\n") == 1
    assert bytes_in(tmp_path) == before


def test_manual_contours_are_not_replaced(
    metricunet: Command, bands_model: Path, scans: Path, tmp_path: Path
) -> None:
    labels = tmp_path / "labelsTs"
    labels.mkdir()
    for name in ("a.nii.gz", "b.nii.gz"):
        (labels / name).write_bytes(b"drawn by hand")
    before = bytes_in(tmp_path)
    ended = metricunet(*call(scans, bands_model, labels))
    assert ended.status == 2
    assert str(labels / "a.nii.gz") in ended.err
    assert "--overwrite" in ended.err
    assert bytes_in(tmp_path) == before
    assert metricunet(*call(scans, bands_model, labels, "--overwrite")).status == 1  # b has no gland
    assert read_labels(labels / "a.nii.gz").array.any()
    assert (labels / "b.nii.gz").read_bytes() == b"drawn by hand"  # nothing was written in its place
    assert bytes_in(scans) == {path: value for path, value in before.items() if path.parent == scans}


def test_a_corrected_mask_is_the_users_from_then_on(
    metricunet: Command, bands_model: Path, scans: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert metricunet(*call(scans, bands_model, out)).status == 1
    first = bytes_in(out)
    again = metricunet(*call(scans, bands_model, out))
    assert again.out.count("done before") == 3
    assert {p: v for p, v in bytes_in(out).items() if p.name != "run.json"} == {
        p: v for p, v in first.items() if p.name != "run.json"
    }
    mask = read_labels(out / "a.nii.gz")
    mask.array[0, 0, 0] = 1
    write_nifti(out / "a.nii.gz", mask)
    before = bytes_in(tmp_path)
    for words in ([], ["--reruns", 0]):
        ended = metricunet(*call(scans, bands_model, out, *words))
        assert ended.status == 2
        assert f"{out / 'a.nii.gz'}: is there already" in ended.err
        assert bytes_in(tmp_path) == before
    (out / "a.nii.gz").unlink()
    assert metricunet(*call(scans, bands_model, out)).status == 1
    assert bytes_in(out)[out / "a.nii.gz"] == first[out / "a.nii.gz"]


def test_what_was_predicted_from_another_file_of_the_same_name_is_kept(
    metricunet: Command, bands_model: Path, tmp_path: Path
) -> None:
    """Every patient has a ct.nii.gz, and one is predicted after the other into one folder."""
    first, second, copy = (tmp_path / name / "ct.nii.gz" for name in ("p1", "p2", "copy"))
    out = tmp_path / "out"
    write_nifti(first, GLAND)
    write_nifti(second, drawn_scan((ball((4, 0, 2), 16), GLAND_HU)))
    copy.parent.mkdir()
    copy.write_bytes(first.read_bytes())
    assert metricunet(*call(first, bands_model, out)).status == 0
    before = bytes_in(out)
    ended = metricunet(*call(second, bands_model, out))
    assert (ended.status, ended.out, ended.err.count("\n")) == (2, "", 1)
    assert f"is the prediction of another scan of this name, {first}, and would be replaced" in ended.err
    assert "--overwrite" in ended.err
    assert bytes_in(out) == before
    # The same scan elsewhere is done; a scan that changed in its place is not, and the user may insist.
    assert "done before" in metricunet(*call(copy, bands_model, out)).out
    assert metricunet(*call(second, bands_model, out, "--overwrite")).status == 0
    mask = out / "ct.nii.gz"
    assert bytes_in(out)[mask] != before[mask]
    write_nifti(second, GLAND)
    assert metricunet(*call(second, bands_model, out)).status == 0
    assert bytes_in(out)[mask] == before[mask]


def test_what_other_settings_no_longer_ask_for_goes_if_it_is_ours(
    metricunet: Command, bands_model: Path, tmp_path: Path
) -> None:
    write_series(tmp_path / "ct", GLAND.array, spacing_mm=GLAND.spacing_mm)
    out = tmp_path / "out"
    metricunet(*call(tmp_path / "ct", bands_model, out, "--format", "nifti,rtstruct,seg"))
    (structure_set,) = out.glob("*.rtstruct.dcm")
    (segmentation,) = out.glob("*.seg.dcm")
    structure_set.write_bytes(b"approved")
    ended = metricunet(*call(tmp_path / "ct", bands_model, out, "--format", "nifti", "--reruns", 0))
    assert ended.status == 0
    assert structure_set.read_bytes() == b"approved"
    assert not segmentation.exists()


@pytest.mark.parametrize("foreign", ["{}", '{"command": "train"}', "notes"])
def test_run_json_of_another_program_or_command_is_kept(
    metricunet: Command, bands_model: Path, scans: Path, tmp_path: Path, foreign: str
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "run.json").write_text(foreign)
    ended = metricunet(*call(scans, bands_model, out))
    assert ended.status == 2
    assert str(out / "run.json") in ended.err
    assert list(out.iterdir()) == [out / "run.json"]


def test_predictions_into_the_folder_of_their_series_are_no_scans(
    metricunet: Command, bands_model: Path, tmp_path: Path
) -> None:
    write_series(tmp_path / "ct", GLAND.array, spacing_mm=GLAND.spacing_mm)
    before = bytes_in(tmp_path)
    command = call(tmp_path / "ct", bands_model, tmp_path / "ct", "--format", "nifti")
    assert metricunet(*command).status == 0
    assert "done before" in metricunet(*command).out
    assert metricunet(*command, "--format", "nifti,rtstruct").status == 0
    assert before.items() <= bytes_in(tmp_path).items()


STEPS: dict[str, Callable[[], tuple[Any, str]]] = {
    "hash": lambda: (module.ScanInput, "sha256"),
    "read": lambda: (module.ScanInput, "read"),
    "compute": lambda: (module._Work, "compute"),
    "masks": lambda: (case_files, "_stage_masks"),
    "write": lambda: (module._Work, "write"),
    "commit": lambda: (module.OwnFiles, "commit"),
}


@pytest.mark.parametrize("step", list(STEPS))
@pytest.mark.parametrize("fault", [RuntimeError, MemoryError, OSError, RecursionError, KeyError])
def test_a_fault_in_one_case_costs_no_other_its_result(
    metricunet: Command,
    bands_model: Path,
    scans: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
    fault: type[Exception],
) -> None:
    metricunet(*call(scans, bands_model, tmp_path / "whole"))
    owner, name = STEPS[step]()
    real = getattr(owner, name)

    def faulty(self: Any, *arguments: Any, **options: Any) -> Any:
        entry = arguments[0] if owner is module._Work else self
        if getattr(entry, "case", getattr(entry, "record", "")).startswith("a"):
            raise fault("something odd\nover two lines")
        return real(self, *arguments, **options)

    monkeypatch.setattr(owner, name, faulty)
    out = tmp_path / "out"
    ended = metricunet(*call(scans, bands_model, out))
    assert ended.status == 1
    assert ended.err.startswith("failed: ")
    assert ended.err.count("\n") == 1
    assert str(scans / "a.nii.gz") in ended.err
    files = {path.name: value for path, value in bytes_in(out).items()}
    whole = {path.name: value for path, value in bytes_in(tmp_path / "whole").items() if path.name[0] != "a"}
    assert {**files, "run.json": ""} == {**whole, "run.json": ""}
    record = json.loads((out / "run.json").read_text())
    assert [r["path"] for r in record["refused"]] == [str(scans / "a.nii.gz")]
    monkeypatch.undo()
    assert metricunet(*call(scans, bands_model, out)).status == 1
    assert bytes_in(out).keys() == {out / p.name for p in bytes_in(tmp_path / "whole")}


def test_odd_headers_of_one_patient_cost_nobody_a_result(
    metricunet: Command, bands_model: Path, tmp_path: Path
) -> None:
    """One with Japanese letters, one with values that are none and a scout in its series, one plain."""

    def japanese(k: int, dataset: Dataset) -> None:
        dataset.SpecificCharacterSet = ["", "ISO 2022 IR 87"]
        dataset.PatientName = "Yamada^Tarou=山田^太郎"

    def odd(k: int, dataset: Dataset) -> None:
        content = {0x00101030: ("DS", b"70,5"), 0x00200012: ("IS", b"1.5 "), 0x00080020: ("DA", b"2020.01.01")}
        for tag, (vr, value) in content.items():
            dataset._dict[Tag(tag)] = RawDataElement(Tag(tag), vr, len(value), value, 0, False, True)

    def scout(k: int, dataset: Dataset) -> None:
        dataset.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
        dataset.ImageOrientationPatient = [1, 0, 0, 0, 0, -1]

    for name, edit in (("p0", japanese), ("p1", odd), ("p2", None)):
        write_series(
            tmp_path / "in" / name, SMALL.array, spacing_mm=SMALL.spacing_mm, after=edit, series_uid=UIDS[name]
        )
    write_series(tmp_path / "in" / "p1" / "scout", shape=(1, 30, 30), edit=scout, series_uid=UIDS["p1"])
    out = tmp_path / "out"
    ended = metricunet(*call(tmp_path / "in", bands_model, out, "--format", "nifti,rtstruct,seg"))
    assert ended.status == 0
    assert ended.err.count("\n") == 1
    assert "ImageType says LOCALIZER, and the image lies across the slices" in ended.err
    assert len(list(out.iterdir())) == 3 * 4 + 1
    masks = {path.read_bytes() for path in out.glob("*.nii.gz")}
    assert len(masks) == 1  # one scan, whatever its header says


def test_debug_shows_where_a_case_failed(
    metricunet: Command, bands_model: Path, scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def odd(self: Any, *arguments: Any) -> Any:
        if arguments[0].case == "a":
            raise RuntimeError("odd")
        return real(self, *arguments)

    real = module._Work.compute
    monkeypatch.setattr(module._Work, "compute", odd)
    ended = metricunet("--debug", *call(scans, bands_model, tmp_path / "out"))
    assert ended.status == 1
    assert "Traceback" in ended.err


def test_a_case_that_another_process_works_on_is_left_to_it(
    metricunet: Command, bands_model: Path, scans: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    own = module.OwnFiles(out, "a.quality.json", "predict")
    with claimed(own.claim, "a prediction of case a"):
        ended = metricunet(*call(scans, bands_model, out))
        assert ended.status == 1
        assert "a prediction of case a is going on here already" in ended.err
        assert not (out / "a.nii.gz").exists()
        assert (out / "c.nii.gz").exists()
    assert metricunet(*call(scans, bands_model, out)).out.count("done before") == 2
    names = {"a.nii.gz", "c.nii.gz", *(f"{case}.quality.json" for case in "abc"), "run.json"}
    assert {path.name for path in out.iterdir()} == names


def test_a_name_that_its_outputs_could_not_have_is_refused_before_any_work(
    metricunet: Command, bands_model: Path, tmp_path: Path
) -> None:
    """As long as the file system bears: the mask fits, the verdict of the same name does not."""
    scans, out = tmp_path / "scans", tmp_path / "out"
    most = os.pathconf(tmp_path, "PC_NAME_MAX")
    write_nifti(scans / f"{'n' * (most - len('.nii.gz'))}.nii.gz", GLAND)
    ended = metricunet(*call(scans, bands_model, out))
    assert (ended.status, ended.err.count("\n")) == (2, 1)
    assert f"at most {most} are possible" in ended.err
    assert not out.exists()
    (path,) = scans.iterdir()
    path.rename(scans / f"{'n' * (most - len('.quality.json'))}.nii.gz")
    assert metricunet(*call(scans, bands_model, out)).status == 0


def test_masks_never_go_among_a_cohorts_images_however_the_folder_is_named(
    metricunet: Command, bands_model: Path, scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = tmp_path / "cohort" / "imagesTs"
    images.mkdir(parents=True)
    (tmp_path / "cohort" / "dataset.json").write_text("{}")
    monkeypatch.chdir(images)
    ended = metricunet(*call(scans, bands_model, Path()))
    assert ended.status == 2
    assert "holds the images of a cohort" in ended.err
    assert list(images.iterdir()) == []
