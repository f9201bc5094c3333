"""Structures from one frame of reference into that of a scan, by a registration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from metricunet.errors import InputError
from metricunet.files.dicom.series import CtSeries
from metricunet.files.rtstruct.model import RtStructure
from metricunet.files.rtstruct.references import without_contours
from metricunet.files.rtstruct.registration import Registration
from metricunet.volume import FloatArray

#: A registration may turn the planes of contours against the slices by this much; it is then taken out.
OUT_OF_PLANE_DEGREES = 0.5


def moved(
    path: Path,
    structures: Sequence[RtStructure],
    frame: str | None,
    series: CtSeries,
    registration: Registration,
    notes: list[str],
) -> tuple[tuple[RtStructure, ...], str]:
    """Bring structures into a scan's frame of reference.

    Args:
        path: path of the structure set, for messages.
        structures: the structures as they were read; one that states no frame of reference is taken to lie in
            `frame`.
        frame: the set's frame of reference.
        series: the scan.
        registration: must know all frames.
        notes: gets a line for each frame that was left.

    Returns:
        The structures, and the scan's frame of reference.

    Raises:
        InputError: nothing that is drawn can be moved: a frame that is not stated or not registered, or a turn
            out of the slices' plane of more than `OUT_OF_PLANE_DEGREES`. What can be moved is, where this is so
            of some structures alone; the others have it as their fault.
    """
    target = series.frame_of_reference_uid
    normal: FloatArray = np.cross(series.geometry.directions[:, 1], series.geometry.directions[:, 2])
    normal /= np.linalg.norm(normal)
    matrices: dict[str, FloatArray] = {}
    result = []
    first: InputError | None = None
    for structure in structures:
        source = structure.frame_of_reference_uid or frame
        if source == target or structure.fault:
            result.append(structure)
            continue
        try:
            if source is None:
                raise InputError(
                    f"{path}: ROI '{structure.name}' states no frame of reference, so {registration.path} cannot "
                    "be applied; export the set again"
                )
            if source not in matrices:
                matrices[source] = _matrix(path, source, series, registration, normal, notes)
        except InputError as error:
            first = first or error
            notes.append(f"{path}: ROI '{structure.name}': cannot be moved to this scan ({error})")
            result.append(without_contours(structure, f"cannot be moved to this scan ({error})"))
            continue
        contours = _moved_contours(structure.contours, matrices[source], normal)
        result.append(replace(structure, contours=contours, frame_of_reference_uid=target))
    if first is not None and not any(s.contours for s in result):
        raise first
    return tuple(result), target


def _matrix(
    path: Path, source: str, series: CtSeries, registration: Registration, normal: FloatArray, notes: list[str]
) -> FloatArray:
    """The matrix from a frame of reference to that of a scan, which leaves the slices' planes where they are."""
    matrix = registration.matrix(source, series.frame_of_reference_uid)
    turn = _out_of_plane_degrees(matrix, normal)
    if turn > OUT_OF_PLANE_DEGREES:
        raise InputError(
            f"{path}: {registration.path} turns contours of frame of reference {source} by {turn:.2f} "
            f"degrees out of the slices of series {series.series_uid}, at most {OUT_OF_PLANE_DEGREES:g} "
            "is accepted; resample the structures to this scan in the program that registered it"
        )
    notes.append(
        f"{path}: moved from frame of reference {source} to {series.frame_of_reference_uid} by "
        f"{registration.path}; its turn of {turn:.2f} degrees out of the slices was left out"
    )
    return matrix


def _out_of_plane_degrees(matrix: FloatArray, normal: FloatArray) -> float:
    """The angle between contours that were axial in their own frame, and the slices; feet or head first alike."""
    # The sine is exact for the small angles that matter, where the cosine is not.
    sine = float(np.linalg.norm(np.cross(normal, matrix[:3, :3] @ normal)))
    return float(np.degrees(np.arcsin(min(1.0, sine))))


def _moved_contours(
    contours: Sequence[FloatArray], matrix: FloatArray, normal: FloatArray
) -> tuple[FloatArray, ...]:
    """Transform contours, each at the height that its plane has in the structure's middle.

    So contours of one plane stay in one plane, whatever small turn out of it the matrix holds.
    """
    if not contours:
        return ()
    middle = np.concatenate(contours).mean(axis=0)
    result = []
    for points in contours:
        in_place = points @ matrix[:3, :3].T + matrix[:3, 3]
        above_middle = points.copy()
        above_middle[:, :2] = middle[:2]
        heights = (above_middle @ matrix[:3, :3].T + matrix[:3, 3] - in_place) @ normal
        result.append(in_place + heights[:, None] * normal)
    return tuple(result)
