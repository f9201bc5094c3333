"""Scores for a model's card: of its own predictions, of enough patients, whom no training has seen."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from metricunet.errors import InputError
from metricunet.evaluation.cases import RecordedQuality
from metricunet.evaluation.compare import evaluate
from metricunet.evaluation.held_out import HeldOut
from metricunet.evaluation.measures import Measures
from metricunet.evaluation.summary import CaseFault, CaseRow, Evaluation, summarise
from metricunet.files.model import LEAST_PATIENT_CASES, Ancestor, ModelCard, read_card, read_model, write_model
from metricunet.files.nifti import write_nifti
from metricunet.files.own import write_sealed
from metricunet.files.record import sha256
from metricunet.specs import LocateSpec, SegmentSpec
from metricunet.volume import Geometry, Volume
from tests.support.command import Command

GRID = Geometry.from_parts((6, 10, 10), (3, 2, 2))
CARD = ModelCard(
    locate=LocateSpec({"in_channels": 1, "classes": 2, "architecture": "unet"}, (4.0, 4.0, 4.0), (-250.0, 450.0)),
    segment=SegmentSpec(
        {"in_channels": 3, "classes": 2, "architecture": "unet"}, (2.0, 1.0, 1.0), (48, 128, 128), (-150.0, 250.0)
    ),
    labels={"prostate": 1},
    tg263={"prostate": "Prostate"},
    target="prostate",
    ranges={},
    validation={},
    trained_on="synthetic",
    data_sha256="0" * 64,
    seed=3,
    version="0.1.0",
)


def fingerprint(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


@dataclass
class Setting:
    """References, predictions as `metricunet predict` leaves them, and the model that made them."""

    folder: Path

    @property
    def model(self) -> Path:
        return self.folder / "run" / "model.safetensors"

    @property
    def predictions(self) -> Path:
        return self.folder / "predictions"

    @property
    def references(self) -> Path:
        return self.folder / "cohort" / "labelsTs"

    @property
    def output(self) -> Path:
        return self.folder / "scores"

    def write_model(self, **changes: Any) -> None:
        self.model.parent.mkdir(exist_ok=True)
        write_model(self.model, replace(CARD, **changes), {"locate.weight": torch.arange(4.0)})

    def describe(self, trained_on: str | None = "patients", **labels: int) -> None:
        content = {"channel_names": {"0": "CT"}, "labels": {"background": 0, **(labels or {"prostate": 1})}}
        self.references.parent.mkdir(parents=True, exist_ok=True)
        (self.references.parent / "dataset.json").write_text(json.dumps({**content, "trained_on": trained_on}))

    def predict(self, case: str, *, found: bool = True, there: bool = True, **changes: Any) -> None:
        """Add a case; without `found` the model missed it, without `there` the reference is empty."""
        mask = np.zeros(GRID.shape, dtype=np.uint8)
        mask[2:4, 3:7, 3:7] = 1
        write_nifti(self.references / f"{case}.nii.gz", Volume(mask * there, GRID))
        files = {}
        if found:
            path = self.predictions / f"{case}.nii.gz"
            write_nifti(path, Volume(mask, GRID))
            files[path.name] = sha256([path])
        content = {
            "command": "predict",
            "model_sha256": sha256([self.model]),
            "input_sha256": fingerprint(case),
            "structures": {"prostate": {}} if found else {},
        }
        self.predictions.mkdir(exist_ok=True)
        write_sealed(self.predictions / f"{case}.quality.json", content | changes, files)

    def predict_all(self, names: Sequence[str]) -> None:
        for name in names:
            self.predict(name)

    def evaluate(self, **more: Any) -> Any:
        return evaluate(self.predictions, self.references, self.output, write_card=self.model, **more)


ENOUGH = [f"patient_{k:02}" for k in range(LEAST_PATIENT_CASES)]


@pytest.fixture
def setting(tmp_path: Path) -> Setting:
    made = Setting(tmp_path)
    made.describe()
    made.write_model()
    return made


def test_a_case_of_which_a_part_was_written_is_refused(setting: Setting) -> None:
    setting.predict_all(ENOUGH)
    setting.predict("patient_x", chosen=["prostate"])
    with pytest.raises(InputError, match=r"patient_x.*only prostate was written; predict the case again with all"):
        setting.evaluate()
    assert not setting.output.exists()


def test_the_scores_stand_in_the_card_of_a_copy(setting: Setting, metricunet: Command) -> None:
    setting.predict_all(ENOUGH[1:])
    setting.predict("patient_x", found=False)
    setting.predict("woman", found=False, there=False)
    before = setting.model.read_bytes()
    assert read_card(setting.model).held_back
    result = setting.evaluate()
    assert setting.model.read_bytes() == before
    assert result.model == setting.output / "model.safetensors"
    card, weights = read_model(result.model)
    assert card.validated is not None
    assert (card.validated.cases, card.validated.missed) == (LEAST_PATIENT_CASES, 1)
    assert card.validated.means["prostate"]["dice"] == pytest.approx(1 - 1 / LEAST_PATIENT_CASES)
    assert len(card.validated.scans) == LEAST_PATIENT_CASES + 1
    assert replace(card, validated=None) == read_card(setting.model)
    assert torch.equal(weights["locate.weight"], read_model(setting.model)[1]["locate.weight"])
    assert card.held_back == ""
    text = metricunet("info", result.model).out
    assert "validated:\n  cases: 20\n  missed: 1\n" in text
    assert "review at best" not in text


def test_the_command_says_where_the_model_is(setting: Setting, metricunet: Command) -> None:
    setting.predict_all(ENOUGH)
    words = [
        "evaluate",
        setting.predictions,
        setting.references,
        "-o",
        setting.output,
        "--write-card",
        setting.model,
    ]
    ended = metricunet(*words)
    assert (ended.status, ended.err) == (0, "")
    assert f"scores in its card: {setting.output / 'model.safetensors'}" in ended.out
    again = metricunet(*words)
    assert again.status == 2
    assert (
        "model.safetensors: is there already; choose another folder, or replace it with --overwrite" in again.err
    )
    assert metricunet(*words, "--overwrite").status == 0
    # Without the option, an evaluation into the folder leaves the model where it is.
    assert metricunet(*words[:-2]).status == 0
    assert (setting.output / "model.safetensors").is_file()


def test_a_model_that_another_evaluation_wrote_meanwhile_is_not_replaced(setting: Setting) -> None:
    setting.predict_all(ENOUGH)
    written: dict[str, bytes] = {}

    def another(done: int, _: int) -> None:
        if done == 1:
            setting.evaluate()
            written.update({path.name: path.read_bytes() for path in setting.output.iterdir()})

    with pytest.raises(InputError, match=r"model\.safetensors: is there already; choose another folder"):
        setting.evaluate(progress=another)
    assert setting.model.name in written
    assert {path.name: path.read_bytes() for path in setting.output.iterdir()} == written


def test_the_model_itself_is_never_replaced(setting: Setting) -> None:
    setting.predict_all(ENOUGH)
    with pytest.raises(InputError, match="is an input and would be overwritten"):
        evaluate(
            setting.predictions, setting.references, setting.model.parent, write_card=setting.model, overwrite=True
        )


def too_few(setting: Setting) -> None:
    setting.predict_all(ENOUGH[1:])


def too_few_with_the_target(setting: Setting) -> None:
    setting.predict_all(ENOUGH[1:])
    setting.predict("woman", found=False, there=False)


def phantoms(setting: Setting) -> None:
    setting.describe("synthetic")
    setting.predict_all(ENOUGH)


def other_labels(setting: Setting) -> None:
    setting.describe(bladder=1, prostate=2)
    setting.predict_all(ENOUGH)


def own_training_case(setting: Setting) -> None:
    setting.write_model(trained_on="patients", cases=(fingerprint(ENOUGH[3]),))
    setting.predict_all(ENOUGH)


def ancestors_training_case(setting: Setting) -> None:
    ancestor = Ancestor("grandfather", "a" * 64, synthetic=False, cases=(fingerprint(ENOUGH[3]),))
    setting.write_model(lineage=(ancestor,))
    setting.predict_all(ENOUGH)


def own_validation_case(setting: Setting) -> None:
    cases = {"cases": ("a" * 64,), "validation_cases": (fingerprint(ENOUGH[3]),)}
    setting.write_model(trained_on="patients", **cases)
    setting.predict_all(ENOUGH)


def ancestors_validation_case(setting: Setting) -> None:
    ancestor = Ancestor("grandfather", "a" * 64, False, ("b" * 64,), (fingerprint(ENOUGH[3]),))
    setting.write_model(lineage=(ancestor,))
    setting.predict_all(ENOUGH)


def unknown_training(setting: Setting) -> None:
    setting.write_model(lineage=(Ancestor("grandfather", "a" * 64, synthetic=False),))
    setting.predict_all(ENOUGH)


def another_model(setting: Setting) -> None:
    setting.predict_all(ENOUGH[1:])
    setting.predict("other", model_sha256="f" * 64)


def corrected_mask(setting: Setting) -> None:
    setting.predict_all(ENOUGH)
    mask = np.ones(GRID.shape, dtype=np.uint8)
    write_nifti(setting.predictions / f"{ENOUGH[2]}.nii.gz", Volume(mask, GRID))


def changed_verdict(setting: Setting) -> None:
    setting.predict_all(ENOUGH)
    path = setting.predictions / f"{ENOUGH[2]}.quality.json"
    path.write_text(path.read_text().replace("input_sha256", "input"))


def no_verdict(setting: Setting) -> None:
    setting.predict_all(ENOUGH)
    (setting.predictions / f"{ENOUGH[2]}.quality.json").unlink()


def lost_mask(setting: Setting) -> None:
    setting.predict_all(ENOUGH)
    (setting.predictions / f"{ENOUGH[2]}.nii.gz").unlink()


def one_scan_twice(setting: Setting) -> None:
    setting.predict_all(ENOUGH)
    setting.predict("again", input_sha256=fingerprint(ENOUGH[2]))


def a_scan_from_memory(setting: Setting) -> None:
    setting.predict_all(ENOUGH[1:])
    setting.predict(ENOUGH[0], scan=None)


def a_case_that_cannot_be_scored(setting: Setting) -> None:
    setting.predict_all([*ENOUGH, "odd"])
    write_nifti(setting.references / "odd.nii.gz", Volume(np.full(GRID.shape, 9, dtype=np.uint8), GRID))


@pytest.mark.parametrize(
    ("prepare", "words"),
    [
        (too_few, "20 or more cases; 19 are there"),
        (too_few_with_the_target, "20 or more cases whose reference holds prostate; 19 are there"),
        (phantoms, r"dataset.json: says that its scans are synthetic"),
        (other_labels, "labels prostate with 1, the references with 2"),
        (own_training_case, r"patient_03: its scan was a training case of .*model.safetensors"),
        (ancestors_training_case, "patient_03: its scan was a training case of grandfather"),
        (own_validation_case, r"patient_03: its scan was a validation case of .*model.safetensors"),
        (ancestors_validation_case, "patient_03: its scan was a validation case of grandfather"),
        (unknown_training, "does not say which cases grandfather was trained on"),
        (another_model, r"other.quality.json: another model than .*model.safetensors predicted this case"),
        (corrected_mask, r"patient_02.nii.gz: was changed since it was predicted"),
        (changed_verdict, "patient_02: has no verdict that `metricunet predict` wrote"),
        (no_verdict, "patient_02: has no verdict that `metricunet predict` wrote"),
        (lost_mask, r"patient_02.quality.json: its mask is not there"),
        (one_scan_twice, "its scan is that of"),
        (a_scan_from_memory, r"patient_00.quality.json: its scan came from memory"),
        (a_case_that_cannot_be_scored, r"odd: could not be scored .*must be of all cases"),
    ],
)
def test_what_proves_nothing_is_refused_and_nothing_is_written(
    setting: Setting, prepare: Callable[[Setting], None], words: str
) -> None:
    prepare(setting)
    with pytest.raises(InputError, match=words):
        setting.evaluate()
    assert not setting.output.exists()


def test_a_case_whose_target_alone_could_not_be_scored_is_not_passed_over(setting: Setting) -> None:
    """As where a reference has two drawn structures that are the target by their names, and sound organs."""
    measured = Measures(0.9, 1.0, 0.9, 0.9, 3.0, 0.9, 0.1)
    rows = [CaseRow(case, name, measured) for case in ENOUGH for name in ("prostate", "rectum")]
    rows.append(CaseRow("patient_x", "rectum", measured))
    quality = {row.case: RecordedQuality() for row in rows}
    fault = CaseFault("patient_x", "two are drawn", InputError("two are drawn"), scored=True, structure="prostate")
    evaluation = Evaluation(tuple(rows), summarise(rows), (), (), quality, (fault,))
    held_out = HeldOut(setting.model, CARD, {case: fingerprint(case) for case in quality}, setting.output)
    with pytest.raises(InputError, match=r"patient_x: prostate could not be scored \(two are drawn\).*all cases"):
        held_out.scores(evaluation)
    # What the model does not segment, and a picture that could not be drawn, are no part of its scores.
    for other in (replace(fault, structure="rectum"), replace(fault, structure="")):
        assert held_out.scores(replace(evaluation, faults=(other,))).cases == LEAST_PATIENT_CASES


def test_a_scan_from_memory_counts_where_its_image_lies_beside_the_references(setting: Setting) -> None:
    setting.predict_all(ENOUGH[1:])
    setting.predict(ENOUGH[0], scan=None)
    image = setting.references.parent / "imagesTs" / f"{ENOUGH[0]}_0000.nii.gz"
    write_nifti(image, Volume(np.zeros(GRID.shape, dtype=np.int16), GRID))
    setting.evaluate()
    assert (setting.output / setting.model.name).is_file()


def test_the_image_of_a_training_case_is_known_under_another_name(setting: Setting) -> None:
    """Here the verdict's scan was DICOM, and the cohort holds its NIfTI file."""
    setting.predict_all(ENOUGH)
    image = setting.references.parent / "imagesTs" / f"{ENOUGH[0]}_0000.nii.gz"
    write_nifti(image, Volume(np.zeros(GRID.shape, dtype=np.int16), GRID))
    setting.write_model(cases=(sha256([image]),))
    setting.predict_all(ENOUGH)
    with pytest.raises(InputError, match="patient_00: its scan was a training case"):
        setting.evaluate()
