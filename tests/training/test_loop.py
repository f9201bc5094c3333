"""The loop of a stage: what it tells, keeps and goes on from, and which checkpoints it does not go on from."""

from __future__ import annotations

import csv
import errno
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.fabric.loggers import CSVLogger
from torch import nn

from metricunet.errors import InputError
from metricunet.networks import UNet
from metricunet.training import loop
from metricunet.training.checkpoints import written_checkpoint
from metricunet.training.config import TrainConfig, load_config
from metricunet.training.fit import open_run, train, train_locate
from metricunet.training.log import stage_loggers
from metricunet.training.loop import learning_rate
from metricunet.training.objectives import LocateModule
from metricunet.training.run import Run, begin, state_file
from tests.support.cohorts import TINY_SETTINGS, edit_json

#: Three epochs of two updates.
SHORT = ("locate.epochs=3", "locate.updates_per_epoch=2", "locate.batch_size=1")
Told = list[tuple[str, int, int, float | None]]


def config(*settings: str) -> TrainConfig:
    return load_config("small", settings=[*TINY_SETTINGS, *settings])


@pytest.fixture
def begun(tiny_cohort: Path, tmp_path: Path) -> tuple[Run, Told]:
    """A short run, just begun, and all that its watch is told."""
    told: Told = []
    run = open_run(
        tiny_cohort,
        tmp_path / "run",
        config(*SHORT),
        0,
        resume=False,
        device="cpu",
        watch=lambda *f: told.append(f),
    )
    return run, told


def scores(monkeypatch: pytest.MonkeyPatch, *values: float | None) -> None:
    """Let the epochs end with these scores."""
    left: Iterator[float | None] = iter(values)
    monkeypatch.setattr(loop, "validate", lambda module: next(left))


def weights_of(run: Run) -> dict[str, torch.Tensor]:
    network: nn.Module = train_locate(run, may_find_nothing=True).network
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def test_what_a_watch_is_told(begun: tuple[Run, Told], monkeypatch: pytest.MonkeyPatch) -> None:
    run, told = begun
    scores(monkeypatch, 0.5, None, 0.25)
    train_locate(run, may_find_nothing=True)
    assert told == [
        ("locate", 0, 6, None), ("locate", 1, 6, None), ("locate", 2, 6, None), ("locate", 2, 6, 0.5),
        ("locate", 3, 6, 0.5), ("locate", 4, 6, 0.5),
        ("locate", 5, 6, 0.5), ("locate", 6, 6, 0.5), ("locate", 6, 6, 0.25),
    ]  # fmt: skip


def test_a_stopped_run_repeats_no_finished_epoch_though_its_score_fell(
    begun: tuple[Run, Told], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, told = begun

    def stop(stage: str, done: int, total: int, dice: float | None) -> None:
        if done == 5:
            raise KeyboardInterrupt

    scores(monkeypatch, 0.5, 0.25)
    with pytest.raises(KeyboardInterrupt):
        train_locate(replace(run, watch=stop))
    scores(monkeypatch, 0.25)
    resumed = weights_of(replace(run, resume=True))
    assert [done for _, done, *_ in told] == [4, 5, 6, 6]
    best = torch.load(run.checkpoints / "locate-best.ckpt", weights_only=True)
    assert (best["epochs"], best["best_dice"]) == (1, 0.5)
    assert all(torch.equal(best["module"][f"network.{name}"], tensor) for name, tensor in resumed.items())


def test_the_best_weights_are_kept_and_without_scores_the_last(
    begun: tuple[Run, Told], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, _ = begun
    scores(monkeypatch, None, None, None)
    last = weights_of(run)
    stored = torch.load(run.checkpoints / "locate-last.ckpt", weights_only=True)["module"]
    assert all(torch.equal(stored[f"network.{name}"], tensor) for name, tensor in last.items())
    scores(monkeypatch, 0.5, 0.75, 0.75)
    again = replace(run, folder=tmp_path / "again")
    best = weights_of(again)
    assert torch.load(again.checkpoints / "locate-best.ckpt", weights_only=True)["epochs"] == 2
    assert any(not torch.equal(best[name], tensor) for name, tensor in last.items())


def test_a_finished_run_whose_folder_has_moved_still_knows_its_best_weights(
    tiny_cohort: Path, tiny_model: Path, tmp_path: Path
) -> None:
    moved = Path(shutil.copytree(tiny_model.parent, tmp_path / "moved"))
    log = (moved / "log.csv").read_bytes()
    (moved / "model.safetensors").unlink()
    again = train(tiny_cohort, moved, config=config(), device="cpu", resume=True)
    assert again.read_bytes() == tiny_model.read_bytes()
    assert (moved / "log.csv").read_bytes() == log


def of_lightnings_trainer(path: Path) -> None:
    torch.save({"state_dict": {}, "pytorch-lightning_version": "2.6.0", "epoch": 3}, path)


def of_the_future(path: Path) -> None:
    torch.save({**torch.load(path, weights_only=True), "format": loop.CHECKPOINT_FORMAT + 1}, path)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:1000])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def overwritten(path: Path) -> None:
    path.write_text("a thesis, which torch takes for a pickle of its own")


