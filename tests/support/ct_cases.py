"""Good and faulty CT series by the hundred, in files of one slice or of many, with the file at fault known.

Slices are described as single-frame data sets. Faults are put into these, and only then are they written: each as
a file, or all as the frames of an enhanced CT file. Where voxels lie is reckoned here from the drawn numbers,
without the package's own geometry.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless, generate_uid

from tests.support.dicom_series import CT_IMAGE, ORIENTATIONS

ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.2.1"

#: Distances of slices, and of rows and columns, as scanners have them.
STEPS_MM = (0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 5.0)
PIXELS_MM = (0.48828125, 0.7, 0.78125, 0.9, 0.976562, 1.171875, 1.367188)
RESCALES = ((1, -1024, False), (1, 0, True), (2, -1024, False), (1, -8192, False), (0.5, -1024, False))

#: Single-frame keyword: functional group and keyword in an enhanced file.
GROUPS = {
    "ImagePositionPatient": ("PlanePositionSequence", "ImagePositionPatient"),
    "ImageOrientationPatient": ("PlaneOrientationSequence", "ImageOrientationPatient"),
    "PixelSpacing": ("PixelMeasuresSequence", "PixelSpacing"),
    "SliceThickness": ("PixelMeasuresSequence", "SliceThickness"),
    "SpacingBetweenSlices": ("PixelMeasuresSequence", "SpacingBetweenSlices"),
    "RescaleSlope": ("PixelValueTransformationSequence", "RescaleSlope"),
    "RescaleIntercept": ("PixelValueTransformationSequence", "RescaleIntercept"),
    "RescaleType": ("PixelValueTransformationSequence", "RescaleType"),
    "ImageType": ("CTImageFrameTypeSequence", "FrameType"),
    "AcquisitionNumber": ("FrameContentSequence", "FrameAcquisitionNumber"),
    "ConvolutionKernel": ("CTReconstructionSequence", "ConvolutionKernel"),
}


@dataclass
class Series:
    """A series to be written: a data set for each slice, from the feet to the head.

    `positions_mm` [slices, 3], `across_mm` and `down_mm` (the step to the next column and row) and `hu` are what
    reading must give.
    """

    slices: list[Dataset]
    positions_mm: NDArray[np.float64]
    across_mm: NDArray[np.float64]
    down_mm: NDArray[np.float64]
    hu: NDArray[np.float64]
    step_mm: float
    syntax: str = ExplicitVRLittleEndian
    jitter_mm: float = 0.0
    #: Done to the written files, by slice.
    afterwards: dict[int, Callable[[Path], None]] = field(default_factory=dict)


@dataclass(frozen=True)
class OnDisk:
    """Where a series was written: for each slice its file, and its frame from 1 in an enhanced one."""

    folder: Path
    files: tuple[Path, ...]
    frames: tuple[int | None, ...]


def draw_series(
    rng: np.random.Generator, patient_position: str, *, slices: int | None = None, jitter_mm: float = 0.0
) -> Series:
    """Draw a sound series: small, but of any spacing, place, slight lean, rescale and transfer syntax."""
    count = slices or int(rng.integers(3, 9))
    rows, columns = (int(v) for v in rng.integers(3, 7, size=2))
    step = float(rng.choice(STEPS_MM))
    row_mm, column_mm = (float(v) for v in rng.choice(PIXELS_MM, size=2))
    turn = _turn(rng.uniform(-0.65, 0.65), rng.uniform(-0.65, 0.65)) if rng.random() < 0.3 else np.eye(3)
    across, down = (turn @ np.array(v, dtype=float) for v in ORIENTATIONS[patient_position])
    origin = np.round(rng.uniform(-800, 800, 3), 3)
    places = origin + np.arange(count)[:, None] * step * (turn @ np.array([0.0, 0.0, 1.0]))
    places = places + rng.uniform(-jitter_mm, jitter_mm, places.shape)
    slope, intercept, signed = RESCALES[int(rng.integers(len(RESCALES)))]
    low, high = (-1024, 3071) if signed else (0, 4095)
    stored = rng.integers(low, high, (count, rows, columns)).astype(np.int16 if signed else np.uint16)
    study, frame, uid = generate_uid(), generate_uid(), generate_uid()
    states_acquisition, states_kernel = rng.random(2) < 0.5
    described = []
    for k in range(count):
        ds = Dataset()
        ds.SOPClassUID, ds.SOPInstanceUID = CT_IMAGE, generate_uid()
        ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        ds.Modality, ds.PatientID, ds.PatientName = "CT", "P-001", "Müller^Max"
        ds.SpecificCharacterSet = "ISO_IR 100"
        ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = study, uid, frame
        ds.PatientPosition = patient_position
        ds.InstanceNumber = int(rng.integers(1, 1000))
        ds.ImagePositionPatient = [round(float(v), 6) for v in places[k]]
        ds.ImageOrientationPatient = [round(float(v), 8) for v in (*across, *down)]
        ds.PixelSpacing = [row_mm, column_mm]
        ds.SliceThickness = step
        ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
        ds.Rows, ds.Columns = rows, columns
        ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, int(signed)
        ds.RescaleSlope, ds.RescaleIntercept = slope, intercept
        if rng.random() < 0.5:
            ds.RescaleType = "HU"
        if states_acquisition:
            ds.AcquisitionNumber = 1 if k < count // 2 else 2
        if states_kernel:
            ds.ConvolutionKernel = "B30f"
        ds.PixelData = stored[k].tobytes()
        described.append(ds)
    syntaxes = (ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless)
    return Series(
        slices=described,
        positions_mm=np.array([[float(v) for v in ds.ImagePositionPatient] for ds in described]),
        across_mm=across * column_mm,
        down_mm=down * row_mm,
        hu=stored * float(slope) + intercept,
        step_mm=step,
        syntax=syntaxes[int(rng.choice(3, p=(0.47, 0.47, 0.06)))],  # each compressed one takes a process to decode
        jitter_mm=jitter_mm,
    )


def _turn(lean: float, spin: float) -> NDArray[np.float64]:
    c, s = np.cos(np.radians([lean, spin])), np.sin(np.radians([lean, spin]))
    leaning = np.array([[1, 0, 0], [0, c[0], -s[0]], [0, s[0], c[0]]])
    return np.asarray(leaning @ np.array([[c[1], -s[1], 0], [s[1], c[1], 0], [0, 0, 1]]))


def write(series: Series, folder: Path, rng: np.random.Generator, *, enhanced: bool = False) -> OnDisk:
    """Write a series, a file for each slice or one for all; neither names nor frames follow the positions."""
    folder.mkdir(parents=True, exist_ok=True)
    order = rng.permutation(len(series.slices))
    if enhanced:
        path = folder / "enhanced.dcm"
        save(path, as_enhanced([series.slices[k] for k in order], rng), series.syntax)
        for change in series.afterwards.values():
            change(path)
        frames = np.argsort(order) + 1
        return OnDisk(folder, (path,) * len(order), tuple(int(f) for f in frames))
    files = [folder / f"{int(n):04d}.dcm" for n in order]
    for k, (path, ds) in enumerate(zip(files, series.slices, strict=True)):
        save(path, ds, series.syntax)
        if k in series.afterwards:
            series.afterwards[k](path)
    return OnDisk(folder, tuple(files), (None,) * len(files))


def save(path: Path, ds: Dataset, syntax: str = ExplicitVRLittleEndian) -> None:
    """Write a data set, compressed if its pixels are sound enough for that."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = ds.SOPClassUID, ds.SOPInstanceUID
    whole = 2 * ds.get("Rows", 0) * ds.get("Columns", 0) * int(ds.get("NumberOfFrames") or 1)
    compress = syntax == RLELossless and len(ds.get("PixelData", b"")) == whole and ds.SamplesPerPixel == 1
    meta.TransferSyntaxUID = ExplicitVRLittleEndian if syntax == RLELossless else syntax
    ds.file_meta = meta
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # faults are put in on purpose
        if compress and ds.BitsAllocated == 16:
            ds.compress(RLELossless, generate_instance_uid=False)
        ds.save_as(path, enforce_file_format=True)


