"""Write phantoms as a cohort: nnU-Net's raw layout, and `phantoms.json` with the recipe and each case's facts.

`labelsTr` and `labelsTs` hold the true shapes; the contours of reader K lie beside them in `readerKTr` and
`readerKTs`, under the same names. nnU-Net and its kin overlook these folders.
"""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np

from metricunet.cohort.layout import image_path, label_path, write_dataset_json
from metricunet.errors import InputError
from metricunet.files.atomic import write_json
from metricunet.files.nifti import write_nifti
from metricunet.phantom.make import STRUCTURES, make_phantom
from metricunet.phantom.scanner import Difficulty
from metricunet.volume import Volume

RECIPE_FILE = "phantoms.json"
#: Raised whenever the same seed begins to give other bytes.
RECIPE_VERSION = 2
#: What the recipe says of `labelsTr` where it holds the true shapes.
TRUTH = "truth"


@dataclass(frozen=True)
class Order:
    """One case to make."""

    folder: Path
    name: str
    split: str
    seed: int
    difficulty: Difficulty
    reaches_prostate: bool
    structures: tuple[str, ...]
    n_readers: int

    @property
    def paths(self) -> tuple[Path, ...]:
        """The image, the true labels, and each reader's."""
        readers = (
            reader_path(self.folder, self.name, number, self.split) for number in range(1, self.n_readers + 1)
        )
        return (
            image_path(self.folder, self.name, self.split),
            label_path(self.folder, self.name, self.split),
            *readers,
        )


def make_cohort(
    folder: Path,
    n: int,
    seed: int = 0,
    difficulty: Difficulty = "real",
    structures: Sequence[str] = ("prostate",),
    n_test: int = 0,
    absent_fraction: float = 0.0,
    progress: Callable[[int, int], None] | None = None,
    workers: int = 1,
    n_readers: int = 0,
) -> list[str]:
    """Write a cohort of phantoms and return the names of its cases, training first.

    Cases already there are kept if they come from the same recipe, so an interrupted run continues where it
    stopped, and a larger `n` adds cases to those there, more readers their contours. Case k is the same man
    whatever `n` is.

    Args:
        folder: new or empty, or a phantom cohort of the same recipe.
        n: training cases.
        seed: of the whole cohort.
        difficulty: as in `make_phantom`.
        structures: names from `STRUCTURES`; they get the values 1, 2, ... in this order.
        n_test: cases in `imagesTs` and `labelsTs`.
        absent_fraction: share of the cases whose scan does not reach the prostate; their label has none.
        progress: called with (cases done, cases in all) after each case.
        workers: processes to use.
        n_readers: readers who contour every case's prostate, into `reader1Tr`, `reader1Ts`, `reader2Tr` and so on.

    Raises:
        InputError: for arguments out of range, and for a folder that holds anything else.
    """
    folder = Path(folder)
    _check(n, seed, difficulty, structures, n_test, absent_fraction, workers, n_readers)
    recipe: dict[str, Any] = {
        "version": RECIPE_VERSION,
        "seed": seed,
        "difficulty": difficulty,
        "structures": list(structures),
        "absent_fraction": absent_fraction,
        "labels": TRUTH,
    }
    cases = _known_cases(folder, recipe, n, n_test)
    orders = [
        Order(
            folder=folder,
            name=case_name(split, k),
            split=split,
            seed=case_seed(seed, split, k),
            difficulty=difficulty,
            reaches_prostate=not _absent(k, absent_fraction),
            structures=tuple(structures),
            n_readers=n_readers,
        )
        for split, count in (("Tr", n), ("Ts", n_test))
        for k in range(count)
    ]
    # The recipe comes first and dataset.json last: an interrupted cohort can be continued, but not be used.
    write_json(folder / RECIPE_FILE, {"recipe": recipe, "cases": cases})
    wanted = [
        order for order in orders if order.name not in cases or not all(path.is_file() for path in order.paths)
    ]
    done = len(orders) - len(wanted)
    if progress is not None and done:
        progress(done, len(orders))
    for name, facts in _made(wanted, workers):
        cases[name] = facts
        write_json(folder / RECIPE_FILE, {"recipe": recipe, "cases": cases})
        done += 1
        if progress is not None:
            progress(done, len(orders))
    write_dataset_json(
        folder,
        labels={name: value for value, name in enumerate(structures, start=1)},
        num_training=n,
        description=f"synthetic pelvic CT, difficulty {difficulty}, seed {seed}",
        trained_on="synthetic",
    )
    return [order.name for order in orders]


def reader_path(folder: Path, case: str, reader: int, split: str = "Tr") -> Path:
    """Return where the contours of a reader, 1 or higher, lie."""
    return folder / f"reader{reader}{split}" / f"{case}.nii.gz"


