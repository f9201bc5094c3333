"""Parts of a node, and whole ones, with peers of other programs on free ports of the loopback."""

from __future__ import annotations

import gc
import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from metricunet.files.own import write_sealed
from metricunet.files.record import sha256
from metricunet.files.reviews import review_name
from metricunet.ledger import Ledger, Queue
from metricunet.workflows.serve.arrivals import Arrivals
from metricunet.workflows.serve.config import NodeConfig
from metricunet.workflows.serve.journal import Journal
from metricunet.workflows.serve.state import State
from tests.support.dicom_series import companion, save

ROOT = Path(__file__).parents[3]
#: The command of a node and of a worker, with the network that the model of the tests names.
NODE = "import sys\nfrom tests.workflows.serve.conftest import run_node\nsys.exit(run_node(*sys.argv[1:]))"
WORKER = (
    "import sys\nfrom pathlib import Path\nfrom metricunet.workflows.serve.worker import main\n"
    "from tests.support.threshold_model import bands_known\n"
    "with bands_known():\n    main(Path(sys.argv[1]), *sys.argv[2:])"
)
PATIENCE_S = 300.0
RTSTRUCT = "1.2.840.10008.5.1.4.1.1.481.3"


def run_node(file: str, once: str = "") -> int:
    """Serve with a worker that knows the network of the tests; return the status of the command."""
    from metricunet.workflows.serve import serve

    return int(not serve(Path(file), once=bool(once), command=[sys.executable, "-c", WORKER]))


def collect_sockets() -> None:
    """Collect the sockets that pynetdicom's associations leave to be collected."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.fixture(scope="module", autouse=True)
def _set_aside() -> Iterator[None]:
    """Set aside what other files have left, so that to collect after each test takes no time."""
    collect_sockets()
    gc.freeze()
    yield
    collect_sockets()


@pytest.fixture(autouse=True)
def _collected() -> Iterator[None]:
    yield
    collect_sockets()


def debian(name: str) -> str:
    """Return the path of a program of Debian's; a package of Python may have one of its name."""
    program = shutil.which(name, path="/usr/bin:/usr/sbin")
    if program is None:
        pytest.skip(f"needs Debian's {name}")
    return program


def free_port() -> int:
    """Return a port that nobody listened at a moment ago."""
    with socket.socket() as probing:
        probing.bind(("127.0.0.1", 0))
        return int(probing.getsockname()[1])


def eventually(check: Callable[[], Any], what: str, patience_s: float = PATIENCE_S) -> Any:
    """Wait until something is so, and return it."""
    end = time.monotonic() + patience_s
    while not (found := check()):
        assert time.monotonic() < end, f"{what} did not happen in {patience_s:.0f} s"
        time.sleep(0.1)
    return found


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Doors:
    """What takes objects in, with its queue and a clock, in a folder of state."""

    config: NodeConfig
    state: State
    queue: Queue
    arrivals: Arrivals
    clock: Clock

    @property
    def log(self) -> list[dict[str, Any]]:
        """What was said."""
        lines = [line for path in sorted(self.state.log.glob("*")) for line in path.read_text().splitlines()]
        return [json.loads(line) for line in lines]

    def begun_anew(self) -> Doors:
        """The same after a kill."""
        return doors_in(self.state.folder, self.config, self.clock)

    def bring(self, path: Path, sender: str = "SCANNER", origin: str | None = None) -> None:
        """Take a copy of a file in."""
        copy = self.state.receiving / "one.dcm"
        shutil.copyfile(path, copy)
        try:
            self.arrivals.take(copy, sender, origin)
        finally:
            copy.unlink(missing_ok=True)


def doors_in(folder: Path, config: NodeConfig, clock: Clock) -> Doors:
    """Open the doors of a node that is in a folder of state."""
    state = State(folder)
    state.make()
    queue = Queue(Ledger(state.ledger))
    arrivals = Arrivals(config, state, queue, Journal(state.log, None), lambda rule: f"{rule}:1", clock)
    return Doors(config, state, queue, arrivals, clock)


@pytest.fixture
def doors(tmp_path: Path) -> Callable[..., Doors]:
    """Open the doors of a node with these settings."""

    def opened(**settings: Any) -> Doors:
        content = {"state": tmp_path / "state", "model": ["none"], "rules": [{"name": "any"}], **settings}
        content.setdefault("limits", {"free_disk_gb": 0})
        return doors_in(tmp_path / "state", NodeConfig.model_validate(content), Clock())

    return opened


