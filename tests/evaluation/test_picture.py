"""A picture is one well-formed drawing that carries all it needs."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from metricunet.errors import InputError
from metricunet.evaluation.figures import draw_overlay
from metricunet.evaluation.picture import Drawn, Picture, draw_picture
from metricunet.volume import Geometry, Volume

GRID = Geometry.from_parts((30, 60, 60), (3, 2, 2))
STRUCTURES = {"prostate": Drawn(1, "#ff0000"), "a & b": Drawn(2, "#00ff00"), "rectum": Drawn(3, "#0000ff")}
SVG = "{http://www.w3.org/2000/svg}"


def picture(title: str = "a <case>") -> Picture:
    labels = np.zeros(GRID.shape, dtype=np.uint8)
    labels[10:20, 20:40, 20:40], labels[20:25, 20:40, 20:40] = 1, 2
    scan = Volume(np.zeros(GRID.shape, dtype=np.int16), GRID)
    overlay = draw_overlay('the "case"', "prostate", 1, Volume(labels, GRID), None, scan)
    return draw_picture(overlay, title, STRUCTURES, ["1 < 2"])


def test_each_structure_has_its_colour_and_is_named_where_it_is_seen() -> None:
    root = ElementTree.fromstring(picture().svg)
    panels = root.findall(f"{SVG}svg")
    strokes = [[path.get("stroke") for path in panel.findall(f"{SVG}path")] for panel in panels]
    assert strokes == [["#ff0000"], ["#ff0000", "#00ff00"], ["#ff0000", "#00ff00"]]
    words = [text.text for text in root.iter(f"{SVG}text")]
    assert {"prostate", "a & b", "a <case>", "axial", "coronal", "sagittal"} <= set(words)
    assert "rectum" not in words


def test_nothing_is_fetched_from_elsewhere() -> None:
    for element in ElementTree.fromstring(picture().svg).iter():
        assert element.get("href", "data:").startswith("data:")


def test_a_page_has_the_notes_and_is_replaced_only_where_asked(tmp_path: Path) -> None:
    path = picture().save(tmp_path / "new" / "a.html")
    before = path.read_bytes()
    with pytest.raises(InputError, match="is there already"):
        picture("another").save(str(path))
    assert path.read_bytes() == before
    picture("another").save(str(path), overwrite=True)
    text = path.read_text(encoding="utf-8")
    assert "<title>another</title>" in text
    assert "<li>1 &lt; 2</li>" in text


def test_another_ending_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"saved as .svg or .html"):
        picture().save(tmp_path / "a.png")
