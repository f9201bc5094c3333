"""What is said of a model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from metricunet.files.model import Ancestor, read_model, write_model
from metricunet.files.record import sha256
from tests.support.command import Command


def test_info(metricunet: Command, tiny_model: Path) -> None:
    ended = metricunet("info", tiny_model)
    assert "trained_on: synthetic" in ended.out
    assert "verdicts are review at best: the model was trained on synthetic scans only" in ended.out
    card = json.loads(metricunet("info", tiny_model, "--json").out)
    assert card["model_sha256"] == sha256([tiny_model])
    assert f"model_sha256: {card['model_sha256']}" in ended.out.splitlines()
    assert card["target"] == "prostate"
    assert card["intended_use"].startswith("Research")


def test_info_of_a_model_with_ancestors(metricunet: Command, tiny_model: Path, tmp_path: Path) -> None:
    card, weights = read_model(tiny_model)
    lineage = (
        Ancestor("base", "a" * 64, synthetic=True),
        Ancestor("theirs", "b" * 64, False, ("c" * 64, "d" * 64)),
    )
    path = tmp_path / "model.safetensors"
    write_model(path, replace(card, trained_on="patients", lineage=lineage, cases=("e" * 64,)), weights)
    text = metricunet("info", path).out
    assert f"  base: trained on synthetic scans only, weights {'a' * 64}\n" in text
    assert f"  theirs: trained on 2 known cases, weights {'b' * 64}\n" in text
    assert "cases: 1 known by the hashes of their files" in text
    assert "validated: no scores on patients in this card" in text
    assert "review at best: the model descends from one that was trained on synthetic scans only (base)" in text
    assert json.loads(metricunet("info", path, "--json").out)["lineage"][1]["cases"] == ["c" * 64, "d" * 64]
