"""Random changes of training images, in batches, on the device the crops live on, seeded by the caller.

Where voxels are read (`Warp`) and what is done to their HU (`change_hu`). Nothing here waits for the device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from metricunet.metric.gathering import drawn
from metricunet.stages.network_input import normalise_hu
from metricunet.training.config import ELASTIC_GRID_MM, AugmentConfig

#: Contrast turns about soft tissue, so that it changes differences and not the gland's own level.
SOFT_TISSUE_HU = 40.0


def uniform(shape: tuple[int, ...], low: float, high: float, generator: Generator) -> Tensor:
    """Draw from low..high on the generator's device; the first side of the shape is the batch."""
    whole = drawn(
        lambda rows: torch.rand((rows, *shape[1:]), generator=generator, device=generator.device), shape[0]
    )
    return low + (high - low) * whole


def chosen(batch: int, share: float, generator: Generator) -> Tensor:
    """Return 1 for images that a change of this share befalls, else 0: [batch], real numbers."""
    return (uniform((batch,), 0, 1, generator) < share).float()


def in_plane_matrices(batch: int, config: AugmentConfig, mirror: bool, generator: Generator) -> Tensor:
    """Draw rotations in the axial plane, scalings and left-right mirrorings.

    Args:
        batch: number of crops.
        config: ranges of these changes.
        mirror: whether left and right may be exchanged.
        generator: generator of the random numbers.

    Returns:
        [batch, 2, 2] that map an offset (column, row) in mm in the output to the offset in the input to read from.
    """
    angle = uniform((batch,), -config.rotation_deg, config.rotation_deg, generator) * (math.pi / 180)
    scale = 1 + uniform((batch, 2), -config.scale, config.scale, generator)
    flip = torch.ones(batch, device=generator.device)
    if mirror and config.mirror:
        flip = 1 - 2 * chosen(batch, 0.5, generator)
    cosine, sine = angle.cos(), angle.sin()
    rotation = torch.stack([torch.stack([cosine, -sine], 1), torch.stack([sine, cosine], 1)], 1)
    stretch = torch.diag_embed(torch.stack([scale[:, 0] * flip, scale[:, 1]], 1))
    return rotation @ stretch


class Warp:
    """Where the voxels of a crop are read: turned, scaled, mirrored, and moved by a smooth random field.

    A crop's map is one cubic B-spline on control points `ELASTIC_GRID_MM` apart. Such a spline reproduces straight
    lines, so rotation and scaling ride on the same points as the elastic field: only these few are drawn and
    multiplied, and a product with a fixed matrix along each axis spreads them over the voxels.

    The elastic field moves a point before rotation and scaling do. A control point moves by at most 0.4 of the
    distance to the next along each axis, below which a cubic B-spline cannot fold, in the plane or in space (Choi,
    Lee: Injectivity conditions of 2D and 3D uniform cubic B-spline functions, Graphical Models 2000).

    Args:
        shape: voxels of the crop: [slice,] row, column.
        spacing_mm: voxel spacing along the same axes.
        config: ranges of the changes.
        mirror: whether left and right may be exchanged.
        device: device on which crops are read.
    """

    def __init__(
        self,
        shape: Sequence[int],
        spacing_mm: Sequence[float],
        config: AugmentConfig,
        mirror: bool,
        device: torch.device,
    ) -> None:
        self.config, self.mirror = config, mirror
        self.half_mm = [(n - 1) / 2 * step for n, step in zip(shape, spacing_mm, strict=True)]
        self.spacing_mm = list(spacing_mm)
        bases, points = [], []
        for n, step in zip(shape, spacing_mm, strict=True):
            basis, places_mm = spline_basis(n, step)
            bases.append(basis.to(device))
            points.append(places_mm)
        # The innermost product keeps the coordinates side by side, as grid_sample wants them.
        bases[-1] = torch.kron(bases[-1], torch.eye(len(shape), device=device)).T.contiguous()
        self._bases = bases
        grids = torch.meshgrid(*points, indexing="ij")
        self._points_mm = torch.stack(grids[::-1], dim=-1).to(device)
        self._per_mm = torch.tensor([1 / step for step in reversed(self.spacing_mm)], device=device)

    def draw(self, batch: int, generator: Generator) -> tuple[Tensor, Tensor]:
        """Draw the maps of a batch.

        Returns:
            [batch, *control points, axes], where the control points go: offsets (column, row[, slice]) from the
            middle that the crop's middle reads, in voxels; and whether left and right are exchanged: bool [batch].
        """
        points, config = self._points_mm[None], self.config
        if config.rotation_deg or config.scale or (self.mirror and config.mirror):
            plane = in_plane_matrices(batch, config, self.mirror, generator)
        else:
            plane = torch.eye(2, device=generator.device).expand(batch, 2, 2)
        if config.elastic_mm and config.elastic_share:
            moved = chosen(batch, config.elastic_share, generator).view(batch, *[1] * (points.dim() - 1))
            shape = (batch, *points.shape[1:])
            points = points + moved * uniform(shape, -config.elastic_mm, config.elastic_mm, generator)
        else:
            points = points.expand(batch, *points.shape[1:])
        turned = torch.bmm(points[..., :2].flatten(1, -2), plane.transpose(1, 2)).view_as(points[..., :2])
        mirrored = plane[:, 0, 0] * plane[:, 1, 1] < plane[:, 0, 1] * plane[:, 1, 0]
        return torch.cat([turned, points[..., 2:]], dim=-1) * self._per_mm, mirrored

    def spread(self, points: Tensor) -> Tensor:
        """Evaluate the spline at every voxel: [batch, *control points, axes] to [batch, *shape, axes]."""
        batch, axes = points.shape[0], points.shape[-1]
        control = points.shape[1:-1]
        values = points
        lead = batch  # of the axes that hold voxels already
        for basis, count in zip(self._bases[:-1], control[:-1], strict=True):
            values = basis @ values.reshape(lead, count, -1)
            lead *= basis.shape[0]
        values = values.reshape(lead, -1) @ self._bases[-1]
        return values.view(batch, *[basis.shape[0] for basis in self._bases[:-1]], -1, axes)

    def grid(self, points: Tensor, middle: Tensor, size: Tensor) -> Tensor:
        """Return where each voxel of the crops reads, in grid_sample's coordinates.

        Args:
            points: the control points that `draw` returned.
            middle: [batch, axes], the voxel (column, row[, slice]) of the image that a crop's middle reads.
            size: [axes], voxels of the image in the same order.
        """
        middle = middle.view(len(middle), *[1] * (points.dim() - 2), -1)
        return self.spread((2 * (points + middle) + 1) / size - 1)

    def reach_voxels(self) -> tuple[int, ...]:
        """Return how far from its middle a crop may read, along [slice,] row, column."""
        half = [side + self.config.elastic_mm * bool(self.config.elastic_share) for side in self.half_mm]
        rows, columns = half[-2:]
        most = math.radians(self.config.rotation_deg)
        half[-2], half[-1] = (
            (1 + self.config.scale) * _furthest(rows, columns, most),
            (1 + self.config.scale) * _furthest(columns, rows, most),
        )
        return tuple(math.ceil(side / step) for side, step in zip(half, self.spacing_mm, strict=True))


