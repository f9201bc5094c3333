"""The tables on the phantom's page come from its command, and its pictures are there."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

import pytest

from tests.support.scripts import docs_script

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "phantom.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def table() -> ModuleType:
    return docs_script("make_phantom_table")


def test_the_page_holds_the_rows_that_the_command_prints(table: ModuleType) -> None:
    images, drawn = table.collect([9])
    for name, made in (("image table", table.image_table(images)), ("reader table", table.reader_table(drawn))):
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
