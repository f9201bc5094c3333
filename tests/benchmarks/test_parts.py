"""Parts on a tiny scan with tiny networks: what they do, not how fast they are."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import alone
from benchmarks import subject as subjects
from benchmarks.alone import Bare, monai_slider, slid, with_crop
from benchmarks.files import bench_files, ellipsoid, read_series, read_slice_by_slice
from benchmarks.locate import bench_locate
from benchmarks.segment import bench_segment, slid_over_scan
from benchmarks.subject import Subject, phantom_scan
from metricunet.errors import InputError
from metricunet.inference.predictor import Predictor
from metricunet.phantom.make import Phantom
from metricunet.training.config import load_config
from metricunet.volume import Geometry, Volume
from metricunet.workflows.bench.timing import Ratio
from metricunet.workflows.bench.untrained import write_untrained
from tests.support.cohorts import TINY_SETTINGS

CPU = torch.device("cpu")


@pytest.fixture
def no_monai(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [m for m in sys.modules if m.split(".")[0] == "monai"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "monai", None)


@pytest.fixture
def solid(subject: Subject) -> Subject:
    """The same scan, and a model whose stage 2 is a 3D network."""
    settings = [*TINY_SETTINGS, "segment.spatial_dims=3", "segment.block_slices=8"]
    write_untrained(subject.model, load_config("small", settings=settings))
    return subject


def test_locate(subject: Subject) -> None:
    ticks: list[tuple[int, int]] = []
    found = bench_locate(subject, CPU, repeats=2, progress=lambda *tick: ticks.append(tick))
    assert ticks[-1] == (6, 6)
    content = json.loads(json.dumps(found.to_json()))
    assert content["ours"]["n"] == content["bare"]["n"] == content["slide"]["n"] == 2
    assert content["facts"]["device"] == "cpu"
    assert content["work"]["multiply_adds"] > 1e6
    text = found.text()
    for words in ("locate:", "stage 1 over the scan", "slid by MONAI, window 16 x 16 x 16", "CUDA: not run"):
        assert words in text


def test_segment(subject: Subject) -> None:
    found = bench_segment(subject, CPU, repeats=2)
    content = json.loads(json.dumps(found.to_json()))
    assert content["target_times_faster"] == 10
    assert content["slide_over_whole"]["median"] > 0
    assert content["whole"]["n"] == content["slide"]["n"] == content["stage2"]["n"] == 2
    fast = replace(found, slide_over_whole=Ratio(10.0, (9.0, 11.0)))
    slow = replace(found, slide_over_whole=Ratio(9.99, (9.0, 11.0)))
    assert "target at least 10 met" in fast.text()
    assert "target at least 10 MISSED" in slow.text()


def test_segment_with_a_3d_model(solid: Subject) -> None:
    found = bench_segment(solid, CPU, repeats=1)
    assert found.stage2.n == found.whole.n == 1
    assert found.work.multiply_adds > 1e6
    assert found.slide is None
    assert "goes over its crop in windows by itself" in found.text()


def test_without_monai_the_rest_is_measured(subject: Subject, no_monai: None) -> None:
    for found in (bench_locate(subject, CPU, repeats=1), bench_segment(subject, CPU, repeats=1)):
        assert found.slide is None
        assert found.to_json()["slide"] is None
        assert 'MONAI: not installed, so no baseline (pip install "monai>=1.5")' in found.text()


def test_the_bare_network_sees_what_the_predictor_gives_it(subject: Subject) -> None:
    predictor = Predictor([subject.model], "cpu", "bf16")
    given: list[torch.Tensor] = []
    network = predictor.models[0].segment
    bare = Bare(network, lambda: predictor.predict(subject.scan))
    hook = network.register_forward_hook(lambda module, inputs, logits: given.append(logits.clone()))
    predictor.predict(subject.scan)
    count = len(given)
    last = bare()
    hook.remove()
    assert count == len(bare.inputs) == len(given) - count > 1
    assert bare.precision == "bf16"
    assert all(torch.equal(a, b) for a, b in zip(given[:count], given[count:], strict=True))
    assert torch.equal(last, given[-1])
    with pytest.raises(ValueError, match="was not used"):
        Bare(network, lambda: None)


def test_one_window_over_all_is_no_slide_at_all(subject: Subject) -> None:
    """A window as large as the grid gives what one pass gives: the same network on the same voxels."""
    predictor = Predictor([subject.model], "cpu")
    bare = Bare(predictor.models[0].locate, lambda: predictor.locate(subject.scan))
    inferer = monai_slider(tuple(bare.inputs[0][0].shape[2:]), 1)
    assert inferer is not None
    one = predictor.locate(subject.scan)
    other = slid(predictor, "locate", inferer).locate(subject.scan)
    assert one.centre_mm is not None
    assert other.centre_mm is not None
    assert np.allclose(other.centre_mm, one.centre_mm)
    assert other.volume_ml == one.volume_ml


def test_the_slide_covers_the_whole_scan(subject: Subject) -> None:
    """With a network that says yes everywhere, every voxel of the scan is in the mask."""
    write_untrained(subject.model, load_config("small", settings=TINY_SETTINGS))
    sliding = slid_over_scan(subject, (32, 32), CPU)
    assert sliding is not None
    labels = sliding.predict(subject.scan).labels
    assert labels is not None
    assert labels.geometry.same_grid(subject.scan.geometry)
    assert labels.array.all()
    assert alone.OVERLAP == 0.5


def test_a_crop_of_other_sides(subject: Subject) -> None:
    write_untrained(subject.model, load_config("small", settings=TINY_SETTINGS))
    volumes = []
    for voxels in ((16, 32, 32), (8, 16, 16)):
        labels = with_crop(Predictor([subject.model], "cpu", reruns=0), voxels).predict(subject.scan).labels
        assert labels is not None
        volumes.append(int(labels.array.sum()))
    assert volumes[0] == pytest.approx(8 * volumes[1], rel=0.25)


def test_files(phantom: Subject) -> None:
    found = bench_files(phantom, CPU, repeats=1)
    names = [row.name for row in found.rows]
    assert names == [
        "DICOM read, uncompressed",
        "NIfTI write, scan .nii.gz", "NIfTI read, scan .nii.gz",
        "NIfTI write, mask .nii.gz", "NIfTI read, mask .nii.gz",
        "RTSTRUCT write", "RTSTRUCT read to a mask",
    ]  # fmt: skip
    assert [row.baseline_name for row in found.rows[:3]] == ["pydicom slice by slice", "nibabel", "nibabel"]
    assert found.rows[0].megabytes == pytest.approx(phantom.scan.array.size * 2 / 1e6)
    assert json.loads(json.dumps(found.to_json()))["rows"][-1]["baseline"] is None
    assert "pydicom slice by slice / ours" in found.text()


def test_both_readers_read_the_same(phantom: Subject) -> None:
    ours, theirs = read_series(phantom.path), read_slice_by_slice(phantom.path)
    assert np.array_equal(ours.array, theirs)
    assert np.array_equal(ours.array, np.maximum(phantom.scan.array, -1024))  # no CT stores less than that
    assert ours.geometry.same_grid(phantom.scan.geometry)


def test_a_transfer_syntax_is_named(shared_data: Path) -> None:
    from benchmarks.files import syntax
    from metricunet.files.dicom.series import find_series

    series = find_series(shared_data / "pelvis_ct_dicom").series[0]
    assert syntax(series) == "JPEG2000Lossless"


def test_the_ellipsoid_has_a_glands_volume(phantom: Subject) -> None:
    mask = ellipsoid(phantom.scan)
    volume_ml = mask.array.sum() * mask.geometry.voxel_volume_ml
    assert volume_ml == pytest.approx(4 / 3 * np.pi * 2.0 * 2.2 * 2.5, rel=0.03)


def test_a_phantom_with_any_number_of_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """A ramp along the slices stays that ramp, and a mask keeps its volume."""
    geometry = Geometry.from_parts((10, 4, 6), (5, 2, 1), (3, 4, -50))
    ramp = np.broadcast_to(np.arange(10, dtype=np.int16)[:, None, None] * 100, geometry.shape).copy()
    labels = np.zeros(geometry.shape, dtype=np.uint8)
    labels[4:6], labels[8:] = 1, 2
    phantom = Phantom(Volume(ramp, geometry), Volume(labels, geometry), {})
    monkeypatch.setattr(subjects, "make_phantom", lambda seed, difficulty: phantom)
    scan, truth = phantom_scan(40)
    assert scan.array.dtype == np.int16
    assert scan.array.shape == truth.array.shape == (40, 4, 6)
    assert scan.geometry.same_grid(truth.geometry)
    assert scan.geometry.extent_mm == pytest.approx(geometry.extent_mm)
    assert np.allclose(scan.geometry.centre_mm, geometry.centre_mm)
    heights = scan.geometry.to_world([[k, 0, 0] for k in range(40)])[:, 2]
    wanted = np.clip((heights + 50) / 5 * 100, 0, 900)
    assert np.abs(scan.array[:, 0, 0] - wanted).max() <= 0.5
    assert truth.array.sum() * truth.geometry.voxel_volume_ml == pytest.approx(2 * 4 * 6 * 10 / 1000)
    assert phantom_scan(5)[0].array[:, 0, 0].tolist() == [50, 250, 450, 650, 850]
    with pytest.raises(InputError, match="--slices must be 2 or more; got 1"):
        phantom_scan(1)
