"""The same scans with a reader's contours to train on, without making or storing the images twice."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterable
from contextlib import suppress
from pathlib import Path

from metricunet.cohort.layout import dataset_content, read_dataset_json
from metricunet.errors import InputError
from metricunet.files.atomic import write_json
from metricunet.files.claim import claimed, refuse_claimed
from metricunet.files.own import OwnFiles
from metricunet.phantom.cohort import (
    COMMAND,
    DATASET_FILE,
    MAKING,
    RECIPE_FILE,
    TRUTH,
    CohortPlan,
    case_files,
    known_cases,
    missing_files,
    read_recipe,
    reader_path,
    split_of,
)


def check_displaced(
    source: Path, folder: Path, plan: CohortPlan, reader: int = 1, overwrite: bool | None = None
) -> None:
    """Refuse, before the cohort itself is made, what `displace_cohort` would refuse.

    Args:
        source: folder in which the cohort is to be made.
        folder: folder of the second cohort.
        plan: plan of the cohort.
        reader: number of the reader, from 1; the plan must have this reader.
        overwrite: whether files of others may be replaced, as in `displace_cohort`.

    Raises:
        InputError: the folder is the source's, holds anything else, or a file that was changed since it was made.
    """
    names = [order.name for order in plan.orders()]
    n_readers = _readers_of_all(source, names, plan.n_readers)
    origins = {name: _origins(name, n_readers, reader) for name in names}
    _refuse_folders_of(source, folder, origins.values())
    own = OwnFiles(folder, RECIPE_FILE, COMMAND, overwrite=overwrite)
    known_cases(own, {**plan.recipe, "labels": f"reader{reader}"}, {k: list(v) for k, v in origins.items()})


def displace_cohort(source: Path, folder: Path, reader: int = 1, overwrite: bool | None = None) -> Path:
    """Make a second cohort of the same scans, whose training labels are a reader's contours.

    `labelsTr` is the reader's, `labelsTs` the true shape, `truthTr` the true shape of the training cases, and the
    readers' folders are as in the source; a reader after `reader` who has not contoured every case is left out.
    Files are hard links to those of the source, or copies where the file system has none, so the images take no
    room. A rerun adds what is missing.

    Args:
        source: a cohort that `make_cohort` wrote with `n_readers` of at least `reader`.
        folder: new or empty, or an earlier result of the same call.
        reader: 1 or higher.
        overwrite: whether files of others that have the name of one of the cohort's may be replaced; None for
            callers without such an option. Files of the source never are.

    Returns:
        The folder.

    Raises:
        InputError: if the source has no such reader or lacks a file, the folder holds anything else, or a file in
            it was not made here or was changed since. Nothing was written then.
    """
    source, folder = Path(source), Path(folder)
    recipe_path = source / RECIPE_FILE
    if not recipe_path.is_file():
        raise InputError(f"{source}: no {RECIPE_FILE} here; expected a cohort of phantoms")
    recipe, cases = read_recipe(recipe_path)
    if recipe.get("labels") != TRUTH:
        raise InputError(
            f"{recipe_path}: labelsTr holds {recipe.get('labels')!r}, not {TRUTH!r}; "
            "name the cohort with the true shapes"
        )
    info = read_dataset_json(source)
    drawn = source / f"reader{reader}Tr"
    if not drawn.is_dir():
        raise InputError(f"{source}: no {drawn.name} here; make the cohort with {max(reader, 1)} readers or more")
    n_readers = _readers_of_all(source, cases, reader)
    origins = {name: _origins(name, n_readers, reader) for name in cases}
    _refuse_folders_of(source, folder, origins.values())
    files = {name: list(of_case) for name, of_case in origins.items()}
    content = {"recipe": {**recipe, "labels": f"reader{reader}"}, "cases": cases}
    own = OwnFiles(folder, RECIPE_FILE, COMMAND, overwrite=overwrite)
    refuse_claimed(own.claim, MAKING)
    links = {name: source / origin for of_case in origins.values() for name, origin in of_case.items()}
    if own.content() is None:  # nothing, not even a claim, is written before all that it needs was found
        if known_cases(own, content["recipe"], files) is None:
            return folder
        _refuse_missing(source, links.values(), reader)
    with claimed(own.claim, MAKING):
        if known_cases(own, content["recipe"], files) is None:
            return folder
        missing = missing_files(own, links)
        if not missing and not missing_files(own, [DATASET_FILE]):
            own.tidy()
            return folder
        _refuse_missing(source, [links[name] for name in missing], reader)
        try:
            own.add(content, drop=[DATASET_FILE], more=True)
            for name in missing:
                _link(links[name], own.stage(name))
            dataset = dataset_content(
                labels=info.labels,
                num_training=sum(split_of(name) == "Tr" for name in cases),
                description=f"{info.description}; training labels by reader {reader}",
                trained_on="synthetic",
            )
            write_json(own.stage(DATASET_FILE), dataset)
            own.add(content)
        finally:
            own.discard()
    return folder


def _readers_of_all(source: Path, names: Collection[str], at_least: int) -> int:
    """Return how many readers, counted from 1, have contoured every case of the source or are to do so."""
    number = at_least
    while names and all(reader_path(source, name, number + 1, split_of(name)).is_file() for name in names):
        number += 1
    return number


def _origins(name: str, n_readers: int, reader: int) -> dict[str, str]:
    """Return the files of a displaced case, each with the file of the source that it is."""
    split = split_of(name)
    image, label, *readers = case_files(name, split, n_readers)
    origins = {image: image, label: label, **{drawn: drawn for drawn in readers}}
    if split == "Tr":
        origins |= {label: str(reader_path(Path(), name, reader)), str(Path("truthTr", Path(label).name)): label}
    return origins


def _refuse_folders_of(source: Path, folder: Path, origins: Iterable[dict[str, str]]) -> None:
    """Refuse to write into a folder of the source, through whatever link."""
    pairs = [pair for of_case in origins for pair in of_case.items()]
    taken = {(source / parent).resolve() for parent in {Path(origin).parent for _, origin in pairs}}
    for parent in sorted({Path(name).parent for name, _ in pairs}):
        if (folder / parent).resolve() in taken:
            raise InputError(f"{folder / parent}: is a folder of {source} itself; choose another folder")


def _refuse_missing(source: Path, origins: Iterable[Path], reader: int) -> None:
    """Refuse a source that lacks a file."""
    for origin in origins:
        if not origin.is_file():
            raise InputError(
                f"{origin}: is missing; make the cohort in {source} again, with {reader} readers or more"
            )


def _link(origin: Path, path: Path) -> None:
    """Make `path` the same file as `origin`, or a copy of it."""
    with suppress(OSError):  # another file system, or one without hard links
        os.link(origin, path)
        return
    shutil.copyfile(origin, path)
