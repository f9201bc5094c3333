"""Scores of one case, as the command has them."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk  # noqa: N813

import metricunet as mu
from metricunet.api import Result
from metricunet.files.nifti import write_nifti
from tests.api.conftest import LABELS
from tests.support.cohorts import write_dataset_json
from tests.support.command import Command


class TestEvaluate:
    def test_a_result_against_itself_is_perfect(self, result: Result, tmp_path: Path) -> None:
        reference = result.save(tmp_path)[0]
        write_dataset_json(tmp_path, LABELS, 1, "drawn", "nobody")
        for truth in (
            reference,
            str(reference),
            result.labels,
            nib.load(reference),
            sitk.ReadImage(str(reference)),
        ):
            found = mu.evaluate(result, truth)
            assert {name: m.dice for name, m in found.items()} == {"prostate": 1.0, "bladder": 1.0}
        assert mu.evaluate(reference, reference) == found

    def test_it_measures_what_the_command_measures(
        self, metricunet: Command, result: Result, tmp_path: Path
    ) -> None:
        truth = np.roll(result.labels.array == 1, 2, axis=0).astype(np.uint8)
        (tmp_path / "truth").mkdir()
        write_nifti(tmp_path / "truth" / "pelvis.nii.gz", result.labels.with_array(truth))
        write_dataset_json(tmp_path / "truth", LABELS, 1, "drawn", "nobody")
        result.save(tmp_path / "out")
        report = mu.evaluate(str(tmp_path / "out"), str(tmp_path / "truth"), str(tmp_path / "scores"))
        assert (tmp_path / "scores" / "report.html").is_file()
        rows = {row.structure: row.measures for row in report.rows}
        found = mu.evaluate(result, tmp_path / "truth" / "pelvis.nii.gz")
        assert found == rows
        assert found["prostate"].outcome == "measured"

    def test_structures_go_by_their_names(self, result: Result, tmp_path: Path) -> None:
        other = np.select([result.labels.array == 1, result.labels.array == 2], [7, 3], 0).astype(np.uint8)
        other[:2, :2, :2] = 1
        write_nifti(tmp_path / "a.nii.gz", result.labels.with_array(other))
        write_dataset_json(tmp_path, {"rectum": 1, "bladder": 3, "prostate": 7}, 1, "drawn", "nobody")
        found = mu.evaluate(result, tmp_path / "a.nii.gz")
        assert {name: m.dice for name, m in found.items()} == {"bladder": 1.0, "prostate": 1.0}

    def test_a_structure_is_found_in_whatever_spelling_as_in_a_saved_mask(
        self, result: Result, tmp_path: Path
    ) -> None:
        mask, *_ = result.save(tmp_path / "out")
        truth = tmp_path / "truth" / "pelvis.nii.gz"
        write_nifti(truth, result.labels)
        write_dataset_json(truth.parent, {"prostate": 1, "Bladder": 2}, 1, "drawn", "nobody")
        expected = {"prostate": 1.0, "Bladder": 1.0}
        for prediction in (mask, result):
            assert {name: m.dice for name, m in mu.evaluate(prediction, truth).items()} == expected
        on_scan = mu.evaluate(result, truth, scan=result.scan)
        assert {name: m.dice for name, m in on_scan.items()} == expected

    def test_the_values_of_a_saved_mask_are_those_of_its_verdict(self, result: Result, tmp_path: Path) -> None:
        mask, *_ = result.save(tmp_path / "out")
        other = np.select([result.labels.array == 1, result.labels.array == 2], [2, 1], 0).astype(np.uint8)
        (tmp_path / "truth").mkdir()
        truth = tmp_path / "truth" / "pelvis.nii.gz"
        write_nifti(truth, result.labels.with_array(other))
        write_dataset_json(truth.parent, {"bladder": 1, "prostate": 2}, 1, "drawn", "nobody")
        report = mu.evaluate(mask, truth, tmp_path / "scores")
        found = mu.evaluate(mask, truth)
        assert found == {row.structure: row.measures for row in report.rows}
        assert {name: m.dice for name, m in found.items()} == {"bladder": 1.0, "prostate": 1.0}

    def test_what_nobody_contoured_is_left_out(self, result: Result, tmp_path: Path) -> None:
        write_nifti(tmp_path / "a.nii.gz", result.labels.with_array(np.uint8(result.labels.array == 1)))
        write_dataset_json(tmp_path, LABELS, 1, "drawn", "nobody")
        (tmp_path / "contoured.json").write_text(json.dumps({"a": ["prostate"]}))
        assert list(mu.evaluate(result, tmp_path / "a.nii.gz")) == ["prostate"]
