"""Every block of code in the guide to metric learning runs as it stands, and its picture is there."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from metricunet.metric import SAMPLERS, VoxelMetricLoss
from metricunet.metric.tuples import TRIPLETS
from metricunet.training.config import load_config

GUIDE = Path(__file__).parents[2] / "docs" / "metric-learning.md"
TEXT = GUIDE.read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
NAMES = ("torch", "monai", "lightning", "options and samplers", "bank", "pytorch-metric-learning")


@pytest.mark.parametrize("block", BLOCKS, ids=NAMES)
def test_the_code_runs(block: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    space: dict[str, Any] = {"__name__": "guide"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # those of other libraries
        exec(compile(block, str(GUIDE), "exec"), space)
    if "out" in space:
        assert torch.isfinite(space["out"].loss)
        assert space["out"].loss > 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("block", BLOCKS[:3], ids=NAMES[:3])
def test_five_lines_are_five_lines(block: str) -> None:
    assert re.findall(r"# (\d)$", block, flags=re.MULTILINE) == ["1", "2", "3", "4", "5"]


def test_the_guide_names_every_option_and_its_picture_exists() -> None:
    for name in SAMPLERS:
        assert f"`{name}`" in TEXT
    for name in TRIPLETS:
        assert f"`triplets: {name}`" in TEXT
    for picture in re.findall(r"!\[.*?\]\((.*?)\)", TEXT):
        assert (GUIDE.parent / picture).is_file()


def test_the_guide_has_what_the_notebook_sends_the_reader_there_for() -> None:
    last = json.loads((GUIDE.parent / "loss.ipynb").read_text(encoding="utf-8"))["cells"][-1]
    found = re.fullmatch(r"For (.+): \[metric learning\]\(metric-learning\.md\)\.", "".join(last["source"]))
    assert found is not None
    for topic in re.split(r", | and the ", found[1]):
        assert topic.removesuffix(" networks") in TEXT


def test_every_setting_that_the_guide_names_is_one() -> None:
    pairs = re.findall(r"`([a-z_]+): ([a-z_0-9.]+)`", TEXT)
    teacher = re.findall(r"`(teacher\.[a-z_]+): ([a-z_0-9.]+)`", TEXT)
    assert len(pairs) > 8
    for name, value in pairs:
        load_config(settings=[f"metric.{name}={value}"])
    assert teacher
    for name, value in teacher:
        load_config(settings=[f"{name}={value}"])
    for setting in re.findall(r"--set ([\w.]+=\w+)", TEXT):
        load_config(settings=[setting])
    for mode in ("online", "control", "offline", "none"):
        assert re.search(rf"^\| `{mode}`", TEXT, re.MULTILINE)
        load_config(settings=[f"metric.mode={mode}"])


def test_the_guide_explains_every_statistic() -> None:
    labels = torch.zeros(1, 8, 8, dtype=torch.long)
    labels[:, 2:5, 2:5] = 1
    statistics = VoxelMetricLoss()(torch.randn(1, 4, 8, 8), labels).statistics
    table = TEXT[TEXT.index("| statistic |") :].split("\n\n")[0]
    assert set(re.findall(r"^\| `(\w+)`", table, re.MULTILINE)) == set(statistics)
