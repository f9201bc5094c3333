"""What people decided on predicted cases: records beside the predictions, each written once and never changed.

The first review of a case is `CASE.reviewed.json`, with `CASE.reviewed.nii.gz` and `CASE.reviewed.rtstruct.dcm`
where a mask was accepted or corrected. Those that follow are `CASE.reviewed-2.json` and so on; the one with the
highest number counts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from metricunet.files.own import FILES, OwnFiles, read_sealed

#: The command that writes the records.
COMMAND = "review"
Decision = Literal["accepted", "corrected", "rejected"]
DECISIONS: tuple[Decision, ...] = get_args(Decision)
#: How the files of probabilities of a prediction end, and its verdict.
PROBABILITY_SUFFIXES = (".probability.nii.gz", ".probability_uint8.nii.gz", ".probability.seg.dcm")
QUALITY_SUFFIX = ".quality.json"
#: Name of a record: the case, and which of its reviews it is.
NAME = re.compile(r"(.+)\.reviewed(?:-([1-9][0-9]{0,5}))?\.json")
MASK_SUFFIX, STRUCTURE_SET_SUFFIX, RECORD_SUFFIX = ".nii.gz", ".rtstruct.dcm", ".json"


@dataclass(frozen=True)
class Review:
    """One decision on a case.

    Attributes:
        case: name of the case.
        number: which review of the case it is, from 1.
        decision: `accepted` as it was predicted, `corrected`, or `rejected`, which has no mask.
        reason: why; never empty for what was rejected.
        reviewer: who decided.
        decided: when, in UTC (ISO 8601).
        seconds: how long the reviewer had the case on the screen.
        based_on: number of the review whose mask was looked at, or 0 for the prediction.
        labels: structure to its value in the mask.
        changed_voxels: for each structure, the voxels that it has gained or lost against the prediction.
        input_sha256: of the scan's files, as the prediction stated it; empty where it stated none.
        path: of the record.
        mask: of the label map; None for what was rejected.
        structure_set: of the DICOM structure set; None where there is none.
    """

    case: str
    number: int
    decision: Decision
    reason: str
    reviewer: str
    decided: str
    seconds: float
    based_on: int
    labels: Mapping[str, int]
    changed_voxels: Mapping[str, int]
    input_sha256: str
    path: Path
    mask: Path | None
    structure_set: Path | None

    def is_whole(self) -> bool:
        """Tell whether its files are there with the bytes that were written."""
        return OwnFiles(self.path.parent, self.path.name, COMMAND).is_whole()


def review_name(case: str, number: int) -> str:
    """Return how the files of a review are named, before their suffixes.

    Args:
        case: name of the case.
        number: of the review, from 1.
    """
    return f"{case}.reviewed" if number == 1 else f"{case}.reviewed-{number}"


def reviews_in(folder: Path) -> dict[str, tuple[Review, ...]]:
    """Return the reviews of each case in the order in which they were made; the last one counts.

    A record that somebody changed is none of this program's, and is passed over. So is a link.

    Args:
        folder: of the prediction.
    """
    return _reviews(folder, None)


def reviews_of(folder: Path, case: str) -> tuple[Review, ...]:
    """Return the reviews of one case, as `reviews_in` does; records of other cases are not opened.

    Args:
        folder: of the prediction.
        case: name of the case.
    """
    return _reviews(folder, case).get(case, ())


def _reviews(folder: Path, case: str | None) -> dict[str, tuple[Review, ...]]:
    """Return the reviews of one case, or of all."""
    found: dict[str, list[Review]] = {}
    for path in folder.glob("*.reviewed*.json"):
        named = NAME.fullmatch(path.name)
        if named is None or case not in (None, named[1]) or path.is_symlink():
            continue
        review = _read(path, named[1], int(named[2] or 1))
        if review is not None:
            found.setdefault(review.case, []).append(review)
    return {name: tuple(sorted(reviews, key=lambda review: review.number)) for name, reviews in found.items()}


def is_reviewed_mask(path: Path) -> bool:
    """Tell whether a file is the mask that a review left beside its record, changed since or not."""
    if not path.name.endswith(MASK_SUFFIX):
        return False
    record = read_sealed(path.with_name(path.name.removesuffix(MASK_SUFFIX) + RECORD_SUFFIX))
    return record is not None and record.get("command") == COMMAND and path.name in record[FILES]


def is_kept_apart(path: Path) -> bool:
    """Tell whether a file lies beside a case's mask and is another file of that case, changed since or not.

    These are the masks of reviews, and probabilities.
    """
    if is_reviewed_mask(path):
        return True
    suffix = next((suffix for suffix in PROBABILITY_SUFFIXES if path.name.endswith(suffix)), None)
    if suffix is None:
        return False
    verdict = read_sealed(path.with_name(path.name.removesuffix(suffix) + QUALITY_SUFFIX))
    return verdict is not None and path.name in verdict[FILES]


def stated_labels(path: Path) -> tuple[dict[str, int], Path] | None:
    """Return structure to value of a predicted or reviewed mask, and the record beside it that states them.

    Args:
        path: of a label map.

    Returns:
        None where no record of this program beside it names the file. A mask that was changed keeps its names.
    """
    case = path.name.removesuffix(MASK_SUFFIX)
    for suffix in (RECORD_SUFFIX, QUALITY_SUFFIX):
        record = path.with_name(f"{case}{suffix}")
        content = read_sealed(record) if case != path.name else None
        if content is None or path.name not in content[FILES]:
            continue
        labels = content.get("labels")
        if isinstance(labels, dict) and labels and all(isinstance(value, int) for value in labels.values()):
            return {str(name): value for name, value in labels.items()}, record
    return None


def _read(path: Path, case: str, number: int) -> Review | None:
    content = read_sealed(path)
    if content is None or content.get("command") != COMMAND or content.get("case") != case:
        return None
    files: dict[str, Any] = content[FILES]
    mask, structure_set = (
        path.with_name(name) if (name := f"{review_name(case, number)}{suffix}") in files else None
        for suffix in (MASK_SUFFIX, STRUCTURE_SET_SUFFIX)
    )
    try:
        return Review(
            case=case,
            number=number,
            decision=content["decision"],
            reason=content["reason"],
            reviewer=content["reviewer"],
            decided=content["decided"],
            seconds=content["seconds"],
            based_on=content["based_on"],
            labels=content["labels"],
            changed_voxels=content["changed_voxels"],
            input_sha256=content["input_sha256"],
            path=path,
            mask=mask,
            structure_set=structure_set,
        )
    except KeyError:  # of a version to come
        return None
