"""Build and check the archives, install the wheel in an environment of its own, and use it as a stranger would.

Run by `make check-wheel` and `make release`. The wheel is built from the source archive, which knows no git. Exit
status 0 if the archives are sound, the installed program made phantoms, trained, predicted and read the model, and
an exported model segmented where torch is not installed. The environment takes torch from the constraints file;
everything else comes from the wheel's own requirements, or without torch from requirements-onnx.txt.
"""

from __future__ import annotations

import argparse
import json
import os
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
#: What would lead an installed program to another tree, or to another model.
LEADS_ELSEWHERE = ("PYTHONPATH", "PYTHONHOME", "METRICUNET_MODEL")
MODEL = "src/metricunet/models/base.safetensors"


def run(*words: object, allowed: tuple[int, ...] = (0,), cwd: Path) -> str:
    """Run a command, show it, and stop with its output if its status is not allowed."""
    print("+", *words, flush=True)
    environment = {name: value for name, value in os.environ.items() if name not in LEADS_ELSEWHERE}
    ended = subprocess.run(
        [str(w) for w in words], capture_output=True, text=True, cwd=cwd, env=environment, check=False
    )
    if ended.returncode not in allowed:
        sys.exit(f"status {ended.returncode}\n{ended.stdout}{ended.stderr}")
    return ended.stdout


def interpreter(name: str) -> str:
    """Return the path of an interpreter, by which it is found from any folder."""
    found = shutil.which(name)
    if found is None:
        sys.exit(f"{name}: no such interpreter; name one that is installed, or its path")
    # A virtual environment's is a link, which must not be followed.
    return os.path.abspath(found)


