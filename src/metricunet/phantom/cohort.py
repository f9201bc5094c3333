"""Write phantoms as a cohort: nnU-Net's raw layout, and `phantoms.json` with the recipe and each case's facts.

`labelsTr` and `labelsTs` hold the true shapes; the contours of reader K lie beside them in `readerKTr` and
`readerKTs`, under the same names. nnU-Net and its kin overlook these folders. `phantoms.json` states the SHA-256
of every file; one that has other bytes is somebody's, and is neither replaced nor taken for a phantom.
"""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Generator, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np

from metricunet.cohort.layout import dataset_content, image_path, label_path
from metricunet.engine import Engine, Tell
from metricunet.errors import InputError, WorkerDied, argument
from metricunet.files.atomic import write_json
from metricunet.files.claim import claimed, refuse_claimed
from metricunet.files.nifti import write_nifti
from metricunet.files.own import FILES, SEAL, STAGING, OwnFiles
from metricunet.phantom.make import (
    PART_OF,
    STRUCTURES,
    check_structures,
    check_texture,
    check_variety,
    make_phantom,
)
from metricunet.phantom.scanner import Difficulty
from metricunet.phantom.variety import VARIED_VERSION, Variety
from metricunet.phantom.workers import NEEDS, end_with_parent, killed
from metricunet.progress import Progress, no_progress
from metricunet.volume import Volume

RECIPE_FILE, DATASET_FILE = "phantoms.json", "dataset.json"
#: Raised whenever the same seed begins to give other bytes; those of `varied` alone have a version of their own.
RECIPE_VERSION = 2
#: What the recipe says of `labelsTr` where it holds the true shapes.
TRUTH = "truth"
COMMAND, MAKING = "phantom", "the making of phantoms"


@dataclass(frozen=True)
class CohortPlan:
    """What a cohort of phantoms is to hold.

    Attributes:
        n: number of training cases.
        seed: seed of the whole cohort.
        difficulty: difficulty of all cases, as in `make_phantom`.
        structures: names from `STRUCTURES`; they get the values 1, 2, ... in this order.
        n_test: number of cases in `imagesTs` and `labelsTs`.
        absent_fraction: share of the cases whose scan does not reach the prostate.
        n_readers: number of readers who contour every case's prostate.
        variety: which groups `varied` cases draw; None for all.
        test_difficulty: difficulty of the test cases; None for that of all.
        gland_texture_hu: standard deviation of a texture of the gland alone, as in `make_phantom`.

    Raises:
        InputError: an argument is out of range.
    """

    n: int
    seed: int = 0
    difficulty: Difficulty = "real"
    structures: Sequence[str] = ("prostate",)
    n_test: int = 0
    absent_fraction: float = 0.0
    n_readers: int = 0
    variety: Variety | None = None
    test_difficulty: Difficulty | None = None
    gland_texture_hu: float = 0.0

    def __post_init__(self) -> None:
        if self.n < 1:
            raise InputError(f"n must be 1 or more; got {self.n}")
        for name in ("seed", "n_test", "n_readers"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} must be 0 or more; got {getattr(self, name)}")
        for name in ("difficulty", "test_difficulty"):
            value = self.difficulty_of("Ts") if name == "test_difficulty" else self.difficulty
            if value not in get_args(Difficulty):
                raise InputError(f"{name} must be one of {', '.join(get_args(Difficulty))}; got {value!r}")
            check_texture(self.gland_texture_hu, value)
        if "varied" not in (self.difficulty, self.difficulty_of("Ts")):
            check_variety(self.variety, self.difficulty)
        if not 0 <= self.absent_fraction <= 1:
            raise InputError(f"absent_fraction must lie between 0 and 1; got {self.absent_fraction:g}")
        for split in ("Tr", "Ts"):
            check_structures(tuple(self.structures), self.difficulty_of(split))

    def difficulty_of(self, split: str) -> Difficulty:
        """Return the difficulty of the cases of a split, `Tr` or `Ts`."""
        return self.difficulty if split == "Tr" else self.test_difficulty or self.difficulty

    @property
    def recipe(self) -> dict[str, Any]:
        """What all cases share, whatever their number is."""
        more: dict[str, Any] = {}
        variety = self.variety or Variety()
        # Recipes of cohorts without them, which earlier versions made, do not name them.
        if self.difficulty == "varied" or variety != Variety():
            more["variety"] = list(variety.groups)
        if self.difficulty_of("Ts") != self.difficulty:
            more["test_difficulty"] = self.test_difficulty
        if self.gland_texture_hu:
            more["gland_texture_hu"] = self.gland_texture_hu
        if "varied" in (self.difficulty, self.difficulty_of("Ts")):
            more["varied_version"] = VARIED_VERSION
        return {
            "version": RECIPE_VERSION,
            "seed": self.seed,
            "difficulty": self.difficulty,
            "structures": list(self.structures),
            "absent_fraction": self.absent_fraction,
            "labels": TRUTH,
            **more,
        }

    def orders(self) -> list[PhantomOrder]:
        """Return the cases to make, training first."""
        return [
            PhantomOrder(
                name=case_name(split, k),
                split=split,
                seed=case_seed(self.seed, split, k),
                difficulty=self.difficulty_of(split),
                reaches_prostate=not is_absent(k, self.absent_fraction),
                structures=tuple(self.structures),
                n_readers=self.n_readers,
                variety=self.variety if self.difficulty_of(split) == "varied" else None,
                gland_texture_hu=self.gland_texture_hu,
            )
            for split, count in (("Tr", self.n), ("Ts", self.n_test))
            for k in range(count)
        ]


