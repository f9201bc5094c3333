"""Workers that a test of an engine has made in other processes, and a cluster of two machines in this one."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from metricunet.engine import Tell
from metricunet.inference import predict
from metricunet.inference.case_files import CaseOutcome
from metricunet.inference.inputs import ScanInput
from metricunet.phantom import cohort
from tests.support.phantoms import quick_phantom

#: What each machine of the cluster offers.
MACHINE = {"num_cpus": 1, "memory": 6 << 30, "object_store_memory": 80 << 20, "include_dashboard": False}


@contextmanager
def two_machines() -> Iterator[Any]:
    """Start a Ray cluster of two nodes of one core; its workers can import the tests."""
    cluster_utils = pytest.importorskip("ray.cluster_utils", exc_type=ModuleNotFoundError)
    with pytest.MonkeyPatch.context() as patch:
        root = str(Path(__file__).parents[2])
        patch.setenv("PYTHONPATH", os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])]))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setattr("ray._private.ray_constants.ENABLE_RAY_CLUSTER", False)
        cluster = cluster_utils.Cluster(initialize_head=True, head_node_args=MACHINE)
        try:
            cluster.add_node(**MACHINE)
            yield cluster
        finally:
            cluster.shutdown()


class Doubling:
    """Doubles numbers. It dies of 3, cannot do 4, and says where it was made."""

    def __init__(self) -> None:
        self.made_in = os.getpid()

    def do(self, task: int, tell: Tell) -> tuple[int, int, str, str]:
        if task == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        if task == 4:
            raise KeyError("four")
        return 2 * task, self.made_in, os.environ["OMP_NUM_THREADS"], str(Path.cwd())


class Waiting:
    """Notes in a folder that a task has begun, tells on which machine, and goes on when it may."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def do(self, task: int, tell: Tell) -> int:
        import ray

        tell(ray.get_runtime_context().get_node_id())
        (self.folder / f"begun-{task}-{os.getpid()}").touch()
        while not (self.folder / "go").exists():
            time.sleep(0.05)  # in another process; nothing tells it more directly
        return task


class Unmade:
    """Cannot be made."""

    def __init__(self) -> None:
        raise KeyError("no model")

    def do(self, task: int, tell: Tell) -> int:
        raise AssertionError


class KilledBy(predict._CaseWorker):
    """Segments scans, and is killed by the one of this name."""

    case = "case_02"

    def do(self, entry: ScanInput, tell: Tell) -> CaseOutcome:
        if entry.case == self.case:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().do(entry, tell)


class QuickMaker(cohort._Maker):
    """Makes phantoms that take no time."""

    def do(self, task: Any, tell: Tell) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cohort, "make_phantom", quick_phantom)
            return super().do(task, tell)
