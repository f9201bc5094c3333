"""Patients of a stream that take no time."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor, Future
from typing import Any

import numpy as np
import pytest

from metricunet.cohort.prepare import BoxName, PrepareSettings, TargetBox
from metricunet.phantom.stream import Part, StreamedCase, StreamRecipe, Use
from metricunet.stages.locate import coarse_grid
from metricunet.stages.read import read_hu
from metricunet.training import stream
from metricunet.volume import resample_labels, voxels_of
from tests.support.cohorts import make_scan


def tiny_case(
    recipe: StreamRecipe, settings: PrepareSettings, use: Use, number: int, parts: Sequence[Part]
) -> StreamedCase:
    """A patient as simple as those of the tiny cohort, in place of a phantom; the fifth has no target."""
    held = number % 5 != 4
    image, labels = make_scan(recipe.patient_seed(use, number) % 10_000, held)
    image, labels = image.canonical(), labels.canonical()
    coarse = coarse_grid(image.geometry, settings.coarse_spacing_mm)
    facts: dict[str, Any] = {"spacing_mm": list(image.spacing_mm)}
    boxes: dict[BoxName, TargetBox] = {}
    if held:
        centre = image.geometry.to_world(np.argwhere(labels.array).mean(axis=0))
        shape = voxels_of(settings.box_mm, settings.fine_spacing_mm)
        grid = image.geometry.box_around(centre, shape, settings.fine_spacing_mm)
        if "fine" in parts:
            boxes["fine"] = TargetBox(read_hu(image, grid), resample_labels(labels, grid))
        facts |= {"volume_ml": 20.0, "target_hu": 60.0, "centre_mm": centre.tolist()}
    return StreamedCase(
        f"{use}_{number}",
        read_hu(image, coarse) if "coarse" in parts else None,
        resample_labels(labels, coarse) if "coarse" in parts else None,
        boxes,
        facts,
    )


class AtOnce(Executor):
    """Does what it is given at once, and remembers it."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.asked: list[tuple[Any, ...]] = []

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.asked.append(args)
        future: Future[Any] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


def simplify(patch: pytest.MonkeyPatch) -> None:
    """Let patients take no time, and be made in this process."""
    patch.setattr(stream, "streamed_case", tiny_case)
    patch.setattr(stream, "ProcessPoolExecutor", AtOnce)
