"""Whether two revisions give the same bytes for the same input: what a rebuilding of the code must not change.

    python benchmarks/same_bytes.py OLD [NEW] [--output FOLDER]

OLD and NEW are revisions of this repository; without NEW, the working tree is compared as it stands. Both run with
the Python that runs this script, on one machine, on inputs that OLD made: a cohort of phantoms, a training of both
stages with the metric branch, predictions of a DICOM series and of NIfTI files with OLD's model, their evaluation,
and the tables of OLD's studies/smoke.yaml. Every file of OLD must be there in NEW with the same content:

- masks, weights, scans and tables byte for byte, but for the column of a log that holds seconds;
- structure sets and segmentations element by element, but for dates, times and the UIDs that are made anew each
  time, which are compared by the order in which they first appear;
- JSON (quality, summaries) value by value; NEW may say more than OLD, and clocks, versions and hashes of files
  that hold a clock are left out.

What OLD writes and NEW names otherwise is told to `RENAMED`. The exit status is 0 if all is equal, 1 if not.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pydicom
from safetensors.numpy import load_file

ROOT = Path(__file__).resolve().parents[1]
#: Files that only help a run, or that are pictures or pages of it: their place and form is no promise.
PASSED_OVER = re.compile(
    r"(^|/)(checkpoints|prepared|cuts|fitting|\.[^/]*)/|\.(html|png|svg|log|ckpt|pt|lock)$|events\.out|"
    r"(^|/)(run|evaluate|study|demo|import|phantoms|validate|commission)\.json$"
)
#: Keys of JSON that tell when, where and with what a file was made.
PASSED_OVER_KEYS = re.compile(
    r"seconds|started|finished|made|time|date|version|revision|host|python|machine|sha256|hash|path|files?$|command|"
    r"seal$"
)
#: Columns of tables that hold a clock.
CLOCKS = ("seconds",)
#: What UIDs begin with that pydicom and highdicom make.
NEW_UIDS = (pydicom.uid.PYDICOM_ROOT_UID, "1.2.826.0.1.3680043.10.511.3.")
#: Old name of an output, and its name now.
RENAMED: dict[str, str] = {}
TRAINING = [
    *("locate.base_channels=4", "locate.levels=3", "locate.spacing_mm=[6,6,6]", "locate.patch_voxels=[24,24,24]"),
    *("locate.epochs=2", "locate.updates_per_epoch=40", "locate.learning_rate=0.01"),
    *("segment.base_channels=4", "segment.levels=3", "segment.spacing_mm=[4,2,2]", "segment.slices=3"),
    *("segment.epochs=2", "segment.updates_per_epoch=40", "segment.learning_rate=0.01", "segment.batch_size=4"),
    *("metric.mode=online", "metric.voxels=64", "metric.warm_up_updates=20"),
]
WRITE_SERIES = """
import sys
from pathlib import Path
from metricunet.files.nifti import read_nifti
from metricunet.workflows.ct_writer import CtGrid, write_ct_series
scan = read_nifti(Path(sys.argv[1])).canonical()
write_ct_series(Path(sys.argv[2]), scan.array, CtGrid.of(scan.geometry), patient="SAME", description="same bytes")
"""


def main() -> int:
    """Compare the two revisions, and say what differs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("old", help="revision to compare with")
    parser.add_argument("new", nargs="?", help="revision to compare; by default the working tree")
    parser.add_argument("--output", type=Path, help="folder to keep everything in; by default a temporary one")
    arguments = parser.parse_args()
    folder = arguments.output or Path(tempfile.mkdtemp(prefix="same-bytes-"))
    folder.mkdir(parents=True, exist_ok=True)
    trees = {"old": _tree(arguments.old, folder / "tree-old")}
    trees["new"] = _tree(arguments.new, folder / "tree-new") if arguments.new else ROOT
    inputs = folder / "inputs"
    _make_inputs(trees["old"], inputs)
    for name, tree in trees.items():
        _run_all(tree, inputs, folder / name)
    differences = list(compare(folder / "old", folder / "new"))
    count = sum(1 for _ in _outputs(folder / "old"))
    for line in differences:
        print(f"differs: {line}")
    print(f"{count} files of {arguments.old} compared with {arguments.new or 'the working tree'}: ", end="")
    print(f"{len(differences)} differences" if differences else "all equal")
    if not arguments.output and not differences:
        shutil.rmtree(folder)
    return 1 if differences else 0


def _tree(revision: str, folder: Path) -> Path:
    """Lay out a revision's files."""
    folder.mkdir(exist_ok=True)
    with subprocess.Popen(["git", "-C", str(ROOT), "archive", revision], stdout=subprocess.PIPE) as archive:
        subprocess.run(["tar", "-x", "-C", str(folder)], stdin=archive.stdout, check=True)
    if archive.returncode:
        raise SystemExit(f"{revision}: git knows no such revision")
    return folder


