"""The study file on the page of trainings is one, and means what the page says of it."""

from __future__ import annotations

import re
from pathlib import Path

from metricunet.study.design import load_study

PAGE = Path(__file__).parents[2] / "docs" / "training.md"


def test_the_study_file_is_one(tmp_path: Path) -> None:
    text = PAGE.read_text(encoding="utf-8")
    (block,) = re.findall(r"```yaml\n(.*?)```", text, flags=re.DOTALL)
    file = tmp_path / "study.yaml"
    file.write_text(block, encoding="utf-8")
    study = load_study(file)
    assert study.cohort == tmp_path / "cohort"
    assert {name: config.metric.mode for name, config in study.arms.items()} == {
        "unet": "none",
        "metricunet": "online",
        "control": "control",
    }
    trainings = sum(len(study.seeds(name)) for name in study.arms) * len(study.folds)
    assert f"That is {trainings} trainings" in text
