"""What is done with a case: strict intake, segmentation, verdict, files, and where they go."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path

from metricunet.cohort.importing.dicom_tree import person_of
from metricunet.errors import InputError, told
from metricunet.files.atomic import FULL
from metricunet.files.claim import claimed
from metricunet.files.dicom.identity import Identity
from metricunet.files.dicom.series import CtSeries, search_series
from metricunet.files.dicom.stack import Allow
from metricunet.files.exported import files_of_model, read_any_card
from metricunet.files.own import Inputs
from metricunet.files.record import sha256
from metricunet.inference.case_files import (
    SUFFIXES,
    CaseFiles,
    checked_formats,
    chosen_structures,
    organs_wanted,
    provenance_of,
)
from metricunet.inference.inputs import ScanInput
from metricunet.inference.reruns import MOST_RERUNS
from metricunet.inference.runtimes import open_predictor
from metricunet.inference.structure_set import ContourOptions
from metricunet.ledger import CaseFacts, Job, Ledger, Model, Queue, Scanner, record_case
from metricunet.ledger.job import State as JobState
from metricunet.quality.verdict import QualityReport, judge
from metricunet.workflows.serve.arrivals import ABOUT
from metricunet.workflows.serve.config import NodeConfig
from metricunet.workflows.serve.decided import is_decided
from metricunet.workflows.serve.outbound import outgoing
from metricunet.workflows.serve.recipe import rule_of, why_no_rule
from metricunet.workflows.serve.state import State, without_identifiers

#: A case whose files a full disk has kept out waits so long.
UNTIL_THERE_IS_ROOM = timedelta(minutes=1)


class Refused(InputError):  # noqa: N818
    """A scan that cannot be segmented."""


@dataclass(frozen=True)
class Worked:
    """What became of a case.

    Attributes:
        state: that its job is in now.
        why: a sentence, where the state needs one.
        anew: whether the worker has to begin anew before it takes another case. A GPU that has failed a process
            once may fail it in all that follows.
    """

    state: JobState
    why: str
    anew: bool = False


class Workshop:
    """Segments cases with models that are loaded once.

    Args:
        config: of the node.
        device: to compute on.
    """

    def __init__(self, config: NodeConfig, device: str) -> None:
        self.config, self.state, self.device = config, State(config.state), device
        self.ledger = Ledger(self.state.ledger)
        self.queue = Queue(self.ledger)
        card = read_any_card(config.model[0])
        self.chosen = chosen_structures(config.structures, card.labels, card.tg263)
        self.predictor = open_predictor(
            config.model,
            device,
            runtime=config.runtime,
            provider=config.provider,
            organs=organs_wanted(card, self.chosen),
        )
        self.options = ContourOptions()
        self.provenance = provenance_of(config.model, MOST_RERUNS, self.options)

    def work(self, job: Job) -> Worked:
        """Bring a job as far as it goes without a person: its files are written before its state says so.

        Raises:
            StateChanged: the job is in other hands.
            InputError: the ledger cannot be written; the job is still `segmenting`.
        """
        try:
            worked, series, quality = self._segment(job)
        except Refused as error:
            return self._end(job, "refused", told(error))
        except Exception as error:  # whatever it is, it costs this case alone
            if _is_of_a_full_disk(error):  # no fault of the case, and the next ones would fare no better
                return self._end(job, "waiting", told(error), datetime.now(UTC) + UNTIL_THERE_IS_ROOM)
            anew = self.device != "cpu" and not isinstance(error, InputError)
            return replace(self._end(job, "failed", told(error)), anew=anew)
        try:
            return self._record(job, worked, series, quality)
        except InputError:
            raise
        except Exception as error:  # no fault of the ledger: it would be the same again
            return self._end(job, "failed", told(error))

    def _record(self, job: Job, worked: str, series: CtSeries, quality: QualityReport) -> Worked:
        facts = CaseFacts(
            scan=self.ledger.key.hashed("scan", worked),
            patient=self.ledger.key.hashed("patient", *person_of(series)),
            verdict=quality.verdict,
            doubt=quality.doubt,
            codes=[flag.code for flag in quality.flags],
            model=Model("+".join(path.stem for path in self.config.model), version("metricunet"), self._model),
            scanner=Scanner(**series.scanner),
            expected_error_mm=_number(quality.boundary.get("expected_error_mm")),
        )
        with self.ledger.writing():
            case = record_case(self.ledger, facts)
            return self._go_on(job, case, quality)

    @property
    def _model(self) -> str:
        return str(self.provenance["model_sha256"])

    def _segment(self, job: Job) -> tuple[str, CtSeries, QualityReport]:
        folder = self.state.folder / job.folder
        case = folder.name
        series = self._series(folder)
        source = ScanInput(case, folder, series)
        try:
            volume = source.read()
        except InputError as error:
            raise Refused(str(error)) from error
        prediction = self.predictor.predict(volume)
        quality = judge(case, volume, prediction, source.notes, source.patient_sex)
        if self.chosen:
            prediction, quality = prediction.only(self.chosen), quality.only(self.chosen)
        input_sha256 = sha256(source.files)
        settings = json.dumps([self.provenance, list(self.chosen)], sort_keys=True)
        identity = Identity((input_sha256, settings), datetime.fromisoformat(job.created).astimezone())
        files = CaseFiles(
            self.state.predictions,
            checked_formats(self.config.formats),
            Inputs([*source.files, *(file for path in self.config.model for file in files_of_model(path))]),
            overwrite=True,  # nobody else writes into the folder of state
            chosen=self.chosen,
        )
        own = files.own(case)
        with claimed(own.claim, f"a prediction of case {case}"):
            files.write(
                prediction,
                quality,
                source,
                self.options,
                {"input_sha256": input_sha256, **self.provenance},
                identity=identity,
            )
        return input_sha256, series, quality

    def _series(self, folder: Path) -> CtSeries:
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        if about["refused"]:
            raise Refused(about["refused"])
        found = search_series(folder, Allow(offered=False))  # nobody can allow a node what predict may be allowed
        scans = [one for one in found.refused if one.is_scan] or [*found.refused]
        if len(found.series) != 1 or any(one.is_scan for one in found.refused):
            raise Refused(scans[0].reason if scans else "it holds no CT scan")
        series = found.series[0]
        slices, rows, columns = series.geometry.shape
        if slices * rows * columns > self.config.limits.voxels * 1e6:
            raise Refused(
                f"the scan has {slices} x {rows} x {columns} voxels, at most {self.config.limits.voxels:g} "
                "million are taken"
            )
        return series

    def _go_on(self, job: Job, case: int, quality: QualityReport) -> Worked:
        def moved(state: JobState, why: str = "") -> Worked:
            self.queue.move(job.id, state, why, case_id=case)
            return Worked(state, why)

        reason = quality.reasons[0] if quality.reasons else ""
        if quality.verdict == "fail":
            return moved("failed", without_identifiers(reason))
        rule = rule_of(self.config, job.recipe)
        if rule is None:
            return moved("failed", f"{why_no_rule(job.recipe)}, and segment it again")
        destinations = self.config.destinations_of(rule)
        if not destinations:
            return moved("kept", "no destination")
        if self.predictor.ensemble.held_back and not self.config.allow_synthetic:
            return moved("kept", "the model comes from synthetic scans, and allow_synthetic is not set")
        name = Path(job.folder).name
        if is_decided(self.state, name):  # it was segmented before, and the mask is the very same
            return moved("review", "somebody has decided on this very mask before")
        if quality.doubt == "strong":  # whatever the model: nobody would look before a planning system has it
            return moved("review", "the doubt is strong")
        wanted = [
            outgoing(self.state, one, kind, self.state.predictions / f"{name}{SUFFIXES[kind]}")
            for one in destinations
            if one.send == "at_once"
            for kind in one.formats
        ]
        if not wanted:
            return moved("review", "it is sent when somebody has accepted it")
        sent = self.queue.send(job.id, wanted, case_id=case)
        return Worked(sent.state, sent.why)

    def _end(self, job: Job, state: JobState, why: str, not_before: datetime | None = None) -> Worked:
        words = without_identifiers(why.replace(f"{self.state.folder}/", ""))
        self.queue.move(job.id, state, words, not_before=not_before)
        return Worked(state, words)


def _is_of_a_full_disk(error: BaseException | None) -> bool:
    """Tell whether an error comes from a disk that is full."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in FULL:
            return True
        error = error.__cause__
    return False


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None
