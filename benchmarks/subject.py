"""What is measured on: a scan and a model, given or made here."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from benchmarks.stand_in import write_stand_in
from metricunet.api import load_scan
from metricunet.errors import InputError
from metricunet.files.model import read_card
from metricunet.phantom import make_phantom
from metricunet.training.config import TrainConfig, load_config
from metricunet.volume import Geometry, Volume
from metricunet.workflows.bench.predict import described
from metricunet.workflows.ct_writer import CtGrid, write_ct_series

#: As many slices as the phantom gets unless it is said otherwise.
SLICES = 235
PHANTOM_SEED = 0
PROSTATE = 1


class Options(TypedDict, total=False):
    """Arguments of a predictor."""

    reruns: int


@dataclass(eq=False)
class Subject:
    """A scan and a model.

    Attributes:
        scan: in HU; a phantom's axes run to the head, the back and the left.
        scan_name: what it is, in words.
        truth: mask of the phantom's prostate; None for a scan that was given.
        model: the model file.
        model_name: what it is, in words.
        trained: whether the model was given, so that its masks have a meaning.
        config: of the preset.
        folder: for temporary files.
        given: the scan's path; None for a phantom.
        is_dicom: whether `path` is a DICOM series.
    """

    scan: Volume
    scan_name: str
    truth: Volume | None
    model: Path
    model_name: str
    trained: bool
    config: TrainConfig
    folder: Path
    given: Path | None
    is_dicom: bool

    @cached_property
    def path(self) -> Path:
        """The scan on disk: the given one, or the phantom as an uncompressed DICOM series."""
        return self.uncompressed if self.given is None else self.given

    @cached_property
    def uncompressed(self) -> Path:
        """The scan as an uncompressed DICOM series, written when first asked for."""
        folder = self.folder / "series"
        scan = self.scan.canonical()
        write_ct_series(folder, scan.array, CtGrid.of(scan.geometry))
        return folder

    @property
    def options(self) -> Options:
        """Of a predictor: the stand-in's region reaches the crop's ends wherever it is, so it is not run again."""
        return {} if self.trained else {"reruns": 0}

    def describe(self) -> list[str]:
        """Say in two lines what is measured on."""
        return [f"  scan: {self.scan_name}", f"  model: {self.model_name}"]


@contextmanager
def prepared_subject(scan: Path | None, model: Path | None, preset: str, slices: int) -> Iterator[Subject]:
    """Read or make the scan, and make a model where none is given; temporary files go at the end.

    Args:
        scan: DICOM folder or file; None makes a phantom of difficulty `real`.
        model: model file; None makes one of fresh weights that finds something (see `stand_in`).
        preset: of the networks that are made.
        slices: of the phantom, over the same length of the patient.

    Raises:
        InputError: a scan or model that cannot be read, or a preset that does not exist.
    """
    config = load_config(preset)
    if model is not None:
        read_card(model)
    truth: Volume | None = None
    if scan is None:
        (volume, truth), is_dicom = phantom_scan(slices), True
    else:
        loaded = load_scan(scan)
        volume, is_dicom = loaded.volume, loaded.is_dicom
    with tempfile.TemporaryDirectory(prefix="metricunet-benchmarks-") as name:
        folder = Path(name)
        used = folder / "model.safetensors" if model is None else model
        if model is None:
            write_stand_in(used, config)
        yield Subject(
            scan=volume,
            scan_name=described("a phantom of difficulty real" if scan is None else str(scan), volume),
            truth=truth,
            model=used,
            model_name=f"fresh weights of preset {preset}, wired to find the middle"
            if model is None
            else str(model),
            trained=model is not None,
            config=config,
            folder=folder,
            given=scan,
            is_dicom=is_dicom,
        )


def phantom_scan(slices: int) -> tuple[Volume, Volume]:
    """Make a 512 x 512 phantom with a number of slices, and the mask of its prostate.

    The length of the patient stays the phantom's own, so many slices are thin ones.

    Raises:
        InputError: fewer than 2 slices.
    """
    if slices < 2:
        raise InputError(f"--slices must be 2 or more; got {slices}")
    phantom = make_phantom(PHANTOM_SEED, "real")
    before = phantom.image.geometry
    thickness = before.extent_mm[0] / slices
    grid = before.box_around(before.centre_mm, (slices, *before.shape[1:]), (thickness, *before.spacing_mm[1:]))
    mask = (phantom.labels.array == PROSTATE).astype(np.uint8)
    return _in_slices(phantom.image.array, grid), _in_slices(mask, grid)


def _in_slices(array: NDArray[np.int16] | NDArray[np.uint8], grid: Geometry) -> Volume:
    """Read whole numbers linearly between slices, one slice at a time; no float copy of the scan."""
    result = np.empty(grid.shape, dtype=array.dtype)
    between = (np.arange(grid.shape[0]) + 0.5) * len(array) / grid.shape[0] - 0.5
    for k, at in enumerate(np.clip(between, 0, len(array) - 1)):
        low = min(int(at), len(array) - 2) if len(array) > 1 else 0
        high = min(low + 1, len(array) - 1)
        share = np.float32(at - low)
        result[k] = np.rint(array[low] * (1 - share) + array[high] * share)
    return Volume(result, grid)
