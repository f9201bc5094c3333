"""Segment a cohort's scans in fp32 and in bf16, and with one thread and two, and compare the masks.

Prints the Dice with the reference in fp32, what bf16 changes of it, and the share of each scan's voxels that
differ between one thread and two. The scans are the test cases where there are any, else the last training cases.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from metricunet.cohort.case import read_case
from metricunet.cohort.layout import read_cohort
from metricunet.evaluation.measures import measure
from metricunet.inference.predictor import Predictor
from metricunet.stages.network_input import Precision
from metricunet.volume import Volume

#: Precision and threads.
RUNS: tuple[tuple[Precision, int], ...] = (("fp32", 2), ("bf16", 2), ("bf16", 1))


def mask(model: Path, scan: Volume, precision: Precision, threads: int) -> Volume:
    """Segment the target."""
    torch.set_num_threads(threads)
    predictor = Predictor([model], "cpu", precision)
    labels = predictor.predict(scan).labels
    value = predictor.card.labels[predictor.card.target]
    return scan.with_array(np.zeros(scan.geometry.shape, bool) if labels is None else labels.array == value)


def print_precisions(model: Path, folder: Path, count: int = 20) -> None:
    """Print a line for each case, and the extremes."""
    cohort = read_cohort(folder)
    changes, differing = [], []
    for case in (cohort.test or cohort.training)[-count:]:
        read = read_case(case, cohort.info)
        reference = read.labels.with_array(read.labels.array > 0)
        full, half, one = (mask(model, read.image, p, n) for p, n in RUNS)
        dice, half_dice = (measure(found, reference).dice for found in (full, half))
        if dice is None or half_dice is None:
            continue
        changes.append(half_dice - dice)
        differing.append(float((half.array != one.array).mean()))
        print(
            f"{case.name}: Dice {dice:.4f}, in bf16 {changes[-1]:+.5f}; threads: {differing[-1]:.1e}", flush=True
        )
    span = f"{min(changes):+.5f} to {max(changes):+.5f}, mean {np.mean(changes):+.5f}"
    print(f"bf16 less fp32: {span}, n {len(changes)}")
    print(f"one thread against two: at most {max(differing):.1e} of the voxels differ")
