"""The structures of one case into one label map, and what was lost on the way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metricunet.cohort.importing.plan import PlannedCase
from metricunet.cohort.importing.source import Region
from metricunet.volume import Volume

OVERLAP_RULE = "a voxel of several structures belongs to the first of them in the names file"
#: A structure that keeps a smaller share of what was drawn is no longer what its name says.
LEAST_KEPT = 0.5


@dataclass(frozen=True, eq=False)
class Merged:
    """A case's labels.

    Attributes:
        labels: the label map, on the scan's grid.
        structures: for each structure what became of it: `status`, and as far as there are any `spelling`,
            `volume_ml`, `drawn_ml`, `reason` and `notes`.
        overlaps: for each two structures that share voxels: the one that keeps them (`kept`), the one that loses
            them (`lost`) and their volume (`volume_ml`).
    """

    labels: Volume
    structures: dict[str, dict[str, Any]]
    overlaps: list[dict[str, Any]]

    @property
    def says_anything(self) -> bool:
        """Whether the labels speak of any structure."""
        return any(entry["status"] in ("contoured", "absent") for entry in self.structures.values())


def merge(case: PlannedCase, image: Volume, order: list[str]) -> Merged:
    """Read the structures of a case and put them into one label map.

    Args:
        case: the case and what is planned for it.
        image: its scan.
        order: all structures of the cohort, in order; they have the values 1, 2, ... Where several overlap, the
            first keeps the voxel.

    Raises:
        InputError: a structure set or label map that cannot be read or does not fit the scan.
    """
    array: NDArray[Any] = np.zeros(image.geometry.shape, dtype=np.uint8 if len(order) <= 255 else np.uint16)
    structures: dict[str, dict[str, Any]] = {}
    overlaps: list[dict[str, Any]] = []
    regions = case.source.read_regions(list(case.structures.values()), image)
    for name, region in zip(case.structures, regions, strict=True):
        structures[name], shared = _put(name, region, array, order, image.geometry.voxel_volume_ml)
        overlaps += shared
    for name in order:
        if name not in structures:
            structures[name] = _without_mask(name, case)
    return Merged(Volume(array, image.geometry), {name: structures[name] for name in order}, overlaps)


def _put(
    name: str, region: Region, array: NDArray[Any], order: list[str], voxel_ml: float
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Put a structure where no other is yet; return its entry and its overlaps."""
    entry: dict[str, Any] = {"status": region.status, "spelling": region.named.spelling}
    notes = list(region.notes)
    shared: list[dict[str, Any]] = []
    if region.reason:
        entry["reason"] = region.reason
    if region.mask is not None:
        taken = array[region.mask]
        for value, count in zip(*np.unique(taken[taken > 0], return_counts=True), strict=True):
            volume_ml = round(int(count) * voxel_ml, 3)
            shared.append({"kept": order[int(value) - 1], "lost": name, "volume_ml": volume_ml})
        array[region.mask & (array == 0)] = order.index(name) + 1
        drawn, kept = len(taken), int(np.count_nonzero(taken == 0))
        entry |= {"volume_ml": round(kept * voxel_ml, 3), "drawn_ml": round(drawn * voxel_ml, 3)}
        within = f"within {', '.join(overlap['kept'] for overlap in shared)}, named before it"
        if not kept:
            entry |= {
                "status": "unusable",
                "reason": f"{region.named.location} lies wholly {within}; name it first",
            }
        elif kept < LEAST_KEPT * drawn:
            lost = f"keeps {entry['volume_ml']:g} of {entry['drawn_ml']:g} mL"
            notes.append(f"{region.named.location} {lost}; the rest lies {within}")
    if notes:
        entry["notes"] = notes
    return entry, shared


def _without_mask(name: str, case: PlannedCase) -> dict[str, Any]:
    if name in case.absent:
        return {"status": "absent", "reason": "stated in the names file"}
    if name in case.undrawn:
        named = case.undrawn[name]
        return {
            "status": "not contoured",
            "spelling": named.spelling,
            "reason": f"{named.location}: nothing is drawn",
        }
    return {"status": "not contoured"}
