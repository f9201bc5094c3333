"""What each stage is trained for: the loss of a batch, and the score of a validation case.

The losses of a segmentation come first, then the stages, which put them on what their networks say.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metricunet.cohort.prepare import BoxName, PreparedCase
from metricunet.metric import GradientShare, GraphedBranch, PatchMetricLoss
from metricunet.metric.gathering import counted_once, each_its_own, summed
from metricunet.networks import Network
from metricunet.stages.forward import class_probabilities, crop_probabilities
from metricunet.stages.network_input import autocast, pick_precision
from metricunet.stages.segment import segment_spec
from metricunet.structures import IGNORE_CLASS
from metricunet.training.batches import Batch, update_generator
from metricunet.training.branch import PatchBatches, build_metric
from metricunet.training.config import BoxConfig, LocateConfig, SegmentConfig, TrainConfig
from metricunet.training.partial_labels import certain_labels, merge_unknown
from metricunet.training.teacher import Teacher, has_teacher, pseudo_labels, rise, squared_difference

LOCATE_STAGE, SEGMENT_STAGE = 0, 1
#: The patches of the offline baseline draw from a stream of their own, so that the crops stay those of other arms.
PATCH_STREAM = 1 << 20
#: The organs' network draws from a stream that no other seed's stages have either.
ORGANS_STREAM = 3 << 20
#: This many voxels keep the soft Dice of an absent class defined.
SMOOTH = 1.0


def soft_dice_loss(logits: Tensor, labels: Tensor, ignore_index: int = 255, count_absent: bool = True) -> Tensor:
    """Return 1 minus the soft Dice, the mean over the classes but the background; sums run over the whole batch.

    The Dice of a class that no image of the batch holds is nearly 0 wherever a little of it is found, and its
    slope is steepest where that is least: it rewards a network for never finding the class. Where many images
    hold nothing, leave such classes out (`count_absent=False`); cross-entropy still asks for silence there.

    Dice = (2 sum p t + s) / (sum p + sum t + s), Milletari, Navab, Ahmadi: V-Net (3DV 2016), unsquared.

    Args:
        logits: [batch, classes, *space].
        labels: [batch, *space], integers.
        ignore_index: label of voxels that do not count.
        count_absent: whether classes that the batch does not hold count, too; with none that does, the loss is 0.
    """
    probabilities = logits.float().softmax(dim=1)
    counted = (labels != ignore_index).float()
    losses, counts = [], []
    for k in range(1, logits.shape[1]):
        p, t = probabilities[:, k] * counted, (labels == k).float()
        both, found, wanted = summed((p * t).sum(), p.sum(), t.sum())
        losses.append(1 - (2 * both + SMOOTH) / (found + wanted + SMOOTH))
        counts.append(wanted > 0)
    if count_absent:
        return torch.stack(losses).mean()
    held = torch.stack(counts).float()
    return (torch.stack(losses) * held).sum() / held.sum().clamp(min=1)


def segmentation_loss(
    logits: Tensor,
    labels: Tensor,
    dice_weight: float,
    cross_entropy_weight: float,
    ignore_index: int = 255,
    unknown: Tensor | None = None,
    count_absent: bool = True,
) -> Tensor:
    """Return the weighted sum of soft Dice loss and mean cross-entropy; a weight of 0 leaves a loss out.

    Args:
        logits: [batch, classes, *space].
        labels: [batch, *space], integers.
        dice_weight: weight of the soft Dice loss.
        cross_entropy_weight: weight of the mean cross-entropy.
        ignore_index: label of voxels that do not count.
        unknown: [batch, classes], bool: classes that were not contoured in an image. There they count as part of
            the background, and the image does not count for their Dice.
        count_absent: as of `soft_dice_loss`.
    """
    logits = merge_unknown(logits, unknown)
    loss = logits.sum() * 0.0
    if dice_weight:
        loss = loss + dice_weight * soft_dice_loss(logits, labels, ignore_index, count_absent)
    if cross_entropy_weight:
        entropy = F.cross_entropy(logits.float(), labels.long(), ignore_index=ignore_index, reduction="sum")
        entropy, count = summed(entropy, (labels != ignore_index).sum())
        loss = loss + cross_entropy_weight * entropy / count.clamp(min=1)
    return loss


class StageModule(nn.Module):
    """What all stages share.

    Args:
        network: the network to train.
        config: configuration of the training.
        cases: validation cases.

    Attributes:
        stage: name of the stage.
        stream: number of the stream of random numbers of its updates.
        settings: the stage's section of the configuration.
    """

    stage: str
    stream: int
    settings: LocateConfig | BoxConfig

    def __init__(self, network: Network, config: TrainConfig, cases: Sequence[PreparedCase]) -> None:
        super().__init__()
        self.network = network
        self.config = config
        self.validation_cases = list(cases)

    @property
    def device(self) -> torch.device:
        """Device that the network is on."""
        return next(self.parameters()).device

    @property
    def updates(self) -> int:
        """Number of updates in all."""
        return self.settings.epochs * self.settings.updates_per_epoch

    def forward(self, batch: Batch, update: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of a batch and the scalars for the log."""
        raise NotImplementedError

    def score(self, case: PreparedCase) -> float | None:
        """Return the Dice of a validation case; None where there is nothing to find and nothing found."""
        raise NotImplementedError

    def _autocast(self) -> AbstractContextManager[object]:
        return autocast(pick_precision(self.config.precision, self.device), self.device)


