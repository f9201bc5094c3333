"""Which prediction belongs to which reference, and which image and quality verdict to both.

A case is the name of its reference file without suffix. Its prediction has the same name; beside that may lie
`CASE.quality.json`, which the predictor writes for every case, also where it found no gland and wrote no mask.

Structure sets and segmentations are named after anything: their case is that of the series that they were drawn
on, as the predictor calls it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from metricunet.cohort.contoured import CONTOURED_NAME, read_not_contoured
from metricunet.cohort.importing.names_file import NamesFile
from metricunet.cohort.layout import CHANNEL_SUFFIX, read_dataset_json
from metricunet.errors import InputError, argument
from metricunet.evaluation.contour_files import (
    CaseScan,
    ContourFile,
    SeriesFinder,
    contour_files_below,
    contour_kind,
    contour_stem,
    read_contour_file,
    spelled,
)
from metricunet.evaluation.naming import NamedCase, Naming, choose_structures, counted_names
from metricunet.files import slicer
from metricunet.files.json_file import read_json
from metricunet.files.reviews import QUALITY_SUFFIX, is_kept_apart
from metricunet.files.scan import SCAN_SUFFIXES, case_name, is_scan

#: The folders of a cohort that hold references, and where their images are.
IMAGES_OF = {"labelsTr": "imagesTr", "labelsTs": "imagesTs"}
#: What a lone label is called where no dataset.json names it.
DEFAULT_LABELS = {"prostate": 1}


@dataclass(frozen=True)
class RecordedQuality:
    """What the predictor said of its own result; None or empty where it said nothing.

    Attributes:
        labels: structure to its value in the mask.
    """

    verdict: str | None = None
    reasons: tuple[str, ...] = ()
    localisation_status: str | None = None
    localisation_confidence: float | None = None
    localisation_reason: str | None = None
    labels: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class CasePair:
    """The files of one case. `prediction` is None where no mask was written.

    Attributes:
        case: its name.
        reference, prediction: label maps, structure sets or segmentations.
        image: a file of the scan, for pictures.
        quality: the predictor's verdict.
        scan: the scan on whose grid the case is measured; None for two label maps without one.
        drawn: what those of the two files say that are DICOM, by their paths.
    """

    case: str
    reference: Path
    prediction: Path | None
    image: Path | None
    quality: Path | None
    scan: CaseScan | None = None
    drawn: Mapping[Path, ContourFile] = field(default_factory=dict)


@dataclass(frozen=True)
class LabelMaps:
    """What the values of one side's label maps mean.

    Attributes:
        labels: structure name to value, as in dataset.json.
        ignore: value of voxels that nobody contoured, or None.
        not_contoured: case to structures that its label map says nothing of.
        files: the dataset.json and contoured.json that this was read from.
        named_in: the file that names them, or would; None for the dataset.json beside the references.
    """

    labels: dict[str, int]
    ignore: int | None = None
    not_contoured: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    files: tuple[Path, ...] = ()
    named_in: Path | None = None

    def as_stated(self, own: Mapping[str, int], naming: Naming, stated_in: Path | None = None) -> LabelMaps:
        """Return what the values of one label map mean, which its header states, or a predictor beside it.

        What they state counts before a dataset.json. A value whose name the names file does not know keeps the
        name that it has here.

        Args:
            own: structure to value, as it is stated; empty where nobody did.
            naming: which names are one.
            stated_in: the file that states it.
        """
        if not own:
            return self
        here = {value: name for name, value in self.labels.items() if name not in own}
        labels = {}
        for name, value in own.items():
            known = naming.structure_of(name) is not None or naming.ignores(name)
            labels[name if known else here.get(value, name)] = value
        return replace(self, labels=labels, ignore=None, named_in=stated_in)


@dataclass(frozen=True)
class Matching:
    """All cases in the order of their names, and what their structures are called.

    Attributes:
        pairs: one for each reference.
        unmatched: names of predictions that have no reference.
        structures: name of each structure that is compared, to what `naming` calls it.
        labels: name of each structure to its value in label maps and pictures.
        prediction_maps, reference_maps: what the values of label maps mean.
        naming: which names of the two sides are one.
        notes: sentences on the names that are not compared.
        faults: the name of each file that could not be read, and why.
        unread: those of them that are predictions.
    """

    pairs: tuple[CasePair, ...]
    unmatched: tuple[str, ...]
    structures: dict[str, str]
    labels: dict[str, int]
    prediction_maps: LabelMaps
    reference_maps: LabelMaps
    naming: Naming
    notes: tuple[str, ...] = ()
    faults: tuple[tuple[str, InputError], ...] = ()
    unread: tuple[str, ...] = ()

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file that is read, once."""
        of_cases = (
            f for p in self.pairs for f in (p.reference, p.prediction, p.image, p.quality) if f is not None
        )
        scans = (p.scan.path for p in self.pairs if p.scan is not None and p.scan.series is None)
        return tuple(dict.fromkeys((*self.reference_maps.files, *self.prediction_maps.files, *of_cases, *scans)))


