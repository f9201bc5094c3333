"""The page on importing: its names file can be read, and what it says of layouts is what there is."""

from __future__ import annotations

import re
from pathlib import Path

from metricunet.cohort.importing.layouts import FINDERS
from metricunet.cohort.importing.names_file import read_names

PAGE = (Path(__file__).parents[2] / "docs" / "import.md").read_text(encoding="utf-8")


def test_the_names_file_of_the_page_can_be_read(tmp_path: Path) -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "names.yaml").write_text(block, encoding="utf-8")
    names = read_names(tmp_path / "names.yaml")
    assert names.labels == {"prostate": 1, "bladder": 2, "rectum": 3}
    assert names.ignores("PTV_78")
    assert names.absent == {"prostate": ("0f3a5b7c9d1e",)}


def test_the_layouts_of_the_page_are_those_there_are() -> None:
    assert re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE) == list(FINDERS)
