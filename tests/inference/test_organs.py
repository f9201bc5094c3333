"""Organs beside the target: they take what stage 2 leaves, on a box of their own; the target stays what it is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage

import metricunet as mu
from metricunet.errors import InputError
from metricunet.files.dicom.series import find_series
from metricunet.files.nifti import read_labels, write_nifti
from metricunet.files.rtstruct.read import read_rtstruct
from metricunet.files.seg.read import read_seg
from metricunet.inference.predict import predict
from metricunet.inference.predictor import Predictor
from metricunet.inference.segmenter import Segmenter
from metricunet.quality.prediction import Prediction
from metricunet.quality.verdict import judge
from metricunet.stages.segment import View, read_field
from metricunet.volume import Volume
from tests.support.dicom_series import write_series
from tests.support.threshold_model import (
    GLAND_BAND,
    GLAND_HU,
    WINDOW,
    Bands,
    ball,
    bands_known,
    box,
    drawn_scan,
    write_bands_model,
)

LABELS = {"bladder": 4, "prostate": 1, "vesicles": 2, "head": 300}
#: The organs' network takes the gland for bladder, too, so that the two contend for it.
ORGANS = {"head": (-700.0, -400.0), "bladder": (-15.0, 300.0)}
VESICLES = (330.0, 480.0)
GLAND = (ball((0, 0, 0), 16), GLAND_HU)
SHAPES = (
    (ball((0, -4, 26), (16, 12, 14)), 200.0),  # the bladder, in stage 2's crop and beyond it
    GLAND,
    (ball((0, 14, 18), (8, 5, 6)), 400.0),
    (ball((-44, 0, 0), 9), -550.0),  # what is like the head in two pieces, the smaller one on the other side
    (ball((44, 0, 4), 6), -550.0),
)


@pytest.fixture(autouse=True, scope="module")
def bands() -> Iterator[None]:
    with bands_known():
        yield


@pytest.fixture(scope="module")
def scan() -> Volume:
    return drawn_scan(*SHAPES, shape=(46, 74, 96), spacing_mm=(2.7, 1.9, 1.6))


def written(folder: Path, **changes: object) -> Path:
    settings: dict[str, object] = {"labels": LABELS, "bands": (GLAND_BAND, VESICLES), "organs": ORGANS}
    return write_bands_model(folder / "model.safetensors", **settings | changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with bands_known():
        return written(tmp_path_factory.mktemp("organs"))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same stages without an organs' network."""
    labels = {name: value for name, value in LABELS.items() if name not in ORGANS}
    with bands_known():
        return written(tmp_path_factory.mktemp("plain"), labels=labels, organs={})


@pytest.fixture(scope="module")
def found(model: Path, scan: Volume) -> Prediction:
    return Predictor([model], "cpu", "fp32").predict(scan)


def mean_shares(predictor: Predictor, scan: Volume, found: Prediction) -> dict[str, np.ndarray]:
    """The mean probability of each organ on the scan's whole grid, from the networks' own answers."""
    image, centre_mm = scan.canonical(), found.localisation.centre_mm
    assert centre_mm is not None
    means = {name: np.zeros(image.array.shape, dtype=np.float32) for name in ORGANS}
    for loaded in predictor.models:
        spec = loaded.card.organs
        assert spec is not None
        field = read_field(spec, image, View(centre_mm))
        low, high = WINDOW
        seen = ((torch.from_numpy(field.array) - (low + high) / 2) / ((high - low) / 2)).clamp(-1, 1)
        network = Bands(spec.network["bands"], 2, 1, len(ORGANS) + 1)
        shares = network.forward_with_maps(seen[:, None]).logits.softmax(dim=1).detach().numpy()
        for k, name in enumerate(ORGANS, start=1):
            means[name] += field.with_array(shares[:, k]).resample(image.geometry).array / len(predictor.models)
    return means


def merged(labels: np.ndarray, shares: dict[str, np.ndarray]) -> np.ndarray:
    """Stage 2's label map with the organs, by plain steps on the whole scan."""
    names = list(shares)
    rest = 1 - sum(shares.values())
    winner = np.argmax(np.stack([rest, *shares.values()]), axis=0)
    result = labels.astype(np.uint16)
    for k, name in enumerate(names, start=1):
        pieces, _ = ndimage.label((winner == k) & (labels == 0))
        sizes = np.bincount(pieces.ravel())
        sizes[0] = 0
        if sizes.max():
            result[pieces == sizes.argmax()] = LABELS[name]
    return result


