"""Writing what was decided on a case: mask, structure set and record beside the prediction, never over it."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from metricunet.cohort.names import standard_name
from metricunet.errors import InputError, told
from metricunet.files.claim import AlreadyClaimed, claimed
from metricunet.files.nifti import is_nifti, write_nifti
from metricunet.files.own import OwnFiles
from metricunet.files.reviews import (
    COMMAND,
    MASK_SUFFIX,
    RECORD_SUFFIX,
    STRUCTURE_SET_SUFFIX,
    Decision,
    Review,
    review_name,
    reviews_of,
)
from metricunet.files.rtstruct.outlines import Structure
from metricunet.files.rtstruct.write import write_rtstruct
from metricunet.inference.structure_set import COLOURS, is_on_a_slice
from metricunet.volume import Volume
from metricunet.workflows.review.opened import Classes, OpenedCase

#: What follows the standard name of a structure that a person has looked at.
MARK = "^rev"
LABEL = "metricunet rev"
LONGEST_REASON, LONGEST_NAME = 2000, 64
#: More than this is a clock that was set, or a page that was left open for days.
MOST_SECONDS = 7 * 24 * 3600.0
#: Another server that writes a review of the same case is waited for so long, and asked so often.
PATIENCE_S, PAUSE_S = 10.0, 0.05


class MeanwhileReviewed(InputError):  # noqa: N818
    """Somebody else has reviewed the case since it was opened.

    Attributes:
        review: the review that the reviewer has not seen.
    """

    def __init__(self, review: Review) -> None:
        self.review = review
        super().__init__(
            f"case {review.case} was {review.decision} meanwhile (review {review.number}, by {review.reviewer}); "
            "look at that review, or save yours beside it"
        )


class PredictedAnew(InputError):  # noqa: N818
    """The case was predicted anew since it was opened, or its files were edited."""

    def __init__(self, case: str) -> None:
        super().__init__(
            f"case {case}: was predicted anew since it was opened, or its prediction was edited; open it again"
        )


@dataclass(frozen=True)
class Verdict:
    """What a reviewer decided.

    Attributes:
        rejected: whether the case is rejected; else its mask is accepted as it is shown.
        reason: why; needed where it is rejected.
        reviewer: who decided.
        seconds: how long the case was on the screen.
        based_on: number of the review whose mask was shown first; 0 for the prediction.
        latest: number of the last review that the reviewer knows of; 0 for none.
        beside: whether to write also where there is a later one.
        prediction: which prediction was shown, as `Desk.case` names it; None for whichever is there now.

    Raises:
        InputError: a field that cannot be so.
    """

    rejected: bool
    reason: str
    reviewer: str
    seconds: float
    based_on: int
    latest: int
    beside: bool = False
    prediction: str | None = None

    def __post_init__(self) -> None:
        if self.rejected and not self.reason.strip():
            raise InputError("a rejected case needs a reason; write what is wrong with it")
        if len(self.reason) > LONGEST_REASON:
            raise InputError(
                f"the reason has {len(self.reason)} characters, at most {LONGEST_REASON} are accepted"
            )
        if not 0 < len(self.reviewer.strip()) <= LONGEST_NAME or not self.reviewer.isprintable():
            raise InputError(f"the reviewer's name must have 1 to {LONGEST_NAME} printable characters")
        if not (math.isfinite(self.seconds) and 0 <= self.seconds <= MOST_SECONDS):
            raise InputError(f"the time on the screen is {self.seconds} s, expected 0 to {MOST_SECONDS:.0f}")


def decide(opened: OpenedCase, verdict: Verdict, classes: Classes | None) -> tuple[Review, str]:
    """Write a review of a case; no earlier one is touched.

    Args:
        opened: the case.
        verdict: what was decided.
        classes: numbers of structures on the opened case's grid, where it was not rejected.

    Returns:
        The review, and why there is no structure set; empty where there is one, or none is due.

    Raises:
        MeanwhileReviewed: there is a review that the reviewer has not seen.
        InputError: a mask without a voxel, or a folder that cannot be written.
    """
    case, folder = opened.case.name, opened.case.folder
    if not verdict.rejected and (classes is None or not classes.any()):
        raise InputError(
            f"case {case}: no structure has a voxel, so there is no mask to accept; draw one, or reject it"
        )
    with _alone(OwnFiles(folder, f"{review_name(case, 1)}{RECORD_SUFFIX}", COMMAND).claim, case):
        earlier = reviews_of(folder, case)
        if earlier and earlier[-1].number > verdict.latest and not verdict.beside:
            raise MeanwhileReviewed(earlier[-1])
        following = earlier[-1].number + 1 if earlier else 1
        # What a killed process placed under the next name, and did not come to state, makes room again.
        OwnFiles(folder, f"{review_name(case, following)}{RECORD_SUFFIX}", COMMAND).tidy()
        number = _free_number(folder, case, following)
        name = review_name(case, number)
        own = OwnFiles(folder, f"{name}{RECORD_SUFFIX}", COMMAND, inputs=opened.source.files)
        own.check([f"{name}{MASK_SUFFIX}", f"{name}{STRUCTURE_SET_SUFFIX}"])
        try:
            decision: Decision = "rejected"
            problem, changed = "", dict.fromkeys(opened.labels, 0)
            moment = _moment_after(earlier)
            if not verdict.rejected and classes is not None:
                changed = _changed(opened, classes)
                decision = "corrected" if any(changed.values()) else "accepted"
                _stage_mask(own.stage(f"{name}{MASK_SUFFIX}"), opened, classes)
                problem = _stage_structure_set(
                    own, f"{name}{STRUCTURE_SET_SUFFIX}", opened, classes, changed, moment
                )
            own.commit(_content(opened, verdict, number, decision, moment, changed, problem))
        finally:
            own.discard()
        return next(review for review in reviews_of(folder, case) if review.number == number), problem


def _moment_after(earlier: tuple[Review, ...]) -> datetime:
    """Return this moment; where the clock was set back since the case's last review, the moment of that one."""
    now = datetime.now(UTC)
    try:
        return max([now, *(datetime.fromisoformat(review.decided) for review in earlier[-1:])])
    except (TypeError, ValueError):  # of a program to come, which writes moments otherwise
        return now


