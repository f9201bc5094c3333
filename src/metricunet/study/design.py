"""STUDY.yaml: what a study compares, on what data, and how often."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from metricunet.cohort.splits import Fold
from metricunet.errors import InputError
from metricunet.evaluation.features import FEATURE_NAMES
from metricunet.evaluation.measures import MEASURE_NAMES, SIGNED
from metricunet.evaluation.smoothness import SMOOTHNESS_NAMES
from metricunet.files.yaml_file import read_yaml
from metricunet.phantom.scanner import Difficulty
from metricunet.training.config import PRESETS, TrainConfig, merge_settings, merged_config

#: The copy of the study file in the study's folder.
STUDY_NAME = "study.yaml"
#: Record of the copy of the study file, which is there from the beginning.
MARK_RECORD = ".study-file.json"
#: What training reads: the true shapes, or the contours of one reader.
Labels = Literal["clean", "displaced"]
Seed = Annotated[int, Field(ge=0)]
Seeds = Annotated[tuple[Seed, ...], Field(min_length=1)]
#: Names of arms become names of folders.
ARM_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
#: What an arm cannot have of its own, and why.
SHARED = {
    "locate": "stage 1 is trained once and shared by all arms",
    "seed": "every arm is trained with each of the study's seeds",
    "target": "all arms are scored on the same structures",
}
#: Replicate K is trained with seed 1000 K + S where another study is trained with seed S.
SEEDS_APART = 1000
#: Sections that an arm of one stage has no use for.
OF_STAGE_TWO = ("segment", "metric", "teacher")


def _different(values: Any, what: str) -> Any:
    """Return the values if each occurs once."""
    seen = set()
    for value in values:
        if value in seen:
            raise ValueError(f"{what} {value} occurs twice")
        seen.add(value)
    return values


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PhantomRecipe(_Section):
    """Phantoms that the study makes itself, in its own folder.

    Attributes:
        n_train: number of training cases.
        n_val: number of validation cases; with 0 the last weights of each training are scored.
        n_test: number of test cases.
        contoured: number of training cases whose labels each replicate reads; None for all, and no replicates.
            Which ones, seed and replicate decide; two replicates have none in common while there are enough
            cases. The others are as if nobody had contoured them: arms with `teacher.share` learn from their
            scans, arms with `teacher.reveal` read their labels after all.
        replicates: number of replicates, with `contoured` alone. Each is a fold of its own: all arms are trained
            in it on its contoured cases and share a stage 1 that was trained on these, and its training seeds are
            1000 times its number above the study's. There are no validation cases then.
        seed: seed of the cohort.
        difficulty: how hard the cases are, as in `metricunet.phantom.make_phantom`.
        test_difficulty: how hard the test cases are; None for as hard as the others.
        gland_texture_hu: standard deviation of a texture that the gland of `real` phantoms alone has, as in
            `make_phantom`.
        n_unlabeled: number of further cases whose labels no training reads, for arms that learn from such scans
            (`teacher.share`); None for none.
        labels: what arms train on, unless they say otherwise: `clean` (the true shapes) or `displaced` (a reader's
            contours). Test cases are scored against the truth and against a reader whom no training has seen.
    """

    n_train: Annotated[int, Field(ge=2)]
    n_val: Annotated[int, Field(ge=0)] = 0
    n_test: Annotated[int, Field(ge=1)]
    n_unlabeled: Annotated[int, Field(ge=1)] | None = None
    contoured: Annotated[int, Field(ge=2)] | None = None
    replicates: Annotated[int, Field(ge=1)] | None = None
    seed: Seed = 0
    difficulty: Difficulty = "real"
    test_difficulty: Difficulty | None = None
    gland_texture_hu: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    labels: Labels = "clean"

    @model_validator(mode="after")
    def _fits(self) -> PhantomRecipe:
        if self.gland_texture_hu and {self.difficulty, self.test_difficulty or "real"} != {"real"}:
            raise ValueError("gland_texture_hu is for phantoms of difficulty real alone, training and test")
        if (self.contoured is None) != (self.replicates is None):
            raise ValueError("contoured and replicates go together; give both or neither")
        if self.contoured is None:
            return self
        if self.contoured >= self.n_train:
            raise ValueError(
                f"contoured is {self.contoured}, n_train {self.n_train}; expected fewer, so that scans without "
                "contours are left"
            )
        for name in ("n_val", "n_unlabeled"):
            if getattr(self, name):
                raise ValueError(
                    f"{name} is {getattr(self, name)}, but a replicate trains on its contoured cases, takes the "
                    "rest of n_train as unlabeled, and validates on none; leave it out"
                )
        return self


class DataConfig(_Section):
    """Where the cases come from: exactly one of the two.

    Attributes:
        phantom: the phantoms that the study makes.
        cohort: folder of an nnU-Net raw data set; a relative path is taken from the study file's folder. Its test
            cases (imagesTs, labelsTs) are scored; without any, the validation cases of each fold.
    """

    phantom: PhantomRecipe | None = None
    cohort: Path | None = None

    @model_validator(mode="after")
    def _one_of_them(self) -> DataConfig:
        if (self.phantom is None) == (self.cohort is None):
            raise ValueError("expected either phantom or cohort")
        return self


class BaseSettings(_Section):
    """What all arms begin from.

    Attributes:
        preset: name of a preset of the training.
        settings: any part of a training's configuration, over the preset.
    """

    preset: str = "default"
    settings: dict[str, Any] = {}


class Arm(_Section):
    """One way of training stage 2, or of doing without it.

    Attributes:
        settings: any part of a training's configuration but what all arms share, over the base.
        stages: 2, or 1 for a network like stage 1's that segments the whole scan. Its settings are those of
            `locate`; `segment`, `metric` and `teacher` are of stage 2. Memory grows with the scan over that
            spacing.
        seeds: seeds to train with; default: the study's.
        labels: labels to train on, which phantoms alone can choose; default: the phantom's.
    """

    settings: dict[str, Any] = {}
    seeds: Seeds | None = None
    labels: Labels | None = None
    stages: Literal[1, 2] = 2

    @field_validator("seeds")
    @classmethod
    def _once(cls, value: Seeds | None) -> Seeds | None:
        return value if value is None else _different(value, "seed")


class Pair(_Section):
    """A comparison that the study is about: arms by their names.

    Attributes:
        baseline: the arm to beat.
        method: the arm that is claimed to be better.
        control: an arm that has what comes with the method, but not its idea; None without one.
    """

    baseline: str
    method: str
    control: str | None = None

    @property
    def arms(self) -> tuple[str, ...]:
        """The two or three arms."""
        return tuple(name for name in (self.baseline, self.method, self.control) if name is not None)


class FutilityRule(_Section):
    """When a study on replicates is not worth going on with.

    Once the first `after` replicates are done, and before any other begins, the study stops if the method's mean
    benefit in them is smaller than `below`. The benefit is the mean difference over cases and replicates in the
    first primary measure, on the target, against the truth, counted positive where the method is better. Without
    arms of its own the rule looks at the primary pair, and stops if its benefit over the baseline or over the
    control is smaller. Runs that failed are left out; where nothing is left to compare, the study goes on.

    Attributes:
        after: number of replicates.
        below: the benefit, in the measure's unit, below which the study stops.
        baseline, method: arms to look at in place of the primary pair; both or neither.
    """

    after: Annotated[int, Field(ge=1)]
    below: Annotated[float, Field(allow_inf_nan=False)] = 0.0
    baseline: str | None = None
    method: str | None = None

    @model_validator(mode="after")
    def _both_arms(self) -> FutilityRule:
        if (self.baseline is None) != (self.method is None):
            raise ValueError("a rule names baseline and method, or neither for the primary pair")
        return self


class SuccessRule(_Section):
    """What the study is to show, fixed before it is run; the tables say whether it did.

    It is met if the method's mean benefit over the baseline, in the first primary measure, on the target, against
    the truth, is `over_baseline` or more, and the 95 % interval of its benefit over the control lies above 0. It
    is not judged before every run of the primary pair and its control is finished.

    Attributes:
        over_baseline: the benefit that is wanted over the baseline, in the measure's unit.
    """

    over_baseline: Annotated[float, Field(allow_inf_nan=False)]


#: The smallest benefit that matters: in the measure's unit, or as `5 %` of the other arm's mean.
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)] | Annotated[str, Field(pattern=r"^\d+(\.\d+)? ?%$")]
#: Everything that two arms can be compared in.
COMPARED = tuple(n for n in MEASURE_NAMES if n not in SIGNED) + SMOOTHNESS_NAMES + FEATURE_NAMES


class MeasureFamilies(_Section):
    """Which measures are tested as what.

    Attributes:
        primary: measures whose p values are corrected together for the number of tests.
        exploratory: the other measures, which are not corrected. Smoothness and features are compared in any case,
            as exploratory.
        worthwhile: name of a measure to the smallest benefit that matters; 0 where nothing is said. Of smoothness,
            which can be negative, it is no share in percent. It is to be fixed before the study is run, for
            verdicts depend on it.
    """

    primary: tuple[str, ...] = ("dice", "asd_mm")
    exploratory: tuple[str, ...] = tuple(n for n in MEASURE_NAMES if n not in ("dice", "asd_mm"))
    worthwhile: dict[str, Amount] = {}

    @property
    def all(self) -> tuple[str, ...]:
        """Both families, the primary one first."""
        return (*self.primary, *self.exploratory)

    @model_validator(mode="after")
    def _known(self) -> MeasureFamilies:
        for name in self.all:
            if name not in MEASURE_NAMES:
                raise ValueError(f"{name!r} is no measure; expected some of {', '.join(MEASURE_NAMES)}")
        _different(self.all, "measure")
        for name in SIGNED:
            if name in self.primary:
                raise ValueError(
                    f"{name} is best at 0, so no arm is better for a larger or a smaller one; it can be "
                    "exploratory alone"
                )
        for name, amount in self.worthwhile.items():
            if name not in COMPARED:
                raise ValueError(f"worthwhile.{name} is no measure; expected some of {', '.join(COMPARED)}")
            if isinstance(amount, str) and name in SMOOTHNESS_NAMES:
                raise ValueError(
                    f"worthwhile.{name} is {amount!r}, but it can be negative, and of that there is no share; "
                    "expected a number in the measure's unit"
                )
        return self


class StudyFile(_Section):
    """The content of a study file.

    Attributes:
        name: name of the study, for people.
        data: where the cases come from.
        base: what all arms begin from.
        arms: name of each arm to its settings, in the order in which they are run.
        seeds: seeds that each arm is trained with, once with each.
        folds: folds to validate on: whole numbers, or `all` for no validation.
        primary: the main comparison.
        secondary: further comparisons, judged alike but not corrected: a pair on other labels, another arm to
            beat.
        measures: which measures are tested as what.
        futility: when to stop early, with replicates alone.
        success: what the primary pair is to show, beside the verdicts; None for nothing.
    """

    name: Annotated[str, Field(min_length=1)]
    data: DataConfig
    base: BaseSettings = BaseSettings()
    arms: Annotated[dict[str, Arm], Field(min_length=1)]
    seeds: Seeds = (0,)
    folds: Annotated[tuple[Annotated[int, Field(ge=0)] | Literal["all"], ...], Field(min_length=1)] = (0,)
    primary: Pair | None = None
    secondary: tuple[Pair, ...] = ()
    measures: MeasureFamilies = MeasureFamilies()
    futility: tuple[FutilityRule, ...] = ()
    success: SuccessRule | None = None

    @property
    def pairs(self) -> dict[str, Pair]:
        """Role to pair, the primary one first: `primary`, `secondary.0` and so on, as they stand in the file."""
        first = {} if self.primary is None else {"primary": self.primary}
        return first | {f"secondary.{k}": pair for k, pair in enumerate(self.secondary)}

    @model_validator(mode="after")
    def _fits(self) -> StudyFile:
        _different(self.seeds, "seed")
        _different(self.folds, "fold")
        folders: dict[str, str] = {}
        for name in self.arms:
            if not ARM_NAME.fullmatch(name):
                raise ValueError(
                    f"arm {name!r}: a name holds letters, digits and . _ + - only, and begins with none of these"
                )
            # Some file systems do not tell capitals from small letters.
            if name.lower() in folders:
                raise ValueError(f"arms {folders[name.lower()]!r} and {name!r} differ in capitals only")
            folders[name.lower()] = name
        phantom = self.data.phantom
        if phantom is None and any(arm.labels for arm in self.arms.values()):
            raise ValueError("labels is for phantoms; a cohort is trained on the contours that it has")
        if self.secondary and self.primary is None:
            raise ValueError("secondary has pairs, but there is no primary one")
        for role, pair in self.pairs.items():
            _different(pair.arms, f"arm of {role}")
            for arm in pair.arms:
                if arm not in self.arms:
                    raise ValueError(f"{role} names arm {arm!r}; expected one of {', '.join(self.arms)}")
            if phantom is not None:
                kinds = {name: self.arms[name].labels or phantom.labels for name in pair.arms}
                if len(set(kinds.values())) > 1:
                    told = ", ".join(f"{name} on {kind}" for name, kind in kinds.items())
                    raise ValueError(f"the arms of {role} train on different labels ({told}); expected the same")
        if phantom is not None and tuple(self.folds) != (0,):
            raise ValueError("folds is for cohorts; phantoms have one split, so leave it out")
        self._rules_fit()
        return self

    def _rules_fit(self) -> None:
        replicates = None if self.data.phantom is None else self.data.phantom.replicates
        if self.success is not None and (self.primary is None or self.primary.control is None):
            raise ValueError("success is about the primary pair and its control, and they are not all named")
        if replicates and max(max(arm.seeds or self.seeds) for arm in self.arms.values()) >= SEEDS_APART:
            raise ValueError(f"with replicates a seed is to be below {SEEDS_APART}, for they lie that far apart")
        for number, rule in enumerate(self.futility):
            where = f"futility.{number}"
            if replicates is None or self.primary is None:
                raise ValueError(f"{where}: a rule to stop by needs replicates (data.phantom) and a primary pair")
            if rule.after >= replicates:
                raise ValueError(
                    f"{where}: after is {rule.after}; expected fewer than the {replicates} replicates"
                )
            for arm in (rule.baseline, rule.method):
                if arm is not None and arm not in self.arms:
                    raise ValueError(f"{where} names arm {arm!r}; expected one of {', '.join(self.arms)}")


@dataclass(frozen=True)
class Study:
    """A study file that was read, with every arm's settings resolved.

    Attributes:
        path: path of the file.
        content: what it says.
        base: configuration that stage 1 is trained with.
        arms: name of each arm to its configuration, whose seed is still the base's.
    """

    path: Path
    content: StudyFile
    base: TrainConfig
    arms: dict[str, TrainConfig]

    @property
    def cohort(self) -> Path | None:
        """The user's cohort, if the study is on one."""
        given = self.content.data.cohort
        return None if given is None else self.path.absolute().parent / given

    @property
    def folds(self) -> tuple[Fold, ...]:
        """Folds to validate on, or the replicates."""
        replicates = self.replicates
        return self.content.folds if replicates is None else tuple(range(replicates))

    @property
    def replicates(self) -> int | None:
        """Number of replicates; None for a study without."""
        phantom = self.content.data.phantom
        return None if phantom is None else phantom.replicates

    def config(self, arm: str, fold: Fold, seed: int) -> TrainConfig:
        """Return what an arm is trained with in a fold."""
        return self.arms[arm].model_copy(update={"seed": seed + self._seed_of(fold)})

    def stage_one(self, fold: Fold) -> TrainConfig:
        """Return what stage 1 of a fold is trained with."""
        return self.base.model_copy(update={"seed": self.base.seed + self._seed_of(fold)})

    def _seed_of(self, fold: Fold) -> int:
        # Else all replicates would begin with the same weights, and intervals would not speak of others.
        return 0 if self.replicates is None or fold == "all" else SEEDS_APART * fold

    def labels(self, arm: str) -> Labels | None:
        """Return what an arm trains on; None where it is the user's cohort."""
        phantom = self.content.data.phantom
        return None if phantom is None else self.content.arms[arm].labels or phantom.labels

    def stages(self, arm: str) -> int:
        """Return how many stages an arm has."""
        return self.content.arms[arm].stages

    def seeds(self, arm: str) -> tuple[int, ...]:
        """Return the seeds of an arm."""
        return self.content.arms[arm].seeds or self.content.seeds


