"""Fuzz the doors: `python tests/fuzz/run.py --count 5000 --seed 0 [--target dicom]...`

Every input is damaged from a sound file and goes through the doors that a user would open it with. It must be
accepted, or refused with one line. No other exception, no crash, no hang, no more than 2 GiB of memory, nothing
written or changed outside the output folder, no output half written, nothing but that line on the terminal.

The same seed gives the same inputs. A run of many inputs can be made in parts: `--first 1000 --count 500` makes
inputs 1000 to 1499, and parts that name one `--record` add up in the table that ends each of them. Inputs that
were not borne are kept below the work folder. The status is 1 where there were any.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import select
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

#: A worker is replaced after this many inputs, so that what one input leaves in memory does not add up.
INPUTS_PER_WORKER = 1000
#: Seconds of the processor for one door of one input.
SECONDS = 20.0
#: Seconds of the clock after which a worker that says nothing is killed: others use the machine too.
PATIENCE_SECONDS = 600.0


@dataclass
class Worker:
    """A process that opens doors, and what is needed to replace it."""

    corpus: Path
    scratch: Path
    seed: int
    seconds: float = SECONDS
    process: subprocess.Popen[bytes] | None = None
    served: int = 0
    errors: IO[bytes] | None = field(default=None, repr=False)

    def run(self, target: str, index: int, keep: Path | None = None) -> dict[str, Any]:
        """Run one input; a crash or a hang of the whole process is an answer too."""
        if self.process is None or self.served >= INPUTS_PER_WORKER:
            self.close()
            self._start()
        assert self.process is not None
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        request = {"target": target, "index": index, "keep": None if keep is None else str(keep)}
        self.process.stdin.write(json.dumps(request).encode() + b"\n")
        self.process.stdin.flush()
        self.served += 1
        ready, _, _ = select.select([self.process.stdout], [], [], PATIENCE_SECONDS)
        line = self.process.stdout.readline() if ready else b""
        if line:
            answer: dict[str, Any] = json.loads(line)
            return answer
        kind = "crash" if ready else "hang"
        if kind == "hang":
            self.process.kill()
        status = self.process.wait()
        assert self.errors is not None
        self.errors.seek(0)
        printed = self.errors.read() + (self.scratch / "printed.err").read_bytes()
        what = f"{kind}, status {status}\n{printed.decode('utf-8', 'replace')[-3000:]}"
        self.close()
        finding = {"door": "", "kind": kind, "what": what}
        return {"target": target, "index": index, "seed": "", "verdicts": {}, "findings": [finding],
                "seconds": 0.0, "peak": 0}  # fmt: skip

    def _start(self) -> None:
        shutil.rmtree(self.scratch, ignore_errors=True)
        (self.scratch / "tmp").mkdir(parents=True)
        (self.scratch / "matplotlib").mkdir()
        self.errors = tempfile.TemporaryFile()
        path = os.pathsep.join([str(ROOT), str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
        own = {
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": path,
            "TMPDIR": str(self.scratch / "tmp"),
            "PYTHONHASHSEED": "0",
        }
        command = [sys.executable, "-m", "tests.fuzz.worker", self.corpus, self.scratch, self.seed, self.seconds]
        self.process = subprocess.Popen(
            [str(word) for word in command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            cwd=self.scratch,
            env={**os.environ, **own},
        )
        self.served = 0

    def close(self) -> None:
        """End the process."""
        if self.process is not None:
            assert self.process.stdin is not None
            assert self.process.stdout is not None
            self.process.kill()
            self.process.wait()
            self.process.stdin.close()
            self.process.stdout.close()
        if self.errors is not None:
            self.errors.close()
        self.process = self.errors = None


def chosen_targets(count: int, seed: int, first: int = 0, only: Sequence[str] = ()) -> Iterator[tuple[str, int]]:
    """Yield the target of each input of a run, by the targets' weights, and the input's index."""
    from tests.fuzz.targets import TARGETS

    names = list(only or TARGETS)
    weights = [TARGETS[name].weight for name in names]
    for index in range(first, first + count):
        yield random.Random(f"{seed}:{index}").choices(names, weights)[0], index


def fuzz(
    work: Path,
    count: int,
    seed: int = 0,
    first: int = 0,
    only: Sequence[str] = (),
    seconds: float = SECONDS,
    say: Any = None,
) -> list[dict[str, Any]]:
    """Run inputs and return their answers; those with findings are kept below `work`."""
    from tests.fuzz.corpus import make_corpus

    make_corpus(work / "corpus")
    sound = _contents(work / "corpus")
    worker = Worker(work / "corpus", work / "scratch", seed, seconds)
    answers = []
    try:
        for target, index in chosen_targets(count, seed, first, only):
            answer = worker.run(target, index)
            if answer["findings"]:
                kept = work / "kept" / f"{target}-{index}"
                _keep(work, kept, target, seed, index)
                answer["kept"] = str(kept)
            answers.append(answer)
            if say is not None:
                say(answer)
    finally:
        worker.close()
        shutil.rmtree(work / "scratch", ignore_errors=True)
    if _contents(work / "corpus") != sound:
        raise AssertionError("an input changed a sound file beside it")
    return answers


def _keep(work: Path, folder: Path, target: str, seed: int, index: int) -> None:
    from tests.fuzz.corpus import make_corpus, real_seeds
    from tests.fuzz.targets import make_input

    corpus = make_corpus(work / "corpus")
    for name, more in real_seeds().items():
        corpus.seeds[name] += more
    for name, content in make_input(corpus, target, seed, index).files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def _contents(folder: Path) -> dict[str, int]:
    return {str(p): hash(p.read_bytes()) for p in sorted(folder.rglob("*")) if p.is_file()}


def table(answers: Sequence[dict[str, Any]]) -> str:
    """Counts for each target: accepted by any of its doors, refused by all, not borne."""
    lines = [
        f"{'target':<13}{'inputs':>8}{'accepted':>10}{'refused':>9}{'failed':>8}{'peak MiB':>10}{'longest s':>11}"
    ]
    names = list(dict.fromkeys(a["target"] for a in answers))
    for name in [*sorted(names), "all"]:
        rows = [a for a in answers if name in ("all", a["target"])]
        failed = sum(bool(a["findings"]) for a in rows)
        accepted = sum(not a["findings"] and "accepted" in a["verdicts"].values() for a in rows)
        peak = max((a["peak"] for a in rows), default=0) / 2**20
        longest = max((a["seconds"] for a in rows), default=0.0)
        counts = f"{len(rows):>8}{accepted:>10}{len(rows) - accepted - failed:>9}{failed:>8}"
        lines.append(f"{name:<13}{counts}{peak:>10.0f}{longest:>11.2f}")
    return "\n".join(lines)


def main() -> int:
    """Run from the command line."""
    from tests.fuzz.targets import TARGETS

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="index of the first input")
    parser.add_argument("--target", action="append", choices=list(TARGETS), default=[], help="default: all")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "metricunet-fuzz")
    parser.add_argument("--record", type=Path, help="file to add a line for each input to")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of the processor for one door")
    given = parser.parse_args()
    kinds: Counter[str] = Counter()

    def say(answer: dict[str, Any]) -> None:
        if given.record is not None:
            with given.record.open("a", encoding="utf-8") as handle:
                handle.write(json.dumps(answer) + "\n")
        for finding in answer["findings"]:
            last = finding["what"].strip().splitlines()[-1][:150]
            where = [line.strip() for line in finding["what"].splitlines() if "/src/metricunet/" in line]
            key = f"{answer['target']} {finding['door']} {finding['kind']} {where[-1] if where else last}"
            kinds[key] += 1
            if kinds[key] == 1:
                print(f"--- {answer['target']} {answer['index']} {finding['door']}: {finding['kind']}", flush=True)
                print(finding["what"][-1800:], flush=True)

    answers = fuzz(given.work, given.count, given.seed, given.first, given.target, given.seconds, say)
    if given.record is not None:
        answers = [json.loads(line) for line in given.record.read_text(encoding="utf-8").splitlines()]
    for key, count in kinds.most_common():
        print(f"{count:>5} x {key}")
    print(table(answers))
    return int(any(answer["findings"] for answer in answers))


if __name__ == "__main__":
    sys.exit(main())
