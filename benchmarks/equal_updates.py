"""Train stage 2 for equal updates on this package's batches and on MONAI's, and compare the validation Dice.

Preset `small`, without the metric branch. The same network, weights, loss, optimiser and schedule; only the way
from the cached boxes to the batches differs. Four fifths of the cohort train, one fifth validates.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks.monai_batches import MonaiBatches
from metricunet.cohort.layout import read_cohort
from metricunet.cohort.prepare import PreparedCase, PrepareSettings, prepare
from metricunet.cohort.splits import split_for
from metricunet.networks import build_network
from metricunet.networks.device import keep_freed_memory
from metricunet.stages.segment import segment_spec
from metricunet.training.batches import Batch, SegmentBatches, update_generator
from metricunet.training.config import TrainConfig, load_config
from metricunet.training.loop import set_up, train_updates, validate
from metricunet.training.objectives import SegmentModule

CPU = torch.device("cpu")
STAGE = 1


def batches_of(way: str, cases: list[PreparedCase], config: TrainConfig, updates: int) -> Iterator[Batch]:
    """Yield the batches of a training."""
    jitter = config.segment.smallest_jitter_mm
    if way == "MONAI":
        monai = MonaiBatches(cases, config, (jitter, jitter), updates, CPU)
        yield from monai
        monai.close()
        return
    ours = SegmentBatches(cases, config.segment, config.augment, 2, True, (jitter, jitter, jitter), CPU)
    for update in range(updates):
        yield ours.draw(update_generator(config.seed, STAGE, update, CPU))


class Given:
    """Batches that come in an order of their own, for a loop that asks for that of an update."""

    def __init__(self, batches: Iterator[Batch]) -> None:
        self.batches = batches

    def draw(self, generator: torch.Generator) -> Batch:
        """Return the next one."""
        return next(self.batches)


def validation_dice(
    way: str, train: list[PreparedCase], val: list[PreparedCase], seed: int, updates: int
) -> float:
    """Train, and return the mean Dice of the validation cases in their crops."""
    settings = [f"seed={seed}", "metric.mode=none", "segment.epochs=1", f"segment.updates_per_epoch={updates}"]
    config = load_config("small", settings=settings)
    torch.manual_seed(seed)
    module = SegmentModule(build_network(**segment_spec(config.segment, 2).network), config, val, 2)
    given = Given(batches_of(way, train, config, updates))
    train_updates(set_up(module, CPU), given, range(updates), lambda done: None)
    assert next(given.batches, None) is None  # a loader lets its workers go when it has given its last batch
    score = validate(module)
    assert score is not None
    return score


def print_equal_updates(folder: Path, updates: int = 300, seeds: int = 2) -> None:
    """Print the Dice of each seed, and the means."""
    cohort = read_cohort(folder)
    keep_freed_memory()
    config = load_config("small")
    grids = PrepareSettings("prostate", config.locate.spacing_mm, config.segment.spacing_mm, config.segment.box_mm)
    with tempfile.TemporaryDirectory() as prepared:
        cases = {c.name: c for c in prepare(cohort.training, cohort.info, grids, Path(prepared))}
    split = split_for(cohort, 0)
    train, val = ([cases[name] for name in names] for names in (split.train, split.val))
    for way in ("metricunet", "MONAI"):
        scores = [validation_dice(way, train, val, seed, updates) for seed in range(seeds)]
        print(f"{way}: {', '.join(f'{s:.4f}' for s in scores)}; mean {statistics.mean(scores):.4f}", flush=True)
