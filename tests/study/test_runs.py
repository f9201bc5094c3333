"""Runs: the arms of a pair differ in their settings alone; finished ones are kept, others are not mixed in."""

from __future__ import annotations

import json
import pickle
import shutil
import traceback
import weakref
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from metricunet.cohort.layout import image_path, label_path, read_cohort
from metricunet.engine import Serial
from metricunet.errors import InputError, WorkerDied
from metricunet.files.model import read_model
from metricunet.files.nifti import write_nifti
from metricunet.inference.predictor import Predictor
from metricunet.stages.network_input import Precision
from metricunet.study import folds, runs
from metricunet.study.data import ScoredCase
from metricunet.study.folds import shared_stage_one
from metricunet.study.run import StudyResult, study
from metricunet.study.runs import RunSpec, TwoStages, carry_out, finished, hand_out
from metricunet.study.scoring import cut_predictor
from metricunet.training.objectives import SegmentModule
from metricunet.volume import Volume
from tests.study.conftest import SHORT, TINY_BASE, write_study
from tests.support.cohorts import edit_json, make_scan, make_tiny_cohort


def test_the_arms_of_a_pair_begin_alike_and_see_the_same_batches(
    study_cohort: Path, copied_study: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[dict[str, Tensor], list[tuple[Tensor, Tensor]]]] = []
    loss = SegmentModule.forward

    def watched(module: SegmentModule, batch: Any, update: int) -> Any:
        if update == 0:
            seen.append(({k: v.clone() for k, v in module.network.state_dict().items()}, []))
        seen[-1][1].append((batch.images.clone(), batch.labels.clone()))
        return loss(module, batch, update)

    monkeypatch.setattr(SegmentModule, "forward", watched)
    online = {"mode": "online", "embedding": 8}
    metrics = {
        "online-8": online,
        "two-taps": {**online, "taps": [0, 1], "sampler": "uniform"},
        "control": {"mode": "control"},
        "offline": {"mode": "offline", "patch_voxels": 16, "patch_tuples": 8},
    }
    arms: dict[str, Any] = {"bare": {"settings": SHORT}}
    arms |= {name: {"settings": {**SHORT, "metric": metric}, "seeds": [3]} for name, metric in metrics.items()}
    file, output = copied_study
    study(write_study(file, study_cohort, arms=arms, seeds=[3, 4]), output, device="cpu")
    (weights, batches), (other_weights, other_batches), *arms_of_seed_3 = seen
    assert len(arms_of_seed_3) == 4
    for own_weights, own_batches in arms_of_seed_3:
        assert all(torch.equal(own_weights[name], tensor) for name, tensor in weights.items())
        assert len(own_batches) == len(batches) == 3
        for one, two in zip(batches, own_batches, strict=True):
            assert torch.equal(one[0], two[0])
            assert torch.equal(one[1], two[1])
    assert not torch.equal(batches[0][0], batches[1][0])
    # Another seed is another training in both respects.
    assert any(not torch.equal(other_weights[name], tensor) for name, tensor in weights.items())
    assert not torch.equal(batches[0][0], other_batches[0][0])


def test_all_runs_of_a_fold_share_stage_one(whole_study: tuple[Path, Path, Any]) -> None:
    models = sorted(whole_study[1].glob("runs/*/fold-0/seed-*/model.safetensors"))
    assert len(models) == 4
    first, *others = (read_model(path)[1] for path in models)
    for other in others:
        assert all(torch.equal(other[k], v) for k, v in first.items() if k.startswith("locate."))
        assert any(not torch.equal(other[k], v) for k, v in first.items() if k.startswith("segment."))


def specs_of(file: Path, output: Path) -> list[RunSpec]:
    """The runs that a study hands out or finds finished."""
    return [run.spec for run in study(file, output, device="cpu").runs]


