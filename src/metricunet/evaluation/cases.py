"""Which prediction belongs to which reference, and which image and quality verdict to both.

A case is the name of its reference file without suffix. Its prediction has the same name; beside that may lie
`CASE.quality.json`, which the predictor writes for every case, also where it found no gland and wrote no mask.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metricunet.cohort.contoured import CONTOURED_NAME, read_not_contoured
from metricunet.cohort.layout import CHANNEL_SUFFIX, read_dataset_json
from metricunet.errors import InputError
from metricunet.files.json_file import read_json
from metricunet.files.reviews import is_reviewed_mask
from metricunet.files.scan import SCAN_SUFFIXES, case_name, is_scan

#: The folders of a cohort that hold references, and where their images are.
IMAGES_OF = {"labelsTr": "imagesTr", "labelsTs": "imagesTs"}
QUALITY_SUFFIX = ".quality.json"
#: What a lone label is called where no dataset.json names it.
DEFAULT_LABELS = {"prostate": 1}


@dataclass(frozen=True)
class RecordedQuality:
    """What the predictor said of its own result; None or empty where it said nothing."""

    verdict: str | None = None
    reasons: tuple[str, ...] = ()
    localisation_status: str | None = None
    localisation_confidence: float | None = None
    localisation_reason: str | None = None


@dataclass(frozen=True)
class CasePair:
    """The files of one case. `prediction` is None where no mask was written."""

    case: str
    reference: Path
    prediction: Path | None
    image: Path | None
    quality: Path | None


@dataclass(frozen=True)
class Matching:
    """All cases in the order of their names, and what their voxels mean.

    Attributes:
        pairs: one for each reference.
        unmatched: names of predictions that have no reference.
        labels: structure name to value, as in dataset.json.
        ignore: value of reference voxels that nobody contoured, or None.
        not_contoured: case to structures that its reference says nothing of.
        descriptions: the dataset.json and contoured.json that this was read from.
    """

    pairs: tuple[CasePair, ...]
    unmatched: tuple[str, ...]
    labels: dict[str, int]
    ignore: int | None
    not_contoured: dict[str, tuple[str, ...]]
    descriptions: tuple[Path, ...] = ()

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file that is read, once."""
        of_cases = (
            f for p in self.pairs for f in (p.reference, p.prediction, p.image, p.quality) if f is not None
        )
        return tuple(dict.fromkeys((*self.descriptions, *of_cases)))


def match_cases(predictions: Path, references: Path, images: Path | None = None) -> Matching:
    """Pair predictions with references by their names; two single files are a pair whatever their names.

    Args:
        predictions: a folder with CASE.nii.gz, or one such file.
        references: a folder with CASE.nii.gz, one such file, or a cohort. Of a cohort, those of labelsTr and
            labelsTs count in which some case was predicted.
        images: a folder with CASE_0000.nii.gz or CASE.nii.gz, or one such file (of any name if there is one
            case). Default: the imagesTr or imagesTs beside the reference's labelsTr or labelsTs, if there is.

    Raises:
        InputError: if a path is missing, a case occurs twice, or nothing matches.
    """
    predicted = _files_by_case(predictions, "prediction")
    # A verdict without a mask is a prediction too: of an absent gland.
    attempted = predicted.keys() | _verdicts(predictions)
    if references.is_dir():
        wanted, folder = _references_in(references, attempted), references
        if not predictions.is_dir():
            wanted = {case: path for case, path in wanted.items() if case in attempted}
    else:
        wanted, folder = _files_by_case(references, "reference"), references.parent
        if not predictions.is_dir():
            predicted = dict.fromkeys(wanted, predictions)
            attempted = set(wanted)
    if not wanted.keys() & attempted:
        raise InputError(
            f"{predictions}: no prediction has the name of a reference in {references} "
            f"(predictions: {_some(attempted)}; references: {_some(wanted)}); "
            "expected CASE.nii.gz in both"
        )
    pairs = tuple(
        CasePair(
            case=case,
            reference=wanted[case],
            prediction=predicted.get(case),
            image=_image_of(case, wanted[case], images, alone=len(wanted) == 1),
            quality=_quality_of(case, predictions, predicted.get(case)),
        )
        for case in sorted(wanted)
    )
    if images is not None and not any(pair.image for pair in pairs):
        found = "holds the image of none of the cases" if images.exists() else "no such file or folder"
        raise InputError(f"{images}: {found}; expected {pairs[0].case}{CHANNEL_SUFFIX}.nii.gz there")
    labels, ignore, not_contoured = labels_beside(folder)
    described = _described(folder)
    files = () if described is None else (described / "dataset.json", described / CONTOURED_NAME)
    return Matching(
        pairs,
        tuple(sorted(predicted.keys() - wanted.keys())),
        labels,
        ignore,
        not_contoured,
        tuple(path for path in files if path.is_file()),
    )


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
    )


def _typed(path: Path, field: str, value: Any, kind: Any) -> Any:
    if not isinstance(value, kind):
        expected = getattr(kind, "__name__", str(kind))
        raise InputError(f"{path}: {field} is {type(value).__name__}, expected {expected}; predict the case again")
    return value


def _files_by_case(source: Path, what: str) -> dict[str, Path]:
    """Return case name to file, of a folder or of one file."""
    if source.is_file():
        if not is_scan(source):
            raise InputError(f"{source}: the {what} is not named {', '.join(SCAN_SUFFIXES)}; expected such a file")
        return {case_name(source): source}
    if not source.is_dir():
        raise InputError(f"{source}: no such file or folder; expected the {what}s, CASE.nii.gz each")
    found: dict[str, Path] = {}
    for path in sorted(source.iterdir()):
        if path.name.startswith(".") or not is_scan(path) or not path.is_file() or is_reviewed_mask(path):
            continue
        case = case_name(path)
        if case in found:
            raise InputError(f"{path}: case {case} occurs twice, see {found[case].name}; remove one of them")
        found[case] = path
    return found


def _references_in(folder: Path, attempted: set[str]) -> dict[str, Path]:
    """Return the references of a folder; of a cohort, those of each split in which a case was predicted."""
    own = _files_by_case(folder, "reference")
    splits = [_files_by_case(folder / name, "reference") for name in IMAGES_OF if (folder / name).is_dir()]
    if own or not splits:
        return own
    found: dict[str, Path] = {}
    for split in splits:
        for case in sorted(split.keys() & found.keys()):
            raise InputError(
                f"{split[case]}: case {case} is also at {found[case]}; name one of the two folders as references"
            )
        found |= split
    chosen = [split for split in splits if split.keys() & attempted]
    return {case: path for split in (chosen or splits) for case, path in split.items()}


def _verdicts(predictions: Path) -> set[str]:
    if not predictions.is_dir():
        return set()
    return {p.name[: -len(QUALITY_SUFFIX)] for p in predictions.glob(f"*{QUALITY_SUFFIX}")}


def _quality_of(case: str, predictions: Path, prediction: Path | None) -> Path | None:
    folder = predictions if predictions.is_dir() else predictions.parent
    name = case if prediction is None else case_name(prediction)
    path = folder / f"{name}{QUALITY_SUFFIX}"
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


def _some(names: Any) -> str:
    """Name a few, for an error message."""
    ordered = sorted(names)
    return ", ".join(ordered[:3]) + (f" and {len(ordered) - 3} more" if len(ordered) > 3 else "") or "none"
