"""A study on replicates: the order of its runs, how far it goes, where it stops, and what its tables say."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from metricunet.errors import InputError
from metricunet.files.atomic import write_json
from metricunet.study import run
from metricunet.study.folds import FoldSpec, PreparedFold
from metricunet.study.run import study
from metricunet.study.runs import KEY_NAME, RunResult, RunSpec
from tests.study.conftest import write_study
from tests.support.command import Command
from tests.support.tables import write_tables

ARMS = {"plain": 0.0, "metric": 1.0, "control": 0.2}
PAIR = {"baseline": "plain", "method": "metric", "control": "control"}
RECIPE = {"n_train": 6, "n_test": 5, "contoured": 2, "replicates": 4}


class Played:
    """Stands in for all trainings: leaves the tables that runs would, and remembers what was asked for."""

    def __init__(self) -> None:
        self.runs: list[str] = []
        self.stages: list[tuple[str, int]] = []
        self.seeds: set[tuple[str, int]] = set()

    def prepare(
        self, specs: dict[Any, FoldSpec], *rest: object, needed: bool
    ) -> tuple[dict[Any, Any], dict[Any, Any]]:
        self.stages += [(str(spec.fold), spec.config.seed) for spec in specs.values()]
        facts = PreparedFold(0, "", "", "", {"prostate": 1}, None, (1.0,))
        return dict.fromkeys(specs, facts), {}

    def hand_out(self, specs: Sequence[RunSpec], *rest: object) -> Iterator[RunResult]:
        for spec in specs:
            self.runs.append(spec.title)
            self.seeds.add((str(spec.fold), spec.config.seed))
            noise = np.random.default_rng(spec.fold if isinstance(spec.fold, int) else 0).normal(size=5)
            write_tables(
                spec.folder, (spec.arm, spec.seed, int(spec.fold)), spec.case_names, 0.3 * noise + ARMS[spec.arm]
            )
            yield RunResult(spec, None, 1.0)


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch, quick_phantoms: None) -> Played:
    played = Played()
    monkeypatch.setattr(run, "_prepared", played.prepare)
    monkeypatch.setattr(run, "hand_out", played.hand_out)
    return played


def write(path: Path, **changes: Any) -> Path:
    content = {"data": {"phantom": RECIPE}, "arms": {arm: {} for arm in ARMS}, "primary": PAIR, "seeds": [0]}
    return write_study(path, Path(), **(content | changes))


def folds_of(output: Path) -> set[str]:
    with (output / "cases.csv").open(newline="") as handle:
        return {row["fold"] for row in csv.DictReader(handle)}


def test_all_arms_of_a_replicate_come_before_the_next(tmp_path: Path, played: Played) -> None:
    result = study(write(tmp_path / "s.yaml", success={"over_baseline": 0.01}), tmp_path / "out", device="cpu")
    assert played.runs == [f"{arm}, fold {fold}, seed 0" for fold in range(4) for arm in ARMS]
    assert played.stages == [(str(fold), 1000 * fold) for fold in range(4)]
    assert played.seeds == {(str(fold), 1000 * fold) for fold in range(4)}
    assert "4 of 4 replicates, each a fold: trained on 2 contoured cases of its own out of 6" in result.text
    assert (
        "Success, from the study file: a mean benefit in Dice of +0.0100 or more of metric over plain"
        in result.text
    )
    assert "Found in 4 replicates: +0.0200, and +0.0160 to +0.0160: **met**." in result.text
    assert "| arm | fold/seed | cases |" in result.text
    assert "| plain | 3/0 | 5 | 0 |" in result.text
    assert "difference of each replicate" in result.text
    splits = json.loads((tmp_path / "out" / "data" / "splits.json").read_text())
    assert [len(split["train"]) for split in splits] == [2, 2, 2, 2]


@pytest.mark.usefixtures("no_pictures")
def test_the_first_replicates_alone_and_then_the_rest(tmp_path: Path, played: Played) -> None:
    file = write(tmp_path / "s.yaml", success={"over_baseline": 0.01})
    text = study(file, tmp_path / "out", device="cpu", replicates=2).text
    missing = "6 runs of plain, metric, control are missing"
    assert f"**Not judged yet**: 2 of 4 replicates are done, and {missing}." in text
    assert "2 of 4 replicates" in text
    assert folds_of(tmp_path / "out") == {"0", "1"}
    study(file, tmp_path / "out", device="cpu")
    assert folds_of(tmp_path / "out") == {"0", "1", "2", "3"}
    for wanted in (0, 5):
        with pytest.raises(
            InputError, match=rf"replicates must be 1 to 4, as many as the study has; got {wanted}"
        ):
            study(file, tmp_path / "out", device="cpu", replicates=wanted)


@pytest.mark.usefixtures("no_pictures")
def test_the_seeds_of_a_single_replicate_do_not_stand_for_others(tmp_path: Path, played: Played) -> None:
    file = write(tmp_path / "s.yaml", seeds=[0, 1, 2])
    text = study(file, tmp_path / "out", device="cpu", replicates=1).text
    assert "on 5 cases and 1 replicate" in text
    assert "Fewer than 3 replicates decide nothing." in text
    assert "supported on the phantom" not in text


@pytest.mark.usefixtures("no_pictures")
def test_futility_stops_the_study_and_is_in_the_tables(tmp_path: Path, played: Played) -> None:
    rules = [{"after": 1, "below": 0.0}, {"after": 3, "below": 0.0, "baseline": "metric", "method": "control"}]
    file, said = write(tmp_path / "s.yaml", futility=rules), list[str]()
    result = study(file, tmp_path / "out", device="cpu", say=said.append)
    assert len(result.runs) == 9
    assert played.stages == [("0", 0), ("1", 1000), ("2", 2000)]
    assert folds_of(tmp_path / "out") == {"0", "1", "2"}
    first, second = (
        "- Rule to stop by, from the study file: after 1 replicate, if the mean benefit in Dice is below 0.0000. "
        "Found: metric over plain +0.0200, metric over control +0.0160. The study went on.\n",
        "- Rule to stop by, from the study file: after 3 replicates, if the mean benefit in Dice is below 0.0000. "
        "Found: control over metric −0.0160. **The study stopped there**, for control over metric.\n",
    )
    assert first in result.text
    assert second in result.text
    assert "3 of 4 replicates" in result.text
    assert said[-1].endswith("The study stopped there, for control over metric.")
    record = json.loads((tmp_path / "out" / "study.json").read_text())
    assert [f"- {rule}\n" for rule in record["rules"]] == [first, second]
    assert yaml.safe_load((tmp_path / "out" / "study.yaml").read_text())["futility"][0] == rules[0]
    # The same when it is called again, and no rule looks before its replicates are there.
    assert study(file, tmp_path / "out", device="cpu").text == result.text
    some = study(file, tmp_path / "out", device="cpu", replicates=2).text
    assert first in some
    assert "after 3 replicates" not in some


@pytest.mark.usefixtures("no_pictures")
def test_replicates_that_are_kept_count_where_a_rule_looks(
    tmp_path: Path, played: Played, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The study is begun in one place and stopped by its rule in another: as if it had stayed in one."""

    def with_keys(specs: Sequence[RunSpec], *rest: object) -> Iterator[RunResult]:
        for done in played.hand_out(specs):
            write_json(done.spec.folder / KEY_NAME, done.spec.key())
            yield done

    monkeypatch.setattr(run, "hand_out", with_keys)
    rules = [{"after": 1, "below": 0.0}, {"after": 3, "below": 0.0, "baseline": "metric", "method": "control"}]
    file, kept = write(tmp_path / "s.yaml", futility=rules), tmp_path / "kept"
    unbroken = study(file, tmp_path / "whole", device="cpu")
    study(file, tmp_path / "first", device="cpu", keep=kept, replicates=2)
    played.runs.clear()
    result = study(file, tmp_path / "second", device="cpu", keep=kept)
    assert played.runs == [f"{arm}, fold 2, seed 0" for arm in ARMS]
    assert "**The study stopped there**, for control over metric." in result.text
    assert result.text == unbroken.text
    assert len(list(kept.glob("runs/*/*/*/key.json"))) == 9


