"""Loggers by name: MLflow and Weights & Biases, offline, in the folder of the run."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from metricunet.errors import InputError
from metricunet.training import loggers
from metricunet.training.loggers import check_names, named_loggers

pytestmark = pytest.mark.filterwarnings("ignore")  # of libraries, about themselves

SETTINGS = {"seed": 0, "metric": {"weight": 0.1}}


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        *("MLFLOW_TRACKING_URI", "MLFLOW_ALLOW_FILE_STORE", "MLFLOW_DISABLE_TELEMETRY"),
        *("WANDB_MODE", "WANDB_PROJECT", "WANDB_ERROR_REPORTING"),
    ):
        monkeypatch.setenv(name, "")  # so that what a test sets is taken back
        monkeypatch.delenv(name)


def log_once(folder: Path, name: str, step: int, resume: bool = False) -> None:
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    with named_loggers([name], folder, SETTINGS, resume) as opened:
        (logger,) = opened
        logger.log_metrics({"segment/loss": 0.5}, step)


def test_mlflow_writes_into_the_run_and_goes_on_with_it(tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    log_once(tmp_path, "mlflow", 3)
    log_once(tmp_path, "mlflow", 6, resume=True)
    (metric,) = (tmp_path / "mlruns").rglob("metrics/segment/loss")
    assert [line.split()[2] for line in metric.read_text().splitlines()] == ["3", "6"]
    (run,) = (path.parent for path in (tmp_path / "mlruns").rglob("metrics"))
    assert (run / "params" / "metric" / "weight").read_text() == "0.1"
    assert "status: 3" in (run / "meta.yaml").read_text(), "MLflow's number for a run that finished"


def test_a_training_that_fails_is_said_to_have_failed(tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(KeyboardInterrupt), named_loggers(["mlflow"], tmp_path, SETTINGS, False):
        raise KeyboardInterrupt
    (meta,) = (path for path in (tmp_path / "mlruns").rglob("meta.yaml") if "run_id" in path.read_text())
    assert "status: 4" in meta.read_text(), "MLflow's number for a run that failed"


def test_wandb_writes_into_the_run_and_sends_nothing(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    log_once(tmp_path, "wandb", 3)
    (run,) = (tmp_path / "wandb").glob("offline-run-*")
    name = json.loads((tmp_path / "checkpoints" / "loggers.json").read_text())["wandb"]
    assert run.name.endswith(name)
    assert (run / f"run-{name}.wandb").stat().st_size > 0


@pytest.mark.parametrize(
    ("name", "variable", "value"),
    [("mlflow", "MLFLOW_DISABLE_TELEMETRY", "true"), ("wandb", "WANDB_ERROR_REPORTING", "false")],
)
def test_neither_tells_its_makers_how_it_is_used(name: str, variable: str, value: str, tmp_path: Path) -> None:
    pytest.importorskip(name)
    log_once(tmp_path, name, 3)
    assert os.environ[variable] == value


def test_unknown_loggers_and_those_that_are_not_installed_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="loggers must be among tensorboard, mlflow, wandb; got 'comet'"):
        check_names(["comet"])
    monkeypatch.setattr(loggers, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r'pip install "metricunet\[mlflow\]"'):
        check_names(["mlflow"])


def test_a_store_that_cannot_be_opened_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nonsense://here")
    with (
        pytest.raises(InputError, match="mlflow: cannot be opened"),
        named_loggers(["mlflow"], tmp_path, SETTINGS, False),
    ):
        pass


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Loggers whose server went away while they were open; the names of those that are told of an end."""
    told: list[str] = []

    def open_logger(name: str) -> Any:
        def finalize(status: str) -> None:
            told.append(f"{name}: {status}")
            raise ConnectionError("the server is away")

        return lambda *_: (SimpleNamespace(log_hyperparams=lambda settings: None, finalize=finalize), "id")

    for name in ("mlflow", "wandb"):
        monkeypatch.setattr(loggers, f"_{name}", open_logger(name))
    return told


def test_a_logger_that_cannot_be_closed_hides_no_other_error(tmp_path: Path, ended: list[str]) -> None:
    """A server that is away fails twice: as it is told of an epoch, which is explained, and at the end."""
    with (
        pytest.raises(InputError, match=r"^go on without this logger$"),
        named_loggers(["mlflow", "wandb"], tmp_path, SETTINGS, False),
    ):
        raise InputError("go on without this logger")
    assert ended == ["mlflow: failed", "wandb: failed"]


def test_a_logger_that_cannot_be_closed_costs_no_model(
    tmp_path: Path, ended: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING), named_loggers(["mlflow", "wandb"], tmp_path, SETTINGS, False):
        pass
    assert ended == ["mlflow: success", "wandb: success"]
    assert caplog.text.count("could not be told how the training ended: ") == 2
    assert "the server is away" in caplog.text
