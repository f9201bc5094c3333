"""Pictures that need a study's models: cases with contours, and what the features of each arm look like."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from metricunet.evaluation.feature_picture import draw_principal_axes
from metricunet.evaluation.features import VoxelFeatures, fit_probes, principal_axes, standardised
from metricunet.evaluation.figures import WINDOW_HU
from metricunet.files.atomic import written_whole
from metricunet.inference.predictor import Predictor
from metricunet.stages.network_input import Precision, neighbouring_slices, normalise_hu
from metricunet.stages.segment import View, read_field
from metricunet.study.comparisons import Compared
from metricunet.study.data import TRUTH, spread
from metricunet.study.folds import FITTING, Cut, read_cut
from metricunet.study.scoring import FEATURE_CASES, case_features, cut_predictor, segment_cut
from metricunet.study.statistics import RunKey, Scores
from metricunet.volume import FloatArray, resample_labels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage

EXAMPLE_PICTURES = EXAMPLES, FEATURE_AXES, FEATURE_MAPS = "examples.png", "feature-axes.png", "feature-maps.png"
#: Half the side of what a picture shows.
HALF_MM = 45.0
#: Training cases whose features the axes are fitted on, and others whose features are shown.
FITTED, SHOWN = 6, 8
TRUTH_COLOUR, COLOURS = "#ffffff", ("#56b4e9", "#e69f00", "#009e73")
DPI = 110


@dataclass(frozen=True)
class Pictured:
    """What it takes to draw: the arms' models, and the cuts that they share.

    Attributes:
        models: arm to its model file; the baseline, the method and, if there is one, the control.
        precisions: arm to the precision of its training, which the models compute in here, too.
        seed: the run of all these models, by its seed, or fold and seed.
        folder: of the fold, with the cuts.
        cases: names of the scored cases.
        fitting: names of the training cases that probes are fitted on.
        labels: structure name to value in the references.
        ignore: value of voxels that nobody contoured, or None.
        target: the structure to show.
        device: `auto`, `cpu`, `cuda`, `cuda:N`, `gpu`, `gpu:N` or `mps`.
    """

    models: Mapping[str, Path]
    precisions: Mapping[str, Precision]
    seed: RunKey
    folder: Path
    cases: tuple[str, ...]
    fitting: tuple[str, ...]
    labels: dict[str, int]
    ignore: int | None
    target: str
    device: str


def draw_examples(what: Pictured, dice: Compared | None, folder: Path) -> tuple[Path, ...]:
    """Draw cases with contours, the axes of the feature space, and feature maps; return their files.

    Args:
        what: models and cuts.
        dice: the comparison of method and baseline by which cases are chosen; without it the first are.
        folder: for the pictures.
    """
    predictors = {arm: cut_predictor(path, what.device, what.precisions[arm]) for arm, path in what.models.items()}
    chosen = _chosen(what, dice)
    drawn = [_contours(what, predictors, chosen, folder / EXAMPLES)]
    planar = {arm: p for arm, p in predictors.items() if p.models[0].segment.spatial_dims == 2}
    features = {arm: found for arm, p in planar.items() if (found := _features(what, p)) is not None}
    if features:
        draw_principal_axes(features, folder / FEATURE_AXES, ["outside", *what.labels])
        drawn.append(folder / FEATURE_AXES)
        fitted = {arm: training for arm, (training, _) in features.items()}
        drawn.append(_maps(what, planar, fitted, list(chosen.values())[len(chosen) // 2], folder / FEATURE_MAPS))
    return tuple(path for path in drawn if path is not None)


def _chosen(what: Pictured, dice: Compared | None) -> dict[str, str]:
    """Return title to case: where the method gains most, where it gains what the median case does, and least."""
    held = [name for name in what.cases if read_cut(what.folder, name).holds(what.labels[what.target])]
    if dice is not None:  # it has no case that nobody contoured
        held = [name for name in held if name in dice.a.cases]
    if dice is None or not held:
        return {name: name for name in (held or list(what.cases))[:3]}
    gain = {case: _value(dice.b, what.seed, case) - _value(dice.a, what.seed, case) for case in held}
    order = sorted(held, key=lambda case: (gain[case], case))
    kinds = {"most gained": order[-1], "median": order[len(order) // 2], "least gained": order[0]}
    titles = {f"{title}: {gain[case]:+.3f}".replace("-", "−"): case for title, case in kinds.items()}
    kept: dict[str, str] = {}
    for title, case in titles.items():
        if case not in kept.values():
            kept[title] = case
    return kept


def _value(scores: Scores, seed: RunKey, case: str) -> float:
    return float(scores.values[scores.seeds.index(seed), scores.cases.index(case)])


def _contours(
    what: Pictured, predictors: Mapping[str, Predictor], chosen: Mapping[str, str], path: Path
) -> Path | None:
    """Draw each chosen case in three axial slices and a sagittal one, with the contours of truth and arms."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    if not chosen:
        return None
    colours = {"true shape": TRUTH_COLOUR} | dict(zip(predictors, COLOURS, strict=False))
    titles = ["lower third", "middle", "upper third", "sagittal"]
    figure = Figure(figsize=(2.3 * len(titles), 2.35 * len(chosen) + 0.4), dpi=DPI, facecolor="black")
    figure.subplots_adjust(
        left=0.03, right=0.998, top=1 - 0.25 / (2.35 * len(chosen)), bottom=0.09 / len(chosen) + 0.02
    )
    panels = figure.subplots(len(chosen), len(titles), squeeze=False, gridspec_kw={"wspace": 0.02, "hspace": 0.02})
    for row, (title, case) in enumerate(chosen.items()):
        cut = read_cut(what.folder, case)
        value = what.labels[what.target]
        masks = {"true shape": cut.references[TRUTH].array == value}
        for arm, predictor in predictors.items():
            masks[arm] = segment_cut(predictor, cut, what.labels, what.ignore).values == value
        for column, (axis, index, centre) in enumerate(_planes(masks["true shape"], cut)):
            panel = panels[row, column]
            _plane(panel, cut, masks, colours, axis, index, centre)
            if row == 0:
                panel.set_title(titles[column], color="white", fontsize=9, pad=3)
        panels[row, 0].text(
            -0.03, 0.5, title, color="white", fontsize=8, rotation=90, va="center", ha="right",
            transform=panels[row, 0].transAxes,
        )  # fmt: skip
    handles = [Line2D([], [], color=colour, label=name) for name, colour in colours.items()]
    figure.legend(
        handles=handles, loc="lower center", ncols=len(handles), frameon=False, labelcolor="white", fontsize=9
    )
    with written_whole(path) as temporary:
        figure.savefig(temporary, format="png", facecolor="black")
    return path


