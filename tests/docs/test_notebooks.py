"""The notebooks run as they stand, hold what they show when they run, and find what they promise."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest

from tests.support.scripts import docs_script

DOCS = Path(__file__).parents[2] / "docs"
NOTEBOOKS = sorted(DOCS.glob("*.ipynb"))


def cells(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return found


def run(name: str, folder: Path) -> dict[str, Any]:
    """Run a notebook as `make_notebooks.py` does, and return what its names stand for at the end."""
    notebook = json.loads((DOCS / f"{name}.ipynb").read_text(encoding="utf-8"))
    space: dict[str, Any] = docs_script("make_notebooks").run(notebook, folder)
    assert [kinds(cell) for cell in notebook["cells"]] == [
        kinds(cell) for cell in cells(DOCS / f"{name}.ipynb")
    ], f"the outputs of {name}.ipynb are old; run python docs/make_notebooks.py {name}"
    return space


def kinds(cell: dict[str, Any]) -> list[list[str]]:
    """Return what kinds of output a cell has."""
    return [[output["output_type"], *sorted(output.get("data", {}))] for output in cell.get("outputs", [])]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_small_and_whole(path: Path) -> None:
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
    assert path.stat().st_size < 300_000
    assert "".join(notebook["cells"][0]["source"]).startswith("# ")
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))


def test_each_notebook_has_its_test_below() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["contour", "five-patients", "loss", "quickstart"]


def test_contour(tmp_path: Path) -> None:
    known = run("contour", tmp_path)
    assert known["measures"]["prostate"].dice > 0.7
    assert known["result"].quality.verdict == "review"
    assert (tmp_path / "out" / "phantom_0000.nii.gz").is_file()


def test_five_patients(tmp_path: Path) -> None:
    known = run("five-patients", tmp_path)
    assert {case.case for case in known["after"].cases} == {"phantom_ts0000", "phantom_ts0001"}
    assert known["scores_after"].summary["prostate"].measures["dice"].mean > 0.6
    card = known["model"].card
    assert card.lineage
    assert len(card.cases) == 4  # the fifth validated


def test_loss(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # those of matplotlib
        known = run("loss", tmp_path)
    gaps = [entry["negative_distance"] - entry["positive_distance"] for entry in known["log"]]
    assert max(gaps[:2]) < 0.1
    assert sum(gaps[-10:]) / 10 > 0.2
    assert known["dice"] > 0.8


def test_quickstart(tmp_path: Path) -> None:
    assert run("quickstart", tmp_path)["measures"]["prostate"].dice > 0.7
