"""Tables of a study that was never run: rows drawn from a random generator, with known differences of the arms."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from metricunet.evaluation.measures import Measures
from metricunet.study.results import FEATURES, SMOOTHNESS, Row, cases_table, join_tables, write_table
from metricunet.study.scoring import Measured

#: Arm to how much better it is than the first, in standard deviations of a case's noise.
ARMS = {"base": 0.0, "method": 1.0, "control": 0.2}
PAIR = {"baseline": "base", "method": "method", "control": "control"}


def measures(quality: float) -> Measures:
    """Measures that are all better for a larger quality, around 0.85 Dice."""
    dice = float(np.clip(0.85 + 0.02 * quality, 0, 1))
    asd_mm = max(0.2, 2.0 - 0.3 * quality)
    return Measures(dice, asd_mm, dice, dice, 3 * asd_mm, dice - 0.2, -quality)


def make_tables(
    folder: Path,
    arms: Mapping[str, float] = ARMS,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    folds: Sequence[int] = (0,),
    cases: int = 12,
    missed: Mapping[str, Sequence[tuple[int, int]]] | None = None,
    changes: Mapping[str, Any] | None = None,
) -> Path:
    """Write study.yaml, cases.csv, cases-reader.csv, smoothness.csv and features.csv as a study leaves them.

    Args:
        folder: new or empty.
        arms: name to how much better it is.
        seeds: of every arm.
        folds: of every arm and seed; each scores all cases.
        cases: how many.
        missed: arm to the (seed, number of the case) in which it missed the gland.
        changes: of the study file.
    """
    content: dict[str, Any] = {
        "name": "drawn",
        "data": {"phantom": {"n_train": 4, "n_val": 1, "n_test": cases}},
        "base": {"preset": "small", "settings": {"metric": {"mode": "none"}}},
        "arms": {name: {} for name in arms},
        "seeds": list(seeds),
        "primary": PAIR,
    } | dict(changes or {})
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "study.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    generator = np.random.default_rng(7)
    hard = generator.normal(size=cases)
    tables = (cases_table("truth"), cases_table("reader"), SMOOTHNESS, FEATURES)
    runs: list[Path] = []
    for arm, better in arms.items():
        for fold, seed in product(folds, seeds):
            runs.append(folder / "runs" / f"{arm}-{fold}-{seed}")
            lost = {k for s, k in (missed or {}).get(arm, ()) if s == seed}
            quality = hard + better + 0.7 * generator.normal(size=cases) + 0.2 * generator.normal()
            names = [f"case_{k:03d}" for k in range(cases)]
            write_tables(runs[-1], (arm, seed, fold), names, quality, lost)
    for table in tables:
        (folder / table.name).write_text(join_tables(runs, table))
    return folder


def write_tables(
    folder: Path,
    run: tuple[str, int, int],
    names: Sequence[str],
    quality: np.ndarray,
    lost: Collection[int] = (),
) -> None:
    """Write the tables of a run: its arm, seed and fold, and how good it is in each of the named cases."""
    found = {
        cases_table("truth"): _overlap(names, quality, lost),
        cases_table("reader"): _overlap(names, quality - 1.0, lost),
        SMOOTHNESS: _smooth(names, quality, lost),
        FEATURES: _features(names, quality),
    }
    for table, measured in found.items():
        write_table(folder, table, [Row(*run, *one) for one in measured])


def _overlap(names: Sequence[str], quality: np.ndarray, lost: Collection[int]) -> list[Measured]:
    nothing = Measures(0, None, 0, 0, None, 0, -30)
    found = [nothing if k in lost else measures(q) for k, q in enumerate(quality)]
    return [Measured(name, "prostate", asdict(of_case)) for name, of_case in zip(names, found, strict=True)]


def _smooth(names: Sequence[str], quality: np.ndarray, lost: Collection[int]) -> list[Measured]:
    return [
        Measured(
            name,
            "prostate",
            {
                "slice_change_excess_pp": None if k in lost else 3 - float(q),
                "contour_length_excess_percent": None if k in lost else 4 - 2 * float(q),
                "contour_roughness_excess_percent": None if k in lost else 2 - float(q),
            },
        )
        for k, (name, q) in enumerate(zip(names, quality, strict=True))
    ]


def _features(names: Sequence[str], quality: np.ndarray) -> list[Measured]:
    return [
        Measured(
            name,
            None,
            {
                "fisher_ratio": float(np.exp(0.3 * q)),
                "knn_accuracy": 0.8 + 0.02 * float(q),
                "probe_accuracy": 0.82 + 0.02 * float(q),
            },
        )
        for name, q in zip(names, quality, strict=True)
    ][: max(2, len(names) * 2 // 5)]
