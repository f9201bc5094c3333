"""What is measured on: a scan and a model, the user's own or made here."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from metricunet.errors import InputError
from metricunet.files.model import read_card
from metricunet.inference.inputs import find_inputs
from metricunet.phantom import make_phantom
from metricunet.training.config import TrainConfig, load_config
from metricunet.volume import Geometry, Volume
from metricunet.workflows.bench.stand_in import write_stand_in
from metricunet.workflows.ct_writer import CtGrid, write_ct_series

#: As many slices as the phantom gets unless the user says otherwise.
SLICES = 235
PHANTOM_SEED = 0
PROSTATE = 1


@dataclass(eq=False)
class Subject:
    """A scan and a model.

    Attributes:
        scan: in HU; a phantom's axes run to the head, the back and the left.
        scan_name: what it is, in words.
        truth: mask of the phantom's prostate; None for the user's scan.
        model: the model file.
        model_name: what it is, in words.
        trained: whether the model is the user's, so that its masks have a meaning.
        config: of the preset.
        folder: for temporary files.
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

    @cached_property
    def path(self) -> Path:
        """The scan on disk: the user's, or the phantom as an uncompressed DICOM series."""
        return self.uncompressed if self.given is None else self.given

    @cached_property
    def uncompressed(self) -> Path:
        """The scan as an uncompressed DICOM series, written when first asked for."""
        folder = self.folder / "series"
        scan = self.scan.canonical()
        write_ct_series(folder, scan.array, CtGrid.of(scan.geometry))
        return folder

    @cached_property
    def is_dicom(self) -> bool:
        """Whether `path` is a DICOM series."""
        return self.given is None or find_inputs([self.given])[0][0].series is not None

    def describe(self) -> list[str]:
        """Say in two lines what is measured on."""
        return [f"  scan: {self.scan_name}", f"  model: {self.model_name}"]


@contextmanager
def prepared_subject(scan: Path | None, model: Path | None, preset: str, slices: int) -> Iterator[Subject]:
    """Read or make the scan, and make a model where none is given; temporary files go at the end.

    Args:
        scan: DICOM folder or NIfTI file; None makes a phantom of difficulty `real`.
        model: model file; None makes one of fresh weights that finds something (see `stand_in`).
        preset: of the networks that are made.
        slices: of the phantom, over the same length of the patient.

    Raises:
        InputError: a scan or model that cannot be read, or a preset that does not exist.
    """
    config = load_config(preset)
    if model is not None:
        read_card(model)
    if scan is None:
        volume, truth = phantom_scan(slices)
        name = "a phantom of difficulty real"
    else:
        volume, truth = read_scan(scan), None
        name = str(scan)
    columns, rows = volume.array.shape[2], volume.array.shape[1]
    spacing = " x ".join(f"{s:.3g}" for s in reversed(volume.spacing_mm))
    name += f", {columns} x {rows} x {volume.array.shape[0]} voxels of {spacing} mm"
    with tempfile.TemporaryDirectory(prefix="metricunet-bench-") as folder:
        made = Path(folder) / "model.safetensors"
        if model is None:
            write_stand_in(made, config)
        words = (
            f"fresh weights of preset {preset}, wired to find the middle of the scan"
            if model is None
            else str(model)
        )
        yield Subject(
            scan=volume,
            scan_name=name,
            truth=truth,
            model=made if model is None else model,
            model_name=words,
            trained=model is not None,
            config=config,
            folder=Path(folder),
            given=scan,
        )


def read_scan(path: Path) -> Volume:
    """Read the one scan at a path.

    Raises:
        InputError: none, several, or one that cannot be read.
    """
    inputs, refused = find_inputs([path])
    if len(inputs) + len(refused) != 1:
        raise InputError(f"{path}: holds {len(inputs) + len(refused)} scans; expected one to measure on")
    return inputs[0].read()


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
    place = (np.arange(grid.shape[0]) + 0.5) * len(array) / grid.shape[0] - 0.5
    for k, at in enumerate(np.clip(place, 0, len(array) - 1)):
        low = min(int(at), len(array) - 2) if len(array) > 1 else 0
        high = min(low + 1, len(array) - 1)
        share = np.float32(at - low)
        result[k] = np.rint(array[low] * (1 - share) + array[high] * share)
    return Volume(result, grid)
