"""`metricunet predict` from DICOM to structure sets drawn as asked, with what it says of them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset

import metricunet as mu
from metricunet.cohort.names import TG263_NAMES
from metricunet.errors import InputError
from metricunet.files.dicom.series import CtSeries, find_series
from metricunet.files.dicom.stack import Allow
from metricunet.files.model import Ancestor, read_model, write_model
from metricunet.files.nifti import read_labels, write_nifti
from metricunet.files.rtstruct.outlines import Structure
from metricunet.files.rtstruct.read import read_rtstruct
from metricunet.inference.predict import predict
from metricunet.inference.structure_set import MARK, SYNTHETIC_MARK, ContourOptions, write_structure_set
from metricunet.quality.prediction import EnsembleCard
from metricunet.volume import Volume
from tests.support.command import Command
from tests.support.dicom_series import write_series
from tests.support.structure_sets import dciodvfy_complaints, plastimatch, rtstruct, square
from tests.support.threshold_model import GLAND_BAND, GLAND_HU, ball, box, drawn_scan, write_bands_model

LABELS = {"prostate": 1, "bladder": 2}
BANDS = (GLAND_BAND, (160.0, 280.0))
#: A gland with a tunnel, and a bladder on top of it that it touches.
SHAPES = (
    (ball((2, -3, 0), (19, 16, 18)), GLAND_HU),
    (ball((2, -3, 24), (20, 16, 10)), 220.0),
    (box((0, -5, -40), (5, 0, 12)), -90.0),
)
FRAME = "1.2.3.4.5"


@pytest.fixture(scope="module")
def scan() -> Volume:
    return drawn_scan(*SHAPES, shape=(50, 80, 90), spacing_mm=(2.5, 1.3, 1.1))


@pytest.fixture(scope="module")
def model(bands_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bands_model(tmp_path_factory.mktemp("two") / "model.safetensors", LABELS, BANDS)


@pytest.fixture(scope="module")
def series(scan: Volume, tmp_path_factory: pytest.TempPathFactory) -> CtSeries:
    return written(scan, tmp_path_factory.mktemp("dicom") / "ct")


def written(scan: Volume, folder: Path, position: str = "HFS") -> CtSeries:
    write_series(
        folder,
        scan.array,
        spacing_mm=scan.spacing_mm,
        patient_position=position,
        frame_of_reference_uid=FRAME,
    )
    (found,) = find_series(folder).series
    return found


def outputs(folder: Path) -> tuple[Volume, Path, dict[str, Any]]:
    (mask,) = folder.glob("*.nii.gz")
    (structure_set,) = folder.glob("*.rtstruct.dcm")
    (quality,) = folder.glob("*.quality.json")
    return read_labels(mask), structure_set, json.loads(quality.read_text())


def predicted(
    metricunet: Command, series: CtSeries, model: Path, out: Path, *words: object
) -> tuple[Volume, Path, dict[str, Any]]:
    ended = metricunet(
        "predict", series.folder, "-m", model, "-o", out, "--format", "nifti,rtstruct", "--device", "cpu", *words
    )
    assert (ended.status, ended.err) == (0, "")
    return outputs(out)


@pytest.mark.parametrize("position", ["HFS", "FFS", "HFP", "FFP"])
@pytest.mark.parametrize("contours", ["surface", "voxel"])
def test_contours_read_back_to_the_mask_here_and_elsewhere(
    metricunet: Command, scan: Volume, model: Path, tmp_path: Path, contours: str, position: str
) -> None:
    series = written(scan, tmp_path / "ct", position)
    words = [] if contours == "surface" else ["--contours", contours]
    labels, path, quality = predicted(metricunet, series, model, tmp_path / "out", *words)
    mask = labels.reordered_like(series.geometry)
    read = read_rtstruct(path, series)
    assert dciodvfy_complaints(path) == []
    theirs = plastimatch(path, series, tmp_path / "plastimatch") if position in ("HFS", "FFP") else None
    for name, value in LABELS.items():
        found = quality["structures"][name]["contours"]
        assert found["outline"] == contours
        roi = f"{name.title()}{MARK}"
        assert found["name"] == roi
        inside = mask.array == value
        assert inside.sum() > 500
        np.testing.assert_array_equal(read.mask(roi, series.geometry).array != 0, inside)
        if theirs is not None:
            np.testing.assert_array_equal(theirs[roi].array != 0, inside)
        assert found["mask_volume_ml"] == pytest.approx(quality["structures"][name]["volume_ml"], abs=0.01)
        if contours == "voxel":
            assert found["volume_ml"] == found["mask_volume_ml"]
        else:
            assert found["volume_ml"] == pytest.approx(found["mask_volume_ml"], rel=0.03)
            assert found["volume_ml"] != found["mask_volume_ml"]


def test_the_surface_runs_where_the_probability_is_one_half(
    metricunet: Command, bands_model: Path, tmp_path: Path
) -> None:
    """A gland whose HU fall off linearly across its border: half-way HU lie on the ball, between voxels."""
    scan = drawn_scan(shape=(30, 72, 80), noise_hu=0)
    index = np.stack(np.meshgrid(*[np.arange(n) for n in scan.array.shape], indexing="ij"), axis=-1)
    place = scan.geometry.to_world(index)
    far = np.linalg.norm(place - (0.7, -0.4, 1.0), axis=-1)
    inside = far < 24
    scan.array[inside] = np.rint(np.clip(22.5 - 15 * (far[inside] - 17.3), -90, 60)).astype(np.int16)
    # Its band begins at 22.5 HU, and the model reads the scan on a grid that is finer than the scan.
    model = write_bands_model(tmp_path / "m.safetensors", bands=[(22.5, 400.0)], spacing_mm=(2, 1, 1),
                              crop_voxels=(32, 64, 64))  # fmt: skip
    series = written(scan, tmp_path / "ct")
    off_mm = {}
    for contours in ("surface", "voxel"):
        _, path, _ = predicted(metricunet, series, model, tmp_path / contours, "--contours", contours)
        points = np.concatenate(read_rtstruct(path).structure(f"Prostate{MARK}").contours)
        points = points - series.geometry.to_world([0, 0, 0]) + scan.geometry.to_world([0, 0, 0])
        middle = points[abs(points[:, 2]) < 8]
        off_mm[contours] = np.abs(np.linalg.norm(middle - (0.7, -0.4, 1.0), axis=1) - 17.3)
    assert off_mm["surface"].mean() < 0.1 * 2
    assert off_mm["voxel"].mean() > 2 * off_mm["surface"].mean()


def test_smoothing_moves_no_point_by_more_than_half_a_millimetre(
    metricunet: Command, series: CtSeries, model: Path, tmp_path: Path
) -> None:
    _, plain_path, plain = predicted(metricunet, series, model, tmp_path / "plain", "--contours", "voxel")
    _, path, smooth = predicted(metricunet, series, model, tmp_path / "smooth", "--contours", "voxel", "--smooth")
    assert smooth["structure_set"]["smoothing_mm"] == 0.5
    for name in LABELS:
        before = read_rtstruct(plain_path).structure(f"{name.title()}{MARK}").contours
        after = read_rtstruct(path).structure(f"{name.title()}{MARK}").contours
        assert len(before) == len(after)
        moved = [distances(b, a) for b, a in zip(before, after, strict=True)]
        assert max(m.max() for m in moved) <= 0.5 + 1e-5
        assert max(m.max() for m in moved) > 0.1
        found, was = smooth["structures"][name]["contours"], plain["structures"][name]["contours"]
        assert found["smoothing_change_ml"] == pytest.approx(found["volume_ml"] - was["volume_ml"], abs=2e-3)
        assert found["smoothing_change_percent"] == pytest.approx(
            100 * found["smoothing_change_ml"] / was["volume_ml"], abs=0.02
        )
        assert was["smoothing_change_ml"] == 0


def distances(polygon: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Of points from a polygon's edges."""
    begin, end = polygon[:, :2], np.roll(polygon[:, :2], -1, axis=0)
    along = end - begin
    offset = points[:, None, :2] - begin[None]
    share = np.clip((offset * along).sum(axis=-1) / (along**2).sum(axis=-1), 0, 1)
    return np.asarray(np.linalg.norm(offset - share[..., None] * along, axis=-1).min(axis=1))


