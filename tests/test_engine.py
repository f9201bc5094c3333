"""Work that is shared out by Ray comes to what it comes to here, whatever is lost on the way."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from metricunet.cohort.importing import import_cohort
from metricunet.engine import GIB, Engine, Needs, Serial, opened
from metricunet.errors import InputError, WorkerDied
from metricunet.files.claim import AlreadyClaimed, claimed
from metricunet.inference.case_files import CaseFiles
from metricunet.inference.predict import predict
from metricunet.phantom import make_cohort
from tests.support.command import Command
from tests.support.engines import MACHINE, KilledBy, QuickMaker
from tests.support.patients import Patient, write_ct, write_set
from tests.support.workers import Doubling, Unmade, Waiting

NEEDS = Needs(GIB // 4)
#: Fields of records that say when and how long, and not what.
PASSING = {"started", "timings_s", "seal", "arguments", "seconds", "files", "device"}


@pytest.fixture
def ray_engine(machines: Any) -> Iterator[Engine]:
    with opened(f"ray://{machines.address}") as engine:
        assert engine is not None
        yield engine


def content_of(folder: Path) -> dict[str, Any]:
    """The bytes of all files, and of records what does not pass."""
    files = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {
        name: _lasting(json.loads(path.read_text())) if path.suffix == ".json" else path.read_bytes()
        for name, path in files.items()
    }


def _lasting(content: Any) -> Any:
    if isinstance(content, list):
        return [_lasting(one) for one in content]
    if isinstance(content, dict):
        return {name: _lasting(one) for name, one in content.items() if name not in PASSING}
    return content


@pytest.mark.parametrize(
    "command", [("phantom",), ("import", "src"), ("predict", "scan.nii"), ("study", "s.yaml")]
)
def test_without_ray_one_line_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, metricunet: Command, tmp_path: Path, command: tuple[str, ...]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    ended = metricunet(*command, "-o", tmp_path / "out", "--engine", "ray")
    assert ended.status == 2
    line = "error: --engine ray needs Ray, which is not installed: pip install 'metricunet[ray]'\n"
    assert ended.err.removeprefix("warning: ").endswith(line)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["dask", "ray://", "ray:auto", "Ray"])
def test_an_engine_that_there_is_not_is_named(name: str) -> None:
    expected = re.escape(f"engine must be ray or ray://ADDRESS; got {name!r}")
    with pytest.raises(InputError, match=expected), opened(name):
        pass


def test_no_engine_is_none() -> None:
    with opened(None) as engine:
        assert engine is None


def test_a_cluster_that_is_not_there_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray", exc_type=ModuleNotFoundError)

    def refused(**_: object) -> None:
        raise ConnectionError("first line\nnobody listens there")

    monkeypatch.setattr(ray, "init", refused)
    expected = r"^engine ray://auto: nobody listens there; start Ray"
    with pytest.raises(InputError, match=expected), opened("ray://auto"):
        pass


def test_an_address_where_nothing_answers_is_said_at_once() -> None:
    pytest.importorskip("ray", exc_type=ModuleNotFoundError)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and nobody listens
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        expected = rf"^engine ray://{re.escape(address)}: nothing answers there; start Ray"
        with pytest.raises(InputError, match=expected), opened(f"ray://{address}"):
            pass


def test_done_here_a_task_costs_itself_alone(tmp_path: Path) -> None:
    held = []

    @contextmanager
    def claim(task: int) -> Iterator[None]:
        with claimed(tmp_path / f"{task}.claim", "a task"):
            held.append(task)
            yield

    with claimed(tmp_path / "1.claim", "a task"):
        found = dict(Serial().each([0, 1, 4, 5], Doubling, NEEDS, claim=claim))
    assert [found[0][0], found[5][0]] == [0, 10]  # type: ignore[index]
    assert isinstance(found[1], AlreadyClaimed)
    assert isinstance(found[4], KeyError)
    assert held == [0, 4, 5]
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(KeyError, match="no model"):
        list(Serial().each([0], Unmade, NEEDS))


def test_a_task_that_kills_its_worker_twice_fails_and_the_others_are_done(
    ray_engine: Engine, tmp_path: Path
) -> None:
    @contextmanager
    def claim(task: int) -> Iterator[None]:
        with claimed(tmp_path / f"{task}.claim", "a task"):
            yield

    with claimed(tmp_path / "6.claim", "a task"):
        found = dict(ray_engine.each(list(range(9)), Doubling, NEEDS, claim=claim))
    died = found.pop(3)
    assert isinstance(died, WorkerDied)
    assert str(died) == "its worker process died, and the one of the second try, too"
    odd = found.pop(4)
    assert isinstance(odd, KeyError)
    assert "Doubling" in odd.__notes__[0] or "in do" in odd.__notes__[0]
    assert isinstance(found.pop(6), AlreadyClaimed)
    done: dict[int, Any] = found
    assert {task: result[0] for task, result in done.items()} == {task: 2 * task for task in done}
    assert (
        len({result[1] for result in done.values()}) <= 4
    )  # one made for each process: two, and two in their stead
    assert {result[2:] for result in done.values()} == {("1", str(Path.cwd()))}
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(KeyError, match="no model"):
        list(ray_engine.each([0], Unmade, NEEDS))


def test_work_that_is_given_up_ends(ray_engine: Engine, tmp_path: Path) -> None:
    told: list[Any] = []

    def interrupt(task: int, node: str) -> None:
        told.append(task)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(ray_engine.each([0, 1], partial(Waiting, tmp_path), NEEDS, watch=interrupt))
    pids = {int(path.name.split("-")[2]) for path in tmp_path.iterdir()}
    _, alive = psutil.wait_procs([psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)], timeout=60)
    assert not alive


def test_what_no_machine_has_is_said_before_any_work(ray_engine: Engine) -> None:
    with pytest.raises(InputError, match=r"no machine has what a worker takes, 1 cores and 100\.0 GiB of memory"):
        list(ray_engine.each([0], Doubling, Needs(100 * GIB)))
    with pytest.raises(InputError, match="no machine of engine='ray' has a GPU"):
        ray_engine.device(Needs(GIB, "cuda"))
    with pytest.raises(InputError, match="chooses the number of the GPU"):
        ray_engine.device(Needs(GIB, "cuda:1"))
    assert ray_engine.device(Needs(GIB, "auto")) == "cpu"


def test_what_a_machine_does_not_see_is_said_before_any_work(
    ray_engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model").write_bytes(b"weights")
    ray_engine.check_folders(tmp_path / "new" / "out", [tmp_path / "model", tmp_path])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]
    # A path that is another one for each process, as one that machines do not share.
    expected = r"/proc/self/cmdline: machine \S+ sees another one; every machine must see it by this path"
    with pytest.raises(InputError, match=expected):
        ray_engine.check_folders(tmp_path, [Path("/proc/self/cmdline")])
    gone = tmp_path / "gone"
    monkeypatch.setattr("metricunet.engine.folders._seen", lambda path: "as if it were here")
    with pytest.raises(InputError, match=r"gone: machine \S+ sees none; every machine must see it by this path"):
        ray_engine.check_folders(tmp_path, [gone])


def test_phantoms_of_two_machines_are_those_of_one(
    ray_engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick_phantoms: None
) -> None:
    wanted: dict[str, Any] = {"n": 4, "n_test": 1, "n_readers": 1, "difficulty": "easy"}
    make_cohort(tmp_path / "here", **wanted)
    monkeypatch.setattr("metricunet.phantom.cohort._Maker", QuickMaker)
    make_cohort(tmp_path / "there", **wanted | {"n": 2}, engine=ray_engine)
    make_cohort(tmp_path / "there", **wanted, engine=ray_engine)
    assert content_of(tmp_path / "there") == content_of(tmp_path / "here")


def test_patients_imported_by_two_machines_are_those_of_one(ray_engine: Engine, tmp_path: Path) -> None:
    for k in range(3):
        patient = Patient(f"Doe{k}^John", f"P-{k}00")
        series = write_ct(tmp_path / "tree" / str(k) / "ct", patient)
        write_set(tmp_path / "tree" / str(k) / "RS.dcm", patient, series, {"Prostate": (6.5, 11.5, [1, 2, 3])})
    (tmp_path / "names.yaml").write_text("prostate: [Prostate]\n")
    damaged = sorted((tmp_path / "tree" / "1" / "ct").iterdir())[2]
    damaged.write_bytes(damaged.read_bytes()[:-40])
    for name, engine in (("here", None), ("there", ray_engine)):
        import_cohort([tmp_path / "tree"], tmp_path / name, names=tmp_path / "names.yaml", engine=engine)
    assert content_of(tmp_path / "there") == content_of(tmp_path / "here")


def test_scans_segmented_by_two_machines_are_those_of_one_but_for_the_one_that_kills(
    ray_engine: Engine, tmp_path: Path, tiny_cohort: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scans = [tiny_cohort / "imagesTr", tiny_cohort / "imagesTs"]
    here = predict(scans, [tiny_model], tmp_path / "here", device="cpu")
    with monkeypatch.context() as patch:
        patch.setattr("metricunet.inference.predict._CaseWorker", KilledBy)
        done: list[tuple[int, int]] = []
        found = predict(
            scans, [tiny_model], tmp_path / "there", engine=ray_engine, progress=lambda *n: done.append(n)
        )
    assert done[-1] == (8, 8)
    assert [case.case for case in found.cases] == [c.case for c in here.cases if c.case != KilledBy.case]
    (refused,) = found.refused
    assert isinstance(refused.error, WorkerDied)
    died = "its worker process died, and the one of the second try, too"
    assert refused.reason.endswith(f"{KilledBy.case}_0000.nii.gz: {died}")
    whole, parts = content_of(tmp_path / "here"), content_of(tmp_path / "there")
    record = parts.pop("run.json")
    assert list(record["cases"]) == [case.case for case in found.cases]
    assert parts == {name: whole[name] for name in parts}
    assert whole.keys() - parts.keys() == {"run.json", f"{KilledBy.case}.nii.gz", f"{KilledBy.case}.quality.json"}
    # A rerun, without Ray, does what is missing and no more.
    monkeypatch.setattr(CaseFiles, "write", _only(KilledBy.case, CaseFiles.write))
    again = predict(scans, [tiny_model], tmp_path / "there", device="cpu")
    assert [case.case for case in again.cases if not case.skipped] == [KilledBy.case]
    assert {n: c for n, c in content_of(tmp_path / "there").items() if n != "run.json"} == {
        name: content for name, content in whole.items() if name != "run.json"
    }


def _only(case: str, write: Any) -> Any:
    def checked(files: CaseFiles, prediction: Any, quality: Any, *more: Any) -> Any:
        assert quality.case == case
        return write(files, prediction, quality, *more)

    return checked


def test_a_cluster_at_the_loopback_alone_is_found_there(machines: Any) -> None:
    """Ray itself would seek it at this machine's other address."""
    assert in_another_process(JOINING, f"ray://{machines.address}") == "32\n"


