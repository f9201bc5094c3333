"""Cohorts of phantoms on disk: the layout, reruns, and what is refused."""

from __future__ import annotations

import errno
import gc
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest

from metricunet.cohort.layout import read_cohort
from metricunet.engine import Serial
from metricunet.errors import InputError, WorkerDied
from metricunet.files.nifti import read_labels, read_nifti
from metricunet.files.own import OwnFiles, read_sealed
from metricunet.phantom import STRUCTURES, Variety, displace_cohort, make_cohort, make_phantom, reader_path
from metricunet.phantom.cohort import CohortPlan
from metricunet.phantom.variety import VARIED_VERSION
from tests.support import workers
from tests.support.command import Command
from tests.support.phantoms import quick_phantom


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cohort") / "new"
    names = make_cohort(
        folder, 4, seed=7, difficulty="easy", structures=("bladder", "prostate"), n_test=1, absent_fraction=0.25
    )
    assert names == ["phantom_0000", "phantom_0001", "phantom_0002", "phantom_0003", "phantom_ts0000"]
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_cohort_is_nnunets_layout_and_says_it_is_synthetic(cohort: Path) -> None:
    found = read_cohort(cohort)
    assert [case.name for case in found.training] == [f"phantom_{k:04d}" for k in range(4)]
    assert [case.name for case in found.test] == ["phantom_ts0000"]
    assert all(case.label is not None for case in (*found.training, *found.test))
    assert found.info.labels == {"bladder": 1, "prostate": 2}
    assert found.info.trained_on == "synthetic"
    assert json.loads((cohort / "dataset.json").read_text())["numTraining"] == 4


def test_files_hold_the_phantom_that_its_seed_makes(cohort: Path) -> None:
    facts = json.loads((cohort / "phantoms.json").read_text())["cases"]["phantom_0001"]
    made = make_phantom(facts["seed"], "easy")
    case = read_cohort(cohort).training[1]
    image, labels = read_nifti(case.image), read_labels(case.label)
    np.testing.assert_array_equal(image.array, made.image.array)
    assert image.geometry.same_grid(made.image.geometry)
    assert labels.geometry.same_grid(made.image.geometry)
    np.testing.assert_array_equal(labels.array == 1, made.labels.array == STRUCTURES["bladder"])
    np.testing.assert_array_equal(labels.array == 2, made.labels.array == STRUCTURES["prostate"])
    assert labels.array.max() == 2


def test_the_share_of_absent_prostates_is_kept(cohort: Path) -> None:
    present = [(read_labels(case.label).array == 2).any() for case in read_cohort(cohort).training]
    assert present == [True, True, True, False]
    cases = json.loads((cohort / "phantoms.json").read_text())["cases"]
    assert [cases[f"phantom_{k:04d}"]["reaches_prostate"] for k in range(4)] == present


