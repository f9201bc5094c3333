"""Training from a model: kept and new structures, a frozen encoder, cases that it has seen, resuming, lineage."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from metricunet.errors import InputError
from metricunet.files.model import Ancestor, halved, joined, of_stage, read_card, read_model, write_model
from metricunet.files.record import sha256
from metricunet.inference.predictor import load_model
from metricunet.networks import build_network
from metricunet.training.config import TrainConfig, load_config
from metricunet.training.fit import open_run, train
from metricunet.training.log import StageProgress
from metricunet.training.run import Run
from metricunet.training.start import (
    Inherited,
    check_networks,
    first_weights,
    initial_model,
    matching,
    read_parent,
    with_kept_classes,
)
from tests.support.cohorts import edit_json
from tests.support.command import Command

#: Over the tiny model's own networks and grids.
SHORT = (
    "locate.epochs=1", "locate.updates_per_epoch=4", "segment.epochs=1", "segment.updates_per_epoch=3",
    "locate.patch_voxels=[16, 16, 16]", "segment.box_mm=[80, 96, 96]", "segment.batch_size=2", "metric.voxels=64",
)  # fmt: skip
NETWORKS: dict[str, dict[str, Any]] = {
    "unet": {"architecture": "unet", "in_channels": 3, "base_channels": 4, "levels": 2},
    "3d": {"architecture": "unet", "in_channels": 1, "base_channels": 4, "levels": 2, "spatial_dims": 3},
    "vnet": {"architecture": "vnet", "in_channels": 1, "base_channels": 4, "levels": 2},
    "fcn": {"architecture": "fcn", "in_channels": 3, "base_channels": 2, "levels": 3},
}


def config(parent: Path, *settings: str, freeze: str | None = None) -> TrainConfig:
    return load_config(settings=[*SHORT, *settings], freeze=freeze, parent=read_card(parent))


def build(network: dict[str, Any], classes: int, seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    return build_network(**network, classes=classes)


def model_of(tiny_model: Path, path: Path, structures: Mapping[str, str]) -> Path:
    """Write a model of the tiny one's networks, untrained, for these structures and their standard names."""
    card = read_card(tiny_model)
    classes = len(structures) + 1
    locate, segment = (
        replace(stage, network={**stage.network, "classes": classes}) for stage in (card.locate, card.segment)
    )
    weights = []
    for stage in (locate, segment):
        network = build_network(**stage.network).state_dict()
        weights.append(network | {"classify.bias": torch.arange(1.0, classes + 1)})
    labels = {name: k for k, name in enumerate(structures, start=1)}
    target = next(name for name in structures if name.lower() == "prostate")
    card = replace(
        card, locate=locate, segment=segment, labels=labels, tg263=dict(structures), target=target, cases=()
    )
    write_model(path, card, joined(*weights))
    return path


@pytest.fixture
def cohort(tiny_cohort: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_cohort, tmp_path / "cohort"))


def open_tiny(cohort: Path, output: Path, init: Path, *settings: str, **others: Any) -> Run:
    options: dict[str, Any] = {"fold": "all", "resume": False, "device": "cpu"} | others
    return open_run(cohort, output, config(init, *settings), options.pop("fold"), init=init, **options)


class TestNames:
    @pytest.mark.parametrize(
        ("ours", "theirs", "kept"),
        [
            ({"prostate": "Prostate"}, {"prostate": "Prostate"}, {"prostate": "prostate"}),
            ({"urinary_bladder": "Bladder"}, {"bladder": "Bladder"}, {"urinary_bladder": "bladder"}),
            ({"Prostate": "Prostate"}, {"prostate": "p"}, {"Prostate": "prostate"}),
            ({"Femur_L": "Femur_L"}, {"femur_left": "Femur_L"}, {"Femur_L": "femur_left"}),
            ({"ctv": "Prostate"}, {"prostate": "Prostate", "gtv": "Prostate"}, {"ctv": "prostate"}),
            ({"bowel": "Bag_Bowel"}, {"prostate": "Prostate"}, {}),
            ({}, {"prostate": "Prostate"}, {}),
        ],
    )
    def test_a_structure_is_found_by_its_spelling_or_its_standard_name(
        self, ours: dict[str, str], theirs: dict[str, str], kept: dict[str, str]
    ) -> None:
        assert matching(ours, theirs) == kept

    def test_the_spelling_goes_first_and_no_structure_is_taken_twice(self) -> None:
        ours = {"urinary_bladder": "Bladder", "bladder": "Bladder"}
        assert matching(ours, {"bladder": "Bladder"}) == {"bladder": "bladder"}
        both = {"bladder": "Bladder", "other": "Bladder"}
        assert matching(ours, both) == {"urinary_bladder": "other", "bladder": "bladder"}