class LocateModule(StageModule):
    """Stage 1: Dice and cross-entropy on coarse patches.

    Args:
        network: the 3D U-Net.
        config: configuration of the training.
        cases: validation cases.
        target: class of the target.
    """

    stage, stream = "locate", LOCATE_STAGE

    def __init__(self, network: Network, config: TrainConfig, cases: Sequence[PreparedCase], target: int) -> None:
        super().__init__(network, config, cases)
        self.settings = config.locate
        self.target = target

    def forward(self, batch: Batch, update: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of a batch and the scalars for the log."""
        with self._autocast():
            logits = self.network(batch.images)
        counted = self.settings.dice_of_absent == "counted"
        return segmentation_loss(logits, batch.labels, 1.0, 1.0, IGNORE_CLASS, batch.unknown, counted), {}

    def score(self, case: PreparedCase) -> float | None:
        """Return the target's Dice on the whole coarse scan; None where it was not contoured."""
        if self.target in case.staged_unknown:
            return None
        coarse = torch.from_numpy(case.coarse.array).to(self.device)
        labels = torch.from_numpy(case.coarse_labels.array).to(self.device)
        probabilities = class_probabilities(
            self.network, coarse, self.config.locate.hu_window, self.config.precision
        )
        return dice(probabilities.argmax(dim=0) == self.target, labels == self.target, labels != IGNORE_CLASS)


class BoxModule(StageModule):
    """A network on a box around the target: Dice and cross-entropy.

    Args:
        network: the network.
        config: configuration of the training.
        settings: the network's section of it.
        cases: validation cases; those without the box are passed over.
        classes: number of classes, background included.

    Attributes:
        box: name of the box that it reads.
    """

    box: BoxName
    settings: BoxConfig

    def __init__(
        self,
        network: Network,
        config: TrainConfig,
        settings: BoxConfig,
        cases: Sequence[PreparedCase],
        classes: int,
    ) -> None:
        super().__init__(network, config, [case for case in cases if case.box(self.box) is not None])
        self.settings = settings
        self.classes = classes

    @property
    def judged(self) -> Network:
        """The network that is validated and written."""
        return self.network

    def forward(self, batch: Batch, update: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of a batch and the scalars for the log."""
        with self._autocast():
            logits = self.network(batch.images)
        return self._segmentation(logits, batch.labels, batch.unknown), {}

    def _segmentation(self, logits: Tensor, labels: Tensor, unknown: Tensor | None) -> Tensor:
        """Return the loss of the segmentation, as it is weighed in this training."""
        weights = self.settings.dice_weight, self.settings.cross_entropy_weight
        counted = self.settings.dice_of_absent == "counted"
        return segmentation_loss(logits, labels, *weights, IGNORE_CLASS, unknown, counted)

    def score(self, case: PreparedCase) -> float | None:
        """Return the mean Dice of the structures that were contoured, in the crop around the true centre."""
        spec = segment_spec(self.settings, self.classes)
        crop = case.central_crop(spec.crop_voxels, self.box)
        assert crop is not None
        hu, labels = (torch.from_numpy(v.array).to(self.device) for v in (crop.hu, crop.labels))
        found = crop_probabilities(self.judged, spec, hu, self.config.precision).argmax(dim=0)
        known = (k for k in range(1, self.classes) if k not in crop.unknown)
        scores = [dice(found == k, labels == k, labels != IGNORE_CLASS) for k in known]
        present = [s for s in scores if s is not None]
        return sum(present) / len(present) if present else None


class OrgansModule(BoxModule):
    """The organs' network; it has no metric branch.

    Args:
        network: the network.
        config: configuration of the training.
        cases: validation cases; those without the box are passed over.
        classes: number of classes, background included.
    """

    stage, stream, box = "organs", ORGANS_STREAM, "organs"

    def __init__(self, network: Network, config: TrainConfig, cases: Sequence[PreparedCase], classes: int) -> None:
        super().__init__(network, config, config.organs, cases, classes)


class SegmentModule(BoxModule):
    """Stage 2: Dice and cross-entropy, and the voxel-metric branch on the decoder's maps.

    Args:
        network: the network of stage 2.
        config: configuration of the training.
        cases: validation cases; those without a fine box are passed over.
        classes: number of classes, background included.
        patches: the patches of the offline baseline, where the configuration asks for it.
    """

    stage, stream, box = "segment", SEGMENT_STAGE, "fine"
    settings: SegmentConfig

    def __init__(
        self,
        network: Network,
        config: TrainConfig,
        cases: Sequence[PreparedCase],
        classes: int,
        patches: PatchBatches | None = None,
    ) -> None:
        super().__init__(network, config, config.segment, cases, classes)
        self.metric = build_metric(network, config, classes)
        self._on_voxels: GraphedBranch | None = None
        self.share: GradientShare | None = None
        if self.metric is not None and not isinstance(self.metric, PatchMetricLoss):
            self._on_voxels = GraphedBranch(self.metric)
            if config.metric.weight_as == "gradient_share":
                self.share = GradientShare(config.metric.weight)
        self.patches = patches
        self.teacher = Teacher(network, config.teacher) if has_teacher(config.teacher) else None

    @property
    def judged(self) -> Network:
        """The network that is validated and written: the one that is trained, or its teacher."""
        if self.teacher is not None and self.config.teacher.final == "teacher":
            return self.teacher.network
        return self.network

    def forward(self, batch: Batch, update: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of a batch and the scalars for the log."""
        metric = self.config.metric
        if self.teacher is not None:
            self.teacher.follow(self.network, update)
        with self._autocast():
            logits, maps, _ = self.network.forward_with_maps(batch.images)
        if batch.plain is None:
            loss, facts = self._segmentation(logits, batch.labels, batch.unknown), dict[str, Tensor]()
            labels = certain_labels(batch.labels, batch.unknown)
        else:
            loss, facts, labels = self._with_uncontoured(logits, batch, batch.plain, update)
        if self.metric is None:
            return loss, facts
        height = min(1.0, update / metric.warm_up_updates) if metric.warm_up_updates else 1.0
        facts = {"segmentation": loss.detach(), **facts}
        weight: float | Tensor = metric.weight * height
        if self.share is not None:
            weight = self.share.weight(height)
            maps = self._watched(maps, weight)
            facts["metric_weight"] = weight
        branch, found = self._branch_loss(maps, logits, labels, batch, update)
        return loss + weight * branch, facts | found

    def _with_uncontoured(
        self, logits: Tensor, batch: Batch, plain: Tensor, update: int
    ) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """Return the loss of a batch whose last images are uncontoured, scalars, and the labels that are sure."""
        assert self.teacher is not None
        settings, known = self.config.teacher, batch.contoured
        with self._autocast():
            taught = self.teacher.probabilities(plain)
        pseudo = pseudo_labels(taught, batch.labels[known:], settings)
        if settings.loss == "squared":
            consistency = squared_difference(logits[known:], taught, batch.labels[known:])
        else:
            consistency = self._segmentation(logits[known:], pseudo, None)
        loss = self._segmentation(logits[:known], batch.labels[:known], batch.unknown)
        loss = loss + settings.weight * rise(update, settings.ramp_updates) * consistency
        # What was contoured of other structures the teacher is not asked for.
        sure = (batch.labels[known:] == IGNORE_CLASS) & (pseudo != IGNORE_CLASS)
        facts = {
            "consistency": consistency.detach(),
            "confident_voxels": sure.float().mean(),
            "pseudo_structures": (sure & (pseudo > 0)).float().mean(),
        }
        return loss, facts, torch.cat([certain_labels(batch.labels[:known], batch.unknown), pseudo])

    def _watched(self, maps: Sequence[Tensor], weight: Tensor) -> list[Tensor]:
        """Return the maps, those that the branch reads such that its gradient is measured."""
        assert self.share is not None
        taps = self.config.metric.taps
        watched = dict(zip(taps, self.share.watched([maps[tap] for tap in taps], weight), strict=True))
        return [watched.get(number, one) for number, one in enumerate(maps)]

    def _branch_loss(
        self, maps: Sequence[Tensor], logits: Tensor, labels: Tensor, batch: Batch, update: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the branch's unweighted loss and its scalars for the log."""
        settings = self.config
        with self._autocast():
            if isinstance(self.metric, PatchMetricLoss):
                assert self.patches is not None
                generator = update_generator(settings.seed, PATCH_STREAM, update, self.device)
                # Every process sees all patches, which are few.
                with each_its_own():
                    patches = self.patches.draw(update, generator)
                    out = self.metric(self.network.encode(patches)[-1])
                out = out._replace(loss=counted_once(out.loss))
            else:
                assert self._on_voxels is not None
                taps = [maps[tap] for tap in settings.metric.taps]
                spacing_mm = settings.segment.spacing_mm[-self.network.spatial_dims :]
                middle = batch.images[:, batch.images.shape[1] // 2]
                image = middle if settings.metric.background == "hu" else None
                contoured = None if batch.plain is None else batch.contoured
                out = self._on_voxels(taps, labels, logits, spacing_mm, image, contoured)
        return out.loss, {**{name: part.detach() for name, part in out.parts.items()}, **out.statistics}


def dice(found: Tensor, wanted: Tensor, counted: Tensor | None = None) -> float | None:
    """Return the Dice of two masks; None where both are empty.

    Args:
        found: bool, any shape.
        wanted: bool, shaped alike.
        counted: bool, shaped alike: the voxels that count; None: all.
    """
    if counted is not None:
        found, wanted = found & counted, wanted & counted
    total = int(found.sum()) + int(wanted.sum())
    return 2 * int((found & wanted).sum()) / total if total else None
