"""The two stages around whatever computes the networks: from a scan to a label map on the scan's own grid.

Stage 1 locates the target, stage 2 segments it and what lies close to it. Where the models have an organs'
network, it looks at a larger box around the same centre, and its structures take what stage 2's leave: the target
is what it is without them. All of this is numpy; the networks are behind `StageModel`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from metricunet.errors import InputError
from metricunet.files.model import ModelCard
from metricunet.inference.reruns import next_view
from metricunet.quality.boundary import ClassField, boundary_confidence, mean_read_on
from metricunet.quality.masks import Touched, face_names, inner_faces, reached_faces
from metricunet.quality.prediction import Crop, EnsembleCard, OrgansPart, Prediction, structure_masks
from metricunet.stages.classes import Pieces, keep_largest_piece, likeliest
from metricunet.stages.locate import Localisation, localise, read_coarse
from metricunet.stages.segment import View, covered_part, read_field
from metricunet.structures import values_of
from metricunet.volume import Geometry, Volume

Stage = Literal["locate", "segment", "organs"]
#: Slices of a scan on which the organs are told apart at once: it takes a float for each voxel and organ.
SLICES_AT_ONCE = 16


class StageModel(Protocol):
    """A model whose networks are ready to compute, by whatever library."""

    @property
    def card(self) -> ModelCard:
        """What the model says of itself."""

    def probabilities(self, stage: Stage, hu: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the probabilities of all classes, the background first.

        Args:
            stage: whose network computes; `organs` where the card has it.
            hu: [slice, row, column] on the stage's grid: for `locate` all of the coarse grid, else a field with
                no side shorter than the stage's crop.

        Returns:
            [classes, slice, row, column].
        """


@dataclass(frozen=True, eq=False)
class _SegmentedField:
    """What stage 2 makes of one field: classes and probabilities on the scan's grid, the target in one piece.

    `fields` are the probabilities of each model on its own grid.
    """

    view: View
    box: Geometry
    start: tuple[int, int, int]
    shares: NDArray[np.float32]
    classes: NDArray[np.uint8]
    target: NDArray[np.bool_]
    pieces: Pieces
    seen: Volume
    fields: tuple[ClassField, ...]


@dataclass(frozen=True, eq=False)
class _SegmentedOrgans:
    """What the organs' network makes of a scan: its part, and its classes there but where stage 2 has its own."""

    part: OrgansPart
    classes: NDArray[np.uint8]


