"""An arm of one stage: a network like stage 1's segments the whole scan, and nothing is located first.

It is what two stages are held against. Its mask is scored on the whole scan, for it may lie anywhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from metricunet.files.record import sha256
from metricunet.inference.locate import localise
from metricunet.inference.masks import box_of, keep_largest_piece, likeliest
from metricunet.inference.predictor import coarse_probabilities
from metricunet.study.data import ScoredCase
from metricunet.study.score import ScoredCut
from metricunet.study.stage_one import Cut, read_scan, trained_in
from metricunet.training.card import locate_card
from metricunet.training.fit import Located
from metricunet.training.run import Run
from metricunet.volume import Volume


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
    card = locate_card(run.config, run.classes)
    _, *shares = coarse_probabilities(located.network, card, image, run.config.precision)
    classes = classes_on(image, shares)
    keep_largest_piece(classes, run.target)
    values = np.array([0, *run.labels.values()], dtype=np.uint8)[classes]
    found = localise(shares[run.target - 1])
    files = [case.image, *case.references.values()]
    cut = Cut(case.name, image, references, found, sha256(files), case.not_contoured)
    return ScoredCut(cut, values, run.labels, run.info.ignore)


def classes_on(image: Volume, shares: Sequence[Volume]) -> NDArray[np.uint8]:
    """Interpolate probabilities onto a scan's grid, and return the likeliest class of each of its voxels.

    Args:
        image: of the grid, whose axes are the shares'.
        shares: probability of each class but the background, on a grid of their own.
    """
    classes = np.zeros(image.geometry.shape, dtype=np.uint8)
    coarse = shares[0].geometry
    box = box_of(likeliest(np.stack([share.array for share in shares])) > 0)
    if box is None:
        return classes
    # Interpolation is linear, so a class wins near where it wins on the shares' grid and nowhere else; two voxels
    # are room enough, for voxels of a scan that are thicker than those.
    corners = coarse.to_world(np.array([[s.start - 2 for s in box], [s.stop + 1 for s in box]], dtype=np.float64))
    low, high = image.geometry.to_index(corners)
    first = np.clip(np.floor(low), 0, np.array(image.geometry.shape) - 1).astype(int)
    last = np.clip(np.ceil(high), first, np.array(image.geometry.shape) - 1).astype(int)
    part = image.geometry.crop(first.tolist(), (last - first + 1).tolist())
    fine = np.empty((len(shares), *part.shape), dtype=np.float32)
    for k, share in enumerate(shares):
        fine[k] = share.resample(part).array
    classes[tuple(slice(a, b + 1) for a, b in zip(first, last, strict=True))] = likeliest(fine)
    return classes
