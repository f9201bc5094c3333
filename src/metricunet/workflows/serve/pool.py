"""The workers of a node: one process for each device, started again when it dies, ended when it takes too much."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from metricunet.errors import told
from metricunet.ledger import Job, Queue
from metricunet.workflows.serve.config import GB, NodeConfig
from metricunet.workflows.serve.journal import Journal
from metricunet.workflows.serve.patience import insist

#: The command of a worker, to which the node's file, the device and `begun_with` are added.
COMMAND = (sys.executable, "-m", "metricunet.workflows.serve.worker")
LOOK_S = 0.2
#: A worker that dies before it has done anything is started again after so long, longer each time.
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0


class Worker(threading.Thread):
    """Keeps one worker going.

    Args:
        node: the node's file.
        device: of the worker.
        config: of the node.
        queue: of the node.
        journal: is told.
        ended: is told of jobs that a worker died of, and of the end of each job (None).
        command: of the process.
        begun: what the node has begun with, see `begun_with`, which the process compares with what it finds.
    """

    def __init__(
        self,
        node: Path,
        device: str,
        config: NodeConfig,
        queue: Queue,
        journal: Journal,
        ended: Callable[[Job | None], None],
        command: Sequence[str] = COMMAND,
        begun: str = "",
    ) -> None:
        super().__init__(name=f"worker {device}", daemon=True)
        self.node, self.device, self.config, self.queue, self.journal = node, device, config, queue, journal
        self.ended, self.command, self.begun = ended, command, begun
        self.restarts = 0
        self.ready = False
        self._began: float | None = None
        self._process: subprocess.Popen[str] | None = None
        self._stopping = threading.Event()

    @property
    def pid(self) -> int | None:
        """Number of the process; None while there is none."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    @property
    def is_up(self) -> bool:
        """Whether there is a process, and one that followed another has got as far as to take cases."""
        return self.pid is not None and (self.ready or not self.restarts)

    def wake(self) -> None:
        """Tell the worker that there is work."""
        process = self._process
        if process is not None and process.stdin is not None:
            with suppress(OSError, ValueError):
                process.stdin.write("\n")
                process.stdin.flush()

    def stop(self) -> None:
        """End the worker; a case that it works on is taken up at the next start."""
        self._stopping.set()
        process = self._process
        if process is not None:
            with suppress(OSError):
                process.kill()
        if self.is_alive():
            self.join(10)

    def run(self) -> None:
        """Start the process, watch it, and start it again, until `stop`."""
        pause = FIRST_PAUSE_S
        while not self._stopping.is_set():
            began = time.monotonic()
            try:
                self._once()
                if self._stopping.is_set():
                    return
                self.restarts += 1
                self._give_back()
            except OSError as error:  # no memory for a process: it is tried again
                self.journal.say("worker not started", "error", worker=self.device, why=told(error))
            lasted = time.monotonic() - began
            pause = FIRST_PAUSE_S if self.ready or lasted > LONGEST_PAUSE_S else min(2 * pause, LONGEST_PAUSE_S)
            self.journal.say("worker died", "warning", worker=self.device, restarts=self.restarts)
            self.ready = False
            self._stopping.wait(0 if pause == FIRST_PAUSE_S else pause)

    def _give_back(self) -> None:
        """Let the case wait again that the worker died of; tried until the ledger can be written."""

        def say(why: str) -> None:
            self.journal.say("ledger not written", "error", worker=self.device, why=why)

        given = insist(lambda: self.queue.give_back(self.device, died=True), say, self._stopping)
        for job in given or ():
            case = Path(job.folder).name
            self.journal.say("worker died of a case", "warning", case=case, job=job.id, state=job.state)
            self.ended(job)

    def _once(self) -> None:
        with subprocess.Popen(
            [*self.command, str(self.node), self.device, self.begun],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            self._process = process
            if self._stopping.is_set():
                process.kill()
            threading.Thread(target=self._hear, args=(process,), daemon=True).start()
            while process.poll() is None and not self._stopping.wait(LOOK_S):
                reason = self._excess(process.pid)
                if reason:
                    self.journal.say("worker ended", "warning", worker=self.device, why=reason)
                    process.kill()
            process.kill()
        self._process, self._began = None, None

    def _hear(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        with suppress(ValueError):  # it is closed
            for line in process.stdout:
                word = line.split(" ")[0].strip()
                if word == "ready":
                    self.ready = True
                self._began = time.monotonic() if word == "begin" else None
                if word == "end":
                    self.ended(None)

    def _excess(self, pid: int) -> str:
        began = self._began
        longest = self.config.limits.case_time.total_seconds()
        if began is not None and time.monotonic() - began > longest:
            return f"a case took more than {longest:.0f} s"
        try:
            used = psutil.Process(pid).memory_info().rss
        except psutil.Error:
            return ""
        most = self.config.limits.memory_gb * GB
        return (
            f"it took {used / GB:.1f} GB, at most {self.config.limits.memory_gb:g} are allowed"
            if used > most
            else ""
        )
