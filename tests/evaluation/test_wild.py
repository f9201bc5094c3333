"""Pairs of masks as people have them: what is scored, what is refused, and in which words."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from metricunet.files.nifti import write_nifti
from metricunet.volume import Geometry, Volume
from tests.support.command import Command

Gland = Callable[..., NDArray[Any]]
LINES = ("Dice", "ASD", "Sensitivity", "PPV", "HD95", "Surface Dice", "Volume difference")


@pytest.fixture
def pair(tmp_path: Path, grid: Geometry) -> Callable[..., tuple[Path, Path, Path]]:
    """Write a prediction and a reference; return their folders and one for the scores."""

    def make(
        prediction: NDArray[Any], reference: NDArray[Any], *, name: str = "c.nii.gz", shift_mm: float = 0.0
    ) -> tuple[Path, Path, Path]:
        affine = grid.affine.copy()
        affine[:3, 3] += shift_mm
        moved = Geometry(prediction.shape, affine)
        write_nifti(tmp_path / "predictions" / name, Volume(prediction, moved))
        write_nifti(tmp_path / "references" / "c.nii.gz", Volume(reference, grid))
        return tmp_path / "predictions", tmp_path / "references", tmp_path / "scores"

    return make


def as_labels(mask: NDArray[Any], value: int = 1) -> NDArray[np.uint8]:
    return (mask * value).astype(np.uint8)


@pytest.mark.parametrize(
    ("predicted", "drawn", "counts", "dice", "ppv", "status"),
    [
        (False, False, "0 cases, 0 missed, 1 truly absent", None, None, 0),
        (False, True, "1 case, 1 missed", 0.0, 0.0, 1),
        (True, False, "1 case, 0 missed", 0.0, 0.0, 0),
        (True, True, "1 case, 0 missed", 1.0, 1.0, 0),
    ],
    ids=["both empty", "prediction empty", "reference empty", "alike"],
)
def test_empty_masks(
    pair: Any,
    gland: Gland,
    metricunet: Command,
    predicted: bool,
    drawn: bool,
    counts: str,
    dice: float | None,
    ppv: float | None,
    status: int,
) -> None:
    folders = pair(as_labels(gland(), predicted), as_labels(gland(), drawn))
    ended = metricunet("evaluate", folders[0], folders[1], "-o", folders[2])
    assert (ended.status, ended.err) == (status, "")
    assert ended.out.startswith(f"prostate: {counts}")
    assert [name for name in LINES if f"\n  {name}" not in ended.out] == []
    scores = json.loads((folders[2] / "summary.json").read_text())["prostate"]
    assert (scores["dice"]["mean"], scores["ppv"]["mean"]) == (dice, ppv)
    if not predicted or not drawn:
        assert scores["asd_mm"]["mean"] is None
    assert ("Missed: c" in ended.out) == (drawn and not predicted)


def test_an_origin_that_is_rounded_is_the_same_grid(pair: Any, gland: Gland, metricunet: Command) -> None:
    folders = pair(as_labels(gland()), as_labels(gland()), shift_mm=2e-3)
    assert metricunet("evaluate", folders[0], folders[1], "-o", folders[2]).status == 0
    assert json.loads((folders[2] / "summary.json").read_text())["prostate"]["dice"]["mean"] == 1


@pytest.mark.parametrize(
    ("change", "name", "said"),
    [
        (lambda a: a[:-1], "c.nii.gz", "its grid is not that of its reference: 29 x 60 x 60 voxels"),
        (lambda a: a, "c_0000.nii.gz", "no prediction has the name of a reference in"),
        (lambda a: a.astype(np.float32) * np.float32(0.7), "c.nii.gz", "label values are not whole numbers"),
        (lambda a: a * 255, "c.nii.gz", "holds the value 255, which names no structure; expected 0 or 1"),
        (lambda a: a * 2, "c.nii.gz", "holds the value 2, which names no structure; expected 0 or 1"),
    ],
    ids=["other grid", "channel suffix", "probabilities", "255", "2"],
)
def test_what_cannot_be_scored_is_refused_in_one_line(
    pair: Any, gland: Gland, metricunet: Command, change: Any, name: str, said: str
) -> None:
    folders = pair(np.ascontiguousarray(change(as_labels(gland()))), as_labels(gland()), name=name)
    ended = metricunet("evaluate", folders[0], folders[1], "-o", folders[2])
    assert (ended.status, ended.out, ended.err.count("\n")) == (2, "", 1)
    assert said in ended.err
    assert ended.err.startswith(f"error: {folders[0]}")
    assert not folders[2].exists()


def test_a_value_without_a_name_in_the_reference_is_refused_too(
    pair: Any, gland: Gland, metricunet: Command
) -> None:
    folders = pair(as_labels(gland(), 2), as_labels(gland(), 2))
    ended = metricunet("evaluate", folders[0], folders[1], "-o", folders[2])
    assert ended.status == 2
    assert ended.err.startswith(f"error: {folders[1] / 'c.nii.gz'}: holds the value 2")


def test_scores_into_the_predictions_folder_leave_the_masks(pair: Any, gland: Gland, metricunet: Command) -> None:
    predictions, references, _ = pair(as_labels(gland(), 0), as_labels(gland(), 0))
    before = (predictions / "c.nii.gz").read_bytes()
    for _ in range(2):
        assert metricunet("evaluate", predictions, references, "-o", predictions).status == 0
        assert (predictions / "c.nii.gz").read_bytes() == before
    mask = predictions / "c.nii.gz"
    ended = metricunet("evaluate", mask, references / "c.nii.gz", "-o", mask)
    assert ended.status == 2
    assert "is a file, expected a folder for the results" in ended.err
    assert mask.read_bytes() == before
