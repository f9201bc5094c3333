"""Which trainings the comparison of beginnings asks for, and what it makes of their scores."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import fine_tuning
from benchmarks.fine_tuning import bench_fine_tuning
from metricunet.evaluation.measures import Measures
from metricunet.evaluation.summary import CaseRow

#: Dice of the three unseen patients; the third is not found.
DICE = {"untouched": 0.3, "by-tuned-0": 0.9, "by-tuned-1": 0.6, "by-fresh-0": 0.45, "by-fresh-1": 0.45}


def test_a_short_training_from_the_model_and_a_long_one_from_nothing(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, tuple[Any, dict[str, Any]]] = {}
    cohorts: dict[str, tuple[int, int]] = {}

    def make_cohort(folder: Path, n: int, seed: int, difficulty: str, *, n_test: int, **_: Any) -> None:
        assert difficulty == "varied"
        cohorts[folder.name] = (n, n_test)

    def train(cohort: Path | None, folder: Path, config: Any, **options: Any) -> Path:
        asked[folder.name] = (config, {"cohort": None if cohort is None else cohort.name, **options})
        return tiny_model if folder.name == "base" else folder

    def evaluate(folder: Path, *_: Any) -> SimpleNamespace:
        found = Measures(DICE[folder.name], 1, 1, 1, 1, 1, 0)
        missed = Measures(0, None, 0, None, None, 0, -30)
        measured = enumerate([found, found, missed])
        return SimpleNamespace(rows=[CaseRow(f"case_{k}", "prostate", one) for k, one in measured])

    for name, stand_in in (("make_cohort", make_cohort), ("_trained", train), ("evaluate", evaluate)):
        monkeypatch.setattr(fine_tuning, name, stand_in)
    for name in ("displace_cohort", "predict"):
        monkeypatch.setattr(fine_tuning, name, lambda *_, **__: None)
    found = bench_fine_tuning(tmp_path, seeds=2)
    assert cohorts == {"patients-0": (5, 50), "patients-1": (5, 0)}
    assert list(asked) == ["base", "tuned-0", "fresh-0", "tuned-1", "fresh-1"]
    assert asked["base"][0].phantoms.without == ("floor",)
    for name in ("tuned-1", "fresh-1"):
        config, options = asked[name]
        assert config.seed == 1
        assert options["cohort"] == "contoured-1"
        assert options["fold"] == "all"
        assert options.get("init") == (tiny_model if name == "tuned-1" else None)
        updates = {stage.epochs * stage.updates_per_epoch for stage in (config.locate, config.segment)}
        assert updates == {150 if name == "tuned-1" else 600}
        assert config.augment == asked["base"][0].augment
    begun, fresh = asked["base"][0], asked["fresh-0"][0]
    assert fresh.segment.base_channels == begun.segment.base_channels
    assert fresh.locate.batch_size == begun.locate.batch_size
    assert found.tuned == pytest.approx({0: 0.6, 1: 0.4})
    assert found.fresh == pytest.approx({0: 0.3, 1: 0.3})
    assert found.untouched == pytest.approx(0.2)
    text = found.text()
    assert "seed 1: 0.400 from the model, 150 updates; 0.300 from nothing, 600 updates" in text
    assert "+0.200; target 0 or more met" in text
