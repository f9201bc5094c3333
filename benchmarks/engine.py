"""What an engine gains and costs: a study and predictions, in one process and on Ray's nodes of one core each.

All nodes are on this machine, so two of them need two idle cores. One thread computes in each process, either way:
then the results are the same bytes, which is checked. Every command and every call is a process of its own, whose
start counts. What was measured is kept in a file: a part that is there is not measured again, and one that was cut
short begins anew.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import psutil

from metricunet.engine import Tell, opened
from metricunet.errors import InputError
from metricunet.inference import predict
from metricunet.inference.case_files import CaseOutcome
from metricunet.inference.inputs import ScanInput
from metricunet.inference.models import shipped_model
from metricunet.phantom import make_cohort

ROOT = Path(__file__).parents[1]
TABLES = ("cases.csv", "smoothness.csv", "features.csv", "comparisons.csv", "tables.csv", "tables.md")
STUDY_PARTS = ("serial", "nodes", "lost")
#: Of the predictions, the case that kills whoever works on it.
KILLER = "phantom_0003"
#: So many phantoms are made; further scans are further names of them.
MADE = 20
NODE: dict[str, Any] = {
    "num_cpus": 1,
    "memory": 6 << 30,
    "object_store_memory": 80 << 20,
    "include_dashboard": False,
}
MIB = 1 << 20


def measure_study(
    file: Path, output: Path, parts: Sequence[str] = STUDY_PARTS, lose_after_s: float | None = None
) -> None:
    """Carry out a study in one process and on two nodes; print the times and whether the tables are the same.

    Args:
        file: study file.
        output: new folder, or one of an earlier call.
        parts: `serial` is in one process, `nodes` on two nodes, and in `lost` one of these is killed.
        lose_after_s: when it is killed; None for the middle, by the time of `nodes`.
    """
    wrong = [part for part in parts if part not in STUDY_PARTS]
    if wrong:
        raise InputError(f"part {wrong[0]!r} is none of {', '.join(STUDY_PARTS)}")
    measured = _Measured(output)
    words = ["study", str(file), "--device", "cpu"]

    def serial() -> dict[str, float]:
        return {"seconds": _command(*words, "-o", str(output / "serial"))}

    def nodes() -> dict[str, float]:
        with two_nodes() as cluster:
            return {"seconds": _command(*words, "-o", str(output / "nodes"), "--engine", _address(cluster))}

    def lost() -> dict[str, float]:
        delay = lose_after_s or measured.of("nodes")["seconds"] / 2
        with two_nodes() as cluster:
            timer = threading.Timer(delay, _lose, [cluster])
            timer.start()
            try:
                seconds = _command(*words, "-o", str(output / "lost"), "--engine", _address(cluster))
            finally:
                timer.cancel()
            left = len(cluster.worker_nodes)
        return {"seconds": seconds, "killed_after_s": delay, "other_nodes_left": left}

    for part in parts:
        found = measured.part(part, {"serial": serial, "nodes": nodes, "lost": lost}[part], output / part)
        print(f"{part}: {json.dumps(found)}", flush=True)
    for part in STUDY_PARTS[1:]:
        if all(name in measured.content for name in ("serial", part)):
            ratio = measured.of(part)["seconds"] / measured.of("serial")["seconds"]
            same = [n for n in TABLES if (output / part / n).read_bytes() == (output / "serial" / n).read_bytes()]
            print(
                f"{part}: {ratio:.2f} of the time of one process; {len(same)} of {len(TABLES)} tables byte for "
                "byte the same",
                flush=True,
            )


def measure_predictions(
    folder: Path, counts: Sequence[int], model: Path | None = None, *, serial: bool = True
) -> None:
    """Segment phantoms in one process and on two nodes, where one of them kills its worker; print time and memory.

    Args:
        folder: new folder, or one of an earlier call.
        counts: numbers of scans. The first are also segmented in one process, and the masks compared.
        model: model file; None for the shipped one.
        serial: whether they are.
    """
    chosen = model or shipped_model()
    measured = _Measured(folder)
    scans = _scans(folder, max(counts))
    listing = folder / "scans.json"
    listing.write_text(json.dumps([str(path) for path in scans]))

    def alone() -> dict[str, float]:
        words = ["predict", *map(str, scans[: counts[0]]), "-o", str(folder / "serial"), "-m", str(chosen)]
        return {"seconds": _command(*words, "--device", "cpu"), "done": counts[0]}

    def shared(count: int, output: Path) -> dict[str, float]:
        with two_nodes() as cluster:
            began = time.perf_counter()
            words = [str(listing), str(count), str(output), str(chosen), _address(cluster)]
            code = "import sys; from benchmarks.engine import share_out; share_out(*sys.argv[1:])"
            text = _run([sys.executable, "-c", code, *words])
        found: dict[str, float] = json.loads(text.splitlines()[-1])
        return {"seconds": time.perf_counter() - began, **found}

    if serial:
        print(f"serial: {_rate(measured.part('serial', alone, folder / 'serial'))}", flush=True)
    for count in counts:
        output = folder / f"nodes-{count}"
        found = measured.part(output.name, lambda n=count, to=output: shared(n, to), output)  # type: ignore[misc]
        print(
            f"nodes, {count} scans: {_rate(found)}; {found['failed']} failed; the process that shares out takes "
            f"{found['before_mib']:.0f} MiB before, and {found['peak_mib']:.0f} MiB at most",
            flush=True,
        )
    first = f"nodes-{counts[0]}"
    if "serial" in measured.content and first in measured.content:
        masks = [path.name for path in (folder / first).glob("*.nii.gz")]
        same = [n for n in masks if (folder / first / n).read_bytes() == (folder / "serial" / n).read_bytes()]
        print(f"{len(same)} of {len(masks)} masks byte for byte those of one process", flush=True)


def share_out(listing: str, count: str, output: str, model: str, address: str) -> None:
    """Segment scans on a cluster, in a process of its own; the last line that it prints is what it took.

    Args:
        listing: JSON file with the paths of scans.
        count: of them, so many are segmented.
        output: folder for the results.
        model: model file.
        address: engine as the user names it.
    """
    scans = [Path(path) for path in json.loads(Path(listing).read_text())][: int(count)]
    with mock.patch.object(predict, "_CaseWorker", KilledByOne), opened(address) as engine:
        before = psutil.Process().memory_info().rss / MIB
        found = predict.predict(scans, [Path(model)], Path(output), device="cpu", engine=engine)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    facts = {
        "done": len(found.cases),
        "failed": len(found.refused),
        "before_mib": round(before, 1),
        "peak_mib": round(peak, 1),
    }
    print(json.dumps(facts))


class KilledByOne(predict._CaseWorker):
    """Segments scans, and is killed by one of them."""

    def do(self, entry: ScanInput, tell: Tell) -> CaseOutcome:
        """Segment a scan, or die."""
        if entry.case == KILLER:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().do(entry, tell)


@contextmanager
def two_nodes() -> Iterator[Any]:
    """Start two Ray nodes of one core each, and yield the cluster."""
    os.environ |= _environment()  # before Ray is imported; it is the nodes' and their workers', too
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args=NODE)
    try:
        cluster.add_node(**NODE)
        yield cluster
    finally:
        cluster.shutdown()  # type: ignore[no-untyped-call]


class _Measured:
    """What was measured of each part, in `measured.json` of a folder."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "measured.json"
        self.content: dict[str, dict[str, float]] = (
            json.loads(self.path.read_text()) if self.path.is_file() else {}
        )

    def of(self, part: str) -> dict[str, float]:
        """Return what was measured of a part.

        Raises:
            InputError: nothing was.
        """
        if part not in self.content:
            raise InputError(f"{self.path}: part {part} has not been measured; measure it first")
        return self.content[part]

    def part(self, name: str, measure: Callable[[], dict[str, float]], output: Path) -> dict[str, float]:
        """Measure a part, unless that was done before; its folder is new then."""
        if name not in self.content:
            shutil.rmtree(output, ignore_errors=True)
            self.content[name] = measure()
            whole = self.path.with_suffix(".new")
            whole.write_text(json.dumps(self.content, indent=1))
            whole.replace(self.path)
        return self.content[name]


