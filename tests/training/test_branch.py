"""The branch of stage 2: each mode and setting builds, trains, and leaves the crops of other arms alone."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
import torch

from metricunet.cohort.layout import read_cohort
from metricunet.cohort.prepare import PreparedCase, PrepareSettings, prepare
from metricunet.errors import InputError
from metricunet.metric import SAMPLERS, PatchMetricLoss, TupleOptions, VoxelClassLoss, VoxelMetricLoss
from metricunet.metric.losses import PairKind, TripletForm
from metricunet.metric.sampling import BalancedSampler, NearSurface
from metricunet.metric.tuples import TRIPLETS
from metricunet.networks import UNet
from metricunet.training.batches import Batch, SegmentBatches, update_generator
from metricunet.training.branch import PatchBatches, build_metric
from metricunet.training.config import MetricConfig, load_config
from metricunet.training.objectives import SegmentModule
from metricunet.training.voxel_branch import tuple_options
from tests.support.cohorts import TINY_SETTINGS

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def cases(tiny_cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> list[PreparedCase]:
    cohort = read_cohort(tiny_cohort)
    stage = load_config("small", settings=TINY_SETTINGS)
    settings = PrepareSettings("prostate", stage.locate.spacing_mm, stage.segment.spacing_mm, stage.segment.box_mm)
    return prepare(cohort.training[:3], cohort.info, settings, tmp_path_factory.mktemp("prepared"))


def module(cases: list[PreparedCase], *settings: str) -> tuple[SegmentModule, Batch]:
    """Build stage 2 as a training does, and draw a batch."""
    tiny = [*TINY_SETTINGS, "metric.patch_voxels=16", "metric.patch_tuples=50", "metric.patch_tuples_per_update=4"]
    config = load_config("small", settings=[*tiny, *settings])
    batches = SegmentBatches(cases, config.segment, config.augment, 2, True, (0, 0, 0), CPU)
    patches = PatchBatches(batches, config) if config.metric.mode == "offline" else None
    torch.manual_seed(0)
    built = SegmentModule(UNet(5, 2, 4, levels=3), config, [], 2, patches)
    return built, batches.draw(update_generator(0, 1, 3, CPU))


COMMON = {"segmentation", "spread"}
VOXELS = {"hard_voxels", "valid_voxels"}
TUPLES = {"triplet", "pair", "active_triplets", "positive_distance", "negative_distance"}


@pytest.mark.parametrize(
    ("mode", "kind", "names"),
    [
        ("online", VoxelMetricLoss, COMMON | VOXELS | TUPLES),
        ("offline", PatchMetricLoss, COMMON | TUPLES),
        ("control", VoxelClassLoss, COMMON | VOXELS | {"voxel_entropy", "voxel_accuracy"}),
        ("none", type(None), set()),
    ],
)
def test_each_mode_trains_and_logs(cases: list[PreparedCase], mode: str, kind: type, names: set[str]) -> None:
    built, batch = module(cases, f"metric.mode={mode}")
    assert isinstance(built.metric, kind)
    loss, facts = built(batch, 100)
    assert set(facts) == names
    assert all(torch.isfinite(value) and not value.requires_grad for value in facts.values())
    loss.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in built.parameters())
    if built.metric is not None:
        assert loss.item() != facts["segmentation"].item()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in built.metric.parameters())


def test_the_weight_rises_over_the_warm_up(cases: list[PreparedCase]) -> None:
    built, batch = module(cases, "metric.mode=control", "metric.weight=0.5", "metric.warm_up_updates=10")
    parts = []
    for update in (0, 5, 10, 20):
        torch.manual_seed(1)
        loss, facts = built(batch, update)
        parts.append((loss - facts["segmentation"]).item() / facts["voxel_entropy"].item())
    assert parts == pytest.approx([0, 0.25, 0.5, 0.5], abs=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        *[(f"metric.sampler={name}",) for name in SAMPLERS],
        *[(f"metric.triplets={name}", "metric.across=true") for name in TRIPLETS],
        ("metric.pairs=all", "metric.triplet_form=soft"),
        ("metric.supcon_weight=1", "metric.triplet_weight=0", "metric.pair_weight=0"),
        ("metric.taps=[0, 1]",),
    ],
)
def test_every_setting_builds_and_gives_a_finite_loss(
    cases: list[PreparedCase], settings: tuple[str, ...]
) -> None:
    built, batch = module(cases, *settings)
    loss, facts = built(batch, 100)
    assert torch.isfinite(loss)
    assert ("supcon" in facts) == (settings[0] == "metric.supcon_weight=1")


def test_settings_reach_the_sampler() -> None:
    settings = ["metric.sampler=boundary", "metric.band_mm=5", "metric.voxels=99"]
    built = build_metric(UNet(5, 3, 4, levels=3), load_config(settings=settings), 3)
    assert isinstance(built, VoxelMetricLoss)
    assert isinstance(built.sampler, BalancedSampler)
    assert (built.sampler.voxels, built.sampler.classes, built.sampler.hardness) == (99, 3, NearSurface(5))


def test_settings_reach_the_options_of_online_and_offline_tuples() -> None:
    settings = ["metric.margin=0.3", "metric.triplet_form=soft", "metric.pairs=all", "metric.across=true"]
    options = TupleOptions(margin=0.3, triplet_form="soft", pairs="all", across=True)
    for mode in ("online", "offline"):
        built = build_metric(UNet(5, 3, 4, levels=3), load_config(settings=[*settings, f"metric.mode={mode}"]), 3)
        assert isinstance(built, VoxelMetricLoss | PatchMetricLoss)
        assert built.options == options


def test_the_names_in_the_configuration_are_those_of_the_package() -> None:
    fields = MetricConfig.model_json_schema()["properties"]
    assert fields["sampler"]["enum"] == list(SAMPLERS)
    assert fields["triplets"]["enum"] == list(TRIPLETS)
    assert fields["pairs"]["enum"] == list(get_args(PairKind))
    assert fields["triplet_form"]["enum"] == list(get_args(TripletForm))


def test_the_defaults_of_the_configuration_are_those_of_the_package() -> None:
    assert tuple_options(MetricConfig()) == TupleOptions()


def test_patches_are_the_same_in_every_run_and_differ_between_updates(cases: list[PreparedCase]) -> None:
    one, two = (module(cases, "metric.mode=offline")[0].patches for _ in range(2))
    assert one is not None
    assert two is not None
    drawn = [p.draw(k, update_generator(0, 9, k, CPU)) for p, k in ((one, 1), (two, 1), (one, 2))]
    assert drawn[0].shape == (12, 5, 16, 16)
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    # The targets are brighter than all else: a patch's middle tells its class.
    middles = torch.cat([one.draw(k, update_generator(0, 9, k, CPU))[:, 2, 8, 8] for k in range(12)])
    classes = one.tuples.classes.flatten()[: 12 * 12]
    assert middles[classes == 1].mean() > middles[classes == 0].mean() + 0.4


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        (("metric.taps=[0, 7]",), r"metric\.taps is \[0, 7\], but this network has decoder maps 0 to 1"),
        (
            ("metric.mode=offline", "metric.patch_voxels=18"),
            r"metric\.patch_voxels is 18; expected a multiple of 4",
        ),
        (("metric.mode=offline", "metric.patch_voxels=4"), "from 8 to 48"),
        (("metric.mode=offline", "metric.patch_voxels=64"), "from 8 to 48"),
        (
            ("metric.unsure_mm=2", "metric.supcon_weight=1", "metric.triplet_weight=0", "metric.pair_weight=0"),
            r"metric\.unsure_mm is 2 and shrinks margins, .* no other loss has a margin",
        ),
        (
            ("metric.mode=control", "metric.sampler=boundary", "metric.left_out_mm=3"),
            r"metric\.left_out_mm is 3; .* less than metric\.band_mm, 3",
        ),
    ],
)
def test_impossible_settings_are_named(setting: tuple[str, ...], words: str) -> None:
    config = load_config("small", settings=[*TINY_SETTINGS, *setting])
    with pytest.raises(InputError, match=words):
        build_metric(UNet(5, 2, 4, levels=3), config, 2)


@pytest.mark.parametrize(
    "settings",
    [
        ("metric.unsure_mm=2", "metric.supcon_weight=1", "metric.triplet_weight=0"),
        ("metric.unsure_mm=2", "metric.mode=control", "metric.triplet_weight=0", "metric.pair_weight=0"),
        ("metric.sampler=boundary", "metric.left_out_mm=2"),
        ("metric.sampler=balanced", "metric.left_out_mm=5"),
    ],
)
def test_distances_from_surfaces_that_do_something_are_taken(settings: tuple[str, ...]) -> None:
    config = load_config("small", settings=[*TINY_SETTINGS, *settings])
    assert build_metric(UNet(5, 2, 4, levels=3), config, 2) is not None


@pytest.mark.parametrize("mode", ["online", "control", "offline"])
def test_two_voxels_of_each_class_are_the_least(mode: str) -> None:
    """Named before any work, in offline, too, where voxels are drawn when stage 1 is trained."""
    for voxels, classes in ((8, 5), (9, 5)):
        config = load_config(settings=[f"metric.voxels={voxels}", f"metric.mode={mode}"])
        words = rf"metric\.voxels is {voxels}; with 5 classes, background included, expected 10 or more"
        with pytest.raises(InputError, match=words):
            build_metric(UNet(5, classes, 4, levels=3), config, classes)
    enough = load_config(settings=["metric.voxels=10", f"metric.mode={mode}"])
    assert build_metric(UNet(5, 5, 4, levels=3), enough, 5) is not None