def test_a_machine_that_is_lost_costs_its_tasks_a_second_try(
    ray_engine: Engine, machines: Any, tmp_path: Path
) -> None:
    """The last of those that use the cluster: it has other machines afterwards."""
    seen: dict[int, str] = {}

    def lose(task: int, node: str) -> None:
        seen[task] = node
        if len(set(seen.values())) == 2 and not (tmp_path / "go").exists():
            (other,) = machines.worker_nodes
            machines.remove_node(other)
            (tmp_path / "go").touch()

    found = dict(ray_engine.each([0, 1, 2, 3], partial(Waiting, tmp_path), NEEDS, watch=lose))
    assert found == {task: task for task in range(4)}
    begun = [int(path.name.split("-")[1]) for path in tmp_path.glob("begun-*")]
    assert sorted(begun) in ([0, 0, 1, 2, 3], [0, 1, 1, 2, 3])
    machines.add_node(**MACHINE)


#: Starts Ray on this machine, has something computed, and prints where its processes listen.
LISTENING = """
import os, psutil
from metricunet.engine import Needs, opened

with opened("ray") as engine:
    print(engine.submit(Needs(1 << 28), pow, 2, 5).result())
    own = psutil.Process()
    for process in (own, *own.children(recursive=True)):
        for connection in process.net_connections():
            if connection.status == psutil.CONN_LISTEN:
                print(connection.laddr.ip)
    import ray
    from ray._private.usage.usage_lib import usage_stats_enabled
    print("dashboard" if ray._private.worker.get_dashboard_url() else "no dashboard")
    print("told" if usage_stats_enabled() else "not told")
"""

#: Joins a cluster and has something computed there.
JOINING = """
import sys
from metricunet.engine import Needs, opened

with opened(sys.argv[1]) as engine:
    print(engine.submit(Needs(1 << 28), pow, 2, 5).result())
"""


def in_another_process(script: str, *words: str, **environment: str) -> str:
    root = Path(__file__).parents[1]
    found = subprocess.run(
        [sys.executable, "-c", script, *words],
        env=os.environ | {"PYTHONPATH": str(root / "src")} | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return found.stdout


def test_ray_of_this_machine_is_heard_by_no_other_and_tells_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray", exc_type=ModuleNotFoundError)
    for name in [name for name in os.environ if name.startswith("RAY_")]:
        monkeypatch.delenv(name)
    found = in_another_process(LISTENING, HOME=str(tmp_path))
    computed, *heard, dashboard, told = found.splitlines()
    assert computed == "32"
    assert {ip.rpartition(":")[2] for ip in heard} == {"127.0.0.1"}
    assert (dashboard, told) == ("no dashboard", "not told")
