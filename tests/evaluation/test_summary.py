from __future__ import annotations

import csv
import io
import json
from dataclasses import replace

import pytest

from metricunet.evaluation.cases import RecordedQuality
from metricunet.evaluation.measures import CONTOUR_DEFINITIONS, DEFINITIONS, MEASURE_NAMES, Definition, Measures
from metricunet.evaluation.summary import (
    CaseRow,
    Evaluation,
    cases_csv,
    counted,
    format_summary,
    heading,
    mean_and_std,
    number,
    summarise,
)

GOOD = Measures(0.9, 1.0, 0.88, 0.92, 3.0, 0.95, 2.0)
FAIR = Measures(0.8, 2.0, 0.75, 0.85, 6.0, 0.70, -4.0)
MISSED = Measures(0.0, None, 0.0, 0.0, None, 0.0, -30.0)
FALSE = Measures(0.0, None, None, 0.0, None, 0.0, 12.0)
ABSENT = Measures(None, None, None, None, None, None, None)


def rows(*measures: Measures, structure: str = "prostate") -> tuple[CaseRow, ...]:
    return tuple(CaseRow(f"case_{i}", structure, m) for i, m in enumerate(measures))


def evaluation(found: tuple[CaseRow, ...], unpredicted: tuple[str, ...] = ()) -> Evaluation:
    return Evaluation(
        found, summarise(found), unpredicted, ("stray",), {row.case: RecordedQuality() for row in found}
    )


def definition(name: str) -> Definition:
    return next(d for d in DEFINITIONS if d.name == name)


def test_statistics_by_hand() -> None:
    summary = summarise(rows(GOOD, FAIR, MISSED, FALSE, ABSENT))["prostate"]
    dice = summary.measures["dice"]
    assert (dice.mean, dice.median) == (pytest.approx(1.7 / 4), pytest.approx(0.4))
    assert dice.std == pytest.approx((((0.9 - 0.425) ** 2 + (0.8 - 0.425) ** 2 + 2 * 0.425**2) / 3) ** 0.5)
    assert (dice.n, dice.missed) == (4, 1)
    # A distance exists in two of the three cases with a reference; in the third the organ was missed.
    asd = summary.measures["asd_mm"]
    assert (asd.mean, asd.n, asd.missed) == (pytest.approx(1.5), 3, 1)
    sensitivity = summary.measures["sensitivity"]
    assert (sensitivity.mean, sensitivity.n) == (pytest.approx((0.88 + 0.75) / 3), 3)
    assert summary.measures["volume_difference_ml"].mean == pytest.approx((2 - 4 - 30 + 12) / 4)
    assert (summary.n, summary.missed, summary.true_absent) == (4, 1, 1)
    assert summary.false_positive == 1
    text = format_summary(evaluation(rows(GOOD, FAIR, MISSED, FALSE, ABSENT)))
    assert "prostate: 4 cases, 1 missed, 1 not in the reference, 1 truly absent" in text


def test_nothing_to_average() -> None:
    summary = summarise(rows(ABSENT, ABSENT))["prostate"]
    dice = summary.measures["dice"]
    assert (dice.mean, dice.std, dice.median, dice.n, dice.missed) == (None, None, None, 0, 0)
    assert summary.true_absent == 2
    only_missed = summarise(rows(MISSED))["prostate"].measures["hd95_mm"]
    assert (only_missed.mean, only_missed.n, only_missed.missed) == (None, 1, 1)
    assert summarise(rows(GOOD))["prostate"].measures["dice"].std is None


def test_json_holds_the_stated_fields_and_no_more() -> None:
    content = summarise(rows(GOOD, MISSED))["prostate"].to_json()
    assert set(content) == {*MEASURE_NAMES, "true_absent", "not_contoured"}
    for name in MEASURE_NAMES:
        assert list(content[name]) == ["mean", "std", "median", "n", "missed"]
    json.dumps(content, allow_nan=False)


def test_structures_keep_their_order() -> None:
    found = (*rows(GOOD, structure="urinary_bladder"), *rows(FAIR, structure="prostate"))
    assert list(summarise(found)) == ["urinary_bladder", "prostate"]


def test_csv_has_the_stated_columns_and_blanks() -> None:
    found = (*rows(GOOD, MISSED), CaseRow('odd, "name"', "prostate", ABSENT))
    lines = list(csv.reader(io.StringIO(cases_csv(found))))
    assert ",".join(lines[0]) == (
        "case,structure,dice,asd_mm,sensitivity,ppv,hd95_mm,surface_dice_2mm,volume_difference_ml"
    )
    assert [float(x) for x in lines[1][2:]] == [0.9, 1.0, 0.88, 0.92, 3.0, 0.95, 2.0]
    assert [x == "" for x in lines[2][2:]] == [False, True, False, False, True, False, False]
    assert lines[3] == ['odd, "name"', "prostate", *[""] * 7]


def test_failed_are_those_with_a_missed_structure() -> None:
    assert evaluation(rows(GOOD, FALSE, ABSENT)).failed == ()
    assert evaluation(rows(GOOD, MISSED, ABSENT)).failed == ("case_1",)
    # No mask is right where there is nothing to find.
    assert evaluation(rows(GOOD, ABSENT), unpredicted=("case_1",)).failed == ()


def test_numbers_for_people() -> None:
    dice, asd, volume = definition("dice"), definition("asd_mm"), definition("volume_difference_ml")
    assert number(0.87654, dice) == "0.877"
    assert number(1.2345, asd) == "1.23"
    assert number(None, asd) == "–"
    assert number(-3.25, volume, signed=True) == "−3.2"
    assert number(3.26, volume, signed=True) == "+3.3"
    assert number(-0.01, volume, signed=True) == "0.0"
    two = summarise(rows(GOOD, FAIR))["prostate"].measures
    assert mean_and_std(two["dice"], dice) == "0.850 ± 0.071"
    assert mean_and_std(summarise(rows(GOOD))["prostate"].measures["dice"], dice) == "0.900"
    with_missed = summarise(rows(GOOD, FAIR, MISSED))["prostate"].measures
    assert counted(with_missed["asd_mm"], asd) == "2 of 3"
    assert counted(with_missed["dice"], dice) == "3"


def test_text_names_what_went_wrong() -> None:
    text = format_summary(evaluation(rows(GOOD, MISSED, MISSED, ABSENT), unpredicted=("case_1",)))
    assert "prostate: 3 cases, 2 missed, 1 truly absent" in text
    assert "case_1 (no mask), case_2 (no prostate in the mask)" in text
    assert "without a reference, not counted: stray" in text
    asd = next(line for line in text.splitlines() if "ASD" in line)
    assert "1.00" in asd
    assert asd.endswith("1 of 3")
    assert max(len(line) for line in text.splitlines()) <= 80


def test_measures_have_the_names_that_others_call_them_by() -> None:
    lines = [line.split("   ")[0].strip() for line in format_summary(evaluation(rows(GOOD))).splitlines()]
    assert {"ASD (ASSD) [mm]", "Surface Dice (NSD), 2 mm", "HD95 [mm]", "Dice"} <= set(lines)
    # Files keep their names, and the tables of studies the short ones.
    assert (definition("asd_mm").heading, definition("surface_dice_2mm").heading) == (
        "ASD [mm]",
        "Surface Dice, 2 mm",
    )
    reviewed = replace(summarise(rows(GOOD))["prostate"], tolerance_mm=3.0)
    own = next(one for one in CONTOUR_DEFINITIONS if one.name == "surface_dice")
    assert heading(own, reviewed) == "Surface Dice (NSD), tolerance 3 mm"