def test_holes_are_kept_closed_or_joined(
    metricunet: Command, series: CtSeries, model: Path, tmp_path: Path
) -> None:
    found, contours = {}, {}
    for holes in ("keep", "close", "keyhole"):
        labels, path, quality = predicted(metricunet, series, model, tmp_path / holes, "--holes", holes)
        found[holes] = quality["structures"]["prostate"]
        structure = read_rtstruct(path).structure(f"Prostate{MARK}")
        contours[holes] = len(structure.contours)
        inside = labels.reordered_like(series.geometry).array == 1
        read = read_rtstruct(path, series).mask(f"Prostate{MARK}", series.geometry).array != 0
        if holes == "close":
            assert (read & ~inside).sum() > 0
            assert not (inside & ~read).any()
        else:
            np.testing.assert_array_equal(read, inside)
    assert found["keep"]["holes"] > 3
    assert found["close"]["contours"]["holes_closed"] == found["keep"]["holes"]
    assert contours["keep"] - contours["close"] == found["keep"]["holes"]
    assert contours["keyhole"] == contours["close"]
    assert found["close"]["contours"]["volume_ml"] > found["keep"]["contours"]["volume_ml"] + 0.3
    assert found["keyhole"]["contours"]["volume_ml"] == found["keep"]["contours"]["volume_ml"]


