"""Reviewed predictions into a cohort: what is taken, what is left out and said, and that it can be trained on."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from metricunet.cohort.importing import import_cohort, list_names
from metricunet.cohort.importing.report import Imported
from metricunet.cohort.layout import Case, read_cohort
from metricunet.errors import InputError
from metricunet.files.dicom.series import find_series
from metricunet.files.model import read_card
from metricunet.files.nifti import read_labels, read_nifti, write_nifti
from metricunet.files.own import OwnFiles
from metricunet.files.record import sha256
from metricunet.files.reviews import reviews_of
from metricunet.inference.predict import predict
from metricunet.training.config import load_config
from metricunet.training.fit import train
from metricunet.volume import Volume
from metricunet.workflows.check import check
from metricunet.workflows.review.decide import Verdict
from metricunet.workflows.review.desk import Desk
from metricunet.workflows.review.learn import ReviewedCases, case_name_of
from metricunet.workflows.review.scans import Scans
from tests.support.cohorts import edit_json, write_dataset_json
from tests.support.command import Command
from tests.support.dicom_series import write_series
from tests.support.threshold_model import bands_known
from tests.workflows.review.conftest import Predicted, gland

#: A small model of networks that can be trained.
BEFORE = Path(__file__).parents[2] / "compat" / "data" / "model.safetensors"
REASON = "Mister Mueller has a hip of metal"


def decide(folder: Path, case: str, change: dict[int, int] | None = None, reason: str = "") -> None:
    """Decide on a case: reject it for a reason, or accept it with the structures of some numbers made others'."""
    desk = Desk(folder, Scans(), "Ann Reader")
    info = desk.case(case)
    start, shape = info["near"]["start"], info["near"]["shape"]
    mask = np.frombuffer(desk.mask(case, info["shown"], start, shape), dtype=np.uint8).copy()
    for number, other in (change or {}).items():
        mask[mask == number] = other
    verdict = Verdict(bool(reason), reason, "Ann Reader", 9.0, info["shown"], len(info["reviews"]))
    desk.decide(case, verdict, start, shape, b"" if reason else mask.tobytes())


def learn(predicted: Predicted, cohort: Path, names: Path | None = None) -> Imported:
    return import_cohort([predicted.folder], cohort, names=names, layout=ReviewedCases(predicted.scans))


def case_of(predicted: Predicted, name: str, cohort: Path) -> Case:
    wanted = case_name_of(reviews_of(predicted.folder, name)[-1])
    return next(case for case in read_cohort(cohort).training if case.name == wanted)


def labels_of(case: Case) -> Volume:
    assert case.label is not None
    return read_labels(case.label)


def all_text(cohort: Path) -> str:
    return "".join(path.read_text() for path in cohort.rglob("*.json"))


def test_what_was_decided_is_taken_and_the_rest_is_said(predicted: Predicted, tmp_path: Path) -> None:
    decide(predicted.folder, predicted.flipped)
    decide(predicted.folder, predicted.dicom, {2: 1})  # the bladder was the gland
    decide(predicted.folder, predicted.odd, reason=REASON)
    before = {path: path.read_bytes() for path in predicted.folder.iterdir()}
    cohort = tmp_path / "cohort"
    result = learn(predicted, cohort)
    assert {path: path.read_bytes() for path in predicted.folder.iterdir()} == before
    assert not result.failed
    assert result.structures == {"prostate": {"contoured": 2}, "bladder": {"contoured": 1, "absent": 1}}
    rejected, undecided = sorted(result.left_out, key=lambda line: predicted.empty in line)
    assert predicted.odd in rejected
    # The name is the patient's, as the header of another scan of the folder says.
    assert "was rejected: Mister REDACTED has a hip of metal" in rejected
    assert f"{predicted.empty}.quality.json: nobody has decided on it" in undecided
    info = read_cohort(cohort).info
    assert info.labels == {"prostate": 1, "bladder": 2}  # in the model they are 1 and 7
    assert info.trained_on == "imported scans"
    flipped = case_of(predicted, predicted.flipped, cohort)
    scan = read_nifti(predicted.scans / "flipped.nii.gz")
    np.testing.assert_array_equal(read_nifti(flipped.image).reordered_like(scan.geometry).array, scan.array)
    mask = read_labels(predicted.folder / "flipped.nii.gz").reordered_like(scan.geometry).array
    np.testing.assert_array_equal(labels_of(flipped).reordered_like(scan.geometry).array, mask - 5 * (mask == 7))
    dicom = case_of(predicted, predicted.dicom, cohort)
    automatic = read_labels(predicted.folder / f"{predicted.dicom}.nii.gz")
    corrected = labels_of(dicom).reordered_like(automatic.geometry).array
    np.testing.assert_array_equal(corrected, automatic.array > 0)
    np.testing.assert_allclose(
        read_nifti(dicom.image).reordered_like(automatic.geometry).array,
        find_series(predicted.scans / "ct").series[0].read().reordered_like(automatic.geometry).array,
    )
    assert not [problem for problem in check(cohort) if problem.severity == "error"]
    # Who reviewed and why stays beside the predictions; so does the patient.
    assert not [word for word in ("Ann", "hip of metal", "Mueller", "Müller", "P-001") if word in all_text(cohort)]