def stated_version() -> str:
    """Return the version that pyproject.toml states, the one place that does."""
    return str(tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"])


def released_files(version: str) -> tuple[str, str, str]:
    """Return the names of what is published of a version: wheel, source archive, bill of materials."""
    return (
        f"metricunet-{version}-py3-none-any.whl",
        f"metricunet-{version}.tar.gz",
        f"metricunet-{version}.cdx.json",
    )


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
    if not re.search(rf"^## {re.escape(version)} \(\d{{4}}-\d\d-\d\d\)$", changelog, re.MULTILINE):
        yield f"CHANGELOG.md has no heading `## {version} (YYYY-MM-DD)`"
    unreleased = re.search(r"^## Unreleased$(.*?)(?=^## |\Z)", changelog, re.MULTILINE | re.DOTALL)
    if unreleased is not None and unreleased[1].strip():
        yield f"CHANGELOG.md has entries under Unreleased; what is in {version} belongs under its heading"
    if re.search(r"^Version \S+ has not been released", changelog, re.MULTILINE):
        yield "CHANGELOG.md says of a version that it has not been released"


def foreign_files(folder: Path, version: str) -> list[str]:
    """Return what lies in a folder and is none of the files of a version, for what lies there is published."""
    there = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    return sorted(there - set(released_files(version)))


def check_release(keep: Path | None) -> None:
    """Stop with what speaks against releasing what is checked out.

    Args:
        keep: the folder that is published from; None where nothing is kept.
    """
    version = stated_version()
    tags = run("git", "tag", "--points-at", "HEAD", cwd=ROOT).split()
    changed = [line[3:] for line in run("git", "status", "--porcelain", cwd=ROOT).splitlines()]
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    faults = list(release_faults(version, tags, changed, changelog))
    if not (ROOT / MODEL).is_file():
        faults.append(f"{MODEL} is not there, and a release ships the model")
    if keep is not None and (others := foreign_files(keep, version)):
        faults.append(f"{keep} holds {', '.join(others)}, which are not of {version}; move them elsewhere")
    if faults:
        sys.exit("not to be released:\n" + "\n".join(faults))


def use(python: str, wheel: Path, folder: Path) -> None:
    """Install a wheel in a new environment of an interpreter and use it.

    In FOLDER are left the bill of what was installed, a cohort of phantoms, and an exported model.
    """
    run(python, "-m", "venv", folder / "venv", cwd=folder)
    inner, program = folder / "venv/bin/python", folder / "venv/bin/metricunet"
    pip = (inner, "-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt")
    run(*pip, "torch", cwd=folder)
    run(*pip, wheel, cwd=folder)
    bill = folder / f"{wheel.name.split('-py3')[0]}.cdx.json"
    write_bill(inner, bill)
    print(f"{len(json.loads(bill.read_text(encoding='utf-8'))['components'])} components in the bill of materials")
    assert run(program, "--version", cwd=folder).strip() == stated_version()
    run(program, "phantom", "-n", 3, "--test", 1, "--difficulty", "easy", "-o", "cohort", cwd=folder)
    settings = [word for setting in SETTINGS for word in ("--set", setting)]
    run(program, "train", "cohort", "-o", "run", "--preset", "small", *settings, cwd=folder)
    # Two updates teach nothing, so an absent prostate (status 1) is as good an answer as any.
    predict = (program, "predict", "cohort/imagesTs", "-m", "run/model.safetensors", "-o", "out")
    print(run(*predict, allowed=(0, 1), cwd=folder))
    if (ROOT / MODEL).is_file():
        print(run(program, "info", cwd=folder))
        run(program, "predict", "cohort/imagesTs", "-o", "shipped", allowed=(0, 1), cwd=folder)
        assert (folder / "shipped/run.json").is_file()
    run(program, "evaluate", "out", "cohort/labelsTs", "-o", "scores", allowed=(0, 1), cwd=folder)
    print(run(program, "info", "run/model.safetensors", cwd=folder))
    assert (folder / "out/run.json").is_file()
    assert (folder / "scores/report.html").is_file()
    run(*pip, f"{wheel}[onnx]", cwd=folder)
    print(run(program, "export", "run/model.safetensors", "--to", "onnx", "-o", "exported", cwd=folder))


def use_without_torch(python: str, wheel: Path, folder: Path) -> None:
    """Install a wheel with what requirements-onnx.txt lists and nothing else, and segment with what was exported.

    Args:
        python: the interpreter of the new environment.
        wheel: the wheel.
        folder: holds the exported model and a cohort, as `use` leaves them.
    """
    run(python, "-m", "venv", folder / "slim", cwd=folder)
    inner, program = folder / "slim/bin/python", folder / "slim/bin/metricunet"
    pip = (inner, "-m", "pip", "install", "-q", "--no-deps")
    run(*pip, "--requirement", ROOT / "requirements-onnx.txt", cwd=folder)
    run(*pip, wheel, cwd=folder)
    run(inner, "-c", "import importlib.util as u, sys; sys.exit(u.find_spec('torch') is not None)", cwd=folder)
    run(program, "info", "exported", cwd=folder)
    run(program, "check", "cohort/imagesTs/phantom_ts0000_0000.nii.gz", cwd=folder)
    words = ("predict", "cohort/imagesTs", "--runtime", "onnx", "-m", "exported", "--page", "-o", "without_torch")
    print(run(program, *words, allowed=(0, 1), cwd=folder))
    assert (folder / "without_torch/run.json").is_file()
    assert (folder / "without_torch/phantom_ts0000.page.html").is_file()


def main() -> None:
    """Build, check, install, use."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", default=sys.executable, help="install the wheel for this interpreter")
    parser.add_argument("--keep", type=Path, help="put the archives and the bill of materials into this folder")
    parser.add_argument(
        "--release", action="store_true", help="refuse what is not tagged, committed and in the log"
    )
    options = parser.parse_args()
    python = interpreter(options.python)
    if options.release:
        check_release(options.keep)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run(sys.executable, "-m", "build", "--outdir", folder / "dist", ROOT, cwd=folder)
        (wheel,) = folder.glob("dist/*.whl")
        (source,) = folder.glob("dist/*.tar.gz")
        run(sys.executable, "-m", "twine", "check", "--strict", wheel, source, cwd=folder)
        run(sys.executable, "-m", "check_wheel_contents", wheel, cwd=folder)
        use(python, wheel, folder)
        use_without_torch(python, wheel, folder)
        if options.keep:
            options.keep.mkdir(parents=True, exist_ok=True)
            for file in (wheel, source, *folder.glob("*.cdx.json")):
                shutil.copy2(file, options.keep)
                print(options.keep / file.name)
    print("the wheel works")


if __name__ == "__main__":
    main()
