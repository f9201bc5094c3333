"""Scans whose target nobody contoured, in the training of stage 2: where they lie, and batches with them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Generator

from metricunet.cohort.layout import Case, DatasetInfo
from metricunet.cohort.prepare import PreparedCase, PrepareSettings, prepare_located
from metricunet.errors import InputError
from metricunet.files.atomic import write_json
from metricunet.networks import Network
from metricunet.stages.forward import class_probabilities
from metricunet.stages.locate import localise
from metricunet.stages.network_input import normalise_hu
from metricunet.training.batches import Batch, SegmentBatches
from metricunet.training.config import TrainConfig

#: In the run folder: which of these scans are used, and why the others are not.
USED_NAME = "uncontoured.json"


@dataclass(frozen=True, eq=False)
class UncontouredScans:
    """Scans whose target nobody contoured, before stage 1 has located it.

    Attributes:
        cases: the scans.
        prepared: what stage 1 reads of each; their fine boxes are yet to be placed.
        settings: the settings that they are prepared with.
        cache: folder of prepared cases.
    """

    cases: Sequence[Case]
    prepared: Sequence[PreparedCase]
    settings: PrepareSettings
    cache: Path

    def located(
        self, network: Network, config: TrainConfig, info: DatasetInfo, target: int, folder: Path
    ) -> list[PreparedCase]:
        """Place the fine boxes by stage 1. Scans in which it finds nothing are left out, and named.

        Args:
            network: network of stage 1, in evaluation mode.
            config: configuration of the training.
            info: what dataset.json says.
            target: class of the target.
            folder: run folder, where `uncontoured.json` is left.

        Raises:
            InputError: stage 1 finds nothing in any of them.
        """
        device = next(network.parameters()).device
        found, left_out = list[PreparedCase](), dict[str, str]()
        for case, prepared in zip(self.cases, self.prepared, strict=True):
            coarse = torch.from_numpy(prepared.coarse.array).to(device)
            shares = class_probabilities(network, coarse, config.locate.hu_window, config.precision)
            place = localise(prepared.coarse.with_array(shares[target].cpu().numpy()))
            if place.centre_mm is None:
                left_out[case.name] = place.reason
            else:
                found.append(prepare_located(case, prepared, info, self.settings, place, self.cache))
        if not (folder / USED_NAME).exists():
            write_json(folder / USED_NAME, {"used": [case.name for case in found], "left_out": left_out})
        if not found:
            raise InputError(
                f"{folder}: stage 1 finds the {config.target} in none of the {len(self.cases)} scans without "
                "contours, so nothing could be learned from them; train without them (teacher.share 0), or train "
                "stage 1 on more contoured scans"
            )
        if left_out:
            logging.getLogger(__name__).warning(
                "%d of %d scans without contours are left out, for stage 1 finds nothing in them: %s",
                len(left_out),
                len(self.cases),
                ", ".join(left_out),
            )
        return found


def uncontoured_rows(config: TrainConfig) -> int:
    """Return how many images of a batch of stage 2 are of scans without contours: some, and not all.

    Raises:
        InputError: the batch is too small for both kinds.
    """
    share, size = config.teacher.share, config.segment.batch_size
    if share == 0:
        return 0
    if size < 2:
        raise InputError(
            f"setting segment.batch_size is {size}; with teacher.share {share:g} it must be 2 or more, for a "
            "batch holds images with contours and without"
        )
    return min(size - 1, max(1, round(share * size)))


class MixedBatches:
    """Batches of stage 2 of which the first images have contours, and the last have none.

    Args:
        contoured: batches of the contoured scans, as many images as these are to have.
        uncontoured: batches of the others.
    """

    def __init__(self, contoured: SegmentBatches, uncontoured: SegmentBatches) -> None:
        self.contoured, self.uncontoured = contoured, uncontoured

    def at_epoch(self, epoch: int) -> MixedBatches:
        """Return these: a cohort's cases are the same in every epoch."""
        return self

    def draw(self, generator: Generator) -> Batch:
        """Draw one batch, without waiting for the device."""
        known = self.contoured.draw(generator)
        hu, labels, _ = self.uncontoured.crops(generator)
        plain = normalise_hu(hu, self.uncontoured.config.hu_window)
        changed = self.uncontoured.changed(hu, generator)
        return Batch(torch.cat([known.images, changed]), torch.cat([known.labels, labels]), known.unknown, plain)
