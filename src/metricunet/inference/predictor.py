"""The predictor with networks of torch: reads model files, and computes on a CPU or a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metricunet.errors import InputError, is_out_of_memory
from metricunet.files.model import ModelCard, of_stage, read_model
from metricunet.inference.inputs import check_models
from metricunet.inference.reruns import MOST_RERUNS
from metricunet.inference.segmenter import Segmenter, Stage
from metricunet.networks import Network, build_network
from metricunet.specs import SegmentSpec
from metricunet.stages.device import device_named
from metricunet.stages.forward import class_probabilities, field_probabilities
from metricunet.stages.network_input import Precision


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A model file, ready to compute; `organs` is None where it has no such network, or it is not wanted."""

    card: ModelCard
    locate: Network
    segment: Network
    organs: Network | None = None
    precision: Precision = "auto"

    def probabilities(self, stage: Stage, hu: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the probabilities of a stage; see `metricunet.inference.segmenter.StageModel`."""
        network = getattr(self, stage)
        voxels = torch.from_numpy(hu).to(next(network.parameters()).device)
        if stage == "locate":
            found = class_probabilities(network, voxels, self.card.locate.hu_window, self.precision)
        else:
            found = field_probabilities(network, getattr(self.card, stage), voxels, self.precision)
        return found.cpu().numpy()


def load_model(
    path: Path, device: torch.device, precision: Precision = "auto", organs: bool = True
) -> LoadedModel:
    """Read a model file and build its networks, to compute on a device in a precision.

    Without `organs` the organs' network is left out.

    Raises:
        InputError: not a model file, of a newer format, damaged, or its weights do not fit its card.
    """
    card, weights = read_model(path)
    networks = {}
    for stage in ("locate", "segment", "organs"):
        spec = getattr(card, stage)
        if spec is None or (stage == "organs" and not organs):
            continue
        networks[stage] = _build(path, stage, spec.network, of_stage(weights, stage)).to(device).eval()
        if stage != "locate":
            _check_fits(path, "stage 2" if stage == "segment" else "the organs' network", spec, networks[stage])
    return LoadedModel(card, **networks, precision=precision)


def _build(path: Path, stage: str, arguments: dict[str, Any], weights: dict[str, Tensor]) -> Network:
    try:
        # A network without memory of its own: what the card asks for is taken only where the weights are there.
        with torch.device("meta"):
            network = build_network(**arguments)
        for name, expected in network.state_dict().items():
            if name in weights and weights[name].is_floating_point() != expected.is_floating_point():
                raise ValueError(f"{name} holds {weights[name].dtype}, expected {expected.dtype}")
        network.load_state_dict(weights, assign=True)
        network.float()
    except (TypeError, ValueError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"{path}: the weights of stage {stage} do not fit its card ({reason}); copy it again"
        ) from error
    return network


def _check_fits(path: Path, stage: str, spec: SegmentSpec, network: Network) -> None:
    """Refuse a card with a crop that the stage's network cannot halve as often as it does.

    Raises:
        InputError: naming the sides.
    """
    in_slice = spec.crop_voxels[1:]
    sides = (spec.input_slices, *in_slice) if network.spatial_dims == 3 else in_slice
    if any(side % network.divisor for side in sides) or max(sides) <= network.normalised_stride:
        raise InputError(
            f"{path}: {stage} is to look at {' x '.join(map(str, sides))} voxels, expected multiples of "
            f"{network.divisor}; the model's card is damaged, copy the file again"
        )


class Predictor(Segmenter):
    """Segments scans with one model file, or with the mean probabilities of several.

    Args:
        models: model files; all must name the same structures, target and organs.
        device: `auto`, `cpu`, `cuda`, `cuda:N`, `gpu`, `gpu:N` or `mps`.
        precision: `auto`, `bf16` or `fp32`.
        reruns: how often stage 2 may look again, elsewhere or farther, where the target reaches its crop's edge.
        organs: whether the organs' network is wanted, where the models have one. Without it its structures are
            not segmented; all else is the same.

    Raises:
        InputError: no model, one that cannot be read, models of different structures, a device that is not there,
            or a negative number of reruns.
    """

    models: list[LoadedModel]  # type: ignore[assignment]
    device: torch.device

    def __init__(
        self,
        models: Sequence[Path],
        device: str = "auto",
        precision: Precision = "auto",
        reruns: int = MOST_RERUNS,
        organs: bool = True,
    ) -> None:
        check_models(models, reruns)
        where = device_named(device)
        self.precision = precision
        loaded = [load_model(path, where, precision, organs) for path in models]
        super().__init__(models, loaded, where, reruns, organs)
