"""Redraw docs/images/phantoms.png, beside two real scans, and varied.png and beyond.png, varied phantoms.

    python docs/make_phantom_figure.py [--data FOLDER] [-o FILE]

The real scans come from a folder that holds `pelvis_ct_dicom` and `pelvis_ct_nifti`; by default that of the
environment variable METRICUNET_DATA. `--varied` redraws the other two pictures alone and needs no scan.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass, replace
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pydicom

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from PIL import Image

from metricunet.files.nifti import read_labels, read_nifti
from metricunet.phantom import STRUCTURES, draw_phantom, make_phantom
from metricunet.phantom.scanner import Scan as Acquisition
from metricunet.phantom.shapes import Point
from metricunet.volume import Geometry, Volume

#: Window of 350 HU around 40 HU.
LOW_HU, HIGH_HU = 40 - 175, 40 + 175
AXIAL_MM = (400.0, 290.0)
SAGITTAL_MM = (290.0, 190.0)
PIXEL_MM = 1.0
PHANTOMS = ((2, "real"), (5, "real"), (0, "real"), (9, "real"), (3, "real"), (6, "easy"))
VARIED = (2, 3, 6, 7, 9, 10, 14, 8)
#: Seed, whether there is a prostate, and what is to be seen.
BEYOND = (
    (33, True, "whole body"),
    (61, True, "abdomen"),
    (70, False, "chest alone"),
    (7, False, "woman"),
    (14, False, "after prostatectomy"),
    (240, True, "balloon and catheter"),
    (237, True, "gel"),
    (103, True, "sources"),
)
#: Value of the prostate in the organs that come with the NIfTI scan, and its place in the DICOM scan (LPS, mm).
NIFTI_PROSTATE = 22
DICOM_PROSTATE_MM = (2.0, -178.0, -463.0)
AMBER = "#ffb000"


@dataclass(frozen=True)
class Scan:
    """What one column shows."""

    title: str
    image: Volume
    centre_mm: np.ndarray
    outline: Volume | None = None


def phantom(seed: int, difficulty: str) -> Scan:
    """Make a phantom."""
    made = make_phantom(seed, difficulty)  # type: ignore[arg-type]
    gland = made.labels.with_array((made.labels.array == STRUCTURES["prostate"]).astype(np.float32))
    centre = gland.geometry.to_world(np.argwhere(gland.array > 0).mean(axis=0))
    dz, dy, _ = made.image.spacing_mm
    volume = made.description["gland_volume_ml"]
    title = f"phantom, {difficulty}: {volume:.0f} mL, {dy:.2f} × {dz:g} mm"
    return Scan(title, made.image, centre, gland)


def real_dicom(folder: Path) -> Scan:
    """Read the real DICOM series."""
    slices = sorted(
        (pydicom.dcmread(path) for path in folder.glob("*.dcm")), key=lambda d: float(d.ImagePositionPatient[2])
    )
    first = slices[0]
    hu = np.stack([d.pixel_array * float(d.RescaleSlope) + float(d.RescaleIntercept) for d in slices])
    step = float(slices[1].ImagePositionPatient[2]) - float(first.ImagePositionPatient[2])
    row, column = (float(v) for v in first.PixelSpacing)
    grid = Geometry.from_parts(hu.shape, (step, row, column), [float(v) for v in first.ImagePositionPatient])
    return Scan(f"real scan: TCIA, {row:.2f} × {step:.1f} mm", Volume(hu, grid), np.array(DICOM_PROSTATE_MM))


def real_nifti(folder: Path) -> Scan:
    """Read the real NIfTI scan; the organs beside it tell where the prostate is."""
    image = read_nifti(folder / "example_ct.nii.gz")
    organs = read_labels(folder / "example_seg_fast_force_split.nii.gz")
    centre = organs.geometry.to_world(np.argwhere(organs.array == NIFTI_PROSTATE).mean(axis=0))
    return Scan("real scan: TotalSegmentator, 3 × 3 mm", image, centre)


def view(volume: Volume, centre_mm: np.ndarray, sagittal: bool, fill: float) -> np.ndarray:
    """Read one plane [rows, columns] through a point: axial, or sagittal with the head up."""
    width, height = SAGITTAL_MM if sagittal else AXIAL_MM
    columns, rows = int(width / PIXEL_MM), int(height / PIXEL_MM)
    middle = np.array(centre_mm, dtype=float)
    if sagittal:
        middle[2] += 25
        grid = Geometry.from_parts((rows, columns, 1), (PIXEL_MM,) * 3)
    else:
        grid = Geometry.from_parts((1, rows, columns), (PIXEL_MM,) * 3)
    grid = grid.box_around(middle, grid.shape, grid.spacing_mm)
    plane = volume.resample(grid, fill=fill).array
    return plane[::-1, :, 0] if sagittal else plane[0]


def draw(scans: list[Scan], path: Path, credit: str = "") -> None:
    """Draw two rows of four scans, each an axial view with a sagittal one below it."""
    heights = [AXIAL_MM[1] / AXIAL_MM[0], SAGITTAL_MM[1] / SAGITTAL_MM[0]] * 2
    figure, axes = plt.subplots(
        4, 4, figsize=(12.4, 12.4 / 4 * (sum(heights) + 0.42)), height_ratios=heights, facecolor="black"
    )
    figure.subplots_adjust(left=0.004, right=0.996, top=0.975, bottom=0.028, wspace=0.02, hspace=0.06)
    for place, scan in enumerate(scans):
        for below in (0, 1):
            axis = axes[2 * (place // 4) + below, place % 4]
            axis.imshow(
                view(scan.image, scan.centre_mm, bool(below), -1000.0),
                cmap="gray",
                vmin=LOW_HU,
                vmax=HIGH_HU,
                interpolation="bilinear",
            )
            axis.set_axis_off()
            if below and scan.outline is not None:
                share = view(scan.outline, scan.centre_mm, True, 0.0)
                axis.contour(share, [0.5], colors=AMBER, linewidths=0.8)
            if not below:
                colour = "white" if scan.outline is not None else AMBER
                axis.set_title(scan.title, color=colour, fontsize=9, pad=3)
    figure.text(
        0.5,
        0.008,
        f"Volume of the prostate, pixel × slice. Window 350/40 HU. Outline: the true prostate. {credit}",
        color="white",
        fontsize=8.5,
        ha="center",
    )
    _save(figure, path)


def draw_beyond(path: Path) -> None:
    """Draw eight columns: an axial view; below it a coronal one of a long scan, or a sagittal one of a pelvis."""
    figure, axes = plt.subplots(2, 8, figsize=(16, 5.2), height_ratios=(1, 2), facecolor="black")
    figure.subplots_adjust(left=0.003, right=0.997, top=0.93, bottom=0.01, wspace=0.03, hspace=0.03)
    for column, (seed, reaches, title) in enumerate(BEYOND):
        drawn = draw_phantom(seed, "varied", reaches)
        scan = drawn.scan
        long = drawn.build is not None
        low, high = scan.start_mm[2], scan.end_mm[2]
        x, y, z = drawn.appearance.gland_mm
        level = min(290.0, (low + high) / 2 if low > z else high) if long else z + (6 if reaches else 14)
        below = (
            part_of(scan, (x - 280, y, low), (x + 280, y, high), 2.0)
            if long
            else part_of(scan, (x, y - 130, z - 90), (x, y + 120, z + 130), 1.0)
        )
        for row, grid in enumerate(
            (part_of(scan, (x - 200, y - 150, level), (x + 200, y + 140, level), 1.0), below)
        ):
            image = drawn.image(grid)
            gland = drawn.labels({"prostate": 1}, grid).array
            plane, outline = (a[0] if row == 0 else np.squeeze(a)[::-1] for a in (image.array, gland))
            axis = axes[row, column]
            axis.imshow(plane, cmap="gray", vmin=LOW_HU, vmax=HIGH_HU, interpolation="bilinear")
            if outline.any():
                axis.contour(outline, [0.5], colors=AMBER, linewidths=0.8)
            axis.set_axis_off()
        axes[0, column].set_title(title, color="white", fontsize=9, pad=3)
    _save(figure, path)


def part_of(scan: Acquisition, low_mm: Point, high_mm: Point, spacing_mm: float) -> Acquisition:
    """The grid of one spacing between two corners, as far as the scan goes."""
    start = [max(a, b) for a, b in zip(low_mm, scan.start_mm, strict=True)]
    end = [min(a, b) for a, b in zip(high_mm, scan.end_mm, strict=True)]
    columns, rows, slices = (max(1, int((b - a) / spacing_mm)) for a, b in zip(start, end, strict=True))
    return replace(
        scan,
        shape=(slices, rows, columns),
        start_mm=(start[0], start[1], start[2]),
        spacing_mm=(spacing_mm,) * 3,
    )


def _save(figure: Figure, path: Path) -> None:
    """Write a figure in a palette of greys and the accent's shades, which keeps the file small."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100, facecolor="black")
    plt.close(figure)
    picture = Image.open(path).convert("RGB").quantize(palette=_palette(), dither=Image.Dither.NONE)
    picture.save(path, optimize=True)