def match_cases(
    predictions: Path,
    references: Path,
    images: Path | None = None,
    *,
    scan: Path | None = None,
    names: NamesFile | None = None,
) -> Matching:
    """Pair predictions with references by their names; two single files are a pair whatever their names.

    Args:
        predictions: a folder with CASE.nii.gz, or one such file. In a folder without a label map, its structure
            sets are taken, or else its segmentations; subfolders included. Either may also be a single file.
        references: a folder with CASE.nii.gz, one such file, or a cohort. Of a cohort, those of labelsTr and
            labelsTs count in which some case was predicted. Structure sets and segmentations as for predictions.
        images: a folder with CASE_0000.nii.gz or CASE.nii.gz, or one such file (of any name if there is one
            case). Default: the imagesTr or imagesTs beside the reference's labelsTr or labelsTs, if there is.
        scan: the scans on whose grids all is measured: a folder of DICOM series, one slice of a series, or files
            as for `images`. Structure sets and segmentations need it, and need DICOM.
        names: which spellings of a name mean which structure.

    Raises:
        InputError: if a path is missing, a case occurs twice, or nothing matches; if structure sets or
            segmentations lack their scan.
    """
    finder = None if scan is None else SeriesFinder.at(scan)
    predicted = _files_by_case(predictions, "prediction", finder, scan)
    # A verdict without a mask is a prediction too: of an absent gland.
    attempted = predicted.cases.keys() | _verdicts(predictions)
    if references.is_dir():
        found = _references_in(references, attempted, finder, scan)
        found, predicted = _named_alike(found, predicted)
        attempted = predicted.cases.keys() | _verdicts(predictions)
        wanted, folder = found.cases, references
        if not predictions.is_dir():
            wanted = {case: path for case, path in wanted.items() if case in attempted}
    else:
        found = _files_by_case(references, "reference", finder, scan)
        if predictions.is_dir():
            found, predicted = _named_alike(found, predicted)
        wanted, folder = found.cases, references.parent
        if not predictions.is_dir():
            predicted = replace(predicted, cases=dict.fromkeys(wanted, predictions))
            attempted = set(wanted)
    if not wanted.keys() & attempted:
        raise InputError(
            f"{predictions}: no prediction has the name of a reference in {references} "
            f"(predictions: {_some(attempted)}; references: {_some(wanted)}); "
            "expected CASE.nii.gz in both"
        )
    drawn = {**predicted.drawn, **found.drawn}
    pairs = tuple(
        CasePair(
            case=case,
            reference=wanted[case],
            prediction=predicted.cases.get(case),
            image=_image_of(case, wanted[case], images, alone=len(wanted) == 1),
            quality=_quality_of(case, predictions, predicted.cases.get(case)),
            scan=_scan_of(case, wanted[case], predicted.cases.get(case), drawn, finder, scan, len(wanted) == 1),
            drawn={p: drawn[p] for p in (wanted[case], predicted.cases.get(case)) if p is not None and p in drawn},
        )
        for case in sorted(wanted)
    )
    if images is not None and not any(pair.image for pair in pairs):
        there = "holds the image of none of the cases" if images.exists() else "no such file or folder"
        raise InputError(f"{images}: {there}; expected {pairs[0].case}{CHANNEL_SUFFIX}.nii.gz there")
    of_references = _label_maps(folder, names)
    both_are_maps = not any(pair.drawn for pair in pairs)
    own = predictions if predictions.is_dir() else predictions.parent
    of_predictions = of_references if both_are_maps else _label_maps(own, names)
    naming = Naming(names, exact=both_are_maps)
    notes: tuple[str, ...] = ()
    if both_are_maps and names is None:
        structures, labels = {name: name for name in of_references.labels}, of_references.labels
    else:
        structures, notes = _chosen(pairs, of_predictions, of_references, naming, (predictions, references))
        labels = {name: value for value, name in enumerate(structures, start=1)}
    return Matching(
        pairs,
        tuple(sorted(predicted.cases.keys() - wanted.keys())),
        structures,
        labels,
        of_predictions,
        of_references,
        naming,
        notes,
        (*predicted.faults, *found.faults),
        tuple(name for name, _ in predicted.faults),
    )


