"""DICOM patients into a cohort: what belongs together, what each name means, and what is never guessed."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset

from metricunet.cohort.check import check_cohort
from metricunet.cohort.importing import Imported, import_cohort, list_names
from metricunet.cohort.importing.dicom_tree import find_dicom
from metricunet.cohort.importing.privacy import Privacy, hashed
from metricunet.cohort.layout import Cohort, read_cohort
from metricunet.errors import InputError
from metricunet.files.nifti import read_labels, read_nifti
from metricunet.progress import no_bars
from tests.support.ct_cases import draw_series, write
from tests.support.dicom_series import companion, pattern, save
from tests.support.patients import SHAPE, Patient, Squares, mask, write_ct, write_set
from tests.support.structure_sets import rtstruct

DOE, ROE = Patient("Doe^John", "P-100", "19480317"), Patient("Roe^Richard", "P-200", "19520101")
NAMES = "prostate: [Prostate, PROSTATE]\nbladder: [Bladder]\nignore: [BODY]\n"
PROSTATE, BLADDER, BODY = (6.5, 11.5, [1, 2, 3]), (8.5, 15.5, [2, 3, 4]), (2.5, 20.5, range(6))


def names_file(folder: Path, text: str = NAMES) -> Path:
    path = folder / "names.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def imported(tmp_path: Path, text: str = NAMES, **more: str) -> tuple[Imported, Cohort]:
    result = import_cohort([tmp_path / "tree"], tmp_path / "cohort", names=names_file(tmp_path, text), **more)  # type: ignore[arg-type]
    return result, read_cohort(tmp_path / "cohort")


def test_two_patients_become_two_cases_to_the_voxel(tmp_path: Path) -> None:
    for patient, folder in ((DOE, "one"), (ROE, "two")):
        series = write_ct(tmp_path / "tree" / folder / "ct", patient)
        write_set(
            tmp_path / "tree" / folder / "RS.dcm", patient, series, {"Prostate": PROSTATE, "Bladder": BLADDER}
        )
    result, cohort = imported(tmp_path)
    assert cohort.info.labels == {"prostate": 1, "bladder": 2}
    assert len(cohort.training) == result.patients == 2
    assert not result.failed
    for case in cohort.training:
        assert re.fullmatch("[0-9a-f]{12}", case.name)
        assert case.not_contoured == ()
        assert case.label is not None
        image, labels = read_nifti(case.image), read_labels(case.label)
        np.testing.assert_array_equal(image.array, pattern(SHAPE))
        assert image.spacing_mm == pytest.approx((2, 1, 1))
        prostate, bladder = mask(*PROSTATE), mask(*BLADDER)
        np.testing.assert_array_equal(labels.array, np.where(prostate, 1, np.where(bladder, 2, 0)))
        report = json.loads((tmp_path / "cohort" / "import.json").read_text())["cases"][case.name]
        both = int((prostate & bladder).sum()) * 0.002
        assert report["overlaps"] == [{"kept": "prostate", "lost": "bladder", "volume_ml": pytest.approx(both)}]
        assert report["structures"]["bladder"]["drawn_ml"] == pytest.approx(bladder.sum() * 0.002)
        assert report["structures"]["bladder"]["volume_ml"] == pytest.approx((bladder & ~prostate).sum() * 0.002)
    assert any("prostate and bladder overlap in 2 cases" in line for line in result.overlaps)
    assert not [p for p in check_cohort(tmp_path / "cohort") if p.severity == "error"]


def test_the_order_of_the_names_file_decides_whose_a_shared_voxel_is(tmp_path: Path) -> None:
    series = write_ct(tmp_path / "tree", DOE)
    write_set(tmp_path / "tree" / "RS.dcm", DOE, series, {"Prostate": PROSTATE, "Bladder": BLADDER})
    _, cohort = imported(tmp_path, "bladder: [Bladder]\nprostate: [Prostate]\n")
    assert cohort.training[0].label is not None
    labels = read_labels(cohort.training[0].label).array
    np.testing.assert_array_equal(labels == 1, mask(*BLADDER))
    np.testing.assert_array_equal(labels == 2, mask(*PROSTATE) & ~mask(*BLADDER))


def test_a_structure_within_an_earlier_one_is_unusable_and_not_absent(tmp_path: Path) -> None:
    series = write_ct(tmp_path / "tree", DOE)
    write_set(tmp_path / "tree" / "RS.dcm", DOE, series, {"Prostate": PROSTATE, "BODY": BODY})
    result, cohort = imported(tmp_path, "body: [BODY]\nprostate: [Prostate]\n")
    assert cohort.training[0].not_contoured == ("prostate",)
    assert result.failed
    assert any("lies wholly within body, named before it; name it first" in note for note in result.notes)


def test_cases_of_one_patient_share_a_patient(tmp_path: Path) -> None:
    for folder, patient in (("a", DOE), ("b", DOE), ("c", ROE)):
        series = write_ct(tmp_path / "tree" / folder, patient)
        write_set(tmp_path / "tree" / folder / "RS.dcm", patient, series, {"Prostate": PROSTATE})
    result, cohort = imported(tmp_path)
    patients = json.loads((tmp_path / "cohort" / "patients.json").read_text())
    assert set(patients) == {case.name for case in cohort.training}
    assert sorted(list(patients.values()).count(p) for p in set(patients.values())) == [1, 2]
    assert result.patients == 2


@pytest.mark.parametrize("second", ["ANON", "ANON-2"])
def test_one_patient_id_for_all_is_told(tmp_path: Path, second: str) -> None:
    for folder, identifier in (("a", "ANON"), ("b", second)):
        patient = Patient("Anonymous", identifier, "")
        series = write_ct(tmp_path / "tree" / folder, patient)
        write_set(tmp_path / "tree" / folder / "RS.dcm", patient, series, {"Prostate": PROSTATE})
    result, _ = imported(tmp_path)
    told = [note for note in result.notes if "all 2 cases are of one patient, so no fold can part them" in note]
    assert (result.patients, len(told)) == ((1, 1) if second == "ANON" else (2, 0))


def test_cases_of_one_patient_in_two_sources_share_a_patient(tmp_path: Path) -> None:
    """Else the patient would stand on both sides of a split."""
    for folder, patient in (("one/a", DOE), ("two/b", DOE), ("two/c", ROE)):
        series = write_ct(tmp_path / folder, patient)
        write_set(tmp_path / folder / "RS.dcm", patient, series, {"Prostate": PROSTATE})
    (tmp_path / "names.yaml").write_text("prostate: [Prostate]\n")
    sources = [tmp_path / "one", tmp_path / "two"]
    for folder in ("there", "back"):
        result = import_cohort(sources, tmp_path / folder, names=tmp_path / "names.yaml")
        assert result.patients == 2
        sources.reverse()
    patients = [json.loads((tmp_path / folder / "patients.json").read_text()) for folder in ("there", "back")]
    assert patients[0] == patients[1]
    assert sorted(list(patients[0].values()).count(p) for p in set(patients[0].values())) == [1, 2]


@pytest.mark.parametrize("sources", [["tree"], ["tree/archive", "tree/planning"]])
def test_an_issuer_that_one_export_leaves_out_makes_no_second_patient(tmp_path: Path, sources: list[str]) -> None:
    """The archive states IssuerOfPatientID, the planning system does not."""

    def issued(k: int, dataset: Dataset) -> None:
        dataset.IssuerOfPatientID = "HOSPITAL"

    for folder, edit in (("archive", issued), ("planning", None)):
        series = write_ct(tmp_path / "tree" / folder, DOE, edit)
        write_set(tmp_path / "tree" / folder / "RS.dcm", DOE, series, {"Prostate": PROSTATE})
    result = import_cohort([tmp_path / one for one in sources], tmp_path / "cohort", names=names_file(tmp_path))
    assert (len(result.cases), result.patients) == (2, 1)


def test_one_number_of_two_issuers_is_two_patients(tmp_path: Path) -> None:
    for folder in ("north", "south"):

        def issued(k: int, dataset: Dataset, issuer: str = folder.upper()) -> None:
            dataset.IssuerOfPatientID = issuer

        series = write_ct(tmp_path / "tree" / folder, DOE, issued)
        write_set(tmp_path / "tree" / folder / "RS.dcm", DOE, series, {"Prostate": PROSTATE})
    result, _ = imported(tmp_path)
    assert (len(result.cases), result.patients) == (2, 2)


def test_every_spelling_is_counted(tmp_path: Path) -> None:
    for folder, patient, squares in (
        ("a", DOE, {"Prostate": PROSTATE, "BODY": BODY}),
        ("b", ROE, {"PROSTATE": None, "BODY": BODY}),
    ):
        series = write_ct(tmp_path / "tree" / folder, patient)
        write_set(tmp_path / "tree" / folder / "RS.dcm", patient, series, squares)
    write_set(tmp_path / "tree" / "lone.dcm", ROE, None, {"CTV": PROSTATE, "BODY": None})
    found = list_names([tmp_path / "tree"])
    assert '- "BODY"  # 2 cases; 1 structure set without a scan, 1 with nothing drawn' in found.text
    assert '- "PROSTATE"  # 1 case, 1 with nothing drawn' in found.text
    assert '- "CTV"  # 0 cases; 1 structure set without a scan' in found.text
    assert [line for line in found.refused if "lone.dcm" in line]


def test_every_unmapped_spelling_is_named_with_its_cases_and_nothing_is_written(tmp_path: Path) -> None:
    for folder, patient, squares in (
        ("a", DOE, {"Prostate": PROSTATE, "PTV": BODY, "ring": BODY}),
        ("b", ROE, {"prostate": PROSTATE, "PTV": BODY}),
    ):
        series = write_ct(tmp_path / "tree" / folder, patient)
        write_set(tmp_path / "tree" / folder / "RS.dcm", patient, series, squares)
    with pytest.raises(InputError) as caught:
        imported(tmp_path)
    message = str(caught.value)
    assert (
        "3 spellings are in no list: 'PTV' in 2 (tree/a, tree/b); 'prostate' in 1 (tree/b); 'ring' in 1" in message
    )
    assert not (tmp_path / "cohort").exists()


def test_two_regions_for_one_structure_are_both_named(tmp_path: Path) -> None:
    series = write_ct(tmp_path / "tree" / "ct", DOE)
    write_set(tmp_path / "tree" / "A.dcm", DOE, series, {"Prostate": PROSTATE})
    write_set(tmp_path / "tree" / "B.dcm", DOE, series, {"PROSTATE": BLADDER, "Bladder": BLADDER})
    words = (
        r"drawn twice: prostate is both .*A.dcm: ROI 7 'Prostate' and .*B.dcm: ROI 7 'PROSTATE'; map one of the "
        "two spellings elsewhere or ignore it, or take one of the two files away$"
    )
    with pytest.raises(InputError, match=words):
        imported(tmp_path)
    assert not (tmp_path / "cohort").exists()


def test_an_empty_region_neither_doubles_a_drawn_one_nor_means_absence(tmp_path: Path) -> None:
    series = write_ct(tmp_path / "tree", DOE)
    write_set(tmp_path / "tree" / "RS.dcm", DOE, series, {"PROSTATE": None, "Prostate": PROSTATE, "Bladder": None})
    result, cohort = imported(tmp_path)
    assert cohort.training[0].not_contoured == ("bladder",)
    assert result.structures == {"prostate": {"contoured": 1}, "bladder": {"not contoured": 1}}
    report = json.loads((tmp_path / "cohort" / "import.json").read_text())["cases"][cohort.training[0].name]
    assert report["structures"]["bladder"]["reason"] == "tree/RS.dcm: ROI 9 'Bladder': nothing is drawn"


def test_absence_is_stated_by_case_or_series_and_never_against_a_contour(tmp_path: Path) -> None:
    one = write_ct(tmp_path / "tree" / "a", DOE)
    write_set(tmp_path / "tree" / "a" / "RS.dcm", DOE, one, {"Bladder": BLADDER})
    two = write_ct(tmp_path / "tree" / "b", ROE)
    write_set(tmp_path / "tree" / "b" / "RS.dcm", ROE, two, {"Bladder": BLADDER, "Prostate": PROSTATE})
    result, cohort = imported(tmp_path)
    (case,) = (case for case in cohort.training if case.not_contoured)
    for entry in (case.name, one.series_uid):
        result, cohort = imported(tmp_path, f"{NAMES}absent: {{prostate: ['{entry}']}}\n")
        assert [c.not_contoured for c in cohort.training] == [(), ()]
        assert result.structures["prostate"] == {"contoured": 1, "absent": 1}
    with pytest.raises(InputError, match=r"absent.prostate names '.*', but it is drawn: .*ROI 8 'Prostate'"):
        imported(tmp_path, f"{NAMES}absent: {{prostate: ['{two.series_uid}']}}\n")
    with pytest.raises(
        InputError, match=r"absent.prostate names 'nobody', which is no case, patient or series here"
    ):
        imported(tmp_path, f"{NAMES}absent: {{prostate: [nobody]}}\n")


def test_absence_stated_of_a_scan_that_is_refused_stops_no_other(tmp_path: Path) -> None:
    good = write_ct(tmp_path / "tree" / "good", DOE)
    write_set(tmp_path / "tree" / "good" / "RS.dcm", DOE, good, {"Prostate": PROSTATE})
    bad = write_ct(tmp_path / "tree" / "bad", ROE, leave_out=[2])
    write_set(tmp_path / "tree" / "bad" / "RS.dcm", ROE, bad, {"Bladder": BLADDER})
    for entry in (bad.series_uid, hashed(bad.series_uid)):
        result, cohort = imported(tmp_path, f"{NAMES}absent: {{prostate: ['{entry}']}}\n")
        assert len(cohort.training) == 1
        assert any("1 slice is missing" in line for line in result.refused)


def test_contours_that_cannot_be_used_are_unknown_and_reported(tmp_path: Path) -> None:
    series = write_ct(tmp_path / "tree", DOE)
    write_set(tmp_path / "tree" / "RS.dcm", DOE, series, {"Prostate": (6.5, 9.5, [0, 2, 4]), "Bladder": BLADDER})
    result, cohort = imported(tmp_path)
    assert cohort.training[0].not_contoured == ("prostate",)
    assert result.failed
    assert any(
        "prostate is unusable" in n and "interpolate the contours to every slice" in n for n in result.notes
    )


def test_a_scan_without_a_set_and_one_with_other_structures_are_listed_as_left_out(tmp_path: Path) -> None:
    for folder, squares in (("a", {"Prostate": PROSTATE}), ("b", {"BODY": BODY}), ("c", None)):
        series = write_ct(tmp_path / "tree" / folder, DOE)
        if squares is not None:
            write_set(tmp_path / "tree" / folder / "RS.dcm", DOE, series, squares)
    result, cohort = imported(tmp_path)
    assert len(cohort.training) == 1
    assert not result.refused
    assert len(result.left_out) == 2
    assert any("tree/b: none of prostate, bladder is contoured" in line for line in result.left_out)
    assert any("c: no structure set was drawn on this series" in line for line in result.left_out)
    listed = json.loads((tmp_path / "cohort" / "import.json").read_text())["left_out"]
    assert [entry["refused"] for entry in listed] == [False, False]


def test_series_that_fail_intake_are_listed_with_their_reason_and_their_sets(tmp_path: Path) -> None:
    good = write_ct(tmp_path / "tree" / "good", DOE)
    write_set(tmp_path / "tree" / "good" / "RS.dcm", DOE, good, {"Prostate": PROSTATE})
    bad = write_ct(tmp_path / "tree" / "bad", ROE, leave_out=[2])
    write_set(tmp_path / "tree" / "bad" / "RS.dcm", ROE, bad, {"Prostate": PROSTATE})
    result, cohort = imported(tmp_path, uids="keep")
    assert len(cohort.training) == 1
    assert result.failed
    assert len(result.refused) == 2
    listed = json.loads((tmp_path / "cohort" / "import.json").read_text())["left_out"]
    assert listed[0]["what"] == f"{bad.series_uid} (Pelvis)"
    assert listed[0]["files"] == SHAPE[0] - 1
    assert "1 slice is missing" in listed[0]["reason"]
    assert f"the series that it was drawn on, {bad.series_uid}, was refused" in listed[1]["reason"]


def test_a_set_that_names_no_series_goes_by_its_frame_of_reference(tmp_path: Path) -> None:
    series = write_ct(tmp_path / "tree" / "ct", DOE)
    write_set(tmp_path / "tree" / "RS.dcm", DOE, series, {"Prostate": PROSTATE}, states_series=False)
    _, cohort = imported(tmp_path)
    assert len(cohort.training) == 1


def test_of_two_series_in_one_frame_none_is_guessed(tmp_path: Path) -> None:
    one = write_ct(tmp_path / "tree" / "a", DOE)
    write_ct(tmp_path / "tree" / "b", DOE, frame_of_reference_uid=one.frame_of_reference_uid)
    write_set(tmp_path / "tree" / "RS.dcm", DOE, one, {"Prostate": PROSTATE}, states_series=False)
    with pytest.raises(InputError, match=r"2 CT series are in its frame of reference, .*; import the one that"):
        imported(tmp_path)
    write_set(tmp_path / "tree" / "RS.dcm", DOE, one, {"Prostate": PROSTATE})
    assert len(imported(tmp_path)[1].training) == 1


def test_a_set_without_frame_goes_by_its_study(tmp_path: Path) -> None:
    series = write_ct(tmp_path / "tree" / "ct", DOE, study_uid="1.2.3.4.5")

    def bare(dataset: Dataset) -> None:
        del dataset.ReferencedFrameOfReferenceSequence
        for roi in dataset.StructureSetROISequence:
            del roi.ReferencedFrameOfReferenceUID
        dataset.StudyInstanceUID = study

    study = "1.2.3.4.6"
    path = tmp_path / "tree" / "RS.dcm"
    write_set(path, DOE, series, {"Prostate": PROSTATE}, states_series=False, change=bare)
    with pytest.raises(
        InputError, match="no CT series in its study; it states neither series nor frame of reference"
    ):
        imported(tmp_path)
    study = "1.2.3.4.5"
    write_set(path, DOE, series, {"Prostate": PROSTATE}, states_series=False, change=bare)
    result, cohort = imported(tmp_path)
    assert len(cohort.training) == 1
    assert any("states no frame of reference; it is taken to be that of the scan" in note for note in result.notes)


def test_a_set_in_another_frame_than_the_series_it_names_is_refused(tmp_path: Path) -> None:
    series = write_ct(tmp_path / "tree" / "ct", DOE)
    write_set(tmp_path / "tree" / "RS.dcm", DOE, series, {"Prostate": PROSTATE}, frame="1.9.9.9.9.9")
    with pytest.raises(InputError, match=r"RS.dcm: frame of reference is 1.9.9.9.9.9, but "):
        imported(tmp_path)


def test_a_copy_of_a_set_or_a_source_named_twice_counts_once(tmp_path: Path) -> None:
    series = write_ct(tmp_path / "tree" / "ct", DOE)
    path = write_set(tmp_path / "tree" / "RS.dcm", DOE, series, {"Prostate": PROSTATE})
    shutil.copyfile(path, tmp_path / "tree" / "RS copy.dcm")
    result, cohort = imported(tmp_path)
    assert len(cohort.training) == 1
    assert any("is the same structure set as" in line for line in result.left_out)
    again = import_cohort([tmp_path / "tree", tmp_path / "tree"], tmp_path / "other", names=names_file(tmp_path))
    assert len(again.cases) == 1
    assert any("is the same scan as tree/ct; it counts once" in line for line in again.left_out)


def exported_twice(tmp_path: Path, later: Squares) -> list[Path]:
    """One scan in two exports: at first with a prostate, later with what is given. A second patient is in both."""
    first, second = tmp_path / "first", tmp_path / "second"
    series = write_ct(first / "ct", DOE)
    write_set(first / "RS.dcm", DOE, series, {"Prostate": PROSTATE})
    other = write_ct(first / "other", ROE)
    write_set(first / "other" / "RS.dcm", ROE, other, {"Prostate": PROSTATE})
    shutil.copytree(first, second)
    write_set(second / "RS.dcm", DOE, series, later)
    return [first, second]


def test_a_set_that_was_corrected_in_a_later_export_does_not_lose_silently(tmp_path: Path) -> None:
    sources = exported_twice(tmp_path, {"Prostate": (7.5, 12.5, [1, 2, 3])})
    result = import_cohort(sources, tmp_path / "cohort", names=names_file(tmp_path))
    assert len(result.cases) == 1  # the patient of whom both exports say the same
    (line,) = result.refused
    assert "drawn twice: prostate is both" in line
    assert "first/RS.dcm" in line
    assert "second/RS.dcm" in line


def test_structures_of_a_later_export_are_taken_together_with_the_first(tmp_path: Path) -> None:
    sources = exported_twice(tmp_path, {"Prostate": PROSTATE, "Bladder": BLADDER})
    result = import_cohort(sources, tmp_path / "cohort", names=names_file(tmp_path))
    assert not result.failed
    assert result.structures == {
        "prostate": {"contoured": 2},
        "bladder": {"contoured": 1, "not contoured": 1},
    }
    assert any("it counts once, with the structure sets of both" in line for line in result.left_out)
    assert any("'Prostate' is drawn as in" in note for note in result.notes)


def test_what_else_a_clinic_exports_is_passed_over_or_listed(tmp_path: Path) -> None:
    series = write_ct(tmp_path / "tree" / "ct", DOE)
    write_set(tmp_path / "tree" / "RS.dcm", DOE, series, {"Prostate": PROSTATE})
    save(tmp_path / "tree" / "RD.dcm", companion("RTDOSE", "1.2.840.10008.5.1.4.1.1.481.2", Rows=4, Columns=4))
    (tmp_path / "tree" / "notes.txt").write_text("no DICOM")

    def scout(k: int, dataset: Dataset) -> None:
        dataset.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]

    write_ct(tmp_path / "tree" / "scout", DOE, scout)
    set_path = tmp_path / "tree" / "cut.dcm"
    write_set(set_path, DOE, series, {"PROSTATE": BLADDER})
    set_path.write_bytes(set_path.read_bytes()[:-40])
    result, cohort = imported(tmp_path)
    assert len(cohort.training) == 1
    assert len(result.refused) == 1
    assert "cut.dcm: cannot be read" in result.refused[0]
    assert len(result.left_out) == 1
    assert "LOCALIZER" in result.left_out[0]


def test_values_that_are_no_hu_are_refused(tmp_path: Path) -> None:
    series = write_ct(tmp_path / "tree" / "ct", DOE, intercept=0.0, hu=(pattern(SHAPE) + 1000).astype(np.int16))
    write_set(tmp_path / "tree" / "RS.dcm", DOE, series, {"Prostate": PROSTATE})
    with pytest.raises(InputError, match=r"nothing to import: tree/ct: the lowest value is 0, so these are no"):
        imported(tmp_path)
    assert not list((tmp_path / "cohort").rglob("*.nii.gz"))
    assert not (tmp_path / "cohort" / "import.json").exists()


def test_dicom_without_a_names_file_is_told_how_to_get_one(tmp_path: Path) -> None:
    series = write_ct(tmp_path / "tree" / "ct", DOE)
    write_set(tmp_path / "tree" / "RS.dcm", DOE, series, {"Prostate": PROSTATE})
    with pytest.raises(
        InputError, match=r"layout dicom has no fixed names of structures: list the spellings with list_names"
    ):
        import_cohort([tmp_path / "tree"], tmp_path / "cohort")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no CT series and no structure set"):
        import_cohort([tmp_path / "empty"], tmp_path / "cohort")


def test_what_is_left_undecided_stops_the_import(tmp_path: Path) -> None:
    series = write_ct(tmp_path / "tree" / "ct", DOE)
    write_set(tmp_path / "tree" / "RS.dcm", DOE, series, {"Prostate": PROSTATE, "BODY": BODY})
    with pytest.raises(InputError, match=r"undecided lists 1 spellings \(BODY\); move each to a structure"):
        imported(tmp_path, list_names([tmp_path / "tree"]).text)


def test_two_versions_of_a_set_cost_their_own_patient_alone(tmp_path: Path) -> None:
    for folder, patient in (("a", DOE), ("b", ROE)):
        series = write_ct(tmp_path / "tree" / folder, patient)
        write_set(tmp_path / "tree" / folder / "RS.dcm", patient, series, {"Prostate": PROSTATE})
    write_set(tmp_path / "tree" / "b" / "RS2.dcm", ROE, series, {"Prostate": BLADDER})
    result, cohort = imported(tmp_path)
    assert len(cohort.training) == 1
    assert result.failed


def test_sets_of_one_uid_and_other_content_are_two(tmp_path: Path) -> None:
    def same(dataset: Dataset) -> None:
        dataset.SOPInstanceUID = "1.2.3.4.5"

    series = write_ct(tmp_path / "tree", DOE)
    write_set(tmp_path / "tree" / "A.dcm", DOE, series, {"Bladder": BLADDER}, change=same)
    write_set(tmp_path / "tree" / "B.dcm", DOE, series, {"Bladder": BLADDER, "Prostate": PROSTATE}, change=same)
    result, _ = imported(tmp_path)
    assert result.structures == {"prostate": {"contoured": 1}, "bladder": {"contoured": 1}}


def test_a_file_of_many_frames_is_one_file_of_its_case(tmp_path: Path) -> None:
    """Else it would be hashed for each frame: tens of gigabytes for one scan."""
    rng = np.random.default_rng(3)
    drawn = draw_series(rng, "HFS")
    (path,) = set(write(drawn, tmp_path / "tree" / "ct", rng, enhanced=True).files)
    frame = str(drawn.slices[0].FrameOfReferenceUID)
    contours = rtstruct(tmp_path / "tree" / "RS.dcm", [("Prostate", None)], frame=frame)
    (case,) = find_dicom(tmp_path / "tree", Privacy(), no_bars).cases
    assert case.files == (path, contours)


@pytest.mark.parametrize(
    "squares",
    [{"Bladder": BLADDER, "Prostate": PROSTATE}, {"Prostate": PROSTATE}],
    ids=["another order", "one fewer"],
)
def test_a_set_that_is_replaced_during_the_import_gives_no_structure_anothers_name(
    tmp_path: Path, squares: Squares
) -> None:
    series = write_ct(tmp_path / "tree" / "ct", DOE)
    path = tmp_path / "tree" / "RS.dcm"
    write_set(path, DOE, series, {"Prostate": PROSTATE, "Bladder": BLADDER})
    (case,) = find_dicom(tmp_path / "tree", Privacy(), no_bars).cases
    write_set(path, DOE, series, squares)
    with pytest.raises(InputError, match=r"RS\.dcm: was changed during the import; run the import again"):
        list(case.read_regions(case.structures, case.read_image()))


def test_the_advice_for_missing_slices_names_no_option_that_import_lacks(tmp_path: Path) -> None:
    series = write_ct(tmp_path / "tree", DOE, leave_out=[3])
    write_set(tmp_path / "tree" / "RS.dcm", DOE, series, {"Prostate": PROSTATE})
    with pytest.raises(InputError, match="missing") as caught:
        imported(tmp_path)
    assert "--allow" not in str(caught.value)
