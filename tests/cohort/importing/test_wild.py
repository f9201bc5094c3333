"""Structure sets as clinics and other programs leave them, on their scans: what is imported, and what is said."""

from __future__ import annotations

import itertools
import re
import unicodedata
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.uid import generate_uid

from metricunet.cohort.importing import Imported, import_cohort, list_names
from metricunet.cohort.layout import Case, read_cohort
from metricunet.errors import InputError
from metricunet.files.dicom.series import CtSeries, find_series
from metricunet.files.nifti import read_labels, read_nifti
from tests.support.dicom_series import Written, pattern
from tests.support.patients import SHAPE, SPACING_MM, Patient, mask, write_ct, write_set
from tests.support.structure_sets import rtstruct

DOE, ROE = Patient("Doe^John", "P-100", "19480317"), Patient("Roe^Richard", "P-200", "19520101")
PROSTATE, BLADDER = (6.5, 11.5, [1, 2, 3]), (12.5, 15.5, [2, 3, 4])
NAMES = "prostate: [Prostate]\nbladder: [Bladder]\nignore: ['*']\n"


def imported(tmp_path: Path, names: str = NAMES) -> tuple[Imported, list[Case]]:
    (tmp_path / "names.yaml").write_text(names, encoding="utf-8")
    result = import_cohort([tmp_path / "tree"], tmp_path / "cohort", names=tmp_path / "names.yaml")
    return result, list(read_cohort(tmp_path / "cohort").training)


def labels_of(case: Case) -> np.ndarray:
    assert case.label is not None
    return read_labels(case.label).array


def referenced(frame: str, series_uid: str, images: tuple[str, ...] = ()) -> Dataset:
    """An item of a set's referenced frames, with one series and images of it."""
    item, study, series = Dataset(), Dataset(), Dataset()
    item.FrameOfReferenceUID, series.SeriesInstanceUID = frame, series_uid
    series.ContourImageSequence = [image(uid) for uid in images]
    study.RTReferencedSeriesSequence = [series]
    item.RTReferencedStudySequence = [study]
    return item


def image(uid: str) -> Dataset:
    item = Dataset()
    item.ReferencedSOPInstanceUID = uid
    return item


def name_images(dataset: Dataset, series: CtSeries) -> None:
    """Let every contour name the image of its plane."""
    for contour in (c for item in dataset.ROIContourSequence for c in item.get("ContourSequence", [])):
        k = round(float(contour.ContourData[2]) / SPACING_MM[0])
        contour.ContourImageSequence = [image(series.sop_uids[k])]


def read_series(written: Written) -> CtSeries:
    (series,) = find_series(written.folder).series
    return series


def bare(path: Path) -> None:
    """Take away what precedes the data set: preamble, and encoding."""
    buffer = DicomBytesIO()
    buffer.is_implicit_VR, buffer.is_little_endian = True, True
    write_dataset(buffer, pydicom.dcmread(path))
    path.write_bytes(buffer.getvalue())


def test_a_set_that_lists_another_frame_goes_by_what_its_regions_state(tmp_path: Path) -> None:
    """Anonymisers and some writers give the set a frame of its own; its regions and images are the scan's."""
    written = write_ct(tmp_path / "tree" / "ct", DOE)
    series = read_series(written)

    def change(dataset: Dataset) -> None:
        listed = referenced(generate_uid(), series.series_uid, series.sop_uids)
        dataset.ReferencedFrameOfReferenceSequence = [listed]
        name_images(dataset, series)

    write_set(tmp_path / "tree" / "RS.dcm", DOE, written, {"Prostate": PROSTATE}, change=change)
    result, (case,) = imported(tmp_path)
    assert not result.failed
    np.testing.assert_array_equal(labels_of(case) == 1, mask(*PROSTATE))


