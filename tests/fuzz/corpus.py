"""Sound files to begin from, tiny and always the same: made here with the package's own writers and test support.

Nothing of the corpus comes from a patient, unless `run.py --real` adds files below METRICUNET_DATA.
"""

from __future__ import annotations

import bz2
import gzip
import json
import os
import pickle
import shutil
import warnings
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian, RLELossless

from metricunet.files.dicom.series import CtSeries, find_series
from metricunet.files.nifti import write_nifti
from metricunet.files.rtstruct.outlines import Structure
from metricunet.files.rtstruct.write import write_rtstruct
from metricunet.files.seg.write import write_seg
from metricunet.volume import Geometry, Volume
from tests.fuzz.dicom_tree import Element, parse, write
from tests.support.cohorts import TINY_SETTINGS
from tests.support.dicom_series import companion, save, write_series
from tests.support.structure_sets import rtstruct, shapes, square

#: The scan that sound structure sets and segmentations were made on.
SHAPE, SPACING_MM = (6, 14, 12), (2.5, 0.9, 1.1)
#: Names the folder of real files to add; set by `run.py --real`.
REAL_FILES = "METRICUNET_FUZZ_REAL"
#: Real files beyond this size would make each input slow.
LARGEST_REAL = 3 << 20


@dataclass(frozen=True)
class Seed:
    """Files that belong together, by their names, and those of them that may be damaged."""

    name: str
    files: dict[str, bytes]
    victims: tuple[str, ...]
    #: How often it is chosen. JPEG is decoded in a process of its own, which takes a hundred times as long.
    weight: int = 4


@dataclass(frozen=True)
class Corpus:
    """Seeds by target, and sound files at fixed places for them to be used with."""

    folder: Path
    seeds: dict[str, tuple[Seed, ...]] = field(default_factory=dict)

    @property
    def series(self) -> Path:
        return self.folder / "series"

    @property
    def model(self) -> Path:
        return self.folder / "model.safetensors"

    @property
    def scan(self) -> Path:
        return self.folder / "scan.nii"

    @property
    def labels(self) -> Path:
        return self.folder / "labels.nii"

    @property
    def structure_set(self) -> Path:
        return self.folder / "rtstruct.dcm"


def make_corpus(folder: Path) -> Corpus:
    """Make the corpus in a folder, once; it is read back where it is there already."""
    kept = folder / "corpus.pickle"
    if not kept.is_file():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            corpus = _made(folder)
        kept.write_bytes(pickle.dumps(corpus))  # our own file, for the workers
    loaded: Corpus = pickle.loads(kept.read_bytes())
    return loaded


def _made(folder: Path) -> Corpus:
    corpus, raw = Corpus(folder), folder / "raw"
    settle = _Settled()
    series = _sound_series(corpus, settle)
    _sound_scan(corpus)
    _write_model(corpus.model)
    dicom = _dicom(raw / "dicom", settle)
    sets = _structure_sets(raw, series, settle)
    corpus.structure_set.write_bytes(next(iter(sets[0].files.values())))
    corpus.seeds.update(
        dicom=dicom,
        rtstruct=sets,
        seg=_segmentations(raw, series, settle),
        registration=_registrations(raw, series, settle),
        nifti=_niftis(raw),
        itk=_itks(),
        model=(Seed("model", {"m.safetensors": corpus.model.read_bytes()}, ("m.safetensors",)),),
        config=_configurations(),
        cohort=_cohorts(corpus),
    )
    shutil.rmtree(raw)
    return corpus


