"""The whole job without any data of the user's, small enough for two cores and ten minutes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from metricunet.evaluation.compare import evaluate
from metricunet.evaluation.summary import format_summary
from metricunet.files.atomic import written_whole
from metricunet.files.record import RunRecord
from metricunet.inference.predict import predict
from metricunet.phantom import make_cohort
from metricunet.training.config import load_config
from metricunet.training.fit import MODEL_NAME, train
from metricunet.workflows.folders import clear_earlier

TRAINING_CASES = 24
UNSEEN_CASES = 8
SEED = 1
#: A short training: enough for the easy phantoms, within minutes on two cores.
SETTINGS = (
    "locate.epochs=4",
    "locate.updates_per_epoch=80",
    "locate.learning_rate=0.01",
    "segment.epochs=3",
    "segment.updates_per_epoch=150",
)


@dataclass(frozen=True)
class DemoResult:
    """Where the demo's results lie.

    Attributes:
        summary: the scores as a short text.
        report: the report to open in a browser.
        model: the trained model.
    """

    summary: str
    report: Path
    model: Path


def demo(
    output: Path,
    *,
    training_cases: int = TRAINING_CASES,
    unseen_cases: int = UNSEEN_CASES,
    settings: tuple[str, ...] = SETTINGS,
    say: Callable[[str], None] = lambda message: None,
    bar: Callable[[str], Callable[[int, int], None]] = lambda name: lambda done, total: None,
) -> DemoResult:
    """Make phantoms, train, segment unseen ones, score them, and leave a report.

    Args:
        output: folder of cohort/, run/, prediction/, evaluation/, model.safetensors, summary.json, report.html.
        training_cases: phantoms to train and validate on.
        unseen_cases: phantoms to segment and score.
        settings: of the training, over the preset `small`.
        say: told what comes next.
        bar: opens a progress bar by its name.

    Raises:
        InputError: the folder holds something else than an earlier demo.
    """
    clear_earlier(output, "demo")
    record = RunRecord("demo", {"output": output})
    record.write(output)  # marks the folder as a demo's, for a later run to clear
    cohort, run, prediction, evaluation = (output / n for n in ("cohort", "run", "prediction", "evaluation"))
    say(f"1/4 making {training_cases + unseen_cases} synthetic pelvic CT scans")
    make_cohort(
        cohort, training_cases, seed=SEED, difficulty="easy", n_test=unseen_cases, progress=bar("phantoms")
    )
    say("2/4 training both stages")
    model = train(cohort, run, config=load_config("small", settings=settings), progress=bar("preparing"))
    say(f"3/4 segmenting {unseen_cases} unseen scans")
    predict([cohort / "imagesTs"], [model], prediction, progress=bar("segmenting"))
    say("4/4 scoring them")
    result = evaluate(prediction, cohort / "labelsTs", evaluation, progress=bar("scoring"))
    with written_whole(output / MODEL_NAME) as temporary:
        shutil.copyfile(model, temporary)
    with written_whole(output / "summary.json") as temporary:
        shutil.copyfile(evaluation / "summary.json", temporary)
    with written_whole(output / "report.html") as temporary:
        shutil.copyfile(evaluation / "report.html", temporary)
    record.write(output)
    return DemoResult(format_summary(result), output / "report.html", output / MODEL_NAME)
