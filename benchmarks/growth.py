"""How the time of a prediction grows with the scan's slices, its matrix, and stage 2's crop.

The scans are noise around soft tissue, already in memory: reading and writing are for part `io`. Each line is the
least of three runs.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.alone import with_crop
from metricunet.inference.predictor import Predictor
from metricunet.networks.device import keep_freed_memory
from metricunet.stages.locate import Localisation
from metricunet.volume import Geometry, Volume

FIELD_MM = 400.0
SLICE_MM = 2.0


def scan(slices: int, matrix: int) -> Volume:
    """Return a scan of soft tissue with noise, int16."""
    hu = np.random.default_rng(0).normal(40, 15, (slices, matrix, matrix)).astype(np.int16)
    pixel_mm = FIELD_MM / matrix
    return Volume(hu, Geometry.from_parts(hu.shape, (SLICE_MM, pixel_mm, pixel_mm)))


def least_seconds(run: Callable[[], object]) -> float:
    """Return the least of three runs after one that is not counted."""
    seconds = []
    for _ in range(4):
        began = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - began)
    return min(seconds[1:])


def print_growth(model: Path, device: str = "auto") -> None:
    """Print one table for each thing that grows."""
    keep_freed_memory()
    predictor = Predictor([model], device)
    print("| slices of 512 x 512 | stage 1 | stage 2 |\n| --- | --- | --- |")
    for slices in (100, 200, 400, 800):
        report(str(slices), predictor, scan(slices, 512))
    print("\n| matrix, 200 slices | stage 1 | stage 2 |\n| --- | --- | --- |")
    for matrix in (256, 512, 768):
        report(f"{matrix} x {matrix}", predictor, scan(200, matrix))
    print("\n| crop in mm, 200 slices of 512 x 512 | stage 1 | stage 2 |\n| --- | --- | --- |")
    for side in (96, 128, 160):
        millimetres = zip((96, side, side), predictor.card.segment.spacing_mm, strict=True)
        with_crop(predictor, [round(mm / step) for mm, step in millimetres])
        report(f"96 x {side} x {side}", predictor, scan(200, 512))


def report(name: str, predictor: Predictor, image: Volume) -> None:
    """Print one line."""
    first = least_seconds(lambda: predictor.locate(image))
    found = found_in_the_middle(predictor, image)
    second = least_seconds(lambda: predictor.segment(image, found))
    print(f"| {name} | {first:.2f} s | {second:.2f} s |", flush=True)


def found_in_the_middle(predictor: Predictor, image: Volume) -> Localisation:
    """Return what stage 1 would say of a gland in the middle of the scan."""
    return replace(predictor.locate(image), status="found", centre_mm=image.geometry.centre_mm)
