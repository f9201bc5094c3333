"""Predicting: statuses, one-line errors, and no output where the input is bad."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest

from metricunet.files.nifti import read_labels, read_nifti
from tests.support.command import Command
from tests.support.dicom_series import write_series


def test_predict_does_not_import_lightning(tiny_model: Path, tiny_cohort: Path, tmp_path: Path) -> None:
    words = ["predict", tiny_cohort / "imagesTs", "-m", tiny_model, "-o", tmp_path / "out"]
    code = (
        f"import sys\nsys.argv = ['metricunet', *{list(map(str, words))!r}]\nfrom metricunet.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
        "sys.exit(', '.join(sorted({'lightning', 'matplotlib', 'highdicom', 'monai'} & set(sys.modules))) or 0)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr


def test_predict_then_evaluate(metricunet: Command, tiny_cohort: Path, tiny_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    ended = metricunet("predict", tiny_cohort / "imagesTs", "-m", tiny_model, "-o", out)
    assert (ended.status, ended.err) == (0, "")
    assert "case_06: review, found" in ended.out
    assert sorted(p.name for p in out.iterdir()) == [
        "case_06.nii.gz", "case_06.quality.json", "case_07.nii.gz", "case_07.quality.json", "run.json",
    ]  # fmt: skip
    quality = json.loads((out / "case_06.quality.json").read_text())
    assert {"case", "localisation", "verdict", "reasons", "structures"} <= set(quality)
    assert set(quality["localisation"]) == {"status", "confidence", "reason"}
    source = nib.load(tiny_cohort / "imagesTs" / "case_06_0000.nii.gz")
    mask = nib.load(out / "case_06.nii.gz")
    assert mask.shape == source.shape
    np.testing.assert_array_equal(mask.affine, source.affine)

    again = metricunet("predict", tiny_cohort / "imagesTs", "-m", tiny_model, "-o", out)
    assert again.out.count("done before") == 2
    assert metricunet("predict", tiny_cohort / "imagesTs", "-m", tiny_model, "-o", out, "--strict").status == 1

    ended = metricunet("evaluate", out, tiny_cohort / "labelsTs", "-o", tmp_path / "scores", "--json")
    assert ended.status == 0
    assert json.loads(ended.out) == json.loads((tmp_path / "scores" / "summary.json").read_text())
    assert json.loads(ended.out)["prostate"]["dice"]["mean"] > 0.8
    assert {p.name for p in (tmp_path / "scores").iterdir()} == {
        "cases.csv", "summary.json", "report.html", "evaluate.json",
    }  # fmt: skip


def test_an_absent_gland_ends_with_status_1_and_no_mask(
    metricunet: Command, tiny_cohort: Path, tiny_model: Path, tmp_path: Path
) -> None:
    scan = tiny_cohort / "imagesTr" / "case_05_0000.nii.gz"
    ended = metricunet("predict", scan, "-m", tiny_model, "-o", tmp_path / "out")
    assert ended.status == 1
    assert "case_05: fail, absent" in ended.out
    assert not (tmp_path / "out" / "case_05.nii.gz").exists()


def test_a_removed_mask_is_made_again(
    metricunet: Command, tiny_cohort: Path, tiny_model: Path, tmp_path: Path
) -> None:
    scan = tiny_cohort / "imagesTs" / "case_06_0000.nii.gz"
    metricunet("predict", scan, "-m", tiny_model, "-o", tmp_path)
    (tmp_path / "case_06.nii.gz").unlink()
    assert "done before" not in metricunet("predict", scan, "-m", tiny_model, "-o", tmp_path).out
    assert (tmp_path / "case_06.nii.gz").is_file()


def dicom_of(tiny_cohort: Path, folder: Path, patient_position: str = "HFS") -> Path:
    """Write an unseen tiny scan as a DICOM series."""
    scan = read_nifti(tiny_cohort / "imagesTs" / "case_06_0000.nii.gz")
    write_series(
        folder,
        np.clip(scan.array, -1024, 3071),  # stored without sign, from -1024 on
        shape=scan.geometry.shape,
        spacing_mm=scan.spacing_mm,
        patient_position=patient_position,
    )
    return folder


@pytest.mark.parametrize("patient_position", ["HFS", "FFP"])
def test_dicom_in_rtstruct_out(
    metricunet: Command, tiny_cohort: Path, tiny_model: Path, tmp_path: Path, patient_position: str
) -> None:
    folder, out = dicom_of(tiny_cohort, tmp_path / "ct", patient_position), tmp_path / "out"
    words = ["-o", out, "--format", "nifti,rtstruct", "--draw-anyway"]
    ended = metricunet("predict", folder, "-m", tiny_model, *words)
    assert ended.err == ""
    (mask_file,) = out.glob("*.nii.gz")
    (structure_file,) = out.glob("*.rtstruct.dcm")
    assert len(mask_file.name.removesuffix(".nii.gz")) == 12
    from metricunet.files.rtstruct.read import read_rtstruct

    structure_set = read_rtstruct(structure_file)
    mask = read_labels(mask_file)
    # Unsmoothed, the structure set read back is the written mask, to the voxel.
    np.testing.assert_array_equal(structure_set.mask("Prostate^autosyn", mask.geometry).array, mask.array)
    dataset = pydicom.dcmread(structure_file)
    assert "synthetic" in dataset.StructureSetDescription
    assert "not reviewed" in dataset.StructureSetDescription


def test_two_series_are_two_cases_and_the_unusable_one_is_listed(
    metricunet: Command, tiny_cohort: Path, tiny_model: Path, tmp_path: Path
) -> None:
    dicom_of(tiny_cohort, tmp_path / "ct" / "a")
    dicom_of(tiny_cohort, tmp_path / "ct" / "b")
    write_series(tmp_path / "ct" / "c", leave_out=[3])
    ended = metricunet("predict", tmp_path / "ct", "-m", tiny_model, "-o", tmp_path / "out")
    assert ended.status == 1
    assert len(list((tmp_path / "out").glob("*.nii.gz"))) == 2
    assert ended.err.startswith("refused: ")
    assert len(json.loads((tmp_path / "out" / "run.json").read_text())["refused"]) == 1


def _nifti(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path, Path], Path]:
    def make(cohort: Path, folder: Path) -> Path:
        image = nib.load(cohort / "imagesTs" / "case_06_0000.nii.gz")
        path = folder / "scan.nii.gz"
        nib.save(nib.Nifti1Image(change(np.asanyarray(image.dataobj)), image.affine), path)
        return path

    return make


def _truncated(cohort: Path, folder: Path) -> Path:
    path = folder / "scan.nii.gz"
    path.write_bytes((cohort / "imagesTs" / "case_06_0000.nii.gz").read_bytes()[:-5000])
    return path


def _text_folder(cohort: Path, folder: Path) -> Path:
    (folder / "notes.txt").write_text("no scan")
    return folder


def _series(**faults: object) -> Callable[[Path, Path], Path]:
    def make(cohort: Path, folder: Path) -> Path:
        write_series(folder, **faults)  # type: ignore[arg-type]
        return folder

    return make


def _set(k: int, **elements: object) -> Callable[[int, pydicom.Dataset], None]:
    def edit(index: int, dataset: pydicom.Dataset) -> None:
        if index == k or k < 0:
            for name, value in elements.items():
                setattr(dataset, name, value)

    return edit


def _nan(array: np.ndarray) -> np.ndarray:
    array = array.astype(np.float32)
    array[0, 0, 0] = np.nan
    return array


BAD_SCANS: dict[str, tuple[Callable[[Path, Path], Path], str]] = {
    "nothing there": (lambda cohort, folder: folder / "none", "no such file or folder"),
    "a folder without DICOM": (_text_folder, "DICOM"),
    "four dimensions": (_nifti(lambda a: np.stack([a, a], axis=-1)), "4 dimensions"),
    "NaN": (_nifti(_nan), "NaN"),
    "not HU": (_nifti(lambda a: (a + 1024).astype(np.int16)), "Hounsfield"),
    "truncated": (_truncated, "truncated"),
    "a missing slice": (_series(leave_out=[3]), "missing"),
    "a duplicate position": (_series(edit=_set(4, ImagePositionPatient=[-40.5, -62.25, -112.5])), "slice"),
    "mixed frames of reference": (_series(edit=_set(4, FrameOfReferenceUID="1.2.3")), "FrameOfRe"),
    "an MR": (_series(edit=_set(-1, Modality="MR")), "MR"),
    "two slices": (_series(shape=(2, 12, 10)), "two-slice"),
}


@pytest.mark.parametrize("name", BAD_SCANS)
def test_bad_scans_get_one_clear_line(
    metricunet: Command, tiny_cohort: Path, tiny_model: Path, tmp_path: Path, name: str
) -> None:
    make, words = BAD_SCANS[name]
    (tmp_path / "in").mkdir()
    scan = make(tiny_cohort, tmp_path / "in")
    ended = metricunet("predict", scan, "-m", tiny_model, "-o", tmp_path / "out")
    assert ended.status == 2
    assert ended.out == ""
    assert ended.err.startswith("error: ")
    assert ended.err.count("\n") == 1
    assert words in ended.err
    assert str(tmp_path / "in") in ended.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--format", "rtstruct"], "needs a DICOM series"),
        (["--format", "seg"], "needs a DICOM series"),
        (["--format", "png"], "--format must be of nifti, rtstruct, seg"),
        (["--device", "tpu"], "--device must be"),
        (
            ["--contours", "lines"],
            "error: Invalid value for '--contours': 'lines' is not one of 'surface', 'voxel'",
        ),
    ],
)
def test_bad_arguments_of_predict(
    metricunet: Command, tiny_cohort: Path, tiny_model: Path, tmp_path: Path, words: list[str], message: str
) -> None:
    scan = tiny_cohort / "imagesTs"
    ended = metricunet("predict", scan, "-m", tiny_model, "-o", tmp_path / "out", *words)
    assert ended.status == 2
    assert message in ended.err
    assert not (tmp_path / "out").exists()


def test_what_is_no_model(metricunet: Command, tiny_cohort: Path, tmp_path: Path) -> None:
    (tmp_path / "m.safetensors").write_bytes(b"\x80\x04pickle")
    predict = ["predict", tiny_cohort / "imagesTs", "-m", tmp_path / "m.safetensors", "-o", tmp_path / "out"]
    for words in (["info", tmp_path / "m.safetensors"], predict):
        ended = metricunet(*words)
        assert (ended.status, ended.err.count("\n")) == (2, 1)
        assert "not a metricunet model file" in ended.err


def test_two_scans_of_one_name(metricunet: Command, tiny_cohort: Path, tiny_model: Path, tmp_path: Path) -> None:
    shutil.copy(tiny_cohort / "imagesTs" / "case_06_0000.nii.gz", tmp_path)
    ended = metricunet("predict", tmp_path, tiny_cohort / "imagesTs", "-m", tiny_model, "-o", tmp_path / "out")
    assert ended.status == 2
    assert "case case_06 is there twice" in ended.err


def test_a_full_disk(metricunet: Command, tiny_cohort: Path, tiny_model: Path) -> None:
    """A file system of one page stands in for a full disk: the mask still fits, the verdict does not."""
    mount = Path(tempfile.mkdtemp(dir="/dev/shm"))  # others may run this test beside us
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", str(mount)], capture_output=True, check=False
    ).returncode:
        mount.rmdir()
        pytest.skip("mounting a small file system needs root")
    try:
        ended = metricunet("predict", tiny_cohort / "imagesTs", "-m", tiny_model, "-o", mount)
        left = sorted(p.name for p in mount.iterdir())
    finally:
        subprocess.run(["umount", str(mount)], check=True)
        mount.rmdir()
    assert ended.status == 2
    assert "disk is full" in ended.err
    assert ended.err.count("\n") == 1
    assert left == []


def test_without_a_model_the_shipped_one_is_used_and_warned_of(
    metricunet: Command, tiny_cohort: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("METRICUNET_MODEL", raising=False)
    monkeypatch.setattr("metricunet.inference.models.SHIPPED", tiny_model)
    scan = tiny_cohort / "imagesTs" / "case_06_0000.nii.gz"
    ended = metricunet("predict", scan, "-o", tmp_path / "out")
    assert ended.status == 0
    assert ended.err.startswith("warning: the shipped model was trained on synthetic scans only and not validated")
    assert ended.err.count("\n") == 1
    (said,) = json.loads((tmp_path / "out" / "run.json").read_text())["warnings"]
    assert ended.err == f"warning: {said}\n"
    assert metricunet("info").out == metricunet("info", "base").out == metricunet("info", tiny_model).out
    monkeypatch.setenv("METRICUNET_MODEL", str(tiny_model.with_name("none")))
    ended = metricunet("predict", scan, "-o", tmp_path / "other")
    assert ended.status == 2
    assert "METRICUNET_MODEL names it" in ended.err


def test_a_build_without_a_model_says_so(
    metricunet: Command, tiny_cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("METRICUNET_MODEL", raising=False)
    monkeypatch.setattr("metricunet.inference.models.SHIPPED", tmp_path / "none")
    ended = metricunet("predict", tiny_cohort / "imagesTs", "-o", tmp_path / "out")
    assert ended.status == 2
    assert ended.err.startswith(
        "error: this build of metricunet ships no model; name a model file with -m, or in "
    )
    assert "METRICUNET_MODEL" in ended.err
    ended = metricunet("info")
    assert (ended.status, ended.err.count("\n")) == (2, 1)
    assert "ships no model; give a model file" in ended.err
    assert not (tmp_path / "out").exists()


def test_the_status_fails_on_what_it_is_told_to(
    metricunet: Command, tiny_cohort: Path, tiny_model: Path, tmp_path: Path
) -> None:
    words = ["predict", tiny_cohort / "imagesTs" / "case_06_0000.nii.gz", "-m", tiny_model, "-o", tmp_path / "out"]
    cases: list[tuple[list[str], int]] = [
        ([], 0),
        (["--fail-on", "fail"], 0),
        (["--fail-on", "review"], 1),
        (["--strict"], 1),
        (["--strict", "--fail-on", "review"], 1),
    ]
    for more, status in cases:
        ended = metricunet(*words, *more)
        assert (ended.status, ended.err) == (status, "")
        assert "case_06: review" in ended.out
    ended = metricunet(*words, "--strict", "--fail-on", "fail")
    assert ended.status == 2
    assert "--strict means --fail-on review, and --fail-on fail is given" in ended.err
