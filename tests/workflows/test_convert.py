"""Masks into structure sets, segmentations and each other, and back: the very bytes, or a plain refusal."""

from __future__ import annotations

import copy
import errno
import gzip
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset

import metricunet as mu
from metricunet.errors import InputError
from metricunet.files.dicom.series import CtSeries, find_series
from metricunet.files.nifti import read_labels, write_nifti
from metricunet.files.own import STAGING, write_sealed
from metricunet.files.rtstruct.read import read_rtstruct
from metricunet.files.seg.read import read_seg
from metricunet.volume import Geometry, Volume
from metricunet.workflows.convert import Converted, convert
from tests.support.command import Command
from tests.support.dicom_series import pattern, rotation, write_series
from tests.support.patients import Patient, write_ct, write_set
from tests.support.slicer import write_nrrd
from tests.support.structure_sets import dciodvfy_complaints, plastimatch, shapes

SHAPE, SPACING_MM = (8, 30, 34), (2.5, 0.9, 1.1)
LABELS = {"prostate": 1, "femur_left": 2, "PTV": 3}


def one_series(folder: Path) -> CtSeries:
    (series,) = find_series(folder).series
    return series


@pytest.fixture(scope="module")
def ct(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A series that nobody changes."""
    return write_series(tmp_path_factory.mktemp("convert") / "ct", shape=SHAPE, spacing_mm=SPACING_MM).folder


@pytest.fixture(scope="module")
def series(ct: Path) -> CtSeries:
    return one_series(ct)


def drawn(shape: Sequence[int] = SHAPE) -> NDArray[np.uint8]:
    """Three structures beside each other: one with holes, one in pieces, one in the corners of the scan."""
    array = np.zeros(shape, dtype=np.uint8)
    array[1:6, 3:15, 4:16] = 1
    array[2:4, 7:9, 8:11] = 0
    array[3:7, 18:24, 5:12] = 2
    array[3:7, 24:28, 12:15] = 2
    array[5, 20, 30] = 2
    array[0, 0, 33] = 3
    array[-1, -1, :4] = 3
    return array


def write_map(
    path: Path, array: NDArray[Any], geometry: Geometry, labels: Mapping[str, Any] | None = LABELS
) -> Path:
    """Write a label map with the names of its values."""
    write_nifti(path, Volume(array, geometry))
    if labels is not None:
        content = {"channel_names": {"0": "CT"}, "labels": {"background": 0, **labels}, "file_ending": ".nii.gz"}
        (path.parent / "dataset.json").write_text(json.dumps(content))
    return path


def states(done: Converted) -> dict[str, str]:
    return {outcome.name: outcome.status for outcome in done.structures}


def listing(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


class TestRoundTrips:
    @pytest.mark.parametrize("position", ["HFS", "FFS", "HFP", "FFP"])
    @pytest.mark.parametrize("target", ["rtstruct", "seg"])
    def test_a_mask_comes_back_to_the_byte(self, tmp_path: Path, position: str, target: str) -> None:
        ct = write_series(tmp_path / "ct", shape=SHAPE, spacing_mm=SPACING_MM, patient_position=position).folder
        path = write_map(tmp_path / "in" / "a.nii.gz", drawn(), one_series(ct).geometry)
        there = convert(path, tmp_path / "there", scan=ct, to=target)
        assert not there.failed
        assert there.notes == ()
        back = convert(there.files[0], tmp_path / "back", scan=ct, to="nifti")
        assert (tmp_path / "back" / "a.nii.gz").read_bytes() == path.read_bytes()
        assert states(back) == dict.fromkeys(LABELS, "converted")
        assert json.loads((tmp_path / "back" / "dataset.json").read_text())["labels"] == {
            "background": 0,
            **LABELS,
        }

    @pytest.mark.parametrize("contours", ["voxel", "surface"])
    def test_shapes_that_trip_writers_come_back(
        self, ct: Path, series: CtSeries, tmp_path: Path, contours: Any
    ) -> None:
        """They overlap, so they are a folder of masks."""
        for name, mask in shapes(SHAPE).items():
            write_nifti(tmp_path / "in" / f"{name}.nii.gz", Volume(mask, series.geometry))
        done = convert(tmp_path / "in", tmp_path / "out", scan=ct, to="rtstruct,seg", contours=contours)
        assert not done.failed
        assert [path.name for path in done.files] == ["in.rtstruct.dcm", "in.seg.dcm"]
        for path in done.files:
            convert(path, tmp_path / path.name, scan=ct, to="masks")
            for name in shapes(SHAPE):
                back = tmp_path / path.name / "in" / f"{name}.nii.gz"
                there = tmp_path / "in" / f"{name}.nii.gz"
                assert gzip.decompress(back.read_bytes()) == gzip.decompress(there.read_bytes()), name

    def test_a_structure_set_comes_back_through_masks(self, ct: Path, series: CtSeries, tmp_path: Path) -> None:
        path = write_map(tmp_path / "in" / "a.nii.gz", drawn(), series.geometry)
        first = convert(path, tmp_path / "1", scan=ct, to="rtstruct").files[0]
        convert(first, tmp_path / "2", scan=ct, to="masks")
        second = convert(tmp_path / "2" / "a", tmp_path / "3", scan=ct, to="rtstruct").files[0]
        sets = [read_rtstruct(file, series) for file in (first, second)]
        for name in LABELS:
            ours, theirs = (one.structure(name).contours for one in sets)
            assert [points.tolist() for points in ours] == [points.tolist() for points in theirs]
        straight = convert(first, tmp_path / "4", scan=ct, to="rtstruct").files[0]
        again = read_rtstruct(straight, series)
        assert [s.colour for s in again.structures] == [s.colour for s in sets[0].structures]
        assert [s.interpreted_type for s in again.structures] == ["ORGAN", "ORGAN", "PTV"]

    @pytest.mark.parametrize(("of_scan", "of_masks"), [(0.00045, 0.00045), (0.0, 0.0009), (0.00045, 0.0)])
    def test_sheared_by_a_thousandth_as_totalsegmentator_and_nnunet_write_it(
        self, tmp_path: Path, of_scan: float, of_masks: float
    ) -> None:
        """Both take over the affine of their own copy of the scan, rounded or not."""

        def lean(k: int, dataset: Dataset) -> None:
            x, y, z = (float(v) for v in dataset.ImagePositionPatient)
            dataset.ImagePositionPatient = [round(x + of_scan * k * 2.5, 6), y, z]

        ct = write_series(tmp_path / "ct", shape=SHAPE, spacing_mm=SPACING_MM, edit=lean).folder
        straight = one_series(ct).geometry
        cosine = float(straight.directions[:, 0] @ straight.directions[:, 2])
        assert cosine == pytest.approx(of_scan, abs=1e-6)
        affine = straight.affine.copy()
        affine[0, 0] = of_masks * 2.5
        geometry = Geometry(SHAPE, affine)
        subject = tmp_path / "s0001"
        for name, value in LABELS.items():
            write_nifti(subject / "segmentations" / f"{name}.nii.gz", Volume(drawn() == value, geometry))
        write_map(tmp_path / "labelsTr" / "s0001.nii.gz", drawn(), geometry)
        for source in (subject, tmp_path / "labelsTr" / "s0001.nii.gz"):
            for target in ("rtstruct", "seg"):
                out = tmp_path / f"{source.name}-{target}"
                done = convert(source, out, scan=ct, to=target)
                assert done.case == "s0001"
                convert(done.files[0], out / "back", scan=ct, to="masks")
                for name, value in LABELS.items():
                    back = read_labels(out / "back" / "s0001" / f"{name}.nii.gz")
                    np.testing.assert_array_equal(back.array, drawn() == value)
                    if of_scan == of_masks:
                        assert back.geometry.gap_mm(straight) < 1e-5

    def test_axes_in_another_order_and_direction(self, ct: Path, series: CtSeries, tmp_path: Path) -> None:
        """As other programs convert the scan to NIfTI, and as Slicer writes NRRD cut to the segments' box."""
        volume = Volume(drawn(), series.geometry)
        for k, (axes, flips) in enumerate([((2, 0, 1), (True, False, True)), ((1, 2, 0), (False, True, False))]):
            turned = volume.reordered(axes, flips)
            affine = np.diag([-1.0, -1, 1, 1]) @ turned.geometry.affine
            image = nib.Nifti1Image(np.ascontiguousarray(turned.array), affine)
            nib.save(image, tmp_path / f"{k}.nii.gz")
        box = volume.crop((1, 2, 3), (6, 26, 29))
        kept = {name: value for name, value in LABELS.items() if value < 3}
        write_nrrd(tmp_path / "2.seg.nrrd", np.where(box.array < 3, box.array, 0), box.geometry, kept)
        for name in ("0.nii.gz", "1.nii.gz", "2.seg.nrrd"):
            done = convert(tmp_path / name, tmp_path / "out", scan=ct, to="rtstruct")
            read = read_rtstruct(done.files[0], series)
            for structure, value in zip(read.names, (1, 2, 3), strict=False):
                np.testing.assert_array_equal(
                    read.mask(structure, series.geometry).array, volume.array == value, err_msg=f"{name} {value}"
                )
        assert read.names == ("prostate", "femur_left")
        assert listing(tmp_path / "out") == [f"{k}.rtstruct.dcm" for k in range(3)] + ["convert.json"]

    def test_slicers_files_in_a_folder_name_structures_without_their_ending(
        self, ct: Path, series: CtSeries, tmp_path: Path
    ) -> None:
        for name, value in (("prostate.seg.nrrd", 1), ("PTV.SEG.NRRD", 3)):
            mask = (drawn() == value).astype(np.uint8)
            write_nrrd(tmp_path / "masks" / name, mask, series.geometry, {"Segment_1": 1})
        done = convert(tmp_path / "masks", tmp_path / "out", scan=ct, to="masks")
        assert states(done) == {"prostate": "converted", "PTV": "converted"}
        found = read_labels(tmp_path / "out" / "masks" / "PTV.nii.gz").reordered_like(series.geometry)
        np.testing.assert_array_equal(found.array, drawn() == 3)

    def test_a_file_of_a_scan_gives_its_order_of_axes_to_label_maps(self, tmp_path: Path) -> None:
        scan = Volume(pattern(SHAPE), Geometry.from_parts(SHAPE, SPACING_MM))
        turned = scan.reordered((2, 0, 1), (True, False, False))
        affine = np.diag([-1.0, -1, 1, 1]) @ turned.geometry.affine
        nib.save(nib.Nifti1Image(np.ascontiguousarray(turned.array), affine), tmp_path / "ct.nii.gz")
        for name, value in LABELS.items():
            write_nifti(tmp_path / "segmentations" / f"{name}.nii.gz", scan.with_array(drawn() == value))
        convert(tmp_path, tmp_path / "out", scan=tmp_path / "ct.nii.gz", to="nifti")
        stored = nib.load(tmp_path / "out" / f"{tmp_path.name}.nii.gz")
        np.testing.assert_allclose(stored.affine, affine, atol=1e-5)
        assert stored.shape == turned.array.shape
        with pytest.raises(InputError, match=r"ct.nii.gz: to=\['seg'\] needs a DICOM series to refer to"):
            convert(tmp_path, tmp_path / "out", scan=tmp_path / "ct.nii.gz", to="seg")

    def test_other_programs_agree(self, ct: Path, series: CtSeries, tmp_path: Path) -> None:
        path = write_map(tmp_path / "in" / "a.nii.gz", drawn(), series.geometry)
        rtstruct, seg = convert(path, tmp_path / "out", scan=ct, to=["seg", "rtstruct"]).files
        assert dciodvfy_complaints(rtstruct) == []
        assert dciodvfy_complaints(seg) == []
        theirs = plastimatch(rtstruct, series, tmp_path / "plastimatch")
        for name, value in LABELS.items():
            np.testing.assert_array_equal(theirs[name].array != 0, drawn() == value)

    def test_a_real_structure_set(self, shared_data: Path, tmp_path: Path) -> None:
        ct = shared_data / "thorax_rt_dicom"
        (path,) = (p for p in ct.iterdir() if not p.name.startswith("CT") and p.suffix == ".dcm")
        with pytest.raises(InputError, match=r"LUNGS and LUNG_R share \d+ voxels .*masks"):
            convert(path, tmp_path / "out", scan=ct, to="nifti")
        done = convert(path, tmp_path / "out", scan=ct, to="masks,rtstruct,seg", case="a")
        assert not done.failed
        assert len(done.structures) == 9
        series = one_series(ct)
        original = read_rtstruct(path, series)
        redrawn, segments = (
            read(done.files[k]) for k, read in ((-2, read_rtstruct), (-1, lambda p: read_seg(p, series)))
        )
        for outcome in done.structures:
            wanted = original.mask(outcome.spelling, series.geometry).array
            mask = read_labels(tmp_path / "out" / "a" / f"{outcome.name}.nii.gz").reordered_like(series.geometry)
            np.testing.assert_array_equal(mask.array, wanted)
            np.testing.assert_array_equal(redrawn.mask(outcome.name, series.geometry).array, wanted)
            np.testing.assert_array_equal(segments[outcome.name].array, wanted)
        types = {s.name: s.interpreted_type for s in original.structures}
        assert {s.name: s.interpreted_type for s in redrawn.structures} == types


class TestDicom:
    def test_who_drew_it_is_not_claimed(self, ct: Path, series: CtSeries, tmp_path: Path) -> None:
        path = write_map(tmp_path / "in" / "a.nii.gz", drawn(), series.geometry)
        rtstruct, seg = (
            pydicom.dcmread(f) for f in convert(path, tmp_path / "out", scan=ct, to="rtstruct,seg").files
        )
        assert {roi.ROIGenerationAlgorithm for roi in rtstruct.StructureSetROISequence} == {""}
        assert rtstruct.ApprovalStatus == "UNAPPROVED"
        for text in (
            rtstruct.StructureSetName,
            rtstruct.SeriesDescription,
            seg.SeriesDescription,
            seg.ContentDescription,
        ):
            assert "Converted" in text
            assert "Machine-made" not in text
        for item in seg.SegmentSequence:
            assert item.SegmentAlgorithmType == "SEMIAUTOMATIC"
            assert item.SegmentAlgorithmName == "metricunet convert, origin not stated"
            assert "from a label map; who drew it is not stated" in item.SegmentDescription

    def test_one_outline_of_the_patient(self, ct: Path, series: CtSeries, tmp_path: Path) -> None:
        """Planning systems refuse a second one, which what is left of the body without a target is not."""
        labels = {"BODY-PTV": 1, "BODY": 2, "PTV_60": 3}
        path = write_map(tmp_path / "in" / "a.nii.gz", drawn(), series.geometry, labels)
        (file,) = convert(path, tmp_path / "out", scan=ct, to="rtstruct").files
        assert {s.name: s.interpreted_type for s in read_rtstruct(file).structures} == {
            "BODY-PTV": "ORGAN",
            "BODY": "EXTERNAL",
            "PTV_60": "PTV",
        }

    def test_codes_of_structures(self, ct: Path, series: CtSeries, tmp_path: Path) -> None:
        """From SNOMED CT by the name, its side included, or as the names file says; none where none is known."""
        path = write_map(tmp_path / "in" / "a.nii.gz", drawn(), series.geometry)
        names = tmp_path / "names.yaml"
        names.write_text(
            "Prostate: [prostate]\nFemur_L: [femur_left]\nPTV_60: [PTV]\n"
            "codes: {PTV_60: [PTV_High, 99VMS_STRUCTCODE, PTV High]}\n"
        )
        files = convert(path, tmp_path / "out", scan=ct, to="rtstruct,seg", names=names).files
        rtstruct, seg = (pydicom.dcmread(file) for file in files)
        found = [
            observation.RTROIIdentificationCodeSequence[0] for observation in rtstruct.RTROIObservationsSequence
        ]
        found += [item.SegmentedPropertyTypeCodeSequence[0] for item in seg.SegmentSequence]
        codes = [(code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning) for code in found]
        assert (
            codes[:3]
            == codes[3:]
            == [
                ("41216001", "SCT", "Prostate"),
                ("71341001", "SCT", "Femur"),
                ("PTV_High", "99VMS_STRUCTCODE", "PTV High"),
            ]
        )
        assert [c.SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning for c in (found[1], found[4])] == [
            "Left"
        ] * 2
        plain = pydicom.dcmread(convert(path, tmp_path / "plain", scan=ct, to="rtstruct").files[0])
        coded = ["RTROIIdentificationCodeSequence" in item for item in plain.RTROIObservationsSequence]
        assert coded == [True, True, False]
        for file in files:
            assert dciodvfy_complaints(file) == []

    def test_contours_are_smoothed_and_holes_closed_on_request(
        self, ct: Path, series: CtSeries, tmp_path: Path
    ) -> None:
        path = write_map(tmp_path / "in" / "a.nii.gz", drawn(), series.geometry)
        done = convert(path, tmp_path / "out", scan=ct, to="rtstruct", smooth=True, holes="close")
        roi = pydicom.dcmread(done.files[0]).StructureSetROISequence[0]
        assert "Outline smoothed" in roi.ROIDescription
        assert "Holes closed: 2" in roi.ROIDescription
        with pytest.raises(InputError, match="shape a structure set, and none is asked for; add rtstruct to to"):
            convert(path, tmp_path / "other", scan=ct, to="seg", smooth=True)

    def test_surface_contours_run_between_centres(self, ct: Path, series: CtSeries, tmp_path: Path) -> None:
        path = write_map(tmp_path / "in" / "a.nii.gz", drawn(), series.geometry)
        points = {}
        for contours in ("voxel", "surface"):
            done = convert(path, tmp_path / contours, scan=ct, to="rtstruct", contours=contours)
            loops = [
                series.geometry.to_index(c) for c in read_rtstruct(done.files[0]).structure("femur_left").contours
            ]
            (points[contours],) = (p[:, 1:] - [20, 30] for p in loops if np.abs(p[:, 1:] - [20, 30]).max() < 1)
        assert sorted(np.abs(points["voxel"]).round(6).tolist()) == [[0.5, 0.5]] * 4
        assert sorted(np.abs(points["surface"]).round(6).tolist()) == [[0, 0.5], [0, 0.5], [0.5, 0], [0.5, 0]]


class TestNames:
    def test_a_names_file_renames_and_ignores(self, ct: Path, series: CtSeries, tmp_path: Path) -> None:
        path = write_map(tmp_path / "in" / "a.nii.gz", drawn(), series.geometry)
        names = tmp_path / "names.yaml"
        names.write_text("PTV_60: [PTV]\nProstate: [PROSTATE]\nignore: ['femur*']\nmatch_case: false\n")
        done = convert(path, tmp_path / "out", scan=ct, to="nifti", names=names)
        assert states(done) == {"Prostate": "converted", "femur_left": "ignored", "PTV_60": "converted"}
        assert not done.failed
        labels = json.loads((tmp_path / "out" / "dataset.json").read_text())["labels"]
        assert labels == {"background": 0, "PTV_60": 1, "Prostate": 2}, "values in the order of the names file"
        back = read_labels(tmp_path / "out" / "a.nii.gz").array
        np.testing.assert_array_equal(back, np.select([drawn() == 3, drawn() == 1], [1, 2]))

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("Prostate: [prostate]\n", r"does not say what 'femur_left', 'PTV' of .*a.nii.gz means"),
            (
                "Prostate: [prostate, PTV]\nignore: ['*']\n",
                r"label 1 \(prostate\) and .*label 3 \(PTV\) both mean",
            ),
            ("Prostate: [x]\nignore: ['*']\n", "ignores all of its structures"),
            ("Prostate: [x]\nundecided: [prostate]\n", "does not say what"),
            (
                "Prostate: [x]\ncodes: {Prostate: [1, 2]}\n",
                r"codes: Prostate has \[1, 2\], expected \[value, scheme",
            ),
            ("Prostate: [x]\ncodes: {Bladder: [1, SCT, a]}\n", "codes names 'Bladder', expected one of Prostate"),
            ("Prostate: [x]\ncodes: [1]\n", "expected an object"),
        ],
    )
    def test_names_files_that_leave_a_doubt(
        self, ct: Path, series: CtSeries, tmp_path: Path, text: str, words: str
    ) -> None:
        path = write_map(tmp_path / "in" / "a.nii.gz", drawn(), series.geometry)
        (tmp_path / "names.yaml").write_text(text)
        with pytest.raises(InputError, match=words):
            convert(path, tmp_path / "out", scan=ct, to="seg", names=tmp_path / "names.yaml")
        assert not (tmp_path / "out").exists()

    def test_odd_names(self, ct: Path, series: CtSeries, tmp_path: Path) -> None:
        """What DICOM or a file system cannot hold is said; the rest goes on, from and to every format."""
        odd = ["前立腺", "a/b", "a:b", "..", " padded ", "CON", "x" * 65, "back\\slash", "tab\there", "nul", "Nul"]
        array = np.zeros(SHAPE, dtype=np.uint8)
        for value in range(1, len(odd) + 1):
            array[1:4, 2 * value : 2 * value + 2, 3:9] = value
        path = write_map(
            tmp_path / "in" / "a.nii.gz", array, series.geometry, {n: k for k, n in enumerate(odd, 1)}
        )
        done = convert(path, tmp_path / "out", scan=ct, to="masks,rtstruct,seg")
        assert done.failed
        lost = {outcome.spelling: outcome.reason for outcome in done.structures if outcome.status == "left out"}
        assert set(lost) == {"x" * 65, "back\\slash", "tab\there"}
        assert all("not in rtstruct: the name" in reason and "not in seg" in reason for reason in lost.values())
        files = [file for file in listing(tmp_path / "out") if file.startswith("a/")]
        assert len(files) == len(odd)
        assert {"a/a_b.nii.gz", "a/a_b_2.nii.gz", "a/前立腺.nii.gz", "a/padded.nii.gz"} <= set(files)
        assert {"a/_CON.nii.gz", "a/_nul.nii.gz", "a/Nul_2.nii.gz"} <= set(files), "Windows keeps them for devices"
        assert not list(tmp_path.glob("*.nii.gz"))
        kept = [outcome.name.strip() for outcome in done.structures if outcome.status == "converted"]
        assert kept[-1] == "Nul_2", "capitals alone do not tell structures apart in planning systems"
        assert read_rtstruct(tmp_path / "out" / "a.rtstruct.dcm").names == tuple(kept)
        assert tuple(read_seg(tmp_path / "out" / "a.seg.dcm", series)) == tuple(kept)
        notes = [note for outcome in done.structures for note in outcome.notes]
        assert any("'a/b' cannot be the name of a file; it is written as a_b.nii.gz" in note for note in notes)

    @pytest.mark.parametrize(("target", "what"), [("rtstruct", "ROI"), ("seg", "segment")])
    def test_two_structures_of_one_name_both_stay(
        self, ct: Path, series: CtSeries, tmp_path: Path, target: str, what: str
    ) -> None:
        path = write_map(tmp_path / "in" / "a.nii.gz", drawn(), series.geometry)
        first = convert(path, tmp_path / "1", scan=ct, to=target).files[0]
        dataset = pydicom.dcmread(first)
        for roi in dataset.get("StructureSetROISequence", []):
            roi.ROIName = "PTV"
        for segment in dataset.get("SegmentSequence", []):
            segment.SegmentLabel = "PTV"
        dataset.save_as(tmp_path / "doubled.dcm")
        done = convert(tmp_path / "doubled.dcm", tmp_path / "2", scan=ct, to="nifti")
        assert list(states(done)) == ["PTV", "PTV_2", "PTV_3"]
        assert not done.failed
        assert f"{what} 2 'PTV': another structure is named 'PTV'; it becomes PTV_2" in done.structures[1].notes[0]
        np.testing.assert_array_equal(read_labels(tmp_path / "2" / "doubled.nii.gz").array, drawn())

    def test_names_that_a_planning_system_cuts_to_one(self, ct: Path, series: CtSeries, tmp_path: Path) -> None:
        labels = {"gluteus_maximus_left": 1, "gluteus_maximus_right": 2, "x": 3}
        path = write_map(tmp_path / "in" / "a.nii.gz", drawn(), series.geometry, labels)
        (note,) = convert(path, tmp_path / "out", scan=ct, to="rtstruct,seg").notes
        assert "gluteus_maximus_left and gluteus_maximus_right begin with the same 16 characters" in note

    @pytest.mark.parametrize("suffix", [".quality.json", ".json"])
    def test_predicted_and_reviewed_masks_are_named_by_their_record(
        self, ct: Path, series: CtSeries, tmp_path: Path, suffix: str
    ) -> None:
        path = write_map(tmp_path / "in" / "a.nii.gz", drawn(), series.geometry, None)
        labels = {"prostate": 1, "femoral_head_left": 2, "bladder": 3}
        record = path.with_name(f"a{suffix}")
        write_sealed(record, {"labels": labels}, {path.name: "of earlier bytes"})
        done = convert(path, tmp_path / "out", scan=ct, to="rtstruct")
        assert list(states(done)) == list(labels)
        write_sealed(record, {"labels": {"prostate": 1}}, {path.name: ""})
        with pytest.raises(InputError, match=rf"value 2, 3 has no name in .*a\{suffix}"):
            convert(path, tmp_path / "out", scan=ct, to="rtstruct", overwrite=True)
        record.write_text("{}")
        assert list(states(convert(path, tmp_path / "2", scan=ct, to="rtstruct"))) == ["1", "2", "3"]

    def test_values_without_names_are_names(self, ct: Path, series: CtSeries, tmp_path: Path) -> None:
        array = drawn().astype(np.uint16) * 20000
        path = write_map(tmp_path / "in" / "a.nii.gz", array, series.geometry, None)
        done = convert(path, tmp_path / "1", scan=ct, to="seg,nifti")
        assert list(states(done)) == ["20000", "40000", "60000"]
        assert (tmp_path / "1" / "a.nii.gz").read_bytes() == path.read_bytes(), "values are kept"
        (tmp_path / "names.yaml").write_text('prostate: ["20000"]\nignore: ["*"]\n')
        done = convert(path, tmp_path / "2", scan=ct, to="nifti", names=tmp_path / "names.yaml")
        assert np.unique(read_labels(tmp_path / "2" / "a.nii.gz").array).tolist() == [0, 1]

    def test_cases_in_one_folder_share_the_names_of_values(
        self, ct: Path, series: CtSeries, tmp_path: Path
    ) -> None:
        for case, labels in (("a", LABELS), ("b", {"bladder": 3, "PTV": 1, "rectum": 2})):
            path = write_map(tmp_path / case / f"{case}.nii.gz", drawn(), series.geometry, labels)
            convert(path, tmp_path / "out", scan=ct, to="nifti")
        there = json.loads((tmp_path / "out" / "dataset.json").read_text())["labels"]
        assert there == {"background": 0, **LABELS, "bladder": 4, "rectum": 5}
        b = read_labels(tmp_path / "out" / "b.nii.gz").array
        np.testing.assert_array_equal(b, np.select([drawn() == k for k in (1, 2, 3)], [3, 5, 4]))
        assert (tmp_path / "out" / "a.nii.gz").read_bytes() == (tmp_path / "a" / "a.nii.gz").read_bytes()
        (tmp_path / "names.yaml").write_text("bladder: [bladder]\nignore: ['*']\n")
        with pytest.raises(InputError, match=r"dataset.json: names prostate 1, and the names file bladder 1"):
            convert(
                tmp_path / "b" / "b.nii.gz", tmp_path / "out", scan=ct, to="nifti", names=tmp_path / "names.yaml"
            )

    def test_a_dataset_json_of_somebody_stays(self, ct: Path, series: CtSeries, tmp_path: Path) -> None:
        path = write_map(tmp_path / "in" / "a.nii.gz", drawn(), series.geometry)
        write_map(tmp_path / "out" / "other.nii.gz", drawn(), series.geometry, {"PTV": 1, "prostate": 2})
        before = (tmp_path / "out" / "dataset.json").read_bytes()
        with pytest.raises(InputError, match="does not name femur_left, and was not written by this program"):
            convert(path, tmp_path / "out", scan=ct, to="nifti")
        names = tmp_path / "names.yaml"
        names.write_text("PTV: [PTV]\nprostate: [prostate]\nignore: [femur_left]\n")
        convert(path, tmp_path / "out", scan=ct, to="nifti", names=names)
        assert (tmp_path / "out" / "dataset.json").read_bytes() == before
        assert np.unique(read_labels(tmp_path / "out" / "a.nii.gz").array).tolist() == [0, 1, 2]