def test_an_engine_can_carry_out_runs_elsewhere_and_in_any_order(
    copied_study: tuple[Path, Path],
) -> None:
    handed: list[RunSpec] = []

    class Backwards(Serial):
        def each(self, tasks: Any, make: Any, *more: Any, **named: Any) -> Any:
            if isinstance(tasks[0], RunSpec):
                handed.extend(tasks)
            there = [pickle.loads(pickle.dumps(task)) for task in reversed(tasks)]
            for number, (_, result) in enumerate(
                super().each(there, pickle.loads(pickle.dumps(make)), *more, **named)
            ):
                yield tasks[-1 - number], pickle.loads(pickle.dumps(result))

    file, output = copied_study
    before = {name: (output / name).read_bytes() for name in ("cases.csv", "tables.md", "tables.csv")}
    shutil.rmtree(output / "runs")
    study(file, output, device="cpu", engine=Backwards())
    assert [(spec.arm, spec.seed) for spec in handed] == [("plain", 0), ("plain", 1), ("metric", 0), ("metric", 1)]
    assert {name: (output / name).read_bytes() for name in before} == before


def test_a_run_that_cost_its_worker_s_life_twice_is_not_in_the_tables(copied_study: tuple[Path, Path]) -> None:
    file, output = copied_study
    shutil.rmtree(output / "runs" / "metric" / "fold-0" / "seed-1")

    class Losing(Serial):
        def each(self, tasks: Any, make: Any, *more: Any, **named: Any) -> Any:
            if not isinstance(tasks[0], RunSpec):
                yield from super().each(tasks, make, *more, **named)
            else:
                yield from ((task, WorkerDied("its worker process died")) for task in tasks)

    result = study(file, output, device="cpu", engine=Losing())
    assert [(run.spec.arm, run.spec.seed, run.error) for run in result.failed] == [
        ("metric", 1, "its worker process died")
    ]
    assert "Failed, and not in the tables: metric, fold 0, seed 1: its worker process died" in result.text
    assert (output / "smoothness.csv").read_text().count("\nmetric,") == 4


def test_a_finished_run_is_one_with_all_its_rows_and_the_same_key(copied_study: tuple[Path, Path]) -> None:
    file, output = copied_study
    spec = specs_of(file, output)[0]
    done = finished(spec)
    assert done is not None
    assert done.error is None
    assert done.val_dice is not None
    assert done.seconds > 0
    (spec.folder / "cases.csv").unlink()
    assert finished(spec) is None


def test_a_finished_run_needs_its_tables_and_not_its_model(copied_study: tuple[Path, Path]) -> None:
    file, output = copied_study
    spec = specs_of(file, output)[0]
    with_model = finished(spec)
    assert with_model is not None
    spec.model.unlink()
    assert finished(spec) == with_model
    (spec.folder / "run.json").write_text("{}")
    assert finished(spec) == replace(with_model, val_dice=None, seconds=0.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": "9.9"}, "version was 9.9, is"),
        ({"data_sha256": "0"}, "other training cases"),
        ({"locate_sha256": "0"}, "other stage 1"),
        ({"scored_sha256": "0"}, "other scored cases"),
        ({"config": None}, "damaged, or of another version"),
    ],
)
def test_results_of_another_study_are_not_mixed_in(
    copied_study: tuple[Path, Path], change: dict[str, Any], message: str
) -> None:
    file, output = copied_study
    before = (output / "tables.md").read_bytes()
    edit_json(output / "runs" / "metric" / "fold-0" / "seed-1" / "key.json", **change)
    with pytest.raises(InputError, match=message) as error:
        study(file, output, device="cpu")
    assert "seed-1" in str(error.value)
    assert "\n" not in str(error.value)
    assert (output / "tables.md").read_bytes() == before


@pytest.mark.usefixtures("no_pictures")
def test_a_change_of_what_arms_learn_from_and_stage_1_does_not_is_noticed(tmp_path: Path) -> None:
    """Scans without contours, and labels that one arm alone reads; here, and where only what is kept is left."""
    cohort = make_tiny_cohort(tmp_path / "cohort", 6)
    cases = [f"case_{k:02d}" for k in range(6)]
    split = {"train": cases[:3], "val": cases[3:4], "unlabeled": cases[4:]}
    (cohort / "splits.json").write_text(json.dumps([split]))
    arms = {
        "plain": {"settings": SHORT},
        "taught": {"settings": {**SHORT, "teacher": {"share": 0.5}}},
        "revealed": {"settings": {**SHORT, "teacher": {"reveal": True}}},
    }
    file = write_study(tmp_path / "study.yaml", cohort, arms=arms, seeds=[0])
    output, kept = tmp_path / "out", tmp_path / "kept"
    assert not study(file, output, device="cpu", keep=kept).failed
    label = label_path(cohort, "case_04")
    drawn = label.read_bytes()
    write_nifti(label, make_scan(9)[1])
    for folder in (output, tmp_path / "elsewhere"):
        with pytest.raises(InputError, match=r"revealed.fold-0.seed-0: .*\(other cases whose labels this arm"):
            study(file, folder, device="cpu", keep=kept)
    label.write_bytes(drawn)
    assert not study(file, output, device="cpu", keep=kept).failed
    write_nifti(image_path(cohort, "case_04"), make_scan(9)[0])
    for folder in (output, tmp_path / "elsewhere"):
        with pytest.raises(InputError, match=r"taught.fold-0.seed-0: .*\(other scans without contours\)"):
            study(file, folder, device="cpu", keep=kept)


