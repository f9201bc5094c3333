"""Install a bundle in a network namespace without a route, and use it there as a stranger would.

Run by `make check-bundle`, after `make bundle`; it needs root, or a kernel that lets users make namespaces. Exit
status 0 if the bundle refuses to install when a file of it is damaged, installs without a network, twice as well
as once, predicts a phantom, names no mistake in the node's file that it leaves, and works off a DICOM series as a
node.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
#: Nothing of the environment that the check itself runs in gets into the one that is installed.
ALONE = {
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "HOME": "/nonexistent",
    "OMP_NUM_THREADS": "1",
    "LC_ALL": "C.UTF-8",
}


def without_route(*words: object, folder: Path, status: tuple[int, ...] = (0,)) -> str:
    """Run a command in a network namespace of its own, which has no interface that is up; return what it says."""
    print("+", *words, flush=True)
    unshare = ["unshare", "--net"] if os.geteuid() == 0 else ["unshare", "--map-root-user", "--net"]
    ended = subprocess.run(
        [*unshare, *map(str, words)], cwd=folder, env=ALONE, capture_output=True, text=True, check=False
    )
    if ended.returncode not in status:
        sys.exit(f"status {ended.returncode}\n{ended.stdout}{ended.stderr}")
    print(ended.stdout, end="")
    return ended.stdout + ended.stderr


def check(bundle: Path, folder: Path, python: str) -> None:
    """Install and use a bundle in a folder."""
    assert not without_route("ip", "route", folder=folder), "the namespace has a route"
    damaged = folder / "damaged"
    shutil.copytree(bundle, damaged, copy_function=os.link)
    (damaged / "node.yaml").unlink()
    (damaged / "node.yaml").write_text("# another\n", encoding="utf-8")
    install = ("env", f"PYTHON={python}")
    said = without_route(*install, damaged / "install.sh", folder / "none", folder=folder, status=(2,))
    assert "damaged" in said
    assert not (folder / "none").exists()
    there = folder / "metricunet"
    without_route(*install, bundle / "install.sh", there, folder=folder)
    assert "there already" in without_route(*install, bundle / "install.sh", there, folder=folder)
    program, model = there / "bin/metricunet", there / "models/base.safetensors"
    without_route(program, "phantom", "-n", 1, "--difficulty", "easy", "--dicom", "-o", "cohort", folder=folder)
    # The model may have strong doubt of a phantom, and would then draw nothing by itself.
    words = ("-m", model, "--format", "nifti,rtstruct", "--draw-anyway", "-o", "out")
    without_route(program, "predict", "cohort/dicom/phantom_0000/ct", *words, folder=folder)
    assert len([*folder.glob("out/*.rtstruct.dcm")]) == 1
    settings = yaml.safe_load((there / "node.yaml").read_text(encoding="utf-8"))
    assert settings["model"] == str(model)
    settings |= {"state": str(folder / "state"), "watch": {"folder": str(folder / "cohort/dicom")}}
    (folder / "node.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    without_route(program, "serve", "--check", "node.yaml", folder=folder)
    # The structure set of the phantom lies in the folder, too, and no rule takes it.
    without_route(program, "serve", "--once", "node.yaml", folder=folder)
    (quality,) = folder.glob("state/predictions/*.quality.json")
    print(f"a node made {', '.join(sorted(path.name for path in quality.parent.glob('*.*')))}")


def main() -> None:
    """Check the bundle that lies in build/bundle, or another."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path, nargs="?", help="its folder (default: the one in build/bundle)")
    parser.add_argument("--python", default=sys.executable, help="install for this interpreter")
    options = parser.parse_args()
    found = [options.bundle] if options.bundle else [*(ROOT / "build/bundle").glob("metricunet-*/")]
    if len(found) != 1:
        sys.exit(f"build/bundle holds {len(found)} bundles, expected one; run make bundle, or name one")
    python = Path(options.python)
    base = Path(sys.base_prefix) / "bin" / python.name if python.samefile(sys.executable) else python
    with tempfile.TemporaryDirectory(dir=found[0].parent) as name:  # beside it, for hard links
        check(found[0].absolute(), Path(name), str(base))
    print("the bundle works without a network")


if __name__ == "__main__":
    main()
