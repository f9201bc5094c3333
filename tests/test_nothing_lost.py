"""Whatever lies where a command reads and writes: only what is provably the program's is changed or removed."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from metricunet.files.atomic import UNFINISHED
from metricunet.files.nifti import write_nifti
from metricunet.files.own import FILES, JOURNAL, STAGING, OwnFiles, read_sealed
from metricunet.phantom import Phantom
from metricunet.workflows import demo
from metricunet.workflows.commission import run as commission
from tests.support.cohorts import TINY_SETTINGS
from tests.support.command import Command
from tests.support.patients import Patient, write_ct, write_set
from tests.support.threshold_model import GLAND_HU, ball, bands_known, drawn_scan, write_bands_model

GLAND = drawn_scan((ball((0, 0, 0), 14), GLAND_HU), shape=(20, 40, 40), spacing_mm=(3, 2, 2))
NAMES = "prostate: [Prostate]\nignore: ['*']\n"
#: Names that outputs of some command have, and some that none has.
TAKEN = (
    *("a.nii.gz", "b.nii.gz", "a.quality.json", "a.rtstruct.dcm", "run.json", "cases.csv", "summary.json"),
    *("report.html", "evaluate.json", "import.json", "dataset.json", "phantoms.json", "study.json", "tables.md"),
    *("model.safetensors", "config.yaml", "log.csv", "commission.json", "demo.json", "notes.txt", "patients.json"),
    *("imagesTr/phantom_0000_0000.nii.gz", "labelsTr/phantom_0000.nii.gz", "checkpoints/state.json"),
    *("rs.nii.gz", "rs.rtstruct.dcm", "rs.seg.dcm", "rs/Prostate.nii.gz", "convert.json"),
    *("reader1Tr/phantom_0001.nii.gz", "cohort/phantoms.json", "cohort/imagesTs/phantom_ts0000_0000.nii.gz"),
    *("run/model.safetensors", "prediction/phantom_ts0000_0000.nii.gz", "evaluation/cases.csv", "files/a.txt"),
)


class Stopped(BaseException):
    """A kill: nothing is cleaned up after it by the command's own hand."""


def listing(*folders: Path) -> dict[Path, str]:
    """Return the hash of every file below by its path; links to folders are not followed."""
    paths = (path for folder in folders for path in folder.rglob("*") if path.is_file())
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def provably_ours(folder: Path) -> set[Path]:
    """Return the files that a record or journal of the program states, and the records themselves."""
    found: set[Path] = set()
    for place in folder.rglob(f"{STAGING}*"):
        inside = {path for path in place.rglob("*") if path.is_file()}
        journal = read_sealed(place / JOURNAL)
        if journal is not None or all(path.match(UNFINISHED) for path in inside):
            found |= inside
        for name, values in (journal or {FILES: {}})[FILES].items():  # the record is gone while files are placed
            path = place.parent / name
            if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() in values:
                found.add(path)
    records = [p for p in folder.rglob("*.json") if p.is_file()]
    for record in records:
        for command in (
            *("predict", "evaluate", "import", "train", "study", "commission", "demo", "phantom"),
            "convert",
        ):
            own = OwnFiles(record.parent, record.name, command)
            if own.content() is not None:
                found.add(record)
                stated = own.stated().items()
                found |= {record.parent / n for n, hashes in stated if any(own.holds(n, h) for h in hashes)}
    return found


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], None]:
    """Lay out scans, labels, patients and a model in a folder."""
    origin = tmp_path_factory.mktemp("model")
    write_bands_model(origin / "model.safetensors")

    def lay(folder: Path) -> None:
        labels = GLAND.with_array((GLAND.array > 0).astype("uint8"))
        for name in ("a", "b"):
            write_nifti(folder / "scans" / f"{name}.nii.gz", GLAND)
            write_nifti(folder / "labels" / f"{name}.nii.gz", labels)
        patient = Patient()
        series = write_ct(folder / "patients" / "p0" / "ct", patient)
        write_set(folder / "patients" / "p0" / "rs.dcm", patient, series, {"Prostate": (4.5, 12.5, range(1, 5))})
        (folder / "names.yaml").write_text(NAMES)
        (folder / "model.safetensors").write_bytes((origin / "model.safetensors").read_bytes())
        (folder / "study.yaml").write_text("name: s\ndata: {cohort: labels}\narms: {a: {}}\nseeds: [0]\n")

    return lay


