"""What lies in the folders that people have, as `predict` and `check` see it."""

from __future__ import annotations

import errno
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pydicom
import pytest

from metricunet.errors import InputError
from metricunet.files.nifti import write_nifti
from metricunet.inference.inputs import find_inputs, scans_at
from metricunet.workflows.check import check
from tests.support.command import Command
from tests.support.dicom_series import pattern, write_series
from tests.support.slicer import write_nrrd
from tests.support.threshold_model import GLAND_HU, ball, drawn_scan

APPLE_DOUBLE = b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        ".ljust(4096, b"\0")
SCAN = drawn_scan((ball((0, 0, 0), 10), GLAND_HU), shape=(12, 30, 30), spacing_mm=(3, 3, 3))


def ct(folder: Path, **more: object) -> Path:
    write_series(folder, SCAN.array, spacing_mm=SCAN.spacing_mm, **more)  # type: ignore[arg-type]
    return folder


def slices(path: Path) -> list[int]:
    """Return how many slices each scan at a path has; nothing else may count as a scan at fault."""
    found, refused = scans_at(path)
    assert not [r for r in refused if r.is_scan]
    assert not [p for p in check(path) if p.severity == "error"]
    return [len(entry.series.files) for entry in found if entry.series is not None]


def test_what_macos_leaves_beside_files_is_passed_over(tmp_path: Path) -> None:
    folder = ct(tmp_path / "ct")
    for path in list(folder.iterdir()):
        (folder / f"._{path.name}").write_bytes(APPLE_DOUBLE)
    (tmp_path / "__MACOSX").mkdir()
    (tmp_path / "__MACOSX" / "odd.dcm").write_bytes(b"odd")
    assert slices(tmp_path) == [12]


def test_dot_files_and_folders_that_are_dicom_are_read(tmp_path: Path) -> None:
    folder = ct(tmp_path / ".5mm pelvis")
    for path in list(folder.iterdir()):
        path.rename(folder / f".{path.name}")
    assert slices(tmp_path) == [12]


def test_links_are_followed_and_loops_noticed(tmp_path: Path) -> None:
    ct(tmp_path / "store" / "p0")
    (tmp_path / "virtual").mkdir()
    (tmp_path / "virtual" / "p0").symlink_to(tmp_path / "store" / "p0")
    (tmp_path / "virtual" / "again").symlink_to(tmp_path / "store")
    (tmp_path / "store" / "p0" / "loop").symlink_to(tmp_path / "store")
    assert slices(tmp_path / "virtual") == [12]
    assert slices(tmp_path / "store") == [12]


def test_a_series_exported_twice_counts_once(tmp_path: Path) -> None:
    shutil.copytree(ct(tmp_path / "ct"), tmp_path / "copy")
    assert slices(tmp_path) == [12]


def test_raw_data_are_listed_and_fail_nothing(tmp_path: Path) -> None:
    path = next(ct(tmp_path).iterdir())
    raw = pydicom.dcmread(path)
    for keyword in ("Rows", "Columns", "PixelData", "ImagePositionPatient"):
        delattr(raw, keyword)
    raw.SOPClassUID = raw.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.66"
    raw.save_as(tmp_path / "raw.dcm")
    assert slices(tmp_path) == [12]
    (listed,) = scans_at(tmp_path)[1]
    assert "is Raw Data Storage, no image" in listed.reason


@pytest.mark.parametrize(("content", "said"), [(b"", "it is empty"), (b"<html>404</html>", "it holds text")])
def test_what_is_named_like_a_slice_and_is_none_is_named(tmp_path: Path, content: bytes, said: str) -> None:
    (ct(tmp_path) / "report.dcm").write_bytes(content)
    with pytest.raises(InputError, match=said):
        find_inputs([tmp_path])


def test_nifti_beside_dicom_does_not_hide_it(tmp_path: Path) -> None:
    ct(tmp_path)
    write_nifti(tmp_path / "mask.nii.gz", SCAN.with_array((SCAN.array > 0).astype(np.uint8)))
    assert slices(tmp_path) == [12]
    assert [r.path.name for r in scans_at(tmp_path)[1]] == ["mask.nii.gz"]
    write_nifti(tmp_path / "converted.nii.gz", SCAN)
    assert [entry.case for entry in scans_at(tmp_path)[0]][1:] == ["converted"]
    drawn, refused = find_inputs([tmp_path], draw=True)
    assert [entry.series is not None for entry in drawn] == [True]
    assert {r.path.name for r in refused} == {"mask.nii.gz", "converted.nii.gz"}


def test_a_segmentation_of_slicer_beside_its_scan_is_no_scan(tmp_path: Path) -> None:
    mask = (SCAN.array == GLAND_HU).astype(np.uint8)
    write_nrrd(tmp_path / "ct.nrrd", SCAN.array, SCAN.geometry)
    write_nrrd(tmp_path / "ct.seg.nrrd", mask, SCAN.geometry, {"Prostate": 1})
    found, refused = scans_at(tmp_path)
    assert ([entry.case for entry in found], refused) == (["ct"], [])
    (tmp_path / "ct.nrrd").unlink()
    with pytest.raises(InputError, match="holds no CT scan; give a file of a scan"):
        scans_at(tmp_path)