def test_changed_settings_are_named_before_any_work(copied_study: tuple[Path, Path], study_cohort: Path) -> None:
    file, output = copied_study
    write_study(file, study_cohort, arms={"plain": {}, "metric": {"settings": {"metric": {"weight": 0.7}}}})
    with pytest.raises(InputError, match=r"metric.fold-0.seed-0.*metric\.mode was online, is none"):
        study(file, output, device="cpu")
    changed = {**TINY_BASE, "segment": {**TINY_BASE["segment"], "epochs": 5}}
    write_study(file, study_cohort, base={"preset": "small", "settings": changed})
    with pytest.raises(InputError, match=r"plain.fold-0.seed-0.*segment\.epochs was 2, is 5"):
        study(file, output, device="cpu")


def test_a_run_that_fails_is_named_and_does_not_stop_the_others(
    copied_study: tuple[Path, Path], study_cohort: Path
) -> None:
    file, output = copied_study
    wild = {"settings": {"segment": {**SHORT["segment"], "learning_rate": 1e30}}, "seeds": [0]}
    said: list[str] = []
    write_study(file, study_cohort, arms={"wild": wild, "plain": {"seeds": [0]}})
    result = study(file, output, device="cpu", say=said.append)
    assert [run.spec.arm for run in result.failed] == ["wild"]
    assert "Failed, and not in the tables: wild, fold 0, seed 0: stage segment diverged" in result.text
    assert "| plain | 0 |" in result.text
    assert "| wild |" not in result.text
    assert any(line.startswith("wild, fold 0, seed 0: failed: stage segment diverged") for line in said)
    write_study(file, study_cohort, arms={"wild": wild})
    with pytest.raises(
        InputError, match="all 1 runs failed; the first, wild, fold 0, seed 0: stage segment diverged"
    ):
        study(file, output, device="cpu")


