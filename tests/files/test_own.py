"""Files of ours, and files of others, in one folder."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from metricunet.errors import InputError
from metricunet.files.own import JOURNAL, OwnFiles, read_sealed, write_sealed

RECORD = "record.json"


def own(folder: Path, **options: object) -> OwnFiles:
    return OwnFiles(folder, RECORD, "draw", **options)  # type: ignore[arg-type]


def drawn(folder: Path, **texts: str) -> OwnFiles:
    files = own(folder)
    for name, text in texts.items():
        files.stage(f"{name}.txt").write_text(text)
    files.commit({"seed": 1})
    return files


def listing(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): p.read_text() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_outputs_are_placed_with_a_record_that_states_them(tmp_path: Path) -> None:
    files = drawn(tmp_path / "out", a="one", b="two")
    assert sorted(listing(tmp_path / "out")) == ["a.txt", "b.txt", RECORD]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a.txt", "b.txt", RECORD]
    assert files.is_whole()
    assert files.content()["seed"] == 1  # type: ignore[index]


def test_our_files_are_replaced_and_those_not_written_again_removed(tmp_path: Path) -> None:
    drawn(tmp_path, a="one", b="two")
    drawn(tmp_path, a="three")
    assert sorted(listing(tmp_path)) == ["a.txt", RECORD]
    assert (tmp_path / "a.txt").read_text() == "three"


@pytest.mark.parametrize("change", ["edit", "foreign", "record", "folder", "link", "other command"])
def test_what_is_not_ours_is_an_error_and_stays(tmp_path: Path, change: str) -> None:
    out = tmp_path / "out"
    out.mkdir()
    if change == "foreign":
        (out / "a.txt").write_text("theirs")
    elif change == "folder":
        (out / "a.txt").mkdir()
    else:
        drawn(out, a="one")
    if change == "edit":
        (out / "a.txt").write_text("corrected")
    elif change == "record":
        content = json.loads((out / RECORD).read_text())
        (out / RECORD).write_text(json.dumps({**content, "seed": 2}))
    elif change == "link":
        (tmp_path / "real.txt").write_text((out / "a.txt").read_text())
        (out / "a.txt").unlink()
        (out / "a.txt").symlink_to(tmp_path / "real.txt")
    before = listing(tmp_path)
    files = OwnFiles(out, RECORD, "paint") if change == "other command" else own(out)
    with pytest.raises(InputError, match="choose another"):
        files.check(["a.txt"])
    files.stage("a.txt").write_text("new")
    with pytest.raises(InputError, match="choose another"):
        files.commit({})
    assert listing(tmp_path) == before


def test_a_hidden_folder_that_another_process_removes_meanwhile_is_no_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn(tmp_path, a="one").stage("b.txt").write_text("of the other process")
    asked: list[Path] = []

    def settled(path: Path) -> dict[str, Any] | None:
        if path.name == JOURNAL:
            asked.append(path)
            if len(asked) == 2:  # between the question whether the folder is there and that whose it is
                shutil.rmtree(path.parent)
        return read_sealed(path)

    monkeypatch.setattr("metricunet.files.own.read_sealed", settled)
    own(tmp_path).check(["a.txt"])
    assert not asked[0].parent.exists()


def test_overwrite_replaces_files_of_others_but_no_input_by_any_name(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "a.txt").write_text("theirs")
    files = own(out, overwrite=True)
    files.stage("a.txt").write_text("ours")
    files.commit({})
    assert (out / "a.txt").read_text() == "ours"
    (tmp_path / "scan").write_text("scan")
    for make in (lambda p: p.symlink_to(tmp_path / "scan"), lambda p: os.link(tmp_path / "scan", p)):
        (out / "a.txt").unlink()
        make(out / "a.txt")
        with pytest.raises(InputError, match="is an input"):
            own(out, overwrite=True, inputs=[tmp_path / "scan"]).check(["a.txt"])
    assert (tmp_path / "scan").read_text() == "scan"


def test_files_placed_by_a_process_that_was_killed_are_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed at each step of placing three files over two of earlier; the next one ends as if nothing had been."""

    class Killed(BaseException):
        pass

    steps = 0
    for stop in range(1, 100):
        folder = tmp_path / str(stop)
        drawn(folder, a="one", z="old")
        count = 0

        def counted(real: object, stop: int = stop) -> object:
            def call(*words: object, **options: object) -> object:
                nonlocal count
                count += 1
                if count == stop:
                    raise Killed
                return real(*words, **options)  # type: ignore[operator]

            return call

        files = own(folder)
        with monkeypatch.context() as patch:
            for name in ("replace", "link", "unlink", "mkdir"):
                patch.setattr(os, name, counted(getattr(os, name)))
            # A killed process cleans nothing up: neither the staging nor temporary files.
            patch.setattr("metricunet.files.own.OwnFiles.discard", lambda self: None)
            try:
                for name, text in (("a", "1"), ("b", "2"), ("c", "3")):
                    files.stage(f"{name}.txt").write_text(text)
                files.commit({"seed": 1})
                ended = True
            except Killed:
                ended = False
        again = own(folder)
        again.check(["a.txt", "b.txt", "c.txt"])
        for name, text in (("a", "1"), ("b", "2"), ("c", "3")):
            again.stage(f"{name}.txt").write_text(text)
        again.commit({"seed": 1})
        assert sorted(p.name for p in folder.iterdir()) == ["a.txt", "b.txt", "c.txt", RECORD]
        assert [(folder / f"{n}.txt").read_text() for n in "abc"] == ["1", "2", "3"]
        steps = stop
        if ended:
            break
    assert steps > 8


def test_a_hidden_folder_of_others_is_left_alone(tmp_path: Path) -> None:
    files = own(tmp_path)
    staged = files.stage("a.txt")
    (staged.parent / JOURNAL).write_text("{}")
    with pytest.raises(InputError, match="move them elsewhere"):
        own(tmp_path).check([])
    own(tmp_path).discard()
    assert (staged.parent / JOURNAL).read_text() == "{}"


def test_a_hidden_folder_that_could_not_be_emptied_is_ours_still(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that outlives the command, or a file that is open on a network's disk, keeps a folder in use."""
    with monkeypatch.context() as patch:
        patch.setattr("metricunet.files.own.shutil.rmtree", lambda *_, **__: None)
        files = own(tmp_path)
        (files.work() / "half").write_text("written by a worker")
        files.stage("a.txt").write_text("one")
        files.commit({"seed": 1})
    assert files.is_whole()
    own(tmp_path).check(["a.txt"])
    drawn(tmp_path, a="two")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.txt", RECORD]
    assert (tmp_path / "a.txt").read_text() == "two"


def test_a_seal_holds_for_every_field_and_any_order(tmp_path: Path) -> None:
    path = tmp_path / RECORD
    write_sealed(path, {"b": 0.1, "a": [1, {"x": None}]}, {"f": "00"})
    content = read_sealed(path)
    assert content is not None
    path.write_text(json.dumps(dict(reversed(content.items()))))
    assert read_sealed(path) == content
    for name in content:
        path.write_text(json.dumps({**content, name: "other"}))
        assert read_sealed(path) is None
    for text in ("", "[]", "nonsense", "[" * 10000):
        path.write_text(text)
        assert read_sealed(path) is None
