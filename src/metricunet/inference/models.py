"""Which model files segment: those that are named, else those of the environment, else the shipped one."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from metricunet.errors import InputError, argument
from metricunet.files.exported import RECORD, is_exported, read_exported
from metricunet.files.json_file import read_json

#: The model that comes with the package. A build from a tree without it has none.
SHIPPED = Path(__file__).parents[1] / "models" / "base.safetensors"
#: The word for it where a model file is named.
BASE = "base"
#: Names a model file, or several to be averaged, with what separates paths in PATH between them.
VARIABLE = "METRICUNET_MODEL"
#: The model of a run folder, and what says of which folds the folder of a cross-validation consists.
MODEL_NAME, FOLDS_NAME = "model.safetensors", "folds.json"
#: Said in every run of the shipped model.
WARNING = "the shipped model was trained on synthetic scans only and not validated on patients: for research only"


def chosen_models(named: Sequence[Path] = ()) -> tuple[Path, ...]:
    """Return the model files to segment with.

    Args:
        named: files that the user names, or run folders with them; none where the choice is left to the
            environment and the package.

    Returns:
        The files that are named, else those of the environment variable METRICUNET_MODEL, else the shipped one. Of
        the folder of a run it is its model, of that of a cross-validation the model of each fold.

    Raises:
        InputError: the variable names a file that is not there, a folder holds no model or lacks that of a fold,
            or none is named and this build ships none.
    """
    if named:
        return tuple(file for path in named for file in models_at(path))
    found = tuple(
        file
        for entry in os.environ.get(VARIABLE, "").split(os.pathsep)
        if entry.strip()
        for file in models_at(Path(entry))
    )
    for path in found:
        if not path.is_file() and not is_exported(path):
            raise InputError(
                f"{path}: no such model file, and the environment variable {VARIABLE} names it; change the "
                f"variable, or name a model with {argument('models')}"
            )
    advice = f"name a model file with {argument('models')}, or in the environment variable {VARIABLE}"
    return found or (shipped_model(advice),)


def models_at(path: Path) -> tuple[Path, ...]:
    """Return the models that a path means: itself, those of a run folder or of a cross-validation, or for the word
    `base` the one that comes with the package.

    Raises:
        InputError: `base`, and this build ships none; a folder without a model, a cross-validation in which a fold
            has none yet, or a training with an exported model among its files, so that it is unclear which is
            meant.
    """
    if not path.is_dir():
        return (named_model(path),)
    if is_exported(path):
        if (trained := trained_in(path)) is not None:
            raise InputError(
                f"{path}: holds both {trained.name}, of a training, and {RECORD}, of an exported model, and they "
                f"need not be the same; move {RECORD} and the ONNX files into a folder of their own, and name the "
                "one that is meant"
            )
        return (path,)
    if (path / MODEL_NAME).is_file():
        return (path / MODEL_NAME,)
    if not (path / FOLDS_NAME).is_file():
        raise InputError(
            f"{path}: is a folder and holds no {MODEL_NAME}; name a model file, or the folder of a finished "
            "training"
        )
    files = tuple(path / fold_name(fold) / MODEL_NAME for fold in range(_fold_count(path / FOLDS_NAME)))
    for fold, file in enumerate(files):
        if not file.is_file():
            raise InputError(
                f"{path}: fold {fold} of its {len(files)} has no model; finish the cross-validation "
                f"({argument('resume', True)}), or name the models to be averaged one by one"
            )
    return files


def trained_in(folder: Path) -> Path | None:
    """Return the file that makes a folder that of a run or of a cross-validation; None for any other folder."""
    return next((path for name in (MODEL_NAME, FOLDS_NAME) if (path := folder / name).is_file()), None)


def fold_name(fold: int) -> str:
    """Return the name of the folder of a fold in that of its cross-validation."""
    return f"fold-{fold}"


def _fold_count(path: Path) -> int:
    content = read_json(path)
    splits = content.get("splits") if isinstance(content, dict) else None
    if not isinstance(splits, list) or not splits:
        raise InputError(f"{path}: does not say which folds there are (splits); name the model files one by one")
    return len(splits)


def shipped_model(advice: str = "give a model file") -> Path:
    """Return the path of the model that comes with the package.

    Args:
        advice: what to do where there is none.

    Raises:
        InputError: this build ships none.
    """
    if not SHIPPED.is_file():
        raise InputError(
            f"this build of metricunet ships no model; {advice} (`metricunet train` makes one, and so does "
            "`metricunet demo`)"
        )
    return SHIPPED


def named_model(path: Path) -> Path:
    """Return the one model that a path means: itself, or for the word `base` the one that comes with the package.

    Raises:
        InputError: `base`, and this build ships none.
    """
    return shipped_model() if path == Path(BASE) and not path.exists() else path


def warnings_of(models: Sequence[Path]) -> list[str]:
    """Return what has to be said, a line each, before these models segment anything.

    Raises:
        InputError: the folder of an exported model is damaged.
    """
    found: list[str] = []
    for path in models:
        if is_exported(path):
            found += read_exported(path, check=False).warnings
        elif path.exists() and SHIPPED.exists() and path.samefile(SHIPPED):
            found.append(WARNING)
    return list(dict.fromkeys(found))
