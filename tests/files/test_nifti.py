"""NIfTI: every axis order and sign keeps its place in the patient; bad files are named."""

from __future__ import annotations

import gzip
import struct
import tracemalloc
from itertools import permutations
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from metricunet.errors import InputError
from metricunet.files.nifti import (
    case_name,
    is_nifti,
    read_labels,
    read_nifti,
    write_nifti,
)
from metricunet.volume import Geometry, Volume


def save(path: Path, array: np.ndarray, affine: np.ndarray | None = None) -> Path:
    nib.save(nib.Nifti1Image(array, np.diag([-1.0, -1.0, 2.0, 1.0]) if affine is None else affine), path)
    return path


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(list(permutations(range(3)))),
    st.tuples(*[st.sampled_from([-1.0, 1.0])] * 3),
    st.tuples(*[st.floats(-40, 40)] * 3),
)
def test_any_orientation_reads_to_its_place_and_writes_back_as_it_was(
    tmp_path: Path,
    axes: tuple[int, int, int],
    signs: tuple[float, float, float],
    angles: tuple[float, float, float],
) -> None:
    array = np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6)
    affine = np.eye(4)
    turn = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
    affine[:3, :3] = turn @ (np.eye(3)[:, axes] * signs) * [0.9, 1.1, 3.0]
    affine[:3, 3] = (-30, 40, 700)
    path = save(tmp_path / "in.nii.gz", array, affine)
    stored = nib.load(path)
    volume = read_nifti(path)
    for voxel in np.ndindex(array.shape):
        ras = stored.affine @ [*voxel, 1]
        index = np.rint(volume.geometry.to_index([-ras[0], -ras[1], ras[2]])).astype(int)
        assert volume.array[tuple(index)] == array[voxel]
    # The slice axis is the one nearest to head-foot.
    assert np.abs(volume.geometry.directions[2]).argmax() == 0 or max(map(abs, angles)) > 20
    write_nifti(tmp_path / "out.nii.gz", volume, like=path)
    written = nib.load(tmp_path / "out.nii.gz")
    np.testing.assert_array_equal(np.asanyarray(written.dataobj), array)
    np.testing.assert_array_equal(written.affine, stored.affine)
    # The qform is stored as a float32 quaternion, so that it comes back to rounding.
    np.testing.assert_allclose(written.get_qform(), stored.get_qform(), rtol=0, atol=1e-6)
    assert written.header["sform_code"] == stored.header["sform_code"]
    write_nifti(tmp_path / "free.nii.gz", volume)
    free = read_nifti(tmp_path / "free.nii.gz")
    assert free.geometry.same_grid(volume.geometry)
    np.testing.assert_array_equal(free.array, volume.array)


def test_what_lies_on_a_grid_with_rounded_directions_can_be_read_again(tmp_path: Path) -> None:
    """As other formats state them, with three decimals; a qform cannot say that axes are not quite square."""
    apart = 0
    for angles in np.random.default_rng(2).uniform(-1, 1, (60, 3)):
        directions = np.round(Rotation.from_euler("xyz", angles).as_matrix(), 3)
        if np.abs(directions.T @ directions - np.diag(np.diag(directions.T @ directions))).max() > 9e-4:
            continue  # it counts as sheared
        grid = Geometry.from_parts((9, 6, 6), (200.0, 100.0, 100.0), directions=directions)
        path = tmp_path / "mask.nii"
        write_nifti(path, Volume(np.zeros(grid.shape, dtype=np.uint8), grid))
        assert np.abs(read_labels(path).reordered_like(grid).geometry.affine - grid.affine).max() < 1e-3
        apart += int(nib.load(path).header["qform_code"]) == 0
    assert 0 < apart < 60


def test_left_is_left(tmp_path: Path) -> None:
    """In a RAS+ file the last x index is the patient's right-most... in LPS its x is the smallest."""
    array = np.zeros((3, 4, 5), dtype=np.int16)
    array[2, 0, 4] = 9  # RAS: to the right, front-most row 0 means back, highest slice
    volume = read_nifti(save(tmp_path / "a.nii.gz", array, np.eye(4)))
    s, r, c = np.argwhere(volume.array == 9)[0]
    np.testing.assert_allclose(volume.geometry.to_world([s, r, c]), [-2, 0, 4])


