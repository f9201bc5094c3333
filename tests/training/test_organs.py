"""The organs' network in training: sides in mirror images, a stage of its own, and what stays as it was."""

from __future__ import annotations

import csv
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from metricunet.cohort.names import mirrored_classes
from metricunet.cohort.prepare import PreparedCase
from metricunet.errors import InputError
from metricunet.files.model import ORGANS_FORMAT_VERSION, of_stage, read_card, read_model
from metricunet.networks import UNet
from metricunet.stages.forward import crop_probabilities
from metricunet.stages.segment import segment_spec
from metricunet.structures import IGNORE_CLASS
from metricunet.training.batches import (
    Batch,
    BlockBatches,
    LocateBatches,
    SegmentBatches,
    update_generator,
    update_seed,
)
from metricunet.training.calibrate import calibrate
from metricunet.training.checks import check_settings
from metricunet.training.config import AugmentConfig, TrainConfig, load_config
from metricunet.training.fit import train
from metricunet.training.objectives import (
    LOCATE_STAGE,
    ORGANS_STREAM,
    PATCH_STREAM,
    SEGMENT_STAGE,
    OrgansModule,
    dice,
)
from metricunet.training.uncontoured import MixedBatches
from metricunet.volume import Geometry, Volume
from tests.support.cohorts import ORGAN_LABELS, ORGANS_SETTINGS, TINY_SETTINGS, make_organs_cohort

CPU = torch.device("cpu")
TURNS = AugmentConfig(
    rotation_deg=20,
    scale=0.1,
    mirror=True,
    elastic_mm=8,
    elastic_share=1,
    shift_hu=0,
    contrast=0,
    noise_hu=0,
    blur_share=0,
    low_resolution_share=0,
)
SHORT = (*ORGANS_SETTINGS, "locate.epochs=2", "segment.epochs=1", "organs.epochs=2", "metric.weight=0")


def config(*settings: str) -> TrainConfig:
    return load_config("small", settings=[*TINY_SETTINGS, *SHORT, *settings])


def two_sided_case(unknown: tuple[int, ...] = ()) -> PreparedCase:
    """Class 1 is on the patient's right, 2 on the left; HU rise to the left, and one slab is ignored."""
    geometry = Geometry.from_parts((24, 48, 48), (4.0, 4.0, 4.0), (0, 0, 0))
    column = np.indices(geometry.shape)[2]
    hu = Volume((4 * column).astype(np.int16), geometry)
    classes = np.where(column < 24, 1, 2).astype(np.uint8)
    classes[:, 30:34] = IGNORE_CLASS
    labels = hu.with_array(classes)
    return PreparedCase("c", hu, labels, hu, labels, {}, "", unknown, hu, labels)


def drawn(kind: str, case: PreparedCase, partners: tuple[int, ...] | None) -> Batch:
    """A batch of 32 images of one case, by the batches of a stage."""
    settings = load_config(
        "small",
        settings=[
            *TINY_SETTINGS,
            *("segment.batch_size=32", "segment.hu_window=[0, 192]", "segment.spacing_mm=[4, 4, 4]"),
            *("segment.crop_mm=[64, 128, 128]", "segment.block_slices=4"),
            *("locate.batch_size=32", "locate.hu_window=[0, 192]", "locate.target_share=1"),
        ],
    )
    generator = update_generator(3, 1, 0, CPU)
    if kind == "locate":
        batches = LocateBatches([case], settings.locate, TURNS, 3, 1, True, CPU, partners)
        return batches.draw(generator)
    build = BlockBatches if kind == "block" else SegmentBatches
    box = "organs" if kind == "organs" else "fine"
    jitter_mm = (0.0, 0.0, 0.0)
    if kind == "mixed":
        half = settings.segment.model_copy(update={"batch_size": 16})
        halves = [SegmentBatches([case], half, TURNS, 3, True, jitter_mm, CPU, partners) for _ in range(2)]
        return MixedBatches(*halves).draw(generator)
    return build([case], settings.segment, TURNS, 3, True, jitter_mm, CPU, partners, box).draw(generator)