@dataclass(frozen=True)
class PhantomOrder:
    """One case to make."""

    name: str
    split: str
    seed: int
    difficulty: Difficulty
    reaches_prostate: bool
    structures: tuple[str, ...]
    n_readers: int
    variety: Variety | None = None
    gland_texture_hu: float = 0.0

    @property
    def files(self) -> tuple[str, ...]:
        """The image, the true labels, and each reader's, relative to the cohort."""
        return case_files(self.name, self.split, self.n_readers)


def make_cohort(
    folder: str | Path,
    n: int,
    seed: int = 0,
    difficulty: Difficulty = "real",
    structures: Sequence[str] = ("prostate",),
    n_test: int = 0,
    absent_fraction: float = 0.0,
    progress: Progress | None = None,
    workers: int = 1,
    n_readers: int = 0,
    overwrite: bool | None = None,
    variety: Variety | None = None,
    test_difficulty: Difficulty | None = None,
    gland_texture_hu: float = 0.0,
    engine: Engine | None = None,
) -> list[str]:
    """Write a cohort of phantoms and return the names of its cases, training first.

    Cases already there are kept if they come from the same recipe, so an interrupted run continues where it
    stopped, and a larger `n` adds cases to those there, more readers their contours. Case k is the same man
    whatever `n` is.

    Args:
        folder: new or empty, or a phantom cohort of the same recipe.
        n: number of training cases.
        seed: seed of the whole cohort.
        difficulty: difficulty of all cases, as in `make_phantom`.
        structures: names from `STRUCTURES`; they get the values 1, 2, ... in this order.
        n_test: number of cases in `imagesTs` and `labelsTs`.
        absent_fraction: share of the cases whose scan does not reach the prostate; their label has none.
        progress: called with (cases done, cases in all) after each case.
        workers: number of processes to use.
        n_readers: number of readers who contour every case's prostate, into `reader1Tr`, `reader1Ts`, `reader2Tr`
            and so on.
        overwrite: whether files of others that have the name of one of the cohort's may be replaced; None for
            callers without such an option.
        variety: which groups `varied` cases draw; None for all.
        test_difficulty: difficulty of the test cases; None for that of all.
        gland_texture_hu: standard deviation of a texture of the gland alone, as in `make_phantom`.
        engine: makes the cases in place of processes of this machine.

    Raises:
        InputError: for arguments out of range, for a folder that holds anything else, and for a file of the cohort
            that was not made here or was changed since. Nothing was written then. Also where a process that makes
            phantoms was killed, or two workers of an engine were lost at one; what was made is kept.
    """
    folder = Path(folder)
    if workers < 1:
        raise InputError(f"workers must be 1 or more; got {workers}")
    plan = CohortPlan(
        n,
        seed,
        difficulty,
        structures,
        n_test,
        absent_fraction,
        n_readers,
        variety,
        test_difficulty,
        gland_texture_hu,
    )
    orders = plan.orders()
    files = {order.name: order.files for order in orders}
    own = OwnFiles(folder, RECIPE_FILE, COMMAND, overwrite=overwrite)
    refuse_claimed(own.claim, MAKING)
    if engine is not None:
        engine.check_folders(folder, [])
    # Nothing, not even a claim, is written into a folder that is not a cohort of ours.
    if own.content() is not None or known_cases(own, plan.recipe, files) is not None:
        with claimed(own.claim, MAKING):
            cases = known_cases(own, plan.recipe, files)
            if cases is not None:
                try:
                    _complete(own, plan, orders, cases, workers, engine, progress or no_progress)
                finally:
                    own.discard()
    return list(files)


