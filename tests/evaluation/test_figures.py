from __future__ import annotations

import base64
import io
import re
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from metricunet.evaluation.figures import Overlay, Plane, draw_overlay
from metricunet.volume import Geometry, Volume

SPACING_MM = (3.0, 1.0, 1.0)
SHAPE = (60, 180, 180)


def grid() -> Geometry:
    return Geometry.from_parts(SHAPE, SPACING_MM).box_around((5.0, -10.0, -460.0), SHAPE, SPACING_MM)


def mask(start: tuple[int, int, int], stop: tuple[int, int, int]) -> NDArray[Any]:
    result = np.zeros(SHAPE, dtype=np.uint8)
    result[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))] = 1
    return result


def draw(reference: NDArray[Any], prediction: NDArray[Any], hu: NDArray[Any] | None = None) -> Overlay:
    image = None if hu is None else Volume(hu, grid())
    return draw_overlay("case", "prostate", 1, Volume(prediction, grid()), Volume(reference, grid()), image)


def extent(path: str) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of SVG path data, in mm."""
    numbers = np.array([float(n) for n in re.findall(r"-?\d+\.\d+", path)]).reshape(-1, 2)
    return (*numbers.min(axis=0), *numbers.max(axis=0))


def pixels(plane: Plane) -> NDArray[Any]:
    assert plane.image is not None
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(plane.image.split(",")[1]))))


def pixel_at(plane: Plane, x_mm: float, y_mm: float) -> int:
    left, top, width, height = plane.box_mm
    array = pixels(plane)
    row = int((y_mm - top) / height * array.shape[0])
    column = int((x_mm - left) / width * array.shape[1])
    return int(array[row, column])


GLAND = mask((25, 70, 70), (35, 111, 111))  # its centre voxel is (29.5, 90, 90)


def test_outlines_have_the_masks_size_in_mm() -> None:
    axial, coronal, sagittal = draw(GLAND, GLAND).planes
    assert extent(axial.reference) == pytest.approx((-20.5, -20.5, 20.5, 20.5))
    assert axial.reference == axial.prediction
    for plane in (coronal, sagittal):
        left, top, right, bottom = extent(plane.reference)
        assert (right - left, bottom - top) == pytest.approx((41, 30))


@pytest.mark.parametrize("stored_as", ["canonical", "flipped"])
def test_sides_are_where_the_marks_say(stored_as: str) -> None:
    # A bright rod to the patient's left, front and head of the gland each; canonical axes run to the head, the
    # back and the left.
    places = {"L": (29, 90, 130), "A": (29, 45, 90), "S": (44, 90, 90)}
    on_side = {"L": (40, 0), "R": (-40, 0), "A": (0, -45), "P": (0, 45), "S": (0, -44), "I": (0, 44)}
    for letter, place in places.items():
        hu = np.full(SHAPE, -100, dtype=np.int16)
        hu[tuple(slice(p - 4, p + 5) for p in place)] = 200
        image, labels = Volume(hu, grid()), Volume(GLAND, grid())
        if stored_as == "flipped":
            flips = (True, False, True)
            image, labels = image.reordered((0, 1, 2), flips), labels.reordered((0, 1, 2), flips)
        overlay = draw_overlay("case", "prostate", 1, labels, labels, image)
        shown = 0
        for plane in overlay.planes:
            marks = {plane.left: (-40, 0), plane.right: (40, 0), plane.top: (0, -44), plane.bottom: (0, 44)}
            assert len(marks) == 4
            for mark, (x, y) in marks.items():
                if mark == "A" and plane.title == "axial":
                    y = -45
                if mark == "A" and plane.title == "sagittal":
                    x = -45
                bright = pixel_at(plane, x, y) > 200
                assert bright == (mark == letter), (plane.title, mark)
                shown += bright
        assert shown == 2
        assert set(on_side) == {m for p in overlay.planes for m in (p.left, p.right, p.top, p.bottom)}


def test_radiological_display() -> None:
    axial, coronal, sagittal = draw(GLAND, GLAND).planes
    assert (axial.left, axial.right, axial.top, axial.bottom) == ("R", "L", "A", "P")
    assert (coronal.left, coronal.right, coronal.top, coronal.bottom) == ("R", "L", "S", "I")
    assert (sagittal.left, sagittal.right, sagittal.top, sagittal.bottom) == ("A", "P", "S", "I")


def test_outlines_lie_on_the_image() -> None:
    hu = np.where(GLAND == 1, 200, -100).astype(np.int16)
    for plane in draw(GLAND, np.zeros_like(GLAND), hu).planes:
        left, top, right, bottom = extent(plane.reference)
        middle_y, middle_x = (top + bottom) / 2, (left + right) / 2
        assert pixel_at(plane, left + 0.4, middle_y) > 200
        assert pixel_at(plane, left - 0.4, middle_y) < 100
        assert pixel_at(plane, right - 0.4, middle_y) > 200
        assert pixel_at(plane, middle_x, bottom + 0.4) < 100
        assert pixel_at(plane, middle_x, bottom - 0.4) > 200


def test_pictures_cover_the_view_and_window_soft_tissue() -> None:
    hu = np.full(SHAPE, 40, dtype=np.int16)
    hu[:, :90] = -1000
    axial = draw(GLAND, GLAND, hu).planes[0]
    left, top, width, height = axial.box_mm
    assert left <= -70
    assert top <= -70
    assert left + width >= 70
    assert top + height >= 70
    assert pixel_at(axial, 0, 10) == round(200 / 400 * 255)
    assert pixel_at(axial, 0, -10) == 0


def test_an_image_on_another_grid_is_shown_where_it_lies() -> None:
    fine = grid().with_spacing((1.5, 2.0, 2.0))
    hu = Volume(np.where(GLAND == 1, 200.0, -100.0).astype(np.float32), grid()).resample(fine)
    labels = Volume(GLAND, grid())
    axial = draw_overlay("case", "prostate", 1, labels, labels, hu).planes[0]
    assert pixel_at(axial, -18, 0) > 200
    assert pixel_at(axial, -23, 0) < 100


def test_missed_far_and_false_predictions() -> None:
    nothing = np.zeros_like(GLAND)
    missed = draw(GLAND, nothing)
    assert not missed.has_prediction
    assert not missed.prediction_in_view
    assert missed.centres_apart_mm is None
    far = draw(GLAND, mask((0, 0, 160), (4, 9, 180)))
    assert far.has_prediction
    assert not far.prediction_in_view
    assert far.centres_apart_mm == pytest.approx(np.linalg.norm([3 * 28, 86, 79.5]))
    false = draw(nothing, GLAND)
    assert extent(false.planes[0].prediction) == pytest.approx((-20.5, -20.5, 20.5, 20.5))
    assert false.planes[0].reference == ""


def test_a_gland_at_the_edge_of_the_scan() -> None:
    reference = mask((0, 70, 70), (4, 111, 111))
    _, coronal, _ = draw(reference, reference, np.full(SHAPE, 40, dtype=np.int16)).planes
    left, top, right, bottom = extent(coronal.reference)
    assert (right - left, bottom - top) == pytest.approx((41, 12))
    assert pixel_at(coronal, 0, bottom + 3) == 0
    assert pixel_at(coronal, 0, top - 3) > 100


def test_every_structure_is_outlined() -> None:
    both = GLAND.copy()
    both[25:35, 120:140, 80:100] = 2
    axial = draw(both, both).planes[0]
    assert axial.reference.count("M") == 2
