"""names.yaml: every spelling means one thing, or the file is refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from metricunet.cohort.importing.names_file import SpellingCount, read_names, skeleton
from metricunet.errors import InputError


def written(folder: Path, text: str) -> Path:
    path = folder / "names.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_structures_have_the_order_and_the_spellings_of_the_file(tmp_path: Path) -> None:
    text = "rectum: Rektum\nprostate: [Prostate, 'Prostata neu', 15]\nignore: ['PTV*', BODY]\n"
    names = read_names(written(tmp_path, text))
    assert names.labels == {"rectum": 1, "prostate": 2}
    meant = {s: names.structure_of(s) for s in ("Rektum", "Prostata  neu", "15", "prostate", "PTV_1", "BODY")}
    assert meant == {
        "Rektum": "rectum",
        "Prostata  neu": "prostate",
        "15": "prostate",
        "prostate": None,
        "PTV_1": None,
        "BODY": None,
    }
    ignored = {s: names.ignores(s) for s in ("PTV", "PTV_78.0", "ptv", "xPTV", "BODY", "BODY2", "Prostate")}
    assert [s for s, found in ignored.items() if found] == ["PTV", "PTV_78.0", "BODY"]


def test_capitals_count_unless_the_file_says_otherwise(tmp_path: Path) -> None:
    text = "match_case: false\nprostate: [Prostate]\nignore: ['ptv*']\n"
    names = read_names(written(tmp_path, text))
    assert names.structure_of("PROSTATE") == "prostate"
    assert names.ignores("PTV_1")


def test_a_spelling_of_a_structure_is_not_ignored_by_a_star(tmp_path: Path) -> None:
    names = read_names(written(tmp_path, "prostate: [Prostate]\nignore: ['*']\n"))
    assert not names.ignores("Prostate")
    assert names.ignores("anything [1]")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "expected lines such as"),
        ("- a\n", "expected lines such as"),
        ("prostate: [a\n", "not a readable YAML file"),
        ("prostate: [a]\nprostate: [b]\n", "'prostate' occurs twice; join the two"),
        ("ignore: [a]\n", "names no structure"),
        ("prostate: []\n", "prostate has no spelling"),
        ("prostate: [no]\n", "spelling False, which is no text; put it in quotes"),
        ("prostate: [1.5]\n", "which is no text"),
        ("background: [a]\n", "cannot be named 'background'"),
        ("prostate: [a]\nBackground: [b]\n", "cannot be named 'Background'"),
        ("prostate: [a]\nIgnore: [b]\n", "Ignore would be the name of a structure; write ignore in small letters"),
        ("[Prostate, PROSTATE]: prostate\n", "not a readable YAML file .*unhashable key"),
        ("{Prostate: a}: prostate\n", "not a readable YAML file .*unhashable key"),
        ("prostate: [a]\nbladder: [b, a]\n", "spelling 'a' is under prostate and under bladder; keep one"),
        ("prostate: [a]\nignore: [a]\n", "spelling 'a' is under prostate and under ignore"),
        ("prostate: [a]\nundecided: [a]\n", "spelling 'a' is under prostate and under undecided"),
        ("prostate: [a, a]\n", "spelling 'a' is under prostate and under prostate"),
        (
            "prostate: [a]\nbladder: [A]\nmatch_case: false\n",
            "'A' is under prostate and under bladder .as 'a', which",
        ),
        ("prostate: [a]\nmatch_case: maybe\n", "match_case is 'maybe', expected true or false"),
        ("prostate: [a]\nabsent: [a]\n", "absent is .*, expected an object"),
        ("prostate: [a]\nabsent: {rectum: [x]}\n", "absent names 'rectum', expected one of prostate"),
    ],
)
def test_a_file_that_is_not_clear_is_refused(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        read_names(written(tmp_path, text))
    assert str(tmp_path / "names.yaml") in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"names.yaml: no such file; expected a YAML file"):
        read_names(tmp_path / "names.yaml")


def test_the_skeleton_is_a_names_file_in_which_nothing_is_lost(tmp_path: Path) -> None:
    spelled = ["Prostate", "PROSTATE", "Femoral Head Lt", "BODY", 'a "quoted": one', "- #", "Größe", "no", "*"]
    counts = [SpellingCount(s, 3, k % 2, k // 8, 0) for k, s in enumerate(spelled)]
    text = skeleton(counts, 3)
    names = read_names(written(tmp_path, text))
    listed = [s for own in names.structures.values() for s in own] + list(names.undecided)
    assert sorted(listed) == sorted(spelled)
    assert names.structures == {"prostate": ("Prostate", "PROSTATE"), "femoral_head_left": ("Femoral Head Lt",)}
    assert '"PROSTATE"  # 3 cases, 1 with nothing drawn' in text
    assert '"*"  # 3 cases; 1 structure set without a scan' in text


def test_a_number_or_a_mark_is_not_taken_for_the_structure_itself(tmp_path: Path) -> None:
    plain = ["Prostate", "prostate", "PROS-TATE", "prostate/uterus", "(Prostate)", "Prostata."]
    other = ["Prostate+5", "Prostate_2", "*Prostate", "Prostate~", "2 Prostate", "Prostaté", "Prostate^"]
    names = read_names(written(tmp_path, skeleton([SpellingCount(s, 1, 0, 0, 0) for s in plain + other], 1)))
    assert names.structures == {"prostate": tuple(plain)}
    assert names.undecided == tuple(other)


def test_tolerances_are_distances_of_its_structures(tmp_path: Path) -> None:
    path = tmp_path / "names.yaml"
    path.write_text("prostate: [Prostate]\ntolerance_mm: {prostate: 2.5}")
    names = read_names(path)
    assert names.tolerances_mm == {"prostate": 2.5}
    assert list(names.structures) == ["prostate"]
    for text, message in (
        ("3", "tolerance_mm is 3, expected an object"),
        ("{prostate: wide}", "tolerance_mm.prostate is 'wide', expected a distance"),
        ("{prostate: -1}", "tolerance_mm.prostate is -1, expected a distance"),
        ("{prostate: .inf}", "tolerance_mm.prostate is inf, expected a distance"),
        ("{bladder: 1}", "tolerance_mm names 'bladder', expected one of prostate"),
    ):
        path.write_text(f"prostate: [Prostate]\ntolerance_mm: {text}")
        with pytest.raises(InputError, match=re.escape(message)):
            read_names(path)