def as_enhanced(slices: Sequence[Dataset], rng: np.random.Generator) -> Dataset:
    """Join slices into one enhanced CT data set; what all share goes into the shared groups, by chance or not."""
    first = slices[0]
    ds = Dataset()
    for keyword in (
        *("SpecificCharacterSet", "Modality", "PatientID", "PatientName", "StudyInstanceUID", "SeriesInstanceUID"),
        *("FrameOfReferenceUID", "PatientPosition", "SamplesPerPixel", "PhotometricInterpretation", "Rows"),
        *("Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"),
    ):
        if keyword in first:
            ds.add(first[keyword])
    ds.SOPClassUID, ds.SOPInstanceUID = ENHANCED_CT, generate_uid()
    ds.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    ds.NumberOfFrames, ds.InstanceNumber = len(slices), 1
    shared: dict[str, Dataset] = {}
    own: list[dict[str, Dataset]] = [{} for _ in slices]
    for group in dict.fromkeys(name for name, _ in GROUPS.values()):
        keywords = [k for k, (name, _) in GROUPS.items() if name == group]
        items = []
        for source in slices:
            item = Dataset()
            for keyword in keywords:
                if keyword in source:
                    setattr(item, GROUPS[keyword][1], source[keyword].value)
            items.append(item)
        alike = all(item == items[0] for item in items)
        if alike and group != "PlanePositionSequence" and rng.random() < 0.7:
            shared[group] = items[0]
        else:
            for frame, item in zip(own, items, strict=True):
                if len(item):
                    frame[group] = item
    ds.SharedFunctionalGroupsSequence = [_as_groups(shared)]
    ds.PerFrameFunctionalGroupsSequence = [_as_groups(frame) for frame in own]
    ds.PixelData = b"".join(source.PixelData for source in slices)
    return ds