def _run(tree: Path, *arguments: str | Path, accepted: tuple[int, ...] = (0,)) -> None:
    """Run Python on the code of a tree, with one thread: sums of several differ from one to the next."""
    environment = os.environ | {"PYTHONPATH": str(tree / "src"), "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
    done = subprocess.run([sys.executable, *map(str, arguments)], env=environment, capture_output=True, text=True)
    if done.returncode not in accepted:
        raise SystemExit(f"{tree}: {' '.join(map(str, arguments))}\n{done.stdout}{done.stderr}")


def _command(tree: Path, *arguments: str | Path, accepted: tuple[int, ...] = (0,)) -> None:
    print(tree.name, *arguments, flush=True)
    _run(tree, "-m", "metricunet", *arguments, accepted=accepted)


def _make_inputs(tree: Path, inputs: Path) -> None:
    """Let the old revision make what both get."""
    inputs.mkdir(exist_ok=True)
    shutil.copyfile(tree / "studies" / "smoke.yaml", inputs / "smoke.yaml")
    if (inputs / "model.safetensors").is_file():
        return
    cohort = inputs / "cohort"
    if not cohort.exists():
        _command(tree, "phantom", "-o", cohort, "-n", "4", "--test", "2", "--seed", "3", "--difficulty", "easy")
    scan = sorted((cohort / "imagesTs").iterdir())[0]
    if not (inputs / "series").exists():
        _run(tree, "-c", WRITE_SERIES, scan, inputs / "series")
    _train(tree, inputs, inputs / "run")
    shutil.copyfile(inputs / "run" / "model.safetensors", inputs / "model.safetensors")


def _train(tree: Path, inputs: Path, run: Path) -> None:
    settings = [part for setting in TRAINING for part in ("--set", setting)]
    _command(tree, "train", inputs / "cohort", "-o", run, "--preset", "small", "--device", "cpu", *settings)


def _run_all(tree: Path, inputs: Path, output: Path) -> None:
    """Run each command on the inputs; a step whose folder is there has been done before."""
    output.mkdir(exist_ok=True)
    model, cohort = inputs / "model.safetensors", inputs / "cohort"
    if not (output / "cohort").exists():
        counts = ("-n", "1", "--test", "1", "--seed", "5", "--readers", "1")
        _command(tree, "phantom", "-o", output / "cohort", *counts)
    if not (output / "run").exists():
        _train(tree, inputs, output / "run")
    if not (output / "predicted").exists():
        _command(tree, "predict", cohort / "imagesTs", "-m", model, "-o", output / "predicted")
        for contours in ("surface", "voxel"):
            _command(
                tree, "predict", inputs / "series", "-m", model, "-o", output / f"dicom-{contours}",
                "--format", "nifti,rtstruct,seg", "--contours", contours,
            )  # fmt: skip
    if not (output / "evaluated").exists():
        _command(tree, "evaluate", output / "predicted", cohort / "labelsTs", "-o", output / "evaluated")
    if not (output / "study").exists():
        _command(tree, "study", inputs / "smoke.yaml", "-o", output / "study", "--device", "cpu")


def compare(old: Path, new: Path) -> Iterator[str]:
    """Yield a line for every file of the old folder that is missing in the new one or differs there."""
    for path in _outputs(old):
        name = str(path.relative_to(old))
        other = new / RENAMED.get(name, name)
        if not other.is_file():
            yield f"{name}: missing"
        elif path.suffix == ".safetensors":
            yield from (f"{name}: {line}" for line in _arrays(load_file(path), load_file(other)))
        elif path.suffix == ".dcm":
            yield from (f"{name}: {line}" for line in _dicom(path, other))
        elif path.suffix == ".json":
            yield from (f"{name}: {line}" for line in _values(*(json.loads(p.read_text()) for p in (path, other))))
        elif path.read_bytes() != other.read_bytes() and (path.suffix != ".csv" or _rows(path) != _rows(other)):
            yield f"{name}: other bytes"


def _outputs(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not PASSED_OVER.search(str(path.relative_to(folder))):
            yield path


def _arrays(first: Mapping[str, Any], second: Mapping[str, Any]) -> Iterator[str]:
    if set(first) != set(second):
        yield f"arrays {sorted(set(first) ^ set(second))} are in one of the two"
    for name in sorted(set(first) & set(second)):
        if first[name].dtype != second[name].dtype or first[name].tobytes() != second[name].tobytes():
            yield f"array {name} differs"


def _rows(path: Path) -> list[dict[str, str]]:
    """Return the rows of a table without its clocks."""
    with path.open(encoding="utf-8", newline="") as file:
        return [{k: v for k, v in row.items() if k not in CLOCKS} for row in csv.DictReader(file)]


def _dicom(old: Path, new: Path) -> Iterator[str]:
    first, second = _elements(old), _elements(new)
    for k, (one, two) in enumerate(zip(first, second, strict=False)):
        if one != two:
            yield f"element {k}: {str(one)[:200]} became {str(two)[:200]}"
            return
    if len(first) != len(second):
        yield f"{len(first)} elements became {len(second)}"


def _elements(path: Path) -> list[tuple[str, str, str]]:
    """Return tag, kind and value of every element, in order; new UIDs as numbers, clocks and versions left out."""
    dataset = pydicom.dcmread(path)
    numbers: dict[str, str] = {}
    elements = []
    for element in [*dataset.file_meta, *dataset.iterall()]:
        value = "" if element.VR == "SQ" else str(element.value)
        if element.VR in ("DA", "TM", "DT") or element.keyword == "SoftwareVersions":
            value = ""
        if element.VR == "UI" and value.startswith(NEW_UIDS):
            value = numbers.setdefault(value, f"new UID {len(numbers)}")
        if element.keyword == "FileMetaInformationGroupLength":
            continue  # the length of a new UID is a matter of chance
        elements.append((str(element.tag), element.VR, re.sub(r"\d{4}-\d\d-\d\d( \d\d:\d\d)?", "a date", value)))
    return elements


def _values(old: Any, new: Any, place: str = "") -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key, value in old.items():
            if not PASSED_OVER_KEYS.search(key):
                if key in new:
                    yield from _values(value, new[key], f"{place}.{key}")
                else:
                    yield f"{place}.{key} is missing"
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for k, (one, two) in enumerate(zip(old, new, strict=True)):
            yield from _values(one, two, f"{place}[{k}]")
    elif old != new:
        yield f"{place}: {str(old)[:80]} became {str(new)[:80]}"


if __name__ == "__main__":
    sys.exit(main())
