"""Commands whose work is shared out by Ray come to what they come to here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from metricunet.cohort.importing import import_cohort
from metricunet.engine import Engine
from metricunet.errors import WorkerDied
from metricunet.inference.case_files import CaseFiles
from metricunet.inference.predict import predict
from metricunet.phantom import make_cohort
from tests.support.engines import KilledBy, QuickMaker
from tests.support.patients import Patient, write_ct, write_set

#: Fields of records that say when and how long, and not what.
PASSING = {"started", "timings_s", "seal", "arguments", "seconds", "files", "device"}


def content_of(folder: Path) -> dict[str, Any]:
    """The bytes of all files, and of records what does not pass."""
    files = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {
        name: _lasting(json.loads(path.read_text())) if path.suffix == ".json" else path.read_bytes()
        for name, path in files.items()
    }


def _lasting(content: Any) -> Any:
    if isinstance(content, list):
        return [_lasting(one) for one in content]
    if isinstance(content, dict):
        return {name: _lasting(one) for name, one in content.items() if name not in PASSING}
    return content


def test_phantoms_of_two_machines_are_those_of_one(
    ray_engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick_phantoms: None
) -> None:
    wanted: dict[str, Any] = {"n": 4, "n_test": 1, "n_readers": 1, "difficulty": "easy"}
    make_cohort(tmp_path / "here", **wanted)
    make_cohort(tmp_path / "there", **wanted | {"n": 1})  # to be gone on with
    monkeypatch.setattr("metricunet.phantom.cohort._Maker", QuickMaker)
    make_cohort(tmp_path / "there", **wanted, engine=ray_engine)
    assert content_of(tmp_path / "there") == content_of(tmp_path / "here")


def test_patients_imported_by_two_machines_are_those_of_one(ray_engine: Engine, tmp_path: Path) -> None:
    for k in range(3):
        patient = Patient(f"Doe{k}^John", f"P-{k}00")
        series = write_ct(tmp_path / "tree" / str(k) / "ct", patient)
        write_set(tmp_path / "tree" / str(k) / "RS.dcm", patient, series, {"Prostate": (6.5, 11.5, [1, 2, 3])})
    (tmp_path / "names.yaml").write_text("prostate: [Prostate]\n")
    damaged = sorted((tmp_path / "tree" / "1" / "ct").iterdir())[2]
    damaged.write_bytes(damaged.read_bytes()[:-40])
    for name, engine in (("here", None), ("there", ray_engine)):
        import_cohort([tmp_path / "tree"], tmp_path / name, names=tmp_path / "names.yaml", engine=engine)
    assert content_of(tmp_path / "there") == content_of(tmp_path / "here")


def test_scans_segmented_by_two_machines_are_those_of_one_but_for_the_one_that_kills(
    ray_engine: Engine, tmp_path: Path, tiny_cohort: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scans = [tiny_cohort / "imagesTr", tiny_cohort / "imagesTs"]
    here = predict(scans, [tiny_model], tmp_path / "here", device="cpu")
    with monkeypatch.context() as patch:
        patch.setattr("metricunet.inference.predict._CaseWorker", KilledBy)
        done: list[tuple[int, int]] = []
        found = predict(
            scans, [tiny_model], tmp_path / "there", engine=ray_engine, progress=lambda *n: done.append(n)
        )
    assert done[-1] == (8, 8)
    assert [case.case for case in found.cases] == [c.case for c in here.cases if c.case != KilledBy.case]
    (refused,) = found.refused
    assert isinstance(refused.error, WorkerDied)
    died = "its worker process died, and the one of the second try, too"
    assert refused.reason.endswith(f"{KilledBy.case}_0000.nii.gz: {died}")
    whole, parts = content_of(tmp_path / "here"), content_of(tmp_path / "there")
    record = parts.pop("run.json")
    assert list(record["cases"]) == [case.case for case in found.cases]
    assert parts == {name: whole[name] for name in parts}
    assert whole.keys() - parts.keys() == {"run.json", f"{KilledBy.case}.nii.gz", f"{KilledBy.case}.quality.json"}
    # A rerun, without Ray, does what is missing and no more.
    monkeypatch.setattr(CaseFiles, "write", _only(KilledBy.case, CaseFiles.write))
    again = predict(scans, [tiny_model], tmp_path / "there", device="cpu")
    assert [case.case for case in again.cases if not case.skipped] == [KilledBy.case]
    assert {n: c for n, c in content_of(tmp_path / "there").items() if n != "run.json"} == {
        name: content for name, content in whole.items() if name != "run.json"
    }


def _only(case: str, write: Any) -> Any:
    def checked(files: CaseFiles, prediction: Any, quality: Any, *more: Any) -> Any:
        assert quality.case == case
        return write(files, prediction, quality, *more)

    return checked
