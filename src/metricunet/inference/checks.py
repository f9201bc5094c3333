"""The checks behind a verdict: a table of pure functions from the facts of a case to what is to be said of it.

A check yields a sentence for each thing that it finds, and nothing where all is well. Its code is what programs go
by: it stays, whatever becomes of the sentence. docs/predictions.md says why each threshold is where it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Literal

from metricunet.cohort.names import standard_name
from metricunet.errors import unlike_limits
from metricunet.inference.facts import Facts, Range

Verdict = Literal["pass", "review", "fail"]
Find = Callable[[Facts], Iterator[str]]

#: Stage 1's centre and stage 2's centroid: a quarter of a gland's width apart, and the two saw different things.
FARTHEST_STAGES_MM = 10.0
#: Dice of stage 1's candidate and stage 2's mask.
LEAST_STAGE_OVERLAP = 0.5
#: Leeway beyond the smallest and the largest of the training cases: a few cases do not show how far patients vary.
VOLUME_LEEWAY = 1.1
EXTENT_LEEWAY_MM = 5.0
SPACING_LEEWAY = 1.05
HU_LEEWAY = 10.0
NOISE_LEEWAY = 1.5
#: Pieces cut off the target are worth a word from this volume on, holes in it from the other.
NOTABLE_PIECES_ML = 1.0
NOTABLE_HOLES_ML = 0.1
#: Metal on the crop's slices; gold markers and the clips of a biopsy stay below it.
NOTABLE_METAL_ML = 0.5
#: Share of the target's voxels that no tissue has.
NOTABLE_ODD_SHARE = 0.05

EXTENTS = ("extent_head_foot_mm", "extent_front_back_mm", "extent_left_right_mm")


@dataclass(frozen=True)
class Flag:
    """One thing that a verdict rests on: a code for programs, a sentence for people."""

    code: str
    text: str

    def to_json(self) -> dict[str, str]:
        """Return a plain dictionary."""
        return asdict(self)


@dataclass(frozen=True)
class Check:
    """One row of the table.

    Attributes:
        code: of its flags.
        verdict: that a flag of it brings at least.
        find: yields a sentence for each flag.
        of_mask: whether it speaks of the mask, so that it has no say where there is none.
    """

    code: str
    verdict: Verdict
    find: Find
    of_mask: bool = True


def flags_of(facts: Facts) -> tuple[Verdict, tuple[Flag, ...]]:
    """Run all checks: the verdict, and the flags in the table's order."""
    failed = any(True for check in CHECKS if check.verdict == "fail" for _ in check.find(facts))
    checks = [check for check in CHECKS if check.verdict == "fail" or not (failed and check.of_mask)]
    found = tuple(Flag(check.code, text) for check in checks for text in check.find(facts))
    return ("fail" if failed else "review" if found else "pass"), found


def _absent(facts: Facts) -> Iterator[str]:
    if facts.status == "absent":
        yield f"{facts.target} not found: {facts.reason}"


def _empty(facts: Facts) -> Iterator[str]:
    if facts.status != "absent" and facts.target not in facts.structures:
        yield f"{facts.target} was located, but stage 2 segments no voxel of it there"


def _synthetic(facts: Facts) -> Iterator[str]:
    if facts.synthetic:
        yield "the model was trained on synthetic scans only"


def _localisation(facts: Facts) -> Iterator[str]:
    if facts.status == "uncertain":
        yield f"localisation is uncertain (confidence {facts.confidence:.2f}): {facts.reason}"


def _stage_distance(facts: Facts) -> Iterator[str]:
    distance = facts.stage_distance_mm
    if distance is not None and distance > FARTHEST_STAGES_MM:
        apart = unlike_limits(distance, FARTHEST_STAGES_MM, digits=2)
        yield (
            f"the two stages disagree: their centres of {facts.target} lie {apart} mm apart, "
            f"{FARTHEST_STAGES_MM:g} mm are expected at most"
        )


def _stage_overlap(facts: Facts) -> Iterator[str]:
    overlap = facts.stage_overlap
    if overlap is not None and overlap < LEAST_STAGE_OVERLAP:
        yield (
            f"the two stages disagree: their masks of {facts.target} have a Dice of "
            f"{unlike_limits(overlap, LEAST_STAGE_OVERLAP, digits=2)}, "
            f"{LEAST_STAGE_OVERLAP:g} is expected at least"
        )


def _volume(facts: Facts) -> Iterator[str]:
    seen, found = facts.ranges.get("volume_ml"), facts.structures.get(facts.target)
    if seen and found and not seen[0] / VOLUME_LEEWAY <= found.volume_ml <= seen[1] * VOLUME_LEEWAY:
        yield f"{facts.target} has {found.volume_ml:.1f} mL; {_seen(seen, 'mL')}"


