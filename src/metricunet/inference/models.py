"""Which model files segment: those that are named, else those of the environment, else the shipped one."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from metricunet.errors import InputError, argument
from metricunet.files.exported import is_exported, read_exported

#: The model that comes with the package. A build from a tree without it has none.
SHIPPED = Path(__file__).parents[1] / "models" / "base.safetensors"
#: Names a model file, or several to be averaged, with what separates paths in PATH between them.
VARIABLE = "METRICUNET_MODEL"
#: Said in every run of the shipped model.
WARNING = "the shipped model was trained on synthetic scans only and not validated on patients: for research only"


def chosen_models(named: Sequence[Path] = ()) -> tuple[Path, ...]:
    """Return the model files to segment with.

    Args:
        named: files that the user names; none where the choice is left to the environment and the package.

    Returns:
        The files that are named, else those of the environment variable METRICUNET_MODEL, else the shipped one.

    Raises:
        InputError: the variable names a file that is not there, or none is named and this build ships none.
    """
    if named:
        return tuple(named)
    found = tuple(Path(entry) for entry in os.environ.get(VARIABLE, "").split(os.pathsep) if entry.strip())
    for path in found:
        if not path.is_file() and not is_exported(path):
            raise InputError(
                f"{path}: no such model file, and the environment variable {VARIABLE} names it; change the "
                f"variable, or name a model with {argument('models')}"
            )
    advice = f"name a model file with {argument('models')}, or in the environment variable {VARIABLE}"
    return found or (shipped_model(advice),)


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
