"""The model file: one safetensors file with the weights of both stages and a JSON card in its header.

No pickle is ever read. The card says how to build and feed the networks and what they were trained on.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metricunet.errors import InputError
from metricunet.files.atomic import written_whole

if TYPE_CHECKING:
    from torch import Tensor

#: Raised when a file written before could no longer be read right.
FORMAT_VERSION = 1
CARD_KEY = "metricunet"
MODEL_SUFFIX = ".safetensors"
INTENDED_USE = (
    "Research on segmentation of the prostate in CT. Not a medical device; every contour needs review by a "
    "qualified person before any use."
)


@dataclass(frozen=True)
class StageCard:
    """How to build and feed one stage.

    Attributes:
        network: arguments of `metricunet.networks.build_network`.
        spacing_mm: voxel spacing of its grid: slice, row, column.
        crop_voxels: sides of its field of view; None where it takes the whole scan.
        hu_window: HU that map to -1 and 1; what lies outside is clipped.
        block_slices: of the windows of a 3D stage 2; None elsewhere.
    """

    network: dict[str, Any]
    spacing_mm: tuple[float, float, float]
    crop_voxels: tuple[int, int, int] | None
    hu_window: tuple[float, float]
    block_slices: int | None = None

    @property
    def input_slices(self) -> int:
        """Slices that stage 2's network takes: of a block in 3D, neighbours in 2.5D."""
        return self.block_slices or int(self.network["in_channels"])


@dataclass(frozen=True)
class Calibration:
    """How stage 2's probabilities are made honest, fitted on the validation cases after training.

    Attributes:
        temperature: that its log-probabilities are divided by; above 1 the network is too sure of itself.
        mm_scale: true over expected boundary error, by which the expected one is multiplied.
        boundary_error_mm: smallest and largest expected error of the validation cases.
        cases: how many there were, each with the target.
        fit: mean negative log-likelihood of their voxels before (`nll_before`) and after (`nll_after`).
    """

    temperature: float
    mm_scale: float
    boundary_error_mm: tuple[float, float]
    cases: int
    fit: dict[str, float]


@dataclass(frozen=True)
class ModelCard:
    """What a model file says of itself.

    Attributes:
        locate: stage 1.
        segment: stage 2.
        labels: structure name to its value in label files; the network's class k is the k-th entry, from 1.
        tg263: structure name to its standard name in structure sets (AAPM TG-263).
        target: the structure that steers localisation and crop.
        ranges: smallest and largest value seen in training, by quantity (`volume_ml`, `spacing_mm`, ...).
        validation: scores on the validation cases, by measure; empty where there were none.
        trained_on: `synthetic`, or what the user says of the cohort.
        data_sha256: hash of the training files.
        seed: seed of the training.
        version: version of metricunet that wrote the file.
        license: licence of the weights.
        intended_use: what the model is for.
        format_version: of this file.
        calibration: of stage 2's probabilities; None where there were no validation cases, or the file is older.
    """

    locate: StageCard
    segment: StageCard
    labels: dict[str, int]
    tg263: dict[str, str]
    target: str
    ranges: dict[str, tuple[float, float]]
    validation: dict[str, float]
    trained_on: str
    data_sha256: str
    seed: int
    version: str
    license: str = "as the user decides"
    intended_use: str = INTENDED_USE
    format_version: int = field(default=FORMAT_VERSION)
    calibration: Calibration | None = None

    @property
    def temperature(self) -> float:
        """Of stage 2's probabilities; 1 where they are not calibrated."""
        return 1.0 if self.calibration is None else self.calibration.temperature

    @property
    def synthetic(self) -> bool:
        """Whether the model has seen phantoms only."""
        return self.trained_on == "synthetic"


def write_model(path: Path, card: ModelCard, weights: dict[str, Tensor]) -> None:
    """Write a model file, whole or not at all. Names of weights begin with `locate.` or `segment.`."""
    from safetensors.torch import save_file

    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    with written_whole(path) as temporary:
        save_file(contiguous, temporary, metadata={CARD_KEY: json.dumps(asdict(card))})


