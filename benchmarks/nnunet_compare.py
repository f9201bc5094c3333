"""nnU-Net and this package on one cohort and for one time: what an hour of two cores buys.

    make check-nnunet                                     # makes the environment
    python benchmarks/nnunet_compare.py --output build/nnunet/compare

What counts, written down before it was run:

- **Cohort**: 60 `real` phantoms to train on, 20 more that no training saw (seed 18); the prostate alone.
- **Arms**, each `--minutes` (60) on the same two cores with two threads, nothing else running:
  `nnunet_planned`, nnU-Net 2.8.1, configuration 2d as planned; `nnunet_small_patch`, the same with batch 16 and
  patches of 128 x 128, and of the planned network as many stages as such a patch has room for, since the planned
  batch takes half a minute; `nnunet_with_branch`, the latter with the metric branch; `ours_without`, `metricunet
  train` with `metric.mode=none`; `ours_with`, the same with the branch.
- **Time** is that of training alone, from the first batch to the last, validation during it included. Reading and
  resampling the cohort, which each program does once, is not counted. nnU-Net's learning rate falls by its own law
  over the time instead of over 1000 epochs. Ours is given as many updates as fit: 100 updates of each stage are
  timed first, stage 1 gets a sixth of the time and stage 2 the rest; the time that it really took is reported.
- **Folds**: every fifth case validates, the same ones in both programs; nnU-Net uses its final checkpoint, ours
  the best on the validation cases, as each does by default.
- **Measures**: Dice and ASD (average surface distance in mm) of the 20 unseen phantoms by `metricunet evaluate`,
  mean over the cases. A case without a prediction counts as Dice 0, and their number is stated, as it has no ASD.
- **Prediction time**: the whole process on the 20 scans, divided by 20, with each program's defaults; for nnU-Net
  also without mirroring (`--disable_tta`).
- All numbers are published whatever they say. One seed: differences below the scatter of the cases mean nothing,
  so the table has the paired difference to `nnunet_small_patch` with its 95 % bootstrap interval.

A run that was stopped goes on with the arms that are not done.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
DATASET, NAME = 518, "Dataset518_Real"
REFERENCE = "nnunet_small_patch"
#: nnU-Net's arms: configuration and trainer.
NNUNET = {
    "nnunet_planned": ("2d", "nnUNetTrainerTimed"),
    "nnunet_small_patch": ("2d_small_patch", "nnUNetTrainerTimed"),
    "nnunet_with_branch": ("2d_small_patch", "nnUNetTrainerVoxelTimed"),
}
OURS = {"ours_without": ["metric.mode=none"], "ours_with": []}
#: Trainers that stop by the clock. An epoch is as many steps as fit into a twentieth of the time.
TIMED = """
import os
from time import perf_counter

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from metricunet.nnunet.trainers import nnUNetTrainerVoxelMetric


class Timed:
    def run_training(self):
        self.on_train_start()
        began, seconds = perf_counter(), 60 * float(os.environ["COMPARE_MINUTES"])
        steps = 0
        while (used := perf_counter() - began) < seconds:
            self.on_epoch_start()
            self.on_train_epoch_start()
            outputs, until = [], min(used + seconds / 20, seconds)
            while not outputs or perf_counter() - began < until:
                share = min(1.0, (perf_counter() - began) / seconds)
                for group in self.optimizer.param_groups:
                    group["lr"] = self.initial_lr * (1 - share) ** 0.9
                outputs.append(self.train_step(next(self.dataloader_train)))
            steps += len(outputs)
            self.on_train_epoch_end(outputs)
            with torch.no_grad():
                self.on_validation_epoch_start()
                self.on_validation_epoch_end([self.validation_step(next(self.dataloader_val)) for _ in range(1)])
            self.num_epochs = self.current_epoch + 2
            self.on_epoch_end()
        self.print_to_log_file(f"COMPARE steps {steps} seconds {perf_counter() - began:.0f}")
        self.on_train_end()

    def perform_actual_validation(self, save_probabilities=False):
        pass


