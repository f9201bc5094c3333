"""The pages of evidence are redrawn from the rows by their command, and say what the rows say."""

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
ROWS = DOCS / "evidence"
PAGE = (DOCS / "evidence.md").read_text(encoding="utf-8")
METHOD = (ROWS / "method.md").read_text(encoding="utf-8")
STUDIES = (ROWS, ROWS / "clean", ROWS / "full-width")
#: Numbers of the pages that no row holds: why each is there.
STATED = {
    "evidence.md": {
        "0.01": "aimed at",
        "0.6": "hundredths of a probe's gain, rounded from 0.0057",
        "0.7": "the same, from 0.0070",
    },
    "method.md": {
        "0.82": "published, and a validation Dice of 3D", "0.87": "published", "0.01": "a learning rate",
        "0.861": "lowest seed against the reader", "0.868": "highest", "0.79": "validation Dice of 3D",
        "0.28": "validation Dice of one stage", "0.24": "the same", "0.897": "mean of two seeds",
        "0.036": "rounded from 0.0362", "0.065": "rounded from 0.0648", "0.050": "rounded from 0.0500",
        **dict.fromkeys(["0.8695", "0.8719", "0.8670", "0.8717", "0.8685", "0.8709"], "trials"),
        **dict.fromkeys(["0.1", "1.0", "0.3"], "weights of trials"),
        **dict.fromkeys(["0.834", "0.843", "0.842", "0.869", "0.870", "0.875", "0.872"], "a trial's course"),
    },
}  # fmt: skip


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
    tables = (docs / "evidence" / "README.md").read_text()
    assert "| base | 3 | 2 min | 6 min |" in tables
    for text in (page, tables):
        assert "P, 2 cores, S, Python 3; metricunet 1.2, torch 9. All runs together: 6 min." in text
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
    assert sorted(names) == ["headline", "machines", "others", "verdicts"]
    assert names == re.findall(r"<!-- end of ([a-z]+) -->", PAGE)
    emptied = command.filled(PAGE, {})
    assert emptied.count(command.NOTHING) == len(names)
    assert command.filled(emptied, {"others": "| x |"}).count(command.NOTHING) == len(names) - 1


@pytest.mark.parametrize(("name", "text"), [("evidence.md", PAGE), ("method.md", METHOD)])
def test_every_number_is_one_of_the_rows(name: str, text: str) -> None:
    known = set(STATED[name])
    for study in STUDIES:
        for one in json.loads((study / "comparisons.json").read_text(encoding="utf-8"))["comparisons"]:
            signed = [one["difference"], *(one["interval"] or ()), *one["difference_of_seed"]]
            for digits in (2, 3, 4):
                known |= {f"{n:+.{digits}f}".replace("-", "−") for n in signed if n is not None}
                plain = [one["mean_a"], one["mean_b"], one["p"], *signed]
                known |= {f"{abs(n):.{digits}f}" for n in plain if n is not None}
        known |= set(re.findall(r"\d+\.\d+", (study / "study.yaml").read_text(encoding="utf-8")))
    said = re.sub(r"<!-- machines -->.*<!-- end of machines -->|<!--.*?-->", "", text, flags=re.DOTALL)
    numbers = set(re.findall(r"(?<![\d.])[+−]?\d+\.\d+(?!\.?\d)", said)) - {"2.5"}  # of "2.5D"
    assert len(numbers) > 20
    assert numbers - known == set()


def test_the_verdicts_are_those_of_the_rows() -> None:
    (block,) = re.findall(r"<!-- verdicts -->\n(.*?)<!-- end of verdicts -->", PAGE, flags=re.DOTALL)
    rows = [line.split(" | ")[1:] for line in block.splitlines() if line.startswith("| (")]
    judged = [
        json.loads((study / "comparisons.json").read_text(encoding="utf-8"))["verdicts"] for study in STUDIES
    ]
    for row, letter in zip(rows, "abc", strict=True):
        of_claim = [
            next(v["heading"] for v in found if (v["pair"], v["letter"]) == ("primary", letter))
            for found in judged
        ]
        assert [cell.strip("|* ") for cell in row] == of_claim
    findings = [v["finding"] for v in judged[0]]
    for finding in ("supported", "not supported", "not decided"):
        assert f"{findings.count(finding)} *{finding}*" in block


def test_links_and_pictures_of_all_pages_of_evidence_are_there() -> None:
    for page in (DOCS / "evidence.md", ROWS / "method.md", *(study / "README.md" for study in STUDIES)):
        for target in re.findall(r"\]\((?!http)(.*?)(?:#.*?)?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