def other_set(series: CtSeries, path: Path, name: str = "PTV") -> Path:
    rtstruct(path, [(name, [square(-10, 10, z) for z in series.positions_mm[5:9, 2]])], frame=FRAME)
    return path


def test_adding_to_a_structure_set_leaves_its_structures_as_they_were(
    metricunet: Command, series: CtSeries, model: Path, tmp_path: Path
) -> None:
    there = other_set(series, tmp_path / "other.dcm", f"Prostate{MARK}")
    before = there.read_bytes()
    _, path, quality = predicted(metricunet, series, model, tmp_path / "out", "--add-to", there)
    assert there.read_bytes() == before
    old, new = pydicom.dcmread(there), pydicom.dcmread(path)
    assert new.StructureSetROISequence[0] == old.StructureSetROISequence[0]
    assert new.ROIContourSequence[0] == old.ROIContourSequence[0]
    # The name is taken, so the new structure gets a number, and quality.json tells it.
    names = [str(roi.ROIName) for roi in new.StructureSetROISequence]
    assert names == [f"Prostate{MARK}", f"Prostate{MARK}_2", f"Bladder{MARK}"]
    assert quality["structures"]["prostate"]["contours"]["name"] == f"Prostate{MARK}_2"
    assert quality["structure_set"]["added_to_sha256"] == hashlib.sha256(before).hexdigest()
    again = metricunet("predict", series.folder, "-m", model, "-o", tmp_path / "out", "--format", "nifti,rtstruct",
                       "--device", "cpu", "--add-to", there)  # fmt: skip
    assert "done before" in again.out


