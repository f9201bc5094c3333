"""What each group of `varied` phantoms buys: models that have not seen it, beside one that has seen all.

For each seed one model is trained with all groups, and one without each group in turn, all else alike. All are
scored on the same unseen phantoms, on those that have the group: Dice where there is a gland, and for the group
`absent` the share of scans without one in which one is found. Of `beyond` count the scans that go on beyond the
pelvis, of `absent` women, men after prostatectomy and other parts of the body; the other groups are in every man.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from benchmarks.varied import TARGET, config_without, trained
from metricunet.errors import InputError, argument
from metricunet.evaluation.compare import evaluate
from metricunet.evaluation.measures import Measures
from metricunet.files.json_file import read_json
from metricunet.inference.predict import predict
from metricunet.phantom import make_cohort
from metricunet.phantom.cohort import RECIPE_FILE
from metricunet.phantom.variety import GROUPS
from metricunet.progress import Say, silent

COHORT_SEED, ABSENT_FRACTION = 7200, 0.34
#: The group whose scans hold no gland: of these it counts in how many one is found.
ABSENT = "absent"


@dataclass(frozen=True)
class GroupsBought:
    """What leaving out each group costs.

    Attributes:
        phantoms: number of the unseen phantoms that have a group, by the group.
        seen: by group and seed of the training the score of the model that has seen all groups: over those
            phantoms the mean Dice of the target, one not found having 0; of `absent` the share in which a target
            is found.
        unseen: the same of the model that has not seen the group.
    """

    phantoms: dict[str, int]
    seen: dict[str, dict[int, float]]
    unseen: dict[str, dict[int, float]]

    def to_json(self) -> dict[str, object]:
        """Return a plain dictionary."""
        return asdict(self)

    def text(self) -> str:
        """Return a table: for each group mean and standard deviation over the seeds, and of their differences."""
        lines = [
            "| group | score | phantoms | seen | left out | what it buys |",
            "| --- | --- | --- | --- | --- | --- |",
        ]
        for group, count in self.phantoms.items():
            seen, unseen = self.seen[group], self.unseen[group]
            sign = -1 if group == ABSENT else 1  # a gland that is not there had better not be found
            gain = {seed: sign * (seen[seed] - unseen[seed]) for seed in seen}
            score = "found in vain" if group == ABSENT else "Dice"
            lines.append(
                f"| `{group}` | {score} | {count} | {_spread(seen)} | {_spread(unseen)} | {_spread(gain, '+')} |"
            )
        return "\n".join(lines)


def bench_groups(
    home: Path,
    *,
    groups: Sequence[str] = (),
    seeds: int = 3,
    unseen: int = 100,
    settings: Mapping[str, Any] | None = None,
    workers: int = 2,
    device: str = "auto",
    say: Say = silent,
) -> GroupsBought:
    """Train all models and score them; called again on its folder, it goes on where it was.

    Args:
        home: folder to work in, which keeps what was made.
        groups: groups of `varied` phantoms to leave out in turn; none for all.
        seeds: number of trainings of each kind.
        unseen: number of phantoms that are scored.
        settings: of the models, over those of the shipped one.
        workers: processes that make phantoms.
        device: that trains and predicts.
        say: told in one line what comes next.

    Raises:
        InputError: a group that there is not, or one that no unseen phantom has.
    """
    wanted = tuple(groups) or GROUPS
    if unknown := set(wanted) - set(GROUPS):
        raise InputError(f"{argument('groups')} must be of {', '.join(GROUPS)}; got {', '.join(sorted(unknown))}")
    say(f"making {unseen} unseen phantoms")
    cohort = home / "phantoms"
    made: dict[str, Any] = {"absent_fraction": ABSENT_FRACTION, "n_test": unseen, "workers": workers}
    make_cohort(cohort, 1, COHORT_SEED, "varied", **made)  # a cohort has one to train on at least
    cases = read_json(cohort / RECIPE_FILE)["cases"]
    facts = {name: own for name, own in cases.items() if name.startswith("phantom_ts")}
    having = {group: [name for name, own in facts.items() if _has(group, own)] for group in wanted}
    if lacking := [group for group, names in having.items() if not names]:
        raise InputError(f"no phantom of {unseen} has {', '.join(lacking)}; make more of them")
    seen: dict[str, dict[int, float]] = {group: {} for group in wanted}
    left_out: dict[str, dict[int, float]] = {group: {} for group in wanted}

    def scores(name: str, without: Sequence[str], seed: int) -> Callable[[str], float]:
        say(f"seed {seed}: {name}")
        config = config_without(without, {**(settings or {}), "seed": seed})
        model = trained(None, home / f"{name}-{seed}", config, workers=workers, device=device)
        found = _measured(model, cohort, home / f"by-{name}-{seed}", device)
        return lambda group: _score(group, [found[case] for case in having[group]])

    for seed in range(seeds):
        every = scores("all", [], seed)
        for group in wanted:
            seen[group][seed] = every(group)
            left_out[group][seed] = scores(f"without-{group}", [group], seed)(group)
    return GroupsBought({group: len(names) for group, names in having.items()}, seen, left_out)


def _has(group: str, facts: Mapping[str, Any]) -> bool:
    """Tell from a phantom's facts whether it shows a group."""
    if group == ABSENT:
        return facts["gland"] == "absent" and facts["absent"] != "missed"
    return facts["gland"] != "absent" and (group != "beyond" or facts["reach"] != "pelvis")


def _score(group: str, measured: Sequence[Measures]) -> float:
    if group == ABSENT:
        return mean(float(found.outcome == "false_positive") for found in measured)
    return mean(found.dice or 0.0 for found in measured)


def _measured(model: Path, cohort: Path, folder: Path, device: str) -> dict[str, Measures]:
    """Segment the test phantoms of a cohort, and return the measures of the target by the case."""
    predict([cohort / "imagesTs"], [model], folder, device=device)
    rows = evaluate(folder, cohort / "labelsTs", folder.with_name(f"{folder.name}-scores")).rows
    return {row.case: row.measures for row in rows if row.structure == TARGET}


def _spread(scores: Mapping[int, float], sign: str = "") -> str:
    values = list(scores.values())
    return f"{mean(values):{sign}.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else "")
