"""The commissioning page speaks of the checks, geometries and bounds that there are."""

from __future__ import annotations

import re
from pathlib import Path

from metricunet.workflows.commission.run import GROUPS
from metricunet.workflows.commission.subjects import PLANS

PAGE = (Path(__file__).parents[2] / "docs" / "commissioning.md").read_text(encoding="utf-8")


def test_every_door_has_its_row() -> None:
    assert re.findall(r"^\| \*\*(.*?)\*\*", PAGE, flags=re.MULTILINE) == list(GROUPS)


def test_the_geometries() -> None:
    rows = re.findall(r"^\| ([A-E]) \| ([\d.]+) x ([\d.]+) \| ([\d.]+) \| (\w+) \|", PAGE, flags=re.MULTILINE)
    stated = [(name, float(row), float(column), float(slices), where) for name, row, column, slices, where in rows]
    assert stated == [(p.name, round(p.row_mm, 4), p.column_mm, p.slice_mm, p.position) for p in PLANS]


def test_the_volumes_to_compare_by_hand() -> None:
    shell = PLANS[0].shapes[1]
    whole, hole = (part.volume_ml for part in shell.parts)
    for volume in (whole, whole - hole, whole + hole):
        assert f"{volume:.1f} mL" in PAGE
