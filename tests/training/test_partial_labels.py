"""Learning from cases in which a structure was not contoured, against sums by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from metricunet.cohort.layout import read_cohort
from metricunet.cohort.prepare import PreparedCase, PrepareSettings, prepare
from metricunet.metric import HardEasySampler
from metricunet.networks import UNet
from metricunet.structures import IGNORE_CLASS
from metricunet.training.batches import Batch, BlockBatches, LocateBatches, SegmentBatches, update_generator
from metricunet.training.branch import PatchBatches
from metricunet.training.config import AugmentConfig, load_config
from metricunet.training.objectives import LocateModule, SegmentModule, dice, segmentation_loss, soft_dice_loss
from metricunet.training.partial_labels import certain_labels, merge_unknown, unknown_classes
from tests.support.cohorts import TINY_SETTINGS
from tests.support.waits import Waits

CPU = torch.device("cpu")
CONFIG = load_config("small", settings=[*TINY_SETTINGS, "segment.batch_size=8", "locate.batch_size=8"])
CONFIG_3D = load_config(
    "small", settings=[*TINY_SETTINGS, "segment.spatial_dims=3", "segment.block_slices=8", "segment.batch_size=4"]
)


def some_batch(seed: int = 0, classes: int = 4) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits, labels and what is unknown: class 2 of image 0, classes 1 and 3 of image 1, nothing of image 2."""
    torch.manual_seed(seed)
    logits = 2 * torch.randn(3, classes, 5, 6)
    labels = torch.randint(classes, (3, 5, 6), dtype=torch.uint8)
    unknown = torch.zeros(3, classes, dtype=torch.bool)
    unknown[0, 2] = unknown[1, 1] = unknown[1, 3] = True
    for image in range(3):
        labels[image][torch.isin(labels[image], unknown[image].nonzero()[:, 0])] = 0
    return logits, labels, unknown


def test_cross_entropy_is_that_of_the_sum_of_what_the_background_may_be() -> None:
    logits, labels, unknown = some_batch()
    labels[0, 0, :2] = IGNORE_CLASS
    p = logits.double().softmax(dim=1)
    terms = []
    for b, row, column in np.ndindex(3, 5, 6):
        label = int(labels[b, row, column])
        if label == IGNORE_CLASS:
            continue
        mass = p[b, label, row, column]
        if label == 0:
            mass = mass + sum(p[b, k, row, column] for k in range(1, 4) if unknown[b, k])
        terms.append(-mass.log())
    found = segmentation_loss(logits, labels, 0, 1, IGNORE_CLASS, unknown)
    assert found.item() == pytest.approx(float(torch.stack(terms).mean()), rel=1e-5)


def test_dice_of_a_class_counts_only_the_images_that_know_it() -> None:
    logits, labels, unknown = some_batch()
    p = logits.softmax(dim=1)
    scores = []
    for k in (1, 2, 3):
        known = ~unknown[:, k]
        q, t = p[known, k], (labels[known] == k).float()
        scores.append((2 * (q * t).sum() + 1) / (q.sum() + t.sum() + 1))
    found = segmentation_loss(logits, labels, 1, 0, IGNORE_CLASS, unknown)
    assert found.item() == pytest.approx(1 - float(torch.stack(scores).mean()), rel=1e-5)


def test_background_pulls_nothing_away_from_what_was_not_contoured() -> None:
    """Where labels say background, moving probability between it and an unknown class changes no loss at all."""
    logits, labels, unknown = some_batch()
    logits.requires_grad_(True)
    (gradient,) = torch.autograd.grad(segmentation_loss(logits, labels, 1, 1, IGNORE_CLASS, unknown), logits)
    assert torch.isfinite(gradient).all()
    p = logits.detach().softmax(dim=1)
    for image, k in ((0, 2), (1, 1), (1, 3)):
        # A sum hands its gradient to its parts in proportion to them, so per probability it is equal.
        background = labels[image] == 0
        per_p = gradient[image] / p[image]
        torch.testing.assert_close(per_p[k][background], per_p[0][background], rtol=1e-3, atol=1e-6)
        assert (gradient[image, k][background] <= 1e-7).all()  # descent never lowers it in favour of others
    assert (gradient[2, 1][labels[2] == 0] > 0).any()  # where it was contoured, it is pushed down


