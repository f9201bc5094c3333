"""What the server does for its pages, without anything of the web: list cases, open them, write decisions."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from metricunet.errors import InputError
from metricunet.files.record import hash_if_readable
from metricunet.files.reviews import QUALITY_SUFFIX, Review, reviews_in, reviews_of
from metricunet.inference.page.shown import Field
from metricunet.inference.structure_set import COLOURS
from metricunet.ledger import Ledger
from metricunet.workflows.review.decide import PredictedAnew, Verdict, decide
from metricunet.workflows.review.folder import PredictedCase, UnreadableCase, read_case, read_cases
from metricunet.workflows.review.opened import Classes, OpenedCase, open_case
from metricunet.workflows.review.recording import Recorder, is_of, is_of_mask
from metricunet.workflows.review.scans import Scans

#: Scans that are kept in memory.
KEPT = 2
#: How often a case is read again that changes while it is read.
ATTEMPTS = 3
#: Why a case is listed and cannot be opened.
NO_TEXT = "its name is no text in UTF-8, so no page can ask for it; rename the scan, and predict it again"


class Desk:
    """A prediction folder under review.

    Args:
        folder: that `metricunet predict` wrote.
        scans: where the scans are.
        reviewer: name that the page offers.
        recorder: of the ledger that decisions are written into; None for none.
        empty: whether a folder without a case will do.

    Raises:
        InputError: no folder, or no prediction in it.
    """

    def __init__(
        self,
        folder: Path,
        scans: Scans,
        reviewer: str,
        recorder: Recorder | None = None,
        *,
        empty: bool = False,
    ) -> None:
        self.folder, self.scans, self.reviewer, self.recorder = folder, scans, reviewer, recorder
        self.empty = empty
        read_cases(folder, empty=empty)
        self._lock = threading.Lock()
        self._opened: OrderedDict[tuple[str, Any], OpenedCase] = OrderedDict()
        self._digests: dict[str, tuple[Any, str | None]] = {}

    def cases(self) -> dict[str, Any]:
        """Return all cases in the order in which to look at them, with what was decided on the mask that is there.

        What was decided on a mask that is there no more, is `earlier`.
        """
        cases, unreadable = read_cases(self.folder, empty=self.empty)
        reviews = reviews_in(self.folder)
        unreadable += [UnreadableCase(case.name, NO_TEXT) for case in cases if not _is_text(case.name)]
        return {
            "folder": self.folder.name,
            "reviewer": self.reviewer,
            "knows_reviewer": False,
            "has_ledger": self.recorder is not None,
            "cases": [self._in_list(case, reviews.get(case.name, ())) for case in cases if _is_text(case.name)],
            "unreadable": [{"name": case.name, "reason": case.reason} for case in unreadable],
        }

    def warm(self) -> None:
        """Open the case that a page shows first, so that it waits less; the page says what is wrong with it."""
        cases = self.cases()["cases"]
        first = next((case for case in cases if not case["decision"]), cases[0] if cases else None)
        if first is not None:
            with suppress(Exception):  # whatever it is
                self.opened(first["name"])

    def case(self, name: str, review: int | None = None) -> dict[str, Any]:
        """Return what the page shows of a case.

        Args:
            name: of the case.
            review: number of the review whose mask is shown, 0 for the prediction; None: the last one whose mask
                can be shown. Of those after it, what is shown says why they cannot.

        Raises:
            InputError: no such case or review, or files that cannot be read.
        """
        opened = self.opened(name)
        reviews = reviews_of(self.folder, name)
        notes = [
            f"review {entry.number} is of another scan that had this name, and says nothing of this one"
            for entry in reviews
            if opened.case.is_another_scan_than(entry)
        ]
        if review is None:
            review, classes, unshown = _shown_first(opened, reviews)
            notes += unshown
        else:
            classes = self._classes(opened, review)
        near = opened.near(np.maximum(opened.predicted, classes))
        notes += [
            f"review {review} also has {', '.join(lacking)}: not in this prediction, so neither shown nor saved"
            for entry in reviews
            if entry.number == review and (lacking := [k for k in entry.labels if k not in opened.labels])
        ]
        notes += [
            f"review {review} was made when another mask was predicted; what is predicted now is under Mask: "
            "prediction"
            for entry in reviews
            if entry.number == review and not is_of(entry, opened)
        ]
        return {
            "name": name,
            "prediction": opened.prediction,
            "verdict": opened.case.verdict,
            "doubt": opened.case.doubt,
            "reasons": [*opened.case.reasons, *opened.notes, *notes],
            "structures": [
                {"name": structure, "number": k, "colour": COLOURS[(k - 1) % len(COLOURS)]}
                for k, structure in enumerate(opened.labels, start=1)
            ],
            "spacing_mm": opened.grid.spacing_mm,
            "near": {"start": near.start, "shape": near.shape},
            "whole": {"start": (0, 0, 0), "shape": opened.grid.shape},
            "slices": opened.ranked_slices(),
            "is_dicom": opened.source.series is not None,
            "shown": review,
            "reviews": [
                _in_words(entry) | ({"has_mask": False} if opened.case.is_another_scan_than(entry) else {})
                for entry in reviews
            ],
        }

    def scan(
        self, name: str, start: tuple[int, ...], shape: tuple[int, ...], prediction: str | None = None
    ) -> bytes:
        """Return the scan of a case in a field, as a NIfTI file.

        Args:
            name: of the case.
            start: of the field.
            shape: of the field.
            prediction: that the field belongs to, as `case` names it; None for whichever is there now.

        Raises:
            PredictedAnew: that prediction is there no more.
            InputError: as `case`, or a field that is not within the scan.
        """
        opened = self._shown(name, prediction)
        return opened.nifti(opened.field(start, shape))

    def mask(
        self,
        name: str,
        review: int,
        start: tuple[int, ...],
        shape: tuple[int, ...],
        prediction: str | None = None,
    ) -> bytes:
        """Return the numbers of structures in a field, a byte for each voxel; see `scan`."""
        opened = self._shown(name, prediction)
        field = opened.field(start, shape)
        return self._classes(opened, review)[field.slices].tobytes()

    def decide(
        self, name: str, verdict: Verdict, start: tuple[int, ...], shape: tuple[int, ...], mask: bytes
    ) -> dict[str, Any]:
        """Write what was decided on a case.

        Args:
            name: of the case.
            verdict: what was decided.
            start: of the field that the mask fills; beyond it lies what was shown first.
            shape: of the field.
            mask: numbers of structures in the field, a byte for each voxel; empty: as it was shown first.

        Raises:
            PredictedAnew: the prediction that the reviewer saw is there no more.
            InputError: see `metricunet.workflows.review.decide.decide`; or a mask that does not fill its field.
        """
        opened = self._shown(name, verdict.prediction)
        classes = None
        if not verdict.rejected:
            classes = self._classes(opened, verdict.based_on)
            if mask:
                classes = _filled(classes, opened.field(start, shape), mask, len(opened.labels))
        review, problem = decide(opened, verdict, classes)
        not_recorded = "" if self.recorder is None else self.recorder.try_decided(opened, review, classes)
        return {**_in_words(review), "problem": problem, "not_recorded": not_recorded}

    def ledger(self) -> Ledger:
        """Return the ledger that decisions are written into.

        Raises:
            InputError: there is none, or it cannot be opened.
        """
        if self.recorder is None:
            raise InputError("this review was started without a ledger; start one that writes decisions into it")
        return self.recorder.ledger

    def voxels(self, name: str) -> int:
        """Return how many voxels the scan of a case has: the most bytes that its mask can have."""
        return int(np.prod(self.opened(name).grid.shape))

    def opened(self, name: str) -> OpenedCase:
        """Return a case with its scan; the last few are kept.

        Raises:
            InputError: no such case, or files that cannot be read, or that are just being written.
        """
        with self._lock:
            for _ in range(ATTEMPTS):
                self._check_known(name)
                stamps = _stamps(self.folder, name)
                key = (name, stamps)
                if key in self._opened:
                    self._opened.move_to_end(key)
                    return self._opened[key]
                case = read_case(self.folder, name)
                opened = open_case(case, self.scans.of(case))
                # It may have been predicted anew while it was read: what was said of one mask is not for another.
                if _stamps(self.folder, name) == stamps:
                    break
            else:
                raise InputError(f"case {name}: is just being predicted anew; open it again in a moment")
            for old in [other for other in self._opened if other[0] == name]:
                del self._opened[old]  # it was predicted anew
            self._opened[key] = opened
            while len(self._opened) > KEPT:
                self._opened.popitem(last=False)
            return opened

    def _shown(self, name: str, prediction: str | None) -> OpenedCase:
        """Return a case, if its prediction is still the one that a page shows."""
        opened = self.opened(name)
        if prediction not in (None, opened.prediction):
            raise PredictedAnew(name)
        return opened

    def _check_known(self, name: str) -> None:
        # The name is looked up among the folder's, so that none leads out of it.
        if not any(path.name == f"{name}{QUALITY_SUFFIX}" for path in self.folder.glob(f"*{QUALITY_SUFFIX}")):
            raise InputError(f"no case {name!r} in this folder")

    def _in_list(self, case: PredictedCase, reviews: Sequence[Review]) -> dict[str, Any]:
        decision = reviews[-1].decision if reviews else ""
        counts = bool(reviews) and is_of_mask(reviews[-1], case, self._mask_sha256(case))
        return {
            "name": case.name,
            "verdict": case.verdict,
            "doubt": case.doubt,
            "expected_error_mm": case.expected_error_mm,
            "decision": decision if counts else "",
            "earlier": "" if counts else decision,
        }

    def _mask_sha256(self, case: PredictedCase) -> str | None:
        """Return the hash of the file that a case's mask is read from; it is computed again when that changes."""
        path = next(iter(case.mask_files), None)
        if path is None:
            return None
        stamp, known = _stamp(path), self._digests.get(case.name)
        if known is None or known[0] != stamp:
            known = self._digests[case.name] = (stamp, hash_if_readable(path))
        return known[1]

    def _classes(self, opened: OpenedCase, number: int) -> Classes:
        if number == 0:
            return opened.predicted
        reviews = reviews_of(self.folder, opened.case.name)
        found = next((review for review in reviews if review.number == number), None)
        if found is None:
            raise InputError(f"case {opened.case.name}: has no review {number}")
        return opened.classes(found)


