"""The two-stage predictor: holds the loaded models; maps a scan to a label map on the scan's own grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metricunet.cohort.prepare import AIR_HU
from metricunet.errors import InputError
from metricunet.files.model import ModelCard, StageCard, read_model
from metricunet.inference.boundary import BoundaryConfidence, ClassField, boundary_confidence
from metricunet.inference.locate import Localisation, class_probabilities, localise
from metricunet.inference.masks import keep_largest_piece, likeliest
from metricunet.inference.segment import crop_probabilities
from metricunet.networks import Network, build_network
from metricunet.networks.device import pick_device
from metricunet.networks.feeding import Precision
from metricunet.volume import FloatArray, Geometry, Volume


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A model file, ready to compute."""

    card: ModelCard
    locate: Network
    segment: Network


@dataclass(frozen=True, eq=False)
class Prediction:
    """What the predictor makes of a scan.

    Attributes:
        localisation: what stage 1 found.
        labels: uint8 label values on the scan's own grid; None where the target is absent.
        region: the part of the labels that stage 2 looked at, where alone they can differ from 0; its axes run to
            the head, the back and the left.
        touches_crop: the target reaches the outermost voxels of stage 2's crop.
        removed_ml: volume of the target's smaller pieces, which are left out of the labels.
        boundary: how far the target's boundary is expected to be off; None where there is no target.
    """

    localisation: Localisation
    labels: Volume | None
    region: Volume | None = None
    touches_crop: bool = False
    removed_ml: float = 0.0
    boundary: BoundaryConfidence | None = None


def load_model(path: Path, device: torch.device) -> LoadedModel:
    """Read a model file and build its networks.

    Raises:
        InputError: not a model file, of a newer format, damaged, or its weights do not fit its card.
    """
    card, weights = read_model(path)
    networks = []
    for stage in ("locate", "segment"):
        own = {k.removeprefix(f"{stage}."): v for k, v in weights.items() if k.startswith(f"{stage}.")}
        networks.append(_build(path, stage, getattr(card, stage).network, own).to(device).eval())
    return LoadedModel(card, networks[0], networks[1])


def _build(path: Path, stage: str, arguments: dict[str, Any], weights: dict[str, Tensor]) -> Network:
    try:
        network = build_network(**arguments)
        network.load_state_dict(weights)
    except (TypeError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"{path}: the weights of stage {stage} do not fit its card ({reason}); copy it again"
        ) from error
    return network


