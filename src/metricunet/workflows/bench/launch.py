"""Runs a command and writes how long it took and its peak memory; started as a script, in a small process.

A child's peak counts the memory of the process that it was forked from, and a benchmark is a large one. So the
command is started from here, where next to nothing is in memory. Nothing of the package may be imported.
"""

import json
import subprocess
import sys
import time


def main(report: str, command: list[str]) -> None:
    """Run the command; `report` becomes JSON with `status`, `seconds`, `peak_mib` (None on Windows), `error`."""
    began = time.perf_counter()
    ended = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False)
    seconds = time.perf_counter() - began
    peak_mib = None
    if sys.platform != "win32":
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        peak_mib = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit / 2**20
    error = ended.stderr.decode("utf-8", "replace")
    found = {"status": ended.returncode, "seconds": seconds, "peak_mib": peak_mib, "error": error}
    with open(report, "w", encoding="utf-8") as handle:
        json.dump(found, handle)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
