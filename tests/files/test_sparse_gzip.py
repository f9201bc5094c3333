"""Files of mostly zeros: one plain gzip member with the very bytes, and masks that read as if written whole."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from metricunet.files.nifti import write_nifti, write_nifti_part
from metricunet.files.sparse_gzip import gzip_of, joined_crc
from metricunet.volume import Geometry, Volume

RANDOM = np.random.default_rng(0)


@pytest.mark.parametrize(("before", "after"), [(0, 0), (1, 0), (0, 7), (100, 235), (3, 1)])
def test_one_member_holds_the_very_bytes(before: int, after: int) -> None:
    head, middle = RANDOM.bytes(352), RANDOM.bytes(999)
    packed = gzip_of(head, 1000, before, middle, after)
    whole = head + bytes(1000 * before) + middle + bytes(1000 * after)
    assert gzip.decompress(packed) == whole
    reader = zlib.decompressobj(wbits=31)  # one member, as readers that know of no second one take it
    assert reader.decompress(packed) == whole
    assert reader.eof
    assert reader.unused_data == b""


@pytest.mark.parametrize("length", [0, 1, 2, 255, 70_001])
def test_checks_of_parts_join_to_that_of_the_whole(length: int) -> None:
    first, second = RANDOM.bytes(77), RANDOM.bytes(length)
    assert joined_crc(zlib.crc32(first), zlib.crc32(second), length) == zlib.crc32(first + second)


@pytest.mark.parametrize("axes", [None, (0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_a_part_is_written_as_the_whole_mask_would_be(axes: tuple[int, int, int] | None, tmp_path: Path) -> None:
    grid = Geometry.from_parts((9, 11, 13), (3.0, 1.0, 1.5), (-4.0, 5.0, 60.0))
    like = None
    if axes is not None:
        whole = Volume(np.zeros(grid.shape, dtype=np.int16), grid)
        write_nifti(tmp_path / "straight.nii.gz", whole)
        image = nib.load(tmp_path / "straight.nii.gz")
        turned = image.as_reoriented(np.array([[axis, (-1) ** axis] for axis in axes]))
        like = tmp_path / "like.nii.gz"
        nib.save(turned, like)
    start, shape = (2, 3, 4), (5, 1, 6)
    part = Volume(RANDOM.integers(0, 2, shape).astype(np.uint8), grid.crop(start, shape))
    mask = np.zeros(grid.shape, dtype=np.uint8)
    mask[2:7, 3:4, 4:10] = part.array
    for number, (some, voxels) in enumerate([(part, mask), (None, np.zeros_like(mask))]):
        paths = [tmp_path / f"{name}{number}.nii.gz" for name in ("whole", "part")]
        write_nifti(paths[0], Volume(voxels, grid), like)
        write_nifti_part(paths[1], some, grid, like)
        assert gzip.decompress(paths[1].read_bytes()) == gzip.decompress(paths[0].read_bytes())
