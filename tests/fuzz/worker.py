"""A process that opens doors on fuzzed files, one input at a time, and tells its parent how each one ended.

It is a process of its own so that a crash is a finding and not the end of the run, and so that limits hold for it
alone. It watches what no exception tells: memory, time, what is printed, and every file that is touched.

    python -m tests.fuzz.worker CORPUS SCRATCH SEED SECONDS < requests > answers
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import re
import resource
import shutil
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

#: An input may take this much memory, measured; the process is stopped from taking much more.
MEMORY_LIMIT = 2 << 30
HARD_LIMIT = 4 << 30
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGES = frozenset(
    {
        *("os.mkdir", "os.rmdir", "os.remove", "os.rename", "os.link", "os.symlink", "os.truncate", "os.chmod"),
        *("os.chown", "os.utime", "shutil.move", "shutil.rmtree", "shutil.copyfile", "tempfile.mkstemp"),
    }
)
FORBIDDEN = frozenset({"os.system", "os.exec", "os.posix_spawn", "socket.connect", "socket.bind", "ctypes.dlopen"})

DECODERS_SAY = re.compile(
    r"Expected a SOC marker|Not a JPEG file|Unsupported |Corrupt JPEG|Premature end of|Bogus |Invalid |Unexpected |"
    r"Empty |Sorry|Application transferred|Inconsistent|Warning: In .*gdcm|Error: In .*gdcm|Stream too short|"
    r"Insufficient|Missing|Huffman|Quantization|Didn't expect|Marker |Failed to|Tile |Cannot |tgetS|tcd"
)


class Hang(BaseException):
    """The time of one input is over."""


class Watch:
    """Records, while it is on, what this process does to files outside the output folder."""

    def __init__(self) -> None:
        self.allowed: str | None = None
        self.seen: list[str] = []
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.allowed is None:
            return
        if event == "open":
            path, mode, flags = arguments
            writes = bool(flags & WRITING) if isinstance(flags, int) else any(c in str(mode) for c in "wax+")
            if writes and isinstance(path, str | bytes | os.PathLike):
                self._note(event, path)
            elif isinstance(path, str) and path.endswith("secret.raw"):
                self.seen.append(f"reads {path}")
        elif event in CHANGES:
            for path in arguments[: 2 if event in ("os.rename", "os.link", "os.symlink", "shutil.move") else 1]:
                if isinstance(path, str | bytes | os.PathLike):
                    self._note(event, path)
        elif event == "subprocess.Popen" and str(arguments[0]) != sys.executable:
            self.seen.append(f"starts {arguments[0]}")
        elif event in FORBIDDEN:
            self.seen.append(f"{event} {arguments!r}")

    def _note(self, event: str, path: Any) -> None:
        place = os.path.abspath(os.fsdecode(path))
        # matplotlib and torch look for their own folders; nothing there depends on an input.
        if self.allowed and not (place + "/").startswith(self.allowed + "/") and place != os.devnull:
            self.seen.append(f"{event} {place}")


def serve(corpus_folder: Path, scratch: Path, seed: int, seconds: float) -> None:
    """Answer requests of the form {"target": name, "index": k} until standard input ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    faulthandler.enable(os.fdopen(os.dup(2), "w"))
    with (scratch / "printed").open("w+b") as out, (scratch / "printed.err").open("w+b") as err:
        os.dup2(out.fileno(), 1)
        os.dup2(err.fileno(), 2)
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
        trials = _Trials(corpus_folder, scratch, seed, seconds)
        for line in sys.stdin:
            request = json.loads(line)
            answers.write(json.dumps(trials.run(request["target"], request["index"], request["keep"])) + "\n")
            answers.flush()