def check_cohort(folder: Path, plan: CohortPlan) -> None:
    """Refuse, before any work, what `make_cohort` would refuse.

    Args:
        folder: where the cohort is to be made.
        plan: of the cohort.

    Raises:
        InputError: the folder holds anything else, or a file that was not made here or was changed since.
    """
    files = {order.name: order.files for order in plan.orders()}
    known_cases(OwnFiles(folder, RECIPE_FILE, COMMAND), plan.recipe, files)


def _complete(
    own: OwnFiles,
    plan: CohortPlan,
    orders: Sequence[PhantomOrder],
    cases: dict[str, Any],
    workers: int,
    engine: Engine | None,
    progress: Progress,
) -> None:
    """Make the cases that are not there, and dataset.json."""

    def content() -> dict[str, Any]:
        return {"recipe": plan.recipe, "cases": {o.name: cases[o.name] for o in orders if o.name in cases}}

    # Asked for at once: the record of thousands of cases is long, and is read for each question.
    absent = set(missing_files(own, [name for order in orders for name in order.files]))
    missing = {order: names for order in orders if (names := [name for name in order.files if name in absent])}
    done = len(orders) - len(missing)
    if done:
        progress(done, len(orders))
    if not missing and not missing_files(own, [DATASET_FILE]):
        own.tidy()  # an earlier run may have been killed when all was there
        return
    # The recipe comes first and dataset.json last: an interrupted cohort can be continued, but not be used.
    own.add(content(), drop=[DATASET_FILE], more=True)
    work = own.work().absolute()
    tasks = [(order, work, names) for order, names in missing.items()]
    # Whatever ends this, the workers end before their folder goes: what they wrote later would be in the way.
    with closing(_made(tasks, workers, engine)) as made:
        for order, facts in made:
            cases[order.name] = facts
            for name in missing[order]:
                os.replace(own.work() / name, own.stage(name))
            own.add(content(), more=True)
            done += 1
            progress(done, len(orders))
    dataset = dataset_content(
        labels={name: value for value, name in enumerate(plan.structures, start=1)},
        num_training=plan.n,
        description=f"synthetic pelvic CT, difficulty {plan.difficulty}, seed {plan.seed}",
        trained_on="synthetic",
    )
    write_json(own.stage(DATASET_FILE), dataset)
    own.add(content())


def case_files(name: str, split: str, n_readers: int) -> tuple[str, ...]:
    """Return the files of a case, relative to the cohort: the image, the labels, and those of each reader."""
    folder = Path()
    readers = (reader_path(folder, name, number, split) for number in range(1, n_readers + 1))
    return tuple(map(str, (image_path(folder, name, split), label_path(folder, name, split), *readers)))


def reader_path(folder: Path, case: str, reader: int, split: str = "Tr") -> Path:
    """Return where the contours of a reader, 1 or higher, lie."""
    return folder / f"reader{reader}{split}" / f"{case}.nii.gz"