def test_types(tmp_path: Path) -> None:
    assert read_nifti(save(tmp_path / "a.nii.gz", np.ones((2, 3, 4), np.int16))).array.dtype == np.int16
    assert read_nifti(save(tmp_path / "b.nii", np.ones((2, 3, 4), np.float32))).array.dtype == np.float32
    assert read_nifti(save(tmp_path / "c.nii.gz", np.ones((2, 3, 4, 1), np.int16))).array.ndim == 3
    labels = read_labels(save(tmp_path / "d.nii.gz", np.full((2, 3, 4), 3.0, np.float32)))
    assert labels.array.dtype == np.uint8
    assert (labels.array == 3).all()
    assert read_labels(save(tmp_path / "e.nii.gz", np.full((2, 3, 4), 300, np.int16))).array.dtype == np.uint16


def test_scaled_integers_are_hounsfield_units(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.full((2, 3, 4), 1064, np.int16), np.eye(4))
    image.header.set_slope_inter(1, -1024)
    nib.save(image, tmp_path / "a.nii.gz")
    raw = nib.load(tmp_path / "a.nii.gz")
    np.testing.assert_allclose(
        read_nifti(tmp_path / "a.nii.gz").array, np.moveaxis(raw.get_fdata(), 2, 0)[0, 0, 0]
    )


def test_the_same_volume_gives_the_same_bytes(tmp_path: Path) -> None:
    volume = Volume(np.arange(24, dtype=np.int16).reshape(2, 3, 4), Geometry.from_parts((2, 3, 4), (2, 1, 1)))
    write_nifti(tmp_path / "a.nii.gz", volume)
    write_nifti(tmp_path / "b.nii.gz", volume)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.nii.gz", "b.nii.gz"]


def test_names() -> None:
    assert is_nifti(Path("x/a.nii.gz"))
    assert is_nifti(Path("a.nii"))
    assert not is_nifti(Path("a.dcm"))
    assert case_name(Path("x/a.b.nii.gz")) == "a.b"


def _nan(path: Path) -> None:
    array = np.zeros((3, 4, 5), np.float32)
    array[1, 1, 1] = np.nan
    save(path, array)


def _truncated(path: Path) -> None:
    save(path, np.random.default_rng(0).integers(-1000, 1000, (30, 30, 30)).astype(np.int16))
    path.write_bytes(path.read_bytes()[:-4000])


def _no_codes(path: Path) -> None:
    image = nib.Nifti1Image(np.zeros((3, 4, 5), np.int16), None)
    image.set_sform(None, code=0)
    image.set_qform(None, code=0)
    nib.save(image, path)


def _two_places(path: Path) -> None:
    image = nib.Nifti1Image(np.zeros((3, 4, 5), np.int16), np.eye(4))
    image.set_sform(np.eye(4), code=1)
    image.set_qform(np.diag([1.0, 1.0, 2.0, 1.0]), code=1)
    nib.save(image, path)


def _sform(path: Path, matrix: np.ndarray) -> None:
    image = nib.Nifti1Image(np.zeros((3, 4, 5), np.int16), np.eye(4))
    image.set_sform(matrix, code=1)
    nib.save(image, path)


def _nan_affine(path: Path) -> None:
    save(path, np.zeros((3, 4, 5), np.int16))
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[280:284] = np.float32(np.nan).tobytes()  # the first entry of srow_x
    path.write_bytes(gzip.compress(content))


BAD_FILES = {
    "4 dimensions": lambda p: save(p, np.zeros((3, 4, 5, 2), np.int16)),
    "2 dimensions": lambda p: save(p, np.zeros((3, 4), np.int16)),
    "NaN or infinite": _nan,
    "truncated or damaged": _truncated,
    "no orientation": _no_codes,
    "sform and qform": _two_places,
    "singular": lambda p: _sform(p, np.diag([1.0, 0.0, 1.0, 1.0])),
    "sheared": lambda p: _sform(p, np.eye(4) + np.eye(4, k=1) * [0, 0.2, 0, 0]),
    "finite": _nan_affine,
    "not a readable NIfTI": lambda p: p.write_bytes(gzip.compress(b"hello" * 100)),
    "complex": lambda p: save(p, np.zeros((3, 4, 5), np.complex64)),
}


@pytest.mark.parametrize("word", BAD_FILES)
def test_bad_files_are_named_with_their_fault(tmp_path: Path, word: str) -> None:
    path = tmp_path / "bad.nii.gz"
    BAD_FILES[word](path)
    with pytest.raises(InputError) as caught:
        read_nifti(path)
    assert word in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_and_plain_text_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_nifti(tmp_path / "none.nii.gz")
    (tmp_path / "text.nii.gz").write_text("no gzip")
    with pytest.raises(InputError, match="not a readable NIfTI"):
        read_nifti(tmp_path / "text.nii.gz")


