"""How the networks of an arm are trained and put to use: in two stages, or in one on the whole scan."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from functools import cached_property

from metricunet.files.model import read_card
from metricunet.files.record import sha256
from metricunet.study.beyond import Line, feature_lines, no_features
from metricunet.study.job import RunJob
from metricunet.study.one_stage import score_whole_scans, train_one_stage
from metricunet.study.score import ScoredCut, cut_predictor, score_cases
from metricunet.study.stage_one import LOCATE_NAME, read_located
from metricunet.training.fit import MODEL_NAME, open_run, train_segment
from metricunet.training.log import Watch
from metricunet.training.run import Run, state_file


class Way(ABC):
    """What a run does, whose results are written alike whatever the way.

    Args:
        job: the run.
        watch: told how far a training is; None where nobody looks.
    """

    def __init__(self, job: RunJob, watch: Watch | None = None) -> None:
        self.job, self.watch = job, watch

    @cached_property
    def run(self) -> Run:
        """The training, begun or gone on with; its cases are read when it is first asked for."""
        job = self.job
        return open_run(
            job.cohort,
            job.folder,
            job.config,
            job.fold,
            resume=state_file(job.folder).is_file(),
            device=job.device,
            spare=job.spare,
            watch=self.watch or _unwatched,
        )

    @abstractmethod
    def train(self) -> None:
        """Train what is not trained yet."""

    @abstractmethod
    def scored(self) -> Iterator[ScoredCut]:
        """Segment the cases to score, one after the other."""

    @abstractmethod
    def features(self) -> list[Line]:
        """Measure the features of the trained network."""

    @property
    @abstractmethod
    def validation(self) -> Mapping[str, float]:
        """Scores of the validation cases, as a model's card has them."""

    @property
    @abstractmethod
    def locate_sha256(self) -> str:
        """Hash of the stage 1 that was used."""


class TwoStages(Way):
    """Stage 2 is trained; stage 1 is the fold's, and what it found has been cut out of the scans."""

    def train(self) -> None:
        """Train stage 2."""
        if not (self.job.folder / MODEL_NAME).is_file():  # it is written when the training is done
            train_segment(self.run, read_located(self.job.stage_one, self.run))

    def scored(self) -> Iterator[ScoredCut]:
        """Segment the cuts."""
        job = self.job
        predictor = cut_predictor(job.folder / MODEL_NAME, job.device)
        return score_cases(predictor, job.stage_one, job.case_names, job.ready.labels, job.ready.ignore)

    def features(self) -> list[Line]:
        """Measure the features of stage 2."""
        job = self.job
        predictor = cut_predictor(job.folder / MODEL_NAME, job.device)
        return feature_lines(
            predictor, job.stage_one, job.fitting, job.case_names, job.ready.labels, job.ready.ignore
        )

    @property
    def validation(self) -> Mapping[str, float]:
        """Scores in the crops."""
        return read_card(self.job.folder / MODEL_NAME).validation

    @property
    def locate_sha256(self) -> str:
        """Hash of the fold's stage 1."""
        return self.job.ready.locate_sha256


class OneStage(Way):
    """A network like stage 1's is trained, at settings of the arm's own, and segments whole scans."""

    def train(self) -> None:
        """Train the one stage."""
        train_one_stage(self.run, self.job.folder)

    def scored(self) -> Iterator[ScoredCut]:
        """Segment the scans."""
        return score_whole_scans(self.run, train_one_stage(self.run, self.job.folder), self.job.cases)

    def features(self) -> list[Line]:
        """Measure nothing: features of three dimensions depend on the window."""
        return no_features(self.job.case_names)

    @property
    def validation(self) -> Mapping[str, float]:
        """Nothing: a Dice of whole scans is not to be set beside one of crops."""
        return {}

    @property
    def locate_sha256(self) -> str:
        """Hash of the run's own network."""
        return sha256([self.job.folder / LOCATE_NAME])


def way_of(job: RunJob, watch: Watch | None = None) -> Way:
    """Return how a run is carried out; `watch` is told how far its training is."""
    return TwoStages(job, watch) if job.stages == 2 else OneStage(job, watch)


def _unwatched(stage: str, done: int, total: int, val_dice: float | None) -> None:
    """Show nothing: a run of a study has no progress bar of its own."""
