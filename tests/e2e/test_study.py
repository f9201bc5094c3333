"""The smoke study through the command line: killed half-way, gone on with, and against one that was not."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from tests.support.command import Command

SMOKE = Path(__file__).parents[2] / "studies" / "smoke.yaml"

KILLED = """
import os, signal, sys
from metricunet.cli import main
from metricunet.study import runs

carry_out = runs.carry_out

def two(spec, watch):
    if spec.arm == "control":
        os.kill(os.getpid(), signal.SIGKILL)
    return carry_out(spec, watch)

runs.carry_out = two
main()
"""


def test_the_smoke_study_killed_half_way_ends_with_the_tables_of_an_unbroken_one(
    metricunet: Command, tmp_path: Path
) -> None:
    output, whole = tmp_path / "out", tmp_path / "whole"
    path = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path)}
    command = [sys.executable, "-c", KILLED, "study", str(SMOKE), "-o", str(output), "--device", "cpu"]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert ended.stderr.count("finished, validation Dice") == 2
    assert ended.stdout == ""

    resumed = metricunet("study", SMOKE, "-o", output, "--device", "cpu")
    assert resumed.status == 0
    assert "2 of 4 runs were finished before" in resumed.err
    for arm in ("unet", "metricunet", "control", "taught"):
        assert f"| {arm} | 0 | 2 | 0 | 0." in resumed.out
    assert "finds the prostate in 2 of the 2 scored cases" in resumed.out
    assert f"tables: {output / 'tables.md'}" in resumed.out
    assert (output / "study.json").is_file()

    for shared in ("data", "stage-one"):  # what is made before any run, so that the runs alone are made anew
        shutil.copytree(output / shared, whole / shared)
    shutil.copy(output / "study.yaml", whole)
    assert metricunet("study", SMOKE, "-o", whole, "--device", "cpu").status == 0
    figures = sorted(path.name for path in (whole / "figures").iterdir())
    assert figures == [
        "arms.png", "differences.png", "examples.png", "feature-axes.png", "feature-maps.png", "features.png",
        "smoothness.png",
    ]  # fmt: skip
    names = ["cases.csv", "cases-reader.csv", "smoothness.csv", "features.csv", "comparisons.csv"]
    names += ["comparisons.json", "tables.md", "tables.csv", *(f"figures/{name}" for name in figures)]
    for name in names:
        assert (output / name).read_bytes() == (whole / name).read_bytes(), name
    assert "metricunet segments the prostate better than unet | **not decided** |" in resumed.out


def test_a_fault_is_one_line_and_status_2(metricunet: Command, tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text("name: x\n")
    ended = metricunet("study", tmp_path / "s.yaml", "-o", tmp_path / "out")
    assert (ended.status, ended.out) == (2, "")
    assert ended.err == f"error: {tmp_path / 's.yaml'}: data is missing\n"
    assert not (tmp_path / "out").exists()
    assert "study" in metricunet("--help").out
