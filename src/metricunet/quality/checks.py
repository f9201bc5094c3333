"""The checks behind a verdict: a table of pure functions from the findings of a case to what is to be said of it.

A check yields a sentence for each thing that it finds, and nothing where all is well. Its code is what programs go
by: it stays, whatever becomes of the sentence. docs/predictions.md says why each threshold is where it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Literal, get_args

from metricunet.cohort.names import standard_name
from metricunet.errors import unlike_limits
from metricunet.quality.findings import Findings, Range

#: How a case is judged.
Grade = Literal["pass", "review", "fail"]
#: How much a case's flags speak against its mask, whatever is held against the model as such.
Doubt = Literal["none", "some", "strong"]
DOUBTS: tuple[Doubt, ...] = get_args(Doubt)
Find = Callable[[Findings], Iterator[str]]

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
#: Organs of men alone, by TG-263 names without suffixes, and how DICOM says that a patient is none.
MENS_ORGANS = ("Prostate", "SeminalVes", "PenileBulb")
FEMALE = "F"

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
class QualityCheck:
    """One row of the table.

    Attributes:
        code: stands in each of its flags.
        verdict: the least that one of its flags brings.
        find: yields a sentence for each flag.
        of_mask: whether it speaks of the mask, so that it has no say where there is none.
        doubt: the least that one of its flags brings.
    """

    code: str
    verdict: Grade
    find: Find
    of_mask: bool = True
    doubt: Doubt = "some"


def doubt_of(codes: Iterable[str]) -> Doubt:
    """Return how much doubt flags bring together, by their codes; one that is not in the table brings some."""
    known = {check.code: check.doubt for check in CHECKS}
    return max((known.get(code, "some") for code in codes), key=DOUBTS.index, default="none")


def flags_of(findings: Findings) -> tuple[Grade, tuple[Flag, ...]]:
    """Run all checks, and return the verdict and the flags in the table's order."""
    failed = any(True for check in CHECKS if check.verdict == "fail" for _ in check.find(findings))
    checks = [check for check in CHECKS if check.verdict == "fail" or not (failed and check.of_mask)]
    found = tuple(Flag(check.code, text) for check in checks for text in check.find(findings))
    return ("fail" if failed else "review" if found else "pass"), found


def _absent(findings: Findings) -> Iterator[str]:
    if findings.status == "absent":
        yield f"{findings.target} not found: {findings.reason}"


def _empty(findings: Findings) -> Iterator[str]:
    if findings.status != "absent" and findings.target not in findings.structures:
        yield f"{findings.target} was located, but stage 2 segments no voxel of it there"


def _synthetic(findings: Findings) -> Iterator[str]:
    if findings.held_back:
        yield findings.held_back


def _patient_sex(findings: Findings) -> Iterator[str]:
    is_mens = _standard(findings.target, findings) in MENS_ORGANS
    if is_mens and findings.patient_sex == FEMALE:
        yield (
            f"the scan's header says that the patient is female (PatientSex is {FEMALE}), so there may be no "
            f"{findings.target}, and the model segments one all the same"
        )


def _localisation(findings: Findings) -> Iterator[str]:
    if findings.status == "uncertain":
        yield f"localisation is uncertain (confidence {findings.confidence:.2f}): {findings.reason}"


def _stage_distance(findings: Findings) -> Iterator[str]:
    distance = findings.stage_distance_mm
    if distance is not None and distance > FARTHEST_STAGES_MM:
        apart = unlike_limits(distance, FARTHEST_STAGES_MM, digits=2)
        yield (
            f"the two stages disagree: their centres of {findings.target} lie {apart} mm apart, "
            f"{FARTHEST_STAGES_MM:g} mm are expected at most"
        )


def _stage_overlap(findings: Findings) -> Iterator[str]:
    overlap = findings.stage_overlap
    if overlap is not None and overlap < LEAST_STAGE_OVERLAP:
        yield (
            f"the two stages disagree: their masks of {findings.target} have a Dice of "
            f"{unlike_limits(overlap, LEAST_STAGE_OVERLAP, digits=2)}, "
            f"{LEAST_STAGE_OVERLAP:g} is expected at least"
        )


def _volume(findings: Findings) -> Iterator[str]:
    seen, found = findings.ranges.get("volume_ml"), findings.structures.get(findings.target)
    if seen and found and not seen[0] / VOLUME_LEEWAY <= found.volume_ml <= seen[1] * VOLUME_LEEWAY:
        yield f"{findings.target} has {found.volume_ml:.1f} mL; {_seen(seen, 'mL')}"