class _Settled:
    """Makes DICOM files the same in every run: identifiers are numbered, dates and times are fixed."""

    def __init__(self) -> None:
        self.known: dict[str, str] = {}

    def __call__(self, paths: Iterable[Path]) -> dict[str, bytes]:
        found = {}
        for path in paths:
            tree = parse(path.read_bytes())
            self._settle(tree.meta)
            self._settle(tree.elements)
            path.write_bytes(write(tree))
            found[path.name] = path.read_bytes()
        return found

    def _settle(self, elements: list[Element]) -> None:
        for element in elements:
            for item in element.items or ():
                self._settle(item)
            if element.vr == "UI":
                uid = element.value.decode().strip("\0 ")
                if uid and not uid.startswith("1.2.840.10008") and uid not in self.known.values():
                    uid = self.known.setdefault(uid, f"1.2.826.0.1.3680043.8.498.{len(self.known) + 1}")
                element.value = uid.encode()
            elif element.vr in ("DA", "TM", "DT") and element.value.strip(b"\0 "):
                element.value = {"DA": b"20240301", "TM": b"101500", "DT": b"20240301101500"}[element.vr]


def _sound_series(corpus: Corpus, settle: _Settled) -> CtSeries:
    written = write_series(corpus.series, shape=SHAPE, spacing_mm=SPACING_MM)
    settle(written.files)
    (series,) = find_series(corpus.series).series
    return series


def _body(
    shape: tuple[int, int, int] = (12, 24, 28), spacing_mm: tuple[float, float, float] = (8, 6, 6)
) -> Volume:
    """A body of fat in air, as the stand-in model looks for."""
    geometry = Geometry.from_parts(shape, spacing_mm, (-80, -70, -40))
    index = np.stack(np.indices(shape), axis=-1) - (np.asarray(shape) - 1) / 2
    body = np.square(index[..., 1:] * spacing_mm[1:] / (60, 75)).sum(axis=-1) < 1
    hu = np.where(body, -90, -1000) + np.indices(shape).sum(axis=0) % 7
    return Volume(hu.astype(np.int16), geometry)


def _sound_scan(corpus: Corpus) -> None:
    scan = _body()
    write_nifti(corpus.scan, scan)
    index = np.indices(scan.array.shape) - np.reshape([6, 12, 14], (3, 1, 1, 1))
    write_nifti(corpus.labels, scan.with_array((np.square(index).sum(axis=0) < 16).astype(np.uint8)))


def _write_model(path: Path) -> None:
    from benchmarks.stand_in import write_stand_in
    from metricunet.training.config import load_config

    smaller = ("segment.crop_mm=[32, 64, 64]", "segment.box_mm=[48, 96, 96]", "segment.slices=3")
    write_stand_in(path, load_config("small", settings=(*TINY_SETTINGS, *smaller)))


def _dicom(folder: Path, settle: _Settled) -> tuple[Seed, ...]:
    found = []

    def add(name: str, files: Iterable[Path]) -> None:
        contents = settle(files)
        found.append(Seed(name, contents, tuple(contents), 1 if name.startswith("JPEG") else 4))

    def swap(k: int, dataset: Dataset) -> None:
        dataset.PixelData = np.frombuffer(dataset.PixelData, "<u2").astype(">u2").tobytes()

    small = {"shape": (4, 8, 10), "spacing_mm": (2.5, 0.9, 1.1)}
    add("explicit", write_series(folder / "explicit", **small).files)  # type: ignore[arg-type]
    for name, syntax in (("implicit", ImplicitVRLittleEndian), ("rle", RLELossless)):
        add(name, write_series(folder / name, transfer_syntax=syntax, **small).files)  # type: ignore[arg-type]
    add("deflated", write_series(folder / "d", transfer_syntax=DeflatedExplicitVRLittleEndian, **small).files)  # type: ignore[arg-type]
    add("big", write_series(folder / "big", transfer_syntax=ExplicitVRBigEndian, edit=swap, **small).files)  # type: ignore[arg-type]
    for kind in ("JPEGLosslessProcess14_1", "JPEGLSLossless", "JPEG2000Lossless"):
        files = write_series(folder / kind, **small).files  # type: ignore[arg-type]
        for path in files:
            _compress(path, kind)
        add(kind, files)
    body = _body()
    add("body", write_series(folder / "body", body.array, spacing_mm=body.spacing_mm).files)
    dose = companion("RTDOSE", "1.2.840.10008.5.1.4.1.1.481.2", Rows=2, Columns=2, PixelData=bytes(8))
    files = write_series(folder / "dose", **small).files  # type: ignore[arg-type]
    dose.BitsAllocated = dose.BitsStored = 16
    dose.PixelRepresentation = 0
    save(folder / "dose" / "dose.dcm", dose)
    add("with a dose", [*files, folder / "dose" / "dose.dcm"])
    return tuple(found)


