"""NRRD and MetaImage: the same voxels in the same places as ITK and NIfTI say; what is not stated is refused."""

from __future__ import annotations

import bz2
import gzip
import re
import tracemalloc
import zlib
from collections.abc import Callable
from itertools import permutations
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from metricunet.errors import InputError
from metricunet.files.itk import is_itk, itk_files, read_itk, read_itk_labels
from metricunet.files.nifti import read_nifti, write_nifti
from metricunet.volume import Volume
from tests.support.command import Command

SUFFIXES = (".nrrd", ".nhdr", ".mha", ".mhd")


def image(
    array: NDArray[np.generic],
    directions: NDArray[np.float64] | None = None,
    spacing: tuple[float, float, float] = (0.9, 1.1, 3.0),
    origin: tuple[float, float, float] = (-30.25, 40.5, 700.125),
) -> sitk.Image:
    """An ITK image of an array [z, y, x]."""
    made = sitk.GetImageFromArray(array)
    made.SetSpacing(spacing)
    made.SetOrigin(origin)
    if directions is not None:
        made.SetDirection(directions.ravel().tolist())
    return made


def pattern(dtype: str = "int16", shape: tuple[int, int, int] = (4, 5, 6)) -> NDArray[np.generic]:
    return np.arange(np.prod(shape)).reshape(shape).astype(dtype)


def assert_same_places(volume: Volume, oracle: sitk.Image) -> None:
    """Every voxel of ITK's image has its value at the same point of the patient."""
    values = sitk.GetArrayFromImage(oracle)
    index = np.array(list(np.ndindex(oracle.GetSize())))
    points = [oracle.TransformIndexToPhysicalPoint(i) for i in index.tolist()]
    ours = np.rint(volume.geometry.to_index(points)).astype(int)
    np.testing.assert_allclose(volume.geometry.to_world(ours), points, rtol=0, atol=1e-9)
    np.testing.assert_array_equal(volume.array[tuple(ours.T)], values[tuple(index[:, ::-1].T)])


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    axes=st.sampled_from(list(permutations(range(3)))),
    signs=st.tuples(*[st.sampled_from([-1.0, 1.0])] * 3),
    angles=st.tuples(*[st.floats(-60, 60)] * 3),
    spacing=st.tuples(*[st.floats(0.3, 6)] * 3),
    origin=st.tuples(*[st.floats(-900, 900)] * 3),
    packed=st.booleans(),
)
def test_any_grid_is_where_itk_and_nibabel_see_it(
    tmp_path: Path,
    axes: tuple[int, int, int],
    signs: tuple[float, float, float],
    angles: tuple[float, float, float],
    spacing: tuple[float, float, float],
    origin: tuple[float, float, float],
    packed: bool,
) -> None:
    turn = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
    written = image(pattern(), turn @ (np.eye(3)[:, axes] * signs), spacing, origin)
    sitk.WriteImage(written, tmp_path / "scan.nii.gz")
    nifti = read_nifti(tmp_path / "scan.nii.gz")
    for suffix in SUFFIXES:
        path = tmp_path / f"scan{suffix}"
        sitk.WriteImage(written, path, packed)
        volume = read_itk(path)
        assert volume.array.dtype == np.int16
        assert_same_places(volume, sitk.ReadImage(path))
        # NIfTI keeps its grid in float32, so it agrees to a few micrometres.
        assert volume.geometry.same_grid(nifti.geometry)
        np.testing.assert_array_equal(volume.array, nifti.array)
        # What is written for such a scan lies on its grid.
        write_nifti(tmp_path / "out.nii.gz", volume)
        back = read_nifti(tmp_path / "out.nii.gz")
        assert back.geometry.same_grid(volume.geometry)
        np.testing.assert_array_equal(back.array, volume.array)