class TestNothingIsLost:
    def test_overlaps(self, ct: Path, series: CtSeries, tmp_path: Path) -> None:
        left, right = np.zeros(SHAPE, bool), np.zeros(SHAPE, bool)
        left[2:5, 5:15, 5:15] = right[3:6, 10:20, 10:20] = True
        for name, mask in (("CTV", left), ("PTV", right)):
            write_nifti(tmp_path / "in" / f"{name}.nii.gz", Volume(mask, series.geometry))
        shared = int((left & right).sum())
        for target in ("nifti", "seg,nifti"):
            with pytest.raises(InputError, match=rf"CTV and PTV share {shared} voxels .* use to=\['masks'\]"):
                convert(tmp_path / "in", tmp_path / "out", scan=ct, to=target)
        assert not (tmp_path / "out").exists()

    def test_empty_structures_are_listed_and_no_failure(self, ct: Path, series: CtSeries, tmp_path: Path) -> None:
        array = np.where(drawn() == 2, 0, drawn())
        path = write_map(tmp_path / "in" / "a.nii.gz", array, series.geometry)
        done = convert(path, tmp_path / "out", scan=ct, to="nifti,masks,rtstruct,seg")
        assert states(done) == {"prostate": "converted", "femur_left": "empty", "PTV": "converted"}
        assert not done.failed
        assert (tmp_path / "out" / "a.nii.gz").read_bytes() == path.read_bytes()
        assert json.loads((tmp_path / "out" / "dataset.json").read_text())["labels"]["femur_left"] == 2
        assert not read_labels(tmp_path / "out" / "a" / "femur_left.nii.gz").array.any()
        assert read_rtstruct(tmp_path / "out" / "a.rtstruct.dcm").names == ("prostate", "PTV")
        nothing = write_map(tmp_path / "none" / "n.nii.gz", np.zeros(SHAPE, np.uint8), series.geometry)
        with pytest.raises(InputError, match="holds no structure with a voxel for rtstruct; it names 'prostate'"):
            convert(nothing, tmp_path / "out", scan=ct, to="rtstruct")
        assert states(convert(nothing, tmp_path / "out", scan=ct, to="nifti")) == dict.fromkeys(LABELS, "empty")

    def test_structures_that_nobody_drew_and_points(self, tmp_path: Path) -> None:
        """Not contoured is not empty: no mask of it is written. Points enclose nothing and cannot become one."""
        patient = Patient()
        ct = write_ct(tmp_path / "ct", patient)

        def points(dataset: Dataset) -> None:
            (item,) = (i for i in dataset.ROIContourSequence if i.ReferencedROINumber == 9)
            item.ContourSequence[0].ContourGeometricType = "POINT"

        squares = {"CTV": (4.5, 12.5, [1, 2]), "Bladder": None, "ISO": (7.5, 9.5, [2]), "far": (300.0, 310.0, [1])}
        path = write_set(tmp_path / "rs.dcm", patient, ct, squares, change=points)
        done = convert(path, tmp_path / "out", scan=tmp_path / "ct", to="masks,seg")
        assert states(done) == {
            "CTV": "converted",
            "Bladder": "not contoured",
            "ISO": "left out",
            "far": "left out",
        }
        assert done.failed
        reasons = {outcome.name: outcome.reason for outcome in done.structures}
        assert "no contours that enclose an area (POINT: 1)" in reasons["ISO"]
        assert "contains no voxel's centre" in reasons["far"]
        assert listing(tmp_path / "out") == ["convert.json", "rs.seg.dcm", "rs/CTV.nii.gz"]
        nothing = write_set(tmp_path / "empty.dcm", patient, ct, {"Bladder": None, "CTV": None})
        with pytest.raises(InputError, match=r"ROI 'Bladder' has no contours; draw it.*\(1 more structures"):
            convert(nothing, tmp_path / "out", scan=tmp_path / "ct", to="masks")

    def test_one_that_nobody_drew_gives_way_to_one_of_its_meaning(self, tmp_path: Path) -> None:
        patient = Patient()
        ct = write_ct(tmp_path / "ct", patient)
        path = write_set(tmp_path / "rs.dcm", patient, ct, {"prostate": None, "Prostate": (4.5, 12.5, [1, 2])})
        (tmp_path / "names.yaml").write_text("Gland: [Prostate, prostate]\n")
        done = convert(path, tmp_path / "out", scan=tmp_path / "ct", to="masks", names=tmp_path / "names.yaml")
        assert [(o.name, o.spelling, o.status) for o in done.structures] == [
            ("prostate", "prostate", "not contoured"),
            ("Gland", "Prostate", "converted"),
        ]

    @pytest.mark.parametrize("kind", ["label map", "segmentation"])
    def test_one_without_a_voxel_gives_way_to_one_of_its_meaning(
        self, ct: Path, series: CtSeries, tmp_path: Path, kind: str
    ) -> None:
        array = np.where(drawn() == 1, 2, 0).astype(np.uint8)
        path = write_map(tmp_path / "in" / "a.nii.gz", array, series.geometry, {"prostate": 1, "gland": 2})
        if kind == "segmentation":
            convert(path, tmp_path / "seg", scan=ct, to="seg")
            path = tmp_path / "seg" / "a.seg.dcm"
            dataset = pydicom.dcmread(path)
            empty = copy.deepcopy(dataset.SegmentSequence[0])
            empty.SegmentNumber, empty.SegmentLabel = 2, "prostate"  # of which no frame is
            dataset.SegmentSequence.append(empty)
            dataset.save_as(path, enforce_file_format=True)
        names = tmp_path / "names.yaml"
        names.write_text("Gland: [gland, prostate]\n")
        done = convert(path, tmp_path / "out", scan=ct, to="nifti", names=names)
        assert {(o.name, o.spelling, o.status) for o in done.structures} == {
            ("prostate", "prostate", "empty"),
            ("Gland", "gland", "converted"),
        }
        assert np.array_equal(read_labels(tmp_path / "out" / "a.nii.gz").array > 0, array > 0)

    def test_one_bad_mask_costs_no_other(self, ct: Path, series: CtSeries, tmp_path: Path) -> None:
        folder = tmp_path / "in"
        shifted = Geometry.from_parts(SHAPE, SPACING_MM, series.geometry.origin_mm + np.array([0, 0, 0.3]))
        write_nifti(folder / "good.nii.gz", Volume(drawn() == 1, series.geometry))
        write_nifti(
            folder / "of_255.nii.gz", Volume(np.where(drawn() == 2, 255, 0).astype("uint8"), series.geometry)
        )
        write_nifti(folder / "several.nii.gz", Volume(drawn(), series.geometry))
        write_nifti(folder / "shifted.nii.gz", Volume(drawn() == 1, shifted))
        (folder / "damaged.nii.gz").write_bytes((folder / "good.nii.gz").read_bytes()[:60])
        (folder / "notes.txt").write_text("not a mask")
        done = convert(folder, tmp_path / "out", scan=ct, to="rtstruct")
        assert {name: state for name, state in states(done).items() if state == "converted"} == {
            "good": "converted",
            "of_255": "converted",
        }
        reasons = {outcome.name: outcome.reason for outcome in done.structures}
        assert "holds the values 1, 2, 3, expected one beside 0" in reasons["several"]
        assert "lie up to 0.3 mm from those of series" in reasons["shifted"]
        assert "damaged" in reasons["damaged"]
        for name in ("good", "of_255"):
            (folder / f"{name}.nii.gz").unlink()
        with pytest.raises(InputError, match=r"nothing can be written to seg: .*damaged.*\(2 more structures"):
            convert(folder, tmp_path / "out", scan=ct, to="seg")

    def test_nnunets_ignore_label_is_no_structure(self, ct: Path, series: CtSeries, tmp_path: Path) -> None:
        labels = {"prostate": 1, "femur_left": 2, "ignore": 3}
        path = write_map(tmp_path / "in" / "a.nii.gz", drawn(), series.geometry, labels)
        done = convert(path, tmp_path / "out", scan=ct, to="seg")
        assert states(done)["ignore"] == "left out"
        assert "label 3 marks voxels that nobody contoured" in done.structures[-1].reason
        (tmp_path / "names.yaml").write_text("p: [prostate]\nf: [femur_left]\nignore: [ignore]\n")
        assert not convert(path, tmp_path / "2", scan=ct, to="seg", names=tmp_path / "names.yaml").failed


