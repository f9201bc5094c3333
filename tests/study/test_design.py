"""Study files: what they resolve to, and the one line that names what is wrong in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from metricunet.errors import InputError
from metricunet.study.design import Study, load_study
from metricunet.training.config import TrainConfig, load_config
from tests.study.conftest import write_study

STUDIES = Path(__file__).parents[2] / "studies"


def _phantoms(**recipe: Any) -> dict[str, Any]:
    return {"data": {"phantom": {"n_train": 4, "n_test": 1} | recipe}}


def _ruled(replicates: int | None, *rules: dict[str, Any]) -> dict[str, Any]:
    few = {} if replicates is None else {"contoured": 2, "replicates": replicates}
    return _phantoms(**few) | {
        "primary": {"baseline": "plain", "method": "metric"},
        "futility": list(rules),
    }


def test_arms_are_the_preset_with_the_base_over_it_and_their_own_over_that(tmp_path: Path) -> None:
    arms = {
        "plain": {},
        "nested": {"settings": {"metric": {"mode": "control", "weight": 0.3}, "segment": {"slices": 7}}},
        "dotted": {
            "settings": {"metric.mode": "control", "metric.weight": 0.3, "segment.slices": 7},
            "seeds": [4],
        },
    }
    base = {"preset": "small", "settings": {"segment": {"slices": 3, "epochs": 2}, "metric.mode": "none"}}
    study = load_study(write_study(tmp_path / "s.yaml", tmp_path, arms=arms, base=base))
    assert study.base == load_config(
        "small", settings=["segment.slices=3", "segment.epochs=2", "metric.mode=none"]
    )
    assert study.arms["plain"] == study.base
    assert study.arms["nested"] == study.arms["dotted"]
    assert (study.arms["nested"].segment.slices, study.arms["nested"].segment.epochs) == (7, 2)
    assert study.arms["nested"].segment.base_channels == 16
    assert (study.seeds("plain"), study.seeds("dotted")) == ((0, 1), (4,))


def test_a_cohort_is_looked_for_beside_the_study_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "deep").mkdir()
    write_study(tmp_path / "deep" / "s.yaml", Path("../cohort"))
    monkeypatch.chdir(tmp_path)
    cohort = load_study(Path("deep/s.yaml")).cohort
    assert cohort is not None
    assert cohort.resolve() == (tmp_path / "cohort").resolve()


def test_the_primary_measures_are_not_tested_a_second_time(tmp_path: Path) -> None:
    families = load_study(write_study(tmp_path / "s.yaml", tmp_path)).content.measures
    assert families.primary == ("dice", "asd_mm")
    assert not set(families.primary) & set(families.exploratory)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": None}, "name is missing"),
        ({"arm": {}}, "arm is unknown; expected some of name, data, base, arms"),
        ({"arms": {}}, "arms is {}"),
        ({"arms": {"a/b": {}}}, "arm 'a/b': a name holds letters"),
        ({"arms": {"..": {}}}, r"arm '\.\.': a name holds letters"),
        ({"arms": {"unet": {}, "UNet": {}}}, "arms 'unet' and 'UNet' differ in capitals only"),
        (
            {"arms": {"a": {"setting": {}}}},
            r"arms\.a\.setting is unknown; expected some of settings, seeds, labels",
        ),
        ({"arms": {"a": {"seeds": [1, 1]}}}, "seed 1 occurs twice"),
        (
            {"arms": {"a": {"settings": {"locate": {"epochs": 3}}}}},
            r"arms\.a\.settings sets locate, but stage 1 is trained once and shared",
        ),
        (
            {"arms": {"a": {"stages": 1, "settings": {"segment.epochs": 3}}}},
            r"arms\.a\.settings sets segment\.epochs, which is of stage 2, but the arm has one stage",
        ),
        ({"arms": {"a": {"stages": 3}}}, r"arms\.a\.stages is 3"),
        (
            {"arms": {"a": {"settings": {"locate.epochs": 3}}}},
            r"arms\.a\.settings sets locate\.epochs, but stage 1",
        ),
        ({"arms": {"a": {"settings": {"seed": 3}}}}, r"arms\.a\.settings sets seed, but every arm"),
        (
            {"arms": {"a": {"settings": {"metric": {"mod": "online"}}}}},
            r"setting metric\.mod \(from arms\.a\.settings\) is unknown; expected one of mode, weight",
        ),
        (
            {"base": {"settings": {"segment": {"epochs": 0}}}},
            r"setting segment\.epochs \(from base\.settings\) is 0: Input should be greater",
        ),
        ({"base": {"preset": "huge"}}, r"base\.preset must be one of default, small; got 'huge'"),
        ({"seeds": []}, "seeds"),
        ({"seeds": [0, 0]}, "seed 0 occurs twice"),
        ({"seeds": [-1]}, r"seeds\.0 is -1"),
        ({"folds": [0, 1, 0]}, "fold 0 occurs twice"),
        ({"data": {}}, "data: expected either phantom or cohort"),
        ({"data": {"phantom": {"n_train": 1, "n_val": 1, "n_test": 1}}}, r"data\.phantom\.n_train is 1"),
        (
            {"data": {"phantom": {"n_train": 2, "n_val": 1, "n_test": 1}}, "folds": [1]},
            "folds is for cohorts",
        ),
        ({"primary": {"baseline": "plain", "method": "best"}}, "primary names arm 'best'; expected one of plain"),
        ({"primary": {"baseline": "plain", "method": "plain"}}, "arm of primary plain occurs twice"),
        ({"arms": {"a": {"labels": "displaced"}}}, "labels is for phantoms"),
        (
            {
                "data": {"phantom": {"n_train": 2, "n_val": 1, "n_test": 1}},
                "arms": {"a": {}, "b": {"labels": "displaced"}},
                "primary": {"baseline": "a", "method": "b"},
            },
            "arms of primary train on different labels \\(a on clean, b on displaced\\)",
        ),
        (
            {"secondary": [{"baseline": "plain", "method": "metric"}]},
            "secondary has pairs, but there is no primary",
        ),
        (
            {
                "primary": {"baseline": "plain", "method": "metric"},
                "secondary": [{"baseline": "metric", "method": "best"}],
            },
            r"secondary\.0 names arm 'best'",
        ),
        (
            {"primary": {"baseline": "plain", "method": "metric"}, "secondary": [{"base": "plain"}]},
            r"secondary\.0\.(baseline|method) is missing|secondary\.0\.base is unknown",
        ),
        (
            {"measures": {"worthwhile": {"dsc": 1}}},
            r"worthwhile\.dsc is no measure; expected some of dice, asd_mm",
        ),
        (
            {"measures": {"worthwhile": {"contour_length_excess_percent": "5 %"}}},
            r"worthwhile\.contour_length_excess_percent is '5 %', but it can be negative",
        ),
        ({"measures": {"worthwhile": {"dice": -1}}}, r"measures\.worthwhile\.dice"),
        ({"measures": {"worthwhile": {"dice": "much"}}}, r"measures\.worthwhile\.dice"),
        (
            {"measures": {"primary": ["volume_difference_ml"], "exploratory": []}},
            "volume_difference_ml is best at 0, so no arm is better",
        ),
        (_phantoms(contoured=2), r"data\.phantom: contoured and replicates go together"),
        (_phantoms(contoured=4, replicates=2), r"contoured is 4, n_train 4; expected fewer"),
        (_phantoms(contoured=2, replicates=2, n_val=1), r"n_val is 1, but a replicate trains on its contoured"),
        (_phantoms(contoured=2, replicates=2, n_unlabeled=1), r"n_unlabeled is 1, but a replicate"),
        (_phantoms(difficulty="easy", gland_texture_hu=5), r"gland_texture_hu is for phantoms of difficulty real"),
        (
            _phantoms(test_difficulty="varied", gland_texture_hu=5),
            r"gland_texture_hu is for phantoms of difficulty",
        ),
        (_phantoms(contoured=2, replicates=2) | {"seeds": [1000]}, "with replicates a seed is to be below 1000"),
        (_ruled(None, {"after": 1}), r"futility\.0: a rule to stop by needs replicates"),
        (_ruled(3, {"after": 3}), r"futility\.0: after is 3; expected fewer than the 3 replicates"),
        (_ruled(3, {"after": 1, "method": "plain"}), r"futility\.0: a rule names baseline and method, or neither"),
        (
            _ruled(3, {"after": 1, "method": "best", "baseline": "plain"}),
            r"futility\.0 names arm 'best'; expected one of plain, metric",
        ),
        (
            _ruled(3, {"when": 1}),
            r"futility\.0\.(after is missing|when is unknown; expected some of after, below)",
        ),
        (_ruled(3) | {"success": {"over_baseline": 0.1}}, "success is about the primary pair and its control"),
        ({"measures": {"primary": ["dsc"]}}, "'dsc' is no measure; expected some of dice, asd_mm"),
        ({"measures": {"primary": ["dice"], "exploratory": ["dice"]}}, "measure dice occurs twice"),
    ],
)
def test_what_is_wrong_is_named_in_one_line(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = write_study(tmp_path / "s.yaml", tmp_path, **change)
    with pytest.raises(InputError, match=message) as error:
        load_study(path)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: a\nname: b\n", "'name' occurs twice"),
        ("arms:\n  unet: {}\n  unet: {settings: {}}\n", "'unet' occurs twice"),
        ("name: [", "not a readable YAML file"),
        ("- name\n", "expected the keys name, data"),
        ("", "expected the keys name, data"),
    ],
)
def test_what_is_no_study_file(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "s.yaml").write_text(text)
    with pytest.raises(InputError, match=message) as error:
        load_study(tmp_path / "s.yaml")
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match=r"absent.yaml: no such file; expected a YAML file"):
        load_study(tmp_path / "absent.yaml")


def test_yaml_anchors_may_be_merged(tmp_path: Path) -> None:
    text = write_study(tmp_path / "s.yaml", tmp_path, arms=None).read_text()
    text += (
        "arms:\n  a: {settings: &mine {metric: {mode: online}}}\n  b: {settings: {<<: *mine, precision: fp32}}\n"
    )
    (tmp_path / "s.yaml").write_text(text)
    arms = load_study(tmp_path / "s.yaml").arms
    assert (arms["b"].metric.mode, arms["b"].precision) == ("online", "fp32")


@pytest.mark.parametrize("path", sorted(STUDIES.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_studies_that_come_along_can_be_read(path: Path) -> None:
    study = load_study(path)
    assert study.content.primary is not None
    assert {study.content.primary.method, study.content.primary.baseline} <= set(study.arms)


def test_pairs_and_worthwhile_benefits(tmp_path: Path) -> None:
    main = {"baseline": "plain", "method": "metric"}
    measures = {"worthwhile": {"dice": 0.005, "fisher_ratio": "10 %", "contour_length_excess_percent": 1}}
    path = write_study(tmp_path / "s.yaml", tmp_path, primary=main, secondary=[main], measures=measures)
    content = load_study(path).content
    assert list(content.pairs) == ["primary", "secondary.0"]
    assert content.pairs["secondary.0"].arms == ("plain", "metric")
    assert content.measures.worthwhile == measures["worthwhile"]


def test_replicates_are_folds_with_training_seeds_of_their_own(tmp_path: Path) -> None:
    path = write_study(tmp_path / "s.yaml", tmp_path, **_ruled(3, {"after": 2}), seeds=[0, 4])
    study = load_study(path)
    assert (study.replicates, study.folds) == (3, (0, 1, 2))
    assert [study.config("metric", fold, 4).seed for fold in study.folds] == [4, 1004, 2004]
    assert study.config("metric", 0, 4) == study.arms["metric"].model_copy(update={"seed": 4})
    assert [study.stage_one(fold).seed for fold in study.folds] == [0, 1000, 2000]
    assert study.content.futility[0].below == 0
    plain = load_study(write_study(tmp_path / "t.yaml", tmp_path, folds=[0, 1]))
    assert (plain.replicates, plain.folds, plain.config("plain", 1, 4).seed) == (None, (0, 1), 4)
    assert plain.stage_one(1) == plain.base


def _assert_matched(control: TrainConfig, method: TrainConfig) -> None:
    """A control is its method but for the losses of the branch, and for the bank that these alone read."""
    assert (control.metric.mode, method.metric.mode) == ("control", "online")
    assert control.teacher.share > 0
    own = {"mode": "control", "bank": control.metric.bank}
    assert method.model_copy(update={"metric": method.metric.model_copy(update=own)}) == control


def test_studies_on_few_contours_differ_in_what_they_are_about_alone() -> None:
    """Arms take as many updates on as many images, and end with averaged weights; the control is matched."""
    plain, texture = (load_study(STUDIES / f"few-contours{part}.yaml") for part in ("", "-texture"))
    five, sixty, control, method, alone = plain.arms.values()
    for arm in plain.arms.values():
        assert _size(arm) == _size(five)
        assert arm.teacher.final == "teacher"
    assert (five.teacher.share, five.metric.mode) == (0, "none")
    assert sixty.teacher == five.teacher.model_copy(update={"reveal": True})
    _assert_matched(control, method)
    # The method without the scans that nobody contoured.
    assert (alone.teacher, alone.augment) == (five.teacher, five.augment)
    assert alone.metric == method.metric.model_copy(update={"bank": 0})
    assert list(texture.arms) == ["unet-5", "unet-60", "teacher-control", "teacher-metric"]
    assert texture.arms == {name: plain.arms[name] for name in texture.arms}


def test_every_arm_on_few_contours_has_as_many_trials_and_is_one_of_them() -> None:
    """The trials are on other patients, with other training seeds; what was taken of them is trained as there."""
    trials, plain = (load_study(STUDIES / f"few-contours{part}.yaml") for part in ("-development", ""))
    of_arm = {
        kind: [arm for name, arm in trials.arms.items() if name.rpartition("-")[0] == kind]
        for kind in ("unet-5", "unet-60", "control", "metric")
    }
    assert [len(own) for own in of_arm.values()] == [5, 5, 5, 5]
    assert len(trials.arms) == 20
    for five, sixty in zip(of_arm["unet-5"], of_arm["unet-60"], strict=True):
        revealed = five.teacher.model_copy(update={"reveal": True})
        assert sixty == five.model_copy(update={"teacher": revealed})
    for control, method in zip(of_arm["control"], of_arm["metric"], strict=True):
        _assert_matched(control, method)
    pairs = [(f"unet-5-{x}", f"metric-{x}", f"control-{x}") for x in "abcde"]
    assert [pair.arms for pair in trials.content.pairs.values()] == pairs
    assert trials.base == plain.base
    assert {_size(arm) for arm in trials.arms.values()} == {_size(plain.base)}
    five, sixty, control, method, _ = plain.arms.values()
    assert five in of_arm["unet-5"]
    assert sixty in of_arm["unet-60"]
    assert (control, method) in list(zip(of_arm["control"], of_arm["metric"], strict=True))
    one, other = (study.content.data.phantom for study in (trials, plain))
    assert one is not None
    assert other is not None
    assert one.seed != other.seed
    assert not _training_seeds(trials) & _training_seeds(plain)


def test_five_twenty_and_sixty_contoured_are_of_one_cohort() -> None:
    few, twenty = (load_study(STUDIES / f"few-contours{part}.yaml") for part in ("", "-20"))
    recipes = [study.content.data.phantom for study in (few, twenty)]
    assert None not in recipes
    five, more = ({} if recipe is None else recipe.model_dump() for recipe in recipes)
    assert (five.pop("contoured"), more.pop("contoured")) == (5, 20)
    assert (five.pop("replicates"), more.pop("replicates")) == (10, 9)
    assert five == more
    plain, default, easy = twenty.arms.values()
    assert plain == few.arms["unet-5"]
    assert default.model_copy(update={"metric": plain.metric}) == plain
    own = default.metric
    assert (own.mode, own.taps, own.sampler) == ("online", (0,), "mixture")
    assert (own.triplets, own.weight) == ("semi_hard", 0.1)
    assert easy == few.arms["metric-5"]


def _size(arm: TrainConfig) -> tuple[object, ...]:
    """Return what decides how much an arm computes, and on what part of a scan."""
    names = ("epochs", "updates_per_epoch", "batch_size", "base_channels", "levels", "crop_mm", "box_mm")
    return tuple(getattr(arm.segment, name) for name in names)


def _training_seeds(study: Study) -> set[int]:
    runs = ((arm, fold, seed) for arm in study.arms for fold in study.folds for seed in study.seeds(arm))
    return {study.config(*run).seed for run in runs}