TYPES = {
    **dict.fromkeys(("int8", "uint8", "int16"), "int16"),
    **dict.fromkeys(("uint16", "int32", "uint32", "int64", "uint64", "float32", "float64"), "float32"),
}


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("packed", [False, True])
def test_types(tmp_path: Path, suffix: str, packed: bool) -> None:
    for stored, read in TYPES.items():
        path = tmp_path / f"{stored}{suffix}"
        sitk.WriteImage(image(pattern(stored)), path, packed)
        volume = read_itk(path)
        assert volume.array.dtype == read
        assert volume.array.flags.writeable
        np.testing.assert_array_equal(volume.array, pattern(read))
        labels = read_itk_labels(path)
        assert labels.array.dtype == np.uint8
        np.testing.assert_array_equal(labels.array, pattern("uint8"))


NRRD = """NRRD0004
# Complete NRRD file format specification at: http://teem.sourceforge.net/nrrd/format.html
type: short
dimension: 3
space: {space}
sizes: 6 5 4
space directions: {directions}
kinds: domain domain domain
endian: little
encoding: raw
space origin: {origin}
"""


def nrrd(
    space: str = "left-posterior-superior",
    directions: str = "(0.9,0,0) (0,1.1,0) (0,0,3)",
    origin: str = "(-30.25,40.5,700.125)",
) -> str:
    return NRRD.format(space=space, directions=directions, origin=origin)


META = """ObjectType = Image
NDims = 3
BinaryData = True
BinaryDataByteOrderMSB = False
CompressedData = False
TransformMatrix = 1 0 0 0 1 0 0 0 1
Offset = -30.25 40.5 700.125
CenterOfRotation = 0 0 0
AnatomicalOrientation = RAI
ElementSpacing = 0.9 1.1 3
DimSize = 6 5 4
ElementType = MET_SHORT
ElementDataFile = LOCAL
"""


def save(path: Path, header: str, data: bytes | None = None) -> Path:
    ending = "\n" if path.suffix in (".nrrd", ".nhdr") else ""
    path.write_bytes((header + ending).encode() + (pattern().astype("<i2").tobytes() if data is None else data))
    return path


@pytest.mark.parametrize(
    ("space", "directions", "origin"),
    [
        ("left-posterior-superior", "(0.9,0,0) (0,1.1,0) (0,0,3)", "(-30.25,40.5,700.125)"),
        ("LPS", "(0.9,0,0) (0,1.1,0) (0,0,3)", "(-30.25,40.5,700.125)"),
        ("right-anterior-superior", "(-0.9,0,0) (0,-1.1,0) (0,0,3)", "(30.25,-40.5,700.125)"),
        ("RAS", "(-0.9,0,0) (0,-1.1,0) (0,0,3)", "(30.25,-40.5,700.125)"),
        ("left-anterior-superior", "( 0.9 , 0 , 0 ) (0,-1.1,0) (0,0,3)", "(-30.25,-40.5,700.125)"),
        ("LAS", "(0.9,0,0)(0,-1.1,0)(0,0,3)", "(-30.25,-40.5,700.125)"),
    ],
)
def test_spaces_of_nrrd_are_one_place(tmp_path: Path, space: str, directions: str, origin: str) -> None:
    volume = read_itk(save(tmp_path / "a.nrrd", nrrd(space, directions, origin)))
    np.testing.assert_allclose(volume.geometry.to_world([0, 0, 0]), (-30.25, 40.5, 700.125))
    np.testing.assert_allclose(volume.geometry.to_world([3, 4, 5]), (-25.75, 44.9, 709.125))
    assert volume.array[3, 4, 5] == 119
    if len(space) > 3:  # ITK knows the long names alone
        assert_same_places(volume, sitk.ReadImage(tmp_path / "a.nrrd"))


def test_the_metaimage_written_by_hand_is_what_itk_reads(tmp_path: Path) -> None:
    path = save(tmp_path / "a.mha", META.replace("1 0 0 0 1 0 0 0 1", "0 1 0 0 0 1 1 0 0"))
    assert_same_places(read_itk(path), sitk.ReadImage(path))
    renamed = META.replace("Offset", "Position").replace("TransformMatrix", "Rotation")
    path = save(tmp_path / "b.mha", renamed.replace("= Image", "= image").replace("\n", "\r\n"))
    assert read_itk(path).geometry.same_grid(read_itk(save(tmp_path / "c.mha", META)).geometry)


