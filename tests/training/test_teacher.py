"""The teacher: what it is, what it is sure of, and what is lost against it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from metricunet.cohort.layout import read_cohort
from metricunet.cohort.prepare import PreparedCase, PrepareSettings, prepare
from metricunet.errors import InputError
from metricunet.networks import FCN, UNet
from metricunet.structures import IGNORE_CLASS
from metricunet.training.batches import Batch, BlockBatches, SegmentBatches, update_generator
from metricunet.training.checks import check_settings
from metricunet.training.config import TeacherConfig, load_config
from metricunet.training.objectives import SegmentModule, segmentation_loss
from metricunet.training.teacher import Teacher, pseudo_labels, rise, squared_difference
from metricunet.training.uncontoured import MixedBatches, uncontoured_rows
from tests.support.cohorts import TINY_SETTINGS

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def cases(tiny_cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> list[PreparedCase]:
    cohort = read_cohort(tiny_cohort)
    stage = load_config("small", settings=TINY_SETTINGS)
    settings = PrepareSettings("prostate", stage.locate.spacing_mm, stage.segment.spacing_mm, stage.segment.box_mm)
    return prepare(cohort.training[:3], cohort.info, settings, tmp_path_factory.mktemp("prepared"))


def without_contours(case: PreparedCase) -> PreparedCase:
    assert case.fine_labels is not None
    nobody = case.fine_labels.with_array(torch.full(case.fine_labels.array.shape, 255, dtype=torch.uint8).numpy())
    return replace(case, fine_labels=nobody, facts=case.facts | {"located_slices": [4, 6]})


def module(cases: list[PreparedCase], *settings: str) -> tuple[SegmentModule, MixedBatches]:
    """Stage 2 with two contoured images and two uncontoured ones in a batch."""
    config = load_config("small", settings=[*TINY_SETTINGS, "teacher.share=0.5", *settings])
    solid = config.segment.spatial_dims == 3
    part = config.segment.model_copy(update={"batch_size": 2})
    known, others = cases[:2], [without_contours(case) for case in cases[2:]]
    batches = [
        (BlockBatches if solid else SegmentBatches)(some, part, config.augment, 2, True, (0, 0, 0), CPU)
        for some in (known, others)
    ]
    torch.manual_seed(0)
    network = UNet(1 if solid else 5, 2, 4, levels=3, spatial_dims=config.segment.spatial_dims)
    return SegmentModule(network, config, [], 2), MixedBatches(*batches)


def test_nothing_is_dropped_in_what_the_teacher_says() -> None:
    """An FCN drops half of two layers where it is trained; a teacher is asked."""
    torch.manual_seed(0)
    network = FCN(1, 2, 4)
    teacher = Teacher(network, TeacherConfig(share=0.5))
    holder = torch.nn.ModuleDict({"network": network, "teacher": teacher}).train()
    images = torch.randn(2, 1, 64, 64)
    assert torch.equal(teacher.probabilities(images), teacher.probabilities(images))
    assert holder["network"].training


def test_the_teacher_is_the_moving_average() -> None:
    torch.manual_seed(0)
    network = UNet(1, 2, 2, levels=2)
    teacher = Teacher(network, TeacherConfig(decay=0.8))
    wanted: list[Tensor] = []
    for update in range(60):
        with torch.no_grad():
            for one in network.parameters():
                one.add_(torch.randn_like(one))
        teacher.follow(network, update)
        now = [one.detach().double() for one in network.parameters()]
        kept = min(0.8, update / (update + 10))
        wanted = [kept * a + (1 - kept) * b for a, b in zip(wanted, now, strict=True)] if wanted else now
    for mine, theirs in zip(teacher.network.parameters(), wanted, strict=True):
        torch.testing.assert_close(mine.double(), theirs, atol=1e-5, rtol=1e-5)
        assert not mine.requires_grad


def test_pseudo_labels_equal_a_plain_loop() -> None:
    torch.manual_seed(0)
    settings = TeacherConfig(threshold=0.6, background_threshold=0.8)
    probabilities = (3 * torch.randn(2, 3, 5, 4)).softmax(dim=1)
    labels = torch.full((2, 5, 4), IGNORE_CLASS, dtype=torch.uint8)
    labels[0, :2] = 2
    found = pseudo_labels(probabilities, labels, settings)
    for b in range(2):
        for i in range(5):
            for j in range(4):
                shares = probabilities[b, :, i, j].tolist()
                best = shares.index(max(shares))
                sure = max(shares) >= (0.8 if best == 0 else 0.6)
                wanted = 2 if b == 0 and i < 2 else best if sure else IGNORE_CLASS
                assert int(found[b, i, j]) == wanted
    assert (found == IGNORE_CLASS).any()


def test_the_squared_difference_equals_a_plain_loop_and_passes_gradcheck() -> None:
    torch.manual_seed(0)
    logits = torch.randn(1, 3, 2, 4, dtype=torch.float64, requires_grad=True)
    taught = torch.randn(1, 3, 2, 4, dtype=torch.float64).softmax(dim=1)
    labels = torch.full((1, 2, 4), IGNORE_CLASS, dtype=torch.uint8)
    labels[0, 0, 1] = 2
    total = 0.0
    for i in range(2):
        for j in range(4):
            shares = logits[0, :, i, j].softmax(dim=0).tolist()
            wanted = [0.0, 0.0, 1.0] if (i, j) == (0, 1) else taught[0, :, i, j].tolist()
            total += sum((a - b) ** 2 for a, b in zip(shares, wanted, strict=True))
    assert squared_difference(logits, taught, labels).item() == pytest.approx(total / 24)
    assert torch.autograd.gradcheck(lambda x: squared_difference(x, taught, labels), (logits,))


def test_the_weight_rises_smoothly() -> None:
    assert [rise(k, 100) for k in (0, 50, 100, 500)] == pytest.approx([0.0067379, 0.2865048, 1, 1], abs=1e-6)
    assert rise(0, 0) == 1


def test_a_mixed_batch(cases: list[PreparedCase]) -> None:
    _, batches = module(cases)
    batch = batches.draw(update_generator(0, 1, 3, CPU))
    assert batch.contoured == 2
    assert batch.plain is not None
    assert batch.plain.shape == batch.images[2:].shape
    assert (batch.labels[2:] == IGNORE_CLASS).all()
    assert not (batch.labels[:2] == IGNORE_CLASS).any()
    # The same crops, before and after their HU were changed.
    assert not torch.equal(batch.plain, batch.images[2:])
    for plain, changed in zip(batch.plain, batch.images[2:], strict=True):
        assert torch.corrcoef(torch.stack([plain.flatten(), changed.flatten()]))[0, 1] > 0.8
    again = batches.draw(update_generator(0, 1, 3, CPU))
    assert torch.equal(again.images, batch.images)
    assert torch.equal(again.plain, batch.plain)


def test_the_contoured_images_are_those_of_a_training_without_the_others(cases: list[PreparedCase]) -> None:
    _, batches = module(cases)
    alone = batches.contoured.draw(update_generator(0, 1, 3, CPU))
    batch = batches.draw(update_generator(0, 1, 3, CPU))
    assert torch.equal(batch.images[:2], alone.images)
    assert torch.equal(batch.labels[:2], alone.labels)


def test_slices_that_stage_1_found_the_target_in_are_aimed_at(cases: list[PreparedCase]) -> None:
    _, batches = module(cases, "segment.target_share=1")
    chosen = batches.uncontoured._slices(torch.zeros(200, dtype=torch.long), update_generator(0, 1, 0, CPU))
    assert set(chosen.tolist()) == {4, 5, 6}


@pytest.mark.parametrize("loss", ["pseudo_labels", "squared"])
def test_the_loss_is_that_of_both_halves(cases: list[PreparedCase], loss: str) -> None:
    built, batches = module(
        cases, f"teacher.loss={loss}", "metric.mode=none", "teacher.weight=0.7", "precision=fp32"
    )
    batch = batches.draw(update_generator(0, 1, 3, CPU))
    assert built.teacher is not None
    found, facts = built(batch, 9)
    assert set(facts) == {"consistency", "confident_voxels", "pseudo_structures"}
    with torch.no_grad():
        logits = built.network(batch.images)
        taught = built.teacher.network(batch.plain).softmax(dim=1)
    known = segmentation_loss(logits[:2], batch.labels[:2], 1, 1)
    if loss == "squared":
        other = squared_difference(logits[2:], taught, batch.labels[2:])
    else:
        pseudo = pseudo_labels(taught, batch.labels[2:], built.config.teacher)
        other = segmentation_loss(logits[2:], pseudo, 1, 1)
    torch.testing.assert_close(found, known + 0.7 * rise(9, 500) * other)
    found.backward()
    assert all(one.grad is None for one in built.teacher.parameters())
    assert all(one.grad is not None for one in built.network.parameters())


ALL = (
    "metric.bank=32",
    "metric.bank_new=4",
    "metric.taps=[0, 1]",
    "metric.unsure_mm=3",
    "metric.left_out_mm=1",
    "metric.mean_over=all",
    "metric.weight_as=gradient_share",
)


@pytest.mark.parametrize("background", ["hu", "clusters"])
@pytest.mark.parametrize("mode", ["online", "control"])
@pytest.mark.parametrize("dims", [2, 3])
def test_everything_at_once_takes_steps(cases: list[PreparedCase], mode: str, background: str, dims: int) -> None:
    solid = ["segment.spatial_dims=3", "segment.block_slices=8"] if dims == 3 else []
    settings = [*ALL, f"metric.mode={mode}", f"metric.background={background}", "teacher.threshold=0.5", *solid]
    built, batches = module(cases, *settings, "teacher.background_threshold=0.5")
    optimizer = torch.optim.AdamW(built.parameters(), 1e-3)
    for update in (5, 6, 7):
        torch.manual_seed(update)
        loss, facts = built(batches.draw(update_generator(0, 1, update, CPU)), update)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert torch.isfinite(loss)
        assert all(torch.isfinite(value) and not value.requires_grad for value in facts.values())
    assert facts["metric_weight"] > 0
    assert facts["confident_voxels"] == 1
    assert ("bank_triplet" in facts) == (mode == "online")
    if mode == "online":
        assert built.metric.bank.entered.sum() > 0  # type: ignore[union-attr]


def test_the_branch_sees_what_the_teacher_is_sure_of(
    cases: list[PreparedCase], monkeypatch: pytest.MonkeyPatch
) -> None:
    built, batches = module(cases, "teacher.threshold=1", "teacher.background_threshold=1")
    seen: list[tuple[Tensor, int | None]] = []
    assert built.metric is not None
    real = built.metric.forward

    def watched(features, labels, logits=None, spacing_mm=None, image=None, contoured=None):
        seen.append((labels, contoured))
        return real(features, labels, logits, spacing_mm, image, contoured)

    monkeypatch.setattr(built.metric, "forward", watched)
    batch = batches.draw(update_generator(0, 1, 3, CPU))
    built(batch, 300)
    ((labels, contoured),) = seen
    assert contoured == 2
    assert torch.equal(labels[:2], batch.labels[:2])
    assert (labels[2:] == IGNORE_CLASS).all()


def test_what_was_contoured_is_not_what_the_teacher_is_sure_of(cases: list[PreparedCase]) -> None:
    built, batches = module(cases, "teacher.threshold=1", "teacher.background_threshold=1", "metric.mode=none")
    batch = batches.draw(update_generator(0, 1, 3, CPU))
    labels = batch.labels.clone()
    labels[2:, :8] = 1
    _, facts = built(replace(batch, labels=labels), 300)
    assert facts["confident_voxels"] == facts["pseudo_structures"] == 0


def test_the_control_sees_the_voxels_of_its_method(
    cases: list[PreparedCase], monkeypatch: pytest.MonkeyPatch
) -> None:
    from metricunet.metric import branches

    drawn: list[Tensor] = []
    real = branches.read_features

    def watched(features: Tensor, index: Tensor, shape: object) -> Tensor:
        drawn.append(index)
        return real(features, index, shape)

    monkeypatch.setattr(branches, "read_features", watched)
    for mode in ("online", "control"):
        built, batches = module(cases, *ALL, f"metric.mode={mode}")
        torch.manual_seed(4)
        built(batches.draw(update_generator(0, 1, 4, CPU)), 300)
    assert len(drawn) == 4
    assert torch.equal(drawn[0], drawn[2])
    assert torch.equal(drawn[1], drawn[3])


def test_a_teacher_alone_averages_weights_and_leaves_the_training_as_it_is(cases: list[PreparedCase]) -> None:
    """Without uncontoured scans: the same losses and weights, and another network that is judged."""
    found = []
    for final in ("student", "teacher"):
        config = load_config("small", settings=[*TINY_SETTINGS, f"teacher.final={final}"])
        batches = SegmentBatches(cases, config.segment, config.augment, 2, True, (0, 0, 0), CPU)
        torch.manual_seed(0)
        built = SegmentModule(UNet(5, 2, 4, levels=3), config, [], 2)
        optimizer = torch.optim.AdamW(built.parameters(), 1e-2)
        for update in range(12):
            torch.manual_seed(update)
            loss, _ = built(batches.draw(update_generator(0, 1, update, CPU)), update)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        found.append((built, loss))
    (plain, one), (averaged, two) = found
    assert torch.equal(one, two)
    assert plain.judged is plain.network
    assert averaged.judged is not averaged.network
    for a, b in zip(plain.network.parameters(), averaged.network.parameters(), strict=True):
        assert torch.equal(a, b)


def test_rows_without_contours() -> None:
    def rows(share: float, size: int) -> int:
        return uncontoured_rows(load_config(settings={"teacher.share": share, "segment.batch_size": size}))

    assert [rows(0, 8), rows(0.5, 8), rows(0.01, 8), rows(0.99, 8), rows(0.5, 2)] == [0, 4, 1, 7, 1]
    with pytest.raises(
        InputError, match=r"segment\.batch_size is 1; with teacher\.share 0\.5 it must be 2 or more"
    ):
        rows(0.5, 1)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["metric.bank=8"], r"metric\.bank_new is 16; expected no more than metric\.bank, 8"),
        (["metric.mode=offline", "metric.weight_as=gradient_share"], "with metric.mode offline it must be factor"),
        (["segment.batch_size=1", "teacher.share=0.5"], "it must be 2 or more"),
    ],
)
def test_settings_that_do_not_fit(settings: list[str], words: str) -> None:
    with pytest.raises(InputError, match=words):
        check_settings(load_config(settings=settings), {"prostate": 1})


def test_a_batch_without_such_scans_has_contours_throughout() -> None:
    assert Batch(torch.zeros(3, 1, 4, 4), torch.zeros(3, 4, 4)).contoured == 3
