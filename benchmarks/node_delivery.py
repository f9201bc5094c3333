"""How long a node takes from the end of the quiet time to the structure set at its peer, and whether it grows.

The node is `metricunet serve` in a process of its own, with the shipped model and the target alone. This process
is both scanner and peer: it sends the series by C-STORE, each time as a new patient's, and waits for what comes
back.
"""

from __future__ import annotations

import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
import pydicom
import yaml
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, RTStructureSetStorage, generate_uid
from pynetdicom import AE, evt

from benchmarks.report import value_target
from metricunet.errors import InputError
from metricunet.files.dicom.series import search_series
from metricunet.inference.models import shipped_model
from metricunet.workflows.bench.result import value_line

QUIET_S = 2.0
TARGET_S, PLAIN_TARGET_S = 10.0, 5.0
#: What the tree may have more of after the last case than after the first of its kind.
GROWTH_MIB = 100.0
PATIENCE_S = 600.0
#: What the node's log calls the steps of a case.
STEPS = {"series is whole": "queued", "case done": "segmented", "delivered": "delivered"}
Say = Callable[[str], object]


@dataclass(frozen=True)
class Case:
    """What one case took.

    Attributes:
        seconds: from the end of the quiet time to the arrival of the structure set at the peer.
        computed_s: of processor time that the node and all processes below it took since the last slice came: what
            one core alone would take, whatever else the machine does.
        steps: seconds after the end of the quiet time at which the node was through with each step.
        pss_mib: proportional share of memory of the node and all processes below it, after the case.
        rss_mib: resident memory of the same, pages that they share counted in each.
    """

    seconds: float
    computed_s: float
    steps: dict[str, float]
    pss_mib: float
    rss_mib: float


@dataclass(frozen=True)
class NodeDelivery:
    """Cases by the kind of their files, in the order in which they came.

    Attributes:
        cores: that the processes may use.
        slices: of the series.
        kinds: `as it is` and, where those are compressed, `uncompressed`.
    """

    cores: int
    slices: int
    kinds: dict[str, list[Case]]

    def to_json(self) -> dict[str, Any]:
        """Return plain dictionaries and lists."""
        return asdict(self)

    def text(self) -> str:
        """Return the lines to print."""
        lines = [f"node-delivery: {self.slices} slices, {self.cores} cores, quiet time {QUIET_S:g} s"]
        for kind, cases in self.kinds.items():
            seconds = [one.seconds for one in cases]
            target = PLAIN_TARGET_S if kind == "uncompressed" else TARGET_S
            middle = statistics.median(seconds)
            lines.append(
                value_target(f"{kind}: quiet to arrival", f"{middle:.2f} s", f"{target:g} s", middle <= target)
            )
            for step in cases[0].steps:
                found = statistics.median(one.steps.get(step, 0.0) for one in cases)
                lines.append(value_line(f"  of which until {step}", f"{found:.2f} s"))
            computed = statistics.median(one.computed_s for one in cases)
            lines.append(value_line("  computed, all processes together", f"{computed:.2f} s"))
            grown = cases[-1].pss_mib - cases[0].pss_mib
            name, met = f"  growth over {len(cases)} cases", grown <= GROWTH_MIB
            lines.append(value_target(name, f"{grown:+.0f} MiB", f"{GROWTH_MIB:g} MiB", met))
            for name, values in (
                ("seconds of each", [f"{one.seconds:.2f}" for one in cases]),
                ("PSS in MiB after each", [f"{one.pss_mib:.0f}" for one in cases]),
                ("RSS in MiB after each", [f"{one.rss_mib:.0f}" for one in cases]),
            ):
                lines.append(f"    {name}: {' '.join(values)}")
        return "\n".join(lines)


def bench_node_delivery(folder: Path, cases: int = 20, say: Say = lambda line: None) -> NodeDelivery:
    """Send a series to a node again and again, and wait for each structure set.

    Args:
        folder: with one CT series.
        cases: of each kind, after one that is not counted.
        say: is told of each case.

    Raises:
        InputError: no single CT series in the folder, a node that does not start, or a case that sends nothing.
    """
    found = search_series(folder)
    if len(found.series) != 1:
        raise InputError(f"{folder}: holds {len(found.series)} CT series, expected one")
    files: list[pydicom.Dataset] = [pydicom.dcmread(path) for path in found.series[0].files]
    kinds = {"as it is": files}
    if any(one.file_meta.TransferSyntaxUID.is_compressed for one in files):
        kinds["uncompressed"] = [_decompressed(path) for path in found.series[0].files]
    with tempfile.TemporaryDirectory() as name, _Peer() as peer, _node(Path(name), peer.port) as node:
        result: dict[str, list[Case]] = {}
        for kind, slices in kinds.items():
            node.case(peer, slices)
            result[kind] = []
            for number in range(cases):
                result[kind].append(one := node.case(peer, slices))
                say(f"{kind}, case {number + 1} of {cases}: {one.seconds:.2f} s, {one.pss_mib:.0f} MiB")
    return NodeDelivery(len(os.sched_getaffinity(0)), len(files), result)