def test_two_regions_of_one_name(tmp_path: Path) -> None:
    """An empty one does no harm; of two that are drawn none is chosen, which costs no other patient anything."""
    written = write_ct(tmp_path / "tree" / "a" / "ct", DOE)
    write_set(tmp_path / "tree" / "a" / "RS.dcm", DOE, written, {"Prostate": PROSTATE})
    written = write_ct(tmp_path / "tree" / "b" / "ct", ROE)
    path = tmp_path / "tree" / "b" / "RS.dcm"

    def one_name(dataset: Dataset) -> None:
        dataset.StructureSetROISequence[1].ROIName = "Prostate"

    write_set(path, ROE, written, {"Prostate": PROSTATE, "x": None, "Bladder": BLADDER}, change=one_name)
    result, cases = imported(tmp_path)
    assert len(cases) == 2
    assert not result.failed
    assert any("2 ROIs are named 'Prostate'" in note for note in result.notes)
    assert sum(bool((labels_of(case) == 1).any()) for case in cases) == 2

    write_set(path, ROE, written, {"Prostate": PROSTATE, "x": BLADDER}, change=one_name)
    (tmp_path / "again").mkdir()
    (tmp_path / "tree").rename(tmp_path / "again" / "tree")
    result, cases = imported(tmp_path / "again")
    assert len(cases) == 1
    assert result.failed
    (line,) = result.refused
    assert re.search(
        r"drawn twice: prostate is both \S+RS.dcm: ROI 7 'Prostate' and \S+RS.dcm: ROI 8 'Prostate'; "
        r"rename one of the two in its file",
        line,
    )
    assert "take" not in line
    assert "spelling" not in line


def test_a_set_without_a_file_header_beside_the_slices(tmp_path: Path) -> None:
    folder = tmp_path / "tree"
    written = write_ct(folder, DOE)
    bare(write_set(folder / "RS.dcm", DOE, written, {"Prostate": PROSTATE}))
    search = find_series(folder)
    assert ([len(one.files) for one in search.series], search.refused) == ([SHAPE[0]], ())
    result, (case,) = imported(tmp_path)
    assert not result.failed
    np.testing.assert_array_equal(labels_of(case) == 1, mask(*PROSTATE))


@pytest.mark.parametrize("first", ["phase", "average"])
def test_of_two_series_that_a_set_lists_the_images_of_the_contours_decide(tmp_path: Path, first: str) -> None:
    """A 4D CT: a phase and the average, of one frame of reference."""
    average = write_ct(tmp_path / "tree" / "average", DOE)
    frame, other = average.frame_of_reference_uid, np.roll(pattern(SHAPE), 1)
    phase = write_ct(tmp_path / "tree" / "phase", DOE, hu=other, frame_of_reference_uid=frame)
    series = read_series(average)

    def change(dataset: Dataset) -> None:
        listed = [referenced(frame, s.series_uid, s.sop_uids) for s in (read_series(phase), series)]
        dataset.ReferencedFrameOfReferenceSequence = listed if first == "phase" else listed[::-1]
        name_images(dataset, series)

    write_set(tmp_path / "tree" / "RS.dcm", DOE, average, {"Prostate": PROSTATE}, change=change)
    result, (case,) = imported(tmp_path)
    np.testing.assert_array_equal(read_nifti(case.image).array, pattern(SHAPE))
    np.testing.assert_array_equal(labels_of(case) == 1, mask(*PROSTATE))
    (left_out,) = result.left_out
    assert "phase: no structure set was drawn on this series" in left_out


@pytest.mark.parametrize("first", ["phase", "average"])
def test_of_two_series_that_a_set_lists_none_is_guessed_where_no_contour_names_an_image(
    tmp_path: Path, first: str
) -> None:
    average = write_ct(tmp_path / "tree" / "average", DOE)
    frame = average.frame_of_reference_uid
    phase = write_ct(tmp_path / "tree" / "phase", DOE, frame_of_reference_uid=frame)

    def change(dataset: Dataset) -> None:
        listed = [referenced(frame, s.series_uid, s.sop_uids) for s in map(read_series, (phase, average))]
        dataset.ReferencedFrameOfReferenceSequence = listed if first == "phase" else listed[::-1]

    write_set(tmp_path / "tree" / "RS.dcm", DOE, average, {"Prostate": PROSTATE}, change=change)
    with pytest.raises(InputError, match=r"RS\.dcm: 2 CT series are in its frame of reference"):
        imported(tmp_path)