def _content(
    opened: OpenedCase,
    verdict: Verdict,
    number: int,
    decision: Decision,
    moment: datetime,
    changed: dict[str, int],
    problem: str,
) -> dict[str, Any]:
    """Return what the record of a review says."""
    case = opened.case
    return {
        "case": case.name,
        "number": number,
        "decision": decision,
        "reason": verdict.reason.strip(),
        "reviewer": verdict.reviewer.strip(),
        "decided": moment.isoformat(timespec="seconds"),
        "seconds": round(verdict.seconds, 1),
        "based_on": verdict.based_on,
        "labels": dict(opened.labels),
        "changed_voxels": changed,
        "structure_set_missing": problem,
        "prediction": {
            **case.model,
            "verdict": case.verdict,
            "doubt": case.doubt,
            "mask_sha256": opened.mask_sha256,
        },
        "input_sha256": case.input_sha256,
        "version": version("metricunet"),
    }


def _changed(opened: OpenedCase, classes: Classes) -> dict[str, int]:
    """Return for each structure how many voxels it has gained or lost against the prediction."""
    different = classes != opened.predicted
    now, before = (np.bincount(array[different], minlength=256) for array in (classes, opened.predicted))
    return {name: int(now[k] + before[k]) for k, name in enumerate(opened.labels, start=1)}


def _stage_mask(path: Path, opened: OpenedCase, classes: Classes) -> None:
    source = opened.source
    like = source.path if source.series is None and is_nifti(source.path) else None
    write_nifti(path, opened.label_map(classes).reordered_like(opened.stored), like=like)


def _stage_structure_set(
    own: OwnFiles, name: str, opened: OpenedCase, classes: Classes, changed: Mapping[str, int], moment: datetime
) -> str:
    """Stage the structure set of a DICOM scan; return why there is none, if so."""
    series = opened.source.series
    if series is None:
        return ""
    case = opened.case
    decision = "corrected by hand" if any(changed.values()) else "accepted by a reviewer"
    words = f"Made by metricunet {version('metricunet')}, {decision} on {moment:%Y-%m-%d}. Research use only."
    if case.of_synthetic_origin:
        words += " Model trained on synthetic scans only, or begun from one that was."
    staged = own.stage(name)
    try:
        structures = [
            Structure(
                name=f"{standard_name(structure, case.tg263)}{MARK}",
                mask=Volume(classes == k, opened.grid).reordered_like(series.geometry),
                colour=COLOURS[(k - 1) % len(COLOURS)],
                generation="SEMIAUTOMATIC" if changed[structure] else "AUTOMATIC",
            )
            for k, structure in enumerate(opened.labels, start=1)
            if (classes == k).any()
        ]
        write_rtstruct(
            staged,
            series,
            # What lies between two slices alone has no image to be drawn on; the mask holds it.
            [structure for structure in structures if is_on_a_slice(structure, series)] or structures,
            label=LABEL,
            set_name=f"Machine-made, {decision}",
            description=words,
            outline="voxel",
        )
    except Exception as error:  # whatever it is, the mask is worth keeping without it
        return told(error).replace(str(staged), str(own.folder / name))
    return ""


def _free_number(folder: Path, case: str, first: int) -> int:
    """Return the first number none of whose names is taken, by whomever."""
    number = first
    suffixes = (RECORD_SUFFIX, MASK_SUFFIX, STRUCTURE_SET_SUFFIX)
    while any(os.path.lexists(folder / f"{review_name(case, number)}{suffix}") for suffix in suffixes):
        number += 1
    return number


@contextmanager
def _alone(claim: Path, case: str) -> Iterator[None]:
    """Wait until nobody else writes a review of the case, and keep others out."""
    end = time.monotonic() + PATIENCE_S
    while True:
        holding = claimed(claim, f"a review of case {case}")
        try:
            holding.__enter__()
            break
        except AlreadyClaimed:
            if time.monotonic() > end:
                raise
            time.sleep(PAUSE_S)
    try:
        yield
    finally:
        holding.__exit__(None, None, None)