class TestRefused:
    @pytest.mark.parametrize(
        ("change", "words"),
        [
            (lambda g: g.crop((0, 0, 0), (7, 30, 34)), "7 x 30 x 34 voxels .* against 8 x 30 x 34 of series"),
            (lambda g: g.crop((1, 0, 0), SHAPE), r"lie up to 2\.5 mm from those of series"),
            (
                lambda g: Geometry.from_parts(SHAPE, SPACING_MM, g.origin_mm, rotation("z", 3) @ g.directions),
                r"another grid than its scan: its voxels lie up to .* mm",
            ),
            (
                lambda g: Geometry.from_parts(SHAPE, (2.5, 0.9, 1.2), g.origin_mm),
                r"x 1\.2 mm against 2\.5 x 0\.9 x 1\.1 mm",
            ),
        ],
    )
    def test_another_grid(
        self, ct: Path, series: CtSeries, tmp_path: Path, change: Callable[[Geometry], Geometry], words: str
    ) -> None:
        other = change(series.geometry)
        path = write_map(tmp_path / "in" / "a.nii.gz", drawn(other.shape), other)
        with pytest.raises(InputError, match=words):
            convert(path, tmp_path / "out", scan=ct, to="rtstruct")
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            (lambda a: a.astype(np.float32) / 2, "not whole numbers"),
            (lambda a: a.astype(np.int16) - 1, "range from -1 to 2"),
            (lambda a: a.astype(np.int32) * 30000, "range from 0 to 90000"),
            (lambda a: np.stack([a, a], axis=-1), "has 4 dimensions"),
            (
                lambda a: (a * 2).astype(np.uint8),
                r"the value 4, 6 has no name in .*dataset.json, which names 1, 2, 3",
            ),
            (lambda a: np.where(a == 3, np.nan, a).astype(np.float32), "NaN"),
            (lambda a: a + 1j, "voxels of type complex"),
        ],
    )
    def test_no_label_maps(
        self,
        ct: Path,
        series: CtSeries,
        tmp_path: Path,
        change: Callable[[NDArray[Any]], NDArray[Any]],
        words: str,
    ) -> None:
        write_map(tmp_path / "in" / "a.nii.gz", drawn(), series.geometry)
        affine = nib.load(tmp_path / "in" / "a.nii.gz").affine
        stored = drawn().transpose(2, 1, 0)
        nib.save(nib.Nifti1Image(change(stored), affine), tmp_path / "in" / "a.nii.gz")
        with pytest.raises(InputError, match=words):
            convert(tmp_path / "in" / "a.nii.gz", tmp_path / "out", scan=ct, to="seg")

    def test_a_label_map_without_a_voxel(self, ct: Path, series: CtSeries, tmp_path: Path) -> None:
        path = write_map(tmp_path / "a.nii.gz", 0 * drawn(), series.geometry, None)
        with pytest.raises(InputError, match="it holds no structure, so there is nothing to convert"):
            convert(path, tmp_path / "out", scan=ct, to="rtstruct")

    def test_whole_numbers_in_floats_are_labels(self, ct: Path, series: CtSeries, tmp_path: Path) -> None:
        path = write_map(tmp_path / "in" / "a.nii.gz", drawn().astype(np.float64), series.geometry)
        convert(path, tmp_path / "out", scan=ct, to="nifti")
        np.testing.assert_array_equal(read_labels(tmp_path / "out" / "a.nii.gz").array, drawn())

    def test_a_scan_in_place_of_a_label_map(self, ct: Path, series: CtSeries, tmp_path: Path) -> None:
        write_nifti(tmp_path / "ct.nii.gz", Volume(pattern(SHAPE).astype(np.int16) + 1100, series.geometry))
        with pytest.raises(InputError, match="different values, at most 1000 structures are expected"):
            convert(tmp_path / "ct.nii.gz", tmp_path / "out", scan=ct, to="seg")

    def test_the_set_of_another_scan(self, ct: Path, series: CtSeries, tmp_path: Path) -> None:
        """Another frame of reference, another series in the same frame, images of another series."""
        path = write_map(tmp_path / "in" / "a.nii.gz", drawn(), series.geometry)
        rtstruct, seg = convert(path, tmp_path / "out", scan=ct, to="rtstruct,seg").files
        other = write_series(tmp_path / "other", shape=SHAPE, spacing_mm=SPACING_MM).folder
        for file in (rtstruct, seg):
            with pytest.raises(InputError, match=r"frame of reference is .*, but .* in series"):
                convert(file, tmp_path / "back", scan=other, to="masks")
        phase = write_series(
            tmp_path / "phase",
            shape=SHAPE,
            spacing_mm=SPACING_MM,
            frame_of_reference_uid=series.frame_of_reference_uid,
        ).folder
        with pytest.raises(InputError, match=r"was drawn on series .*, not on .*; give the scan"):
            convert(rtstruct, tmp_path / "back", scan=phase, to="masks")
        with pytest.raises(InputError, match=r"was made on series .*, not on .*; give the scan"):
            convert(seg, tmp_path / "back", scan=phase, to="masks")
        dataset = pydicom.dcmread(rtstruct)
        del dataset.ReferencedFrameOfReferenceSequence
        dataset.save_as(tmp_path / "images_alone.dcm")
        with pytest.raises(InputError, match="its contours name 8 images, none of which is of series"):
            convert(tmp_path / "images_alone.dcm", tmp_path / "back", scan=phase, to="masks")
        for roi, item in zip(dataset.StructureSetROISequence, dataset.ROIContourSequence, strict=True):
            del roi.ReferencedFrameOfReferenceUID
            for contour in item.ContourSequence:
                del contour.ContourImageSequence
        del dataset.FrameOfReferenceUID
        dataset.save_as(tmp_path / "nothing.dcm")
        with pytest.raises(InputError, match="states no frame of reference, no series and no image"):
            convert(tmp_path / "nothing.dcm", tmp_path / "back", scan=ct, to="masks")
        assert not (tmp_path / "back").exists()

    def test_sources_and_scans_that_are_none(self, ct: Path, series: CtSeries, tmp_path: Path) -> None:
        path = write_map(tmp_path / "in" / "a.nii.gz", drawn(), series.geometry)
        (tmp_path / "labelsTr").mkdir()
        write_map(tmp_path / "labelsTr" / "a.nii.gz", drawn(), series.geometry, None)
        (tmp_path / "dataset.json").write_text('{"labels": {"background": 0, "x": 1}}')
        (tmp_path / "text.dcm").write_text("no DICOM")
        (tmp_path / "void").mkdir()
        write_nifti(tmp_path / "scan.nii.gz", Volume(pattern(SHAPE), series.geometry))
        two = tmp_path / "two"
        for name in ("a", "b"):
            write_series(two / name, shape=SHAPE)
        rtstruct = convert(path, tmp_path / "set", scan=ct, to="rtstruct").files[0]
        slice_ = next(ct.iterdir())
        for source, scan, words in (
            (tmp_path / "none", ct, "no such file or folder"),
            (tmp_path / "in", ct, r"holds label maps of nnU-Net .* such as .*a.nii.gz"),
            (tmp_path / "labelsTr", ct, "holds label maps of nnU-Net"),
            (tmp_path / "void", ct, "holds no mask; expected STRUCTURE.nii.gz"),
            (tmp_path / "text.dcm", ct, "is neither DICOM nor, by its name, NIfTI"),
            (slice_, ct, "is of modality CT, expected a structure set"),
            (path, tmp_path / "none", "no such file or folder"),
            (path, two, "holds 2 scans, and structures belong to one; choose one with series"),
            (rtstruct, tmp_path / "scan.nii.gz", "belongs to a DICOM series, and scan.nii.gz is none"),
        ):
            with pytest.raises(InputError, match=words):
                convert(source, tmp_path / "out", scan=scan, to="masks")
        for to, words in (
            ("dicom", "to must be of nifti, masks, rtstruct, seg; got 'dicom'"),
            ([], "to names none"),
        ):
            with pytest.raises(InputError, match=words):
                convert(path, tmp_path / "out", scan=ct, to=to)
        for case in ("a/b", "", ".hidden"):
            with pytest.raises(InputError, match="cannot be the name of a case"):
                convert(path, tmp_path / "out", scan=ct, to="seg", case=case)
        assert not (tmp_path / "out").exists()

    def test_one_of_several_series(self, tmp_path: Path) -> None:
        for name in ("a", "b"):
            write_series(tmp_path / "ct" / name, shape=SHAPE, spacing_mm=SPACING_MM)
        series = one_series(tmp_path / "ct" / "b")
        path = write_map(tmp_path / "a.nii.gz", drawn(), series.geometry)
        done = convert(path, tmp_path / "out", scan=tmp_path / "ct", to="rtstruct", series=series.series_uid)
        assert read_rtstruct(done.files[0]).series_uid == series.series_uid


