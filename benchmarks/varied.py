"""Models of the target alone that are trained as the shipped one is, on `varied` phantoms without some groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from metricunet.inference.models import MODEL_NAME, SHIPPED
from metricunet.training.config import TrainConfig, load_config
from metricunet.training.fit import train
from metricunet.training.run import state_file

TARGET = "prostate"
#: What such a model has of the shipped one's settings, beside its augmentation.
SECTIONS = ("locate", "segment", "phantoms")


def shared_settings() -> dict[str, Any]:
    """Return what all trainings of a comparison share: target and augmentation, no metric branch."""
    return {"augment": _recipe()["augment"], "target": TARGET, "metric": {"mode": "none"}}


def config_without(groups: Sequence[str], settings: Mapping[str, Any] | None = None) -> TrainConfig:
    """Return the settings of the shipped model for the target alone.

    Args:
        groups: groups of `varied` phantoms that the model does not see.
        settings: `section.key` to a value, over all others.
    """
    own = _recipe()
    mine: dict[str, Any] = {
        **{f"{part}.{key}": value for part in SECTIONS for key, value in own[part].items()},
        "phantoms.structures": [TARGET],
        "phantoms.without": list(groups),
        "organs.structures": [],
        **shared_settings(),
        **(settings or {}),
    }
    return load_config("small", settings=mine)


def trained(cohort: Path | None, folder: Path, config: TrainConfig, **options: Any) -> Path:
    """Return the model of a run folder; it is trained if it is not there, from where it was stopped.

    Args:
        cohort: the cohort; None for phantoms that are made beside the training.
        folder: the run folder.
        config: every setting.
        options: further arguments of `metricunet.training.fit.train`.
    """
    model = folder / MODEL_NAME
    if model.is_file():
        return model
    return train(cohort, folder, config=config, resume=state_file(folder).is_file(), **options)


def _recipe() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(SHIPPED.with_suffix(".yaml").read_text(encoding="utf-8"))
    return content
