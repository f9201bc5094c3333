"""nnU-Net and this package on one cohort and for one time: what an hour of two cores buys.

    make check-nnunet                                               # makes the environment
    python benchmarks/nnunet_compare.py                             # all arms, one after the other
    python benchmarks/nnunet_compare.py --arms ours_with            # or one of them, in a call of its own

What is compared, and what counts, stands in docs/nnunet.md. It was written down before anything was run.

Each arm leaves its numbers in `arms/ARM.json` and a row for each case in `arms/ARM.csv`; from those of all arms
that are done come `cases.csv` and `table.md`, anew after each. With `--kept FOLDER` both files of an arm are also
copied there, and an arm that lies there is not run again: so the arms can be run on several days, or machines.
Each says on which processor it ran, and how long that took for a fixed piece of work.

A call that was stopped or killed is simply made again: what is done stays, nnU-Net goes on from its last epoch (a
twentieth of the time), and so does `metricunet train` (a tenth of a stage). Two calls at one time would share the
cores, so the second is refused.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from metricunet.errors import InputError
from metricunet.files.atomic import write_text
from metricunet.files.claim import CLAIM_NAME, claimed
from metricunet.files.record import machine

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
ARMS = (*NNUNET, *OURS)
#: Stages of ours and their shares of the time.
SHARES = {"locate": 1 / 6, "segment": 5 / 6}
EPOCHS = 10
#: Updates of the two trainings that are timed before one of an hour: what differs between them is updates alone.
PILOTS = (50, 150)
#: A stage 1 that finds nothing after more updates than these will not find anything.
MOST_PILOT_UPDATES = 1000
#: Scans on which nnU-Net is timed without mirroring.
UNMIRRORED = 4
#: Steps of the fixed piece of work.
PACE_STEPS = 20
#: Environment variable that tells the processes of a comparison by its folder.
FOLDER = "COMPARE_FOLDER"
#: How much less Dice than nnU-Net's would still be as good.
MARGIN = 0.02
#: Trainers that stop by the clock. An epoch is as many steps as fit into a twentieth of the time. `clock.json` has
#: the time and the steps at the end of each epoch, by the number of epochs that are done, as checkpoints have it.
TIMED = """
import json
import os
from time import perf_counter

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from metricunet.nnunet.trainers import nnUNetTrainerVoxelMetric


class Timed:
    def run_training(self):
        self.on_train_start()
        self.save_every = 1
        clock_file = os.path.join(self.output_folder, "clock.json")
        clock = {}
        if self.current_epoch:
            with open(clock_file, encoding="utf-8") as handle:
                clock = json.load(handle)
        before, steps = clock.get(str(self.current_epoch), (0.0, 0))
        began, seconds = perf_counter() - before, 60 * float(os.environ["COMPARE_MINUTES"])
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
            clock[str(self.current_epoch + 1)] = (perf_counter() - began, steps)
            with open(clock_file + ".part", "w", encoding="utf-8") as handle:
                json.dump(clock, handle)
            os.replace(clock_file + ".part", clock_file)
            self.on_epoch_end()
        self.on_train_end()

    def save_checkpoint(self, filename):
        super().save_checkpoint(filename + ".part")
        os.replace(filename + ".part", filename)

    def perform_actual_validation(self, save_probabilities=False):
        pass


class nnUNetTrainerTimed(Timed, nnUNetTrainer):
    pass


class nnUNetTrainerVoxelTimed(Timed, nnUNetTrainerVoxelMetric):
    pass
