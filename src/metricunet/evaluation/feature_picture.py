"""A picture of voxel features: what principal component analysis shows of them, one panel for each arm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from metricunet.evaluation.features import VoxelFeatures, principal_axes, standardised
from metricunet.files.atomic import written_whole
from metricunet.volume import FloatArray

#: Colours that also those with red-green blindness tell apart, in the order of the classes.
COLOURS = ("#3b6fb6", "#e08214", "#2b8a5a", "#8e5ea8", "#6b6b6b")
PANEL_INCHES = 3.4
#: Of the points along each axis, those beyond this share at either end do not stretch it.
SHOWN_SHARE = 0.99


def draw_principal_axes(
    arms: Mapping[str, tuple[VoxelFeatures, VoxelFeatures]], path: Path, class_names: Sequence[str]
) -> None:
    """Draw held-out voxels on the two principal axes of the training voxels, and write a PNG.

    Each class has the ellipse that holds 86 % of a normal distribution of its mean and covariance (two standard
    deviations). Scaling and axes are those of each arm's training voxels, so panels are to be compared in
    how far the classes lie apart, not in their units.

    Args:
        arms: for each arm's name its features of training voxels and of held-out voxels.
        path: path of the PNG file.
        class_names: names of class 0 and of those after it.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Ellipse

    figure = Figure(figsize=(PANEL_INCHES * len(arms), PANEL_INCHES + 0.6), layout="constrained", dpi=150)
    panels = np.atleast_1d(figure.subplots(1, len(arms)))
    for panel, (name, (training, held_out)) in zip(panels, arms.items(), strict=True):
        mean, axes, shares = principal_axes(standardised(training.values, training.values))
        places: FloatArray = (standardised(held_out.values, training.values) - mean) @ axes.T
        for c in range(len(class_names)):
            colour = COLOURS[c % len(COLOURS)]
            own = places[held_out.classes == c]
            panel.scatter(own[:, 0], own[:, 1], s=7, color=colour, alpha=0.45, linewidths=0)
            if len(own) > 2:
                spread, turn = np.linalg.eigh(np.cov(own.T))
                width, height = 4 * np.sqrt(np.maximum(spread[::-1], 0))
                angle = float(np.degrees(np.arctan2(turn[1, 1], turn[0, 1])))
                middle = own.mean(axis=0)
                panel.add_patch(
                    Ellipse(middle, width, height, angle=angle, fill=False, color=colour, linewidth=1.8)
                )
        low, high = np.quantile(places, (1 - SHOWN_SHARE, SHOWN_SHARE), axis=0)
        middle, reach = (low + high) / 2, 1.15 * float((high - low).max()) / 2
        panel.set_xlim(middle[0] - reach, middle[0] + reach)
        panel.set_ylim(middle[1] - reach, middle[1] + reach)
        panel.set_aspect("equal")
        panel.set_title(name, fontsize=11)
        panel.set_xlabel(f"first axis, {shares[0]:.0%} of the variance", fontsize=9)
        panel.set_ylabel(f"second axis, {shares[1]:.0%}", fontsize=9)
        panel.tick_params(labelsize=8)
        panel.spines[["top", "right"]].set_visible(False)
    keys = [
        Line2D([], [], linestyle="", marker="o", markersize=6, color=COLOURS[c % len(COLOURS)], label=name)
        for c, name in enumerate(class_names)
    ]
    figure.legend(handles=keys, loc="outside lower center", ncols=len(keys), frameon=False, fontsize=9)
    with written_whole(path) as temporary:
        figure.savefig(temporary, format="png")
