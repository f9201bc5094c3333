"""The loop of review and learning, on phantoms: predict 6, correct 3 by script, fine-tune, predict unseen ones.

The model has seen easy phantoms alone and is to work on varied ones. The three that it makes worst are corrected,
as a person would who knows the truth: the mask becomes the reference, and is saved as a review.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.report import value_target
from metricunet.cohort.importing.run import import_cohort
from metricunet.evaluation.compare import evaluate
from metricunet.files.model import read_card
from metricunet.files.nifti import read_labels
from metricunet.inference.predict import predict
from metricunet.phantom import make_cohort
from metricunet.progress import Say, silent
from metricunet.training.config import load_config
from metricunet.training.fit import train
from metricunet.workflows.demo import SETTINGS
from metricunet.workflows.review.decide import Verdict
from metricunet.workflows.review.desk import Desk
from metricunet.workflows.review.learn import ReviewedCases
from metricunet.workflows.review.scans import Scans

EASY_CASES, PREDICTED_CASES, CORRECTED_CASES, UNSEEN_CASES = 12, 6, 3, 6
SEED = 11
#: Of fine-tuning, over the short schedule that a training from a model has.
FINE_TUNING = ("locate.epochs=2", "segment.epochs=2", "segment.updates_per_epoch=100")
REVIEWER, TARGET = "script", "prostate"


@dataclass(frozen=True)
class ReviewLoop:
    """What the loop comes to.

    Attributes:
        predicted: Dice of the target in each of the cases that were predicted first.
        corrected: those that were corrected, the worst.
        before: Dice of the target in each unseen case, by the model as it was.
        after: the same, once it had learned from the corrected cases.
    """

    predicted: dict[str, float]
    corrected: tuple[str, ...]
    before: dict[str, float]
    after: dict[str, float]

    @property
    def gain(self) -> float:
        """How much the mean Dice of unseen cases has risen."""
        return _mean(self.after) - _mean(self.before)

    def to_json(self) -> dict[str, object]:
        """Return a plain dictionary."""
        return {**asdict(self), "gain": self.gain}

    def text(self) -> str:
        """Return the lines to print."""
        rows = [f"  {case}: {self.before[case]:.3f} -> {self.after[case]:.3f}" for case in self.before]
        found = f"{_mean(self.before):.3f} -> {_mean(self.after):.3f}"
        return "\n".join(
            [
                f"review loop: {len(self.corrected)} of {len(self.predicted)} predicted phantoms corrected",
                *rows,
                value_target("mean Dice of unseen ones", found, "a rise", self.gain > 0),
            ]
        )


def bench_review_loop(home: Path | None = None, device: str = "auto", say: Say = silent) -> ReviewLoop:
    """Go once through the loop.

    Args:
        home: folder to work in, which keeps what was made; default: a temporary one.
        device: that trains and predicts.
        say: told in one line what comes next.
    """
    if home is None:
        with tempfile.TemporaryDirectory() as name:
            return bench_review_loop(Path(name), device, say)
    easy, site = home / "easy", home / "site"
    say(f"making {EASY_CASES + PREDICTED_CASES + UNSEEN_CASES} phantoms")
    make_cohort(easy, EASY_CASES, seed=SEED, difficulty="easy")
    make_cohort(site, PREDICTED_CASES, seed=SEED + 1, difficulty="varied", n_test=UNSEEN_CASES)
    say("training on easy phantoms")
    first = train(easy, home / "first", config=load_config("small", settings=SETTINGS), fold="all", device=device)
    say(f"predicting {PREDICTED_CASES} varied ones, and correcting the worst {CORRECTED_CASES}")
    out = home / "out"
    predict([site / "imagesTr"], [first], out, device=device)
    predicted = _dice(out, site / "labelsTr", home / "scores")
    worst = tuple(sorted(predicted, key=lambda case: predicted[case])[:CORRECTED_CASES])
    for case in worst:
        _correct(out, case, site / "labelsTr" / f"{case}.nii.gz")
    import_cohort([out], home / "reviewed", layout=ReviewedCases())
    say("learning from them")
    settings = load_config(settings=FINE_TUNING, parent=read_card(first))
    second = train(home / "reviewed", home / "second", config=settings, fold="all", init=first, device=device)
    say(f"predicting {UNSEEN_CASES} unseen ones by both models")
    scores = []
    for name, model in (("before", first), ("after", second)):
        predict([site / "imagesTs"], [model], home / name, device=device)
        scores.append(_dice(home / name, site / "labelsTs", home / f"scores_{name}"))
    return ReviewLoop(predicted, worst, *scores)


def _correct(out: Path, case: str, reference: Path) -> None:
    """Save the reference as the review of a case, as the page would."""
    desk = Desk(out, Scans(), REVIEWER)
    info = desk.case(case)
    whole = info["whole"]
    opened = desk.opened(case)
    truth = read_labels(reference).reordered_like(opened.grid).array
    stated = json.loads((reference.parent.parent / "dataset.json").read_text())["labels"]
    classes = 0 * opened.predicted
    for number, name in enumerate(opened.labels, start=1):
        classes[truth == stated[name]] = number
    verdict = Verdict(False, "", REVIEWER, 60.0, info["shown"], len(info["reviews"]))
    desk.decide(case, verdict, tuple(whole["start"]), tuple(whole["shape"]), classes.tobytes())


def _dice(predictions: Path, references: Path, output: Path) -> dict[str, float]:
    found = evaluate(predictions, references, output)
    return {row.case: row.measures.dice or 0.0 for row in found.rows if row.structure == TARGET}


def _mean(scores: dict[str, float]) -> float:
    return sum(scores.values()) / len(scores)
