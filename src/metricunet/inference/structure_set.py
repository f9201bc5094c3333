"""From a prediction to the structures of a DICOM structure set or segmentation, drawn as the user chose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from metricunet.errors import InputError, argument
from metricunet.files.dicom.identity import RANDOM, Identity
from metricunet.files.dicom.series import CtSeries
from metricunet.files.record import sha256
from metricunet.files.rtstruct.add import add_to_rtstruct, check_addable
from metricunet.files.rtstruct.outlines import (
    LARGEST_SMOOTHING_MM,
    Holes,
    Outline,
    Structure,
    Style,
    WrittenStructure,
)
from metricunet.files.rtstruct.write import write_rtstruct
from metricunet.quality.prediction import EnsembleCard, Prediction
from metricunet.stages.classes import border_probability
from metricunet.volume import Volume

#: Colours of structures in planning systems, in their order; told apart also by the colour-blind.
COLOURS = (
    *((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (204, 121, 167), (213, 94, 0)),
    (0, 114, 178),
)
#: What follows the standard name, after the caret that TG-263 has for a clinic's own qualifiers. Planning systems
#: show names of 16 characters: Prostate^autosyn has as many, and of longer ones the mark's beginning is seen.
MARK, SYNTHETIC_MARK = "^auto", "^autosyn"
LABEL, SYNTHETIC_LABEL = "metricunet auto", "synthetic auto"


@dataclass(frozen=True)
class ContourOptions:
    """How the structure set is drawn, and whether it is added to another one.

    Attributes:
        contours: "surface" draws where the probability is one half, "voxel" along voxels' edges.
        holes: "keep", "close", or "keyhole" (joined to the outline around them).
        smooth: smooth the contours, no point of them by more than `LARGEST_SMOOTHING_MM`.
        add_to: a structure set of the same scan, whose structures the new one begins with.

    Raises:
        InputError: contours or holes that there are not.
    """

    contours: Outline = "surface"
    holes: Holes = "keep"
    smooth: bool = False
    add_to: Path | None = None

    def __post_init__(self) -> None:
        Style(self.contours, self.holes, self.smoothing_mm)

    @property
    def smoothing_mm(self) -> float:
        """How far smoothing may move a contour; 0 for none."""
        return LARGEST_SMOOTHING_MM if self.smooth else 0.0

    def key(self) -> dict[str, Any]:
        """Return what the contours depend on beside the prediction."""
        return {
            "contours": self.contours,
            "holes": self.holes,
            "smoothing_mm": self.smoothing_mm,
            "added_to_sha256": None if self.add_to is None else sha256([self.add_to]),
        }

    def check(self, cases: Sequence[CtSeries | None], written: Path | None) -> None:
        """Refuse, before any work, options that cannot be followed.

        Args:
            cases: the series of each case, None for a case that is none.
            written: the structure set to be written, of a single case; None where none is asked for.

        Raises:
            InputError: options for a structure set that is not asked for, or a set that cannot be added to.
        """
        if written is None:
            if self != ContourOptions():
                raise InputError(
                    f"{argument('contours')}, {argument('smooth')}, {argument('holes')} and {argument('add_to')} "
                    f"shape a structure set, and none is asked for; add rtstruct to {argument('formats')}"
                )
            return
        if self.add_to is None:
            return
        if len(cases) != 1 or cases[0] is None:
            raise InputError(
                f"{argument('add_to')} {self.add_to} is for one DICOM series, and {len(cases)} scans are given; "
                f"choose one with {argument('series')}"
            )
        if not self.add_to.is_file():
            raise InputError(f"{self.add_to}: no such file; expected the structure set to add to")
        if written.exists() and written.samefile(self.add_to):
            raise InputError(
                f"{written}: is the structure set to add to, and would be overwritten; choose another folder"
            )
        check_addable(self.add_to, cases[0])


def description_of(card: EnsembleCard) -> str:
    """Return what every DICOM object says of how its structures were made, by the models of this card."""
    words = f"Made by metricunet {version('metricunet')}, not reviewed. Research use only."
    if card.synthetic:
        words += " Model trained on synthetic scans only."
    elif card.held_back:
        words += " Model begun from one trained on synthetic scans only."
    return f"{words} Not validated on patients." if card.held_back else words


def set_name_of(card: EnsembleCard) -> str:
    """Return what a structure set is called, and a segmentation described as, by the models of this card."""
    name = "Machine-made, not reviewed"
    if not is_marked(card):
        return name
    return f"{name}, {'trained' if card.synthetic else 'begun'} on synthetic scans"


def is_marked(card: EnsembleCard) -> bool:
    """Whether structures bear the mark of synthetic scans: a model saw no other, or descends from one such."""
    return card.synthetic or bool(card.held_back)


def structures_of(prediction: Prediction, surface: bool = True) -> dict[str, Structure]:
    """Return the structures of a prediction that have a voxel, by their names in the model.

    Args:
        prediction: with a mask.
        surface: whether they shall have the probability that a sub-voxel outline needs.
    """
    card = prediction.card
    mark = SYNTHETIC_MARK if is_marked(card) else MARK
    return {
        name: Structure(
            name=f"{card.tg263[name]}{mark}",
            mask=prediction.mask(name),
            colour=COLOURS[k % len(COLOURS)],
            probability=_surface(prediction, name) if surface else None,
        )
        for k, name in enumerate(card.labels)
        if name in prediction.masks
    }


def write_structure_set(
    path: Path,
    series: CtSeries,
    structures: Mapping[str, Structure],
    options: ContourOptions,
    card: EnsembleCard,
    identity: Identity = RANDOM,
) -> dict[str, dict[str, Any]]:
    """Write a structure set, or another one with the structures added.

    A name that the other set has already gets a number, as in Prostate^auto_2. A structure that lies between two
    slices alone, where others are missing, has no image to be drawn on, and is left out.

    Returns:
        For each structure that was drawn what was written of it, as `CASE.quality.json` tells it.

    Raises:
        InputError: no structure is left, or the set cannot be written.
    """
    structures = {name: one for name, one in structures.items() if is_on_a_slice(one, series)} or structures
    drawing: dict[str, Any] = {
        "description": description_of(card),
        "outline": options.contours,
        "holes": options.holes,
        "smoothing_mm": options.smoothing_mm,
    }
    members = list(structures.values())
    if options.add_to is not None:
        done = add_to_rtstruct(options.add_to, path, series, members, on_clash="suffix", **drawing)
    else:
        label = SYNTHETIC_LABEL if is_marked(card) else LABEL
        done = write_rtstruct(
            path, series, members, label=label, set_name=set_name_of(card), identity=identity, **drawing
        )
    return {name: _reported(written) for name, written in zip(structures, done, strict=True)}


def is_on_a_slice(structure: Structure, series: CtSeries) -> bool:
    """Tell whether any of a structure lies on a slice of the scan, and not between two where others are missing.

    Raises:
        InputError: the slices are tilted, so that nothing does.
    """
    return series.resampling is None or bool(series.on_slices(structure.inside(series.geometry)).any())


def _reported(written: WrittenStructure) -> dict[str, Any]:
    digits = {"volume_ml": 3, "mask_volume_ml": 3, "smoothing_change_ml": 3}
    content = {k: round(v, digits[k]) if k in digits else v for k, v in asdict(written).items()}
    change = written.smoothing_change_ml
    before = written.volume_ml - change
    content["smoothing_change_percent"] = round(100 * change / before, 2) if before else 0.0
    return content


def _surface(prediction: Prediction, name: str) -> Volume:
    """Return the probability of a structure on the part of the scan's own grid that it lies on.

    The part has a voxel more on each side, as far as the network looked: between those and the mask the surface
    runs.
    """
    assert prediction.labels is not None
    looked_at, start = prediction.looked_at(name)
    sides = zip(prediction.masks[name].box, start, looked_at.shape, strict=True)
    s, r, c = (slice(max(0, part.start - first - 1), min(n, part.stop - first + 1)) for part, first, n in sides)
    shares, k = prediction.shares_in(name, (s, r, c))
    field = border_probability(shares, k)
    part = Volume(np.ascontiguousarray(field), looked_at.crop([s.start, r.start, c.start], field.shape))
    return part.reordered(*part.geometry.axes_to(prediction.labels.geometry))