def _furthest(along: float, across: float, most: float) -> float:
    """Return the greatest along * cos(angle) + across * sin(angle) for angles up to `most`."""
    angle = min(most, math.atan2(across, along))
    return along * math.cos(angle) + across * math.sin(angle)


def spline_basis(voxels: int, spacing_mm: float) -> tuple[Tensor, Tensor]:
    """Return the cubic B-splines along one axis, `ELASTIC_GRID_MM` apart, and where their control points lie.

    Returns:
        weights [voxels, control points], each row's sum 1, and offsets from the middle [control points] in mm.
    """
    offset_mm = (torch.arange(voxels, dtype=torch.float64) - (voxels - 1) / 2) * spacing_mm
    count = math.floor(2 * float(offset_mm[-1]) / ELASTIC_GRID_MM) + 4
    place_mm = float(offset_mm[0]) + ELASTIC_GRID_MM * (torch.arange(count, dtype=torch.float64) - 1)
    gap = (offset_mm[:, None] - place_mm).abs() / ELASTIC_GRID_MM
    near = 2 / 3 - gap.square() + gap**3 / 2
    far = (2 - gap).clamp(min=0) ** 3 / 6
    return torch.where(gap < 1, near, far).float(), place_mm.float()


def read(images: Tensor, grid: Tensor) -> Tensor:
    """Read images [batch, channels, *space] at a grid, linearly; beyond the image its border goes on."""
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def read_classes(labels: Tensor, grid: Tensor, values: Sequence[int]) -> Tensor:
    """Read classes at a grid: each voxel takes the class of the greatest share, the background (0) at a tie.

    Args:
        labels: [batch, *space], classes.
        grid: the grid that the images are read at.
        values: every class but the background that labels may hold.

    Returns:
        [batch, *crop], uint8.
    """
    shares = read(torch.stack([labels == value for value in values], dim=1).float(), grid)
    best, rest = shares[:, 0], 1 - shares[:, 0]
    found = torch.full_like(best, values[0], dtype=torch.uint8)
    for k, value in enumerate(values[1:], start=1):
        share = shares[:, k]
        found.masked_fill_(share > best, value)
        best, rest = torch.maximum(best, share), rest - share
    return found.mul_(best > rest)


class Sides:
    """What becomes of classes in images whose left and right are exchanged.

    Args:
        partners: class that each class becomes, the background's first, as
            `metricunet.cohort.names.mirrored_classes` returns them.
        device: device of the batches.
    """

    def __init__(self, partners: Sequence[int], device: torch.device) -> None:
        self._classes = torch.tensor(partners, device=device)
        table = torch.arange(256, dtype=torch.uint8)
        table[: len(partners)] = torch.tensor(partners, dtype=torch.uint8)
        self._table = table.to(device)

    def of_labels(self, labels: Tensor, mirrored: Tensor) -> Tensor:
        """Exchange the sides in mirrored images.

        Args:
            labels: [batch, *space], uint8 classes; ignored voxels stay so.
            mirrored: [batch], bool.
        """
        each = mirrored.view(-1, *[1] * (labels.dim() - 1))
        return torch.where(each, self._table[labels.long()], labels)

    def of_unknown(self, unknown: Tensor, mirrored: Tensor) -> Tensor:
        """Exchange the sides that were not contoured in mirrored images; `unknown` is bool [batch, classes]."""
        return torch.where(mirrored[:, None], unknown[:, self._classes], unknown)


