"""DICOM segmentations out.

One binary segment for each structure, on the very slices of the scan that it was made from.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as DicomSequence
from pydicom.uid import UID, generate_uid

from metricunet import __version__
from metricunet.errors import InputError
from metricunet.files.atomic import written_whole
from metricunet.files.dicom.codes import ANATOMICAL_STRUCTURE, Code, code_of
from metricunet.files.dicom.identity import RANDOM, Identity
from metricunet.files.dicom.patient import patient_and_study
from metricunet.files.dicom.series import CtSeries
from metricunet.files.dicom.slice import CT_IMAGE
from metricunet.files.rtstruct.character_set import set_character_set
from metricunet.files.rtstruct.dicom_items import LONG_STRING, file_items
from metricunet.files.rtstruct.outlines import Structure
from metricunet.volume import Volume

if TYPE_CHECKING:
    from highdicom.seg import SegmentDescription
    from pydicom.sr.coding import Code as Concept

MARK = "Machine-made, not reviewed"
#: The same where nobody knows who drew it.
CONVERTED_MARK = "Converted, origin not stated"


def write_seg(
    path: Path,
    series: CtSeries,
    structures: Sequence[Structure],
    *,
    description: str,
    content: str = MARK,
    identity: Identity = RANDOM,
) -> tuple[str, ...]:
    """Write masks on a CT series' grid as a DICOM segmentation, whole or not at all.

    A segment is binary; frames without a voxel of it are left out, as the standard allows, and mean an empty
    slice. A structure without any voxel cannot be a segment: it is left out.

    Args:
        path: the file to write.
        series: the scan; patient, study and references are taken from its headers.
        structures: each with a name of its own; at least one mask must not be empty.
        description: goes into each segment's description and ought to say how the masks were made.
        content: what the segmentation as a whole is described as, at most 64 characters.
        identity: where the segmentation's UIDs come from, and its date and time; random and now by default.

    Returns:
        The names of structures that were left out because their mask is empty.

    Raises:
        InputError: no structure or only empty masks, a mask on another grid, a name that is empty, too long
            or taken, a colour that is none, slices that are tilted, or a file that cannot be written.
    """
    series.check_planes()
    _check_structures(path, series, structures)
    planes = [series.on_slices(s.inside(series.geometry)).any(axis=(1, 2)) for s in structures]
    filled = [structure for structure, plane in zip(structures, planes, strict=True) if plane.any()]
    if not filled:
        raise InputError(f"{path}: no structure has a voxel; a segmentation needs at least one that is not empty")
    used = np.flatnonzero(np.any(planes, axis=0)).tolist()
    masks = _pixels(series, used, filled)
    with warnings.catch_warnings():
        # Patient data are copied as they stand, odd as they may be, so that they match those of the scan.
        warnings.simplefilter("ignore")
        dataset = _segmentation(series, used, masks, filled, description, content, identity)
        with written_whole(path) as temporary:
            dataset.save_as(temporary, enforce_file_format=True)
    return tuple(structure.name for structure in structures if structure not in filled)


def write_fractional_seg(
    path: Path,
    series: CtSeries,
    structures: Sequence[Structure],
    probabilities: Iterable[Volume],
    *,
    description: str,
    content: str = MARK,
    identity: Identity = RANDOM,
) -> None:
    """Write probabilities on a CT series' grid as a fractional DICOM segmentation, whole or not at all.

    Values are stored in steps of 1/255. Slices on which all of a structure's are 0 are left out.

    Args:
        path: the file to write.
        series: the scan; patient, study and references are taken from its headers.
        structures: each with a name of its own. Their masks say nothing here.
        probabilities: of the structures, from 0 to 1, on the series' grid.
        description: as in `write_seg`.
        content: as in `write_seg`.
        identity: as in `write_seg`.

    Raises:
        InputError: as `write_seg`; it counts as a voxel where a probability is not 0.
    """
    series.check_planes()
    _check_structures(path, series, structures)
    found: list[dict[int, NDArray[np.uint8]]] = []  # of each structure its slices, in steps; no whole scan is kept
    for volume in probabilities:
        planes = enumerate(series.on_slices(volume.array))
        found.append({k: steps for k, plane in planes if (steps := np.rint(plane * 255).astype(np.uint8)).any()})
    used = sorted(set().union(*found))
    if not used:
        raise InputError(f"{path}: no probability differs from 0; a segmentation needs at least one that does")
    shares = np.zeros((len(found), len(used), *series.geometry.shape[1:]), dtype=np.float32)
    for share, slices in zip(shares, found, strict=True):
        for number, k in enumerate(used):
            if k in slices:
                share[number] = slices[k] / np.float32(255)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as above
        pixels = np.moveaxis(shares, 0, -1)
        dataset = _segmentation(series, used, pixels, structures, description, content, identity, fractional=True)
        with written_whole(path) as temporary:
            dataset.save_as(temporary, enforce_file_format=True)


def _pixels(series: CtSeries, used: Sequence[int], structures: Sequence[Structure]) -> NDArray[Any]:
    """Return the slices `used` as highdicom takes them.

    One label map [slice, row, column] of segment numbers, which takes little memory, or where structures overlap a
    mask of each [slice, row, column, structure].
    """
    labels = np.zeros((len(used), *series.geometry.shape[1:]), dtype=np.uint16)
    for number, structure in enumerate(structures, start=1):
        inside = series.on_slices(structure.inside(series.geometry))[used]
        if labels[inside].any():
            break
        labels[inside] = number
    else:
        return labels
    arrays = (series.on_slices(s.inside(series.geometry))[used] for s in structures)
    # Each mask stays whole in memory, although its axis is the last: highdicom sums over them.
    masks = np.empty((len(structures), *labels.shape), dtype=bool)
    for mask, array in zip(masks, arrays, strict=True):
        mask[...] = array
    return np.moveaxis(masks, 0, -1)


def _check_structures(path: Path, series: CtSeries, structures: Sequence[Structure]) -> None:
    taken: set[str] = set()
    for structure in structures:
        at = f"{path}: structure '{structure.name}'"
        name = structure.name.strip()
        if not 0 < len(name) <= LONG_STRING or "\\" in name or not name.isprintable():
            raise InputError(f"{at}: a name has 1 to {LONG_STRING} printable characters and no backslash")
        if name.casefold() in taken:
            raise InputError(f"{at}: the name is given twice; rename one")
        taken.add(name.casefold())
        if not all(0 <= value <= 255 for value in structure.colour):
            raise InputError(f"{at}: colour {structure.colour}, expected three values from 0 to 255")
        if not structure.lies_on(series.geometry):
            raise InputError(f"{at}: its mask is not on the grid of series {series.series_uid}; resample it first")


def _segmentation(
    series: CtSeries,
    used: Sequence[int],
    masks: NDArray[Any],
    structures: Sequence[Structure],
    description: str,
    content: str,
    identity: Identity,
    fractional: bool = False,
) -> Dataset:
    """Build the data set of masks, see `_pixels`, or of probabilities, on the series' slices `used`."""
    # highdicom takes most of a second to import.
    from highdicom.seg import Segmentation, SegmentationTypeValues

    texts = [description, *(structure.text for structure in structures)]
    kind = "fractional segmentation" if fractional else "segmentation"
    dataset: Dataset = Segmentation(
        source_images=[_source(series, k) for k in used],
        pixel_array=masks,
        segmentation_type=SegmentationTypeValues.FRACTIONAL if fractional else SegmentationTypeValues.BINARY,
        segment_descriptions=[_segment(n, s, description, identity) for n, s in enumerate(structures, start=1)],
        series_instance_uid=identity.uid(kind, "series"),
        series_number=1,
        sop_instance_uid=identity.uid(kind),
        instance_number=1,
        manufacturer="metricunet",
        manufacturer_model_name="metricunet",
        software_versions=__version__,
        device_serial_number="none",
        content_label="METRICUNET_AUTO" if all(s.automatic for s in structures) else "CONVERTED",
        content_description=content if all(s.automatic for s in structures) else CONVERTED_MARK,
        # Set below: highdicom refuses what the standard's list of character sets does not hold as one value.
        specific_character_set=None,
    )
    for element in patient_and_study(series.header):
        dataset.add(element)
    set_character_set(dataset, series.header, texts)
    _refer_to_frames(dataset, series, used)
    mark = MARK if all(structure.automatic for structure in structures) else CONVERTED_MARK
    dataset.SeriesDescription = f"Segmentation. {mark}"
    dataset.ContentCreatorName = ""
    # highdicom draws it; a repeat must be the same object in all its parts.
    dimension = identity.uid("segmentation", "dimensions")
    for item in (*dataset.DimensionOrganizationSequence, *dataset.DimensionIndexSequence):
        item.DimensionOrganizationUID = dimension
    moment = identity.moment()
    for item in dataset.get("ContributingEquipmentSequence", []):
        item.ContributionDateTime = moment.strftime("%Y%m%d%H%M%S")
    for event in ("InstanceCreation", "Content", "Series"):
        setattr(dataset, f"{event}Date", moment.strftime("%Y%m%d"))
        setattr(dataset, f"{event}Time", moment.strftime("%H%M%S"))
    return dataset


