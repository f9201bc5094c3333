"""Redraw docs/images/calibration.png and the table of docs/calibration.md: is the confidence right?

    python docs/make_calibration_figure.py --work DIR [--cases N] [--also FOLDER] [--write]
        --group NAME COHORT CUTS MODEL [MODEL ...]  [--group ...]

A group is a set of models that differ in their seed. COHORT holds the validation cases that the models are
calibrated on, as training would, and CUTS is the folder of a study's stage 1 with the unseen scans, cut and
located; each of their references makes a column of the table and a row of the figure, and so do the labels of the
reader whom training saw, if --also names their folder. What is measured is kept in DIR. Prints the table as
Markdown; with --write it replaces the one in docs/calibration.md and the figure is drawn.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import cKDTree
from scipy.stats import pearsonr, spearmanr

from metricunet.evaluation.measures import measure
from metricunet.files.model import Calibration, ModelCard, read_card
from metricunet.files.nifti import read_labels
from metricunet.inference.predictor import Predictor
from metricunet.quality.boundary import boundary_error
from metricunet.quality.prediction import Prediction
from metricunet.quality.temperature import tempered
from metricunet.study.folds import Cut, read_cut
from metricunet.training.calibrate import calibrate
from metricunet.volume import Volume, resample_labels

DOCS = Path(__file__).parent
PAGE, PICTURE = DOCS / "calibration.md", DOCS / "images" / "calibration.png"
#: Reliability is looked at in voxels this near to the predicted surface; beyond, nearly all are sure and right.
BAND_MM = 5.0
BINS = 15
#: So many points are shown in fifths, more in tenths.
FEW = 200
WORDS = {"truth": "the true shape", "reader": "a reader it never saw", "own reader": "the reader it learned from"}
COLOURS = ("#3b6fb6", "#e08214", "#4d9221", "#c51b7d")
INK = "#222222"


@dataclass(frozen=True, eq=False)
class Measured:
    """What one model's confidence is worth on unseen scans.

    Attributes:
        before, after: without and with the temperature, for each bin of probability: voxels, sum of probabilities,
            voxels in the target [bins, 3].
        nll: sum of the negative log-likelihood without and with [2].
        slices: case, z in mm, expected error, true error, mean distance of the contours in the slice, mm [n, 5].
        cases: expected error, true error, ASD, all in mm, and 1 where the case was flagged [m, 4].
        missed: cases without a mask.
    """

    before: NDArray[np.float64]
    after: NDArray[np.float64]
    nll: NDArray[np.float64]
    slices: NDArray[np.float64]
    cases: NDArray[np.float64]
    missed: int


def measure_model(model: Path, cuts: Iterable[Cut]) -> dict[str, Measured]:
    """Segment the cuts with a calibrated model and compare what is expected with what is, for each reference."""
    predictor = Predictor([model], "cpu")
    value = predictor.card.labels[predictor.card.target]
    parts: dict[str, list[Measured | None]] = {}
    for cut in cuts:
        found = predictor.segment(cut.image, cut.found)
        for whose, reference in cut.references.items():
            parts.setdefault(whose, []).append(measure_case(predictor.card, cut, found, reference.array == value))
    return {whose: joined(cases) for whose, cases in parts.items()}


def measure_case(card: ModelCard, cut: Cut, found: Prediction, truth: NDArray[np.bool_]) -> Measured | None:
    """Compare what is expected of one case with what is; None where there is no mask."""
    if found.boundary is None or found.labels is None or found.region is None:
        return None
    mask = found.labels.array == card.labels[card.target]
    true = boundary_error(truth, mask, cut.image.spacing_mm)
    by_height = {round(z, 3): mm for z, mm in found.boundary.slices}
    slices = []
    for k in np.flatnonzero(mask.any(axis=(1, 2))):
        z_mm = height_mm(cut, found.region, int(k))
        apart = contour_distance_mm(mask[k], truth[k], cut.image.spacing_mm[1:])
        slices.append((0, z_mm, by_height[round(z_mm, 3)], float(true.slices_mm[k]), apart))
    asd_mm = measure(cut.image.with_array(mask), cut.image.with_array(truth)).asd_mm
    case = (found.boundary.case_mm, true.case_mm, asd_mm, float(found.boundary.high))
    field = found.boundary.probability
    here = band(field.array > 0.5, field.spacing_mm)
    seen = resample_labels(cut.image.with_array(truth.astype(np.uint8)), field.geometry).array == 1
    calibrated, inside = field.array[here], seen[here]
    raw = tempered(np.stack([1 - calibrated, calibrated]), 1 / card.temperature)[1]
    bins, nll = np.zeros((2, BINS, 3)), np.zeros(2)
    for row, p in enumerate((raw, calibrated)):
        place = np.minimum((p * BINS).astype(int), BINS - 1)
        for column, weights in enumerate((None, p, inside)):
            bins[row, :, column] = np.bincount(place, weights, minlength=BINS)
        likelihood = np.where(inside, p, 1 - p)
        nll[row] = -np.log(np.maximum(likelihood, 1e-7)).sum(dtype=np.float64)
    return Measured(bins[0], bins[1], nll, np.array(slices), np.array([case], dtype=np.float64), 0)


def joined(parts: Sequence[Measured | None]) -> Measured:
    """Put cases together."""
    cases = [part for part in parts if part is not None]
    for k, case in enumerate(cases):
        case.slices[:, 0] = k
    return Measured(
        *(np.sum([getattr(c, name) for c in cases], axis=0) for name in ("before", "after", "nll")),
        *(np.concatenate([getattr(c, name) for c in cases]) for name in ("slices", "cases")),
        missed=len(parts) - len(cases),
    )


def height_mm(cut: Cut, region: Volume, k: int) -> float:
    """LPS z of a slice of a cut, at the middle of what stage 2 looked at."""
    middle = region.geometry.centre_mm
    index = cut.image.geometry.to_index(middle)
    return float(cut.image.geometry.to_world((k, index[1], index[2]))[2])


def band(mask: NDArray[np.bool_], spacing_mm: tuple[float, float, float]) -> NDArray[np.bool_]:
    """Voxels within `BAND_MM` of the surface of a mask."""
    inside = ndimage.distance_transform_edt(mask, sampling=spacing_mm)
    outside = ndimage.distance_transform_edt(~mask, sampling=spacing_mm)
    return np.asarray(inside + outside <= BAND_MM)


def contour_distance_mm(
    first: NDArray[np.bool_], second: NDArray[np.bool_], pixel_mm: tuple[float, float]
) -> float:
    """Mean distance of two contours in a slice, both ways; NaN where one is empty."""
    points = [edges(mask, pixel_mm) for mask in (first, second)]
    if not all(len(p) for p in points):
        return float("nan")
    there, back = (cKDTree(a).query(b)[0] for a, b in (points, points[::-1]))
    return float(np.concatenate([there, back]).mean())


def edges(mask: NDArray[np.bool_], pixel_mm: tuple[float, float]) -> NDArray[np.float64]:
    """Middles of the pixel edges between inside and outside, in mm [edges, 2]."""
    padded = np.pad(mask, 1)
    parts = []
    for axis in (0, 1):
        index = np.argwhere(np.diff(padded, axis=axis)).astype(np.float64)
        index[:, axis] += 0.5
        parts.append(index * pixel_mm)
    return np.concatenate(parts)


def read_cuts(cuts: Path, limit: int | None, also: Path | None) -> Iterable[Cut]:
    """Read cuts, and with them the contours of one more reader, from label files of the whole scans."""
    for name in sorted(path.stem for path in (cuts / "cuts").glob("*.npz"))[:limit]:
        cut = read_cut(cuts, name)
        if also is not None:
            labels = read_labels(also / f"{name}.nii.gz").canonical()
            start = np.rint(labels.geometry.to_index(cut.image.geometry.origin_mm)).astype(int)
            cut.references["own reader"] = labels.crop(start.tolist(), cut.image.array.shape)
        yield cut


def calibration_error(bins: NDArray[np.float64]) -> float:
    """Mean gap between probability and frequency, weighted by voxels."""
    return float(np.abs(bins[:, 1] - bins[:, 2]).sum() / bins[:, 0].sum())


def kept(
    model: Path, cohort: Path, cuts: Path, work: Path, limit: int | None, also: Path | None
) -> tuple[Calibration, dict[str, Measured]]:
    """Calibrate a model and measure it, or read what was measured before."""
    folder = work / "-".join((*model.parts[-5:-1], str(limit or "all")))
    calibrated = folder / model.name
    if not calibrated.is_file():
        calibrate(model, cohort, calibrated, device="cpu", cache=work / "prepared")
    card = read_card(calibrated)
    assert card.calibration is not None
    if not list(folder.glob("*.npz")):
        for whose, found in measure_model(calibrated, read_cuts(cuts, limit, also)).items():
            np.savez(folder / f"{whose}.npz", **{k: getattr(found, k) for k in Measured.__dataclass_fields__})
        print(f"measured {model}", flush=True)
    measured = {}
    for path in sorted(folder.glob("*.npz"), reverse=True):  # the truth comes first
        with np.load(path) as content:
            measured[path.stem] = Measured(**{k: content[k] for k in Measured.__dataclass_fields__})
    return card.calibration, measured


def figures_of(calibration: Calibration, found: Measured) -> dict[str, float]:
    """The numbers of the table for one model and one reference."""
    _, _, expected, true, apart = found.slices.T
    both = ~np.isnan(apart)
    case_expected, case_true, asd, flagged = found.cases.T
    worst = case_true > np.quantile(case_true, 0.9)
    return {
        "temperature": calibration.temperature,
        "scale, mm true per mm expected": calibration.mm_scale,
        "NLL before": found.nll[0] / found.before[:, 0].sum(),
        "NLL after": found.nll[1] / found.after[:, 0].sum(),
        "ECE before": calibration_error(found.before),
        "ECE after": calibration_error(found.after),
        "expected error, mean of cases, mm": case_expected.mean(),
        "true error, mean of cases, mm": case_true.mean(),
        "ASD, mean of cases, mm": asd.mean(),
        "slices, Pearson r with the true error": pearsonr(expected, true)[0],
        "slices, Spearman ρ with the true error": spearmanr(expected, true)[0],
        "slices, Spearman ρ with the contours' distance": spearmanr(expected[both], apart[both])[0],
        "cases, Pearson r with the true error": pearsonr(case_expected, case_true)[0],
        "cases, Spearman ρ with the true error": spearmanr(case_expected, case_true)[0],
        "cases, Spearman ρ with ASD": spearmanr(case_expected, asd)[0],
        "cases flagged, %": 100 * flagged.mean(),
        "flagged among the worst tenth, %": 100 * flagged[worst].mean(),
    }


def table(groups: dict[str, list[dict[str, float]]]) -> str:
    """One column for each group, one row for each number: the mean over the seeds, and their range."""
    lines = [f"| | {' | '.join(groups)} |", f"| --- |{' --- |' * len(groups)}"]
    for row in next(iter(groups.values()))[0]:
        cells = []
        for models in groups.values():
            values = [m[row] for m in models]
            digits = 0 if row.endswith("%") else 4 if row.startswith(("NLL", "ECE")) else 2
            cell = f"{np.mean(values):.{digits}f}"
            if len(values) > 1:
                cell += f" ({min(values):.{digits}f} to {max(values):.{digits}f})"
            cells.append(cell)
        lines.append(f"| {row} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw_reliability(axes: Axes, models: Sequence[Measured]) -> None:
    """Draw frequency over probability, before and after, a thin line for each seed."""
    axes.plot([0, 1], [0, 1], color="#bbbbbb", linewidth=1, zorder=1)
    for colour, name, part in ((COLOURS[1], "before", "before"), (COLOURS[0], "after", "after")):
        total = np.sum([getattr(m, part) for m in models], axis=0)
        for bins, width, label in [(getattr(m, part), 0.7, None) for m in models] + [(total, 2.2, name)]:
            full = bins[:, 0] > 0
            axes.plot(
                bins[full, 1] / bins[full, 0],
                bins[full, 2] / bins[full, 0],
                color=colour,
                linewidth=width,
                marker="o" if label else None,
                markersize=4,
                label=label,
                alpha=1 if label else 0.5,
            )
    axes.set_xlabel("probability that the model states")
    axes.set_ylabel("share of voxels in the reference")
    axes.legend(frameon=False)
    axes.set_aspect("equal")


def draw_errors(axes: Axes, expected: NDArray[np.float64], true: NDArray[np.float64], size: float) -> None:
    """Draw true over expected errors; of parts of the points the means, and where the middle 80 % lie."""
    edge = float(np.quantile(np.concatenate([expected, true]), 0.98)) * 1.05
    axes.plot([0, edge], [0, edge], color="#bbbbbb", linewidth=1, zorder=1)
    axes.scatter(expected, true, s=size, color=COLOURS[0], alpha=0.25, linewidths=0, zorder=2)
    count = 10 if len(expected) > FEW else min(5, len(expected))
    parts = np.array_split(np.argsort(expected), count)
    means = np.array([(expected[p].mean(), true[p].mean()) for p in parts])
    low, high = np.array([np.quantile(true[p], (0.1, 0.9)) for p in parts]).T
    axes.vlines(means[:, 0], low, high, color=INK, linewidth=1, zorder=3)
    axes.plot(*means.T, color=INK, marker="o", markersize=4, linewidth=1.2, zorder=3)
    axes.set_xlim(0, edge)
    axes.set_ylim(0, edge)
    axes.set_aspect("equal")
    axes.set_xlabel("expected error, mm")
    axes.set_ylabel("true error, mm")


def draw(path: Path, groups: dict[str, list[Measured]]) -> None:
    """Draw a row for each group: reliability, slices, cases."""
    figure = Figure(figsize=(12.5, 4.2 * len(groups)), layout="constrained", dpi=110)
    rows = figure.subplots(len(groups), 3, squeeze=False)
    for (name, models), row in zip(groups.items(), rows, strict=True):
        draw_reliability(row[0], models)
        slices, cases = (np.concatenate([getattr(m, part) for m in models]) for part in ("slices", "cases"))
        draw_errors(row[1], slices[:, 2], slices[:, 3], 5)
        draw_errors(row[2], cases[:, 0], cases[:, 1], 14)
        row[0].set_title(f"{name}\nreliability near the surface", fontsize=10, loc="left")
        for axes, kind, values in ((row[1], "slices", slices[:, 2:4]), (row[2], "cases", cases[:, :2])):
            title = f"{len(values)} {kind}: r {pearsonr(*values.T)[0]:.2f}, ρ {spearmanr(*values.T)[0]:.2f}"
            axes.set_title(title, fontsize=10, loc="left")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def replaced(page: str, name: str, text: str) -> str:
    """Put a table between its markers."""
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end of {name} -->)", flags=re.DOTALL)
    result, count = pattern.subn(lambda found: found[1] + text + "\n" + found[2], page)
    if count != 1:
        raise SystemExit(f"{PAGE}: expected one pair of markers for {name}; found {count}")
    return result


def main() -> None:
    """Parse the arguments, measure, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for what was measured")
    parser.add_argument("--group", nargs="+", action="append", required=True, metavar="NAME ... MODEL")
    parser.add_argument("--cases", type=int, help="how many of the unseen scans; default: all")
    parser.add_argument("--also", type=Path, help="label files of the reader whom training saw")
    parser.add_argument("--write", action="store_true", help="redraw the figure and the table on the page")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    measured: dict[str, list[Measured]] = {}
    numbers: dict[str, list[dict[str, float]]] = {}
    for name, cohort, cuts, *models in arguments.group:
        for model in models:
            fitted, found = kept(
                Path(model), Path(cohort), Path(cuts), arguments.work, arguments.cases, arguments.also
            )
            for whose, values in found.items():
                column = f"{name}, against {WORDS.get(whose, whose)}"
                measured.setdefault(column, []).append(values)
                numbers.setdefault(column, []).append(figures_of(fitted, values))
    text = table(numbers)
    print(text)
    if arguments.write:
        draw(PICTURE, measured)
        PAGE.write_text(replaced(PAGE.read_text(encoding="utf-8"), "calibration table", text), encoding="utf-8")


if __name__ == "__main__":
    main()
