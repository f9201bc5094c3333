"""The doors that fuzzed files go through, as a user would reach them, and the inputs for each of them.

A door is a function of a `Trial`; it returns where the input was accepted and raises `InputError` where it was
refused. Anything else that it raises is a finding, and so is a broken promise (`BrokenError`): a half-written
output, more than one line of error, a traceback on the terminal.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random

import nibabel as nib
import numpy as np

from metricunet.cli import main
from metricunet.cohort.layout import read_cohort
from metricunet.cohort.splits import split_for
from metricunet.errors import InputError
from metricunet.files.dicom.series import CtSeries, find_series
from metricunet.files.itk import itk_files, read_itk, read_itk_labels
from metricunet.files.model import read_card, read_model
from metricunet.files.nifti import read_labels, read_nifti
from metricunet.files.rtstruct.add import add_to_rtstruct
from metricunet.files.rtstruct.outlines import Structure
from metricunet.files.rtstruct.read import read_rtstruct
from metricunet.files.rtstruct.registration import read_registration
from metricunet.files.seg.read import read_seg
from metricunet.volume import Volume
from tests.fuzz import dicom_tree, mutators
from tests.fuzz.corpus import Corpus, Seed


class BrokenError(AssertionError):
    """A promise of the command line or of a door that an input broke."""


@dataclass(frozen=True)
class Trial:
    """One input on disk."""

    corpus: Corpus
    #: The folder of its files, and the one that was damaged.
    folder: Path
    victim: Path
    #: Where outputs may go.
    out: Path
    #: What was printed since the door was opened.
    printed: Callable[[], tuple[str, str]]


Door = Callable[[Trial], None]


@dataclass(frozen=True)
class Target:
    """A kind of file.

    Attributes:
        weight: its share of all inputs.
        mutate: damages a seed's file; gets its name and the other seeds' contents too.
        doors: that every input goes through.
        slow: doors that one input in so many goes through.
    """

    weight: int
    mutate: Callable[[Random, str, bytes, Sequence[bytes]], bytes]
    doors: tuple[Door, ...]
    slow: tuple[tuple[int, Door], ...] = ()


@dataclass(frozen=True)
class Input:
    """A seed with damage: the same for the same seed number, target and index."""

    seed_name: str
    files: dict[str, bytes]
    victim: str
    doors: tuple[Door, ...]


def make_input(corpus: Corpus, name: str, seed: int, index: int) -> Input:
    """Make one input of a target."""
    rng = Random(f"{seed}/{name}/{index}")
    target, seeds = TARGETS[name], corpus.seeds[name]
    chosen: Seed = rng.choices(seeds, [seed.weight for seed in seeds])[0]
    files = dict(chosen.files)
    victim = rng.choice(chosen.victims)
    others = [seed.files[seed.victims[0]] for seed in seeds]
    files[victim] = target.mutate(rng, victim, files[victim], others)
    if len(chosen.victims) > 1 and rng.random() < 0.1:
        second = rng.choice([name for name in chosen.victims if name != victim])
        files[second] = target.mutate(rng, second, files[second], others)
    slow = tuple(door for every, door in target.slow if rng.randrange(every) == 0)
    return Input(chosen.name, files, victim, (*target.doors, *slow))


# Doors.


@cache
def _series(folder: Path) -> CtSeries:
    (series,) = find_series(folder).series
    return series


def command(trial: Trial, *words: object) -> int:
    """Run `metricunet WORDS` and hold it to what it promises about its status and its errors.

    Raises:
        InputError: it ended with status 2 and said so in one line.
        BrokenError: anything else that it should not print or do.
    """
    sys.argv = ["metricunet", *map(str, words)]
    trial.printed()
    try:
        main()
        status: object = 0
    except SystemExit as end:
        status = end.code or 0
    out, err = trial.printed()
    lines = [line for line in err.splitlines() if line.strip()]
    if "Traceback" in out + err:
        raise BrokenError(f"a traceback on the terminal: {err[-2000:]}")
    if status == 2:
        if len(lines) != 1 or not lines[0].startswith("error: "):
            raise BrokenError(f"expected one line of error, got {lines}")
        raise InputError(lines[0])
    if status not in (0, 1):
        raise BrokenError(f"status {status}: {lines}")
    if any(not line.startswith(("refused: ", "note: ", "left out: ")) for line in lines):
        raise BrokenError(f"unexpected on standard error: {lines}")
    return int(str(status))


def _outputs(trial: Trial) -> list[str]:
    return sorted(str(p.relative_to(trial.out)) for p in trial.out.rglob("*") if p.is_file())


def _nothing_half_written(trial: Trial) -> None:
    for name in _outputs(trial):
        path = trial.out / name
        if ".partial-" in name:
            raise BrokenError(f"{name} was left behind")
        if name.endswith(".json"):
            json.loads(path.read_text(encoding="utf-8"))
        elif name.endswith((".nii", ".nii.gz")):
            np.asanyarray(nib.load(path).dataobj)
    if trial.out.exists() and not _outputs(trial) and any(trial.out.iterdir()):
        raise BrokenError("empty folders were left behind")


def check(trial: Trial) -> None:
    # What check found is no refusal, but an input with errors was not accepted either.
    place = trial.folder if trial.victim.suffix in (".dcm", ".json") else trial.victim
    if command(trial, "check", place) == 1:
        raise InputError("check found errors")


def check_json(trial: Trial) -> None:
    place = trial.folder if trial.victim.suffix in (".dcm", ".json") else trial.victim
    sys.argv = ["metricunet", "check", str(place), "--json"]
    trial.printed()
    try:
        main()
    except SystemExit as end:
        out, _ = trial.printed()
        if end.code in (0, 1, None):
            json.loads(out)


def predict(trial: Trial) -> None:
    place = trial.folder if trial.victim.suffix == ".dcm" else trial.victim
    _predict(trial, place, trial.corpus.model)


def predict_everything(trial: Trial) -> None:
    _predict(trial, trial.folder, trial.corpus.model, "--format", "nifti,rtstruct,seg")


def predict_with(trial: Trial) -> None:
    _predict(trial, trial.corpus.scan, trial.victim)


def _predict(trial: Trial, scan: Path, model: Path, *more: str) -> None:
    try:
        command(trial, "predict", scan, "-m", model, "-o", trial.out, "--device", "cpu", *more)
    except InputError:
        if _outputs(trial):
            raise BrokenError(f"refused, but left {_outputs(trial)}") from None
        raise
    finally:
        _nothing_half_written(trial)
    cases = [name.removesuffix(".quality.json") for name in _outputs(trial) if name.endswith(".quality.json")]
    strays = [n for n in _outputs(trial) if n != "run.json" and not n.startswith(tuple(f"{c}." for c in cases))]
    if not cases or strays:
        raise BrokenError(f"cases {cases}, and beside them {strays}")


def evaluate_against(trial: Trial) -> None:
    _evaluate(trial, trial.victim, trial.corpus.labels)


def evaluate_verdict(trial: Trial) -> None:
    predicted = trial.folder / "predicted"
    _evaluate(trial, predicted if predicted.is_dir() else trial.folder / "labelsTr", trial.folder)


def _evaluate(trial: Trial, predictions: Path, references: Path) -> None:
    try:
        command(trial, "evaluate", predictions, references, "-o", trial.out)
    except InputError:
        if _outputs(trial):
            raise BrokenError(f"refused, but left {_outputs(trial)}") from None
        raise
    _nothing_half_written(trial)
    if _outputs(trial) != ["cases.csv", "evaluate.json", "report.html", "summary.json"]:
        raise BrokenError(f"wrote {_outputs(trial)}")


def find_and_read(trial: Trial) -> None:
    search = find_series(trial.folder)
    for series in search.series:
        series.read()
    if not search.series:
        raise InputError("all refused")
    for refused in search.refused:
        if "\n" in refused.reason:
            raise BrokenError(f"not one line: {refused.reason!r}")


def find_by_file(trial: Trial) -> None:
    for series in find_series(trial.victim).series:
        series.read()


def structures(trial: Trial) -> None:
    series = _series(trial.corpus.series)
    read = read_rtstruct(trial.victim)
    for mask in read.masks(series.geometry):
        if "\n" in mask.reason:
            raise BrokenError(f"not one line: {mask.reason!r}")
    for line in read.warnings:
        if "\n" in line:
            raise BrokenError(f"not one line: {line!r}")


def structures_on_series(trial: Trial) -> None:
    series = _series(trial.corpus.series)
    read_rtstruct(trial.victim, series).masks(series.geometry)


def add_structure(trial: Trial) -> None:
    series = _series(trial.corpus.series)
    mask = np.zeros(series.geometry.shape, dtype=bool)
    mask[2:4, 3:8, 3:8] = True
    added = [Structure("Added", Volume(mask, series.geometry))]
    path = trial.out / "more.dcm"
    try:
        add_to_rtstruct(trial.victim, path, series, added, description="fuzz", on_clash="suffix")
    except InputError:
        if trial.out.exists() and _outputs(trial):
            raise BrokenError(f"refused, but left {_outputs(trial)}") from None
        raise
    read_rtstruct(path, series).mask("Added", series.geometry)


def import_set(trial: Trial) -> None:
    try:
        command(trial, "import", trial.folder, "-o", trial.out)
    except InputError:
        if _outputs(trial):
            raise BrokenError(f"refused, but left {_outputs(trial)}") from None
        raise
    _nothing_half_written(trial)


def names_of_sets(trial: Trial) -> None:
    command(trial, "import", trial.folder, "--list-names")


def segments(trial: Trial) -> None:
    read_seg(trial.victim, _series(trial.corpus.series))


def registration(trial: Trial) -> None:
    read_registration(trial.victim)


def structures_moved(trial: Trial) -> None:
    series = _series(trial.corpus.series)
    read_rtstruct(trial.corpus.structure_set, series, registration=trial.victim).masks(series.geometry)


def nifti_scan(trial: Trial) -> None:
    read_nifti(trial.victim)


def nifti_labels(trial: Trial) -> None:
    read_labels(trial.victim)


def itk_scan(trial: Trial) -> None:
    path = _header(trial)
    read_itk(path)
    itk_files(path)


def itk_labels(trial: Trial) -> None:
    read_itk_labels(_header(trial))


def check_itk(trial: Trial) -> None:
    if command(trial, "check", _header(trial)) == 1:
        raise InputError("check found errors")


def predict_itk(trial: Trial) -> None:
    _predict(trial, _header(trial), trial.corpus.model)


def _header(trial: Trial) -> Path:
    return next(p for p in sorted(trial.folder.iterdir()) if p.suffix != ".raw")


def card(trial: Trial) -> None:
    read_card(trial.victim)


def model(trial: Trial) -> None:
    read_model(trial.victim)


def info(trial: Trial) -> None:
    command(trial, "info", trial.victim)


def info_json(trial: Trial) -> None:
    sys.argv = ["metricunet", "info", str(trial.victim), "--json"]
    trial.printed()
    try:
        main()
    except SystemExit as end:
        out, _ = trial.printed()
        if end.code in (0, None):
            json.loads(out)


def configuration(trial: Trial) -> None:
    if trial.victim.name == "study.yaml":
        from metricunet.study.design import load_study

        load_study(trial.victim)
    else:
        from metricunet.training.config import dump_config, load_config

        dump_config(load_config("small", trial.victim))


def cohort(trial: Trial) -> None:
    found = read_cohort(trial.folder)
    for fold in (0, 1):
        split_for(found, fold)


# Mutation, by kind of file.


def _dicom(rng: Random, name: str, data: bytes, others: Sequence[bytes]) -> bytes:
    kind = rng.random()
    if kind < 0.006:
        return dicom_tree.bomb(rng, data)
    if kind < 0.65:
        changed = dicom_tree.change(rng, data)
        return mutators.damaged(rng, changed) if rng.random() < 0.1 else changed
    return mutators.damaged(rng, data, others)


def _nifti(rng: Random, name: str, data: bytes, others: Sequence[bytes]) -> bytes:
    plain = mutators.unzipped(data)
    kind = rng.random()
    if kind < 0.012:
        return mutators.nifti_bomb(rng, plain or data)
    if plain is None:
        return mutators.nifti_field(rng, data) if kind < 0.6 else mutators.damaged(rng, data, others)
    if kind < 0.5:
        return mutators.zipped(mutators.nifti_field(rng, plain))
    if kind < 0.75:
        return mutators.zipped(mutators.damaged(rng, plain))
    return mutators.damaged(rng, data, others)


def _itk(rng: Random, name: str, data: bytes, others: Sequence[bytes]) -> bytes:
    if name.endswith(".raw"):
        return mutators.damaged(rng, data, others)
    local = b"ElementDataFile = LOCAL\n"
    end = data.find(local) + len(local) if local in data else data.find(b"\n\n") + 2
    head, body = (data[:end], data[end:]) if end > 2 else (data, b"")
    kind = rng.random()
    if kind < 0.015 and (b"gzip" in head or b"bzip2" in head or b"CompressedData = True" in head):
        head = head.replace(b"12 10 5", rng.choice((b"1000 1000 1400", b"600 600 600", b"1300 1000 800")))
        if b"gzip" in head:
            return head + mutators.gzip_bomb(b"")
        return head + (mutators.bzip2_bomb(b"") if b"bzip2" in head else mutators.deflate_bomb(b"", wrapped=True))
    if kind < 0.6:
        return mutators.change_text(rng, head.decode("latin-1")).encode("latin-1", "replace") + body
    if kind < 0.75:
        return head + mutators.damaged(rng, body, others)
    return mutators.damaged(rng, data, others)


def _model(rng: Random, name: str, data: bytes, others: Sequence[bytes]) -> bytes:
    return mutators.change_model(rng, data) if rng.random() < 0.75 else mutators.damaged(rng, data)


def _text(rng: Random, name: str, data: bytes, others: Sequence[bytes]) -> bytes:
    if rng.random() < 0.02:
        return mutators.yaml_bomb(rng)
    if rng.random() < 0.75:
        return mutators.change_text(rng, data.decode()).encode("utf-8", "replace")
    return mutators.damaged(rng, data, others)


def _json(rng: Random, name: str, data: bytes, others: Sequence[bytes]) -> bytes:
    if rng.random() < 0.75:
        return json.dumps(mutators.change_json(rng, json.loads(data))).encode("utf-8", "surrogatepass")
    if rng.random() < 0.1:
        depth = rng.choice((200, 5000, 100_000))
        return b"[" * depth + b"]" * depth
    return mutators.damaged(rng, data, others)


#: What `--target` knows.
TARGETS: dict[str, Target] = {
    "dicom": Target(28, _dicom, (find_and_read,), (
        (4, find_by_file), (3, check), (15, check_json), (10, predict), (20, predict_everything))),
    "rtstruct": Target(20, _dicom, (structures, structures_on_series), (
        (4, add_structure), (8, import_set), (16, names_of_sets))),
    "seg": Target(10, _dicom, (segments,)),
    "registration": Target(6, _dicom, (registration, structures_moved)),
    "nifti": Target(16, _nifti, (nifti_scan, nifti_labels), (
        (3, check), (15, check_json), (8, predict), (10, evaluate_against))),
    "itk": Target(12, _itk, (itk_scan, itk_labels), ((3, check_itk), (10, predict_itk))),
    "model": Target(10, _model, (card, model, info), ((5, info_json), (2, predict_with))),
    "config": Target(4, _text, (configuration,)),
    "cohort": Target(5, _json, (cohort,), ((3, check), (10, check_json), (5, evaluate_verdict))),
}  # fmt: skip