def _as_groups(items: dict[str, Dataset]) -> Dataset:
    groups = Dataset()
    for name, item in items.items():
        setattr(groups, name, [item])
    return groups


#: A fault is put into a series, and returns the slices (by their place in it) that a refusal may name.
Fault = Callable[[Series, np.random.Generator], set[int]]


def _middle(series: Series, rng: np.random.Generator) -> int:
    return int(rng.integers(1, len(series.slices) - 1))


def _any(series: Series, rng: np.random.Generator) -> int:
    return int(rng.integers(len(series.slices)))


def setting(**values: Any) -> Fault:
    """Set elements of one slice; None removes them."""

    def fault(series: Series, rng: np.random.Generator) -> set[int]:
        k = _any(series, rng)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for keyword, value in values.items():
                if value is None:
                    if keyword in series.slices[k]:
                        delattr(series.slices[k], keyword)
                else:
                    setattr(series.slices[k], keyword, value)
        return {k}

    return fault


def all_of(**values: Any) -> Fault:
    """Set elements of every slice."""

    def fault(series: Series, rng: np.random.Generator) -> set[int]:
        for ds in series.slices:
            for keyword, value in values.items():
                setattr(ds, keyword, value)
        return set(range(len(series.slices)))

    return fault


def _move(ds: Dataset, by_mm: NDArray[np.float64]) -> None:
    place = np.array([float(v) for v in ds.ImagePositionPatient]) + by_mm
    ds.ImagePositionPatient = [round(float(v), 6) for v in place]


def _normal(series: Series) -> NDArray[np.float64]:
    normal = np.cross(series.across_mm, series.down_mm)
    return np.asarray(normal / np.linalg.norm(normal) * np.sign(normal[2]))


def missing(series: Series, rng: np.random.Generator) -> set[int]:
    """One slice or two, in the middle: the slices on either side may be named."""
    count = int(rng.integers(1, 3))
    k = int(rng.integers(1, len(series.slices) - 1 - count))
    del series.slices[k : k + count]
    return {k - 1, k}


def uneven(series: Series, rng: np.random.Generator) -> set[int]:
    k = _any(series, rng)
    off = rng.uniform(0.11, 0.49) * series.step_mm * rng.choice([-1, 1])
    _move(series.slices[k], off * _normal(series))
    return {k}


def barely_uneven(series: Series, rng: np.random.Generator) -> set[int]:
    k = _middle(series, rng)
    _move(series.slices[k], 0.06 * rng.choice([-1, 1]) * _normal(series))
    return {k}


