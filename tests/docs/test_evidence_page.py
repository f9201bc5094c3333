"""The page of evidence is redrawn from tables by its command."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
from pathlib import Path
from types import ModuleType

import pytest

from tests.support.tables import make_tables

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "evidence.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def command() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_evidence", DOCS / "make_evidence.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_study_fills_the_page_and_its_tables_redraw_it(command: ModuleType, tmp_path: Path) -> None:
    study, docs = make_tables(tmp_path / "study", cases=6), tmp_path / "docs"
    record = {
        "version": "1.2",
        "arguments": {"output": "/somewhere"},
        "machine": {"processor": "P", "cores": 2, "system": "S", "python": "3", "packages": {"torch": "9"}},
        "runs": [{"arm": "base", "fold": 0, "seed": s, "seconds": 60.0 * s, "error": None} for s in (1, 2, 3)],
    }
    (study / "run.json").write_text(json.dumps(record))
    (study / "figures").mkdir()
    (study / "figures" / "examples.png").write_bytes(b"picture")
    (docs / "images").mkdir(parents=True)
    shutil.copy(DOCS / "evidence.md", docs)
    command.copy_tables(study, docs / "evidence")
    command.copy_pictures(study, docs)
    command.redraw(docs)
    page = (docs / "evidence.md").read_text()
    assert command.NOTHING not in page
    assert "| base | 3 | 2 min | 6 min |" in page
    assert "P, 2 cores, S, Python 3; metricunet 1.2, torch 9. All runs together: 6 min." in page
    assert "/somewhere" not in "".join(p.read_text() for p in (docs / "evidence").iterdir())
    assert (docs / "images" / "evidence-examples.png").read_bytes() == b"picture"
    assert (docs / "images" / "evidence-arms.png").is_file()
    drawn = {p: p.read_bytes() for p in docs.rglob("*") if p.is_file()}
    command.redraw(docs)
    assert {p: p.read_bytes() for p in docs.rglob("*") if p.is_file()} == drawn


def test_a_study_beside_the_main_one_has_a_page_of_its_tables(command: ModuleType, tmp_path: Path) -> None:
    study, folder = make_tables(tmp_path / "study", cases=6), tmp_path / "evidence" / "part"
    record = {
        "version": "1.2",
        "machine": {"processor": "P", "cores": 2, "system": "S", "python": "3"},
        "runs": [],
    }
    record["machine"]["packages"] = {"torch": "9"}  # type: ignore[index]
    (study / "run.json").write_text(json.dumps(record))
    command.copy_tables(study, folder)
    command.write_page(folder, *command.concluded(folder))
    page = (folder / "README.md").read_text()
    assert "(../../evidence.md)" in page
    for heading in command.HEADINGS.values():
        assert f"## {heading}\n" in page
    assert "| base |" in page


def test_the_page_has_a_place_for_every_table(command: ModuleType) -> None:
    names = re.findall(r"<!-- ([a-z]+) -->", PAGE)
    assert sorted(names) == [
        "ablation", "arms", "comparison", "features", "primary", "reader", "runs", "smoothness", "verdicts", "why",
    ]  # fmt: skip
    assert names == re.findall(r"<!-- end of ([a-z]+) -->", PAGE)
    emptied = command.filled(PAGE, {})
    assert emptied.count(command.NOTHING) == len(names)
    assert command.filled(emptied, {"arms": "| x |"}).count(command.NOTHING) == len(names) - 1
