"""Preparing: what both stages read, and a cache that notices every change of its inputs."""

from __future__ import annotations

import errno
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from metricunet.cohort.case import LabelledScan, read_case
from metricunet.cohort.layout import Case, DatasetInfo, read_cohort
from metricunet.cohort.prepare import OrgansSettings, PreparedCase, PrepareSettings, cohort_sha256, prepare
from metricunet.errors import InputError
from metricunet.files.nifti import read_labels, read_nifti, write_nifti
from metricunet.files.record import sha256
from metricunet.structures import IGNORE_CLASS
from tests.support.cohorts import ORGAN_LABELS, edit_json, make_organs_cohort

SETTINGS = PrepareSettings("prostate", (6, 6, 6), (4, 2, 2), (80, 96, 96))


@pytest.fixture
def folder(tiny_cohort: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_cohort, tmp_path / "cohort"))


def run(folder: Path, settings: PrepareSettings = SETTINGS) -> list[PreparedCase]:
    cohort = read_cohort(folder)
    return prepare(cohort.training, cohort.info, settings, folder / "prepared")


def test_what_is_prepared(folder: Path) -> None:
    cases = run(folder)
    case = cases[0]
    assert case.coarse.spacing_mm == pytest.approx((6, 6, 6))
    assert case.coarse.array.dtype == np.int16
    assert case.fine is not None
    assert case.fine_labels is not None
    assert case.fine.array.shape == (20, 48, 48)
    labels = read_labels(folder / "labelsTr" / "case_00.nii.gz")
    centre = labels.geometry.to_world(np.argwhere(labels.array).mean(axis=0))
    np.testing.assert_allclose(case.fine.geometry.centre_mm, centre, atol=1e-6)
    volume_ml = labels.array.sum() * labels.geometry.voxel_volume_ml
    assert case.facts["volume_ml"] == pytest.approx(volume_ml)
    for prepared in (case.fine_labels, case.coarse_labels):
        assert prepared.array.sum() * prepared.geometry.voxel_volume_ml == pytest.approx(volume_ml, rel=0.1)
    assert case.facts["target_hu"] == pytest.approx(60, abs=2)
    assert cases[5].fine is None
    assert "volume_ml" not in cases[5].facts


def test_the_cache_gives_the_same(folder: Path) -> None:
    first = run(folder)
    stamp = [p.stat().st_mtime_ns for p in sorted((folder / "prepared").iterdir())]
    second = run(folder)
    assert [p.stat().st_mtime_ns for p in sorted((folder / "prepared").iterdir())] == stamp
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a.coarse.array, b.coarse.array)
        assert a.coarse.geometry.same_grid(b.coarse.geometry, 1e-9)
        assert (a.facts, a.source_sha256) == (b.facts, b.source_sha256)


def test_a_scan_is_known_by_its_image_alone(folder: Path) -> None:
    before = run(folder)
    image = folder / "imagesTr" / "case_00_0000.nii.gz"
    assert before[0].image_sha256 == sha256([image])
    labels = folder / "labelsTr" / "case_00.nii.gz"
    volume = read_labels(labels)
    write_nifti(labels, volume.with_array(volume.array[:, :, ::-1].copy()))
    after = run(folder)[0]
    assert after.image_sha256 == before[0].image_sha256
    assert after.source_sha256 != before[0].source_sha256


def test_a_cache_from_before_scans_were_known_by_their_image_is_read_as_it_is(folder: Path) -> None:
    expected = run(folder)[0].image_sha256
    path = folder / "prepared" / "case_00.npz"
    with np.load(path) as content:
        arrays = {name: content[name] for name in content}
    description = json.loads(arrays["description"].tobytes())
    del description["image_sha256"]
    arrays["description"] = np.frombuffer(json.dumps(description).encode(), dtype=np.uint8)
    np.savez(path, **arrays)
    before = path.read_bytes()
    assert run(folder)[0].image_sha256 == expected
    assert path.read_bytes() == before


def test_a_changed_file_is_noticed(folder: Path) -> None:
    before = run(folder)
    path = folder / "labelsTr" / "case_00.nii.gz"
    labels = read_labels(path)
    keep = labels.array.copy()
    keep[: np.flatnonzero(keep.any(axis=(1, 2)))[3]] = 0
    write_nifti(path, labels.with_array(keep))
    after = run(folder)
    assert after[0].facts["volume_ml"] < before[0].facts["volume_ml"]
    assert after[0].source_sha256 != before[0].source_sha256
    assert after[1].source_sha256 == before[1].source_sha256
    assert cohort_sha256(after) != cohort_sha256(before)


