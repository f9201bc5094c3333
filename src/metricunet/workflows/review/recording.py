"""What goes from a review into the ledger. Whatever becomes of it, the review's own files are there first."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np

from metricunet.cohort.importing.dicom_tree import person_of
from metricunet.cohort.splits import patients_of
from metricunet.errors import InputError, told
from metricunet.files.own import SEAL, read_sealed
from metricunet.files.record import RECORD_NAME
from metricunet.files.reviews import Review, reviews_in
from metricunet.inference.inputs import ScanInput
from metricunet.ledger import CaseFacts, DecisionFacts, Ledger, Model, Scanner, record_case, record_decision
from metricunet.ledger.edits import Edit, edit_of
from metricunet.ledger.records import is_recorded
from metricunet.ledger.store import stamp
from metricunet.progress import Progress
from metricunet.volume import Volume
from metricunet.workflows.review.folder import PredictedCase, read_cases
from metricunet.workflows.review.opened import Classes, OpenedCase, open_case
from metricunet.workflows.review.scans import Scans


class Recorder:
    """Writes verdicts and decisions of prediction folders into a ledger.

    Args:
        path: of the ledger, which is opened when it is first needed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._ledger: Ledger | None = None

    @property
    def ledger(self) -> Ledger:
        """The ledger.

        Raises:
            InputError: it cannot be opened, made or written.
        """
        with self._lock:
            if self._ledger is None:
                self._ledger = Ledger(self.path)
            return self._ledger

    def predicted(self, cases: Iterable[PredictedCase]) -> int:
        """Write the verdicts of cases, and return how many there are.

        Raises:
            InputError: the ledger cannot be written.
        """
        names: dict[Path, dict[str, str]] = {}
        count = 0
        with self.ledger.writing():
            for case in cases:
                if case.folder not in names:
                    names[case.folder] = model_names(case.folder)
                record_case(self.ledger, self._facts(case, None, names[case.folder]))
                count += 1
        return count

    def decided(self, opened: OpenedCase, review: Review, classes: Classes | None) -> bool:
        """Write a decision with what was changed, and return whether it was new.

        Args:
            opened: the case.
            review: what was decided, whose files are written.
            classes: numbers of structures in the reviewed mask, on the opened case's grid; None if rejected.

        Raises:
            InputError: the ledger cannot be written, or the review's record was changed.
        """
        return self.write(*self.measured(opened, review, classes))

    def measured(
        self, opened: OpenedCase, review: Review, classes: Classes | None
    ) -> tuple[CaseFacts, DecisionFacts]:
        """Return what `write` puts into the ledger of a decision; the arguments are those of `decided`.

        Raises:
            InputError: the ledger has no key, or the review's record was changed.
        """
        decision = DecisionFacts(
            record=_seal(review),
            number=review.number,
            decision=review.decision,
            reason=review.reason,
            reviewer=review.reviewer,
            decided=stamp(datetime.fromisoformat(review.decided)),
            seconds=review.seconds,
            edits={} if classes is None else _edits(opened, classes),
        )
        return self._facts(opened.case, opened.source, model_names(opened.case.folder)), decision

    def write(self, facts: CaseFacts, decision: DecisionFacts) -> bool:
        """Write what was measured, and return whether it was new.

        Raises:
            InputError: the ledger cannot be written.
        """
        with self.ledger.writing():
            return record_decision(self.ledger, record_case(self.ledger, facts), decision)

    def try_decided(self, opened: OpenedCase, review: Review, classes: Classes | None) -> str:
        """Write a decision as `decided` does; return why it is not in the ledger, empty where it is."""
        try:
            self.decided(opened, review, classes)
        except Exception as error:  # whatever it is, the decision itself is written
            return told(error)
        return ""

    def _facts(self, case: PredictedCase, source: ScanInput | None, names: dict[str, str]) -> CaseFacts:
        key = self.ledger.current_key()  # this process may run for weeks
        digest = case.model.get("model_sha256", "")
        scanner = case.scanner
        if not scanner and source is not None and source.series is not None:
            scanner = source.series.scanner
        return CaseFacts(
            scan=key.hashed("scan", case.input_sha256) if case.input_sha256 else key.hashed("case", case.name),
            patient="" if source is None else key.hashed("patient", *_patient(source)),
            verdict=case.verdict,
            doubt=case.doubt,
            codes=case.codes,
            model=Model(names.get(digest, ""), case.model.get("version", ""), digest),
            scanner=Scanner(**{name: scanner.get(name, "") for name in ("manufacturer", "model", "kernel")})
            if scanner
            else None,
            expected_error_mm=case.expected_error_mm,
        )


