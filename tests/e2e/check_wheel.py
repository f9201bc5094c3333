"""Build and check the archives, install the wheel in an environment of its own, and use it as a stranger would.

Run by `make check-wheel` and `make release`. The wheel is built from the source archive, which knows no git. Exit
status 0 if the archives are sound and the installed program made phantoms, trained, predicted and read the model.
The environment takes torch from the constraints file; everything else comes from the wheel's own requirements.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from tests.e2e.bill_of_materials import write_bill  # noqa: E402

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


def stated_version() -> str:
    """Return the version that pyproject.toml states, the one place that does."""
    return str(tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"])


def release_faults(version: str, tags: list[str], changed: list[str], changelog: str) -> Iterator[str]:
    """Yield what speaks against a release, a line each.

    Args:
        version: the version that pyproject.toml states.
        tags: the tags of the commit that is checked out.
        changed: files that differ from that commit, or that it does not know.
        changelog: the text of CHANGELOG.md.
    """
    if f"v{version}" not in tags:
        found = ", ".join(tags) or "none"
        yield f"this commit has no tag v{version}, which pyproject.toml states (tags: {found})"
    if changed:
        yield f"files that are not committed: {', '.join(changed)}"
    if not re.search(rf"^## {re.escape(version)}\b", changelog, re.MULTILINE):
        yield f"CHANGELOG.md has no heading for {version}"


def check_release() -> None:
    """Stop with what speaks against releasing what is checked out."""
    tags = run("git", "tag", "--points-at", "HEAD", cwd=ROOT).split()
    changed = [line[3:] for line in run("git", "status", "--porcelain", cwd=ROOT).splitlines()]
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    faults = list(release_faults(stated_version(), tags, changed, changelog))
    if faults:
        sys.exit("not to be released:\n" + "\n".join(faults))


def use(python: str, wheel: Path, folder: Path) -> None:
    """Install a wheel in a new environment of an interpreter, use it, and list in FOLDER what was installed."""
    run(python, "-m", "venv", folder / "venv", cwd=folder)
    inner, program = folder / "venv/bin/python", folder / "venv/bin/metricunet"
    constraints = ROOT / "constraints.txt"
    run(inner, "-m", "pip", "install", "-q", "-c", constraints, "torch", cwd=folder)
    run(inner, "-m", "pip", "install", "-q", "-c", constraints, wheel, cwd=folder)
    bill = folder / f"{wheel.name.split('-py3')[0]}.cdx.json"
    write_bill(inner, bill)
    print(f"{len(json.loads(bill.read_text(encoding='utf-8'))['components'])} components in the bill of materials")
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


def main() -> None:
    """Build, check, install, use."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", default=sys.executable, help="install the wheel for this interpreter")
    parser.add_argument("--keep", type=Path, help="put the archives and the bill of materials into this folder")
    parser.add_argument(
        "--release", action="store_true", help="refuse what is not tagged, committed and in the log"
    )
    options = parser.parse_args()
    if options.release:
        check_release()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run(sys.executable, "-m", "build", "--outdir", folder / "dist", ROOT, cwd=folder)
        (wheel,) = folder.glob("dist/*.whl")
        (source,) = folder.glob("dist/*.tar.gz")
        run(sys.executable, "-m", "twine", "check", "--strict", wheel, source, cwd=folder)
        run(sys.executable, "-m", "check_wheel_contents", wheel, cwd=folder)
        use(options.python, wheel, folder)
        if options.keep:
            options.keep.mkdir(parents=True, exist_ok=True)
            for file in (wheel, source, *folder.glob("*.cdx.json")):
                shutil.copy2(file, options.keep)
                print(options.keep / file.name)
    print("the wheel works")


if __name__ == "__main__":
    main()
