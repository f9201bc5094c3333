"""Two processes train what one trains: the same losses and weights, whoever goes on, and one tells of it."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from metricunet.errors import InputError
from metricunet.files.model import read_model
from metricunet.training import fit, ranks
from metricunet.training.batches import Batches, Supply
from metricunet.training.config import TrainConfig, load_config
from metricunet.training.objectives import StageModule
from metricunet.training.ranks import ALONE, Ranks, together
from metricunet.training.run import Run
from tests.support.cohorts import TINY_SETTINGS, make_tiny_cohort

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available(), reason="this torch has no distributed package"
)

ROOT = Path(__file__).parents[2]
#: An epoch is an update, so that log.csv has a row for each.
EVERY_UPDATE = (
    "locate.updates_per_epoch=1",
    "segment.updates_per_epoch=1",
    "locate.epochs=6",
    "segment.epochs=20",
    "locate.learning_rate=0.001",
    "segment.learning_rate=0.001",
    "precision=fp32",
)
SHORT = ("locate.epochs=1", "segment.epochs=4")
#: What differs in how a loss is that of the whole batch, and the first updates of each.
VARIANTS: dict[str, tuple[str, ...]] = {
    "bank and share": ("metric.bank=32", "metric.bank_new=4", "metric.weight_as=gradient_share"),
    "clusters across": ("metric.background=clusters", "metric.across=true", "metric.warm_up_updates=0"),
    "control": ("metric.mode=control", "metric.warm_up_updates=0"),
    "offline": (
        "metric.mode=offline",
        "metric.patch_voxels=16",
        "metric.patch_tuples=32",
        "metric.warm_up_updates=0",
    ),
    "fcn": ("segment.network=fcn",),
    "3d": ("segment.spatial_dims=3", "segment.block_slices=8", "metric.background=hu"),
    "teacher": ("teacher.share=0.5", "metric.bank=32", "metric.bank_new=4"),
}


class Stopped(Exception):  # noqa: N818
    """The training was stopped on purpose."""


def config(*settings: str) -> TrainConfig:
    return load_config("small", settings=[*TINY_SETTINGS, *EVERY_UPDATE, *settings])


def train_stages(
    cohort: Path, output: Path, model: Path, settings: list[str], ranks: Ranks, *, resume: bool, stop: int | None
) -> None:
    """Train stage 1, and stage 2 with the stage 1 of a model; the weights of each process are left beside.

    With `stop` stage 2 ends before the epoch of that number.
    """
    usual = fit.fit

    def fit_and_keep(run: Run, module: StageModule, supply: Supply) -> float | None:
        class Stopping:
            def at_epoch(self, epoch: int) -> Batches:
                if module.stage == "segment" and epoch == stop:
                    raise Stopped
                return supply.at_epoch(epoch)

        score = usual(run, module, Stopping())
        torch.save(module.state_dict(), output / f"{module.stage}-{ranks.rank}.pt")
        return score

    fit.fit = fit_and_keep  # type: ignore[assignment]
    try:
        run = ranks.first_then_others(
            lambda: fit.open_run(cohort, output, config(*settings), 0, resume=resume, device="cpu", ranks=ranks)
        )
        fit.train_locate(run, may_find_nothing=True)
        fit.train_segment(run, fit.trained_locate(run, read_model(model)[1], np.full((1, 3), 3.0)))
    except Stopped:
        pass
    finally:
        fit.fit = usual


SCRIPT = """
import json, sys
from pathlib import Path
from metricunet.training.ranks import together
from tests.training.test_ranks import train_stages

jobs = json.loads(Path(sys.argv[1]).read_text())
with together("cpu", 2) as ranks:
    for job in jobs:
        paths = [Path(job.pop(name)) for name in ("cohort", "output", "model")]
        train_stages(*paths, job.pop("settings"), ranks, **job)
"""


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}


def log_of(output: Path, stage: str) -> list[dict[str, str]]:
    with (output / "log.csv").open(newline="") as handle:
        return [row for row in csv.DictReader(handle) if row["stage"] == stage]


def weights_of(output: Path, stage: str, rank: int = 0) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = torch.load(output / f"{stage}-{rank}.pt", weights_only=True)
    return found


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scans with contours, and two that nobody contoured."""
    folder = make_tiny_cohort(tmp_path_factory.mktemp("ranks") / "cohort", 6, 2, absent=[5])
    (folder / "imagesTs").rename(folder / "imagesUnlabeled")
    shutil.rmtree(folder / "labelsTs")
    return folder