class TestRows:
    @pytest.mark.parametrize("name", NETWORKS)
    def test_classes_in_another_order_give_the_numbers_of_before_in_another_order(self, name: str) -> None:
        network = NETWORKS[name]
        parent = build(network, 4, 1)
        for weights in parent.parameters():
            torch.nn.init.normal_(weights, std=0.2)
        kept = {0: 0, 1: 3, 2: 1, 3: 2}
        child = build(network, 4, 2)
        arguments = {**network, "classes": 4}
        child.load_state_dict(with_kept_classes(parent.state_dict(), arguments, 4, kept, seed=2))
        images = torch.randn(
            1, network["in_channels"], *([8, 16, 16] if network["in_channels"] == 1 else [16, 16])
        )
        with torch.no_grad():
            found, before = child.eval()(images), parent.eval()(images)
        torch.testing.assert_close(found, before[:, list(kept.values())])

    @pytest.mark.parametrize("name", NETWORKS)
    @pytest.mark.parametrize(("classes", "kept"), [(2, {0: 0, 1: 2}), (5, {0: 0, 3: 1}), (4, {0: 0})])
    def test_kept_rows_are_the_very_numbers_and_others_those_of_a_training_from_nothing(
        self, name: str, classes: int, kept: dict[int, int]
    ) -> None:
        network = NETWORKS[name]
        parent, fresh = build(network, 3, 1).state_dict(), build(network, classes, 7).state_dict()
        parent = {key: torch.randn_like(t) if t.is_floating_point() else t for key, t in parent.items()}
        found = with_kept_classes(parent, {**network, "classes": classes}, 3, kept, seed=7)
        assert found.keys() == fresh.keys()
        anew = [k for k in range(classes) if k not in kept]
        last = [key for key in found if key.startswith(("classify", "score"))]
        for key in last:
            for own, other in kept.items():
                assert torch.equal(found[key][own], parent[key][other])
            assert torch.equal(found[key][anew], fresh[key][anew])
        for key in found.keys() - set(last):
            if name == "fcn" and key.startswith("up."):
                for own, other in kept.items():
                    assert torch.equal(found[key][own, own], parent[key][other, other])
                    assert torch.equal(found[key][own, anew], fresh[key][own, anew])
            else:
                assert torch.equal(found[key], parent[key]), key

    @pytest.mark.parametrize("change", ["missing", "longer"])
    def test_weights_unlike_their_card_are_refused(self, tiny_model: Path, cohort: Path, change: str) -> None:
        card, weights = read_model(tiny_model)
        longer = torch.cat([weights["segment.classify.bias"]] * 2)
        weights.pop("segment.classify.bias")
        path = tiny_model.with_name(f"{change}.safetensors")
        write_model(path, card, weights if change == "missing" else weights | {"segment.classify.bias": longer})
        with pytest.raises(
            InputError, match=rf"{change}\.safetensors: stage segment: the weights classify\.bias are"
        ):
            open_tiny(cohort, cohort / "run", path)
        assert not (cohort / "run").exists()


def test_each_stage_keeps_the_structures_that_both_have(tiny_model: Path, cohort: Path, tmp_path: Path) -> None:
    theirs = {"bladder": "Bladder", "Prostate": "Prostate", "rectum": "Rectum"}
    parent = model_of(tiny_model, tmp_path / "parent.safetensors", theirs)
    labels = {"background": 0, "prostate": 1, "penile_bulb": 2, "urinary_bladder": 3}
    edit_json(cohort / "dataset.json", labels=labels)
    run = open_tiny(cohort, tmp_path / "run", parent)
    assert run.start is not None
    assert run.inheritance is not None
    inherited = Inherited({"prostate": "Prostate", "urinary_bladder": "bladder"}, ("penile_bulb",))
    assert run.inheritance.stages == {"locate": inherited, "segment": inherited}
    assert run.inheritance.text() == (
        "begins from parent (locate and segment: prostate, urinary_bladder kept, penile_bulb anew)"
    )
    weights = read_model(parent)[1]
    for stage in ("locate", "segment"):
        found, theirs = of_stage(run.start, stage), of_stage(weights, stage)
        rows = torch.tensor([0, 1, 3]), torch.tensor([0, 2, 1])
        for key, tensor in found.items():
            if key.startswith("classify"):
                assert torch.equal(tensor[rows[0]], theirs[key][rows[1]])
            else:
                assert torch.equal(tensor, theirs[key])


