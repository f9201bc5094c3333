"""Every network of stage 2 trains and predicts; misfits fail before work."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from metricunet.errors import InputError
from metricunet.files.model import ModelCard, read_model, write_model
from metricunet.files.nifti import read_labels, read_nifti
from metricunet.inference.predictor import Predictor
from metricunet.training.config import TrainConfig, load_config
from metricunet.training.fit import train
from tests.support.cohorts import TINY_SETTINGS

SHORT = (
    "locate.epochs=1", "locate.updates_per_epoch=1", "segment.epochs=2", "segment.updates_per_epoch=25",
    "metric.voxels=32",
)  # fmt: skip
SOLID = ("segment.spatial_dims=3", "segment.block_slices=8", "segment.batch_size=2")
NETWORKS = {
    "fcn": ("segment.network=fcn", "metric.taps=[0, 1, 2]"),
    "unet-3d": ("segment.network=unet", *SOLID),
    "vnet": ("segment.network=vnet", *SOLID),
}


def config(*settings: str) -> TrainConfig:
    return load_config("small", settings=[*TINY_SETTINGS, *settings])


def with_trained_locate(model: Path, other: Path, path: Path) -> ModelCard:
    """Write the model with the other one's stage 1, so that this test trains stage 2 alone."""
    card, weights = read_model(model)
    located = {k: v for k, v in read_model(other)[1].items() if k.startswith("locate.")}
    write_model(path, card, weights | located)
    return card


@pytest.mark.parametrize("name", NETWORKS)
def test_each_network_trains_and_predicts(tiny_cohort: Path, tiny_model: Path, tmp_path: Path, name: str) -> None:
    settings = config(*SHORT, *NETWORKS[name])
    trained = train(tiny_cohort, tmp_path / "run", config=settings, device="cpu")
    model = tmp_path / "model.safetensors"
    card = with_trained_locate(trained, tiny_model, model)
    assert card.segment.network["architecture"] == settings.segment.network
    assert card.segment.input_slices == settings.segment.input_slices
    assert card.validation["crop_dice"] > 0.6
    scan = read_nifti(tiny_cohort / "imagesTs" / "case_06_0000.nii.gz")
    wanted = read_labels(tiny_cohort / "labelsTs" / "case_06.nii.gz").array > 0
    found = Predictor([model], "cpu", "fp32").predict(scan)
    assert found.labels is not None
    mask = found.labels.array > 0
    assert 2 * np.sum(mask & wanted) / (mask.sum() + wanted.sum()) > 0.6
    # Models of different networks are averaged like any others.
    both = Predictor([model, tiny_model], "cpu", "fp32").predict(scan)
    assert both.labels is not None
    with pytest.raises(InputError, match=r"its segment network has .*, this training"):
        train(tiny_cohort, tmp_path / "other", config=config(), init=model, device="cpu")


@pytest.mark.parametrize("mode", ["offline", "control"])
def test_the_other_branches_work_in_3d(tiny_cohort: Path, tmp_path: Path, mode: str) -> None:
    settings = config(
        *SHORT, *SOLID, f"metric.mode={mode}", "metric.patch_voxels=8", "metric.patch_tuples_per_update=2",
        "segment.epochs=1", "segment.updates_per_epoch=2",
    )  # fmt: skip
    assert train(tiny_cohort, tmp_path / "run", config=settings, device="cpu").is_file()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["network=vnet"], r"spatial_dims is 2; with segment\.network vnet it must be 3"),
        (["network=fcn", "spatial_dims=3"], r"spatial_dims is 3; with segment\.network fcn it must be 2"),
        (["network=fcn", "levels=2"], r"levels is 2; segment\.network fcn needs 3 or more"),
        (["network=fcn", "levels=6"], r"32 voxels in the slice; .* must be a multiple of 64"),
        (["spatial_dims=3", "block_slices=6"], r"block_slices is 6; .* must be a multiple of 4"),
        (["spatial_dims=3"], r"block_slices is 32, but segment\.crop_mm holds 16 slices"),
        (["levels=6"], r"32 x 32 voxels leaves one voxel"),
        (["network=resnet"], r"segment\.network .*'unet', 'fcn' or 'vnet'"),
        (["spatial_dims=4"], r"segment\.spatial_dims .*2 or 3"),
        (["block_slices=0"], r"segment\.block_slices .*greater than or equal to 1"),
    ],
)
def test_misfits_fail_before_anything_is_written(
    tiny_cohort: Path, tmp_path: Path, settings: list[str], words: str
) -> None:
    with pytest.raises(InputError, match=words) as caught:
        train(tiny_cohort, tmp_path / "run", config=config(*(f"segment.{s}" for s in settings)))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_taps_and_patches_are_checked_against_the_network(tiny_cohort: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="decoder maps 0 to 2"):
        train(tiny_cohort, tmp_path / "run", config=config("segment.network=fcn", "metric.taps=[3]"))
    offline = ("metric.mode=offline", "metric.patch_voxels=8")
    with pytest.raises(InputError, match="patch_voxels is 8; expected a multiple of 8 from 16"):
        train(tiny_cohort, tmp_path / "run", config=config("segment.network=fcn", *offline))
