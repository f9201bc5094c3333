"""Redraw docs/images/readers.png: the true prostate and two readers' contours, apex to base.

python docs/make_readers_figure.py [-o FILE]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib as mpl
import numpy as np

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.lines import Line2D
from PIL import Image

from metricunet.evaluation.measures import measure
from metricunet.phantom import STRUCTURES, Phantom, make_phantom
from metricunet.volume import Geometry, Volume

SEEDS = (9, 3, 21)
#: Places between the lowest and the highest slice of the true gland, then one sagittal view.
PLACES = {"apex": 0.08, "lower third": 0.3, "middle": 0.5, "upper third": 0.72, "base": 0.93}
LOW_HU, HIGH_HU = 40 - 175, 40 + 175
SIDE_MM, PIXEL_MM = 76.0, 0.5
#: Told apart by the colour-blind as well.
COLOURS = {"true shape": "#ffffff", "reader 1": "#ffb000", "reader 2": "#33bbee"}


def view(volume: Volume, centre_mm: np.ndarray, sagittal: bool, fill: float) -> np.ndarray:
    """Read one plane [rows, columns] through a point: axial, or sagittal with the head up."""
    side = int(SIDE_MM / PIXEL_MM)
    shape = (side, side, 1) if sagittal else (1, side, side)
    grid = Geometry.from_parts(shape, (PIXEL_MM,) * 3)
    plane = volume.resample(grid.box_around(centre_mm, grid.shape, grid.spacing_mm), fill=fill).array
    return plane[::-1, :, 0] if sagittal else plane[0]


def row(axes: np.ndarray, made: Phantom, headed: bool) -> None:
    """Draw one phantom."""
    value = STRUCTURES["prostate"]
    volumes = [v.with_array((v.array == value).astype(np.float32)) for v in (made.labels, *made.readings)]
    inside = np.argwhere(volumes[0].array > 0)
    middle, low, high = inside.mean(axis=0), inside[:, 0].min(), inside[:, 0].max()
    dice = measure(volumes[2], volumes[1]).dice
    for axis, (name, place) in zip(axes, {**PLACES, "sagittal": 0.5}.items(), strict=True):
        sagittal = name == "sagittal"
        # A slice of the scan itself, not a mixture of two.
        index = middle if sagittal else np.array([np.round(low + place * (high - low)), *middle[1:]])
        centre = made.image.geometry.to_world(index)
        axis.imshow(view(made.image, centre, sagittal, -1000.0), cmap="gray", vmin=LOW_HU, vmax=HIGH_HU)
        for volume, colour in zip(volumes, COLOURS.values(), strict=True):
            share = view(volume, centre, sagittal, 0.0)
            if share.max() > 0.5:
                axis.contour(share, [0.5], colors=colour, linewidths=1.1)
        axis.set_axis_off()
        if headed:
            axis.set_title(name, color="white", fontsize=10, pad=4)
    volume_ml = made.description["gland_volume_ml"]
    hips = len(made.description["hip_implants"])
    metal = "" if hips == 0 else f", {'two artificial hips' if hips == 2 else 'an artificial hip'}"
    axes[0].text(
        0.03,
        0.03,
        f"{volume_ml:.0f} mL{metal}\nDice of the readers {dice:.2f}",
        color="white",
        fontsize=8.5,
        transform=axes[0].transAxes,
        va="bottom",
        bbox={"facecolor": "black", "edgecolor": "none", "alpha": 0.6, "pad": 2},
    )


def _palette() -> Image.Image:
    """72 greys and 16 shades of each reader's colour."""
    accents = [[int(c[k : k + 2], 16) for k in (1, 3, 5)] for c in list(COLOURS.values())[1:]]
    greys = np.linspace(0, 255, 72)[:, None].repeat(3, axis=1)
    shades = [np.linspace(0.35, 1, 16)[:, None] * np.array(accent) for accent in accents]
    palette = Image.new("P", (1, 1))
    palette.putpalette(np.concatenate([greys, *shades]).round().astype(np.uint8).ravel().tolist())
    return palette


def main() -> None:
    """Parse the arguments and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).parent / "images" / "readers.png")
    arguments = parser.parse_args()
    columns = len(PLACES) + 1
    figure, axes = plt.subplots(
        len(SEEDS), columns, figsize=(2 * columns, 2 * len(SEEDS) + 0.6), facecolor="black"
    )
    figure.subplots_adjust(left=0.004, right=0.996, top=0.95, bottom=0.06, wspace=0.02, hspace=0.02)
    for k, seed in enumerate(SEEDS):
        row(axes[k], make_phantom(seed, "real", n_readers=2), headed=k == 0)
    figure.legend(
        handles=[Line2D([], [], color=colour, label=name) for name, colour in COLOURS.items()],
        loc="lower center",
        ncols=3,
        frameon=False,
        labelcolor="white",
        fontsize=10,
        bbox_to_anchor=(0.5, -0.005),
    )
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(arguments.output, dpi=90, facecolor="black")
    plt.close(figure)
    # Greys and shades of the two colours: a palette keeps the file small.
    picture = Image.open(arguments.output).convert("RGB").quantize(palette=_palette(), dither=Image.Dither.NONE)
    picture.save(arguments.output, optimize=True)


if __name__ == "__main__":
    main()