@pytest.fixture(scope="module")
def both(cohort: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders of trainings by two processes, started by Lightning's launcher."""
    folder = tmp_path_factory.mktemp("both")
    common = {"cohort": str(cohort), "model": str(tiny_model)}
    jobs = [
        {"output": str(folder / "whole"), "settings": [], "resume": False, "stop": None},
        {"output": str(folder / "stopped"), "settings": ["locate.epochs=1"], "resume": False, "stop": 10},
        {"output": str(folder / "resumed"), "settings": ["locate.epochs=1"], "resume": True, "stop": None},
    ]
    jobs += [
        {"output": str(folder / name), "settings": [*SHORT, *settings], "resume": False, "stop": None}
        for name, settings in VARIANTS.items()
    ]
    train_stages(cohort, folder / "resumed", tiny_model, ["locate.epochs=1"], ALONE, resume=False, stop=10)
    (folder / "jobs.json").write_text(json.dumps([common | job for job in jobs]))
    (folder / "script.py").write_text(SCRIPT)
    ended = subprocess.run(
        [sys.executable, str(folder / "script.py"), str(folder / "jobs.json")],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return folder


@pytest.fixture(scope="module")
def alone(cohort: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a training by one process."""
    folder = tmp_path_factory.mktemp("alone")
    train_stages(cohort, folder / "whole", tiny_model, [], ALONE, resume=False, stop=None)
    return folder


@pytest.mark.parametrize(("stage", "updates"), [("locate", 6), ("segment", 20)])
def test_the_loss_of_each_update_is_that_of_one_process_with_the_whole_batch(
    both: Path, alone: Path, stage: str, updates: int
) -> None:
    """Stage 1 has batch normalisation, whose statistics are those of the whole batch."""
    here, there = log_of(alone / "whole", stage), log_of(both / "whole", stage)
    assert len(here) == len(there) == updates
    assert here[0].keys() == there[0].keys()
    for one, two in zip(here, there, strict=True):
        assert float(one["loss"]) == pytest.approx(float(two["loss"]), abs=1e-3)
        if one["val_dice"]:
            assert float(one["val_dice"]) == pytest.approx(float(two["val_dice"]), abs=0.02)


@pytest.mark.parametrize("stage", ["locate", "segment"])
def test_the_processes_have_equal_weights_which_are_those_of_one(both: Path, alone: Path, stage: str) -> None:
    one, two = weights_of(both / "whole", stage, 0), weights_of(both / "whole", stage, 1)
    assert all(torch.equal(one[name], two[name]) for name in one)
    expected = weights_of(alone / "whole", stage)
    assert one.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.allclose(one[name].float(), tensor.float(), rtol=0.02, atol=2e-3), name


def test_two_processes_go_on_where_one_was_stopped(both: Path) -> None:
    losses = [float(row["loss"]) for row in log_of(both / "resumed", "segment")]
    one = weights_of(both / "resumed", "segment", 0)
    assert len(losses) == 20
    assert all(torch.equal(one[name], value) for name, value in weights_of(both / "resumed", "segment", 1).items())


def test_one_process_goes_on_where_two_were_stopped(both: Path, cohort: Path, tiny_model: Path) -> None:
    output = both / "stopped"
    assert len(log_of(output, "segment")) == 10
    train_stages(cohort, output, tiny_model, ["locate.epochs=1"], ALONE, resume=True, stop=None)
    here, there = log_of(output, "segment"), log_of(both / "resumed", "segment")
    assert len(here) == 20
    for one, two in zip(here, there, strict=True):  # stopped and resumed the other way round
        assert float(one["loss"]) == pytest.approx(float(two["loss"]), abs=1e-3)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_kind_of_loss_is_that_of_the_whole_batch(
    both: Path, cohort: Path, tiny_model: Path, tmp_path: Path, name: str
) -> None:
    train_stages(cohort, tmp_path, tiny_model, [*SHORT, *VARIANTS[name]], ALONE, resume=False, stop=None)
    here, there = log_of(tmp_path, "segment"), log_of(both / name, "segment")
    assert len(here) == len(there) == 4
    for one, two in zip(here, there, strict=True):
        for column in one.keys() - {"seconds", "val_dice", "stage"}:
            assert float(one[column] or 0) == pytest.approx(float(two[column] or 0), abs=2e-3, rel=2e-3), column


def test_the_first_process_alone_writes(both: Path) -> None:
    names = {path.name for path in (both / "whole").iterdir()}
    assert {"model.safetensors", "log.csv", "config.yaml"} <= names
    assert not list(both.rglob(".partial-*"))
    weights = read_model(both / "whole" / "model.safetensors")[1]
    assert any(name.startswith("segment.") for name in weights)


def command(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "metricunet", "train", *map(str, words), "--device", "cpu", "--preset", "small"],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_command_starts_the_processes_and_one_of_them_tells(
    tiny_cohort: Path, tiny_model: Path, tmp_path: Path
) -> None:
    settings = [*TINY_SETTINGS, *EVERY_UPDATE, *SHORT, "locate.learning_rate=1e-6"]
    words = [word for setting in settings for word in ("--set", setting)]
    output = tmp_path / "run"
    ended = command(tiny_cohort, "-o", output, "--init", tiny_model, "--devices", 2, *words)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == f"model: {output / 'model.safetensors'}\n"
    assert len(ended.stderr.splitlines()) == 1, ended.stderr  # what is kept of the model
    record = json.loads((output / "run.json").read_text())
    assert record["processes"] == 2
    assert not list(output.glob(".*"))


def test_what_is_wrong_is_told_once(tiny_cohort: Path, tmp_path: Path) -> None:
    words = [word for setting in TINY_SETTINGS for word in ("--set", setting)]
    output = tmp_path / "run"
    ended = command(tiny_cohort, "-o", output, "--devices", 2, *words, "--set", "segment.batch_size=3")
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert ended.stderr.splitlines() == [
        "error: setting segment.batch_size gives 3 images for 2 processes that train together; expected a "
        "multiple of their number, for each has as many of a batch"
    ]
    assert not output.exists()


def test_a_process_that_waits_for_its_gpu_outlives_no_failure_of_the_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It takes no heed of SIGTERM: Python would handle that, and does not run while such a wait lasts."""
    deaf = "import signal, sys; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", deaf], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        watched = [other]
        fabric = SimpleNamespace(
            launch=lambda: None,
            global_rank=0,
            world_size=2,
            strategy=SimpleNamespace(launcher=SimpleNamespace(procs=watched)),
        )
        monkeypatch.setattr(ranks, "Fabric", lambda **_: fabric)
        monkeypatch.setattr(ranks, "_launched", False)
        monkeypatch.setattr(ranks, "PATIENCE_S", 0.1, raising=False)
        try:
            with pytest.raises(Stopped), together("cpu", 2):
                raise Stopped
            assert other.poll() is not None
            assert not watched  # Lightning would kill the first one before it has told what went wrong
        finally:
            other.kill()


@pytest.mark.parametrize(
    ("device", "devices", "nodes", "message"),
    [
        ("cpu", 0, 1, "devices must be 1 or more; got 0"),
        ("cpu", 1, 0, "nodes must be 1 or more; got 0"),
        ("cpu:0", 2, 1, "is one device, and devices is 2"),
    ],
)
def test_processes_that_cannot_be(device: str, devices: int, nodes: int, message: str) -> None:
    with pytest.raises(InputError, match=message), together(device, devices, nodes):
        pass


def test_other_numbers_than_those_of_torchrun_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    told = {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "LOCAL_RANK": "0"}
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match="torchrun has started 4 processes, 2 of them here"), together("cpu", 3):
        pass


def test_tasks_of_slurm_that_cannot_train_together_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_NTASKS", "4")
    for name in ("SLURM_NTASKS_PER_NODE", "SLURM_JOB_NAME", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(InputError, match=r"this job of Slurm has 4 tasks .* torchrun"), together("cpu", 2):
        pass