def test_handing_out_here_is_one_after_the_other(
    copied_study: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []

    def pretend(spec: Any, watch: Any = None) -> Any:
        order.append(f"did {spec.seed}")
        if watch is not None:
            watch("segment", 1, 2, None)
        return spec

    monkeypatch.setattr(runs, "carry_out", pretend)
    told: list[Any] = []
    file, output = copied_study
    a, b, *_ = specs_of(file, output)
    for done in hand_out([a, b], lambda *facts: told.append(facts)):
        order.append(f"got {cast(Any, done).seed}")
    assert order == ["did 0", "got 0", "did 1", "got 1"]
    assert told == [(a, "segment", 1, 2, None), (b, "segment", 1, 2, None)]


def test_finished_runs_get_what_they_lack_without_training(
    copied_study: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a version left them that knew neither file."""
    file, output = copied_study
    names = ["smoothness.csv", "features.csv"]
    paths = [p for name in names for p in [output / name, *output.glob(f"runs/*/*/*/{name}")]]
    before = {p: p.read_bytes() for p in paths}
    shutil.rmtree(output / "stage-one" / "fold-0" / "fitting")
    for path in paths:
        path.unlink()
    kept = {p: p.stat().st_mtime_ns for p in output.rglob("runs/*/*/*/*") if p.is_file()}
    monkeypatch.setattr("metricunet.study.runs._train_and_score", lambda *_: pytest.fail("trained again"))
    study(file, output, device="cpu")
    assert {p: p.read_bytes() for p in paths} == before
    assert {p: p.stat().st_mtime_ns for p in kept} == kept


def test_a_run_lacks_nothing_but_what_is_missing(copied_study: tuple[Path, Path]) -> None:
    file, output = copied_study
    spec = specs_of(file, output)[0]
    (spec.folder / "features.csv").unlink()
    assert finished(spec) is None
    smoothness = (spec.folder / "smoothness.csv").stat().st_mtime_ns
    assert carry_out(spec).error is None
    assert finished(spec) is not None
    assert (spec.folder / "smoothness.csv").stat().st_mtime_ns == smoothness


def test_a_run_reads_its_model_once_and_the_runs_of_a_fold_their_stage_1(
    copied_study: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    file, output = copied_study
    specs = specs_of(file, output)
    read: list[Path] = []

    def counted(model: Path, device: str, precision: Precision) -> Predictor:
        read.append(model)
        return cut_predictor(model, device, precision)

    monkeypatch.setattr(runs, "cut_predictor", counted)
    shared_stage_one.cache_clear()
    for spec in specs[:2]:
        before = {table.name: (spec.folder / table.name).read_bytes() for table in spec.tables}
        shutil.rmtree(spec.folder)
        assert carry_out(spec).error is None
        assert {name: (spec.folder / name).read_bytes() for name in before} == before
    assert read == [spec.folder / "model.safetensors" for spec in specs[:2]]
    assert (shared_stage_one.cache_info().misses, shared_stage_one.cache_info().hits) == (1, 1)


def test_a_study_computes_in_the_precision_of_its_training_everywhere(
    whole_study: tuple[Path, Path, StudyResult], study_cohort: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stage 1 over whole scans and the models over the cuts; `auto` is another one elsewhere."""
    file, output, _ = whole_study
    spec = specs_of(file, output)[0]
    config = spec.config.model_copy(update={"precision": "bf16"})
    assert TwoStages(replace(spec, config=config)).predictor.precision == "bf16"
    case = read_cohort(study_cohort).test[0]
    assert case.label is not None
    told: list[str] = []

    def located(network: Any, spec: Any, image: Volume, precision: str = "auto") -> list[Volume]:
        told.append(precision)
        return [image.with_array(np.zeros(image.geometry.shape, dtype=np.float32))] * 2

    monkeypatch.setattr(folds, "coarse_probabilities", located)
    run = SimpleNamespace(config=config, info=read_cohort(study_cohort).info, classes=2, target=1)
    scored = ScoredCase(case.name, case.image, {"truth": case.label})
    folds.make_cut(scored, run, SimpleNamespace(network=None), (50, 50, 50))  # type: ignore[arg-type]
    assert told == ["bf16"]


@pytest.mark.usefixtures("no_pictures")
def test_runs_of_a_fold_that_were_computed_in_several_ways_are_told_of(copied_study: tuple[Path, Path]) -> None:
    """As on a second machine whose `auto` is another precision: before it goes on, and in the tables."""
    file, output = copied_study
    assert "were not computed alike" not in study(file, output, device="cpu").text
    of_method = output / "runs/metric/fold-0"
    computed = json.loads((of_method / "seed-0/run.json").read_text())["computed"]
    assert computed in ("bf16 on cpu", "fp32 on cpu")
    edit_json(of_method / "seed-1/run.json", computed="beads on abacus")
    (of_method / "seed-0/cases.csv").unlink()
    said: list[str] = []
    text = study(file, output, device="cpu", say=said.append).text
    told = "metric, fold 0, seed 1: was computed in beads on abacus, and what is left of the fold would be in "
    assert len([line for line in said if line.startswith(f"{told}{computed} here")]) == 1
    rest = "plain (seed 0), plain (seed 1), metric (seed 0)"
    assert (
        "- The runs of fold 0 differ in more than their settings, for they were not computed alike: "
        f"in {computed} {rest}; in beads on abacus metric (seed 1).\n"
    ) in text


def test_a_failed_run_holds_nothing_but_its_lines(
    copied_study: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    file, output = copied_study
    spec = specs_of(file, output)[0]
    shutil.rmtree(spec.folder)
    held: list[weakref.ref[runs.Pipeline]] = []

    def failing(pipeline: runs.Pipeline) -> None:
        held.append(weakref.ref(pipeline))
        raise ZeroDivisionError("odd")

    monkeypatch.setattr(runs.TwoStages, "train", failing)
    done = carry_out(spec)
    assert done.cause is not None
    assert held[0]() is None
    assert 'ZeroDivisionError("odd")' in "".join(traceback.format_exception(done.cause))