class Killed(BaseException):
    """The process is gone: nothing of its own tidies up."""


class TestFiles:
    def test_a_rerun_replaces_its_own_files_alone(self, ct: Path, series: CtSeries, tmp_path: Path) -> None:
        path = write_map(tmp_path / "in" / "a.nii.gz", drawn(), series.geometry)
        out = tmp_path / "out"
        convert(path, out, scan=ct, to="masks,nifti")
        convert(path, out, scan=ct, to="rtstruct")
        everything = listing(out)
        assert everything == [
            *("a.nii.gz", "a.rtstruct.dcm", "a/PTV.nii.gz", "a/femur_left.nii.gz", "a/prostate.nii.gz"),
            *("convert.json", "dataset.json"),
        ]
        (tmp_path / "names.yaml").write_text("Prostate: [prostate]\nignore: ['*']\n")
        convert(path, out, scan=ct, to="masks", names=tmp_path / "names.yaml")
        assert listing(out) == [
            *("a.nii.gz", "a.rtstruct.dcm", "a/Prostate.nii.gz", "convert.json", "dataset.json"),
        ]
        corrected = out / "a" / "Prostate.nii.gz"
        write_nifti(corrected, Volume(drawn() == 2, series.geometry))
        before = corrected.read_bytes()
        with pytest.raises(InputError, match="was not written by this program or was changed since"):
            convert(path, out, scan=ct, to="masks", names=tmp_path / "names.yaml")
        assert corrected.read_bytes() == before
        convert(path, out, scan=ct, to="masks", names=tmp_path / "names.yaml", overwrite=True)
        assert corrected.read_bytes() != before

    def test_another_source_of_the_same_name(self, ct: Path, series: CtSeries, tmp_path: Path) -> None:
        paths = [write_map(tmp_path / k / "a.nii.gz", drawn(), series.geometry) for k in ("auto", "approved")]
        convert(paths[0], tmp_path / "out", scan=ct, to="rtstruct")
        with pytest.raises(
            InputError, match=r"holds case a already, converted from .*auto.*another name with case"
        ):
            convert(paths[1], tmp_path / "out", scan=ct, to="rtstruct")
        convert(paths[1], tmp_path / "out", scan=ct, to="rtstruct", case="approved")
        assert listing(tmp_path / "out") == ["a.rtstruct.dcm", "approved.rtstruct.dcm", "convert.json"]

    def test_inputs_are_never_replaced(self, ct: Path, series: CtSeries, tmp_path: Path) -> None:
        path = write_map(tmp_path / "in" / "a.nii.gz", drawn(), series.geometry)
        for name in ("a.rtstruct.dcm", "a.seg.dcm"):
            os.link(path, path.parent / name)
        before = path.read_bytes()
        for target in ("nifti", "rtstruct", "seg"):
            with pytest.raises(InputError, match="is an input and would be overwritten"):
                convert(path, path.parent, scan=ct, to=target, overwrite=True)
        assert path.read_bytes() == before
        (tmp_path / "taken").mkdir()
        (tmp_path / "taken" / "a").write_text("mine")
        with pytest.raises(InputError, match="is a file where the folder of masks is to be written"):
            convert(path, tmp_path / "taken", scan=ct, to="masks,seg")
        assert listing(tmp_path / "taken") == ["a"]
        (tmp_path / "file").write_text("mine")
        with pytest.raises(InputError, match="is a file; expected a folder"):
            convert(path, tmp_path / "file", scan=ct, to="seg")

    @pytest.mark.parametrize("step", range(1, 12))
    def test_killed_at_any_step(
        self, ct: Path, series: CtSeries, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
    ) -> None:
        """No half file under the name of an output, and a rerun ends as an unbroken run does."""
        path = write_map(tmp_path / "in" / "a.nii.gz", drawn(), series.geometry)
        out, steps = tmp_path / "out", 0
        out.mkdir()
        (out / "mine.txt").write_text("mine")

        def counted(real: Callable[..., Any]) -> Callable[..., Any]:
            def call(*arguments: Any, **options: Any) -> Any:
                nonlocal steps
                steps += 1
                if steps == step:
                    raise Killed
                return real(*arguments, **options)

            return call

        with monkeypatch.context() as patch:
            patch.setattr("metricunet.files.own.os.link", counted(os.link))
            patch.setattr("metricunet.files.own.OwnFiles.discard", lambda self: None)
            patch.setattr("metricunet.files.atomic.os.replace", counted(os.replace))
            try:
                convert(path, out, scan=ct, to="masks,nifti")
            except Killed:
                pass
            else:
                assert steps < step
        for name in listing(out):
            if name.endswith(".nii.gz") and STAGING not in name:
                read_labels(out / name)
        done = convert(path, out, scan=ct, to="masks,nifti")
        assert not done.failed
        assert listing(out) == [
            *("a.nii.gz", "a/PTV.nii.gz", "a/femur_left.nii.gz", "a/prostate.nii.gz"),
            *("convert.json", "dataset.json", "mine.txt"),
        ]
        assert (out / "a.nii.gz").read_bytes() == path.read_bytes()
        assert (out / "mine.txt").read_text() == "mine"

    def test_a_full_disk(
        self, ct: Path, series: CtSeries, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, metricunet: Command
    ) -> None:
        path = write_map(tmp_path / "in" / "a.nii.gz", drawn(), series.geometry)

        def full(*_: object) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(Path, "write_bytes", full)
        words = ["convert", path, "-o", tmp_path / "out", "--scan", ct, "--to", "rtstruct,masks"]
        ended = metricunet(*words)
        assert ended.status == 2
        assert "the disk is full" in ended.err
        assert ended.err.count("\n") == 1
        assert not (tmp_path / "out").exists()


