"""Intake of CT series: sound ones to the voxel and the micrometre, and folders that hold none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from metricunet.errors import InputError
from metricunet.files.dicom.series import find_series
from metricunet.volume import Geometry, Volume
from tests.support.dicom_series import ORIENTATIONS, companion, only, pattern, rotation, save, write_series


class TestSoundSeries:
    @pytest.mark.parametrize("position", ORIENTATIONS)
    def test_every_voxel_is_where_its_file_says(self, tmp_path: Path, position: str) -> None:
        written = write_series(tmp_path, patient_position=position)
        series = only(find_series(tmp_path))
        assert series.files == written.files
        assert series.geometry.same_grid(written.geometry, tolerance_mm=1e-6)
        assert np.array_equal(series.read().array, pattern((8, 12, 10)))

    def test_known_positions_by_hand(self, tmp_path: Path) -> None:
        write_series(tmp_path, patient_position="HFP", origin_mm=(50, 70, -20), spacing_mm=(3, 0.5, 2))
        geometry = only(find_series(tmp_path)).geometry
        # Prone: a row runs to the patient's right, a column to the front. PixelSpacing is (between rows, columns).
        np.testing.assert_allclose(geometry.to_world([0, 0, 0]), [50, 70, -20], atol=1e-9)
        np.testing.assert_allclose(geometry.to_world([2, 0, 0]), [50, 70, -14], atol=1e-9)
        np.testing.assert_allclose(geometry.to_world([0, 4, 0]), [50, 68, -20], atol=1e-9)
        np.testing.assert_allclose(geometry.to_world([0, 0, 4]), [42, 70, -20], atol=1e-9)

    @pytest.mark.parametrize("position", ORIENTATIONS)
    def test_agrees_with_highdicom(self, tmp_path: Path, position: str) -> None:
        highdicom = pytest.importorskip("highdicom")
        written = write_series(tmp_path, patient_position=position, slope=2.0, intercept=-1000.0)
        ours = only(find_series(tmp_path)).read()
        theirs = highdicom.get_volume_from_series([pydicom.dcmread(path) for path in written.files])
        other = Volume(theirs.array, Geometry(theirs.array.shape, theirs.affine))
        np.testing.assert_array_equal(other.reordered_like(ours.geometry).array, ours.array)

    @settings(deadline=None, max_examples=15)
    @given(
        position=st.sampled_from(list(ORIENTATIONS)),
        spacing=st.tuples(*[st.floats(0.3, 5.0).map(lambda v: round(v, 4))] * 3),
        origin=st.tuples(*[st.floats(-900, 900).map(lambda v: round(v, 3))] * 3),
        shape=st.tuples(st.integers(3, 6), st.integers(2, 6), st.integers(2, 6)),
        lean=st.floats(-0.6, 0.6),
    )
    def test_any_grid_within_tolerance(
        self,
        tmp_path_factory: pytest.TempPathFactory,
        position: str,
        spacing: Any,
        origin: Any,
        shape: Any,
        lean: float,
    ) -> None:
        folder = tmp_path_factory.mktemp("series")
        written = write_series(
            folder,
            shape=shape,
            spacing_mm=spacing,
            origin_mm=origin,
            patient_position=position,
            turn=rotation("x", lean) @ rotation("z", -lean),
        )
        series = only(find_series(folder))
        assert series.geometry.same_grid(written.geometry, tolerance_mm=1e-3)
        assert np.array_equal(series.read().array, pattern(shape))

    def test_slices_keep_their_own_positions_and_identifiers(self, tmp_path: Path) -> None:
        written = write_series(tmp_path, patient_position="FFS")
        series = only(find_series(tmp_path))
        for k, path in enumerate(written.files):
            dataset = pydicom.dcmread(path)
            assert series.sop_uids[k] == dataset.SOPInstanceUID
            np.testing.assert_allclose(series.positions_mm[k], dataset.ImagePositionPatient)
        assert series.header.SOPInstanceUID == series.sop_uids[0]
        assert "PixelData" not in series.header
        assert series.frame_of_reference_uid == written.frame_of_reference_uid

    def test_a_hundredth_of_a_millimetre_of_jitter_passes(self, tmp_path: Path) -> None:
        jitter = np.random.default_rng(3).uniform(-0.01, 0.01, (40, 3))

        def shake(k: int, ds: Dataset) -> None:
            place = np.asarray(ds.ImagePositionPatient, dtype=float) + jitter[k]
            ds.ImagePositionPatient = [round(float(v), 6) for v in place]

        written = write_series(tmp_path, shape=(40, 4, 4), spacing_mm=(0.8, 0.7, 0.7), edit=shake)
        geometry = only(find_series(tmp_path)).geometry
        assert geometry.same_grid(written.geometry, tolerance_mm=0.02)

    def test_a_short_stack_with_jitter_is_not_taken_for_sheared(self, tmp_path: Path) -> None:
        def shake(k: int, ds: Dataset) -> None:
            x, y, z = ds.ImagePositionPatient
            ds.ImagePositionPatient = [float(x) + (0.02 if k == 2 else 0), y, z]

        write_series(tmp_path, shape=(3, 4, 4), spacing_mm=(0.6, 1, 1), edit=shake)
        assert only(find_series(tmp_path)).geometry.shape == (3, 4, 4)

    def test_two_series_in_one_folder_are_two_cases(self, tmp_path: Path) -> None:
        frame, study = generate_uid(), generate_uid()
        a = write_series(tmp_path, frame_of_reference_uid=frame, study_uid=study)
        for path in a.files:
            path.rename(path.with_name("a" + path.name))
        b = write_series(tmp_path, shape=(5, 12, 10), frame_of_reference_uid=frame, study_uid=study)
        found = find_series(tmp_path)
        assert found.refused == ()
        assert {s.series_uid: s.geometry.shape[0] for s in found.series} == {a.series_uid: 8, b.series_uid: 5}

    def test_one_series_may_lie_in_several_folders(self, tmp_path: Path) -> None:
        written = write_series(tmp_path)
        (tmp_path / "sub").mkdir()
        written.files[3].rename(tmp_path / "sub" / written.files[3].name)
        assert only(find_series(tmp_path)).geometry.same_grid(written.geometry)

    def test_a_single_file_stands_for_its_series_alone(self, tmp_path: Path) -> None:
        a = write_series(tmp_path)
        for path in a.files:
            path.rename(path.with_name("a" + path.name))
        b = write_series(tmp_path, shape=(4, 6, 6))
        assert only(find_series(b.files[2])).series_uid == b.series_uid

    def test_case_is_a_hash_and_tells_no_name(self, tmp_path: Path) -> None:
        write_series(tmp_path, shape=(3, 2, 2), series_uid="1.2.3")
        # printf 1.2.3 | sha256sum
        assert only(find_series(tmp_path)).case == "c47f5b18b8a4"

    def test_odd_but_harmless_values_are_no_news(self, tmp_path: Path) -> None:
        def edit(k: int, ds: Dataset) -> None:
            ds.SOPInstanceUID = f"1.02.x{k}"
            ds.StudyDate = "spring"

        write_series(tmp_path, edit=edit)
        series = only(find_series(tmp_path))
        assert series.sop_uids[0] == "1.02.x0"
        series.read()

    def test_companions_and_foreign_files_are_passed_over(self, tmp_path: Path) -> None:
        write_series(tmp_path)
        (tmp_path / "notes.txt").write_text("patient was lying still")
        (tmp_path / "empty").touch()
        (tmp_path / ".DS_Store").write_bytes(b"\0" * 300)
        save(tmp_path / "rs", companion("RTSTRUCT", "1.2.840.10008.5.1.4.1.1.481.3"))
        save(tmp_path / "rd", companion("RTDOSE", "1.2.840.10008.5.1.4.1.1.481.2", Rows=2, Columns=2))
        save(tmp_path / "sr.dcm", companion("SR", "1.2.840.10008.5.1.4.1.1.88.11"))
        directory = companion("", "1.2.840.10008.1.3.10")
        save(tmp_path / "DICOMDIR", directory)
        only(find_series(tmp_path))

    def test_a_directory_of_files_is_passed_over(self, tmp_path: Path) -> None:
        # As on a disc: DICOMDIR is DICOM, and no element of its data set says what it is.
        written = write_series(tmp_path)
        directory = Dataset()
        directory.FileSetID, directory.DirectoryRecordSequence = "DISC", []
        directory.file_meta = FileMetaDataset()
        directory.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.1.3.10"
        directory.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        directory.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        directory.save_as(tmp_path / "DICOMDIR", enforce_file_format=True)
        assert only(find_series(tmp_path)).geometry.same_grid(written.geometry)


class TestNothingThere:
    def test_no_such_path(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="no such file or folder"):
            find_series(tmp_path / "nowhere")

    def test_no_dicom_in_the_folder(self, tmp_path: Path) -> None:
        (tmp_path / "notes.txt").write_text("nothing here")
        with pytest.raises(InputError, match="holds no DICOM images"):
            find_series(tmp_path)

    def test_companions_alone(self, tmp_path: Path) -> None:
        save(tmp_path / "rs.dcm", companion("RTSTRUCT", "1.2.840.10008.5.1.4.1.1.481.3"))
        with pytest.raises(InputError, match="holds no DICOM images"):
            find_series(tmp_path)
        with pytest.raises(InputError, match="modality RTSTRUCT, expected a CT image"):
            find_series(tmp_path / "rs.dcm")

    def test_a_file_that_is_not_dicom(self, tmp_path: Path) -> None:
        (tmp_path / "notes.txt").write_text("nothing here")
        with pytest.raises(InputError, match="is not a DICOM file"):
            find_series(tmp_path / "notes.txt")