def shifted(series: Series, rng: np.random.Generator) -> set[int]:
    k = _any(series, rng)
    angle = rng.uniform(0, 2 * np.pi)
    unit = np.cos(angle) * series.across_mm / np.linalg.norm(series.across_mm)
    unit = unit + np.sin(angle) * series.down_mm / np.linalg.norm(series.down_mm)
    _move(series.slices[k], rng.uniform(0.12, 30) * unit)
    return {k}


def sheared(series: Series, rng: np.random.Generator) -> set[int]:
    """Axial slices, each further to the back: a tilt that was taken out of the orientation alone."""
    per_slice = series.step_mm * np.tan(np.radians(rng.uniform(2, 30)))
    for k, ds in enumerate(series.slices):
        _move(ds, np.array([0, k * per_slice, 0]))
    return set(range(len(series.slices)))


def tilted(series: Series, rng: np.random.Generator) -> set[int]:
    """The gantry leans and the table moves along the patient."""
    return _turned(series, rng.choice([-1, 1]) * rng.uniform(2, 30))


def oblique(series: Series, rng: np.random.Generator) -> set[int]:
    return _turned(series, rng.choice([-1, 1]) * rng.uniform(36, 60))


def _turned(series: Series, degrees: float) -> set[int]:
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turn = np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    for ds in series.slices:
        axes = np.array([float(v) for v in ds.ImageOrientationPatient]).reshape(2, 3) @ turn.T
        ds.ImageOrientationPatient = [round(float(v), 8) for v in axes.ravel()]
    return set(range(len(series.slices)))


def duplicate_position(series: Series, rng: np.random.Generator) -> set[int]:
    """Another image, with an identifier of its own, where one lies already."""
    return _copied(series, _any(series, rng), SOPInstanceUID=generate_uid())


def _copied(series: Series, k: int, **values: Any) -> set[int]:
    copy = Dataset()
    for element in series.slices[k]:
        copy.add_new(element.tag, element.VR, element.value)
    for keyword, value in values.items():
        setattr(copy, keyword, value)
    series.slices.append(copy)
    return {k, len(series.slices) - 1}


def onto_its_neighbour(series: Series, rng: np.random.Generator) -> set[int]:
    k = int(rng.integers(len(series.slices) - 1))
    series.slices[k].ImagePositionPatient = series.slices[k + 1].ImagePositionPatient
    return {k, k + 1}


def interleaved(series: Series, rng: np.random.Generator) -> set[int]:
    """A second acquisition, half a step higher: all slices lie evenly, and yet they are two scans."""
    count = len(series.slices)
    for k in range(count):
        series.slices[k].AcquisitionNumber = 1
        _copied(series, k, SOPInstanceUID=generate_uid(), AcquisitionNumber=2)
        _move(series.slices[-1], 0.5 * series.step_mm * _normal(series))
    return set(range(2 * count))


def other_scan(series: Series, rng: np.random.Generator) -> set[int]:
    """A slice of another scan under this one's SeriesInstanceUID."""
    named = setting(
        StudyInstanceUID=generate_uid(), FrameOfReferenceUID=generate_uid(), SOPInstanceUID=generate_uid()
    )
    return named(series, rng)