class TestCommand:
    def test_what_it_prints(self, ct: Path, series: CtSeries, tmp_path: Path, metricunet: Command) -> None:
        array = np.where(drawn() == 2, 0, drawn())
        path = write_map(tmp_path / "in" / "a.nii.gz", array, series.geometry)
        out = tmp_path / "out"
        ended = metricunet("convert", path, "-o", out, "--scan", ct, "--to", "rtstruct")
        assert ended.status == 0
        assert ended.err == ""
        volumes = [np.count_nonzero(drawn() == value) * series.geometry.voxel_volume_ml for value in (1, 3)]
        assert ended.out.splitlines() == [
            f"prostate: converted, {volumes[0]:.2f} mL",
            "femur_left: empty",
            f"PTV: converted, {volumes[1]:.3f} mL",
            f"file: {out / 'a.rtstruct.dcm'}",
        ]
        (tmp_path / "names.yaml").write_text(f"Prostate: [prostate]\n{'x' * 70}: [PTV]\nignore: [femur_left]\n")
        named = ["--names", tmp_path / "names.yaml", "--to", "seg", "--json"]
        ended = metricunet("convert", path, "-o", out, "--scan", ct, *named)
        assert ended.status == 1
        assert f"left out: {'x' * 70}: not in seg: the name" in ended.err
        assert "rename it with --names" in ended.err
        content = json.loads(ended.out)
        assert content["case"] == "a"
        assert [s["status"] for s in content["structures"]] == ["converted", "ignored", "left out"]
        wrong = metricunet("convert", path, "-o", out, "--scan", ct, "--to", "dicom")
        assert wrong.status == 2
        assert wrong.err == "error: --to must be of nifti, masks, rtstruct, seg; got 'dicom'\n"

    def test_the_record_says_what_was_made_of_what(self, ct: Path, series: CtSeries, tmp_path: Path) -> None:
        path = write_map(tmp_path / "in" / "a.nii.gz", drawn(), series.geometry)
        convert(str(path), str(tmp_path / "out"), scan=str(ct), to="rtstruct")
        record = json.loads((tmp_path / "out" / "convert.json").read_text())
        assert record["command"] == "convert"
        entry = record["cases"]["a"]["rtstruct"]
        assert entry["source"] == str(path.resolve())
        assert entry["outputs"] == ["a.rtstruct.dcm"]
        assert [s["name"] for s in entry["structures"]] == list(LABELS)
        assert set(record["files"]) == {"a.rtstruct.dcm"}

    def test_from_python(self, ct: Path, series: CtSeries, tmp_path: Path) -> None:
        path = write_map(tmp_path / "in" / "a.nii.gz", drawn(), series.geometry)
        steps: list[tuple[int, int]] = []
        done = mu.convert(path, tmp_path / "out", scan=ct, to="masks", progress=lambda k, n: steps.append((k, n)))
        assert repr(done) == "Converted(a: 3 converted)"
        assert steps == [(1, 3), (2, 3), (3, 3)]
