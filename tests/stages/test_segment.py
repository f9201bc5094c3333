"""Stage 2: where its field lies; windows and crops cover it, agree with one pass, and are weighted right."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from metricunet.networks import Network, NetworkOutput, UNet, VNet
from metricunet.specs import SegmentSpec
from metricunet.stages.forward import crop_probabilities, field_probabilities
from metricunet.stages.network_input import normalise_hu
from metricunet.stages.segment import View, central_crop, covered_part, read_field, segment_spec
from metricunet.stages.tiles import window_starts
from metricunet.training.config import load_config
from metricunet.volume import Geometry, Volume

WINDOW = (-100.0, 100.0)


def spec(slices: int, crop_voxels: tuple[int, int, int] = (6, 8, 8)) -> SegmentSpec:
    return SegmentSpec({"in_channels": slices}, (2.0, 1.0, 1.0), crop_voxels, WINDOW)


class Marker(Network):
    """A network whose answer is known: the logit of class 1 is the place of the slice within the window."""

    in_channels, spatial_dims, divisor = 1, 3, 1

    def forward_with_maps(self, images: Tensor) -> NetworkOutput:
        self.depths = [*getattr(self, "depths", []), images.shape[2]]
        place = torch.arange(images.shape[2], dtype=torch.float32)[:, None, None].expand(images.shape[2:])
        logits = torch.stack([torch.zeros_like(place), place])[None]
        return NetworkOutput(logits, [images], images)

    def encode(self, images: Tensor) -> list[Tensor]:
        return [images]

    @property
    def encoder_parts(self) -> list[torch.nn.Module]:
        return []


@given(st.integers(1, 40), st.integers(0, 100))
def test_windows_cover_a_length_and_share_half(window: int, more: int) -> None:
    length = window + more
    starts = window_starts(length, window)
    assert (starts[0], starts[-1] + window) == (0, length)
    assert starts == sorted(set(starts))
    steps = [b - a for a, b in pairwise(starts)]
    assert all(step <= max(1, window // 2 + 1) for step in steps)
    assert len(starts) <= more / max(1, window // 2) + 2


def test_overlapping_windows_are_averaged_by_their_weights() -> None:
    """By hand: 6 slices, windows of 4 from 0 and 2; weights in a window 1, 2, 2, 1."""
    found = crop_probabilities(Marker(), spec(4), torch.zeros(6, 2, 2), "fp32")
    own = torch.arange(4.0).sigmoid()
    wanted = [own[0], own[1], (2 * own[2] + own[0]) / 3, (own[3] + 2 * own[1]) / 3, own[2], own[3]]
    torch.testing.assert_close(found[1, :, 0, 0], torch.stack(wanted))
    torch.testing.assert_close(found.sum(dim=0), torch.ones(6, 2, 2))


def test_memory_is_that_of_one_window() -> None:
    marker = Marker()
    crop_probabilities(marker, spec(8), torch.zeros(50, 2, 2), "fp32")
    assert set(marker.depths) == {8}
    assert len(marker.depths) == len(window_starts(50, 8))


def test_a_crop_of_one_window_is_one_pass() -> None:
    torch.manual_seed(0)
    network = VNet(1, 3, 2, levels=3).eval()
    crop = torch.randn(8, 8, 12) * 80
    with torch.no_grad():
        wanted = network(normalise_hu(crop, WINDOW)[None, None]).softmax(dim=1)[0]
    torch.testing.assert_close(crop_probabilities(network, spec(8), crop, "fp32"), wanted)


def test_a_crop_of_fewer_slices_than_a_window_goes_on_beyond_its_end() -> None:
    torch.manual_seed(0)
    network = UNet(1, 2, 2, levels=3, spatial_dims=3).eval()
    crop = torch.randn(5, 8, 8) * 80
    longer = torch.cat([crop, crop[-1:].expand(3, -1, -1)])
    found = crop_probabilities(network, spec(8), crop, "fp32")
    assert found.shape == (2, 5, 8, 8)
    torch.testing.assert_close(found, crop_probabilities(network, spec(8), longer, "fp32")[:, :5])


def test_the_order_of_slices_is_kept_in_every_kind() -> None:
    """A bright slab stays where it is: no shift between slices and answers."""
    torch.manual_seed(0)
    crop = torch.zeros(24, 8, 8)
    for network, slices in ((UNet(3, 2, 2, levels=2), 3), (UNet(1, 2, 2, levels=2, spatial_dims=3), 8)):
        network.eval()
        still = crop_probabilities(network, spec(slices), crop, "fp32")
        assert still.shape == (2, 24, 8, 8)
        if slices == 3:
            changed = crop.clone()
            changed[10] = torch.rand(8, 8) * 50
            gap = (crop_probabilities(network, spec(slices), changed, "fp32") - still).abs().flatten(2).sum(dim=2)
            assert gap.sum(dim=0).nonzero()[:, 0].tolist() == [9, 10, 11]


def test_a_field_of_one_crop_is_one_run() -> None:
    torch.manual_seed(0)
    network = UNet(3, 2, 2, levels=2).eval()
    crop = torch.randn(6, 8, 8) * 80
    found = field_probabilities(network, spec(3, (6, 8, 8)), crop, "fp32")
    assert torch.equal(found, crop_probabilities(network, spec(3), crop, "fp32"))


class Sizes(Marker):
    """Answers with the place of a column within its picture, and keeps the sides of all pictures."""

    spatial_dims = 2

    def forward_with_maps(self, images: Tensor) -> NetworkOutput:
        self.depths = [*getattr(self, "depths", []), tuple(images.shape[2:])]
        place = torch.arange(images.shape[3], dtype=torch.float32).expand(len(images), 1, *images.shape[2:])
        return NetworkOutput(torch.cat([torch.zeros_like(place), place], dim=1), [images], images)


def test_a_larger_field_is_covered_by_crops_of_the_trained_size() -> None:
    """By hand: 6 columns, crops of 4 from 0 and 2; weights in a crop 1, 2, 2, 1."""
    network = Sizes()
    found = field_probabilities(network, spec(1, (3, 2, 4)), torch.zeros(3, 2, 6), "fp32")
    assert set(network.depths) == {(2, 4)}
    own = torch.arange(4.0).sigmoid()
    wanted = [own[0], own[1], (2 * own[2] + own[0]) / 3, (own[3] + 2 * own[1]) / 3, own[2], own[3]]
    for k in range(3):
        torch.testing.assert_close(found[1, k, 0], torch.stack(wanted))
    torch.testing.assert_close(found.sum(dim=0), torch.ones(3, 2, 6))


def test_a_field_larger_along_every_axis_has_no_seams_where_the_answer_does_not_depend_on_place() -> None:
    torch.manual_seed(0)
    field = torch.randn(9, 12, 12) * 50
    network = Pointwise()
    found = field_probabilities(network, spec(1, (6, 8, 8)), field, "fp32")
    torch.testing.assert_close(found, crop_probabilities(network, spec(1), field, "fp32"))


class Pointwise(Marker):
    """Each voxel's answer is its own value."""

    spatial_dims = 2

    def forward_with_maps(self, images: Tensor) -> NetworkOutput:
        return NetworkOutput(torch.cat([images * 0, images * 5], dim=1), [images], images)