def test_a_batch_in_which_nobody_drew_a_class_has_a_finite_loss_and_gradient() -> None:
    logits, labels, unknown = some_batch()
    unknown[:, 1:] = True
    logits.requires_grad_(True)
    loss = segmentation_loss(logits, torch.zeros_like(labels), 1, 1, IGNORE_CLASS, unknown)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-5)
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
    assert logits.grad.abs().max() < 1e-6


def test_where_all_is_known_every_loss_is_bit_for_bit_the_plain_one() -> None:
    logits, labels, unknown = some_batch()
    plain = soft_dice_loss(logits, labels) + F.cross_entropy(logits, labels.long())
    assert merge_unknown(logits, None) is logits
    assert certain_labels(labels, None) is labels
    assert torch.equal(segmentation_loss(logits, labels, 1, 1), segmentation_loss(logits, labels, 1, 1, 255, None))
    torch.testing.assert_close(segmentation_loss(logits, labels, 1, 1), plain)
    none = torch.zeros_like(unknown)
    torch.testing.assert_close(segmentation_loss(logits, labels, 1, 1, 255, none), plain)


def test_doubtful_background_is_never_sampled() -> None:
    logits, labels, unknown = some_batch()
    certain = certain_labels(labels, unknown)
    assert (certain[:2][labels[:2] == 0] == IGNORE_CLASS).all()
    assert torch.equal(certain[2], labels[2])
    assert torch.equal(certain[:2][labels[:2] > 0], labels[:2][labels[:2] > 0])
    sample = HardEasySampler(32, 4)(certain, logits, (1.0, 1.0), IGNORE_CLASS)
    drawn = sample.classes[:2][sample.valid[:2]]
    assert drawn.numel() > 0
    assert (drawn > 0).all()
    assert (sample.classes[2][sample.valid[2]] == 0).any()