def _compress(path: Path, kind: str) -> None:
    import gdcm

    reader = gdcm.ImageReader()
    reader.SetFileName(str(path))
    assert reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, kind)))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer = gdcm.ImageWriter()
    writer.SetFileName(str(path))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()


def _structure_sets(folder: Path, series: CtSeries, settle: _Settled) -> tuple[Seed, ...]:
    ours, theirs, bare = folder / "ours.dcm", folder / "theirs.dcm", folder / "bare.dcm"
    chosen = {k: v for k, v in shapes(SHAPE).items() if k in ("lobes", "island")}
    structures = [Structure(name, Volume(mask, series.geometry)) for name, mask in chosen.items()]
    write_rtstruct(ours, series, structures, description="made here")
    origin = series.geometry.origin_mm

    def loop(low: float, high: float, k: int) -> list[float]:
        flat = np.reshape(square(low, high, 0.0), (-1, 3)) + origin + (0, 0, 2.5 * k)
        return [float(v) for v in flat.ravel()]

    def odd(dataset: Dataset) -> None:
        last = dataset.ROIContourSequence[0]
        last.ContourSequence[0].ContourGeometricType = "POINT"
        last.ROIDisplayColor = [255, 0, 10]
        observed = Dataset()
        observed.ObservationNumber, observed.ReferencedROINumber, observed.RTROIInterpretedType = 1, 7, "ORGAN"
        observed.ROIInterpreter = ""
        dataset.RTROIObservationsSequence = [observed]

    rois = [("Prostate", [loop(1, 9, k) for k in range(5)] + [loop(3, 6, 2)]), ("Marker", [loop(2, 3, 1)])]
    rtstruct(theirs, rois, frame=series.frame_of_reference_uid, change=odd)
    rtstruct(bare, [("PTV", [loop(1, 9, 2)]), ("PTV", None)], frame=None, sequence=False)
    scan = {f"ct/{path.name}": path.read_bytes() for path in series.files}
    return tuple(Seed(path.stem, {**settle([path]), **scan}, (path.name,)) for path in (ours, theirs, bare))


def _segmentations(folder: Path, series: CtSeries, settle: _Settled) -> tuple[Seed, ...]:
    binary, fractional, label_map = (folder / f"{kind}.dcm" for kind in ("binary", "fractional", "labelmap"))
    chosen = {k: v for k, v in shapes(SHAPE).items() if k in ("lobes", "island")}
    structures = [Structure(name, Volume(mask, series.geometry), (230, 159, 0)) for name, mask in chosen.items()]
    write_seg(binary, series, structures, description="made here")
    for path, kind in ((fractional, "FRACTIONAL"), (label_map, "LABELMAP")):
        dataset = pydicom.dcmread(binary)
        frames = [np.full(SHAPE[1:], 1 + k % 2, dtype=np.uint8) for k in range(int(dataset.NumberOfFrames))]
        if kind == "LABELMAP":
            dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.66.7"
            dataset.SegmentationType = kind
        else:
            dataset.SegmentationType, dataset.SegmentationFractionalType = kind, "PROBABILITY"
            dataset.MaximumFractionalValue = 2
        dataset.BitsAllocated = dataset.BitsStored = 8
        dataset.HighBit = 7
        dataset.PixelData = np.stack(frames).tobytes()
        dataset.save_as(path)
    return tuple(Seed(path.stem, settle([path]), (path.name,)) for path in (binary, fractional, label_map))


