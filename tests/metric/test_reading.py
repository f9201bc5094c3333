"""Reading feature maps at voxels: exact gathers, linear ramps, and torch's own interpolation as the oracle."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from metricunet.metric.reading import read_features


@pytest.mark.parametrize("shape", [(6, 5), (4, 3, 5)])
def test_one_grid_is_an_exact_gather(shape: tuple[int, ...]) -> None:
    features = torch.randn(2, 3, *shape)
    index = torch.randint(torch.Size(shape).numel(), (2, 9))
    read = read_features(features, index, shape)
    assert read.shape == (2, 9, 3)
    for b in range(2):
        for n in range(9):
            assert torch.equal(read[b, n], features[b].flatten(1)[:, index[b, n]])


@pytest.mark.parametrize(
    ("coarse", "fine", "mode"),
    [((4, 6), (8, 12), "bilinear"), ((3, 4, 5), (6, 8, 10), "trilinear"), ((5, 4), (10, 16), "bilinear")],
)
def test_a_coarser_map_is_read_as_torch_would_upsample_it(
    coarse: tuple[int, ...], fine: tuple[int, ...], mode: str
) -> None:
    features = torch.randn(2, 3, *coarse, dtype=torch.float64, requires_grad=True)
    index = torch.arange(torch.Size(fine).numel()).expand(2, -1)
    read = read_features(features, index, fine)
    expected = F.interpolate(features, fine, mode=mode, align_corners=False).flatten(2).transpose(1, 2)
    torch.testing.assert_close(read, expected, atol=1e-6, rtol=0)
    weights = torch.randn_like(read)
    (ours,) = torch.autograd.grad((read * weights).sum(), features, retain_graph=True)
    (theirs,) = torch.autograd.grad((expected * weights).sum(), features)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_other_dimensions_are_refused() -> None:
    with pytest.raises(ValueError, match="2 spatial axes, labels 3"):
        read_features(torch.zeros(1, 1, 4, 4), torch.zeros(1, 2, dtype=torch.long), (4, 4, 4))