def test_the_newest_review_counts_and_one_that_is_taken_back_leaves_the_cohort(
    predicted: Predicted, tmp_path: Path
) -> None:
    cohort = tmp_path / "cohort"
    decide(predicted.folder, predicted.flipped)
    decide(predicted.folder, predicted.odd)
    assert len(learn(predicted, cohort).cases) == 2
    assert learn(predicted, cohort).done_before == 2
    decide(predicted.folder, predicted.flipped, {2: 0})
    result = learn(predicted, cohort)
    assert result.done_before == 1
    assert set(np.unique(labels_of(case_of(predicted, predicted.flipped, cohort)).array)) == {0, 1}
    assert result.structures["bladder"] == {"absent": 1, "contoured": 1}
    kept = case_of(predicted, predicted.flipped, cohort).name
    decide(predicted.folder, predicted.odd, reason="metal")
    assert learn(predicted, cohort).cases == (kept,)
    assert [case.name for case in read_cohort(cohort).training] == [kept]


def test_a_cohort_whose_every_case_was_rejected_since_is_removed_and_can_be_made_again(
    predicted: Predicted, tmp_path: Path
) -> None:
    cohort = tmp_path / "cohort"
    decide(predicted.folder, predicted.flipped)
    learn(predicted, cohort)
    decide(predicted.folder, predicted.flipped, reason="wrong organ")
    with pytest.raises(InputError, match="taken all its cases back since, so they are removed"):
        learn(predicted, cohort)
    assert list(cohort.iterdir()) == []
    decide(predicted.folder, predicted.flipped)
    assert len(learn(predicted, cohort).cases) == 1


def test_what_nobody_drew_is_not_contoured(predicted: Predicted, tmp_path: Path) -> None:
    """Nothing was found in `empty`; the reviewer drew the gland, and no bladder."""
    desk = Desk(predicted.folder, Scans(), "Ann Reader")
    info = desk.case(predicted.empty)
    mask = np.zeros(info["whole"]["shape"], dtype=np.uint8)
    mask[10:14, 20:26, 20:26] = 1
    verdict = Verdict(False, "", "Ann Reader", 9.0, 0, 0)
    desk.decide(predicted.empty, verdict, info["whole"]["start"], info["whole"]["shape"], mask.tobytes())
    result = learn(predicted, tmp_path / "cohort")
    assert result.structures == {"prostate": {"contoured": 1}, "bladder": {"not contoured": 1}}
    assert case_of(predicted, predicted.empty, tmp_path / "cohort").not_contoured == ("bladder",)
    names = tmp_path / "names.yaml"
    names.write_text(f"gland: [prostate]\nbladder: [bladder]\nabsent:\n  bladder: [{predicted.empty}]\n")
    result = learn(predicted, tmp_path / "other", names=names)
    assert result.structures == {"gland": {"contoured": 1}, "bladder": {"absent": 1}}
    listed = list_names([predicted.folder], layout=ReviewedCases()).text
    assert '"bladder"  # 1 case, 1 with nothing drawn' in listed