class Segmenter:
    """Segments scans with one model, or with the mean probabilities of several.

    Args:
        paths: where the models were read, for messages.
        models: the models, in the same order; all must name the same structures, target and organs.
        device: that computes.
        reruns: how often stage 2 may look again, elsewhere or farther, where the target reaches its crop's edge.
        organs: whether the organs' network is wanted, where the models have one. Without it its structures are
            not segmented; all else is the same.

    Raises:
        InputError: models of different structures.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        models: Sequence[StageModel],
        device: object,
        reruns: int,
        organs: bool = True,
    ) -> None:
        self.models, self.device, self.reruns, self.organs = list(models), device, reruns, organs
        first = self.models[0].card
        for path, model in zip(paths, self.models, strict=True):
            if model.card.organs_structures != first.organs_structures:
                raise InputError(
                    f"{path}: its organs' network segments {_listed(model.card)}, the first model's "
                    f"{_listed(first)}; only models of the same structures can be averaged"
                )
            # A label's place is its class, so their order counts.
            if ([*model.card.labels.items()], model.card.target) != ([*first.labels.items()], first.target):
                raise InputError(
                    f"{path}: segments {model.card.labels} around {model.card.target}, the first model "
                    f"{first.labels} around {first.target}; only models of the same structures, in "
                    "the same order, can be averaged"
                )
        self.ensemble = EnsembleCard.of([model.card for model in self.models])

    @property
    def card(self) -> ModelCard:
        """What the first model says of itself; what all of them say together is `ensemble`."""
        return self.models[0].card

    def predict(self, scan: Volume) -> Prediction:
        """Segment a scan in HU, on any grid."""
        return self.segment(scan, self.locate(scan))

    def locate(self, scan: Volume) -> Localisation:
        """Find the target in a scan in HU: stage 1."""
        return localise(self._coarse_probability(scan.canonical()), self.ensemble.ranges.get("volume_ml"))

    def segment(self, scan: Volume, found: Localisation) -> Prediction:
        """Segment a scan around what was found: stage 2, and the organs' network where it is wanted.

        A part of the scan that holds the crop and a margin will do where nothing is run again.
        """
        image = scan.canonical()
        if found.centre_mm is None:
            return Prediction(self.ensemble, found, scan.geometry)
        view: View | None = View(found.centre_mm)
        crops: list[Crop] = []
        kept: _SegmentedField | None = None
        used = 0
        while view is not None:
            result = self._segment_field(image, view)
            touched = inner_faces(
                reached_faces(result.target), result.start, result.box.shape, image.geometry.shape
            )
            crops.append(_recorded(result, touched))
            if kept is None or result.target.any():
                kept, used = result, len(crops) - 1
                view = self._next(image.geometry, result, touched, len(crops))
            else:
                view = None  # from there the target is not seen at all: the crop before stays
        assert kept is not None
        crops[used] = replace(crops[used], used=True)
        if not kept.target.any():
            # What lies around a mistake of stage 1 is a mistake, too: no other structure is kept either.
            return Prediction(self.ensemble, found, scan.geometry, crops=tuple(crops))
        organs = None
        if self.organs and self.ensemble.organs_structures:
            organs = self._segment_organs(image, View(found.centre_mm), kept)
        return self._paste(scan, image, kept, organs, tuple(crops), found)

    def _next(self, geometry: Geometry, result: _SegmentedField, touched: Touched, looks: int) -> View | None:
        if looks > self.reruns or not face_names(touched):
            return None
        centroid = np.argwhere(result.target).mean(axis=0) + result.start
        return next_view(result.view, touched, centroid, geometry)

    def _coarse_probability(self, image: Volume) -> Volume:
        """Mean probability of the target on the first model's coarse grid."""
        mean: Volume | None = None
        for model in self.models:
            coarse = read_coarse(model.card.locate, image)
            share = model.probabilities("locate", coarse.array)[self.ensemble.target_class]
            own = coarse.with_array(share / len(self.models))
            mean = own if mean is None else mean.with_array(mean.array + own.resample(mean.geometry).array)
        assert mean is not None
        return mean

    def _segment_field(self, image: Volume, view: View) -> _SegmentedField:
        specs = [model.card.segment for model in self.models]
        box, start = covered_part(specs, image.geometry, view)
        seen = [read_field(spec, image, view) for spec in specs]
        fields = tuple(
            ClassField(model.probabilities("segment", hu.array), hu.geometry)
            for model, hu in zip(self.models, seen, strict=True)
        )
        shares = mean_read_on(fields, box)[1:]
        classes = likeliest(shares)
        target = self.ensemble.target_class
        pieces = keep_largest_piece(classes, target)
        return _SegmentedField(view, box, start, shares, classes, classes == target, pieces, seen[0], fields)

    def _segment_organs(self, image: Volume, view: View, result: _SegmentedField) -> _SegmentedOrgans:
        """Segment the organs where stage 2 has found none of its own structures, each in one piece."""
        fields, specs = [], []
        for model in self.models:
            spec = model.card.organs
            assert spec is not None
            hu = read_field(spec, image, view)
            fields.append(ClassField(model.probabilities("organs", hu.array), hu.geometry))
            specs.append(spec)
        box, start = covered_part(specs, image.geometry, view)
        names = self.ensemble.organs_structures
        part = OrgansPart(names, box, start, tuple(fields))
        classes = np.empty(box.shape, dtype=np.uint8)
        for first in range(0, box.shape[0], SLICES_AT_ONCE):
            slices = min(SLICES_AT_ONCE, box.shape[0] - first)
            shares = part.shares_on(box.crop((first, 0, 0), (slices, *box.shape[1:])))
            classes[first : first + slices] = likeliest(shares)
        offset = [first - begin for first, begin in zip(start, result.start, strict=True)]
        taken = Volume(result.classes, result.box).crop(offset, box.shape)
        classes[taken.array != 0] = 0
        pieces = {name: keep_largest_piece(classes, k) for k, name in enumerate(names, start=1)}
        return _SegmentedOrgans(replace(part, pieces={n: p for n, p in pieces.items() if p.count}), classes)

    def _paste(
        self,
        scan: Volume,
        image: Volume,
        result: _SegmentedField,
        organs: _SegmentedOrgans | None,
        crops: tuple[Crop, ...],
        found: Localisation,
    ) -> Prediction:
        card = self.ensemble
        region = Volume(values_of(result.classes, card.staged_labels), result.box)
        masks = structure_masks(result.classes, list(card.staged_labels), result.start)
        inside = _slices(result.start, result.box)
        if organs is None:
            labels = np.zeros(image.geometry.shape, dtype=region.array.dtype)
            labels[inside] = region.array
        else:
            names, part = card.organs_structures, organs.part
            values = values_of(organs.classes, {name: card.labels[name] for name in names})
            labels = np.zeros(image.geometry.shape, dtype=np.result_type(region.array, values))
            labels[_slices(part.start, part.geometry)] = values
            labels[inside] = np.where(region.array != 0, region.array, labels[inside])
            masks |= structure_masks(organs.classes, names, part.start)
            masks = {name: masks[name] for name in card.labels if name in masks}
        return Prediction(
            card=card,
            localisation=found,
            geometry=scan.geometry,
            labels=image.with_array(labels).reordered_like(scan.geometry),
            region=region,
            region_start=result.start,
            masks=masks,
            shares=result.shares,
            seen=result.seen,
            crops=crops,
            pieces=result.pieces.count,
            removed_ml=result.pieces.loose_voxels * result.box.voxel_volume_ml,
            boundary=boundary_confidence(
                result.fields,
                [model.card.calibration for model in self.models],
                card.target_class,
                Volume(result.target, result.box),
                image.geometry,
            ),
            organs=None if organs is None else organs.part,
        )


def _listed(card: ModelCard) -> str:
    return ", ".join(card.organs_structures) or "nothing"


def _slices(start: Sequence[int], part: Geometry) -> tuple[slice, ...]:
    """Return the voxels of a scan that are those of a part of its grid."""
    return tuple(slice(first, first + n) for first, n in zip(start, part.shape, strict=True))


def _recorded(result: _SegmentedField, touched: Touched) -> Crop:
    x, y, z = result.view.centre_mm.tolist()
    volume_ml = int(result.target.sum()) * result.box.voxel_volume_ml
    return Crop((x, y, z), result.box.extent_mm, face_names(touched), volume_ml)
