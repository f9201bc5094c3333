"""Sampling and reading: drawn pictures whose hard voxels are known by hand, brute-force bands, shares, edge cases.

Features are read as exact gathers and linear ramps, with torch's own interpolation as the oracle.
"""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from metricunet.metric.sampling import (
    SAMPLERS,
    BalancedSampler,
    HardEasySampler,
    NearSurface,
    Sampler,
    UniformSampler,
    boundary_band,
    build_sampler,
    doubt,
    draw,
    misclassified,
    read_features,
    sampler_settings,
)

IGNORE = 255


def picture(*rows: str) -> Tensor:
    """Draw labels: `.` background, `#` class 1, `o` class 2, `?` nobody knows."""
    table = {".": 0, "#": 1, "o": 2, "?": IGNORE}
    return torch.tensor([[[table[c] for c in row] for row in rows]], dtype=torch.uint8)


def brute_force_band(labels: Tensor, band_mm: float, spacing_mm: tuple[float, ...]) -> Tensor:
    places = [tuple(int(v) for v in p) for p in labels.new_ones(labels.shape).nonzero()]
    band = torch.zeros(labels.shape, dtype=torch.bool)
    for p in places:
        if labels[p] == IGNORE:
            continue
        for q in places:
            squared = sum(((a - b) * s) ** 2 for a, b, s in zip(p[1:], q[1:], spacing_mm, strict=True))
            other = labels[p] != labels[q] and labels[q] != IGNORE
            if p[0] == q[0] and other and squared <= (band_mm * (1 + 1e-6)) ** 2:
                band[p] = True
    return band


def test_the_band_of_a_drawn_picture() -> None:
    labels = picture(
        ".......",
        "..###..",
        "..###..",
        "..###..",
        ".......",
    )
    band = boundary_band(labels, 1.0, (1.0, 1.0), 2, IGNORE)
    expected = picture(
        "..###..",
        ".#####.",
        ".##.##.",
        ".#####.",
        "..###..",
    )
    assert torch.equal(band, expected.bool())


def test_the_band_counts_millimetres_not_voxels() -> None:
    """At 1 x 3 mm a band of 2 mm reaches two rows and no column."""
    labels = picture(".....", ".....", "#####", "#####", "#####", "#####")
    assert boundary_band(labels, 2.0, (1.0, 3.0), 2)[0, :, 0].tolist() == [True, True, True, True, False, False]
    labels = labels.transpose(1, 2)
    assert boundary_band(labels, 2.0, (1.0, 3.0), 2).sum() == 0
    assert boundary_band(labels, 3.0, (1.0, 3.0), 2)[0, 0].tolist() == [False, True, True, False, False, False]


def test_the_band_at_thick_slices() -> None:
    """A cube at 1 x 1 x 3 mm (the last axis is thick): 2.9 mm do not reach the next slice, 3 mm do."""
    labels = torch.zeros(1, 5, 5, 4, dtype=torch.uint8)
    labels[:, :, :, 2:] = 1
    assert boundary_band(labels, 2.9, (1.0, 1.0, 3.0), 2).sum() == 0
    band = boundary_band(labels, 3.0, (1.0, 1.0, 3.0), 2)
    assert band[0, 2, 2].tolist() == [False, True, True, False]
    assert band.sum() == 50


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 10_000),
    st.floats(0.5, 4),
    st.tuples(st.floats(0.7, 3), st.floats(0.7, 3), st.floats(0.7, 3)),
    st.sampled_from([2, 3]),
)
def test_the_band_is_the_brute_force_one(
    seed: int, band_mm: float, spacing_mm: tuple[float, float, float], dims: int
) -> None:
    torch.manual_seed(seed)
    shape = (2, 7, 6) if dims == 2 else (1, 4, 5, 4)
    labels = (torch.rand(shape) < 0.15).to(torch.uint8) + 2 * (torch.rand(shape) < 0.05).to(torch.uint8)
    labels[labels == 3] = IGNORE
    found = boundary_band(labels, band_mm, spacing_mm[:dims], 3, IGNORE)
    assert torch.equal(found, brute_force_band(labels, band_mm, spacing_mm[:dims]))