def test_a_stage_that_the_model_lacks_begins_anew(tiny_model: Path) -> None:
    parent = read_parent(tiny_model)
    specs = {"locate": parent.card.locate, "segment": parent.card.segment, "organs": parent.card.segment}
    check_networks(parent, specs)
    structures = {"locate": {"prostate": "Prostate"}, "segment": {"prostate": "Prostate"}, "organs": {"x": "x"}}
    weights, inheritance = first_weights(parent, specs, structures, seed=0)
    assert inheritance.stages["organs"] is None
    assert {name.split(".")[0] for name in weights} == {"locate", "segment"}
    assert inheritance.text() == (
        "begins from model (locate and segment: prostate kept; organs: the whole network begins anew)"
    )


@pytest.mark.parametrize(("theirs", "ours"), [("organs", "segment"), ("segment", "organs")])
def test_a_structure_that_the_model_has_in_its_other_network_is_named(
    tiny_model: Path, theirs: str, ours: str
) -> None:
    """Which network learns a structure the settings decide, and whoever begins from a model may not know."""
    parent = read_parent(tiny_model)
    named = {"prostate": "Prostate", "bladder": "Bladder"}
    wide = {
        stage: replace(spec, network={**spec.network, "classes": 3})
        for stage, spec in (("locate", parent.card.locate), ("segment", parent.card.segment))
    }
    if theirs == "organs":
        card = replace(parent.card, organs=parent.card.segment, organs_structures=("bladder",))
        weights, specs = parent.weights, wide
    else:
        card = replace(parent.card, locate=wide["locate"], segment=wide["segment"])
        weights = joined(*(build_network(**wide[stage].network).state_dict() for stage in ("locate", "segment")))
        specs = {"locate": parent.card.locate, "segment": parent.card.segment, "organs": parent.card.segment}
    card = replace(card, labels={"prostate": 1, "bladder": 2}, tg263=named)
    parent = replace(parent, card=card, weights=weights)
    staged = {"prostate": "Prostate", **({"urinary_bladder": "Bladder"} if ours == "segment" else {})}
    structures: dict[str, dict[str, str]] = {"locate": staged, "segment": staged}
    if ours == "organs":
        structures["organs"] = {"urinary_bladder": "Bladder"}
    _, inheritance = first_weights(parent, specs, structures, seed=0)
    assert inheritance.elsewhere == inheritance.facts()["elsewhere"] == {"urinary_bladder": theirs}
    assert inheritance.text().endswith(
        "; the model has urinary_bladder in its organs' network: what organs.structures names of these is kept"
        if theirs == "organs"
        else "; the model has urinary_bladder in its stage 2: what organs.structures leaves out of these is kept"
    )


def encoder(weights: dict[str, Tensor]) -> dict[str, bytes]:
    return {name: t.numpy().tobytes() for name, t in weights.items() if name.split(".")[1] == "encoder"}


def test_a_frozen_encoder_and_what_a_run_says_of_its_start(tiny_model: Path, cohort: Path, tmp_path: Path) -> None:
    """A structure more than the model has; the same without freezing, to see that anything would have moved."""
    edit_json(cohort / "dataset.json", labels={"background": 0, "penile_bulb": 2, "prostate": 1})
    said: list[str] = []
    frozen, free = (
        train(
            cohort, tmp_path / name, config=config(tiny_model, freeze=freeze), init=tiny_model, device="cpu",
            say=said.append,
        )
        for name, freeze in (("frozen", "encoder"), ("free", None))
    )  # fmt: skip
    before, kept, moved = (read_model(path)[1] for path in (tiny_model, frozen, free))
    assert {name.split(".")[0] for name in encoder(before)} == {"locate", "segment"}
    assert any("running_mean" in name for name in encoder(before))
    assert encoder(kept) == encoder(before)
    assert all(encoder(moved)[name] != content for name, content in encoder(before).items())
    rest = [n for n in kept if n not in encoder(kept) and "classify" not in n and kept[n].is_floating_point()]
    assert not any(torch.equal(kept[name], before[name]) for name in rest)

    assert said == ["begins from model (locate and segment: prostate kept, penile_bulb anew)"] * 2
    record = json.loads((frozen.parent / "run.json").read_text())
    stage = {"kept": {"prostate": "prostate"}, "anew": ["penile_bulb"]}
    parent = read_parent(tiny_model)
    assert record["start"] == {
        "name": "model", "weights_sha256": parent.weights_sha256, "stages": {"locate": stage, "segment": stage},
    }  # fmt: skip
    assert record["config"]["freeze"] == "encoder"
    assert load_config("default", frozen.parent / "config.yaml").freeze == "encoder"
    card = read_card(frozen)
    own = parent.card
    assert own.validation_cases
    assert card.lineage == (Ancestor("model", parent.weights_sha256, True, own.cases, own.validation_cases),)
    assert list(card.labels) == ["penile_bulb", "prostate"]
    assert read_parent(frozen).lineage[0] == card.lineage[0]