def write_review(predictions: Path, case: str, decision: str, number: int = 1) -> str:
    """Write a review of the mask that is there; return the UID of its structure set, empty where it has none."""
    name, uid = review_name(case, number), ""
    files: dict[str, str] = {}
    if decision != "rejected":
        path, item = predictions / f"{name}.rtstruct.dcm", companion("RTSTRUCT", RTSTRUCT)
        save(path, item)
        files[path.name], uid = sha256([path]), str(item.SOPInstanceUID)
    content = {
        "command": "review",
        "case": case,
        "number": number,
        "decision": decision,
        "reason": "",
        "reviewer": "A. Reader",
        "decided": "2030-01-01T12:00:00+00:00",
        "seconds": 3.0,
        "based_on": 0,
        "labels": {"prostate": 1},
        "changed_voxels": {"prostate": 0},
        "prediction": {"mask_sha256": sha256([predictions / f"{case}.nii.gz"])},
        "input_sha256": "",
    }
    write_sealed(predictions / f"{name}.json", content, files)
    return uid


@dataclass
class Served:
    """A node in a process of its own."""

    process: subprocess.Popen[str]
    state: Path
    port: int
    file: Path

    @property
    def queue(self) -> Queue:
        return Queue(Ledger(self.state / "ledger.sqlite"))

    @property
    def log(self) -> list[dict[str, Any]]:
        lines = [line for path in sorted((self.state / "log").glob("*")) for line in path.read_text().splitlines()]
        return [json.loads(line) for line in lines]

    def ended(self, count: int) -> list[Any]:
        """Wait until so many jobs have come to an end, and return all."""
        ends = ("sent", "kept", "rejected", "refused", "failed", "set aside", "review")

        def done() -> list[Any]:
            jobs = self.queue.jobs()
            return jobs if sum(job.state in ends for job in jobs) >= count else []

        found: list[Any] = eventually(done, f"the end of {count} jobs")
        return found


def write_node(folder: Path, **settings: Any) -> Path:
    """Write a node's file."""
    path = folder / "node.yaml"
    path.write_text(yaml.safe_dump({"limits": {"free_disk_gb": 0}, **settings}), encoding="utf-8")
    return path


@contextmanager
def serving(folder: Path, **settings: Any) -> Iterator[Served]:
    """Run a node until the block ends."""
    port = free_port()
    file = write_node(folder, **{"state": str(folder / "state"), "port": port, **settings})
    with (folder / "node.err").open("w") as said:
        process = subprocess.Popen(
            [sys.executable, "-c", NODE, str(file)], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=said, text=True
        )
    try:
        served = Served(process, folder / "state", port, file)
        eventually(lambda: process.poll() is not None or listens(port), "the node's start")
        assert process.poll() is None, (folder / "node.err").read_text()
        yield served
    finally:
        process.terminate()
        process.wait(PATIENCE_S)


@dataclass
class Orthanc:
    """Debian's Orthanc on free ports."""

    dicom: int
    http: int

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.http}{path}", timeout=PATIENCE_S) as answer:
            content = answer.read()
            return json.loads(content) if "json" in answer.headers["content-type"] else content

    def find(self, modality: str) -> list[dict[str, Any]]:
        """Return the series of a modality."""
        return [one for name in self.get("/series") if _is(one := self.get(f"/series/{name}"), modality)]

    def file(self, instance: str) -> bytes:
        content: bytes = self.get(f"/instances/{instance}/file")
        return content


def _is(series: dict[str, Any], modality: str) -> bool:
    return bool(series["MainDicomTags"].get("Modality") == modality)


@contextmanager
def orthanc_in(
    folder: Path, dicom: int | None = None, http: int | None = None, **settings: Any
) -> Iterator[Orthanc]:
    """Run Orthanc with its storage in a folder."""
    program = debian("Orthanc")
    folder.mkdir(exist_ok=True)
    found = Orthanc(dicom or free_port(), http or free_port())
    plugin = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
    content = {
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "storage"),
        "DicomAet": "ORTHANC",
        "DicomPort": found.dicom,
        "HttpPort": found.http,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "DicomAlwaysAllowStore": True,
        "Plugins": [str(plugin)] if plugin.exists() else [],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
        "OverwriteInstances": False,
        **settings,
    }
    (folder / "orthanc.json").write_text(json.dumps(content))
    with (folder / "orthanc.log").open("w") as log:
        process = subprocess.Popen([program, str(folder / "orthanc.json")], stdout=log, stderr=log)
    try:
        eventually(lambda: process.poll() is not None or listens(found.http), "Orthanc's start")
        assert process.poll() is None, (folder / "orthanc.log").read_text()
        yield found
    finally:
        process.terminate()
        process.wait(PATIENCE_S)


def listens(port: int) -> bool:
    with socket.socket() as trying:
        trying.settimeout(1)
        return trying.connect_ex(("127.0.0.1", port)) == 0
