"""Redraw docs/images/phantoms.png, six phantoms beside two real scans, and varied.png, eight varied phantoms.

    python docs/make_phantom_figure.py [--data FOLDER] [-o FILE]

The real scans come from a folder that holds `pelvis_ct_dicom` and `pelvis_ct_nifti`; by default that of the
environment variable METRICUNET_DATA. `--varied` redraws the second picture alone and needs no scan.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pydicom

mpl.use("Agg")
import matplotlib.pyplot as plt
from PIL import Image

from metricunet.files.nifti import read_labels, read_nifti
from metricunet.phantom import STRUCTURES, make_phantom
from metricunet.volume import Geometry, Volume

#: Window of 350 HU around 40 HU.
LOW_HU, HIGH_HU = 40 - 175, 40 + 175
AXIAL_MM = (400.0, 290.0)
SAGITTAL_MM = (290.0, 190.0)
PIXEL_MM = 1.0
PHANTOMS = ((2, "real"), (5, "real"), (0, "real"), (9, "real"), (3, "real"), (6, "easy"))
VARIED = (2, 3, 6, 7, 9, 10, 14, 8)
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
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100, facecolor="black")
    plt.close(figure)
    # Greys and the accent's shades: a palette keeps the file small.
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
