"""What the pages are told, and what becomes of a decision, without a browser."""

from __future__ import annotations

import errno
import json
import os
import shutil
import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
from httpx import Response
from numpy.typing import NDArray

from metricunet.errors import InputError
from metricunet.evaluation.cases import match_cases
from metricunet.files.claim import claimed
from metricunet.files.dicom.series import find_series
from metricunet.files.nifti import read_labels, read_nifti, write_nifti
from metricunet.files.own import FILES, SEAL, OwnFiles, write_sealed
from metricunet.files.reviews import reviews_of
from metricunet.files.rtstruct.read import read_rtstruct
from metricunet.inference.inputs import scans_at
from metricunet.volume import Geometry, Volume
from metricunet.workflows.review.decide import Verdict, decide
from metricunet.workflows.review.desk import Desk
from metricunet.workflows.review.opened import OpenedCase, open_case
from metricunet.workflows.review.scans import Scans
from tests.support.cohorts import edit_json
from tests.workflows.review.conftest import Browser, Enter, Predicted, predict_anew, scan_anew

#: A mask on the grid of no scan.
SMALL = Volume(np.ones((9, 9, 9), dtype=np.uint8), Geometry.from_parts((9, 9, 9), (3, 2, 2)))
NEVER = {"rejected": False, "reason": "", "reviewer": "Ann Reader", "seconds": 12.5, "beside": False}


def body(fields: dict[str, Any], mask: bytes = b"") -> bytes:
    text = json.dumps(fields).encode()
    return len(text).to_bytes(4, "little") + text + mask


def send(client: Browser, case: str, mask: NDArray[np.uint8] | None = None, **fields: Any) -> Response:
    """Send a decision as the page does; without a mask it is the one that was shown."""
    info = client.get(f"/api/cases/{case}").json()
    known = {"based_on": info["shown"], "latest": len(info["reviews"]), "prediction": info["prediction"]}
    wanted = {**NEVER, **known, **info["near"], **fields}
    return client.post(f"/api/cases/{case}/reviews", content=body(wanted, b"" if mask is None else mask.tobytes()))


def shown(
    client: Browser, case: str, review: int = 0, near: dict[str, list[int]] | None = None
) -> NDArray[np.uint8]:
    """The mask [slice, row, column] as the browser gets it, by default of the near field."""
    near = near or client.get(f"/api/cases/{case}").json()["near"]
    field = {key: ",".join(map(str, near[key])) for key in ("start", "shape")}
    answer = client.get(f"/api/cases/{case}/mask", params={"review": review, **field})
    return np.frombuffer(answer.content, dtype=np.uint8).reshape(near["shape"]).copy()


def full_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_cases_come_by_doubt_verdict_and_expected_error(predicted: Predicted, enter: Enter) -> None:
    client = enter(predicted.folder)
    names = [case["name"] for case in client.get("/api/cases").json()["cases"]]
    assert names[0] == predicted.empty  # failed
    assert set(names) == {predicted.dicom, predicted.flipped, predicted.odd, predicted.empty}
    edit_json(predicted.folder / f"{predicted.odd}.quality.json", doubt="some")
    edit_json(predicted.folder / f"{predicted.flipped}.quality.json", doubt="strong")
    edit_json(predicted.folder / f"{predicted.empty}.quality.json", doubt="none")
    names = [case["name"] for case in client.get("/api/cases").json()["cases"]]
    assert names[:3] == [predicted.flipped, predicted.odd, predicted.empty]


@pytest.mark.parametrize("case", ["dicom", "flipped", "odd"])
def test_scan_and_mask_lie_as_niivue_shows_them(predicted: Predicted, enter: Enter, case: str) -> None:
    name = getattr(predicted, case)
    client = enter(predicted.folder)
    info = client.get(f"/api/cases/{name}").json()
    assert [s["name"] for s in info["structures"]] == ["prostate", "bladder"]
    field = {key: ",".join(map(str, info["near"][key])) for key in ("start", "shape")}
    image = nib.Nifti1Image.from_bytes(client.get(f"/api/cases/{name}/scan", params=field).content)
    assert nib.aff2axcodes(image.affine) == ("R", "A", "S")
    hu, mask = np.asarray(image.dataobj).transpose(2, 1, 0), shown(client, name)
    assert mask.shape == hu.shape
    assert np.median(hu[mask == 1]) == pytest.approx(60, abs=3)
    assert np.median(hu[mask == 2]) == pytest.approx(300, abs=3)
    # The very voxels of the label map, at their places in the patient.
    labels = nib.load(predicted.folder / f"{name}.nii.gz")
    for number, value in ((1, 1), (2, 7)):
        index = np.argwhere(mask == number)[:, ::-1]
        places = nib.affines.apply_affine(np.linalg.inv(labels.affine) @ image.affine, index)
        found = np.asarray(labels.dataobj)[tuple(np.rint(places).astype(int).T)]
        assert (found == value).all()
        assert len(index) == np.count_nonzero(np.asarray(labels.dataobj) == value)


