"""Segment phantoms that no training has seen, and write what docs/real.md says of them.

    python docs/make_unseen.py [-m MODEL] [-n 200] [--seed 2026] [--difficulty varied] [--without GROUP]
                               [--processes 2] [-o docs/real/unseen.csv] [--against OTHER.csv]

Phantom k is case `phantom_tsK` of `metricunet phantom --test N --seed SEED --difficulty varied --absent 0.34`. One
in three shows no prostate; with `--difficulty real` all do. A row is written as soon as a phantom is scored, and
what the file holds already is not done again; the rows of another model, seed, difficulty or set of groups belong
into another file. `--against` compares the model with that of other rows on the same phantoms. Of whole glands a
row also has how much higher the lowest and the highest slice of the mask lie than those of the gland (apex_mm,
base_mm), and the volume of the mask over that of the gland (volume_ratio).
"""

from __future__ import annotations

import argparse
import csv
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import numpy as np

import metricunet as mu
from metricunet.evaluation.measures import measure
from metricunet.phantom.cohort import case_name, case_seed, is_absent
from metricunet.phantom.make import PART_OF, STRUCTURES, draw_phantom
from metricunet.phantom.scanner import Difficulty
from metricunet.phantom.variety import Variety
from metricunet.volume import Volume

ABSENT_FRACTION: dict[Difficulty, float] = {"varied": 0.34, "real": 0.0}
STRUCTURES_SCORED = (
    "prostate",
    "seminal_vesicles",
    "bladder",
    "rectum",
    "femoral_head_left",
    "femoral_head_right",
    "penile_bulb",
)
ENDS = ("apex_mm", "base_mm")
COLUMNS = (
    "case",
    "gland",
    "reach",
    "answer",
    "doubt",
    "volume_ml",
    "volume_ratio",
    "asd_mm",
    *ENDS,
    *STRUCTURES_SCORED,
    "reasons",
)
#: How far an end of a gland may lie off on a real scan (docs/real.md).
PLACE_MM = 8.0
#: What a verdict says of an organ that is not whole, after its name.
CUT = " reaches the edge of the box that organs are looked for in"
#: The model of a process, loaded once.
_models: dict[str, mu.Model] = {}


def scored(model: str, seed: int, difficulty: Difficulty, without: tuple[str, ...], number: int) -> dict[str, str]:
    """Make a phantom, segment it and return its row; a structure that the scan does not show has no Dice."""
    if model not in _models:
        _models[model] = mu.load_model(model or None)
    network = _models[model]
    varied = difficulty == "varied"
    variety = Variety(**dict.fromkeys(without, False)) if varied else None
    reaches = not is_absent(number, ABSENT_FRACTION[difficulty])
    drawn = draw_phantom(case_seed(seed, "Ts", number), difficulty, reaches, variety=variety)
    labelled = [name for name in STRUCTURES_SCORED if varied or name not in PART_OF]
    truth = drawn.labels({name: STRUCTURES[name] for name in labelled})
    result = network.predict(drawn.image())
    gland = str(drawn.description.get("gland", "whole"))
    row = {
        "case": case_name("Ts", number),
        "gland": str(drawn.description.get("absent", gland)) if gland == "absent" else gland,
        "reach": str(drawn.description.get("reach", "pelvis")),
        "answer": "none",
        "doubt": str(result.quality.doubt),
        "reasons": "; ".join(result.quality.reasons),
    }
    if result.is_absent:
        return row
    for name in (name for name in network.structures if name in labelled):
        true, found = truth.with_array(truth.array == STRUCTURES[name]), result.mask(name)
        if name == network.target and found.array.any():
            row |= {"answer": "found", "volume_ml": f"{result.volume_ml():.1f}"}
        if true.array.any() and gland != "absent":
            measures = measure(found, true)
            row[name] = f"{measures.dice:.4f}"
            if name == network.target and found.array.any():
                row["asd_mm"] = f"{measures.asd_mm:.3f}"
                if gland == "whole":
                    higher = np.subtract(ends_mm(found), ends_mm(true))
                    row |= {end: f"{mm:.2f}" for end, mm in zip(ENDS, higher, strict=True)}
                    row["volume_ratio"] = f"{found.array.sum() / true.array.sum():.3f}"
    return row


def ends_mm(mask: Volume) -> tuple[float, float]:
    """Return z of the middle of the lowest and of the highest slice with a voxel of an axial mask."""
    mask = mask.canonical()
    used = np.flatnonzero(mask.array.any(axis=(1, 2)))
    low, high = (float(mask.geometry.to_world([k, 0, 0])[2]) for k in (used[-1], used[0]))
    return min(low, high), max(low, high)


def rows_of(arguments: argparse.Namespace, numbers: list[int]) -> Iterator[dict[str, str]]:
    """Score phantoms in processes of one thread each, and yield their rows as they come."""
    os.environ["OMP_NUM_THREADS"] = "1"
    model = "" if arguments.model is None else str(arguments.model)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(arguments.processes, context) as executor:
        without = tuple(arguments.without)
        given = (model, arguments.seed, arguments.difficulty, without)
        for future in as_completed(executor.submit(scored, *given, k) for k in numbers):
            yield future.result()


