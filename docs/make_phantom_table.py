"""Redraw the tables of docs/phantom.md: real against phantom, reader against reader, MRI against phantom.

    python docs/make_phantom_table.py [--seeds 24] [--first 0] [--glands FOLDER] [--write]

Prints the tables as Markdown; with --write they replace those between the markers in docs/phantom.md. Any labelled
scan can be measured as the phantoms are, by `measure_scan`.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from metricunet.evaluation.measures import measure
from metricunet.files.nifti import read_labels
from metricunet.phantom import STRUCTURES, Phantom, draw_phantom, make_phantom
from metricunet.volume import Volume

#: Mean HU, noise and its grain on one real planning scan of 1 mm pixels, contoured by clinicians.
CLINICAL: dict[str, float] = {
    "gland": 41.5,
    "around gland": 36.2,
    "rectal wall": 42.4,
    "bladder wall": 35.8,
    "urine": 10.0,
    "fat": -93.0,
    "muscle": 50.0,
    "noise": 15.0,
    "grain 1": 0.64,
    "grain 2": 0.18,
    "grain 3": 0.06,
}
#: The window around the gland that holds what is measured beside it.
MARGIN_MM = 22.0
#: Urine is measured this deep inside the bladder, clear of its wall.
URINE_DEPTH_MM = 6.5
#: Fewest voxels for a mean, and fewest of a slice of urine for its noise.
FEWEST, FEWEST_IN_SLICE = 50, 200
PAGE = Path(__file__).parent / "phantom.md"
#: Pixels on which the grain is compared: those of the real scan, within 3 %.
GRAIN_PIXEL_MM = (0.97, 1.03)
ROWS = {
    "gland": "gland, HU",
    "around gland": "tissue 1 to 4 mm outside it, HU",
    "rectal wall": "rectal wall near the gland, HU",
    "bladder wall": "bladder wall near the gland, HU",
    "urine": "urine, HU",
    "fat": "fat, HU",
    "muscle": "muscle, HU",
    "noise": "noise in urine, standard deviation, HU",
    "grain 1": "noise autocorrelation at 1 px",
    "grain 2": "noise autocorrelation at 2 px",
    "grain 3": "noise autocorrelation at 3 px",
}
#: Of a gland: what is measured, how it is called, and its digits.
GLAND_ROWS = {
    "volume": ("volume, mL", 0),
    "height": ("height over width", 2),
    "depth": ("depth over width", 2),
    "skew": ("left half less right half, over both", 3),
    "tip": ("how much higher the left half lies, over half the height", 2),
}
#: Voxels that the glands of phantoms are measured on.
GLAND_STEP_MM = 1.0
Values = Mapping[str, Sequence[float]]


def prostate(labels: Volume) -> Volume:
    """The prostate's mask alone."""
    return labels.with_array((labels.array == STRUCTURES["prostate"]).astype(np.uint8))


def readers(made: Phantom) -> dict[str, float]:
    """Dice and average surface distance of two readers and the truth, and what each makes of the volume."""
    truth, first, second = (prostate(labels) for labels in (made.labels, *made.readings))
    pair = measure(second, first)
    result = {"pair dice": pair.dice, "pair asd": pair.asd_mm, "gland ml": made.description["gland_volume_ml"]}
    for number, drawn in ((1, first), (2, second)):
        found = measure(drawn, truth)
        result[f"truth dice {number}"] = found.dice
        result[f"volume {number}"] = 100 * (float(drawn.array.sum()) / float(truth.array.sum()) - 1)
    return {name: float(value) for name, value in result.items() if value is not None}


