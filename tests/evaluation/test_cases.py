from __future__ import annotations

import json
from pathlib import Path

import pytest

from metricunet.errors import InputError
from metricunet.evaluation.cases import RecordedQuality, match_cases, read_quality


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def name_labels(folder: Path, **labels: int) -> None:
    content = {"channel_names": {"0": "CT"}, "labels": {"background": 0, **labels}}
    (folder / "dataset.json").write_text(json.dumps(content), encoding="utf-8")


def names(matching_paths: list[Path | None]) -> list[str | None]:
    return [None if path is None else path.name for path in matching_paths]


def test_folders_pair_by_name_in_order(tmp_path: Path) -> None:
    refs, preds = tmp_path / "refs", tmp_path / "preds"
    touch(refs / "c.nii.gz", refs / "a.nii.gz", refs / "b.nii", refs / "notes.txt", refs / ".b.nii.gz")
    touch(preds / "b.nii.gz", preds / "c.nii.gz", preds / "z.nii.gz", preds / "y.nii.gz", preds / "run.json")
    matching = match_cases(preds, refs)
    assert [pair.case for pair in matching.pairs] == ["a", "b", "c"]
    assert names([pair.prediction for pair in matching.pairs]) == [None, "b.nii.gz", "c.nii.gz"]
    assert matching.unmatched == ("y", "z")
    assert matching.labels == {"prostate": 1}
    assert matching.reference_maps.ignore is None


def test_two_files_are_a_pair_whatever_their_names(tmp_path: Path) -> None:
    touch(tmp_path / "gold.nii.gz", tmp_path / "mine.nii.gz", tmp_path / "mine.quality.json")
    (pair,) = match_cases(tmp_path / "mine.nii.gz", tmp_path / "gold.nii.gz").pairs
    assert (pair.case, pair.prediction) == ("gold", tmp_path / "mine.nii.gz")
    assert pair.quality == tmp_path / "mine.quality.json"


def test_one_file_picks_its_reference_from_a_folder(tmp_path: Path) -> None:
    touch(tmp_path / "refs" / "a.nii.gz", tmp_path / "refs" / "b.nii.gz", tmp_path / "b.nii.gz")
    matching = match_cases(tmp_path / "b.nii.gz", tmp_path / "refs")
    assert [pair.case for pair in matching.pairs] == ["b"]


def test_one_reference_picks_its_prediction_from_a_folder(tmp_path: Path) -> None:
    touch(tmp_path / "preds" / "a.nii.gz", tmp_path / "preds" / "b.nii.gz", tmp_path / "b.nii.gz")
    matching = match_cases(tmp_path / "preds", tmp_path / "b.nii.gz")
    assert [pair.prediction for pair in matching.pairs] == [tmp_path / "preds" / "b.nii.gz"]


def test_a_cohort_gives_the_split_that_was_predicted(tmp_path: Path) -> None:
    cohort, preds = tmp_path / "cohort", tmp_path / "preds"
    touch(*(cohort / "labelsTr" / f"{c}.nii.gz" for c in "ab"))
    touch(*(cohort / "labelsTs" / f"{c}.nii.gz" for c in "xy"))
    touch(cohort / "imagesTs" / "x_0000.nii.gz", cohort / "imagesTs" / "y_0000.nii.gz", preds / "y.nii.gz")
    name_labels(cohort, bladder=2, prostate=1)
    matching = match_cases(preds, cohort)
    assert [pair.case for pair in matching.pairs] == ["x", "y"]
    assert names([pair.image for pair in matching.pairs]) == ["x_0000.nii.gz", "y_0000.nii.gz"]
    assert list(matching.labels.items()) == [("bladder", 2), ("prostate", 1)]
    touch(preds / "a.nii.gz")
    assert [pair.case for pair in match_cases(preds, cohort).pairs] == ["a", "b", "x", "y"]


def test_labels_folder_of_a_cohort_finds_names_and_images(tmp_path: Path) -> None:
    cohort, preds = tmp_path / "cohort", tmp_path / "preds"
    touch(cohort / "labelsTr" / "a.nii.gz", cohort / "imagesTr" / "a_0000.nii.gz", preds / "a.nii.gz")
    name_labels(cohort, gland=3)
    matching = match_cases(preds, cohort / "labelsTr")
    assert matching.labels == {"gland": 3}
    assert matching.pairs[0].image == cohort / "imagesTr" / "a_0000.nii.gz"


def test_a_verdict_alone_is_an_attempt(tmp_path: Path) -> None:
    # The predictor found no gland in any scan: verdicts, no masks. That is a result, not an empty folder.
    refs, preds = tmp_path / "refs", tmp_path / "preds"
    touch(refs / "a.nii.gz", preds / "a.quality.json")
    (pair,) = match_cases(preds, refs).pairs
    assert pair.prediction is None
    assert pair.quality == preds / "a.quality.json"