def test_a_scan_that_changed_or_is_gone_costs_its_case(predicted: Predicted, tmp_path: Path) -> None:
    for name in (predicted.flipped, predicted.odd, predicted.dicom):
        decide(predicted.folder, name)
    flipped = predicted.scans / "flipped.nii.gz"
    scan = read_nifti(flipped)
    write_nifti(flipped, scan.with_array(scan.array + 1))
    (predicted.scans / f"{predicted.odd}.nii.gz").unlink()
    result = learn(predicted, tmp_path / "cohort")
    assert result.failed
    assert [case.name for case in read_cohort(tmp_path / "cohort").training] == list(result.cases)
    assert len(result.cases) == 1
    changed, gone = sorted(result.refused, key=lambda line: "its scan is not found" in line)
    assert "flipped.nii.gz: is not the scan that was reviewed as case flipped" in changed
    assert f"holds no scan of case {predicted.odd}" in gone
    # Where scans lie here is nobody's concern elsewhere.
    assert str(predicted.scans) not in all_text(tmp_path / "cohort")


def test_a_review_of_another_scan_than_is_predicted_now_is_refused(predicted: Predicted, tmp_path: Path) -> None:
    decide(predicted.folder, predicted.flipped)
    flipped = predicted.scans / "flipped.nii.gz"
    scan = read_nifti(flipped)
    write_nifti(flipped, scan.with_array(scan.array + 1))
    edit_json(predicted.folder / "flipped.quality.json", input_sha256=sha256([flipped]))  # it was predicted anew
    with pytest.raises(InputError, match=r"nothing to import: .*is not the scan that was reviewed"):
        learn(predicted, tmp_path / "cohort")


def test_a_changed_mask_or_record_is_refused_and_no_earlier_one_is_taken(
    predicted: Predicted, tmp_path: Path
) -> None:
    for name in (predicted.flipped, predicted.odd, predicted.dicom):
        decide(predicted.folder, name)
    decide(predicted.folder, predicted.odd, {2: 0})
    mask = predicted.folder / "flipped.reviewed.nii.gz"
    labels = read_labels(mask)
    write_nifti(mask, labels.with_array(np.roll(labels.array, 1, axis=0)))
    edit_json(predicted.folder / f"{predicted.odd}.reviewed-2.json", decision="accepted")
    result = learn(predicted, tmp_path / "cohort")
    assert len(result.cases) == 1
    assert len(result.refused) == 2
    assert any("the files of this review were changed since" in line for line in result.refused)
    assert any("reviewed-2.json: is no record of a review, was changed since" in line for line in result.refused)


def test_a_prediction_that_is_gone_or_damaged_costs_its_case(predicted: Predicted, tmp_path: Path) -> None:
    for name in (predicted.flipped, predicted.odd, predicted.dicom):
        decide(predicted.folder, name)
    (predicted.folder / "flipped.quality.json").unlink()
    (predicted.folder / f"{predicted.odd}.quality.json").write_text("{")
    result = learn(predicted, tmp_path / "cohort")
    assert len(result.cases) == 1
    assert any("reviews a prediction that is gone" in line for line in result.refused)
    assert len(result.refused) == 2


def test_patients_are_told_apart_by_their_headers_across_folders(predicted: Predicted, tmp_path: Path) -> None:
    """Series of two studies, predicted into two folders, are one patient's by their PatientID."""
    scan = gland((0, 0, 0))
    place = {"spacing_mm": scan.spacing_mm, "origin_mm": tuple(scan.geometry.origin_mm)}
    write_series(tmp_path / "later", scan.array, **place)  # type: ignore[arg-type]
    with bands_known():
        predict(
            [tmp_path / "later"], [predicted.folder.parent / "model.safetensors"], tmp_path / "o", device="cpu"
        )
    (other,) = (path.name.partition(".")[0] for path in (tmp_path / "o").glob("*.quality.json"))
    decide(predicted.folder, predicted.dicom)
    decide(predicted.folder, predicted.flipped)
    cohort = tmp_path / "cohort"
    first = learn(predicted, cohort)
    assert first.patients == 2
    decide(tmp_path / "o", other)
    result = import_cohort([predicted.folder, tmp_path / "o"], cohort, layout=ReviewedCases())
    assert (len(result.cases), result.patients, result.done_before) == (3, 2, 2)
    patients = json.loads((cohort / "patients.json").read_text())
    assert (
        patients[case_of(predicted, predicted.dicom, cohort).name]
        != (patients[case_of(predicted, predicted.flipped, cohort).name])
    )