def load_study(path: Path) -> Study:
    """Read a study file and resolve every arm's settings.

    Raises:
        InputError: a file that cannot be read, an unknown key or a value of the wrong kind, each named with its
            place.
    """
    content = _validated(path)
    preset, shared = content.base.preset, _nested(content.base.settings)
    if preset not in PRESETS:
        raise InputError(f"{path}: base.preset must be one of {', '.join(PRESETS)}; got {preset!r}")
    base = _resolved(path, "base", preset, [shared])
    arms: dict[str, TrainConfig] = {}
    for name, arm in content.arms.items():
        for key in arm.settings:
            section = str(key).partition(".")[0]
            if arm.stages == 1 and section in OF_STAGE_TWO:
                raise InputError(
                    f"{path}: arms.{name}.settings sets {key}, which is of stage 2, but the arm has one stage; "
                    "leave it out, and set its network in locate"
                )
            if section in SHARED and not (arm.stages == 1 and section == "locate"):
                raise InputError(
                    f"{path}: arms.{name}.settings sets {key}, but {SHARED[section]}; set it in base.settings"
                )
        arms[name] = _resolved(path, f"arms.{name}", preset, [shared, _nested(arm.settings)])
    return Study(path, content, base, arms)


def _validated(path: Path) -> StudyFile:
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected the keys {', '.join(StudyFile.model_fields)}; found no mapping")
    try:
        return StudyFile.model_validate(content)
    except ValidationError as error:
        raise InputError(f"{path}: {_explain(error)}") from error