@pytest.mark.parametrize("added", [False, True])
def test_a_structure_in_a_gap_alone_costs_no_other_its_contours(tmp_path: Path, added: bool) -> None:
    """It lies on a plane that was filled, and on no image."""
    write_series(tmp_path / "ct", shape=(12, 20, 20), leave_out=[5], frame_of_reference_uid=FRAME)
    (series,) = find_series(tmp_path / "ct", Allow(gaps=True)).series
    card = EnsembleCard({"prostate": 1, "bulb": 2}, {"prostate": "P", "bulb": "B"}, "prostate", {}, False)
    masks = {name: np.zeros(series.geometry.shape, dtype=bool) for name in card.labels}
    masks["prostate"][3:9, 4:12, 4:12] = True
    masks["bulb"][5, 14:18, 14:18] = True
    structures = {name: Structure(name, Volume(mask, series.geometry)) for name, mask in masks.items()}
    there = other_set(series, tmp_path / "other.dcm") if added else None
    options = ContourOptions(add_to=there)
    told = write_structure_set(tmp_path / "rs.dcm", series, structures, options, card)
    assert list(told) == ["prostate"]
    assert told["prostate"]["slices"] == 5
    names = [entry.name for entry in read_rtstruct(tmp_path / "rs.dcm").structures]
    assert names == [*(["PTV"] if added else []), "prostate"]
    with pytest.raises(InputError, match="'bulb': its mask lies between two slices"):
        write_structure_set(tmp_path / "none.dcm", series, {"bulb": structures["bulb"]}, options, card)


def test_what_cannot_be_added_to_is_refused_before_any_work(
    metricunet: Command, scan: Volume, series: CtSeries, model: Path, tmp_path: Path
) -> None:
    there = other_set(series, tmp_path / "other.dcm")
    elsewhere = rtstruct(tmp_path / "elsewhere.dcm", [("PTV", [square(-10, 10, 0)])], frame="9.9.9")
    write_nifti(tmp_path / "nifti" / "scan.nii.gz", scan)
    written(scan, tmp_path / "two" / "a")
    written(scan, tmp_path / "two" / "b")
    out = tmp_path / "out"
    for place, words, message in (
        (series.folder, ["--format", "nifti", "--add-to", there], "add rtstruct to --format"),
        (series.folder, ["--format", "nifti", "--smooth"], "add rtstruct to --format"),
        (tmp_path / "nifti", ["--format", "nifti", "--holes", "close"], "add rtstruct to --format"),
        (tmp_path / "two", ["--format", "rtstruct", "--add-to", there], "2 scans are given"),
        (series.folder, ["--format", "rtstruct", "--add-to", tmp_path / "none"], "no such file"),
        (series.folder, ["--format", "rtstruct", "--add-to", elsewhere], "9.9.9"),
        (series.folder, ["--format", "rtstruct", "--add-to", series.files[0]], "expected RTSTRUCT"),
    ):
        ended = metricunet("predict", place, "-m", model, "-o", out, "--device", "cpu", *words)
        assert (ended.status, ended.out, ended.err.count("\n")) == (2, "", 1)
        assert message in ended.err
        assert not out.exists()


def test_the_set_to_add_to_is_never_overwritten(
    metricunet: Command, series: CtSeries, model: Path, tmp_path: Path
) -> None:
    _, path, _ = predicted(metricunet, series, model, tmp_path)
    before = path.read_bytes()
    ended = metricunet(
        "predict", series.folder, "-m", model, "-o", tmp_path, "--format", "rtstruct", "--add-to", path
    )
    assert ended.status == 2
    assert "would be overwritten" in ended.err
    assert path.read_bytes() == before


def test_equal_runs_give_equal_masks_contours_and_verdicts(
    metricunet: Command, series: CtSeries, model: Path, tmp_path: Path
) -> None:
    runs = [predicted(metricunet, series, model, tmp_path / str(k)) for k in range(2)]
    np.testing.assert_array_equal(runs[0][0].array, runs[1][0].array)
    data = [
        [c.ContourData for roi in pydicom.dcmread(path).ROIContourSequence for c in roi.ContourSequence]
        for _, path, _ in runs
    ]
    assert data[0] == data[1]
    for _, _, quality in runs:
        del quality["files"], quality["seal"]  # of the structure set, which has a time and UIDs of its own
    assert runs[0][2] == runs[1][2]


