"""Exporting a model to ONNX: a file for each network, checked against torch, and the card beside them."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from metricunet.errors import InputError
from metricunet.files.atomic import written_whole
from metricunet.files.claim import claimed
from metricunet.files.exported import FORMAT_VERSION, IMAGES, PROBABILITIES, RECORD
from metricunet.files.model import card_content
from metricunet.files.own import OwnFiles
from metricunet.files.record import sha256
from metricunet.inference.models import trained_in, warnings_of
from metricunet.inference.onnx_predictor import import_onnxruntime
from metricunet.inference.predictor import LoadedModel, load_model
from metricunet.networks import Network
from metricunet.specs import LocateSpec, SegmentSpec
from metricunet.workflows.export.result import Exported

#: The version of ONNX's operators. Every onnxruntime from 1.14 (2023) on knows it.
OPSET = 18
#: By how much a probability may differ between torch and onnxruntime on the input that an export is checked with.
LARGEST_DIFFERENCE = 1e-3
#: Sides of stage 1's input in the check, in units of what it halves to one; and others, for they are free.
TRACED_SIDES, CHECKED_SIDES = (4, 5, 6), (5, 3, 4)
TRACED_BATCH, CHECKED_BATCH = 2, 3


class Probabilities(nn.Module):
    """A network and the softmax of its logits."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Return probabilities [batch, classes, *space]."""
        logits: Tensor = self.network(images)
        return logits.softmax(dim=1)


def export_onnx(model: Path, output: Path, *, overwrite: bool = False) -> Exported:
    """Write a model's networks as ONNX files, and `card.json` with the card and how they are fed.

    The input `images` is float32 [batch, channels, *space], HU already mapped to -1..1; the output `probabilities`
    is float32 [batch, classes, *space]. The batch is free. The space of stage 1 is free, too, in multiples of what
    card.json calls its `divisor`; that of the others is the one they were trained on. Each network is compared
    with torch's on random input.

    Args:
        model: the model file.
        output: folder of locate.onnx, segment.onnx, organs.onnx where the model has it, and card.json.
        overwrite: whether files of others that have an output's name are replaced.

    Raises:
        InputError: a model that cannot be read or exported, packages that are not installed, a file in the place
            of an output, or a folder that is that of a training.
    """
    _check_installed()
    if (trained := trained_in(output)) is not None:
        raise InputError(
            f"{output}: is the folder of a training ({trained.name}), whose name means the trained model; choose "
            "another folder for the exported one"
        )
    loaded = load_model(model, torch.device("cpu"))
    stages = {name: getattr(loaded, name) for name in ("locate", "segment", "organs") if getattr(loaded, name)}
    names = {stage: f"{stage}.onnx" for stage in stages}
    own = OwnFiles(output, RECORD, "export", overwrite=overwrite, inputs=[model])
    own.check(names.values())
    with claimed(own.claim, "an export"):
        try:
            described = {}
            for stage, network in stages.items():
                sides = _sides(loaded, stage)
                with written_whole(own.stage(names[stage])) as file:
                    difference = _export(model, stage, network, file, sides)
                described[stage] = {
                    "file": names[stage],
                    "spatial_dims": network.spatial_dims,
                    "divisor": network.divisor,
                    "images": ["batch", network.in_channels, *(sides or ("slices", "rows", "columns"))],
                    "largest_difference": difference,
                }
            own.commit(
                {
                    "format_version": FORMAT_VERSION,
                    "opset": OPSET,
                    "stages": described,
                    "card": card_content(loaded.card),
                    "warnings": warnings_of([model]),
                    "model_sha256": sha256([model]),
                    "versions": {name: version(name) for name in ("metricunet", "torch", "onnx")},
                }
            )
        finally:
            own.discard()
    worst = max(float(stage["largest_difference"]) for stage in described.values())
    return Exported(
        output,
        (*names.values(), RECORD),
        (
            f"{', '.join(names.values())} and {RECORD} in {output} (opset {OPSET}); on random input no "
            f"probability differs from torch's by more than {worst:.1e}",
            f"predict with: metricunet predict SCAN -m {output} -o OUT",
        ),
    )


def _check_installed() -> None:
    try:
        import_onnxruntime()
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"export to ONNX needs {error.name}, which is not installed; run `pip install onnx onnxruntime "
            "onnxscript`"
        ) from error


def _sides(loaded: LoadedModel, stage: str) -> tuple[int, ...] | None:
    """Return the sides of the space that the predictor feeds a stage with; None where they are free."""
    spec: LocateSpec | SegmentSpec = getattr(loaded.card, stage)
    if isinstance(spec, LocateSpec):
        return None
    in_slice = spec.crop_voxels[1:]
    network: Network = getattr(loaded, stage)
    return (spec.input_slices, *in_slice) if network.spatial_dims == 3 else in_slice


def _export(model: Path, stage: str, network: Network, file: Path, sides: Sequence[int] | None) -> float:
    """Export one network, and return by how much its probabilities differ from torch's at most."""
    free = {2: "slices", 3: "rows", 4: "columns"} if sides is None else {}
    traced = [n * network.divisor for n in TRACED_SIDES] if sides is None else list(sides)
    images = torch.zeros(TRACED_BATCH, network.in_channels, *traced)
    computed = Probabilities(network).eval()
    try:
        with _quiet():
            torch.onnx.export(
                computed,
                (images,),
                str(file),
                input_names=[IMAGES],
                output_names=[PROBABILITIES],
                dynamic_shapes=({0: "batch", **free},),
                opset_version=OPSET,
                dynamo=True,
                external_data=False,
                verbose=False,
            )
    except OSError:  # the disk, of which the caller tells
        raise
    except Exception as error:  # torch's exporter has many
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{model}: the network of {stage} cannot be exported ({reason})") from error
    return _checked(model, stage, network, computed, file, sides)


def _checked(
    model: Path, stage: str, network: Network, computed: nn.Module, file: Path, sides: Sequence[int] | None
) -> float:
    onnxruntime = import_onnxruntime()
    shape = [n * network.divisor for n in CHECKED_SIDES] if sides is None else list(sides)
    generator = torch.Generator().manual_seed(0)
    images = torch.empty(CHECKED_BATCH, network.in_channels, *shape).uniform_(-1, 1, generator=generator)
    with torch.inference_mode():
        wanted = computed(images).numpy()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    found: Any = session.run([PROBABILITIES], {IMAGES: images.numpy()})[0]
    difference = float(np.abs(found - wanted).max()) if found.shape == wanted.shape else float("inf")
    if not difference <= LARGEST_DIFFERENCE:
        raise InputError(
            f"{model}: the exported network of {stage} differs from torch's by {difference:.2g} in a probability, "
            f"more than {LARGEST_DIFFERENCE:g}; torch {torch.__version__} does not export it right, so try another"
        )
    return difference


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep to itself what torch's exporter says to its developers."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
