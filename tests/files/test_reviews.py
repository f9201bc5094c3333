"""Records of reviews: which there are, which one counts, and which masks are theirs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from metricunet.files import reviews
from metricunet.files.own import OwnFiles, read_sealed
from metricunet.files.reviews import is_reviewed_mask, review_name, reviews_in, reviews_of

CONTENT: dict[str, Any] = {
    "decision": "accepted",
    "reason": "",
    "reviewer": "Ann",
    "decided": "2026-11-29T10:00:00+00:00",
    "seconds": 3.0,
    "based_on": 0,
    "labels": {"prostate": 1},
    "changed_voxels": {"prostate": 0},
    "input_sha256": "00",
}


def write(folder: Path, case: str, number: int, mask: bool = True, command: str = "review") -> None:
    name = review_name(case, number)
    own = OwnFiles(folder, f"{name}.json", command)
    if mask:
        own.stage(f"{name}.nii.gz").write_bytes(b"mask")
    own.commit({**CONTENT, "case": case, "number": number})


def test_the_last_review_has_the_highest_number(tmp_path: Path) -> None:
    for number in (2, 10, 1):
        write(tmp_path, "a", number, mask=number != 10)
    write(tmp_path, "a.b", 1)
    write(tmp_path, "a.reviewed", 1)
    assert [review.number for review in reviews_of(tmp_path, "a")] == [1, 2, 10]
    assert reviews_in(tmp_path).keys() == {"a", "a.b", "a.reviewed"}
    first, _, last = reviews_of(tmp_path, "a")
    assert (first.path.name, first.mask, last.mask) == ("a.reviewed.json", tmp_path / "a.reviewed.nii.gz", None)
    assert (first.reviewer, first.labels, first.structure_set) == ("Ann", {"prostate": 1}, None)
    assert reviews_of(tmp_path, "other") == ()


def test_the_reviews_of_a_case_are_found_without_opening_those_of_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for case in ("a", "ab", "a.reviewed", "[a]*"):
        for number in (1, 2):
            write(tmp_path, case, number)
    opened: list[str] = []

    def read(path: Path) -> dict[str, Any] | None:
        opened.append(path.name)
        return read_sealed(path)

    monkeypatch.setattr(reviews, "read_sealed", read)
    for case in ("a", "[a]*"):
        assert [review.case for review in reviews_of(tmp_path, case)] == [case, case]
        assert sorted(opened) == [f"{case}.reviewed-2.json", f"{case}.reviewed.json"]
        opened.clear()


@pytest.mark.parametrize("damage", ["changed", "of another command", "of another case", "a link", "lacks a field"])
def test_what_is_no_record_of_ours_is_passed_over(tmp_path: Path, damage: str) -> None:
    write(tmp_path, "a", 1, command="predict" if damage == "of another command" else "review")
    path = tmp_path / "a.reviewed.json"
    if damage == "changed":
        path.write_text(path.read_text().replace("Ann", "Bob"))
    elif damage == "of another case":
        path.rename(tmp_path / "b.reviewed.json")
    elif damage == "a link":
        path.rename(tmp_path / "elsewhere.json")
        path.symlink_to(tmp_path / "elsewhere.json")
    elif damage == "lacks a field":
        OwnFiles(tmp_path, path.name, "review").commit({"case": "a"})
    assert reviews_in(tmp_path) == {}


def test_masks_of_reviews_are_told_from_others(tmp_path: Path) -> None:
    write(tmp_path, "a", 1)
    write(tmp_path, "a", 2)
    for name in ("b.reviewed.nii.gz", "a.nii.gz"):
        (tmp_path / name).write_bytes(b"mask")
    masks = [path.name for path in sorted(tmp_path.glob("*.nii.gz")) if is_reviewed_mask(path)]
    assert masks == ["a.reviewed-2.nii.gz", "a.reviewed.nii.gz"]
    (review, _) = reviews_of(tmp_path, "a")
    assert review.is_whole()
    (tmp_path / "a.reviewed.nii.gz").write_bytes(b"edited")
    assert not review.is_whole()
    assert is_reviewed_mask(tmp_path / "a.reviewed.nii.gz")  # still no scan
