"""What an engine gains and costs: a study and predictions, in one process and on Ray's nodes of one core each.

All nodes are on this machine, so two of them need two idle cores. One thread computes in each process, either way:
then the results are the same bytes, which is checked.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import psutil

from metricunet.engine import Tell, opened
from metricunet.inference import predict
from metricunet.inference.case_files import CaseOutcome
from metricunet.inference.inputs import ScanInput
from metricunet.inference.models import shipped_model
from metricunet.phantom import make_cohort
from metricunet.study.run import study

ROOT = Path(__file__).parents[1]
TABLES = ("cases.csv", "smoothness.csv", "features.csv", "comparisons.csv", "tables.csv", "tables.md")
#: Of the predictions, the case that kills whoever works on it.
KILLER = "phantom_0007"
NODE: dict[str, Any] = {
    "num_cpus": 1,
    "memory": 6 << 30,
    "object_store_memory": 80 << 20,
    "include_dashboard": False,
}
MIB = 1 << 20


class KilledByOne(predict._CaseWorker):
    """Segments scans, and is killed by one of them."""

    def do(self, entry: ScanInput, tell: Tell) -> CaseOutcome:
        """Segment a scan, or die."""
        if entry.case == KILLER:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().do(entry, tell)


@contextmanager
def nodes(count: int) -> Iterator[Any]:
    """Start Ray nodes of one core each, and yield the cluster."""
    os.environ |= {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "disabled",  # within this machine, and whatever lies in the user's home
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)]),
    }
    from ray._private import ray_constants
    from ray.cluster_utils import Cluster

    ray_constants.ENABLE_RAY_CLUSTER = False  # they listen at 127.0.0.1 alone
    cluster = Cluster(initialize_head=True, head_node_args=NODE)
    try:
        for _ in range(count - 1):
            cluster.add_node(**NODE)
        yield cluster
    finally:
        cluster.shutdown()  # type: ignore[no-untyped-call]


def measure_study(file: Path, output: Path, lose_after_s: float | None = None) -> None:
    """Carry out a study in one process and on two nodes, and print both times and whether the tables are the same.

    Args:
        file: study file; `studies/smoke.yaml` with more updates takes some minutes.
        output: new folder.
        lose_after_s: carry it out a third time, and kill a node after so many seconds.
    """
    seconds = _serially("study", str(file), "-o", str(output / "serial"), "--device", "cpu")
    print(f"one process: {seconds:.0f} s", flush=True)
    with nodes(2) as cluster, opened(f"ray://{cluster.address}") as engine:
        for name, delay in (("nodes", None), ("lost", lose_after_s)):
            if name == "lost" and delay is None:
                break
            began = time.perf_counter()
            timer = None if delay is None else threading.Timer(delay, _lose, [cluster])
            if timer is not None:
                timer.start()
            result = study(file, output / name, device="cpu", engine=engine, say=print)
            took = time.perf_counter() - began
            same = [n for n in TABLES if (output / name / n).read_bytes() == (output / "serial" / n).read_bytes()]
            print(
                f"{'two nodes' if delay is None else f'two nodes, one killed after {delay:g} s'}: {took:.0f} s, "
                f"{took / seconds:.2f} of it; {len(same)} of {len(TABLES)} tables byte for byte the same; "
                f"{len(result.failed)} runs failed",
                flush=True,
            )


def measure_predictions(folder: Path, counts: list[int], model: Path | None = None) -> None:
    """Segment phantoms in one process and on two nodes, where one of them kills its worker; print time and memory.

    Args:
        folder: new folder, or one of an earlier call.
        counts: numbers of scans, the largest last. The first alone is also segmented in one process.
        model: model file; None for the shipped one.
    """
    models = [model or shipped_model()]
    scans = _scans(folder, counts[-1])
    words = ["predict", *map(str, scans[: counts[0]]), "-o", str(folder / "serial"), "-m", str(models[0])]
    seconds = _serially(*words, "--device", "cpu")
    print(f"one process: {counts[0]} scans in {seconds:.0f} s, {seconds / counts[0]:.2f} s each", flush=True)
    with (
        mock.patch.object(predict, "_CaseWorker", KilledByOne),
        nodes(2) as cluster,
        opened(f"ray://{cluster.address}") as engine,
    ):
        for count in counts:
            output = folder / f"nodes-{count}"
            shutil.rmtree(output, ignore_errors=True)
            peak, began = _Peak(), time.perf_counter()
            with peak:
                found = predict.predict(scans[:count], models, output, device="cpu", engine=engine)
            took = time.perf_counter() - began
            print(
                f"two nodes: {count} scans in {took:.0f} s, {took / count:.2f} s each; {len(found.cases)} done, "
                f"{len(found.refused)} failed; the process that shares out took {peak.mib:.0f} MiB at most, "
                f"{peak.mib - peak.before_mib:.1f} MiB more than before",
                flush=True,
            )
            if count == counts[0]:
                masks = [p.name for p in output.glob("*.nii.gz")]
                same = [n for n in masks if (output / n).read_bytes() == (folder / "serial" / n).read_bytes()]
                print(f"{len(same)} of {len(masks)} masks byte for byte those of one process", flush=True)


class _Peak:
    """The most resident memory of this process while the block runs."""

    def __enter__(self) -> None:
        self.before_mib = self.mib = psutil.Process().memory_info().rss / MIB
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.2):
            self.mib = max(self.mib, psutil.Process().memory_info().rss / MIB)


def _serially(*words: str) -> float:
    """Call the command line in a process of its own, with one thread; return the seconds."""
    began = time.perf_counter()
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(
        [sys.executable, "-m", "metricunet", *words], check=True, env=environment, stdout=subprocess.DEVNULL
    )
    return time.perf_counter() - began


def _lose(cluster: Any) -> None:
    cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)


def _scans(folder: Path, count: int) -> list[Path]:
    """Return so many files of scans: twenty phantoms, and further names for them."""
    made = min(count, 20)
    make_cohort(folder / "cohort", made, difficulty="real")
    scans = []
    (folder / "scans").mkdir(exist_ok=True)
    for number in range(count):
        path = folder / "scans" / f"phantom_{number:04d}_0000.nii.gz"
        if not path.exists():
            os.link(folder / "cohort" / "imagesTr" / f"phantom_{number % made:04d}_0000.nii.gz", path)
        scans.append(path)
    return scans
