"""Random changes of training images, in batches, on the device the crops live on, seeded by the caller."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from metricunet.networks.feeding import normalise_hu
from metricunet.training.config import AugmentConfig


def uniform(shape: tuple[int, ...], low: float, high: float, generator: Generator) -> Tensor:
    """Draw from low..high on the generator's device."""
    return low + (high - low) * torch.rand(shape, generator=generator, device=generator.device)


def in_plane_matrices(batch: int, config: AugmentConfig, mirror: bool, generator: Generator) -> Tensor:
    """Draw rotations in the axial plane, scalings and left-right mirrorings.

    Args:
        batch: how many.
        config: their ranges.
        mirror: whether left and right may be exchanged.
        generator: of the random numbers.

    Returns:
        [batch, 2, 2] that map an offset (column, row) in the output to the offset in the input to read from.
    """
    angle = uniform((batch,), -config.rotation_deg, config.rotation_deg, generator) * (math.pi / 180)
    scale = 1 + uniform((batch, 2), -config.scale, config.scale, generator)
    flip = torch.ones(batch, device=generator.device)
    if mirror and config.mirror:
        flip = 1 - 2 * (uniform((batch,), 0, 1, generator) < 0.5).float()
    cosine, sine = angle.cos(), angle.sin()
    rotation = torch.stack([torch.stack([cosine, -sine], 1), torch.stack([sine, cosine], 1)], 1)
    stretch = torch.diag_embed(torch.stack([scale[:, 0] * flip, scale[:, 1]], 1))
    return rotation @ stretch


def read_plane(images: Tensor, centre: Tensor, matrices: Tensor, shape: tuple[int, int]) -> Tensor:
    """Read turned, scaled crops out of larger planes, linearly; beyond the plane its border goes on.

    Args:
        images: [batch, channels, rows, columns], real numbers.
        centre: [batch, 2], the voxel (column, row) that the crop's middle reads.
        matrices: [batch, 2, 2] from `in_plane_matrices`.
        shape: rows and columns of the crop.
    """
    rows, columns = shape
    offset_x = torch.arange(columns, device=images.device, dtype=torch.float32) - (columns - 1) / 2
    offset_y = torch.arange(rows, device=images.device, dtype=torch.float32) - (rows - 1) / 2
    offsets = torch.stack(torch.meshgrid(offset_x, offset_y, indexing="xy"), dim=-1)
    position = torch.einsum("bij,yxj->byxi", matrices, offsets) + centre[:, None, None, :]
    size = torch.tensor([images.shape[3], images.shape[2]], device=images.device, dtype=torch.float32)
    grid = (2 * position + 1) / size - 1
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def change_hu(hu: Tensor, config: AugmentConfig, generator: Generator) -> Tensor:
    """Change contrast, level, sharpness and noise of each image of a batch [batch, channels, *space], in HU."""
    batch, dims = hu.shape[0], hu.dim()
    each = (batch, *[1] * (dims - 1))
    if config.blur_share:
        pool = F.avg_pool2d if dims == 4 else F.avg_pool3d
        blurred = pool(hu, kernel_size=3, stride=1, padding=1, count_include_pad=False)
        chosen = (uniform(each, 0, 1, generator) < config.blur_share) * uniform(each, 0, 1, generator)
        hu = torch.lerp(hu, blurred, chosen)
    # Contrast turns about soft tissue, so that it changes differences and not the gland's own level.
    soft_tissue_hu = 40.0
    contrast = 1 + uniform(each, -config.contrast, config.contrast, generator)
    level = uniform(each, -config.shift_hu, config.shift_hu, generator)
    hu = (hu - soft_tissue_hu) * contrast + (soft_tissue_hu + level)
    if config.noise_hu:
        noise = torch.randn(hu.shape, generator=generator, device=hu.device)
        hu = hu + noise * uniform(each, 0, config.noise_hu, generator)
    return hu


def augmented_input(
    hu: Tensor, window: tuple[float, float], config: AugmentConfig, generator: Generator
) -> Tensor:
    """Change HU and map the window to -1..1."""
    return normalise_hu(change_hu(hu, config, generator), window)