@pytest.fixture(scope="module")
def cases(tiny_cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> list[PreparedCase]:
    cohort = read_cohort(tiny_cohort)
    settings = PrepareSettings(
        "prostate", CONFIG.locate.spacing_mm, CONFIG.segment.spacing_mm, CONFIG.segment.box_mm
    )
    return prepare(cohort.training[:3], cohort.info, settings, tmp_path_factory.mktemp("prepared"))


#: Crops are turned and bent, their HU left alone.
TURNED = AugmentConfig(shift_hu=0, contrast=0, noise_hu=0, blur_share=0, low_resolution_share=0)


def batches(
    kind: str, cases: list[PreparedCase], augment: AugmentConfig | None = None
) -> LocateBatches | SegmentBatches:
    augment, classes = augment or AugmentConfig(), 3
    if kind == "locate":
        return LocateBatches(cases, CONFIG.locate, augment, classes, 1, True, CPU)
    if kind == "block":
        return BlockBatches(cases, CONFIG_3D.segment, augment, classes, True, (0, 0, 0), CPU)
    return SegmentBatches(cases, CONFIG.segment, augment, classes, True, (0, 0, 0), CPU)


@pytest.mark.parametrize("kind", ["locate", "segment", "block"])
def test_a_batch_says_of_each_image_what_its_case_does_not_know(cases: list[PreparedCase], kind: str) -> None:
    """Each case is of one HU, so that an image tells whose it is."""
    marked = []
    for k, case in enumerate(cases):
        level = 100 * (k - 1)
        assert case.fine is not None
        marked.append(
            replace(
                case,
                coarse=case.coarse.with_array(np.full_like(case.coarse.array, level)),
                fine=case.fine.with_array(np.full_like(case.fine.array, level)),
                unknown=((), (2,), (1, 2))[k],
            )
        )
    table = torch.tensor([[False, False, False], [False, False, True], [False, True, True]])
    low, high = (CONFIG.locate if kind == "locate" else CONFIG.segment).hu_window
    levels = torch.tensor([-100.0, 0.0, 100.0]) * 2 / (high - low) - (high + low) / (high - low)
    seen: set[int] = set()
    built = batches(kind, marked, TURNED)
    for update in range(8):
        batch = built.draw(update_generator(0, 1, update, CPU))
        assert batch.unknown is not None
        highest = batch.images.flatten(1).amax(dim=1)  # beyond a scan lies air
        owner = (highest[:, None] - levels).abs().argmin(dim=1)
        assert (highest - levels[owner]).abs().max() < 1e-4
        assert torch.equal(batch.unknown, table[owner])
        seen |= set(owner.tolist())
    assert len(seen) == 3


@pytest.mark.parametrize("kind", ["locate", "segment", "block"])
def test_partial_cases_change_neither_images_nor_labels_nor_the_draw(cases: list[PreparedCase], kind: str) -> None:
    partial = [replace(cases[0], unknown=(2,)), *cases[1:]]
    assert unknown_classes([case.unknown for case in cases], 3, CPU) is None
    plain, masked = (batches(kind, own).draw(update_generator(0, 1, 5, CPU)) for own in (cases, partial))
    assert plain.unknown is None
    assert masked.unknown is not None
    assert torch.equal(plain.images, masked.images)
    assert torch.equal(plain.labels, masked.labels)


@pytest.mark.parametrize("mode", ["online", "offline", "control", "none"])
@pytest.mark.parametrize("dims", [2, 3])
def test_both_stages_take_a_step_and_stay_finite(cases: list[PreparedCase], mode: str, dims: int) -> None:
    base = CONFIG if dims == 2 else CONFIG_3D
    patches = {"mode": mode, "patch_voxels": 16, "patch_tuples": 40, "patch_tuples_per_update": 2}
    config = base.model_copy(update={"metric": base.metric.model_copy(update=patches)})
    partial = [replace(cases[0], unknown=(2,)), replace(cases[1], unknown=(2,)), cases[2]]
    kind = BlockBatches if dims == 3 else SegmentBatches
    boxes = kind(partial, config.segment, config.augment, 3, True, (0, 0, 0), CPU)
    drawn_once = None
    if mode == "offline":
        drawn_once = PatchBatches(boxes, config)
        images = drawn_once.tuples.centres[..., 0][drawn_once.tuples.classes == 0]
        assert set(images.flatten().tolist()) == {2}  # background patches come from the full case alone
    torch.manual_seed(0)
    network = UNet(5 if dims == 2 else 1, 3, 4, levels=3, spatial_dims=dims)
    segment = SegmentModule(network, config, [], 3, drawn_once)
    batch = boxes.draw(update_generator(0, 1, 0, CPU))
    loss, _ = segment(batch, 100)
    loss.backward()
    assert torch.isfinite(loss)
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in segment.parameters())
    if dims == 2 and mode == "none":
        locate = LocateModule(UNet(1, 3, 4, levels=3, spatial_dims=3), config, [], 1)
        drawn = batches("locate", partial).draw(update_generator(0, 0, 0, CPU))
        loss, _ = locate(drawn, 0)
        loss.backward()
        assert torch.isfinite(loss)


def test_a_module_without_partial_cases_computes_what_it_always_did(cases: list[PreparedCase]) -> None:
    """The loss of a whole module, branch included, on a batch without `unknown` and on one that lists none."""
    torch.manual_seed(0)
    module = SegmentModule(UNet(5, 3, 4, levels=3), CONFIG, [], 3)
    batch = batches("segment", cases).draw(update_generator(0, 1, 0, CPU))
    losses = []
    for given in (batch, Batch(batch.images, batch.labels), replace_unknown(batch)):
        torch.manual_seed(1)
        losses.append(module(given, 50)[0].detach())
    assert torch.equal(losses[0], losses[1])
    torch.testing.assert_close(losses[0], losses[2])


def test_a_step_with_partial_cases_never_waits_for_the_device(cases: list[PreparedCase]) -> None:
    built = batches("segment", [replace(cases[0], unknown=(2,)), *cases[1:]])
    logits = torch.randn(8, 3, 32, 32, requires_grad=True)
    with Waits() as waits:
        batch = built.draw(update_generator(0, 1, 0, CPU))
        certain_labels(batch.labels, batch.unknown)
        segmentation_loss(logits, batch.labels, 1, 1, IGNORE_CLASS, batch.unknown).backward()
    assert waits.found == []


