"""A run of a study: one arm, fold and seed, and all that a process needs to carry it out."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from metricunet.cohort.splits import Fold
from metricunet.study.data import ScoredCase
from metricunet.study.stage_one import FoldReady
from metricunet.training.config import TrainConfig


@dataclass(frozen=True)
class RunJob:
    """One arm, fold and seed. It holds all that a process needs to carry it out.

    Attributes:
        folder: of the run.
        arm: name.
        fold: that stage 1 was trained on.
        seed: of the training.
        config: every setting, the seed included.
        cohort: that training reads.
        stage_one: folder of stage 1 and the cuts.
        cases: to score.
        fitting: training cases that probes of features are fitted on.
        references: whose contours they are scored against.
        ready: hashes and labels of the fold.
        spare: folder for prepared cases where the cohort is read-only.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        stages: 2, or 1 where the arm segments whole scans.
    """

    folder: Path
    arm: str
    fold: Fold
    seed: int
    config: TrainConfig
    cohort: Path
    stage_one: Path
    cases: tuple[ScoredCase, ...]
    fitting: tuple[str, ...]
    references: tuple[str, ...]
    ready: FoldReady
    spare: Path
    device: str
    stages: int = 2

    @property
    def title(self) -> str:
        """Name for people."""
        return f"{self.arm}, fold {self.fold}, seed {self.seed}"

    @property
    def case_names(self) -> tuple[str, ...]:
        """Names of the cases to score."""
        return tuple(case.name for case in self.cases)

    def key(self) -> dict[str, Any]:
        """Return what the results depend on; the shared stage 1 is no part of that where there is one stage."""
        own = {"locate_sha256": self.ready.locate_sha256} if self.stages == 2 else {"stages": 1}
        return own | {
            "config": self.config.model_dump(mode="json"),
            "version": version("metricunet"),
            "data_sha256": self.ready.data_sha256,
            "scored_sha256": self.ready.scored_sha256,
        }