def test_the_metaimages_long_has_four_bytes(tmp_path: Path) -> None:
    path = save(tmp_path / "a.mha", META.replace("MET_SHORT", "MET_LONG"), pattern().astype("<i4").tobytes())
    assert_same_places(read_itk(path), sitk.ReadImage(path))


def _big(text: str) -> tuple[str, bytes]:
    return text.replace("endian: little", "endian: big"), pattern().astype(">i2").tobytes()


def _coded(text: str, name: str, pack: Callable[[bytes], bytes], skip: int = 0) -> tuple[str, bytes]:
    text = text.replace("encoding: raw", f"encoding: {name}\nbyte skip: {skip}")
    return text, pack(b"x" * max(0, skip) + pattern().astype("<i2").tobytes())


VARIANTS: dict[str, Callable[[], tuple[str, bytes]]] = {
    "big endian": lambda: _big(nrrd()),
    "gzip": lambda: _coded(nrrd(), "gzip", gzip.compress),
    "gzip in two members": lambda: _coded(nrrd(), "gz", lambda b: gzip.compress(b[:50]) + gzip.compress(b[50:])),
    "bzip2": lambda: _coded(nrrd(), "bzip2", bz2.compress, skip=7),
    "bytes to skip": lambda: _coded(nrrd(), "raw", bytes, skip=11),
    "the last bytes": lambda: (nrrd().replace("raw", "raw\nbyteskip: -1"), b"abc" + pattern().tobytes()),
    "notes of programs": lambda: (nrrd() + "Segment0_Name:=Prostate: the gland\n", pattern().tobytes()),
    "an axis of one": lambda: (
        nrrd(directions="(0.9,0,0) (0,1.1,0) (0,0,3) none")
        .replace("6 5 4", "6 5 4 1")
        .replace("dimension: 3", "dimension: 4"),
        pattern().tobytes(),
    ),
    "units": lambda: (nrrd() + 'space units: "mm" "mm" "mm"\n', pattern().tobytes()),
}


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("detached", [False, True])
def test_variants_of_nrrd(tmp_path: Path, name: str, detached: bool) -> None:
    header, data = VARIANTS[name]()
    if detached:
        (tmp_path / "raw").mkdir()
        (tmp_path / "raw" / "a.data").write_bytes(data)
        path = save(tmp_path / "a.nhdr", header + "data file: raw/a.data\n", b"")
        assert itk_files(path) == (path, tmp_path / "raw" / "a.data")
    else:
        path = save(tmp_path / "a.nrrd", header, data)
        assert itk_files(path) == (path,)
    volume = read_itk(path)
    np.testing.assert_array_equal(volume.array, pattern())
    assert volume.geometry.same_grid(read_itk(save(tmp_path / "plain.nrrd", nrrd())).geometry)


def test_variants_of_metaimage(tmp_path: Path) -> None:
    data = pattern().astype(">i2").tobytes()
    big = META.replace("MSB = False", "MSB = True")
    np.testing.assert_array_equal(read_itk(save(tmp_path / "a.mha", big, data)).array, pattern())
    packed = big.replace("CompressedData = False", "CompressedData = True")
    for pack in (zlib.compress, gzip.compress):
        np.testing.assert_array_equal(read_itk(save(tmp_path / "a.mha", packed, pack(data))).array, pattern())
    (tmp_path / "b.raw").write_bytes(b"header" + data)
    for skip in ("6", "-1"):
        text = big.replace("LOCAL", "b.raw").replace("NDims", f"HeaderSize = {skip}\nNDims")
        path = save(tmp_path / "b.mhd", text, b"")
        np.testing.assert_array_equal(read_itk(path).array, pattern())
        assert itk_files(path) == (path, tmp_path / "b.raw")


def _without(text: str, name: str) -> str:
    shorter = re.sub(rf"(?m)^{name}(?= ?[:=]).*\n", "", text)
    assert shorter != text
    return shorter


def _with(text: str, old: str, new: str) -> str:
    assert old in text
    return text.replace(old, new)


