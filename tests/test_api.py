"""The front door: what comes in from anywhere gives the masks of the command; what is wrong is said in a line."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import yaml
from lightning.fabric.loggers import CSVLogger

import metricunet as mu
from metricunet.api import Model, Result
from metricunet.engine import Serial
from metricunet.files.model import read_card
from metricunet.files.nifti import read_labels, read_nifti, write_nifti
from metricunet.files.own import OwnFiles
from metricunet.training.config import load_config
from metricunet.training.cross_validation import CrossValidation
from metricunet.volume import Geometry, Volume
from tests.support.cohorts import TINY_SETTINGS, write_dataset_json
from tests.support.command import Command
from tests.support.dicom_series import Written, write_series
from tests.support.threshold_model import (
    GLAND_BAND,
    GLAND_HU,
    ball,
    bands_known,
    box,
    drawn_scan,
    write_bands_model,
)

LABELS = {"prostate": 1, "bladder": 2}
BANDS = (GLAND_BAND, (160.0, 280.0))
GLAND = (ball((2, -3, 0), (19, 16, 18)), GLAND_HU)
BLADDER = (box((-10, -15, 20), (12, 8, 30)), 220.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("door")


@pytest.fixture(scope="module")
def scan(folder: Path) -> Path:
    """A file whose axes are stored in another order and direction than the package's."""
    volume = drawn_scan(GLAND, BLADDER, shape=(44, 60, 64), spacing_mm=(2.5, 1.9, 1.7))
    stored = volume.array.transpose(1, 2, 0)[:, ::-1]  # [row, column, slice], columns towards the right
    affine = volume.geometry.reordered((1, 2, 0), (False, True, False)).affine
    path = folder / "pelvis_0000.nii.gz"
    nib.save(nib.Nifti1Image(stored, np.diag([-1.0, -1, 1, 1]) @ affine), path)
    return path


@pytest.fixture(scope="module")
def dicom(folder: Path, scan: Path) -> Written:
    volume = read_nifti(scan).canonical()
    return write_series(folder / "ct", volume.array, spacing_mm=volume.spacing_mm)


@pytest.fixture(scope="module")
def model_file(folder: Path) -> Iterator[Path]:
    with bands_known():
        yield write_bands_model(folder / "model.safetensors", LABELS, BANDS)


@pytest.fixture(scope="module")
def model(model_file: Path) -> Model:
    return mu.load_model(str(model_file), device="cpu")


@pytest.fixture(scope="module")
def result(model: Model, scan: Path) -> Result:
    return model.predict(scan)


@pytest.fixture(scope="module")
def nothing(model: Model) -> Result:
    """Of a scan without a gland."""
    return model.predict(drawn_scan(shape=(40, 48, 48)))


class TestImport:
    def test_it_loads_nothing_until_a_name_is_used(self) -> None:
        code = (
            "import sys, metricunet as mu\n"
            "heavy = {'torch', 'numpy', 'scipy', 'nibabel', 'pydicom'}\n"
            "assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()\n"
            "assert set(mu.__all__) <= set(dir(mu))\n"
            "mu.InputError, mu.__version__\n"
            "assert not heavy & sys.modules.keys()\n"
        )
        subprocess.run([sys.executable, "-c", code], check=True)

    def test_every_name_is_there(self) -> None:
        assert all(getattr(mu, name) is not None for name in mu.__all__)
        with pytest.raises(AttributeError, match="no attribute 'segment'"):
            mu.segment  # noqa: B018


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


