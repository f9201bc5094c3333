"""Redraw the tables and figures of docs/evidence.md from docs/evidence/*.csv.

    python docs/make_evidence.py                              # from the tables that are there
    python docs/make_evidence.py --study FOLDER               # from those of a finished study, copied first
    python docs/make_evidence.py --study FOLDER --part NAME   # of a study beside the main one: docs/evidence/NAME/

The pictures of cases and of feature maps need the study's models, so they are copied from its folder alone. All
tables of a study stand in the README.md beside its rows.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from metricunet.files.atomic import write_json, write_text
from metricunet.study.examples import EXAMPLE_PICTURES
from metricunet.study.figures import draw_figures
from metricunet.study.progress import duration
from metricunet.study.report import sections
from metricunet.study.verdicts import Conclusions, conclude, write_conclusions

DOCS = Path(__file__).parent
TABLES = ("study.yaml", "cases.csv", "cases-reader.csv", "smoothness.csv", "features.csv")
#: Where a study's record is; the latter before it had a name of its own.
RECORDS = ("study.json", "run.json")
#: What a study's record says, less what names folders of the machine.
RUNS = "runs.json"
NOTHING = "*No numbers yet.*"
#: The page of all tables of a study: section to its heading.
HEADINGS = {
    "verdicts": "Verdicts",
    "ablation": "Against the true shape: the main method's network",
    "comparison": "Against the true shape: other networks and methods",
    "reader": "Against the unseen reader",
    "smoothness": "Smoothness",
    "features": "Features",
    "comparisons": "Differences",
    "arms": "Other arms, exploratory",
    "reasons": "Reasons",
    "runs": "Machine",
}


def copy_tables(study: Path, folder: Path) -> None:
    """Copy a study's tables and the facts of its runs."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in TABLES:
        shutil.copyfile(study / name, folder / name)
    name = next(n for n in RECORDS if (study / n).is_file())
    record = json.loads((study / name).read_text(encoding="utf-8"))
    machine = record["machine"] | {
        "system": record["machine"]["system"].split()[0]
    }  # a kernel's build says nothing
    facts = {"version": record["version"], "machine": machine, "runs": record["runs"]}
    write_json(folder / RUNS, facts)


def copy_pictures(study: Path, docs: Path) -> None:
    """Copy a study's pictures of cases."""
    for name in EXAMPLE_PICTURES:
        if (study / "figures" / name).is_file():
            shutil.copyfile(study / "figures" / name, docs / "images" / f"evidence-{name}")


def redraw(docs: Path) -> None:
    """Redraw from docs/evidence: figures into docs/images, tables between the markers of docs/evidence.md."""
    source = docs / "evidence"
    conclusions, made = concluded(source)
    with tempfile.TemporaryDirectory() as drawn:
        for path in draw_figures(conclusions, Path(drawn)):
            shutil.copyfile(path, docs / "images" / f"evidence-{path.name}")
    write_page(source, conclusions, made)
    page = docs / "evidence.md"
    write_text(page, filled(page.read_text(encoding="utf-8"), made))


def write_page(folder: Path, conclusions: Conclusions, made: dict[str, str]) -> None:
    """Write the page of all tables of a study."""
    up = "../" if folder.name == "evidence" else "../../"
    lines = [f"# {conclusions.plan.content.name}: all tables", ""]
    lines += [f"How it was made, and what it comes to: [evidence.md]({up}evidence.md).", ""]
    for name, heading in HEADINGS.items():
        if name in made:
            lines += [f"## {heading}", "", made[name], ""]
    write_text(folder / "README.md", "\n".join(lines))


def concluded(source: Path) -> tuple[Conclusions, dict[str, str]]:
    """Compare and judge what a folder has rows of, and return the sections that come of it."""
    conclusions = conclude(source)
    write_conclusions(conclusions, source)
    made = sections(conclusions)
    if (source / RUNS).is_file():
        made["runs"] = runs_table(json.loads((source / RUNS).read_text(encoding="utf-8")))
    return conclusions, made


def filled(page: str, made: dict[str, str]) -> str:
    """Put each table between its markers; those that there are no numbers for say so."""

    def replaced(found: re.Match[str]) -> str:
        return f"{found[1]}{made.get(found[2], NOTHING)}\n{found[3]}"

    return re.sub(r"(<!-- ([a-z]+) -->\n).*?(<!-- end of \2 -->)", replaced, page, flags=re.DOTALL)


def runs_table(record: dict[str, Any]) -> str:
    """Say on what machine the runs were made, and how long each arm took."""
    machine = record["machine"]
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    seconds: dict[str, list[float]] = {}
    for run in record["runs"]:
        if run["error"] is None:
            seconds.setdefault(run["arm"], []).append(run["seconds"])
    lines = ["| arm | runs | training and scoring of one, median | all |", "| --- | ---: | ---: | ---: |"]
    lines += [f"| {arm} | {len(s)} | {duration(median(s))} | {duration(sum(s))} |" for arm, s in seconds.items()]
    total = duration(sum(sum(s) for s in seconds.values()))
    where = f"{machine['processor']}, {machine['cores']} cores, {machine['system']}, Python {machine['python']}"
    return "\n".join(
        [f"{where}; metricunet {record['version']}, {packages}. All runs together: {total}.", "", *lines]
    )


def main() -> None:
    """Parse the arguments and redraw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--study", type=Path, help="folder of a finished study, to copy from first")
    parser.add_argument("--part", help="name of a study beside the main one")
    parser.add_argument(
        "--docs", type=Path, default=DOCS, help="folder with evidence.md (default: beside this file)"
    )
    arguments = parser.parse_args()
    docs: Path = arguments.docs
    if arguments.part is not None and arguments.study is None:
        parser.error("--part names what --study is copied to; give both")
    if arguments.study is not None:
        copy_tables(arguments.study, docs / "evidence" / (arguments.part or ""))
        if arguments.part is None:
            copy_pictures(arguments.study, docs)
    redraw(docs)
    for study in sorted((docs / "evidence").glob("*/study.yaml")):
        write_page(study.parent, *concluded(study.parent))


if __name__ == "__main__":
    main()