BAD_NRRD = {
    "space is missing, so left and right are unknown": _without(nrrd(), "space"),
    "space directions is missing": _without(nrrd(), "space directions"),
    "space origin is missing": _without(nrrd(), "space origin"),
    "space is scanner-xyz": nrrd(space="scanner-xyz"),
    "(6, 5, 4, 2)": nrrd(directions="(0.9,0,0) (0,1.1,0) (0,0,3) none").replace("6 5 4", "6 5 4 2"),
    "(3, 6, 5, 4)": nrrd(directions="none (0.9,0,0) (0,1.1,0) (0,0,3)").replace("6 5 4", "3 6 5 4"),
    "has 2 sizes but 3": _with(nrrd(), "6 5 4", "6 5"),
    "has 2 dimensions": nrrd(directions="(1,0,0) (0,1,0)").replace("6 5 4", "6 5"),
    "sheared": nrrd(directions="(0.9,0,0) (0.3,1.1,0) (0,0,3)"),
    "singular": nrrd(directions="(0.9,0,0) (0,0,0) (0,0,3)"),
    "space directions is '0.9 0'": nrrd(directions="(0.9,0) (0,1.1,0) (0,0,3)"),
    "expected 3 finite numbers": nrrd(directions="(nan,0,0) (0,1.1,0) (0,0,3)"),
    "space origin is not one vector": nrrd(origin="(1,2,3) (4,5,6)"),
    "space units are m": nrrd() + 'space units: "m" "m" "m"\n',
    "type is block": _with(nrrd(), "short", "block"),
    "encoding is hex": _with(nrrd(), "raw", "hex"),
    "endian is missing": _without(nrrd(), "endian"),
    "endian is middle": _with(nrrd(), "little", "middle"),
    "sizes is 'six five four'": _with(nrrd(), "6 5 4", "six five four"),
    "expected at least one voxel": _with(nrrd(), "6 5 4", "6 0 4"),
    "line skip is 3": nrrd() + "line skip: 3\n",
    "byte skip is -2": nrrd() + "byte skip: -2\n",
    "expected one whole number": nrrd() + "byte skip: 1 2\n",
    "states type twice": nrrd() + "type: short\n",
    "spread over several files": nrrd() + "data file: LIST\na.raw\nb.raw\n",
    "several files; save": nrrd() + "data file: slice%03d.raw 1 4 1\n",
    "not beside it": nrrd() + "data file: ../other.raw\n",
    "other.raw is not beside it": nrrd() + "data file: /etc/other.raw\n",
    "nowhere.raw is missing": nrrd() + "data file: nowhere.raw\n",
    "fewer than the 360": _with(nrrd(), "6 5 4", "6 5 6"),
    "more than the 120": _with(nrrd(), "6 5 4", "6 5 2"),
    "truncated or damaged": _with(nrrd(), "encoding: raw", "encoding: gzip"),
    "damaged (Invalid data": _with(nrrd(), "encoding: raw", "encoding: bz2"),
    "not an NRRD file": _with(nrrd(), "NRRD0004", "P6 3 4"),
    "voxels along an axis": _with(nrrd(), "6 5 4", "99999999999 99999999999 99999999999"),
    "its field is": _with(nrrd(), "6 5 4", "9999 9999 9999"),
}
BAD_META = {
    "TransformMatrix is missing, so left and right are unknown": _without(META, "TransformMatrix"),
    "Offset is missing": _without(META, "Offset"),
    "ElementSpacing is missing": _without(META, "ElementSpacing"),
    "DimSize is missing": _without(META, "DimSize"),
    "ElementType is missing": _without(META, "ElementType"),
    "ElementSpacing is (0.9, -1.1, 3.0)": _with(META, "0.9 1.1 3", "0.9 -1.1 3"),
    "expected 9 finite numbers": _with(META, "1 0 0 0 1 0 0 0 1", "1 0 0 1"),
    "sheared": _with(META, "1 0 0 0 1 0 0 0 1", "1 0 0 0.5 1 0 0 0 1"),
    "has 4 dimensions (6, 5, 4, 2)": _with(_with(META, "NDims = 3", "NDims = 4"), "6 5 4", "6 5 4 2"),
    "has 2 dimensions": _with(_with(META, "NDims = 3", "NDims = 2"), "6 5 4", "6 5"),
    "ElementNumberOfChannels is 3": _with(META, "ElementDataFile", "ElementNumberOfChannels = 3\nElementDataFile"),
    "ObjectType is Tube": _with(META, "= Image", "= Tube"),
    "BinaryData is False": _with(META, "BinaryData = True", "BinaryData = False"),
    "DistanceUnits is cm": _with(META, "NDims", "DistanceUnits = cm\nNDims"),
    "FunctionSlope is 2": _with(META, "NDims", "ElementToIntensityFunctionSlope = 2\nNDims"),
    "ElementType is MET_FLOAT_ARRAY": _with(META, "MET_SHORT", "MET_FLOAT_ARRAY"),
    "spread over several files": _with(META, "LOCAL", "LIST\na.raw"),
    "nowhere.raw is missing": _with(META, "LOCAL", "nowhere.raw"),
    "not beside it": _with(META, "LOCAL", "a/../../b.raw"),
    "HeaderSize is -7": _with(META, "NDims", "HeaderSize = -7\nNDims"),
    "fewer than the 480": _with(META, "MET_SHORT", "MET_INT"),
    "more than the 120": _with(META, "MET_SHORT", "MET_UCHAR"),
    "truncated or damaged": _with(META, "CompressedData = False", "CompressedData = True"),
    "not a MetaImage (NDims": "once upon a time\n",
    "header is no text": "\udce9",
}