class nnUNetTrainerTimed(Timed, nnUNetTrainer):
    pass


class nnUNetTrainerVoxelTimed(Timed, nnUNetTrainerVoxelMetric):
    pass
"""


def run(*words: object, environment: dict[str, str], allowed: tuple[int, ...] = (0,)) -> float:
    """Run a command and return its seconds; stop with its output if its status is not allowed."""
    print("+", *words, flush=True)
    began = time.perf_counter()
    ended = subprocess.run([str(w) for w in words], capture_output=True, text=True, env=environment, check=False)
    if ended.returncode not in allowed:
        sys.exit(f"status {ended.returncode}\n{ended.stdout}{ended.stderr}")
    return time.perf_counter() - began


class Comparison:
    """The folders, the commands and the numbers of a comparison.

    Args:
        output: folder of everything.
        venv: environment with nnU-Net, as `make check-nnunet` makes it.
        minutes: time of each training.
        cases: number of phantoms to train on, and to test on.
    """

    def __init__(self, output: Path, venv: Path, minutes: float, cases: tuple[int, int]) -> None:
        self.output, self.bin, self.minutes, self.cases = output, venv / "bin", minutes, cases
        self.cohort = output / "nnUNet_raw" / NAME
        folders = {name: str(output / name) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
        self.environment = {
            **os.environ,
            **folders,
            "nnUNet_n_proc_DA": "1",
            "nnUNet_def_n_proc": "2",
            "OMP_NUM_THREADS": "2",
            "COMPARE_MINUTES": str(minutes),
        }
        self.environment.pop("METRICUNET_METRIC", None)
        # The editable install of the environment, and not this checkout, is what nnU-Net's Python imports.
        self.inside = {name: value for name, value in self.environment.items() if name != "PYTHONPATH"}
        self.facts_file = output / "facts.json"
        self.facts: dict[str, Any] = {}
        if self.facts_file.is_file():
            self.facts = json.loads(self.facts_file.read_text(encoding="utf-8"))

    def keep(self, name: str, **facts: Any) -> None:
        """Write what was measured of an arm, so that a run that is stopped goes on after it."""
        self.facts[name] = self.facts.get(name, {}) | facts
        self.facts_file.write_text(json.dumps(self.facts, indent=1), encoding="utf-8")

    def metricunet(self, *words: object, allowed: tuple[int, ...] = (0,)) -> float:
        """Run a command of this package."""
        return run(sys.executable, "-m", "metricunet", *words, environment=self.environment, allowed=allowed)

    def prepare(self) -> None:
        """Make the cohort, its folds, nnU-Net's plans, and the trainers that stop by the clock."""
        if "prepare" in self.facts:
            return
        train, test = self.cases
        shutil.rmtree(self.output / "nnUNet_raw", ignore_errors=True)
        self.output.mkdir(parents=True, exist_ok=True)
        self.metricunet("phantom", "-n", train, "--test", test, "--seed", 18, "-o", self.cohort)
        names = sorted(path.name.removesuffix(".nii.gz") for path in (self.cohort / "labelsTr").iterdir())
        val = names[::5]
        split = [{"train": [name for name in names if name not in val], "val": val}]
        (self.cohort / "splits.json").write_text(json.dumps(split), encoding="utf-8")
        words = ("-d", DATASET, "-c", "2d", "-np", 2, "-npfp", 2)
        seconds = run(self.bin / "nnUNetv2_plan_and_preprocess", *words, environment=self.inside)
        folder = self.output / "nnUNet_preprocessed" / NAME
        (folder / "splits_final.json").write_text(json.dumps(split), encoding="utf-8")
        plans_file = folder / "nnUNetPlans.json"
        plans = json.loads(plans_file.read_text(encoding="utf-8"))
        planned = plans["configurations"]["2d"]
        small = {"inherits_from": "2d", "patch_size": [128, 128], "batch_size": 16}
        # As many poolings as a patch of 128 allows: the deepest map has no fewer than 4 voxels a side, as planned.
        stages = min(len(planned["architecture"]["arch_kwargs"]["strides"]), 6)
        arguments = {
            name: value[: stages - 1 if name == "n_conv_per_stage_decoder" else stages]
            if isinstance(value, list)
            else value
            for name, value in planned["architecture"]["arch_kwargs"].items()
        }
        arguments["n_stages"] = stages
        small["architecture"] = planned["architecture"] | {"arch_kwargs": arguments}
        plans["configurations"]["2d_small_patch"] = small
        plans_file.write_text(json.dumps(plans), encoding="utf-8")
        self.keep(
            "prepare",
            nnunet_seconds=seconds,
            batch=planned["batch_size"],
            patch=planned["patch_size"],
            stages=stages,
        )

    def train_nnunet(self, arm: str) -> None:
        """Train an arm of nnU-Net, and predict with it."""
        configuration, trainer = NNUNET[arm]
        words = (DATASET, configuration, 0, "-tr", trainer, "-device", "cpu")
        seconds = run(self.bin / "nnUNetv2_train", *words, environment=self.inside)
        results = self.output / "nnUNet_results" / NAME / f"{trainer}__nnUNetPlans__{configuration}/fold_0"
        said = [
            line
            for log in sorted(results.glob("training_log_*.txt"))
            for line in log.read_text(encoding="utf-8").splitlines()
            if "COMPARE" in line
        ]
        steps, trained = (int(word) for word in said[-1].split() if word.isdecimal())
        self.keep(arm, process_seconds=seconds, steps=steps, seconds=trained)
        scans = ("-i", self.cohort / "imagesTs", "-d", DATASET, "-c", configuration, "-f", 0, "-tr", trainer)
        options: dict[str, list[str]] = {"prediction": [], "prediction_without_mirroring": ["--disable_tta"]}
        for name, more in options.items():
            masks = self.output / name / arm
            workers = ("-device", "cpu", "-npp", 1, "-nps", 1)
            program = self.bin / "nnUNetv2_predict"
            took = run(program, *scans, "-o", masks, *workers, *more, environment=self.inside)
            self.keep(arm, **{f"{name}_seconds": took / self.cases[1]})

    def train_ours(self, arm: str) -> None:
        """Train an arm of this package, and predict with it."""
        settings = OURS[arm]
        pilot = self.output / "pilot" / arm
        shutil.rmtree(pilot, ignore_errors=True)
        short = {"locate": 100, "segment": 100}
        self._train(pilot, settings, short)
        rates = {row["stage"]: 100 / float(row["seconds"]) for row in _rows(pilot / "log.csv")}
        updates = {
            "locate": int(10 * self.minutes * rates["locate"]),
            "segment": int(50 * self.minutes * rates["segment"]),
        }
        folder = self.output / "runs" / arm
        shutil.rmtree(folder, ignore_errors=True)
        seconds = self._train(folder, settings, updates)
        trained = sum(float(row["seconds"]) for row in _rows(folder / "log.csv"))
        self.keep(arm, process_seconds=seconds, seconds=trained, updates=updates)
        masks = self.output / "prediction" / arm
        words = ("predict", self.cohort / "imagesTs", "-m", folder / "model.safetensors", "-o", masks)
        took = self.metricunet(*words, allowed=(0, 1))
        self.keep(arm, prediction_seconds=took / self.cases[1])

    def _train(self, folder: Path, settings: list[str], updates: dict[str, int]) -> float:
        # Ten epochs: the best of ten on the validation cases is kept, and the schedule is over all of them.
        epochs = 1 if folder.parent.name == "pilot" else 10
        sizes = [f"{stage}.epochs={epochs}" for stage in updates]
        sizes += [f"{stage}.updates_per_epoch={max(1, number // epochs)}" for stage, number in updates.items()]
        words = [word for setting in (*settings, *sizes) for word in ("--set", setting)]
        return self.metricunet("train", self.cohort, "-o", folder, "--device", "cpu", "--fold", 0, *words)

    def score(self, arm: str) -> None:
        """Compare the masks of an arm with the labels."""
        folder = self.output / "scores" / arm
        shutil.rmtree(folder, ignore_errors=True)
        masks = self.output / "prediction" / arm
        self.metricunet("evaluate", masks, self.cohort / "labelsTs", "-o", folder, allowed=(0, 1))
        rows = {row["case"]: row for row in _rows(folder / "cases.csv") if row["structure"] == "prostate"}
        self.keep(
            arm,
            dice={case: float(row["dice"] or 0) for case, row in rows.items()},
            asd_mm={case: float(row["asd_mm"]) for case, row in rows.items() if row["asd_mm"]},
        )

    def table(self) -> str:
        """Return what was found as a table in Markdown."""
        generator = np.random.default_rng(0)
        lines = [
            "| arm | updates | training, min | Dice | difference (95 %) | ASD, mm | missed | s a scan |",
            "| --- | --- | --- | --- | --- | --- | --- | --- |",
        ]
        reference = self.facts[REFERENCE]["dice"]
        for arm in (*NNUNET, *OURS):
            one = self.facts[arm]
            cases = sorted(reference)
            dice = np.array([one["dice"].get(case, 0.0) for case in cases])
            gain = dice - np.array([reference[case] for case in cases])
            draws = gain[generator.integers(0, len(gain), (10_000, len(gain)))].mean(axis=1)
            low, high = np.quantile(draws, [0.025, 0.975])
            asd = list(one["asd_mm"].values())
            updates = one.get("steps") or one["updates"]["segment"]
            bare = one.get("prediction_without_mirroring_seconds")
            seconds = f"{one['prediction_seconds']:.1f}" + ("" if bare is None else f" ({bare:.1f} unmirrored)")
            lines.append(
                f"| {arm} | {updates} | {one['seconds'] / 60:.1f} | {dice.mean():.3f} | {gain.mean():+.3f} "
                f"({low:+.3f} to {high:+.3f}) | {np.mean(asd) if asd else float('nan'):.2f} | "
                f"{len(cases) - len(asd)} | {seconds} |"
            )
        return "\n".join(lines)

    def run(self) -> None:
        """Run what is not done yet, and write the table."""
        self.prepare()
        code = "import nnunetv2; print(nnunetv2.__path__[0])"
        python = [str(self.bin / "python"), "-c", code]
        found = subprocess.run(python, capture_output=True, text=True, check=True, env=self.inside).stdout.strip()
        trainers = Path(found) / "training/nnUNetTrainer/nnUNetTrainerTimed.py"
        trainers.write_text(TIMED, encoding="utf-8")
        try:
            for arm in (*NNUNET, *OURS):
                if "dice" not in self.facts.get(arm, {}):
                    (self.train_nnunet if arm in NNUNET else self.train_ours)(arm)
                    self.score(arm)
        finally:
            trainers.unlink()
        table = self.table()
        (self.output / "table.md").write_text(table + "\n", encoding="utf-8")
        print(table)


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


def main() -> None:
    """Read the arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "build/nnunet/compare", help="folder of everything")
    parser.add_argument("--venv", type=Path, default=ROOT / "build/nnunet/venv", help="of `make check-nnunet`")
    parser.add_argument("--minutes", type=float, default=60, help="time of each training")
    parser.add_argument("--cases", type=int, nargs=2, default=(60, 20), help="phantoms to train and to test on")
    given = parser.parse_args()
    Comparison(
        given.output.absolute(), given.venv.absolute(), given.minutes, (given.cases[0], given.cases[1])
    ).run()


if __name__ == "__main__":
    main()