def test_training_takes_the_commands_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That it trains is seen in the notebook of docs/."""
    called: dict[str, Any] = {}

    def train(cohort: Path, output: Path, **others: Any) -> Path:
        called.update(others, cohort=cohort, output=output)
        return output / "model.safetensors"

    monkeypatch.setattr("metricunet.training.fit.train", train)
    (tmp_path / "a.yaml").write_text("segment: {slices: 3, epochs: 7}")
    settings = {key: yaml.safe_load(value) for key, value in (s.split("=", 1) for s in TINY_SETTINGS)}
    places: dict[str, Any] = {"cohort": "cohort", "output": str(tmp_path), "config": str(tmp_path / "a.yaml")}
    logger = CSVLogger(tmp_path / "logged")
    for given in (settings | {"segment.learning_rate": 1e-5}, [*TINY_SETTINGS, "segment.learning_rate=0.00001"]):
        path = mu.train(
            **places,
            preset="small",
            settings=given,
            fold="all",
            init="b.safetensors",
            resume=True,
            loggers=[logger],
        )
        assert path == tmp_path / "model.safetensors"
        expected = load_config("small", tmp_path / "a.yaml", [*TINY_SETTINGS, "segment.learning_rate=0.00001"])
        assert called["config"] == expected
        assert expected.segment.slices == 3
        assert (called["cohort"], called["output"]) == (Path("cohort"), tmp_path)
        assert (called["fold"], called["init"], called["resume"]) == ("all", Path("b.safetensors"), True)
        assert called["loggers"] == [logger]


def test_a_fold_may_be_a_whole_number_of_numpy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called: dict[str, Any] = {}

    def train(cohort: Path, output: Path, **others: Any) -> Path:
        called.update(others)
        return output / "model.safetensors"

    monkeypatch.setattr("metricunet.training.fit.train", train)
    mu.train("cohort", tmp_path, preset="small", fold=np.arange(3)[2])
    assert json.dumps(called["fold"]) == "2"


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

    monkeypatch.setattr("metricunet.api.open_predictor", opened)
    with pytest.raises(mu.InputError, match="enough"):
        mu.predict(scan, tiny_model, provider="openvino")
    assert asked == ["openvino"]
    with pytest.raises(mu.InputError, match="provider"):  # a model file is computed by torch
        mu.predict(scan, tiny_model, tmp_path / "out", provider="openvino")
    assert list(tmp_path.iterdir()) == []


class TestCrossValidation:
    """What `train(fold="each")` hands over, and what it says of cases that were lost."""

    @pytest.fixture
    def called(self, tiny_cohort: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
        from metricunet.training import cross_validation

        whole, called = cross_validation.cross_validate, dict[str, Any]()

        def train(cohort: Path, folder: Path, **others: object) -> Path:
            called["loggers"] = others["loggers"]
            return Path(shutil.copytree(tiny_model.parent, folder, dirs_exist_ok=True)) / tiny_model.name

        def cross_validate(*words: Any, **others: Any) -> CrossValidation:
            called.update(others)
            return whole(*words, **others)

        monkeypatch.setattr(cross_validation, "train", train)
        monkeypatch.setattr(cross_validation, "cross_validate", cross_validate)
        monkeypatch.setattr("metricunet.training.loggers.find_spec", lambda name: True)
        return called

    @pytest.fixture
    def cohort(self, tiny_cohort: Path, tmp_path: Path) -> Path:
        copy = Path(shutil.copytree(tiny_cohort, tmp_path / "cohort"))
        cases = [f"case_{k:02d}" for k in range(5)]
        splits = [{"train": [c for c in cases if c != val], "val": [val]} for val in cases[:2]]
        (copy / "splits.json").write_text(json.dumps(splits))
        return copy

    def test_an_engine_and_names_of_loggers_are_those_of_the_command(
        self, called: dict[str, Any], cohort: Path, tmp_path: Path, recwarn: pytest.WarningsRecorder
    ) -> None:
        engine = Serial()
        words: dict[str, Any] = {"preset": "small", "settings": TINY_SETTINGS, "device": "cpu", "fold": "each"}
        path = mu.train(cohort, tmp_path / "run", loggers=["mlflow"], engine=engine, **words)
        assert path == tmp_path / "run"
        assert called["engine"] is engine
        assert called["loggers"] == ("mlflow",)
        assert [warning for warning in recwarn if warning.filename == __file__] == []

    def test_a_case_that_is_lost_is_warned_of(self, called: dict[str, Any], cohort: Path, tmp_path: Path) -> None:
        (cohort / "labelsTr" / "case_01.nii.gz").write_bytes(b"damaged")
        words: dict[str, Any] = {"preset": "small", "settings": TINY_SETTINGS, "device": "cpu", "fold": "each"}
        with pytest.warns(UserWarning, match="segmented or scored: case_01: failed, not scored") as caught:
            mu.train(cohort, tmp_path / "run", **words)
        assert __file__ in [warning.filename for warning in caught]


def test_training_from_a_model_takes_its_networks(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: dict[str, Any] = {}

    def train(cohort: Path, output: Path, **others: Any) -> Path:
        called.update(others)
        return output / "model.safetensors"

    monkeypatch.setattr("metricunet.training.fit.train", train)
    monkeypatch.setattr("metricunet.training.start.SHIPPED", tiny_model)
    for init in (str(tiny_model), "base"):
        mu.train("cohort", tmp_path, init=init, freeze="encoder", settings={"segment.epochs": 3})
        expected = load_config(settings=["segment.epochs=3"], freeze="encoder", parent=read_card(tiny_model))
        assert (called["config"], called["init"]) == (expected, tiny_model)
    assert expected.segment.base_channels == 4


def test_what_is_shown_fits_on_a_line(result: Result, model: Model, scan: Path, nothing: Result) -> None:
    shown = [
        (result, "Result(pelvis: prostate 2"),
        (nothing, "Result(scan: prostate not found, verdict fail"),
        (model, "Model(model.safetensors: prostate, bladder, on cpu)"),
        (
            result.scan,
            "Scan(pelvis: Volume(44 x 60 x 64 voxels (slice, row, column) of 2.5 x 1.9 x 1.7 mm, int16)",
        ),
        (result.labels, "Volume(44 x 60 x 64 voxels (slice, row, column) of 2.5 x 1.9 x 1.7 mm, uint8)"),
        (result.labels.geometry, "Geometry(44 x 60 x 64 voxels"),
        (result.quality, "QualityReport(pelvis: pass)"),
        (nothing.quality, "QualityReport(scan: fail; "),
        (result.prediction, "Prediction(prostate found, confidence "),
        (result.plot(), "Picture(pelvis: prostate"),
        (mu.evaluate(result, result.labels)["prostate"], "Measures(dice=1, asd_mm=0, "),
        (mu.evaluate(nothing, nothing.labels)["prostate"], "Measures(true_absent)"),
    ]
    for value, beginning in shown:
        assert repr(value).startswith(beginning)
        assert "\n" not in repr(value)
        assert len(repr(value)) < 170


ARRAY = np.zeros((8, 8, 8), dtype=np.int16)


def two_scans(folder: Path) -> Path:
    for name in ("a.nii.gz", "b.nii.gz"):
        write_nifti(folder / name, drawn_scan(shape=(20, 20, 20)))
    return folder


def magnetic(folder: Path) -> Volume:
    return Volume(
        np.arange(8000, dtype=np.int16).reshape(20, 20, 20), Geometry.from_parts((20, 20, 20), (2, 2, 2))
    )


def holed(folder: Path) -> Volume:
    array = np.full((20, 20, 20), -100.0)
    array[3, 4, 5] = np.nan
    return mu.load_scan(array, affine=np.eye(4)).volume


def cut_short(folder: Path) -> Any:
    """An image of nibabel whose file was damaged after it was opened."""
    path = folder / "short.nii"
    nib.save(nib.Nifti1Image(ARRAY, np.eye(4)), path)
    image = nib.load(path)
    path.write_bytes(path.read_bytes()[:400])
    return image


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda f: mu.load_scan(f / "none.nii.gz"), "none.nii.gz: no such file or folder"),
        (lambda f: mu.load_scan(two_scans(f)), r"holds 2 scans \(a.nii.gz, b.nii.gz\); give the path of one file"),
        (lambda f: mu.load_scan(f), "holds no CT scan"),
        (lambda f: mu.load_scan(ARRAY), "does not say where its voxels lie.*affine="),
        (lambda f: mu.load_scan(f, affine=np.eye(4)), "affine is for an array alone"),
        (lambda f: mu.load_scan(ARRAY, affine=np.eye(4), series="1.2"), "series: of use for a path alone"),
        (
            lambda f: mu.load_scan(nib.Nifti1Image(ARRAY, np.eye(4)), allow_gaps=True, allow_tilt=True),
            "allow_gaps, allow_tilt: of use for a path alone, and the scan is a Nifti1Image; leave",
        ),
        (lambda f: mu.load_scan(ARRAY[0], affine=np.eye(4)), r"has shape \(8, 8\).*expected three axes"),
        (lambda f: mu.load_scan(ARRAY, affine=np.eye(3)), "its affine .3, 3.*4 x 4"),
        (lambda f: mu.load_scan(ARRAY, affine=np.zeros((4, 4))), "the array: the affine"),
        (lambda f: mu.load_scan(ARRAY.astype(complex), affine=np.eye(4)), "the array: voxels of type complex"),
        (holed, "the array: 1 voxels are NaN or infinite"),
        (lambda f: mu.load_scan(ARRAY, affine=np.eye(4)), "every voxel is 0; the scan is empty"),
        (lambda f: mu.load_scan(magnetic(f)), "the scan: "),
        (lambda f: mu.load_scan(nib.MGHImage(ARRAY, np.eye(4))), "is MGHImage, expected NIfTI; give its array"),
        (lambda f: mu.load_scan(sitk.Image(8, 8, sitk.sitkInt16)), "SimpleITK image: has 2 axes"),
        (lambda f: mu.load_scan(nib.Nifti1Image(ARRAY, None)), "the nibabel image: states no orientation"),
        (lambda f: mu.load_scan(7), "a scan cannot be a int; expected a path"),
        (lambda f: mu.load_scan("x", name="a/b"), "name must be that of a file"),
        (lambda f: mu.load_scan("x", name="a\nb"), "name must be that of a file"),
        (lambda f: mu.load_scan("x", name="\ud800"), "name must be that of a file"),
        (lambda f: mu.load_scan("x", name=3), "name must be that of a file"),
        (lambda f: mu.load_scan(""), "the path of the scan is empty"),
        (lambda f: mu.load_scan(np.ma.masked_less(ARRAY, 1), affine=np.eye(4)), "the array: is masked"),
        (lambda f: mu.load_scan(ARRAY, affine="abc"), "the array: its affine holds no numbers"),
        (lambda f: mu.load_scan(cut_short(f)), "the nibabel image: its voxels cannot be read from its file"),
        (lambda f: mu.load_model(3), "expected a path, or a list of them; got int"),
        (lambda f: mu.load_model([]), "models: no model file is given"),
        (lambda f: mu.load_model(f / "none", reruns=-1), "reruns must be 0 or more; got -1"),
        (lambda f: mu.predict(two_scans(f), [], f / "out"), "models: no model file is given"),
        (lambda f: mu.predict(two_scans(f), f / "none", f / "out", reruns=-1), "reruns must be 0 or more; got -1"),
        (lambda f: mu.load_model(f / "none"), "none"),
        (
            lambda f: mu.predict("x", "m", formats=["nifti"]),
            "formats: of use with output= alone; give that, or call save",
        ),
        (
            lambda f: mu.predict("x", "m", engine=Serial(), holes="close", smooth=True),
            "holes, smooth, engine: of use with output= alone",
        ),
        (lambda f: mu.load_scan(two_scans(f) / "a.nii.gz", series="1.2"), "no DICOM series, and series names one"),
        (lambda f: mu.train(f, f / "run", workers=2), "workers says how many .* leave it out with the cohort"),
        (lambda f: mu.train(f, f / "run", fold="each", workers=2), "workers says how many"),
        (lambda f: mu.train(f, f / "run", engine=Serial()), "engine trains the folds of fold='each'"),
        (lambda f: mu.train(f, f / "run", fold="1"), "fold must be a whole number, 'all' or 'each'; got '1'"),
        (lambda f: mu.train(f, f / "run", fold=None), "fold must be a whole number, 'all' or 'each'; got None"),
        (lambda f: mu.train(None, f / "run", phantoms="easy", fold=3), "fold=3: is of a cohort; phantoms"),
        (
            lambda f: mu.train(f, f / "run", fold="each", loggers=["mlflow", CSVLogger(f)]),
            "an open logger cannot tell the folds of fold='each' apart; give names",
        ),
        (lambda f: mu.evaluate(f, f), "is a folder; give the file of one case, or output="),
        (lambda f: mu.evaluate(ARRAY, ARRAY), "the reference: cannot be a ndarray"),
        (lambda f: mu.evaluate("a", "b", write_card="m"), "for the report of whole folders; give output="),
        (lambda f: mu.evaluate("a", "b", images="c"), "for the report of whole folders; give output="),
        (lambda f: mu.train(f / "none", f / "run"), "none"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(call: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(mu.InputError, match=message) as refused:
        call(tmp_path)
    assert "\n" not in str(refused.value)
    assert refused.value.__cause__ is None
    assert refused.value.__suppress_context__


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda r, f: r.mask("prostat"), "the model has no structure 'prostat'; it has prostate, bladder"),
        (lambda r, f: r.plot("gland"), "the model has no structure 'gland'"),
        (lambda r, f: r.save(f, ["rtstruct"]), r"pelvis_0000.nii.gz: formats=\['rtstruct'\] needs a DICOM series"),
        (lambda r, f: r.save(f, "dicom"), "formats must be of nifti, .*, page; got 'dicom'"),
        (lambda r, f: r.save(f, smooth=True), "structure set"),
        (lambda r, f: r.save(f, []), "formats names none"),
        (lambda r, f: r.save(f, "rtstruct", add_to=f / "none"), "none: no such file; expected the structure set"),
        (lambda r, f: r.plot().save(f / "a.jpg"), "saved as .svg or .html"),
        (lambda r, f: mu.predict("x", r.model, f), "models must be paths"),
        (lambda r, f: mu.predict(r.scan, r.model, device="cpu"), "device, provider and reruns: a loaded model"),
        (lambda r, f: mu.predict(r.scan, r.model, reruns=0), "device, provider and reruns: a loaded model"),
        (lambda r, f: mu.predict(r.scan, r.model, provider="cpu"), "device, provider and reruns: a loaded model"),
        (lambda r, f: mu.predict(r.scan, r.model, series="1.2"), "series: of use for a path alone.* a Scan"),
        (lambda r, f: mu.evaluate(r, r.labels, f), "both must be paths; save the result"),
        (lambda r, f: mu.evaluate(r, drawn_scan(shape=(20, 20, 20))), "range|whole"),
    ],
)
def test_what_a_result_cannot_do_is_said_in_one_line(
    call: Any, message: str, result: Result, tmp_path: Path
) -> None:
    with pytest.raises(mu.InputError, match=message) as refused:
        call(result, tmp_path)
    assert "\n" not in str(refused.value)
    assert list(tmp_path.iterdir()) == []


def test_one_of_several_series_must_be_named(dicom: Written, tmp_path: Path) -> None:
    first = write_series(tmp_path / "one", shape=(8, 12, 10))
    write_series(tmp_path / "two", shape=(8, 12, 10))
    with pytest.raises(mu.InputError, match=r"holds 2 scans .*series= with the UID"):
        mu.load_scan(tmp_path)
    assert mu.load_scan(tmp_path, series=first.series_uid).volume.array.shape == (8, 12, 10)


def test_a_damaged_neighbour_is_not_passed_over(tmp_path: Path) -> None:
    whole = write_series(tmp_path / "one", shape=(8, 12, 10))
    write_series(tmp_path / "two", shape=(8, 12, 10), leave_out=[4])
    with pytest.raises(mu.InputError, match="Another scan there can be read"):
        mu.load_scan(tmp_path)
    assert mu.load_scan(tmp_path, series=whole.series_uid).is_dicom
    repaired = mu.load_scan(tmp_path / "two", allow_gaps=True)
    assert repaired.notes


def test_a_fault_of_the_program_is_shown_beneath_its_sentence(
    scan: Path, model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> None:
        raise KeyError("odd")

    monkeypatch.setattr("metricunet.inference.predict.judge", failing)
    with pytest.raises(mu.InputError, match="an unexpected KeyError stopped it") as refused:
        mu.predict(scan, model_file, tmp_path, device="cpu")
    assert isinstance(refused.value.__cause__, KeyError)
