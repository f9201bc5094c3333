"""The model file: one safetensors file with the weights of all networks and a JSON card in its header.

No pickle is ever read. The card says how to build and feed the networks and what they were trained on.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metricunet.errors import InputError, is_out_of_memory
from metricunet.files.atomic import written_whole
from metricunet.specs import LocateSpec, SegmentSpec
from metricunet.structures import class_of, without

if TYPE_CHECKING:
    from pydantic import ValidationError
    from torch import Tensor

#: Raised when a file written before could no longer be read right.
FORMAT_VERSION = 1
#: Of a file with an organs' network, which versions of the program that know the former alone cannot read right.
ORGANS_FORMAT_VERSION = 2
CARD_KEY = "metricunet"
#: No card and table of tensors is longer than this many bytes. As objects they take a hundred times as many.
LONGEST_HEADER = 1 << 22
#: What a card may say. Wider than any network that was ever trained here; beyond are sizes that no machine bears.
MOST_CHANNELS = 2048
MOST_LEVELS = 10
MOST_CROP_VOXELS = 1 << 24
MOST_BLOCK_SLICES = 1024
SPACING_RANGE_MM = (0.1, 20.0)
WIDEST_HU = 100_000.0
LONGEST_NAME = 64
LONGEST_TEXT = 10_000
SHA256 = re.compile("[0-9a-f]{64}")
#: Scans of patients that a model of synthetic origin has to be evaluated on before a verdict may be `pass`.
LEAST_PATIENT_CASES = 20
INTENDED_USE = (
    "Research on segmentation of the prostate in CT. Not a medical device; every contour needs review by a "
    "qualified person before any use."
)


@dataclass(frozen=True)
class Calibration:
    """How stage 2's probabilities are made honest, fitted on the validation cases after training.

    Attributes:
        temperature: number that the log-probabilities are divided by; above 1 the network is too sure of itself.
        mm_scale: ratio of the true to the expected boundary error, by which the expected one is multiplied.
        boundary_error_mm: smallest and largest expected error of the validation cases.
        cases: number of these cases, each with the target.
        fit: mean negative log-likelihood of their voxels before (`nll_before`) and after (`nll_after`).
    """

    temperature: float
    mm_scale: float
    boundary_error_mm: tuple[float, float]
    cases: int
    fit: dict[str, float]


@dataclass(frozen=True)
class Ancestor:
    """A model whose weights a training began with, or that such a model was begun with in its turn.

    Attributes:
        name: name of its file, without the ending.
        weights_sha256: hash of its weights.
        synthetic: whether its own training saw synthetic scans only.
        cases: SHA-256 of the image files of each of its training cases; empty where they are not known.
        validation_cases: the same of its validation cases, which have chosen its epoch and calibration.
    """

    name: str
    weights_sha256: str
    synthetic: bool
    cases: tuple[str, ...] = ()
    validation_cases: tuple[str, ...] = ()


@dataclass(frozen=True)
class PatientScores:
    """How a model did on scans of patients which neither its training nor that of any ancestor has seen.

    Attributes:
        cases: number of the scans in which the reference holds the target.
        missed: number of these in which the model did not find it.
        means: mean of each measure over all scans, by structure and measure.
        scans: SHA-256 of the files of each scan.
        version: version of metricunet that scored them.
    """

    cases: int
    missed: int
    means: dict[str, dict[str, float]]
    scans: tuple[str, ...]
    version: str


@dataclass(frozen=True)
class ModelCard:
    """What a model file says of itself.

    Attributes:
        locate: stage 1.
        segment: stage 2.
        labels: structure name to its value in label files, of all networks.
        tg263: structure name to its standard name in structure sets (AAPM TG-263).
        target: the structure that steers localisation and crop.
        ranges: smallest and largest value seen in training, by quantity (`volume_ml`, `slice_spacing_mm`, ...;
            see `metricunet.training.card.training_ranges`). Verdicts check what is there, older cards have less.
        validation: scores on the validation cases, by measure; empty where there were none.
        trained_on: `synthetic`, or what the user says of the cohort.
        data_sha256: hash of the training files.
        seed: seed of the training.
        version: version of metricunet that wrote the file.
        license: licence of the weights.
        intended_use: what the model is for.
        format_version: version of the file's format.
        calibration: calibration of stage 2's probabilities; None where there were no validation cases, or the file
            is older.
        organs: the organs' network, which sees a larger crop around the same centre; None where there is none.
        organs_structures: the structures that it segments, its class k the k-th of them, from 1. All others are
            the two stages', in the order of the labels.
        lineage: models that this one descends from, the oldest first; empty where its training began with random
            weights, or the file is older.
        cases: SHA-256 of the image files of each training case, in the order of the hashes; empty where there are
            no such files, or the file is older.
        validation_cases: the same of the validation cases, which have chosen the epoch and the calibration.
        validated: scores on scans of patients; None where there are none.
    """

    locate: LocateSpec
    segment: SegmentSpec
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
    organs: SegmentSpec | None = None
    organs_structures: tuple[str, ...] = ()
    lineage: tuple[Ancestor, ...] = ()
    cases: tuple[str, ...] = ()
    validation_cases: tuple[str, ...] = ()
    validated: PatientScores | None = None

    @property
    def staged_labels(self) -> dict[str, int]:
        """Structures of stage 2 and their values; its class k is the k-th entry, from 1."""
        return without(self.labels, self.organs_structures)

    @property
    def target_class(self) -> int:
        """Stage 2's class of the target."""
        return class_of(self.staged_labels, self.target)

    @property
    def temperature(self) -> float:
        """Temperature of stage 2's probabilities; 1 where they are not calibrated."""
        return 1.0 if self.calibration is None else self.calibration.temperature

    @property
    def synthetic(self) -> bool:
        """Whether its own training saw synthetic scans only, whatever its ancestors saw."""
        return self.trained_on == "synthetic"

    @property
    def held_back(self) -> str:
        """Why no verdict on its masks is better than `review`; empty where one may be."""
        if self.validated is not None and self.validated.cases >= LEAST_PATIENT_CASES:
            return ""
        first = next((one for one in self.lineage if one.synthetic), None)
        if self.synthetic:
            origin = "was trained on synthetic scans only"
        elif first is not None:
            origin = f"descends from one that was trained on synthetic scans only ({first.name[:LONGEST_NAME]})"
        else:
            return ""
        return f"the model {origin}, and its card has no evaluation on {LEAST_PATIENT_CASES} or more patients"