@pytest.mark.parametrize("classes", [2, 3])
def test_misclassified_is_where_the_largest_logit_is_wrong(classes: int) -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, classes, 5, 6)
    labels = torch.randint(classes, (2, 5, 6), dtype=torch.uint8)
    wrong = misclassified(labels, logits)
    for b in range(2):
        for y in range(5):
            for x in range(6):
                guess = max(range(classes), key=lambda c: float(logits[b, c, y, x]))
                assert bool(wrong[b, y, x]) == (guess != int(labels[b, y, x]))
    with pytest.raises(ValueError, match="do not lie on the grid"):
        misclassified(labels, logits[..., :3])


def square(side: int = 32, inside: int = 16) -> Tensor:
    labels = torch.zeros(2, side, side, dtype=torch.uint8)
    labels[:, :inside, :inside] = 1
    return labels


def test_shares_of_classes_and_of_hard_voxels() -> None:
    labels = square()
    sampler = HardEasySampler(voxels=100, hard_share=0.4, band_mm=2)
    sample = sampler(labels, None, (1.0, 1.0))
    assert sample.index.shape == (2, 100)
    assert sample.valid.all()
    assert torch.equal(sample.classes, labels.flatten(1).gather(1, sample.index).long())
    band = boundary_band(labels, 2, (1.0, 1.0), 2).flatten(1).gather(1, sample.index)
    assert torch.equal(sample.hard, band)
    for c in (0, 1):
        assert (sample.classes == c).sum(dim=1).tolist() == [50, 50]
        assert ((sample.classes == c) & sample.hard).sum(dim=1).tolist() == [20, 20]


def test_no_voxel_is_drawn_twice() -> None:
    sample = HardEasySampler(voxels=400, band_mm=2)(square(), None, (1.0, 1.0))
    for row, valid in zip(sample.index, sample.valid, strict=True):
        drawn = row[valid].tolist()
        assert len(set(drawn)) == len(drawn)


def test_wrongly_predicted_voxels_are_hard() -> None:
    labels = square()
    logits = torch.zeros(2, 2, 32, 32)
    logits[:, 1][labels == 1] = 1
    logits[:, 0][labels == 0] = 1
    logits[:, 1, 25:30, 25:30] = 9  # 25 voxels far from any surface, wrongly called class 1
    sample = HardEasySampler(voxels=40, hard_share=1.0, band_mm=0)(labels, logits, (1.0, 1.0))
    background = sample.classes == 0
    assert sample.hard[background].all()
    rows = sample.index[background] // 32
    assert ((rows >= 25) & (rows < 30)).all()


def test_the_other_kind_tops_up() -> None:
    labels = square()
    # No hard voxel at all: every slot goes to an easy one.
    assert HardEasySampler(voxels=60, hard_share=0.5, band_mm=0)(labels, None, None).valid.all()
    # Every voxel is hard.
    sample = HardEasySampler(voxels=60, hard_share=0.5, band_mm=100)(labels, None, None)
    assert sample.valid.all()
    assert sample.hard.all()


def test_a_small_class_leaves_slots_invalid_and_an_absent_one_all_of_them() -> None:
    labels = torch.zeros(2, 16, 16, dtype=torch.uint8)
    labels[0, 3, 3:8] = 1
    sample = HardEasySampler(voxels=64)(labels, None, (1.0, 1.0))
    assert ((sample.classes == 1) & sample.valid).sum(dim=1).tolist() == [5, 0]
    assert sample.valid.sum(dim=1).tolist() == [37, 32]
    drawn = sample.index[0][(sample.classes[0] == 1) & sample.valid[0]]
    assert sorted(drawn.tolist()) == [3 * 16 + x for x in range(3, 8)]