def read_card(path: Path) -> ModelCard:
    """Read the card alone, without torch and without the weights.

    Raises:
        InputError: not a model file, damaged, or written by a newer version of the format.
    """
    return _card(path, _header(path))


def read_model(path: Path, device: str = "cpu") -> tuple[ModelCard, dict[str, Tensor]]:
    """Read card and weights. Errors as `read_card`."""
    card = read_card(path)
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return card, load_file(path, device=device)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: the model file is damaged ({error}); copy it again") from error


def _header(path: Path) -> dict[str, Any]:
    """Read the JSON header of a safetensors file: 8 bytes of length, little endian, then the text."""
    if not path.is_file():
        raise InputError(
            f"{path}: no such model file; train one with `metricunet train`, or run `metricunet demo`"
        )
    try:
        with path.open("rb") as handle:
            length = int.from_bytes(handle.read(8), "little")
            if not 2 <= length <= min(path.stat().st_size - 8, 100_000_000):
                raise ValueError("no safetensors header")
            header = json.loads(handle.read(length).decode("utf-8"))
        metadata = header["__metadata__"]
        if not isinstance(metadata, dict) or CARD_KEY not in metadata:
            raise ValueError("no metricunet card in its header")
        content = json.loads(metadata[CARD_KEY])
        if not isinstance(content, dict):
            raise ValueError("the card is no JSON object")
        return content
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        reason = "no card in its header" if isinstance(error, KeyError) else str(error)
        raise InputError(
            f"{path}: not a metricunet model file ({reason}); expected the model.safetensors of a training run"
        ) from error


def _card(path: Path, content: dict[str, Any]) -> ModelCard:
    found = content.get("format_version")
    if not isinstance(found, int):
        raise InputError(f"{path}: the card's format_version is {found!r}; expected a whole number")
    if found > FORMAT_VERSION:
        raise InputError(
            f"{path}: model format {found} is newer than this metricunet reads ({FORMAT_VERSION}); "
            "upgrade with `pip install --upgrade metricunet`"
        )
    try:
        known = {f.name for f in fields(ModelCard)}
        values = {name: value for name, value in content.items() if name in known}
        values["locate"] = _stage(content["locate"])
        values["segment"] = _stage(content["segment"])
        values["ranges"] = {k: (float(v[0]), float(v[1])) for k, v in content["ranges"].items()}
        values["calibration"] = _calibration(content.get("calibration"))
        values["labels"] = {str(k): int(v) for k, v in content["labels"].items()}
        card = ModelCard(**values)
        if card.target not in card.labels or not set(card.labels) <= set(card.tg263):
            raise ValueError(f"target {card.target!r} or its standard name is missing from the labels")
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise InputError(f"{path}: the model's card is damaged ({error}); copy the file again") from error
    return card


def _calibration(content: dict[str, Any] | None) -> Calibration | None:
    if content is None:
        return None
    low, high = content["boundary_error_mm"]
    found = Calibration(
        float(content["temperature"]),
        float(content["mm_scale"]),
        (float(low), float(high)),
        int(content["cases"]),
        {str(k): float(v) for k, v in content["fit"].items()},
    )
    if not (0 < found.temperature < math.inf and 0 < found.mm_scale < math.inf):
        raise ValueError(f"temperature {found.temperature} or mm_scale {found.mm_scale} is not above 0")
    return found


def _stage(content: dict[str, Any]) -> StageCard:
    spacing = [float(v) for v in content["spacing_mm"]]
    crop = content["crop_voxels"]
    low, high = content["hu_window"]
    block = content.get("block_slices")
    return StageCard(
        # Files from before there was a choice name no architecture.
        network={"architecture": "unet", **content["network"]},
        spacing_mm=(spacing[0], spacing[1], spacing[2]),
        crop_voxels=None if crop is None else (int(crop[0]), int(crop[1]), int(crop[2])),
        hu_window=(float(low), float(high)),
        block_slices=None if block is None else int(block),
    )
