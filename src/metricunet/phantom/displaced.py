"""The same scans with a reader's contours to train on, without making or storing the images twice."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from metricunet.cohort.layout import read_dataset_json, write_dataset_json
from metricunet.errors import InputError
from metricunet.files.atomic import write_json, written_whole
from metricunet.files.record import sha256
from metricunet.phantom.cohort import RECIPE_FILE, TRUTH, holds_phantoms, read_recipe


def displace_cohort(source: Path, folder: Path, reader: int = 1) -> Path:
    """Make a second cohort of the same scans, whose training labels are a reader's contours.

    `labelsTr` is the reader's, `labelsTs` the true shape, `truthTr` the true shape of the training cases, and the
    readers' folders are as in the source. Files are hard links to those of the source, or copies where the file
    system has none, so the images take no room. A rerun adds what is missing.

    Args:
        source: a cohort that `make_cohort` wrote with `n_readers` of at least `reader`.
        folder: new or empty, or an earlier result of the same call.
        reader: 1 or higher.

    Returns:
        The folder.

    Raises:
        InputError: if the source has no such reader, or the folder holds anything else.
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
    wanted = {**recipe, "labels": f"reader{reader}"}
    _refuse_others(folder, wanted, cases)
    write_json(folder / RECIPE_FILE, {"recipe": wanted, "cases": cases})
    shared = [path for path in sorted(source.iterdir()) if path.is_dir() and path.name != "labelsTr"]
    for origin, name in ((drawn, "labelsTr"), (source / "labelsTr", "truthTr"), *((p, p.name) for p in shared)):
        for path in sorted(origin.glob("*.nii.gz")):
            _link(path, folder / name / path.name)
    write_dataset_json(
        folder,
        labels=info.labels,
        num_training=len(list((folder / "labelsTr").glob("*.nii.gz"))),
        description=f"{info.description}; training labels by reader {reader}",
        trained_on="synthetic",
    )
    return folder


def _refuse_others(folder: Path, recipe: dict[str, object], cases: dict[str, object]) -> None:
    """Refuse a folder that holds anything but an earlier result, from the same cases or fewer."""
    path = folder / RECIPE_FILE
    if not holds_phantoms(folder):
        return
    found, there = read_recipe(path)
    if found != recipe or any(cases.get(name) != facts for name, facts in there.items()):
        raise InputError(
            f"{path}: made from another cohort, or with other labels than {recipe['labels']!r}; "
            "choose another folder, or delete this one"
        )


def _link(origin: Path, path: Path) -> None:
    """Make `path` the same file as `origin`."""
    if path.exists() and (path.samefile(origin) or sha256([path]) == sha256([origin])):
        return
    if os.path.lexists(path):
        raise InputError(f"{path}: was changed since it was made; choose another folder for the displaced cohort")
    with written_whole(path) as temporary:
        try:
            os.link(origin, temporary)
        except OSError:  # another file system, or one without hard links
            shutil.copyfile(origin, temporary)
