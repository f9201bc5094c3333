"""The two stages as Lightning modules: one update, one validation case."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import lightning
import torch
from torch import Tensor

from metricunet.cohort.prepare import IGNORE_CLASS, PreparedCase
from metricunet.metric import GraphedBranch, PatchMetricLoss
from metricunet.networks import Network
from metricunet.stages.locate import class_probabilities
from metricunet.stages.network_input import autocast, pick_precision
from metricunet.stages.segment import crop_probabilities, segment_spec
from metricunet.training.batches import Batch, LocateBatches, SegmentBatches, update_generator
from metricunet.training.branch import PatchBatches, build_metric
from metricunet.training.config import TrainConfig
from metricunet.training.objectives import segmentation_loss
from metricunet.training.partial_labels import certain_labels

LOCATE_STAGE, SEGMENT_STAGE = 0, 1
#: The patches of the offline baseline draw from a stream of their own, so that the crops stay those of other arms.
PATCH_STREAM = 1 << 20
WARM_UP_UPDATES = 50
WEIGHT_DECAY = 1e-2


class StageModule(lightning.LightningModule):
    """What both stages share: the seeded batch of an update, the optimiser, and the means for the log.

    Args:
        network: the network to train.
        config: of the training.
        stage: `LOCATE_STAGE` or `SEGMENT_STAGE`.
        learning_rate: at its height.
        updates: how many there will be in all.
    """

    def __init__(
        self, network: Network, config: TrainConfig, stage: int, learning_rate: float, updates: int
    ) -> None:
        super().__init__()
        self.network = network
        self.config = config
        self.stage = stage
        self.learning_rate = learning_rate
        self.updates = updates
        self.batches: LocateBatches | SegmentBatches | None = None
        self._sums: dict[str, Tensor] = {}
        self._count = 0
        self._scores: list[float] = []

    def training_step(self, batch: Any, index: int) -> Tensor:
        """Draw the batch of this update and return its loss. The loader's own batch is only a tick."""
        assert self.batches is not None
        update = self.global_step
        # The metric branch draws its voxels from torch's own generator: one seed for each update, too.
        torch.manual_seed((self.config.seed * 2 + self.stage) * 1_000_003 + update)
        drawn = self.batches.draw(update_generator(self.config.seed, self.stage, update, self.batches.device))
        loss, facts = self.loss(drawn, update)
        for name, value in {"loss": loss.detach(), **facts}.items():
            self._sums[name] = self._sums.get(name, torch.zeros((), device=loss.device)) + value
        self._count += 1
        return loss

    def loss(self, batch: Batch, update: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of a batch and the scalars for the log."""
        raise NotImplementedError

    def epoch_means(self) -> dict[str, float]:
        """Return the means of the epoch so far, and start anew."""
        means = {name: float(value / self._count) for name, value in self._sums.items()}
        self._sums, self._count = {}, 0
        return means

    def on_validation_epoch_end(self) -> None:
        """Log the mean Dice of the validation cases, by which the best weights are chosen."""
        if self._scores:
            self.log("val_dice", sum(self._scores) / len(self._scores))
        self._scores = []

    def configure_optimizers(self) -> Any:
        """AdamW; the rate rises over the first updates and falls as a cosine to zero."""
        optimizer = torch.optim.AdamW(self.parameters(), self.learning_rate, weight_decay=WEIGHT_DECAY, fused=True)
        warm_up = min(WARM_UP_UPDATES, max(1, self.updates // 10))

        def factor(update: int) -> float:
            if update < warm_up:
                return (update + 1) / warm_up
            return 0.5 * (1 + math.cos(math.pi * min(1.0, (update - warm_up) / max(1, self.updates - warm_up))))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _autocast(self) -> Any:
        return autocast(pick_precision(self.config.precision, self.device), self.device)


class LocateModule(StageModule):
    """Stage 1: Dice and cross-entropy on coarse patches.

    Args:
        network: the 3D U-Net.
        config: of the training.
        cases: validation cases.
        target: class of the target.
    """

    def __init__(self, network: Network, config: TrainConfig, cases: Sequence[PreparedCase], target: int) -> None:
        stage = config.locate
        super().__init__(
            network, config, LOCATE_STAGE, stage.learning_rate, stage.epochs * stage.updates_per_epoch
        )
        self.validation_cases = cases
        self.target = target

    def loss(self, batch: Batch, update: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of a batch and the scalars for the log."""
        with self._autocast():
            logits = self.network(batch.images)
        return segmentation_loss(logits, batch.labels, 1.0, 1.0, IGNORE_CLASS, batch.unknown), {}

    def validation_step(self, batch: Any, index: int) -> None:
        """Score the target on one whole coarse scan, if it was contoured there."""
        case = self.validation_cases[index]
        if self.target in case.unknown:
            return
        coarse = torch.from_numpy(case.coarse.array).to(self.device)
        labels = torch.from_numpy(case.coarse_labels.array).to(self.device)
        probabilities = class_probabilities(
            self.network, coarse, self.config.locate.hu_window, self.config.precision
        )
        score = dice(probabilities.argmax(dim=0) == self.target, labels == self.target)
        if score is not None:
            self._scores.append(score)


class SegmentModule(StageModule):
    """Stage 2: Dice and cross-entropy, and the voxel-metric branch on the decoder's maps.

    Args:
        network: of stage 2.
        config: of the training.
        cases: validation cases; those without a fine box are passed over.
        classes: background included.
    """

    def __init__(self, network: Network, config: TrainConfig, cases: Sequence[PreparedCase], classes: int) -> None:
        stage = config.segment
        super().__init__(
            network, config, SEGMENT_STAGE, stage.learning_rate, stage.epochs * stage.updates_per_epoch
        )
        self.validation_cases = [case for case in cases if case.fine is not None]
        self.classes = classes
        self.metric = build_metric(network, config, classes)
        self._on_voxels: GraphedBranch | None = None
        if self.metric is not None and not isinstance(self.metric, PatchMetricLoss):
            self._on_voxels = GraphedBranch(self.metric)
        self.patches: PatchBatches | None = None

    def loss(self, batch: Batch, update: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of a batch and the scalars for the log."""
        settings = self.config
        with self._autocast():
            logits, maps, _ = self.network.forward_with_maps(batch.images)
        loss = segmentation_loss(
            logits,
            batch.labels,
            settings.segment.dice_weight,
            settings.segment.cross_entropy_weight,
            IGNORE_CLASS,
            batch.unknown,
        )
        if self.metric is None:
            return loss, {}
        branch, facts = self._branch_loss(maps, logits, certain_labels(batch.labels, batch.unknown), update)
        rise = min(1.0, update / settings.metric.warm_up_updates) if settings.metric.warm_up_updates else 1.0
        return loss + settings.metric.weight * rise * branch, {"segmentation": loss.detach(), **facts}

    def _branch_loss(
        self, maps: Sequence[Tensor], logits: Tensor, labels: Tensor, update: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the branch's unweighted loss and its scalars for the log."""
        settings = self.config
        with self._autocast():
            if isinstance(self.metric, PatchMetricLoss):
                assert self.patches is not None
                generator = update_generator(settings.seed, PATCH_STREAM, update, self.device)
                patches = self.patches.draw(update, generator)
                out = self.metric(self.network.encode(patches)[-1])
            else:
                assert self._on_voxels is not None
                taps = [maps[tap] for tap in settings.metric.taps]
                spacing_mm = settings.segment.spacing_mm[-self.network.spatial_dims :]
                out = self._on_voxels(taps, labels, logits, spacing_mm)
        return out.loss, {**{name: part.detach() for name, part in out.parts.items()}, **out.statistics}

    def validation_step(self, batch: Any, index: int) -> None:
        """Score every structure that was contoured, in the crop around one case's true centre."""
        case = self.validation_cases[index]
        spec = segment_spec(self.config.segment, self.classes)
        crop = case.central_crop(spec.crop_voxels)
        assert crop is not None
        hu, labels = (torch.from_numpy(v.array).to(self.device) for v in crop)
        found = crop_probabilities(self.network, spec, hu, self.config.precision).argmax(dim=0)
        known = (k for k in range(1, self.classes) if k not in case.unknown)
        scores = [dice(found == k, labels == k) for k in known]
        present = [s for s in scores if s is not None]
        if present:
            self._scores.append(sum(present) / len(present))


def dice(found: Tensor, wanted: Tensor) -> float | None:
    """Return the Dice of two masks; None where both are empty."""
    total = int(found.sum()) + int(wanted.sum())
    return 2 * int((found & wanted).sum()) / total if total else None