def test_ignored_voxels_are_never_drawn_and_make_no_surface() -> None:
    labels = torch.full((1, 16, 16), IGNORE, dtype=torch.uint8)
    labels[:, :4] = 0
    labels[:, 12:] = 1
    sample = HardEasySampler(voxels=64, band_mm=20)(labels, None, (1.0, 1.0), IGNORE)
    assert (labels.flatten(1).gather(1, sample.index)[sample.valid] != IGNORE).all()
    labels[:, 12:] = 0
    assert not boundary_band(labels, 5, (1.0, 1.0), 2, IGNORE).any()


def test_fewer_voxels_in_the_image_than_slots() -> None:
    labels = torch.tensor([[[0, 1], [0, 0]]], dtype=torch.uint8)
    sample = HardEasySampler(voxels=64)(labels, None, None)
    assert sample.index.shape == (1, 64)
    assert sample.valid.sum() == 4


def test_the_same_seed_gives_the_same_sample() -> None:
    sampler = HardEasySampler(voxels=32)
    torch.manual_seed(3)
    one = sampler(square(), None, None)
    torch.manual_seed(3)
    two = sampler(square(), None, None)
    assert torch.equal(one.index, two.index)
    assert not torch.equal(one.index, sampler(square(), None, None).index)


def test_every_voxel_of_a_kind_has_its_chance() -> None:
    torch.manual_seed(0)
    labels = square(8, 4)
    hits = torch.zeros(64)
    for _ in range(300):
        sample = HardEasySampler(voxels=8, hard_share=0.5, band_mm=1)(labels, None, None)
        hits.index_add_(0, sample.index[sample.valid], torch.ones(int(sample.valid.sum())))
    assert (hits > 0).all()


@pytest.mark.parametrize("arguments", [{"hard_share": 1.2}, {"classes": 1}, {"voxels": 3}, {"band_mm": -1}])
def test_impossible_settings_are_refused(arguments: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="got"):
        HardEasySampler(**arguments)  # type: ignore[arg-type]


def test_spacing_must_fit_the_axes() -> None:
    with pytest.raises(ValueError, match="2 positive numbers"):
        boundary_band(square(), 1, (1.0, 1.0, 1.0), 2)


def every_sampler(voxels: int = 60, classes: int = 2) -> list[Sampler]:
    return [build_sampler(name, voxels=voxels, classes=classes) for name in SAMPLERS]


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("shape", [(2, 12, 10), (2, 5, 6, 4)])
def test_every_sampler_keeps_the_interface(name: str, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    labels = torch.randint(3, shape, dtype=torch.uint8)
    labels[:, :2] = IGNORE
    logits = torch.randn(2, 3, *shape[1:], dtype=torch.bfloat16)
    sample = build_sampler(name, voxels=60, classes=3)(labels, logits, (2.0, 1.0, 1.0)[: len(shape) - 1], IGNORE)
    assert all(t.shape == (2, 60) for t in (sample.index, sample.classes, sample.valid, sample.hard))
    assert torch.equal(sample.classes, labels.flatten(1).gather(1, sample.index).long())
    assert (sample.classes[sample.valid] != IGNORE).all()
    assert not (sample.hard & ~sample.valid).any()
    for row, valid in zip(sample.index, sample.valid, strict=True):
        drawn = row[valid].tolist()
        assert drawn
        assert len(set(drawn)) == len(drawn)


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_bears_images_of_one_class_or_none(name: str) -> None:
    sampler = build_sampler(name, voxels=60, classes=2)
    for value, there in ((0, 1), (1, 1), (IGNORE, 0)):
        labels = torch.full((1, 4, 4), value, dtype=torch.uint8)
        sample = sampler(labels, torch.randn(1, 2, 4, 4), None, IGNORE)
        assert bool(sample.valid.any()) == bool(there)
        assert (sample.classes[sample.valid] == value).all()


def test_uniform_draws_each_voxel_with_the_same_chance() -> None:
    torch.manual_seed(0)
    labels = square(8, 4)[:1].expand(4000, -1, -1)
    sample = UniformSampler(voxels=5)(labels, None, None)
    counts = torch.bincount(sample.index.flatten(), minlength=64)
    assert counts.sum() == 20_000
    assert (counts - 20_000 / 64).abs().max() < 5 * (20_000 / 64) ** 0.5


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name not in ("misclassified", "uncertain")])
@pytest.mark.parametrize("other", [2, 255, -1])
def test_labels_of_no_class_are_never_drawn(name: str, other: int) -> None:
    """Tuples of them would be wrong: that two such voxels are of one class is not known."""
    labels = square(8, 4).long()
    labels[:, 6:] = other
    sample = build_sampler(name, voxels=60)(labels, None, None, -100)
    assert set(sample.classes[sample.valid].tolist()) == {0, 1}


