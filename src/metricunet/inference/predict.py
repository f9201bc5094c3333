"""Predicting many scans: read, segment, judge, write; what is done and valid is left as it is."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from metricunet.engine import GIB, Engine, Needs, Tell
from metricunet.errors import InputError, told
from metricunet.files.claim import claimed
from metricunet.files.dicom.stack import Allow
from metricunet.files.exported import files_of_model, read_any_card
from metricunet.files.own import FILES, Inputs, OwnFiles
from metricunet.files.record import RECORD_NAME
from metricunet.files.rtstruct.outlines import Holes, Outline
from metricunet.files.sharing import in_turn
from metricunet.inference.case_files import (
    ALWAYS,
    CHOSEN,
    DRAWN_ANYWAY,
    NEED_SERIES,
    WITHHELD,
    CaseFiles,
    CaseOutcome,
    begun_record,
    check_folder,
    checked_formats,
    chosen_structures,
    files_of,
    organs_wanted,
    provenance_of,
    refuse_without_series,
    run_facts,
)
from metricunet.inference.inputs import Refused, ScanInput, check_models, find_inputs, nothing_left
from metricunet.inference.onnx_predictor import provider_for
from metricunet.inference.page import Excerpt, excerpt_of
from metricunet.inference.pipeline import Finished, run_pipeline
from metricunet.inference.reruns import MOST_RERUNS
from metricunet.inference.runtimes import open_predictor, runtime_for
from metricunet.inference.segmenter import Segmenter
from metricunet.inference.structure_set import ContourOptions
from metricunet.progress import Progress
from metricunet.quality.prediction import Prediction
from metricunet.quality.verdict import QualityReport, judge
from metricunet.volume import Volume

#: The most that a case was measured to take: 650 slices of 512 x 512, one at a time.
CASE_BYTES = round(1.3 * GIB)
#: Of so many scans it is asked whether every machine of an engine sees them.
WITNESSES = 64


@dataclass(frozen=True)
class PredictOutcome:
    """What became of all scans; those that failed are among those refused, with their `error`."""

    cases: tuple[CaseOutcome, ...]
    refused: tuple[Refused, ...]

    def __repr__(self) -> str:
        verdicts = [case.verdict for case in self.cases]
        counts = [f"{verdicts.count(v)} {v}" for v in dict.fromkeys(verdicts)]
        return (
            f"PredictOutcome({', '.join([*counts, *([f'{len(self.refused)} refused'] if self.refused else [])])})"
        )

    def failed(self, strict: bool = False) -> bool:
        """Whether any case failed, any scan was refused, or any output was withheld.

        With `strict`, also whether any case needs review.
        """
        bad = {"fail", "review"} if strict else {"fail"}
        return any(r.is_scan for r in self.refused) or any(
            case.verdict in bad or case.withheld for case in self.cases
        )


def predict(
    scans: Sequence[Path],
    models: Sequence[Path],
    output: Path,
    *,
    formats: Sequence[str] = ("nifti",),
    structures: Sequence[str] | None = None,
    series: str | None = None,
    device: str = "auto",
    runtime: str | None = None,
    provider: str | None = None,
    contours: Outline = "surface",
    holes: Holes = "keep",
    smooth: bool = False,
    add_to: Path | None = None,
    reruns: int = MOST_RERUNS,
    allow_gaps: bool = False,
    allow_tilt: bool = False,
    overwrite: bool | None = False,
    draw_anyway: bool = False,
    progress: Progress | None = None,
    engine: Engine | None = None,
) -> PredictOutcome:
    """Segment scans and write masks, structure sets and verdicts.

    A file of an earlier prediction is replaced only while it is as it was written. Whatever goes wrong in one case
    costs that case alone.

    Args:
        scans: files of one scan (NIfTI, NRRD, MetaImage), folders of them, or folders of DICOM series.
        models: model files, or folders of exported models; the probabilities of several are averaged.
        output: folder of CASE.nii.gz and the other files of a case, CASE.quality.json and run.json.
        formats: of `nifti`, `probability`, `probability_uint8`, `page` (to look at in a browser), and `rtstruct`,
            `seg` and `probability_seg`, which need DICOM input.
        structures: of the models, which alone are written; None for all. The verdict is that of all, but of the
            organs' network's only where one of them is among those chosen: else that network does not run.
        series: SeriesInstanceUID to take alone.
        device: `auto`, `cpu`, `cuda`, `cuda:N`, `gpu`, `gpu:N` or `mps`.
        runtime: `torch` for model files or `onnx` for exported models; None for what the models are.
        provider: `cpu`, `cuda` or `openvino`, for exported models; None for what suits the device.
        contours: of structure sets: `surface` runs where the probability is one half, `voxel` along voxels' edges.
        holes: of structure sets: `keep`, `close` or `keyhole`.
        smooth: smooth the contours of structure sets, no point by more than 0.5 mm.
        add_to: a structure set of the one series given, to which the new structures are added.
        reruns: how often a case may run again, where the target reaches the crop's edge.
        allow_gaps: resample DICOM series whose slices are missing or uneven, rather than refuse them.
        allow_tilt: resample DICOM series of a tilted gantry, likewise; `nifti` alone can be written of them.
        overwrite: replace files of others that have an output's name, and what was predicted from another scan of
            the same name. Inputs are never replaced. None is for a caller who has no such option to offer, and who
            has made the scans: files of others are kept.
        draw_anyway: write structure sets and segmentations even where the doubt is strong and the model of
            synthetic origin, see `withheld_formats`.
        progress: called with (done, all).
        engine: segments the scans, each where it is read; None for this process.

    Raises:
        InputError: nothing can be done with the input or the arguments, or an output has the name of an input,
            of somebody else's file, or of what was predicted from another scan.
    """
    known = checked_formats(formats)
    check_folder(output)
    check_models(models, reruns)
    if runtime_for(models, runtime, provider) == "onnx" and device == "auto":
        # Said here, since an engine takes `auto` for a GPU wherever it has one.
        device = "cuda" if provider_for(device, provider)[0] == "cuda" else "cpu"
    options = ContourOptions(contours, holes, smooth, add_to)
    record = begun_record(scans, models, output, formats, options, reruns, draw_anyway, structures)
    cards = [read_any_card(path) for path in models]
    chosen = chosen_structures(structures, cards[0].labels, cards[0].tg263)
    draw = any(name in known for name in NEED_SERIES)
    inputs, refused = find_inputs(scans, series, allow=Allow(allow_gaps, allow_tilt), draw=draw)
    for entry in inputs:
        refuse_without_series(known, entry.series, entry.path)
    of_models = [file for path in models for file in files_of_model(path)]
    kept = Inputs([*(path for entry in inputs for path in files_of(entry)), *of_models, *filter(None, [add_to])])
    files = CaseFiles(output, known, kept, overwrite, draw_anyway, chosen)
    single = files.path(inputs[0].case, "rtstruct") if "rtstruct" in known else None
    options.check([entry.series for entry in inputs], single)
    provenance = provenance_of(models, reruns, options if "rtstruct" in known else None)
    own_record = OwnFiles(output, RECORD_NAME, "predict", inputs=kept, overwrite=overwrite)
    own_record.check([])
    for entry in inputs:
        files.check(entry.case, entry)
    organs = organs_wanted(cards[0], chosen)
    load = partial(open_predictor, runtime=runtime, provider=provider, reruns=reruns, organs=organs)
    work = _Work(models, device, load, files, provenance, options)
    results: dict[str, CaseOutcome | Exception] = {}
    # Whatever ends this, the stages end before the claims do: a scan that is read meanwhile takes another one.
    with closing(work), closing(_stages(inputs, work, engine)) as stages:
        for done, (entry, result) in enumerate(stages, start=1):
            work.release(entry.case)
            results[entry.case] = result
            if progress is not None:
                progress(done, len(inputs))
    outcomes: list[CaseOutcome] = []
    for entry in inputs:
        result = results[entry.case]
        if isinstance(result, CaseOutcome):
            outcomes.append(result)
        elif len(inputs) == 1 and not refused:
            if isinstance(result, InputError):
                raise result
            raise InputError(f"{entry.place}: {told(result)}") from result
        elif isinstance(result, InputError):
            refused.append(Refused(entry.path, str(result)))
        else:
            refused.append(Refused(entry.path, f"{entry.place}: {told(result)}", error=result))
    if not outcomes:
        raise nothing_left(refused)
    record.facts |= run_facts(provenance, work.device_used, outcomes, refused)
    with in_turn(own_record.claim, "the record of a prediction"):  # another process may end at the same time
        own_record.commit(record.content())
    return PredictOutcome(tuple(outcomes), tuple(refused))


def _stages(
    inputs: Sequence[ScanInput], work: _Work, engine: Engine | None
) -> Generator[tuple[ScanInput, CaseOutcome | Exception], None, None]:
    """Yield each scan with what became of it: here, or from the workers of an engine, as they are done."""
    if engine is None:
        yield from run_pipeline(inputs, work.take, work.compute, work.write, work.load)
        return
    witnesses = [files_of(entry)[0] for entry in inputs[:: -(-len(inputs) // WITNESSES)]]
    engine.check_folders(work.files.folder, [*work.kept(), *witnesses])
    # A machine on which two workers share a GPU reads a scan for the one while the other computes.
    needs = Needs(CASE_BYTES, work.device, per_gpu=2)
    work.device = engine.device(needs)
    make = partial(_CaseWorker, work.for_workers())
    yield from engine.each(inputs, make, needs, claim=work.claim)


@dataclass(frozen=True, eq=False)
class _Scan:
    """A scan that was read, what its files will depend on, and the seconds spent on it."""

    volume: Volume
    provenance: dict[str, Any]
    seconds: float


@dataclass(frozen=True, eq=False)
class _Segmented:
    """A scan that was segmented and judged, ready to be written."""

    prediction: Prediction
    quality: QualityReport
    provenance: dict[str, Any]
    excerpt: Excerpt | None
    seconds: float


class _Work:
    """The three stages of a case, and the models that they share.

    What computes the networks is imported by `load`, so that it does not hold up the reading of the first scan.
    """

    predictor: Segmenter

    def __init__(
        self,
        models: Sequence[Path],
        device: str,
        open_models: Callable[[Sequence[Path], str], Segmenter],
        files: CaseFiles,
        provenance: dict[str, Any],
        options: ContourOptions,
    ) -> None:
        self.models, self.device, self.open_models = models, device, open_models
        self.files, self.provenance, self.options = files, provenance, options
        self._claims: dict[str, ExitStack] = {}

    def kept(self) -> tuple[Path, ...]:
        """The files beside the scans that are read, and never replaced."""
        return (*self.models, *filter(None, [self.options.add_to]))

    def for_workers(self) -> _Work:
        """Return the same work without models and inputs, small enough for every process."""
        files = replace(self.files, inputs=Inputs([]))
        return _Work(self.models, self.device, self.open_models, files, self.provenance, self.options)

    @property
    def device_used(self) -> str:
        """The device that computed."""
        return str(self.predictor.device) if hasattr(self, "predictor") else self.device

    def claim(self, entry: ScanInput) -> AbstractContextManager[object]:
        """Hold the claim of a case."""
        return claimed(self.files.own(entry.case).claim, f"a prediction of case {entry.case}")

    def release(self, case: str) -> None:
        """Let go of the claim of a case, which may have none."""
        self._claims.pop(case, ExitStack()).close()

    def close(self) -> None:
        """Let go of all claims."""
        for case in list(self._claims):
            self.release(case)

    def load(self) -> None:
        self.predictor = self.open_models(self.models, self.device)

    def take(self, entry: ScanInput) -> _Scan:
        """Take the claim of a case, which `release` lets go of, and read its scan."""
        with ExitStack() as claim:
            claim.enter_context(self.claim(entry))
            self._claims[entry.case] = claim.pop_all()
        return self.read(entry)

    def read(self, entry: ScanInput) -> _Scan:
        """Read a scan whose claim is held."""
        began = time.perf_counter()
        provenance = {"input_sha256": entry.sha256(), **self.provenance}
        own = self.files.own(entry.case)
        done = _already_done(entry.case, own, self.files, provenance)
        if done is not None:
            own.settle()  # an earlier run may have been killed when all was there
            raise Finished(done)
        self.files.check_scan(entry.case, entry)  # another process may have been at it meanwhile
        return _Scan(entry.read(), provenance, time.perf_counter() - began)

    def compute(self, entry: ScanInput, scan: _Scan) -> _Segmented:
        began = time.perf_counter()
        prediction = self.predictor.predict(scan.volume)
        quality = judge(entry.case, scan.volume, prediction, entry.notes, entry.patient_sex)
        if self.files.chosen:
            prediction, quality = prediction.only(self.files.chosen), quality.only(self.files.chosen)
        # The scan itself is let go of, so that no more than two are held at a time.
        excerpt = excerpt_of(scan.volume, prediction) if "page" in self.files.formats else None
        return _Segmented(
            prediction, quality, scan.provenance, excerpt, scan.seconds + time.perf_counter() - began
        )

    def write(self, entry: ScanInput, segmented: _Segmented) -> CaseOutcome:
        began = time.perf_counter()
        quality = segmented.quality
        withheld = self.files.write(
            segmented.prediction, quality, entry, self.options, segmented.provenance, segmented.excerpt
        )
        return CaseOutcome.of(quality, segmented.seconds + time.perf_counter() - began, withheld)


class _CaseWorker:
    """A worker that segments scans with models that it loads once.

    Args:
        work: the stages of a case, without models.
    """

    def __init__(self, work: _Work) -> None:
        self.work = work
        work.load()

    def do(self, entry: ScanInput, tell: Tell) -> CaseOutcome:
        """Read a scan, segment it and write its files."""
        # A machine knows a file by numbers of its own, so these are not the ones of the driver.
        self.work.files = replace(self.work.files, inputs=Inputs([*files_of(entry), *self.work.kept()]))
        try:
            scan = self.work.read(entry)
        except Finished as finished:
            outcome: CaseOutcome = finished.outcome
            return outcome
        return self.work.write(entry, self.work.compute(entry, scan))


def _already_done(case: str, own: OwnFiles, files: CaseFiles, provenance: dict[str, Any]) -> CaseOutcome | None:
    """Return the outcome of an earlier run of the same model on the same scan, if its outputs are as written."""
    quality = own.content()
    if quality is None or any(quality.get(name) != value for name, value in provenance.items()):
        return None
    if tuple(quality.get(CHOSEN, ())) != files.chosen:
        return None
    withheld = [name for name in quality.get(WITHHELD, []) if name in files.formats]
    if (withheld and files.draw_anyway) or (quality.get(DRAWN_ANYWAY) and not files.draw_anyway):
        return None
    wanted = [name for name in files.formats if name not in withheld and (quality["structures"] or name in ALWAYS)]
    if not quality[FILES].keys() >= {files.names(case)[name] for name in wanted}:
        return None
    if not own.is_whole():
        return None
    return CaseOutcome(
        case,
        quality["verdict"],
        quality["localisation"]["status"],
        tuple(quality["reasons"]),
        tuple(flag["code"] for flag in quality["flags"]),
        0.0,
        skipped=True,
        withheld=tuple(withheld),
    )
