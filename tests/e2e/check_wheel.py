"""Build the wheel, install it in an environment of its own, and use it there as a stranger would.

Run by `make check-wheel`. Exit status 0 if the installed program made phantoms, predicted and read the model.
The environment takes torch from the constraints file; everything else comes from the wheel's own requirements.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
SETTINGS = (
    "locate.base_channels=4",
    "locate.epochs=1",
    "locate.updates_per_epoch=2",
    "segment.base_channels=4",
    "segment.epochs=1",
    "segment.updates_per_epoch=2",
)


def run(*words: object, allowed: tuple[int, ...] = (0,), cwd: Path) -> str:
    """Run a command, show it, and stop with its output if its status is not allowed."""
    print("+", *words, flush=True)
    ended = subprocess.run([str(w) for w in words], capture_output=True, text=True, cwd=cwd, check=False)
    if ended.returncode not in allowed:
        sys.exit(f"status {ended.returncode}\n{ended.stdout}{ended.stderr}")
    return ended.stdout


def main() -> None:
    """Build, install, use."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run(sys.executable, "-m", "build", "--wheel", "--outdir", folder, ROOT, cwd=folder)
        (wheel,) = folder.glob("*.whl")
        run(sys.executable, "-m", "venv", folder / "venv", cwd=folder)
        python, program = folder / "venv/bin/python", folder / "venv/bin/metricunet"
        constraints = ROOT / "constraints.txt"
        run(python, "-m", "pip", "install", "-q", "-c", constraints, "torch", cwd=folder)
        run(python, "-m", "pip", "install", "-q", "-c", constraints, wheel, cwd=folder)
        run(program, "phantom", "-n", 3, "--test", 1, "--difficulty", "easy", "-o", "cohort", cwd=folder)
        settings = [word for setting in SETTINGS for word in ("--set", setting)]
        run(program, "train", "cohort", "-o", "run", "--preset", "small", *settings, cwd=folder)
        # Two updates teach nothing, so an absent prostate (status 1) is as good an answer as any.
        predict = (program, "predict", "cohort/imagesTs", "-m", "run/model.safetensors", "-o", "out")
        print(run(*predict, allowed=(0, 1), cwd=folder))
        if (ROOT / "src/metricunet/models/base.safetensors").is_file():
            print(run(program, "info", cwd=folder))
            run(program, "predict", "cohort/imagesTs", "-o", "shipped", allowed=(0, 1), cwd=folder)
            assert (folder / "shipped/run.json").is_file()
        run(program, "evaluate", "out", "cohort/labelsTs", "-o", "scores", allowed=(0, 1), cwd=folder)
        print(run(program, "info", "run/model.safetensors", cwd=folder))
        assert (folder / "out/run.json").is_file()
        assert (folder / "scores/report.html").is_file()
    print("the wheel works")


if __name__ == "__main__":
    main()