@dataclass(frozen=True)
class Added:
    """What a folder brought into a ledger.

    Attributes:
        cases: verdicts.
        decisions: decisions that were not there before.
        known: decisions that were.
        left_out: what could not be taken, and why.
    """

    cases: int
    decisions: int
    known: int
    left_out: tuple[str, ...]


def add_folder(
    ledger: Path, folder: Path, *, scans: Path | None = None, progress: Progress | None = None
) -> Added:
    """Bring the verdicts and decisions of a prediction folder into a ledger; what is there already stays.

    Args:
        ledger: file of the ledger; made where it is missing.
        folder: that `metricunet predict` wrote, with the files of its reviews.
        scans: folder of the scans; None where the predictions say where they lie.
        progress: called with (done, all).

    Raises:
        InputError: no prediction there, or the ledger cannot be written.
    """
    cases, unreadable = read_cases(folder)
    recorder, scan_files = Recorder(ledger), Scans(scans, settled=True)
    recorder.predicted(cases)
    left_out = [f"{case.name}: {case.reason}" for case in unreadable]
    reviews = reviews_in(folder)
    added = known = 0
    for done, case in enumerate(cases, start=1):
        opened: OpenedCase | None = None
        for review in reviews.get(case.name, ()):
            try:
                if is_recorded(recorder.ledger, _seal(review)):
                    known += 1
                    continue
                opened = opened or open_case(case, scan_files.of(case))
                _check_of_this_prediction(review, opened)
                classes = None if review.decision == "rejected" else opened.classes(review)
                facts, decision = recorder.measured(opened, review, classes)
            except Exception as error:  # whatever it is, it costs this review alone
                left_out.append(f"{review.path.name}: {told(error)}")
                continue
            added += recorder.write(facts, decision)
        if progress is not None:
            progress(done, len(cases))
    return Added(len(cases), added, known, tuple(left_out))


def model_names(folder: Path) -> dict[str, str]:
    """Return the names of the model files of a folder's last run, by the hash that its cases state.

    Of a name whose bytes are no text, it has their numbers: a database takes text alone.
    """
    record = read_sealed(folder / RECORD_NAME) or {}
    arguments, digest = record.get("arguments"), record.get("model_sha256")
    models = arguments.get("models") if isinstance(arguments, dict) else None
    if not isinstance(digest, str) or not isinstance(models, list):
        return {}
    name = " + ".join(Path(str(path)).name for path in models)
    return {digest: name.encode(errors="backslashreplace").decode()}


def _edits(opened: OpenedCase, classes: Classes) -> dict[str, Edit]:
    edits = {}
    for number, structure in enumerate(opened.labels, start=1):
        automatic, reviewed = (Volume(array == number, opened.grid) for array in (opened.predicted, classes))
        if np.any(automatic.array) or np.any(reviewed.array):
            edits[structure] = edit_of(automatic, reviewed)
    return edits


def _patient(source: ScanInput) -> tuple[str, ...]:
    """Return what tells a scan's patient from others; of a file, what the patients.json of its cohort says."""
    if source.series is not None:
        return person_of(source.series)
    cohort = source.path.resolve().parent.parent
    stated = patients_of(cohort).get(source.case) if (cohort / "dataset.json").is_file() else None
    return ("file", source.sha256()) if stated is None else ("cohort", cohort.name, stated)


def is_of(review: Review, opened: OpenedCase) -> bool:
    """Tell whether a review was made of the very scan and mask that are there now."""
    return is_of_mask(review, opened.case, opened.mask_sha256)


def is_of_mask(review: Review, case: PredictedCase, mask_sha256: str | None) -> bool:
    """Tell whether a review was made of a case's scan and of a mask.

    Args:
        review: the review.
        case: as its verdict is now.
        mask_sha256: of the file of the mask; None where there is none.
    """
    reviewed = (read_sealed(review.path) or {}).get("prediction", {}).get("mask_sha256")
    return not case.is_another_scan_than(review) and bool(reviewed == mask_sha256)


def _check_of_this_prediction(review: Review, opened: OpenedCase) -> None:
    if not is_of(review, opened):
        raise InputError(
            "is a review of an earlier prediction, or the predicted mask was changed since, so what was changed "
            "cannot be measured"
        )


def _seal(review: Review) -> str:
    content = read_sealed(review.path)
    if content is None:
        raise InputError(f"{review.path}: was changed since it was written; the ledger takes no such record")
    return str(content[SEAL])


def register(recorder: Recorder, cases: Iterable[PredictedCase], say: Callable[[str], object]) -> None:
    """Write the verdicts of a folder that is opened for review, and say where, or why not."""
    try:
        recorder.predicted(cases)
    except Exception as error:  # whatever it is, the review goes on
        say(f"The ledger cannot be written, so decisions will be in the folder alone: {told(error)}")
        return
    say(f"ledger: {recorder.path}")