class _Peer:
    """Takes structure sets, and notes when that of each study came."""

    def __init__(self) -> None:
        self.port = _free_port()
        self._came: dict[str, float] = {}
        self._change = threading.Condition()

    def __enter__(self) -> _Peer:
        entity = AE("PEER")
        entity.add_supported_context(RTStructureSetStorage)
        self._server: Any = entity.start_server(
            ("127.0.0.1", self.port), block=False, evt_handlers=[(evt.EVT_C_STORE, self._store)]
        )
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()

    def came(self, study: str, patience_s: float) -> float | None:
        """Return when the set of a study came, by the wall clock; None if it has not after so long."""
        with self._change:
            self._change.wait_for(lambda: study in self._came, patience_s)
            return self._came.get(study)

    def _store(self, event: Any) -> int:
        moment = time.time()
        with self._change:
            self._came[str(event.dataset.StudyInstanceUID)] = moment
            self._change.notify_all()
        return 0


class _Node:
    def __init__(self, process: subprocess.Popen[bytes], port: int, log: Path) -> None:
        self.process, self.port, self.log = process, port, log

    def lines(self) -> list[dict[str, Any]]:
        """What it has said so far, without what it is just saying."""
        if not self.log.exists():
            return []
        found = self.log.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]
        return [json.loads(line) for line in found if line.startswith("{")]

    def case(self, peer: _Peer, slices: Sequence[Dataset]) -> Case:
        """Send a series as a new patient's, and wait for its structure set."""
        said = len(self.lines())
        study, series, frame = generate_uid(), generate_uid(), generate_uid()
        entity = AE("SCANNER")
        syntax = slices[0].file_meta.TransferSyntaxUID
        entity.add_requested_context(slices[0].SOPClassUID, syntax)
        association = entity.associate("127.0.0.1", self.port, ae_title="METRICUNET")
        if not association.is_established:
            raise InputError("the node takes no association")
        for one in slices:
            one.StudyInstanceUID, one.SeriesInstanceUID, one.FrameOfReferenceUID = study, series, frame
            one.PatientID = one.PatientName = study[-16:]
            one.SOPInstanceUID = one.file_meta.MediaStorageSOPInstanceUID = generate_uid()
            if association.send_c_store(one).get("Status") != 0:
                raise InputError("the node has not taken an object")
        association.release()
        quiet, computed = time.time() + QUIET_S, self._computed_s()
        end = time.monotonic() + PATIENCE_S
        while (came := peer.came(study, 1.0)) is None:
            bad = [one for one in self.lines()[said:] if one["event"] == "case done" and one["state"] != "sending"]
            if bad:
                raise InputError(f"the node does not send the case: it is {bad[0]['state']} ({bad[0]['why']})")
            if self.process.poll() is not None or time.monotonic() > end:
                raise InputError(f"the node has sent nothing in {PATIENCE_S:g} s, or has died")
        while not any(one["event"] == "delivered" for one in self.lines()[said:]):
            time.sleep(0.05)  # it writes that down after the peer has its set
        steps = {
            STEPS[one["event"]]: datetime.fromisoformat(one["time"]).timestamp() - quiet
            for one in self.lines()[said:]
            if one["event"] in STEPS
        }
        return Case(came - quiet, self._computed_s() - computed, steps, *self._memory())

    def _tree(self) -> list[psutil.Process]:
        root = psutil.Process(self.process.pid)
        return [root, *root.children(recursive=True)]

    def _computed_s(self) -> float:
        # Of the processes that decode slices and end with them, their parent knows what they took.
        return float(sum(sum(one.cpu_times()[:4]) for one in self._tree()))

    def _memory(self) -> tuple[float, float]:
        found = [one.memory_full_info() for one in self._tree()]
        return sum(one.pss for one in found) / (1 << 20), sum(one.rss for one in found) / (1 << 20)


@contextmanager
def _node(home: Path, peer: int) -> Iterator[_Node]:
    port, log = _free_port(), home / "log"
    settings = {
        "state": str(home / "state"),
        "port": port,
        "quiet": f"{QUIET_S:g} seconds",
        "rules": [{"name": "any"}],
        "model": str(shipped_model()),
        "allow_synthetic": True,
        "structures": ["prostate"],
        "destinations": [{"name": "peer", "ae_title": "PEER", "host": "127.0.0.1", "port": peer}],
        "limits": {"free_disk_gb": 0},
    }
    file = home / "node.yaml"
    file.write_text(yaml.safe_dump(settings), encoding="utf-8")
    with (
        log.open("wb") as said,
        subprocess.Popen(
            [sys.executable, "-m", "metricunet", "serve", str(file)], stdout=subprocess.DEVNULL, stderr=said
        ) as process,
    ):
        try:
            node = _Node(process, port, log)
            end = time.monotonic() + PATIENCE_S
            while not any(one["event"] == "worker ready" for one in node.lines()):
                if process.poll() is not None or time.monotonic() > end:
                    raise InputError(f"the node does not start: {log.read_text()[-500:]}")
                time.sleep(0.2)
            yield node
        finally:
            process.terminate()


def _decompressed(path: Path) -> Dataset:
    dataset = pydicom.dcmread(path)
    dataset.decompress(generate_instance_uid=False)
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return dataset


def _free_port() -> int:
    with socket.socket() as probing:
        probing.bind(("127.0.0.1", 0))
        return int(probing.getsockname()[1])
