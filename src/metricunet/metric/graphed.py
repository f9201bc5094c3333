"""A branch as CUDA graphs: on a GPU its several hundred small kernels take longer to launch than to run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from metricunet.metric.control import VoxelClassLoss, VoxelClassOutput
from metricunet.metric.sampling import Sample
from metricunet.metric.voxel_metric import VoxelMetricLoss, VoxelMetricOutput

VoxelOutput = VoxelMetricOutput | VoxelClassOutput


class GraphedBranch:
    """Calls a branch; on a CUDA GPU its forward and its backward pass are the replay of one graph each.

    The first call captures the graphs for tensors of its layout (shapes, strides, types) and its autocast; so does
    the first one after the branch's parameters have moved. A call with another layout goes to the branch itself,
    as every call on another device does. Either way the same seed of torch's generator draws the same voxels. What
    a replay returns is valid until the next one, and so are the gradients of the branch's parameters: give them to
    the optimiser before, and do not add up those of two calls.

    It is no module, so that a module that has it as an attribute does not list the branch's parameters twice.

    Args:
        branch: on the device that it is called on.
    """

    def __init__(self, branch: VoxelMetricLoss | VoxelClassLoss) -> None:
        self.branch = branch
        self._layout: Any = None
        self._places: list[int] = []
        self._replay: Callable[..., Any] | None = None

    def __call__(
        self,
        features: Sequence[Tensor],
        labels: Tensor,
        logits: Tensor,
        spacing_mm: Sequence[float] | None = None,
    ) -> VoxelOutput:
        """Sample voxels and compute the loss. Arguments and result as of `VoxelMetricLoss.forward`."""
        if labels.device.type != "cuda":
            return cast(VoxelOutput, self.branch(features, labels, logits, spacing_mm))
        tensors = (labels, logits.detach(), *features)
        layout = (*(_layout(tensor) for tensor in tensors), spacing_mm, self.branch.training, _autocast())
        places = [parameter.data_ptr() for parameter in self.branch.parameters()]
        if self._replay is None or places != self._places:
            self._layout, self._places = layout, places
            self._replay = _captured(_Step(self.branch, spacing_mm), tensors)
        if layout != self._layout:
            return cast(VoxelOutput, self.branch(features, labels, logits, spacing_mm))
        out = self._replay(*tensors)
        statistics = {name: value.detach() for name, value in out.statistics.items()}
        return cast(VoxelOutput, out._replace(sample=Sample(*out.sample), statistics=statistics))


class _Step(nn.Module):
    """A branch whose arguments and results are tensors alone."""

    def __init__(self, branch: VoxelMetricLoss | VoxelClassLoss, spacing_mm: Sequence[float] | None) -> None:
        super().__init__()
        self.branch, self.spacing_mm = branch, spacing_mm
        self.train(branch.training)

    def forward(self, labels: Tensor, logits: Tensor, *features: Tensor) -> Any:
        out = self.branch(features, labels, logits, self.spacing_mm)
        sample = out.sample
        return out._replace(sample=(sample.index, sample.classes, sample.valid, sample.hard))


def _captured(step: _Step, tensors: tuple[Tensor, ...]) -> Callable[..., Any]:
    """Capture a step for tensors of this layout; the generator is left as it was found."""
    device = tensors[0].device
    before = torch.cuda.get_rng_state(device)
    samples = tuple(tensor.detach().clone().requires_grad_(tensor.requires_grad) for tensor in tensors)
    enabled, dtype = _autocast()
    # Weights that autocast keeps would be of the capture, not of the replay.
    with torch.autocast("cuda", dtype=dtype, enabled=enabled, cache_enabled=False):
        replay = torch.cuda.make_graphed_callables(step, samples)
    torch.cuda.set_rng_state(before, device)
    return cast(Callable[..., Any], replay)


def _layout(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.requires_grad


def _autocast() -> tuple[bool, torch.dtype]:
    return torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
