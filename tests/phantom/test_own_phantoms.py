"""Cohorts of phantoms: a file of somebody else, or one that was changed, is neither replaced nor adopted."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from metricunet.errors import InputError
from metricunet.files.claim import AlreadyClaimed, claimed
from metricunet.files.own import FILES, OwnFiles, read_sealed
from metricunet.files.record import sha256
from metricunet.phantom import displace_cohort, make_cohort
from metricunet.phantom.cohort import CohortPlan
from metricunet.phantom.displaced import check_displaced
from tests.support.command import Command

pytestmark = pytest.mark.usefixtures("quick_phantoms")

IMAGE, LABEL = "imagesTr/phantom_0001_0000.nii.gz", "labelsTr/phantom_0001.nii.gz"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def refused(message: str, *arguments: object, **options: object) -> None:
    """Refuse to make a cohort, in one line and before any work."""
    before = contents(Path(str(arguments[0])))
    with pytest.raises(InputError, match=message) as caught:
        make_cohort(*arguments, **options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    assert contents(Path(str(arguments[0]))) == before


def without_hashes(folder: Path) -> None:
    """Make a cohort look as earlier versions wrote it."""
    path = folder / "phantoms.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({"recipe": content["recipe"], "cases": content["cases"]}, indent=2) + "\n")


def test_the_record_states_the_hash_of_every_file(tmp_path: Path) -> None:
    make_cohort(tmp_path / "a", 2, n_test=1, n_readers=1)
    displace_cohort(tmp_path / "a", tmp_path / "b")
    for folder in (tmp_path / "a", tmp_path / "b"):
        record = read_sealed(folder / "phantoms.json")
        assert record is not None
        written = {name for name in contents(folder) if name != "phantoms.json"}
        assert record[FILES] == {name: sha256([folder / name]) for name in written}


@pytest.mark.parametrize("name", [IMAGE, LABEL, "dataset.json", "phantoms.json", "reader1Tr/phantom_0000.nii.gz"])
def test_a_file_that_was_changed_is_somebodys(tmp_path: Path, name: str) -> None:
    make_cohort(tmp_path, 2, n_readers=1)
    text = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(
        text.replace(b'"seed": 0', b'"seed": 1') if name == "phantoms.json" else text + b" "
    )
    refused(rf"{name}: is there already, .*was changed since; choose another folder", tmp_path, 3, n_readers=1)
    refused(rf"{name}: is there already", tmp_path, 2, n_readers=1)


def test_a_file_under_the_name_of_a_case_to_come_is_somebodys(tmp_path: Path) -> None:
    make_cohort(tmp_path, 1)
    (tmp_path / IMAGE).write_bytes(b"mine")
    refused(f"{IMAGE}: is there already, and it was not written by this program", tmp_path, 2)
    refused("replace it with overwrite=True", tmp_path, 2, overwrite=False)
    make_cohort(tmp_path, 1)  # it is in nobody's way
    (tmp_path / IMAGE).unlink()
    (tmp_path / IMAGE).symlink_to(tmp_path / "imagesTr" / "phantom_0000_0000.nii.gz")
    refused(f"{IMAGE}: is there already", tmp_path, 2)


@pytest.mark.parametrize("name", [IMAGE, LABEL, "dataset.json", "phantoms.json"])
def test_overwriting_makes_the_cohort_as_it_was(tmp_path: Path, name: str) -> None:
    make_cohort(tmp_path, 2)
    before = contents(tmp_path)
    (tmp_path / name).write_bytes(b"mine")
    make_cohort(tmp_path, 2, overwrite=True)
    assert contents(tmp_path) == before


def test_overwriting_takes_in_no_scans_of_others(tmp_path: Path) -> None:
    (tmp_path / "imagesTr").mkdir()
    (tmp_path / IMAGE).write_bytes(b"mine")
    refused("holds other files and no phantoms", tmp_path, 2, overwrite=False)
    (tmp_path / "imagesTr" / "case_0000.nii.gz").write_bytes(b"a scan")
    refused(r"case_0000\.nii\.gz: is none of the files of this cohort", tmp_path, 2, overwrite=True)
    (tmp_path / "imagesTr" / "case_0000.nii.gz").unlink()
    make_cohort(tmp_path, 2, overwrite=True)
    make_cohort(tmp_path / "new", 2)
    for name, expected in contents(tmp_path / "new").items():
        assert (tmp_path / name).read_bytes() == expected


def test_what_an_earlier_version_made_is_left_as_it_is(tmp_path: Path) -> None:
    clean, displaced = tmp_path / "clean", tmp_path / "displaced"
    make_cohort(clean, 2, n_readers=1)
    displace_cohort(clean, displaced)
    whole = contents(tmp_path)
    for folder in (clean, displaced):
        without_hashes(folder)
    before = contents(tmp_path)
    assert make_cohort(clean, 2, n_readers=1) == ["phantom_0000", "phantom_0001"]
    displace_cohort(clean, displaced)
    assert contents(tmp_path) == before
    with pytest.raises(InputError, match="made with seed 0, not 1"):
        make_cohort(clean, 2, seed=1, n_readers=1)
    refused(r"phantoms\.json: an earlier version .* cannot be continued; choose another", clean, 3, n_readers=1)
    (clean / LABEL).unlink()
    refused("make this one anew with overwrite=True", clean, 2, n_readers=1, overwrite=False)
    make_cohort(clean, 2, n_readers=1, overwrite=True)
    (displaced / LABEL).unlink()
    with pytest.raises(InputError, match="an earlier version"):
        displace_cohort(clean, displaced)
    displace_cohort(clean, displaced, overwrite=True)
    assert contents(tmp_path) == whole


class Killed(BaseException):
    """Ends a process where it stands."""


@pytest.mark.parametrize("step", range(1, 41))
def test_a_killed_run_is_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    folder, whole, count = tmp_path / "killed", tmp_path / "whole", 0
    make_cohort(whole, 2)
    with monkeypatch.context() as patch:
        for name in ("replace", "link", "unlink", "mkdir", "rmdir"):

            def counted(*words: object, real: object = getattr(os, name), **options: object) -> object:
                nonlocal count
                count += 1
                if count >= step:
                    raise Killed
                return real(*words, **options)  # type: ignore[operator]

            patch.setattr(os, name, counted)
        with pytest.raises(Killed):
            make_cohort(folder, 2)
    for claim in folder.glob("*.claim"):
        claim.unlink()  # of a process that would be dead
    make_cohort(folder, 2)
    assert contents(folder) == contents(whole)
    assert not list(folder.glob(".*"))


def test_a_kill_after_the_last_file_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OwnFiles, "settle", lambda own: None)
    make_cohort(tmp_path, 1)
    monkeypatch.undo()
    monkeypatch.setattr("metricunet.phantom.cohort.make_phantom", None)  # nothing is to be made
    assert list(tmp_path.glob(".*"))
    make_cohort(tmp_path, 1)
    assert not list(tmp_path.glob(".*"))


def test_two_processes_do_not_make_one_cohort(tmp_path: Path) -> None:
    make_cohort(tmp_path, 1)
    with (
        claimed(OwnFiles(tmp_path, "phantoms.json", "phantom").claim, "the making of phantoms"),
        pytest.raises(AlreadyClaimed, match="the making of phantoms is going on here already"),
    ):
        make_cohort(tmp_path, 2)


def test_a_displaced_cohort_is_checked_before_the_cohort_is_made(metricunet: Command, tmp_path: Path) -> None:
    clean, displaced = tmp_path / "clean", tmp_path / "displaced"
    words = ("phantom", "-n", "2", "--readers", "1", "-o", clean, "--displaced", displaced)
    assert metricunet(*words).status == 0
    truth = displaced / "truthTr" / "phantom_0001.nii.gz"
    truth.unlink()
    truth.write_bytes(b"mine")
    before = contents(tmp_path)
    more = [*words[:2], "3", *words[3:]]
    ended = metricunet(*more)
    assert (ended.status, len(ended.err.splitlines())) == (2, 1)
    assert f"{truth}: is there already" in ended.err
    assert contents(tmp_path) == before
    ended = metricunet(*more, "--overwrite")
    assert (ended.status, ended.err) == (0, "")
    assert truth.samefile(clean / LABEL)


def test_a_displaced_cohort_never_replaces_the_cohort_through_a_link(tmp_path: Path) -> None:
    clean, displaced = tmp_path / "clean", tmp_path / "displaced"
    make_cohort(clean, 2, n_readers=1)
    displaced.mkdir()
    (displaced / "labelsTr").symlink_to(clean / "labelsTr")
    before = contents(clean)
    for overwrite in (False, True):
        with pytest.raises(InputError, match=r"is a folder of .* itself; choose another folder"):
            displace_cohort(clean, displaced, overwrite=overwrite)
        with pytest.raises(InputError, match=r"is a folder of .* itself"):
            check_displaced(clean, displaced, CohortPlan(2, n_readers=1), overwrite=overwrite)
    assert contents(clean) == before


def test_a_file_that_the_source_lacks_is_named_before_anything_is_written(tmp_path: Path) -> None:
    clean, displaced = tmp_path / "clean", tmp_path / "displaced"
    make_cohort(clean, 2, n_readers=1)
    displace_cohort(clean, tmp_path / "earlier")
    make_cohort(clean, 3, n_readers=1)
    last = IMAGE.replace("0001", "0002")
    (clean / last).unlink()
    before = contents(tmp_path)
    for folder in (displaced, tmp_path / "earlier"):
        with pytest.raises(InputError, match=f"{last}: is missing; make the cohort in .*clean again"):
            displace_cohort(clean, folder)
    assert contents(tmp_path) == before
    assert not displaced.exists()
    make_cohort(clean, 3, n_readers=1)
    for folder in (displaced, tmp_path / "earlier"):
        displace_cohort(clean, folder)
        assert (folder / last).samefile(clean / last)


def test_readers_who_have_not_contoured_every_case_are_left_out(metricunet: Command, tmp_path: Path) -> None:
    clean, displaced = tmp_path / "clean", tmp_path / "displaced"
    assert metricunet("phantom", "-n", "2", "--readers", "2", "-o", clean).status == 0
    fewer = ("phantom", "-n", "3", "--test", "1", "--readers", "1", "-o", clean, "--displaced", displaced)
    ended = metricunet(*fewer)
    assert (ended.status, ended.err) == (0, "")
    names = [f"phantom_000{k}.nii.gz" for k in range(3)]
    for name in names:
        assert (displaced / "labelsTr" / name).samefile(clean / "reader1Tr" / name)
    assert not (displaced / "reader2Tr").exists()
    with pytest.raises(InputError, match=f"reader2Tr/{names[2]}: is missing; .* with 2 readers or more"):
        displace_cohort(clean, tmp_path / "other", reader=2)
    assert not (tmp_path / "other").exists()
    # With contours of every case he is taken in, asked for or not.
    make_cohort(clean, 3, n_test=1, n_readers=2)
    (displaced / "reader2Tr").mkdir()
    (displaced / "reader2Tr" / names[0]).write_bytes(b"mine")
    with pytest.raises(InputError, match=f"reader2Tr/{names[0]}: is there already"):
        check_displaced(clean, displaced, CohortPlan(3, n_test=1, n_readers=1))
    (displaced / "reader2Tr" / names[0]).unlink()
    assert metricunet(*fewer).status == 0
    for split, of_split in (("Tr", names), ("Ts", ["phantom_ts0000.nii.gz"])):
        for name in of_split:
            assert (displaced / f"reader2{split}" / name).samefile(clean / f"reader2{split}" / name)
