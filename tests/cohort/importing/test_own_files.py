"""What an import may replace and remove, what a fault in one case costs, and what a killed one leaves."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from metricunet.cohort.importing import import_cohort, run
from metricunet.cohort.importing.run import DESCRIPTIONS, IMPORT_NAME
from metricunet.cohort.layout import read_cohort
from metricunet.errors import InputError
from metricunet.files.own import read_sealed
from tests.support.command import Command
from tests.support.patients import Patient, write_ct, write_set

PROSTATE, BLADDER = (6.5, 11.5, [1, 2, 3]), (12.5, 15.5, [2, 3, 4])
ERRORS = (InputError("odd"), KeyError("odd"), MemoryError(), OSError(5, "odd"), RecursionError("odd"))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for k in range(3):
        patient = Patient(f"Doe{k}^John", f"P-{k}00")
        series = write_ct(tmp_path / "tree" / str(k) / "ct", patient)
        write_set(tmp_path / "tree" / str(k) / "RS.dcm", patient, series, {"Prostate": PROSTATE})
    (tmp_path / "names.yaml").write_text("prostate: [Prostate]\n")
    return tmp_path / "tree"


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def content_of(cohort: Path) -> dict[str, Any]:
    record = json.loads((cohort / IMPORT_NAME).read_text())
    passing = ("started", "timings_s", "arguments", "seal")
    return {**files_of(cohort), IMPORT_NAME: {k: v for k, v in record.items() if k not in passing}}


def words(tree: Path, out: Path, *more: object) -> tuple[object, ...]:
    return ("import", tree, "-o", out, "--names", tree.parent / "names.yaml", *more)


def test_the_record_states_every_file_of_the_cohort(tree: Path, tmp_path: Path) -> None:
    import_cohort([tree], tmp_path / "cohort", names=tmp_path / "names.yaml")
    record = read_sealed(tmp_path / "cohort" / IMPORT_NAME)
    assert record is not None
    assert {*record["files"], IMPORT_NAME} == set(files_of(tmp_path / "cohort"))
    assert {"version", "arguments", "machine", "timings_s", "names_sha256"} <= set(record)
    assert all(len(case["source_sha256"]) == 64 for case in record["cases"].values())


@pytest.mark.parametrize("which", ["label", "image", *DESCRIPTIONS, IMPORT_NAME])
def test_a_file_that_was_changed_since_is_its_owners(
    tree: Path, tmp_path: Path, metricunet: Command, which: str
) -> None:
    cohort = tmp_path / "cohort"
    assert metricunet(*words(tree, cohort)).status == 0
    whole = content_of(cohort)
    case = read_cohort(cohort).training[1]
    changed = {"label": case.label, "image": case.image}.get(which) or cohort / which
    changed.write_bytes(changed.read_bytes() + b" " if which != IMPORT_NAME else b"{}")
    before = files_of(tmp_path)
    # Also where the sources ask for other labels, or have lost the case's own structure set.
    for text in ("prostate: [Prostate]\n", "gland: [Prostate]\n"):
        (tmp_path / "names.yaml").write_text(text)
        ended = metricunet(*words(tree, cohort))
        assert ended.status == 2
        assert ended.err.startswith(f"error: {changed}: is there already")
        # What the program itself advises to write there is not to be lost by following the next advice.
        assert ("keep a copy, replace it with --overwrite, and write" in ended.err) == (which == "patients.json")
        assert files_of(cohort) == {k[7:]: v for k, v in before.items() if k.startswith("cohort/")}
    (tmp_path / "names.yaml").write_text("prostate: [Prostate]\n")
    assert metricunet(*words(tree, cohort, "--overwrite")).status == 0
    assert content_of(cohort) == whole


STEPS = {
    "reading": (run, "_CaseWorker", "do"),
    "merging": (run, None, "merge"),
    "hashing": (run, None, "sha256"),
    "writing": (run, None, "write_nifti"),
}


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("error", ERRORS, ids=lambda e: type(e).__name__)
def test_a_fault_in_a_patient_costs_that_patient_alone(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, metricunet: Command, step: str, error: Exception
) -> None:
    names = tmp_path / "names.yaml"
    import_cohort([tree], tmp_path / "whole", names=names)
    module, owner, name = STEPS[step]
    place = module if owner is None else getattr(module, owner)
    real: Callable[..., Any] = getattr(place, name)
    calls = 0

    def failing(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == (3 if step == "writing" else 2):  # two files for each case
            raise error
        return real(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(place, name, failing)
        ended = metricunet(*words(tree, tmp_path / "cohort"))
    assert ended.status == 1, ended.err
    assert ended.err.count("refused: ") == 1
    found, whole = content_of(tmp_path / "cohort"), content_of(tmp_path / "whole")
    masks = {name for name in found if name.endswith(".nii.gz")}
    assert len(masks) == 4
    assert {name: found[name] for name in masks} == {name: whole[name] for name in masks}
    for case, entry in found[IMPORT_NAME]["cases"].items():
        assert entry == whole[IMPORT_NAME]["cases"][case]
    assert len(found[IMPORT_NAME]["left_out"]) == 1
    import_cohort([tree], tmp_path / "cohort", names=names)
    assert content_of(tmp_path / "cohort") == whole


def test_two_sets_for_one_structure_cost_that_patient_alone(
    tree: Path, tmp_path: Path, metricunet: Command
) -> None:
    """As clinics keep them: as planned, and corrected."""
    patient = Patient("Doe3^John", "P-300")
    series = write_ct(tree / "3" / "ct", patient)
    low, high, slices = PROSTATE
    for name, shift_mm in (("RS.dcm", 0), ("RS_corrected.dcm", 1)):
        write_set(tree / "3" / name, patient, series, {"Prostate": (low + shift_mm, high + shift_mm, slices)})
    ended = metricunet(*words(tree, tmp_path / "cohort"))
    assert ended.status == 1
    assert len(read_cohort(tmp_path / "cohort").training) == 3
    (line,) = [line for line in ended.err.splitlines() if line.startswith("refused: ")]
    assert "RS.dcm" in line
    assert "RS_corrected.dcm" in line
    assert "drawn twice" in line


def test_debug_shows_where_a_patient_failed(
    tree: Path, tmp_path: Path, metricunet: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = run.merge, 0

    def failing_once(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise KeyError("odd")
        return real(*arguments)

    monkeypatch.setattr(run, "merge", failing_once)
    ended = metricunet("--debug", *words(tree, tmp_path / "cohort"))
    assert ended.status == 1
    assert "Traceback" in ended.err
    assert "KeyError" in ended.err


@pytest.mark.parametrize("place", ["", "0", "0/cohort", "link"])
def test_an_output_in_a_source_is_refused(tree: Path, tmp_path: Path, metricunet: Command, place: str) -> None:
    (tmp_path / "link").symlink_to(tree)
    out = tmp_path / "link" / "cohort" if place == "link" else tree / place
    before = files_of(tmp_path)
    for more in ((), ("--overwrite",)):
        ended = metricunet(*words(tree, out, *more))
        assert ended.status == 2
        assert "lies in the source" in ended.err
        assert files_of(tmp_path) == before


def test_an_output_above_the_sources_changes_none(tree: Path, tmp_path: Path, metricunet: Command) -> None:
    before = files_of(tmp_path)
    assert metricunet(*words(tree, tmp_path)).status == 2
    assert files_of(tmp_path) == before
    assert metricunet(*words(tree, tmp_path, "--overwrite")).status == 0
    assert before.items() <= files_of(tmp_path).items()


@pytest.mark.parametrize("make", [os.link, os.symlink])
def test_a_source_under_an_outputs_name_is_never_replaced(
    tree: Path, tmp_path: Path, metricunet: Command, make: Callable[[Path, Path], None]
) -> None:
    cohort = tmp_path / "cohort"
    import_cohort([tree], cohort, names=tmp_path / "names.yaml")
    label = read_cohort(cohort).training[0].label
    assert label is not None
    label.unlink()
    make(tree / "1" / "RS.dcm", label)
    before = files_of(tree)
    for more in ((), ("--overwrite",)):
        ended = metricunet(*words(tree, cohort, *more))
        assert ended.status == 2
        assert f"{label}: is an input" in ended.err
        assert files_of(tree) == before


def test_a_second_import_into_a_folder_is_refused_and_the_first_loses_nothing(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, metricunet: Command
) -> None:
    cohort, names = tmp_path / "cohort", tmp_path / "names.yaml"
    import_cohort([tree], tmp_path / "whole", names=names)
    real = run._CaseWorker.do
    second: list[Any] = []

    def meanwhile(*arguments: Any) -> Any:
        if not second:
            second.append("begins")
            second.append(metricunet(*words(tree, cohort, "--overwrite")))
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(run._CaseWorker, "do", meanwhile)
        import_cohort([tree], cohort, names=names)
    assert second[1].status == 2
    assert f"{cohort}: an import is going on here already" in second[1].err
    assert content_of(cohort) == content_of(tmp_path / "whole")


class Killed(BaseException):
    """A process that ends where it stands: nothing is cleaned up."""


@pytest.mark.parametrize("begun", ["new", "other labels"])
def test_an_import_killed_anywhere_is_gone_on_with(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begun: str
) -> None:
    """Killed before each change of the file system; the next one ends with the files of an unbroken run."""
    names = tmp_path / "names.yaml"
    shutil.rmtree(tree / "2")
    shutil.rmtree(tree / "1")
    import_cohort([tree], tmp_path / "whole", names=names)
    whole = content_of(tmp_path / "whole")
    names.write_text("gland: [Prostate]\n")
    import_cohort([tree], tmp_path / "other", names=names)
    names.write_text("prostate: [Prostate]\n")
    ended = False
    stop = 0
    while not ended:
        stop += 1
        cohort = tmp_path / f"cohort{stop}"
        if begun == "other labels":
            shutil.copytree(tmp_path / "other", cohort)
        count = 0

        def counted(real: Callable[..., Any], stop: int = stop) -> Callable[..., Any]:
            def call(*arguments: Any, **options: Any) -> Any:
                nonlocal count
                count += 1
                if count >= stop:  # nor does anything happen after it
                    raise Killed
                return real(*arguments, **options)

            return call

        with monkeypatch.context() as patch:
            for name in ("replace", "link", "unlink", "mkdir", "rmdir"):
                patch.setattr(os, name, counted(getattr(os, name)))
            try:
                import_cohort([tree], cohort, names=names)
                ended = True
            except Killed:
                pass
        for claim in cohort.glob("*.claim"):
            claim.unlink()  # of a process that would be dead
        import_cohort([tree], cohort, names=names)
        assert content_of(cohort) == whole, stop
    assert stop > 30