GRID = Geometry.from_parts((30, 40, 50), (3.0, 1.5, 1.5), (-37.0, -30.0, 500.0))


def test_a_field_is_read_around_its_middle_with_air_beyond_the_scan() -> None:
    """The scan's HU are the LPS x of each voxel, so that resampling must give back the x of the field's voxels."""
    index = np.stack(np.meshgrid(*[np.arange(n) for n in GRID.shape], indexing="ij"), axis=-1)
    scan = Volume(GRID.to_world(index)[..., 0].astype(np.float32), GRID)
    middle = GRID.centre_mm + np.array([20.0, 0.0, 0.0])
    field = read_field(spec(1, (4, 10, 40)), scan, View(middle, (1.0, 1.0, 1.5)))
    assert field.array.shape == (4, 10, 60)
    np.testing.assert_allclose(field.geometry.centre_mm, middle)
    assert field.spacing_mm == pytest.approx((2.0, 1.0, 1.0))
    x_mm = field.geometry.to_world([[2, 5, k] for k in range(60)])[:, 0]
    inside = x_mm < GRID.to_world([0, 0, 49])[0]
    assert 10 < inside.sum() < 50
    np.testing.assert_allclose(field.array[2, 5][inside], x_mm[inside], atol=1e-3)
    assert field.array[2, 5, -1] == -1024


def test_the_part_of_a_scan_that_fields_cover() -> None:
    """Fields of 12 x 20 x 20 mm and 24 x 12 x 12 mm about voxel (10, 20, 25): the longer side decides."""
    view = View(GRID.to_world([10, 20, 25]))
    part, start = covered_part([spec(1, (6, 20, 20)), spec(1, (12, 12, 12))], GRID, view)
    assert start == (6, 14, 19)
    assert part.shape == (9, 13, 13)
    np.testing.assert_allclose(part.origin_mm, GRID.to_world(start))
    # At the scan's corner only what lies in the scan counts, and far outside one voxel is left.
    assert covered_part([spec(1, (6, 20, 20))], GRID, View(GRID.to_world([0, 0, 0])))[1] == (0, 0, 0)
    assert covered_part([spec(1)], GRID, View(GRID.to_world([-99, 20, 99])))[0].shape == (1, 5, 1)


def test_the_middle_of_a_box() -> None:
    box = Volume(np.arange(30 * 40 * 50).reshape(GRID.shape), GRID)
    crop = central_crop(box, (4, 10, 21))
    np.testing.assert_array_equal(crop.array, box.array[13:17, 15:25, 14:35])
    np.testing.assert_allclose(crop.geometry.origin_mm, GRID.to_world([13, 15, 14]))


def test_what_a_training_chooses_of_stage_two() -> None:
    flat = segment_spec(load_config().segment, 3)
    assert (flat.network["in_channels"], flat.network["classes"], flat.network["norm"]) == (5, 3, "instance")
    assert (flat.crop_voxels, flat.block_slices, flat.input_slices) == ((48, 128, 128), None, 5)
    solid = ["segment.network=vnet", "segment.spatial_dims=3", "segment.block_slices=16"]
    vnet = segment_spec(load_config(settings=solid).segment, 2)
    assert (vnet.network["architecture"], vnet.network["in_channels"]) == ("vnet", 1)
    assert (vnet.block_slices, vnet.input_slices) == (16, 16)
    assert vnet.crop_mm == (96.0, 128.0, 128.0)
