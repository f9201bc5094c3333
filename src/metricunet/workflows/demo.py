"""Everything from phantoms to a report, without data of the user: small enough for two cores and ten minutes."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from metricunet.errors import InputError, told
from metricunet.evaluation.compare import check_output, evaluate
from metricunet.evaluation.summary import Evaluation, format_summary
from metricunet.files.own import OwnFiles
from metricunet.files.record import RunRecord, hash_if_readable
from metricunet.inference.models import MODEL_NAME
from metricunet.inference.predict import PredictOutcome, predict
from metricunet.phantom import make_cohort
from metricunet.phantom.cohort import CohortPlan, check_cohort
from metricunet.progress import Bars, Say, no_bars, silent
from metricunet.training.config import TrainConfig, differences, load_config
from metricunet.training.fit import train
from metricunet.training.run import check_folder, finished_record, state_file

DEMO_RECORD = "demo.json"
OUTPUTS = (MODEL_NAME, "summary.json", "report.html")
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
    """Where the demo's results lie, and what became of the unseen scans.

    Attributes:
        prediction: what became of each scan.
        evaluation: its scores.
        report: the report to open in a browser.
        model: the trained model.
    """

    prediction: PredictOutcome
    evaluation: Evaluation
    report: Path
    model: Path

    @property
    def summary(self) -> str:
        """The scores as a short text."""
        return format_summary(self.evaluation)

    @property
    def failed(self) -> bool:
        """Whether the prediction, or the evaluation, would end with status 1 as a command of its own."""
        return self.prediction.failed() or bool(self.evaluation.failed or self.evaluation.faults)


def demo(
    output: Path,
    *,
    training_cases: int = TRAINING_CASES,
    unseen_cases: int = UNSEEN_CASES,
    settings: tuple[str, ...] = SETTINGS,
    say: Say = silent,
    bar: Bars = no_bars,
) -> DemoResult:
    """Make phantoms, train, segment unseen ones, score them, and leave a report.

    Each step keeps what an earlier run of it finished, so that a demo that was stopped goes on.

    Args:
        output: folder of cohort/, run/, prediction/, evaluation/, model.safetensors, summary.json, report.html.
        training_cases: number of phantoms to train and validate on.
        unseen_cases: number of phantoms to segment and score.
        settings: settings of the training over the preset `small`.
        say: told in one line what comes next.
        bar: opens a progress bar by its name.

    Raises:
        InputError: a file that would be replaced is not an earlier demo's, or was changed since; or the folder
            holds a model of other settings.
    """
    if output.exists() and not output.is_dir():
        raise InputError(f"{output}: is a file, expected a folder for the demo; choose another folder")
    own = OwnFiles(output, DEMO_RECORD, "demo")
    own.check(OUTPUTS)
    record = RunRecord("demo", {"output": output})
    cohort, run, prediction, evaluation = (output / n for n in ("cohort", "run", "prediction", "evaluation"))
    model, begun = run / MODEL_NAME, state_file(run).is_file()
    config = load_config("small", settings=settings)
    # Before any work, all that can be refused.
    trained = _is_trained(run, config)
    if not trained:
        check_folder(run, begun)
    check_cohort(cohort, CohortPlan(training_cases, seed=SEED, difficulty="easy", n_test=unseen_cases))
    check_output(evaluation)
    say(f"1/4 making {training_cases + unseen_cases} synthetic pelvic CT scans")
    make_cohort(
        cohort, training_cases, seed=SEED, difficulty="easy", n_test=unseen_cases, progress=bar("phantoms")
    )
    say("2/4 training both stages")
    if not trained:
        model = train(cohort, run, config=config, resume=begun, progress=bar("preparing"))
    say(f"3/4 segmenting {unseen_cases} unseen scans")
    outcome = predict([cohort / "imagesTs"], [model], prediction, overwrite=None, progress=bar("segmenting"))
    say("4/4 scoring them")
    result = evaluate(prediction, cohort / "labelsTs", evaluation, overwrite=None, progress=bar("scoring"))
    origins = (model, evaluation / "summary.json", evaluation / "report.html")
    for name, origin in zip(OUTPUTS, origins, strict=True):
        shutil.copyfile(origin, own.stage(name))
    record.facts = {
        "seed": SEED,
        "settings": list(settings),
        "inputs": {path.relative_to(output).as_posix(): hash_if_readable(path) for path in origins},
    }
    own.commit(record.content())
    return DemoResult(outcome, result, output / "report.html", output / MODEL_NAME)


def _is_trained(run: Path, config: TrainConfig) -> bool:
    """Tell whether a run is finished.

    Raises:
        InputError: it is, with other settings.
    """
    record = finished_record(run)
    if record is None:
        return False
    try:
        changes = differences(TrainConfig.model_validate(record.get("config")), config)
    except ValueError as error:
        raise InputError(
            f"{run}: holds a model of another version of metricunet ({told(error)}); choose another folder"
        ) from error
    if changes:
        raise InputError(
            f"{run}: holds a model of other settings ({'; '.join(changes[:3])}); choose another folder"
        )
    return True