def a_call(draw: random.Random, folder: Path, out: Path) -> list[object]:
    scans = draw.choice([folder / "scans", folder / "scans" / "a.nii.gz", folder])
    calls: dict[str, list[object]] = {
        "predict": ["predict", scans, "-m", folder / "model.safetensors", "-o", out, "--device", "cpu"],
        "evaluate": ["evaluate", folder / "labels", folder / "labels", "-o", out],
        "evaluate a prediction": ["evaluate", out, folder / "labels", "-o", out],
        "import": ["import", folder / "patients", "-o", out, "--names", folder / "names.yaml"],
        "convert": [
            *("convert", folder / "patients" / "p0" / "rs.dcm", "--scan", folder / "patients" / "p0" / "ct"),
            *("--to", draw.choice(["nifti", "masks,seg", "rtstruct"]), "-o", out),
        ],
        "train": ["train", folder / "labels", "-o", out],
        "study": ["study", folder / "study.yaml", "-o", out],
        "phantom": ["phantom", "-n", draw.choice([1, 2]), "--readers", 1, "-o", out],
        "phantom, displaced": [
            *("phantom", "-n", 2, "--readers", 1, "--displaced", draw.choice([out / "new", folder / "out"])),
            *("-o", draw.choice([out, folder / "clean"])),
        ],
        "demo": ["demo", "-o", out],
        "commission": ["commission", "-o", out],
    }
    words = calls[draw.choice([*calls, "predict", "predict", "import", "evaluate", "phantom", "convert"])]
    if words[0] in ("predict", "evaluate", "import", "phantom", "convert") and draw.random() < 0.5:
        words.append("--overwrite")
    return words


def an_output(draw: random.Random, folder: Path) -> Path:
    """Return a folder to write into: new, an input itself, within one, above them, or a link to one."""
    inputs = [folder / name for name in ("scans", "labels", "patients", "patients/p0/ct")]
    place = draw.choice(
        [folder / "out", folder / "out", *inputs, *inputs[:1] * 3, draw.choice(inputs) / "new", folder]
    )
    if draw.random() < 0.3:
        place.mkdir(parents=True, exist_ok=True)
        link = folder / "linked"
        link.symlink_to(place)
        return link
    return place


def strew(draw: random.Random, folder: Path, out: Path) -> None:
    """Put files, links and hard links of others under names that outputs have."""
    inputs = sorted((folder / "scans").glob("*.nii.gz"))
    for name in draw.sample(TAKEN, draw.randint(0, 5)):
        path = out / name
        if os.path.lexists(path):
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        kind = draw.choice(["file", "file", "empty json", "link", "hard link"])
        if kind == "link":
            path.symlink_to(draw.choice(inputs))
        elif kind == "hard link":
            os.link(draw.choice(inputs), path)
        else:
            path.write_text("{}" if kind == "empty json" else f"somebody's {name}")


def inputs_of(words: list[object]) -> set[Path]:
    """Return the files that a call reads: of a folder the scans in it, and all DICOM below."""
    found: set[Path] = set()
    before_output = [
        word for word in words[: words.index("-o")] if isinstance(word, Path) and words[0] != "phantom"
    ]
    for word in (*before_output, *(word for word in words if str(word).endswith("names.yaml"))):
        path = Path(str(word))
        found |= {path} if path.is_file() else {*path.glob("*.nii.gz"), *path.rglob("*.dcm")}
    return {path.resolve() for path in found if path.is_file()}