def case_name(split: str, number: int) -> str:
    """Return the name of a case of a cohort, counted from 0 in the split `Tr` or `Ts`."""
    return f"phantom_ts{number:04d}" if split == "Ts" else f"phantom_{number:04d}"


def split_of(name: str) -> str:
    """Return the split, `Tr` or `Ts`, that the name of a case says."""
    return "Ts" if name.startswith("phantom_ts") else "Tr"


def case_seed(seed: int, split: str, number: int) -> int:
    """Return the seed that `make_phantom` gets for a case of a cohort."""
    return int(np.random.SeedSequence((seed, 0 if split == "Tr" else 1, number)).generate_state(1)[0])


def is_absent(number: int, fraction: float) -> bool:
    """Spread the share evenly over the cases, so that it holds for every beginning of the cohort."""
    return int((number + 1) * fraction + 1e-9) > int(number * fraction + 1e-9)


def known_cases(
    own: OwnFiles, recipe: Mapping[str, Any], files: Mapping[str, Sequence[str]]
) -> dict[str, Any] | None:
    """Return the facts of the cases that a folder holds already, and write nothing.

    Args:
        own: the files of the cohort.
        recipe: the recipe that is wanted.
        files: the files of each case that is wanted, by its name, relative to the folder.

    Returns:
        The facts by the names of the cases; None where an earlier version, which recorded no hashes, made all that
        is wanted: then it is left as it is.

    Raises:
        InputError: the folder holds anything else, or a file that was not made here or was changed since.
    """
    if own.folder.exists() and not own.folder.is_dir():
        raise InputError(f"{own.folder}: is a file; expected a new or empty folder for the cohort")
    names = [*(name for of_case in files.values() for name in of_case), DATASET_FILE]
    cases: dict[str, Any] = {}
    if (content := own.content()) is not None:
        _refuse_other_recipe(own.path, content, recipe, files)
        cases = content["cases"]
    elif (content := _of_an_earlier_version(own.path)) is not None:
        _refuse_other_recipe(own.path, content, recipe, files)
        if content["cases"].keys() >= files.keys() and all((own.folder / name).is_file() for name in names):
            return None
        if not own.overwrite:
            anew = "" if own.overwrite is None else f", or make this one anew with {argument('overwrite', True)}"
            raise InputError(
                f"{own.path}: an earlier version wrote this cohort without the hashes of its files, so it cannot "
                f"be continued; choose another folder{anew}"
            )
    else:
        _refuse_other_files(own, names)
    own.check(names)
    return cases


def missing_files(own: OwnFiles, names: Iterable[str]) -> list[str]:
    """Return those of a cohort's files that are yet to be written; what others put there was refused before."""
    stated = (own.content() or {FILES: {}})[FILES]
    # Without leave to replace, all that is there has been found to be ours.
    there = own.holds if own.overwrite else lambda name, value: os.path.lexists(own.folder / name)
    return [name for name in names if name not in stated or not there(name, stated[name])]


def _refuse_other_recipe(
    path: Path, content: Mapping[str, Any], recipe: Mapping[str, Any], files: Mapping[str, object]
) -> None:
    made = content["recipe"]
    for key in {**recipe, **made}:
        if made.get(key) != recipe.get(key):
            raise InputError(
                f"{path}: this cohort was made with {key} {made.get(key)!r}, not {recipe.get(key)!r}; "
                "choose another folder"
            )
    for what, of_split in (
        ("training", lambda name: split_of(name) == "Tr"),
        ("test", lambda n: split_of(n) == "Ts"),
    ):
        there, asked = (sum(map(of_split, names)) for names in (content["cases"], files))
        if there > asked:
            raise InputError(
                f"{path}: this cohort has {there} {what} cases, more than the {asked} asked for; "
                "choose another folder"
            )


