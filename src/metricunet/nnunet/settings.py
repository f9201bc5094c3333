"""The settings of the branch in nnU-Net: those of the section `metric`, from an environment variable."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml

from metricunet.errors import InputError
from metricunet.files.yaml_file import read_yaml
from metricunet.training.config import MetricConfig, merged_config

#: Names a YAML file of settings, or holds them: `{weight: 0.2, taps: [0, 1]}`.
VARIABLE = "METRICUNET_METRIC"
#: What the name of the trainer decides, or what nnU-Net's batches do not have.
NOT_HERE = {
    "mode": "the name of the trainer decides it: nnUNetTrainerVoxelMetric or nnUNetTrainerVoxelControl",
    "patch_voxels": "it is of the offline baseline, which nnU-Net has not",
    "patch_tuples": "it is of the offline baseline, which nnU-Net has not",
    "patch_tuples_per_update": "it is of the offline baseline, which nnU-Net has not",
}


def read_settings(mode: Literal["online", "control"], environment: Mapping[str, str] = os.environ) -> MetricConfig:
    """Read the settings of the branch.

    Args:
        mode: what the trainer is for.
        environment: the environment; without the variable `METRICUNET_METRIC` all settings are at their defaults.

    Raises:
        InputError: the variable names no readable file, or a setting is unknown, impossible, or of no use here.
    """
    given = environment.get(VARIABLE, "").strip()
    source = f"environment variable {VARIABLE}"
    content = _content(given, source) if given else {}
    for name in content:
        if name in NOT_HERE:
            raise InputError(f"setting metric.{name} (from {source}) cannot be set in nnU-Net: {NOT_HERE[name]}")
    metric = merged_config("default", [{"metric": content | {"mode": mode}}], source).metric
    if metric.background == "hu":
        raise InputError(
            f"setting metric.background (from {source}) is hu, but nnU-Net's augmentation changes intensities, so "
            "they tell no tissue; use clusters or one"
        )
    return metric


def check_shares(metric: MetricConfig, batch_size: int, processes: int) -> None:
    """Check that GPUs can share what the settings let them: in each step they exchange voxels, as many from each.

    Where their number does not divide its batch, nnU-Net gives some of them a patch more than others.

    Args:
        metric: the settings.
        batch_size: number of patches in a batch of all GPUs.
        processes: number of GPUs that train together.

    Raises:
        InputError: it names the setting that the batch does not fit.
    """
    if batch_size % processes == 0:
        return
    shared = {
        f"bank (from {VARIABLE}) is {metric.bank}": metric.mode == "online" and metric.bank > 0,
        f"background (from {VARIABLE}) is clusters": metric.background == "clusters",
    }
    for said in (one for one, used in shared.items() if used):
        raise InputError(
            f"setting metric.{said}, which needs as many patches on each GPU, but nnU-Net's batch of {batch_size} "
            f"is not a multiple of {processes} GPUs; train on as many as divide it (-num_gpus), or without this "
            "setting"
        )


def changed_settings(before: Mapping[str, Any], now: MetricConfig) -> list[str]:
    """Name each setting that differs from those of a checkpoint, with both values.

    Args:
        before: the settings in the checkpoint. One that it does not know, as an earlier version wrote it, was what
            is the default now.
        now: the settings.
    """
    known = MetricConfig().model_dump(mode="json") | dict(before)
    after = now.model_dump(mode="json")
    return [f"{name} was {known[name]}, is {after[name]}" for name in after if known[name] != after[name]]


def _content(given: str, source: str) -> dict[str, Any]:
    inline = given.startswith("{")
    try:
        content = yaml.safe_load(given) if inline else read_yaml(Path(given).expanduser())
    except yaml.YAMLError as error:
        raise InputError(f"{source}: not valid YAML; expected such as {{weight: 0.2}}, or a file") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise InputError(f"{given}: expected settings such as weight: 0.2; found {type(content).__name__}")
    return content