def two_discs(images: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures with a bright disc of class 1 and a dark one of class 2."""
    draw = torch.Generator().manual_seed(seed)
    place = torch.stack(torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij"))
    labels = torch.zeros(images, 32, 32, dtype=torch.uint8)
    for one in labels:
        for k, column in ((1, 8), (2, 23)):
            centre = torch.tensor([16.0, column]) + 3 * torch.randn(2, generator=draw)
            one[(place - centre[:, None, None]).square().sum(0) < 25] = k
    level = torch.tensor([0.0, 1.0, -1.0])[labels.long()]
    return (level + 0.3 * torch.randn(level.shape, generator=draw))[:, None], labels


def test_a_structure_that_few_cases_contour_is_learned_and_not_unlearned() -> None:
    """Class 2 is drawn in two images of eight. Taken for background in the rest much of it is lost, else found."""
    images, labels = two_discs(8, 0)
    unseen, truth = two_discs(4, 1)
    unknown = torch.zeros(8, 3, dtype=torch.bool)
    unknown[2:, 2] = True
    labels[2:][labels[2:] == 2] = 0
    found = {}
    for masked in (True, False):
        torch.manual_seed(0)
        network = UNet(1, 3, 8, levels=2)
        optimizer = torch.optim.Adam(network.parameters(), 0.01)
        for _ in range(60):
            loss = segmentation_loss(network(images), labels, 1, 1, IGNORE_CLASS, unknown if masked else None)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            predicted = network.eval()(unseen).argmax(dim=1)
        found[masked] = [dice(predicted == k, truth == k) or 0.0 for k in (1, 2)]
    assert min(found[True]) > 0.9
    assert found[False][0] > 0.9
    assert found[False][1] < found[True][1] - 0.15


def replace_unknown(batch: Batch) -> Batch:
    return replace(batch, unknown=torch.zeros(len(batch.images), 3, dtype=torch.bool))


def test_validation_leaves_out_what_was_not_contoured(cases: list[PreparedCase]) -> None:
    for unknown, counted in (((), 1), ((2,), 1), ((1, 2), 0)):
        case = replace(cases[0], unknown=unknown)
        module = SegmentModule(UNet(5, 3, 4, levels=3).eval(), CONFIG, [case], 3)
        assert (module.score(case) is not None) == counted
    locate = LocateModule(UNet(1, 2, 4, levels=3, spatial_dims=3, norm="batch").eval(), CONFIG, [case], 1)
    assert locate.score(case) is None


def test_validation_counts_no_voxel_that_nobody_contoured(cases: list[PreparedCase]) -> None:
    """As the loss does: what is found there is neither right nor wrong. Elsewhere it counts as ever."""

    class Everywhere(UNet):
        """Finds the target in the lower half of each slice, and in the upper half nothing."""

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            found = torch.zeros(len(images), 2, *images.shape[2:])
            found[..., images.shape[-2] // 2 :, :] = 1
            found[:, 0] = 0.5
            return found

    case = cases[0]
    assert case.fine_labels is not None
    for hidden in (True, False):
        volumes = {}
        for name in ("fine_labels", "coarse_labels"):
            volume = getattr(case, name)
            classes = np.zeros(volume.array.shape, dtype=np.uint8)
            rows = volume.array.shape[1]
            # Every other slice holds the target where it is found; in the others nobody contoured that half.
            classes[::2, rows // 2 :] = 1
            classes[1::2, rows // 2 :] = IGNORE_CLASS if hidden else 0
            volumes[name] = volume.with_array(classes)
        partly = replace(case, **volumes)
        segment = SegmentModule(Everywhere(5, 2, 4, levels=3), CONFIG, [partly], 2)
        locate = LocateModule(Everywhere(1, 2, 4, levels=3, spatial_dims=3), CONFIG, [partly], 1)
        slices = CONFIG.segment.crop_voxels[0]
        assert slices % 2 == 0
        assert segment.score(partly) == pytest.approx(1 if hidden else 2 / 3)
        held = -(-volumes["coarse_labels"].array.shape[0] // 2)
        wanted = 1 if hidden else 2 * held / (held + volumes["coarse_labels"].array.shape[0])
        assert locate.score(partly) == pytest.approx(wanted)