@pytest.mark.parametrize(("value", "word"), [(0.5, "whole numbers"), (-1.0, "range from"), (7e4, "range from")])
def test_bad_labels(tmp_path: Path, value: float, word: str) -> None:
    array = np.zeros((3, 4, 5), np.float32)
    array[1, 2, 3] = value
    with pytest.raises(InputError, match=word):
        read_labels(save(tmp_path / "a.nii.gz", array))


def test_a_real_scan(shared_data: Path, tmp_path: Path) -> None:
    path = shared_data / "pelvis_ct_nifti" / "example_ct.nii.gz"
    volume = read_nifti(path)
    assert volume.geometry.shape == (112, 101, 122)
    np.testing.assert_allclose(volume.spacing_mm, (3, 3, 3))
    write_nifti(tmp_path / "back.nii.gz", volume, like=path)
    back, there = nib.load(tmp_path / "back.nii.gz"), nib.load(path)
    np.testing.assert_array_equal(back.affine, there.affine)
    np.testing.assert_array_equal(back.get_fdata(), there.get_fdata())


@pytest.mark.parametrize(
    ("offset", "kind", "values", "word"),
    [
        (42, "h", (2000, 2000, 2000), "at most 1 GiB is read"),
        (70, "hh", (1792, 128), "expected integers or real numbers"),
        (280, "f", (1e30,), "is expected|not|must"),
        (280, "f", (float("inf"),), "not finite"),
        (280, "f", (9000.0,), "its field is"),
        (108, "f", (3e38,), "vox|damaged|truncated"),
        (252, "h", (-159,), ""),
    ],
)
def test_headers_that_lie_are_refused_and_nothing_is_printed(
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    offset: int,
    kind: str,
    values: tuple[float, ...],
    word: str,
) -> None:
    path = tmp_path / "a.nii"
    save(path, np.arange(24, dtype=np.int16).reshape(2, 3, 4))
    content = bytearray(path.read_bytes())
    struct.pack_into(f"<{kind}" if len(kind) > 1 else f"<{len(values)}{kind}", content, offset, *values)
    path.write_bytes(bytes(content))
    if word:
        with pytest.raises(InputError, match=word) as caught:
            read_nifti(path)
        assert "\n" not in str(caught.value)
    else:
        read_nifti(path)
    assert capfd.readouterr().err == ""


def test_a_packed_file_takes_no_more_memory_than_its_voxels(tmp_path: Path) -> None:
    """Scaled voxels, read in pieces: half as many bytes as the result for each copy that there is not."""
    image = nib.Nifti1Image(np.zeros((200, 200, 200), dtype=np.int16), np.diag([-1.0, -1.0, 2.0, 1.0]))
    image.header.set_slope_inter(0.5, -7)
    nib.save(image, tmp_path / "a.nii.gz")
    tracemalloc.start()
    volume = read_nifti(tmp_path / "a.nii.gz")
    assert tracemalloc.get_traced_memory()[1] < 1.6 * volume.array.nbytes
    tracemalloc.stop()
    assert (volume.array == -7).all()


@pytest.mark.parametrize("dtype", [">i2", "<i4", "<f8", "u1", "<u2", ">f4"])
@pytest.mark.parametrize("scaling", [None, (0.25, -3.0)])
def test_voxels_are_what_nibabel_reads(
    tmp_path: Path, dtype: str, scaling: tuple[float, float] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("metricunet.files.nifti.PIECE_BYTES", 13)  # pieces end within a voxel
    array = (np.arange(60).reshape(3, 4, 5) * 3 % 200).astype(dtype)
    image = nib.Nifti1Image(array, np.diag([1.0, -1.0, 2.0, 1.0]))
    image.header.set_data_dtype(np.dtype(dtype))
    if scaling is not None:
        image.header.set_slope_inter(*scaling)
    nib.save(image, tmp_path / "a.nii.gz")
    theirs = np.asanyarray(nib.load(tmp_path / "a.nii.gz").dataobj)
    ours = read_nifti(tmp_path / "a.nii.gz").array
    np.testing.assert_array_equal(ours.transpose(2, 1, 0), theirs.astype(np.float32))


@pytest.mark.parametrize(("scale", "unit"), [(1e-3, "meter"), (1e3, "micron")])
def test_a_header_in_metres_or_microns_is_refused(tmp_path: Path, scale: float, unit: str) -> None:
    image = nib.Nifti1Image(np.zeros((64, 64, 12), np.int16), np.diag([2 * scale, 2 * scale, 3 * scale, 1]))
    image.header.set_xyzt_units(unit)
    nib.save(image, tmp_path / "a.nii.gz")
    with pytest.raises(InputError, match=r"its field is .* mm, at (least|most) .*it is in millimetres") as caught:
        read_nifti(tmp_path / "a.nii.gz")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("sform", "qform"), [(0, 1), (2, 0), (1, 1)])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("shape", [(4, 5, 6), (4, 5, 6, 1)])
