"""Redraw the figures and tables of docs/evidence.md and of the pages beside the rows, from docs/evidence/*.csv.

    python docs/make_evidence.py                              # from the tables that are there
    python docs/make_evidence.py --study FOLDER               # from those of a finished study, copied first
    python docs/make_evidence.py --study FOLDER --part NAME   # of a study beside the main one: docs/evidence/NAME/

All tables of a study stand in the README.md beside its rows. docs/evidence.md holds the few that a reader needs
first, between markers; everything else on it is written by hand. The pictures of cases and of feature maps need
the study's models, so they are copied from its folder alone.
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
from metricunet.study.comparisons import CONTROL, Compared
from metricunet.study.data import TRUTH
from metricunet.study.examples import EXAMPLE_PICTURES
from metricunet.study.figures import draw_figures
from metricunet.study.progress import duration
from metricunet.study.report import describe, difference, p_value, sections
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
#: What an arm beyond the frame looks like in the pictures.
BEYOND = "An arm beyond the frame is marked by an arrow and its mean."
#: Pictures on the page of all tables of the main study: section to file and caption. Two are on docs/evidence.md.
PICTURES = {
    "comparisons": (("differences", "Differences of every case"), ("arms", "Every comparison with its interval")),
    "smoothness": (("smoothness", "Smoothness of every case"),),
    "features": (
        ("features", "Feature measures of every case"),
        ("feature-axes", "Features on their two principal axes"),
        ("feature-maps", "Feature maps of one case"),
    ),
    "reasons": (("examples", "Cases in which the method gains most, the median, and least"),),
}
#: What precedes a table on that page.
NOTES = {
    "ablation": "Mean of the seeds' means ± their standard deviation.",
    "comparisons": "B − A is paired by case and by seed; the arrow says which values are better.",
    "smoothness": "0 is as smooth as the true shape; above it is rougher, below it smoother.",
}
#: The roles of a study's main pair: against the arm to beat, and against the control.
MAIN = ("primary", f"primary {CONTROL}")


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
    """Redraw from docs/evidence: figures into docs/images, the pages of tables, the tables of docs/evidence.md."""
    source = docs / "evidence"
    conclusions, made = concluded(source)
    with tempfile.TemporaryDirectory() as drawn:
        for path in draw_figures(conclusions, Path(drawn)):
            shutil.copyfile(path, docs / "images" / f"evidence-{path.name}")
    write_page(source, conclusions, made)
    studies, machines = {"": conclusions}, {"": machine_line(source)}
    for study in sorted(source.glob("*/study.yaml")):
        beside, tables = concluded(study.parent)
        write_page(study.parent, beside, tables)
        studies[study.parent.name], machines[study.parent.name] = beside, machine_line(study.parent)
    page = docs / "evidence.md"
    short = short_sections(studies)
    short["machines"] = "\n".join(f"- {_link(name, studies[name])}: {line}" for name, line in machines.items())
    write_text(page, filled(page.read_text(encoding="utf-8"), short))


def write_page(folder: Path, conclusions: Conclusions, made: dict[str, str]) -> None:
    """Write the page of all tables of a study."""
    main = folder.name == "evidence"
    up = "../" if main else "../../"
    lines = [f"# {conclusions.plan.content.name}: all tables", ""]
    lines += [f"What it comes to: [evidence.md]({up}evidence.md). How it was made, and what each measure is:"]
    lines += [f"[method.md]({'' if main else '../'}method.md).", ""]
    for name, heading in HEADINGS.items():
        if name not in made:
            continue
        lines += [f"## {heading}", ""]
        if name in NOTES:
            lines += [NOTES[name], ""]
        for picture, caption in PICTURES.get(name, ()) if main else ():
            lines += [f"![{caption}](../images/evidence-{picture}.png)", ""]
        if main and name in ("comparisons", "smoothness", "features"):
            lines += [BEYOND, ""]
        lines += [made[name], ""]
    write_text(folder / "README.md", "\n".join(lines))


def machine_line(folder: Path) -> str:
    """Say in one line on what machine a study was run, and for how long."""
    return runs_table(json.loads((folder / RUNS).read_text(encoding="utf-8"))).splitlines()[0]


def short_sections(studies: dict[str, Conclusions]) -> dict[str, str]:
    """Return the tables of docs/evidence.md.

    Args:
        studies: folder beside the rows to what its study came to; the main one is "".
    """
    return {
        "headline": headline_table(studies),
        "verdicts": verdicts_of_studies(studies),
        "others": others_table(studies[""]),
    }


def headline_table(studies: dict[str, Conclusions]) -> str:
    """Return the main pair of every study, and its control, in Dice and ASD."""
    lines = ["| study | B − A | Dice, B − A (95 % interval) | seeds in which B is better | p | ASD in mm, B − A |"]
    lines += ["| --- | --- | ---: | ---: | ---: | ---: |"]
    for folder, found in studies.items():
        for role in MAIN:
            dice = found.comparisons.find(role, "dice", found.plan.base.target)
            asd = found.comparisons.find(role, "asd_mm", found.plan.base.target)
            if dice is None or asd is None:
                continue
            better = sum(d is not None and d > 0 for d in dice.comparison.difference_of_seed)
            seeds = f"{better} of {len(dice.comparison.seeds)}"
            cells = [_link(folder, found), dice.contrast.title, difference(dice.comparison), seeds]
            cells += [p_value(dice.comparison.p), difference(asd.comparison)]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def verdicts_of_studies(studies: dict[str, Conclusions]) -> str:
    """Return the verdicts on the main pair of every study, and the count of all verdicts of the main study."""
    judged = {folder: [one for one in found.judged if one.role == MAIN[0]] for folder, found in studies.items()}
    titles = [_link(folder, found) for folder, found in studies.items()]
    lines = ["| claim | " + " | ".join(titles) + " |", "| --- |" + " --- |" * len(titles)]
    for one in judged[""]:
        of_claim = [
            next((f"**{j.verdict.heading}**" for j in found if j.claim.letter == one.claim.letter), "–")
            for found in judged.values()
        ]
        lines.append(f"| ({one.claim.letter}) {one.claim.text} | " + " | ".join(of_claim) + " |")
    every = [one.verdict.finding for one in studies[""].judged]
    counts = ", ".join(f"{every.count(f)} *{f}*" for f in ("supported", "not supported", "not decided"))
    return "\n".join([*lines, "", f"Of all {len(every)} verdicts of the main study: {counts}."])


def others_table(found: Conclusions) -> str:
    """Return every other arm against its baseline, and the other pairs, in Dice and ASD against the true shape."""
    plan = found.plan
    lines = ["| B − A | what B is | seeds | Dice, B − A (95 % interval) | ASD in mm, B − A |"]
    lines += ["| --- | --- | ---: | ---: | ---: |"]
    for dice in found.comparisons.compared:
        role, arm = dice.contrast.role, dice.contrast.arm_b
        wanted = (dice.measure, dice.reference, dice.structure) == ("dice", TRUTH, plan.base.target)
        if not wanted or role in MAIN or role.endswith(CONTROL):
            continue
        network, loss, metric = describe(plan.arms[arm], plan.stages(arm))
        what = f"{network}, {loss}" + (f"; {metric}" if metric != "–" else "")
        asd = next(c for c in found.comparisons.compared if _same_but_measure(c, dice, "asd_mm"))
        cells = [dice.contrast.title, what, str(len(dice.comparison.seeds))]
        cells += [difference(dice.comparison), difference(asd.comparison)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _same_but_measure(one: Compared, other: Compared, measure: str) -> bool:
    same = (one.contrast, one.reference, one.structure) == (other.contrast, other.reference, other.structure)
    return same and one.measure == measure


def _link(folder: str, found: Conclusions) -> str:
    """Name a study for people, with a link to its tables."""
    return f"[{found.plan.content.name}](evidence/{folder + '/' if folder else ''}README.md)"


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


if __name__ == "__main__":
    main()
