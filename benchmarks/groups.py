"""What each group of `varied` phantoms buys: trainings without it, scored on phantoms that have all groups.

A group shows where it lies. Those in and around the gland are left out of trainings of stage 2, which is scored in
the crop around the true centre. What lies beyond the pelvis, and scans of women and other parts of the body, are
left out of trainings of stage 1, which is scored on scans that hold them: whether it puts the gland where it lies,
and in how many scans without one it suspects one. First weights, updates and test phantoms are the same for all.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import torch
import yaml

from metricunet.cohort.prepare import PreparedCase
from metricunet.errors import InputError
from metricunet.evaluation.bootstrap import Resampling, crossed_bootstrap
from metricunet.files.atomic import write_json, write_text
from metricunet.files.claim import CLAIM_NAME, claimed
from metricunet.files.json_file import read_json
from metricunet.inference.models import SHIPPED
from metricunet.networks import build_network
from metricunet.phantom.make import draw_phantom
from metricunet.phantom.stream import Part, StreamedCase
from metricunet.progress import Say, silent
from metricunet.stages.forward import class_probabilities
from metricunet.stages.locate import localise, locate_spec
from metricunet.stages.segment import segment_spec
from metricunet.training.batches import LocateBatches, SegmentBatches
from metricunet.training.config import TrainConfig, load_config
from metricunet.training.loop import set_up, train_updates
from metricunet.training.objectives import LocateModule, SegmentModule
from metricunet.training.stream import PhantomStream

#: The stage whose training a group is left out of, and the trainings that leave none out.
STAGES = {
    "floor": "segment",
    "base": "segment",
    "rectum": "segment",
    "gland": "segment",
    "image": "segment",
    "pelvis": "segment",
    "beyond": "locate",
    "absent": "locate",
}
ALL = "none"
#: Updates of a training of each stage.
UPDATES = {"segment": 800, "locate": 400}
TARGET = "prostate"
#: Seed of the phantoms that are scored; those of the trainings have the seeds 0, 1, ...
TEST_SEED = 9100
#: A stream makes at least so many for a training.
FEWEST = 4
#: Standard deviation of the crops' middles in a training of stage 2, as of a usual stage 1.
JITTER_MM = (4.0, 4.0, 4.0)
#: Settings that are the shipped model's.
OWN_SECTIONS = ("locate", "segment", "augment")
COLUMNS = ("stage", "without", "seed", "case", "kind", "dice", "off_mm", "found")
ROWS_NAME, PLAN_NAME = "groups.csv", "plan.json"
#: A gland that stage 1 puts further off than this is not found.
NEAR_MM = 15.0
#: What a scan shows: the gland, and no more than the pelvis or more; no gland, but its place, or not even that.
KINDS = ("pelvis", "beyond", "place", "elsewhere")

CPU = torch.device("cpu")
Rows = Sequence[Mapping[str, str]]


@dataclass(frozen=True)
class Plan:
    """How much is trained and scored.

    Attributes:
        updates: of each training, by its stage.
        patients: phantoms of a training.
        unseen: phantoms that are scored.
        seeds: trainings of each kind, with patients and first weights of their own.
        workers: processes that make phantoms.
        settings: over those of the shipped model.
    """

    updates: Mapping[str, int]
    patients: int = 96
    unseen: int = 60
    seeds: int = 3
    workers: int = 2
    settings: Mapping[str, Any] | None = None

    def facts(self) -> dict[str, Any]:
        """Return what rows of one folder have in common: what is trained, and what it is scored on."""
        own = {"updates": dict(self.updates), "patients": self.patients, "unseen": self.unseen}
        phantoms = PhantomStream(self.config(TEST_SEED, "locate", ALL, FEWEST, self.unseen), 1).sha256
        return {**own, "settings": dict(self.settings or {}), "recipe": _recipe(), "phantoms_sha256": phantoms}

    def config(self, seed: int, stage: str, without: str, patients: int, unseen: int = 0) -> TrainConfig:
        """Return the settings of a training, or of the phantoms that are scored."""
        settings: dict[str, Any] = {
            f"{part}.{key}": value for part, own in _recipe().items() for key, value in own.items()
        }
        settings |= {
            "seed": seed,
            "target": TARGET,
            "metric.mode": "none",
            "organs.structures": [],
            "phantoms.difficulty": "varied",
            "phantoms.structures": [TARGET],
            "phantoms.without": [] if without == ALL else [without],
            # Stage 2 learns from men alone: the groups that it is asked about are of the gland's surroundings.
            "phantoms.absent_fraction": 0.34 if stage == "locate" else 0.0,
            "phantoms.pool": patients,
            "phantoms.new_per_epoch": 0,
            "phantoms.validation": unseen,
            f"{stage}.epochs": 1,
            f"{stage}.updates_per_epoch": self.updates[stage],
        }
        return load_config("small", settings=settings | dict(self.settings or {}))


def _recipe() -> dict[str, dict[str, Any]]:
    """Return what the trainings have of the shipped model's settings."""
    own = yaml.safe_load(SHIPPED.with_suffix(".yaml").read_text(encoding="utf-8"))
    return {part: own[part] for part in OWN_SECTIONS}