def measure_scan(image: Volume, labels: Volume, structures: Mapping[str, int] = STRUCTURES) -> dict[str, float]:
    """Measure a labelled scan.

    Args:
        image: HU.
        labels: on the same grid.
        structures: values of `prostate`, `bladder` (urine and wall) and `rectum` (wall and content) in `labels`.

    Returns:
        Mean HU of `gland` (deeper than 3 mm), `around gland` (1 to 4 mm outside it, neither bladder nor rectum nor
        gas), `rectal wall` and `bladder wall` (0.8 to 3 mm inside the organ, within 10 mm of the gland), `urine`;
        the most frequent HU of `fat` and `muscle`; `noise`, the standard deviation in urine after each slice's
        quadratic trend is taken out; `grain 1`, `grain 2`, `grain 3`, its autocorrelation at so many pixels
        within the slice. What the scan does not show is left out.
    """
    found = _near_gland(image, labels, structures)
    hu, deep = _urine(image, labels, structures["bladder"])
    if deep.sum() >= FEWEST:
        found["urine"] = float(hu[deep].mean())
    found |= _peaks(image.array)
    return found | _noise(hu, deep)


def _depth_mm(mask: NDArray[np.bool_], spacing_mm: tuple[float, float, float]) -> NDArray[np.float64]:
    from scipy import ndimage

    return np.asarray(ndimage.distance_transform_edt(mask, spacing_mm), dtype=np.float64)


def _near_gland(image: Volume, labels: Volume, structures: Mapping[str, int]) -> dict[str, float]:
    where = np.argwhere(labels.array == structures["prostate"])
    if len(where) == 0:
        return {}
    spacing = image.spacing_mm
    margin = np.ceil(MARGIN_MM / np.asarray(spacing)).astype(int)
    low, high = np.maximum(where.min(axis=0) - margin, 0), where.max(axis=0) + margin + 1
    box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    hu, near = image.array[box].astype(np.float64), labels.array[box]
    gland = near == structures["prostate"]
    outside = _depth_mm(~gland, spacing)
    clear = _depth_mm(hu > -250, spacing) > 2.5
    hollow = np.isin(near, [structures["bladder"], structures["rectum"]])
    parts = {
        "gland": _depth_mm(gland, spacing) > 3,
        "around gland": (outside > 1) & (outside < 4) & ~hollow & clear,
    }
    for name in ("rectum", "bladder"):
        inside = _depth_mm(near == structures[name], spacing)
        wall = (inside > 0.8) & (inside < 3) & (outside < 10)
        parts["rectal wall" if name == "rectum" else "bladder wall"] = wall & clear if name == "rectum" else wall
    return {name: float(hu[part].mean()) for name, part in parts.items() if part.sum() >= FEWEST}


def _urine(image: Volume, labels: Volume, bladder: int) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """HU of the box around the bladder, and whether each voxel lies deep inside it."""
    inside = labels.array == bladder
    if not inside.any():
        return np.zeros((1, 1, 1)), np.zeros((1, 1, 1), dtype=bool)
    box = tuple(
        slice(int(held[0]), int(held[-1]) + 1)
        for held in (np.flatnonzero(inside.any(axis=axes)) for axes in ((1, 2), (0, 2), (0, 1)))
    )
    deep = _depth_mm(np.pad(inside[box], 1), image.spacing_mm)[1:-1, 1:-1, 1:-1] > URINE_DEPTH_MM
    return image.array[box].astype(np.float64), deep


def _peaks(hu: NDArray[np.generic]) -> dict[str, float]:
    """The two peaks of the histogram of soft tissue."""
    from scipy import ndimage

    bins = np.arange(-140, 121, 2.0)
    counts, _ = np.histogram(hu[::3, ::2, ::2], bins)
    smooth = ndimage.gaussian_filter1d(counts.astype(np.float64), 2)
    middle = (bins[:-1] + bins[1:]) / 2
    fat, muscle = middle < -50, middle > 25
    return {
        name: float(middle[part][smooth[part].argmax()])
        for name, part in (("fat", fat), ("muscle", muscle))
        if smooth[part].max() > 0
    }


def _noise(hu: NDArray[np.float64], deep: NDArray[np.bool_]) -> dict[str, float]:
    slices = [_detrended(*pair) for pair in zip(hu, deep, strict=True) if pair[1].sum() >= FEWEST_IN_SLICE]
    if not slices:
        return {}
    result = {"noise": float(np.concatenate([s[~np.isnan(s)] for s in slices]).std())}
    variance = np.mean([np.nanmean(s * s) for s in slices])
    for step in (1, 2, 3):
        along = [(s[:, step:] * s[:, :-step], s[step:] * s[:-step]) for s in slices]
        products = [np.concatenate([a.ravel(), b.ravel()]) for a, b in along]
        result[f"grain {step}"] = float(np.mean([np.nanmean(p) for p in products]) / variance)
    return result