def _source(series: CtSeries, k: int) -> Dataset:
    """What a segmentation must know of slice k, as if it were a file of its own."""
    header = series.slices[k]
    # Whose it is comes later, as it stands: highdicom refuses names that hold a backslash, as many do in Big5 and
    # Shift JIS where no character set is stated.
    source = patient_and_study(Dataset())
    source.SOPClassUID = CT_IMAGE
    source.SOPInstanceUID = series.sop_uids[k] if header.frame is None else _stand_in(series.sop_uids[k], k)
    source.SeriesInstanceUID = series.series_uid
    source.StudyInstanceUID = series.study_uid
    source.FrameOfReferenceUID = series.frame_of_reference_uid
    source.PositionReferenceIndicator = series.header.get("PositionReferenceIndicator", "")
    source.Modality = "CT"
    source.Rows, source.Columns = header.rows, header.columns
    source.ImagePositionPatient = _decimals(header.position_mm)
    # One orientation and one spacing for all frames: the slices' own may differ by rounding.
    source.ImageOrientationPatient = _decimals(series.slices[0].orientation.ravel())
    source.PixelSpacing = _decimals(series.slices[0].pixel_spacing_mm)
    (source.SliceThickness,) = _decimals([series.geometry.spacing_mm[0]])
    if series.resampling is None:  # else they lie unevenly
        source.SpacingBetweenSlices = source.SliceThickness
    for keyword in ("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod"):
        if keyword in series.header:
            source.add(series.header[keyword])
    return source