def test_other_options_are_another_prediction(
    metricunet: Command, series: CtSeries, model: Path, tmp_path: Path
) -> None:
    predicted(metricunet, series, model, tmp_path)
    call = ["predict", series.folder, "-m", model, "-o", tmp_path, "--format", "nifti,rtstruct", "--device", "cpu"]
    assert "done before" in metricunet(*call).out
    assert "done before" not in metricunet(*call, "--smooth").out
    assert outputs(tmp_path)[2]["structure_set"]["smoothing_mm"] == 0.5
    assert "done before" not in metricunet(*call, "--smooth", "--reruns", 0).out


def test_reasons_and_codes_are_in_the_summary_and_in_run_json(
    metricunet: Command, bands_model: Path, tmp_path: Path
) -> None:
    write_nifti(tmp_path / "in" / "large.nii.gz", drawn_scan((ball((0, 0, 0), 18), GLAND_HU)))
    write_nifti(tmp_path / "in" / "none.nii.gz", drawn_scan())
    model = write_bands_model(tmp_path / "m.safetensors", ranges={"volume_ml": (2.0, 20.0)})
    out = tmp_path / "out"
    ended = metricunet("predict", tmp_path / "in", "-m", model, "-o", out, "--device", "cpu")
    assert ended.status == 1
    record = json.loads((out / "run.json").read_text())
    assert record["cases"]["large"]["flags"] == ["volume"]
    assert record["cases"]["none"]["flags"] == ["absent"]
    assert record["arguments"]["reruns"] == 3
    for case, entry in record["cases"].items():
        quality = json.loads((out / f"{case}.quality.json").read_text())
        assert quality["reasons"] == entry["reasons"] == [flag["text"] for flag in quality["flags"]]
        assert entry["reasons"][0] in ended.out
    assert "large: review, found" in ended.out
    assert "none: fail, absent" in ended.out
    assert not (out / "none.nii.gz").exists()


def test_the_crop_follows_the_gland_and_reruns_0_forbids_it(
    metricunet: Command, bands_model: Path, tmp_path: Path
) -> None:
    path = tmp_path / "long.nii.gz"
    write_nifti(path, drawn_scan((ball((0, 0, 0), (16, 16, 42)), GLAND_HU)))
    found = {}
    for reruns in (3, 0):
        out = tmp_path / str(reruns)
        metricunet("predict", path, "-m", bands_model, "-o", out, "--reruns", reruns, "--device", "cpu")
        found[reruns] = json.loads((out / "long.quality.json").read_text())
    assert [flag["code"] for flag in found[0]["flags"]] == ["touches_crop"]
    assert found[3]["flags"] == []
    assert len(found[0]["crops"]) == 1
    assert len(found[3]["crops"]) == 2
    exact = 4 / 3 * np.pi * 1.6 * 1.6 * 4.2
    assert found[3]["structures"]["prostate"]["volume_ml"] == pytest.approx(exact, rel=0.03)
    assert found[0]["structures"]["prostate"]["volume_ml"] < 0.95 * exact


def test_a_synthetic_model_marks_names_set_and_descriptions(
    metricunet: Command, series: CtSeries, model: Path, tmp_path: Path
) -> None:
    synthetic = write_bands_model(tmp_path / "m.safetensors", LABELS, BANDS, trained_on="synthetic")
    for file, mark, said in ((model, MARK, False), (synthetic, SYNTHETIC_MARK, True)):
        _, path, quality = predicted(metricunet, series, file, tmp_path / mark)
        dataset = pydicom.dcmread(path)
        assert [str(roi.ROIName) for roi in dataset.StructureSetROISequence] == [
            f"Prostate{mark}",
            f"Bladder{mark}",
        ]
        assert all(len(roi.ROIName) <= 16 for roi in dataset.StructureSetROISequence)
        texts = [dataset.StructureSetLabel, dataset.StructureSetName, dataset.StructureSetDescription]
        texts += [roi.ROIDescription for roi in dataset.StructureSetROISequence]
        assert all(("synthetic" in text.lower()) == said for text in texts)
        assert all("not reviewed" in text for text in texts[1:])
        assert {roi.ROIGenerationAlgorithm for roi in dataset.StructureSetROISequence} == {"AUTOMATIC"}
        assert dataset.ApprovalStatus == "UNAPPROVED"
        assert {o.RTROIInterpretedType for o in dataset.RTROIObservationsSequence} == {"ORGAN"}
        assert ("synthetic_model" in [flag["code"] for flag in quality["flags"]]) == said


