"""A prediction as a plain value: the masks of a scan, where they lie in it, and what the models say of themselves.

The predictor makes it. Verdicts, files and the Python interface take it, and need no network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from metricunet.cohort.names import standard_name
from metricunet.errors import InputError
from metricunet.files.model import ModelCard
from metricunet.quality.boundary import BoundaryConfidence, ClassField, looked_on
from metricunet.stages.classes import Box, Mask, Pieces
from metricunet.stages.locate import Localisation
from metricunet.structures import class_of, without
from metricunet.volume import Geometry, Shape, Volume


@dataclass(frozen=True)
class EnsembleCard:
    """What the cards of the models that a prediction averages say together. A single model is an ensemble of one.

    Attributes:
        labels: structure name to its value in label files, of all networks.
        tg263: structure name to its standard name in structure sets (AAPM TG-263).
        target: the structure that steers localisation and crop.
        ranges: smallest and largest value that any of the models has seen in training, by quantity.
        synthetic: whether the own training of any of the models saw synthetic scans only.
        held_back: why no verdict is better than `review`; empty where one may be. One such model is enough.
        organs_structures: structures of the organs' network, in the order of its classes; others are stage 2's.
    """

    labels: Mapping[str, int]
    tg263: Mapping[str, str]
    target: str
    ranges: Mapping[str, tuple[float, float]]
    synthetic: bool
    held_back: str = ""
    organs_structures: tuple[str, ...] = ()

    @classmethod
    def of(cls, cards: Sequence[ModelCard]) -> EnsembleCard:
        """Put the cards of models together that have the same labels, target and organs.

        Args:
            cards: at least one; names of structures are the first one's.
        """
        first = cards[0]
        quantities = dict.fromkeys(quantity for card in cards for quantity in card.ranges)
        seen = {q: [card.ranges[q] for card in cards if q in card.ranges] for q in quantities}
        return cls(
            labels=first.labels,
            # A card that was written when the standard name was not known says the structure's own.
            tg263={
                name: standard_name(name, {name: said} if said != name else {})
                for name, said in first.tg263.items()
            },
            target=first.target,
            ranges={q: (min(r[0] for r in ranges), max(r[1] for r in ranges)) for q, ranges in seen.items()},
            synthetic=any(card.synthetic for card in cards),
            held_back=next((card.held_back for card in cards if card.held_back), ""),
            organs_structures=first.organs_structures,
        )

    @property
    def staged_labels(self) -> dict[str, int]:
        """Structures of stage 2 and their values; its class k is the k-th entry, from 1."""
        return without(self.labels, self.organs_structures)

    @property
    def target_class(self) -> int:
        """Stage 2's class of the target."""
        return class_of(self.staged_labels, self.target)