def _registrations(folder: Path, series: CtSeries, settle: _Settled) -> tuple[Seed, ...]:
    path = folder / "reg.dcm"
    dataset = companion("REG", "1.2.840.10008.5.1.4.1.1.66.1", FrameOfReferenceUID="1.2.3.4.5")
    dataset.RegistrationSequence = []
    for uid, shift in (("1.2.3.4.5", 0), (series.frame_of_reference_uid, 3)):
        item, step, part = Dataset(), Dataset(), Dataset()
        item.FrameOfReferenceUID = uid
        part.FrameOfReferenceTransformationMatrixType = "RIGID"
        part.FrameOfReferenceTransformationMatrix = [1, 0, 0, shift, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1]
        step.MatrixSequence = [part]
        item.MatrixRegistrationSequence = [step]
        dataset.RegistrationSequence.append(item)
    save(path, dataset)
    return (Seed("rigid", settle([path]), (path.name,)),)


def _niftis(folder: Path) -> tuple[Seed, ...]:
    folder.mkdir(exist_ok=True)
    small = Volume((np.indices((4, 5, 6)).sum(axis=0) * 97 - 1000).astype(np.int16), Geometry.from_parts(
        (4, 5, 6), (3, 0.9, 1.1), (5, 6, 7)))  # fmt: skip
    volumes = {
        "body": _body(),
        "small": small,
        "float": small.with_array(small.array.astype(np.float32) / 3),
        "double": small.with_array(small.array.astype(np.float64) / 3),
        "labels": small.with_array((small.array > 0).astype(np.uint8)),
        "long": small.with_array(small.array.astype(np.int32)),
    }
    found = []
    for name, volume in volumes.items():
        path = folder / f"{name}.nii"
        write_nifti(path, volume)
        data = path.read_bytes()
        found.append(Seed(name, {"scan.nii": data}, ("scan.nii",)))
        packed = gzip.compress(data, mtime=0)
        found.append(Seed(f"{name} packed", {"scan.nii.gz": packed}, ("scan.nii.gz",)))
    return tuple(found)


def _itks() -> tuple[Seed, ...]:
    scan = _body((5, 10, 12), (8, 14, 14))
    data = scan.array.astype("<i2").tobytes()
    s, r, c = scan.spacing_mm
    x, y, z = scan.geometry.origin_mm
    shape = " ".join(str(n) for n in reversed(scan.array.shape))
    nrrd = (
        f"NRRD0005\n# made here\ntype: short\ndimension: 3\nspace: left-posterior-superior\nsizes: {shape}\n"
        f"space directions: ({c},0,0) (0,{r},0) (0,0,{s})\nkinds: domain domain domain\nendian: little\n"
        f'space units: "mm" "mm" "mm"\nencoding: @\nspace origin: ({x},{y},{z})\n'
    )
    meta = (
        "ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\nCompressedData = @\n"
        f"TransformMatrix = 1 0 0 0 1 0 0 0 1\nOffset = {x} {y} {z}\nCenterOfRotation = 0 0 0\n"
        f"AnatomicalOrientation = RAI\nElementSpacing = {c} {r} {s}\nDimSize = {shape}\nElementType = MET_SHORT\n"
    )

    def seed(name: str, **files: bytes) -> Seed:
        return Seed(
            name, {k.replace("_", "."): v for k, v in files.items()}, tuple(k.replace("_", ".") for k in files)
        )

    return (
        seed("nrrd", scan_nrrd=nrrd.replace("@", "raw").encode() + b"\n" + data),
        seed("nrrd gzip", scan_nrrd=nrrd.replace("@", "gzip").encode() + b"\n" + gzip.compress(data, mtime=0)),
        seed("nrrd bzip2", scan_nrrd=nrrd.replace("@", "bzip2").encode() + b"\n" + bz2.compress(data)),
        seed("nhdr", scan_nhdr=(nrrd.replace("@", "raw") + "data file: scan.raw\n").encode(), scan_raw=data),
        seed("mha", scan_mha=(meta.replace("@", "False") + "ElementDataFile = LOCAL\n").encode() + data),
        seed("mha zlib", scan_mha=(meta.replace("@", "True") + "ElementDataFile = LOCAL\n").encode()
             + zlib.compress(data)),
        seed("mhd", scan_mhd=(meta.replace("@", "False") + "ElementDataFile = scan.raw\n").encode(),
             scan_raw=data),
    )  # fmt: skip


