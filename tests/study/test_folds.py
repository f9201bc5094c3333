"""What the runs of a fold share: cut scans give the very results of whole ones, and are made anew when need be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from metricunet.cohort.layout import Case, read_cohort
from metricunet.errors import InputError
from metricunet.evaluation.measures import measure
from metricunet.evaluation.summary import CaseRow, cases_csv
from metricunet.files.nifti import read_labels, read_nifti, write_nifti
from metricunet.inference.predictor import Predictor
from metricunet.study.data import ScoredCase
from metricunet.study.folds import make_cut, reach_mm, read_cut, read_located
from metricunet.study.run import StudyResult
from metricunet.study.scoring import segment_cut
from metricunet.training.config import TrainConfig, load_config
from metricunet.training.fit import Located, open_run
from metricunet.training.run import Run
from metricunet.volume import Volume

Whole = tuple[Path, Path, StudyResult]


def model_of(output: Path, arm: str = "metric", seed: int = 0) -> Path:
    return output / "runs" / arm / "fold-0" / f"seed-{seed}" / "model.safetensors"


def stage_one(output: Path, cohort: Path) -> tuple[Run, Located]:
    folder = output / "stage-one" / "fold-0"
    config = load_config("default", folder / "config.yaml")
    run = open_run(cohort, folder, config, 0, resume=True, device="cpu")
    return run, read_located(folder, run)


def test_cut_scans_score_as_whole_ones_do(whole_study: Whole, study_cohort: Path) -> None:
    """One look at each whole scan, measured on the whole grid, against the rows that the study wrote."""
    output = whole_study[1]
    predictor = Predictor([model_of(output)], "cpu", reruns=0)
    rows = []
    outcomes = []
    for case in read_cohort(study_cohort).test:
        assert case.label is not None
        scan, reference = read_nifti(case.image), read_labels(case.label)
        found = predictor.predict(scan)
        cut = read_cut(output / "stage-one" / "fold-0", case.name)
        assert cut.found.status == ("absent" if found.labels is None else cut.found.status)
        labels = (
            found.labels if found.labels is not None else scan.with_array(np.zeros(scan.array.shape, np.uint8))
        )
        rows.append(CaseRow(case.name, "prostate", measure(labels, reference)))
        outcomes.append(rows[-1].measures.outcome)
    assert outcomes == ["measured", "measured", "true_absent", "missed"]
    expected = cases_csv(rows).splitlines()[1:]
    written = (output / "runs" / "metric" / "fold-0" / "seed-0" / "cases.csv").read_text().splitlines()[1:]
    assert written == [f"metric,0,0,{line}" for line in expected]


def test_masks_are_equal_voxel_by_voxel_on_a_finer_scan_stored_otherwise(
    whole_study: Whole, study_cohort: Path, tmp_path: Path
) -> None:
    """A scan of other spacing, stored in another order of axes, whose gland lies near an edge of the scan."""
    output = whole_study[1]
    case = read_cohort(study_cohort).test[0]
    assert case.label is not None
    image, labels = read_nifti(case.image), read_labels(case.label)
    fine = image.geometry.with_spacing((3.1, 1.7, 1.3))
    turned = ((1, 0, 2), (False, True, True))
    scan = Volume(np.rint(image.resample(fine).array).astype(np.int16), fine).crop((0, 20, 25), (26, 60, 90))
    mask = Volume((labels.resample(fine).array > 0.5).astype(np.uint8), fine).crop((0, 20, 25), (26, 60, 90))
    scan, mask = scan.reordered(*turned), mask.reordered(*turned)
    write_nifti(tmp_path / "scan.nii.gz", scan)
    write_nifti(tmp_path / "mask.nii.gz", mask)
    run, located = stage_one(output, study_cohort)
    scored = ScoredCase("scan", tmp_path / "scan.nii.gz", {"truth": tmp_path / "mask.nii.gz"})
    cut = make_cut(scored, run, located, reach_mm([run.config]))
    assert cut.image.array.size < 0.8 * scan.array.size

    predictor = Predictor([model_of(output)], "cpu")
    whole, part = predictor.predict(read_nifti(tmp_path / "scan.nii.gz")), predictor.segment(cut.image, cut.found)
    assert whole.localisation.centre_mm is not None
    assert cut.found.centre_mm is not None
    np.testing.assert_array_equal(cut.found.centre_mm, whole.localisation.centre_mm)
    assert whole.labels is not None
    assert part.labels is not None
    placed = np.argwhere(part.labels.array)
    found = np.argwhere(whole.labels.array)
    assert len(placed) == len(found) > 100
    np.testing.assert_allclose(
        np.sort(part.labels.geometry.to_world(placed), axis=0),
        np.sort(whole.labels.geometry.to_world(found), axis=0),
        atol=1e-3,
    )
    measured = segment_cut(predictor, cut, {"prostate": 1}, None).overlap("truth")[0].values
    for name in ("dice", "asd_mm", "hd95_mm"):
        assert measured[name] == pytest.approx(measure(whole.labels, mask).value(name), abs=1e-4)


def test_what_the_reference_holds_beyond_the_crop_counts(
    whole_study: Whole, study_cohort: Path, tmp_path: Path
) -> None:
    case = read_cohort(study_cohort).test[0]
    assert case.label is not None
    labels = read_labels(case.label)
    far = labels.array.copy()
    far[0, 0, 0] = far[-1, -1, -1] = 1
    write_nifti(tmp_path / "far.nii.gz", labels.with_array(far))
    run, located = stage_one(whole_study[1], study_cohort)
    scored = ScoredCase("far", case.image, {"truth": case.label, "reader": tmp_path / "far.nii.gz"})
    cut = make_cut(scored, run, located, reach_mm([run.config]))
    assert {who: int(v.array.sum()) for who, v in cut.references.items()} == {
        "truth": int(labels.array.sum()), "reader": int(labels.array.sum()) + 2,
    }  # fmt: skip
    segmented = segment_cut(Predictor([model_of(whole_study[1])], "cpu"), cut, {"prostate": 1}, None)
    assert cut.found.centre_mm is not None
    middle = labels.geometry.to_world(np.argwhere(labels.array).mean(axis=0))
    assert cut.holds(1)
    assert not cut.holds(2)
    assert cut.off_mm(1) == pytest.approx(np.linalg.norm(middle - cut.found.centre_mm))
    near, beyond = (segmented.overlap(who)[0].values["sensitivity"] for who in ("truth", "reader"))
    assert near is not None
    assert beyond is not None
    assert beyond < near


def test_ignored_voxels_count_as_background_in_both(whole_study: Whole, study_cohort: Path) -> None:
    output = whole_study[1]
    cut = read_cut(output / "stage-one" / "fold-0", "case_05")
    predictor = Predictor([model_of(output)], "cpu")
    assert predictor.segment(cut.image, cut.found).labels is not None
    reference = cut.references["truth"]
    ignored = reference.with_array(np.where(reference.array == 1, 1, 9).astype(np.uint8))
    cut.references["truth"] = ignored
    measured = segment_cut(predictor, cut, {"prostate": 1}, 9).overlap("truth")[0].values
    assert measured["ppv"] == 1.0


def test_cuts_are_kept_until_their_files_change(copied_study: tuple[Path, Path], study_cohort: Path) -> None:
    folder = copied_study[1] / "stage-one" / "fold-0"
    cut = folder / "cuts" / "case_05.npz"
    assert read_cut(folder, "case_05").source_sha256
    cut.write_bytes(cut.read_bytes()[:2000])
    with pytest.raises(InputError, match=r"case_05\.npz: missing or damaged; run the study again"):
        read_cut(folder, "case_05")
    with pytest.raises(InputError, match="missing or damaged"):
        read_cut(folder, "case_99")


def test_stage_one_of_another_version_or_damaged(copied_study: tuple[Path, Path], study_cohort: Path) -> None:
    folder = copied_study[1] / "stage-one" / "fold-0"
    path = folder / "locate.safetensors"
    whole = path.read_bytes()
    config = load_config("default", folder / "config.yaml")
    run = open_run(study_cohort, folder, config, 0, resume=True, device="cpu")
    path.write_bytes(whole.replace(b'\\"version\\": \\"0.', b'\\"version\\": \\"9.'))
    with pytest.raises(InputError, match=r"trained by metricunet 9\.1\.0, this is"):
        read_located(folder, run)
    path.write_bytes(whole[:1000])
    with pytest.raises(InputError, match="damaged"):
        read_located(folder, run)


@pytest.mark.parametrize(("shift", "highest"), [(1100, 3000), (0, 65535)])
def test_values_that_are_no_hounsfield_units(
    whole_study: Whole, study_cohort: Path, tmp_path: Path, shift: int, highest: int
) -> None:
    case = read_cohort(study_cohort).test[0]
    assert case.label is not None
    image = read_nifti(case.image)
    array = image.array.astype(np.int32) + shift
    array[0, 0, 0] = highest
    write_nifti(tmp_path / "scan.nii.gz", image.with_array(array))
    run, located = stage_one(whole_study[1], study_cohort)
    with pytest.raises(InputError, match="no Hounsfield units"):
        make_cut(ScoredCase("x", tmp_path / "scan.nii.gz", {"truth": case.label}), run, located, (50, 50, 50))


def test_the_reach_covers_the_widest_arm() -> None:
    def config(*settings: str) -> TrainConfig:
        return load_config("small", settings=settings)

    one = reach_mm([config("segment.crop_mm=[96, 128, 64]")])
    two = reach_mm([config("segment.crop_mm=[96, 64, 128]"), config("segment.crop_mm=[96, 128, 64]")])
    assert one[0] == two[0] > 48
    assert two[1] > 64
    assert two[1] == two[2]


def test_a_case_needs_its_image(whole_study: Whole, study_cohort: Path, tmp_path: Path) -> None:
    case: Case = read_cohort(study_cohort).test[0]
    assert case.label is not None
    other = read_labels(case.label)
    write_nifti(tmp_path / "other.nii.gz", other.crop((0, 0, 0), (10, 10, 10)))
    run, located = stage_one(whole_study[1], study_cohort)
    with pytest.raises(InputError, match="labels on another grid than the image"):
        make_cut(ScoredCase("x", case.image, {"truth": tmp_path / "other.nii.gz"}), run, located, (50, 50, 50))