def _scan_of(
    case: str,
    reference: Path,
    prediction: Path | None,
    drawn: Mapping[Path, ContourFile],
    finder: SeriesFinder | None,
    scan: Path | None,
    alone: bool,
) -> CaseScan | None:
    """Return the scan of a case, if scans are given.

    Raises:
        InputError: there is none for the case, or its two sides were drawn on two scans.
    """
    if scan is None:
        return None
    if finder is None:
        path = _image_of(case, reference, scan, alone)
        if path is None:
            raise InputError(f"{scan}: holds no scan of case {case}; expected {case}{CHANNEL_SUFFIX}.nii.gz there")
        return CaseScan(path)
    files = [drawn[path] for path in (reference, prediction) if path is not None and path in drawn]
    found = finder.of_files(files) if files else finder.of_case(case)
    if found is None:
        known = _some(one.case for one in finder.search.series)
        raise InputError(
            f"{scan}: holds no series of case {case} (its series are called {known}); give the scan of this case "
            "alone, or name masks after the series"
        )
    return CaseScan(found.folder, found)


def _label_maps(folder: Path, names: NamesFile | None) -> LabelMaps:
    """Return what values mean: by dataset.json, else by the values that a names file spells."""
    values = {} if names is None else spelled([s for own in names.structures.values() for s in own])
    labels, ignore, not_contoured = labels_beside(folder, values or DEFAULT_LABELS)
    described = _described(folder)
    files = () if described is None else (described / "dataset.json", described / CONTOURED_NAME)
    there = tuple(path for path in files if path.is_file())
    return LabelMaps(labels, ignore, not_contoured, there, (described or folder) / "dataset.json")


def _chosen(
    pairs: Sequence[CasePair],
    of_predictions: LabelMaps,
    of_references: LabelMaps,
    naming: Naming,
    sides: tuple[Path, Path],
) -> tuple[dict[str, str], tuple[str, ...]]:
    def names(pair: CasePair, path: Path | None, maps: LabelMaps, predicted: bool) -> tuple[str, ...]:
        if path is None:
            return ()
        if path in pair.drawn:
            return counted_names(pair.drawn[path].names, naming, predicted)
        # Two label maps have the names of the references.
        own = {} if naming.exact else _stated(path, pair.quality if predicted else None)
        return tuple(maps.as_stated(own, naming).labels)

    cases = [
        NamedCase(
            known_as(pair.case, pair.scan),
            names(pair, pair.prediction, of_predictions, True),
            names(pair, pair.reference, of_references, False),
        )
        for pair in pairs
    ]
    of_maps = [
        *(case.reference for case, pair in zip(cases, pairs, strict=True) if pair.reference not in pair.drawn),
        *(case.prediction for case, pair in zip(cases, pairs, strict=True) if pair.prediction not in pair.drawn),
    ]
    titles = dict.fromkeys(name for names_of_case in of_maps for name in names_of_case)
    chosen = choose_structures(naming, cases, titles, (str(sides[0]), str(sides[1])))
    return chosen.keys, chosen.notes


def own_labels(path: Path, quality: Path | None) -> Mapping[str, int]:
    """Return what the values of a label map mean by its own header, else by the predictor's verdict beside it.

    Args:
        path: the label map.
        quality: the verdict; None where there is none, or it speaks of another file.

    Raises:
        InputError: as `read_quality` and `metricunet.files.slicer.segments`.
    """
    return slicer.stated_names(path) or read_quality(quality).labels


def _stated(path: Path, quality: Path | None) -> Mapping[str, int]:
    """Return a label map's own values; nothing where they cannot be read, which costs that case alone."""
    try:
        return own_labels(path, quality)
    except InputError:
        return {}


def known_as(case: str, scan: CaseScan | None) -> tuple[str, ...]:
    """Return the names by which a names file may mean a case."""
    return (case,) if scan is None or scan.series is None else (case, scan.series.case, scan.series.series_uid)


