"""Images in memory lie where their files do."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from numpy.typing import NDArray

from metricunet.errors import InputError
from metricunet.files.images import volume_of_array, volume_of_nibabel, volume_of_simpleitk
from metricunet.files.nifti import read_nifti
from metricunet.volume import Volume

HU = np.arange(6 * 7 * 8, dtype=np.int16).reshape(6, 7, 8)
ORDERS = list(permutations(range(3)))


def saved(path: Path, array: NDArray[np.generic], order: tuple[int, ...], sign: int) -> Path:
    """Write a NIfTI file whose axes run along x, y and z in some order and direction, slightly turned."""
    turn = np.radians(8)
    axes = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, sign]])
    affine = np.eye(4)
    affine[:3, :3] = (axes * (1.5, 2.0, 3.0))[:, list(order)]
    affine[:3, 3] = (10, -20, 30)
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


def is_one(found: Volume, expected: Volume) -> bool:
    assert found.array.dtype == expected.array.dtype
    return found.geometry.same_grid(expected.geometry, 1e-4) and np.array_equal(found.array, expected.array)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("order", ORDERS)
def test_each_is_the_volume_of_its_file(order: tuple[int, ...], sign: int, tmp_path: Path) -> None:
    path = saved(tmp_path / "a.nii", HU, order, sign)
    expected, image = read_nifti(path), nib.load(path)
    assert is_one(volume_of_nibabel(image), expected)
    assert is_one(volume_of_array(np.asarray(image.dataobj), image.affine), expected)
    assert is_one(volume_of_simpleitk(sitk.ReadImage(str(path))), expected)


def test_scaled_values_are_hu(tmp_path: Path) -> None:
    image = nib.Nifti1Image(HU, np.eye(4))
    image.header.set_slope_inter(0.5, -1024)
    nib.save(image, tmp_path / "a.nii")
    expected = read_nifti(tmp_path / "a.nii")
    assert is_one(volume_of_nibabel(nib.load(tmp_path / "a.nii")), expected)


def test_a_volume_is_a_copy() -> None:
    array = HU.copy()
    volume = volume_of_array(array, np.eye(4))
    array[:] = 0
    assert volume.array.max() == HU.max()


def test_several_numbers_in_a_voxel_are_refused() -> None:
    with pytest.raises(InputError, match="2 numbers in a voxel"):
        volume_of_simpleitk(sitk.Image([4, 4, 4], sitk.sitkVectorFloat32, 2))


def test_an_orientation_that_contradicts_itself_is_refused() -> None:
    image = nib.Nifti1Image(HU, np.eye(4))
    image.set_qform(np.diag([1, 1, 4, 1]), code=1)
    with pytest.raises(InputError, match="the nibabel image: its sform and qform"):
        volume_of_nibabel(image)


def test_a_label_map_of_simpleitk_is_refused_before_it_can_end_the_process() -> None:
    image = sitk.Cast(sitk.GetImageFromArray(HU) > 3, sitk.sitkLabelUInt8)
    with pytest.raises(InputError, match="is a label map, expected numbers"):
        volume_of_simpleitk(image)