def test_marks_are_seen_where_names_are_cut_at_16_characters() -> None:
    for name in (*TG263_NAMES.values(), "Femur_Head_L"):
        assert f"{name}{SYNTHETIC_MARK}"[:16] != name
        assert "^a" in f"{name}{SYNTHETIC_MARK}"[:16]


def descendant(path: Path, model: Path) -> Path:
    """Write a model that was begun from a synthetic one and trained on patients."""
    card, weights = read_model(model)
    write_model(path, replace(card, lineage=(Ancestor("base", "a" * 64, synthetic=True),)), weights)
    return path


def test_a_descendant_of_a_synthetic_model_is_marked_and_held_back(
    metricunet: Command, series: CtSeries, model: Path, tmp_path: Path
) -> None:
    file = descendant(tmp_path / "m.safetensors", model)
    _, path, quality = predicted(metricunet, series, file, tmp_path / "out", "--format", "nifti,rtstruct,seg")
    assert (quality["verdict"], quality["flags"][0]["code"]) == ("review", "synthetic_model")
    assert "descends from one that was trained on synthetic scans only (base)" in quality["reasons"][0]
    dataset = pydicom.dcmread(path)
    assert dataset.StructureSetROISequence[0].ROIName == f"Prostate{SYNTHETIC_MARK}"
    assert dataset.StructureSetName == "Machine-made, not reviewed, begun on synthetic scans"
    assert dataset.StructureSetDescription.endswith(
        "begun from one trained on synthetic scans only. Not validated on patients."
    )
    (segmentation,) = (tmp_path / "out").glob("*.seg.dcm")
    found = pydicom.dcmread(segmentation)
    assert found.ContentDescription == dataset.StructureSetName
    assert {segment.SegmentAlgorithmType for segment in found.SegmentSequence} == {"AUTOMATIC"}
    assert found.SegmentSequence[0].SegmentLabel == f"Prostate{SYNTHETIC_MARK}"
    assert "Not validated on patients" in found.SegmentSequence[0].SegmentDescription


#: No gland of the training cases was as dark.
DARK = {"target_hu": (0.0, 20.0)}


def test_strong_doubt_of_a_synthetic_model_withholds_structure_sets_until_one_insists(
    metricunet: Command, series: CtSeries, model: Path, tmp_path: Path
) -> None:
    file = write_bands_model(tmp_path / "m.safetensors", LABELS, BANDS, trained_on="synthetic", ranges=DARK)
    out = tmp_path / "out"
    words = ["predict", series.folder, "-m", file, "-o", out, "--format", "nifti,rtstruct,seg", "--device", "cpu"]

    def run(*more: str) -> tuple[int, str, dict[str, Any], list[str]]:
        ended = metricunet(*words, *more)
        assert ended.err == ""
        (quality,) = out.glob("*.quality.json")
        case = quality.name.removesuffix(".quality.json")
        names = sorted(path.name.removeprefix(case) for path in out.iterdir() if path.name.startswith(case))
        return ended.status, ended.out, json.loads(quality.read_text()), names

    status, text, quality, names = run()
    assert (status, names) == (1, [".nii.gz", ".quality.json"])
    assert "review, found, doubt strong" in text
    assert "  rtstruct and seg not written, for the doubt is strong" in text
    assert "then draw with --draw-anyway" in text
    assert (quality["doubt"], quality["withheld"]) == ("strong", ["rtstruct", "seg"])
    (entry,) = json.loads((out / "run.json").read_text())["cases"].values()
    assert (entry["doubt"], entry["withheld"]) == ("strong", ["rtstruct", "seg"])
    status, text, *_ = run()
    assert status == 1
    assert "done before" in text
    assert "not written" in text

    every = [".nii.gz", ".quality.json", ".rtstruct.dcm", ".seg.dcm"]
    status, text, quality, names = run("--draw-anyway")
    assert (status, names) == (0, every)
    assert "done before" not in text
    assert (quality["withheld"], quality["drawn_anyway"]) == ([], ["rtstruct", "seg"])
    assert "done before" in run("--draw-anyway")[1]
    # Who does not insist any more gets none.
    status, _, _, names = run()
    assert (status, names) == (1, [".nii.gz", ".quality.json"])