class _Trials:
    def __init__(self, corpus_folder: Path, scratch: Path, seed: int, seconds: float) -> None:
        os.environ["MPLCONFIGDIR"] = str(scratch / "matplotlib")
        import tests.fuzz.targets as targets
        from tests.fuzz.corpus import make_corpus, real_seeds

        self.targets, self.scratch, self.seed, self.seconds = targets, scratch, seed, seconds
        self.corpus = make_corpus(corpus_folder)
        for name, more in real_seeds().items():
            self.corpus.seeds[name] += more
        self.watch = Watch()
        self._warm_up()
        resource.setrlimit(resource.RLIMIT_DATA, (HARD_LIMIT, HARD_LIMIT))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.signal(signal.SIGPROF, _hang)

    def _warm_up(self) -> None:
        """Go through every door once with sound files, so that imports cost no input its time or memory."""
        import torch

        torch.set_num_threads(1)
        for name, target in self.targets.TARGETS.items():
            seed = self.corpus.seeds[name][-1]
            trial = self._placed({**seed.files}, seed.victims[0])
            for door in (*target.doors, *(door for _, door in target.slow)):
                with warnings.catch_warnings(), contextlib.suppress(Exception):
                    warnings.simplefilter("ignore")
                    door(trial)
        self._printed()

    def _placed(self, files: dict[str, bytes], victim: str) -> Any:
        case = self.scratch / "case"
        shutil.rmtree(case, ignore_errors=True)
        (case / "in").mkdir(parents=True)
        # What a header must not lead its reader to.
        (case / "secret.raw").write_bytes(bytes(4096))
        for name, content in files.items():
            path = case / "in" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return self.targets.Trial(self.corpus, case / "in", case / "in" / victim, case / "out", self._printed)

    def run(self, name: str, index: int, keep: str | None) -> dict[str, Any]:
        entry = self.targets.make_input(self.corpus, name, self.seed, index)
        trial = self._placed(entry.files, entry.victim)
        if keep is not None:
            shutil.copytree(trial.folder, keep, dirs_exist_ok=True)
        before = self._snapshot(self.scratch)
        findings: list[dict[str, str]] = []
        verdicts: dict[str, str] = {}
        reset_peak()
        began = time.process_time()
        for door in entry.doors:
            shutil.rmtree(trial.out, ignore_errors=True)
            verdict, found = self._open(door, trial)
            verdicts[door.__name__] = verdict
            findings += [{"door": door.__name__, **f} for f in found]
        elapsed = time.process_time() - began
        peak = peak_bytes()
        if peak > MEMORY_LIMIT:
            findings.append({"door": "", "kind": "memory", "what": f"{peak / 2**30:.2f} GiB resident"})
        if (after := self._snapshot(self.scratch)) != before:
            changed = sorted(k for k in before | after if before.get(k) != after.get(k))
            findings.append({"door": "", "kind": "files", "what": f"changed {changed[:5]}"})
        return {
            "target": name, "index": index, "seed": entry.seed_name, "verdicts": verdicts, "findings": findings,
            "seconds": round(elapsed, 3), "peak": peak,
        }  # fmt: skip

    def _open(self, door: Any, trial: Any) -> tuple[str, list[dict[str, str]]]:
        from metricunet.errors import InputError

        found: list[dict[str, str]] = []
        verdict = "accepted"
        self._printed()
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            self.watch.allowed, self.watch.seen = str(trial.out), []
            # The time of the processor, so that a busy machine makes no hang.
            signal.setitimer(signal.ITIMER_PROF, self.seconds)
            try:
                door(trial)
            except InputError as error:
                verdict = "refused"
                if cause := _memory_error(error):
                    found.append({"kind": "memory", "what": f"refused for want of memory alone: {cause}"})
                if len(str(error)) > 3000 or "\n" in str(error):
                    found.append(
                        {"kind": "message", "what": f"{len(str(error))} characters: {str(error)[:200]!r}"}
                    )
            except Hang:
                verdict = "failed"
                found.append({"kind": "hang", "what": _last_frames(traceback.format_exc())})
            except BaseException as error:
                verdict = "failed"
                found.append({"kind": type(error).__name__, "what": _last_frames(traceback.format_exc())})
            finally:
                signal.setitimer(signal.ITIMER_PROF, 0)
                self.watch.allowed = None
        for warning in warned:
            place = f"{warning.filename}:{warning.lineno}"
            found.append({"kind": "warning", "what": f"{place}: {warning.category.__name__}: {warning.message}"})
        found += [{"kind": "files", "what": what} for what in self.watch.seen]
        _, err = self._printed()
        if err.strip():
            found.append({"kind": "printed", "what": err.strip()[:500]})
        return verdict, found

    def _printed(self) -> tuple[str, str]:
        """Return what was printed since the last call, by Python or by a library below it, and forget it."""
        sys.stdout.flush()
        sys.stderr.flush()
        texts = []
        for number in (1, 2):
            size = os.lseek(number, 0, os.SEEK_END)
            os.lseek(number, 0, os.SEEK_SET)
            texts.append(os.read(number, min(size, 1 << 22)).decode("utf-8", "replace"))
            os.ftruncate(number, 0)
            os.lseek(number, 0, os.SEEK_SET)
        # Decoders of JPEG print in C what they then report as an error too; no Python can keep them from it.
        kept = [line for line in texts[1].splitlines() if not DECODERS_SAY.match(line)]
        return texts[0], "\n".join(kept)

    def _snapshot(self, folder: Path) -> dict[str, tuple[int, int]]:
        return dict(_entries(folder, {str(self.scratch / "case" / "out"), str(self.scratch / "matplotlib")}))


def _entries(folder: Path, but: set[str]) -> Iterator[tuple[str, tuple[int, int]]]:
    for entry in os.scandir(folder):
        if entry.path in but or entry.name.startswith("printed"):
            continue
        state = entry.stat(follow_symlinks=False)
        yield entry.path, (state.st_size if entry.is_file() else 0, state.st_mtime_ns if entry.is_file() else 0)
        if entry.is_dir(follow_symlinks=False):
            yield from _entries(Path(entry.path), but)


def _hang(number: int, frame: FrameType | None) -> None:
    raise Hang


def _memory_error(error: BaseException | None) -> str:
    seen = 0
    while error is not None and seen < 20:
        if isinstance(error, MemoryError) or "allocate memory" in str(error):
            return f"{type(error).__name__}: {error}"
        error, seen = error.__cause__ or error.__context__, seen + 1
    return ""


def _last_frames(text: str) -> str:
    lines = text.strip().splitlines()
    return "\n".join(lines if len(lines) < 30 else [*lines[:6], "...", *lines[-22:]])[:4000]


def reset_peak() -> None:
    """Let the kernel forget the highest memory of this process so far."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes() -> int:
    """The highest resident memory since the last reset."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    serve(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))
