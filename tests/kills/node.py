"""Kill a node and its worker at random moments: `python tests/kills/node.py --count 50 --seed 0`.

Ten scans are sent to a node that sends to Debian's Orthanc. While it works, the server or its worker is killed
(-9) at random moments, and the server started anew; once the peer is stopped for a while. In the end every case
must have one structure set at the peer and no second one, the queue must be sound and nothing must lie about half
received. A case that was set aside since its worker was killed twice is taken up again, as a person would. The
status is 1 otherwise.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

import psutil  # noqa: E402 - the paths come first
import pydicom  # noqa: E402
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian  # noqa: E402
from pynetdicom import AE  # noqa: E402

from metricunet.ledger import Ledger, Queue  # noqa: E402
from tests.support.dicom_series import write_series  # noqa: E402
from tests.support.threshold_model import GLAND_HU, ball, bands_known, drawn_scan, write_bands_model  # noqa: E402
from tests.workflows.serve.conftest import (  # noqa: E402
    NODE,
    Orthanc,
    eventually,
    free_port,
    listens,
    orthanc_in,
    write_node,
)

CASES = 10
LONGEST_S = 8.0


class Killed:
    """A node that is killed and started anew."""

    def __init__(self, home: Path, peer: Orthanc, model: Path) -> None:
        self.home, self.port = home, free_port()
        destination = {"name": "pacs", "ae_title": "ORTHANC", "host": "127.0.0.1", "port": peer.dicom}
        self.file = write_node(
            home,
            state=str(home / "state"),
            port=self.port,
            model=str(model),
            quiet="2 seconds",
            rules=[{"name": "any"}],
            destinations=[destination],
        )
        self.process = self.started()

    def started(self) -> subprocess.Popen[bytes]:
        with (self.home / "node.err").open("a") as said:
            process = subprocess.Popen(
                [sys.executable, "-c", NODE, str(self.file)], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=said
            )
        eventually(lambda: process.poll() is not None or listens(self.port), "the node's start")
        if process.poll() is not None:
            sys.exit(f"the node does not start: {(self.home / 'node.err').read_text()[-2000:]}")
        return process

    def kill_server(self) -> None:
        self.process.kill()
        self.process.wait()
        self.process = self.started()

    def kill_worker(self) -> None:
        for child in psutil.Process(self.process.pid).children():
            os.kill(child.pid, signal.SIGKILL)

    @property
    def queue(self) -> Queue:
        return Queue(Ledger(self.home / "state" / "ledger.sqlite"))


def send(folder: Path, port: int, patience: int = 200) -> None:
    """Send a series as a scanner does: what was not taken is sent once more."""
    left = sorted(folder.glob("*.dcm"))
    for _ in range(patience):
        entity = AE("CT")
        entity.add_requested_context(CTImageStorage, ExplicitVRLittleEndian)
        association = entity.associate("127.0.0.1", port, ae_title="METRICUNET")
        while left and association.is_established:
            try:
                status = association.send_c_store(left[0]).get("Status")
            except RuntimeError:
                break
            if status != 0:
                break
            left.pop(0)
        if association.is_established:
            association.release()
        if not left:
            return
        time.sleep(0.5)
    sys.exit(f"{len(left)} slices of {folder} were not taken")


def main() -> None:
    """Run the kills."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        with bands_known():
            model = write_bands_model(home / "model.safetensors", crop_voxels=(40, 40, 40))
        scans = []
        for k in range(CASES):
            volume = drawn_scan(
                (ball((k - 5.0, 0, 0), (16, 12, 14)), GLAND_HU), shape=(30, 60, 66), spacing_mm=(3.0, 2.0, 2.0)
            )
            origin = (float(volume.geometry.origin_mm[0]), *map(float, volume.geometry.origin_mm[1:]))
            write_series(home / f"ct{k}", volume.array, spacing_mm=volume.spacing_mm, origin_mm=origin)
            scans.append(home / f"ct{k}")
        ports = free_port(), free_port()
        problems = _run(home, scans, model, ports, options.count, rng)
    for line in problems:
        print(line)
    print(f"{options.count} kills, {CASES} cases, {len(problems)} problems")
    sys.exit(1 if problems else 0)


def _run(
    home: Path, scans: list[Path], model: Path, ports: tuple[int, int], count: int, rng: random.Random
) -> list[str]:
    with orthanc_in(home / "orthanc", *ports) as peer:
        node = Killed(home, peer, model)
        kills = 0
        for k, scan in enumerate(scans):
            send(scan, node.port)
            for _ in range(count * (k + 1) // len(scans) - kills):
                time.sleep(rng.uniform(0, LONGEST_S))
                (node.kill_server if rng.random() < 0.5 else node.kill_worker)()
                kills += 1
    # The peer is away; the node goes on, and delivers when it is back.
    time.sleep(5)
    with orthanc_in(home / "orthanc", *ports) as peer:
        problems = _ended(node)
        sets = [pydicom.dcmread(path) for path in _downloaded(peer, home / "sets")]
        studies = [one.StudyInstanceUID for one in sets]
        for scan in scans:
            study = pydicom.dcmread(next(scan.glob("*.dcm")), stop_before_pixels=True).StudyInstanceUID
            if studies.count(study) != 1:
                problems.append(f"{scan.name} has {studies.count(study)} structure sets at the peer")
        with node.queue.ledger.reading() as db:
            if db.execute("PRAGMA integrity_check").fetchone()[0] != "ok":
                problems.append("the queue is not sound")
        for part in ("receiving", "arriving"):
            left = list((home / "state" / part).iterdir())
            if left:
                problems.append(f"{len(left)} things lie in {part}")
        node.process.terminate()
        node.process.wait()
    return problems


def _ended(node: Killed, patience_s: float = 1200.0) -> list[str]:
    end = time.monotonic() + patience_s
    while time.monotonic() < end:
        jobs = node.queue.jobs()
        for job in jobs:
            if job.state == "set aside":
                node.queue.again(job.id, "the kills' script")
        if len(jobs) >= CASES and all(job.state in ("sent", "refused") for job in jobs):
            return []
        time.sleep(1)
    return [f"job {job.id} is {job.state}: {job.why}" for job in node.queue.jobs() if job.state != "sent"]


def _downloaded(peer: Orthanc, folder: Path) -> list[Path]:
    folder.mkdir()
    paths = []
    for series in peer.find("RTSTRUCT"):
        for instance in series["Instances"]:
            paths.append(folder / f"{instance}.dcm")
            paths[-1].write_bytes(peer.file(instance))
    return paths


if __name__ == "__main__":
    main()