def _configurations() -> tuple[Seed, ...]:
    from metricunet.training.config import dump_config, load_config

    root = Path(__file__).parents[2]
    studies = [
        Seed(path.stem, {"study.yaml": path.read_bytes()}, ("study.yaml",))
        for path in sorted((root / "studies").glob("*.yaml"))
    ]
    text = dump_config(load_config("small", settings=TINY_SETTINGS)).encode()
    return (Seed("config", {"config.yaml": text}, ("config.yaml",)), *studies)


def _cohorts(corpus: Corpus) -> tuple[Seed, ...]:
    """A cohort of three cases whose JSON files are damaged, and a folder of predictions with a verdict."""
    image, label = corpus.scan.read_bytes(), corpus.labels.read_bytes()
    names = ("a", "b", "c")
    dataset = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "prostate": 1, "bladder": 2, "ignore": 3},
        "numTraining": 3,
        "file_ending": ".nii",
        "trained_on": "synthetic",
    }
    splits = [{"train": ["a", "b"], "val": ["c"]}, {"train": ["a", "c"], "val": ["b"]}]
    files = {
        "dataset.json": json.dumps(dataset).encode(),
        "splits.json": json.dumps(splits).encode(),
        "patients.json": json.dumps({"a": "1", "b": "2", "c": "3"}).encode(),
    }
    victims = tuple(files)
    for name in names:
        files[f"imagesTr/{name}_0000.nii"] = image
        files[f"labelsTr/{name}.nii"] = label
    quality = {
        "case": "a",
        "localisation": {"status": "found", "confidence": 0.9, "reason": "one candidate"},
        "verdict": "review",
        "reasons": ["the model was trained on synthetic scans only"],
        "structures": {"prostate": {"volume_ml": 20.0, "centre_mm": [0, 0, 0], "cropped": False}},
    }
    predicted = {"predicted/a.nii": label, "predicted/a.quality.json": json.dumps(quality).encode()}
    return (
        Seed("cohort", files, victims),
        Seed("verdict", {**files, **predicted}, ("predicted/a.quality.json", *victims)),
    )


def real_seeds() -> dict[str, tuple[Seed, ...]]:
    """Small real files, by target, where they are wanted. They are only read."""
    folder = os.environ.get(REAL_FILES)
    found: dict[str, list[Seed]] = {}
    if folder:
        for path in sorted(Path(folder).rglob("*")):
            if not path.is_file() or path.stat().st_size > LARGEST_REAL:
                continue
            name = path.name.lower()
            if name.endswith((".nii", ".nii.gz")):
                target = "nifti"
            elif name.endswith(".dcm") and (modality := _modality(path)) in ("RTSTRUCT", "SEG", "REG"):
                target = {"RTSTRUCT": "rtstruct", "SEG": "seg", "REG": "registration"}[modality]
            else:
                continue
            known = found.setdefault(target, [])
            suffix = ".nii.gz" if name.endswith(".gz") else path.suffix
            if len(known) < 6:
                known.append(Seed(f"real {len(known)}", {f"real{suffix}": path.read_bytes()}, (f"real{suffix}",)))
    return {target: tuple(seeds) for target, seeds in found.items()}


def _modality(path: Path) -> str:
    try:
        return str(pydicom.dcmread(path, specific_tags=["Modality"], stop_before_pixels=True).get("Modality", ""))
    except (pydicom.errors.InvalidDicomError, OSError, ValueError, EOFError):
        return ""