def card_content(card: ModelCard) -> dict[str, Any]:
    """Return a card as plain values, as the file holds it and `metricunet info --json` prints it."""
    content = asdict(card)
    if card.organs is None:
        del content["organs"], content["organs_structures"]
    # Both stages have the same keys in the file, so that every version of the format reads every file of it.
    stage_one = content["locate"]
    content["locate"] = {
        "network": stage_one["network"],
        "spacing_mm": stage_one["spacing_mm"],
        "crop_voxels": None,
        "hu_window": stage_one["hu_window"],
        "block_slices": None,
    }
    return content


def write_model(path: Path, card: ModelCard, weights: dict[str, Tensor]) -> None:
    """Write a model file, whole or not at all; the weights are named as by `joined`."""
    from safetensors.torch import save

    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    content = save(contiguous, metadata={CARD_KEY: json.dumps(card_content(card))})
    # Its `save_file` makes files that their owner alone may read, and has an error of its own for a full disk.
    with written_whole(path) as temporary:
        temporary.write_bytes(content)


def joined(
    locate: Mapping[str, Tensor], segment: Mapping[str, Tensor], organs: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Return the weights of all networks by their names in a model file.

    Args:
        locate: weights of stage 1 by their names in its network; may be empty.
        segment: weights of stage 2, likewise.
        organs: weights of the organs' network, likewise; None where there is none.
    """
    stages = {"locate": locate, "segment": segment, "organs": organs or {}}
    return {f"{stage}.{name}": tensor for stage, own in stages.items() for name, tensor in own.items()}


def halved(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights as float16, but for those too large for it; networks compute in float32 all the same."""
    half = {name: t.half() if t.is_floating_point() else t for name, t in weights.items()}
    return {name: t if t.isfinite().all() else weights[name] for name, t in half.items()}


def of_stage(weights: Mapping[str, Tensor], stage: str) -> dict[str, Tensor]:
    """Return the weights of a stage by their names in its network.

    Args:
        weights: weights by their names in a model file.
        stage: `locate`, `segment` or `organs`.
    """
    prefix = f"{stage}."
    return {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}


def read_card(path: Path) -> ModelCard:
    """Read the card alone, without torch and without the weights.

    Raises:
        InputError: not a model file, damaged, or written by a newer version of the format.
    """
    return card_of(path, _header(path))


def read_model(path: Path, device: str = "cpu") -> tuple[ModelCard, dict[str, Tensor]]:
    """Read card and weights; raise the errors of `read_card`."""
    card = read_card(path)
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        weights = load_file(path, device=device)
    # KeyError: a type of numbers that torch lacks; RuntimeError: a shape that it cannot give to the bytes.
    except (SafetensorError, OSError, KeyError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path}: the model file is damaged ({reason}); copy it again") from error
    for name, tensor in weights.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise InputError(
                f"{path}: the weights {name[:LONGEST_NAME]} are not all finite, so the training failed or the "
                "file is damaged; copy it again, or choose another model"
            )
    return card, weights


def _header(path: Path) -> dict[str, Any]:
    """Read the JSON header of a safetensors file: 8 bytes of length, little endian, then the text."""
    if not path.is_file():
        files = sorted(path.glob("*.safetensors"))  # none where it is no folder
        advice = (
            f"name the one in it, {files[0]}"
            if files
            else "train one with `metricunet train`, or run `metricunet demo`"
        )
        raise InputError(f"{path}: {'is a folder, and no' if path.is_dir() else 'no such'} model file; {advice}")
    try:
        with path.open("rb") as handle:
            length = int.from_bytes(handle.read(8), "little")
            if not 2 <= length <= min(path.stat().st_size - 8, LONGEST_HEADER):
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
        reason = "no card in its header" if isinstance(error, KeyError) else " ".join(str(error).split())[:200]
        raise InputError(
            f"{path}: not a metricunet model file ({reason}); expected the model.safetensors of a training run"
        ) from error


def card_of(path: Path, content: dict[str, Any]) -> ModelCard:
    """Return a card from plain values, as `card_content` makes them.

    Args:
        path: the file that held them, for messages.
        content: the values.

    Raises:
        InputError: damaged, or of a newer version of the format.
    """
    found = content.get("format_version")
    if not isinstance(found, int):
        raise InputError(f"{path}: the card's format_version is {repr(found)[:80]}; expected a whole number")
    if found > ORGANS_FORMAT_VERSION:
        raise InputError(
            f"{path}: model format {found} is newer than this metricunet reads ({ORGANS_FORMAT_VERSION}); "
            "upgrade with `pip install --upgrade metricunet`"
        )
    from pydantic import TypeAdapter, ValidationError  # not needed to write a card

    try:
        card = TypeAdapter(ModelCard).validate_python(content)
        for stage in (card.locate, card.segment, card.organs or card.segment):
            # Files from before there was a choice name no architecture.
            stage.network.setdefault("architecture", "unet")
        _check(card)
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, ValidationError):
            reason = _first(error)
        else:
            reason = f"{error} is missing" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise InputError(f"{path}: the model's card is damaged ({reason[:200]}); copy the file again") from error
    return card


