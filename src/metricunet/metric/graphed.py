"""Branches replayed as CUDA graphs: on a GPU their many small kernels take longer to launch than to run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from metricunet.metric.branches import VoxelClassLoss, VoxelMetricLoss
from metricunet.metric.gathering import sharing
from metricunet.metric.losses import MetricOutput
from metricunet.metric.sampling import Sample


class GraphedBranch:
    """A callable branch, whose forward and backward pass are the replay of one graph each on a CUDA GPU.

    The first call captures the graphs for tensors of its layout (shapes, strides, types), its autocast, and the
    branch's settings as they are then; so does the first call after the branch's parameters have moved. A call
    with another layout goes to the branch itself, and so does every call on another device than the current GPU,
    without gradients, without logits, or on a share of a batch, which is no work of one process alone. Either way
    a seed of torch's generator draws the voxels that the branch itself would draw.

    What a replay returns is valid until the next one. The gradients of the branch's parameters are those of the
    last replay alone: set them to None before each backward pass, as `zero_grad()` does by default, and do not
    accumulate those of several calls.

    It is no module, so that a module that has it as an attribute does not list the branch's parameters twice.

    Args:
        branch: the branch, on the device that it is called on.
    """

    def __init__(self, branch: VoxelMetricLoss | VoxelClassLoss) -> None:
        self.branch = branch
        self._layout: Any = None
        self._addresses: list[int] = []
        self._replay: Callable[..., Any] | None = None

    def __call__(
        self,
        features: Tensor | Sequence[Tensor],
        labels: Tensor,
        logits: Tensor | None = None,
        spacing_mm: Sequence[float] | None = None,
        image: Tensor | None = None,
        contoured: int | None = None,
    ) -> MetricOutput:
        """Sample voxels and compute the loss; arguments and result are those of `VoxelBranch.forward`.

        The sample of a replay does not say how many of the images are contoured.
        """
        arguments = features, labels, logits, spacing_mm, image, contoured
        if logits is None or not torch.is_grad_enabled() or not _on_current_gpu(labels) or sharing():
            return cast(MetricOutput, self.branch(*arguments))
        pictured = () if image is None else (image,)
        tensors = (labels, logits.detach(), *pictured, *self.branch.maps_of(features))
        parameters = [*self.branch.parameters(), *self.branch.buffers()]
        layout = (
            *(_layout(tensor) for tensor in tensors),
            None if spacing_mm is None else tuple(spacing_mm),
            (bool(pictured), contoured),
            self.branch.training,
            _autocast(),
            [parameter.requires_grad for parameter in parameters],
        )
        addresses = [parameter.data_ptr() for parameter in parameters]
        if self._replay is None or addresses != self._addresses:
            self._replay = None  # a capture that fails leaves no graph, and the next call captures again
            self._replay = _captured(GraphStep(self.branch, spacing_mm, bool(pictured), contoured), tensors)
            self._layout, self._addresses = layout, addresses
        if layout != self._layout:
            return cast(MetricOutput, self.branch(*arguments))
        return unpacked(self._replay(*tensors))


class GraphStep(nn.Module):
    """A branch whose arguments and results are tensors alone, as a graph wants them; `unpacked` undoes it.

    Args:
        branch: the branch to call.
        spacing_mm: voxel spacing along each axis of the label grid, which the graph holds.
        pictured: whether intensities of the images follow the logits.
        contoured: number of images whose labels are contours, which the graph holds; None: all.
    """

    def __init__(
        self,
        branch: VoxelMetricLoss | VoxelClassLoss,
        spacing_mm: Sequence[float] | None,
        pictured: bool = False,
        contoured: int | None = None,
    ) -> None:
        super().__init__()
        self.branch, self.spacing_mm = branch, spacing_mm
        self.pictured, self.contoured = pictured, contoured
        self.training = branch.training  # and not of the branch's parts, which may differ

    def forward(self, labels: Tensor, logits: Tensor, *maps: Tensor) -> Any:
        """Call the branch, and return its result with the sample as a tuple.

        Args:
            labels: [batch, *space], integers.
            logits: [batch, classes, *space].
            *maps: feature maps [batch, channels, *coarse]; before them the intensities, where there are any.
        """
        image = maps[0] if self.pictured else None
        out = self.branch(maps[self.pictured :], labels, logits, self.spacing_mm, image, self.contoured)
        sample = out.sample
        certainty = () if sample.certainty is None else (sample.certainty,)
        return out._replace(sample=(sample.index, sample.classes, sample.valid, sample.hard, *certainty))


def unpacked(out: Any) -> MetricOutput:
    """Return the result of a branch, given that of its `GraphStep`."""
    statistics = {name: value.detach() for name, value in out.statistics.items()}
    return cast(MetricOutput, out._replace(sample=Sample(*out.sample), statistics=statistics))


def _captured(step: GraphStep, tensors: tuple[Tensor, ...]) -> Callable[..., Any]:
    """Capture a step for tensors of this layout; generator and buffers are left as they were found."""
    device = tensors[0].device
    before = torch.cuda.get_rng_state(device)
    buffers = list(step.buffers())
    held = [buffer.clone() for buffer in buffers]  # a memory bank takes up what it sees, warming up or not
    samples = tuple(tensor.detach().clone().requires_grad_(tensor.requires_grad) for tensor in tensors)
    enabled, dtype = _autocast()
    try:
        # Weights that autocast keeps would be of the capture, not of the replay.
        with torch.autocast("cuda", dtype=dtype, enabled=enabled, cache_enabled=False):
            replay = torch.cuda.make_graphed_callables(step, samples)
    finally:
        torch.cuda.set_rng_state(before, device)
        with torch.no_grad():
            for buffer, value in zip(buffers, held, strict=True):
                buffer.copy_(value)
    return cast(Callable[..., Any], replay)


def _on_current_gpu(tensor: Tensor) -> bool:
    """Tell whether a tensor lies on the current GPU, on a stream of which graphs are captured."""
    return tensor.device.type == "cuda" and tensor.device.index == torch.cuda.current_device()


def _layout(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.requires_grad


def _autocast() -> tuple[bool, torch.dtype]:
    return torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
