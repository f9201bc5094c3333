"""Stage 2 in its crop: windows of 3D networks cover it, agree with one pass, and are weighted as they should."""

from __future__ import annotations

from itertools import pairwise

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from metricunet.inference.segment import crop_probabilities, field_probabilities, window_starts
from metricunet.networks import Network, NetworkOutput, UNet, VNet
from metricunet.networks.feeding import normalise_hu

WINDOW = (-100.0, 100.0)


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
    found = crop_probabilities(Marker(), torch.zeros(6, 2, 2), WINDOW, 4, "fp32")
    own = torch.arange(4.0).sigmoid()
    wanted = [own[0], own[1], (2 * own[2] + own[0]) / 3, (own[3] + 2 * own[1]) / 3, own[2], own[3]]
    torch.testing.assert_close(found[1, :, 0, 0], torch.stack(wanted))
    torch.testing.assert_close(found.sum(dim=0), torch.ones(6, 2, 2))


def test_memory_is_that_of_one_window() -> None:
    marker = Marker()
    crop_probabilities(marker, torch.zeros(50, 2, 2), WINDOW, 8, "fp32")
    assert set(marker.depths) == {8}
    assert len(marker.depths) == len(window_starts(50, 8))


def test_a_crop_of_one_window_is_one_pass() -> None:
    torch.manual_seed(0)
    network = VNet(1, 3, 2, levels=3).eval()
    crop = torch.randn(8, 8, 12) * 80
    with torch.no_grad():
        wanted = network(normalise_hu(crop, WINDOW)[None, None]).softmax(dim=1)[0]
    torch.testing.assert_close(crop_probabilities(network, crop, WINDOW, 8, "fp32"), wanted)


def test_a_crop_of_fewer_slices_than_a_window_goes_on_beyond_its_end() -> None:
    torch.manual_seed(0)
    network = UNet(1, 2, 2, levels=3, spatial_dims=3).eval()
    crop = torch.randn(5, 8, 8) * 80
    longer = torch.cat([crop, crop[-1:].expand(3, -1, -1)])
    found = crop_probabilities(network, crop, WINDOW, 8, "fp32")
    assert found.shape == (2, 5, 8, 8)
    torch.testing.assert_close(found, crop_probabilities(network, longer, WINDOW, 8, "fp32")[:, :5])


def test_the_order_of_slices_is_kept_in_every_kind() -> None:
    """A bright slab stays where it is: no shift between slices and answers."""
    torch.manual_seed(0)
    crop = torch.zeros(24, 8, 8)
    for network, slices in ((UNet(3, 2, 2, levels=2), 3), (UNet(1, 2, 2, levels=2, spatial_dims=3), 8)):
        network.eval()
        still = crop_probabilities(network, crop, WINDOW, slices, "fp32")
        assert still.shape == (2, 24, 8, 8)
        if slices == 3:
            changed = crop.clone()
            changed[10] = torch.rand(8, 8) * 50
            gap = (
                (crop_probabilities(network, changed, WINDOW, slices, "fp32") - still).abs().flatten(2).sum(dim=2)
            )
            assert gap.sum(dim=0).nonzero()[:, 0].tolist() == [9, 10, 11]


def test_a_field_of_one_crop_is_one_run() -> None:
    torch.manual_seed(0)
    network = UNet(3, 2, 2, levels=2).eval()
    crop = torch.randn(6, 8, 8) * 80
    found = field_probabilities(network, crop, (6, 8, 8), WINDOW, 3, "fp32")
    assert torch.equal(found, crop_probabilities(network, crop, WINDOW, 3, "fp32"))


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
    found = field_probabilities(network, torch.zeros(3, 2, 6), (3, 2, 4), WINDOW, 1, "fp32")
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
    found = field_probabilities(network, field, (6, 8, 8), WINDOW, 1, "fp32")
    torch.testing.assert_close(found, crop_probabilities(network, field, WINDOW, 1, "fp32"))


class Pointwise(Marker):
    """Each voxel's answer is its own value."""

    spatial_dims = 2

    def forward_with_maps(self, images: Tensor) -> NetworkOutput:
        return NetworkOutput(torch.cat([images * 0, images * 5], dim=1), [images], images)
