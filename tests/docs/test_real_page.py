"""What the page on real scans says is what its tables hold, and each scan that was looked at is shown."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from statistics import mean
from types import SimpleNamespace

import numpy as np
import pytest

from metricunet.files.model import read_card
from metricunet.inference.models import SHIPPED
from metricunet.volume import Geometry, Volume
from tests.support.scripts import docs_script

DOCS = Path(__file__).parents[2] / "docs"
PAGE = " ".join((DOCS / "real.md").read_text(encoding="utf-8").split())


def rows_of(name: str) -> list[dict[str, str]]:
    with (DOCS / "real" / f"{name}.csv").open(newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


def test_each_scan_that_was_looked_at_is_shown() -> None:
    found = [row["scan"] for row in rows_of("found")]
    shown = re.findall(r"!\[(\S+) in three planes[^\]]*\]\(real/(\S+)\.svg\)", PAGE)
    assert sorted(shown) == sorted(zip(found, found, strict=True))
    for scan in found:
        assert (DOCS / "real" / f"{scan}.svg").is_file()
        # Below the picture or in the table of the readings: where it comes from, and its licence.
        assert re.search(rf"`{scan}`[^|]*\([^)]*(CC BY 3\.0|CC0|Apache-2\.0)\)", PAGE), scan


def test_nothing_is_outlined_where_no_gland_was_found() -> None:
    names = [name.replace("_", " ") for name in read_card(SHIPPED).labels]
    for row in rows_of("found"):
        words = re.findall(
            r">([a-z ]+)</text>", (DOCS / "real" / f"{row['scan']}.svg").read_text(encoding="utf-8")
        )
        assert bool(set(words) & set(names)) == (row["status"] == "found"), row["scan"]


@pytest.mark.parametrize("scan", ["pelvis_ct_dicom", "example_ct"])
def test_masks_lie_as_far_from_the_readings_as_the_page_says(scan: str) -> None:
    (found,) = (row for row in rows_of("found") if row["scan"] == scan)
    readings = [row for row in rows_of("readings") if row["scan"] == scan]

    def off(column: str) -> float:
        return abs(float(found[column]) - mean(float(row[column]) for row in readings))

    centre = [round(off(f"centre_{axis}_mm")) for axis in "xyz"]
    assert f"Centre {centre[0]}, {centre[1]} and {centre[2]} mm from the" in PAGE
    assert f"{float(found['volume_ml']):.1f} mL" in PAGE
    if scan == "pelvis_ct_dicom":
        base, apex = (off(f"{end}_z_mm") for end in ("base", "apex"))
        assert f"base {round(base)} mm and apex {round(apex)} mm too low: within the 8 mm" in PAGE
        assert max(base, apex, *(off(f"centre_{axis}_mm") for axis in "xyz")) <= 8
    else:
        assert f"base {round(off('base_z_mm'))} mm too high" in PAGE


def test_the_scores_on_phantoms_are_those_of_the_rows() -> None:
    summary = docs_script("make_unseen").summary(rows_of("unseen"))
    scores = {}
    for line in summary:
        if of_structure := re.match(r"(\w+): (\S+ ± \S+), .*n = (\d+)$", line):
            scores[of_structure[1]] = (of_structure[2], of_structure[3])
    assert f"ASD of the prostate {scores.pop('asd_mm')[0]} mm" in PAGE
    for title, dice, n in re.findall(r"\| ([a-z ]+) \| (\d\.\d{3} ± \d\.\d{3}) \| (\d+) \|", PAGE):
        side = re.match(r"(left|right) (.*)", title)
        name = (f"{side[2]}_{side[1]}" if side else title).replace(" ", "_")
        assert scores.pop(name) == (dice, n), title
    assert scores == {}
    (worst,) = (line.removeprefix("worst tenth: ") for line in summary if line.startswith("worst tenth: "))
    said = [f"{case} ({float(dice):.2f})" for case, dice in (entry.split() for entry in worst.split(", "))]
    assert f"The worst tenth: {', '.join(said)}." in PAGE


def test_what_was_found_in_vain_and_what_was_cut_is_counted_right() -> None:
    rows = rows_of("unseen")
    present = [row for row in rows if row["gland"] in ("whole", "cut")]
    absent = [row for row in rows if row not in present]
    false = [row for row in absent if row["answer"] == "found"]
    assert f"made {len(rows)} `varied` phantoms, {len(present)} of them with a gland." in PAGE
    assert all(row["answer"] == "found" for row in present)
    assert "It missed none of these" in PAGE
    who = {kind: sum(row["gland"] == kind for row in absent) for kind in ("woman", "prostatectomy")}
    wrong = {kind: sum(row["gland"] == kind for row in false) for kind in who}
    assert (
        f"Of {len(absent)} scans without a gland it found one in {len(false)}: in {wrong['woman']} of "
        f"{who['woman']} women and {wrong['prostatectomy']} of {who['prostatectomy']} men after prostatectomy"
    ) in PAGE
    assert f"{sum(row['doubt'] == 'strong' for row in false)} of these with doubt *strong*" in PAGE
    summary = docs_script("make_unseen").summary(rows)
    (cut,) = (line for line in summary if line.startswith("organs cut by their box"))
    total, _, counts = cut.removeprefix("organs cut by their box in ").partition(f" of {len(present)}: ")
    sides = {f"femoral_head_{side}": f"the {side} femoral head" for side in ("left", "right")}
    number = ", ".join(f"{sides[name]} in {n}" for name, n in (entry.split() for entry in counts.split(", ")))
    assert (
        f"In {total} of the {len(present)} scans with a gland an organ reaches the edge of the box that organs "
        f"are looked for in, where the scan goes on: {number}."
    ) in PAGE
    for name, title in (("apex_mm", "the apex of the mask lies"), ("base_mm", "its base")):
        (line,) = (line for line in summary if line.startswith(name))
        high, off = re.findall(r"\+(\d\.\d ± \d\.\d), more than 8 off in (\d+) of 125", line)[0]
        assert re.search(rf"{title} {high} mm( too high, more than 8 mm off)?,? in {off}[., ]", PAGE), line
    (ratio,) = (line for line in summary if line.startswith("volume_ratio"))
    (times,) = re.findall(r"glands: (\d.\d\d ± \d.\d\d)", ratio)
    assert f"its masks have {times} times the true volume" in PAGE


def test_two_models_are_compared_on_whole_glands_and_a_missed_one_counts_as_nothing() -> None:
    def row(case: str, gland: str, dice: str) -> dict[str, str]:
        return {"case": case, "gland": gland, "prostate": dice}

    ours = [row("a", "whole", "0.9"), row("b", "whole", "0.8"), row("c", "cut", "0.1"), row("d", "woman", "")]
    theirs = [row("a", "whole", "0.7"), row("b", "whole", ""), row("c", "cut", "0.9"), row("d", "woman", "")]
    script = docs_script("make_unseen")
    assert script.difference(ours, theirs).startswith(
        "whole glands, Dice less the other's: +0.500 (+0.200 to +0.800)"
    )
    with pytest.raises(SystemExit, match="not of the same phantoms"):
        script.difference(ours[1:], theirs)


def test_the_ends_of_whole_glands_are_summed_up() -> None:
    blank = dict.fromkeys(docs_script("make_unseen").COLUMNS, "")
    ends = [("1.0", "-2.0"), ("-9.0", "4.0"), ("2.0", "-2.0"), ("", "")]
    rows = [blank | {"gland": "whole", "apex_mm": apex, "base_mm": base} for apex, base in ends]
    lines = docs_script("make_unseen").summary(rows)
    assert "apex_mm higher than the gland's, of whole glands -2.0 ± 6.1, more than 8 off in 1 of 3" in lines
    assert "base_mm higher than the gland's, of whole glands +0.0 ± 3.5, more than 8 off in 0 of 3" in lines


def test_volumes_are_told_of_rows_that_have_them() -> None:
    script = docs_script("make_unseen")
    blank = dict.fromkeys(script.COLUMNS, "") | {"gland": "whole"}
    lines = script.summary([blank | {"volume_ratio": ratio} for ratio in ("1.2", "1.0", "1.1")])
    assert "volume_ratio of whole glands: 1.10 ± 0.10, median 1.10, 5 to 95 % 1.01 to 1.19, n = 3" in lines
    assert not any(line.startswith("volume_ratio") for line in script.summary([blank]))


@pytest.mark.parametrize("degrees", [0.0, 30.0, -30.0])
def test_the_ends_of_a_mask_on_a_tilted_scan_are_those_of_its_outermost_voxels(degrees: float) -> None:
    """By the eight corners of each voxel."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    plain = Geometry.from_parts((6, 7, 8), (3.0, 2.0, 1.0), (5.0, -7.0, 40.0))
    tilt = np.array([[1.0, 0.0, 0.0], [0.0, c, -s], [0.0, s, c]])
    grid = Geometry.from_parts(plain.shape, plain.spacing_mm, plain.origin_mm, tilt @ plain.directions)
    mask = np.zeros(grid.shape, dtype=bool)
    mask[1:4, 2:4, 3:8] = True
    corners = np.array([[1, 2, 3], [4, 4, 8]])[np.indices((2, 2, 2)).reshape(3, -1).T, range(3)] - 0.5
    low, high = (getattr(grid.to_world(corners), end)(axis=0) for end in ("min", "max"))
    found = docs_script("make_real_figures").row_of(
        "scan",
        "whole",
        SimpleNamespace(
            prediction=SimpleNamespace(localisation=SimpleNamespace(status="found")),
            is_absent=False,
            mask=lambda: Volume(mask, grid),
            volume_ml=lambda: 0.18,
            quality=SimpleNamespace(reasons=[]),
            seconds=1.0,
        ),
    )
    assert (found.apex_z_mm, found.base_z_mm) == (f"{low[2]:.1f}", f"{high[2]:.1f}")
    assert (found.left_right_mm, found.front_back_mm) == tuple(f"{mm:.1f}" for mm in (high - low)[:2])