@pytest.mark.parametrize("lacking", ["roi", "empty", "all"])
def test_regions_that_state_no_frame_go_by_set_or_images(tmp_path: Path, lacking: str) -> None:
    study = "1.2.3.4.5"
    written = write_ct(tmp_path / "tree" / "ct", DOE, study_uid=study)
    if lacking == "all":  # a second scan of the study: which of the two is meant, only the images tell
        write_ct(tmp_path / "tree" / "other", DOE, study_uid=study)

    def change(dataset: Dataset) -> None:
        dataset.StudyInstanceUID = study
        name_images(dataset, read_series(written))
        for roi in dataset.StructureSetROISequence:
            if lacking == "empty":
                roi.ReferencedFrameOfReferenceUID = ""
            else:
                del roi.ReferencedFrameOfReferenceUID
        if lacking == "all":
            del dataset.ReferencedFrameOfReferenceSequence

    write_set(tmp_path / "tree" / "RS.dcm", DOE, written, {"Prostate": PROSTATE}, change=change)
    result, (case,) = imported(tmp_path)
    assert not result.failed
    np.testing.assert_array_equal(labels_of(case) == 1, mask(*PROSTATE))
    said = "states no frame of reference; it is taken to be that of the scan"
    assert any(said in note for note in result.notes) == (lacking == "all")


def test_a_region_drawn_on_another_scan_costs_the_others_nothing(tmp_path: Path) -> None:
    """A set holds a lesion that was drawn on the MR, in the MR's frame of reference."""
    written = write_ct(tmp_path / "tree" / "ct", DOE)
    mr = generate_uid()

    def change(dataset: Dataset) -> None:
        dataset.ReferencedFrameOfReferenceSequence.append(referenced(mr, generate_uid()))
        dataset.StructureSetROISequence[1].ReferencedFrameOfReferenceUID = mr

    squares = {"Prostate": PROSTATE, "Lesion": BLADDER}
    write_set(tmp_path / "tree" / "RS.dcm", DOE, written, squares, change=change)
    result, (case,) = imported(tmp_path, "prostate: [Prostate]\nlesion: [Lesion]\n")
    assert not result.failed
    np.testing.assert_array_equal(labels_of(case), mask(*PROSTATE))
    assert case.not_contoured == ("lesion",)
    (left_out,) = result.left_out
    assert re.search(r"ROI 'Lesion': frame of reference is .*, but .* in series", left_out)


def test_a_fault_of_a_region_is_told_once(tmp_path: Path) -> None:
    written = write_ct(tmp_path / "tree" / "ct", DOE)

    def change(dataset: Dataset) -> None:
        del dataset.StructureSetROISequence[1].ROINumber

    squares = {"Prostate": PROSTATE, "Bladder": BLADDER}
    write_set(tmp_path / "tree" / "RS.dcm", DOE, written, squares, change=change)
    result, (case,) = imported(tmp_path)
    assert result.failed
    np.testing.assert_array_equal(labels_of(case), mask(*PROSTATE))
    (note,) = [note for note in result.notes if "'Bladder'" in note]
    assert "bladder is unusable, and counts as not contoured" in note
    assert "has no ROINumber that can be read" in note


def test_a_region_that_leaves_the_scan_costs_no_other(tmp_path: Path) -> None:
    """The scan was trimmed after drawing."""
    written = write_ct(tmp_path / "tree" / "ct", DOE)
    squares = {"Prostate": PROSTATE, "Bladder": (12.5, 15.5, [4, 5, 7])}
    write_set(tmp_path / "tree" / "RS.dcm", DOE, written, squares)
    result, (case,) = imported(tmp_path)
    assert result.failed
    assert case.not_contoured == ("bladder",)
    np.testing.assert_array_equal(labels_of(case), mask(*PROSTATE))
    reason = r"bladder is unusable.*ROI 'Bladder': a contour at z = 14\.00 mm lies up to 4\.00 mm from the nearest"
    assert any(re.search(reason, note) for note in result.notes)