@pytest.mark.usefixtures("no_pictures")
def test_the_rule_that_stops_a_study_is_the_one_that_is_told(tmp_path: Path, played: Played) -> None:
    rules = [{"after": 1, "below": 1.0}, {"after": 1, "below": -1.0}]
    said = list[str]()
    study(write(tmp_path / "s.yaml", futility=rules), tmp_path / "out", device="cpu", say=said.append)
    told = [line for line in said if line.startswith("Rule to stop by")]
    assert len(told) == 1
    assert "The study stopped there, for metric over plain and metric over control." in told[0]


@pytest.mark.usefixtures("no_pictures")
def test_success_waits_for_every_run_of_the_pair(
    tmp_path: Path, played: Played, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(specs: Sequence[RunSpec], *rest: object) -> Iterator[RunResult]:
        for done in played.hand_out(specs):
            yield replace(done, error="broken") if done.spec.title == "control, fold 2, seed 0" else done

    monkeypatch.setattr(run, "hand_out", failing)
    file = write(tmp_path / "s.yaml", success={"over_baseline": 0.01})
    text = study(file, tmp_path / "out", device="cpu").text
    missing = "1 run of plain, metric, control is missing"
    assert f"**Not judged yet**: 3 of 4 replicates are done, and {missing}." in text


def test_figures_that_cannot_be_drawn_cost_no_table(
    tmp_path: Path, played: Played, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ValueError("no room")

    monkeypatch.setattr(run, "draw_figures", broken)
    text = study(write(tmp_path / "s.yaml"), tmp_path / "out", device="cpu").text
    assert "- Not all figures are drawn: an unexpected ValueError stopped it: no room." in text
    assert "## Verdicts" in text


def test_the_command_takes_a_number_for_studies_with_replicates_alone(metricunet: Command, tmp_path: Path) -> None:
    file = write_study(tmp_path / "s.yaml", tmp_path)
    ended = metricunet("study", str(file), "-o", str(tmp_path / "out"), "--replicates", "2")
    assert ended.status == 2
    assert "--replicates 2 is for studies with replicates, and this one has none" in ended.err
    assert not (tmp_path / "out").exists()