@pytest.fixture
def quick(
    world: Callable[[Path], None], tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Let phantoms, the demo's training and the validation take no time; what they write and where stays."""
    model = tmp_path_factory.mktemp("quick") / "model.safetensors"
    write_bands_model(model)

    def phantom(seed: int, difficulty: str, reaches: bool, n_readers: int, *rest: object) -> Phantom:
        labels = GLAND.with_array((GLAND.array > 0).astype("uint8"))
        return Phantom(GLAND.with_array(GLAND.array + seed % 7), labels, {"seed": seed}, (labels,) * n_readers)

    def trained(cohort: Path, output: Path, **options: object) -> Path:
        own = OwnFiles(output, "run.json", "train")
        own.check(["model.safetensors"])
        own.stage("model.safetensors").write_bytes(model.read_bytes())
        own.commit({})
        return output / "model.safetensors"

    def sites(plans: object, folder: Path) -> Callable[[], list[object]]:
        folder.mkdir(parents=True)
        (folder / "a.txt").write_text("a shape")
        return list

    monkeypatch.setattr("metricunet.phantom.cohort.make_phantom", phantom)
    monkeypatch.setattr(demo, "train", trained)
    monkeypatch.setattr(demo, "demo", partial(demo.demo, training_cases=1, unseen_cases=1))
    monkeypatch.setattr(commission, "_sites", sites)
    monkeypatch.setattr(commission, "GROUPS", {"None": lambda sites: []})


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of what a kill left open
@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("seed", range(90))
def test_no_file_of_others_is_changed_or_removed(
    world: Callable[[Path], None],
    metricunet: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    seed: int,
) -> None:
    """Three calls in a row into folders as they may be, each perhaps killed at a random step."""
    draw = random.Random(seed)
    folder = tmp_path / "home"
    world(folder)
    out = an_output(draw, folder)
    strew(draw, folder, out)
    calls = [a_call(draw, folder, out) for _ in range(3)]
    watch(draw, folder, calls, metricunet, monkeypatch)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("seed", range(24))
def test_no_file_of_others_is_changed_where_a_command_fills_a_folder(
    world: Callable[[Path], None],
    metricunet: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    seed: int,
) -> None:
    """One command three times into one folder, where somebody puts files in between."""
    draw = random.Random(seed)
    folder = tmp_path / "home"
    world(folder)
    out = folder / "out"
    words: list[object] = [
        ["phantom", "-n", 2, "--readers", 1, "-o", out, "--displaced", folder / "displaced"],
        ["demo", "-o", out],
        ["commission", "-o", out],
    ][seed % 3]
    more: list[object] = ["--overwrite"] if words[0] == "phantom" and draw.random() < 0.5 else []

    def between() -> None:
        if draw.random() < 0.5:
            strew(draw, folder, draw.choice([out, folder / "displaced"]))

    watch(draw, folder, [words, words, [*words, *more]], metricunet, monkeypatch, between)


@pytest.mark.parametrize("seed", range(4))
def test_no_file_of_others_is_changed_by_a_training(
    tiny_cohort: Path, metricunet: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """A training that is killed and gone on with, where somebody puts files in between."""
    draw = random.Random(seed)
    cohort, out = Path(shutil.copytree(tiny_cohort, tmp_path / "cohort")), tmp_path / "run"
    shutil.rmtree(cohort / "prepared", ignore_errors=True)
    stages = [
        f"{stage}.{setting}" for stage in ("locate", "segment") for setting in ("epochs=1", "updates_per_epoch=2")
    ]
    settings = [word for setting in (*TINY_SETTINGS, *stages) for word in ("--set", setting)]
    words: list[object] = ["train", cohort, "-o", out, "--preset", "small", "--device", "cpu", *settings]
    names = (
        "checkpoints/locate-last.ckpt",
        "checkpoints/segment-best.ckpt",
        "model.safetensors",
        "log.csv",
        "run.json",
    )
    for call in (words, [*words, "--resume"], [*words, "--resume"]):
        somebodys = draw.sample([out / name for name in names], draw.randint(0, 1))
        if draw.random() < 0.5:
            somebodys += list(cohort.glob("prepared/*/case_01.npz"))
        for path in somebodys:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"somebody's")
        before = listing(tmp_path)
        with monkeypatch.context() as patch:
            kill_at(patch, draw.randint(5, 60))
            with suppress(Stopped):
                assert "Traceback" not in metricunet(*call).err
        after = listing(tmp_path)
        kept = {path for path in before if path in somebodys or path.suffix == ".gz"}
        assert {path: after.get(path) for path in kept} == {path: before[path] for path in kept}
        for path in somebodys:
            path.unlink()
        for claim in (*out.glob("**/*.claim"), *out.glob("**/.claim.json")):
            claim.unlink()  # of a process that would be dead


def watch(
    draw: random.Random,
    folder: Path,
    calls: list[list[object]],
    metricunet: Command,
    monkeypatch: pytest.MonkeyPatch,
    between: Callable[[], None] = lambda: None,
) -> None:
    """Call commands, each perhaps killed at a random step, and see that no file of others changes."""
    with bands_known():
        for words in calls:
            before, ours = listing(folder), provably_ours(folder)
            with monkeypatch.context() as patch:
                killed_at = draw.randint(1, 30) if draw.random() < 0.5 else 0
                if killed_at:
                    kill_at(patch, killed_at)
                try:
                    ended = metricunet(*words)
                    assert "Traceback" not in ended.err
                except Stopped:
                    pass
            after = listing(folder)
            kept = inputs_of(words) & before.keys() if "--overwrite" in words else before.keys() - ours
            for path in kept:
                assert after.get(path) == before[path], f"{words}: {path}"
            for claim in (*folder.rglob("*.claim"), *folder.rglob(".claim.json")):
                claim.unlink()  # of a process that would be dead
            if draw.random() < 0.3 and (masks := sorted(provably_ours(folder))):
                path = draw.choice(masks)  # somebody corrects it, so it is theirs from now on
                path.write_bytes(path.read_bytes() + b" ")
            between()


def kill_at(patch: pytest.MonkeyPatch, step: int) -> None:
    """Stop the command at a step that changes the file system, and let nothing more change there after it."""
    count = 0

    def counted(real: Callable[..., object]) -> Callable[..., object]:
        def call(*words: object, **options: object) -> object:
            nonlocal count
            count += 1
            if count >= step:
                raise Stopped
            return real(*words, **options)

        return call

    for name in ("replace", "link", "unlink", "mkdir", "rmdir", "rename", "remove"):
        patch.setattr(os, name, counted(getattr(os, name)))


def test_the_check_itself_sees_a_change(tmp_path: Path) -> None:
    """What counts as provably ours ends with the first change of a byte."""
    own = OwnFiles(tmp_path, "run.json", "predict")
    own.stage("a.nii.gz").write_bytes(b"mask")
    own.commit({})
    assert provably_ours(tmp_path) == {tmp_path / "run.json", tmp_path / "a.nii.gz"}
    (tmp_path / "a.nii.gz").write_bytes(b"mask, corrected")
    assert provably_ours(tmp_path) == {tmp_path / "run.json"}