def _palette() -> Image.Image:
    """56 greys and 8 shades of the accent."""
    accent = np.array([int(AMBER[k : k + 2], 16) for k in (1, 3, 5)])
    greys = np.linspace(0, 255, 56)[:, None].repeat(3, axis=1)
    shades = np.linspace(0.3, 1, 8)[:, None] * accent
    palette = Image.new("P", (1, 1))
    palette.putpalette(np.concatenate([greys, shades]).round().astype(np.uint8).ravel().tolist())
    return palette


def main() -> None:
    """Parse the arguments and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=os.environ.get("METRICUNET_DATA"))
    parser.add_argument("--varied", action="store_true")
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).parent / "images" / "phantoms.png")
    arguments = parser.parse_args()
    draw([phantom(seed, "varied") for seed in VARIED], arguments.output.with_name("varied.png"))
    draw_beyond(arguments.output.with_name("beyond.png"))
    if arguments.varied:
        return
    if arguments.data is None:
        parser.error("name the folder of real scans with --data or METRICUNET_DATA")
    made = [phantom(seed, difficulty) for seed, difficulty in PHANTOMS]
    real = [real_dicom(arguments.data / "pelvis_ct_dicom"), real_nifti(arguments.data / "pelvis_ct_nifti")]
    credit = "Right: real scans, TCIA CT COLONOGRAPHY (ACRIN 6664) and TotalSegmentator test data (Apache-2.0)."
    draw([*made[:3], real[0], *made[3:], real[1]], arguments.output, credit)


if __name__ == "__main__":
    main()