class Predictor:
    """Segments scans with one model, or with the mean probabilities of several.

    Args:
        models: model files; all must name the same structures and target.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        precision: `auto`, `bf16` or `fp32`.
    """

    def __init__(self, models: Sequence[Path], device: str = "auto", precision: Precision = "auto") -> None:
        try:
            self.device = pick_device(device)
        except ValueError as error:
            raise InputError(str(error)) from error
        self.precision = precision
        self.models = [load_model(path, self.device) for path in models]
        first = self.models[0].card
        for path, model in zip(models, self.models, strict=True):
            if (model.card.labels, model.card.target) != (first.labels, first.target):
                raise InputError(
                    f"{path}: segments {model.card.labels} around {model.card.target}, the first model "
                    f"{first.labels} around {first.target}; only models of the same structures can be averaged"
                )

    @property
    def card(self) -> ModelCard:
        """The first model's card."""
        return self.models[0].card

    @property
    def synthetic(self) -> bool:
        """Whether any of the models has seen phantoms only."""
        return any(model.card.synthetic for model in self.models)

    def range_of(self, quantity: str) -> tuple[float, float] | None:
        """Return the smallest and largest value that any of the models has seen in training."""
        ranges = [m.card.ranges[quantity] for m in self.models if quantity in m.card.ranges]
        return (min(r[0] for r in ranges), max(r[1] for r in ranges)) if ranges else None

    def predict(self, scan: Volume) -> Prediction:
        """Segment a scan in HU, on any grid."""
        return self.segment(scan, self.locate(scan))

    def locate(self, scan: Volume) -> Localisation:
        """Find the target in a scan in HU: stage 1."""
        return localise(self._coarse_probability(scan.canonical()), self.range_of("volume_ml"))

    def segment(self, scan: Volume, found: Localisation) -> Prediction:
        """Segment a scan around what was found: stage 2. A part of it that holds the crop and a margin will do."""
        image = scan.canonical()
        if found.centre_mm is None:
            return Prediction(found, None)
        box, start = self._box(image.geometry, found.centre_mm)
        fields = [self._fine_field(model, image, found.centre_mm) for model in self.models]
        shares = np.mean([field.read_on(box)[1:] for field in fields], axis=0)
        return self._paste(scan, image, shares, start, found, box, fields)

    def _coarse_probability(self, image: Volume) -> Volume:
        """Mean probability of the target on the first model's coarse grid."""
        target = list(self.card.labels).index(self.card.target) + 1
        mean: Volume | None = None
        for model in self.models:
            own = coarse_probability(model.locate, model.card.locate, image, target, self.precision)
            own = own.with_array(own.array / len(self.models))
            mean = own if mean is None else mean.with_array(mean.array + own.resample(mean.geometry).array)
        assert mean is not None
        return mean

    def _box(self, geometry: Geometry, centre_mm: FloatArray) -> tuple[Geometry, tuple[int, int, int]]:
        """Return the part of the scan's grid that the crops of all models cover, and its first voxel."""
        low, high = np.full(3, np.inf), np.full(3, -np.inf)
        for model in self.models:
            stage = model.card.segment
            assert stage.crop_voxels is not None
            half = (
                np.asarray(stage.crop_voxels) * np.asarray(stage.spacing_mm) / 2 / np.asarray(geometry.spacing_mm)
            )
            middle = geometry.to_index(centre_mm)
            low, high = np.minimum(low, middle - half), np.maximum(high, middle + half)
        first = np.clip(np.ceil(low), 0, np.asarray(geometry.shape) - 1).astype(int)
        last = np.clip(np.floor(high), first, np.asarray(geometry.shape) - 1).astype(int)
        start = (int(first[0]), int(first[1]), int(first[2]))
        return geometry.crop(start, (last - first + 1).tolist()), start

    def _fine_field(self, model: LoadedModel, image: Volume, centre_mm: FloatArray) -> ClassField:
        """Return the probabilities of all classes on stage 2's own grid."""
        stage = model.card.segment
        assert stage.crop_voxels is not None
        grid = image.geometry.box_around(centre_mm, stage.crop_voxels, stage.spacing_mm)
        crop = torch.from_numpy(image.resample(grid, fill=AIR_HU).array).to(self.device)
        probabilities = crop_probabilities(
            model.segment, crop, stage.hu_window, stage.input_slices, self.precision
        )
        return ClassField(probabilities.cpu().numpy(), grid)

    def _paste(
        self,
        scan: Volume,
        image: Volume,
        shares: NDArray[np.float32],
        start: tuple[int, int, int],
        found: Localisation,
        box: Geometry,
        fields: Sequence[ClassField],
    ) -> Prediction:
        classes = likeliest(shares)
        target = list(self.card.labels).index(self.card.target) + 1
        removed = keep_largest_piece(classes, target)
        kind = np.uint8 if max(self.card.labels.values()) <= 255 else np.uint16
        region = Volume(np.array([0, *self.card.labels.values()], dtype=kind)[classes], box)
        labels = np.zeros(image.geometry.shape, dtype=kind)
        labels[tuple(slice(first, first + n) for first, n in zip(start, box.shape, strict=True))] = region.array
        touches = _touches_inner_face(classes == target, start, image.geometry.shape)
        return Prediction(
            found,
            image.with_array(labels).reordered_like(scan.geometry),
            region,
            touches,
            removed * box.voxel_volume_ml,
            boundary_confidence(
                fields, [m.card.calibration for m in self.models], target, Volume(classes == target, box)
            ),
        )


def coarse_probability(
    network: Network, stage: StageCard, image: Volume, target: int, precision: Precision = "auto"
) -> Volume:
    """Run stage 1 over a scan.

    Args:
        network: of stage 1, in evaluation mode.
        stage: its card.
        image: HU; axes to the head, the back and the left.
        target: class of the target.
        precision: to compute in.

    Returns:
        Probability of the target on the coarse grid.
    """
    coarse = image.resample(image.geometry.with_spacing(stage.spacing_mm), fill=AIR_HU)
    device = next(network.parameters()).device
    voxels = torch.from_numpy(coarse.array).to(device)
    probabilities = class_probabilities(network, voxels, stage.hu_window, network.divisor, precision)
    return coarse.with_array(probabilities[target].cpu().numpy())


def _touches_inner_face(mask: NDArray[np.bool_], start: Sequence[int], field: Sequence[int]) -> bool:
    """Tell whether the mask reaches a face of the crop that is not also the edge of the scan."""
    for axis in range(3):
        first, last = mask.take(0, axis).any(), mask.take(-1, axis).any()
        if (first and start[axis] > 0) or (last and start[axis] + mask.shape[axis] < field[axis]):
            return True
    return False