def test_slices_are_those_that_the_error_was_stated_for(predicted: Predicted, enter: Enter) -> None:
    client = enter(predicted.folder)
    for name in (predicted.dicom, predicted.flipped):
        info = client.get(f"/api/cases/{name}").json()
        first = info["near"]["start"][0]
        assert [s["slice"] - first for s in info["slices"]] == np.flatnonzero(
            (shown(client, name) == 1).any(axis=(1, 2))
        ).tolist()


def test_accepting_keeps_the_mask_to_the_voxel(predicted: Predicted, enter: Enter) -> None:
    before = bytes_of(predicted.folder)
    client = enter(predicted.folder)
    for name in (predicted.dicom, predicted.flipped):
        answer = send(client, name)
        assert answer.status_code == 200
        assert answer.json()["decision"] == "accepted"
        automatic, reviewed = (
            nib.load(predicted.folder / f"{name}{end}") for end in (".nii.gz", ".reviewed.nii.gz")
        )
        assert np.array_equal(np.asarray(automatic.dataobj), np.asarray(reviewed.dataobj))
        assert np.array_equal(automatic.affine, reviewed.affine)
    assert not (predicted.folder / "flipped.reviewed.rtstruct.dcm").exists()
    after = bytes_of(predicted.folder)
    assert {name: after[name] for name in before} == before
    record = json.loads(after["flipped.reviewed.json"])
    assert record["reviewer"] == "Ann Reader"
    assert record["seconds"] == 12.5
    assert record["decided"].endswith("+00:00")
    quality = json.loads(after["flipped.quality.json"])
    assert record["prediction"]["model_sha256"] == quality["model_sha256"]
    assert record["prediction"]["mask_sha256"] == quality["files"]["flipped.nii.gz"]
    assert [c["decision"] for c in client.get("/api/cases").json()["cases"]].count("accepted") == 2


def test_a_correction_changes_its_voxels_and_no_other(predicted: Predicted, enter: Enter) -> None:
    client = enter(predicted.folder)
    name = predicted.dicom
    near = client.get(f"/api/cases/{name}").json()["near"]
    mask = shown(client, name)
    mask[12, 20:24, 10:15] = 1
    mask[mask == 2] = 0
    assert send(client, name, mask).json()["decision"] == "corrected"
    automatic = read_labels(predicted.folder / f"{name}.nii.gz").array
    corrected = read_labels(predicted.folder / f"{name}.reviewed.nii.gz").array
    added = (corrected == 1) & (automatic != 1)
    assert np.count_nonzero(added) == 4 * 5 - np.count_nonzero(shown(client, name)[12, 20:24, 10:15] == 1)
    assert not (corrected == 7).any()
    assert ((corrected == 1) | (automatic != 1)).all()
    record = json.loads((predicted.folder / f"{name}.reviewed.json").read_text())
    assert record["changed_voxels"] == {"prostate": 20, "bladder": np.count_nonzero(automatic == 7)}
    assert np.array_equal(shown(client, name, 1, near), mask)
    assert client.get(f"/api/cases/{name}").json()["shown"] == 1


def test_the_structure_set_is_the_reviewed_mask_and_says_who_made_it_how(
    predicted: Predicted, enter: Enter
) -> None:
    client = enter(predicted.folder)
    mask = shown(client, predicted.dicom)
    mask[12, 20:24, 10:15] = 1
    assert send(client, predicted.dicom, mask).json()["problem"] == ""
    path = predicted.folder / f"{predicted.dicom}.reviewed.rtstruct.dcm"
    (series,) = find_series(predicted.scans / "ct").series
    found = read_rtstruct(path, series)
    reviewed = read_labels(path.with_name(f"{predicted.dicom}.reviewed.nii.gz")).array
    for name, value in (("Prostate^rev", 1), ("Bladder^rev", 7)):
        assert np.array_equal(found.mask(name, series.geometry).array, reviewed == value)
    dataset = pydicom.dcmread(path)
    assert {roi.ROIName: roi.ROIGenerationAlgorithm for roi in dataset.StructureSetROISequence} == {
        "Prostate^rev": "SEMIAUTOMATIC",
        "Bladder^rev": "AUTOMATIC",  # nobody has touched it
    }
    assert "corrected by hand" in dataset.StructureSetDescription
    assert "Reader" not in str(dataset)  # who it was stands in the record alone
    assert dataset.ApprovalStatus == "UNAPPROVED"