def bench_groups(
    home: Path, plan: Plan, *, groups: Sequence[str] = tuple(STAGES), say: Say = silent
) -> list[dict[str, str]]:
    """Train and score what is not in the folder yet, and return the rows of all, one for each phantom scored.

    Args:
        home: folder of `groups.csv`, which grows with each training.
        plan: how much is trained and scored.
        groups: those that are left out in turn.
        say: told in one line what comes next.

    Raises:
        InputError: an unknown group, or a folder with rows of another plan.
    """
    if unknown := [name for name in groups if name not in STAGES]:
        raise InputError(f"{unknown[0]!r} is no group that is left out here; give some of {', '.join(STAGES)}")
    home.mkdir(parents=True, exist_ok=True)
    with claimed(home / CLAIM_NAME, "trainings without groups"):
        _check_plan(home / PLAN_NAME, plan)
        rows = read_rows(home / ROWS_NAME)
        done = {(row["stage"], row["without"], row["seed"]) for row in rows}
        for stage in dict.fromkeys(STAGES[name] for name in groups):
            arms = [ALL, *(name for name in groups if STAGES[name] == stage)]
            missing = [
                (without, seed)
                for seed in range(plan.seeds)
                for without in arms
                if (stage, without, str(seed)) not in done
            ]
            tests = _tests(plan, stage) if missing else []
            for without, seed in missing:
                say(f"stage {stage}, seed {seed}, without {without}")
                found = _scored(plan, stage, without, seed, tests)
                rows += [{"stage": stage, "without": without, "seed": str(seed), **row} for row in found]
                _write_rows(home / ROWS_NAME, rows)
    return rows


def _check_plan(path: Path, plan: Plan) -> None:
    """Write the plan of a folder; refuse one that is not that of the rows that are there."""
    if path.is_file() and read_json(path) != plan.facts():
        raise InputError(
            f"{path}: the rows beside it are of other phantoms, updates or settings than are asked for; "
            "choose another folder"
        )
    write_json(path, plan.facts())


@dataclass(frozen=True, eq=False)
class Unseen:
    """A phantom that is scored, and what its scan shows, one of `KINDS`."""

    case: PreparedCase
    kind: str


def _tests(plan: Plan, stage: str) -> list[Unseen]:
    config = plan.config(TEST_SEED, stage, ALL, patients=FEWEST, unseen=plan.unseen)
    with PhantomStream(config, plan.workers).open() as stream:
        _, cases = stream.first(None)
        return [Unseen(case, _kind(stream, number, case)) for number, case in enumerate(cases)]


def _kind(stream: PhantomStream, number: int, case: PreparedCase) -> str:
    recipe = stream.recipe
    if not recipe.reaches_target(number):
        return "place" if "bed_mm" in case.facts else "elsewhere"
    seed = recipe.patient_seed("validate", number)
    # How far his scan reaches is no fact of a streamed patient; to draw him again takes no image.
    reach = draw_phantom(seed, recipe.difficulty, True, recipe.variety).description["reach"]
    return "pelvis" if reach == "pelvis" else "beyond"


def _scored(plan: Plan, stage: str, without: str, seed: int, tests: Sequence[Unseen]) -> list[dict[str, str]]:
    config = plan.config(seed, stage, without, plan.patients)
    part: Part = "fine" if stage == "segment" else "coarse"
    with PhantomStream(config, plan.workers).open() as stream:
        cases = [future.result() for future in stream.order(stream.numbers(0), part).values()]
    torch.manual_seed(seed)
    return (_segmented if stage == "segment" else _located)(config, cases, tests)


def _segmented(
    config: TrainConfig, cases: Sequence[StreamedCase], tests: Sequence[Unseen]
) -> list[dict[str, str]]:
    network = build_network(**segment_spec(config.segment, 2).network)
    module = SegmentModule(network, config, [test.case for test in tests], 2)
    batches = SegmentBatches(cases, config.segment, config.augment, 2, True, JITTER_MM, CPU)
    train_updates(set_up(module, CPU), batches, range(module.updates), lambda done: None)
    module.eval()
    rows = []
    for test in tests:
        score = module.score(test.case) if test.case.box("fine") is not None else None
        if score is not None:
            rows.append({"case": test.case.name, "kind": test.kind, "dice": f"{score:.4f}"})
    return rows


