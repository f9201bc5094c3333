"""Verdicts on scans: for each flag one scan that raises it, beside a scan that raises none."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from metricunet.files.model import Calibration
from metricunet.inference.predictor import Predictor
from metricunet.quality.checks import CHECKS
from metricunet.quality.verdict import QualityReport, judge
from metricunet.volume import Volume
from tests.support.threshold_model import (
    GLAND_BAND,
    GLAND_HU,
    Shape,
    ball,
    bands_known,
    box,
    drawn_scan,
    write_bands_model,
)

#: What the model has seen: glands of about 24 mL, in scans like the one below.
RANGES = {
    "volume_ml": (20.0, 30.0),
    "extent_head_foot_mm": (34.0, 38.0),
    "extent_front_back_mm": (34.0, 38.0),
    "extent_left_right_mm": (34.0, 38.0),
    "slice_spacing_mm": (2.0, 2.0),
    "pixel_spacing_mm": (2.0, 2.0),
    "target_hu": (55.0, 65.0),
    "crop_hu": (-95.0, -85.0),
    "noise_hu": (4.0, 6.0),
}
LABELS = {"prostate": 1, "bladder": 2, "rectum": 3}
#: Bladder and rectum are drawn far brighter than they are, so that bands of HU tell them apart.
BLADDER_HU, RECTUM_HU = 220.0, 420.0
BANDS = (GLAND_BAND, (160.0, 280.0), (360.0, 480.0))
GLAND: tuple[Shape, float] = (ball((0, 0, 0), 18), GLAND_HU)
BLADDER: tuple[Shape, float] = (ball((0, -8, 26), 7), BLADDER_HU)
RECTUM: tuple[Shape, float] = (ball((0, 25, 0), 6), RECTUM_HU)


@pytest.fixture(autouse=True, scope="module")
def bands() -> Iterator[None]:
    with bands_known():
        yield


def edited(*shapes: tuple[Shape, float], edit: Callable[[np.ndarray], None] | None = None, **more: Any) -> Volume:
    scan = drawn_scan(*shapes, **more)
    if edit is not None:
        edit(scan.array)
    return scan


def copied_slice(array: np.ndarray) -> None:
    array[31] = array[30]


def blank_slice(array: np.ndarray) -> None:
    array[25] = 0


def streaks(array: np.ndarray) -> None:
    """Bands of two columns 300 HU above and below the rest, through the front of the gland; their mean is 0."""
    inside = array[20:40, 28:34]
    inside[..., ::2] += 300
    inside[..., 1::2] -= 300


@dataclass(frozen=True)
class Case:
    """A scan that raises a flag, and what of the model differs for it."""

    scan: Callable[[], Volume]
    model: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    patient_sex: str = ""


def drawn(*shapes: tuple[Shape, float], **more: Any) -> Callable[[], Volume]:
    return lambda: edited(*shapes, **more)


#: The upper part of the gland is brighter, and stage 1 knows the lower one alone.
UPPER: tuple[Shape, float] = (ball((0, 0, 26), 20), 110.0)
LOWER_ALONE = {"locate_bands": ((-15.0, 85.0), *BANDS[1:])}

RAISING: dict[str, list[Case]] = {
    "absent": [Case(drawn(BLADDER))],
    "empty": [Case(drawn(GLAND), {"bands": ((500.0, 600.0), *BANDS[1:]), "locate_bands": BANDS})],
    "synthetic_model": [Case(drawn(GLAND), {"trained_on": "synthetic"})],
    "patient_sex": [Case(drawn(GLAND), patient_sex="F")],
    "localisation": [Case(drawn((ball((-40, 0, 0), 18), GLAND_HU), (ball((40, 0, 0), 18.5), GLAND_HU)))],
    "stage_distance": [Case(drawn(GLAND, UPPER), LOWER_ALONE)],
    "stage_overlap": [
        Case(drawn((ball((0, 0, 0), 26), 110.0), (ball((0, 0, 0), 14), GLAND_HU)), LOWER_ALONE),
    ],
    "touches_crop": [Case(drawn((box((-15, -15, -58), (15, 15, 56)), GLAND_HU)))],
    "touches_scan": [
        Case(drawn((ball((0, 0, -50), 18), GLAND_HU))),
        Case(drawn((ball((0, -58, 0), 18), GLAND_HU))),
    ],
    "volume": [Case(drawn((ball((0, 0, 0), 21), GLAND_HU)))],
    "extent": [Case(drawn((ball((0, 0, 0), (24, 16, 16)), GLAND_HU)))],
    "spacing": [Case(drawn(GLAND, shape=(40, 72, 80), spacing_mm=(3.0, 2.0, 2.0)))],
    "target_hu": [Case(drawn((ball((0, 0, 0), 18), 85.0)))],
    "crop_hu": [Case(drawn(GLAND, body_hu=-60.0))],
    "noise": [Case(drawn(GLAND, noise_hu=15.0))],
    "metal": [Case(drawn(GLAND, (ball((60, 0, 0), 6), 3000.0)))],
    "not_tissue": [
        Case(drawn(GLAND, edit=streaks, spacing_mm=(2.0, 1.0, 1.0), shape=(60, 72, 80)),
             {"spacing_mm": (2.0, 2.0, 2.0)}),
    ],
    "boundary": [Case(drawn(GLAND), {"calibration": Calibration(6.0, 1.0, (0.1, 0.2), 3, {})})],
    "pieces": [Case(drawn(GLAND, (ball((-27, 0, 20), 8), GLAND_HU)))],
    "holes": [Case(drawn(GLAND, (box((-4, -4, -40), (4, 4, 40)), -90.0)))],
    "mask_gap": [Case(drawn(GLAND, BLADDER, (box((-40, -40, 24), (40, 40, 26)), -90.0)))],
    "organ_cut": [
        Case(
            drawn(GLAND, (box((-8, -16, 18), (8, 0, 59)), BLADDER_HU)),
            {"bands": (GLAND_BAND, BANDS[2]), "organs": {"bladder": BANDS[1]}, "organs_crop_voxels": (20, 18, 30)},
        )
    ],
    "slice_gap": [Case(drawn(GLAND, edit=copied_slice)), Case(drawn(GLAND, edit=blank_slice))],
    "scan_notes": [Case(drawn(GLAND), notes=("3 slices were averaged",))],
    "organ_order": [
        Case(drawn(GLAND, (ball((0, -8, -26), 7), BLADDER_HU))),
        Case(drawn(GLAND, (ball((0, -25, 0), 6), RECTUM_HU))),
    ],
}  # fmt: skip


def judged(folder: Path, case: Case) -> QualityReport:
    model = write_bands_model(
        folder / "model.safetensors", **{"labels": LABELS, "bands": BANDS, "ranges": RANGES} | case.model
    )
    predictor = Predictor([model], "cpu", "fp32")
    scan = case.scan()
    return judge("case", scan, predictor.predict(scan), case.notes, case.patient_sex)


def test_a_scan_like_the_training_cases_passes(tmp_path: Path) -> None:
    quality = judged(tmp_path, Case(drawn(GLAND, BLADDER, RECTUM)))
    assert quality.reasons == []
    assert quality.verdict == "pass"
    assert set(quality.structures) == set(LABELS)
    assert quality.structures["prostate"]["volume_ml"] == pytest.approx(4 / 3 * np.pi * 1.8**3, rel=0.03)
    assert quality.structures["prostate"]["extent_mm"] == pytest.approx([36, 36, 36], abs=2)
    assert [quality.structures[name]["cropped"] for name in LABELS] == [False, True, True]
    assert quality.agreement["distance_mm"] < 2
    assert quality.agreement["overlap"] > 0.85
    assert quality.hu["target_hu"] == pytest.approx(60, abs=1)
    assert quality.hu["crop_hu"] == pytest.approx(-90, abs=2)
    assert quality.hu["noise_hu"] == pytest.approx(5, abs=1)
    assert len(quality.crops) == 1


@pytest.mark.parametrize("code", RAISING)
def test_a_scan_that_raises_a_flag(tmp_path: Path, code: str) -> None:
    for case in RAISING[code]:
        quality = judged(tmp_path, case)
        assert code in [flag.code for flag in quality.flags], quality
        assert quality.verdict == ("fail" if code in ("absent", "empty") else "review")


def test_every_flag_has_its_scan() -> None:
    assert set(RAISING) == {check.code for check in CHECKS}


def test_metal_far_from_the_crops_slices_is_left_alone(tmp_path: Path) -> None:
    quality = judged(tmp_path, Case(drawn(GLAND, (ball((0, 0, 52), 6), 3000.0))))
    assert "metal" not in [flag.code for flag in quality.flags]
    assert quality.hu["metal_ml"] == 0


def test_a_target_that_is_cut_by_its_crop_is_called_cropped(tmp_path: Path) -> None:
    quality = judged(tmp_path, RAISING["touches_crop"][0])
    assert "touches_crop" in [flag.code for flag in quality.flags]
    assert quality.structures["prostate"]["cropped"] is True


def test_the_json_holds_plain_numbers_and_both_forms_of_reasons(tmp_path: Path) -> None:
    import json

    quality = judged(tmp_path, Case(drawn(GLAND), {"trained_on": "synthetic"}))
    content = json.loads(json.dumps(quality.to_json(), allow_nan=False))
    assert content["flags"] == [{"code": "synthetic_model", "text": content["reasons"][0]}]
    assert {"case", "localisation", "verdict", "reasons", "structures", "crops", "hu", "agreement"} <= set(content)


def test_what_was_drawn_stands_among_what_is_said_of_a_structure(tmp_path: Path) -> None:
    quality = judged(tmp_path, Case(drawn(GLAND, BLADDER)))
    content = quality.to_json({"bladder": {"points": 7}})
    assert content["structures"]["bladder"] == {**quality.structures["bladder"], "contours": {"points": 7}}
    assert content["structures"]["prostate"] == quality.structures["prostate"]
    assert "contours" not in quality.to_json()["structures"]["bladder"]


@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1)])
def test_findings_do_not_depend_on_the_storage_order(tmp_path: Path, axes: tuple[int, int, int]) -> None:
    """Masks know where they lie in the scan, whichever way its axes run."""
    shapes = (GLAND, BLADDER, (ball((60, 0, 0), 6), 3000.0))
    straight = judged(tmp_path, Case(drawn(*shapes)))
    turned = judged(tmp_path, Case(lambda: drawn_scan(*shapes).reordered(axes, (True, False, True))))
    assert turned.to_json() == straight.to_json()
    assert straight.hu["metal_ml"] > 0.5