@pytest.mark.parametrize("signs", list(itertools.product((1, -1), repeat=3)))
def test_rows_columns_and_slices_that_run_either_way(tmp_path: Path, signs: tuple[int, int, int]) -> None:
    """Cone beams and converters store axial slices in all eight ways, left-handed ones too."""
    along_row, along_column, up = signs

    def edit(k: int, dataset: Dataset) -> None:
        dataset.ImageOrientationPatient = [along_row, 0, 0, 0, along_column, 0]
        dataset.ImagePositionPatient = [-along_row * 11.5 + 3, -along_column * 11.5, up * 2.0 * k]

    written = write_ct(tmp_path / "tree" / "ct", DOE, edit)
    low, high = np.array([6.4, -7.6]), np.array([11.4, -2.6])
    loops = []
    for k in (1, 2, 3):
        (x, y), (right, back), z = low, high, up * 2.0 * k
        loops.append([x, y, z, right, y, z, right, back, z, x, back, z])
    write_set(tmp_path / "tree" / "RS.dcm", DOE, written, {})
    drawn = rtstruct(
        tmp_path / "drawn.dcm", [("Prostate", loops)], frame=written.frame_of_reference_uid, change=DOE.put_into
    )
    drawn.replace(tmp_path / "tree" / "RS.dcm")
    result, (case,) = imported(tmp_path, "prostate: [Prostate]\n")
    assert not result.failed
    assert case.label is not None
    labels, scan = read_labels(case.label), read_nifti(case.image)
    places = np.stack([labels.geometry.to_world(index) for index in np.argwhere(labels.array)])
    assert len(places) == 3 * 5 * 5
    assert (places[:, :2] > low).all()
    assert (places[:, :2] < high).all()
    assert set(np.rint(places[:, 2])) == {up * 2.0 * k for k in (1, 2, 3)}
    # The scan's voxels are where its headers say.
    stored = pattern(SHAPE)
    for k, row, column in ((1, 2, 3), (4, 20, 7)):
        place = [along_row * (column - 11.5) + 3, along_column * (row - 11.5), up * 2.0 * k]
        index = tuple(np.rint(scan.geometry.to_index(place)).astype(int))
        assert scan.array[index] == stored[k, row, column]


#: Names of structures as clinics type them: YAML's own characters, wildcards, words that YAML reads as values.
TYPED = [
    *("PTV: 60Gy", "#1", "*Skin", "- x", "Yes", "null", "1.0", "@iso", "[z]", "{a}", "a, b", "'quoted'", '"dq"'),
    *("50%", "!tag", "&ref", "x # y", "~", "2020-01-01", "0x10", "PTV*", "z?", "Blase[1]", "-", "?", "ignore"),
    *("undecided", "absent", "match_case", "tab\tname", "back\x7fspace", "trailing ", "前立腺", "Предстательная"),
    *("prostate", unicodedata.normalize("NFC", "Vésicules"), unicodedata.normalize("NFD", "Vésicules")),
]


@pytest.mark.filterwarnings("ignore:Invalid value for VR")
def test_any_name_that_is_listed_can_be_put_into_the_names_file(tmp_path: Path) -> None:
    """The list as printed, with all under undecided and the capital twin moved to ignore, is a names file."""
    written = write_ct(tmp_path / "tree" / "ct", DOE)
    squares = {"Prostate ": PROSTATE, **dict.fromkeys(TYPED, BLADDER)}
    write_set(tmp_path / "tree" / "RS.dcm", DOE, written, squares)
    text = list_names([tmp_path / "tree"]).text
    lines = text.splitlines()
    undecided = lines[lines.index("undecided:") + 1 : lines.index("ignore: []")]
    assert len(undecided) == len(TYPED) - 2  # the twin in small letters, and the two forms of one accent
    listed = '  - "prostate"  # 1 case'
    assert listed in lines
    names = "\n".join(["prostate:", '  - "Prostate"', "ignore:", listed, *undecided, ""])
    result, (case,) = imported(tmp_path, names)
    assert not result.failed
    np.testing.assert_array_equal(labels_of(case), mask(*PROSTATE))


@pytest.mark.parametrize("typed", ["NFC", "NFD"])
@pytest.mark.parametrize("stored", ["NFC", "NFD"])
def test_an_accent_is_one_however_it_is_typed_and_stored(tmp_path: Path, typed: str, stored: str) -> None:
    written = write_ct(tmp_path / "tree" / "ct", DOE)
    name = unicodedata.normalize(stored, "Próstata")  # type: ignore[arg-type]
    write_set(tmp_path / "tree" / "RS.dcm", DOE, written, {name: PROSTATE})
    spelling = unicodedata.normalize(typed, "Próstata")  # type: ignore[arg-type]
    _, (case,) = imported(tmp_path, f"prostate: [{spelling}]\n")
    np.testing.assert_array_equal(labels_of(case), mask(*PROSTATE))


def test_the_twin_in_small_letters_is_not_chosen_silently(tmp_path: Path) -> None:
    written = write_ct(tmp_path / "tree" / "ct", DOE)
    write_set(tmp_path / "tree" / "RS.dcm", DOE, written, {"Prostate": PROSTATE, "prostate": BLADDER})
    with pytest.raises(InputError, match=r"drawn twice: .*map one of the two spellings elsewhere or ignore it$"):
        imported(tmp_path, list_names([tmp_path / "tree"]).text)