def read_quality(path: Path | None) -> RecordedQuality:
    """Read a verdict file; no file says nothing.

    Raises:
        InputError: if the file is not JSON or a field is not of its kind.
    """
    if path is None:
        return RecordedQuality()
    content = _typed(path, "the file", read_json(path, "; predict the case again"), dict)
    localisation = _typed(path, "localisation", content.get("localisation") or {}, dict)
    confidence = _typed(path, "localisation.confidence", localisation.get("confidence"), int | float | None)
    return RecordedQuality(
        verdict=_typed(path, "verdict", content.get("verdict"), str | None),
        reasons=tuple(str(r) for r in _typed(path, "reasons", content.get("reasons") or [], list)),
        localisation_status=_typed(path, "localisation.status", localisation.get("status"), str | None),
        localisation_confidence=None if confidence is None else float(confidence),
        localisation_reason=_typed(path, "localisation.reason", localisation.get("reason"), str | None),
        labels={
            str(name): _typed(path, f"labels.{name}", value, int)
            for name, value in _typed(path, "labels", content.get("labels") or {}, dict).items()
        },
    )


def _typed(path: Path, field: str, value: Any, kind: Any) -> Any:
    if not isinstance(value, kind):
        expected = getattr(kind, "__name__", str(kind))
        raise InputError(f"{path}: {field} is {type(value).__name__}, expected {expected}; predict the case again")
    return value


@dataclass(frozen=True)
class _Found:
    """The files of one side.

    Attributes:
        cases: case to file.
        drawn: what those files say that are structure sets or segmentations.
        faults: the name of each file that cannot be used, and why.
    """

    cases: dict[str, Path]
    drawn: dict[Path, ContourFile] = field(default_factory=dict)
    faults: tuple[tuple[str, InputError], ...] = ()


def _files_by_case(source: Path, what: str, finder: SeriesFinder | None, scan: Path | None) -> _Found:
    """Return the files of a folder, or one file."""
    if source.is_file():
        if is_scan(source):
            return _Found({slicer.map_name(source): source})
        kind = contour_kind(source)
        if kind is None:
            raise InputError(
                f"{source}: the {what} is not named {', '.join(SCAN_SUFFIXES)}, and is no DICOM structure set or "
                "segmentation; expected such a file"
            )
        file = read_contour_file(source, kind)
        return _Found({_finder_for(source, finder, scan).of_file(file).case: source}, {source: file})
    if not source.is_dir():
        raise InputError(f"{source}: no such file or folder; expected the {what}s, CASE.nii.gz each")
    found: dict[str, Path] = {}
    maps = [
        path
        for path in sorted(source.iterdir())
        if not path.name.startswith(".") and is_scan(path) and path.is_file() and not is_kept_apart(path)
    ]
    there = {case_name(path) for path in maps}
    for path in maps:
        # A segmentation of 3D Slicer is of the case without .seg. Beside a prediction of that case it is none.
        name = slicer.map_name(path)
        case = case_name(path) if what == "prediction" and name in there else name
        if case in found:
            raise InputError(f"{path}: case {case} occurs twice, see {found[case].name}; remove one of them")
        found[case] = path
    if found or any((source / name).is_dir() for name in IMAGES_OF):
        return _Found(found)
    files, damaged = contour_files_below(source)
    return _drawn_by_case(sorted([*files, *damaged]) if files else [], finder, scan)


def _drawn_by_case(paths: Sequence[Path], finder: SeriesFinder | None, scan: Path | None) -> _Found:
    """Read of which case each of several structure sets or segmentations is. A damaged one costs no other."""
    found: dict[str, Path] = {}
    drawn: dict[Path, ContourFile] = {}
    faults: list[tuple[str, InputError]] = []
    for path in paths:
        finder = _finder_for(path, finder, scan)
        try:
            kind = contour_kind(path)
            assert kind is not None  # it was found as one, or says that it is damaged
            file = read_contour_file(path, kind)
            case = finder.of_file(file).case
        except InputError as error:
            faults.append((contour_stem(path), error))
            continue
        if case in found:
            raise InputError(
                f"{path}: was drawn on the series that {found[case]} was drawn on, and a case has one prediction "
                "and one reference; keep one of the two there, or name a single file"
            )
        found[case], drawn[path] = path, file
    if faults and not found:
        raise faults[0][1]
    return _Found(found, drawn, tuple(faults))


def _finder_for(path: Path, finder: SeriesFinder | None, scan: Path | None) -> SeriesFinder:
    if finder is None:
        given = "" if scan is None else f", and {scan} is no DICOM"
        raise InputError(
            f"{path}: is a DICOM structure set or segmentation, whose contours lie on a scan{given}; give the "
            f"folder of the DICOM series that it was drawn on by {argument('scan')}"
        )
    return finder


