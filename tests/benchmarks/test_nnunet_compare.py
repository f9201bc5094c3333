"""What the comparison with nnU-Net makes of its arms' rows."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.nnunet_compare import ARMS, NNUNET, Comparison, table
from metricunet.errors import InputError

DICE = {
    "nnunet_planned": 0.4,
    "nnunet_small_patch": 0.8,
    "nnunet_with_branch": 0.84,
    "ours_without": 0.796,
    "ours_with": 0.784,
}


def facts_of(arm: str) -> dict[str, object]:
    theirs = {"steps": 100, "unmirrored_seconds": 3.0} if arm in NNUNET else {"updates": {"segment": 200}}
    where = {"machine": "A processor, 2 cores", "pace_seconds": 1.25}
    return {"seconds": 3600.0, "prediction_seconds": 9.0, **where, **theirs}


def rows_of(arm: str) -> list[dict[str, str]]:
    """The cases scatter, but the differences of two arms do not; each misses one."""
    rows = [{"dice": str(DICE[arm] + more), "asd_mm": "1.5"} for more in (-0.04, 0.0, 0.04)]
    return [*rows, {"dice": "0", "asd_mm": ""}]


def test_the_table_of_all_arms() -> None:
    text = table({arm: facts_of(arm) for arm in ARMS}, {arm: rows_of(arm) for arm in ARMS})
    lines = text.splitlines()
    assert "| nnunet_small_patch | 100 | 60.0 | 0.600 |  | 1.50 | 1 | 9.0 (3.0 unmirrored) |" in lines
    assert "| ours_with | 200 | 60.0 | 0.588 | -0.012 (-0.016 to -0.004) | 1.50 | 1 | 9.0 |" in lines
    assert "ours_with 1.25 s (A processor, 2 cores)." in lines[-1]
    assert [line.partition(" is ")[0] for line in lines[-5:-2]] == [
        "- Is ours as good as nnU-Net? yes: ours_with - nnunet_small_patch",
        "- Does the branch help ours? no: ours_with - ours_without",
        "- Does the branch help nnU-Net? yes: nnunet_with_branch - nnunet_small_patch",
    ]


def test_some_arms_answer_what_they_can() -> None:
    done = ["ours_without", "ours_with"]
    text = table({arm: facts_of(arm) for arm in done}, {arm: rows_of(arm) for arm in done})
    assert "Does the branch help ours?" in text
    assert "nnU-Net?" not in text


def test_what_a_killed_call_left_running_is_ended(tmp_path: Path) -> None:
    one, other = (
        Comparison(tmp_path / "a", tmp_path, 60, (60, 20)),
        Comparison(tmp_path / "b", tmp_path, 60, (60, 20)),
    )
    waiting = (sys.executable, "-c", "import sys; print(flush=True); sys.stdin.read()")
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with (
        subprocess.Popen(waiting, env=one.environment, **pipes) as left,
        subprocess.Popen(waiting, env=other.environment, **pipes) as alive,
    ):
        for process in (left, alive):
            assert process.stdout is not None
            process.stdout.readline()
        one.end_leftovers()
        assert left.wait() == -signal.SIGKILL
        assert alive.poll() is None
        other.end_leftovers()


def test_a_folder_of_another_comparison_is_refused(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text('{"minutes": 60, "cases": [60, 20], "difficulty": "real", "stages": 6}')
    Comparison(tmp_path, tmp_path, 60, (60, 20))
    with pytest.raises(InputError, match=r"plan.json: is of .*'minutes': 60, .* and .*'minutes': 2, .* asked for"):
        Comparison(tmp_path, tmp_path, 2, (60, 20))
    with pytest.raises(InputError, match="choose another folder with --output"):
        Comparison(tmp_path, tmp_path, 60, (60, 20), "easy")


def test_arms_that_were_done_elsewhere_are_not_run_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept, arms = tmp_path / "kept", ["ours_without", "ours_with"]
    first = Comparison(tmp_path / "a", tmp_path, 60, (60, 20), kept=kept)
    for arm in arms:
        first.keep(arm, asked=first.asked, **facts_of(arm))
        rows = "".join(f"{arm},{k},{row['dice']},{row['asd_mm']}\n" for k, row in enumerate(rows_of(arm)))
        (tmp_path / "a" / "arms" / f"{arm}.csv").write_text("arm,case,dice,asd_mm\n" + rows, encoding="utf-8")
        first.give_kept(arm)
    capsys.readouterr()
    Comparison(tmp_path / "b", tmp_path, 60, (60, 20), kept=kept).run(arms)
    assert "Does the branch help ours? no" in capsys.readouterr().out
    for name in ("ours_with.json", "ours_with.csv"):
        assert (tmp_path / "b" / "arms" / name).read_bytes() == (tmp_path / "a" / "arms" / name).read_bytes()


def test_arms_of_another_comparison_are_refused(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "ours_with.csv").write_text("arm,case,dice,asd_mm\n", encoding="utf-8")
    (kept / "ours_with.json").write_text('{"asked": {"minutes": 2}}', encoding="utf-8")
    with pytest.raises(
        InputError, match=r"ours_with.json: is of .*2.* asked for; choose another folder with --kept"
    ):
        Comparison(tmp_path / "a", tmp_path, 60, (60, 20), kept=kept).run(["ours_with"])


class Timed(Comparison):
    """Trains nothing: an update of stage 1 takes 0.5 s, of stage 2 1 s, a validation 10 s."""

    finds_from = 0

    def _train(self, arm: str, folder: Path, updates: dict[str, int], *rest: Any, **more: Any) -> None:
        lines = ["stage,seconds", f"locate,{10 + 0.5 * updates['locate']}"]
        if updates["locate"] >= self.finds_from:
            lines.append(f"segment,{10 + updates['segment']}")
        folder.mkdir(parents=True)
        (folder / "log.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.mark.parametrize("finds_from", [0, 120, 160])
def test_updates_that_fit_are_found_though_so_short_a_training_locates_nothing(
    tmp_path: Path, finds_from: int
) -> None:
    """A stage 1 that finds nothing ends a training with status 2, before stage 2 could be timed."""
    timed = Timed(tmp_path, tmp_path, 60, (60, 20))
    timed.finds_from = finds_from
    # 600 s less ten validations, and 3000 s less ten.
    assert timed._fitting_updates("ours_with") == {"locate": 1000, "segment": 2900}
