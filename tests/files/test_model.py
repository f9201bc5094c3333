"""The model file: what is written is read, and nothing else is taken for one."""

from __future__ import annotations

import json
import os
import pickle
import re
import stat
import struct
import subprocess
import sys
import tracemalloc
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from metricunet.errors import InputError
from metricunet.files.model import (
    CARD_KEY,
    FORMAT_VERSION,
    LEAST_PATIENT_CASES,
    ORGANS_FORMAT_VERSION,
    Ancestor,
    Calibration,
    ModelCard,
    PatientScores,
    joined,
    of_stage,
    read_card,
    read_model,
    write_model,
)
from metricunet.specs import LocateSpec, SegmentSpec

CARD = ModelCard(
    locate=LocateSpec({"architecture": "unet", "in_channels": 1, "classes": 2}, (4.0, 4.0, 4.0), (-250.0, 450.0)),
    segment=SegmentSpec(
        {"architecture": "vnet", "in_channels": 1, "classes": 2},
        (2.0, 1.0, 1.0),
        (48, 128, 128),
        (-150.0, 250.0),
        32,
    ),
    labels={"prostate": 1},
    tg263={"prostate": "Prostate"},
    target="prostate",
    ranges={"volume_ml": (15.0, 80.0)},
    validation={"crop_dice": 0.9},
    trained_on="synthetic",
    data_sha256="0" * 64,
    seed=3,
    version="0.1.0",
)


def write(path: Path, card: ModelCard = CARD) -> Path:
    write_model(path, card, {"locate.weight": torch.arange(4.0), "segment.weight": torch.ones(2, 2)})
    return path


def raw(path: Path, header: object) -> Path:
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    return path


def test_round_trip(tmp_path: Path) -> None:
    path = write(tmp_path / "model.safetensors")
    assert read_card(path) == CARD
    card, weights = read_model(path)
    assert card == CARD
    assert card.synthetic
    assert set(weights) == {"locate.weight", "segment.weight"}
    assert torch.equal(weights["locate.weight"], torch.arange(4.0))