@pytest.mark.parametrize("synthetic", [False, True])
def test_the_structure_set_of_a_model_of_synthetic_origin_says_so(
    predicted: Predicted, enter: Enter, synthetic: bool
) -> None:
    quality = predicted.folder / f"{predicted.dicom}.quality.json"
    stated = json.loads(quality.read_text())
    content = {name: value for name, value in stated.items() if name not in (FILES, SEAL)}
    more = [{"code": "synthetic_model", "message": "descends from one of synthetic scans"}] if synthetic else []
    write_sealed(quality, {**content, "flags": [*content["flags"], *more]}, stated[FILES])
    client = enter(predicted.folder)
    assert send(client, predicted.dicom, shown(client, predicted.dicom)).json()["problem"] == ""
    dataset = pydicom.dcmread(predicted.folder / f"{predicted.dicom}.reviewed.rtstruct.dcm")
    assert "accepted by a reviewer" in dataset.StructureSetDescription
    words = "trained on synthetic scans only, or begun from one that was"
    assert (words in dataset.StructureSetDescription) == synthetic


def test_a_structure_set_that_cannot_be_made_costs_no_correction(
    predicted: Predicted, enter: Enter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object, **__: object) -> None:
        raise ValueError("an odd header")

    monkeypatch.setattr("metricunet.workflows.review.decide.write_rtstruct", failing)
    client = enter(predicted.folder)
    mask = shown(client, predicted.dicom)
    mask[12, 20:24, 10:15] = 1
    answer = send(client, predicted.dicom, mask)
    assert answer.status_code == 200
    assert answer.json()["problem"] == "an unexpected ValueError stopped it: an odd header"
    (review,) = reviews_of(predicted.folder, predicted.dicom)
    assert review.is_whole()
    assert (review.decision, review.structure_set) == ("corrected", None)
    record = json.loads(review.path.read_text())
    assert record["structure_set_missing"] == answer.json()["problem"]


def test_a_rejected_case_needs_a_reason_and_has_no_mask(predicted: Predicted, enter: Enter) -> None:
    client = enter(predicted.folder)
    answer = send(client, "flipped", rejected=True, reason=" ")
    assert answer.status_code == 400
    assert "needs a reason" in answer.json()["error"]
    assert send(client, "flipped", rejected=True, reason="wrong organ").status_code == 200
    assert [p.name for p in predicted.folder.glob("flipped.reviewed*")] == ["flipped.reviewed.json"]
    (review,) = reviews_of(predicted.folder, "flipped")
    assert (review.decision, review.reason, review.mask) == ("rejected", "wrong organ", None)


def test_what_was_not_found_can_be_drawn_or_rejected_but_not_accepted(predicted: Predicted, enter: Enter) -> None:
    client = enter(predicted.folder)
    answer = send(client, "empty")
    assert answer.status_code == 400
    assert "no mask to accept" in answer.json()["error"]
    mask = shown(client, "empty")
    mask[10, 20, 20] = 1
    assert send(client, "empty", mask).json()["decision"] == "corrected"
    assert np.count_nonzero(read_labels(predicted.folder / "empty.reviewed.nii.gz").array) == 1


def test_a_second_review_stands_beside_the_first(predicted: Predicted, enter: Enter) -> None:
    client = enter(predicted.folder)
    assert send(client, "flipped").json()["number"] == 1
    first = bytes_of(predicted.folder)
    mask = shown(client, "flipped", 1)
    mask[8, 20, 20] = 1
    assert send(client, "flipped", mask).json()["file"] == "flipped.reviewed-2.nii.gz"
    after = bytes_of(predicted.folder)
    assert {name: after[name] for name in first} == first
    assert [review.decision for review in reviews_of(predicted.folder, "flipped")] == ["accepted", "corrected"]


def test_a_decision_is_not_taken_for_a_prediction_that_the_reviewer_has_not_seen(
    predicted: Predicted, enter: Enter
) -> None:
    client = enter(predicted.folder)
    info = client.get("/api/cases/flipped").json()
    mask = shown(client, "flipped")
    predict_anew(predicted.folder, "flipped", {"bladder": 1, "prostate": 7})
    before = bytes_of(predicted.folder)
    seen = {"prediction": info["prediction"], **info["near"]}
    for given, more in ((mask, {}), (None, {"beside": True}), (None, {"rejected": True, "reason": "too large"})):
        answer = send(client, "flipped", given, **seen, **more)
        assert answer.status_code == 409
        assert answer.json()["predicted_anew"] is True
        assert "case flipped: was predicted anew since it was opened" in answer.json()["error"]
    for what in ("scan", "mask"):
        field = {key: ",".join(map(str, info["near"][key])) for key in ("start", "shape")}
        params = {"review": 0, **field, "prediction": info["prediction"]}
        assert client.get(f"/api/cases/flipped/{what}", params=params).status_code == 409
    assert bytes_of(predicted.folder) == before
    assert send(client, "flipped").json()["decision"] == "accepted"
    record = json.loads((predicted.folder / "flipped.reviewed.json").read_text())
    assert (record["labels"], record["changed_voxels"]) == (
        {"bladder": 1, "prostate": 7},
        {"bladder": 0, "prostate": 0},
    )