@pytest.mark.parametrize(
    ("suffix", "word", "header"),
    [(".nrrd", *item) for item in BAD_NRRD.items()] + [(".mha", *item) for item in BAD_META.items()],
)
def test_bad_files_are_named_with_their_fault(tmp_path: Path, suffix: str, word: str, header: str) -> None:
    path = tmp_path / f"bad{suffix}"
    path.write_bytes(
        (header + ("\n" if suffix == ".nrrd" else "")).encode(errors="surrogateescape") + pattern().tobytes()
    )
    with pytest.raises(InputError, match=re.escape(word)) as caught:
        read_itk(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("suffix", "header"),
    [
        (".nrrd", nrrd(space="left-posterior-superior " * 2000)),
        (".nrrd", _with(nrrd(), "6 5 4", "6 5 4 " * 2000)),
        (".nrrd", nrrd() + f"data file: {'far/' * 2000}a.raw\n"),
        (".nrrd", nrrd() + "space units: " + '"furlong" ' * 2000 + "\n"),
        (".mha", _with(META, "BinaryData = True", f"BinaryData = {'no' * 2000}")),
        (".mha", _with(META, "6 5 4", "6 5 4 " * 2000)),
    ],
)
def test_a_long_value_is_not_repeated_whole(tmp_path: Path, suffix: str, header: str) -> None:
    path = tmp_path / f"bad{suffix}"
    path.write_bytes((header + ("\n" if suffix == ".nrrd" else "")).encode() + pattern().tobytes())
    with pytest.raises(InputError) as caught:
        read_itk(path)
    assert len(str(caught.value)) < len(str(path)) + 400


