"""Probabilities in files: on the scan's grid, the mask follows from them, and no command takes them for masks."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from metricunet.evaluation.cases import match_cases
from metricunet.files.nifti import read_labels, write_nifti
from metricunet.files.seg.read import read_seg
from metricunet.inference.inputs import find_inputs, scans_at
from metricunet.inference.predict import predict
from metricunet.volume import Volume
from tests.support.dicom_series import write_series
from tests.support.threshold_model import GLAND_BAND, GLAND_HU, ball, bands_known, drawn_scan, write_bands_model

#: Two glands, of which the smaller is no part of the mask, and a bladder that touches the larger one.
SHAPES = (
    (ball((6, -4, 0), (16, 12, 14)), GLAND_HU),
    (ball((-24, 6, 0), 6), GLAND_HU),
    (ball((6, -4, 20), 9), 300.0),
)


def classes_of(shares: NDArray[np.float32], targets: list[int]) -> NDArray[np.int64]:
    """The recipe of the page on predictions; `targets` are kept in one piece each."""
    classes = np.concatenate([(1 - shares.sum(axis=0))[None], shares]).argmax(axis=0)
    for target in targets:
        pieces, count = ndimage.label(classes == target)
        if count > 1:
            classes[(pieces > 0) & (pieces != 1 + np.argmax(np.bincount(pieces.ravel())[1:]))] = 0
    return classes


def shares_in(path: Path) -> NDArray[np.float32]:
    return np.asarray(nib.load(path).dataobj).transpose(3, 2, 1, 0)


@pytest.mark.parametrize("flips", [(False, False, False), (True, False, True)])
def test_the_argmax_of_the_float_file_is_the_mask(flips: tuple[bool, bool, bool], tmp_path: Path) -> None:
    write_nifti(tmp_path / "scans" / "a.nii.gz", drawn_scan(*SHAPES).reordered((0, 1, 2), flips))
    formats = ["nifti", "probability", "probability_uint8"]
    with bands_known():
        model = write_bands_model(
            tmp_path / "model.safetensors",
            {"prostate": 1, "bladder": 7},
            (GLAND_BAND, (200.0, 400.0)),
            crop_voxels=(40, 40, 40),
        )
        predict([tmp_path / "scans"], [model], tmp_path / "out", formats=formats, device="cpu")
    out = tmp_path / "out"
    stated = json.loads((out / "a.quality.json").read_text())
    assert stated["probability"] == {"volumes": ["prostate", "bladder"], "organs": []}
    file, scan = nib.load(out / "a.probability.nii.gz"), nib.load(tmp_path / "scans" / "a.nii.gz")
    assert file.shape == (*scan.shape, 2)
    assert file.get_data_dtype() == np.float32
    assert np.array_equal(file.affine, scan.affine)
    shares = shares_in(out / "a.probability.nii.gz")
    mask = np.asarray(nib.load(out / "a.nii.gz").dataobj).transpose(2, 1, 0)
    assert (mask == 7).any()
    assert ndimage.label(shares[0] > 0.5)[1] == 2  # the piece that the mask lacks is there
    assert np.array_equal(np.array([0, 1, 7])[classes_of(shares, [1])], mask)
    bytes_file = nib.load(out / "a.probability_uint8.nii.gz")
    assert bytes_file.get_data_dtype() == np.uint8
    assert np.abs(shares_in(out / "a.probability_uint8.nii.gz") - shares).max() <= 0.5 / 255 + 1e-6


def test_organs_follow_from_their_own_sum(tmp_path: Path) -> None:
    shapes = (*SHAPES[:1], (ball((6, -4, 24), 11), 300.0))
    write_nifti(tmp_path / "scans" / "a.nii.gz", drawn_scan(*shapes))
    with bands_known():
        model = write_bands_model(
            tmp_path / "model.safetensors",
            {"prostate": 1, "bladder": 7},
            organs={"bladder": (200.0, 400.0)},
        )
        predict([tmp_path / "scans"], [model], tmp_path / "out", formats=["nifti", "probability"], device="cpu")
    out = tmp_path / "out"
    assert json.loads((out / "a.quality.json").read_text())["probability"]["organs"] == ["bladder"]
    shares = shares_in(out / "a.probability.nii.gz")
    target = classes_of(shares[:1], [1])
    organs = np.where(target == 0, np.concatenate([1 - shares[1:], shares[1:]]).argmax(axis=0), 0)
    pieces, count = ndimage.label(organs)
    assert count >= 1
    organs[(pieces > 0) & (pieces != 1 + np.argmax(np.bincount(pieces.ravel())[1:]))] = 0
    mask = np.asarray(nib.load(out / "a.nii.gz").dataobj).transpose(2, 1, 0)
    assert (mask == 7).any()
    assert np.array_equal(np.where(target == 1, 1, np.where(organs == 1, 7, 0)), mask)


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Volume]:
    folder = tmp_path_factory.mktemp("ct")
    scan = drawn_scan(*SHAPES[:1])
    write_series(folder, scan.array, spacing_mm=scan.spacing_mm, origin_mm=tuple(scan.geometry.origin_mm))
    return folder, scan


def test_a_fractional_segmentation_holds_the_probabilities(
    bands_model: Path, series: tuple[Path, Volume], tmp_path: Path
) -> None:
    import highdicom as hd

    formats = ["nifti", "seg", "probability", "probability_seg"]
    (entry,), _ = scans_at(series[0])
    predict([series[0]], [bands_model], tmp_path, formats=formats, device="cpu")
    path = tmp_path / f"{entry.case}.probability.seg.dcm"
    read = hd.seg.segread(path)
    assert read.SegmentationType == "FRACTIONAL"
    assert read.SegmentationFractionalType == "PROBABILITY"
    assert entry.series is not None
    stored = read.get_pixels_by_source_instance(
        entry.series.sop_uids, ignore_spatial_locations=True, assert_missing_frames_are_empty=True
    )[..., 0]
    shares = shares_in(tmp_path / f"{entry.case}.probability.nii.gz")[0]
    assert np.abs(stored - shares).max() <= 0.5 / 255 + 1e-6
    (mask,) = read_seg(path, entry.series).values()  # voxels from one half on
    assert np.array_equal(mask.array != 0, read_labels(tmp_path / f"{entry.case}.nii.gz").array != 0)


def test_probabilities_are_taken_for_no_scan_and_no_mask(bands_model: Path, tmp_path: Path) -> None:
    scans, out = tmp_path / "scans", tmp_path / "out"
    write_nifti(scans / "a.nii.gz", drawn_scan(*SHAPES[:1]))
    predict([scans], [bands_model], out, formats=["nifti", "probability", "probability_uint8"], device="cpu")
    assert len(list(out.glob("a*.nii.gz"))) == 3
    assert [pair.case for pair in match_cases(out, out).pairs] == ["a"]
    write_nifti(out / "b.nii.gz", drawn_scan(*SHAPES[:1]))  # a scan among them
    found, _ = find_inputs([out])
    assert [entry.case for entry in found] == ["b"]
    with pytest.raises(ValueError, match="needs a DICOM series"):
        predict([scans], [bands_model], out, formats=["probability_seg"], device="cpu")
