"""When a study on replicates stops early, and whether it showed what its file wanted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from metricunet.study.design import Study, load_study
from metricunet.study.results import Row, read_results
from metricunet.study.rules import Finding, look, rounds, success_text
from metricunet.study.verdicts import conclude
from tests.support.tables import make_tables

FOLDS = tuple(range(4))


def tables(folder: Path, quality: dict[str, float], rules: list[dict[str, Any]], **changes: Any) -> Path:
    phantom = {"n_train": 9, "n_test": 6, "contoured": 2, "replicates": len(FOLDS)}
    more = {"data": {"phantom": phantom}, "futility": rules} | changes
    return make_tables(folder, quality, seeds=(0,), folds=FOLDS, cases=6, changes=more)


def benefit(rows: list[Row], a: str, b: str, folds: int, measure: str = "dice", sign: int = 1) -> float:
    """Return the mean difference in a plain loop."""
    total = count = 0.0
    for one in rows:
        for other in rows:
            run = (one.fold, one.seed, one.case) == (other.fold, other.seed, other.case)
            if run and (one.arm, other.arm) == (a, b) and one.fold in range(folds):
                total += sign * ((other.values[measure] or 0) - (one.values[measure] or 0))
                count += 1
    return total / count


def read(folder: Path) -> tuple[Study, list[Row]]:
    return load_study(folder / "study.yaml"), read_results(folder).cases["truth"]


def test_the_mean_of_the_first_replicates_is_held_against_the_rule(tmp_path: Path) -> None:
    arms = {"base": 0.0, "method": 0.5, "control": 0.0}
    plan, rows = read(tables(tmp_path, arms, [{"after": 2}]))
    (rule,) = plan.content.futility
    over = {arm: benefit(rows, arm, "method", 2) for arm in ("base", "control")}
    assert benefit(rows, "base", "method", 4) != pytest.approx(over["base"])
    assert min(over.values()) > 0
    found = look(plan, rule, rows)
    assert not found.stops
    assert found.text == (
        "Rule to stop by, from the study file: after 2 replicates, if the mean benefit in Dice is below 0.0000. "
        f"Found: method over base {over['base']:+.4f}, method over control {over['control']:+.4f}. "
        "The study went on."
    )
    # Just below and just above the smaller of the two.
    for arm, amount in over.items():
        for below, stops in ((amount - 1e-6, False), (amount + 1e-6, True)):
            own = rule.model_copy(update={"below": below, "baseline": arm, "method": "method"})
            found = look(plan, own, rows)
            assert found.stops is stops
            assert ("**The study stopped there**, for method over" in found.text) is stops
    # A rule that stops by less than the usual decimals show has as many as it takes.
    below = round(over["base"], 4) + 0.00002
    nearly = rule.model_copy(update={"below": below, "baseline": "base", "method": "method"})
    text = look(plan, nearly, rows).text
    assert f"is below {below:+.4f}" in text
    assert f"is below {below:+.4f}. Found" not in text
    either = rule.model_copy(update={"below": sum(over.values()) / 2})
    worse = min(over, key=lambda arm: over[arm])
    assert look(plan, either, rows).text.endswith(f"for method over {worse}.")


def test_smaller_distances_are_benefits(tmp_path: Path) -> None:
    measures = {"primary": ["asd_mm"], "exploratory": ["dice"]}
    arms = {"base": 0.0, "method": 1.0, "control": 0.0}
    plan, rows = read(tables(tmp_path, arms, [{"after": 3}], measures=measures))
    found = benefit(rows, "base", "method", 3, "asd_mm", sign=-1)
    assert found > 0
    assert f"method over base +{found:.3f} mm" in look(plan, plan.content.futility[0], rows).text


def test_runs_that_failed_are_left_out_and_with_none_the_study_goes_on(tmp_path: Path) -> None:
    plan, rows = read(tables(tmp_path, {"base": 0.0, "method": -2.0, "control": 0.0}, [{"after": 2}]))
    rule = plan.content.futility[0]
    assert look(plan, rule, rows).stops
    some = [row for row in rows if (row.arm, row.fold) != ("method", 0)]
    first = [row for row in some if row.fold == 1]
    expected = f"method over base {benefit(first, 'base', 'method', 2):+.4f}".replace("-", "−")
    assert expected in look(plan, rule, some).text
    nothing = look(plan, rule, [row for row in rows if row.arm != "method"])
    assert not nothing.stops
    assert "method over base not known, method over control not known. The study went on." in nothing.text


def test_a_study_is_parted_where_a_rule_looks(tmp_path: Path) -> None:
    arms = {"base": 0.0, "method": 0.5, "control": 0.0}
    rules = [{"after": 3}, {"after": 1, "baseline": "base", "method": "control", "below": 0.03}, {"after": 3}]
    plan, _ = read(tables(tmp_path, arms, rules))
    assert rounds(plan, plan.folds) == [(0,), (1, 2), (3,)]
    assert rounds(plan, plan.folds[:3]) == [(0,), (1, 2)]
    assert rounds(plan, plan.folds[:2]) == [(0,), (1,)]


@pytest.mark.parametrize(
    ("arms", "wanted", "verdict"),
    [
        ({"base": 0.0, "method": 2.0, "control": 0.2}, 0.02, "met"),
        ({"base": 0.0, "method": 2.0, "control": 0.2}, 0.08, "not met"),
        ({"base": -2.0, "method": 0.0, "control": 0.0}, 0.02, "not met"),
    ],
    ids=["both", "too little over the baseline", "no more than the control"],
)
def test_success_is_over_both(tmp_path: Path, arms: dict[str, float], wanted: float, verdict: str) -> None:
    folder = tables(tmp_path, arms, [], success={"over_baseline": wanted})
    concluded = conclude(folder)
    text = success_text(concluded)
    assert text is not None
    found = benefit(read(folder)[1], "base", "method", 4)
    assert f"Found in 4 replicates: {found:+.4f}, and " in text
    assert text.endswith(f": **{verdict}**.")
    control = concluded.comparisons.find("primary control", "dice", "prostate")
    assert control is not None
    assert control.comparison.interval is not None
    assert f"{control.comparison.interval.high:+.4f}".replace("-", "−") in text


def test_success_that_is_not_asked_for_or_not_known(tmp_path: Path) -> None:
    plain = conclude(tables(tmp_path / "plain", {"base": 0.0, "method": 1.0, "control": 0.0}, []))
    assert success_text(plain) is None
    quality = {"base": 0.0, "method": 1.0, "control": 0.0}
    folder = tables(tmp_path / "one", quality, [], success={"over_baseline": 0.1})
    path = folder / "cases.csv"
    rows = path.read_text().splitlines()
    path.write_text("\n".join(r for r in rows if r.startswith("arm,") or ",case_000," in r) + "\n")
    text = success_text(conclude(folder))
    assert text is not None
    assert text.endswith("**Not known**: there are too few values for it.")


def test_success_is_not_judged_before_the_end(tmp_path: Path) -> None:
    quality = {"base": 0.0, "method": 2.0, "control": 0.2, "other": 0.0}
    folder = tables(tmp_path, quality, [], success={"over_baseline": 0.02})
    path = folder / "cases.csv"
    rows = path.read_text().splitlines()

    def without(*runs: str) -> str:
        path.write_text("\n".join(row for row in rows if not row.startswith(runs)) + "\n")
        text = success_text(conclude(folder))
        assert text is not None
        return text

    of_pair = "base, method, control"
    later = [f"{arm},0,3," for arm in quality]
    assert without(*later).endswith(
        f"**Not judged yet**: 3 of 4 replicates are done, and 3 runs of {of_pair} are missing."
    )
    # Others of the replicate came to an end, and so did others of the arm.
    assert without("control,0,1,").endswith(
        f"**Not judged yet**: 3 of 4 replicates are done, and 1 run of {of_pair} is missing."
    )
    assert without("other,0,1,").endswith("**met**.")
    stopped = success_text(conclude(folder), [Finding(False, ""), Finding(True, "")])
    assert stopped is not None
    assert stopped.endswith("**Not met**: the study stopped before.")