def _extent(facts: Facts) -> Iterator[str]:
    found = facts.structures.get(facts.target)
    if found is None:
        return
    for quantity, extent in zip(EXTENTS, found.extent_mm, strict=True):
        seen = facts.ranges.get(quantity)
        if seen and not seen[0] - EXTENT_LEEWAY_MM <= extent <= seen[1] + EXTENT_LEEWAY_MM:
            way = quantity.removeprefix("extent_").removesuffix("_mm").replace("_", "-")
            yield f"{facts.target} measures {extent:.0f} mm {way}; {_seen(seen, 'mm', 0)}"


def _spacing(facts: Facts) -> Iterator[str]:
    for quantity, values in (
        ("slice_spacing_mm", facts.spacing_mm[:1]),
        ("pixel_spacing_mm", facts.spacing_mm[1:]),
    ):
        seen = facts.ranges.get(quantity)
        if seen and not all(seen[0] / SPACING_LEEWAY <= v <= seen[1] * SPACING_LEEWAY for v in values):
            name = quantity.removesuffix("_mm").replace("_", " ")
            worst = max(values, key=lambda v: max(seen[0] / v, v / seen[1]))
            yield f"{name} of {worst:.2f} mm; {_seen(seen, 'mm', 2)}"


def _target_hu(facts: Facts) -> Iterator[str]:
    seen = facts.ranges.get("target_hu")
    if seen and facts.hu and _beyond(facts.hu.target_hu, seen):
        yield f"{facts.target} has a median of {facts.hu.target_hu:.0f} HU; {_seen(seen, 'HU', 0)}"


def _crop_hu(facts: Facts) -> Iterator[str]:
    seen = facts.ranges.get("crop_hu")
    if seen and facts.hu and facts.hu.crop_hu is not None and _beyond(facts.hu.crop_hu, seen):
        yield (f"the body around {facts.target} has a median of {facts.hu.crop_hu:.0f} HU; {_seen(seen, 'HU', 0)}")


def _noise(facts: Facts) -> Iterator[str]:
    seen = facts.ranges.get("noise_hu")
    if not seen or facts.hu is None or facts.hu.noise_hu is None:
        return
    if not seen[0] / NOISE_LEEWAY <= facts.hu.noise_hu <= seen[1] * NOISE_LEEWAY:
        yield f"noise of {facts.hu.noise_hu:.0f} HU around {facts.target}; {_seen(seen, 'HU', 0)}"


def _metal(facts: Facts) -> Iterator[str]:
    if facts.hu and facts.hu.metal_ml >= NOTABLE_METAL_ML:
        yield (
            f"{facts.hu.metal_ml:.1f} mL of metal on the slices around {facts.target}; "
            "its streaks may hide borders"
        )


def _not_tissue(facts: Facts) -> Iterator[str]:
    if facts.hu and facts.hu.odd_share > NOTABLE_ODD_SHARE:
        yield (
            f"{facts.hu.odd_share:.0%} of {facts.target} has HU that no such tissue has: "
            "gas, contrast medium, metal or streaks of it"
        )


def _touches_crop(facts: Facts) -> Iterator[str]:
    if facts.touched:
        looks = "one look" if facts.looks == 1 else f"{facts.looks} looks"
        yield (
            f"{facts.target} reaches the edge of the segmented region ({_listed(facts.touched)}) after {looks}, "
            "so part of it may be missing"
        )


def _touches_scan(facts: Facts) -> Iterator[str]:
    found = facts.structures.get(facts.target)
    if found is None:
        return
    ends = [face for face in found.scan_faces if face in ("feet", "head")]
    sides = [face for face in found.scan_faces if face not in ("feet", "head")]
    if ends:
        yield (
            f"{facts.target} reaches the first or last slice of the scan ({_listed(ends)}), "
            "so part of it may be missing"
        )
    if sides:
        yield f"{facts.target} reaches the edge of the image ({_listed(sides)}), so part of it may be missing"


def _boundary(facts: Facts) -> Iterator[str]:
    expected, seen = facts.boundary_mm, facts.boundary_seen_mm
    if expected is not None and seen is not None and expected > seen[1]:
        digits = next((n for n in range(1, 16) if f"{expected:.{n}f}" != f"{seen[1]:.{n}f}"), 16)
        yield (
            f"the boundary of {facts.target} is expected to be off by {expected:.{digits}f} mm; "
            f"{seen[0]:.{digits}f} to {seen[1]:.{digits}f} mm were expected in the validation cases"
        )


