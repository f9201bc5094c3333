"""The verdict on a case: pass, review or fail, with reasons."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from metricunet.inference.checks import Flag, Verdict, flags_of
from metricunet.inference.facts import Facts, facts_of
from metricunet.inference.predictor import Prediction, Predictor
from metricunet.volume import Volume

__all__ = ["Quality", "Verdict", "judge"]


@dataclass(frozen=True)
class Quality:
    """What `CASE.quality.json` holds of a case.

    Attributes:
        case: its name.
        localisation: status, confidence and reason of stage 1.
        verdict: `fail`: no mask, or an empty one; `review`: look before use; `pass`: nothing conspicuous.
        flags: why it is not `pass`: a code and a sentence each.
        structures: of each structure with a voxel, what its mask is like.
        agreement: of the two stages: distance_mm and overlap; empty without a mask.
        hu: what the scan is like in and around the target; empty without a mask.
        crops: every look of stage 2.
        boundary: expected error of the target's boundary in mm, of the case and of each slice; empty without mask.
    """

    case: str
    localisation: dict[str, Any]
    verdict: Verdict
    flags: tuple[Flag, ...]
    structures: dict[str, dict[str, Any]]
    agreement: dict[str, float | None] = field(default_factory=dict)
    hu: dict[str, float | None] = field(default_factory=dict)
    crops: list[dict[str, Any]] = field(default_factory=list)
    boundary: dict[str, Any] = field(default_factory=dict)

    @property
    def reasons(self) -> list[str]:
        """The flags' sentences."""
        return [flag.text for flag in self.flags]

    def to_json(self) -> dict[str, Any]:
        """Return a plain dictionary."""
        return {
            "case": self.case,
            "localisation": self.localisation,
            "verdict": self.verdict,
            "reasons": self.reasons,
            "flags": [flag.to_json() for flag in self.flags],
            "structures": self.structures,
            "agreement": self.agreement,
            "hu": self.hu,
            "crops": self.crops,
            "boundary": self.boundary,
        }


def judge(
    case: str, scan: Volume, prediction: Prediction, predictor: Predictor, notes: tuple[str, ...] = ()
) -> Quality:
    """Judge a prediction.

    Args:
        case: its name.
        scan: as it was predicted.
        prediction: of it.
        predictor: that made it.
        notes: what reading the scan has to say of it, a sentence each.
    """
    return verdict_on(case, facts_of(scan, prediction, predictor, notes), prediction)


def verdict_on(case: str, facts: Facts, prediction: Prediction) -> Quality:
    """Judge a case by its facts."""
    verdict, flags = flags_of(facts)
    distance, overlap = facts.stage_distance_mm, facts.stage_overlap
    agreement = {
        "distance_mm": None if distance is None else round(distance, 1),
        "overlap": None if overlap is None else round(overlap, 3),
    }
    return Quality(
        case,
        {"status": facts.status, "confidence": facts.confidence, "reason": facts.reason},
        verdict,
        flags,
        {name: found.to_json() for name, found in facts.structures.items()},
        agreement if facts.hu else {},
        facts.hu.to_json() if facts.hu else {},
        [crop.to_json() for crop in prediction.crops],
        prediction.boundary.to_json() if prediction.boundary else {},
    )