"""


def pace_seconds() -> float:
    """Return how long two threads take for a fixed piece of work: steps of a small network, the first left out."""
    code = (
        "import time, torch; torch.set_num_threads(2); torch.manual_seed(0)\n"
        "layers = [torch.nn.Conv2d(16, 16, 3, padding=1) for _ in range(6)]\n"
        "network, image = torch.nn.Sequential(*layers), torch.randn(8, 16, 128, 128)\n"
        "step = lambda: network(image).square().mean().backward()\n"
        "step()\n"
        "began = time.perf_counter()\n"
        f"for _ in range({PACE_STEPS}):\n"
        "    step()\n"
        "print(time.perf_counter() - began)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return round(float(found.stdout), 3)


def run(*words: object, environment: dict[str, str], log: Path, allowed: tuple[int, ...] = (0,)) -> float:
    """Run a command and return its seconds; stop if its status is not allowed. What it began ends with it."""
    print("+", *words, flush=True)
    log.parent.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    with log.open("w", encoding="utf-8") as handle:
        process = subprocess.Popen(
            [str(word) for word in words],
            stdout=handle,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
        try:
            status = process.wait()
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    if status not in allowed:
        end = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-20:])
        sys.exit(f"status {status}; {log} ends with:\n{end}")
    return time.perf_counter() - began


class Comparison:
    """The folders, the commands and the numbers of a comparison.

    Args:
        output: folder of everything.
        venv: environment with nnU-Net, as `make check-nnunet` makes it.
        minutes: time of each training.
        cases: number of phantoms to train on, and to test on.
        difficulty: of the phantoms; easy ones are small, and do to try whether everything runs.
        kept: folder with the files of arms that are done, which takes those of others; None for no such folder.

    Raises:
        InputError: the folder holds a comparison with other numbers.
    """

    def __init__(
        self,
        output: Path,
        venv: Path,
        minutes: float,
        cases: tuple[int, int],
        difficulty: str = "real",
        kept: Path | None = None,
    ) -> None:
        self.output, self.bin, self.minutes, self.kept = output, venv / "bin", minutes, kept
        self.cases, self.difficulty = cases, difficulty
        self.cohort = output / "nnUNet_raw" / NAME
        folders = {name: str(output / name) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
        self.environment = {
            **os.environ,
            **folders,
            "nnUNet_n_proc_DA": "1",
            "nnUNet_def_n_proc": "2",
            "OMP_NUM_THREADS": "2",
            "COMPARE_MINUTES": str(minutes),
            FOLDER: str(output),
        }
        self.environment.pop("METRICUNET_METRIC", None)
        # The editable install of the environment, and not this checkout, is what nnU-Net's Python imports.
        self.inside = {name: value for name, value in self.environment.items() if name != "PYTHONPATH"}
        self.plan_file = output / "plan.json"
        self.asked = {"minutes": minutes, "cases": list(cases), "difficulty": difficulty}
        found = {name: value for name, value in self.plan().items() if name in self.asked}
        if found and found != self.asked:
            raise InputError(
                f"{self.plan_file}: is of {found}, and {self.asked} are asked for; choose another folder with "
                "--output"
            )

    def take_kept(self) -> None:
        """Take the arms that were done elsewhere.

        Raises:
            InputError: an arm is of another comparison.
        """
        for path in sorted(self.kept.glob("*.csv")) if self.kept is not None else ():
            facts = _json(path.with_suffix(".json"))
            if facts.get("asked") != self.asked:
                raise InputError(
                    f"{path.with_suffix('.json')}: is of {facts.get('asked')}, and {self.asked} are asked for; "
                    "choose another folder with --kept"
                )
            if path.stem in ARMS and not (self.output / "arms" / path.name).is_file():
                self.keep(path.stem, **facts)
                write_text(self.output / "arms" / path.name, path.read_text(encoding="utf-8"))

    def give_kept(self, arm: str) -> None:
        """Copy the files of an arm that is done to where those of all are kept."""
        if self.kept is not None:
            self.kept.mkdir(parents=True, exist_ok=True)
            for name in (f"{arm}.json", f"{arm}.csv"):  # the rows last: an arm is there once they are
                write_text(self.kept / name, (self.output / "arms" / name).read_text(encoding="utf-8"))

    def plan(self) -> dict[str, Any]:
        """Return what was prepared; nothing before it is."""
        return _json(self.plan_file)

    def facts(self, arm: str) -> dict[str, Any]:
        """Return what is known of an arm; nothing before it has begun."""
        return _json(self.output / "arms" / f"{arm}.json")

    def keep(self, arm: str, **facts: Any) -> None:
        """Write what was measured of an arm, so that a call that is stopped goes on after it."""
        (self.output / "arms").mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.facts(arm) | facts, indent=1)
        write_text(self.output / "arms" / f"{arm}.json", text)

    def metricunet(self, *words: object, log: Path, allowed: tuple[int, ...] = (0,)) -> float:
        """Run a command of this package."""
        command = (sys.executable, "-m", "metricunet", *words)
        return run(*command, environment=self.environment, log=log, allowed=allowed)

    def log(self, arm: str, step: str) -> Path:
        """Return where the output of a step of an arm goes."""
        return self.output / "logs" / f"{arm}-{step}.txt"

    def end_leftovers(self) -> None:
        """End what a call has left running that was killed, and so could not end it itself."""
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get(FOLDER) == str(self.output):
                    process.kill()

    def prepare(self) -> None:
        """Make the cohort, its folds, and nnU-Net's plans."""
        if self.plan():
            return
        train, test = self.cases
        shutil.rmtree(self.output / "nnUNet_raw", ignore_errors=True)
        self.output.mkdir(parents=True, exist_ok=True)
        words: tuple[object, ...] = ("-n", train, "--test", test, "--seed", 18)
        words += ("--difficulty", self.difficulty, "-o", self.cohort)
        self.metricunet("phantom", *words, log=self.log("cohort", "phantoms"))
        names = sorted(path.name.removesuffix(".nii.gz") for path in (self.cohort / "labelsTr").iterdir())
        val = names[::5]
        split = [{"train": [name for name in names if name not in val], "val": val}]
        (self.cohort / "splits.json").write_text(json.dumps(split), encoding="utf-8")
        words = ("-d", DATASET, "-c", "2d", "-np", 2, "-npfp", 2)
        program = self.bin / "nnUNetv2_plan_and_preprocess"
        seconds = run(program, *words, environment=self.inside, log=self.log("cohort", "plans"))
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
        found = {"nnunet_seconds": seconds, "batch": planned["batch_size"], "patch": planned["patch_size"]}
        write_text(self.plan_file, json.dumps({**self.asked, **found, "stages": stages}, indent=1))

    def train_nnunet(self, arm: str) -> None:
        """Train an arm of nnU-Net, or train on where it was stopped."""
        configuration, trainer = NNUNET[arm]
        words = (DATASET, configuration, 0, "-tr", trainer, "-device", "cpu", "--c")
        run(self.bin / "nnUNetv2_train", *words, environment=self.inside, log=self.log(arm, "train"))
        results = self.output / "nnUNet_results" / NAME / f"{trainer}__nnUNetPlans__{configuration}/fold_0"
        clock = _json(results / "clock.json")
        seconds, steps = clock[max(clock, key=int)]
        self.keep(arm, steps=steps, seconds=seconds)

    def predict_nnunet(self, arm: str) -> None:
        """Predict with an arm of nnU-Net: all scans as it does by default, some without mirroring."""
        configuration, trainer = NNUNET[arm]
        few = self.output / "scans"
        shutil.rmtree(few, ignore_errors=True)
        few.mkdir()
        scans = sorted((self.cohort / "imagesTs").iterdir())
        for path in scans[:UNMIRRORED]:
            shutil.copy(path, few)
        todo: dict[str, tuple[Path, int, list[str]]] = {
            "prediction": (self.cohort / "imagesTs", len(scans), []),
            "unmirrored": (few, len(scans[:UNMIRRORED]), ["--disable_tta"]),
        }
        for name, (folder, number, more) in todo.items():
            if f"{name}_seconds" in self.facts(arm):
                continue
            masks = self.output / name / arm
            shutil.rmtree(masks, ignore_errors=True)
            words = ("-i", folder, "-o", masks, "-d", DATASET, "-c", configuration, "-f", 0, "-tr", trainer)
            workers = ("-device", "cpu", "-npp", 1, "-nps", 1, *more)
            program = self.bin / "nnUNetv2_predict"
            took = run(program, *words, *workers, environment=self.inside, log=self.log(arm, name))
            self.keep(arm, **{f"{name}_seconds": took / number})

    def train_ours(self, arm: str) -> None:
        """Train an arm of this package, or train on where it was stopped."""
        if "updates" not in self.facts(arm):
            self.keep(arm, updates=self._fitting_updates(arm))
        folder = self.output / "runs" / arm
        state = folder / "checkpoints/state.json"
        if not state.is_file():
            shutil.rmtree(folder, ignore_errors=True)
        more = ["--resume"] if state.is_file() else []
        self._train(arm, folder, self.facts(arm)["updates"], EPOCHS, more)
        self.keep(arm, seconds=sum(float(row["seconds"]) for row in _rows(folder / "log.csv")))

    def _fitting_updates(self, arm: str) -> dict[str, int]:
        """Return how many updates of each stage fit into its share of the time, validation counted."""
        shorter = min(1.0, self.minutes / 60)
        pilots = [max(4 * k, round(number * shorter)) for k, number in enumerate(PILOTS, start=1)]
        taken: dict[str, list[tuple[int, float]]] = {stage: [] for stage in SHARES}
        more = 0
        for number in pilots:
            seconds, more = self._piloted(arm, number, more)
            for stage, updates in _pilot(number, more).items():
                taken[stage].append((updates, seconds[stage]))
        found = {}
        for stage, ((fewer, short), (many, long)) in taken.items():
            update = max(long - short, 1e-3) / (many - fewer)
            validation = max(short - fewer * update, 0)
            fitting = (60 * self.minutes * SHARES[stage] - EPOCHS * validation) / update
            found[stage] = EPOCHS * max(1, int(fitting / EPOCHS))
        return found

    def _piloted(self, arm: str, number: int, more: int) -> tuple[dict[str, float], int]:
        """Time a short training: the seconds of each stage, and how many more updates stage 1 took.

        After so few it may find nothing, and then there is no stage 2: it is given twice as many.
        """
        folder = self.output / "pilots" / f"{arm}-{number}"
        while True:
            shutil.rmtree(folder, ignore_errors=True)
            updates = _pilot(number, more)
            last = updates["locate"] > MOST_PILOT_UPDATES
            self._train(arm, folder, updates, 1, [], allowed=(0,) if last else (0, 2))
            log = folder / "log.csv"
            seconds = {row["stage"]: float(row["seconds"]) for row in _rows(log)} if log.is_file() else {}
            if seconds.keys() >= SHARES.keys():
                return seconds, more
            more += updates["locate"]

    def _train(
        self,
        arm: str,
        folder: Path,
        updates: dict[str, int],
        epochs: int,
        more: Sequence[str],
        allowed: tuple[int, ...] = (0,),
    ) -> None:
        # The best of the epochs on the validation cases is kept, and the schedule is over all of them.
        settings = [*OURS[arm], *(f"{stage}.epochs={epochs}" for stage in updates)]
        settings += [f"{stage}.updates_per_epoch={number // epochs}" for stage, number in updates.items()]
        words = [word for setting in settings for word in ("--set", setting)]
        call = ("train", self.cohort, "-o", folder, "--preset", "small", "--device", "cpu", "--fold", 0, *words)
        self.metricunet(*call, *more, log=self.log(arm, f"train-{folder.name}"), allowed=allowed)

    def predict_ours(self, arm: str) -> None:
        """Predict with an arm of this package."""
        masks = self.output / "prediction" / arm
        shutil.rmtree(masks, ignore_errors=True)
        model = self.output / "runs" / arm / "model.safetensors"
        words = ("predict", self.cohort / "imagesTs", "-m", model, "-o", masks, "--device", "cpu")
        took = self.metricunet(*words, log=self.log(arm, "prediction"), allowed=(0, 1))
        self.keep(arm, prediction_seconds=took / self.cases[1])

    def score(self, arm: str) -> None:
        """Compare the masks of an arm with the labels, and leave its rows."""
        folder = self.output / "scores" / arm
        shutil.rmtree(folder, ignore_errors=True)
        masks = self.output / "prediction" / arm
        words = ("evaluate", masks, self.cohort / "labelsTs", "-o", folder)
        self.metricunet(*words, log=self.log(arm, "evaluate"), allowed=(0, 1))
        scores = {row["case"]: row for row in _rows(folder / "cases.csv") if row["structure"] == "prostate"}
        cases = sorted(path.name.removesuffix(".nii.gz") for path in (self.cohort / "labelsTs").iterdir())
        lines = ["arm,case,dice,asd_mm"]
        for case in cases:
            row = scores.get(case, {})
            lines.append(f"{arm},{case},{row.get('dice') or '0'},{row.get('asd_mm', '')}")
        write_text(self.output / "arms" / f"{arm}.csv", "\n".join(lines) + "\n")

    def run(self, arms: Sequence[str] = ARMS) -> None:
        """Run what is not done yet of these arms, and write the table of all that are done."""
        with claimed(self.output / CLAIM_NAME, "a comparison"):
            self.end_leftovers()
            self.take_kept()
            if all((self.output / "arms" / f"{arm}.csv").is_file() for arm in arms):
                self.tell()
                return
            self.prepare()
            trainers = self._trainers()
            write_text(trainers, TIMED)
            try:
                for arm in arms:
                    self._run(arm)
                    self.tell()
            finally:
                trainers.unlink(missing_ok=True)

    def _run(self, arm: str) -> None:
        train, predict = (
            (self.train_nnunet, self.predict_nnunet) if arm in NNUNET else (self.train_ours, self.predict_ours)
        )
        last = "unmirrored_seconds" if arm in NNUNET else "prediction_seconds"
        if "asked" not in self.facts(arm):
            found = machine()
            where = f"{found['processor']}, {found['cores']} cores"
            self.keep(arm, asked=self.asked, machine=where, pace_seconds=pace_seconds())
        if "seconds" not in self.facts(arm):
            train(arm)
        if last not in self.facts(arm):
            predict(arm)
        if not (self.output / "arms" / f"{arm}.csv").is_file():
            self.score(arm)
        self.give_kept(arm)

    def _trainers(self) -> Path:
        """Return where nnU-Net looks for trainers by name."""
        words = [str(self.bin / "python"), "-c", "import nnunetv2; print(nnunetv2.__path__[0])"]
        found = subprocess.run(words, capture_output=True, text=True, check=True, env=self.inside).stdout.strip()
        return Path(found) / "training/nnUNetTrainer/nnUNetTrainerTimed.py"

    def tell(self) -> None:
        """Write and print the table of the arms that are done, and the rows of their cases."""
        done = [arm for arm in ARMS if (self.output / "arms" / f"{arm}.csv").is_file()]
        rows = {arm: _rows(self.output / "arms" / f"{arm}.csv") for arm in done}
        text = table({arm: self.facts(arm) for arm in done}, rows)
        write_text(self.output / "table.md", text + "\n")
        files = [(self.output / "arms" / f"{arm}.csv").read_text(encoding="utf-8") for arm in done]
        bodies = [file.partition("\n")[2] for file in files]
        write_text(self.output / "cases.csv", "arm,case,dice,asd_mm\n" + "".join(bodies))
        print(text, flush=True)


