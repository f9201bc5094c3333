"""An arm of one stage: a network like stage 1's segments the whole scan, and nothing is located first.

It is what two stages are held against. Its mask is scored on the whole scan, for it may lie anywhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from metricunet.files.record import sha256
from metricunet.stages.classes import keep_largest_piece
from metricunet.stages.locate import classes_on, coarse_probabilities, localise, locate_spec
from metricunet.study.data import ScoredCase
from metricunet.study.score import ScoredCut
from metricunet.study.stage_one import Cut, read_scan, trained_in
from metricunet.training.fit import Located
from metricunet.training.run import Run


def train_one_stage(run: Run, folder: Path) -> Located:
    """Train the one stage of a run and keep it in a folder, or read the one that is there.

    One that finds nothing is kept like any other: its masks are empty, and count as missed.
    """
    return trained_in(folder, run, may_find_nothing=True)


def score_whole_scans(run: Run, located: Located, cases: Sequence[ScoredCase]) -> Iterator[ScoredCut]:
    """Segment whole scans with a trained network, one after the other. Memory grows with the scan.

    Args:
        run: that it was trained in.
        located: the trained network.
        cases: to segment.

    Raises:
        InputError: unreadable files, two different grids, or values that are no HU.
    """
    for case in cases:
        yield segment_whole_scan(run, located, case)


def segment_whole_scan(run: Run, located: Located, case: ScoredCase) -> ScoredCut:
    """Segment one scan; see `score_whole_scans`. Of the target, only the largest piece is kept, as by stage 2."""
    image, references = read_scan(case, run.info)
    spec = locate_spec(run.config.locate, run.classes)
    _, *shares = coarse_probabilities(located.network, spec, image, run.config.precision)
    classes = classes_on(image, shares)
    keep_largest_piece(classes, run.target)
    values = np.array([0, *run.labels.values()], dtype=np.uint8)[classes]
    found = localise(shares[run.target - 1])
    files = [case.image, *case.references.values()]
    cut = Cut(case.name, image, references, found, sha256(files), case.not_contoured)
    return ScoredCut(cut, values, run.labels, run.info.ignore)