def test_the_label_map_is_stage_2s_and_the_largest_piece_of_each_organ_in_what_it_leaves(
    model: Path, plain: Path, scan: Volume, found: Prediction
) -> None:
    alone = Predictor([plain], "cpu", "fp32").predict(scan)
    shares = mean_shares(Predictor([model], "cpu", "fp32"), scan, found)
    assert alone.labels is not None
    assert found.labels is not None
    wanted = merged(alone.labels.canonical().array, shares)
    np.testing.assert_array_equal(found.labels.canonical().array, wanted)
    assert found.labels.array.dtype == np.uint16
    for name, value in LABELS.items():
        assert (wanted == value).sum() > 50, name
        np.testing.assert_array_equal(found.mask(name).array, found.labels.array == value)
    assert list(found.masks) == list(LABELS)
    # Both contend for the gland, and the organs' network is as sure of it.
    assert (shares["bladder"][wanted == 1] > 0.5).mean() > 0.5


@pytest.mark.parametrize("reruns", [0, 3])
def test_the_target_is_what_it_is_without_organs(model: Path, plain: Path, reruns: int) -> None:
    """Also where stage 2 looks again: to the byte, with its flags and what is said of its boundary."""
    scan = drawn_scan((ball((0, 0, 0), 16), GLAND_HU), (box((-9, -9, 0), (9, 9, 46)), GLAND_HU), *SHAPES[2:])
    one, two = (Predictor([path], "cpu", "fp32", reruns).predict(scan) for path in (plain, model))
    for name in ("prostate", "vesicles"):
        assert one.mask(name).array.tobytes() == two.mask(name).array.tobytes()
    assert one.shares is not None
    assert two.shares is not None
    assert one.shares.tobytes() == two.shares.tobytes()
    before, after = (judge("c", scan, prediction).to_json() for prediction in (one, two))
    assert len(before["crops"]) == (1 if reruns == 0 else 2)
    assert set(after["structures"]) - set(before["structures"]) == {"bladder", "head"}
    assert before["structures"]["prostate"] == after["structures"]["prostate"]
    for name in ("boundary", "crops", "hu", "agreement", "localisation", "verdict"):
        assert before[name] == after[name]
    own = [flag for flag in after["flags"] if flag["code"] not in ("organ_cut", "organ_order")]
    assert [flag for flag in before["flags"] if flag["code"] != "organ_order"] == own


@pytest.mark.parametrize("axes", list(permutations(range(3))))
def test_storage_order_does_not_matter(
    model: Path, scan: Volume, found: Prediction, axes: tuple[int, int, int]
) -> None:
    turned = Predictor([model], "cpu", "fp32").predict(scan.reordered(axes, (True, False, True))).labels
    assert turned is not None
    assert found.labels is not None
    np.testing.assert_array_equal(turned.reordered_like(scan.geometry).array, found.labels.array)


def test_several_models_average_their_organs(model: Path, scan: Volume, tmp_path: Path) -> None:
    """On grids of their own. The second one sees no bladder above the gland's HU."""
    other = written(
        tmp_path, organs={**ORGANS, "bladder": (-15.0, 150.0)}, organs_spacing_mm=(5.0, 3.0, 3.0),
        organs_crop_voxels=(20, 24, 40),
    )  # fmt: skip
    both = Predictor([model, other], "cpu", "fp32")
    found = both.predict(scan)
    shares = mean_shares(both, scan, found)
    assert found.labels is not None
    labels = found.labels.canonical().array
    stage_2 = np.where(np.isin(labels, [1, 2]), labels, 0)
    np.testing.assert_array_equal(labels, merged(stage_2, shares))
    twice = Predictor([model, model], "cpu", "fp32").predict(scan).labels
    once = Predictor([model], "cpu", "fp32").predict(scan).labels
    assert twice is not None
    assert once is not None
    np.testing.assert_array_equal(twice.array, once.array)
    assert not np.array_equal(once.array, found.labels.array)


def test_models_with_other_organs_or_none_are_not_averaged(model: Path, plain: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="segments nothing, the first model's head, bladder; only models of the"):
        Predictor([model, plain], "cpu")
    turned = written(tmp_path, organs=dict(reversed(ORGANS.items())))
    with pytest.raises(InputError, match="segments bladder, head, the first model's head, bladder"):
        Predictor([model, turned], "cpu")