def _refuse_other_files(own: OwnFiles, names: Iterable[str]) -> None:
    """Refuse a folder without a recipe of ours that holds files which would lie among the cohort's."""
    if own.is_new():
        return
    if not own.overwrite:
        own.check([])  # says that the recipe is not ours, where there is one
        raise InputError(f"{own.folder}: holds other files and no {RECIPE_FILE}; choose a new or empty folder")
    known = {own.path, own.claim, *(own.folder / name for name in names)}
    for path in own.folder.rglob("*"):
        unfinished = any(part.startswith(STAGING) for part in path.relative_to(own.folder).parts)
        if path not in known and not unfinished and (path.is_symlink() or not path.is_dir()):
            raise InputError(f"{path}: is none of the files of this cohort; choose a new or empty folder")


def _of_an_earlier_version(path: Path) -> dict[str, Any] | None:
    """Return a recipe without seal and hashes; None where there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        ours = not {SEAL, FILES} & content.keys() and all(
            isinstance(content[k], dict) for k in ("recipe", "cases")
        )
        return dict(content) if ours else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def read_recipe(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read a `phantoms.json`: the recipe, and the facts of each case by its name.

    Raises:
        InputError: if it is not one.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return dict(content["recipe"]), dict(content["cases"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not readable as a cohort's recipe; choose another folder") from error


def _made(
    tasks: Sequence[tuple[PhantomOrder, Path, Sequence[str]]], workers: int, engine: Engine | None
) -> Generator[tuple[PhantomOrder, dict[str, Any]], None, None]:
    if engine is not None:
        lost: list[tuple[str, WorkerDied]] = []
        with closing(engine.each(tasks, _Maker, NEEDS)) as each:
            for (order, *_), made in each:
                if isinstance(made, WorkerDied):  # it costs the others nothing
                    lost.append((order.name, made))
                elif isinstance(made, Exception):
                    raise made
                else:
                    yield made
        if lost:
            name, error = lost[0]
            others = f", nor could {len(lost) - 1} more" if lost[1:] else ""
            raise InputError(
                f"{name} could not be made{others}: {error}. What was made is kept: run the same command again"
            ) from error
        return
    if workers == 1 or len(tasks) < 2:
        yield from map(_make, tasks)
        return
    with ProcessPoolExecutor(
        min(workers, len(tasks)), multiprocessing.get_context("spawn"), initializer=end_with_parent
    ) as pool:
        try:
            yield from pool.map(_make, tasks)
        except BrokenProcessPool as error:
            raise killed("What was made is kept: run the same command again") from error


class _Maker:
    """A worker that makes phantoms."""

    def do(
        self, task: tuple[PhantomOrder, Path, Sequence[str]], tell: Tell
    ) -> tuple[PhantomOrder, dict[str, Any]]:
        """Make a case."""
        return _make(task)


def _make(task: tuple[PhantomOrder, Path, Sequence[str]]) -> tuple[PhantomOrder, dict[str, Any]]:
    """Make a case, and write those of its files that are named below a folder."""
    order, folder, names = task
    phantom = make_phantom(
        order.seed,
        order.difficulty,
        order.reaches_prostate,
        order.n_readers,
        order.variety,
        order.gland_texture_hu,
    )
    if not folder.is_dir():  # to make it again would leave a hidden folder that no journal says is ours
        raise InputError(f"{order.name}: all was stopped while it was made; run again")
    labels = (choose(volume, order.structures) for volume in (phantom.labels, *phantom.readings))
    for name, volume in zip(order.files, (phantom.image, *labels), strict=True):
        if name in names:
            write_nifti(folder / name, volume)
    return order, phantom.description


def choose(labels: Volume, structures: Iterable[str]) -> Volume:
    """Keep some structures of a phantom's label map, renumbered 1, 2, ... in the order given.

    A femur without its head among the structures is the whole femur.
    """
    table = np.zeros(max(STRUCTURES.values()) + 1, dtype=np.uint8)
    values = {name: value for value, name in enumerate(structures, start=1)}
    for part, whole in PART_OF.items():
        table[STRUCTURES[part]] = values.get(whole, 0)
    for name, value in values.items():
        table[STRUCTURES[name]] = value
    return labels.with_array(table[labels.array])