def test_scans_of_a_cohort_keep_its_patients_and_that_they_are_phantoms(
    predicted: Predicted, tmp_path: Path
) -> None:
    images = tmp_path / "raw" / "imagesTs"
    images.mkdir(parents=True)
    for name in (predicted.flipped, predicted.odd):
        shutil.copy(predicted.scans / f"{name}.nii.gz", images / f"{name}_0000.nii.gz")
        decide(predicted.folder, name)
    (tmp_path / "raw" / "patients.json").write_text(json.dumps({predicted.flipped: "x", predicted.odd: "x"}))
    write_dataset_json(tmp_path / "raw", {"prostate": 1}, 0, "phantoms", "synthetic")
    result = import_cohort([predicted.folder], tmp_path / "cohort", layout=ReviewedCases(images))
    assert (len(result.cases), result.patients) == (2, 1)
    assert read_cohort(tmp_path / "cohort").info.trained_on == "synthetic"
    # The very scans elsewhere are the cases that are there already.
    assert set(learn(predicted, tmp_path / "cohort").cases) == set(result.cases)


#: Runs an import in which the process is killed while the labels of the second case are being written.
KILLED = """
import os, signal, sys
from pathlib import Path
import metricunet.files.nifti as nifti
from metricunet.cohort.importing import import_cohort
from metricunet.workflows.review.learn import ReviewedCases

save, written = nifti.nib.save, []

def killing(image, path):
    written.append(path)
    if len(written) == 4:
        Path(path).write_bytes(b"half of it")
        os.kill(os.getpid(), signal.SIGKILL)
    save(image, path)

nifti.nib.save = killing
import_cohort([Path(sys.argv[1])], Path(sys.argv[2]), layout=ReviewedCases(Path(sys.argv[3])))
"""


def test_a_killed_import_is_gone_on_with(predicted: Predicted, tmp_path: Path) -> None:
    decide(predicted.folder, predicted.flipped)
    decide(predicted.folder, predicted.odd)
    cohort = tmp_path / "cohort"
    ended = subprocess.run([sys.executable, "-c", KILLED, predicted.folder, cohort, predicted.scans], check=False)
    assert ended.returncode == -signal.SIGKILL
    with pytest.raises(InputError, match=r"no dataset\.json here"):
        read_cohort(cohort)
    result = learn(predicted, cohort)
    assert (len(result.cases), result.done_before) == (2, 1)
    assert OwnFiles(cohort, "import.json", "import").is_whole()
    assert not list(cohort.rglob(".*"))


def test_the_command(predicted: Predicted, tmp_path: Path, metricunet: Command) -> None:
    decide(predicted.folder, predicted.flipped)
    out, cohort = str(predicted.folder), str(tmp_path / "cohort")
    ended = metricunet("import", out, "--reviewed", "-o", cohort, "--scans", predicted.scans)
    assert ended.status == 0
    assert ended.out.startswith("1 case of 1 patient in ")
    assert ended.err.count("left out: ") == 3
    for words, reason in (
        (("import", out, "-o", f"{cohort}2"), "holds reviewed predictions; import them with --reviewed"),
        (("import", out, "-o", f"{cohort}2", "--scans", out), "give it together with --reviewed"),
        (("import", out, "-o", f"{cohort}2", "--reviewed", "--layout", "pairs"), "leave --layout pairs out"),
        (("import", out, "-o", f"{cohort}2", "--reviewed", "--scans", f"{out}/no"), "no such file or folder"),
        (("import", str(predicted.scans), "-o", f"{cohort}2", "--reviewed"), "holds no prediction"),
    ):
        ended = metricunet(*words)
        assert ended.status == 2
        assert reason in ended.err
        assert not Path(f"{cohort}2").exists()


def test_a_model_learns_from_them(predicted: Predicted, tmp_path: Path) -> None:
    decide(predicted.folder, predicted.flipped)
    decide(predicted.folder, predicted.odd, {2: 0})
    learn(predicted, tmp_path / "cohort")
    one_update = ("epochs=1", "updates_per_epoch=1", "batch_size=1")
    settings = [f"{stage}.{setting}" for stage in ("locate", "segment") for setting in one_update]
    model = train(
        tmp_path / "cohort",
        tmp_path / "run",
        config=load_config(settings=settings, parent=read_card(BEFORE)),
        fold="all",
        init=BEFORE,
        device="cpu",
    )
    card = read_card(model)
    assert card.trained_on == "imported scans"
    assert card.labels == {"prostate": 1, "bladder": 2}
    assert [ancestor.name for ancestor in card.lineage] == ["model"]