def _pilot(number: int, more: int) -> dict[str, int]:
    """Return the updates of a short training: of stage 2, and of stage 1, which takes some more."""
    return {"locate": number + more, "segment": number}


def table(facts: dict[str, dict[str, Any]], rows: dict[str, list[dict[str, str]]]) -> str:
    """Return what was found as a table in Markdown, and the answers to the questions that can be answered.

    Args:
        facts: what was measured of each arm that is done.
        rows: its cases, as they are in its CSV file.
    """
    lines = [
        "| arm | updates | training, min | Dice | difference (95 %) | ASD, mm | missed | s a scan |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    dice = {arm: np.array([float(row["dice"]) for row in cases]) for arm, cases in rows.items()}
    for arm, one in facts.items():
        asd = [float(row["asd_mm"]) for row in rows[arm] if row["asd_mm"]]
        updates = one["steps"] if arm in NNUNET else one["updates"]["segment"]
        seconds = f"{one['prediction_seconds']:.1f}"
        if "unmirrored_seconds" in one:
            seconds += f" ({one['unmirrored_seconds']:.1f} unmirrored)"
        against = "" if arm == REFERENCE or REFERENCE not in dice else _difference(dice[arm] - dice[REFERENCE])
        mean_asd = f"{np.mean(asd):.2f}" if asd else ""
        lines.append(
            f"| {arm} | {updates} | {one['seconds'] / 60:.1f} | {dice[arm].mean():.3f} | {against} | {mean_asd} | "
            f"{len(dice[arm]) - len(asd)} | {seconds} |"
        )
    pace = [f"{arm} {one['pace_seconds']:.2f} s ({one['machine']})" for arm, one in facts.items()]
    return "\n".join([*lines, "", *_answers(dice), "", f"Pace of the machine: {'; '.join(pace)}."])


def _answers(dice: dict[str, NDArray[np.float64]]) -> list[str]:
    plain = [arm for arm in ("nnunet_planned", REFERENCE) if arm in dice]
    best = max(plain, key=lambda arm: dice[arm].mean(), default="")
    questions = (
        ("Is ours as good as nnU-Net?", "ours_with", best if len(plain) == 2 else "", -MARGIN),
        ("Does the branch help ours?", "ours_with", "ours_without", 0.0),
        ("Does the branch help nnU-Net?", "nnunet_with_branch", REFERENCE, 0.0),
    )
    lines = []
    for question, one, other, bound in questions:
        if one in dice and other in dice:
            gain = dice[one] - dice[other]
            low, high = _interval(gain)
            answer = "yes" if low > bound else "no" if high < bound else "open"
            lines.append(f"- {question} {answer}: {one} - {other} is {_difference(gain)} Dice.")
    return lines


def _difference(gain: NDArray[np.float64]) -> str:
    low, high = _interval(gain)
    return f"{gain.mean():+.3f} ({low:+.3f} to {high:+.3f})"


def _interval(gain: NDArray[np.float64]) -> tuple[float, float]:
    draws = gain[np.random.default_rng(0).integers(0, len(gain), (10_000, len(gain)))].mean(axis=1)
    low, high = np.quantile(draws, [0.025, 0.975])
    return float(low), float(high)


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


def _json(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found


def main() -> None:
    """Read the arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "build/nnunet/compare", help="folder of everything")
    parser.add_argument("--venv", type=Path, default=ROOT / "build/nnunet/venv", help="of `make check-nnunet`")
    parser.add_argument("--minutes", type=float, default=60, help="time of each training")
    parser.add_argument("--cases", type=int, nargs=2, default=(60, 20), help="phantoms to train and to test on")
    parser.add_argument("--difficulty", choices=("easy", "real"), default="real", help="easy: to try this script")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS, help="arms to run; all by default")
    parser.add_argument("--kept", type=Path, help="folder of arms that are done, here or elsewhere")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        cases = (given.cases[0], given.cases[1])
        output, venv = given.output.absolute(), given.venv.absolute()
        Comparison(output, venv, given.minutes, cases, given.difficulty, given.kept).run(given.arms)
    except InputError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
