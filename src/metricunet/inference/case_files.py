"""The files of a predicted case: their names, what they may replace, and how they come to be, the verdict last.

Beside them lies the record of the run, which says what became of each case.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from metricunet.cohort.names import standard_name
from metricunet.errors import InputError, argument
from metricunet.files.claim import claimed
from metricunet.files.dicom.identity import RANDOM, Identity
from metricunet.files.dicom.series import CtSeries
from metricunet.files.exported import files_of_model
from metricunet.files.model import ModelCard
from metricunet.files.names import check_name_fits
from metricunet.files.nifti import is_nifti, write_nifti, write_nifti_stack
from metricunet.files.own import Inputs, OwnFiles
from metricunet.files.record import RunRecord, sha256
from metricunet.files.reviews import QUALITY_SUFFIX
from metricunet.files.seg.write import write_fractional_seg, write_seg
from metricunet.inference.inputs import Refused, ScanInput
from metricunet.inference.models import warnings_of
from metricunet.inference.page import Excerpt, excerpt_of, write_page
from metricunet.inference.structure_set import (
    ContourOptions,
    description_of,
    set_name_of,
    structures_of,
    write_structure_set,
)
from metricunet.quality.checks import Doubt, doubt_of
from metricunet.quality.prediction import Prediction
from metricunet.quality.verdict import QualityReport
from metricunet.volume import Volume

Format = Literal["nifti", "rtstruct", "seg", "probability", "probability_uint8", "probability_seg", "page"]
FORMATS: tuple[Format, ...] = get_args(Format)
#: TotalSegmentator's words for formats, for those who have its commands at hand.
OTHER_WORDS: Mapping[str, str] = {"dicom_rtstruct": "rtstruct", "dicom_seg": "seg"}
SUFFIXES: dict[Format, str] = {
    "nifti": ".nii.gz",
    "rtstruct": ".rtstruct.dcm",
    "seg": ".seg.dcm",
    "probability": ".probability.nii.gz",
    "probability_uint8": ".probability_uint8.nii.gz",
    "probability_seg": ".probability.seg.dcm",
    "page": ".page.html",
}
#: What holds masks.
MASKS: tuple[Format, ...] = ("nifti", "rtstruct", "seg")
#: What is written also where nothing was found: it says so.
ALWAYS: tuple[Format, ...] = ("page",)
#: What refers to the files of a scan, and cannot be written without them.
NEED_SERIES: tuple[Format, ...] = ("rtstruct", "seg", "probability_seg")
#: Fields of a verdict's file: the formats that were asked for and not written, and those that one insisted on.
WITHHELD, DRAWN_ANYWAY = "withheld", "drawn_anyway"
#: Field of a verdict's file, where some of the model's structures were asked for: which.
CHOSEN = "chosen"
#: Field of a verdict's file: the structures in the order of the volumes of a file of probabilities.
PROBABILITY = "probability"


@dataclass(frozen=True)
class CaseFiles:
    """Where the outputs of cases go, which of them are asked for, and what they must not replace.

    Attributes:
        folder: that the outputs are written into.
        formats: of the masks.
        inputs: files that are never replaced.
        overwrite: whether files of others that have an output's name, and predictions of other scans, may be
            replaced; None as in `OwnFiles`, for a command that has made the scans itself.
        draw_anyway: whether structure sets are written even where `withheld_formats` names them.
        chosen: structures that are asked for, as `chosen_structures` gives them; empty for all.
    """

    folder: Path
    formats: tuple[Format, ...]
    inputs: Inputs
    overwrite: bool | None = False
    draw_anyway: bool = False
    chosen: tuple[str, ...] = ()

    def own(self, case: str) -> OwnFiles:
        """Return the files of a case, whose record is its verdict."""
        record = f"{case}{QUALITY_SUFFIX}"
        return OwnFiles(self.folder, record, "predict", inputs=self.inputs, overwrite=self.overwrite)

    def names(self, case: str) -> dict[Format, str]:
        """Return the names of the outputs that were asked for."""
        return {name: f"{case}{SUFFIXES[name]}" for name in self.formats}

    def path(self, case: str, format_: Format) -> Path:
        """Return where an output of a case goes."""
        return self.folder / f"{case}{SUFFIXES[format_]}"

    def check(self, case: str, source: ScanInput | None = None, input_sha256: str = "") -> None:
        """Refuse a case whose outputs have too long a name, or would replace what is not theirs to replace.

        That is an input, somebody else's file, or the prediction of another scan that bears the same name.

        Args:
            case: its name.
            source: the scan's files; None for a scan that has none.
            input_sha256: hash of a scan that has no files; empty where it is not known.

        Raises:
            InputError: it names the file, and says what to do.
        """
        check_name_fits(self.folder / case, *(SUFFIXES[name] for name in self.formats), QUALITY_SUFFIX)
        self.own(case).check(self.names(case).values())
        self.check_scan(case, source, input_sha256)

    def check_scan(self, case: str, source: ScanInput | None, input_sha256: str = "") -> None:
        """Refuse to replace what was predicted from another scan that bears the same name.

        Raises:
            InputError: it names the other scan, and says what to do.
        """
        own = self.own(case)
        other: object = None
        if self.overwrite is False and source is not None:
            other = _another_scan(own, source)
        elif self.overwrite is False and input_sha256:
            other = _other_than_in_memory(own, input_sha256, self.inputs)
        if other is not None:
            raise InputError(
                f"{own.path}: is the prediction of another scan of this name, {other}, and would be replaced; "
                f"choose another folder, or replace it with {argument('overwrite', True)}"
            )

    def write(
        self,
        prediction: Prediction,
        quality: QualityReport,
        source: ScanInput | None,
        options: ContourOptions,
        provenance: Mapping[str, Any],
        excerpt: Excerpt | None = None,
        identity: Identity = RANDOM,
    ) -> tuple[str, ...]:
        """Write the files of a case, all or none of them. The caller holds the claim of the case.

        Args:
            prediction: of the scan.
            quality: its verdict, which names the case.
            source: the scan's files; None for a scan that has none.
            options: how a structure set is drawn.
            provenance: what the files depend on, as `provenance_of` gives it; it becomes part of the verdict.
            excerpt: what a page shows of the scan, as `excerpt_of` gives it.
            identity: where the UIDs of DICOM objects come from, and their date; random and now by default.

        Returns:
            The formats that were asked for and are withheld.

        Raises:
            InputError: something cannot be written, or a file of somebody else is in its place.
        """
        own = self.own(quality.case)
        doubtful = withheld_formats(prediction, quality, self.formats)
        withheld = () if self.draw_anyway else doubtful
        names = {name: file for name, file in self.names(quality.case).items() if name not in withheld}
        said: dict[str, Any] = {WITHHELD: list(withheld), DRAWN_ANYWAY: list(doubtful) if self.draw_anyway else []}
        if prediction.chosen:
            said[CHOSEN] = list(prediction.chosen)
        if prediction.masks and set(names) & {"probability", "probability_uint8"}:
            said[PROBABILITY] = {
                "volumes": list(prediction.structures),
                "organs": [name for name in prediction.structures if name in prediction.card.organs_structures],
            }
        try:
            drawn = _stage_masks(own, names, prediction, source, options, identity)
            if "page" in names:
                write_page(own.stage(names["page"]), excerpt, prediction, quality)
            # The verdict is written last: where it is, the case is whole.
            review = _for_review(self.folder, prediction, source)
            own.commit({**quality.to_json(drawn), **said, **provenance, **review})
        finally:
            own.discard()
        return withheld


def write_case(
    folder: Path,
    prediction: Prediction,
    quality: QualityReport,
    source: ScanInput | None = None,
    *,
    scan: Volume | None = None,
    formats: Sequence[str] = ("nifti",),
    options: ContourOptions | None = None,
    provenance: Mapping[str, Any] | None = None,
    inputs: Iterable[Path] = (),
    overwrite: bool = False,
    draw_anyway: bool = False,
    identity: Identity = RANDOM,
) -> tuple[Path, ...]:
    """Write what was predicted of one scan, as `metricunet predict` writes it.

    A file of an earlier prediction is replaced only while it is as it was written.

    Args:
        folder: of CASE.quality.json and the files of `SUFFIXES`; made where it is missing.
        prediction: of the scan.
        quality: its verdict, which names the case.
        source: the scan's files, which are never replaced; None for a scan that has none. Without a DICOM series
            what `NEED_SERIES` names cannot be written.
        scan: HU, which a page shows; None to read them from `source`.
        formats: of `FORMATS`.
        options: how a structure set is drawn.
        provenance: what the files depend on, see `provenance_of`. Only where it also holds `input_sha256`, and all
            of it fits, does `metricunet predict` take the case for done.
        inputs: more files that are never replaced, such as the models.
        overwrite: replace files of others that have an output's name, and the prediction of another scan.
        draw_anyway: write structure sets even where `withheld_formats` names them.
        identity: where the UIDs of DICOM objects come from, and their date; random and now by default.

    Returns:
        The files that are there now, the verdict last.

    Raises:
        InputError: an unknown format, one that needs a DICOM series where there is none, options that cannot be
            followed, a file of somebody else or the prediction of another scan in the place of an output, or
            another process that works on the case.
    """
    options = options or ContourOptions()
    known = checked_formats(formats)
    series = None if source is None else source.series
    refuse_without_series(known, series, quality.case if source is None else source.path)
    check_folder(folder)
    kept = Inputs([*files_of(source), *inputs, *filter(None, [options.add_to])])
    files = CaseFiles(folder, known, kept, overwrite, draw_anyway)
    options.check([series], files.path(quality.case, "rtstruct") if "rtstruct" in known else None)
    files.check(quality.case, source, str((provenance or {}).get("input_sha256", "")))
    own = files.own(quality.case)
    with claimed(own.claim, f"a prediction of case {quality.case}"):
        excerpt = _excerpt(prediction, source, scan) if "page" in known else None
        withheld = files.write(prediction, quality, source, options, provenance or {}, excerpt, identity)
    written = [name for name in known if (prediction.masks or name in ALWAYS) and name not in withheld]
    return (*(files.path(quality.case, name) for name in written), own.path)


def withheld_formats(prediction: Prediction, quality: QualityReport, formats: Sequence[str]) -> tuple[str, ...]:
    """Return the formats that are written only if the user insists: what a planning system would take in.

    There are some where the models' verdicts are held back and the doubt is strong. Of models whose verdicts are
    not held back a verdict tells enough.

    Args:
        prediction: of the scan.
        quality: its verdict.
        formats: that are asked for.
    """
    held = prediction.card.held_back and quality.doubt == "strong" and prediction.masks
    return tuple(name for name in NEED_SERIES if held and name in formats)


def withheld_line(formats: Sequence[str]) -> str:
    """Say that formats are withheld, and how to get them."""
    return (
        f"{' and '.join(formats)} not written, for the doubt is strong and the model has not been validated on "
        f"patients; look at the mask first, then draw with {argument('draw_anyway', True)}"
    )


@dataclass(frozen=True)
class CaseOutcome:
    """One case that was segmented, now or before.

    Attributes:
        case: its name.
        verdict: `pass`, `review` or `fail`.
        status: of stage 1.
        reasons: the verdict's sentences.
        flags: their codes.
        seconds: that it took; 0 if it was done before.
        skipped: whether it was done before.
        withheld: formats that were asked for and not written, see `withheld_formats`.
    """

    case: str
    verdict: str
    status: str
    reasons: tuple[str, ...]
    flags: tuple[str, ...]
    seconds: float
    skipped: bool = False
    withheld: tuple[str, ...] = ()

    @property
    def doubt(self) -> Doubt:
        """How much the flags speak against the mask: `none`, `some` or `strong`."""
        return doubt_of(self.flags)

    @classmethod
    def of(cls, quality: QualityReport, seconds: float, withheld: Sequence[str] = ()) -> CaseOutcome:
        """Return the outcome of a case that was segmented just now.

        Args:
            quality: its verdict.
            seconds: that reading, segmenting and writing it took, as far as they are known.
            withheld: formats that were asked for and not written.
        """
        flags = tuple(flag.code for flag in quality.flags)
        status = quality.localisation["status"]
        reasons = tuple(quality.reasons)
        return cls(
            quality.case, quality.verdict, status, reasons, flags, round(seconds, 2), withheld=tuple(withheld)
        )

    def to_json(self) -> dict[str, Any]:
        """Return what the record of a run says of the case."""
        return {
            "verdict": self.verdict,
            "doubt": self.doubt,
            "localisation": self.status,
            "reasons": list(self.reasons),
            "flags": list(self.flags),
            "seconds": self.seconds,
            "skipped": self.skipped,
            WITHHELD: list(self.withheld),
        }


def begun_record(
    scans: Sequence[Path],
    models: Sequence[Path],
    output: Path,
    formats: Sequence[str],
    options: ContourOptions,
    reruns: int,
    draw_anyway: bool = False,
    structures: Sequence[str] | None = None,
) -> RunRecord:
    """Return the record of a run that begins, with what it was called with."""
    arguments = {
        "scans": scans,
        "models": models,
        "output": output,
        "formats": formats,
        "contours": options.contours,
        "holes": options.holes,
        "smooth": options.smooth,
        "add_to": options.add_to,
        "reruns": reruns,
        "draw_anyway": draw_anyway,
    }
    if structures is not None:
        arguments["structures"] = structures
    return RunRecord("predict", arguments, {"warnings": warnings_of(models)})


def run_facts(
    provenance: Mapping[str, Any], device: object, cases: Iterable[CaseOutcome], refused: Iterable[Refused] = ()
) -> dict[str, Any]:
    """Return what the record of a run says of its end.

    Args:
        provenance: what all its files depend on, see `provenance_of`.
        device: that computed.
        cases: that were segmented.
        refused: what was not, and why.
    """
    return {
        **provenance,
        "device": str(device),
        "cases": {outcome.case: outcome.to_json() for outcome in cases},
        "refused": [{"path": str(entry.path), "reason": entry.reason} for entry in refused],
    }


def check_folder(output: Path) -> None:
    """Refuse to write predictions into what is no folder, or among the images of a cohort.

    Raises:
        InputError: it is either.
    """
    if output.exists() and not output.is_dir():
        raise InputError(f"{output}: is a file; expected a folder for the predictions")
    place = output.resolve()  # the folder may be given as `.`
    if place.name.startswith("images") and (place.parent / "dataset.json").is_file():
        raise InputError(f"{output}: holds the images of a cohort, which masks would spoil; choose another folder")


def refuse_without_series(formats: Sequence[Format], series: CtSeries | None, where: object) -> None:
    """Refuse a format that refers to DICOM for a scan that is none.

    Args:
        formats: that are asked for.
        series: of the scan; None for one that is no DICOM.
        where: the scan is, for the message.

    Raises:
        InputError: the first such format, named.
    """
    wanting = [name for name in NEED_SERIES if name in formats]
    if series is None and wanting:
        raise InputError(
            f"{where}: {argument('formats', wanting[:1])} needs a DICOM series to refer to, and this is none; use "
            f"{argument('formats', ['nifti'])}"
        )


def checked_formats(formats: Sequence[str]) -> tuple[Format, ...]:
    """Return the formats in the order in which they are written.

    Args:
        formats: of `FORMATS`, or in TotalSegmentator's words `dicom_rtstruct` and `dicom_seg`.

    Raises:
        InputError: one of them is unknown.
    """
    wanted = [OTHER_WORDS.get(name, name) for name in formats]
    for given, name in zip(formats, wanted, strict=True):
        if name not in FORMATS:
            raise InputError(f"{argument('formats')} must be of {', '.join(FORMATS)}; got {given!r}")
    return tuple(name for name in FORMATS if name in wanted)


def chosen_structures(
    wanted: Sequence[str] | None, labels: Mapping[str, int], tg263: Mapping[str, str]
) -> tuple[str, ...]:
    """Return which of a model's structures are to be written; none where all are.

    Args:
        wanted: names as in the model, or others that stand for the same standard name (TG-263), such as `Bladder`
            or TotalSegmentator's `urinary_bladder`; None for all.
        labels: of the model's card.
        tg263: likewise.

    Raises:
        InputError: no name, or one that the model does not segment.
    """
    if wanted is None:
        return ()
    own = {standard_name(name, tg263): name for name in reversed(list(labels))}
    found = {name if name in labels else own.get(standard_name(name, {}), "") for name in wanted}
    unknown = [name for name in wanted if name not in labels and standard_name(name, {}) not in own]
    if unknown or not found:
        what = f"the model segments no {', '.join(map(repr, unknown))}" if unknown else "names none"
        raise InputError(f"{argument('structures')}: {what}; choose of {', '.join(labels)}")
    return () if len(found) == len(labels) else tuple(name for name in labels if name in found)


def organs_wanted(card: ModelCard, chosen: Sequence[str]) -> bool:
    """Tell whether the organs' network has anything to do, where a model has one.

    Args:
        card: of the model.
        chosen: as `chosen_structures` returns it.
    """
    return not chosen or any(name in card.organs_structures for name in chosen)


def provenance_of(models: Sequence[Path], reruns: int, options: ContourOptions | None) -> dict[str, Any]:
    """Return what the files of a case depend on beside its scan.

    Args:
        models: model files, or folders of exported models.
        reruns: how often stage 2 may run again.
        options: how structure sets are drawn; None where there are none.
    """
    found: dict[str, Any] = {
        "model_sha256": sha256(file for path in models for file in files_of_model(path)),
        "version": version("metricunet"),
        "reruns": reruns,
    }
    if options is not None:
        found["structure_set"] = options.key()
    return found


def files_of(source: ScanInput | None) -> tuple[Path, ...]:
    """Return the files of a scan; of one that cannot be read, as far as they are known."""
    if source is None:
        return ()
    try:
        return source.files
    except Exception:  # whatever it is, reading the scan will say so
        return (source.path,)


def _another_scan(own: OwnFiles, source: ScanInput) -> Path | None:
    """Return the scan that a case was predicted from, if that is there and is not this one.

    The name of a DICOM series is its own, unless somebody gave it another. That of a file is not: every patient
    may have a `ct.nii.gz`. A file that changed in its place is the same scan, and so is one that was moved
    together with the predictions.

    Args:
        own: the files of the case.
        source: the scan that is to be predicted now.
    """
    earlier = own.content()
    has_own_name = source.series is not None and own.record == f"{source.series.case}{QUALITY_SUFFIX}"
    if earlier is None or has_own_name:
        return None
    places = _places(own, earlier)
    other = next((path for path in places if path.exists()), None)
    if other is None or Path(source.location(own.folder)["path"]) in [path.resolve() for path in places]:
        return None
    try:
        return None if source.sha256() == earlier.get("input_sha256") else other
    except (OSError, InputError):  # reading the scan will say so
        return None


def _places(own: OwnFiles, earlier: Mapping[str, Any]) -> list[Path]:
    """Return where the scan of a verdict may lie: its file or folder, by both of its paths."""
    place = earlier.get("scan")
    if not isinstance(place, dict):
        return []
    return [own.folder.resolve() / place[name] for name in ("path", "relative") if place.get(name)]


def _other_than_in_memory(own: OwnFiles, input_sha256: str, inputs: Inputs) -> object:
    """Return what a case was predicted from, if that is there or known and is not this scan from memory.

    Images in memory are named after their files, of which every patient may have a `ct.nii.gz`, or not at all.

    Args:
        own: the files of the case.
        input_sha256: hash of the scan that was predicted now.
        inputs: files that are never replaced, those that an image in memory was read from among them.
    """
    earlier = own.content()
    if earlier is None or earlier.get("input_sha256", input_sha256) == input_sha256:
        return None
    if earlier.get("scan") is None:
        return "which was in memory"
    return next((path for path in _places(own, earlier) if path.exists() and path not in inputs), None)


def _for_review(folder: Path, prediction: Prediction, source: ScanInput | None) -> dict[str, Any]:
    """Return what a reviewer's program needs beside the masks: where the scan lies, and what the values mean."""
    card = prediction.card
    return {
        "scan": None if source is None else source.location(folder),
        "scanner": None if source is None or source.series is None else source.series.scanner,
        "labels": {name: card.labels[name] for name in prediction.structures},
        "tg263": {name: card.tg263[name] for name in prediction.structures},
    }