def test_what_is_said_of_organs(scan: Volume, found: Prediction) -> None:
    structures = judge("c", scan, found).structures
    assert {name: structures[name]["cropped"] for name in structures} == {
        "bladder": False,
        "prostate": False,
        "vesicles": True,
        "head": False,
    }
    assert structures["head"]["pieces"] == 2
    assert structures["head"]["loose_ml"] == pytest.approx(0.5, abs=0.4)
    assert structures["head"]["centre_mm"] == pytest.approx([-44, 0, 0], abs=1.5)
    assert structures["bladder"]["empty_slices"] == 0


@pytest.mark.parametrize(("end_mm", "cropped"), [(40.0, False), (70.0, True)])
@pytest.mark.parametrize("scan_end", [False, True])
def test_an_organ_is_cropped_where_its_box_cuts_it_and_the_scan_goes_on(
    model: Path, end_mm: float, cropped: bool, scan_end: bool
) -> None:
    """The box ends 56 mm above the gland's middle; at the end of the scan it is not the box that cuts."""
    long = drawn_scan(GLAND, (box((-8, -16, 12), (8, 0, end_mm)), 200.0), shape=(80, 72, 80))
    if scan_end:
        above = round(float(long.geometry.to_index((0, 0, min(end_mm, 52) - 6))[0]))
        long = long.crop((0, 0, 0), (above, *long.array.shape[1:]))
    found = Predictor([model], "cpu", "fp32").predict(long)
    quality = judge("c", long, found)
    assert quality.structures["bladder"]["cropped"] == (cropped and not scan_end)
    assert ("organ_cut" in [flag.code for flag in quality.flags]) == (cropped and not scan_end)


def test_the_files_hold_organs_and_target_alike(model: Path, scan: Volume, tmp_path: Path) -> None:
    write_series(tmp_path / "ct", scan.array, spacing_mm=scan.spacing_mm)
    predict([tmp_path / "ct"], [model], tmp_path / "out", formats=("nifti", "rtstruct", "seg"), device="cpu")
    (series,) = find_series(tmp_path / "ct").series
    case = tmp_path / "out" / series.case
    labels = read_labels(Path(f"{case}.nii.gz")).reordered_like(series.geometry)
    quality = json.loads(Path(f"{case}.quality.json").read_text())
    contours = read_rtstruct(Path(f"{case}.rtstruct.dcm"), series)
    segments = read_seg(Path(f"{case}.seg.dcm"), series)
    assert len(contours.structures) == len(segments) == len(LABELS)
    for name, value in LABELS.items():
        inside = labels.array == value
        told = quality["structures"][name]
        assert told["volume_ml"] == pytest.approx(inside.sum() * labels.geometry.voxel_volume_ml, abs=0.01)
        drawn = told["contours"]
        assert drawn["outline"] == "surface"
        read = contours.mask(drawn["name"], series.geometry).array != 0
        np.testing.assert_array_equal(read, inside)
        np.testing.assert_array_equal(segments[drawn["name"]].array != 0, inside)
        assert drawn["volume_ml"] == pytest.approx(drawn["mask_volume_ml"], rel=0.03, abs=0.1)


def test_where_stage_2_finds_no_target_nothing_else_is_kept(scan: Volume, tmp_path: Path) -> None:
    """Stage 1 is mistaken, and what the networks see around its mistake would be written as organs."""
    mistaken = written(tmp_path, bands=((500.0, 600.0), VESICLES), locate_bands=(GLAND_BAND, VESICLES))
    found = Predictor([mistaken], "cpu", "fp32").predict(scan)
    assert found.localisation.status != "absent"
    assert (found.labels, dict(found.masks), found.organs) == (None, {}, None)
    assert [crop.used for crop in found.crops] == [True]
    assert not any(found.probability_map(name).array.any() for name in LABELS)
    write_series(tmp_path / "ct", scan.array, spacing_mm=scan.spacing_mm)
    out = tmp_path / "out"
    (case,) = predict([tmp_path / "ct"], [mistaken], out, formats=("nifti", "rtstruct", "seg"), device="cpu").cases
    assert case.verdict == "fail"
    assert "empty" in case.flags
    assert {path.name for path in out.iterdir()} == {f"{case.case}.quality.json", "run.json"}


