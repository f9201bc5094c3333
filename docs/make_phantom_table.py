"""Redraw the tables of docs/phantom.md: real against phantom, and reader against reader.

    python docs/make_phantom_table.py [--seeds 24] [--first 0] [--write]

Prints the tables as Markdown; with --write they replace those between the markers in docs/phantom.md.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from metricunet.evaluation.measures import measure
from metricunet.phantom import STRUCTURES, Phantom, make_phantom
from metricunet.phantom.measures import CLINICAL, measure_scan
from metricunet.volume import Volume

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
    arguments = parser.parse_args()
    seeds = range(arguments.first, arguments.first + arguments.seeds)
    images, drawn = collect(seeds)
    which = f"Seeds {seeds[0]} to {seeds[-1]}."
    tables = {
        "image table": f"{image_table(images)}\n\n{which}",
        "reader table": f"{reader_table(drawn)}\n\n{which}",
    }
    page = PAGE.read_text(encoding="utf-8")
    for name, table in tables.items():
        print(table, end="\n\n")
        if arguments.write:
            page = replaced(page, name, table)
    if arguments.write:
        PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
