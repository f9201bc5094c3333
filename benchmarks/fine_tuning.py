"""Five patients of a kind that a model has not seen: beginning from it, against beginning from nothing.

The model is trained on `varied` phantoms without one of their groups. Five phantoms that have the group, with the
contours of one simulated reader, are learned from in a short training that begins from the model, and in one four
times as long that begins from nothing. Both are scored on the true shape of the same unseen phantoms of that kind.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import yaml

from benchmarks.report import value_target
from metricunet.evaluation.compare import evaluate
from metricunet.files.model import read_card
from metricunet.inference.models import MODEL_NAME, SHIPPED
from metricunet.inference.predict import predict
from metricunet.phantom import displace_cohort, make_cohort
from metricunet.progress import Say, silent
from metricunet.training.config import TrainConfig, load_config
from metricunet.training.fit import train
from metricunet.training.run import state_file

TARGET, COHORT_SEED = "prostate", 7100
#: Updates of each stage.
TUNED_UPDATES, FRESH_UPDATES = 150, 600
EPOCH_UPDATES = 150
#: What the first model has of the shipped one's settings.
OWN_SECTIONS = ("locate", "segment", "phantoms")


@dataclass(frozen=True)
class FineTuning:
    """What the two ways come to, by the seed of patients and training.

    Attributes:
        without: the group that the model has not seen.
        patients: number of patients that are learned from.
        unseen: number of those scored.
        untouched: mean Dice of the target by the model as it is, over the unseen patients; one not found has 0.
        tuned: the same, once it had learned from the patients.
        fresh: the same, of a training that begins from nothing.
    """

    without: str
    patients: int
    unseen: int
    untouched: float
    tuned: dict[int, float]
    fresh: dict[int, float]

    def to_json(self) -> dict[str, object]:
        """Return a plain dictionary."""
        return asdict(self)

    def text(self) -> str:
        """Return the lines to print."""
        gain = mean(self.tuned.values()) - mean(self.fresh.values())
        return "\n".join(
            [
                f"learning from {self.patients} patients with {self.without}; mean Dice of {self.unseen} unseen:",
                f"  the model without {self.without}: {self.untouched:.3f}",
                *[
                    f"  seed {seed}: {self.tuned[seed]:.3f} from the model, {TUNED_UPDATES} updates; "
                    f"{self.fresh[seed]:.3f} from nothing, {FRESH_UPDATES} updates"
                    for seed in self.tuned
                ],
                f"  spread (SD): {_spread(self.tuned):.3f} and {_spread(self.fresh):.3f}",
                value_target("gain", f"{gain:+.3f}", "0 or more", gain >= 0),
            ]
        )


def bench_fine_tuning(
    home: Path,
    *,
    without: str = "floor",
    patients: int = 5,
    unseen: int = 50,
    seeds: int = 3,
    settings: dict[str, Any] | None = None,
    workers: int = 2,
    device: str = "auto",
    say: Say = silent,
) -> FineTuning:
    """Train all models and score them; called again on its folder, it goes on where it was.

    Args:
        home: folder to work in, which keeps what was made.
        without: group of `varied` phantoms that the model does not see.
        patients: number of patients that are learned from.
        unseen: number of those scored.
        seeds: number of times that both ways are gone, each with patients of its own.
        settings: of the first model, over those of the shipped one.
        workers: processes that make phantoms beside the first training.
        device: that trains and predicts.
        say: told in one line what comes next.
    """
    own = yaml.safe_load(SHIPPED.with_suffix(".yaml").read_text(encoding="utf-8"))
    shared = {"augment": own["augment"], "target": TARGET, "metric": {"mode": "none"}}
    first: dict[str, Any] = {
        **{f"{part}.{key}": value for part in OWN_SECTIONS for key, value in own[part].items()},
        "phantoms.structures": [TARGET],
        "phantoms.without": [without],
        "organs.structures": [],
        **shared,
        **(settings or {}),
    }
    say(f"training on varied phantoms without {without}")
    begun = load_config("small", settings=first)
    base = _trained(None, home / "base", begun, workers=workers, device=device)
    tests = home / "patients-0"
    for seed in range(seeds):
        say(f"making patients of seed {seed}")
        make_cohort(
            home / f"patients-{seed}",
            patients,
            COHORT_SEED + seed,
            "varied",
            n_test=unseen if seed == 0 else 0,
            n_readers=1,
            workers=workers,
        )
        displace_cohort(home / f"patients-{seed}", home / f"contoured-{seed}")
    say("scoring the model as it is")
    untouched = _dice(base, tests, home / "untouched", device)
    widths = {
        f"{part}.{name}": getattr(getattr(begun, part), name)
        for part in ("locate", "segment")
        for name in ("base_channels", "batch_size")
    }
    tuned, fresh = {}, {}
    for seed in range(seeds):
        cohort = home / f"contoured-{seed}"
        say(f"seed {seed}: from the model")
        short = {**shared, "seed": seed, **_updates(TUNED_UPDATES)}
        config = load_config(settings=short, parent=read_card(base))
        model = _trained(cohort, home / f"tuned-{seed}", config, init=base, fold="all", device=device)
        tuned[seed] = _dice(model, tests, home / f"by-tuned-{seed}", device)
        say(f"seed {seed}: from nothing")
        config = load_config("small", settings={**shared, **widths, "seed": seed, **_updates(FRESH_UPDATES)})
        model = _trained(cohort, home / f"fresh-{seed}", config, fold="all", device=device)
        fresh[seed] = _dice(model, tests, home / f"by-fresh-{seed}", device)
    return FineTuning(without, patients, unseen, untouched, tuned, fresh)


def _updates(count: int) -> dict[str, int]:
    """Return the settings of both stages for a number of updates."""
    epochs = max(1, count // EPOCH_UPDATES)
    return {
        f"{stage}.{name}": value
        for stage in ("locate", "segment")
        for name, value in (("epochs", epochs), ("updates_per_epoch", count // epochs))
    }


def _trained(cohort: Path | None, folder: Path, config: TrainConfig, **options: Any) -> Path:
    model = folder / MODEL_NAME
    if model.is_file():
        return model
    return train(cohort, folder, config=config, resume=state_file(folder).is_file(), **options)


def _dice(model: Path, cohort: Path, folder: Path, device: str) -> float:
    """Segment the test phantoms of a cohort, and return the mean Dice of the target; one not found has 0."""
    predict([cohort / "imagesTs"], [model], folder, device=device)
    rows = evaluate(folder, cohort / "labelsTs", folder.with_name(f"{folder.name}-scores")).rows
    return mean(row.measures.dice or 0.0 for row in rows if row.structure == TARGET)


def _spread(scores: dict[int, float]) -> float:
    return stdev(scores.values()) if len(scores) > 1 else 0.0
