"""Each check alone: findings that raise its flag, and findings just within its threshold that do not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from metricunet.quality.checks import CHECKS, doubt_of, flags_of
from metricunet.quality.findings import Findings, HuFindings, StructureFindings

GLAND = StructureFindings(
    volume_ml=40.0,
    centre_mm=(0.0, 0.0, 0.0),
    extent_mm=(40.0, 40.0, 45.0),
    pieces=1,
    loose_ml=0.0,
    holes=0,
    holes_ml=0.0,
    empty_slices=0,
    scan_faces=(),
    cropped=False,
)
HU = HuFindings(target_hu=41.0, crop_hu=20.0, noise_hu=15.0, odd_share=0.01, metal_ml=0.0)
SOUND = Findings(
    target="prostate",
    status="found",
    confidence=0.9,
    reason="one candidate of 38 mL",
    structures={"prostate": GLAND},
    standard_names={"prostate": "Prostate", "blase": "Bladder", "rectum": "Rectum", "ball": "Femur_Head_L"},
    ranges={
        "volume_ml": (20.0, 80.0),
        "extent_head_foot_mm": (30.0, 60.0),
        "extent_front_back_mm": (30.0, 50.0),
        "extent_left_right_mm": (35.0, 60.0),
        "slice_spacing_mm": (1.0, 3.0),
        "pixel_spacing_mm": (0.8, 1.2),
        "target_hu": (30.0, 50.0),
        "crop_hu": (0.0, 40.0),
        "noise_hu": (10.0, 20.0),
    },
    spacing_mm=(2.5, 1.0, 1.0),
    stage_distance_mm=3.0,
    stage_overlap=0.8,
    hu=HU,
)


def gland(**changes: object) -> Findings:
    return replace(SOUND, structures={"prostate": replace(GLAND, **changes)})  # type: ignore[arg-type]


def hu(**changes: object) -> Findings:
    return replace(SOUND, hu=replace(HU, **changes))  # type: ignore[arg-type]


def organs(**centres: tuple[float, float, float]) -> Findings:
    others = {name: replace(GLAND, centre_mm=centre, cropped=True) for name, centre in centres.items()}
    return replace(SOUND, structures={"prostate": GLAND} | others)


def changed(**changes: object) -> Findings:
    return replace(SOUND, **changes)  # type: ignore[arg-type]


#: A model of another target, in a woman.
UTERUS: dict[str, Any] = {"target": "uterus", "structures": {"uterus": GLAND}, "patient_sex": "F"}
#: Code: findings that raise it, words of the sentence, and findings that do not.
CASES: dict[str, tuple[list[tuple[Findings, str]], list[Findings]]] = {
    "absent": ([(changed(status="absent", structures={}, hu=None), "prostate not found: one candi")], [SOUND]),
    "empty": ([(changed(structures={}, hu=None), "segments no voxel")], [SOUND]),
    "synthetic_model": ([(changed(held_back="the model saw phantoms"), "saw phantoms")], [SOUND]),
    "patient_sex": (
        [(changed(patient_sex="F"), "says that the patient is female (PatientSex is F)")],
        [changed(patient_sex="M"), changed(patient_sex="O"), replace(SOUND, **UTERUS)],
    ),
    "localisation": ([(changed(status="uncertain", confidence=0.4), "uncertain (confidence 0.40)")], [SOUND]),
    "stage_distance": (
        [(changed(stage_distance_mm=10.1), "10.1 mm apart")],
        [changed(stage_distance_mm=10.0), changed(stage_distance_mm=None)],
    ),
    "stage_overlap": (
        [(changed(stage_overlap=0.49), "Dice of 0.49")],
        [changed(stage_overlap=0.5), changed(stage_overlap=None)],
    ),
    "touches_crop": ([(changed(touched=("head",), looks=4), "(head) after 4 looks")], [changed(looks=4)]),
    "touches_scan": (
        [
            (gland(scan_faces=("feet",)), "first or last slice of the scan (feet)"),
            (gland(scan_faces=("left",)), "edge of the image (left)"),
        ],
        [gland(scan_faces=())],
    ),
    "volume": (
        [
            (gland(volume_ml=18.0), "18.0 mL; the training cases had 20.0 to 80.0 mL"),
            (gland(volume_ml=89.0), "89"),
        ],
        [gland(volume_ml=18.5), gland(volume_ml=87.0)],
    ),
    "extent": (
        [
            (gland(extent_mm=(66.0, 40.0, 45.0)), "66 mm head-foot"),
            (gland(extent_mm=(40.0, 24.0, 45.0)), "24 mm front-back"),
            (gland(extent_mm=(40.0, 40.0, 66.0)), "66 mm left-right"),
        ],
        [gland(extent_mm=(65.0, 25.0, 30.0))],
    ),
    "spacing": (
        [
            (changed(spacing_mm=(5.0, 1.0, 1.0)), "slice spacing of 5.00 mm; the training cases had 1.00 to 3.00"),
            (changed(spacing_mm=(2.0, 1.0, 0.5)), "pixel spacing of 0.50 mm"),
        ],
        [changed(spacing_mm=(3.1, 1.22, 0.78))],
    ),
    "target_hu": (
        [(hu(target_hu=61.0), "median of 61 HU"), (hu(target_hu=19.0), "19 HU")],
        [hu(target_hu=59.0), hu(target_hu=21.0)],
    ),
    "crop_hu": ([(hu(crop_hu=-11.0), "-11 HU")], [hu(crop_hu=-9.0), hu(crop_hu=None)]),
    "noise": (
        [(hu(noise_hu=31.0), "noise of 31 HU"), (hu(noise_hu=6.0), "noise of 6 HU")],
        [hu(noise_hu=29.0), hu(noise_hu=7.0), hu(noise_hu=None)],
    ),
    "metal": ([(hu(metal_ml=0.5), "0.5 mL of metal")], [hu(metal_ml=0.4)]),
    "not_tissue": ([(hu(odd_share=0.06), "6% of prostate")], [hu(odd_share=0.05)]),
    "boundary": (
        [
            (
                changed(boundary_mm=2.11, boundary_seen_mm=(1.2, 2.1)),
                "off by 2.11 mm; 1.20 to 2.10 mm were expected",
            )
        ],
        [changed(boundary_mm=2.1, boundary_seen_mm=(1.2, 2.1)), changed(boundary_mm=9.0)],
    ),
    "pieces": ([(gland(pieces=3, loose_ml=1.0), "1.0 mL of separate pieces")], [gland(pieces=3, loose_ml=0.9)]),
    "holes": ([(gland(holes=2, holes_ml=0.1), "2 holes")], [gland(holes=2, holes_ml=0.09)]),
    "mask_gap": ([(gland(empty_slices=2), "missing on 2 slices")], [gland(empty_slices=0)]),
    "organ_cut": (
        [(replace(organs(bladder=(0.0, 0.0, 30.0)), organs=("bladder",)), "bladder reaches the edge of the box")],
        [
            organs(bladder=(0.0, 0.0, 30.0)),  # stage 2's, which may always go on outside the crop
            replace(gland(cropped=False), organs=("prostate", "bladder")),
        ],
    ),
    "slice_gap": ([(changed(repeated_slices=1), "1 of the slices")], [SOUND]),
    "scan_notes": ([(changed(notes=("a slice was added",)), "a slice was added")], [SOUND]),
    "organ_order": (
        [
            (organs(blase=(0.0, 0.0, -5.0)), "blase does not lie above prostate"),
            (organs(rectum=(0.0, -5.0, 0.0)), "rectum does not lie behind prostate"),
            (organs(ball=(-80.0, 0.0, 0.0)), "ball does not lie to the left of prostate"),
        ],
        [organs(blase=(0.0, -5.0, 30.0), rectum=(0.0, 30.0, 0.0), ball=(80.0, 0.0, 0.0))],
    ),
}


def test_a_sound_case_passes() -> None:
    assert flags_of(SOUND) == ("pass", ())


@pytest.mark.parametrize("code", CASES)
def test_a_flag_is_raised_by_its_facts_and_by_nothing_less(code: str) -> None:
    raising, quiet = CASES[code]
    for findings, words in raising:
        verdict, flags = flags_of(findings)
        assert [flag.code for flag in flags] == [code]
        assert words in flags[0].text
        assert verdict == ("fail" if code in ("absent", "empty") else "review")
    for findings in quiet:
        assert flags_of(findings) == ("pass", ())


@pytest.mark.parametrize(
    ("findings", "words"),
    [
        (changed(boundary_mm=0.94, boundary_seen_mm=(0.8, 0.91)), "off by 0.94 mm; 0.80 to 0.91 mm were"),
        (changed(boundary_mm=1.2, boundary_seen_mm=(0.8, 0.91)), "off by 1.2 mm; 0.8 to 0.9 mm were"),
        (changed(stage_overlap=0.4996), "Dice of 0.4996, 0.5 is expected"),
        (changed(stage_distance_mm=10.04), "lie 10.04 mm apart, 10 mm are"),
    ],
)
def test_numbers_that_differ_never_look_alike(findings: Findings, words: str) -> None:
    (flag,) = flags_of(findings)[1]
    assert words in flag.text


def test_every_check_is_tested_and_explained() -> None:
    codes = [check.code for check in CHECKS]
    assert len(set(codes)) == len(codes)
    assert set(CASES) == set(codes)
    page = (Path(__file__).parents[2] / "docs" / "predictions.md").read_text(encoding="utf-8")
    for code in codes:
        assert f"| `{code}` |" in page


def test_a_model_of_few_ranges_is_checked_by_those_alone() -> None:
    odd = replace(
        gland(volume_ml=500.0, extent_mm=(200.0, 200.0, 200.0)),
        ranges={"slice_spacing_mm": (1.0, 3.0)},
        hu=replace(HU, target_hu=900.0, crop_hu=900.0, noise_hu=900.0),
    )
    assert flags_of(odd) == ("pass", ())


def test_a_failed_case_says_nothing_of_a_mask() -> None:
    verdict, flags = flags_of(changed(status="absent", structures={}, held_back="phantoms", notes=("a note",)))
    assert (verdict, [flag.code for flag in flags]) == ("fail", ["absent", "scan_notes"])


def test_several_flags_come_in_the_tables_order() -> None:
    findings = replace(gland(volume_ml=500.0), held_back="phantoms", notes=("one", "two"))
    verdict, flags = flags_of(findings)
    assert verdict == "review"
    assert [flag.code for flag in flags] == ["synthetic_model", "volume", "scan_notes", "scan_notes"]


@pytest.mark.parametrize(
    ("findings", "doubt"),
    [
        (SOUND, "none"),
        (changed(held_back="phantoms"), "none"),
        (changed(held_back="phantoms", notes=("a repair",)), "some"),
        (hu(noise_hu=90.0), "some"),
        (gland(volume_ml=500.0), "some"),
        (hu(target_hu=900.0), "strong"),
        (hu(crop_hu=900.0), "strong"),
        (gland(extent_mm=(66.0, 40.0, 45.0)), "strong"),
        (changed(spacing_mm=(5.0, 1.0, 1.0)), "strong"),
        (changed(stage_distance_mm=11.0), "strong"),
        (changed(stage_overlap=0.4, notes=("a repair",)), "strong"),
        (gland(scan_faces=("feet",)), "strong"),
        (changed(patient_sex="F"), "strong"),
        (changed(structures={}, hu=None), "strong"),
        (changed(status="absent", structures={}, hu=None), "some"),
    ],
)
def test_doubt_is_that_of_the_worst_flag(findings: Findings, doubt: str) -> None:
    assert doubt_of(flag.code for flag in flags_of(findings)[1]) == doubt


def test_a_flag_of_another_version_brings_some_doubt() -> None:
    assert doubt_of(["of_tomorrow"]) == "some"
