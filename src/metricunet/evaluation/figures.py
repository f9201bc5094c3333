"""Pictures of one case: CT in three planes with outlines of the prediction and, where there is one, the reference.

A picture is a small grey PNG in the scan's own resolution and outlines as vectors in millimetres, so it is
sharp at any size and light to carry. Display is radiological: the patient's right is on the viewer's left.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from metricunet.evaluation.measures import crop_to_content
from metricunet.volume import FloatArray, Volume

#: Side of the square that a picture shows.
VIEW_MM = 140.0
#: Soft-tissue window: what is black and what is white.
WINDOW_HU = (-160.0, 240.0)
OUTSIDE_HU = -1024.0


@dataclass(frozen=True)
class Plane:
    """One square picture, in millimetres right of and below the point that the three planes share.

    Attributes:
        title: axial, coronal or sagittal.
        left, right, top, bottom: where in the patient each side lies, one letter each.
        image: the CT as a data URI, or None.
        box_mm: left, top, width and height of that image.
        reference: outlines as SVG path data; empty where the plane cuts nothing, or there is no reference.
        outlines: the same of the prediction, by label value; only of structures that the plane cuts.
    """

    title: str
    left: str
    right: str
    top: str
    bottom: str
    image: str | None
    box_mm: tuple[float, float, float, float]
    reference: str
    outlines: Mapping[int, str]

    @property
    def prediction(self) -> str:
        """Outlines of all predicted structures together."""
        return "".join(self.outlines.values())


@dataclass(frozen=True)
class Overlay:
    """The pictures of one case.

    Attributes:
        case, structure: what is shown; the planes meet in the structure's centre (the reference's, else the
            prediction's). Other structures are outlined too.
        planes: axial, coronal, sagittal.
        has_prediction: whether anything was predicted.
        prediction_in_view: whether any of it is outlined in these planes.
        centres_apart_mm: between the structure's centres in reference and prediction, if both hold it.
    """

    case: str
    structure: str
    planes: tuple[Plane, ...]
    has_prediction: bool
    prediction_in_view: bool
    centres_apart_mm: float | None


def draw_overlay(
    case: str,
    structure: str,
    value: int,
    prediction: Volume,
    reference: Volume | None,
    image: Volume | None,
    centre_mm: ArrayLike | None = None,
) -> Overlay:
    """Draw one case through the centre of one of its structures.

    Args:
        case: name of the case.
        structure: name of the structure.
        value: value of that structure in the label maps.
        prediction: label map.
        reference: label map on the same grid; None draws the prediction alone.
        image: the scan in HU, on any grid; without it the pictures hold outlines alone.
        centre_mm: LPS point that the planes go through where neither label map holds the structure.

    Raises:
        ValueError: neither holds it, and there is no such point.
    """
    if reference is None:
        reference = prediction.with_array(np.zeros_like(prediction.array))
    prediction, reference = crop_to_content(prediction, reference)
    prediction, reference = prediction.canonical(), reference.canonical()
    centre_of_prediction = _centre_mm(prediction, value)
    centre_of_reference = _centre_mm(reference, value)
    for found in (centre_of_prediction, centre_of_reference):
        centre_mm = centre_mm if found is None else found
    if centre_mm is None:
        raise ValueError(f"case {case}: neither label map holds {structure} ({value})")
    centre = np.rint(reference.geometry.to_index(centre_mm)).astype(int)
    reach = np.ceil(VIEW_MM / 2 / np.asarray(reference.spacing_mm)).astype(int)
    start, shape = (centre - reach).tolist(), (2 * reach + 1).tolist()
    prediction, reference = prediction.crop(start, shape), reference.crop(start, shape)
    ct = None if image is None else image.resample(reference.geometry, fill=OUTSIDE_HU)
    planes = tuple(_plane(axis, reach.tolist(), prediction, reference, ct) for axis in range(len(_PLANES)))
    apart: float | None = None
    if centre_of_prediction is not None and centre_of_reference is not None:
        apart = float(np.linalg.norm(centre_of_prediction - centre_of_reference))
    return Overlay(
        case=case,
        structure=structure,
        planes=planes,
        has_prediction=centre_of_prediction is not None,
        prediction_in_view=any(plane.prediction for plane in planes),
        centres_apart_mm=apart,
    )


#: For each axis of a canonical array (to the head, the back, the left) the plane across it: title, left and
#: right, top and bottom. Head is up, so coronal and sagittal planes are turned over.
_PLANES = (
    ("axial", "R", "L", "A", "P"),
    ("coronal", "R", "L", "S", "I"),
    ("sagittal", "A", "P", "S", "I"),
)


def _plane(axis: int, middle: list[int], prediction: Volume, reference: Volume, ct: Volume | None) -> Plane:
    """Cut canonical volumes of equal shape across `axis` through voxel `middle`, the centre of their box."""
    title, left, right, top, bottom = _PLANES[axis]
    rows, columns = (a for a in range(3) if a != axis)
    step_mm = reference.spacing_mm[rows], reference.spacing_mm[columns]
    corner_mm = -step_mm[0] * middle[rows], -step_mm[1] * middle[columns]

    def cut(volume: Volume) -> NDArray[np.generic]:
        plane: NDArray[np.generic] = volume.array.take(middle[axis], axis=axis)
        return plane[::-1] if rows == 0 else plane

    height_mm, width_mm = (step * n for step, n in zip(step_mm, cut(reference).shape, strict=True))
    return Plane(
        title=title,
        left=left,
        right=right,
        top=top,
        bottom=bottom,
        image=None if ct is None else _grey_png(cut(ct)),
        box_mm=(corner_mm[1] - step_mm[1] / 2, corner_mm[0] - step_mm[0] / 2, width_mm, height_mm),
        reference="".join(_outlines(cut(reference), step_mm, corner_mm).values()),
        outlines=_outlines(cut(prediction), step_mm, corner_mm),
    )


def _centre_mm(labels: Volume, value: int) -> FloatArray | None:
    index = np.argwhere(labels.array == value)
    return labels.geometry.to_world(index.mean(axis=0)) if len(index) else None


def _grey_png(hu: NDArray[np.generic]) -> str:
    from PIL import Image  # comes with matplotlib

    low, high = WINDOW_HU
    grey = np.clip((np.asarray(hu, dtype=np.float32) - low) / (high - low), 0, 1) * 255
    buffer = io.BytesIO()
    Image.fromarray(np.rint(grey).astype(np.uint8)).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _outlines(
    labels: NDArray[np.generic], step_mm: tuple[float, float], corner_mm: tuple[float, float]
) -> dict[int, str]:
    """Return the 0.5 level of each label in a plane [row, column] as SVG path data in mm."""
    from contourpy import contour_generator  # comes with matplotlib

    found: dict[int, str] = {}
    for value in np.unique(labels):
        if value == 0:
            continue
        parts: list[str] = []
        for line in contour_generator(z=(labels == value).astype(np.float32)).lines(0.5):
            points = _without_straight(np.asarray(line)) * step_mm[::-1] + corner_mm[::-1]
            closed = len(points) > 1 and np.allclose(points[0], points[-1])
            corners = points[:-1] if closed else points
            parts.append("M" + "L".join(f"{x:.2f} {y:.2f}" for x, y in corners) + ("Z" if closed else ""))
        found[int(value)] = "".join(parts)
    return found


def _without_straight(points: FloatArray) -> FloatArray:
    """Leave out the points [n, 2] of a line in which it does not turn."""
    if len(points) < 3:
        return points
    steps = np.diff(points, axis=0)
    turn = steps[:-1, 0] * steps[1:, 1] - steps[:-1, 1] * steps[1:, 0]
    kept: FloatArray = points[np.concatenate([[True], np.abs(turn) > 1e-9, [True]])]
    return kept