def _extent(findings: Findings) -> Iterator[str]:
    found = findings.structures.get(findings.target)
    if found is None:
        return
    for quantity, extent in zip(EXTENTS, found.extent_mm, strict=True):
        seen = findings.ranges.get(quantity)
        if seen and not seen[0] - EXTENT_LEEWAY_MM <= extent <= seen[1] + EXTENT_LEEWAY_MM:
            way = quantity.removeprefix("extent_").removesuffix("_mm").replace("_", "-")
            yield f"{findings.target} measures {extent:.0f} mm {way}; {_seen(seen, 'mm', 0)}"


def _spacing(findings: Findings) -> Iterator[str]:
    for quantity, values in (
        ("slice_spacing_mm", findings.spacing_mm[:1]),
        ("pixel_spacing_mm", findings.spacing_mm[1:]),
    ):
        seen = findings.ranges.get(quantity)
        if seen and not all(seen[0] / SPACING_LEEWAY <= v <= seen[1] * SPACING_LEEWAY for v in values):
            name = quantity.removesuffix("_mm").replace("_", " ")
            worst = max(values, key=lambda v: max(seen[0] / v, v / seen[1]))
            yield f"{name} of {worst:.2f} mm; {_seen(seen, 'mm', 2)}"


def _target_hu(findings: Findings) -> Iterator[str]:
    seen = findings.ranges.get("target_hu")
    if seen and findings.hu and _beyond(findings.hu.target_hu, seen):
        yield f"{findings.target} has a median of {findings.hu.target_hu:.0f} HU; {_seen(seen, 'HU', 0)}"


def _crop_hu(findings: Findings) -> Iterator[str]:
    seen = findings.ranges.get("crop_hu")
    if seen and findings.hu and findings.hu.crop_hu is not None and _beyond(findings.hu.crop_hu, seen):
        yield (
            f"the body around {findings.target} has a median of {findings.hu.crop_hu:.0f} HU; "
            f"{_seen(seen, 'HU', 0)}"
        )


def _noise(findings: Findings) -> Iterator[str]:
    seen = findings.ranges.get("noise_hu")
    if not seen or findings.hu is None or findings.hu.noise_hu is None:
        return
    if not seen[0] / NOISE_LEEWAY <= findings.hu.noise_hu <= seen[1] * NOISE_LEEWAY:
        yield f"noise of {findings.hu.noise_hu:.0f} HU around {findings.target}; {_seen(seen, 'HU', 0)}"


def _metal(findings: Findings) -> Iterator[str]:
    if findings.hu and findings.hu.metal_ml >= NOTABLE_METAL_ML:
        yield (
            f"{findings.hu.metal_ml:.1f} mL of metal on the slices around {findings.target}; "
            "its streaks may hide borders"
        )


def _not_tissue(findings: Findings) -> Iterator[str]:
    if findings.hu and findings.hu.odd_share > NOTABLE_ODD_SHARE:
        yield (
            f"{findings.hu.odd_share:.0%} of {findings.target} has HU that no such tissue has: "
            "gas, contrast medium, metal or streaks of it"
        )


def _touches_crop(findings: Findings) -> Iterator[str]:
    if findings.touched:
        looks = "one look" if findings.looks == 1 else f"{findings.looks} looks"
        yield (
            f"{findings.target} reaches the edge of the segmented region ({_listed(findings.touched)}) "
            f"after {looks}, so part of it may be missing"
        )


def _touches_scan(findings: Findings) -> Iterator[str]:
    found = findings.structures.get(findings.target)
    if found is None:
        return
    ends = [face for face in found.scan_faces if face in ("feet", "head")]
    sides = [face for face in found.scan_faces if face not in ("feet", "head")]
    if ends:
        yield (
            f"{findings.target} reaches the first or last slice of the scan ({_listed(ends)}), "
            "so part of it may be missing"
        )
    if sides:
        yield f"{findings.target} reaches the edge of the image ({_listed(sides)}), so part of it may be missing"


def _boundary(findings: Findings) -> Iterator[str]:
    expected, seen = findings.boundary_mm, findings.boundary_seen_mm
    if expected is not None and seen is not None and expected > seen[1]:
        digits = next((n for n in range(1, 16) if f"{expected:.{n}f}" != f"{seen[1]:.{n}f}"), 16)
        yield (
            f"the boundary of {findings.target} is expected to be off by {expected:.{digits}f} mm; "
            f"{seen[0]:.{digits}f} to {seen[1]:.{digits}f} mm were expected in the validation cases"
        )


def _pieces(findings: Findings) -> Iterator[str]:
    found = findings.structures.get(findings.target)
    if found and found.loose_ml >= NOTABLE_PIECES_ML:
        yield (
            f"{found.loose_ml:.1f} mL of separate pieces of {findings.target} were removed, "
            f"{found.pieces - 1} beside the largest"
        )


def _holes(findings: Findings) -> Iterator[str]:
    found = findings.structures.get(findings.target)
    if found and found.holes_ml >= NOTABLE_HOLES_ML:
        yield f"{findings.target} has {found.holes} holes in its slices, {found.holes_ml:.1f} mL in all"


