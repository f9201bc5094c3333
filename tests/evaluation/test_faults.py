"""One case costs no other its result, and an evaluation replaces no file but its own."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from metricunet.errors import InputError
from metricunet.evaluation import compare
from metricunet.evaluation.compare import OUTPUTS, evaluate
from metricunet.evaluation.summary import format_summary
from tests.support.command import Command

Gland = Callable[..., NDArray[Any]]
ERRORS = (InputError("odd"), TypeError("odd"), MemoryError(), OSError(5, "odd"), RecursionError("odd"))
VERDICT = {"verdict": "pass", "reasons": []}


def fill(folders: Any, gland: Gland) -> None:
    folders.name_labels(prostate=1)
    for k, case in enumerate("abc"):
        folders.add(case, gland(), gland((k, 0, 0)), hu=np.where(gland(), 45, -90), quality=VERDICT)


def lines_of(output: Path, but: str) -> list[str]:
    lines = (output / "cases.csv").read_text().splitlines()
    return [line for line in lines if not line.startswith(f"{but},")]


def fail_in(monkeypatch: pytest.MonkeyPatch, step: str, case: str, error: Exception) -> None:
    """Raise in one step of one case; which case it is shows in the pair that is read."""
    current = ""
    read, real = compare._read, getattr(compare, step)

    def noted(pair: Any, matching: Any) -> Any:
        nonlocal current
        current = pair.case
        return read(pair, matching)

    def failing(*words: Any) -> Any:
        if step == "read_quality":
            hit = f"{case}.quality.json" in str(words[0])
        elif step == "_read":
            hit = words[0].case == case
        else:
            hit = current == case
        if hit:
            raise error
        return real(*words)

    monkeypatch.setattr(compare, "_read", noted)
    monkeypatch.setattr(compare, step, failing)


MEASURING = ("read_quality", "_read", "read_map", "_check_values", "align", "crop_to_content", "measure")


@pytest.mark.parametrize("step", MEASURING)
def test_a_fault_in_a_case_costs_that_case_alone(
    folders: Any, gland: Gland, monkeypatch: pytest.MonkeyPatch, step: str, tmp_path: Path
) -> None:
    fill(folders, gland)
    evaluate(folders.predictions, folders.cohort, tmp_path / "whole")
    for number, error in enumerate(ERRORS):
        out = tmp_path / f"out{number}"
        with monkeypatch.context() as patch:
            fail_in(patch, step, "b", error)
            result = evaluate(folders.predictions, folders.cohort, out)
        assert [(fault.case, fault.scored, fault.error) for fault in result.faults] == [("b", False, error)]
        assert result.cases == ("a", "c")
        assert (out / "cases.csv").read_text().splitlines() == lines_of(tmp_path / "whole", but="b")
        text = format_summary(result)
        assert "b: failed, not scored: " in text
        assert "All numbers are over the 2 cases that could be scored." in text
        page = (out / "report.html").read_text()
        assert "b: failed, not scored" in page
        assert "over the 2 cases that could be scored, of 3" in page
        record = json.loads((out / "evaluate.json").read_text())
        assert [entry["case"] for entry in record["faults"]] == ["b"]
        assert result.summary["prostate"].n == 2


@pytest.mark.parametrize("step", ["read_scan", "draw_overlay"])
@pytest.mark.parametrize("error", ERRORS[:2])
def test_a_case_without_its_picture_keeps_its_numbers(
    folders: Any, gland: Gland, monkeypatch: pytest.MonkeyPatch, step: str, error: Exception, tmp_path: Path
) -> None:
    fill(folders, gland)
    evaluate(folders.predictions, folders.cohort, tmp_path / "whole")
    fail_in(monkeypatch, step, "b", error)
    result = evaluate(folders.predictions, folders.cohort, tmp_path / "out")
    assert [(fault.case, fault.scored) for fault in result.faults] == [("b", True)]
    for name in ("cases.csv", "summary.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert "b: scored, but its picture could not be drawn" in format_summary(result)


def test_where_every_case_fails_nothing_is_written(
    folders: Any, gland: Gland, metricunet: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(folders, gland)
    for case in "abc":
        (folders.predictions / f"{case}.nii.gz").write_bytes(b"torn")
    ended = metricunet("evaluate", folders.predictions, folders.cohort, "-o", folders.output)
    assert ended.status == 2
    assert "none of the 3 cases could be scored; a: " in ended.err
    assert not folders.output.exists()


def test_a_torn_mask_ends_with_status_1_and_debug_shows_where(
    folders: Any, gland: Gland, metricunet: Command
) -> None:
    fill(folders, gland)
    (folders.predictions / "b.nii.gz").write_bytes(b"torn")
    words = ("evaluate", folders.predictions, folders.cohort, "-o", folders.output)
    ended = metricunet(*words)
    assert (ended.status, ended.err) == (1, "")
    assert ended.out.count("b: failed, not scored: ") == 1
    assert "Traceback" in metricunet("--debug", *words).err
    ended = metricunet(*words, "--json")
    assert ended.status == 1
    assert json.loads(ended.out)["prostate"]["dice"]["n"] == 2
    assert ended.err.startswith("b: failed, not scored: ")


@pytest.mark.parametrize("place", ["predictions", "labels", "above", "below", "link"])
def test_the_output_may_lie_with_the_inputs_and_changes_none(
    folders: Any, gland: Gland, place: str, tmp_path: Path
) -> None:
    fill(folders, gland)
    (folders.predictions / "run.json").write_text('{"command": "predict"}')
    (tmp_path / "link").symlink_to(folders.predictions)
    out = {
        "predictions": folders.predictions,
        "labels": folders.cohort / "labelsTr",
        "above": tmp_path,
        "below": folders.predictions / "scores",
        "link": tmp_path / "link",
    }[place]
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    for _ in range(2):
        evaluate(folders.predictions, folders.cohort, out)
        assert {p: p.read_bytes() for p in before} == before
    added = {p.resolve() for p in tmp_path.rglob("*") if p.is_file()} - {p.resolve() for p in before}
    assert {p.name for p in added} == {*OUTPUTS, "evaluate.json"}


def test_an_output_that_is_an_input_file_is_refused(folders: Any, gland: Gland, metricunet: Command) -> None:
    fill(folders, gland)
    mask = folders.predictions / "a.nii.gz"
    before = mask.read_bytes()
    reference = folders.cohort / "labelsTr" / "a.nii.gz"
    ended = metricunet("evaluate", mask, reference, "-o", mask, "--overwrite")
    assert ended.status == 2
    assert "is a file, expected a folder" in ended.err
    assert mask.read_bytes() == before


@pytest.mark.parametrize("name", [*OUTPUTS, "evaluate.json"])
@pytest.mark.parametrize("kind", ["foreign", "corrected", "hard link", "link"])
def test_files_of_others_stay_without_overwrite_and_inputs_with_it(
    folders: Any, gland: Gland, metricunet: Command, name: str, kind: str, tmp_path: Path
) -> None:
    fill(folders, gland)
    words = ("evaluate", folders.predictions, folders.cohort, "-o", folders.output)
    folders.output.mkdir()
    reference = folders.cohort / "labelsTr" / "a.nii.gz"
    target = folders.output / name
    if kind == "foreign":
        target.write_text("theirs")
    elif kind == "corrected":
        assert metricunet(*words).status == 0
        target.write_text(target.read_text().replace("0", "7"))
    elif kind == "hard link":
        os.link(reference, target)
    else:
        target.symlink_to(reference)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    ended = metricunet(*words)
    assert ended.status == 2
    assert ended.err.startswith(f"error: {target}: ")
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
    ended = metricunet(*words, "--overwrite")
    assert ended.status == (0 if kind in ("foreign", "corrected") else 2)
    inputs = [p for p in before if p.parent != folders.output]
    assert {p: p.read_bytes() for p in inputs} == {p: before[p] for p in inputs}


def test_the_record_states_inputs_and_outputs(folders: Any, gland: Gland) -> None:
    fill(folders, gland)
    evaluate(folders.predictions, folders.cohort, folders.output)
    record = json.loads((folders.output / "evaluate.json").read_text())
    assert set(record["files"]) == set(OUTPUTS)
    assert set(record["inputs"]) == {
        str(p) for p in (*folders.predictions.iterdir(), *folders.cohort.rglob("*")) if p.is_file()
    }
    assert {"version", "machine", "timings_s", "arguments"} <= set(record)