def test_capitals_in_suffixes(tmp_path: Path) -> None:
    write_nifti(tmp_path / "a.nii.gz", SCAN)
    (tmp_path / "a.nii.gz").rename(tmp_path / "A.NII.GZ")
    ((entry,), refused) = find_inputs([tmp_path])
    assert (entry.case, refused) == ("A", [])
    np.testing.assert_array_equal(entry.read().array, SCAN.array)


def test_an_mr_alone_is_an_error_for_both(tmp_path: Path) -> None:
    def mr(k: int, dataset: pydicom.Dataset) -> None:
        dataset.Modality = "MR"

    ct(tmp_path, edit=mr)
    with pytest.raises(InputError, match="is an MR image, expected CT"):
        find_inputs([tmp_path])
    assert [p.severity for p in check(tmp_path)].count("error") == 1


def test_scans_in_folders_below_are_named(tmp_path: Path) -> None:
    write_nifti(tmp_path / "s0" / "ct.nii.gz", SCAN)
    for look in (lambda: find_inputs([tmp_path]), lambda: check(tmp_path)):
        with pytest.raises(InputError, match=r"in folders below it, such as .*ct\.nii\.gz; name these files"):
            look()


def test_a_folder_that_may_not_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, metricunet: Command
) -> None:
    theirs, real = tmp_path / "theirs", Path.iterdir
    theirs.mkdir()

    def locked(self: Path) -> Iterator[Path]:
        if self == theirs:
            raise PermissionError(errno.EACCES, "Permission denied", str(self))
        return real(self)

    monkeypatch.setattr(Path, "iterdir", locked)
    expected = f"{theirs}: cannot be read (Permission denied); check its name and permissions"
    with pytest.raises(InputError, match=re.escape(expected)):
        find_inputs([theirs])
    ended = metricunet("predict", theirs, "-o", tmp_path / "out")
    assert ended.status == 2
    assert f"error: {expected}\n" in ended.err


def test_of_many_series_in_a_folder_the_one_that_holds_no_hu_is_named(tmp_path: Path) -> None:
    write_series(tmp_path / "all" / "first")
    wrong = write_series(tmp_path / "all" / "second", pattern((8, 12, 10)) + np.int16(1001))
    entries, _ = scans_at(tmp_path / "all")
    (entry,) = (e for e in entries if e.series is not None and e.series.series_uid == wrong.series_uid)
    said = f"{wrong.folder}: series {wrong.series_uid}: the lowest value is 1, so these are no Hounsfield units"
    with pytest.raises(InputError) as error:
        entry.read()
    assert str(error.value).startswith(said)
    (problem,) = (p for p in check(tmp_path / "all") if p.severity == "error")
    assert problem.message == str(error.value)


def test_a_series_by_its_uid(tmp_path: Path) -> None:
    """One good series, one that lacks a slice: each is found by its UID, and no other is told of."""
    ct(tmp_path / "good", series_uid="1.2.3")
    ct(tmp_path / "bad", series_uid="1.2.4", leave_out=[5])
    ((entry,), refused) = find_inputs([tmp_path], "1.2.3")
    assert entry.series is not None
    assert (entry.series.series_uid, refused) == ("1.2.3", [])
    with pytest.raises(InputError, match="missing") as error:
        find_inputs([tmp_path], "1.2.4")
    assert "more were refused" not in str(error.value)
    with pytest.raises(InputError, match=r"no series 1\.2\.5; usable series here: 1\.2\.3$"):
        find_inputs([tmp_path], "1.2.5")
    with pytest.raises(InputError, match=r"no series 1\.2\.5; usable series here: none$"):
        find_inputs([tmp_path / "bad"], "1.2.5")


def test_a_series_is_not_asked_for_where_there_is_no_dicom(tmp_path: Path, metricunet: Command) -> None:
    write_nifti(tmp_path / "scan.nii.gz", SCAN)
    for path in (tmp_path / "scan.nii.gz", tmp_path):
        with pytest.raises(InputError, match=r"holds no DICOM series, and series names one; leave it out"):
            find_inputs([path], "1.2.3")
    ended = metricunet("predict", tmp_path / "scan.nii.gz", "--series", "1.2.3", "-o", tmp_path / "out")
    assert ended.status == 2
    assert "scan.nii.gz: holds no DICOM series, and --series names one; leave it out" in ended.err
    ct(tmp_path / "ct", series_uid="1.2.3")
    ((entry,), _) = find_inputs([tmp_path], "1.2.3")
    assert entry.series is not None
    with pytest.raises(InputError, match=r"no series 1\.2\.4; usable series here: 1\.2\.3$"):
        find_inputs([tmp_path], "1.2.4")
