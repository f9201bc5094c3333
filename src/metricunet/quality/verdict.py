"""The verdict on a case: pass, review or fail, with reasons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from metricunet.quality.checks import Doubt, Flag, Grade, doubt_of, flags_of
from metricunet.quality.findings import findings_of
from metricunet.quality.prediction import Prediction
from metricunet.volume import Volume


@dataclass(frozen=True)
class QualityReport:
    """What `CASE.quality.json` holds of a case, apart from its files.

    Attributes:
        case: name of the case.
        localisation: status, confidence and reason of stage 1.
        verdict: `fail`: no mask, or an empty one; `review`: look before use; `pass`: nothing conspicuous.
        flags: why it is not `pass`: a code and a sentence each.
        structures: what the mask of each structure with a voxel is like.
        agreement: distance_mm and overlap of what the two stages found; empty without a mask.
        hu: what the scan is like in and around the target; empty without a mask.
        crops: every field that stage 2 has segmented.
        boundary: expected error of the target's boundary in mm, of the case and of each slice; empty without mask.
    """

    case: str
    localisation: dict[str, Any]
    verdict: Grade
    flags: tuple[Flag, ...]
    structures: dict[str, dict[str, Any]]
    agreement: dict[str, float | None] = field(default_factory=dict)
    hu: dict[str, float | None] = field(default_factory=dict)
    crops: list[dict[str, Any]] = field(default_factory=list)
    boundary: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"QualityReport({self.case}: {'; '.join([self.verdict, *(flag.code for flag in self.flags)])})"

    @property
    def reasons(self) -> list[str]:
        """The sentences of the flags."""
        return [flag.text for flag in self.flags]

    @property
    def doubt(self) -> Doubt:
        """How much the flags speak against the mask. That a model may never pass counts for nothing here."""
        return doubt_of(flag.code for flag in self.flags)

    def only(self, structures: Sequence[str]) -> QualityReport:
        """Return what is to be said where the masks of these structures alone are kept.

        The verdict and its flags speak of all that was segmented, as ever. But where something was found, and none
        of these, there is no mask: then it is `fail`, with the flag `not_found`.

        Args:
            structures: names of structures of the model, at least one.
        """
        kept = {name: found for name, found in self.structures.items() if name in structures}
        if kept or not self.structures:
            return replace(self, structures=kept)
        text = f"no voxel of {' or '.join(structures)} was found, so there is no mask"
        return replace(self, structures=kept, verdict="fail", flags=(Flag("not_found", text), *self.flags))

    def to_json(self, contours: Mapping[str, Mapping[str, Any]] | None = None) -> dict[str, Any]:
        """Return a plain dictionary.

        Args:
            contours: what a structure set holds of each structure; it becomes part of what is said of it.
        """
        drawn = {name: {"contours": dict(found)} for name, found in (contours or {}).items()}
        return {
            "case": self.case,
            "localisation": self.localisation,
            "verdict": self.verdict,
            "doubt": self.doubt,
            "reasons": self.reasons,
            "flags": [flag.to_json() for flag in self.flags],
            "structures": {name: {**found, **drawn.get(name, {})} for name, found in self.structures.items()},
            "agreement": self.agreement,
            "hu": self.hu,
            "crops": self.crops,
            "boundary": self.boundary,
        }


def judge(
    case: str, scan: Volume, prediction: Prediction, notes: tuple[str, ...] = (), patient_sex: str = ""
) -> QualityReport:
    """Judge a prediction.

    Args:
        case: name of the case.
        scan: HU, as it was predicted.
        prediction: what the predictor made of the scan.
        notes: what reading the scan has to say of it, a sentence each.
        patient_sex: as the scan's header states it; empty where it says nothing.
    """
    findings = findings_of(scan, prediction, notes, patient_sex)
    verdict, flags = flags_of(findings)
    distance, overlap = findings.stage_distance_mm, findings.stage_overlap
    agreement = {
        "distance_mm": None if distance is None else round(distance, 1),
        "overlap": None if overlap is None else round(overlap, 3),
    }
    return QualityReport(
        case=case,
        localisation={
            "status": findings.status,
            "confidence": findings.confidence,
            "reason": findings.reason,
        },
        verdict=verdict,
        flags=flags,
        structures={name: found.to_json() for name, found in findings.structures.items()},
        agreement=agreement if findings.hu else {},
        hu=findings.hu.to_json() if findings.hu else {},
        crops=[crop.to_json() for crop in prediction.crops],
        boundary=prediction.boundary.to_json() if prediction.boundary else {},
    )