def test_a_card_lists_the_images_that_were_trained_and_validated_on(tiny_cohort: Path, tiny_model: Path) -> None:
    split = json.loads((tiny_model.parent / "run.json").read_text())["split"]
    card = read_card(tiny_model)
    for names, stated in ((split["train"], card.cases), (split["val"], card.validation_cases)):
        images = [tiny_cohort / "imagesTr" / f"{name}_0000.nii.gz" for name in names]
        assert stated == tuple(sorted(sha256([path]) for path in images))
    assert read_card(tiny_model).lineage == ()


@pytest.mark.parametrize("generation", ["parent", "grandparent"])
def test_validating_on_what_an_ancestor_was_trained_on_is_refused(
    tiny_model: Path, cohort: Path, tmp_path: Path, generation: str
) -> None:
    card, weights = read_model(tiny_model)
    init = tiny_model
    if generation == "grandparent":
        init = tmp_path / "tuned.safetensors"
        ancestor = Ancestor("first", "a" * 64, False, card.cases)
        write_model(init, replace(card, cases=(), lineage=(ancestor,)), weights)
    for path in (cohort / "imagesTr").iterdir():  # a scan is known by its content
        path.rename(path.with_name(f"man_{path.name}"))
    for path in (cohort / "labelsTr").iterdir():
        path.rename(path.with_name(f"man_{path.name}"))
    trained = json.loads((tiny_model.parent / "run.json").read_text())["split"]["train"]
    left_out = [f"man_case_{k:02d}" for k in range(6) if f"case_{k:02d}" not in trained]
    seen = [f"man_{name}" for name in trained]
    splits = [{"train": seen, "val": left_out}, {"train": [*left_out, *seen[1:]], "val": seen[:1]}]
    (cohort / "splits.json").write_text(json.dumps(splits))
    name = "model" if generation == "parent" else "first"
    with pytest.raises(
        InputError, match=rf"case {seen[0]} was a training case of the model {name} \(1 of 1 .*fold.*fold='all'"
    ):
        open_tiny(cohort, tmp_path / "run", init, fold=1)
    assert not (tmp_path / "run").exists()
    open_tiny(cohort, tmp_path / "run", init, fold=0)
    open_tiny(cohort, tmp_path / "run_all", init, fold="all")


def test_a_stopped_training_goes_on_from_the_model_it_began_with(
    tiny_model: Path, cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    init = Path(shutil.copy(tiny_model, tmp_path / "first.safetensors"))
    settings = config(init, "locate.epochs=2", freeze="encoder")
    unbroken = train(cohort, tmp_path / "unbroken", config=settings, init=init, device="cpu")

    class StoppedError(Exception):
        pass

    def stop(progress: StageProgress, done: int, val_dice: float | None = None) -> None:
        if done == 6:
            raise StoppedError

    with monkeypatch.context() as patch:
        patch.setattr(StageProgress, "show", stop)
        with pytest.raises(StoppedError):
            train(cohort, tmp_path / "run", config=settings, init=init, device="cpu")
    again = {"config": settings, "device": "cpu", "resume": True}
    card, weights = read_model(init)
    other = tmp_path / "other.safetensors"
    write_model(other, card, weights | {"segment.classify.bias": weights["segment.classify.bias"] + 1})
    with pytest.raises(InputError, match=r"init was [0-9a-f]{64}, is [0-9a-f]{64}"):
        train(cohort, tmp_path / "run", init=other, **again)
    with pytest.raises(InputError, match=r"freeze is encoder.*without a model"):
        train(cohort, tmp_path / "run", **again)
    with pytest.raises(InputError, match=r"cannot resume with other settings \(init was [0-9a-f]{64}, is None"):
        train(cohort, tmp_path / "run", **again | {"config": config(init)})
    moved = Path(shutil.move(init, tmp_path / "moved.safetensors"))
    # Scores that were written into its card meanwhile make no other model of it.
    write_model(moved, replace(card, validation={"crop_dice": 0.5}), weights)
    resumed = train(cohort, tmp_path / "run", init=moved, **again)
    one, two = read_model(unbroken)[1], read_model(resumed)[1]
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("locate.base_channels=8", "its locate network has base_channels 4, this training 8"),
        ("locate.spacing_mm=[4, 4, 4]", r"its locate network has spacing_mm \(6.0, 6.0, 6.0\)"),
        ("segment.levels=2", "its segment network has levels 3, this training 2; leave out preset"),
        ("segment.slices=3", "its segment network has in_channels 5, this training 3"),
        ("segment.crop_mm=[64, 64, 56]", r"its segment network has crop_voxels \(16, 32, 32\)"),
        ("segment.hu_window=[-100, 100]", r"its segment network has hu_window \(-150.0, 250.0\)"),
    ],
)
def test_settings_that_contradict_the_model_are_refused(
    tiny_model: Path, cohort: Path, setting: str, words: str
) -> None:
    with pytest.raises(InputError, match=words):
        open_tiny(cohort, cohort / "run", tiny_model, setting)
    assert not (cohort / "run").exists()


