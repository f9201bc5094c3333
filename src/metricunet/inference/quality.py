"""The verdict on a case: pass, review or fail, with reasons."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from metricunet.inference.predictor import Prediction, Predictor
from metricunet.volume import Volume

Verdict = Literal["pass", "review", "fail"]

#: Pieces cut off the target are worth a word from this volume on.
NOTABLE_PIECES_ML = 1.0


@dataclass(frozen=True)
class Quality:
    """What `CASE.quality.json` holds.

    Attributes:
        case: its name.
        localisation: status, confidence and reason of stage 1.
        verdict: `fail`: no mask, or an empty one; `review`: look before use; `pass`: nothing conspicuous.
        reasons: why it is not `pass`.
        structures: for each structure its volume_ml, centre_mm (LPS), and whether it is cut by the crop.
        boundary: expected error of the target's boundary in mm, of the case and of each slice; empty without mask.
    """

    case: str
    localisation: dict[str, Any]
    verdict: Verdict
    reasons: list[str]
    structures: dict[str, dict[str, Any]]
    boundary: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return a plain dictionary."""
        return asdict(self)


def judge(case: str, scan: Volume, prediction: Prediction, predictor: Predictor) -> Quality:
    """Judge a prediction."""
    found = prediction.localisation
    localisation = {"status": found.status, "confidence": found.confidence, "reason": found.reason}
    if prediction.labels is None:
        reason = f"{predictor.card.target} not found: {found.reason}"
        return Quality(case, localisation, "fail", [reason], {})
    assert prediction.region is not None
    structures = dict(_structures(prediction.region, predictor))
    if predictor.card.target not in structures:
        reason = f"{predictor.card.target} was located, but stage 2 segments no voxel of it there"
        return Quality(case, localisation, "fail", [reason], structures)
    reasons = list(_reasons(scan, prediction, predictor, structures))
    assert prediction.boundary is not None
    verdict: Verdict = "review" if reasons else "pass"
    return Quality(case, localisation, verdict, reasons, structures, prediction.boundary.to_json())


def _structures(region: Volume, predictor: Predictor) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, value in predictor.card.labels.items():
        mask = region.array == value
        voxels = int(mask.sum())
        if voxels == 0:
            continue
        places = np.nonzero(mask)
        centre = region.geometry.to_world([float(axis.mean()) for axis in places])
        yield (
            name,
            {
                "volume_ml": round(voxels * region.geometry.voxel_volume_ml, 2),
                "centre_mm": [round(float(v), 1) for v in centre],
                "cropped": name != predictor.card.target,
            },
        )


def _reasons(
    scan: Volume, prediction: Prediction, predictor: Predictor, structures: dict[str, dict[str, Any]]
) -> Iterator[str]:
    if predictor.synthetic:
        yield "the model was trained on synthetic scans only"
    if prediction.localisation.status == "uncertain":
        yield f"localisation is uncertain: {prediction.localisation.reason}"
    target = predictor.card.target
    volume = structures[target]["volume_ml"]
    seen = predictor.range_of("volume_ml")
    if seen is not None and not seen[0] <= volume <= seen[1]:
        yield f"{target} has {volume:.1f} mL; the training cases had {seen[0]:.1f} to {seen[1]:.1f} mL"
    if prediction.touches_crop:
        yield f"{target} reaches the edge of the segmented region, so part of it may be missing"
    if prediction.removed_ml >= NOTABLE_PIECES_ML:
        yield f"{prediction.removed_ml:.1f} mL of separate pieces of {target} were removed"
    boundary = prediction.boundary
    if boundary is not None and boundary.validation_mm is not None and boundary.high:
        low, high = boundary.validation_mm
        yield (
            f"the boundary of {target} is expected to be off by {boundary.case_mm:.1f} mm; {low:.1f} to "
            f"{high:.1f} mm were expected in the validation cases"
        )
    assert prediction.labels is not None
    outermost = prediction.labels.array[[0, -1]]
    if (outermost == predictor.card.labels[target]).any():
        yield f"{target} reaches the first or last slice of the scan, so part of it may be missing"
    spacings = (("slice_spacing_mm", scan.spacing_mm[:1]), ("pixel_spacing_mm", scan.spacing_mm[1:]))
    for quantity, values in spacings:
        seen = predictor.range_of(quantity)
        if seen is not None and not all(0.95 * seen[0] <= value <= 1.05 * seen[1] for value in values):
            name = quantity.removesuffix("_mm").replace("_", " ")
            yield f"{name} of {max(values):.2f} mm; the training cases had {seen[0]:.2f} to {seen[1]:.2f} mm"