def _named_alike(references: _Found, predictions: _Found) -> tuple[_Found, _Found]:
    """Let label maps on one side meet structure sets on the other that have their names, without the ending."""

    def renamed(side: _Found, other: _Found) -> _Found:
        cases = {}
        for case, path in side.cases.items():
            stem = contour_stem(path)
            meets = path in side.drawn and case not in other.cases and stem in other.cases
            cases[stem if meets else case] = path
        return replace(side, cases=cases)

    return renamed(references, predictions), renamed(predictions, references)


def _references_in(folder: Path, attempted: set[str], finder: SeriesFinder | None, scan: Path | None) -> _Found:
    """Return the references of a folder; of a cohort, those of each split in which a case was predicted."""
    own = _files_by_case(folder, "reference", finder, scan)
    names = [name for name in IMAGES_OF if (folder / name).is_dir()]
    if own.cases or not names:
        return own
    splits = [_files_by_case(folder / name, "reference", finder, scan).cases for name in names]
    found: dict[str, Path] = {}
    for split in splits:
        for case in sorted(split.keys() & found.keys()):
            raise InputError(
                f"{split[case]}: case {case} is also at {found[case]}; name one of the two folders as references"
            )
        found |= split
    chosen = [split for split in splits if split.keys() & attempted]
    return _Found({case: path for split in (chosen or splits) for case, path in split.items()})


def _verdicts(predictions: Path) -> set[str]:
    if not predictions.is_dir():
        return set()
    return {p.name[: -len(QUALITY_SUFFIX)] for p in predictions.glob(f"*{QUALITY_SUFFIX}")}


def quality_beside(prediction: Path, folder: Path | None = None) -> Path | None:
    """Return the verdict file that a predictor wrote beside a label map, structure set or segmentation.

    Args:
        prediction: the file.
        folder: where to look; by default beside the file.
    """
    name = case_name(prediction) if is_scan(prediction) else contour_stem(prediction)
    path = (folder or prediction.parent) / f"{name}{QUALITY_SUFFIX}"
    return path if path.is_file() else None


def _quality_of(case: str, predictions: Path, prediction: Path | None) -> Path | None:
    folder = predictions if predictions.is_dir() else predictions.parent
    if prediction is not None:
        return quality_beside(prediction, folder)
    path = folder / f"{case}{QUALITY_SUFFIX}"
    return path if path.is_file() else None


def _image_of(case: str, reference: Path, images: Path | None, alone: bool) -> Path | None:
    folder = images
    if folder is None and reference.absolute().parent.name in IMAGES_OF:
        labels = reference.absolute().parent
        folder = labels.parent / IMAGES_OF[labels.name]
    if folder is None:
        return None
    if folder.is_file():
        return folder if alone or case_name(folder).removesuffix(CHANNEL_SUFFIX) == case else None
    for name in (f"{case}{CHANNEL_SUFFIX}", case):
        for suffix in SCAN_SUFFIXES:
            if (folder / f"{name}{suffix}").is_file():
                return folder / f"{name}{suffix}"
    return None


def labels_beside(
    folder: Path, otherwise: Mapping[str, int] = DEFAULT_LABELS
) -> tuple[dict[str, int], int | None, dict[str, tuple[str, ...]]]:
    """Return the structures that dataset.json names, in the references' folder or the one above.

    Args:
        folder: of the references.
        otherwise: the structures where there is no dataset.json.

    Returns:
        Structure to value, the value of ignored voxels, and case to structures that were not contoured
        (contoured.json).
    """
    source = _described(folder)
    if source is None:
        return dict(otherwise), None, {}
    info = read_dataset_json(source)
    return dict(info.labels), info.ignore, read_not_contoured(source, info.labels)


def _described(folder: Path) -> Path | None:
    sources = (folder, folder.absolute().parent)
    return next((source for source in sources if (source / "dataset.json").is_file()), None)


def said_synthetic(files: Iterable[Path]) -> Path | None:
    """Return a dataset.json, beside one of the files or one folder above, that says that its scans are synthetic.

    Raises:
        InputError: such a file cannot be read.
    """
    described = dict.fromkeys(filter(None, map(_described, sorted({file.parent for file in files}))))
    return next((d / "dataset.json" for d in described if read_dataset_json(d).trained_on == "synthetic"), None)


def _some(names: Any) -> str:
    """Name a few, for an error message."""
    ordered = sorted(names)
    return ", ".join(ordered[:3]) + (f" and {len(ordered) - 3} more" if len(ordered) > 3 else "") or "none"