@pytest.mark.parametrize("kind", ["locate", "segment", "block", "organs", "mixed"])
def test_mirror_images_have_each_side_where_it_lies(kind: str) -> None:
    """In every image, mirrored or not, class 1 lies at lower columns than 2. Without partners half are wrong."""
    plain, sided = (drawn(kind, two_sided_case(), partners) for partners in (None, (0, 2, 1)))
    assert torch.equal(plain.images, sided.images)
    rise = sided.images.diff(dim=-1).flatten(1)
    mirrored = torch.where(rise == 0, torch.nan, rise).nanmedian(dim=1).values < 0
    assert mirrored.any()
    assert not mirrored.all()
    columns = torch.arange(sided.labels.shape[-1]).expand(sided.labels.shape)
    judged = 0
    for labels, place, other, turned in zip(sided.labels, columns, plain.labels, mirrored, strict=True):
        if (labels == 1).any() and (labels == 2).any():
            assert place[labels == 1].double().mean() < place[labels == 2].double().mean()
            judged += 1
        swapped = torch.tensor([0, 2, 1])[other.long().clamp(max=2)].to(torch.uint8)
        swapped[other == IGNORE_CLASS] = IGNORE_CLASS
        assert torch.equal(labels, swapped if turned else other)
    assert judged > 5
    # Without changes of HU a teacher sees what the network sees: an image mirrored as its labels are.
    assert sided.plain is None or torch.equal(sided.plain, sided.images[sided.contoured :])
    assert (sided.labels == IGNORE_CLASS).any()


@pytest.mark.parametrize("kind", ["locate", "segment", "block"])
def test_a_side_that_was_not_contoured_is_the_other_one_in_mirror_images(kind: str) -> None:
    case = two_sided_case((2,))
    plain, sided = (drawn(kind, case, partners) for partners in (None, (0, 2, 1)))
    assert sided.unknown is not None
    changed = (plain.labels != sided.labels).flatten(1).any(dim=1)
    assert changed.any()
    assert not changed.all()
    left_unknown, right_unknown = torch.tensor([False, False, True]), torch.tensor([False, True, False])
    assert torch.equal(sided.unknown, torch.where(changed[:, None], right_unknown, left_unknown))


def test_structures_without_sides_cost_nothing_and_change_nothing() -> None:
    partners = mirrored_classes(["prostate", "bladder"])
    plain, other = (drawn("segment", two_sided_case(), p) for p in (None, partners))
    assert torch.equal(plain.labels, other.labels)


def test_the_streams_of_random_numbers_do_not_meet() -> None:
    first = {update_seed(seed, stage, 0) for seed in range(1000) for stage in (LOCATE_STAGE, SEGMENT_STAGE)}
    patches, organs = (
        {update_seed(s, stream, 0) for s in range(1000)} for stream in (PATCH_STREAM, ORGANS_STREAM)
    )
    assert not (first & organs) | (patches & organs)


def test_the_score_is_the_mean_dice_of_what_was_contoured() -> None:
    settings = config("organs.crop_mm=[64, 96, 96]", "organs.box_mm=[96, 96, 96]")
    labels = two_sided_case().coarse_labels
    labels = labels.with_array(np.where(labels.array == IGNORE_CLASS, 0, labels.array).astype(np.uint8))
    case = replace(two_sided_case(), organs_labels=labels, organs_classes=(3, 2))
    torch.manual_seed(0)
    network = UNet(5, 3, 4, levels=3).eval()
    module = OrgansModule(network, settings, [case, replace(case, organs=None)], 3)
    assert len(module.validation_cases) == 1
    crop = case.central_crop(settings.organs.crop_voxels, "organs")
    assert crop is not None
    hu, truth = torch.from_numpy(crop.hu.array), torch.from_numpy(crop.labels.array)
    found = crop_probabilities(network, segment_spec(settings.organs, 3), hu).argmax(dim=0)
    one, two = (dice(found == k, truth == k) for k in (1, 2))
    assert one is not None
    assert two is not None
    assert module.score(case) == pytest.approx((one + two) / 2)
    assert module.score(replace(case, unknown=(3,))) == pytest.approx(two)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_organs_cohort(tmp_path_factory.mktemp("organs") / "cohort", 5)


