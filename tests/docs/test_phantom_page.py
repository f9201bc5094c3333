"""The tables on the phantom's page come from its command, and its pictures are there."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from metricunet.phantom import draw_phantom
from metricunet.volume import Geometry, Volume
from tests.support.scripts import docs_script

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "phantom.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def table() -> ModuleType:
    return docs_script("make_phantom_table")


def test_the_page_holds_the_rows_that_the_command_prints(table: ModuleType) -> None:
    images, drawn = table.collect([9])
    glands = {name: [1.0, 2.0] for name in table.GLAND_ROWS}
    for name, made in (
        ("image table", table.image_table(images)),
        ("reader table", table.reader_table(drawn)),
        ("gland table", table.gland_table(glands, glands)),
    ):
        found = re.search(rf"<!-- {name} -->\n(.*?)\n<!-- end of {name} -->", PAGE, flags=re.DOTALL)
        assert found is not None

        def titles(text: str) -> list[str]:
            rows = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("|")]
            return [re.sub(r"\d+ mL", "mL", row) for row in rows]

        assert titles(found[1]) == titles(made)
        replaced = table.replaced(PAGE, name, made)
        assert made in replaced
        assert replaced.replace(made, found[1]) == PAGE


def test_its_pictures_are_there() -> None:
    for picture in re.findall(r"!\[.*?\]\((.*?)\)", PAGE):
        assert (DOCS / picture).is_file()


def test_a_gland_is_measured_however_it_is_stored(table: ModuleType) -> None:
    geometry = Geometry.from_parts((20, 20, 20), (2, 1, 1))

    def block(last: int = 13, lacking: bool = False) -> Volume:
        array = np.zeros(geometry.shape, dtype=np.uint8)
        array[4:14, 5:11, 3:last] = 2
        if lacking:  # of the left half the lower part
            array[4:9, :, 8:] = 0
        return Volume(array, geometry)

    expected = {"volume": 1.2, "height": 2.0, "depth": 0.6, "skew": 0.0, "tip": 0.0}
    assert table.measure_gland(block()) == pytest.approx(expected)
    less = expected | {"volume": 0.9, "skew": -1 / 3, "tip": 0.5}
    mask = block(lacking=True)
    for stored in (mask, mask.reordered((2, 0, 1), (True, False, True))):
        assert table.measure_gland(stored) == pytest.approx(less)
    assert table.measure_gland(block(12))["skew"] == pytest.approx(0.0)


def test_glands_of_phantoms_are_as_large_as_they_say(table: ModuleType) -> None:
    stated = {seed: draw_phantom(seed, "varied").description for seed in range(3)}
    whole = [facts["gland_volume_ml"] for facts in stated.values() if facts["gland"] == "whole"]
    found = [table.measure_gland(mask)["volume"] for mask in table.varied_glands(list(stated))]
    assert found == pytest.approx(whole, rel=0.03)