def test_balanced_draws_each_class_as_often_and_its_voxels_alike() -> None:
    torch.manual_seed(0)
    labels = square(8, 4)[:1].expand(4000, -1, -1)
    sample = build_sampler("balanced", voxels=10)(labels, None, None, IGNORE)
    assert (sample.classes.sum(dim=1) == 5).all()
    for c, members in ((0, 48), (1, 16)):
        counts = torch.bincount(sample.index[sample.classes == c], minlength=64)
        counts = counts[labels[0].flatten() == c]
        assert (counts - 20_000 / members).abs().max() < 5 * (20_000 / members) ** 0.5


def test_boundary_draws_the_band_of_a_drawn_picture() -> None:
    """At 1 x 3 mm a band of 2 mm reaches rows only; a class has 5 voxels a row."""
    labels = picture(".....", ".....", "#####", "#####", "#####", "#####")
    near = build_sampler("boundary", voxels=20, band_mm=1.0)(labels, None, (1.0, 3.0), IGNORE)
    assert sorted(near.index[0, :10][near.hard[0, :10]].tolist()) == [5, 6, 7, 8, 9]
    assert sorted(near.index[0, 10:][near.hard[0, 10:]].tolist()) == [10, 11, 12, 13, 14]
    # Ten slots for five voxels of the band: the rest of the class tops them up.
    assert near.valid.all()
    all_of_it = build_sampler("boundary", voxels=20, band_mm=2.0)(labels, None, (1.0, 3.0), IGNORE)
    assert all_of_it.hard.all()


def test_boundary_draws_in_millimetres_at_thick_slices() -> None:
    """1 x 1 x 3 mm: of a half-space along the thick axis 2.9 mm reach nothing, 3 mm one layer on each side."""
    labels = torch.zeros(1, 5, 5, 4, dtype=torch.uint8)
    labels[..., 2:] = 1
    assert not build_sampler("boundary", voxels=20, band_mm=2.9)(labels, None, (1.0, 1.0, 3.0), IGNORE).hard.any()
    sample = build_sampler("boundary", voxels=20, band_mm=3.0)(labels, None, (1.0, 1.0, 3.0), IGNORE)
    assert sample.hard.all()
    assert set((sample.index % 4).flatten().tolist()) == {1, 2}


def test_misclassified_draws_the_wrong_voxels_of_a_drawn_picture() -> None:
    labels = picture("....", ".##.", ".##.", "....")
    called = picture("....", "##..", ".##.", "...#")
    logits = torch.nn.functional.one_hot(called.long(), 2).permute(0, 3, 1, 2).float()
    sample = build_sampler("misclassified", voxels=4)(labels, logits, None, IGNORE)
    # Of the background (1, 0) and (3, 3) are wrong, of the square (1, 2); one right voxel tops the square up.
    assert sorted(sample.index[0, :2].tolist()) == [4, 15]
    assert 6 in sample.index[0, 2:].tolist()
    assert sample.hard.tolist() == [[True, True, True, False]]


def test_uncertain_draws_the_smallest_margins_of_a_drawn_picture() -> None:
    labels = picture("....####")
    margin = torch.tensor([[[[5.0, -0.1, 3, 0.2, 4, 0.3, -6, 0.05]]]])
    logits = torch.cat([margin, torch.zeros_like(margin)], dim=1)
    sample = build_sampler("uncertain", voxels=4)(labels, logits, None, IGNORE)
    assert sample.index.tolist() == [[1, 3, 7, 5]]