def test_other_bad_files(tmp_path: Path) -> None:
    for suffix in SUFFIXES:
        with pytest.raises(InputError, match="no such file"):
            read_itk(tmp_path / f"none{suffix}")
        (tmp_path / f"empty{suffix}").write_bytes(b"")
        with pytest.raises(InputError, match="not a"):
            read_itk(tmp_path / f"empty{suffix}")
        (tmp_path / f"long{suffix}").write_bytes(b"NRRD0004\n" + b"#" * (2 << 20))
        with pytest.raises(InputError, match="does not end"):
            read_itk(tmp_path / f"long{suffix}")
    with pytest.raises(InputError, match="names no data file"):
        read_itk(save(tmp_path / "a.nhdr", nrrd()))
    values = pattern("float32")
    values[1, 2, 3] = np.nan
    sitk.WriteImage(image(values), tmp_path / "nan.mha")
    with pytest.raises(InputError, match="1 voxels are NaN"):
        read_itk(tmp_path / "nan.mha")
    sitk.WriteImage(image(pattern("float32") / 2), tmp_path / "half.nrrd")
    with pytest.raises(InputError, match="not whole numbers"):
        read_itk_labels(tmp_path / "half.nrrd")
    for suffix in (".nrrd", ".mha"):
        path = tmp_path / f"cut{suffix}"
        sitk.WriteImage(image(np.random.default_rng(0).normal(size=(9, 9, 9))), path, True)
        path.write_bytes(path.read_bytes()[:-100])
        with pytest.raises(InputError, match="truncated or damaged"):
            read_itk(path)


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_a_header_that_lies_takes_no_memory(tmp_path: Path, suffix: str) -> None:
    """Four thousand gigabytes announced, none there; and a bomb behind a small header stops at its size."""
    bomb = zlib.compress(bytes(300 << 20), 9) if suffix == ".mha" else gzip.compress(bytes(300 << 20), 9)
    packed = _with(META, "CompressedData = False", "CompressedData = True")
    text = packed if suffix == ".mha" else _with(nrrd(), "encoding: raw", "encoding: gzip")
    small = save(tmp_path / f"bomb{suffix}", text, bomb)
    plain = META if suffix == ".mha" else nrrd()
    large = save(tmp_path / f"large{suffix}", _with(plain, "6 5 4", "16384 16384 8192"))
    tracemalloc.start()
    for path in (small, large):
        with pytest.raises(InputError, match=r"bytes of voxels|its field is"):
            read_itk(path)
    assert tracemalloc.get_traced_memory()[1] < 150 << 20
    tracemalloc.stop()


def test_names() -> None:
    assert all(is_itk(Path(f"x/a{suffix}")) for suffix in (*SUFFIXES, ".NRRD", ".seg.nrrd"))
    assert not is_itk(Path("a.nii.gz"))
    assert not is_itk(Path("a.raw"))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_real_scan(shared_data: Path, tmp_path: Path, suffix: str) -> None:
    source = shared_data / "pelvis_ct_nifti" / "example_ct.nii.gz"
    theirs = sitk.ReadImage(source)
    sitk.WriteImage(theirs, tmp_path / f"scan{suffix}", True)
    scan, nifti = read_itk(tmp_path / f"scan{suffix}"), read_nifti(source)
    assert scan.geometry.same_grid(nifti.geometry)
    np.testing.assert_array_equal(scan.array, nifti.array)
    stored = nib.load(source)
    np.testing.assert_allclose(stored.affine[:3, 3] * [-1, -1, 1], scan.geometry.to_world([0, 0, 0]), atol=1e-4)


class TestCommands:
    """Wherever a NIfTI file goes in, the other formats go in too."""

    @pytest.mark.parametrize("suffix", SUFFIXES)
    def test_predict_check_evaluate(
        self, metricunet: Command, tiny_cohort: Path, tiny_model: Path, tmp_path: Path, suffix: str
    ) -> None:
        source = tiny_cohort / "imagesTr" / "case_00_0000.nii.gz"
        scan, reference = tmp_path / f"case_00{suffix}", tmp_path / "labels" / f"case_00{suffix}"
        reference.parent.mkdir()
        sitk.WriteImage(sitk.ReadImage(source), scan)
        sitk.WriteImage(sitk.ReadImage(tiny_cohort / "labelsTr" / "case_00.nii.gz"), reference)
        assert metricunet("check", scan).status == metricunet("check", source).status == 0
        for path, output in ((scan, "ours"), (source, "nifti")):
            done = metricunet("predict", path, "-m", tiny_model, "-o", tmp_path / output, "--device", "cpu")
            assert done.status in (0, 1), done.err
        mask = read_nifti(tmp_path / "ours" / "case_00.nii.gz")
        expected = read_nifti(tmp_path / "nifti" / "case_00.nii.gz")
        assert mask.geometry.same_grid(read_itk(scan).geometry)
        np.testing.assert_array_equal(mask.array, expected.array)
        done = metricunet("evaluate", tmp_path / "ours", reference.parent, "-o", tmp_path / "eval")
        assert done.status == 0, done.err
        assert (tmp_path / "eval" / "cases.csv").read_text().count("case_00") == 1
        refused = metricunet("predict", scan, "-m", tiny_model, "-o", tmp_path / "rt", "--format", "rtstruct")
        assert refused.status == 2
        assert "needs a DICOM series" in refused.err