def _planes(truth: NDArray[np.bool_], cut: Cut) -> list[tuple[int, int, FloatArray]]:
    """Return axis, index along it, and the centre [slice, row, column] of four planes through the true shape."""
    inside = np.argwhere(truth)
    if not len(inside):
        middle = np.array(truth.shape) / 2
        return [(0, int(middle[0]), middle)] * 3 + [(2, int(middle[2]), middle)]
    middle = inside.mean(axis=0)
    low, high = inside[:, 0].min(), inside[:, 0].max()
    axial = [(0, round(low + share * (high - low)), middle) for share in (0.25, 0.5, 0.75)]
    return [*axial, (2, round(middle[2]), middle)]


def _plane(
    panel: Axes,
    cut: Cut,
    masks: Mapping[str, NDArray[np.bool_]],
    colours: Mapping[str, str],
    axis: int,
    index: int,
    centre: FloatArray,
) -> None:
    """Draw one plane in millimetres around a centre; head up where it is sagittal."""
    rows, columns = (a for a in range(3) if a != axis)
    step = cut.image.spacing_mm
    turned = -1 if rows == 0 else 1
    shape = cut.image.geometry.shape
    edges_mm = [(-0.5 - centre[a]) * step[a] for a in (rows, columns)]
    ends_mm = [(shape[a] - 0.5 - centre[a]) * step[a] for a in (rows, columns)]
    panel.imshow(
        cut.image.array.take(index, axis=axis),
        cmap="gray",
        vmin=WINDOW_HU[0],
        vmax=WINDOW_HU[1],
        extent=(edges_mm[1], ends_mm[1], ends_mm[0], edges_mm[0]),
        interpolation="nearest",
    )
    x, y = ((np.arange(shape[a]) - centre[a]) * step[a] for a in (columns, rows))
    for name, mask in masks.items():
        flat = mask.take(index, axis=axis)
        if flat.any() and not flat.all():
            panel.contour(x, y, flat.astype(float), [0.5], colors=colours[name], linewidths=1.1)
    panel.set_xlim(-HALF_MM, HALF_MM)
    panel.set_ylim(turned * HALF_MM, -turned * HALF_MM)
    panel.set_aspect("equal")
    panel.set_axis_off()


def _features(what: Pictured, predictor: Predictor) -> tuple[VoxelFeatures, VoxelFeatures] | None:
    """Return the features of some training cases and of some others; None where there are none in either."""
    training = [read_cut(what.folder, name, FITTING) for name in spread(what.fitting, FITTED)]
    others = [read_cut(what.folder, name) for name in spread(spread(what.cases, FEATURE_CASES), SHOWN)]
    parts = []
    for cuts in (training, others):
        found = [f for cut in cuts if (f := case_features(predictor, cut, what.labels, what.ignore)) is not None]
        if not found:
            return None
        parts.append(VoxelFeatures.joined(found))
    return parts[0], parts[1]


