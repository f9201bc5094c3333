"""What comes in from anywhere gives the masks of the command."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

import metricunet as mu
from metricunet.api import Model, Result
from metricunet.files.nifti import read_labels, read_nifti
from tests.api.conftest import LABELS
from tests.support.command import Command
from tests.support.dicom_series import Written

SOURCES: dict[str, Callable[[Path], Any]] = {
    "text": str,
    "path": lambda path: path,
    "nibabel": nib.load,
    "SimpleITK": lambda path: sitk.ReadImage(str(path)),
    "array": lambda path: mu.load_scan(nib.load(path).get_fdata(), affine=nib.load(path).affine),
    "volume": read_nifti,
    "scan": mu.load_scan,
}


class TestSameMasks:
    @pytest.mark.parametrize("kind", SOURCES)
    def test_as_the_command_makes_of_the_file(
        self, metricunet: Command, model: Model, model_file: Path, scan: Path, tmp_path: Path, kind: str
    ) -> None:
        assert metricunet("predict", scan, "-m", model_file, "-o", tmp_path, "--device", "cpu").status == 0
        expected = read_labels(tmp_path / "pelvis.nii.gz")
        found = model.predict(SOURCES[kind](scan))
        assert found.labels.array.dtype == expected.array.dtype
        assert found.labels.geometry.same_grid(expected.geometry, 1e-3)
        assert found.labels.array.tobytes() == expected.array.tobytes()
        for name, value in LABELS.items():
            assert found.mask(name).array.dtype == bool
            assert np.array_equal(found.mask(name).array, expected.array == value)

    def test_saved_files_are_the_commands(
        self, metricunet: Command, result: Result, model_file: Path, scan: Path, tmp_path: Path
    ) -> None:
        metricunet("predict", scan, "-m", model_file, "-o", tmp_path / "command", "--device", "cpu")
        written = result.save(str(tmp_path / "door"))
        assert [path.name for path in written] == ["pelvis.nii.gz", "pelvis.quality.json", "run.json"]
        for path in written[:2]:
            assert path.read_bytes() == (tmp_path / "command" / path.name).read_bytes()
        of_command, of_door = (
            json.loads((tmp_path / name / "run.json").read_text()) for name in ("command", "door")
        )
        assert of_command.keys() == of_door.keys()
        for content, name in ((of_command, "command"), (of_door, "door")):
            assert content["arguments"].pop("output") == str(tmp_path / name)
            assert content["cases"]["pelvis"].pop("seconds") > 0
            del content["started"], content["timings_s"], content["files"], content["seal"]
        assert of_command == of_door
        again = metricunet("predict", scan, "-m", model_file, "-o", tmp_path / "door", "--device", "cpu")
        assert "pelvis: pass, found, doubt none (done before)" in again.out

    def test_a_dicom_folder_gives_the_commands_structure_set(
        self, metricunet: Command, model: Model, model_file: Path, dicom: Written, tmp_path: Path
    ) -> None:
        command = ("predict", dicom.folder, "-m", model_file, "--device", "cpu", "--format", "nifti,rtstruct,seg")
        metricunet(*command, "-o", tmp_path / "command")
        loaded = mu.load_scan(str(dicom.folder))
        found = model.predict(loaded)
        formats = ["nifti", "rtstruct", "seg"]
        written = found.save(tmp_path / "door", formats)
        assert [path.name for path in written[:4]] == [
            f"{loaded.name}{end}" for end in (".nii.gz", ".rtstruct.dcm", ".seg.dcm", ".quality.json")
        ]
        assert set(loaded.files) == set(dicom.files)
        mask = tmp_path / "command" / f"{loaded.name}.nii.gz"
        assert written[0].read_bytes() == mask.read_bytes()
        # DICOM files have new identifiers each time; what is stated of the contours has not.
        one, two = (json.loads((tmp_path / d / written[3].name).read_text()) for d in ("command", "door"))
        for content in (one, two):
            del content["files"], content["seal"]
        assert one == two
        assert one["structures"]["prostate"]["contours"]["volume_ml"] > 10
        assert "(done before)" in metricunet(*command, "-o", tmp_path / "door").out

    def test_a_folder_is_predicted_as_by_the_command(
        self, model_file: Path, scan: Path, result: Result, tmp_path: Path
    ) -> None:
        outcome = mu.predict(str(scan), str(model_file), str(tmp_path), device="cpu", formats="nifti")
        assert [case.case for case in outcome.cases] == ["pelvis"]
        assert read_labels(tmp_path / "pelvis.nii.gz").array.tobytes() == result.labels.array.tobytes()
        alone = mu.predict(scan, model_file, device="cpu")
        assert alone.labels.array.tobytes() == result.labels.array.tobytes()


def test_a_word_that_predict_does_not_know_is_named(scan: Path, model_file: Path, tmp_path: Path) -> None:
    for output in (None, tmp_path / "out"):
        with pytest.raises(TypeError, match="unexpected keyword argument 'devcie'"):
            mu.predict(scan, model_file, output, devcie="cpu")
    assert list(tmp_path.iterdir()) == []


def test_the_provider_of_an_exported_model_is_asked_for(
    scan: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str | None] = []

    def opened(paths: object, device: str, *, provider: str | None = None, **others: object) -> None:
        asked.append(provider)
        raise mu.InputError("enough")

    monkeypatch.setattr("metricunet.api.model.open_predictor", opened)
    with pytest.raises(mu.InputError, match="enough"):
        mu.predict(scan, tiny_model, provider="openvino")
    assert asked == ["openvino"]
    with pytest.raises(mu.InputError, match="provider"):  # a model file is computed by torch
        mu.predict(scan, tiny_model, tmp_path / "out", provider="openvino")
    assert list(tmp_path.iterdir()) == []


def test_a_fault_of_the_program_is_shown_beneath_its_sentence(
    scan: Path, model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> None:
        raise KeyError("odd")

    monkeypatch.setattr("metricunet.inference.predict.judge", failing)
    with pytest.raises(mu.InputError, match="an unexpected KeyError stopped it") as refused:
        mu.predict(scan, model_file, tmp_path, device="cpu")
    assert isinstance(refused.value.__cause__, KeyError)