def summary(rows: list[dict[str, str]]) -> list[str]:
    """Return what the page says: found, missed, found where there is none, Dice by structure, the worst tenth."""
    absent = [row for row in rows if row["gland"] not in ("whole", "cut")]
    present = [row for row in rows if row["gland"] in ("whole", "cut")]
    false = [row for row in absent if row["answer"] == "found"]
    missed = [row["case"] for row in present if row["answer"] != "found"]
    lines = [f"{len(rows)} phantoms: {len(present)} with a gland, missed {len(missed)} {missed or ''}"]
    counts = {name: sum(f"{name}{CUT}" in row["reasons"] for row in present) for name in STRUCTURES_SCORED}
    cut = sum(CUT in row["reasons"] for row in present)
    named = ", ".join(f"{name} {count}" for name, count in counts.items() if count)
    lines.append(f"organs cut by their box in {cut} of {len(present)}: {named or 'none'}")
    for kind in sorted({row["gland"] for row in absent}):
        of_kind = [row for row in absent if row["gland"] == kind]
        wrong = [row["case"] for row in of_kind if row in false]
        lines.append(f"none ({kind}): found in {len(wrong)} of {len(of_kind)} {wrong or ''}")
    for name in (*STRUCTURES_SCORED, "asd_mm"):
        values = np.array([float(row[name]) for row in present if row.get(name)])
        if len(values):
            lines.append(
                f"{name}: {values.mean():.3f} ± {values.std(ddof=1):.3f}, median {np.median(values):.3f}, "
                f"{values.min():.3f} to {values.max():.3f}, n = {len(values)}"
            )
    for name in ENDS:
        ends = np.array([float(row[name]) for row in present if row.get(name)])
        if len(ends):
            far = np.count_nonzero(np.abs(ends) > PLACE_MM)
            lines.append(
                f"{name} higher than the gland's, of whole glands {ends.mean():+.1f} ± {ends.std(ddof=1):.1f}, "
                f"more than {PLACE_MM:g} off in {far} of {len(ends)}"
            )
    ratios = np.array([float(row["volume_ratio"]) for row in present if row.get("volume_ratio")])
    if len(ratios):
        low, high = np.quantile(ratios, [0.05, 0.95])
        lines.append(
            f"volume_ratio of whole glands: {ratios.mean():.2f} ± {ratios.std(ddof=1):.2f}, "
            f"median {np.median(ratios):.2f}, 5 to 95 % {low:.2f} to {high:.2f}, n = {len(ratios)}"
        )
    scored_rows = sorted((row for row in present if row.get("prostate")), key=lambda row: float(row["prostate"]))
    lines.append(
        "worst tenth: " + ", ".join(f"{r['case']} {r['prostate']}" for r in scored_rows[: len(scored_rows) // 10])
    )
    return lines


def difference(rows: list[dict[str, str]], others: list[dict[str, str]]) -> str:
    """Return by how much the Dice of whole glands differs, with its 95 % interval; a missed gland has 0."""

    def dice(of: list[dict[str, str]]) -> dict[str, float]:
        return {row["case"]: float(row["prostate"] or 0) for row in of if row["gland"] == "whole"}

    ours, theirs = dice(rows), dice(others)
    if ours.keys() != theirs.keys():
        raise SystemExit("the two files are not of the same phantoms")
    gain = np.array([ours[case] - theirs[case] for case in ours])
    means = gain[np.random.default_rng(0).integers(0, len(gain), (10_000, len(gain)))].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return f"whole glands, Dice less the other's: {gain.mean():+.3f} ({low:+.3f} to {high:+.3f}), n = {len(gain)}"


def main() -> None:
    """Score, write and sum up."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--model", type=Path)
    parser.add_argument("-n", type=int, default=200)
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--difficulty", choices=tuple(ABSENT_FRACTION), default="varied")
    parser.add_argument(
        "--without", action="append", choices=Variety().groups, default=[], help="leave this group out"
    )
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).parent / "real" / "unseen.csv")
    parser.add_argument("--against", type=Path, help="rows of another model on these phantoms")
    arguments = parser.parse_args()
    if arguments.without and arguments.difficulty != "varied":
        parser.error("--without leaves out groups of varied phantoms; --difficulty real draws none")
    rows = []
    if arguments.output.is_file():
        with arguments.output.open(newline="", encoding="utf-8") as handle:
            rows = list(csv.DictReader(handle))
    if rows and tuple(rows[0]) != COLUMNS and len(rows) < arguments.n:
        raise SystemExit(f"{arguments.output}: has other columns than are written now; choose another file")
    done = {row["case"] for row in rows}
    new = not rows
    with arguments.output.open("a", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, COLUMNS, lineterminator="\n")
        if new:
            writer.writeheader()
        missing = [k for k in range(arguments.n) if case_name("Ts", k) not in done]
        for row in rows_of(arguments, missing):
            rows.append(row)
            writer.writerow(row)
            handle.flush()
            print(", ".join(f"{key} {value}" for key, value in row.items() if key != "reasons"), flush=True)
    print("\n".join(summary(sorted(rows, key=lambda row: row["case"]))))
    if arguments.against is not None:
        with arguments.against.open(newline="", encoding="utf-8") as handle:
            print(difference(rows, list(csv.DictReader(handle))))


if __name__ == "__main__":
    main()