def _first(error: ValidationError) -> str:
    """Say what is wrong with the first field that is."""
    found = error.errors(include_url=False)[0]
    field = ".".join(map(str, found["loc"]))
    if found["type"] == "missing":
        return f"{field} is missing"
    expected = found["msg"].replace("Input should be", "expected", 1)
    return " ".join(f"{field}: {expected}, found {repr(found['input'])[:LONGEST_NAME]}".split())


def _check(card: ModelCard) -> None:
    """Make sure that networks can be built and fed as a card says, on any machine.

    Raises:
        ValueError: the field, what it holds, and what was expected.
    """
    for name in ("target", "trained_on", "data_sha256", "version", "license", "intended_use"):
        _expect(len(getattr(card, name)) <= LONGEST_TEXT, name, f"a text of at most {LONGEST_TEXT} characters")
    labels = list(card.labels.items())
    own = len(set(card.labels.values())) == len(labels) > 0
    named = all(is_name(name) and 1 <= value <= 65535 for name, value in labels)
    _expect(own and named, "labels", "structures with values of their own from 1 to 65535")
    _expect(all(map(is_name, card.tg263.values())), "tg263", "a standard name for each structure")
    if card.target not in card.labels or not set(card.labels) <= set(card.tg263):
        raise ValueError(f"target {card.target[:LONGEST_NAME]!r} or its standard name is missing from the labels")
    _expect(all(math.isfinite(a) and a <= b < math.inf for a, b in card.ranges.values()), "ranges", "low and high")
    _expect(all(math.isfinite(v) for v in card.validation.values()), "validation", "finite numbers")
    if card.calibration is not None:
        for name in ("temperature", "mm_scale"):
            value = getattr(card.calibration, name)
            _expect(0 < value < math.inf, f"calibration.{name}", "a number above 0")
        low, high = card.calibration.boundary_error_mm
        _expect(0 <= low <= high < math.inf, "calibration.boundary_error_mm", "low and high")
    organs = card.organs_structures
    apart = len(set(organs)) == len(organs) and card.target not in organs
    known = apart and set(organs) <= set(card.labels) and bool(organs) == (card.organs is not None)
    _expect(known, "organs_structures", "structures of the organs' network, each once, the target not among them")
    _check_origin(card)
    _check_stage("locate", card.locate, len(labels) - len(organs) + 1)
    _expect(card.locate.network["in_channels"] == 1, "locate.network.in_channels", "1")
    _check_box("segment", card.segment, len(labels) - len(organs) + 1)
    if card.organs is not None:
        _check_box("organs", card.organs, len(organs) + 1)


