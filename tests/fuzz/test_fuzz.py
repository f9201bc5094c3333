"""Damaged files through every door: a few hundred inputs. `python tests/fuzz/run.py` makes more."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.corpus import Corpus, make_corpus
from tests.fuzz.run import chosen_targets, fuzz
from tests.fuzz.targets import TARGETS, Trial, make_input

COUNT = 200


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return make_corpus(tmp_path_factory.mktemp("fuzz") / "corpus")


def test_damaged_files_are_borne(corpus: Corpus) -> None:
    answers = fuzz(corpus.folder.parent, COUNT, seed=1)
    assert [(a["target"], a["index"], a["findings"]) for a in answers if a["findings"]] == []
    # Neither is all refused, which would say little of what lies behind the doors, nor is all accepted.
    accepted = sum("accepted" in a["verdicts"].values() for a in answers)
    assert COUNT / 5 < accepted < COUNT * 4 / 5


def test_the_same_seed_gives_the_same_inputs(corpus: Corpus, tmp_path: Path) -> None:
    again = make_corpus(tmp_path / "corpus")
    for target, index in chosen_targets(60, seed=7):
        one, two = make_input(corpus, target, 7, index), make_input(again, target, 7, index)
        assert (one.files, one.victim, one.doors) == (two.files, two.victim, two.doors)


@pytest.mark.parametrize("name", TARGETS)
def test_sound_files_are_accepted(corpus: Corpus, tmp_path: Path, name: str) -> None:
    """Damage is damage only where what it is done to was sound."""
    for k, seed in enumerate(corpus.seeds[name]):
        folder = tmp_path / str(k) / "in"
        for file, content in seed.files.items():
            path = folder / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        victim = folder / seed.victims[0]
        TARGETS[name].doors[0](Trial(corpus, folder, victim, tmp_path / str(k) / "out", lambda: ("", "")))