def _stand_in(sop_uid: str, k: int) -> UID:
    """An identifier for one frame, which has none of its own."""
    return generate_uid(entropy_srcs=[sop_uid, str(k)])


def _refer_to_frames(dataset: Dataset, series: CtSeries, used: Sequence[int]) -> None:
    """Let a segmentation of frames, made as if each were a file, refer to the frames of their file."""
    slices = {_stand_in(series.sop_uids[k], k): k for k in used if series.frames[k] is not None}
    if not slices:
        return
    for group in dataset.PerFrameFunctionalGroupsSequence:
        for derivation in group.DerivationImageSequence:
            for source in derivation.SourceImageSequence:
                k = slices[source.ReferencedSOPInstanceUID]
                source.ReferencedSOPClassUID = series.header.SOPClassUID
                source.ReferencedSOPInstanceUID = series.sop_uids[k]
                source.ReferencedFrameNumber = series.frames[k]
    dataset.SourceImageSequence = DicomSequence(file_items(series))
    dataset.ReferencedSeriesSequence[0].ReferencedInstanceSequence = DicomSequence(file_items(series))


def _decimals(values: Any) -> list[str]:
    """Number strings of at most 16 characters, to the nanometre or better."""
    return [text if len(text := repr(float(value))) <= 16 else f"{value:.9f}"[:16] for value in values]


def _segment(number: int, structure: Structure, description: str, identity: Identity) -> SegmentDescription:
    from highdicom import AlgorithmIdentificationSequence
    from highdicom.color import CIELabColor
    from highdicom.seg import SegmentAlgorithmTypeValues, SegmentDescription
    from pydicom.sr.codedict import codes

    kind = structure.code or code_of(structure.name) or ANATOMICAL_STRUCTURE
    automatic = structure.automatic
    segment = SegmentDescription(
        segment_number=number,
        segment_label=structure.name.strip(),
        segmented_property_category=_concept(ANATOMICAL_STRUCTURE),
        segmented_property_type=_concept(kind),
        # DICOM has no word for an origin that nobody knows. What was converted is not called automatic, lest
        # contours of people be taken for those of a program; nor manual, lest it be trusted.
        algorithm_type=getattr(SegmentAlgorithmTypeValues, "AUTOMATIC" if automatic else "SEMIAUTOMATIC"),
        algorithm_identification=AlgorithmIdentificationSequence(
            name="metricunet" if automatic else "metricunet convert, origin not stated",
            family=codes.DCM.ArtificialIntelligence if automatic else codes.DCM.ManualProcessing,
            version=__version__,
        ),
        tracking_id=structure.name.strip(),
        tracking_uid=identity.uid("segmentation", "segment", str(number)),
        display_color=CIELabColor.from_rgb(*structure.colour),
    )
    segment.SegmentDescription = " ".join(text for text in (structure.description, description) if text)
    if kind.side is not None:
        side = DicomSequence([kind.side.item()])
        segment.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = side
    return segment


def _concept(code: Code) -> Concept:
    from pydicom.sr.coding import Code as Concept

    return Concept(code.value, code.scheme, code.meaning)
