"""Phantoms as DICOM: what comes back equals what went in, to the voxel."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest

from metricunet.files.nifti import read_labels
from metricunet.files.rtstruct.read import read_rtstruct
from metricunet.files.scan import read_scan
from metricunet.phantom import STRUCTURES, Phantom, make_cohort
from metricunet.workflows.phantom_dicom import write_as_dicom
from tests.support.command import Command
from tests.support.dicom_series import find_only
from tests.support.phantoms import quick_phantom


@pytest.mark.usefixtures("quick_phantoms")
def test_what_comes_back_equals_what_went_in(tmp_path: Path) -> None:
    names = make_cohort(tmp_path, 1, n_test=1)
    folder = write_as_dicom(tmp_path, names)
    for name, split in zip(names, ("Tr", "Ts"), strict=True):
        series = find_only(folder / name / "ct")
        scan = read_scan(tmp_path / f"images{split}" / f"{name}_0000.nii.gz")
        back = series.read().reordered_like(scan.geometry)
        np.testing.assert_array_equal(back.array, scan.array)
        truth = read_labels(tmp_path / f"labels{split}" / f"{name}.nii.gz")
        filled = read_rtstruct(folder / name / "rtstruct.dcm", series).masks(series.geometry)
        assert [entry.name for entry in filled] == ["Prostate"]
        assert filled[0].mask is not None
        np.testing.assert_array_equal(filled[0].mask.reordered_like(truth.geometry).array != 0, truth.array == 1)


def test_who_lies_prone_keeps_every_voxel_at_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def prone_phantom(seed: int, *more: object) -> Phantom:
        made = quick_phantom(seed)
        aside = made.labels.with_array(np.roll(made.labels.array, (1, -1), axis=(1, 2)))
        return replace(made, labels=aside, description=made.description | {"position": "prone"})

    monkeypatch.setattr("metricunet.phantom.cohort.make_phantom", prone_phantom)
    (name,) = make_cohort(tmp_path, 1)
    folder = write_as_dicom(tmp_path, [name]) / name
    scan = read_scan(tmp_path / "imagesTr" / f"{name}_0000.nii.gz").canonical()
    truth = read_labels(tmp_path / "labelsTr" / f"{name}.nii.gz").canonical()
    for path in (folder / "ct").glob("*.dcm"):
        file = pydicom.dcmread(path)
        assert file.PatientPosition == "HFP"
        assert list(file.ImageOrientationPatient) == [-1, 0, 0, 0, -1, 0]
        first = np.array(file.ImagePositionPatient, dtype=float)
        between_rows, between_columns = map(float, file.PixelSpacing)
        r, c = np.indices((file.Rows, file.Columns))
        # Columns run to the right, rows to the front.
        place = first - np.stack([c * between_columns, r * between_rows, 0 * r], axis=-1)
        k, row, column = np.rint(scan.geometry.to_index(place)).astype(int).transpose(2, 0, 1)
        np.testing.assert_allclose(scan.geometry.to_world(np.stack([k, row, column], axis=-1)), place, atol=1e-5)
        np.testing.assert_array_equal(file.pixel_array - 1024.0, scan.array[k, row, column])
    series = find_only(folder / "ct")
    np.testing.assert_array_equal(series.read().reordered_like(scan.geometry).array, scan.array)
    (filled,) = read_rtstruct(folder / "rtstruct.dcm", series).masks(series.geometry)
    assert filled.mask is not None
    np.testing.assert_array_equal(filled.mask.reordered_like(truth.geometry).array != 0, truth.array == 1)


def test_the_same_cohort_gives_the_same_identifiers(
    tmp_path: Path, quick_phantoms: None, metricunet: Command
) -> None:
    for name in ("one", "two"):
        assert metricunet("phantom", "-n", 1, "-o", tmp_path / name, "--dicom").status == 0
    one, two = (find_only(tmp_path / name / "dicom" / "phantom_0000" / "ct") for name in ("one", "two"))
    assert (one.series_uid, one.sop_uids) == (two.series_uid, two.sop_uids)
    # Once more, with what is there already.
    assert metricunet("phantom", "-n", 1, "-o", tmp_path / "one", "--dicom").status == 0


def test_sets_of_other_structures_on_one_scan_have_identifiers_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def with_bladder(seed: int, *more: object) -> Phantom:
        made = quick_phantom(seed)
        labels = made.labels.array.copy()
        labels[0] = STRUCTURES["bladder"]
        return replace(made, labels=made.labels.with_array(labels))

    monkeypatch.setattr("metricunet.phantom.cohort.make_phantom", with_bladder)
    sets, scans = [], []
    for name, structures in (("one", ("prostate",)), ("two", ("prostate", "bladder"))):
        (case,) = make_cohort(tmp_path / name, 1, structures=structures)
        folder = write_as_dicom(tmp_path / name, [case]) / case
        scans.append(find_only(folder / "ct").sop_uids)
        sets.append(pydicom.dcmread(folder / "rtstruct.dcm"))
    assert scans[0] == scans[1]
    assert sets[0].SOPInstanceUID != sets[1].SOPInstanceUID
    assert sets[0].SeriesInstanceUID != sets[1].SeriesInstanceUID