def test_a_file_of_the_same_size_with_other_content_is_noticed(folder: Path) -> None:
    before = run(folder)
    path = folder / "imagesTr" / "case_00_0000.nii"
    image = read_nifti(folder / "imagesTr" / "case_00_0000.nii.gz")
    (folder / "imagesTr" / "case_00_0000.nii.gz").unlink()
    write_nifti(path, image)
    run(folder)
    write_nifti(path, image.with_array(image.array[::-1].copy()))
    os.utime(path, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns + 1))
    assert not np.array_equal(run(folder)[0].coarse.array, before[0].coarse.array)


def test_labels_that_are_corrected_while_they_are_read_are_not_kept_as_they_were(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, path = folder / "imagesTr" / "case_00_0000.nii.gz", folder / "labelsTr" / "case_00.nii.gz"
    labels = read_labels(path)

    def read_and_correct(case: Case, info: DatasetInfo) -> LabelledScan:
        scan = read_case(case, info)
        if case.name == "case_00":
            write_nifti(path, labels.with_array(labels.array[:, :, ::-1].copy()))
        return scan

    with monkeypatch.context() as patch:
        patch.setattr("metricunet.cohort.prepare.read_case", read_and_correct)
        with pytest.raises(InputError, match=r"case_00_0000\.nii\.gz: .* changed while they were read"):
            run(folder)
    assert not (folder / "prepared" / "case_00.npz").exists()
    assert run(folder)[0].source_sha256 == sha256([image, path])


def test_what_another_users_cache_lacks_is_made_and_not_kept(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    before = run(folder)
    path, kept = folder / "labelsTr" / "case_00.nii.gz", folder / "prepared" / "case_00.npz"
    content = kept.read_bytes()
    labels = read_labels(path)
    write_nifti(path, labels.with_array(labels.array[:, :, ::-1].copy()))

    def refuse(source: Path, target: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", refuse)
        after = run(folder)
    assert after[0].source_sha256 != before[0].source_sha256
    assert after[1].source_sha256 == before[1].source_sha256
    assert kept.read_bytes() == content
    assert "may not be written, so 1 of 6 cases are prepared anew" in caplog.text


def test_changed_settings_and_labels_are_noticed(folder: Path) -> None:
    run(folder)
    assert run(folder, replace(SETTINGS, coarse_spacing_mm=(8, 8, 8)))[0].coarse.spacing_mm == pytest.approx(
        (8, 8, 8)
    )
    edit_json(folder / "dataset.json", labels={"background": 0, "prostate": 2, "bladder": 1})
    assert run(folder)[0].fine is None


def test_labels_in_another_order_are_noticed(folder: Path) -> None:
    """A label's place is its class, so what was cached has the classes of the old order."""
    edit_json(folder / "dataset.json", labels={"background": 0, "prostate": 1, "bladder": 2})
    run(folder)
    edit_json(folder / "dataset.json", labels={"background": 0, "bladder": 2, "prostate": 1})
    again = run(folder)[0].fine_labels
    assert again is not None
    assert set(np.unique(again.array)) == {0, 2}


@pytest.mark.parametrize("content", [b"", b"somebody's", None])
def test_a_file_that_is_not_the_caches_is_never_replaced(folder: Path, content: bytes | None) -> None:
    run(folder)
    cache = folder / "prepared"
    path, other = cache / "case_01.npz", cache / "case_00.npz"
    path.write_bytes(path.read_bytes()[:200] if content is None else content)
    other.unlink()
    before = path.read_bytes()
    with pytest.raises(
        InputError, match=r"case_01\.npz: a prepared case would be written here, .*move it"
    ) as error:
        run(folder)
    assert "\n" not in str(error.value)
    assert path.read_bytes() == before
    assert not other.exists()  # that was before any work


def test_a_cached_case_that_somebody_changed_is_theirs(folder: Path) -> None:
    run(folder)
    path = folder / "prepared" / "case_00.npz"
    with np.load(path) as content:
        arrays = {name: content[name] for name in content}
    arrays["coarse"] = arrays["coarse"] + 1
    np.savez(path, **arrays)
    image = next((folder / "imagesTr").glob("case_00*"))
    os.utime(image, ns=(image.stat().st_atime_ns, image.stat().st_mtime_ns + 1))
    with pytest.raises(InputError, match=r"case_00\.npz: a prepared case would be written here"):
        run(folder)


def test_ignored_voxels(folder: Path) -> None:
    edit_json(folder / "dataset.json", labels={"background": 0, "prostate": 1, "ignore": 9})
    path = folder / "labelsTr" / "case_00.nii.gz"
    labels = read_labels(path)
    array = labels.array.copy()
    array[:, :4] = 9
    write_nifti(path, labels.with_array(array))
    case = run(folder)[0]
    assert set(np.unique(case.coarse_labels.array)) == {0, 1, IGNORE_CLASS}


@pytest.mark.parametrize(("shift", "found"), [(1100, "lowest value is"), (0, "highest value is")])
def test_values_that_are_no_hounsfield_units(folder: Path, shift: int, found: str) -> None:
    """The highest would else be cut off at what 16 bits hold, and be learned."""
    path = folder / "imagesTr" / "case_00_0000.nii.gz"
    image = read_nifti(path)
    array = image.array.astype(np.int32) + shift
    array[0, 0, 0] = 65535
    write_nifti(path, image.with_array(array))
    shutil.rmtree(folder / "prepared", ignore_errors=True)  # of other tests of the shared cohort
    with pytest.raises(InputError, match=rf"case_00_0000\.nii\.gz: the {found} .* no Hounsfield units"):
        run(folder)
    assert not (folder / "prepared").exists()


def test_an_unknown_target(folder: Path) -> None:
    with pytest.raises(InputError, match="must be one of prostate"):
        run(folder, replace(SETTINGS, target="bladder"))


ORGANS = ("side_right", "bowl", "side_left")


def test_organs_have_a_box_of_their_own_with_classes_of_their_own(tmp_path: Path) -> None:
    """By values in the labels: prostate 1, left 2, right 3, bowl 4."""
    folder = make_organs_cohort(tmp_path / "cohort", 1)
    settings = replace(SETTINGS, organs=OrgansSettings(ORGANS, (4, 4, 4), (128, 96, 160)))
    (case,) = run(folder, settings)
    (plain,) = run(folder)
    box, fine = case.box("organs"), case.box("fine")
    assert box is not None
    assert fine is not None
    assert box.labels.array.shape == (32, 24, 40)
    assert box.hu.array.dtype == np.int16
    assert set(np.unique(fine.labels.array)) == {0, 1}
    assert set(np.unique(case.coarse_labels.array)) == {0, 1}
    assert set(np.unique(plain.coarse_labels.array)) == {0, *ORGAN_LABELS.values()}
    labels = read_labels(folder / "labelsTr" / "case_00.nii.gz")
    target = labels.geometry.to_world(np.argwhere(labels.array == 1).mean(axis=0))
    for found in (box.labels, fine.labels):
        np.testing.assert_allclose(found.geometry.centre_mm, target, atol=1e-6)
    for k, name in enumerate(ORGANS, start=1):
        wanted = labels.array == ORGAN_LABELS[name]
        got = box.labels.array == k
        centre = labels.geometry.to_world(np.argwhere(wanted).mean(axis=0))
        np.testing.assert_allclose(box.labels.geometry.to_world(np.argwhere(got).mean(axis=0)), centre, atol=1)
        assert got.sum() * 64 == pytest.approx(wanted.sum() * labels.geometry.voxel_volume_ml * 1000, rel=0.15)
    # The scan that the other stages read, and the hash, are as without; the organs are none of their classes.
    np.testing.assert_array_equal(case.coarse.array, plain.coarse.array)
    assert plain.fine is not None
    np.testing.assert_array_equal(fine.hu.array, plain.fine.array)
    assert plain.box("organs") is None
    assert cohort_sha256([case]) == cohort_sha256([plain])


def test_the_cache_keeps_the_organs(tmp_path: Path) -> None:
    folder = make_organs_cohort(tmp_path / "cohort", 2, absent=[1])
    settings = replace(SETTINGS, organs=OrgansSettings(ORGANS, (4, 4, 4), (128, 96, 160)))
    first = run(folder, settings)
    stamp = [p.stat().st_mtime_ns for p in sorted((folder / "prepared").iterdir())]
    second = run(folder, settings)
    assert [p.stat().st_mtime_ns for p in sorted((folder / "prepared").iterdir())] == stamp
    one, two = (cases[0].box("organs") for cases in (first, second))
    assert one is not None
    assert two is not None
    np.testing.assert_array_equal(one.labels.array, two.labels.array)
    np.testing.assert_array_equal(one.hu.array, two.hu.array)
    assert second[1].box("organs") is None


def test_classes_that_were_not_contoured_are_each_networks_own(tmp_path: Path) -> None:
    """Of all structures: prostate 1, left 2, right 3, bowl 4. The organs' network has right 1 and left 2."""
    folder = make_organs_cohort(tmp_path / "cohort", 1)
    settings = replace(SETTINGS, organs=OrgansSettings(("side_right", "side_left"), (4, 4, 4), (96, 96, 160)))
    (case,) = run(folder, settings)
    case = replace(case, unknown=(2, 4))
    box, fine = case.box("organs"), case.box("fine")
    assert box is not None
    assert fine is not None
    assert (box.unknown, fine.unknown) == ((2,), (2,))
    assert (replace(case, unknown=(1, 3)).box() or fine).unknown == (1,)


def test_settings_without_organs_are_those_from_before_there_were_any() -> None:
    """The name of the cache's folder and the key of each case hang on them."""
    assert SETTINGS.to_json() == {
        "target": "prostate",
        "coarse_spacing_mm": [6, 6, 6],
        "fine_spacing_mm": [4, 2, 2],
        "box_mm": [80, 96, 96],
    }
