"""Draw docs/images/metric-learning.png: what the metric branch does, with the package's own sampler and losses.

Run from the repository: python docs/make_metric_figure.py
"""

from __future__ import annotations

from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Circle, FancyArrowPatch
from torch import Tensor, nn

from metricunet.metric import HardEasySampler, VoxelMetricLoss
from metricunet.metric.tuples import random_pairs, semi_hard_triplets

OUTSIDE, INSIDE, INK = "#3b6fb6", "#e08214", "#222222"
MARGIN = 0.2


def gland(side: int = 64) -> Tensor:
    """Return labels [1, side, side] with one bean-like shape."""
    y, x = torch.meshgrid(torch.arange(side) - side / 2, torch.arange(side) - side / 2, indexing="ij")
    turned = torch.atan2(y, x)
    edge = side * (0.27 + 0.03 * torch.cos(2 * turned) + 0.025 * torch.sin(3 * turned))
    return ((x.square() + y.square()).sqrt() < edge).to(torch.uint8)[None]


def draw_sampling(axes: Axes, labels: Tensor) -> None:
    """Draw which voxels the default sampler takes."""
    torch.manual_seed(4)
    sample = HardEasySampler(voxels=120, band_mm=3.0)(labels, None, (1.0, 1.0))
    axes.imshow(labels[0], cmap="Greys", vmin=-0.3, vmax=3.2, interpolation="nearest")
    side = labels.shape[2]
    for c, colour in ((0, OUTSIDE), (1, INSIDE)):
        for hard in (False, True):
            index = sample.index[(sample.classes == c) & (sample.hard == hard)]
            axes.scatter(
                index % side,
                index // side,
                s=20,
                facecolors=colour if hard else "none",
                edgecolors=colour,
                linewidths=1.1,
            )
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_title("1  Sample voxels, anew in each step", fontsize=11, loc="left")
    keys = [
        Line2D([], [], linestyle="", marker="o", color=INK, label="hard: near the surface, or wrong"),
        Line2D([], [], linestyle="", marker="o", color=INK, markerfacecolor="none", label="easy"),
    ]
    axes.legend(handles=keys, loc="upper center", bbox_to_anchor=(0.5, -0.02), ncols=2, frameon=False, fontsize=9)


def draw_triplet(axes: Axes) -> None:
    """Draw one semi-hard triplet, mined by the package, among embeddings on the circle."""
    inside = [100.0, 82.0, 64.0, 118.0]
    outside = [38.0, 20.0, 143.0, 185.0, 215.0, 330.0]
    angles = torch.tensor(inside + outside).deg2rad()
    embeddings = torch.stack([angles.cos(), angles.sin()], dim=1)[None]
    classes = torch.tensor([[1] * len(inside) + [0] * len(outside)])
    valid = torch.ones_like(classes, dtype=torch.bool)
    drawn = random_pairs(classes, valid)
    drawn.positive[0, 0] = 2
    negative = int(semi_hard_triplets(embeddings, classes, valid, 2, drawn).negative[0, 0])
    points = embeddings[0]
    near = float((points[0] - points[2]).norm())
    axes.add_patch(Circle((0, 0), 1, fill=False, color="#bbbbbb"))
    for radius, style in ((near, "-"), (near + MARGIN, "--")):
        axes.add_patch(Circle(tuple(points[0].tolist()), radius, fill=False, color="#888888", linestyle=style))
    for c, colour in ((1, INSIDE), (0, OUTSIDE)):
        own = points[classes[0] == c]
        axes.scatter(own[:, 0], own[:, 1], s=42, color=colour, zorder=3)
    for k, name, place in (
        (0, "anchor", (-0.04, 0.15)),
        (2, "positive", (0.1, 0.1)),
        (negative, "negative", (-0.12, 0.08)),
    ):
        x, y = (points[k] + torch.tensor(place)).tolist()
        axes.text(x, y, name, fontsize=9, ha="left" if place[0] >= 0 else "right", va="center", color=INK)
        axes.scatter(*points[k].tolist(), s=110, facecolors="none", edgecolors=INK, linewidths=1.2, zorder=4)
    arrow = {"arrowstyle": "-|>", "mutation_scale": 13, "linewidth": 1.6, "zorder": 5, "shrinkA": 6, "shrinkB": 6}
    axes.add_patch(FancyArrowPatch(points[2].tolist(), points[0].tolist(), color=INSIDE, **arrow))
    away = points[negative] + 0.42 * torch.nn.functional.normalize(points[negative] - points[0], dim=0)
    axes.add_patch(FancyArrowPatch(points[negative].tolist(), away.tolist(), color=OUTSIDE, **arrow))
    axes.set_xlim(-1.55, 1.55)
    axes.set_ylim(-1.2, 1.9)
    axes.set_aspect("equal")
    axes.axis("off")
    axes.set_title("2  Form triplets and pairs of their embeddings", fontsize=11, loc="left")
    keys = [
        Line2D([], [], color="#888888", label="distance of the positive"),
        Line2D([], [], color="#888888", linestyle="--", label="and the margin"),
    ]
    axes.legend(handles=keys, loc="upper center", bbox_to_anchor=(0.5, -0.02), ncols=2, frameon=False, fontsize=9)