def test_a_case_that_is_predicted_anew_while_it_is_opened_is_read_again(
    predicted: Predicted, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = Desk(predicted.folder, Scans(), "Ann Reader")
    orders = [{"bladder": 1, "prostate": 7}]

    def opening(*given: Any) -> OpenedCase:
        if orders:
            predict_anew(predicted.folder, "flipped", orders.pop())
        return open_case(*given)

    monkeypatch.setattr("metricunet.workflows.review.desk.open_case", opening)
    opened = desk.opened("flipped")
    assert list(opened.labels) == ["bladder", "prostate"]
    assert np.median(opened.scan.array[opened.predicted == 1]) == pytest.approx(300, abs=3)
    orders = [{"bladder": k, "prostate": 9} for k in range(1, 9)]
    with pytest.raises(InputError, match="is just being predicted anew"):
        Desk(predicted.folder, Scans(), "Ann Reader").opened("flipped")


def test_what_a_review_has_and_the_prediction_has_no_more_is_said(predicted: Predicted, enter: Enter) -> None:
    client = enter(predicted.folder)
    send(client, "flipped")
    assert not [reason for reason in client.get("/api/cases/flipped").json()["reasons"] if "review 1" in reason]
    predict_anew(predicted.folder, "flipped", {"prostate": 1})
    reasons = client.get("/api/cases/flipped").json()["reasons"]
    assert any("review 1 also has bladder: not in this prediction" in reason for reason in reasons)


def test_two_pages_on_one_case_lose_nothing(predicted: Predicted, enter: Enter) -> None:
    one, two = enter(predicted.folder), enter(predicted.folder)  # two servers, for that matter
    near = one.get("/api/cases/flipped").json()["near"]
    known = {"latest": 0, "based_on": 0, **near}
    masks = [shown(client, "flipped") for client in (one, two)]
    masks[0][8, 20, 20], masks[1][9, 20, 20] = 1, 1
    assert send(one, "flipped", masks[0], **known).status_code == 200
    answer = send(two, "flipped", masks[1], **known)
    assert answer.status_code == 409
    assert answer.json()["latest"] == 1
    assert "by Ann Reader" in answer.json()["error"]
    assert len(reviews_of(predicted.folder, "flipped")) == 1
    assert send(two, "flipped", masks[1], **known | {"beside": True}).json()["number"] == 2
    assert [np.array_equal(shown(one, "flipped", k + 1, near), masks[k]) for k in range(2)] == [True, True]


def test_reviews_at_the_same_moment_are_all_kept(predicted: Predicted, enter: Enter) -> None:
    clients = [enter(predicted.folder) for _ in range(2)]
    for client in clients:
        client.get("/api/cases/flipped")
    answers: list[int] = []

    def decide(client: Browser) -> None:
        for _ in range(3):
            answers.append(send(client, "flipped", beside=True).status_code)

    threads = [threading.Thread(target=decide, args=(client,)) for client in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [200] * 6
    reviews = reviews_of(predicted.folder, "flipped")
    assert [review.number for review in reviews] == [1, 2, 3, 4, 5, 6]
    assert all(review.is_whole() for review in reviews)
    assert not [path for path in predicted.folder.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("step", ["link", "record"])
def test_what_a_killed_server_left_gives_way_to_the_next_decision(
    predicted: Predicted, enter: Enter, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    before = bytes_of(predicted.folder)
    child = os.fork()
    if child == 0:  # a server that dies while it places the files of a review
        name = {"link": "_move_in", "record": "_write_record"}[step]
        real = getattr(OwnFiles, name)
        monkeypatch.setattr(
            OwnFiles, name, lambda *given: os._exit(9) if step == "record" else (real(*given), os._exit(9))
        )
        with suppress(BaseException):
            opened = Desk(predicted.folder, Scans(), "Ann Reader").opened(predicted.dicom)
            decide(opened, Verdict(False, "", "Ann", 1.0, 0, 0), opened.predicted)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert bytes_of(predicted.folder).keys() > before.keys()
    assert reviews_of(predicted.folder, predicted.dicom) == ()
    client = enter(predicted.folder)
    assert send(client, predicted.dicom).json()["file"] == f"{predicted.dicom}.reviewed.nii.gz"
    (review,) = reviews_of(predicted.folder, predicted.dicom)
    assert review.is_whole()
    after = bytes_of(predicted.folder)
    assert {name: after[name] for name in before} == before
    suffixes = (".json", ".nii.gz", ".rtstruct.dcm")
    assert after.keys() - before.keys() == {f"{predicted.dicom}.reviewed{suffix}" for suffix in suffixes}
    assert not [path for path in predicted.folder.iterdir() if path.name.startswith(".")]


def test_a_full_disk_loses_no_earlier_decision_and_leaves_nothing(
    predicted: Predicted, enter: Enter, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = enter(predicted.folder)
    send(client, "flipped")
    before = bytes_of(predicted.folder)
    with monkeypatch.context() as patch:
        patch.setattr("metricunet.files.own.os.link", full_disk)
        patch.setattr("metricunet.files.own.os.replace", full_disk)
        answer = send(client, "flipped")
    assert answer.status_code == 400
    assert "the disk is full" in answer.json()["error"]
    with monkeypatch.context() as patch:
        patch.setattr("metricunet.files.atomic.os.fsync", full_disk)
        answer = send(client, "flipped")
    assert answer.json()["error"].startswith(
        f"{predicted.folder}: the disk is full"
    )  # and no hidden folder's name
    with monkeypatch.context() as patch:
        patch.setattr("metricunet.files.claim._put", full_disk)
        answer = send(client, "flipped")
    assert answer.json()["error"].startswith(f"{predicted.folder}: the disk is full")
    assert bytes_of(predicted.folder) == before
    assert send(client, "flipped").json()["number"] == 2


def test_a_clock_that_is_set_back_puts_no_review_before_the_one_it_follows(
    predicted: Predicted, enter: Enter, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = enter(predicted.folder)
    send(client, "flipped")
    early = datetime(2001, 1, 1, tzinfo=UTC)
    monkeypatch.setattr(
        "metricunet.workflows.review.decide.datetime",
        SimpleNamespace(now=lambda _: early, fromisoformat=datetime.fromisoformat),
    )
    send(client, "flipped")
    first, second = reviews_of(predicted.folder, "flipped")
    assert first.decided == second.decided
    send(client, predicted.odd)  # no review of it that could be followed
    (alone,) = reviews_of(predicted.folder, predicted.odd)
    assert alone.decided == early.isoformat()


def test_thirty_cases_are_listed_and_a_folder_is_moved_with_its_scans(
    predicted: Predicted, enter: Enter, tmp_path: Path
) -> None:
    content = json.loads((predicted.folder / "flipped.quality.json").read_text())
    content["scan"]["path"] = str(tmp_path / "gone")
    for k in range(30):
        shutil.copy(predicted.folder / "flipped.nii.gz", predicted.folder / f"many{k}.nii.gz")
        (predicted.folder / f"many{k}.quality.json").write_text(json.dumps(content | {"case": f"many{k}"}))
    moved = tmp_path / "elsewhere" / "<b>'moved'"
    moved.parent.mkdir()
    predicted.folder.parent.rename(moved)
    client = enter(moved / "out")
    assert len(client.get("/api/cases").json()["cases"]) == 34
    assert send(client, "many29").json()["number"] == 1
    shutil.rmtree(moved / "scans")
    answer = client.get("/api/cases/many28")
    assert answer.status_code == 400
    assert "the scan of case many28 is not there any more" in answer.json()["error"]


def test_a_folder_that_was_moved_with_its_scans_is_not_misled_by_what_lies_at_the_old_place(
    predicted: Predicted, enter: Enter, tmp_path: Path
) -> None:
    old = tmp_path / "old"
    (old / "ct").mkdir(parents=True)  # it was emptied
    shutil.copy(predicted.scans / "empty.nii.gz", old / "flipped.nii.gz")
    for case, name in ((predicted.flipped, "flipped.nii.gz"), (predicted.dicom, "ct")):
        scan = {"path": str(old / name), "relative": f"../scans/{name}"}
        edit_json(predicted.folder / f"{case}.quality.json", scan=scan)
    client = enter(predicted.folder)
    for case in (predicted.flipped, predicted.dicom):
        assert client.get(f"/api/cases/{case}").status_code == 200


def test_files_of_others_are_stepped_over(predicted: Predicted, enter: Enter) -> None:
    (predicted.folder / "flipped.reviewed.nii.gz").write_bytes(b"by hand")
    (predicted.folder / "flipped.reviewed-2.json").write_text("{}")
    client = enter(predicted.folder)
    assert send(client, "flipped").json()["file"] == "flipped.reviewed-3.nii.gz"
    assert (predicted.folder / "flipped.reviewed.nii.gz").read_bytes() == b"by hand"


def test_a_reviewed_mask_that_somebody_changed_is_not_shown_as_reviewed(
    predicted: Predicted, enter: Enter
) -> None:
    client = enter(predicted.folder)
    send(client, "flipped")
    shutil.copy(predicted.folder / f"{predicted.odd}.nii.gz", predicted.folder / "flipped.reviewed.nii.gz")
    info = client.get("/api/cases/flipped").json()
    assert info["shown"] == 0
    assert any(reason.startswith("review 1 is not shown: ") for reason in info["reasons"])
    answer = client.get("/api/cases/flipped", params={"review": 1})
    assert answer.status_code == 400
    assert "were changed" in answer.json()["error"]


def fewer_slices(volume: Volume) -> Volume:
    slices, *others = volume.geometry.shape
    return volume.crop((2, 0, 0), (slices - 4, *others))


def rolled(volume: Volume) -> Volume:
    return volume.with_array(np.roll(volume.array, 3, axis=1))


@pytest.mark.parametrize("change", [fewer_slices, rolled])
def test_a_review_of_another_scan_of_the_name_says_nothing_of_this_one(
    predicted: Predicted, enter: Enter, change: Callable[[Volume], Volume]
) -> None:
    assert send(enter(predicted.folder, predicted.scans), "flipped").json()["number"] == 1
    scan_anew(predicted, "flipped", change)
    client = enter(predicted.folder, predicted.scans)
    info = client.get("/api/cases/flipped").json()
    assert info["shown"] == 0
    assert any("review 1 is of another scan" in reason for reason in info["reasons"])
    assert [review["has_mask"] for review in info["reviews"]] == [False]
    answer = client.get("/api/cases/flipped", params={"review": 1})
    assert answer.status_code == 400
    assert "is a review of another scan" in answer.json()["error"]
    assert send(client, "flipped").json()["number"] == 2
    automatic, reviewed = (
        read_labels(predicted.folder / f"flipped{end}.nii.gz").array for end in ("", ".reviewed-2")
    )
    assert np.array_equal(automatic, reviewed)
    assert client.get("/api/cases/flipped").json()["shown"] == 2


def test_reviewed_masks_are_neither_scans_nor_predictions(predicted: Predicted, enter: Enter) -> None:
    send(enter(predicted.folder), "flipped")
    with pytest.raises(InputError, match="only masks that this program made"):
        scans_at(predicted.folder)
    assert match_cases(predicted.folder, predicted.folder / "flipped.nii.gz").unmatched == tuple(
        sorted({predicted.dicom, predicted.odd})
    )


@pytest.mark.parametrize("formats", ["rtstruct", "seg"])
def test_a_prediction_without_a_label_map_is_read_from_its_dicom_object(
    predictions: tuple[Path, str], predicted: Predicted, enter: Enter, formats: str
) -> None:
    from metricunet.inference.predict import predict
    from tests.support.threshold_model import bands_known

    with bands_known():
        model = predictions[0] / "model.safetensors"
        predict([predicted.scans / "ct"], [model], predicted.folder / "other", formats=(formats,), device="cpu")
    client = enter(predicted.folder / "other")
    assert np.array_equal(shown(client, predicted.dicom), shown(enter(predicted.folder), predicted.dicom))
    assert send(client, predicted.dicom).json()["decision"] == "accepted"


def older(path: Path) -> None:
    """Make a verdict what an earlier version wrote."""
    content = json.loads(path.read_text())
    kept = {k: v for k, v in content.items() if k not in ("scan", "labels", "tg263", "boundary", "files", "seal")}
    write_sealed(path, kept, content["files"])


def test_an_older_folder_asks_for_the_scans_and_is_read_with_them(predicted: Predicted, enter: Enter) -> None:
    for path in predicted.folder.glob("*.quality.json"):
        older(path)
    answer = enter(predicted.folder).get("/api/cases/flipped")
    assert answer.status_code == 400
    assert "does not say where its scan lies" in answer.json()["error"]
    assert "scans" in answer.json()["error"]
    client = enter(predicted.folder, predicted.scans)
    info = client.get("/api/cases/flipped").json()
    assert [s["name"] for s in info["structures"]] == ["prostate", "bladder"]  # told by their volumes
    assert info["slices"] == []
    assert send(client, "flipped").json()["decision"] == "accepted"
    assert json.loads((predicted.folder / "flipped.reviewed.json").read_text())["labels"] == {
        "prostate": 1,
        "bladder": 7,
    }


def test_another_scan_is_not_taken_for_the_one_that_was_predicted(predicted: Predicted, enter: Enter) -> None:
    shutil.copy(predicted.scans / "empty.nii.gz", predicted.scans / "flipped.nii.gz")
    answer = enter(predicted.folder, predicted.scans).get("/api/cases/flipped")
    assert answer.status_code == 400
    assert "is not the scan that case flipped was predicted from" in answer.json()["error"]
    shutil.rmtree(predicted.scans)
    answer = enter(predicted.folder).get("/api/cases/flipped")
    # Both places are gone but the original one, where the test session made it.
    assert answer.status_code == 200


def test_of_several_scans_of_a_name_the_one_that_was_predicted_is_taken(
    predicted: Predicted, enter: Enter
) -> None:
    for name in ("flipped_0000.nii.gz", "flipped.nii"):  # before the scan and after it, as files are listed
        write_nifti(predicted.scans / name, read_nifti(predicted.scans / f"{predicted.odd}.nii.gz"))
    client = enter(predicted.folder, predicted.scans)
    assert client.get("/api/cases/flipped").status_code == 200
    assert send(client, "flipped").json()["decision"] == "accepted"
    (predicted.scans / "flipped.nii.gz").unlink()
    answer = enter(predicted.folder, predicted.scans).get("/api/cases/flipped")
    assert "is not the scan that case flipped was predicted from" in answer.json()["error"]


@pytest.mark.parametrize(
    "path",
    [
        "/../run.json",
        "/%2e%2e/run.json",
        "/..%2frun.json",
        "/run.json",
        "/api/cases/..%2Fscans%2Fflipped",
        "/api/cases/%2e%2e",
        "/api/cases/run",
        "/api/cases/flipped%00",
        "/server.py",
        "/docs",
        "/openapi.json",
    ],
)
def test_no_path_leads_out_of_the_pages_and_cases(predicted: Predicted, enter: Enter, path: str) -> None:
    answer = enter(predicted.folder).get(path)
    assert answer.status_code in (400, 404)
    assert "command" not in answer.text


def test_links_are_not_followed(predicted: Predicted, enter: Enter, tmp_path: Path) -> None:
    mask = predicted.folder / "flipped.nii.gz"
    mask.rename(tmp_path / "elsewhere.nii.gz")
    mask.symlink_to(tmp_path / "elsewhere.nii.gz")
    quality = predicted.folder / f"{predicted.odd}.quality.json"
    quality.rename(tmp_path / "elsewhere.json")
    quality.symlink_to(tmp_path / "elsewhere.json")
    client = enter(predicted.folder)
    assert not shown(client, "flipped").any()
    listed = client.get("/api/cases").json()
    assert [entry["name"] for entry in listed["unreadable"]] == [predicted.odd]
    assert client.get(f"/api/cases/{predicted.odd}").status_code == 400


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[1]", b"{", b"[" * 5000])
def test_a_verdict_that_cannot_be_read_costs_its_case_alone(
    predicted: Predicted, enter: Enter, content: bytes
) -> None:
    (predicted.folder / "flipped.quality.json").write_bytes(content)
    client = enter(predicted.folder)
    listed = client.get("/api/cases").json()
    assert len(listed["cases"]) == 3
    assert [entry["name"] for entry in listed["unreadable"]] == ["flipped"]
    assert client.get("/api/cases/flipped").status_code == 400


def test_fields_of_an_unknown_kind_are_passed_over(predicted: Predicted, enter: Enter) -> None:
    changes: dict[str, Any] = {"doubt": {"much": 1}, "verdict": 3, "reasons": "none", "boundary": [1]}
    changes |= {"structures": [], "labels": {"prostate": "one", "bladder": True}, "flags": {"a": 1}, "files": 3}
    edit_json(predicted.folder / "flipped.quality.json", **changes)
    client = enter(predicted.folder)
    assert len(client.get("/api/cases").json()["cases"]) == 4
    info = client.get("/api/cases/flipped").json()
    assert [s["name"] for s in info["structures"]] == ["label 1", "label 7"]


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda p: (p.folder / "flipped.nii.gz").write_bytes(b"\x1f\x8b no"), "flipped.nii.gz"),
        (lambda p: write_nifti(p.folder / "flipped.nii.gz", SMALL), "grid"),
        (
            lambda p: edit_json(p.folder / "flipped.quality.json", scan={"path": "/nowhere", "relative": "x"}),
            "scans",
        ),
        (lambda p: edit_json(p.folder / "flipped.quality.json", scan={"path": "\0"}), ""),
    ],
    ids=["damaged mask", "another grid", "no scan", "odd path"],
)
def test_wrong_files_are_told_in_a_line(
    predicted: Predicted, enter: Enter, damage: Callable[[Predicted], object], said: str
) -> None:
    damage(predicted)
    answer = enter(predicted.folder).get("/api/cases/flipped")
    assert answer.status_code in (400, 500)
    assert said in answer.text
    assert "Traceback" not in answer.text
    assert "\n" not in answer.text


def test_requests_that_are_none_of_the_page_are_refused(predicted: Predicted, enter: Enter) -> None:
    client = enter(predicted.folder)
    before = bytes_of(predicted.folder)
    info = client.get("/api/cases/flipped").json()
    good = {**NEVER, "based_on": 0, "latest": 0, "prediction": info["prediction"], **info["near"]}
    size = int(np.prod(info["near"]["shape"]))
    whole = int(np.prod(info["whole"]["shape"]))
    bad: list[bytes] = [b"", b"\xff\xff\xff\xff", body(good)[:20], (5).to_bytes(4, "little") + b"[1,2]"]
    bad += [(9).to_bytes(4, "little") + b"no json{["]
    for name, value in (
        ("rejected", 1),
        ("seconds", True),
        ("seconds", -1),
        ("seconds", 1e12),
        ("seconds", float("nan")),
        ("reviewer", ""),
        ("reviewer", "a\nb"),
        ("reviewer", "a" * 65),
        ("reason", "a" * 2001),
        ("based_on", 5),
        ("based_on", "0"),
        ("start", [0, 0]),
        ("start", [-1, 0, 0]),
        ("start", [0, 0, 0.5]),
        ("start", [0, 0, 10**9]),
        ("shape", [1, 1, 10**9]),
        ("shape", [0, 1, 1]),
    ):
        bad.append(body({**good, name: value}, bytes(size)))
    bad += [body({k: v for k, v in good.items() if k != name}, bytes(size)) for name in good]
    bad += [body(good, bytes(size - 1)), body(good, bytes([3]) * size), body(good, bytes(whole + 70_000))]
    for content in bad:
        answer = client.post("/api/cases/flipped/reviews", content=content)
        assert answer.status_code in (400, 413), content[:200]
        assert "error" in answer.json()
    for params in (
        {"start": "0,0", "shape": "1,1,1"},
        {"start": "0,0,0", "shape": "9999,1,1"},
        {"start": "²,0,0"},
        {},
    ):
        assert client.get("/api/cases/flipped/scan", params=params).status_code == 400
    assert client.post("/api/cases/nobody/reviews", content=body(good)).status_code == 400
    assert bytes_of(predicted.folder) == before


def test_a_folder_that_somebody_works_in_is_waited_for_and_named(
    predicted: Predicted, enter: Enter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("metricunet.workflows.review.decide.PATIENCE_S", 0.0)
    client = enter(predicted.folder)
    with claimed(OwnFiles(predicted.folder, "flipped.reviewed.json", "review").claim, "a review"):
        answer = send(client, "flipped")
    assert answer.status_code == 400
    assert "a review of case flipped is going on here already" in answer.json()["error"]
    assert send(client, "flipped").status_code == 200


def test_a_folder_without_predictions_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no prediction"):
        Desk(tmp_path, Scans(), "x")
    with pytest.raises(InputError, match="no such folder"):
        Desk(tmp_path / "missing", Scans(), "x")
    with pytest.raises(InputError, match="no such file or folder"):
        Scans(tmp_path / "missing")


def test_a_review_of_an_earlier_prediction_is_said_to_be_one(predicted: Predicted, enter: Enter) -> None:
    client = enter(predicted.folder)
    send(client, "flipped")
    said = "review 1 was made when another mask was predicted"
    assert not any(said in reason for reason in client.get("/api/cases/flipped").json()["reasons"])
    predict_anew(predicted.folder, "flipped", {"bladder": 1, "prostate": 7})
    assert any(said in reason for reason in client.get("/api/cases/flipped").json()["reasons"])
    of_prediction = client.get("/api/cases/flipped", params={"review": 0}).json()["reasons"]
    assert not any(said in reason for reason in of_prediction)
    send(client, "flipped")
    assert not any("another mask" in reason for reason in client.get("/api/cases/flipped").json()["reasons"])


def test_a_case_that_was_predicted_anew_counts_as_undecided(predicted: Predicted, enter: Enter) -> None:
    client = enter(predicted.folder)

    def listed() -> dict[str, tuple[str, str]]:
        cases = client.get("/api/cases").json()["cases"]
        return {case["name"]: (case["decision"], case["earlier"]) for case in cases}

    send(client, "flipped")
    send(client, predicted.empty, rejected=True, reason="there is no gland")
    assert listed()["flipped"] == ("accepted", "")
    predict_anew(predicted.folder, "flipped", {"bladder": 1, "prostate": 7})
    found = listed()
    assert found["flipped"] == ("", "accepted")
    assert found[predicted.empty] == ("rejected", "")
    assert found[predicted.odd] == ("", "")
    send(client, "flipped")
    assert listed()["flipped"] == ("accepted", "")


def test_a_name_of_bytes_that_are_no_text_costs_its_case_alone(predicted: Predicted, enter: Enter) -> None:
    odd = os.fsdecode(b"M\xfcller")
    for suffix in (".nii.gz", ".quality.json"):
        shutil.copy(predicted.folder / f"flipped{suffix}", predicted.folder / f"{odd}{suffix}")
    moved = predicted.folder.with_name(odd)
    predicted.folder.rename(moved)
    client = enter(moved)
    listed = client.get("/api/cases").json()
    assert listed["folder"] == "M?ller"
    assert len(listed["cases"]) == 4
    (lost,) = listed["unreadable"]
    assert lost["name"] == "M?ller"
    assert "rename the scan" in lost["reason"]
    assert send(client, "flipped").json()["decision"] == "accepted"


def test_a_case_that_cannot_be_opened_beforehand_holds_nothing_up(
    predicted: Predicted, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> OpenedCase:
        raise RuntimeError("of a kind that nobody foresaw")

    monkeypatch.setattr("metricunet.workflows.review.desk.open_case", broken)
    desk = Desk(predicted.folder, Scans(), "Ann Reader")
    desk.warm()
    with pytest.raises(RuntimeError):
        desk.case(predicted.empty)
