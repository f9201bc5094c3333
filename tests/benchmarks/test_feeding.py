"""Part `feeding`: one step fed in turn by a fixed batch, by ours and by MONAI, on a tiny cohort."""

from __future__ import annotations

import json
import multiprocessing
import sys
from collections.abc import Iterator

import pytest
import torch

from benchmarks import feeding as part
from benchmarks import monai_batches
from benchmarks.feeding import TrainingSteps, bench_feeding, overhead_s
from benchmarks.monai_batches import MonaiBatches
from metricunet.cohort.prepare import PreparedCase
from tests.benchmarks.conftest import tiny_config
from tests.support.cohorts import TINY_SETTINGS

CPU = torch.device("cpu")


@pytest.fixture
def steps(cases: list[PreparedCase]) -> Iterator[TrainingSteps]:
    made = TrainingSteps(tiny_config(), cases, CPU)
    yield made
    made.close()


def test_each_way_trains_and_counts_one_block(steps: TrainingSteps, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = 0
    forward = steps.module.forward

    def counted(*arguments: object) -> object:
        nonlocal taken
        taken += 1
        return forward(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(steps.module, "forward", counted)
    for way, wanted in (
        (steps.bare, part.BLOCK),
        (steps.ours, part.BLOCK),
        (steps.fed_by_monai, part.BLOCK + part.LEAD),
    ):
        before = [p.detach().clone() for p in steps.module.parameters()]
        taken = 0
        assert way() > 0
        assert taken == wanted
        assert steps.module.training
        assert any(not torch.equal(a, b) for a, b in zip(before, steps.module.parameters(), strict=True))
    assert steps.fed_by_monai() > 0  # the workers are still there for the next round


def test_monais_batches_are_like_ours(cases: list[PreparedCase]) -> None:
    config = tiny_config()
    made = MonaiBatches(cases, config, (3.0, 3.0), 6, CPU)
    try:
        batches = list(made)
        again = list(made)
    finally:
        made.close()
    assert len(batches) == len(again) == 6
    ours = TrainingSteps(config, cases, CPU).fixed
    for batch in batches:
        assert batch.images.shape == ours.images.shape
        assert batch.labels.shape == ours.labels.shape
        assert batch.images.dtype == ours.images.dtype == torch.float32
        assert batch.labels.dtype == ours.labels.dtype == torch.uint8
        assert -1 <= float(batch.images.min()) <= float(batch.images.max()) <= 1
    assert not torch.equal(batches[0].images, batches[1].images)
    # The bright ellipsoids lie where the labels say.
    inside = torch.cat([b.images[:, 2][b.labels == 1] for b in batches]).mean()
    outside = torch.cat([b.images[:, 2][b.labels == 0] for b in batches]).mean()
    assert inside > outside + 0.3
    assert not multiprocessing.active_children()


def test_each_of_monais_transforms_runs(cases: list[PreparedCase]) -> None:
    """With every share at one, in this process: in a worker a fault would come up by chance only."""
    always = {"elastic_mm": 4.0, "elastic_share": 1.0, "blur_share": 1.0, "low_resolution_share": 1.0}
    config = tiny_config()
    config = config.model_copy(update={"augment": config.augment.model_copy(update=always)})
    fine, labels = cases[0].fine, cases[0].fine_labels
    assert fine is not None
    assert labels is not None
    with monai_batches._plain_tensors():
        transforms = monai_batches._transforms(config, (3.0, 3.0))
        for _ in range(5):
            drawn = {
                "image": torch.from_numpy(fine.array)[None].float(),
                "label": torch.from_numpy(labels.array)[None],
            }
            for transform in transforms:
                (drawn,) = [transform(d) for d in (drawn if isinstance(drawn, list) else [drawn])]
            assert type(drawn["image"]) is torch.Tensor
            assert drawn["image"].shape == (5, 32, 32)
            assert drawn["label"].shape == (1, 32, 32)
            assert set(drawn["label"].unique().tolist()) <= {0, 1}
    names = [type(transform).__name__ for transform in transforms]
    assert {"Rand2DElasticd", "RandGaussianSmoothd", "RandSimulateLowResolutiond"} <= set(names)


@pytest.fixture
def small(cases: list[PreparedCase], small_peak: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(part, "phantom_cases", lambda folder, config: cases)
    monkeypatch.setattr(part, "BLOCK", 2)


def test_the_part(small: None) -> None:
    ticks: list[tuple[int, int]] = []
    found = bench_feeding(
        CPU, preset="small", repeats=2, settings=TINY_SETTINGS, progress=lambda *t: ticks.append(t)
    )
    assert ticks[-1] == (6, 6)
    content = json.loads(json.dumps(found.to_json()))
    assert (content["target_ratio"], content["block"], content["preset"]) == (1.1, 2, "small")
    assert content["bare"]["n"] == content["ours"]["n"] == content["monai"]["n"] == 2
    assert content["work"]["multiply_adds"] > 1e6
    for words in ("bare step", "fed by MONAI / bare", "overhead, ours of MONAI's", "CUDA: not run"):
        assert words in found.text()


def test_without_monai(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [m for m in sys.modules if m.split(".")[0] == "monai"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "monai", None)
    found = bench_feeding(CPU, preset="small", repeats=1, settings=TINY_SETTINGS)
    assert found.monai is found.overhead_share is None
    assert 'MONAI: not installed, so no baseline (pip install "monai>=1.5")' in found.text()


def test_overheads_are_taken_round_by_round() -> None:
    # 0.5, 1, 3: the median of the differences, not the difference of the medians.
    assert overhead_s([1.5, 6.0, 5.0], [1.0, 5.0, 2.0]) == 1.0
