"""The forward pass of both stages on arrays, with networks that are opaque functions: no torch is needed.

What `metricunet.stages.forward` does with networks of torch, in the same order and with the same numbers.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from metricunet.specs import LocateSpec, SegmentSpec
from metricunet.stages.tiles import Kind, averaged, over_crops

FloatArray = NDArray[np.float32]

#: Slices that go through a 2.5D network at once. On a CPU more are slower, for their maps leave the caches.
SLICES_AT_ONCE = 8
ARRAYS: Kind[FloatArray] = Kind(lambda shape: np.zeros(shape, dtype=np.float32), np.asarray)


class ArrayNetwork(Protocol):
    """A network that takes float32 [batch, channels, *space] and returns probabilities [batch, classes, *space].

    Attributes:
        spatial_dims: 2 or 3.
        divisor: what every side of the space must be a multiple of.
    """

    @property
    def spatial_dims(self) -> int: ...  # noqa: D102

    @property
    def divisor(self) -> int: ...  # noqa: D102

    def __call__(self, images: FloatArray) -> FloatArray: ...  # noqa: D102


def scaled_hu(hu: NDArray[np.number], window: tuple[float, float]) -> FloatArray:
    """Map the HU window to -1..1, linearly, and clip what lies outside. Any shape."""
    low, high = window
    scaled = (hu.astype(np.float32) - np.float32((low + high) / 2)) / np.float32((high - low) / 2)
    return scaled.clip(-1, 1)


def coarse_shares(network: ArrayNetwork, spec: LocateSpec, coarse: NDArray[np.number]) -> FloatArray:
    """Run stage 1 over a scan that is on the coarse grid already. Air is added until the network can halve it.

    Args:
        network: network of stage 1.
        spec: the spec of stage 1.
        coarse: HU [slice, row, column].

    Returns:
        Probabilities [classes, slice, row, column].
    """
    padding = [(0, -side % network.divisor) for side in coarse.shape]
    images = np.pad(scaled_hu(coarse, spec.hu_window), padding, constant_values=-1.0)
    slices, rows, columns = coarse.shape
    return network(images[None, None])[0, :, :slices, :rows, :columns].copy()


def field_shares(network: ArrayNetwork, spec: SegmentSpec, field: NDArray[np.number]) -> FloatArray:
    """Run stage 2 over a field that may be larger than its crop, see `metricunet.stages.tiles`.

    Args:
        network: network of stage 2.
        spec: the spec of stage 2.
        field: HU [slice, row, column], no side shorter than the crop's.

    Returns:
        Probabilities [classes, slice, row, column].
    """
    crop_shares = _in_blocks if network.spatial_dims == 3 else _slice_by_slice
    images = scaled_hu(field, spec.hu_window)
    return over_crops(images, spec.crop_voxels, lambda crop: crop_shares(network, crop, spec.input_slices), ARRAYS)


def _slice_by_slice(network: ArrayNetwork, images: FloatArray, slices: int) -> FloatArray:
    """Each slice with its neighbours; the outermost slices are repeated beyond the ends."""
    reach = slices // 2
    padded = np.pad(images, ((reach, reach), (0, 0), (0, 0)), mode="edge")
    stacks = np.moveaxis(sliding_window_view(padded, slices, axis=0), -1, 1)
    parts = [
        network(np.ascontiguousarray(stacks[first : first + SLICES_AT_ONCE]))
        for first in range(0, len(stacks), SLICES_AT_ONCE)
    ]
    return np.ascontiguousarray(np.concatenate(parts).swapaxes(0, 1))


def _in_blocks(network: ArrayNetwork, images: FloatArray, slices: int) -> FloatArray:
    """Block by block, as deep as those that the network was trained on."""
    depth = len(images)
    if depth < slices:
        images = np.pad(images, ((0, slices - depth), (0, 0), (0, 0)), mode="edge")

    def find(block: FloatArray) -> FloatArray:
        shares: FloatArray = network(np.ascontiguousarray(block)[None, None])[0]
        return shares

    found: FloatArray = averaged(images, (slices, *images.shape[1:]), (True, False, False), find, ARRAYS)
    return np.ascontiguousarray(found[:, :depth])