def draw_training(axes: Axes, labels: Tensor) -> None:
    """Draw embeddings of held-out noise before and after training a small network on the loss."""
    torch.manual_seed(1)
    net = nn.Sequential(nn.Conv2d(1, 16, 5, padding=2), nn.LeakyReLU(), nn.Conv2d(16, 2, 5, padding=2))
    metric = VoxelMetricLoss(HardEasySampler(256))
    optimizer = torch.optim.Adam(net.parameters(), 5e-3)
    shown = labels[:, None].float() + 0.7 * torch.randn(1, 1, *labels.shape[1:])
    voxels = torch.randperm(labels.numel())[:700]

    def ring(radius: float, name: str) -> None:
        with torch.no_grad():
            e = torch.nn.functional.normalize(net(shown), dim=1)[0].flatten(1)[:, voxels]
        axes.add_patch(Circle((0, 0), radius, fill=False, color="#dddddd", zorder=1))
        noise = radius + 0.09 * torch.randn(e.shape[1])
        for c, colour in ((0, OUTSIDE), (1, INSIDE)):
            own = labels.flatten()[voxels] == c
            axes.scatter(
                (e[0] * noise)[own], (e[1] * noise)[own], s=6, color=colour, alpha=0.55, linewidths=0, zorder=2 + c
            )
        axes.text(0, -radius + 0.24, name, fontsize=9, ha="center", va="center", zorder=6)

    ring(0.75, "before")
    for _ in range(250):
        loss = metric(net(labels[:, None].float() + 0.7 * torch.randn_like(shown)), labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    ring(1.55, "after")
    axes.set_xlim(-1.8, 1.8)
    axes.set_ylim(-1.8, 1.8)
    axes.set_aspect("equal")
    axes.axis("off")
    axes.set_title("3  Train: pull together, push apart", fontsize=11, loc="left")
    keys = [
        Line2D([], [], linestyle="", marker="o", color=INSIDE, label="prostate"),
        Line2D([], [], linestyle="", marker="o", color=OUTSIDE, label="background"),
    ]
    axes.legend(handles=keys, loc="upper center", bbox_to_anchor=(0.5, -0.02), ncols=2, frameon=False, fontsize=9)


def main(path: Path) -> None:
    """Draw all three panels."""
    figure = Figure(figsize=(13, 4.9), layout="constrained", dpi=130)
    first, second, third = figure.subplots(1, 3)
    labels = gland()
    draw_sampling(first, labels)
    draw_triplet(second)
    draw_training(third, labels)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, bbox_inches="tight")


if __name__ == "__main__":
    main(Path(__file__).parent / "images" / "metric-learning.png")
