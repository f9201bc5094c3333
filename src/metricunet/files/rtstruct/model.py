"""A structure set as read, and its masks on a grid."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from metricunet.errors import InputError
from metricunet.files.rtstruct.rasterise import filled_contours
from metricunet.volume import FloatArray, Geometry, Volume

MaskStatus = Literal["contoured", "not contoured", "no area", "unusable"]


@dataclass(frozen=True, eq=False)
class RtStructure:
    """A region as read.

    Attributes:
        number: ROINumber; None where it cannot be read.
        name: ROIName.
        contours: each [points, 3] in LPS millimetres, not closed by a repeated point.
        colour: red, green, blue.
        interpreted_type: RTROIInterpretedType.
        frame_of_reference_uid: UID of the frame of reference that the contours are in.
        image_uids: SOPInstanceUID of the image that each contour names, if it names one.
        image_frames: frame of that image, counted from 1, for each contour that names one.
        fault: why it cannot be used, as a sentence that "it" would begin; empty where nothing is wrong. Such a
            structure has no contours here.
        passed_over: what encloses no area: geometric types (POINT, OPEN_PLANAR) and how many contours of each.
    """

    number: int | None
    name: str
    contours: tuple[FloatArray, ...]
    colour: tuple[int, int, int] | None
    interpreted_type: str | None
    frame_of_reference_uid: str | None
    image_uids: tuple[str | None, ...] = ()
    image_frames: tuple[int | None, ...] = ()
    passed_over: tuple[tuple[str, int], ...] = ()
    fault: str = ""


@dataclass(frozen=True, eq=False)
class RoiMask:
    """What became of one region on a grid: a mask, or the reason why there is none.

    Attributes:
        number: ROINumber; None where it cannot be read.
        name: ROIName.
        status: "contoured"; "not contoured": nothing was drawn, which tells nothing of the patient; "no area":
            points or open lines alone; "unusable": contours that cannot be read, or filled on this scan.
        mask: uint8, where `status` is "contoured".
        reason: why there is no mask, one line; empty where there is one.
        notes: what was odd about the contours, a line each.
    """

    number: int | None
    name: str
    status: MaskStatus
    mask: Volume | None
    reason: str
    notes: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class RtStruct:
    """A structure set as read, with what was odd about it in `warnings`, a line each."""

    path: Path
    structures: tuple[RtStructure, ...]
    frame_of_reference_uid: str | None
    series_uid: str | None
    warnings: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The structures' names in the file's order."""
        return tuple(structure.name for structure in self.structures)

    def structure(self, name: str) -> RtStructure:
        """Return the structure of a name.

        Raises:
            InputError: no such structure, or several.
        """
        found = [structure for structure in self.structures if structure.name == name]
        if not found:
            raise InputError(f"{self.path}: has no ROI '{name}'; it has {', '.join(self.names) or 'none'}")
        if len(found) > 1:
            numbers = ", ".join(str(structure.number) for structure in found)
            raise InputError(f"{self.path}: ROIs {numbers} are all named '{name}'; give each a name of its own")
        return found[0]

    def mask(self, name: str, geometry: Geometry) -> Volume:
        """Fill a structure's contours on a grid: uint8, 1 where a voxel's centre is inside by even-odd.

        Contours are taken plane by plane. Where several planes fall into one slice the nearest one counts.

        Raises:
            InputError: no such structure or several; one without contours, whose contours lie outside the
                scan or are not parallel to its slices, are too sparse for them, or contain no voxel's centre.
        """
        found = self.filled(self.structure(name), geometry)
        if found.mask is None:
            raise InputError(found.reason)
        return found.mask

    def masks(self, geometry: Geometry) -> tuple[RoiMask, ...]:
        """Fill every structure on a grid, in the file's order: for each a mask or the reason why there is none.

        Names that are given twice are not refused here: each structure has its number.
        """
        return tuple(self.filled(structure, geometry) for structure in self.structures)

    def filled(self, structure: RtStructure, geometry: Geometry) -> RoiMask:
        """Fill one of the structures on a grid: a mask, or the reason why there is none."""
        at = f"{self.path}: ROI '{structure.name}'"
        status: MaskStatus
        if structure.fault:
            return RoiMask(structure.number, structure.name, "unusable", None, f"{at} {structure.fault}", ())
        if structure.contours:
            try:
                mask, notes = filled_contours(structure.contours, geometry, at)
            except InputError as error:
                return RoiMask(structure.number, structure.name, "unusable", None, str(error), ())
            return RoiMask(structure.number, structure.name, "contoured", mask, "", notes)
        if structure.passed_over:
            kinds = ", ".join(f"{kind}: {count}" for kind, count in structure.passed_over)
            status, reason = "no area", f"{at} has no contours that enclose an area ({kinds}); choose another ROI"
        else:
            status, reason = "not contoured", f"{at} has no contours; draw it, or choose another ROI"
        return RoiMask(structure.number, structure.name, status, None, reason, ())