@pytest.mark.parametrize("classes", [2, 4])
def test_doubt_is_the_gap_of_the_two_best_probabilities(classes: int) -> None:
    torch.manual_seed(0)
    logits = 3 * torch.randn(2, classes, 5, 6)
    best = logits.softmax(dim=1).sort(dim=1, descending=True).values
    found = doubt(torch.zeros(2, 5, 6), logits)
    torch.testing.assert_close(found, best[:, 1] - best[:, 0], atol=1e-6, rtol=0)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 40), st.integers(1, 12))
def test_draw_takes_distinct_members_and_as_many_as_asked(seed: int, places: int, slots: int) -> None:
    torch.manual_seed(seed)
    member = torch.rand(3, places) < torch.rand(3, 1)
    order = member.cumsum(1, dtype=torch.int32)
    take = order[:, -1:].clamp(max=slots)
    index = draw(order, take, slots)
    assert index.shape == (3, slots)
    for row, n, kept in zip(index, take[:, 0].tolist(), member, strict=True):
        drawn = row[:n].tolist()
        assert len(set(drawn)) == n
        assert kept[drawn].all()


def test_samplers_that_look_at_logits_ask_for_them() -> None:
    for name in ("misclassified", "uncertain"):
        with pytest.raises(ValueError, match="needs logits"):
            build_sampler(name)(square(), None, None, -100)


def test_the_registry_names_what_is_wrong() -> None:
    assert sampler_settings("boundary") == ("voxels", "classes", "band_mm")
    with pytest.raises(ValueError, match=r"one of mixture, uniform, .*; got 'best'"):
        build_sampler("best")
    with pytest.raises(ValueError, match="uniform takes voxels, classes; got band_mm"):
        build_sampler("uniform", band_mm=3)


def test_the_same_seed_gives_the_same_sample_in_every_sampler() -> None:
    logits = torch.randn(2, 2, 32, 32)
    for sampler in every_sampler():
        drawn = []
        for _ in range(2):
            torch.manual_seed(3)
            drawn.append(sampler(square(), logits, (1.0, 3.0), -100).index)
        assert torch.equal(*drawn)


def brightest(labels: Tensor, logits: Tensor | None, *_: object) -> Tensor:
    """Call voxels with a logit of class 1 above 2 hard."""
    assert logits is not None
    return logits[:, 1] > 2


def test_a_hardness_of_ones_own() -> None:
    """A function of the user's marks voxels, or ranks them."""
    labels, logits = square(), torch.zeros(2, 2, 32, 32)
    logits[:, 1, 3, 5:9], logits[:, 1, 20, 5:9] = 3, 3
    sample = BalancedSampler(16, 2, brightest, 0.5)(labels, logits)
    for row, hard in zip(sample.index, sample.hard, strict=True):
        assert sorted(row[hard].tolist()) == [3 * 32 + x for x in range(5, 9)] + [20 * 32 + x for x in range(5, 9)]
    ranked = BalancedSampler(4, 2, lambda labels, logits, *_: torch.arange(1024.0).reshape(1, 32, 32))
    assert ranked(labels[:1]).index.tolist() == [[1023, 1022, 15 * 32 + 15, 15 * 32 + 14]]


def test_samplers_are_copied_and_pickled() -> None:
    logits = torch.randn(2, 2, 32, 32)
    for sampler in [*every_sampler(), BalancedSampler(20, 2, NearSurface(2.0, or_misclassified=True), 0.3)]:
        drawn = []
        for one in (sampler, copy.deepcopy(sampler), pickle.loads(pickle.dumps(sampler))):
            torch.manual_seed(3)
            drawn.append(one(square(), logits, None, IGNORE).index)
        assert torch.equal(drawn[0], drawn[1])
        assert torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize("shape", [(6, 5), (4, 3, 5)])
def test_reading_on_one_grid_is_an_exact_gather(shape: tuple[int, ...]) -> None:
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


def test_reading_of_other_dimensions_is_refused() -> None:
    with pytest.raises(ValueError, match="2 spatial axes, labels 3"):
        read_features(torch.zeros(1, 1, 4, 4), torch.zeros(1, 2, dtype=torch.long), (4, 4, 4))
