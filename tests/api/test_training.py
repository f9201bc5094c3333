"""What `train` hands over, and what it says."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from lightning.fabric.loggers import CSVLogger

import metricunet as mu
from metricunet.engine import Serial
from metricunet.files.model import read_card
from metricunet.training.config import load_config
from metricunet.training.cross_validation import CrossValidation
from tests.support.cohorts import TINY_SETTINGS


def test_training_takes_the_commands_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That it trains is seen in the notebook of docs/."""
    called: dict[str, Any] = {}

    def train(cohort: Path, output: Path, **others: Any) -> Path:
        called.update(others, cohort=cohort, output=output)
        return output / "model.safetensors"

    monkeypatch.setattr("metricunet.training.fit.train", train)
    (tmp_path / "a.yaml").write_text("segment: {slices: 3, epochs: 7}")
    settings = {key: yaml.safe_load(value) for key, value in (s.split("=", 1) for s in TINY_SETTINGS)}
    places: dict[str, Any] = {"cohort": "cohort", "output": str(tmp_path), "config": str(tmp_path / "a.yaml")}
    logger = CSVLogger(tmp_path / "logged")
    for given in (settings | {"segment.learning_rate": 1e-5}, [*TINY_SETTINGS, "segment.learning_rate=0.00001"]):
        path = mu.train(
            **places,
            preset="small",
            settings=given,
            fold="all",
            init="b.safetensors",
            resume=True,
            loggers=[logger],
        )
        assert path == tmp_path / "model.safetensors"
        expected = load_config("small", tmp_path / "a.yaml", [*TINY_SETTINGS, "segment.learning_rate=0.00001"])
        assert called["config"] == expected
        assert expected.segment.slices == 3
        assert (called["cohort"], called["output"]) == (Path("cohort"), tmp_path)
        assert (called["fold"], called["init"], called["resume"]) == ("all", Path("b.safetensors"), True)
        assert called["loggers"] == [logger]


def test_a_fold_may_be_a_whole_number_of_numpy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called: dict[str, Any] = {}

    def train(cohort: Path, output: Path, **others: Any) -> Path:
        called.update(others)
        return output / "model.safetensors"

    monkeypatch.setattr("metricunet.training.fit.train", train)
    mu.train("cohort", tmp_path, preset="small", fold=np.arange(3)[2])
    assert json.dumps(called["fold"]) == "2"


class TestCrossValidation:
    """What `train(fold="each")` hands over, and what it says of cases that were lost."""

    @pytest.fixture
    def called(self, tiny_cohort: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
        from metricunet.training import cross_validation

        whole, called = cross_validation.cross_validate, dict[str, Any]()

        def train(cohort: Path, folder: Path, **others: object) -> Path:
            called["loggers"] = others["loggers"]
            return Path(shutil.copytree(tiny_model.parent, folder, dirs_exist_ok=True)) / tiny_model.name

        def cross_validate(*words: Any, **others: Any) -> CrossValidation:
            called.update(others)
            return whole(*words, **others)

        monkeypatch.setattr(cross_validation, "train", train)
        monkeypatch.setattr(cross_validation, "cross_validate", cross_validate)
        monkeypatch.setattr("metricunet.training.loggers.find_spec", lambda name: True)
        return called

    @pytest.fixture
    def cohort(self, tiny_cohort: Path, tmp_path: Path) -> Path:
        copy = Path(shutil.copytree(tiny_cohort, tmp_path / "cohort"))
        cases = [f"case_{k:02d}" for k in range(5)]
        splits = [{"train": [c for c in cases if c != val], "val": [val]} for val in cases[:2]]
        (copy / "splits.json").write_text(json.dumps(splits))
        return copy

    @pytest.mark.parametrize("loggers", [["mlflow"], "mlflow"])
    def test_an_engine_and_names_of_loggers_are_those_of_the_command(
        self,
        called: dict[str, Any],
        cohort: Path,
        tmp_path: Path,
        recwarn: pytest.WarningsRecorder,
        loggers: list[str] | str,
    ) -> None:
        engine = Serial()
        words: dict[str, Any] = {"preset": "small", "settings": TINY_SETTINGS, "device": "cpu", "fold": "each"}
        path = mu.train(cohort, tmp_path / "run", loggers=loggers, engine=engine, **words)
        assert path == tmp_path / "run"
        assert called["engine"] is engine
        assert called["loggers"] == ("mlflow",)
        assert [warning for warning in recwarn if warning.filename == __file__] == []

    def test_a_case_that_is_lost_is_warned_of(self, called: dict[str, Any], cohort: Path, tmp_path: Path) -> None:
        (cohort / "labelsTr" / "case_01.nii.gz").write_bytes(b"damaged")
        words: dict[str, Any] = {"preset": "small", "settings": TINY_SETTINGS, "device": "cpu", "fold": "each"}
        with pytest.warns(UserWarning, match="segmented or scored: case_01: failed, not scored") as caught:
            mu.train(cohort, tmp_path / "run", **words)
        assert __file__ in [warning.filename for warning in caught]


def test_training_from_a_model_takes_its_networks(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: dict[str, Any] = {}

    def train(cohort: Path, output: Path, **others: Any) -> Path:
        called.update(others)
        return output / "model.safetensors"

    monkeypatch.setattr("metricunet.training.fit.train", train)
    monkeypatch.setattr("metricunet.training.start.SHIPPED", tiny_model)
    for init in (str(tiny_model), "base"):
        mu.train("cohort", tmp_path, init=init, freeze="encoder", settings={"segment.epochs": 3})
        expected = load_config(settings=["segment.epochs=3"], freeze="encoder", parent=read_card(tiny_model))
        assert (called["config"], called["init"]) == (expected, tiny_model)
    assert expected.segment.base_channels == 4