def _pieces(facts: Facts) -> Iterator[str]:
    found = facts.structures.get(facts.target)
    if found and found.loose_ml >= NOTABLE_PIECES_ML:
        yield (
            f"{found.loose_ml:.1f} mL of separate pieces of {facts.target} were removed, "
            f"{found.pieces - 1} beside the largest"
        )


def _holes(facts: Facts) -> Iterator[str]:
    found = facts.structures.get(facts.target)
    if found and found.holes_ml >= NOTABLE_HOLES_ML:
        yield f"{facts.target} has {found.holes} holes in its slices, {found.holes_ml:.1f} mL in all"


def _mask_gap(facts: Facts) -> Iterator[str]:
    for name, found in facts.structures.items():
        if found.empty_slices:
            yield f"{name} is missing on {found.empty_slices} slices between its first and its last"


def _slice_gap(facts: Facts) -> Iterator[str]:
    if facts.repeated_slices:
        yield (
            f"{facts.repeated_slices} of the slices that {facts.target} lies on are blank or copies of their "
            "neighbours, as where gaps were filled"
        )


def _scan_notes(facts: Facts) -> Iterator[str]:
    yield from facts.notes


@dataclass(frozen=True)
class Order:
    """Where one organ lies beside another, by TG-263 names without suffixes.

    Attributes:
        organ: one.
        other: the other one.
        axis: of LPS: 0 left-right, 1 front-back, 2 head-foot.
        sign: of the difference of their centroids along it, organ less other.
        words: how the organ lies, as "above".
    """

    organ: str
    other: str
    axis: int
    sign: int
    words: str


#: What holds in every man, by centroids, even if the crop cuts an organ.
ORDERS = (
    Order("Bladder", "Prostate", 2, 1, "above"),
    Order("SeminalVes", "Prostate", 2, 1, "above"),
    Order("PenileBulb", "Prostate", 2, -1, "below"),
    Order("Rectum", "Prostate", 1, 1, "behind"),
    Order("Rectum", "Bladder", 1, 1, "behind"),
    Order("SeminalVes", "Bladder", 1, 1, "behind"),
    *(
        Order(f"{femur}_{side}", other, 0, sign, words)
        for femur in ("Femur", "Femur_Head")
        for side, sign, words in (("L", 1, "to the left of"), ("R", -1, "to the right of"))
        for other in ("Prostate", "Bladder", "Rectum")
    ),
)


def _order(facts: Facts) -> Iterator[str]:
    by_standard = {
        standard_name(name, facts.standard_names).split("^")[0]: (name, found.centre_mm)
        for name, found in facts.structures.items()
    }
    for order in ORDERS:
        if order.organ in by_standard and order.other in by_standard:
            (organ, here), (other, there) = by_standard[order.organ], by_standard[order.other]
            if order.sign * (here[order.axis] - there[order.axis]) <= 0:
                yield f"{organ} does not lie {order.words} {other}; is the scan's orientation right?"


def _beyond(value: float, seen: Range) -> bool:
    return not seen[0] - HU_LEEWAY <= value <= seen[1] + HU_LEEWAY


def _seen(seen: Range, unit: str, digits: int = 1) -> str:
    return f"the training cases had {seen[0]:.{digits}f} to {seen[1]:.{digits}f} {unit}"


def _listed(faces: tuple[str, ...] | list[str]) -> str:
    return ", ".join(faces)


#: In the order in which a case's reasons are told.
CHECKS: tuple[Check, ...] = (
    Check("absent", "fail", _absent),
    Check("empty", "fail", _empty),
    Check("synthetic_model", "review", _synthetic),
    Check("localisation", "review", _localisation),
    Check("stage_distance", "review", _stage_distance),
    Check("stage_overlap", "review", _stage_overlap),
    Check("touches_crop", "review", _touches_crop),
    Check("touches_scan", "review", _touches_scan),
    Check("volume", "review", _volume),
    Check("extent", "review", _extent),
    Check("spacing", "review", _spacing),
    Check("target_hu", "review", _target_hu),
    Check("crop_hu", "review", _crop_hu),
    Check("noise", "review", _noise),
    Check("metal", "review", _metal),
    Check("not_tissue", "review", _not_tissue),
    Check("boundary", "review", _boundary),
    Check("pieces", "review", _pieces),
    Check("holes", "review", _holes),
    Check("mask_gap", "review", _mask_gap),
    Check("slice_gap", "review", _slice_gap),
    Check("scan_notes", "review", _scan_notes, of_mask=False),
    Check("organ_order", "review", _order),
)
