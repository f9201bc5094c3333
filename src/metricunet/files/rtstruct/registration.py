"""DICOM Spatial Registration objects (REG) in: rigid transformations between frames of reference."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.uid import UID

from metricunet.errors import InputError
from metricunet.files.dicom.file import read_dataset
from metricunet.files.dicom.header import DAMAGE, one_line, text_of
from metricunet.volume import FloatArray

SPATIAL_REGISTRATION = "1.2.840.10008.5.1.4.1.1.66.1"
#: A rotation's columns are unit vectors at right angles, written with at least three decimals.
ROTATION_TOLERANCE = 1e-3


@dataclass(frozen=True, eq=False)
class Registration:
    """How frames of reference are placed in each other.

    Attributes:
        path: the file.
        frame_of_reference_uid: UID of the registered frame, into which all matrices lead.
        matrices: the 4 x 4 matrix of each frame, from its LPS millimetres to those of the registered frame.
    """

    path: Path
    frame_of_reference_uid: str
    matrices: dict[str, FloatArray]

    def matrix(self, source_uid: str, target_uid: str) -> FloatArray:
        """Return the 4 x 4 matrix from one frame's LPS millimetres to another's.

        Raises:
            InputError: a frame that the registration does not know.
        """
        for uid in (source_uid, target_uid):
            if uid not in self.matrices:
                known = ", ".join(self.matrices)
                raise InputError(
                    f"{self.path}: registers the frames of reference {known}, not {uid}; give the registration "
                    f"between {source_uid} and {target_uid}"
                )
        return np.asarray(np.linalg.inv(self.matrices[target_uid]) @ self.matrices[source_uid])


def read_registration(path: Path) -> Registration:
    """Read a Spatial Registration object.

    A matrix leads from the frame that its item names to the registered frame, which the object itself names
    (DICOM PS3.3, C.20.2); several matrices of one item are applied in their order.

    Raises:
        InputError: not such an object, damaged, or a transformation that is missing or not rigid.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset = read_dataset(path)
            kind = text_of(dataset, "SOPClassUID")
            if kind != SPATIAL_REGISTRATION:
                raise InputError(
                    f"{path}: is {UID(kind).name or 'an unknown object'}, expected Spatial Registration Storage; "
                    "give a rigid registration (modality REG)"
                )
            return _registration(path, dataset)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except InvalidDicomError as error:
        raise InputError(f"{path}: is not a DICOM file, expected a Spatial Registration") from error
    except DAMAGE as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: the registration is damaged ({one_line(error)}); export it again") from error


def _registration(path: Path, dataset: Dataset) -> Registration:
    registered = text_of(dataset, "FrameOfReferenceUID")
    if not registered:
        raise InputError(
            f"{path}: FrameOfReferenceUID is missing, so what it registers to is unknown; export again"
        )
    matrices: dict[str, FloatArray] = {registered: np.eye(4)}
    for item in dataset.get("RegistrationSequence") or []:
        uid = text_of(item, "FrameOfReferenceUID")
        if not uid:
            continue  # it registers images that it lists, not a frame
        steps = item.get("MatrixRegistrationSequence") or []
        parts = [part for step in steps for part in step.get("MatrixSequence") or []]
        if not parts and uid != registered:  # nothing says that it lies where the registered frame does
            raise InputError(
                f"{path}: states no transformation of frame of reference {uid} (MatrixSequence is missing); "
                "export the registration again"
            )
        matrix = np.eye(4)
        for part in parts:
            matrix = _rigid(path, uid, part) @ matrix
        matrices[uid] = matrix
    return Registration(path, registered, matrices)


def _rigid(path: Path, uid: str, part: Dataset) -> FloatArray:
    kind = text_of(part, "FrameOfReferenceTransformationMatrixType") or "RIGID"
    numbers = np.array([float(v) for v in part.FrameOfReferenceTransformationMatrix], dtype=np.float64)
    at = f"{path}: the transformation of frame of reference {uid}"
    if numbers.size != 16 or not np.isfinite(numbers).all() or not np.allclose(numbers[-4:], (0, 0, 0, 1)):
        raise InputError(f"{at} is not a 4 x 4 matrix whose last row is 0 0 0 1; export it again")
    matrix = numbers.reshape(4, 4)
    turn = matrix[:3, :3]
    rotates = np.abs(turn.T @ turn - np.eye(3)).max() <= ROTATION_TOLERANCE and np.linalg.det(turn) > 0
    if kind != "RIGID" or not rotates:
        raise InputError(
            f"{at} is {kind if kind != 'RIGID' else 'called RIGID, but scales, shears or mirrors'}, expected a "
            "rigid one; contour on this scan instead"
        )
    return matrix
