"""Feature measures: known answers, oracles, and that they read what they say from where they say."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree

from metricunet.evaluation.feature_picture import draw_principal_axes
from metricunet.evaluation.features import (
    VoxelFeatures,
    balanced_accuracy,
    band_features,
    fisher_ratio,
    fit_probes,
    linear_probe,
    nearest_classes,
    principal_axes,
    standardised,
)
from metricunet.metric.sampling import boundary_band
from metricunet.networks import UNet


def clouds(gap: float, seed: int = 0, voxels: int = 400, channels: int = 5) -> VoxelFeatures:
    """Two normal clouds of unit variance, `gap` apart along the first channel."""
    draw = np.random.default_rng(seed)
    classes = np.arange(voxels) % 2
    values = draw.normal(size=(voxels, channels))
    values[:, 0] += gap * classes
    return VoxelFeatures(values, classes)


def test_fisher_ratio_by_hand() -> None:
    """Means at 0 and 4, so each is 2 from their middle; each class varies by 1: 4 / 1."""
    values = np.array([[-1.0], [1], [3], [5], [3], [5]])
    classes = np.array([0, 0, 1, 1, 1, 1])
    assert fisher_ratio(values, classes) == pytest.approx(4)
    assert fisher_ratio(10 * values + 3, classes) == pytest.approx(4)
    assert fisher_ratio(np.array([[0.0], [0], [1], [1]]), np.array([0, 0, 1, 1])) == np.inf
    assert fisher_ratio(np.zeros((4, 1)), np.array([0, 0, 1, 1])) == 0


def test_nearest_neighbours_are_those_of_a_tree() -> None:
    fitted, scored = clouds(1.0, 0), clouds(1.0, 1, voxels=2100)
    found = nearest_classes(fitted.values, fitted.classes, scored.values, 7)
    _, nearest = cKDTree(fitted.values).query(scored.values, 7)
    votes = fitted.classes[nearest].mean(axis=1)
    assert (found == (votes > 0.5)).all()


def test_the_linear_probe_is_the_minimum() -> None:
    """Against torch: the gradient of the stated problem vanishes there; and classes count alike."""
    part = clouds(1.5)
    kept = (part.classes == 0) | (np.arange(400) < 60)
    values, classes = part.values[kept], part.classes[kept]
    probe = linear_probe(values, classes, penalty=0.01)
    weights = torch.tensor(probe.weights, requires_grad=True)
    offsets = torch.tensor(probe.offsets, requires_grad=True)
    scores = torch.tensor(values) @ weights + offsets
    each = torch.nn.functional.cross_entropy(scores, torch.tensor(classes), reduction="none")
    loss = torch.stack([each[torch.tensor(classes == c)].mean() for c in (0, 1)]).mean()
    (loss + 0.005 * weights.square().sum()).backward()
    assert weights.grad is not None
    assert offsets.grad is not None
    assert weights.grad.abs().max() < 1e-4
    assert offsets.grad.abs().max() < 1e-4


def test_the_measures_of_normal_clouds() -> None:
    """Two unit clouds 3 apart: the best classifier is right with probability Phi(1.5) = 0.933."""
    found = fit_probes(clouds(3.0, 0, 4000)).measure(clouds(3.0, 1, 4000))
    assert found.probe_accuracy == pytest.approx(0.933, abs=0.012)
    assert found.knn_accuracy == pytest.approx(0.92, abs=0.025)
    # The gap of 3 makes the first channel's variance 1 + 1.5^2; scaled by it: 2.25 / 3.25 over 4 + 1 / 3.25.
    assert found.fisher_ratio == pytest.approx((2.25 / 3.25) / (4 + 1 / 3.25), rel=0.08)
    none = fit_probes(clouds(0.0, 0, 4000)).measure(clouds(0.0, 1, 4000))
    assert none.probe_accuracy == pytest.approx(0.5, abs=0.04)
    assert none.knn_accuracy == pytest.approx(0.5, abs=0.04)
    assert none.fisher_ratio < 0.005


def test_the_measures_know_no_scale_and_no_silent_channel() -> None:
    training, held_out = clouds(2.0, 0), clouds(2.0, 1)
    one = fit_probes(training).measure(held_out)
    factor = np.array([1e-3, 1, 5, 100, 1])

    def changed(part: VoxelFeatures) -> VoxelFeatures:
        return VoxelFeatures(np.column_stack([part.values * factor + 7, np.full(400, 3.0)]), part.classes)

    two = fit_probes(changed(training)).measure(changed(held_out))
    assert two.fisher_ratio == pytest.approx(one.fisher_ratio, rel=1e-6)
    assert two.knn_accuracy == pytest.approx(one.knn_accuracy, abs=0.01)
    assert two.probe_accuracy == pytest.approx(one.probe_accuracy, abs=0.01)
    assert np.isfinite(standardised(np.ones((3, 2)), np.ones((3, 2)))).all()


def test_three_classes_and_balance() -> None:
    draw = np.random.default_rng(0)
    classes = np.repeat([0, 1, 2], [300, 60, 60])
    values = draw.normal(size=(420, 3)) + 8 * np.eye(3)[classes]
    part = VoxelFeatures(values, classes)
    found = fit_probes(part).measure(part)
    assert (found.knn_accuracy, found.probe_accuracy) == (1, 1)
    assert balanced_accuracy(np.zeros(420, dtype=np.int64), classes) == pytest.approx(1 / 3)


def test_one_class_alone_is_refused() -> None:
    alone = VoxelFeatures(np.zeros((4, 2)), np.zeros(4, dtype=np.int64))
    with pytest.raises(ValueError, match="held-out voxels are of one class"):
        fit_probes(clouds(1)).measure(alone)
    with pytest.raises(ValueError, match="do not belong"):
        VoxelFeatures(np.zeros((4, 2)), np.zeros(3, dtype=np.int64))


def test_features_are_those_of_the_decoder_map_in_the_band() -> None:
    torch.manual_seed(0)
    network = UNet(3, 2, 4, levels=3).eval()
    hu = torch.randint(-200, 300, (20, 16, 16)).to(torch.int16)
    labels = torch.zeros(20, 16, 16, dtype=torch.uint8)
    labels[5:15, 4:11, 5:12] = 1
    read = partial(
        band_features, network, hu, labels, (-150.0, 250.0), 3, spacing_mm=(3.0, 1.0, 1.0), band_mm=2.0, voxels=60
    )
    found = read()
    assert found.values.shape == (60, 4)
    assert np.bincount(found.classes).tolist() == [30, 30]
    # Each of them is the feature of some voxel of its class in the band, computed slice by slice here.
    stack = torch.nn.functional.pad(
        (hu.float() - 50).div(200).clamp(-1, 1)[None, None], (0, 0, 0, 0, 1, 1), "replicate"
    )
    with torch.inference_mode():
        maps = [network.forward_with_maps(stack[:, 0, z : z + 3]).decoder_maps[0][0] for z in range(20)]
    dense = torch.stack(maps).permute(0, 2, 3, 1).numpy()
    band = boundary_band(labels[None], 2.0, (3.0, 1.0, 1.0), 2)[0].numpy()
    for c in (0, 1):
        pool = dense[band & (labels.numpy() == c)]
        gaps = np.abs(found.values[found.classes == c][:, None] - pool[None]).max(axis=2).min(axis=1)
        assert gaps.max() < 1e-4
    # The same voxels whatever the network, others with another seed; torch's own random state is left alone.
    state = torch.get_rng_state()
    again = read()
    other = read(seed=1)
    assert torch.equal(state, torch.get_rng_state())
    assert np.array_equal(found.values, again.values)
    assert not np.array_equal(found.values, other.values)
    # A coarser map is read there, too.
    assert read(tap=1).values.shape == (60, 8)


def test_principal_axes_of_an_ellipse() -> None:
    draw = np.random.default_rng(0)
    turn = np.array([[0.8, 0.6, 0], [-0.6, 0.8, 0], [0, 0, 1]])
    values = draw.normal(size=(5000, 3)) * (3, 1, 0.1) @ turn + (5, 0, 0)
    mean, axes, shares = principal_axes(values)
    assert np.abs(axes - turn[:2] * np.array([[1], [1]])).max() < 0.05
    assert shares == pytest.approx([0.9, 0.1], abs=0.01)
    assert mean == pytest.approx([5, 0, 0], abs=0.15)


def test_the_picture_is_written(tmp_path: Path) -> None:
    arms = {
        "without metric learning": (clouds(1.0, 0), clouds(1.0, 1)),
        "with metric learning": (clouds(4.0, 0), clouds(4.0, 1)),
    }
    draw_principal_axes(arms, tmp_path / "pca.png", ["outside", "prostate"])
    assert (tmp_path / "pca.png").read_bytes()[:4] == b"\x89PNG"
    assert [p.name for p in tmp_path.iterdir()] == ["pca.png"]
