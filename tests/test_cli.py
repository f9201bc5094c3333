"""The command line: statuses, one-line errors, JSON, and no output where the input is bad."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest

from metricunet.cli import progress_bars
from metricunet.errors import InputError
from metricunet.files.model import Ancestor, read_model, write_model
from metricunet.files.nifti import read_labels, read_nifti, write_nifti
from metricunet.files.record import sha256
from tests.support.cohorts import TINY_SETTINGS, make_scan, make_tiny_cohort
from tests.support.command import Command
from tests.support.dicom_series import write_series


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys\nsys.argv = ['metricunet', '--help']\nfrom metricunet.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
        "heavy = {'torch', 'numpy', 'scipy', 'lightning', 'pydicom', 'nibabel', 'matplotlib', 'pydantic'}\n"
        "sys.exit(', '.join(sorted(heavy & set(sys.modules))) or 0)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    for verb in ("demo", "phantom", "check", "train", "predict", "evaluate", "info"):
        assert verb in ended.stdout


def test_predict_does_not_import_lightning(tiny_model: Path, tiny_cohort: Path, tmp_path: Path) -> None:
    words = ["predict", tiny_cohort / "imagesTs", "-m", tiny_model, "-o", tmp_path / "out"]
    code = (
        f"import sys\nsys.argv = ['metricunet', *{list(map(str, words))!r}]\nfrom metricunet.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
        "sys.exit(', '.join(sorted({'lightning', 'matplotlib', 'highdicom', 'monai'} & set(sys.modules))) or 0)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr


def test_version(metricunet: Command) -> None:
    from metricunet import __version__

    assert metricunet("--version").out.strip() == __version__


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


def test_check(metricunet: Command, tiny_cohort: Path, tmp_path: Path) -> None:
    ended = metricunet("check", tiny_cohort)
    assert ended.status == 0
    assert "0 errors, 1 warnings" in ended.out
    cohort = Path(shutil.copytree(tiny_cohort, tmp_path / "cohort"))
    path = cohort / "labelsTr" / "case_01.nii.gz"
    labels = read_labels(path)
    write_nifti(path, labels.with_array(labels.array * 3))
    ended = metricunet("check", cohort, "--json")
    assert ended.status == 1
    found = {(p["case"], p["severity"]) for p in json.loads(ended.out)}
    assert found == {("case_01", "error"), ("case_05", "warning")}
    assert metricunet("check", tiny_cohort / "imagesTs" / "case_06_0000.nii.gz").status == 0
    assert metricunet("check", tmp_path / "none").status == 2
    write_series(tmp_path / "ct", leave_out=[3])
    assert metricunet("check", tmp_path / "ct").status == 1


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("value", "label value 3"),
        ("fraction", "whole numbers"),
        ("grid", "another grid"),
        ("json", "no dataset.json"),
    ],
)
def test_train_refuses_bad_labels(
    metricunet: Command, tiny_cohort: Path, tmp_path: Path, fault: str, words: str
) -> None:
    cohort = Path(shutil.copytree(tiny_cohort, tmp_path / "cohort", ignore=shutil.ignore_patterns("prepared")))
    path = cohort / "labelsTr" / "case_01.nii.gz"
    labels = read_labels(path)
    if fault == "value":
        write_nifti(path, labels.with_array(labels.array * 3))
    elif fault == "fraction":
        write_nifti(path, labels.with_array(labels.array * np.float32(0.5)))
    elif fault == "grid":
        write_nifti(path, labels.crop((1, 0, 0), labels.array.shape))
    else:
        (cohort / "dataset.json").unlink()
    ended = metricunet("train", cohort, "-o", tmp_path / "run")
    assert ended.status == 2
    assert words in ended.err
    assert ended.err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_train_names_a_bad_setting(metricunet: Command, tiny_cohort: Path, tmp_path: Path) -> None:
    for words, message in (
        (["--set", "segment.epoch=3"], "segment.epoch"),
        (["--preset", "huge"], "default, small"),
        (["--fold", "x"], "--fold"),
    ):
        ended = metricunet("train", tiny_cohort, "-o", tmp_path / "run", *words)
        assert ended.status == 2
        assert message in ended.err
    assert not (tmp_path / "run").exists()


def test_scans_without_contours_are_prepared_after_those_with_them(
    metricunet: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(run: object) -> None:
        raise InputError("all is prepared")  # what follows has tests of its own

    monkeypatch.setattr("metricunet.training.fit.train_locate", stop)
    cohort = make_tiny_cohort(tmp_path / "cohort", 3)
    for k in (10, 11):
        write_nifti(cohort / "imagesUnlabeled" / f"case_{k}_0000.nii.gz", make_scan(k)[0])
    words = [word for setting in (*TINY_SETTINGS, "teacher.share=0.5") for word in ("--set", setting)]
    ended = metricunet("train", cohort, "-o", tmp_path / "run", "--preset", "small", "--device", "cpu", *words)
    assert (ended.status, ended.err) == (2, "error: all is prepared\n")


def test_a_bar_may_be_gone_through_again() -> None:
    with progress_bars() as bar:
        told = bar("preparing")
        for total in (2, 3):
            for done in range(1, total + 1):
                told(done, total)


def test_info(metricunet: Command, tiny_model: Path) -> None:
    ended = metricunet("info", tiny_model)
    assert "trained_on: synthetic" in ended.out
    assert "verdicts are review at best: the model was trained on synthetic scans only" in ended.out
    card = json.loads(metricunet("info", tiny_model, "--json").out)
    assert card["model_sha256"] == sha256([tiny_model])
    assert f"model_sha256: {card['model_sha256']}" in ended.out.splitlines()
    assert card["target"] == "prostate"
    assert card["intended_use"].startswith("Research")


def test_info_of_a_model_with_ancestors(metricunet: Command, tiny_model: Path, tmp_path: Path) -> None:
    card, weights = read_model(tiny_model)
    lineage = (
        Ancestor("base", "a" * 64, synthetic=True),
        Ancestor("theirs", "b" * 64, False, ("c" * 64, "d" * 64)),
    )
    path = tmp_path / "model.safetensors"
    write_model(path, replace(card, trained_on="patients", lineage=lineage, cases=("e" * 64,)), weights)
    text = metricunet("info", path).out
    assert f"  base: trained on synthetic scans only, weights {'a' * 64}\n" in text
    assert f"  theirs: trained on 2 known cases, weights {'b' * 64}\n" in text
    assert "cases: 1 known by the hashes of their files" in text
    assert "validated: no scores on patients in this card" in text
    assert "review at best: the model descends from one that was trained on synthetic scans only (base)" in text
    assert json.loads(metricunet("info", path, "--json").out)["lineage"][1]["cases"] == ["c" * 64, "d" * 64]


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


def test_evaluate_misses_count(metricunet: Command, tiny_cohort: Path, tmp_path: Path) -> None:
    (tmp_path / "pred").mkdir()
    shutil.copy(tiny_cohort / "labelsTs" / "case_06.nii.gz", tmp_path / "pred")
    ended = metricunet("evaluate", tmp_path / "pred", tiny_cohort / "labelsTs", "-o", tmp_path / "out")
    assert ended.status == 1
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())["prostate"]
    assert summary["dice"]["mean"] == pytest.approx(0.5)
    assert summary["dice"]["missed"] == 1


def test_debug_shows_where_it_came_from(metricunet: Command, tmp_path: Path) -> None:
    plain, ended = (metricunet(*debug, "info", tmp_path / "none") for debug in ([], ["--debug"]))
    assert plain.err.count("\n") == 1
    assert ended.err.startswith("Traceback")
    assert ended.err.endswith(f"\n{plain.err}")
    assert (plain.status, ended.status) == (2, 2), "status 1 says that all but some cases are done"


def test_debug_shows_where_the_program_failed(
    metricunet: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def odd(*_: object, **__: object) -> None:
        raise KeyError("odd")

    monkeypatch.setattr("metricunet.workflows.check.check", odd)
    said = "error: an unexpected KeyError stopped it: 'odd'; this is a fault of the program"
    ended = metricunet("check", tmp_path)
    assert (ended.status, ended.err) == (2, f"{said}: --debug after metricunet shows where\n")
    ended = metricunet("--debug", "check", tmp_path)
    assert ended.status == 2
    assert ended.err.startswith("Traceback")
    assert ended.err.endswith(f"\n{said}\n")


def test_that_memory_does_not_suffice_is_no_fault_of_the_program(
    metricunet: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr("metricunet.workflows.check.check", full)
    ended = metricunet("check", tmp_path)
    assert (ended.status, ended.err.count("\n")) == (2, 1)
    assert ended.err.startswith(
        "error: there is not enough memory for it on this machine; end other programs on it"
    )
    assert "fault" not in ended.err


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


def test_a_shell_can_complete_commands_and_options() -> None:
    def offered(words: str, at: int) -> list[str]:
        env = {"_METRICUNET_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(at)}
        code = "import sys; sys.argv = ['metricunet']; from metricunet.cli import main; main()"
        ended = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=os.environ | env
        )
        assert ended.returncode == 0, ended.stderr
        return ended.stdout.split()

    assert offered("metricunet pre", 1) == ["predict"]
    assert offered("metricunet predict --fail-on ", 3) == ["fail", "review"]
    assert {"--structures", "--strict"} <= set(offered("metricunet predict --str", 2))


def test_the_weights_to_begin_with_have_another_word(
    metricunet: Command, tiny_cohort: Path, tmp_path: Path
) -> None:
    for word in ("--init", "--pretrained"):
        ended = metricunet("train", tiny_cohort, "-o", tmp_path / "run", word, tmp_path / "none.safetensors")
        assert ended.status == 2
        assert "none.safetensors" in ended.err
    assert not (tmp_path / "run").exists()
