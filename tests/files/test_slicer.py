"""Segmentations of 3D Slicer: named by their header, and put back where the file holds a box of the scan alone."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from metricunet.errors import InputError
from metricunet.files.slicer import is_segmentation, read_segmentation, segments
from metricunet.volume import Geometry
from tests.support.slicer import write_nrrd

GRID = Geometry.from_parts((6, 8, 10), (3.0, 2.0, 2.0), (-10.0, -20.0, 30.0))
LABELS = np.zeros(GRID.shape, dtype=np.uint8)
LABELS[2:4, 3:6, 4:9] = 1
LABELS[3, 3:6, 4:6] = 2


def test_names_and_values_are_those_of_the_header(tmp_path: Path) -> None:
    path = write_nrrd(tmp_path / "A.SEG.NRRD", LABELS, GRID, {"prostate": 2, "Blase: oben": 1})
    assert is_segmentation(path)
    assert not is_segmentation(tmp_path / "a.nrrd")
    assert segments(path) == {"prostate": 2, "Blase: oben": 1}
    assert segments(write_nrrd(tmp_path / "b.seg.nrrd", LABELS, GRID)) == {}


@pytest.mark.parametrize("start", [(0, 0, 0), (2, 3, 4), (1, 0, 2)])
@pytest.mark.parametrize("mirrored", [False, True])
def test_a_box_lies_where_it_was_cut_from(tmp_path: Path, start: tuple[int, int, int], mirrored: bool) -> None:
    box = LABELS[tuple(slice(s, None) for s in start)]
    grid = GRID.crop(start, box.shape)
    if mirrored:  # as a file in RAS, whose first two axes run the other way
        box, grid = box[:, ::-1, ::-1], grid.reordered((0, 1, 2), (False, True, True))
    found = read_segmentation(write_nrrd(tmp_path / "a.seg.nrrd", box, grid), GRID)
    assert found.geometry.same_grid(GRID)
    np.testing.assert_array_equal(found.array, LABELS)


@pytest.mark.parametrize(
    "grid",
    [
        Geometry.from_parts((2, 3, 4), (3.0, 2.0, 2.0), (-9.0, -20.0, 30.0)),
        Geometry.from_parts((2, 3, 4), (3.0, 1.0, 1.0), (-10.0, -20.0, 30.0)),
        Geometry.from_parts((2, 3, 4), (3.0, 2.0, 2.0), (-14.0, -20.0, 30.0)),
        Geometry.from_parts((2, 3, 4), (3.0, 2.0, 2.0), (-10.0, -20.0, 45.0)),
    ],
    ids=["between voxels", "other spacing", "begins outside", "ends outside"],
)
def test_what_is_no_box_of_the_scan_stays_as_it_is(tmp_path: Path, grid: Geometry) -> None:
    path = write_nrrd(tmp_path / "a.seg.nrrd", np.ones(grid.shape, dtype=np.uint8), grid)
    assert read_segmentation(path, GRID).geometry.same_grid(grid)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            ("Segment1_Name:=bladder", "Segment1_Name:=prostate"),
            "two segments share the name prostate or the value 2",
        ),
        (
            ("Segment1_LabelValue:=2", "Segment1_LabelValue:=1"),
            "two segments share the name bladder or the value 1",
        ),
        (
            ("Segment1_LabelValue:=2", "Segment1_LabelValue:=x"),
            "Segment1_LabelValue is 'x', expected a whole number",
        ),
        (
            ("Segment1_LabelValue:=2", "Segment1_LabelValue:=0"),
            "Segment1_LabelValue is '0', expected a whole number from 1 on",
        ),
        (("Segment1_LabelValue:=2\n", ""), "Segment1_LabelValue is '', expected a whole number"),
    ],
)
def test_a_header_that_is_not_clear_is_refused(tmp_path: Path, change: tuple[str, str], words: str) -> None:
    path = write_nrrd(tmp_path / "a.seg.nrrd", LABELS, GRID, {"prostate": 1, "bladder": 2})
    content = path.read_bytes()
    assert change[0].encode() in content
    path.write_bytes(content.replace(change[0].encode(), change[1].encode()))
    with pytest.raises(InputError, match=words):
        segments(path)


def test_a_segment_without_a_name_has_its_value(tmp_path: Path) -> None:
    assert segments(write_nrrd(tmp_path / "a.seg.nrrd", LABELS, GRID, {"": 2})) == {"2": 2}


def test_voxels_are_not_searched_for_names(tmp_path: Path) -> None:
    path = write_nrrd(tmp_path / "a.seg.nrrd", LABELS, GRID, {"prostate": 1})
    path.write_bytes(path.read_bytes() + gzip.compress(b"") + b"\nSegment9_Name:=x\nSegment9_LabelValue:=9\n")
    assert segments(path) == {"prostate": 1}


@pytest.mark.parametrize("states", ["layers and sizes", "sizes"])
def test_segments_that_overlap_are_told_as_such(tmp_path: Path, states: str) -> None:
    """Slicer keeps them in layers, of which each counts its values from 1 on; earlier versions state no layer."""
    path = write_nrrd(tmp_path / "a.seg.nrrd", LABELS, GRID, {"prostate": 1, "CTV": 2})
    header, _, voxels = path.read_bytes().partition(b"\n\n")
    layered = [(b"dimension: 3", b"dimension: 4"), (b"sizes: 10 8 6", b"sizes: 2 10 8 6")]
    layered += [(b"space directions: ", b"space directions: none "), (b"kinds: ", b"kinds: list ")]
    if states == "layers and sizes":
        stated = b"Segment1_LabelValue:=1\nSegment0_Layer:=0\nSegment1_Layer:=1"
        layered.append((b"Segment1_LabelValue:=2", stated))
    for old, new in layered:
        assert header.count(old) == 1
        header = header.replace(old, new)
    path.write_bytes(header + b"\n\n" + voxels)
    for read in (segments, lambda file: read_segmentation(file, GRID)):
        with pytest.raises(InputError, match=r"its segments lie in 2 layers, as Slicer keeps those that overlap"):
            read(path)


def test_one_layer_that_is_stated_is_read(tmp_path: Path) -> None:
    path = write_nrrd(tmp_path / "a.seg.nrrd", LABELS, GRID, {"prostate": 1, "bladder": 2})
    header, _, voxels = path.read_bytes().partition(b"\n\n")
    path.write_bytes(header + b"\nSegment0_Layer:=0\nSegment1_Layer:=0\n\n" + voxels)
    assert segments(path) == {"prostate": 1, "bladder": 2}
    np.testing.assert_array_equal(read_segmentation(path, GRID).array, LABELS)