@dataclass(frozen=True)
class Crop:
    """One field that stage 2 has segmented, as it is recorded.

    Attributes:
        centre_mm: LPS middle of the field.
        sides_mm: of the field inside the scan: head-foot, front-back, left-right.
        touched: the inner faces that the target reaches, by their names in `metricunet.quality.masks.FACES`.
        volume_ml: of the target.
        used: whether the mask is this one's.
    """

    centre_mm: tuple[float, float, float]
    sides_mm: tuple[float, float, float]
    touched: tuple[str, ...]
    volume_ml: float
    used: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return a plain dictionary, rounded."""
        return {
            "centre_mm": [round(v, 1) for v in self.centre_mm],
            "sides_mm": [round(v, 1) for v in self.sides_mm],
            "touched": list(self.touched),
            "volume_ml": round(self.volume_ml, 2),
            "used": self.used,
        }


@dataclass(frozen=True, eq=False)
class StructureMask:
    """The mask of one structure, on the smallest box of the scan that holds it. Axes are canonical.

    Attributes:
        array: bool [slice, row, column] of the box.
        start: the box's first voxel in the scan.
    """

    array: Mask
    start: Shape

    @property
    def box(self) -> Box:
        """The box as slices of the scan."""
        s, r, c = (slice(first, first + n) for first, n in zip(self.start, self.array.shape, strict=True))
        return s, r, c


@dataclass(frozen=True, eq=False)
class OrgansPart:
    """What the organs' network makes of a scan. Its probabilities are kept on its own grid, which is coarser.

    Attributes:
        structures: its structures, in the order of its classes.
        geometry: the part of the scan's grid that it looked at; axes are canonical.
        start: the part's first voxel in the scan.
        fields: probabilities of each model on its own grid.
        pieces: connected parts of each structure that was found, before all but the largest were left out.
    """

    structures: tuple[str, ...]
    geometry: Geometry
    start: Shape
    fields: tuple[ClassField, ...]
    pieces: Mapping[str, Pieces] = field(default_factory=dict)

    def shares_on(self, geometry: Geometry) -> NDArray[np.float32]:
        """Return the mean probabilities of its structures on a part of the scan's grid [structures, *part]."""
        return np.stack([self.share_on(geometry, k) for k in range(len(self.structures))])

    def share_on(self, geometry: Geometry, structure: int) -> NDArray[np.float32]:
        """Return the mean probability of one structure, by its place among them from 0, likewise [*part]."""
        read = [Volume(f.array[structure + 1], f.geometry).resample(geometry).array for f in self.fields]
        looked = looked_on([f.geometry for f in self.fields], geometry)
        models = np.float32(len(read)) if looked is None else looked
        return np.asarray(sum(read[1:], start=read[0]) / models, dtype=np.float32)