def _rate(found: dict[str, float]) -> str:
    return f"{found['done']} done in {found['seconds']:.0f} s, {found['seconds'] / found['done']:.2f} s each"


def _environment() -> dict[str, str]:
    return {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "disabled",  # within this machine, and whatever lies in the user's home
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # all processes listen at 127.0.0.1 alone, and are sought there
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)]),
    }


def _command(*words: str) -> float:
    """Call the command line in a process of its own, with one thread; return the seconds."""
    began = time.perf_counter()
    _run([sys.executable, "-m", "metricunet", *words])
    return time.perf_counter() - began


def _run(words: Sequence[str]) -> str:
    """Return what a process prints; its warnings and errors are seen as they come."""
    ended = subprocess.run(
        words, check=True, env=os.environ | _environment(), stdout=subprocess.PIPE, encoding="utf-8"
    )
    return ended.stdout


def _address(cluster: Any) -> str:
    return f"ray://{cluster.address}"


def _lose(cluster: Any) -> None:
    cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)


def _scans(folder: Path, count: int) -> list[Path]:
    """Return so many files of scans, of phantoms and of further names for them."""
    made = min(count, MADE)
    make_cohort(folder / "cohort", made, difficulty="easy")
    scans = []
    (folder / "scans").mkdir(exist_ok=True)
    for number in range(count):
        path = folder / "scans" / f"phantom_{number:04d}_0000.nii.gz"
        if not path.exists():
            os.link(folder / "cohort" / "imagesTr" / f"phantom_{number % made:04d}_0000.nii.gz", path)
        scans.append(path)
    return scans
