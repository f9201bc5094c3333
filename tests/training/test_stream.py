"""Training on phantoms that are made beside it: who is in the pool, and that this alone decides the weights."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pytest
import torch

from metricunet.engine import Serial
from metricunet.errors import InputError, WorkerDied
from metricunet.files.model import read_card, read_model
from metricunet.inference.models import MODEL_NAME
from metricunet.training import loop
from metricunet.training.config import TrainConfig, load_config
from metricunet.training.fit import train
from metricunet.training.stream import PhantomStream, StreamedBatches
from tests.support.cohorts import TINY_SETTINGS
from tests.support.streams import AtOnce, simplify

TINY = (
    *TINY_SETTINGS,
    "phantoms.pool=5",
    "phantoms.new_per_epoch=2",
    "phantoms.validation=2",
    "locate.epochs=3",
    "locate.updates_per_epoch=100",
    "segment.epochs=3",
    "segment.updates_per_epoch=3",
)

#: The folder of a training, and what its progress was told.
WholeRun = tuple[Path, list[tuple[int, int]]]


def config(*settings: str) -> TrainConfig:
    return load_config("small", settings=[*TINY, *settings], phantoms="varied")


@pytest.fixture
def simple(monkeypatch: pytest.MonkeyPatch) -> None:
    simplify(monkeypatch)


def test_who_is_in_the_pool(simple: None) -> None:
    given = PhantomStream(config(), 1)
    assert [list(given.numbers(e)) for e in range(3)] == [[0, 1, 2, 3, 4], [2, 3, 4, 5, 6], [4, 5, 6, 7, 8]]


@pytest.mark.parametrize("begin", [0, 2])
def test_an_epoch_draws_from_its_pool_wherever_a_run_begins(simple: None, begin: int) -> None:
    pools: list[list[str]] = []
    with PhantomStream(config(), 1).open() as given:
        first, val = given.first(None)
        assert len(val) == 2
        supply = StreamedBatches(given, "fine", 3, first, lambda cases: pools.append([c.name for c in cases]))  # type: ignore[arg-type, attr-defined, func-returns-value]
        for epoch in range(begin, 3):
            supply.at_epoch(epoch)
    expected = [[f"train_{n}" for n in given.numbers(epoch)] for epoch in range(begin, 3)]
    assert pools == expected


def test_no_patient_is_ordered_twice_or_beyond_the_end(simple: None) -> None:
    with PhantomStream(config(), 1).open() as given:
        first, _ = given.first(None)
        supply = StreamedBatches(given, "coarse", 3, first, lambda cases: cases)  # type: ignore[arg-type, return-value]
        executor = getattr(given._submitted, "__self__", None)
        assert isinstance(executor, AtOnce)
        executor.asked.clear()
        for epoch in range(3):
            supply.at_epoch(epoch)
        assert [number for _, number, _ in executor.asked] == [5, 6, 7, 8]
        assert {parts for *_, parts in executor.asked} == {("coarse",)}


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> WholeRun:
    """A training that nothing interrupted. Not to be changed."""
    folder = tmp_path_factory.mktemp("stream") / "run"
    told: list[tuple[int, int]] = []
    with pytest.MonkeyPatch.context() as patch:
        simplify(patch)
        train(None, folder, config=config(), progress=lambda *f: told.append(f))
    return folder, told


def weights_of(model: Path) -> dict[str, torch.Tensor]:
    return read_model(model)[1]


def test_a_model_from_a_stream(whole_run: WholeRun) -> None:
    folder, told = whole_run
    assert told == [(k, 7) for k in range(1, 8)]
    card = read_card(folder / MODEL_NAME)
    assert card.trained_on == "synthetic"
    assert card.labels == {"prostate": 1}
    assert card.validation["cases"] == 2
    assert card.ranges["volume_ml"] == (20, 20)
    text = (folder / "config.yaml").read_text(encoding="utf-8")
    assert load_config(file=folder / "config.yaml").phantoms == config().phantoms
    assert "phantoms:" in text


def test_a_resumed_run_ends_with_the_same_weights(
    whole_run: WholeRun, simple: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = weights_of(whole_run[0] / MODEL_NAME)
    steps = iter(range(100))
    validate = loop.validate

    def stopped(module: Any) -> float | None:
        if next(steps) == 4:  # in the second epoch of stage 2
            raise KeyboardInterrupt
        return validate(module)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "validate", stopped)
        with pytest.raises(KeyboardInterrupt):
            train(None, tmp_path / "part", config=config())
    resumed = weights_of(train(None, tmp_path / "part", config=config(), resume=True))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


@pytest.mark.parametrize(
    ("patient", "loss", "message"),
    [
        (0, BrokenProcessPool("gone"), r"was killed, .* Run the same command again, .* or fewer workers"),
        (5, BrokenProcessPool("gone"), r"was killed, .* go on with resume=True, .* or fewer workers"),
        (5, WorkerDied("its worker died"), r"could not be made: its worker died\. .* go on with resume=True"),
    ],
)
def test_a_patient_whose_maker_is_killed_costs_no_epoch_that_is_done(
    whole_run: WholeRun,
    simple: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    patient: int,
    loss: Exception,
    message: str,
) -> None:
    submit = AtOnce.submit

    def lost(executor: AtOnce, make: Any, /, use: str, number: int, parts: Any) -> Future[Any]:
        if number != patient:
            return submit(executor, make, use, number, parts)
        future: Future[Any] = Future()
        future.set_exception(loss)
        return future

    with monkeypatch.context() as patch:
        patch.setattr(AtOnce, "submit", lost)
        with pytest.raises(InputError, match=message) as caught:
            train(None, tmp_path / "run", config=config())
    assert "\n" not in str(caught.value)
    begun = (tmp_path / "run").exists()
    assert begun == (patient > 0)
    whole, again = (
        weights_of(path)
        for path in (whole_run[0] / MODEL_NAME, train(None, tmp_path / "run", config=config(), resume=begun))
    )
    assert all(torch.equal(whole[name], again[name]) for name in whole)


class OtherVersion(Serial):
    """An engine with a machine that would make other patients."""

    def check_folders(self, written: Path | None, read: Sequence[Path]) -> None:
        raise InputError("machine b has metricunet 0.0.1")


def test_a_machine_of_another_version_makes_no_patients(simple: None, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="machine b has"):
        train(None, tmp_path / "run", config=config(), engine=OtherVersion())
    assert not (tmp_path / "run").exists()


def test_processes_that_are_lost_before_an_order_are_told(simple: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> Future[Any]:
        raise BrokenProcessPool("gone")

    with PhantomStream(config(), 1).open() as given:
        first, _ = given.first(None)
        supply = StreamedBatches(given, "fine", 3, first, lambda cases: cases)  # type: ignore[arg-type, return-value]
        monkeypatch.setattr(given, "_submitted", broken)
        supply.at_epoch(0)
        with pytest.raises(InputError, match="was killed"):
            supply.at_epoch(1)


def test_another_seed_is_not_gone_on_with(whole_run: WholeRun, simple: None, tmp_path: Path) -> None:
    run = Path(shutil.copytree(whole_run[0], tmp_path / "run"))
    with pytest.raises(InputError, match="seed was 0, is 1"):
        train(None, run, config=config("seed=1"), resume=True)


@pytest.mark.parametrize(
    ("who", "boxes", "coarse"), [("none", False, False), ("locate", False, True), ("all", True, True)]
)
def test_who_learns_from_tissues_drawn_anew(who: str, boxes: bool, coarse: bool) -> None:
    recipe = PhantomStream(config("phantoms.difficulty=varied", f"phantoms.tissues_anew={who}"), 1).recipe
    assert recipe.variety is not None
    assert recipe.variety.tissues == boxes
    assert (recipe.coarse_variety or recipe.variety).tissues == coarse


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["phantoms.structures=[prostate, spleen]"], "phantoms.structures is .*spleen"),
        (["phantoms.structures=[bladder]"], "target is 'prostate'"),
        (
            ["phantoms.structures=[prostate, bladder]", "target=bladder"],
            "target is 'bladder'; .* around the prostate alone",
        ),
        (["phantoms.without=[flor]"], "phantoms.without names flor; it can name floor"),
        (["phantoms.difficulty=real", "phantoms.without=[floor]"], "varied phantoms alone"),
        (["phantoms.locate_without=[floor]"], "phantoms.locate_without names floor; it can name joints"),
        (["phantoms.difficulty=real", "phantoms.locate_without=[joints]"], "varied phantoms alone"),
        (
            ["phantoms.difficulty=real", "phantoms.tissues_anew=all"],
            "tissues_anew is all; .* varied phantoms alone",
        ),
        (
            ["phantoms.difficulty=real", "phantoms.structures=[prostate, femoral_head_left]"],
            "setting phantoms.structures: femoral_head_left is labelled in phantoms of difficulty varied alone",
        ),
        (["phantoms.absent_fraction=0.9"], r"absent_fraction is 0.9: 1 of the first 5 patients .* lower it"),
        (["phantoms.new_per_epoch=6"], "at most phantoms.pool, 5"),
        (["metric.mode=offline"], "metric.mode is offline"),
        (["teacher.share=0.5"], "teacher.share is 0.5; all phantoms"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(
    simple: None, tmp_path: Path, settings: list[str], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        train(None, tmp_path / "run", config=config(*settings))
    assert not (tmp_path / "run").exists()


def test_a_training_takes_a_cohort_or_phantoms(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"takes a cohort, or phantoms=.* in its place; neither was given"):
        train(None, tmp_path / "run", config=load_config("small"))
    with pytest.raises(InputError, match="was given, and settings of phantoms, too"):
        train(tmp_path / "cohort", tmp_path / "run", config=config())
    assert not (tmp_path / "run").exists()


def test_a_setting_of_phantoms_that_is_unknown() -> None:
    with pytest.raises(InputError, match=r"phantoms.pol .* expected one of difficulty, structures"):
        config("phantoms.pol=3")