@pytest.mark.usefixtures("quick_phantoms")
def test_a_rerun_makes_only_what_is_missing(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    make_cohort(tmp_path, 2, difficulty="easy")
    first = contents(tmp_path)
    (tmp_path / "labelsTr" / "phantom_0001.nii.gz").unlink()
    kept = (tmp_path / "imagesTr" / "phantom_0000_0000.nii.gz").stat().st_mtime_ns
    make_cohort(tmp_path, 2, difficulty="easy", progress=lambda done, total: calls.append((done, total)))
    assert contents(tmp_path) == first
    assert calls == [(1, 2), (2, 2)]
    assert (tmp_path / "imagesTr" / "phantom_0000_0000.nii.gz").stat().st_mtime_ns == kept


@pytest.mark.usefixtures("quick_phantoms")
def test_the_record_of_many_cases_is_read_no_oftener(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = []
    for n in (1, 6):
        make_cohort(tmp_path / str(n), n, difficulty="easy")
        reading = Mock(wraps=read_sealed)
        with monkeypatch.context() as patch:
            patch.setattr("metricunet.files.own.read_sealed", reading)
            make_cohort(tmp_path / str(n), n, difficulty="easy")
        counts.append(reading.call_count)
    assert counts[0] == counts[1] > 0


@pytest.mark.usefixtures("quick_phantoms")
def test_more_cases_extend_a_cohort(tmp_path: Path) -> None:
    make_cohort(tmp_path / "a", 1, difficulty="easy")
    make_cohort(tmp_path / "a", 3, difficulty="easy")
    make_cohort(tmp_path / "b", 3, difficulty="easy")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_the_command_makes_phantoms_in_several_processes(
    metricunet: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_cohort(tmp_path / "one", 2, difficulty="easy")
    monkeypatch.setattr("metricunet.phantom.cohort.make_phantom", None)  # this process makes none
    ended = metricunet("phantom", "-n", 2, "--difficulty", "easy", "--workers", 2, "-o", tmp_path / "two")
    assert (ended.status, ended.err) == (0, "")
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


@pytest.mark.usefixtures("quick_phantoms")
def test_an_interrupted_cohort_is_no_cohort_yet_and_can_be_continued(tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_cohort(tmp_path, 2, difficulty="easy", progress=stop)
    with pytest.raises(InputError, match=r"no dataset\.json"):
        read_cohort(tmp_path)
    make_cohort(tmp_path, 2, difficulty="easy")
    assert len(read_cohort(tmp_path).training) == 2


class AtACase(Serial):
    """An engine with a worker that is at a case when all is stopped, and still writes it then."""

    def each(self, tasks: Any, make: Any, needs: Any, *, claim: Any = None, watch: Any = None) -> Any:
        try:
            yield from super().each(tasks, make, needs)
        finally:
            make().do(tasks[-1], lambda *_: None)


@pytest.mark.usefixtures("quick_phantoms")
def test_what_workers_still_write_when_all_is_stopped_is_not_in_the_way(tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_cohort(tmp_path, 3, difficulty="easy", progress=stop, engine=AtACase())
    gc.collect()  # whatever is not closed yet is closed now
    make_cohort(tmp_path, 3, difficulty="easy")
    assert len(read_cohort(tmp_path).training) == 3


@pytest.mark.usefixtures("quick_phantoms")
def test_what_workers_still_make_when_the_disk_is_full_is_not_in_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = OwnFiles._journal

    def full(own: OwnFiles, stated: Mapping[str, Any]) -> None:
        if stated:
            raise OSError(errno.ENOSPC, "No space left on device")
        journal(own, stated)

    with monkeypatch.context() as patch:
        patch.setattr(OwnFiles, "_journal", full)
        with pytest.raises(InputError):
            make_cohort(tmp_path, 3, difficulty="easy", engine=AtACase())
    gc.collect()  # whatever is not closed yet is closed now
    assert not [path for path in tmp_path.glob(".*") if path.is_dir()]
    make_cohort(tmp_path, 3, difficulty="easy")
    assert len(read_cohort(tmp_path).training) == 3


class Losing(Serial):
    """An engine that loses its workers at the first case."""

    def each(self, tasks: Any, make: Any, needs: Any, *, claim: Any = None, watch: Any = None) -> Any:
        yield tasks[0], WorkerDied("its worker process died")
        yield from super().each(tasks[1:], make, needs)


@pytest.mark.usefixtures("quick_phantoms")
def test_a_case_that_costs_its_workers_does_not_cost_the_others(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^phantom_0000 could not be made: its worker process died\. .* again$"):
        make_cohort(tmp_path, 3, difficulty="easy", engine=Losing())
    made = sorted(path.name for path in (tmp_path / "labelsTr").iterdir())
    assert made == ["phantom_0001.nii.gz", "phantom_0002.nii.gz"]
    with pytest.raises(InputError, match=r"no dataset\.json"):
        read_cohort(tmp_path)
    make_cohort(tmp_path, 3, difficulty="easy")
    assert len(read_cohort(tmp_path).training) == 3


def test_a_worker_that_is_killed_is_told_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("metricunet.phantom.cohort._make", workers.killed)
        with pytest.raises(InputError, match=r"was killed, as systems do .* or fewer workers") as caught:
            make_cohort(tmp_path, 2, difficulty="easy", workers=2)
    assert "\n" not in str(caught.value)
    monkeypatch.setattr("metricunet.phantom.cohort.make_phantom", quick_phantom)
    make_cohort(tmp_path, 2, difficulty="easy")
    assert len(read_cohort(tmp_path).training) == 2


KILLED = """
import os, signal, sys
from metricunet.phantom import make_cohort

def die(done, total):
    os.kill(os.getpid(), signal.SIGKILL)

make_cohort(sys.argv[1], 4, difficulty="easy", workers=2, progress=die)
"""


def test_a_killed_run_leaves_no_processes(tmp_path: Path) -> None:
    """They have its output open, which ends with the last of them."""
    path = [str(Path(__file__).parents[2] / "src"), os.environ.get("PYTHONPATH", "")]
    ended = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path)},
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()


def test_foreign_folders_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"holds other files and no phantoms\.json"):
        make_cohort(tmp_path, 1, difficulty="easy")
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]
    with pytest.raises(InputError, match="is a file"):
        make_cohort(tmp_path / "notes.txt", 1, difficulty="easy")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"seed": 8}, "made with seed 7, not 8"),
        ({"difficulty": "real"}, "made with difficulty 'easy', not 'real'"),
        ({"n": 2}, "has 4 training cases, more than the 2 asked for"),
        ({"n_test": 0}, "has 1 test cases, more than the 0 asked for"),
    ],
)
def test_another_recipe_is_refused(cohort: Path, changed: dict[str, object], message: str) -> None:
    before = contents(cohort)
    settings = {
        "n": 4,
        "seed": 7,
        "difficulty": "easy",
        "structures": ("bladder", "prostate"),
        "n_test": 1,
        "absent_fraction": 0.25,
    }
    with pytest.raises(InputError, match=message) as caught:
        make_cohort(cohort, **(settings | changed))  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    assert contents(cohort) == before


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"n": 0}, "n must be 1 or more; got 0"),
        ({"seed": -1}, "seed must be 0 or more"),
        ({"n_test": -1}, "n_test must be 0 or more"),
        ({"workers": 0}, "workers must be 1 or more"),
        ({"n_readers": -1}, "n_readers must be 0 or more"),
        ({"difficulty": "hard"}, "difficulty must be one of easy, real"),
        ({"absent_fraction": 1.5}, "absent_fraction must lie between 0 and 1; got 1.5"),
        ({"structures": ("liver",)}, "structures must be different names out of prostate"),
        ({"structures": ()}, "structures must be different names"),
        ({"structures": ("femoral_head_left",)}, "varied alone, not in real ones; choose varied, or femur_left"),
        ({"structures": ("prostate", "prostate")}, "structures must be different names"),
    ],
)
def test_bad_arguments_are_refused(tmp_path: Path, changed: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_cohort(tmp_path / "new", **({"n": 1} | changed))  # type: ignore[arg-type]
    assert not (tmp_path / "new").exists()


def test_a_damaged_recipe_is_explained(tmp_path: Path) -> None:
    (tmp_path / "phantoms.json").write_text("{")
    with pytest.raises(InputError, match=r"phantoms\.json: is there already, and it was not written by this"):
        make_cohort(tmp_path, 1, difficulty="easy")


@pytest.fixture(scope="module")
def read_twice(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("readers") / "clean"
    make_cohort(folder, 2, seed=3, difficulty="easy", n_test=1, n_readers=2)
    return folder


def test_readers_lie_beside_the_truth(read_twice: Path) -> None:
    facts = json.loads((read_twice / "phantoms.json").read_text())["cases"]
    for name, split in (("phantom_0001", "Tr"), ("phantom_ts0000", "Ts")):
        made = make_phantom(facts[name]["seed"], "easy", n_readers=2)
        truth = read_labels(read_twice / f"labels{split}" / f"{name}.nii.gz")
        np.testing.assert_array_equal(truth.array == 1, made.labels.array == STRUCTURES["prostate"])
        for number, reading in enumerate(made.readings, start=1):
            path = reader_path(read_twice, name, number, split)
            assert path == read_twice / f"reader{number}{split}" / f"{name}.nii.gz"
            drawn = read_labels(path)
            assert drawn.geometry.same_grid(truth.geometry)
            np.testing.assert_array_equal(drawn.array == 1, reading.array == STRUCTURES["prostate"])
            assert (drawn.array != truth.array).any()
    assert [case.name for case in read_cohort(read_twice).training] == ["phantom_0000", "phantom_0001"]


def test_readers_can_be_added_later(tmp_path: Path, read_twice: Path) -> None:
    make_cohort(tmp_path, 2, seed=3, difficulty="easy", n_test=1)
    assert not (tmp_path / "reader1Tr").exists()
    make_cohort(tmp_path, 2, seed=3, difficulty="easy", n_test=1, n_readers=2)
    assert contents(tmp_path) == contents(read_twice)


def test_a_displaced_cohort_shares_the_images_and_trains_on_a_reader(tmp_path: Path, read_twice: Path) -> None:
    before = contents(read_twice)
    folder = displace_cohort(read_twice, tmp_path / "displaced", reader=2)
    clean, displaced = read_cohort(read_twice), read_cohort(folder)
    assert displaced.info.labels == clean.info.labels
    assert displaced.info.trained_on == "synthetic"
    assert "reader 2" in displaced.info.description
    for split, cases, others in (("Tr", clean.training, displaced.training), ("Ts", clean.test, displaced.test)):
        assert [case.name for case in cases] == [case.name for case in others]
        for case, other in zip(cases, others, strict=True):
            assert case.label is not None
            assert other.label is not None
            assert other.image.samefile(case.image)
            expected = case.label if split == "Ts" else reader_path(read_twice, case.name, 2)
            assert other.label.read_bytes() == expected.read_bytes()
            assert reader_path(folder, case.name, 1, split).samefile(reader_path(read_twice, case.name, 1, split))
    truth = folder / "truthTr" / "phantom_0000.nii.gz"
    assert truth.samefile(read_twice / "labelsTr" / "phantom_0000.nii.gz")
    after = contents(folder)
    displace_cohort(read_twice, folder, reader=2)
    assert contents(folder) == after
    assert contents(read_twice) == before


def test_files_are_copied_where_they_cannot_be_linked(
    tmp_path: Path, read_twice: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    linked = displace_cohort(read_twice, tmp_path / "linked")

    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr("os.link", refuse)
    copied = displace_cohort(read_twice, tmp_path / "copied")
    assert contents(copied) == contents(linked)
    assert not (copied / "imagesTr" / "phantom_0000_0000.nii.gz").samefile(
        linked / "imagesTr" / "phantom_0000_0000.nii.gz"
    )


def test_a_displaced_cohort_refuses_what_does_not_fit(tmp_path: Path, cohort: Path, read_twice: Path) -> None:
    displaced = displace_cohort(read_twice, tmp_path / "displaced")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("mine")
    for source, folder, reader, message in (
        (tmp_path / "notes", tmp_path / "new", 1, r"no phantoms\.json here"),
        (cohort, tmp_path / "new", 1, "no reader1Tr here; make the cohort with 1 readers or more"),
        (read_twice, tmp_path / "new", 3, "no reader3Tr here; make the cohort with 3 readers or more"),
        (read_twice, tmp_path / "new", 0, "no reader0Tr here"),
        (displaced, tmp_path / "new", 1, "labelsTr holds 'reader1', not 'truth'"),
        (read_twice, displaced, 2, "made with labels 'reader1', not 'reader2'"),
        (read_twice, cohort, 1, "made with seed 7, not 3"),
        (read_twice, tmp_path / "notes", 1, "holds other files"),
        (read_twice, tmp_path / "notes" / "mine.txt", 1, "is a file"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            displace_cohort(source, folder, reader)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "new").exists()
    with pytest.raises(InputError, match="made with labels 'reader1', not 'truth'"):
        make_cohort(displaced, 2, seed=3, difficulty="easy", n_test=1)


@pytest.mark.usefixtures("quick_phantoms")
def test_the_command_leaves_groups_out(metricunet: Command, tmp_path: Path) -> None:
    words = ("phantom", "-n", "1", "--without", "floor", "--without", "image", "-o", str(tmp_path / "cohort"))
    ended = metricunet(*words, "--difficulty", "varied")
    assert ended.status == 0, ended.err
    recipe = json.loads((tmp_path / "cohort" / "phantoms.json").read_text())["recipe"]
    assert recipe["variety"] == ["base", "rectum", "gland", "beyond", "absent", "joints", "pelvis"]
    ended = metricunet(*words)
    assert ended.status == 2
    assert "add --difficulty varied to --without floor" in ended.err
    ended = metricunet(*words[:3], "--without", "roof", *words[-2:], "--difficulty", "varied")
    assert ended.status == 2
    assert (
        "--without must be one of floor, base, rectum, gland, image, beyond, absent, joints, pelvis; got 'roof'"
        in ended.err
    )


@pytest.mark.usefixtures("quick_phantoms")
def test_every_group_can_be_left_out_on_the_command_line(metricunet: Command, tmp_path: Path) -> None:
    words = [word for group in Variety().groups for word in ("--without", group)]
    ended = metricunet("phantom", "-n", "1", "--difficulty", "varied", *words, "-o", str(tmp_path))
    assert ended.status == 0, ended.err
    assert json.loads((tmp_path / "phantoms.json").read_text())["recipe"]["variety"] == []


def test_the_command_makes_both_cohorts(metricunet: Command, tmp_path: Path) -> None:
    clean, displaced = tmp_path / "clean", tmp_path / "displaced"
    words = ("phantom", "-n", "1", "--difficulty", "easy", "--readers", "1", "-o", str(clean), "--displaced")
    ended = metricunet(*words, str(displaced))
    assert (ended.status, ended.err) == (0, "")
    assert len(read_cohort(displaced).training) == 1
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    new = ("phantom", "-n", "1", "--difficulty", "easy", "-o", str(tmp_path / "new"))
    for more, message in (
        (("--displaced", str(displaced)), "add --readers 1 or more"),
        (("--readers", "1", "--displaced", str(tmp_path / "new")), "name two"),
        (("--readers", "1", "--displaced", str(tmp_path / "other")), "holds other files"),
    ):
        ended = metricunet(*new, *more)
        assert ended.status == 2
        assert message in ended.err
        assert len(ended.err.splitlines()) == 1
    assert not (tmp_path / "new").exists()


@pytest.mark.usefixtures("quick_phantoms")
def test_test_cases_of_another_difficulty(tmp_path: Path) -> None:
    plain, other = CohortPlan(2, n_test=1), CohortPlan(2, n_test=1, test_difficulty="varied")
    assert [order.difficulty for order in other.orders()] == ["real", "real", "varied"]
    assert other.recipe == plain.recipe | {"test_difficulty": "varied", "varied_version": VARIED_VERSION}
    assert CohortPlan(2, test_difficulty="real").recipe == CohortPlan(2).recipe
    make_cohort(tmp_path / "other", 1, n_test=1, test_difficulty="varied")
    with pytest.raises(InputError, match="made with test_difficulty 'varied', not None"):
        make_cohort(tmp_path / "other", 1, n_test=1)
    make_cohort(tmp_path / "plain", 1, n_test=1)
    with pytest.raises(InputError, match="made with test_difficulty None, not 'varied'"):
        make_cohort(tmp_path / "plain", 1, n_test=1, test_difficulty="varied")
    with pytest.raises(InputError, match="test_difficulty must be one of easy, real, varied; got 'hard'"):
        CohortPlan(1, test_difficulty="hard")  # type: ignore[arg-type]


@pytest.mark.usefixtures("quick_phantoms")
def test_varied_test_cases_alone_have_a_variety(tmp_path: Path) -> None:
    few = Variety(floor=False)
    plan = CohortPlan(1, n_test=1, test_difficulty="varied", variety=few)
    assert [order.variety for order in plan.orders()] == [None, few]
    without = CohortPlan(1, n_test=1, test_difficulty="varied")
    assert plan.recipe == without.recipe | {"variety": list(few.groups)}
    assert CohortPlan(1, n_test=1, test_difficulty="varied", variety=Variety()).recipe == without.recipe
    make_cohort(tmp_path, 1, n_test=1, test_difficulty="varied", variety=few)
    with pytest.raises(InputError, match=r"made with variety .*, not None"):
        make_cohort(tmp_path, 1, n_test=1, test_difficulty="varied")
    with pytest.raises(InputError, match="variety is for the difficulty varied alone; got it for real"):
        CohortPlan(1, test_difficulty="easy", variety=few)