def _is_text(name: str) -> bool:
    """Tell whether the bytes of a file's name are UTF-8."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _shown_first(opened: OpenedCase, reviews: Sequence[Review]) -> tuple[int, Classes, list[str]]:
    """Return the last review whose mask can be shown, 0 for the prediction; its mask; why no later one is."""
    notes: list[str] = []
    for entry in reversed(reviews):
        if entry.mask is None or opened.case.is_another_scan_than(entry):
            continue
        try:
            return entry.number, opened.classes(entry), notes
        except InputError as error:  # a review that cannot be shown does not keep the case from being looked at
            notes.append(f"review {entry.number} is not shown: {error}")
    return 0, opened.predicted, notes


def _filled(classes: Classes, field: Field, mask: bytes, structures: int) -> Classes:
    values = np.frombuffer(mask, dtype=np.uint8)
    if values.size != np.prod(field.shape):
        raise InputError(f"the mask has {values.size} voxels, its field {int(np.prod(field.shape))}")
    if values.max() > structures:
        raise InputError(f"the mask has the value {values.max()}, but the case {structures} structures")
    result = classes.copy()
    result[field.slices] = values.reshape(field.shape)
    return result


def _in_words(review: Review) -> dict[str, Any]:
    return {
        "number": review.number,
        "decision": review.decision,
        "reason": review.reason,
        "reviewer": review.reviewer,
        "decided": review.decided,
        "seconds": review.seconds,
        "has_mask": review.mask is not None,
        "file": (review.mask or review.path).name,
    }


def _stamps(folder: Path, name: str) -> tuple[Any, ...]:
    """Return what changes when a case is predicted anew, or its mask edited."""
    paths = (folder / f"{name}{QUALITY_SUFFIX}", *PredictedCase(name, folder).mask_files[:1])
    return tuple(_stamp(path) for path in paths)


def _stamp(path: Path) -> tuple[Any, ...]:
    try:
        status = path.stat()
    except OSError:  # it was there a moment ago
        return (path.name,)
    return path.name, status.st_mtime_ns, status.st_size, status.st_ino