@pytest.fixture(scope="module")
def model(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(cohort, tmp_path_factory.mktemp("organs_run") / "run", config=config(), device="cpu")


def test_what_a_training_with_organs_leaves(model: Path) -> None:
    card, weights = read_model(model)
    assert card.labels == ORGAN_LABELS
    assert card.staged_labels == {"prostate": 1}
    assert card.organs_structures == ("side_right", "side_left", "bowl")
    assert card.organs == segment_spec(config().organs, 4)
    assert (card.locate.network["classes"], card.segment.network["classes"]) == (2, 2)
    assert card.format_version == ORGANS_FORMAT_VERSION
    assert {name.split(".")[0] for name in weights} == {"locate", "segment", "organs"}
    assert 0 < card.validation["organs_dice"] < 1
    assert card.calibration is not None
    with (model.parent / "log.csv").open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert [row["stage"] for row in rows] == ["locate"] * 2 + ["segment"] + ["organs"] * 2
    assert max(float(row["val_dice"]) for row in rows[3:]) == pytest.approx(
        card.validation["organs_dice"], rel=1e-4
    )


def test_the_stages_before_it_are_the_same_whatever_it_is(cohort: Path, model: Path, tmp_path: Path) -> None:
    solid = ("organs.spatial_dims=3", "organs.block_slices=8", "organs.batch_size=1")
    settings = config(*solid, "organs.epochs=1", "organs.updates_per_epoch=2")
    other = train(cohort, tmp_path / "run", config=settings, device="cpu")
    one, two = read_model(model)[1], read_model(other)[1]
    for stage in ("locate", "segment"):
        before, after = of_stage(one, stage), of_stage(two, stage)
        assert all(torch.equal(before[name], after[name]) for name in before)
    assert read_card(other).organs == segment_spec(
        config("organs.spatial_dims=3", "organs.block_slices=8").organs, 4
    )


KILLED_RUN = """
import os, signal, sys
from pathlib import Path
from metricunet.training.fit import train
from metricunet.training.log import StageProgress
from tests.training.test_organs import config

def die(progress, done, val_dice=None):
    if (progress.stage, done) == ("organs", config().organs.updates_per_epoch + 6):
        os.kill(os.getpid(), signal.SIGKILL)

StageProgress.show = die
train(Path(sys.argv[1]), Path(sys.argv[2]), config=config(), device="cpu")
"""


def test_a_run_killed_in_this_stage_resumes_to_the_weights_of_an_unbroken_one(
    cohort: Path, model: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    path = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path)}
    command = [sys.executable, "-c", KILLED_RUN, str(cohort), str(output)]
    ended = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()
    assert (output / "checkpoints" / "organs-last.ckpt").is_file()
    resumed = train(cohort, output, config=config(), device="cpu", resume=True)
    one, two = read_model(model)[1], read_model(resumed)[1]
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_checkpoint_that_somebody_put_there_is_not_gone_on_with(
    model: Path, cohort: Path, tmp_path: Path
) -> None:
    output = Path(shutil.copytree(model.parent, tmp_path / "run"))
    (output / "checkpoints" / "organs-last.ckpt").write_bytes(b"mine")
    with pytest.raises(InputError, match=r"organs-last\.ckpt"):
        train(cohort, output, config=config(), device="cpu", resume=True)


def test_beginning_from_a_model_with_organs(model: Path, cohort: Path, tmp_path: Path) -> None:
    still = [f"{stage}.{s}" for stage in ("locate", "segment", "organs")
             for s in ("epochs=1", "updates_per_epoch=1", "learning_rate=1e-9")]  # fmt: skip
    tuned = train(cohort, tmp_path / "run", config=config(*still), init=model, device="cpu")
    one, two = read_model(model)[1], read_model(tuned)[1]
    assert torch.allclose(one["organs.classify.weight"], two["organs.classify.weight"], atol=1e-6)
    with pytest.raises(InputError, match="its organs network has base_channels 4, this training 6"):
        train(cohort, tmp_path / "other", config=config("organs.base_channels=6"), init=model, device="cpu")


def test_a_model_with_organs_is_calibrated_as_it_was_after_training(
    model: Path, cohort: Path, tmp_path: Path
) -> None:
    again = calibrate(model, cohort, tmp_path / "again.safetensors", device="cpu")
    assert read_card(again).calibration == read_card(model).calibration


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("organs.structures=[bowl, prostate]", "names prostate, which is the target"),
        ("organs.structures=[colon]", "names 'colon'; expected some of prostate, side_left"),
        ("organs.structures=[bowl, bowl]", "names bowl more than once"),
        ("organs.slices=4", r"organs\.slices is 4; expected an odd number"),
        ("organs.crop_mm=[136, 96, 160]", r"organs\.crop_mm is 136 where organs\.box_mm is 128"),
        ("organs.network=vnet", r"organs\.spatial_dims is 2; with organs\.network vnet it must be 3"),
    ],
)
def test_settings_that_do_not_fit_are_named(setting: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        check_settings(config(setting), ORGAN_LABELS)


def test_organs_are_off_unless_asked_for() -> None:
    for preset in ("default", "small"):
        settings = load_config(preset)
        assert settings.organs.structures == ()
        settings = load_config(preset, settings=["organs.structures=[bladder]"])
        assert settings.organs.crop_voxels == (96, 80, 128)
        check_settings(settings, {"prostate": 1, "bladder": 2})
