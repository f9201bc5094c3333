"""Segmentations: written masks come back to the voxel here and elsewhere; others' files are read or named."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.tag import Tag
from pydicom.uid import RLELossless, generate_uid

from metricunet.errors import InputError
from metricunet.files.dicom.codes import Code
from metricunet.files.dicom.identity import Identity
from metricunet.files.dicom.series import CtSeries, find_series
from metricunet.files.rtstruct.outlines import Structure
from metricunet.files.rtstruct.write import write_rtstruct
from metricunet.files.seg.read import describe_seg, read_seg, read_segments
from metricunet.files.seg.write import write_seg
from metricunet.volume import Geometry, Volume
from tests.support.dicom_series import ORIENTATIONS, write_series

Mask = NDArray[np.bool_]
SHAPE = (8, 15, 17)


def make_series(folder: Path, patient_position: str = "HFS", **more: Any) -> CtSeries:
    write_series(folder, shape=SHAPE, spacing_mm=(2.5, 0.9, 1.1), patient_position=patient_position, **more)
    (series,) = find_series(folder).series
    return series


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> CtSeries:
    return make_series(tmp_path_factory.mktemp("ct"))


def masks() -> dict[str, Mask]:
    """Masks that overlap, have gaps between their slices, and reach the corners."""
    random = np.random.default_rng(5).random(SHAPE)
    sparse = np.zeros(SHAPE, dtype=bool)
    sparse[0, 0, 0] = sparse[3, 4:9, 2] = sparse[-1, -1, -1] = True
    one = np.zeros(SHAPE, dtype=bool)
    one[5, 11, 3] = True
    return {"Prostate^auto": random < 0.4, "Femur_L": sparse, "Femur_Head_R": one, "Etwas": np.ones(SHAPE, bool)}


def structures(series: CtSeries, chosen: dict[str, Mask]) -> list[Structure]:
    return [Structure(name, Volume(mask, series.geometry), (230, 159, 0)) for name, mask in chosen.items()]


def dciodvfy_complaints(path: Path) -> list[str]:
    program = shutil.which("dciodvfy")
    if program is None:
        pytest.skip("dciodvfy (dicom3tools) is not installed")
    done = subprocess.run([program, str(path)], capture_output=True, text=True, errors="replace")
    return [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("Error")]


#: Specific Character Set as it stands in the file, and a name in it.
CHARACTER_SETS = {
    "japanese": (b"\\ISO 2022 IR 87", b"Yamada^Tarou=" + "山田^太郎".encode("iso2022_jp")),
    "half_width": (b"ISO 2022 IR 13\\ISO 2022 IR 87", b"\xd4\xcf\xc0\xde^\xc0\xdb\xb3"),
    "half_width_and_signs": (
        b"ISO 2022 IR 13\\ISO 2022 IR 87",
        b"\xd4\xcf\xc0\xde^\xc0\xdb\xb3=\x1b$B;3ED\x1b(J^\x1b$BB@O:\x1b(J",
    ),
    "gb18030": (b"GB18030", "王^小东".encode("gb18030")),
    "cyrillic": (b"ISO_IR 144", "Иванов^Иван".encode("iso8859_5")),
    "not_stated": (None, "Müller^Jürgen".encode("latin-1")),
    "utf8": (b"ISO_IR 192", "Müller^Jürgen=王^小东".encode()),
    "utf8_as_latin": (b"ISO_IR 100", "Müller^Jürgen".encode()),
    "misspelt": (b"ISO_IR_100", "Müller^J".encode("latin-1")),
    "unknown": (b"KLINGON", b"Worf^Son of Mogh"),
    "long": (None, b"A" * 70 + b"^" + b"B" * 70),
}


class TestWriting:
    @pytest.mark.parametrize("name", CHARACTER_SETS)
    @pytest.mark.filterwarnings("ignore")
    def test_text_comes_out_as_it_went_in(self, tmp_path: Path, name: str) -> None:
        stated, text = CHARACTER_SETS[name]

        def edit(k: int, dataset: Dataset) -> None:
            del dataset.SpecificCharacterSet, dataset.ReferringPhysicianName
            for keyword, vr, value in (
                ("SpecificCharacterSet", "CS", stated),
                ("PatientName", "PN", text),
                ("StudyDescription", "LO", text),
            ):
                if value is not None:
                    value += b" " * (len(value) % 2)
                    tag = Tag(keyword)
                    dataset._dict[tag] = RawDataElement(tag, vr, len(value), value, 0, False, True)

        series = make_series(tmp_path / "ct", edit=edit)
        chosen = structures(series, {"Prostate": masks()["Etwas"]})
        write_seg(tmp_path / "seg.dcm", series, chosen, description="test")
        write_rtstruct(tmp_path / "rs.dcm", series, chosen, description="test")
        scan = pydicom.dcmread(series.files[0])
        for path in (tmp_path / "seg.dcm", tmp_path / "rs.dcm"):
            written = pydicom.dcmread(path)
            for keyword in ("PatientName", "StudyDescription", "SpecificCharacterSet"):
                assert str(written.get(keyword)) == str(scan.get(keyword)), keyword

    @pytest.mark.parametrize("position", ORIENTATIONS)
    def test_masks_come_back_to_the_voxel_here_and_elsewhere(self, tmp_path: Path, position: str) -> None:
        series, path = make_series(tmp_path / "ct", position), tmp_path / "seg.dcm"
        assert write_seg(path, series, structures(series, masks()), description="test") == ()
        read = read_seg(path, series)
        assert tuple(read) == tuple(masks())
        for name, mask in masks().items():
            assert read[name].array.dtype == np.uint8
            assert read[name].geometry is series.geometry
            np.testing.assert_array_equal(read[name].array, mask)
        # highdicom finds them on the slices that the frames refer to, and, by geometry alone, in space.
        theirs = hd.seg.segread(path)
        by_slice = theirs.get_pixels_by_source_instance(
            list(series.sop_uids), assert_missing_frames_are_empty=True
        )
        np.testing.assert_array_equal(by_slice, np.stack(list(masks().values()), axis=-1))
        scan = hd.get_volume_from_series([pydicom.dcmread(file) for file in series.files])
        in_space = theirs.get_volume().match_geometry(scan)
        for n, mask in enumerate(masks().values()):
            ours = Volume(mask, series.geometry).reordered_like(Geometry(scan.spatial_shape, scan.affine))
            np.testing.assert_array_equal(in_space.array[..., n], ours.array)

    @settings(deadline=None, max_examples=15)
    @given(seed=st.integers(0, 2**32 - 1), share=st.floats(0, 1))
    def test_any_mask_comes_back(
        self, series: CtSeries, tmp_path_factory: pytest.TempPathFactory, seed: int, share: float
    ) -> None:
        drawn = np.random.default_rng(seed).random((2, *SHAPE)) < share**3
        drawn[1, 2, 3, 4] = True
        path = tmp_path_factory.mktemp("seg") / "seg.dcm"
        left_out = write_seg(path, series, structures(series, {"a": drawn[0], "b": drawn[1]}), description="")
        assert left_out == (() if drawn[0].any() else ("a",))
        for name, volume in read_seg(path, series).items():
            np.testing.assert_array_equal(volume.array, drawn["ab".index(name)])

    @pytest.mark.parametrize("position", ORIENTATIONS)
    def test_dciodvfy_finds_no_error(self, tmp_path: Path, position: str) -> None:
        series = make_series(tmp_path / "ct", position)
        write_seg(tmp_path / "seg.dcm", series, structures(series, masks()), description="Größe")
        assert dciodvfy_complaints(tmp_path / "seg.dcm") == []

    def test_odd_patient_data_neither_stop_nor_spoil_it(self, tmp_path: Path) -> None:
        def edit(k: int, dataset: Dataset) -> None:
            dataset.PatientSex, dataset.PatientBirthDate, dataset.PatientAge = "male", "1955-05", "65"
            dataset.StudyTime = "noon"
            del dataset.AccessionNumber, dataset.StudyID, dataset.SliceThickness

        series = make_series(tmp_path / "ct", edit=edit)
        write_seg(tmp_path / "seg.dcm", series, structures(series, masks()), description="test")
        assert dciodvfy_complaints(tmp_path / "seg.dcm") == []
        written = pydicom.dcmread(tmp_path / "seg.dcm")
        assert str(written.PatientName) == "Müller^Max"
        assert written.PatientSex == written.PatientBirthDate == written.StudyTime == ""
        assert read_seg(tmp_path / "seg.dcm", series)["Femur_L"].array.sum() == masks()["Femur_L"].sum()

    @pytest.mark.parametrize(
        ("keyword", "kind", "stored", "expected"),
        [
            # 許 in Big5 and 能 in Shift JIS end in the byte of a backslash; no character set is stated.
            ("PatientName", "PN", "許^功蓋".encode("big5"), "許^功蓋".encode("big5")),
            ("PatientName", "PN", "能見^表".encode("shift_jis"), "能見^表".encode("shift_jis")),
            ("PatientName", "LO", b"Doe^Jane", b"Doe^Jane"),
            ("PatientID", "SH", b"12/34", b"12/34"),
            ("PatientBirthDate", "LO", b"1950/01/02", b""),
            ("StudyDate", "LO", b"1950/01/02", b""),
        ],
    )
    def test_names_and_dates_that_highdicom_refuses_cost_nobody_the_case(
        self, keyword: str, kind: str, stored: bytes, expected: bytes, tmp_path: Path
    ) -> None:
        content = stored + b" " * (len(stored) % 2)

        def put(k: int, dataset: Dataset) -> None:
            del dataset.SpecificCharacterSet
            tag = Tag(keyword)
            dataset[tag] = RawDataElement(tag, kind, len(content), content, 0, False, True)

        series = make_series(tmp_path / "ct", edit=put)
        paths = [tmp_path / "s.rtstruct.dcm", tmp_path / "s.seg.dcm"]
        for path, write in zip(paths, (write_rtstruct, write_seg), strict=True):
            write(path, series, structures(series, {"Prostate": masks()["Femur_L"]}), description="By a test.")
            found = pydicom.dcmread(path).get_item(keyword)
            assert found is not None
            assert found.VR in (None, pydicom.datadict.dictionary_VR(keyword))  # implicit VR states none
            assert bytes(found.value or b"").rstrip() == expected
        assert np.array_equal(read_seg(paths[1], series)["Prostate"].array != 0, masks()["Femur_L"])

    def test_what_it_says_of_itself(self, series: CtSeries, tmp_path: Path) -> None:
        path, moment = tmp_path / "seg.dcm", datetime(2026, 3, 4, 5, 6, 7)
        chosen = {name: mask for name, mask in masks().items() if name.startswith("Femur")}
        description = "Made by a model trained on synthetic scans only."
        write_seg(
            path, series, structures(series, chosen), description=description, identity=Identity(made=moment)
        )
        seg, ct = pydicom.dcmread(path), series.header
        for keyword in ("PatientID", "PatientName", "PatientBirthDate", "StudyInstanceUID", "StudyDate"):
            assert seg[keyword].value == ct[keyword].value
        assert seg.FrameOfReferenceUID == ct.FrameOfReferenceUID
        assert seg.SeriesInstanceUID != ct.SeriesInstanceUID
        assert (seg.ContentDate, seg.ContentTime) == ("20260304", "050607")
        assert seg.SegmentationType == "BINARY"
        assert "Machine-made, not reviewed" in seg.SeriesDescription
        assert seg.ContentDescription == "Machine-made, not reviewed"
        first, second = seg.SegmentSequence
        for item in (first, second):
            assert item.SegmentAlgorithmType == "AUTOMATIC"
            assert item.SegmentAlgorithmName == "metricunet"
            assert item.SegmentationAlgorithmIdentificationSequence[0].AlgorithmName == "metricunet"
            assert item.SegmentDescription == description
            assert item.TrackingID == item.SegmentLabel
            assert item.TrackingUID
        assert first.TrackingUID != second.TrackingUID
        assert _code(first.SegmentedPropertyTypeCodeSequence[0]) == ("71341001", "SCT", "Femur")
        (side,) = first.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence
        assert _code(side) == ("7771000", "SCT", "Left")
        rgb = hd.color.CIELabColor.from_dicom_value(second.RecommendedDisplayCIELabValue).to_rgb()
        np.testing.assert_allclose(rgb, (230, 159, 0), atol=1)
        # The slices on which there is something, and no others.
        used = {series.sop_uids[k] for k in (0, 3, 5, 7)}
        (reference,) = seg.ReferencedSeriesSequence
        assert reference.SeriesInstanceUID == series.series_uid
        assert {i.ReferencedSOPInstanceUID for i in reference.ReferencedInstanceSequence} == used
        sources = [
            (f.SegmentIdentificationSequence[0].ReferencedSegmentNumber, _source_uid(f))
            for f in seg.PerFrameFunctionalGroupsSequence
        ]
        assert sorted(sources) == sorted([(1, series.sop_uids[k]) for k in (0, 3, 7)] + [(2, series.sop_uids[5])])

    @pytest.mark.parametrize(
        ("name", "code", "side"),
        [
            ("Prostate^auto", codes.SCT.Prostate, None),
            ("prostate", codes.SCT.Prostate, None),
            ("Bladder", codes.SCT.Bladder, None),
            ("Rectum^auto", codes.SCT.Rectum, None),
            ("SeminalVes", codes.SCT.SeminalVesicle, None),
            ("Femur_R", codes.SCT.Femur, codes.SCT.Right),
            ("Femur_Head_L", codes.SCT.HeadOfFemur, codes.SCT.Left),
            ("Colon_Sigmoid", codes.SCT.SigmoidColon, None),
            ("Bowel_Small", codes.SCT.SmallIntestine, None),
            ("Bag_Bowel", codes.SCT.AnatomicalStructure, None),
            ("PTV_L", codes.SCT.AnatomicalStructure, None),
        ],
    )
    def test_codes_are_those_of_the_standards_tables(
        self, series: CtSeries, tmp_path: Path, name: str, code: Any, side: Any
    ) -> None:
        write_seg(tmp_path / "a.dcm", series, structures(series, {name: np.ones(SHAPE, bool)}), description="")
        kind = pydicom.dcmread(tmp_path / "a.dcm").SegmentSequence[0].SegmentedPropertyTypeCodeSequence[0]
        assert (kind.CodeValue, kind.CodingSchemeDesignator) == (code.value, "SCT")
        modifiers = [m.CodeValue for m in kind.get("SegmentedPropertyTypeModifierCodeSequence", [])]
        assert modifiers == ([] if side is None else [side.value])

    def test_empty_masks_are_left_out_and_said(self, series: CtSeries, tmp_path: Path) -> None:
        chosen = {"empty": np.zeros(SHAPE, bool), **masks(), "also": np.zeros(SHAPE, bool)}
        left_out = write_seg(tmp_path / "seg.dcm", series, structures(series, chosen), description="")
        assert left_out == ("empty", "also")
        assert tuple(read_seg(tmp_path / "seg.dcm", series)) == tuple(masks())

    def test_names_beyond_ascii(self, series: CtSeries, tmp_path: Path) -> None:
        write_seg(tmp_path / "a.dcm", series, structures(series, {"前立腺": np.ones(SHAPE, bool)}), description="")
        assert tuple(read_seg(tmp_path / "a.dcm", series)) == ("前立腺",)
        assert str(pydicom.dcmread(tmp_path / "a.dcm").PatientName) == "Müller^Max"

    def test_codes_beyond_ascii(self, series: CtSeries, tmp_path: Path) -> None:
        code = Code("1", "99CLINIC", "前立腺 élevée")
        new = Structure("a", Volume(np.ones(SHAPE, bool), series.geometry), code=code)
        write_seg(tmp_path / "a.dcm", series, [new], description="")
        dataset = pydicom.dcmread(tmp_path / "a.dcm")
        assert dataset.SegmentSequence[0].SegmentedPropertyTypeCodeSequence[0].CodeMeaning == code.meaning
        assert str(dataset.PatientName) == "Müller^Max"

    @pytest.mark.parametrize(
        ("word", "change"),
        [
            ("no structure has a voxel", lambda s: []),
            ("no structure has a voxel", lambda s: structures(s, {"a": np.zeros(SHAPE, bool)})),
            ("the name is given twice", lambda s: structures(s, {"a": np.ones(SHAPE, bool)}) * 2),
            ("1 to 64 printable", lambda s: structures(s, {"a" * 65: np.ones(SHAPE, bool)})),
            ("1 to 64 printable", lambda s: structures(s, {"a\\b": np.ones(SHAPE, bool)})),
            ("from 0 to 255", lambda s: [Structure("a", Volume(np.ones(SHAPE, bool), s.geometry), (0, 0, 256))]),
            (
                "not on the grid",
                lambda s: [Structure("a", Volume(np.ones(SHAPE, bool), s.geometry.crop([1, 0, 0], SHAPE)))],
            ),
        ],
    )
    def test_what_cannot_be_written_leaves_nothing(
        self, series: CtSeries, tmp_path: Path, word: str, change: Callable[[CtSeries], Sequence[Structure]]
    ) -> None:
        with pytest.raises(InputError, match=word) as caught:
            write_seg(tmp_path / "seg.dcm", series, change(series), description="")
        assert "\n" not in str(caught.value)
        assert list(tmp_path.iterdir()) == []


def _code(item: Dataset) -> tuple[str, str, str]:
    return item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning


def _source_uid(frame: Dataset) -> str:
    return str(frame.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID)


def foreign(
    path: Path,
    series: CtSeries,
    masks: Sequence[Volume],
    kind: str = "BINARY",
    names: Sequence[str] = ("Prostate", "Bladder"),
    edit: Callable[[Dataset], None] | None = None,
    **more: Any,
) -> Path:
    """A segmentation as another program writes it, on a grid of its own; all masks share it."""
    geometry = masks[0].geometry
    array = np.stack([mask.array for mask in masks], axis=-1)
    if kind == "LABELMAP":
        array = (array.astype(np.uint8) * np.arange(1, len(masks) + 1, dtype=np.uint8)).max(axis=-1)
    described = [
        hd.seg.SegmentDescription(n, name, codes.SCT.Organ, codes.SCT.Prostate, "MANUAL")
        for n, name in zip(range(1, len(masks) + 1), names, strict=False)
    ]
    pixels = hd.Volume(
        array,
        geometry.affine,
        coordinate_system="PATIENT",
        frame_of_reference_uid=series.frame_of_reference_uid,
        channels={"SegmentNumber": list(range(1, len(masks) + 1))} if array.ndim == 4 else None,
    )
    dataset = hd.seg.Segmentation(
        [pydicom.dcmread(file) for file in series.files],
        pixels,
        kind,
        described,
        series_instance_uid=generate_uid(),
        series_number=1,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer="Other",
        manufacturer_model_name="Other",
        software_versions="1",
        device_serial_number="1",
        **more,
    )
    if edit is not None:
        edit(dataset)
    dataset.save_as(path, enforce_file_format=True)
    return path


def _run_length_encode(dataset: Dataset) -> None:
    # GDCM's own encoder aborts on frames this small.
    dataset.compress(RLELossless, encoding_plugin="pydicom", generate_instance_uid=False)


@pytest.fixture(scope="module")
def mask(series: CtSeries) -> Volume:
    return Volume(masks()["Prostate^auto"], series.geometry)


class TestReading:
    @settings(deadline=None, max_examples=20)
    @given(
        turned=st.booleans(),
        flips=st.tuples(*[st.booleans()] * 3),
        start=st.tuples(st.integers(0, 3), st.integers(0, 6), st.integers(0, 6)),
        # highdicom misplaces the bits of frames of fewer than 8 pixels.
        size=st.tuples(st.integers(1, 5), st.integers(3, 9), st.integers(3, 9)),
    )
    def test_frames_of_any_size_and_direction_go_to_their_place(
        self,
        series: CtSeries,
        mask: Volume,
        tmp_path_factory: pytest.TempPathFactory,
        turned: bool,
        flips: tuple[bool, bool, bool],
        start: tuple[int, int, int],
        size: tuple[int, int, int],
    ) -> None:
        part = mask.crop(start, size)
        theirs = part.reordered((0, 2, 1) if turned else (0, 1, 2), flips)
        path = tmp_path_factory.mktemp("seg") / "seg.dcm"
        foreign(path, series, [theirs], omit_empty_frames=False)
        expected = mask.with_array(np.zeros_like(mask.array)).paste(part.array, start)
        np.testing.assert_array_equal(read_seg(path, series)["Prostate"].array, expected.array)

    def test_fractions_count_from_one_half_on(self, series: CtSeries, tmp_path: Path) -> None:
        share = np.random.default_rng(1).random(SHAPE)
        share[0, 0, :3] = (0.49, 0.5, 0.51)
        for highest, kind in ((255, "PROBABILITY"), (100, "OCCUPANCY")):
            for packed in (False, True):
                path = foreign(
                    tmp_path / "a.dcm",
                    series,
                    [Volume(share, series.geometry)],
                    "FRACTIONAL",
                    fractional_type=kind,
                    max_fractional_value=highest,
                    edit=_run_length_encode if packed else None,
                )
                stored = np.around(share * highest)
                read = read_seg(path, series)["Prostate"].array
                np.testing.assert_array_equal(read, stored / highest >= 0.5)

    def test_label_maps(self, series: CtSeries, tmp_path: Path) -> None:
        first = masks()["Prostate^auto"]
        path = foreign(
            tmp_path / "a.dcm", series, [Volume(m, series.geometry) for m in (first, ~first)], "LABELMAP"
        )
        read = read_seg(path, series)
        assert tuple(read) == ("Prostate", "Bladder")
        np.testing.assert_array_equal(read["Prostate"].array, first)
        np.testing.assert_array_equal(read["Bladder"].array, ~first)

    def test_a_segment_without_frames_is_empty(self, series: CtSeries, mask: Volume, tmp_path: Path) -> None:
        empty = mask.with_array(np.zeros_like(mask.array))
        path = foreign(tmp_path / "a.dcm", series, [mask, empty])
        read = read_seg(path, series)
        np.testing.assert_array_equal(read["Prostate"].array, mask.array)
        assert not read["Bladder"].array.any()
        assert tuple(read_seg(path, series, ["Bladder"])) == ("Bladder",)
        with pytest.raises(InputError, match="no segment 'Rectum'; it has Prostate, Bladder"):
            read_seg(path, series, ["Rectum"])

    def test_two_segments_of_one_label_cost_no_other(self, series: CtSeries, mask: Volume, tmp_path: Path) -> None:
        parts = [mask.with_array(mask.array & (np.arange(SHAPE[2]) % 3 == k)) for k in range(3)]
        path = foreign(tmp_path / "a.dcm", series, parts, names=("Lesion", "Prostate", "Lesion"))
        np.testing.assert_array_equal(read_seg(path, series, ["Prostate"])["Prostate"].array, parts[1].array)
        for names in (None, ["Prostate", "Lesion"]):
            with pytest.raises(InputError, match="segments 1 and 3 are both named 'Lesion'"):
                read_seg(path, series, names)
        found = read_segments(path, series)
        assert [(one.number, one.name) for one in found] == [(1, "Lesion"), (2, "Prostate"), (3, "Lesion")]
        for one, part in zip(found, parts, strict=True):
            np.testing.assert_array_equal(one.mask.array, part.array)
        assert describe_seg(path).names == ("Lesion", "Prostate", "Lesion")

    def test_empty_frames_beside_the_scan_do_no_harm(self, series: CtSeries, mask: Volume, tmp_path: Path) -> None:
        wide = mask.crop((-3, 0, 0), (SHAPE[0] + 5, *SHAPE[1:]))
        path = foreign(tmp_path / "a.dcm", series, [wide], omit_empty_frames=False)
        np.testing.assert_array_equal(read_seg(path, series)["Prostate"].array, mask.array)

    def test_a_file_without_frame_of_reference_needs_a_reference(
        self, series: CtSeries, mask: Volume, tmp_path: Path
    ) -> None:
        path = foreign(tmp_path / "a.dcm", series, [mask], edit=lambda d: delattr(d, "FrameOfReferenceUID"))
        np.testing.assert_array_equal(read_seg(path, series)["Prostate"].array, mask.array)

    def test_another_frame_of_reference(self, series: CtSeries, mask: Volume, tmp_path: Path) -> None:
        other = make_series(tmp_path / "other")
        path = foreign(tmp_path / "a.dcm", series, [mask])
        with pytest.raises(InputError) as caught:
            read_seg(path, other)
        assert series.frame_of_reference_uid in str(caught.value)
        assert other.frame_of_reference_uid in str(caught.value)

    def test_thin_slices_of_the_same_acquisition(self, tmp_path: Path) -> None:
        """Thick and thin slices share frame of reference and pixels, so that every frame lies on some slice."""
        frame = generate_uid()
        for name, shape, step_mm in (("thick", (4, 12, 12), 4.0), ("thin", (13, 12, 12), 1.0)):
            write_series(
                tmp_path / name,
                shape=shape,
                spacing_mm=(step_mm, 1.0, 1.0),
                origin_mm=(0.0, 0.0, 0.0),
                frame_of_reference_uid=frame,
            )
        (thick,), (thin,) = (find_series(tmp_path / name).series for name in ("thick", "thin"))
        inside = np.zeros(thick.geometry.shape, dtype=bool)
        inside[1:3, 3:7, 3:7] = True
        write_seg(tmp_path / "a.dcm", thick, structures(thick, {"Prostate": inside}), description="test")
        with pytest.raises(InputError, match=r"slices 4 mm apart or more where those of series .* lie 1 mm apart"):
            read_seg(tmp_path / "a.dcm", thin)

    @pytest.mark.parametrize(
        ("word", "shift", "scale"),
        [
            ("on a slice that the scan does not have", (3, 0, 0), (1, 1, 1)),
            ("on a slice that the scan does not have", (-1, 0, 0), (1, 1, 1)),
            ("in a part of the slice that the scan does not have", (0, 2, 0), (1, 1, 1)),
            ("in a part of the slice that the scan does not have", (0, 0, -2), (1, 1, 1)),
            ("1 mm beside those of the scan", (0.4, 0, 0), (1, 1, 1)),
            ("0.55 mm beside those of the scan", (0, 0, 0.5), (1, 1, 1)),
            ("beside those of the scan", (0, 0, 0), (1, 1.02, 1)),
            ("another size or direction", (0, 0, 0), (1, 2, 1)),
        ],
    )
    def test_voxels_that_the_scan_lacks(
        self,
        series: CtSeries,
        mask: Volume,
        tmp_path: Path,
        word: str,
        shift: tuple[float, ...],
        scale: tuple[float, ...],
    ) -> None:
        affine = series.geometry.affine.copy()
        affine[:3, 3] = series.geometry.to_world(shift)
        affine[:3, :3] *= scale
        path = foreign(tmp_path / "a.dcm", series, [Volume(mask.array, Geometry(SHAPE, affine))])
        with pytest.raises(InputError, match=re.escape(word)) as caught:
            read_seg(path, series)
        assert re.search(r"frame \d+ at z = -?\d+\.\d\d mm", str(caught.value))
        assert "\n" not in str(caught.value)

    def test_a_sagittal_segmentation_is_refused(self, series: CtSeries, mask: Volume, tmp_path: Path) -> None:
        path = foreign(tmp_path / "a.dcm", series, [mask.reordered((2, 0, 1), (False, False, False))])
        with pytest.raises(InputError, match="another size or direction"):
            read_seg(path, series)

    @pytest.mark.parametrize(
        ("word", "edit"),
        [
            ("both named 'Prostate'", lambda d: setattr(d.SegmentSequence[1], "SegmentLabel", "Prostate")),
            ("two segments have the number 1", lambda d: setattr(d.SegmentSequence[1], "SegmentNumber", 1)),
            ("describes no segment", lambda d: delattr(d, "SegmentSequence")),
            ("damaged", lambda d: delattr(d.SegmentSequence[0], "SegmentNumber")),
            ("SegmentationType is nothing", lambda d: delattr(d, "SegmentationType")),
            ("places 0 frames of", lambda d: delattr(d, "PerFrameFunctionalGroupsSequence")),
            (
                "PlanePositionSequence is missing",
                lambda d: delattr(d.PerFrameFunctionalGroupsSequence[2], "PlanePositionSequence"),
            ),
            (
                "PixelMeasuresSequence is missing",
                lambda d: delattr(d.SharedFunctionalGroupsSequence[0], "PixelMeasuresSequence"),
            ),
            ("holds fewer pixels", lambda d: setattr(d, "PixelData", d.PixelData[:-64])),
            ("damaged", lambda d: delattr(d, "PixelData")),
            ("damaged", lambda d: delattr(d, "Rows")),
            ("pixels, more than the 15 x 17", lambda d: setattr(d, "Rows", 60000)),
            (
                "states no frame of reference",
                lambda d: (delattr(d, "FrameOfReferenceUID"), delattr(d, "ReferencedSeriesSequence")),
            ),
            ("a surface segmentation", lambda d: setattr(d, "SOPClassUID", "1.2.840.10008.5.1.4.1.1.66.5")),
        ],
    )
    def test_broken_files_are_named_with_their_fault(
        self, series: CtSeries, mask: Volume, tmp_path: Path, word: str, edit: Callable[[Dataset], None]
    ) -> None:
        path = foreign(tmp_path / "a.dcm", series, [mask, mask], edit=edit)
        with pytest.raises(InputError, match=re.escape(word)) as caught:
            read_seg(path, series)
        assert str(caught.value).startswith(str(path))
        assert "\n" not in str(caught.value)

    def test_other_files(self, series: CtSeries, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="no such file"):
            read_seg(tmp_path / "none.dcm", series)
        (tmp_path / "text.dcm").write_text("no DICOM")
        with pytest.raises(InputError, match="not a DICOM file"):
            read_seg(tmp_path / "text.dcm", series)
        with pytest.raises(InputError, match="of modality CT, expected a segmentation"):
            read_seg(series.files[0], series)


def test_a_real_scan_comes_back_whole(shared_data: Path, tmp_path: Path) -> None:
    (series,) = find_series(shared_data / "pelvis_ct_dicom").series
    # A slanted column through all 235 slices, and a hollow ball in the middle.
    column, ball = np.zeros(series.geometry.shape, bool), np.zeros(series.geometry.shape, bool)
    for k in range(len(column)):
        column[k, 180 + k // 3 : 260 + k // 3, 300:350] = True
    distance = np.linalg.norm(np.indices((61, 61, 61)) - 30, axis=0)
    ball[90:151, 226:287, 226:287] = (distance < 30) & (distance > 12)
    path = tmp_path / "seg.dcm"
    write_seg(path, series, structures(series, {"Rectum": column, "Prostate": ball}), description="test")
    assert dciodvfy_complaints(path) == []
    read = read_seg(path, series)
    np.testing.assert_array_equal(read["Rectum"].array, column)
    np.testing.assert_array_equal(read["Prostate"].array, ball)
    assert len(pydicom.dcmread(path).PerFrameFunctionalGroupsSequence) == 235 + 59


def test_a_segmentation_without_a_file_header_is_read(series: CtSeries, tmp_path: Path) -> None:
    mask = np.random.default_rng(1).random(SHAPE) < 0.3
    path = tmp_path / "seg.dcm"
    write_seg(path, series, structures(series, {"Prostate": mask}), description="test")
    content = path.read_bytes()
    begin = 144 + int.from_bytes(content[140:144], "little")  # the header's length is its first element
    path.write_bytes(content[begin:])
    np.testing.assert_array_equal(read_seg(path, series)["Prostate"].array, mask)
