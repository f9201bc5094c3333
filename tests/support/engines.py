"""Workers of commands that die of a case or take no time, and a cluster of two machines in this one."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
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
def short_folder() -> Iterator[str]:
    """Make a folder for what Ray leaves behind; the paths of sockets, which it holds too, must be short."""
    folder = tempfile.mkdtemp(prefix="ray-")
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # a process of Ray may be about to end


@contextmanager
def two_machines() -> Iterator[Any]:
    """Start a Ray cluster of two nodes of one core; its workers can import the tests."""
    cluster_utils = pytest.importorskip("ray.cluster_utils", exc_type=ModuleNotFoundError)
    services = pytest.importorskip("ray._private.services")
    with short_folder() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TMPDIR", folder)
        root = str(Path(__file__).parents[2])
        patch.setenv("PYTHONPATH", os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])]))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_AUTH_MODE", "disabled")  # else it depends on a file in the user's home
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setattr("ray._private.ray_constants.ENABLE_RAY_CLUSTER", False)
        # Ray lets go of some of its processes while they run, and Python warns of each when it notices.
        started: list[Any] = []
        start = services.start_ray_process

        def keep(*words: Any, **more: Any) -> Any:
            started.append(start(*words, **more))
            return started[-1]

        patch.setattr(services, "start_ray_process", keep)
        cluster = cluster_utils.Cluster(initialize_head=True, head_node_args=MACHINE)
        try:
            cluster.add_node(**MACHINE)
            yield cluster
        finally:
            cluster.shutdown()
            for one in started:
                one.process.kill()
                one.process.wait()


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