def test_the_organs_network_rests_where_none_of_its_structures_is_chosen(
    model: Path, scan: Volume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_nifti(tmp_path / "case.nii.gz", scan)
    folders = {}
    for names in (None, ["prostate", "vesicles"], ["prostate", "head"]):
        folders[len(folders)] = tmp_path / str(len(folders))
        predict([tmp_path / "case.nii.gz"], [model], folders[len(folders) - 1], structures=names, device="cpu")
    whole, staged, mixed = (read_labels(folder / "case.nii.gz").array for folder in folders.values())
    np.testing.assert_array_equal(staged, np.where(np.isin(whole, [1, 2]), whole, 0))
    np.testing.assert_array_equal(mixed, np.where(np.isin(whole, [1, 300]), whole, 0))
    before, now, _ = (json.loads((folder / "case.quality.json").read_text()) for folder in folders.values())
    assert now["structures"] == {name: before["structures"][name] for name in ("prostate", "vesicles")}
    for name in ("boundary", "crops", "hu", "agreement", "localisation", "verdict", "doubt"):
        assert before[name] == now[name]
    assert [flag for flag in before["flags"] if flag["code"] != "organ_order"] == now["flags"]

    assert Predictor([model], "cpu", organs=False).models[0].organs is None
    monkeypatch.setattr(Segmenter, "_segment_organs", None)
    with pytest.raises(InputError, match="unexpected TypeError"):
        predict([tmp_path / "case.nii.gz"], [model], tmp_path / "3", structures=["head"], device="cpu")
    predict([tmp_path / "case.nii.gz"], [model], tmp_path / "4", structures=["prostate"], device="cpu")


def test_the_contour_of_an_organ_follows_its_own_probability(tmp_path: Path) -> None:
    """HU fall off linearly across the border of a ball beside the gland: half-way HU lie on it, between voxels."""
    middle, radius_mm = (-40.3, -0.4, 1.0), 10.3
    scan = drawn_scan(GLAND, shape=(40, 72, 80), noise_hu=0)
    index = np.stack(np.meshgrid(*[np.arange(n) for n in scan.array.shape], indexing="ij"), axis=-1)
    far = np.linalg.norm(scan.geometry.to_world(index) - middle, axis=-1)
    scan.array[far < 18] = np.rint(np.clip(-400 + 15 * (far[far < 18] - radius_mm), -800, -250)).astype(np.int16)
    model = written(
        tmp_path, organs={**ORGANS, "head": (-900.0, -400.0)}, organs_spacing_mm=(2.0, 1.0, 1.0),
        organs_crop_voxels=(40, 72, 120),
    )  # fmt: skip
    write_series(tmp_path / "ct", scan.array, spacing_mm=scan.spacing_mm)
    (series,) = find_series(tmp_path / "ct").series
    off_mm = {}
    for outline in ("surface", "voxel"):
        out = tmp_path / outline
        predict([tmp_path / "ct"], [model], out, formats=("rtstruct",), device="cpu", contours=outline)
        (path,) = out.glob("*.rtstruct.dcm")
        points = np.concatenate(read_rtstruct(path).structure("Head^auto").contours)
        points = points - series.geometry.to_world([0, 0, 0]) + scan.geometry.to_world([0, 0, 0]) - middle
        off_mm[outline] = np.abs(np.linalg.norm(points[abs(points[:, 2]) < 5], axis=1) - radius_mm)
    assert off_mm["surface"].mean() < 0.1 * 2
    assert off_mm["voxel"].mean() > 2 * off_mm["surface"].mean()


def test_the_front_door_gives_masks_and_probabilities_of_organs(model: Path, scan: Volume, tmp_path: Path) -> None:
    write_nifti(tmp_path / "scan.nii.gz", scan)
    result = mu.load_model(model, device="cpu").predict(tmp_path / "scan.nii.gz")
    predictor = result.model.predictor
    shares = mean_shares(predictor, result.scan.volume, result.prediction)
    part = result.prediction.organs
    assert part is not None
    inside = np.zeros(result.scan.volume.array.shape, dtype=bool)
    Volume(inside, result.scan.volume.geometry).canonical().array[
        tuple(slice(first, first + n) for first, n in zip(part.start, part.geometry.shape, strict=True))
    ] = True
    for name in ORGANS:
        found = result.probability(name)
        assert found.geometry.same_grid(result.scan.volume.geometry)
        whole = Volume(shares[name], result.scan.volume.canonical().geometry)
        wanted = whole.reordered_like(result.scan.volume.geometry).array
        np.testing.assert_allclose(found.array[inside], wanted[inside], atol=1e-5)
        assert not found.array[~inside].any()
        assert result.volume_ml(name) > 0.5
    nothing = mu.load_model(model, device="cpu").predict(drawn_scan(shape=(40, 48, 48)))
    assert nothing.is_absent
    assert not nothing.probability("bladder").array.any()