def _located(config: TrainConfig, cases: Sequence[StreamedCase], tests: Sequence[Unseen]) -> list[dict[str, str]]:
    network = build_network(**locate_spec(config.locate, 2).network)
    module = LocateModule(network, config, [test.case for test in tests], 1)
    batches = LocateBatches(cases, config.locate, config.augment, 2, 1, True, CPU)
    train_updates(set_up(module, CPU), batches, range(module.updates), lambda done: None)
    module.eval()
    rows = []
    for test in tests:
        shares = class_probabilities(
            module.network, torch.from_numpy(test.case.coarse.array), config.locate.hu_window, config.precision
        )
        found = localise(test.case.coarse.with_array(shares[1].numpy()))
        row = {"case": test.case.name, "kind": test.kind, "found": str(int(found.status != "absent"))}
        true_mm = test.case.facts.get("centre_mm")
        if true_mm is not None and found.centre_mm is not None:
            row["off_mm"] = f"{np.linalg.norm(found.centre_mm - np.array(true_mm)):.1f}"
        rows.append(row)
    return rows


def table(rows: Rows) -> str:
    """Return what each group bought, as tables in Markdown.

    Args:
        rows: as `bench_groups` returns them.
    """
    lines = [
        "| left out of stage 2 | Dice by seed | mean (SD of the seeds) | what the group bought (95 %) |",
        "| --- | --- | --- | --- |",
    ]
    arms = _by_arm(rows, "segment")
    for without, by_seed in arms.items():
        means = [fmean(float(row["dice"]) for row in cases) for cases in by_seed.values()]
        spread = f" ({stdev(means):.3f})" if len(means) > 1 else ""
        gain = "" if without == ALL or ALL not in arms else _gain(arms[ALL], by_seed)
        lines.append(
            f"| {without} | {', '.join(f'{m:.3f}' for m in means)} | {fmean(means):.3f}{spread} | {gain} |"
        )
    lines += [
        "",
        f"| left out of stage 1, by seed | glands not found within {NEAR_MM:g} mm: scans of the pelvis "
        "| beyond it | found without a gland: scans that show its place | elsewhere |",
        "| --- | --- | --- | --- | --- |",
    ]
    for without, by_seed in _by_arm(rows, "locate").items():
        wrong = {kind: [_mistakes(cases, kind) for cases in by_seed.values()] for kind in KINDS}
        # The seeds share their phantoms, so they have as many of a kind.
        shares = [f"{', '.join(str(n) for n, _ in of_seeds)} of {of_seeds[0][1]}" for of_seeds in wrong.values()]
        lines.append(f"| {without} | {' | '.join(shares)} |")
    return "\n".join(lines)


def _mistakes(rows: Rows, kind: str) -> tuple[int, int]:
    """Return in how many scans of a kind stage 1 is wrong, and how many there are."""
    of_kind = [_wrong(row) for row in rows if row["kind"] == kind]
    return sum(of_kind), len(of_kind)


def _wrong(row: Mapping[str, str]) -> bool:
    if row["kind"] in ("place", "elsewhere"):
        return row["found"] == "1"
    return not row.get("off_mm") or float(row["off_mm"]) > NEAR_MM


def _gain(whole: Mapping[str, Rows], less: Mapping[str, Rows]) -> str:
    """Return the mean Dice of all groups less that without one, paired by seed and phantom, and its interval."""
    seeds = sorted(whole.keys() & less.keys())
    scores = [[{row["case"]: float(row["dice"]) for row in arm[seed]} for seed in seeds] for arm in (whole, less)]
    cases = sorted(set.intersection(*(set(found) for arm in scores for found in arm)))
    with_all, without = (np.array([[found[case] for case in cases] for found in arm]) for arm in scores)
    found = crossed_bootstrap(with_all - without, np.ones_like(without), Resampling())
    ends = "" if found.interval is None else f" ({found.interval.low:+.3f} to {found.interval.high:+.3f})"
    return f"{found.value:+.3f}{ends}"


def _by_arm(rows: Rows, stage: str) -> dict[str, dict[str, list[Mapping[str, str]]]]:
    """Return the rows of a stage by what was left out, and by seed."""
    arms: dict[str, dict[str, list[Mapping[str, str]]]] = {}
    for row in rows:
        if row["stage"] == stage:
            arms.setdefault(row["without"], {}).setdefault(row["seed"], []).append(row)
    return arms


def read_rows(path: Path) -> list[dict[str, str]]:
    """Return the rows that a file holds; none where there is no file yet."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


def _write_rows(path: Path, rows: Rows) -> None:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, buffer.getvalue())