def test_headers_as_programs_write_them(
    tmp_path: Path, sform: int, qform: int, kind: type, shape: tuple[int, ...]
) -> None:
    voxels = np.arange(120, dtype=np.int16).reshape(shape)
    image = kind(voxels, np.diag([-2.0, 2.0, 3.0, 1.0]))
    image.set_sform(image.affine, code=sform)
    image.set_qform(image.affine, code=qform)
    nib.save(image, tmp_path / "a.nii.gz")
    scan = read_nifti(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(scan.array, voxels.reshape(4, 5, 6).transpose(2, 1, 0))
    assert scan.spacing_mm == (3, 2, 2)
    write_nifti(tmp_path / "mask.nii.gz", scan.with_array(scan.array > 50), like=tmp_path / "a.nii.gz")
    mask = nib.load(tmp_path / "mask.nii.gz")
    assert (int(mask.header["sform_code"]), int(mask.header["qform_code"])) == (sform, qform)
    np.testing.assert_allclose(mask.affine, image.affine, atol=1e-5)


@pytest.mark.parametrize("endianness", ["<", ">"])
def test_a_mask_has_both_forms_of_its_scan(tmp_path: Path, endianness: str) -> None:
    """Registered scans keep two places that differ by rounding; either byte order is read."""
    voxels = np.arange(120, dtype=np.int16).reshape(4, 5, 6)
    affine = np.diag([-2.0, 2.0, 3.0, 1.0])
    image = nib.Nifti1Image(voxels, affine, header=nib.Nifti1Header(endianness=endianness))
    image.set_sform(affine, code=1)
    beside = affine.copy()
    beside[:3, 3] = 0.2
    image.set_qform(beside, code=1)
    nib.save(image, tmp_path / "a.nii.gz")
    scan = read_nifti(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(scan.array, voxels.transpose(2, 1, 0))
    write_nifti(tmp_path / "mask.nii.gz", scan.with_array(scan.array > 50), like=tmp_path / "a.nii.gz")
    mask = nib.load(tmp_path / "mask.nii.gz")
    np.testing.assert_array_equal(np.asanyarray(mask.dataobj), voxels > 50)
    np.testing.assert_allclose(mask.get_sform(), affine, atol=1e-6)
    np.testing.assert_allclose(mask.get_qform(), beside, atol=1e-6)


@pytest.mark.parametrize(
    ("field", "number"),
    [("quatern_b", 2.0), ("quatern_c", np.nan), ("pixdim", np.nan)],
)
def test_what_is_stored_beside_a_code_of_0_keeps_no_mask_from_being_written(
    tmp_path: Path, field: str, number: float
) -> None:
    """The sform says where the scan lies; its qform says nothing, and may hold what is no rotation."""
    voxels, affine = np.arange(120, dtype=np.int16).reshape(4, 5, 6), np.diag([-2.0, 2.0, 3.0, 1.0])
    image = nib.Nifti1Image(voxels, affine)
    image.set_sform(affine, code=2)
    image.set_qform(affine, code=0)
    nib.save(image, tmp_path / "a.nii")
    content = bytearray((tmp_path / "a.nii").read_bytes())
    at = nib.Nifti1Header.template_dtype.fields[field][1] + (8 if field == "pixdim" else 0)  # the second number
    content[at : at + 4] = struct.pack("<f", number)
    (tmp_path / "a.nii").write_bytes(content)
    scan = read_nifti(tmp_path / "a.nii")
    write_nifti(tmp_path / "mask.nii.gz", scan.with_array(scan.array > 50), like=tmp_path / "a.nii")
    mask = nib.load(tmp_path / "mask.nii.gz")
    np.testing.assert_array_equal(np.asanyarray(mask.dataobj), voxels > 50)
    np.testing.assert_allclose(mask.affine, affine, atol=1e-6)
    assert (int(mask.header["sform_code"]), int(mask.header["qform_code"])) == (2, 0)
    np.testing.assert_allclose(mask.header.get_zooms(), (2, 2, 3), atol=1e-6)