def _resolved(path: Path, section: str, preset: str, layers: Sequence[dict[str, Any]]) -> TrainConfig:
    try:
        return merged_config(preset, layers, f"{section}.settings")
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _nested(settings: Mapping[Any, Any]) -> dict[str, Any]:
    """Return settings as nested sections: a key such as `metric.mode` stands for one in another."""
    nested: dict[str, Any] = {}
    for key, value in settings.items():
        inner = _nested(value) if isinstance(value, Mapping) else value
        for part in reversed(str(key).split(".")):
            inner = {part: inner}
        nested = merge_settings(nested, inner)
    return nested


def _explain(error: ValidationError) -> str:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        known = _keys_at(first["loc"][:-1])
        return f"{key} is unknown" + (f"; expected some of {', '.join(known)}" if known else "")
    if first["type"] == "missing":
        return f"{key} is missing"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error":
        return f"{key}: {message}" if key else message
    return f"{key} is {repr(first['input'])[:200]}: {message}"


def _keys_at(location: tuple[int | str, ...]) -> tuple[str, ...]:
    """Return the keys that a section of the study file knows."""
    if location[:1] == ("arms",):
        return tuple(Arm.model_fields)
    if location[:1] == ("secondary",):
        return tuple(Pair.model_fields)
    if location[:1] == ("futility",):
        return tuple(FutilityRule.model_fields)
    sections: dict[tuple[int | str, ...], type[BaseModel]] = {
        (): StudyFile,
        ("data",): DataConfig,
        ("data", "phantom"): PhantomRecipe,
        ("base",): BaseSettings,
        ("primary",): Pair,
        ("measures",): MeasureFamilies,
        ("success",): SuccessRule,
    }
    return tuple(sections[location].model_fields) if location in sections else ()