@pytest.mark.parametrize("name", ["locate-last.ckpt", "segment-best.ckpt"])
@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (of_lightnings_trainer, "another version of metricunet wrote this checkpoint"),
        (of_the_future, "another version of metricunet wrote this checkpoint"),
        (cut_short, "missing or damaged"),
        (emptied, "missing or damaged"),
        (overwritten, "missing or damaged"),
    ],
)
def test_checkpoints_that_a_run_cannot_go_on_from(
    tiny_cohort: Path, tiny_model: Path, tmp_path: Path, name: str, spoil: Callable[[Path], None], words: str
) -> None:
    folder = Path(shutil.copytree(tiny_model.parent, tmp_path / "run"))
    with written_checkpoint(folder / "checkpoints" / name) as temporary:  # as if the program had written it so
        shutil.copyfile(folder / "checkpoints" / name, temporary)
        spoil(temporary)
    with pytest.raises(InputError, match=words) as refused:
        train(tiny_cohort, folder, config=config(), device="cpu", resume=True)
    assert str(folder / "checkpoints" / name) in str(refused.value)
    assert "start anew in another folder" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_checkpoint_that_memory_does_not_suffice_for_is_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "locate-last.ckpt"
    torch.save({"format": loop.CHECKPOINT_FORMAT}, path)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "load", lambda *_, **__: torch.empty(10**15, dtype=torch.uint8))
        with pytest.raises(RuntimeError, match="memory"):
            loop.read_checkpoint(path)
    assert loop.read_checkpoint(path) == {"format": loop.CHECKPOINT_FORMAT}


