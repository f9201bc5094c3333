"""Which model files segment: the user's, the environment's, the shipped one, in this order."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from metricunet.errors import InputError
from metricunet.files.model import read_card
from metricunet.inference import models
from metricunet.inference.models import (
    SHIPPED,
    VARIABLE,
    WARNING,
    chosen_models,
    models_at,
    shipped_model,
    warnings_of,
)

#: A wheel has to stay a quick download.
LARGEST_MB = 12


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file in the place of the shipped model, whether or not this tree has one."""
    path = tmp_path / "base.safetensors"
    path.touch()
    monkeypatch.setattr(models, "SHIPPED", path)
    monkeypatch.delenv(VARIABLE, raising=False)
    return path


def test_what_the_user_names_comes_before_all_else(shipped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "nowhere.safetensors")
    assert chosen_models([Path("mine.safetensors")]) == (Path("mine.safetensors"),)


def test_the_shipped_model_has_a_word_for_it_unless_a_file_has_that_name(
    shipped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert chosen_models([Path("base"), Path("mine.safetensors")]) == (shipped, Path("mine.safetensors"))
    monkeypatch.setenv(VARIABLE, "base")
    assert chosen_models() == (shipped,)
    Path("base").touch()
    assert chosen_models([Path("base")]) == (Path("base"),)
    Path("base").unlink()
    shipped.unlink()
    with pytest.raises(InputError, match="this build of metricunet ships no model"):
        chosen_models([Path("base")])


def test_the_environment_names_one_model_or_several(
    shipped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    one.touch()
    two.touch()
    monkeypatch.setenv(VARIABLE, str(one))
    assert chosen_models() == (one,)
    monkeypatch.setenv(VARIABLE, os.pathsep.join([str(one), "", str(two)]))
    assert chosen_models() == (one, two)


@pytest.mark.parametrize("value", [None, "", " "])
def test_the_shipped_model_is_what_is_left(
    shipped: Path, monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    if value is not None:
        monkeypatch.setenv(VARIABLE, value)
    assert chosen_models() == (shipped,)
    assert shipped_model() == shipped


def test_a_file_that_the_environment_names_in_vain_is_told(
    shipped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "gone.safetensors"))
    with pytest.raises(InputError, match=rf"gone.safetensors: no such model file, and .* {VARIABLE} names it"):
        chosen_models()


@pytest.mark.parametrize("trained", ["model.safetensors", "folds.json"])
def test_a_training_with_an_exported_model_in_its_folder_is_not_taken_for_that(
    tmp_path: Path, trained: str
) -> None:
    """The training may have gone on since, or the exported model be that of one fold."""
    (tmp_path / "card.json").write_text("{}")
    assert models_at(tmp_path) == (tmp_path,)
    (tmp_path / trained).write_text("{}")
    for find in (lambda: models_at(tmp_path), lambda: chosen_models([tmp_path])):
        with pytest.raises(
            InputError, match=rf"holds both {trained}, of a training, and card\.json, of an exported"
        ):
            find()
    assert models_at(tmp_path / trained) == (tmp_path / trained,)


def test_a_build_without_a_model_says_so_and_how_to_name_one(shipped: Path) -> None:
    shipped.unlink()
    with pytest.raises(InputError, match=rf"ships no model; name a model file with models, or in .* {VARIABLE}"):
        chosen_models()


def test_the_shipped_model_alone_is_warned_of(shipped: Path, tmp_path: Path) -> None:
    other = tmp_path / "mine.safetensors"
    other.touch()
    link = tmp_path / "link.safetensors"
    link.symlink_to(shipped)
    assert warnings_of([other]) == []
    assert warnings_of([other, shipped]) == warnings_of([link]) == [WARNING]


@pytest.mark.skipif(not SHIPPED.is_file(), reason="this tree has no shipped model")
def test_the_shipped_model_is_small_and_says_what_it_is() -> None:
    assert SHIPPED.stat().st_size <= LARGEST_MB * 1_000_000
    card = read_card(SHIPPED)
    assert card.synthetic
    assert card.held_back
    assert "prostate" in card.labels