def _excerpt(prediction: Prediction, source: ScanInput | None, scan: Volume | None) -> Excerpt | None:
    """Return what a page shows of a scan that is at hand, or that its files hold."""
    if scan is None:
        if source is None:
            raise InputError(f"{argument('formats', ['page'])} shows the scan, and none is given")
        scan = source.read()
    return excerpt_of(scan, prediction)


def _stage_masks(
    own: OwnFiles,
    names: Mapping[Format, str],
    prediction: Prediction,
    source: ScanInput | None,
    options: ContourOptions,
    identity: Identity,
) -> dict[str, dict[str, Any]]:
    """Stage what was asked for, if there is a mask; return what the structure set holds of each structure."""
    if prediction.labels is None or not prediction.masks:
        return {}
    paths = {name: own.stage(file) for name, file in names.items() if name not in ALWAYS}
    series = None if source is None else source.series
    like = source.path if source is not None and series is None and is_nifti(source.path) else None
    if "nifti" in paths:
        write_nifti(paths["nifti"], prediction.labels, like=like)
    drawn: dict[str, dict[str, Any]] = {}
    if paths.keys() & {"probability", "probability_uint8"}:
        _write_probabilities(paths, prediction, like)
    if series is None or not paths.keys() & set(NEED_SERIES):
        return drawn
    card = prediction.card
    surface = options.contours == "surface" and "rtstruct" in paths
    structures = structures_of(prediction, surface)
    if "rtstruct" in paths:
        drawn = write_structure_set(paths["rtstruct"], series, structures, options, card, identity)
    if "seg" in paths:
        members = list(structures.values())
        words = {"description": description_of(card), "content": set_name_of(card)}
        write_seg(paths["seg"], series, members, identity=identity, **words)
    if "probability_seg" in paths:
        probabilities = (prediction.probability_map(name) for name in structures)
        words = {"description": description_of(card), "content": set_name_of(card)}
        members = list(structures.values())
        write_fractional_seg(paths["probability_seg"], series, members, probabilities, identity=identity, **words)
    return drawn


def _write_probabilities(paths: Mapping[Format, Path], prediction: Prediction, like: Path | None) -> None:
    """Write the probability of each structure, in the order in which the verdict's file names them (`labels`)."""
    names = prediction.structures
    if "probability" in paths:
        maps = (prediction.probability_map(name) for name in names)
        write_nifti_stack(paths["probability"], maps, len(names), like)
    if "probability_uint8" in paths:
        maps = (_in_bytes(prediction.probability_map(name)) for name in names)
        write_nifti_stack(paths["probability_uint8"], maps, len(names), like, slope=1 / 255)


def _in_bytes(probability: Volume) -> Volume:
    steps = np.empty(probability.array.shape, dtype=np.uint8)
    for found, plane in zip(steps, probability.array, strict=True):
        found[...] = np.rint(plane * 255)
    return probability.with_array(steps)