def localizer(series: Series, rng: np.random.Generator) -> set[int]:
    """An overview image that is passed off as axial."""
    return setting(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER", "CT_SOM5 TOP"])(series, rng)


def other_matrix(series: Series, rng: np.random.Generator) -> set[int]:
    k = _any(series, rng)
    ds = series.slices[k]
    ds.Rows += 1
    ds.PixelData += b"\0" * 2 * ds.Columns
    return {k}


def other_rescale(series: Series, rng: np.random.Generator) -> set[int]:
    k = _any(series, rng)
    ds = series.slices[k]
    if rng.random() < 0.5:
        ds.RescaleIntercept = float(ds.RescaleIntercept) + 1000
    else:
        ds.RescaleSlope = float(ds.RescaleSlope) * 2
    return {k}


def too_few_pixels(series: Series, rng: np.random.Generator) -> set[int]:
    k = _any(series, rng)
    series.slices[k].PixelData = series.slices[k].PixelData[:-4]
    return {k}


def truncated(series: Series, rng: np.random.Generator) -> set[int]:
    lost = int(rng.integers(1, 15))
    k = _any(series, rng)
    series.afterwards[k] = lambda path: _cut(path, path.stat().st_size - lost)
    return {k}


def header_cut(series: Series, rng: np.random.Generator) -> set[int]:
    share = rng.uniform(0, 0.8)
    k = _any(series, rng)
    series.afterwards[k] = lambda path: _cut(path, int(share * _pixels_begin(path)))
    return {k}


def _pixels_begin(path: Path) -> int:
    return path.stat().st_size - len(dcmread(path, force=True).PixelData) - 12


def _cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def unreadable_pixels(series: Series, rng: np.random.Generator) -> set[int]:
    """Compressed pixels that are all there, but spoilt: only decoding shows it."""
    k = _any(series, rng)
    series.syntax = RLELossless

    def spoil(path: Path) -> None:
        ds = dcmread(path)
        ds.PixelData = encapsulate([b"\1\0\0\0" + b"\0" * 80])
        ds.save_as(path)

    series.afterwards[k] = spoil
    return {k}


def two_slices(series: Series, rng: np.random.Generator) -> set[int]:
    del series.slices[2:]
    return {0, 1}


def every_second(series: Series, rng: np.random.Generator) -> set[int]:
    return all_of(SpacingBetweenSlices=series.step_mm / 2)(series, rng)


#: Faults of a slice, whether it is a file or a frame.
FAULTS_OF_SLICES: dict[str, Fault] = {
    "missing": missing,
    "uneven": uneven,
    "barely uneven": barely_uneven,
    "shifted": shifted,
    "sheared": sheared,
    "tilted": tilted,
    "oblique": oblique,
    "sagittal": all_of(ImageOrientationPatient=[0, 1, 0, 0, 0, -1]),
    "coronal": all_of(ImageOrientationPatient=[1, 0, 0, 0, 0, -1]),
    "decubitus": all_of(ImageOrientationPatient=[0, 1, 0, -1, 0, 0]),
    "duplicate position": duplicate_position,
    "onto its neighbour": onto_its_neighbour,
    "interleaved acquisitions": interleaved,
    "localizer": localizer,
    "other orientation": setting(ImageOrientationPatient=[0.999848, 0.017452, 0, -0.017452, 0.999848, 0]),
    "other pixel spacing": setting(PixelSpacing=[0.5, 1.9]),
    "other rescale": other_rescale,
    "no slope": setting(RescaleSlope=None),
    "no intercept": setting(RescaleIntercept=None),
    "slope 0": setting(RescaleSlope=0),
    "negative slope": setting(RescaleSlope=-1),
    "other units": setting(RescaleType="OD"),
    "no pixel spacing": setting(PixelSpacing=None),
    "zero pixel spacing": setting(PixelSpacing=[0, 1]),
    "no position": setting(ImagePositionPatient=None),
    "short position": setting(ImagePositionPatient=[1, 2]),
    "no orientation": setting(ImageOrientationPatient=None),
    "broken orientation": setting(ImageOrientationPatient=[1, 0, 0, 1, 0, 0]),
    "other thickness": setting(SliceThickness=11),
    "other kernel": lambda series, rng: (
        all_of(ConvolutionKernel="B30f")(series, rng) and setting(ConvolutionKernel="B70s")(series, rng)
    ),
    "every second slice": every_second,
    "two slices": two_slices,
}
#: Faults that only a file of its own can have.
FAULTS_OF_FILES: dict[str, Fault] = {
    "other scan": other_scan,
    "other patient": setting(PatientID="P-002"),
    "other study": setting(StudyInstanceUID="1.2.3"),
    "other frame of reference": setting(FrameOfReferenceUID="1.2.3"),
    "no frame of reference": setting(FrameOfReferenceUID=None),
    "other matrix": other_matrix,
    "other pixel format": setting(BitsStored=12),
    "colour": setting(SamplesPerPixel=3),
    "eight bits": setting(BitsAllocated=8, BitsStored=8),
    "MR": setting(Modality="MR"),
    "PT": setting(Modality="PT"),
    "secondary capture": setting(SOPClassUID="1.2.840.10008.5.1.4.1.1.7"),
    "frames in a single-frame file": setting(NumberOfFrames=2),
    "no pixel data": setting(PixelData=None),
    "too few pixels": too_few_pixels,
    "truncated": truncated,
    "header cut": header_cut,
    "unreadable pixels": unreadable_pixels,
}
