"""Which model is loaded, and what a result tells and writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

import metricunet as mu
from metricunet.api import Model, Result
from metricunet.files.nifti import read_nifti, write_nifti
from metricunet.files.own import OwnFiles
from tests.api.conftest import BANDS, GLAND, LABELS
from tests.support.cohorts import write_dataset_json
from tests.support.dicom_series import Written, write_series
from tests.support.threshold_model import ball, drawn_scan, write_bands_model


class TestTheModelThatNobodyNames:
    @pytest.fixture
    def shipped(self, model_file: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.delenv("METRICUNET_MODEL", raising=False)
        monkeypatch.setattr("metricunet.inference.models.SHIPPED", model_file)
        return model_file

    def test_the_shipped_one_is_used_with_a_warning(self, shipped: Path, scan: Path, tmp_path: Path) -> None:
        with pytest.warns(UserWarning, match="trained on synthetic scans only and not validated") as caught:
            model = mu.load_model(device="cpu")
        assert model.paths == (shipped,)
        assert [(warning.filename, len(caught)) for warning in caught] == [(__file__, 1)]
        with pytest.warns(UserWarning, match="for research only"):
            assert mu.predict(scan, device="cpu").model.paths == (shipped,)
        with pytest.warns(UserWarning, match="for research only"):
            mu.predict(scan, output=tmp_path, device="cpu")
        record = json.loads((tmp_path / "run.json").read_text())
        assert record["warnings"] == [str(caught[0].message)]
        assert record["arguments"]["models"] == [str(shipped)]

    def test_the_environment_comes_first_and_warns_of_nothing(
        self, shipped: Path, scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        mine = write_bands_model(tmp_path / "mine.safetensors", LABELS, BANDS)
        monkeypatch.setenv("METRICUNET_MODEL", str(mine))
        assert mu.load_model(device="cpu").paths == (mine,)
        mu.predict(scan, output=tmp_path / "out", device="cpu")
        assert json.loads((tmp_path / "out" / "run.json").read_text())["warnings"] == []

    def test_a_build_without_one_says_how_to_name_one(
        self, shipped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("metricunet.inference.models.SHIPPED", tmp_path / "none")
        with pytest.raises(mu.InputError, match="ships no model; name a model file with models, or in the env"):
            mu.load_model()

    def test_strong_doubt_withholds_a_structure_set_with_a_warning(
        self, model_file: Path, dicom: Written, tmp_path: Path
    ) -> None:
        dark = {"target_hu": (0.0, 20.0)}
        file = write_bands_model(tmp_path / "m.safetensors", LABELS, BANDS, trained_on="synthetic", ranges=dark)
        result = mu.load_model(file, device="cpu").predict(dicom.folder)
        assert result.quality.doubt == "strong"
        with pytest.warns(UserWarning, match="rtstruct not written, .* then draw with draw_anyway=True") as caught:
            written = result.save(tmp_path / "out", ["nifti", "rtstruct"])
        assert caught[0].filename == __file__
        assert [path.name.partition(".")[2] for path in written] == ["nii.gz", "quality.json", "json"]
        assert all(path.is_file() for path in written)
        with pytest.warns(UserWarning, match="rtstruct not written, .* then draw with draw_anyway=True") as caught:
            outcome = mu.predict(dicom.folder, file, tmp_path / "files", device="cpu", formats="rtstruct")
        assert [warning.filename for warning in caught] == [__file__]
        assert outcome.cases[0].withheld == ("rtstruct",)
        written = result.save(tmp_path / "out", ["nifti", "rtstruct"], draw_anyway=True)
        assert any(path.name.endswith(".rtstruct.dcm") for path in written)


class TestResult:
    def test_probabilities_lie_on_the_scans_own_grid(self, result: Result, scan: Path) -> None:
        volume = read_nifti(scan)
        for name in LABELS:
            found, mask = result.probability(name), result.mask(name)
            assert found.array.dtype == np.float32
            assert found.geometry.same_grid(volume.geometry, 0)
            assert (found.array[mask.array] > 1 / 3).all()  # the likeliest of three classes
            assert (found.array <= 1).all()
            assert (found.array[volume.array < -200] < 0.1).all()

    def test_the_target_is_what_no_name_means(self, result: Result) -> None:
        assert np.array_equal(result.mask().array, result.mask("prostate").array)
        ml = result.quality.structures["prostate"]["volume_ml"]
        assert result.volume_ml() == pytest.approx(ml, abs=0.01)
        assert 10 < ml < 50

    def test_nothing_found_is_an_empty_mask_and_a_verdict(self, nothing: Result, tmp_path: Path) -> None:
        assert nothing.is_absent
        assert not nothing.mask("prostate").array.any()
        assert not nothing.probability("bladder").array.any()
        assert nothing.quality.verdict == "fail"
        assert "not found: no contour" in nothing.plot().svg
        written = nothing.save(tmp_path)
        assert [path.name for path in written] == ["scan.quality.json", "run.json"]
        assert sorted(tmp_path.iterdir()) == sorted(written)

    def test_a_mask_that_somebody_corrected_is_theirs(self, result: Result, tmp_path: Path) -> None:
        mask = result.save(tmp_path)[0]
        result.save(tmp_path)  # its own files it may replace
        write_nifti(mask, result.mask().with_array(~result.mask().array))
        before = mask.read_bytes()
        with pytest.raises(mu.InputError, match="not written by this program or was changed"):
            result.save(tmp_path)
        assert mask.read_bytes() == before
        result.save(tmp_path, overwrite=True)
        assert mask.read_bytes() != before

    def test_masks_never_go_among_a_cohorts_images(self, result: Result, tmp_path: Path) -> None:
        write_dataset_json(tmp_path, LABELS, 1, "drawn", "nobody")
        with pytest.raises(mu.InputError, match="holds the images of a cohort"):
            result.save(tmp_path / "imagesTs")
        assert [path.name for path in tmp_path.iterdir()] == ["dataset.json"]

    def test_one_process_at_a_time_writes_into_a_folder(
        self, result: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        commit, held = OwnFiles.commit, dict[str, bool]()

        def seen(own: OwnFiles, content: dict[str, Any]) -> None:
            held[own.record] = own.claim.is_file()
            commit(own, content)

        monkeypatch.setattr(OwnFiles, "commit", seen)
        result.save(tmp_path)
        assert held == {"pelvis.quality.json": True, "run.json": True}

    def test_the_scan_is_never_replaced(self, model: Model, tmp_path: Path) -> None:
        path = tmp_path / "a.nii.gz"
        write_nifti(path, drawn_scan(GLAND, shape=(40, 48, 48)))
        with pytest.raises(mu.InputError, match="is an input"):
            model.predict(path).save(tmp_path, overwrite=True)

    def test_a_scan_that_was_changed_since_is_not_taken_for_what_was_segmented(
        self, model: Model, tmp_path: Path
    ) -> None:
        path, out = tmp_path / "a.nii.gz", tmp_path / "out"
        write_nifti(path, drawn_scan(GLAND, shape=(40, 48, 48)))
        found = model.predict(path)
        write_nifti(path, drawn_scan(shape=(40, 48, 40)))
        with pytest.raises(mu.InputError, match=r"was changed since it was read, .*load it again"):
            found.save(out)
        assert not out.exists()
        assert model.predict(path).save(out)

    @pytest.mark.parametrize("name", ["a.nii.gz", "a_0000.nii.gz"])
    def test_nor_is_the_file_of_an_image_in_memory(self, model: Model, tmp_path: Path, name: str) -> None:
        path, place = tmp_path / name, tmp_path / "a.nii.gz"
        write_nifti(path, drawn_scan(GLAND, shape=(40, 48, 48)))
        if path != place:
            place.symlink_to(path)
        before = path.read_bytes()
        with pytest.raises(mu.InputError, match="is an input"):
            model.predict(nib.load(path)).save(tmp_path, overwrite=True)
        assert path.read_bytes() == before

    def test_scans_from_memory_have_the_names_that_they_are_given(self, model: Model, tmp_path: Path) -> None:
        volume = drawn_scan(GLAND, shape=(40, 48, 48))
        for name in ("first", "second"):
            model.predict(mu.load_scan(volume, name=name)).save(tmp_path)
        assert {p.name for p in tmp_path.glob("*.nii.gz")} == {"first.nii.gz", "second.nii.gz"}

    def test_the_prediction_of_another_scan_from_memory_is_not_replaced(
        self, model: Model, tmp_path: Path
    ) -> None:
        first, second = (
            model.predict(drawn_scan(shape, shape=(40, 48, 48)))
            for shape in (GLAND, (ball((0, 0, 0), 15), GLAND[1]))
        )
        mask = first.save(tmp_path)[0]
        assert first.save(tmp_path)[0] == mask
        before = mask.read_bytes()
        with pytest.raises(mu.InputError, match="another scan of this name, which was in memory, and would be"):
            second.save(tmp_path)
        assert mask.read_bytes() == before
        second.save(tmp_path, overwrite=True)
        assert mask.read_bytes() != before

    def test_two_series_that_were_given_one_name_are_two_scans(self, model: Model, tmp_path: Path) -> None:
        volume = drawn_scan(GLAND, shape=(40, 48, 48))
        first, second = (
            write_series(tmp_path / patient, volume.array, spacing_mm=volume.spacing_mm).folder
            for patient in ("one", "two")
        )
        out = tmp_path / "out"
        verdict = model.predict(mu.load_scan(first, name="pelvis")).save(out)[1]
        model.predict(mu.load_scan(first, name="pelvis")).save(out)
        before = verdict.read_bytes()
        with pytest.raises(mu.InputError, match=r"another scan of this name, .*one, and would be replaced"):
            model.predict(mu.load_scan(second, name="pelvis")).save(out)
        assert verdict.read_bytes() == before

    def test_images_in_memory_whose_files_have_one_name_are_two_scans(self, model: Model, tmp_path: Path) -> None:
        paths = [tmp_path / patient / "ct.nii.gz" for patient in ("one", "two")]
        for path in paths:
            write_nifti(path, drawn_scan(GLAND, shape=(40, 48, 48)))
        model.predict(paths[0]).save(tmp_path / "out")
        model.predict(nib.load(paths[0])).save(tmp_path / "out")  # the same file
        model.predict(paths[0]).save(tmp_path / "again")
        with pytest.raises(mu.InputError, match=r"another scan of this name, .*one.ct\.nii\.gz, and would be"):
            model.predict(nib.load(paths[1])).save(tmp_path / "again")

    def test_a_picture_shows_the_contours_without_a_reference(self, result: Result, tmp_path: Path) -> None:
        picture = result.plot("bladder")
        assert picture._repr_svg_().startswith("<svg ")
        assert picture.svg.count("<image ") == 3
        assert (
            "stroke='#e69f00'" in picture.svg
        )  # the prostate's outline, in a plane of the bladder's, and its name
        assert ">bladder</text>" in picture.svg
        page = picture.save(str(tmp_path / "case.html")).read_text(encoding="utf-8")
        assert all(reason in page for reason in ["prostate", picture.svg])
        assert picture.save(tmp_path / "case.svg").read_text(encoding="utf-8") == picture.svg
