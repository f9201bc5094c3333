"""Spatial Registrations: read as the standard means them, applied to structures, refused where they tilt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from metricunet.errors import InputError
from metricunet.files.dicom.series import CtSeries
from metricunet.files.rtstruct.read import read_rtstruct
from metricunet.files.rtstruct.registration import read_registration
from metricunet.files.rtstruct.write import write_rtstruct
from tests.support.dicom_series import companion, save
from tests.support.structure_sets import rtstruct, shapes, structure

Matrix = NDArray[np.float64]
OTHER, THIRD = "1.2.3.4", "1.2.3.5"


def turn(degrees: float, axis: str = "z", shift_mm: Sequence[float] = (0, 0, 0)) -> Matrix:
    """A rotation about an axis through the origin, then a shift."""
    angle = np.radians(degrees)
    c, s = np.cos(angle), np.sin(angle)
    matrix = np.eye(4)
    first, second = {"z": (0, 1), "x": (1, 2), "y": (2, 0)}[axis]
    matrix[first, first] = matrix[second, second] = c
    matrix[first, second], matrix[second, first] = -s, s
    matrix[:3, 3] = shift_mm
    return matrix


def registration(
    path: Path,
    registered: str,
    frames: dict[str, Sequence[Matrix]],
    kind: str = "RIGID",
    change: Callable[[Dataset], None] | None = None,
) -> Path:
    dataset = companion("REG", "1.2.840.10008.5.1.4.1.1.66.1", FrameOfReferenceUID=registered)
    dataset.RegistrationSequence = []
    for uid, matrices in frames.items():
        item, step = Dataset(), Dataset()
        item.FrameOfReferenceUID = uid
        step.MatrixSequence = []
        for matrix in matrices:
            part = Dataset()
            part.FrameOfReferenceTransformationMatrixType = kind
            part.FrameOfReferenceTransformationMatrix = [f"{v:.10g}" for v in matrix.ravel()]
            step.MatrixSequence.append(part)
        item.MatrixRegistrationSequence = [step]
        dataset.RegistrationSequence.append(item)
    if change is not None:
        change(dataset)
    save(path, dataset)
    return path


class TestReading:
    def test_matrices_lead_to_the_registered_frame(self, tmp_path: Path) -> None:
        shift = turn(0, shift_mm=(10, 20, 30))
        read = read_registration(registration(tmp_path / "reg.dcm", "1.1", {"1.1": [np.eye(4)], OTHER: [shift]}))
        assert np.allclose(read.matrix(OTHER, "1.1"), shift)
        assert np.allclose(read.matrix("1.1", OTHER), np.linalg.inv(shift))
        assert np.allclose(read.matrix(OTHER, OTHER), np.eye(4))

    def test_the_registered_frame_needs_no_item(self, tmp_path: Path) -> None:
        shift = turn(0, shift_mm=(10, 20, 30))
        read = read_registration(registration(tmp_path / "reg.dcm", "1.1", {OTHER: [shift]}))
        assert np.allclose(read.matrix(OTHER, "1.1"), shift)

    def test_several_matrices_in_their_order_and_two_frames(self, tmp_path: Path) -> None:
        first, second = turn(90), turn(0, shift_mm=(5, 0, 0))
        frames = {OTHER: [first, second], THIRD: [turn(0, shift_mm=(0, 0, -7))]}
        read = read_registration(registration(tmp_path / "reg.dcm", "1.1", frames))
        # (1, 0, 0) turns to (0, 1, 0), then moves to (5, 1, 0).
        assert np.allclose(read.matrix(OTHER, "1.1") @ [1, 0, 0, 1], [5, 1, 0, 1])
        assert np.allclose(read.matrix(OTHER, THIRD) @ [1, 0, 0, 1], [5, 1, 7, 1])

    def test_unknown_frames(self, tmp_path: Path) -> None:
        read = read_registration(registration(tmp_path / "reg.dcm", "1.1", {OTHER: [np.eye(4)]}))
        with pytest.raises(InputError, match=r"registers the frames of reference 1\.1, 1\.2\.3\.4, not 9\.9"):
            read.matrix("9.9", "1.1")

    @pytest.mark.parametrize("kind", ["RIGID_SCALE", "AFFINE"])
    def test_only_rigid_ones(self, tmp_path: Path, kind: str) -> None:
        path = registration(tmp_path / "reg.dcm", "1.1", {OTHER: [np.eye(4)]}, kind)
        with pytest.raises(InputError, match=f"is {kind}, expected a rigid one"):
            read_registration(path)

    @pytest.mark.parametrize("matrix", [np.diag([1.01, 1, 1, 1]), np.diag([-1, 1, 1, 1])])
    def test_rigid_by_name_alone(self, tmp_path: Path, matrix: Matrix) -> None:
        path = registration(tmp_path / "reg.dcm", "1.1", {OTHER: [matrix]})
        with pytest.raises(InputError, match="is called RIGID, but scales, shears or mirrors"):
            read_registration(path)

    def test_faulty_files(self, tmp_path: Path, series: CtSeries) -> None:
        with pytest.raises(InputError, match="no such file"):
            read_registration(tmp_path / "none.dcm")
        (tmp_path / "a.txt").write_text("nothing")
        with pytest.raises(InputError, match="is not a DICOM file"):
            read_registration(tmp_path / "a.txt")
        with pytest.raises(InputError, match="is CT Image Storage, expected Spatial Registration Storage"):
            read_registration(series.files[0])

        def cut(dataset: Dataset) -> None:
            part = dataset.RegistrationSequence[0].MatrixRegistrationSequence[0].MatrixSequence[0]
            part.FrameOfReferenceTransformationMatrix = part.FrameOfReferenceTransformationMatrix[:12]

        with pytest.raises(InputError, match="is not a 4 x 4 matrix"):
            read_registration(registration(tmp_path / "reg.dcm", "1.1", {OTHER: [np.eye(4)]}, change=cut))

        def empty(dataset: Dataset) -> None:
            part = dataset.RegistrationSequence[0].MatrixRegistrationSequence[0].MatrixSequence[0]
            del part.FrameOfReferenceTransformationMatrix

        with pytest.raises(InputError, match="the registration is damaged"):
            read_registration(registration(tmp_path / "reg.dcm", "1.1", {OTHER: [np.eye(4)]}, change=empty))

        def without(dataset: Dataset) -> None:
            for item in dataset.RegistrationSequence:
                del item.MatrixRegistrationSequence

        with pytest.raises(InputError, match=r"states no transformation of frame of reference 1\.2\.3\.4 \("):
            read_registration(registration(tmp_path / "reg.dcm", "1.1", {OTHER: [turn(5)]}, change=without))
        own = {"1.1": [np.eye(4)]}  # the registered frame lies where it does
        read = read_registration(registration(tmp_path / "reg.dcm", "1.1", own, change=without))
        assert np.allclose(read.matrix("1.1", "1.1"), np.eye(4))
        with pytest.raises(InputError, match="FrameOfReferenceUID is missing"):
            read_registration(registration(tmp_path / "reg.dcm", "", {OTHER: [np.eye(4)]}))


def set_in_another_frame(
    path: Path, series: CtSeries, name: str, matrix: Matrix
) -> tuple[Path, NDArray[np.bool_]]:
    """A structure set whose points `matrix` brings onto the scan, and the mask that they then have."""
    mask = shapes(series.geometry.shape)[name]
    plain = path.parent / "plain.dcm"
    write_rtstruct(plain, series, [structure(name, mask, series)], description="test")
    inverse = np.linalg.inv(matrix)
    contours = [
        (points @ inverse[:3, :3].T + inverse[:3, 3]).ravel().tolist()
        for points in read_rtstruct(plain).structure(name).contours
    ]
    return rtstruct(path, [(name, contours)], frame=OTHER), mask


class TestApplied:
    @pytest.mark.parametrize(
        "matrix",
        [turn(0, shift_mm=(3.3, -120.7, 55.5)), turn(23, shift_mm=(1, 2, 3)), turn(180, "x", (0, -80, -250))],
        ids=["shift", "turn", "head for feet"],
    )
    @pytest.mark.parametrize("backwards", [False, True])
    def test_contours_land_on_the_scan(
        self, tmp_path: Path, series: CtSeries, matrix: Matrix, backwards: bool
    ) -> None:
        path, mask = set_in_another_frame(tmp_path / "rs.dcm", series, "cored_shell", matrix)
        frame = series.frame_of_reference_uid
        if backwards:
            reg = registration(tmp_path / "reg.dcm", OTHER, {frame: [np.linalg.inv(matrix)]})
        else:
            reg = registration(tmp_path / "reg.dcm", frame, {OTHER: [matrix]})
        with pytest.raises(InputError, match=r"frame of reference is 1\.2\.3\.4, but"):
            read_rtstruct(path, series)
        read = read_rtstruct(path, series, registration=reg)
        assert np.array_equal(read.mask("cored_shell", series.geometry).array, mask)
        assert read.frame_of_reference_uid == frame
        (note,) = read.warnings
        assert f"moved from frame of reference 1.2.3.4 to {frame} by {reg}" in note

    def test_a_turn_out_of_the_slices_is_refused(self, tmp_path: Path, series: CtSeries) -> None:
        matrix = turn(2.5, "x")
        path, _ = set_in_another_frame(tmp_path / "rs.dcm", series, "shell", np.eye(4))
        reg = registration(tmp_path / "reg.dcm", series.frame_of_reference_uid, {OTHER: [matrix]})
        with pytest.raises(InputError, match=r"by 2\.50 degrees out of the slices of series") as caught:
            read_rtstruct(path, series, registration=reg)
        assert OTHER in str(caught.value)

    def test_a_very_small_one_is_taken_out(self, tmp_path: Path, series: CtSeries) -> None:
        # About the middle of the grid, so that what is left of the registration is no shift.
        path, mask = set_in_another_frame(tmp_path / "rs.dcm", series, "lobes", np.eye(4))
        middle = series.geometry.centre_mm
        matrix = turn(0.3, "y")
        matrix[:3, 3] = middle - matrix[:3, :3] @ middle
        reg = registration(tmp_path / "reg.dcm", series.frame_of_reference_uid, {OTHER: [matrix]})
        read = read_rtstruct(path, series, registration=reg)
        assert "its turn of 0.30 degrees out of the slices was left out" in read.warnings[0]
        back = read.mask("lobes", series.geometry).array.astype(bool)
        # Planes stay planes: no loop is lost, though the two lobes would now lie at different heights.
        assert (back != mask).mean() < 0.01
        heights = series.geometry.to_index(np.concatenate(read.structure("lobes").contours))[:, 0]
        assert np.abs(heights - np.round(heights)).max() < 0.05

    def test_a_registration_of_other_frames(self, tmp_path: Path, series: CtSeries) -> None:
        path, _ = set_in_another_frame(tmp_path / "rs.dcm", series, "shell", np.eye(4))
        reg = registration(tmp_path / "reg.dcm", series.frame_of_reference_uid, {THIRD: [np.eye(4)]})
        with pytest.raises(InputError, match=r"not 1\.2\.3\.4; give the registration between"):
            read_rtstruct(path, series, registration=reg)

    def test_a_set_of_no_frame_or_no_scan(self, tmp_path: Path, series: CtSeries) -> None:
        reg = registration(tmp_path / "reg.dcm", series.frame_of_reference_uid, {OTHER: [np.eye(4)]})
        path = rtstruct(tmp_path / "rs.dcm", [("a", [[0, 0, 0, 1, 0, 0, 1, 1, 0]])], frame=None, sequence=False)
        with pytest.raises(InputError, match="ROI 'a' states no frame of reference, so"):
            read_rtstruct(path, series, registration=reg)
        with pytest.raises(InputError, match="a registration needs the series"):
            read_rtstruct(path, registration=reg)

    def test_a_set_of_the_scans_own_frame_stays(self, tmp_path: Path, series: CtSeries) -> None:
        frame = series.frame_of_reference_uid
        reg = registration(tmp_path / "reg.dcm", frame, {generate_uid(): [turn(9)]})
        path = rtstruct(tmp_path / "rs.dcm", [("a", [[0, 0, -120, 9, 0, -120, 9, 9, -120]])], frame=frame)
        read = read_rtstruct(path, series, registration=reg)
        assert read.structure("a").contours[0][1].tolist() == [9, 0, -120]
        assert read.warnings == ()