def _maps(
    what: Pictured,
    predictors: Mapping[str, Predictor],
    training: Mapping[str, VoxelFeatures],
    case: str,
    path: Path,
) -> Path | None:
    """Draw the largest slice of a case, and each arm's finest decoder map there: three axes as three colours."""
    from matplotlib.figure import Figure

    cut = read_cut(what.folder, case)
    if cut.found.centre_mm is None:
        return None
    value, window = what.labels[what.target], WINDOW_HU
    shown = {arm: p for arm, p in predictors.items() if arm in training}
    figure = Figure(figsize=(2.5 * (1 + len(shown)), 5.2), dpi=DPI, layout="constrained")
    panels = figure.subplots(2, 1 + len(shown), squeeze=False)
    for panel in panels.flat:
        panel.set_axis_off()
    bar = None
    for column, (arm, predictor) in enumerate(shown.items(), start=1):
        stage = predictor.models[0].card.segment
        crop = read_field(stage, cut.image, View(cut.found.centre_mm))
        truth = resample_labels(cut.references[TRUTH], crop.geometry).array == value
        middle = int(np.argmax(truth.sum(axis=(1, 2))))
        hu = crop.array
        colours, chance = _maps_of(predictor, torch.from_numpy(hu), middle, training[arm])
        if column == 1:
            _shown(
                panels[0, 0],
                hu[middle],
                truth[middle],
                stage.spacing_mm,
                "white",
                cmap="gray",
                vmin=window[0],
                vmax=window[1],
            )
            panels[0, 0].set_title("CT and true shape", fontsize=9)
        _shown(panels[0, column], colours, truth[middle], stage.spacing_mm, "black")
        panels[0, column].set_title(arm, fontsize=9)
        bar = _shown(
            panels[1, column], chance, truth[middle], stage.spacing_mm, "black", cmap="RdBu_r", vmin=0, vmax=1
        )
    words = ["above: three principal", "axes of the features in", "red, green and blue", ""]
    words += ["below: probability by", "a linear probe"]
    panels[1, 0].text(0.0, 0.5, "\n".join(words), fontsize=9, va="center", transform=panels[1, 0].transAxes)
    if bar is not None:
        figure.colorbar(bar, ax=panels[1, 0], location="bottom", shrink=0.8).ax.tick_params(labelsize=8)
    with written_whole(path) as temporary:
        figure.savefig(temporary, format="png")
    return path


def _shown(
    panel: Axes, picture: NDArray[Any], inside: NDArray[np.bool_], step: Sequence[float], line: str, **looks: Any
) -> AxesImage:
    """Draw a slice around the true shape, and its outline; a decoder map can be coarser than the slice."""
    height, width = inside.shape
    image = panel.imshow(
        picture,
        extent=(-0.5, width - 0.5, height - 0.5, -0.5),
        aspect=step[1] / step[2],
        interpolation="nearest",
        **looks,
    )
    if inside.any():
        panel.contour(inside.astype(float), [0.5], colors=line, linewidths=0.9)
        row, column = np.argwhere(inside).mean(axis=0)
        panel.set_xlim(max(column - HALF_MM / step[2], -0.5), min(column + HALF_MM / step[2], width - 0.5))
        panel.set_ylim(min(row + HALF_MM / step[1], height - 0.5), max(row - HALF_MM / step[1], -0.5))
    return image


@torch.inference_mode()
def _maps_of(
    predictor: Predictor, hu: torch.Tensor, middle: int, training: VoxelFeatures
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Read the finest decoder map of a slice by what training voxels say.

    Returns:
        Its first three principal axes [row, column, 3] from 0 to 1, where four standard deviations of the training
        voxels are 0 to 1; and the probability of any structure [row, column] by a linear probe.
    """
    model = predictor.models[0]
    stage = model.card.segment
    images = normalise_hu(hu.to(predictor.device), stage.hu_window)
    stack = neighbouring_slices(images, stage.input_slices)[middle : middle + 1].contiguous()
    found = model.segment.forward_with_maps(stack).decoder_maps[0][0].float().cpu().numpy()
    values = standardised(found.reshape(len(found), -1).T.astype(np.float64), training.values)
    probes = fit_probes(training)
    mean, axes, _ = principal_axes(probes.scaled, 3)
    reach = 4 * ((probes.scaled - mean) @ axes.T).std(axis=0)
    colours = np.zeros((len(values), 3))
    colours[:, : len(axes)] = np.clip(0.5 + (values - mean) @ axes.T / np.maximum(reach, 1e-12), 0, 1)
    scores = values @ probes.linear.weights + probes.linear.offsets
    shares = np.exp(scores - scores.max(axis=1, keepdims=True))
    chance = 1 - shares[:, 0] / shares.sum(axis=1)
    return colours.reshape(*found.shape[1:], 3), chance.reshape(found.shape[1:])