def test_whoever_may_read_other_new_files_may_read_a_model(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        path = write(tmp_path / "model.safetensors")
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


CALIBRATION = Calibration(1.7, 1.1, (0.8, 2.4), 20, {"nll_before": 0.09, "nll_after": 0.07})


def test_a_calibration_is_kept(tmp_path: Path) -> None:
    card = read_card(write(tmp_path / "model.safetensors", replace(CARD, calibration=CALIBRATION)))
    assert card.calibration == CALIBRATION
    assert card.temperature == 1.7


LABELS = {"rectum": 3, "prostate": 1, "bladder": 2}
WITH_ORGANS = replace(
    CARD,
    labels=LABELS,
    tg263={name: name.title() for name in LABELS},
    organs=SegmentSpec(
        {"architecture": "unet", "in_channels": 5, "classes": 3}, (2.0, 2.0, 2.0), (96, 80, 128), (-250.0, 450.0)
    ),
    organs_structures=("bladder", "rectum"),
    format_version=ORGANS_FORMAT_VERSION,
)


def test_the_organs_network_is_kept(tmp_path: Path) -> None:
    card = read_card(write(tmp_path / "model.safetensors", WITH_ORGANS))
    assert card == WITH_ORGANS
    assert card.staged_labels == {"prostate": 1}
    assert card.target_class == 1


def test_a_file_without_organs_says_nothing_of_them(tmp_path: Path) -> None:
    """So it is, to the byte, what versions before them wrote, and can read."""
    path = write(tmp_path / "model.safetensors")
    assert b"organs" not in path.read_bytes()
    assert read_card(path).format_version == FORMAT_VERSION
    card = read_card(path)
    assert (card.organs, card.organs_structures, card.staged_labels) == (None, (), CARD.labels)


@pytest.mark.parametrize(
    "change",
    [
        {"organs": None},
        {"organs_structures": ()},
        {"organs_structures": ("bladder", "bladder")},
        {"organs_structures": ("bladder", "prostate")},
        {"organs_structures": ("bladder", "colon")},
        {"organs_structures": ("bladder",)},
    ],
)
def test_organs_that_cannot_be_are_refused(tmp_path: Path, change: dict[str, object]) -> None:
    with pytest.raises(InputError, match="card is damaged"):
        read_card(write(tmp_path / "model.safetensors", replace(WITH_ORGANS, **change)))


def test_a_file_from_before_calibration_is_not_calibrated(tmp_path: Path) -> None:
    path = write(tmp_path / "model.safetensors")
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    card = json.loads(header["__metadata__"][CARD_KEY])
    del card["calibration"]
    header["__metadata__"][CARD_KEY] = json.dumps(card)
    found = read_card(raw(path, header))
    assert (found.calibration, found.temperature) == (None, 1.0)
    assert found == CARD


@pytest.mark.parametrize(
    "change", [{"temperature": 0.0}, {"mm_scale": -1.0}, {"temperature": float("nan")}, {"boundary_error_mm": [1]}]
)
def test_a_calibration_that_cannot_be_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    damaged = replace(CALIBRATION, **change)
    with pytest.raises(InputError, match="card is damaged"):
        read_card(write(tmp_path / "model.safetensors", replace(CARD, calibration=damaged)))


BASE = Ancestor("base", "a" * 64, synthetic=True)
OTHER = Ancestor("theirs", "b" * 64, synthetic=False, cases=("c" * 64,))
SCORES = PatientScores(20, 1, {"prostate": {"dice": 0.8}}, tuple(f"{k:064x}" for k in range(20)), "0.1.0")
REAL = replace(CARD, trained_on="patients", lineage=(BASE, OTHER), cases=("d" * 64, "e" * 64))


def without_fields(path: Path, *names: str) -> Path:
    """Write a model file anew without some fields of its card, as earlier versions did."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    card = json.loads(header["__metadata__"][CARD_KEY])
    for name in names:
        del card[name]
    header["__metadata__"][CARD_KEY] = json.dumps(card)
    return raw(path, header)


def test_lineage_cases_and_scores_on_patients_are_kept(tmp_path: Path) -> None:
    card = replace(REAL, validated=SCORES)
    assert read_card(write(tmp_path / "model.safetensors", card)) == card


def test_a_file_from_before_lineages_has_none(tmp_path: Path) -> None:
    path = write(tmp_path / "model.safetensors", replace(REAL, validated=SCORES))
    card = read_card(without_fields(path, "lineage", "cases", "validated"))
    assert (card.lineage, card.cases, card.validated) == ((), (), None)


@pytest.mark.parametrize(
    ("card", "words"),
    [
        (CARD, "was trained on synthetic scans only"),
        (REAL, "descends from one that was trained on synthetic scans only (base)"),
        (replace(REAL, lineage=(OTHER,)), ""),
        (replace(REAL, validated=SCORES), ""),
        (replace(CARD, validated=SCORES), ""),
        (replace(REAL, validated=replace(SCORES, cases=LEAST_PATIENT_CASES - 1)), "descends"),
    ],
)
def test_a_model_of_synthetic_origin_is_held_back_until_patients_were_scored(card: ModelCard, words: str) -> None:
    assert bool(card.held_back) == bool(words)
    assert words in card.held_back


@pytest.mark.parametrize(
    "change",
    [
        {"cases": ("case_01",)},
        {"lineage": (replace(BASE, weights_sha256="A" * 64),)},
        {"lineage": (replace(OTHER, cases=("",)),)},
        {"lineage": (replace(BASE, name="n" * 20_000),)},
        {"validated": replace(SCORES, cases=21)},
        {"validated": replace(SCORES, missed=21)},
        {"validated": replace(SCORES, means={"prostate": {"dice": float("nan")}})},
    ],
)
def test_an_origin_that_cannot_be_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    with pytest.raises(InputError, match="card is damaged"):
        read_card(write(tmp_path / "model.safetensors", replace(CARD, **change)))


def test_unknown_fields_of_a_later_minor_version_are_passed_over(tmp_path: Path) -> None:
    path = write(tmp_path / "model.safetensors")
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    card = json.loads(header["__metadata__"][CARD_KEY]) | {"new_field": 1}
    header["__metadata__"][CARD_KEY] = json.dumps(card)
    assert read_card(raw(path, header)) == CARD


def test_a_file_from_before_the_choice_of_networks_holds_unets(tmp_path: Path) -> None:
    path = write(tmp_path / "model.safetensors")
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    card = json.loads(header["__metadata__"][CARD_KEY])
    for stage in ("locate", "segment"):
        del card[stage]["network"]["architecture"], card[stage]["block_slices"]
    card["segment"]["network"]["in_channels"] = 5
    header["__metadata__"][CARD_KEY] = json.dumps(card)
    old = read_card(raw(path, header))
    assert [s.network["architecture"] for s in (old.locate, old.segment)] == ["unet", "unet"]
    assert (old.segment.block_slices, old.segment.input_slices) == (None, 5)
    assert CARD.segment.input_slices == 32


def test_both_stages_have_the_keys_of_the_first_version(tmp_path: Path) -> None:
    """Readers of every version of the format want `crop_voxels` of both stages; stage 1 has none."""
    content = write(tmp_path / "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    card = json.loads(json.loads(content[8 : 8 + length])["__metadata__"][CARD_KEY])
    keys = ["network", "spacing_mm", "crop_voxels", "hu_window", "block_slices"]
    assert [list(card[stage]) for stage in ("locate", "segment")] == [keys, keys]
    assert (card["locate"]["crop_voxels"], card["segment"]["crop_voxels"]) == (None, [48, 128, 128])


def test_a_newer_format_says_to_upgrade(tmp_path: Path) -> None:
    path = write(tmp_path / "m.safetensors", replace(CARD, format_version=ORGANS_FORMAT_VERSION + 1))
    with pytest.raises(InputError, match=f"model format {ORGANS_FORMAT_VERSION + 1} is newer.*upgrade"):
        read_card(path)


def test_what_is_no_model(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    with pytest.raises(InputError, match="no such model file; train one"):
        read_card(path)
    with pytest.raises(InputError, match="is a folder, and no model file; train one"):
        read_card(tmp_path)
    path.touch()
    with pytest.raises(
        InputError, match=rf"is a folder, and no model file; name the one in it, {re.escape(str(path))}$"
    ):
        read_card(tmp_path)
    for content in (b"", b"hello", b"\xff" * 64, struct.pack("<Q", 1 << 60) + b"{}", pickle.dumps({"a": 1})):
        path.write_bytes(content)
        with pytest.raises(InputError, match="not a metricunet model file"):
            read_card(path)
    for header in ({}, [], {"__metadata__": {}}, {"__metadata__": {CARD_KEY: "[]"}}, {"__metadata__": 3}):
        with pytest.raises(InputError, match="not a metricunet model file"):
            read_card(raw(path, header))


@pytest.mark.parametrize(
    "change",
    [
        {"labels": {}},
        {"target": "bladder"},
        {"locate": {}},
        {"ranges": {"volume_ml": [1]}},
        {"format_version": "1"},
        {"segment": None},
        {"labels": {"prostate": 0}},
        {"labels": {"prostate": 70000}},
        {"tg263": {"prostate": "a\nb"}},
        {"ranges": {"volume_ml": [float("nan"), 1.0]}},
        {"validation": {"crop_dice": [1]}},
        {"trained_on": {"a": 1}},
        {"locate": {**asdict(CARD.locate), "spacing_mm": [1e-9, 1.0, 1.0]}},
        {"locate": {**asdict(CARD.locate), "hu_window": [100.0, 100.0]}},
        {"locate": {**asdict(CARD.locate), "network": {"in_channels": 1, "classes": 2, "levels": 10**9}}},
        {"locate": {**asdict(CARD.locate), "network": {"in_channels": 1, "classes": 2, "base_channels": 10**6}}},
        {"locate": {**asdict(CARD.locate), "network": {"in_channels": 1, "classes": 7}}},
        {"segment": {**asdict(CARD.segment), "crop_voxels": [10**4, 10**4, 10**4]}},
        {"segment": {**asdict(CARD.segment), "crop_voxels": None}},
        {"segment": {**asdict(CARD.segment), "block_slices": -1}},
    ],
)
def test_a_damaged_card(tmp_path: Path, change: dict[str, object]) -> None:
    with pytest.raises(InputError, match=r"card"):
        read_card(with_card(tmp_path, change))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"segment": None}, "segment: expected a dictionary .*, found None"),
        ({"locate": {}}, r"locate\.network is missing"),
        ({"ranges": {"volume_ml": [1]}}, r"ranges\.volume_ml\.1 is missing"),
        ({"validation": {"crop_dice": [1]}}, r"validation\.crop_dice: expected a valid number, found \[1\]"),
        ({"labels": {"prostate": "x"}}, r"labels\.prostate: expected a valid integer, .* found 'x'"),
        ({"seed": "a" * 1000}, r"seed: expected a valid integer, .* found 'a{63}\); copy the file again"),
    ],
)
def test_a_damaged_card_says_which_field_is_wrong(tmp_path: Path, change: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        read_card(with_card(tmp_path, change))


def with_card(folder: Path, change: dict[str, object]) -> Path:
    """Write a model file whose card has other fields."""
    path = write(folder / "m.safetensors")
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    header["__metadata__"][CARD_KEY] = json.dumps(json.loads(header["__metadata__"][CARD_KEY]) | change)
    return raw(path, header)


def test_truncated_weights(tmp_path: Path) -> None:
    path = write(tmp_path / "m.safetensors")
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(InputError, match="damaged"):
        read_model(path)


def test_a_model_that_memory_does_not_suffice_for_is_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "m.safetensors")
    monkeypatch.setattr("safetensors.torch.load_file", lambda *_, **__: torch.empty(10**15, dtype=torch.uint8))
    with pytest.raises(RuntimeError, match="memory"):
        read_model(path)


def test_the_card_is_read_without_torch(tmp_path: Path) -> None:
    path = write(tmp_path / "m.safetensors")
    code = "import sys; from pathlib import Path; from metricunet.files.model import read_card; "
    code += f"read_card(Path({str(path)!r})); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_weights_that_are_no_numbers(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    write_model(path, CARD, {"locate.weight": torch.tensor([1.0, float("nan")])})
    with pytest.raises(InputError, match=r"locate\.weight are not all finite"):
        read_model(path)


def test_a_header_of_small_things_is_not_read_as_objects(tmp_path: Path) -> None:
    """Thirty megabytes of brackets are gigabytes of lists."""
    text = b'{"more": [' + b",".join([b"[]"] * 10_000_000) + b"]}"
    path = tmp_path / "m.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    tracemalloc.start()
    with pytest.raises(InputError, match="no safetensors header"):
        read_card(path)
    assert tracemalloc.get_traced_memory()[1] < 10 << 20
    tracemalloc.stop()


def test_the_weights_of_both_stages_keep_apart() -> None:
    locate = {"classify.weight": torch.zeros(1), "segment.bias": torch.ones(2)}
    segment = {"classify.weight": torch.ones(3)}
    weights = joined(locate, segment)
    assert list(weights) == ["locate.classify.weight", "locate.segment.bias", "segment.classify.weight"]
    assert of_stage(weights, "locate") == locate
    assert of_stage(weights, "segment") == segment
    assert of_stage(joined(locate, {}), "segment") == {}