def _mask_gap(findings: Findings) -> Iterator[str]:
    for name, found in findings.structures.items():
        if found.empty_slices:
            yield f"{name} is missing on {found.empty_slices} slices between its first and its last"


def _organ_cut(findings: Findings) -> Iterator[str]:
    for name in findings.organs:
        found = findings.structures.get(name)
        if found and found.cropped:
            yield f"{name} reaches the edge of the box that organs are looked for in, so part of it may be missing"


def _slice_gap(findings: Findings) -> Iterator[str]:
    if findings.repeated_slices:
        yield (
            f"{findings.repeated_slices} of the slices that {findings.target} lies on, or of the next ones, are "
            "blank or copies of their neighbours, as where gaps were filled"
        )


def _scan_notes(findings: Findings) -> Iterator[str]:
    yield from findings.notes


@dataclass(frozen=True)
class OrganOrder:
    """Where one organ lies beside another, by TG-263 names without suffixes.

    Attributes:
        organ: the organ whose side is told.
        other: the organ that it lies beside.
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
    OrganOrder("Bladder", "Prostate", 2, 1, "above"),
    OrganOrder("SeminalVes", "Prostate", 2, 1, "above"),
    OrganOrder("PenileBulb", "Prostate", 2, -1, "below"),
    OrganOrder("Rectum", "Prostate", 1, 1, "behind"),
    OrganOrder("Rectum", "Bladder", 1, 1, "behind"),
    OrganOrder("SeminalVes", "Bladder", 1, 1, "behind"),
    *(
        OrganOrder(f"{femur}_{side}", other, 0, sign, words)
        for femur in ("Femur", "Femur_Head")
        for side, sign, words in (("L", 1, "to the left of"), ("R", -1, "to the right of"))
        for other in ("Prostate", "Bladder", "Rectum")
    ),
)


def _order(findings: Findings) -> Iterator[str]:
    by_standard = {
        _standard(name, findings): (name, found.centre_mm) for name, found in findings.structures.items()
    }
    for order in ORDERS:
        if order.organ in by_standard and order.other in by_standard:
            (organ, here), (other, there) = by_standard[order.organ], by_standard[order.other]
            if order.sign * (here[order.axis] - there[order.axis]) <= 0:
                yield f"{organ} does not lie {order.words} {other}; is the scan's orientation right?"


def _standard(structure: str, findings: Findings) -> str:
    """Return the TG-263 name of a structure without its suffix."""
    return standard_name(structure, findings.standard_names).split("^")[0]


def _beyond(value: float, seen: Range) -> bool:
    return not seen[0] - HU_LEEWAY <= value <= seen[1] + HU_LEEWAY


def _seen(seen: Range, unit: str, digits: int = 1) -> str:
    return f"the training cases had {seen[0]:.{digits}f} to {seen[1]:.{digits}f} {unit}"


def _listed(faces: tuple[str, ...] | list[str]) -> str:
    return ", ".join(faces)


#: In the order in which a case's reasons are told.
CHECKS: tuple[QualityCheck, ...] = (
    QualityCheck("absent", "fail", _absent),
    QualityCheck("empty", "fail", _empty, doubt="strong"),
    QualityCheck("synthetic_model", "review", _synthetic, doubt="none"),
    QualityCheck("patient_sex", "review", _patient_sex, doubt="strong"),
    QualityCheck("localisation", "review", _localisation),
    QualityCheck("stage_distance", "review", _stage_distance, doubt="strong"),
    QualityCheck("stage_overlap", "review", _stage_overlap, doubt="strong"),
    QualityCheck("touches_crop", "review", _touches_crop),
    QualityCheck("touches_scan", "review", _touches_scan, doubt="strong"),
    QualityCheck("volume", "review", _volume),
    QualityCheck("extent", "review", _extent, doubt="strong"),
    QualityCheck("spacing", "review", _spacing, doubt="strong"),
    QualityCheck("target_hu", "review", _target_hu, doubt="strong"),
    QualityCheck("crop_hu", "review", _crop_hu, doubt="strong"),
    QualityCheck("noise", "review", _noise),
    QualityCheck("metal", "review", _metal),
    QualityCheck("not_tissue", "review", _not_tissue),
    QualityCheck("boundary", "review", _boundary),
    QualityCheck("pieces", "review", _pieces),
    QualityCheck("holes", "review", _holes),
    QualityCheck("mask_gap", "review", _mask_gap),
    QualityCheck("organ_cut", "review", _organ_cut),
    QualityCheck("slice_gap", "review", _slice_gap),
    QualityCheck("scan_notes", "review", _scan_notes, of_mask=False),
    QualityCheck("organ_order", "review", _order),
)