def test_any_number_of_structures_fits(tiny_model: Path) -> None:
    card = read_card(tiny_model)
    parent = read_parent(tiny_model)
    check_networks(
        parent, {"segment": replace(card.segment, network={**card.segment.network, "classes": 9})}
    )  # fmt: skip


class TestCommand:
    def test_from_the_shipped_model_with_its_networks(
        self,
        metricunet: Command,
        tiny_model: Path,
        cohort: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr("metricunet.training.start.SHIPPED", tiny_model)
        words = [word for setting in SHORT for word in ("--set", setting)]
        words += ["--fold", "all", "--device", "cpu", "--freeze", "encoder"]
        ended = metricunet("train", cohort, "-o", tmp_path / "run", "--init", "base", *words)
        assert (ended.status, ended.err) == (0, "begins from base (locate and segment: prostate kept)\n")
        card, theirs = read_card(tmp_path / "run" / "model.safetensors"), read_card(tiny_model)
        assert (card.locate, card.segment) == (theirs.locate, theirs.segment)
        assert [one.name for one in card.lineage] == ["base"]

    def test_without_a_shipped_model(
        self, metricunet: Command, tiny_cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("metricunet.training.start.SHIPPED", tmp_path / "none.safetensors")
        ended = metricunet("train", tiny_cohort, "-o", tmp_path / "run", "--init", "base")
        assert (ended.status, ended.out, ended.err.count("\n")) == (2, "", 1)
        assert "--init base: this build of metricunet comes without a model; name a model file" in ended.err
        assert initial_model("./base") == Path("base")
        assert not (tmp_path / "run").exists()

    def test_freezing_needs_a_model(self, metricunet: Command, tiny_cohort: Path, tmp_path: Path) -> None:
        ended = metricunet("train", tiny_cohort, "-o", tmp_path / "run", "--freeze", "encoder")
        assert (ended.status, ended.out, ended.err.count("\n")) == (2, "", 1)
        assert "freeze is encoder, but without a model to begin from" in ended.err
        assert "(--init)" in ended.err
        assert not (tmp_path / "run").exists()


def test_weights_of_float16_are_predicted_with_and_begun_from(
    tiny_cohort: Path, tiny_model: Path, tmp_path: Path
) -> None:
    settings = config(tiny_model, "weights=float16")
    half = train(tiny_cohort, tmp_path / "half", config=settings, init=tiny_model, device="cpu")
    whole = train(tiny_cohort, tmp_path / "whole", config=config(tiny_model), init=tiny_model, device="cpu")
    kept, full = read_model(half)[1], read_model(whole)[1]
    assert {t.dtype for t in kept.values() if t.is_floating_point()} == {torch.float16}
    assert all(torch.equal(kept[k], full[k].half() if full[k].is_floating_point() else full[k]) for k in full)
    assert half.stat().st_size < 0.7 * whole.stat().st_size
    one, two = (load_model(path, torch.device("cpu")).segment for path in (half, whole))
    x = torch.randn(1, 5, 32, 32, generator=torch.Generator().manual_seed(0))
    x = x[:, : read_card(half).segment.network["in_channels"]]
    with torch.inference_mode():
        assert torch.allclose(one(x), two(x), atol=0.02)
    again = train(tiny_cohort, tmp_path / "again", config=config(half), init=half, device="cpu")
    assert {t.dtype for t in read_model(again)[1].values() if t.is_floating_point()} == {torch.float32}


def test_a_weight_too_large_for_float16_stays() -> None:
    weights = {"a": torch.tensor([1e6]), "b": torch.tensor([0.5]), "n": torch.tensor(3)}
    assert {k: v.dtype for k, v in halved(weights).items()} == {
        "a": torch.float32, "b": torch.float16, "n": torch.int64,
    }  # fmt: skip
