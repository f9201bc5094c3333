"""An exported model: a folder with one ONNX file for each network and the card beside them.

Its record, `card.json`, holds the model's card, how each network is fed, and the hash of each file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metricunet.errors import InputError
from metricunet.files.json_file import read_json
from metricunet.files.model import ModelCard, card_of, read_card
from metricunet.files.own import FILES
from metricunet.files.record import sha256

RECORD = "card.json"
#: Raised when a folder written before could no longer be read right.
FORMAT_VERSION = 1
#: Names of the one input and the one output of each network.
IMAGES, PROBABILITIES = "images", "probabilities"
#: No network halves its sides more often than a card may say.
LARGEST_DIVISOR = 1 << 10


@dataclass(frozen=True)
class ExportedNetwork:
    """One network of an exported model.

    Attributes:
        path: of the ONNX file.
        spatial_dims: 2 or 3.
        divisor: what every side of its space must be a multiple of.
    """

    path: Path
    spatial_dims: int
    divisor: int


@dataclass(frozen=True)
class ExportedModel:
    """What an exported model says of itself.

    Attributes:
        card: of the model file that it was exported from.
        networks: by the names of their stages: `locate`, `segment`, and `organs` where the card has it.
        warnings: what is to be said before it segments anything, as of the model file.
    """

    card: ModelCard
    networks: Mapping[str, ExportedNetwork]
    warnings: tuple[str, ...]


def is_exported(path: Path) -> bool:
    """Tell whether a path is the folder of an exported model, whole or not."""
    return (path / RECORD).is_file()


def read_exported(path: Path, *, check: bool = True) -> ExportedModel:
    """Read what an exported model says of itself.

    Args:
        path: the folder.
        check: whether the networks' files must have the bytes that were exported.

    Raises:
        InputError: no such folder, damaged, or written by a newer version of the format.
    """
    record = path / RECORD
    if not record.is_file():
        raise InputError(f"{path}: holds no {RECORD}; expected a folder that `metricunet export` has written")
    content = read_json(record, "; export the model again")
    try:
        version, stages, files = content["format_version"], content["stages"], content[FILES]
        if not isinstance(version, int) or version > FORMAT_VERSION:
            raise InputError(
                f"{record}: its format is {str(version)[:40]}, and this metricunet reads {FORMAT_VERSION}; "
                "upgrade with `pip install --upgrade metricunet`, or export the model again"
            )
        card = card_of(record, content["card"])
        expected = {name for name in ("locate", "segment", "organs") if getattr(card, name) is not None}
        if set(stages) != expected:
            raise ValueError(f"stages {', '.join(stages)}, expected {', '.join(sorted(expected))}")
        networks = {name: _network(path, stage) for name, stage in stages.items()}
        warnings = tuple(map(str, content["warnings"]))
        for network in networks.values():
            if check and (not network.path.is_file() or sha256([network.path]) != files[network.path.name]):
                state = "is damaged, or of another export" if network.path.is_file() else "is missing"
                raise InputError(
                    f"{network.path}: {state}; copy the whole folder again, or export the model again"
                )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        reason = f"{error} is missing" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise InputError(f"{record}: is damaged ({reason[:200]}); export the model again") from error
    return ExportedModel(card, networks, warnings)


def _network(folder: Path, stage: Mapping[str, Any]) -> ExportedNetwork:
    name, dims, divisor = stage["file"], stage["spatial_dims"], stage["divisor"]
    if not isinstance(name, str) or Path(name).name != name:
        raise ValueError(f"file {str(name)[:40]!r}, expected the name of a file in the folder")
    if dims not in (2, 3) or not isinstance(divisor, int) or not 1 <= divisor <= LARGEST_DIVISOR:
        raise ValueError(f"spatial_dims {dims} and divisor {divisor}, expected 2 or 3, and 1 to {LARGEST_DIVISOR}")
    return ExportedNetwork(folder / name, dims, divisor)


def read_any_card(path: Path) -> ModelCard:
    """Read the card of a model file, or of an exported model's folder.

    Raises:
        InputError: as `read_card`, or as `read_exported`.
    """
    return read_exported(path, check=False).card if is_exported(path) else read_card(path)


def files_of_model(path: Path) -> tuple[Path, ...]:
    """Return the files that a model consists of: itself, or those in an exported model's folder."""
    if not is_exported(path):
        return (path,)
    return (path / RECORD, *sorted(path.glob("*.onnx")))
