"""`metricunet bench`: speed and memory on this machine, each part against a stated baseline."""

from __future__ import annotations

from typing import Literal, get_args

Part = Literal["locate", "segment", "predict", "train", "metric", "io"]
PARTS: tuple[Part, ...] = get_args(Part)
ALL = "all"