def case_name(split: str, number: int) -> str:
    """Return the name of a case of a cohort, counted from 0 in the split `Tr` or `Ts`."""
    return f"phantom_ts{number:04d}" if split == "Ts" else f"phantom_{number:04d}"


def case_seed(seed: int, split: str, number: int) -> int:
    """Return the seed that `make_phantom` gets for a case of a cohort."""
    return int(np.random.SeedSequence((seed, 0 if split == "Tr" else 1, number)).generate_state(1)[0])


def _absent(number: int, fraction: float) -> bool:
    """Spread the share evenly over the cases, so that it holds for every beginning of the cohort."""
    return int((number + 1) * fraction + 1e-9) > int(number * fraction + 1e-9)


def _check(
    n: int,
    seed: int,
    difficulty: str,
    structures: Sequence[str],
    n_test: int,
    absent_fraction: float,
    workers: int,
    n_readers: int,
) -> None:
    if n < 1:
        raise InputError(f"n must be 1 or more; got {n}")
    for name, value in (("seed", seed), ("n_test", n_test), ("n_readers", n_readers)):
        if value < 0:
            raise InputError(f"{name} must be 0 or more; got {value}")
    if workers < 1:
        raise InputError(f"workers must be 1 or more; got {workers}")
    if difficulty not in get_args(Difficulty):
        raise InputError(f"difficulty must be one of {', '.join(get_args(Difficulty))}; got {difficulty!r}")
    if not 0 <= absent_fraction <= 1:
        raise InputError(f"absent_fraction must lie between 0 and 1; got {absent_fraction:g}")
    unknown = [name for name in structures if name not in STRUCTURES]
    if unknown or not structures or len(set(structures)) < len(structures):
        raise InputError(
            f"structures must be different names out of {', '.join(STRUCTURES)}; got {list(structures)}"
        )


def _known_cases(folder: Path, recipe: dict[str, Any], n: int, n_test: int) -> dict[str, Any]:
    """Read the cases that a folder already holds; refuse a folder that is not this recipe's."""
    path = folder / RECIPE_FILE
    if not holds_phantoms(folder):
        return {}
    found, cases = read_recipe(path)
    for key, value in recipe.items():
        if found.get(key) != value:
            raise InputError(
                f"{path}: this cohort was made with {key} {found.get(key)!r}, not {value!r}; "
                "choose another folder, or delete this one"
            )
    tests = sum(name.startswith("phantom_ts") for name in cases)
    for what, there, asked in (("training", len(cases) - tests, n), ("test", tests, n_test)):
        if there > asked:
            raise InputError(
                f"{path}: this cohort has {there} {what} cases, more than the {asked} asked for; "
                "choose another folder, or delete this one"
            )
    return cases


def holds_phantoms(folder: Path) -> bool:
    """Tell whether a folder is a cohort of phantoms, begun or complete, and not new or empty.

    Raises:
        InputError: if it is a file, or holds anything else.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: is a file; expected a new or empty folder for the cohort")
    there = (folder / RECIPE_FILE).is_file()
    if not there and folder.is_dir() and any(folder.iterdir()):
        raise InputError(f"{folder}: holds other files and no {RECIPE_FILE}; choose a new or empty folder")
    return there


def read_recipe(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read a `phantoms.json`: the recipe, and the facts of each case by its name.

    Raises:
        InputError: if it is not one.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return dict(content["recipe"]), dict(content["cases"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not readable as a cohort's recipe; delete the folder and run again") from error


def _made(orders: Sequence[Order], workers: int) -> Iterator[tuple[str, dict[str, Any]]]:
    if workers == 1 or len(orders) < 2:
        yield from map(_make, orders)
        return
    with ProcessPoolExecutor(min(workers, len(orders)), multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(_make, orders)


def _make(order: Order) -> tuple[str, dict[str, Any]]:
    phantom = make_phantom(order.seed, order.difficulty, order.reaches_prostate, order.n_readers)
    image, *labels = order.paths
    for path, volume in zip(labels, (phantom.labels, *phantom.readings), strict=True):
        if not os.path.lexists(path):  # whole if ours, and if it was corrected since, its owner's
            write_nifti(path, choose(volume, order.structures))
    if not os.path.lexists(image):
        write_nifti(image, phantom.image)
    return order.name, phantom.description


def choose(labels: Volume, structures: Iterable[str]) -> Volume:
    """Keep some structures of a phantom's label map, renumbered 1, 2, ... in the order given."""
    table = np.zeros(max(STRUCTURES.values()) + 1, dtype=np.uint8)
    for value, name in enumerate(structures, start=1):
        table[STRUCTURES[name]] = value
    return labels.with_array(table[labels.array])