@pytest.mark.parametrize(
    ("stated", "is_flagged"), [("F", True), (" f", True), ("M", False), ("", False), (None, False)]
)
def test_a_prostate_in_a_woman_is_strongly_doubted(
    scan: Volume, model: Path, tmp_path: Path, stated: str | None, is_flagged: bool
) -> None:
    def headed(k: int, dataset: Dataset) -> None:
        if stated is None:
            dataset.pop("PatientSex", None)
        else:
            dataset.PatientSex = stated

    write_series(tmp_path / "ct", scan.array, spacing_mm=scan.spacing_mm, edit=headed)
    predict([tmp_path / "ct"], [model], tmp_path / "out", device="cpu")
    (path,) = (tmp_path / "out").glob("*.quality.json")
    called = mu.load_model(model, device="cpu").predict(tmp_path / "ct").quality.to_json()
    for quality in (json.loads(path.read_text()), called):
        assert ("patient_sex" in [flag["code"] for flag in quality["flags"]]) is is_flagged
        assert (quality["doubt"] == "strong") is is_flagged


@pytest.mark.parametrize("trained_on", ["synthetic", "drawn shapes"])
def test_nothing_is_withheld_without_strong_doubt_or_of_other_models(
    metricunet: Command, series: CtSeries, tmp_path: Path, trained_on: str
) -> None:
    ranges = {"volume_ml": (1.0, 2.0)} if trained_on == "synthetic" else DARK
    file = write_bands_model(tmp_path / "m.safetensors", LABELS, BANDS, trained_on=trained_on, ranges=ranges)
    *_, quality = predicted(metricunet, series, file, tmp_path / "out")
    assert quality["doubt"] == ("some" if trained_on == "synthetic" else "strong")
    assert (quality["withheld"], quality["drawn_anyway"]) == ([], [])


def test_a_case_without_a_mask_has_nothing_to_withhold(metricunet: Command, model: Path, tmp_path: Path) -> None:
    empty = written(drawn_scan(shape=(20, 40, 40), spacing_mm=(3, 2, 2)), tmp_path / "ct")
    file = write_bands_model(tmp_path / "m.safetensors", LABELS, BANDS, trained_on="synthetic", ranges=DARK)
    ended = metricunet("predict", empty.folder, "-m", file, "-o", tmp_path / "out", "--format", "rtstruct")
    assert "fail, absent, doubt some" in ended.out
    assert "not written" not in ended.out


def test_a_prediction_that_is_stopped_leaves_no_claim(scan: Volume, model: Path, tmp_path: Path) -> None:
    for name in "abcd":
        write_nifti(tmp_path / "scans" / f"{name}.nii.gz", scan)

    def stopped(done: int, total: int) -> None:
        raise KeyboardInterrupt

    # What is caught holds the frames of the call, as an interactive session does.
    with pytest.raises(KeyboardInterrupt) as caught:
        predict([tmp_path / "scans"], [model], tmp_path / "out", device="cpu", progress=stopped)
    held = [path for path in (tmp_path / "out").rglob("*") if "claim" in path.name]
    assert held == []
    del caught
    done = predict([tmp_path / "scans"], [model], tmp_path / "out", device="cpu")
    assert [case.case for case in done.cases] == list("abcd")