def _check_box(name: str, stage: SegmentSpec, classes: int) -> None:
    _check_stage(name, stage, classes)
    fits = min(stage.crop_voxels) >= 1 and math.prod(stage.crop_voxels) <= MOST_CROP_VOXELS
    _expect(fits, f"{name}.crop_voxels", f"three sides of at most {MOST_CROP_VOXELS} voxels together")
    block = 1 if stage.block_slices is None else stage.block_slices
    _expect(1 <= block <= MOST_BLOCK_SLICES, f"{name}.block_slices", f"1 to {MOST_BLOCK_SLICES}")
    # Neighbours lie on both sides of the slice in 2.5D; in 3D slices are no channels.
    _expect(stage.input_slices % 2 == 1 or stage.block_slices is not None, "in_channels", "odd")


def _check_origin(card: ModelCard) -> None:
    trainings: tuple[ModelCard | Ancestor, ...] = (card, *card.lineage)
    hashes = [value for one in trainings for value in (*one.cases, *one.validation_cases)]
    hashes += [one.weights_sha256 for one in card.lineage]
    names = [one.name for one in card.lineage]
    if card.validated is not None:
        hashes += card.validated.scans
        names.append(card.validated.version)
        counted = 0 <= card.validated.missed <= card.validated.cases <= len(card.validated.scans)
        _expect(counted, "validated", "no more cases than scans, and no more missed than cases")
        means = [value for means in card.validated.means.values() for value in means.values()]
        _expect(all(map(math.isfinite, means)), "validated.means", "finite numbers")
    _expect(all(map(SHA256.fullmatch, hashes)), "lineage, cases and validated", "hashes of 64 hexadecimal digits")
    _expect(all(len(name) <= LONGEST_TEXT for name in names), "lineage", f"at most {LONGEST_TEXT} characters")


def _check_stage(name: str, stage: LocateSpec | SegmentSpec, classes: int) -> None:
    low, high = SPACING_RANGE_MM
    _expect(all(low <= v <= high for v in stage.spacing_mm), f"{name}.spacing_mm", f"{low:g} to {high:g} mm")
    bottom, top = stage.hu_window
    _expect(-WIDEST_HU <= bottom < top <= WIDEST_HU, f"{name}.hu_window", "low and high HU")
    for key, value in stage.network.items():
        field = f"{name}.network.{str(key)[:LONGEST_NAME]}"
        _expect(_is_small(value), field, f"whole numbers from 1 to {MOST_CHANNELS}, or a word")
    _expect(
        stage.network["classes"] == classes, f"{name}.network.classes", f"{classes}, one more than its structures"
    )
    _expect(stage.network.get("levels", 1) <= MOST_LEVELS, f"{name}.network.levels", f"at most {MOST_LEVELS}")


def is_name(value: str) -> bool:
    """Tell whether a card can name a structure so."""
    return 0 < len(value) <= LONGEST_NAME and value.isprintable()


def _is_small(value: Any) -> bool:
    """Tell whether a network's argument is one that cannot make it boundless."""
    if isinstance(value, list):
        return len(value) <= MOST_LEVELS and all(_is_small(v) for v in value)
    if isinstance(value, int) and not isinstance(value, bool):
        return 1 <= value <= MOST_CHANNELS
    if isinstance(value, float):
        return 0 <= value <= 1
    return value is None or (isinstance(value, str) and len(value) <= LONGEST_NAME)


def _expect(holds: bool, field: str, expected: str) -> None:
    if not holds:
        raise ValueError(f"{field}: expected {expected}")
