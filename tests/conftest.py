"""Fixtures that every room's tests share."""

from __future__ import annotations

import gc
import os
import shutil
from collections.abc import Generator, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from tests.support.cohorts import TINY_SETTINGS, make_tiny_cohort
from tests.support.command import Command, run_command
from tests.support.engines import two_machines
from tests.support.once import made_once
from tests.support.phantoms import quick_phantom

#: Properties are tried on new examples at every run, but on the same ones where a verdict must be repeatable.
settings.register_profile("repeatable", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("repeatable")
#: Tests that import onnxruntime themselves do not have it tell its makers either.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Let the collector look through what tests make alone, not through thousands of them and all modules."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.enable()


@pytest.fixture(scope="session", autouse=True)
def no_ledger_of_the_user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep what tests review out of the ledger of whoever runs them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("METRICUNET_LEDGER", str(tmp_path_factory.mktemp("ledger") / "ledger.sqlite"))
        yield


@pytest.fixture(scope="session", autouse=True)
def nothing_is_flushed() -> Iterator[None]:
    """Wait for no disk: no test cuts the power, and what a killed process has written is there without that."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        yield


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real scans; tests that need it are skipped where it is absent."""
    folder = Path(os.environ.get("METRICUNET_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real scans at {folder} (set METRICUNET_DATA)")
    return folder


@pytest.fixture(scope="session")
def tiny_cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six training and two unseen scans of bright ellipsoids; case_05 holds none. Not to be changed."""
    return make_tiny_cohort(tmp_path_factory.mktemp("tiny") / "cohort", 6, 2, absent=[5])


@pytest.fixture(scope="session")
def tiny_model(tiny_cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model trained on the tiny cohort, with the whole run folder around it."""
    from metricunet.inference.models import MODEL_NAME
    from metricunet.training.config import load_config
    from metricunet.training.fit import train

    def trained(folder: Path) -> None:
        config = load_config("small", settings=TINY_SETTINGS)
        train(tiny_cohort, folder / "run", config=config, device="cpu")
        shutil.copytree(tiny_cohort / "prepared", folder / "prepared")

    made = made_once(tmp_path_factory, "tiny_model", trained)
    shutil.copytree(made / "prepared", tiny_cohort / "prepared", dirs_exist_ok=True)  # as its training leaves it
    return made / "run" / MODEL_NAME


@pytest.fixture(scope="session")
def machines() -> Iterator[Any]:
    """A Ray cluster of two nodes of one core each, on this machine."""
    with two_machines() as cluster:
        yield cluster


@pytest.fixture
def quick_phantoms(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cohorts are of phantoms that take no time."""
    monkeypatch.setattr("metricunet.phantom.cohort.make_phantom", quick_phantom)


@pytest.fixture
def metricunet(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """The command line: `metricunet("predict", ...)` returns status, output and errors."""
    return partial(run_command, capsys, monkeypatch)