def test_images_can_be_named(tmp_path: Path) -> None:
    refs, preds, scans = tmp_path / "refs", tmp_path / "preds", tmp_path / "scans"
    touch(refs / "a.nii.gz", refs / "b.nii.gz", preds / "a.nii.gz", scans / "a.nii.gz")
    assert names([p.image for p in match_cases(preds, refs, scans).pairs]) == ["a.nii.gz", None]
    assert match_cases(preds, refs).pairs[0].image is None
    touch(tmp_path / "b_0000.nii.gz")
    one = match_cases(preds, refs, tmp_path / "b_0000.nii.gz")
    assert names([p.image for p in one.pairs]) == [None, "b_0000.nii.gz"]


def test_an_image_of_any_name_belongs_to_the_only_case(tmp_path: Path) -> None:
    touch(tmp_path / "gold.nii.gz", tmp_path / "mine.nii.gz", tmp_path / "scan.nii.gz")
    (pair,) = match_cases(tmp_path / "mine.nii.gz", tmp_path / "gold.nii.gz", tmp_path / "scan.nii.gz").pairs
    assert pair.image == tmp_path / "scan.nii.gz"


def test_images_that_fit_no_case_are_an_error(tmp_path: Path) -> None:
    touch(tmp_path / "refs" / "a.nii.gz", tmp_path / "preds" / "a.nii.gz", tmp_path / "scans" / "b.nii.gz")
    for images in (tmp_path / "scans", tmp_path / "nowhere"):
        with pytest.raises(InputError, match=r"a_0000\.nii\.gz"):
            match_cases(tmp_path / "preds", tmp_path / "refs", images)


def test_nothing_in_common_names_both_sides(tmp_path: Path) -> None:
    touch(*(tmp_path / "refs" / f"{c}.nii.gz" for c in "abcde"), tmp_path / "preds" / "case_a.nii.gz")
    with pytest.raises(InputError, match="case_a; references: a, b, c and 2 more") as caught:
        match_cases(tmp_path / "preds", tmp_path / "refs")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("predictions", "references"), [("nowhere", "refs"), ("refs", "nowhere")])
def test_missing_paths(tmp_path: Path, predictions: str, references: str) -> None:
    touch(tmp_path / "refs" / "a.nii.gz")
    with pytest.raises(InputError, match="nowhere: no such file or folder"):
        match_cases(tmp_path / predictions, tmp_path / references)


def test_a_case_twice(tmp_path: Path) -> None:
    touch(tmp_path / "refs" / "a.nii.gz", tmp_path / "refs" / "a.nii", tmp_path / "preds" / "a.nii.gz")
    with pytest.raises(InputError, match="case a occurs twice"):
        match_cases(tmp_path / "preds", tmp_path / "refs")


def test_a_case_in_both_splits(tmp_path: Path) -> None:
    cohort = tmp_path / "cohort"
    touch(cohort / "labelsTr" / "a.nii.gz", cohort / "labelsTs" / "a.nii.gz", tmp_path / "preds" / "a.nii.gz")
    with pytest.raises(InputError, match="case a is also at"):
        match_cases(tmp_path / "preds", cohort)


def test_a_file_that_is_no_nifti(tmp_path: Path) -> None:
    touch(tmp_path / "b.nii.gz")
    (tmp_path / "a.txt").write_text("no mask")
    with pytest.raises(InputError, match=r"a\.txt: the prediction is not named"):
        match_cases(tmp_path / "a.txt", tmp_path / "b.nii.gz")


def test_quality_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.quality.json"
    path.write_text(
        json.dumps(
            {
                "case": "a",
                "localisation": {"status": "uncertain", "confidence": 0.4, "reason": "two regions"},
                "verdict": "review",
                "reasons": ["small gland", "cut by the scan"],
                "structures": {},
            }
        ),
        encoding="utf-8",
    )
    assert read_quality(path) == RecordedQuality(
        "review", ("small gland", "cut by the scan"), "uncertain", 0.4, "two regions"
    )
    assert read_quality(None) == RecordedQuality()
    path.write_text("{}", encoding="utf-8")
    assert read_quality(path) == RecordedQuality()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{", "not valid JSON"),
        ("[]", "the file is list, expected dict"),
        ('{"verdict": 3}', "verdict is int, expected str"),
        ('{"reasons": "small"}', "reasons is str, expected list"),
        ('{"localisation": {"confidence": "high"}}', "localisation.confidence is str, expected int"),
    ],
)
def test_broken_quality_is_an_error(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "a.quality.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=complaint):
        read_quality(path)