def _detrended(hu: NDArray[np.float64], mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """One slice without its quadratic trend; NaN outside the mask."""
    y, x = np.nonzero(mask)
    terms = np.stack([np.ones(len(x)), x, y, x * x, x * y, y * y], axis=1).astype(np.float64)
    terms /= np.abs(terms).max(axis=0)
    values = hu[mask]
    rest = np.full(mask.shape, np.nan)
    rest[mask] = values - terms @ np.linalg.lstsq(terms, values, rcond=None)[0]
    return rest


def collect(seeds: Sequence[int]) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Make a phantom of each seed and measure its image and its readers."""
    images: dict[str, list[float]] = {name: [] for name in ROWS}
    drawn: dict[str, list[float]] = {}
    for seed in seeds:
        made = make_phantom(seed, "real", n_readers=2)
        for name, value in readers(made).items():
            drawn.setdefault(name, []).append(value)
        # The real scan has no metal.
        if made.description["hip_implants"]:
            continue
        low, high = GRAIN_PIXEL_MM
        for name, value in measure_scan(made.image, made.labels).items():
            if not name.startswith("grain") or low < made.image.spacing_mm[1] < high:
                images[name].append(value)
    return images, drawn


def measure_gland(mask: Volume) -> dict[str, float]:
    """Measure the size of a gland, and how alike its halves are.

    Args:
        mask: not 0 in the gland.

    Returns:
        `volume` in mL; `height` and `depth` of its box over the box's width; `skew`, the volume of the left half
        of the box less that of the right one, over both; `tip`, how much higher the centre of what the left half
        holds lies than that of the right one, over half the height.
    """
    gland = mask.canonical()
    index = np.argwhere(gland.array)
    low, high = index.min(axis=0), index.max(axis=0) + 1
    height, depth, width = (high - low) * np.asarray(gland.spacing_mm)
    # Where the middle runs through voxels, half of each is on either side.
    left = np.clip(index[:, 2] + 1.0 - (low[2] + high[2]) / 2, 0.0, 1.0)
    z = index[:, 0] * gland.spacing_mm[0]
    centres = [float((z * side).sum() / side.sum()) for side in (left, 1 - left)]
    return {
        "volume": len(index) * gland.geometry.voxel_volume_ml,
        "height": float(height / width),
        "depth": float(depth / width),
        "skew": float((2 * left - 1).sum() / len(index)),
        "tip": float((centres[0] - centres[1]) / (height / 2)),
    }


def collect_glands(masks: Iterable[Volume]) -> dict[str, list[float]]:
    """Measure glands."""
    found: dict[str, list[float]] = {name: [] for name in GLAND_ROWS}
    for mask in masks:
        for name, value in measure_gland(mask).items():
            found[name].append(value)
    return found


def varied_glands(seeds: Sequence[int]) -> Iterator[Volume]:
    """Yield the glands of `varied` phantoms, but for those that their scan cuts."""
    for seed in seeds:
        drawn = draw_phantom(seed, "varied")
        if drawn.description["gland"] != "whole":
            continue
        low, high = (np.asarray(corner) for corner in drawn.gland_mm)
        start, count = low - 3.0, np.ceil((high - low + 6.0) / GLAND_STEP_MM).astype(int)
        grid = replace(
            drawn.scan,
            start_mm=(float(start[0]), float(start[1]), float(start[2])),
            shape=(int(count[2]), int(count[1]), int(count[0])),
            spacing_mm=(GLAND_STEP_MM,) * 3,
        )
        yield drawn.labels({"prostate": 1}, grid)


def spread(values: Sequence[float], digits: int) -> str:
    """Mean, and the range of the middle 90 %."""
    if not values:
        return "none | |"
    low, high = np.percentile(values, [5, 95])
    return f"{np.mean(values):.{digits}f} | {low:.{digits}f} to {high:.{digits}f} | {len(values)}"


def image_table(images: Values) -> str:
    """Real against phantom."""
    lines = ["| quantity | real scan | phantoms, mean | 5 to 95 % | scans |", "| --- | --- | --- | --- | --- |"]
    for name, title in ROWS.items():
        digits = 2 if name.startswith("grain") else 1
        lines.append(f"| {title} | {CLINICAL[name]:g} | {spread(images[name], digits)} |")
    return "\n".join(lines)


def reader_table(drawn: Values) -> str:
    """Reader against reader, and against the truth."""
    size = np.asarray(drawn["gland ml"])
    dice = np.asarray(drawn["pair dice"])
    thirds = np.quantile(size, [1 / 3, 2 / 3])
    rows: list[tuple[str, str, Sequence[float], int]] = [
        ("Dice of two readers", "0.85 to 0.92", dice.tolist(), 3),
        (f"the same, glands under {thirds[0]:.0f} mL", "", dice[size < thirds[0]].tolist(), 3),
        (f"the same, glands over {thirds[1]:.0f} mL", "", dice[size > thirds[1]].tolist(), 3),
        ("Dice of reader 1 and the true shape", "", drawn["truth dice 1"], 3),
        ("Dice of reader 2 and the true shape", "", drawn["truth dice 2"], 3),
        ("average surface distance of two readers, mm", "", drawn["pair asd"], 2),
        ("volume of reader 1 against the true one, %", "", drawn["volume 1"], 1),
        ("volume of reader 2 against the true one, %", "", drawn["volume 2"], 1),
    ]
    lines = ["| quantity | clinicians | phantoms, mean | 5 to 95 % | cases |", "| --- | --- | --- | --- | --- |"]
    lines += [f"| {title} | {aim} | {spread(values, digits)} |" for title, aim, values, digits in rows]
    return "\n".join(lines)


def gland_table(men: Values, phantoms: Values) -> str:
    """Glands drawn on MRI against those of `varied` phantoms."""
    lines = [
        "| quantity | men on MRI, median | 5 to 95 % | phantoms, median | 5 to 95 % |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, (title, digits) in GLAND_ROWS.items():
        cells = []
        for values in (men[name], phantoms[name]):
            low, middle, high = np.percentile(values, [5, 50, 95])
            cells.append(f"{middle:.{digits}f} | {low:.{digits}f} to {high:.{digits}f}")
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def replaced(page: str, name: str, table: str) -> str:
    """Put a table between its markers."""
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end of {name} -->)", flags=re.DOTALL)
    result, count = pattern.subn(lambda found: found[1] + table + "\n" + found[2], page)
    if count != 1:
        raise SystemExit(f"{PAGE}: expected one pair of markers for {name}; found {count}")
    return result


def main() -> None:
    """Parse the arguments, measure, print or write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=24, help="how many phantoms to measure")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--write", action="store_true", help="replace the tables in docs/phantom.md")
    parser.add_argument("--glands", type=Path, help="the table of glands alone, beside label maps in this folder")
    arguments = parser.parse_args()
    seeds = range(arguments.first, arguments.first + arguments.seeds)
    which = f"Seeds {seeds[0]} to {seeds[-1]}."
    if arguments.glands is None:
        images, drawn = collect(seeds)
        tables = {
            "image table": f"{image_table(images)}\n\n{which}",
            "reader table": f"{reader_table(drawn)}\n\n{which}",
        }
    else:
        men = collect_glands(map(read_labels, sorted(arguments.glands.glob("*.nii.gz"))))
        phantoms = collect_glands(varied_glands(seeds))
        counts = f"{len(men['volume'])} men; {len(phantoms['volume'])} phantoms of the s{which[1:]}"
        tables = {"gland table": f"{gland_table(men, phantoms)}\n\n{counts}"}
    page = PAGE.read_text(encoding="utf-8")
    for name, table in tables.items():
        print(table, end="\n\n")
        if arguments.write:
            page = replaced(page, name, table)
    if arguments.write:
        PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