def blur_matrices(length: int, sigma: Tensor) -> Tensor:
    """Return Gaussian smoothing along an axis as matrices [batch, length, length] for sigma [batch] in voxels.

    The weights of a row sum to 1; what would fall beyond the ends is shared among the voxels within. Sigma 0 is
    the identity.
    """
    place = torch.arange(length, dtype=torch.float32, device=sigma.device)
    square = (place[:, None] - place).square()
    return torch.softmax(-square / (2 * sigma.square().clamp(min=1e-6))[:, None, None], dim=2)


def low_resolution_matrices(length: int, factor: Tensor) -> Tensor:
    """Return sampling down and up along an axis as matrices [batch, length, length] for factors [batch] >= 1.

    Down: the mean over cells `factor` voxels wide. Up: linear between the middles of the cells, level beyond the
    outermost. The weights of a row sum to 1; factor 1 is the identity.
    """
    place = torch.arange(length, dtype=torch.float32, device=factor.device)
    wide = factor[:, None, None]
    # Cell k spans k * factor .. (k + 1) * factor, voxel i spans i .. i + 1. Cells beyond the image hold nothing.
    cell = place[:, None] * wide
    held = (torch.minimum(cell + wide, place + 1) - torch.maximum(cell, place)).clamp_(min=0)
    down = held / held.sum(dim=2, keepdim=True).clamp_(min=1e-6)
    last = torch.ceil(length / wide) - 1
    middle = torch.minimum(((place[:, None] + 0.5) / wide - 0.5).clamp_(min=0), last)
    up = (1 - (middle - place).abs()).clamp_(min=0)
    return up @ down


def smooth(images: Tensor, matrices: Sequence[Tensor]) -> Tensor:
    """Multiply images [batch, channels, *space] along each axis of space by that image's own matrix."""
    for axis, matrix in enumerate(matrices, start=2):
        shape = images.shape
        if axis == len(shape) - 1:
            images = torch.bmm(images.reshape(shape[0], -1, shape[-1]), matrix.transpose(1, 2)).view(shape)
        else:
            each = matrix[:, None].expand(-1, math.prod(shape[1:axis]), -1, -1).flatten(0, 1)
            images = torch.bmm(each, images.reshape(len(each), shape[axis], -1)).view(shape)
    return images


def change_hu(hu: Tensor, spacing_mm: Sequence[float], config: AugmentConfig, generator: Generator) -> Tensor:
    """Change sharpness, resolution, contrast, level and noise of each image on its own.

    Args:
        hu: [batch, channels, *space].
        spacing_mm: voxel spacing along the axes of space.
        config: ranges of the changes.
        generator: generator of the random numbers.

    Returns:
        HU of the same shape; the argument itself stays as it is.
    """
    batch, each = hu.shape[0], (hu.shape[0], *[1] * (hu.dim() - 1))
    matrices: list[Tensor] = []
    if config.blur_share and config.blur_mm:
        sigma_mm = chosen(batch, config.blur_share, generator) * uniform((batch,), 0, config.blur_mm, generator)
        matrices = [blur_matrices(n, sigma_mm / step) for n, step in zip(hu.shape[2:], spacing_mm, strict=True)]
    if config.low_resolution_share and config.low_resolution_factor > 1:
        more = uniform((batch,), 0, config.low_resolution_factor - 1, generator)
        factor = 1 + chosen(batch, config.low_resolution_share, generator) * more
        lower = [low_resolution_matrices(n, factor) for n in hu.shape[2:]]
        matrices = [low @ blur for low, blur in zip(lower, matrices, strict=True)] if matrices else lower
    if matrices:
        hu = smooth(hu, matrices)
    if config.contrast or config.shift_hu:
        contrast = 1 + uniform(each, -config.contrast, config.contrast, generator)
        level = uniform(each, -config.shift_hu, config.shift_hu, generator)
        hu = torch.addcmul(SOFT_TISSUE_HU * (1 - contrast) + level, hu, contrast)
    if config.noise_hu:
        noise = drawn(
            lambda rows: torch.randn((rows, *hu.shape[1:]), generator=generator, device=hu.device), batch
        )
        hu = torch.addcmul(hu, noise, uniform(each, 0, config.noise_hu, generator))
    return hu


def augmented_input(
    hu: Tensor,
    spacing_mm: Sequence[float],
    window: tuple[float, float],
    config: AugmentConfig,
    generator: Generator,
) -> Tensor:
    """Change HU (see `change_hu`) and map the window to -1..1."""
    return normalise_hu(change_hu(hu, spacing_mm, config, generator), window)
