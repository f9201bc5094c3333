"""Scoring cuts: what was not contoured in a case has no measures there."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from metricunet.stages.locate import Localisation
from metricunet.study.beyond import smoothness_lines
from metricunet.study.score import segment_cut
from metricunet.study.stage_one import Cut
from metricunet.volume import Geometry, Volume

GRID = Geometry.from_parts((6, 10, 10), (3.0, 1.0, 1.0))


def test_what_was_not_contoured_is_not_measured() -> None:
    labels = np.zeros(GRID.shape, dtype=np.uint8)
    labels[2:4, 2:5, 2:5] = 1
    found = labels.copy()
    found[2:4, 6:9, 6:9] = 2
    predictor: Any = SimpleNamespace(segment=lambda image, located: SimpleNamespace(labels=Volume(found, GRID)))
    where = Localisation("found", 1.0, "", np.zeros(3), 1.0)
    outcomes, smoothness = [], []
    for unknown in ((), ("bladder",)):
        cut = Cut("a", Volume(labels, GRID), {"truth": Volume(labels, GRID)}, where, "", unknown)
        scored = segment_cut(predictor, cut, {"prostate": 1, "bladder": 2}, None)
        prostate, bladder = scored.rows("truth")
        assert prostate.measures.dice == 1
        outcomes.append(bladder.outcome)
        lines = {structure: values for _, structure, values in smoothness_lines(scored)}
        smoothness.append(any(value is not None for value in lines["bladder"].values()))
    assert outcomes == ["false_positive", "not_contoured"]
    assert smoothness[1] is False
