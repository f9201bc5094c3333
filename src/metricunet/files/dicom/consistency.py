"""Whether the slices of one series can belong to one scan: what all must have in common."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence

import numpy as np

from metricunet.errors import InputError
from metricunet.files.dicom.slice import SliceHeader

#: Direction cosines of one series differ by rounding only.
SAME_DIRECTION_TOLERANCE = 1e-4
SAME_PIXEL_SPACING_TOLERANCE_MM = 1e-4
SAME_THICKNESS_TOLERANCE_MM = 1e-2

_SEPARATE = "separate the two scans into series of their own"
_EXPORT = "export the series again"


def check_one_scan(slices: Sequence[SliceHeader]) -> None:
    """Refuse slices that cannot all belong to one scan, naming one that differs from most.

    Raises:
        InputError: two patients, studies, frames of reference, matrices, spacings, orientations, pixel formats,
            rescales or reconstructions, or the same image twice.
    """
    _check_same(slices, "PatientID", lambda s: s.patient_id, None)
    _check_same(slices, "StudyInstanceUID", lambda s: s.study_uid, lambda s: s.study_uid)
    _check_same(
        slices, "FrameOfReferenceUID", lambda s: s.frame_of_reference_uid, lambda s: s.frame_of_reference_uid
    )
    _check_same(
        slices,
        "the matrix (rows x columns)",
        lambda s: (s.rows, s.columns),
        lambda s: f"{s.rows} x {s.columns}",
    )
    _check_same(
        slices,
        "PixelSpacing",
        lambda s: tuple(np.rint(np.asarray(s.pixel_spacing_mm) / SAME_PIXEL_SPACING_TOLERANCE_MM).tolist()),
        lambda s: f"{s.pixel_spacing_mm[0]:g} x {s.pixel_spacing_mm[1]:g} mm",
        same=lambda a, b: np.allclose(
            a.pixel_spacing_mm, b.pixel_spacing_mm, rtol=0, atol=SAME_PIXEL_SPACING_TOLERANCE_MM
        ),
    )
    _check_same(
        slices,
        "ImageOrientationPatient",
        lambda s: tuple(np.rint(s.orientation / SAME_DIRECTION_TOLERANCE).ravel().tolist()),
        lambda s: "\\".join(f"{value:.6g}" for value in s.orientation.ravel()),
        same=lambda a, b: np.allclose(a.orientation, b.orientation, rtol=0, atol=SAME_DIRECTION_TOLERANCE),
    )
    _check_same(
        slices,
        "the pixel format (BitsAllocated, BitsStored, PixelRepresentation)",
        lambda s: s.bits,
        lambda s: str(s.bits),
        _EXPORT,
    )
    _check_same(
        slices,
        "the rescale (slope, intercept)",
        lambda s: (s.slope, s.intercept),
        lambda s: f"({s.slope:g}, {s.intercept:g})",
        f"a scanner uses one for all slices, so {_EXPORT}",
    )
    # What a slice does not state tells nothing of its origin.
    _check_same([s for s in slices if s.kernel], "ConvolutionKernel", lambda s: s.kernel, lambda s: s.kernel)
    _check_same(
        [s for s in slices if s.thickness_mm],
        "SliceThickness",
        lambda s: round((s.thickness_mm or 0.0) / SAME_THICKNESS_TOLERANCE_MM),
        lambda s: f"{s.thickness_mm:g} mm",
        same=lambda a, b: abs((a.thickness_mm or 0) - (b.thickness_mm or 0)) <= SAME_THICKNESS_TOLERANCE_MM,
    )
    by_uid: dict[tuple[str, int | None], SliceHeader] = {}
    for s in slices:
        twin = by_uid.setdefault((s.sop_uid, s.frame), s)
        if twin is not s:
            raise InputError(f"{s.location}: is the same image as {twin.path}; keep one copy of each slice")


def _check_same(
    slices: Sequence[SliceHeader],
    field: str,
    key: Callable[[SliceHeader], Hashable],
    shown: Callable[[SliceHeader], str] | None,
    advice: str = _SEPARATE,
    same: Callable[[SliceHeader, SliceHeader], bool] | None = None,
) -> None:
    if not slices:
        return
    usual = Counter(map(key, slices)).most_common(1)[0][0]
    model = next(s for s in slices if key(s) == usual)
    for s in slices:
        if key(s) != usual and not (same is not None and same(s, model)):
            found = f"is {shown(s)}, but {shown(model)}" if shown is not None else "differs from that"
            raise InputError(f"{s.location}: {field} {found} in {model.name} and most others; {advice}")