@pytest.mark.parametrize("spoil", [of_the_future, cut_short, overwritten])
def test_a_checkpoint_that_somebody_changed_is_theirs(
    tiny_cohort: Path, tiny_model: Path, tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    folder = Path(shutil.copytree(tiny_model.parent, tmp_path / "run"))
    path = folder / "checkpoints" / "segment-last.ckpt"
    spoil(path)
    before = path.read_bytes()
    with pytest.raises(InputError, match=r"segment-last\.ckpt: is there already, and it was not written by this"):
        train(tiny_cohort, folder, config=config(), device="cpu", resume=True)
    assert path.read_bytes() == before


def test_a_full_disk_is_named_and_leaves_the_checkpoint_as_it_was(
    begun: tuple[Run, Told], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, _ = begun
    scores(monkeypatch, None, None)
    written: list[bytes] = []
    write = Path.write_bytes

    def full(path: Path, content: bytes) -> int:
        if written:
            write(path, bytes(content)[:100])
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(bytes(content))
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(InputError, match=r"locate-last\.ckpt: the disk is full"):
        train_locate(run)
    assert (run.checkpoints / "locate-last.ckpt").read_bytes() == written[0]
    assert not list(run.checkpoints.glob(".partial-*"))


def test_what_a_killed_process_left_of_a_checkpoint_goes(
    begun: tuple[Run, Told], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, _ = begun
    run.checkpoints.mkdir(exist_ok=True)
    (run.checkpoints / ".partial-123-abc.ckpt").write_bytes(b"half")
    scores(monkeypatch, None, None, None)
    train_locate(run, may_find_nothing=True)
    assert {path.name for path in run.checkpoints.iterdir()} == {
        "state.json", "log-sha256.json", "sha256.json", "locate-last.ckpt",
    }  # fmt: skip


def test_lightnings_loggers_are_told_the_numbers_of_the_log(
    begun: tuple[Run, Told], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, _ = begun
    scores(monkeypatch, 0.5, None, 0.25)
    logger = CSVLogger(tmp_path / "logged", name="run", version="one")
    train_locate(replace(run, loggers=(logger,)), may_find_nothing=True)
    logger.save()
    with (tmp_path / "logged" / "run" / "one" / "metrics.csv").open(newline="") as handle:
        logged = list(csv.DictReader(handle))
    with (run.folder / "log.csv").open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert [row["step"] for row in logged] == [row["updates"] for row in rows] == ["2", "4", "6"]
    assert [row["locate/val_dice"] for row in logged] == [row["val_dice"] for row in rows] == ["0.5", "", "0.25"]
    assert [f"{float(row['locate/loss']):.5g}" for row in logged] == [row["loss"] for row in rows]


def test_a_run_is_not_resumed_with_other_labels_or_from_a_damaged_state(begun: tuple[Run, Told]) -> None:
    run = replace(begun[0], resume=True)
    begin(run, 0)
    other = replace(run.info, labels={"bladder": 2, **run.labels})
    with pytest.raises(InputError, match=r"cannot resume with other settings \(labels was \['prostate'\], is"):
        begin(replace(run, info=other), 0)
    with pytest.raises(InputError, match=r"\(values was \[1, None\], is \[2, None\]"):
        begin(replace(run, info=replace(run.info, labels={"prostate": 2})), 0)
    state_file(run.folder).write_text('{"fold": 0')
    with pytest.raises(InputError, match=r"state\.json: damaged, or of another version .* start anew"):
        begin(run, 0)


def test_a_run_is_not_resumed_on_another_split_of_the_same_cases(tiny_cohort: Path, tmp_path: Path) -> None:
    """Else it would be validated on cases that it was trained on."""
    cohort = Path(shutil.copytree(tiny_cohort, tmp_path / "cohort"))

    def open_validated_on(*val: str, resume: bool) -> None:
        train = [name for k in range(6) if (name := f"case_{k:02d}") not in val]
        (cohort / "splits.json").write_text(json.dumps([{"train": train, "val": val}]))
        open_run(cohort, tmp_path / "run", config(), 0, resume=resume, device="cpu")

    open_validated_on("case_00", "case_01", resume=False)
    open_validated_on("case_00", "case_01", resume=True)
    with pytest.raises(
        InputError, match=r"others of the cases are validated on, by splits\.json or patients\.json"
    ):
        open_validated_on("case_02", "case_03", resume=True)


def test_a_run_of_an_earlier_version_states_no_split(begun: tuple[Run, Told]) -> None:
    run = replace(begun[0], resume=True)
    edit_json(state_file(run.folder), split=None, values=None)
    begin(run, 0)


def test_a_logger_that_fails_costs_no_epoch(
    begun: tuple[Run, Told], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Away(CSVLogger):
        def log_metrics(self, metrics: Any, step: int | None = None) -> None:
            raise ConnectionError("the server is away")

    run, _ = begun
    scores(monkeypatch, 0.5, 0.5, 0.5)
    away = Away(tmp_path / "logged", name="run", version="one")
    with pytest.raises(InputError, match=r"Away failed \(.*the server is away.*resume=True") as error:
        train_locate(replace(run, loggers=(away,)), may_find_nothing=True)
    assert "\n" not in str(error.value)
    assert (run.checkpoints / "locate-last.ckpt").is_file()
    assert len((run.folder / "log.csv").read_text().splitlines()) == 2


@pytest.mark.parametrize("fails", [False, True])
def test_tensorboard_is_told_how_a_stage_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    ended: list[str] = []
    board = SimpleNamespace(finalize=ended.append)
    monkeypatch.setattr("metricunet.training.log.find_spec", lambda name: object())
    monkeypatch.setattr("metricunet.training.log.TensorBoardLogger", lambda *places, **names: board)
    with suppress(KeyboardInterrupt), stage_loggers(tmp_path, "locate", []) as loggers:
        assert loggers == [board]
        if fails:
            raise KeyboardInterrupt
    assert ended == ["failed" if fails else "success"]


def test_a_job_of_slurm_with_several_tasks_trains_on_one_device(
    begun: tuple[Run, Told], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many ask Slurm for cores by a number of tasks, and start one process."""
    monkeypatch.setenv("SLURM_NTASKS", "8")
    for name in ("SLURM_NTASKS_PER_NODE", "SLURM_JOB_NAME"):
        monkeypatch.delenv(name, raising=False)
    run, _ = begun
    weights_of(run)
    assert (run.checkpoints / "locate-last.ckpt").is_file()


def test_the_learning_rate_rises_and_falls_to_zero() -> None:
    settings = config("locate.epochs=10", "locate.updates_per_epoch=100", "locate.learning_rate=0.5")
    module = LocateModule(UNet(1, 2, 4, levels=2, spatial_dims=3), settings, [], 1)
    rates = [learning_rate(module, update) for update in (0, 24, 49, 50, 525, 1000)]
    assert rates == pytest.approx([0.01, 0.25, 0.5, 0.5, 0.25, 0])
