"""From a study's tables to what is concluded of them. No model is needed for it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from metricunet.errors import InputError
from metricunet.files.atomic import write_json, write_text
from metricunet.study.claims import Judged, judge_all
from metricunet.study.comparisons import Comparisons, compare_all, comparison_json, comparisons_csv
from metricunet.study.results import Results, read_results
from metricunet.study.settings import Study, load_study

STUDY_NAME = "study.yaml"
COMPARISONS_CSV, COMPARISONS_JSON = "comparisons.csv", "comparisons.json"


@dataclass(frozen=True)
class Conclusions:
    """What a study came to.

    Attributes:
        plan: the study file.
        results: the rows of its runs.
        comparisons: of its arms.
        judged: its claims.
    """

    plan: Study
    results: Results
    comparisons: Comparisons
    judged: tuple[Judged, ...]


def conclude(folder: Path, plan: Study | None = None) -> Conclusions:
    """Read a study's tables, compare its arms and judge its claims.

    Args:
        folder: with cases.csv, cases-WHOSE.csv, smoothness.csv and features.csv.
        plan: the study file; default: the folder's study.yaml.

    Raises:
        InputError: a file that cannot be read, or a table of another study.
    """
    plan = load_study(folder / STUDY_NAME) if plan is None else plan
    results = read_results(folder)
    if strange := [arm for arm in results.arms if arm not in plan.arms]:
        raise InputError(
            f"{folder}: the tables have arm {strange[0]!r}, which {plan.path} does not name; put the study file "
            f"that led to them there as {STUDY_NAME}"
        )
    comparisons = compare_all(plan, results)
    return Conclusions(plan, results, comparisons, tuple(judge_all(plan, comparisons)))


def write_conclusions(conclusions: Conclusions, folder: Path) -> None:
    """Write comparisons.csv and comparisons.json, the latter with the verdicts."""
    write_text(folder / COMPARISONS_CSV, comparisons_csv(conclusions.comparisons.compared))
    write_json(
        folder / COMPARISONS_JSON,
        {
            "comparisons": [comparison_json(one) for one in conclusions.comparisons.compared],
            "left_out": list(conclusions.comparisons.left_out),
            "verdicts": [
                {
                    "pair": one.place,
                    "baseline": one.pair.baseline,
                    "method": one.pair.method,
                    "control": one.pair.control,
                    "letter": one.claim.letter,
                    **one.verdict.to_json(),
                    "measures": {name: verdict.to_json() for name, verdict in one.parts},
                }
                for one in conclusions.judged
            ],
        },
    )
