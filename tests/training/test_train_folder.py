"""The folder of a training: one process at a time, and nothing in it is replaced that somebody else made."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from metricunet.errors import InputError
from metricunet.files.claim import CLAIM_NAME, AlreadyClaimed, claimed
from metricunet.training.checkpoints import check_checkpoints, written_checkpoint
from metricunet.training.config import load_config
from metricunet.training.fit import train
from metricunet.training.run import cache_folder, check_folder, prepare_settings, state_file
from tests.support.cohorts import TINY_SETTINGS

CONFIG = load_config("small", settings=TINY_SETTINGS)

#: Started as a shell without job control starts what runs in the background: with SIGINT ignored.
INTERRUPTED = """
import os, signal, sys
from metricunet.cli import main
from metricunet.training.log import StageProgress

StageProgress.show = lambda *facts: os.kill(os.getpid(), int(os.environ["SIGNAL"]))
signal.signal(signal.SIGINT, signal.SIG_IGN)
main()
"""


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def finished_run(tiny_model: Path, tmp_path: Path) -> Path:
    """A copy of a finished training's folder, to be changed."""
    return Path(shutil.copytree(tiny_model.parent, tmp_path / "run"))


@pytest.mark.parametrize("resume", [False, True])
def test_a_second_training_in_a_folder_says_so_and_ends(
    tiny_cohort: Path, finished_run: Path, resume: bool
) -> None:
    with claimed(finished_run / CLAIM_NAME, "a training"):
        before = contents(finished_run)
        with pytest.raises(AlreadyClaimed, match="a training is going on here already") as refused:
            train(tiny_cohort, finished_run, config=CONFIG, device="cpu", resume=resume)
        assert f"process {os.getpid()} on " in str(refused.value)
        assert contents(finished_run) == before


@pytest.mark.parametrize("name", ["model.safetensors", "run.json", "log.csv"])
def test_a_result_that_somebody_changed_is_theirs(tiny_cohort: Path, finished_run: Path, name: str) -> None:
    text = (finished_run / name).read_bytes()
    (finished_run / name).write_bytes(text.replace(b"train", b"tuned") if name == "run.json" else text + b"\n")
    before = contents(finished_run)
    with pytest.raises(InputError, match="was changed since") as refused:
        train(tiny_cohort, finished_run, config=CONFIG, device="cpu", resume=True)
    assert str(finished_run / name) in str(refused.value)
    assert "\n" not in str(refused.value)
    assert contents(finished_run) == before


@pytest.mark.parametrize(
    "name", ["locate-last.ckpt", "segment-best.ckpt", "sha256.json", "a cached case", "a link for a checkpoint"]
)
def test_what_going_on_would_replace_is_refused_where_it_is_not_ours(
    tiny_cohort: Path, finished_run: Path, tmp_path: Path, name: str
) -> None:
    cohort = Path(shutil.copytree(tiny_cohort, tmp_path / "cohort"))
    path = finished_run / "checkpoints" / name
    if name == "a cached case":
        path = next(cohort.glob("prepared/*/case_01.npz"))
    elif name == "a link for a checkpoint":
        path = path.with_name("locate-last.ckpt")
        path.unlink()
        path.symlink_to(tmp_path / "mine.ckpt")
    if not path.is_symlink():
        path.write_bytes(b"mine")
    before = contents(tmp_path)
    with pytest.raises(InputError, match=r"not written by this .*move it elsewhere and run again") as refused:
        train(cohort, finished_run, config=CONFIG, device="cpu", resume=True)
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)
    assert contents(tmp_path) == before


def test_a_checkpoint_is_ours_before_it_is_placed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed at any moment, a run can be gone on with."""
    last, replace = tmp_path / "locate-last.ckpt", os.replace
    for number in range(3):
        with monkeypatch.context() as patch, pytest.raises(OSError, match="killed"):

            def killed(source: Path, target: Path) -> None:
                if Path(target) == last:
                    raise OSError("killed") from None
                replace(source, target)

            patch.setattr(os, "replace", killed)
            patch.setattr("metricunet.files.atomic.explained", lambda path, error: error)
            with written_checkpoint(last) as temporary:
                temporary.write_bytes(b"lost")
        check_checkpoints(tmp_path)
        with written_checkpoint(last) as temporary:
            temporary.write_bytes(b"%d" % number)
        check_checkpoints(tmp_path)
        assert last.read_bytes() == b"%d" % number


def test_a_training_into_its_cohort_or_above_it_is_refused(tiny_cohort: Path, tmp_path: Path) -> None:
    cohort = Path(shutil.copytree(tiny_cohort, tmp_path / "cohort"))
    (cohort / "run.json").write_text('{"command": "import"}')
    before = contents(tmp_path)
    for output in (cohort, tmp_path, cohort / "imagesTr"):
        # Neither refusal sends to the other.
        with pytest.raises(InputError, match="is not empty and holds no run; choose a new or empty folder"):
            train(cohort, output, config=CONFIG, device="cpu")
        with pytest.raises(
            InputError, match="holds no run to resume; start one in a new or empty folder, without"
        ):
            train(cohort, output, config=CONFIG, device="cpu", resume=True)
    assert contents(tmp_path) == before


def test_a_training_that_was_stopped_before_it_began_does_not_bar_its_folder(
    tiny_cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a read-only cohort the prepared cases lie in the run folder, which holds no run to resume yet."""
    output = tmp_path / "run"

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "access", lambda *_, **__: False)
    with pytest.raises(KeyboardInterrupt):
        train(tiny_cohort, output, config=CONFIG, device="cpu", progress=stop)
    assert len(list(output.glob("prepared/*/*.npz"))) == 1
    state_file(output).parent.mkdir()
    state_file(output).with_name(".partial-12-ab.json").touch()
    check_folder(output, resume=False)
    notes = output / "prepared" / "notes.txt"
    notes.write_text("mine")
    with pytest.raises(InputError, match="is not empty"):
        check_folder(output, resume=False)
    notes.unlink()
    state_file(output).touch()
    with pytest.raises(InputError, match="is not empty; resume the run in it"):
        check_folder(output, resume=False)


def test_a_cache_that_another_user_began_in_the_cohort_is_gone_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cohort, run, settings = tmp_path / "cohort", tmp_path / "run", prepare_settings(CONFIG)
    (cohort / "prepared").mkdir(parents=True)
    here = cache_folder(cohort, settings, run)
    assert here.parent == cohort / "prepared"
    monkeypatch.setattr(os, "access", lambda path, *_, **__: Path(path) != cohort / "prepared")
    assert cache_folder(cohort, settings, run) == run / "prepared" / here.name
    here.mkdir()
    assert cache_folder(cohort, settings, run) == here


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_in_the_background_ends_a_training(
    tiny_cohort: Path, tmp_path: Path, number: signal.Signals, status: int
) -> None:
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(root / "src"), str(root)])}
    settings = [word for setting in TINY_SETTINGS for word in ("--set", setting)]
    command = [sys.executable, "-c", INTERRUPTED, "train", str(tiny_cohort), "-o", str(tmp_path / "run")]
    command += ["--preset", "small", "--device", "cpu", *settings]
    environment["SIGNAL"] = str(int(number))
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == status, ended.stderr
    assert "Traceback" not in ended.stderr
    assert not (tmp_path / "run" / CLAIM_NAME).exists()
