"""Settings that do not fit each other, found before any work."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from metricunet.cohort.layout import DatasetInfo
from metricunet.cohort.names import standard_name
from metricunet.errors import InputError
from metricunet.files.model import LONGEST_NAME, card_content, card_of, is_name
from metricunet.inference.models import MODEL_NAME
from metricunet.networks import Network, build_network
from metricunet.stages.segment import segment_spec
from metricunet.structures import without
from metricunet.training.branch import build_metric
from metricunet.training.card import model_card
from metricunet.training.config import BoxConfig, LocateConfig, TrainConfig
from metricunet.training.uncontoured import uncontoured_rows

#: The dimensions a network comes in, and the fewest levels it can have.
DIMS: dict[str, tuple[int, ...]] = {"unet": (2, 3), "fcn": (2,), "vnet": (3,)}
FEWEST_LEVELS = {"unet": 2, "fcn": 3, "vnet": 2}


def check_settings(config: TrainConfig, labels: Mapping[str, int]) -> None:
    """Check that settings fit each other and the structures.

    Args:
        config: every setting.
        labels: structure name to its value, of the cohort.

    Raises:
        InputError: it names the first setting that does not fit.
    """
    locate = config.locate
    check_organs(config, labels)
    check_window("locate", locate)
    classes = len(without(labels, config.organs.structures)) + 1
    network = check_box("segment", config.segment, classes)
    uncontoured_rows(config)
    if config.metric.weight_as == "gradient_share" and config.metric.mode == "offline":
        raise InputError(
            "setting metric.weight_as is gradient_share; with metric.mode offline it must be factor, for that "
            "branch reads no decoder maps"
        )
    with torch.device("meta"):
        build_metric(network, config, classes)
    if config.organs.structures:
        check_box("organs", config.organs, len(config.organs.structures) + 1)
    divisor = 2 ** (locate.levels - 1)
    if any(side % divisor for side in locate.patch_voxels):
        raise InputError(
            f"setting locate.patch_voxels is {list(locate.patch_voxels)}; with locate.levels {locate.levels} each "
            f"side must be a multiple of {divisor}"
        )
    check_card(config, labels)


def check_card(config: TrainConfig, labels: Mapping[str, int]) -> None:
    """Check that a model file can hold what the training would write at its very end.

    Args:
        config: every setting.
        labels: structure name to its value, of the cohort.

    Raises:
        InputError: it names the structure, or the first field of the card that no file could hold.
    """
    for name in labels:
        for held in (name, standard_name(name, config.tg263)):
            if not is_name(held):
                raise InputError(
                    f"structure {name!r:.100}: a model file cannot name it {held!r:.100}; expected 1 to "
                    f"{LONGEST_NAME} characters that can be printed: rename it in dataset.json, or by the setting "
                    "tg263"
                )
    if config.target not in labels:
        return  # it is named where the cases are prepared
    card = model_card(config, DatasetInfo(dict(labels)), (), (), "", None, np.zeros((0, 3)))
    try:
        card_of(Path(MODEL_NAME), card_content(card))
    except InputError as error:
        reason = " ".join(str(error.__cause__ or error).split())
        raise InputError(f"these settings are beyond what a model file can hold: {reason[:300]}") from error


def check_shares(config: TrainConfig, processes: int) -> None:
    """Check that the processes that train together can have equal shares of every batch.

    Raises:
        InputError: it names the setting.
    """
    apart = uncontoured_rows(config)
    sizes = [("locate.batch_size", config.locate.batch_size, "")]
    if apart:
        of_batch = f" of segment.batch_size {config.segment.batch_size} (teacher.share {config.teacher.share:g})"
        contoured = config.segment.batch_size - apart
        sizes += [("segment.batch_size", contoured, f" images with contours{of_batch}")]
        sizes += [("segment.batch_size", apart, f" images without contours{of_batch}")]
    else:
        sizes.append(("segment.batch_size", config.segment.batch_size, ""))
    if config.organs.structures:
        sizes.append(("organs.batch_size", config.organs.batch_size, ""))
    for name, size, what in sizes:
        if size % processes:
            raise InputError(
                f"setting {name} gives {size}{what or ' images'} for {processes} processes that train together; "
                "expected a multiple of their number, for each has as many of a batch"
            )


def check_organs(config: TrainConfig, labels: Mapping[str, int]) -> None:
    """Check that the organs' network has structures of the cohort, each once, and the target is not among them.

    Raises:
        InputError: it names the structure.
    """
    names = config.organs.structures
    for k, name in enumerate(names):
        if name == config.target:
            raise InputError(
                f"setting organs.structures names {name}, which is the target; that is stage 2's, so leave it out"
            )
        if name not in labels:
            raise InputError(
                f"setting organs.structures names {name!r}; expected some of {', '.join(labels)}, as dataset.json "
                "spells them"
            )
        if name in names[:k]:
            raise InputError(f"setting organs.structures names {name} more than once; leave the others out")


def check_window(section: str, stage: LocateConfig | BoxConfig) -> None:
    """Check that the HU window of a network rises.

    Raises:
        InputError: it names the setting.
    """
    low, high = stage.hu_window
    if not low < high:
        raise InputError(
            f"setting {section}.hu_window is {list(stage.hu_window)}; expected the lower HU, then the higher one"
        )


def check_box(section: str, stage: BoxConfig, classes: int) -> Network:
    """Check the settings of a network on a box around the target.

    Args:
        section: name of these settings in the configuration.
        stage: the settings.
        classes: number of classes, background included.

    Returns:
        The network, without memory for its weights.

    Raises:
        InputError: it names the first setting that does not fit.
    """
    check_network(section, stage)
    check_window(section, stage)
    with torch.device("meta"):
        network = build_network(**segment_spec(stage, classes).network)
    if stage.slices % 2 == 0:
        raise InputError(f"setting {section}.slices is {stage.slices}; expected an odd number: one middle slice")
    for crop, box, step in zip(stage.crop_mm, stage.box_mm, stage.spacing_mm, strict=True):
        if crop > box:
            raise InputError(
                f"setting {section}.crop_mm is {crop:g} where {section}.box_mm is {box:g}; enlarge the box"
            )
        if step > crop:
            raise InputError(f"setting {section}.spacing_mm is {step:g} where {section}.crop_mm is {crop:g}")
    for side in stage.crop_voxels[1:]:
        if side % network.divisor:
            raise InputError(
                f"setting {section}.crop_mm gives {side} voxels in the slice; with {section}.levels "
                f"{stage.levels} it must be a multiple of {network.divisor}"
            )
    check_field(section, stage, network)
    return network


def check_network(section: str, stage: BoxConfig) -> None:
    """Check that there is such a network.

    Raises:
        InputError: a network that does not come in these dimensions, or with so few levels.
    """
    known = DIMS[stage.network]
    if stage.spatial_dims not in known:
        raise InputError(
            f"setting {section}.spatial_dims is {stage.spatial_dims}; with {section}.network {stage.network} it "
            f"must be {known[0]}"
        )
    if stage.levels < FEWEST_LEVELS[stage.network]:
        raise InputError(
            f"setting {section}.levels is {stage.levels}; {section}.network {stage.network} needs "
            f"{FEWEST_LEVELS[stage.network]} or more"
        )


def check_field(section: str, stage: BoxConfig, network: Network) -> None:
    """Check that a block can be halved as often as the network does, and that normalisation has voxels to work on.

    Raises:
        InputError: a block that does not fit the network or the crop, or a crop too small for the levels.
    """
    slices, rows, columns = stage.crop_voxels
    space = [rows, columns]
    if stage.spatial_dims == 3:
        if stage.block_slices % network.divisor:
            raise InputError(
                f"setting {section}.block_slices is {stage.block_slices}; with {section}.levels {stage.levels} it "
                f"must be a multiple of {network.divisor}"
            )
        if stage.block_slices > slices:
            raise InputError(
                f"setting {section}.block_slices is {stage.block_slices}, but {section}.crop_mm holds {slices} "
                "slices; take smaller blocks or a taller crop"
            )
        space.insert(0, stage.block_slices)
    if all(side == network.normalised_stride for side in space):
        raise InputError(
            f"setting {section}.levels is {stage.levels}: a crop of {' x '.join(map(str, space))} voxels leaves "
            f"one voxel at the coarsest level; take fewer levels or a larger {section}.crop_mm"
        )