@dataclass(frozen=True, eq=False)
class Prediction:
    """What the predictor makes of a scan. Apart from `labels`, axes run to the head, the back and the left.

    Attributes:
        card: of the models that made it.
        localisation: what stage 1 found.
        geometry: of the scan.
        labels: label values on the scan's own grid, uint8 where they fit; None where the target was not found: by
            stage 1, or by stage 2 where stage 1 suspected it. Then no other structure is kept either.
        region: the label values of stage 2's structures on the part of the scan that it looked at.
        region_start: the region's first voxel in the scan.
        masks: of each structure that has a voxel, in the order of the card's labels.
        shares: probabilities [structures, *region] of all classes of stage 2 but the background, as they came out.
        seen: HU of the field as the first model's stage 2 saw it, on its own grid.
        crops: every field that stage 2 has segmented, in order; one of them is the one that was used.
        pieces: connected parts of the target, before all but the largest were left out of the labels.
        removed_ml: volume of the parts that were left out.
        boundary: how far the target's boundary is expected to be off; None where there is no target.
        organs: what the organs' network saw and said; None where there is no such network, or no target.
        chosen: the structures that labels and masks were reduced to, see `only`; empty where they are complete.
    """

    card: EnsembleCard
    localisation: Localisation
    geometry: Geometry
    labels: Volume | None = None
    region: Volume | None = None
    region_start: Shape = (0, 0, 0)
    masks: Mapping[str, StructureMask] = field(default_factory=dict)
    shares: NDArray[np.float32] | None = None
    seen: Volume | None = None
    crops: tuple[Crop, ...] = ()
    pieces: int = 0
    removed_ml: float = 0.0
    boundary: BoundaryConfidence | None = None
    organs: OrgansPart | None = None
    chosen: tuple[str, ...] = ()

    def __repr__(self) -> str:
        found = self.localisation
        return (
            f"Prediction({self.card.target} {found.status}, confidence {found.confidence:.2f}, "
            f"masks: {', '.join(self.masks) or 'none'})"
        )

    @property
    def structures(self) -> tuple[str, ...]:
        """The structures that it may hold masks of: those chosen, else all that the models segment."""
        return self.chosen or tuple(self.card.labels)

    def only(self, structures: Sequence[str]) -> Prediction:
        """Return the prediction with labels and masks of these structures alone. All else is as it was.

        Args:
            structures: names of structures of the card, at least one.
        """
        masks = {name: mask for name, mask in self.masks.items() if name in structures}
        labels = self.labels
        if labels is not None:
            values = [self.card.labels[name] for name in structures]
            table = np.zeros(max(*self.card.labels.values(), 0) + 1, dtype=labels.array.dtype)
            table[values] = values
            labels = labels.with_array(table[labels.array])
        return replace(self, labels=labels, masks=masks, chosen=tuple(structures))

    def mask(self, structure: str) -> Volume:
        """Return the mask of a structure, bool, on the scan's own grid; empty where it was not found.

        Raises:
            InputError: the models segment no such structure.
        """
        if structure not in self.card.labels:
            raise InputError(f"no structure {structure!r}; the model segments {', '.join(self.card.labels)}")
        mask = Volume(np.zeros(self.geometry.shape, dtype=bool), self.geometry)
        found = self.masks.get(structure)
        if found is not None:
            mask.canonical().array[found.box] = found.array  # a view
        return mask

    def looked_at(self, structure: str) -> tuple[Geometry, Shape]:
        """Return the part of the scan on which a structure was looked for, and the part's first voxel in the scan.

        Raises:
            ValueError: the target is absent, so nothing was looked for.
        """
        if self.organs is not None and structure in self.organs.structures:
            return self.organs.geometry, self.organs.start
        if self.region is None:
            raise ValueError(f"{structure} was not looked for: there is no {self.card.target}")
        return self.region.geometry, self.region_start

    def shares_in(self, structure: str, box: Box) -> tuple[NDArray[np.float32], int]:
        """Return the probabilities of a structure and of those that the same network tells apart from it.

        Args:
            structure: name of the structure.
            box: the voxels to return, counted in the part that `looked_at` returns.

        Returns:
            [structures, *box], and the place of the structure among them, from 0.
        """
        if self.organs is not None and structure in self.organs.structures:
            part = self.organs.geometry.crop([s.start for s in box], [s.stop - s.start for s in box])
            return self.organs.shares_on(part), self.organs.structures.index(structure)
        assert self.shares is not None
        return self.shares[(slice(None), *box)], list(self.card.staged_labels).index(structure)

    def probability(self, structure: str) -> NDArray[np.float32]:
        """Return the probability of a structure on the part that `looked_at` returns."""
        if self.organs is not None and structure in self.organs.structures:
            return self.organs.share_on(self.organs.geometry, self.organs.structures.index(structure))
        assert self.shares is not None
        return np.asarray(self.shares[list(self.card.staged_labels).index(structure)], dtype=np.float32)

    def probability_map(self, structure: str) -> Volume:
        """Return the probability of a structure on the scan's own grid, float32; 0 where it was not looked for."""
        whole = Volume(np.zeros(self.geometry.shape, dtype=np.float32), self.geometry)
        if self.shares is not None:
            found, (s, r, c) = self.probability(structure), self.looked_at(structure)[1]
            n, m, k = found.shape
            whole.canonical().array[s : s + n, r : r + m, c : c + k] = found  # a view
        return whole


def structure_masks(
    classes: NDArray[np.uint8], names: Sequence[str], start: Sequence[int]
) -> dict[str, StructureMask]:
    """Return the mask of each structure that has a voxel.

    Args:
        classes: class of each voxel of a region [slice, row, column]; 0 is the background.
        names: of the structures, whose classes are 1, 2, ...
        start: the region's first voxel in the scan.
    """
    found = {}
    for k, (name, box) in enumerate(zip(names, ndimage.find_objects(classes, len(names)), strict=True), start=1):
        if box is not None:
            s, r, c = (int(first) + part.start for first, part in zip(start, box, strict=True))
            found[name] = StructureMask(classes[box] == k, (s, r, c))
    return found
