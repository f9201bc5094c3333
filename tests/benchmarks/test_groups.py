"""Which trainings the comparison of groups asks for, and what it makes of their scores."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import groups, varied
from benchmarks.groups import bench_groups
from benchmarks.varied import config_without, trained
from metricunet.errors import InputError
from metricunet.evaluation.measures import NOTHING, Measures
from metricunet.evaluation.summary import CaseRow
from metricunet.inference.models import SHIPPED
from metricunet.training.config import TrainConfig, load_config

#: Two whole glands, one in a scan that goes on; one that is cut; a woman; a scan that ends before the gland.
FACTS: dict[str, dict[str, str]] = {
    "phantom_0000": {"gland": "whole", "reach": "pelvis"},
    "phantom_ts0000": {"gland": "whole", "reach": "pelvis"},
    "phantom_ts0001": {"gland": "whole", "reach": "chest"},
    "phantom_ts0002": {"gland": "cut", "reach": "pelvis"},
    "phantom_ts0003": {"gland": "absent", "reach": "pelvis", "absent": "woman"},
    "phantom_ts0004": {"gland": "absent", "reach": "pelvis", "absent": "missed"},
}


@pytest.fixture
def configs(monkeypatch: pytest.MonkeyPatch) -> dict[str, TrainConfig]:
    """Trainings and predictions that take no time; whoever has not seen women finds a gland in one."""
    known: dict[str, TrainConfig] = {}

    def make_cohort(folder: Path, *_: Any, **__: Any) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "phantoms.json").write_text(json.dumps({"cases": FACTS}), encoding="utf-8")

    def train(cohort: Path | None, folder: Path, config: TrainConfig, **_: Any) -> Path:
        assert cohort is None
        known[folder.name] = config
        return folder

    def evaluate(folder: Path, *_: Any) -> SimpleNamespace:
        config = known[folder.name.removeprefix("by-")]
        without = config.phantoms.without if config.phantoms else ()
        dice = (0.7 if without else 0.8) + 0.01 * config.seed
        found, in_vain = Measures(dice, 1, 1, 1, 1, 1, 0), Measures(0, None, None, 0, None, 0, 9)
        woman = in_vain if "absent" in without else NOTHING
        measured = [found, found, found, woman, NOTHING]
        cases = [name for name in FACTS if name.startswith("phantom_ts")]
        return SimpleNamespace(rows=[CaseRow(c, "prostate", m) for c, m in zip(cases, measured, strict=True)])

    monkeypatch.setattr(groups, "make_cohort", make_cohort)
    monkeypatch.setattr(groups, "trained", train)
    monkeypatch.setattr(groups, "predict", lambda *_, **__: None)
    monkeypatch.setattr(groups, "evaluate", evaluate)
    return known


def test_each_group_is_scored_on_the_phantoms_that_have_it(
    configs: dict[str, TrainConfig], tmp_path: Path
) -> None:
    found = bench_groups(tmp_path, groups=["floor", "beyond", "absent"], seeds=2, unseen=5)
    assert found.phantoms == {"floor": 3, "beyond": 1, "absent": 1}
    assert found.text().splitlines()[2:] == [
        "| `floor` | Dice | 3 | 0.805 ± 0.007 | 0.705 ± 0.007 | +0.100 ± 0.000 |",
        "| `beyond` | Dice | 1 | 0.805 ± 0.007 | 0.705 ± 0.007 | +0.100 ± 0.000 |",
        "| `absent` | found in vain | 1 | 0.000 ± 0.000 | 1.000 ± 0.000 | +1.000 ± 0.000 |",
    ]
    names = [f"{name}-{seed}" for seed in range(2) for name in ("all", *(f"without-{g}" for g in found.phantoms))]
    assert list(configs) == names
    assert [configs[name].seed for name in names] == [0] * 4 + [1] * 4


def test_all_groups_are_left_out_in_turn_unless_some_are_named(
    configs: dict[str, TrainConfig], tmp_path: Path
) -> None:
    found = bench_groups(tmp_path, seeds=1, unseen=5)
    assert tuple(found.phantoms) == groups.GROUPS
    assert len(configs) == 1 + len(groups.GROUPS)
    assert "±" not in found.text()


def test_a_group_that_nobody_has_is_refused_before_any_training(
    configs: dict[str, TrainConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match=r"groups must be of floor, .*; got flor"):
        bench_groups(tmp_path, groups=["flor"])
    monkeypatch.delitem(FACTS, "phantom_ts0001")
    with pytest.raises(InputError, match="no phantom of 5 has beyond; make more of them"):
        bench_groups(tmp_path, groups=["floor", "beyond"], unseen=5)
    assert configs == {}


def test_models_are_trained_as_the_shipped_one_but_for_the_target_alone() -> None:
    own, mine = load_config(file=SHIPPED.with_suffix(".yaml")), config_without(["floor"], {"segment.epochs": 3})
    assert mine.locate == own.locate
    assert (mine.segment.epochs, mine.segment.updates_per_epoch) == (3, own.segment.updates_per_epoch)
    assert mine.augment == own.augment
    assert mine.organs.structures == ()
    assert mine.phantoms is not None
    assert own.phantoms is not None
    assert mine.phantoms == own.phantoms.model_copy(update={"structures": ("prostate",), "without": ("floor",)})


def test_a_training_goes_on_where_it_was_and_a_model_that_is_there_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []

    def train(cohort: Path | None, folder: Path, *, resume: bool, **_: Any) -> Path:
        asked.append(resume)
        return folder / "model.safetensors"

    monkeypatch.setattr(varied, "train", train)
    config = config_without([])
    trained(None, tmp_path, config)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "state.json").touch()
    trained(None, tmp_path, config)
    (tmp_path / "model.safetensors").touch()
    assert trained(None, tmp_path, config) == tmp_path / "model.safetensors"
    assert asked == [False, True]
