"""The front door for Python: scans in, results out. It calls what the commands call, and adds nothing of its own.

Example:
    import metricunet as mu

    scan = mu.load_scan("scan.nii.gz")  # or a folder of DICOM, an image of nibabel or SimpleITK, an array
    result = mu.load_model("model.safetensors").predict(scan)
    result.mask("prostate"), result.quality.verdict
    result.save("out")
"""

from __future__ import annotations

import hashlib
import os
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeVar, overload

import numpy as np
from numpy.typing import ArrayLike

from metricunet.cohort.case import check_image
from metricunet.cohort.importing.names_file import read_names
from metricunet.cohort.layout import CHANNEL_SUFFIX
from metricunet.engine import Engine
from metricunet.errors import InputError, argument
from metricunet.evaluation.cases import DEFAULT_LABELS, LabelMaps, labels_beside, quality_beside, read_quality
from metricunet.evaluation.compare import comparable, in_terms_of, label_side, measure_sides
from metricunet.evaluation.compare import evaluate as evaluate_files
from metricunet.evaluation.contour_files import (
    CaseScan,
    ContourFile,
    SeriesFinder,
    Side,
    contour_kind,
    open_side,
    read_contour_file,
)
from metricunet.evaluation.figures import draw_overlay
from metricunet.evaluation.measures import Measures, measure, on_grid
from metricunet.evaluation.naming import NamedCase, Naming, choose_structures, choose_tolerances, counted_names
from metricunet.evaluation.picture import Drawn, Picture, draw_picture
from metricunet.evaluation.summary import Evaluation
from metricunet.files.dicom.stack import Allow
from metricunet.files.exported import files_of_model
from metricunet.files.images import (
    files_of_nibabel,
    is_nibabel,
    is_simpleitk,
    volume_of_array,
    volume_of_nibabel,
    volume_of_simpleitk,
)
from metricunet.files.own import OwnFiles
from metricunet.files.record import RECORD_NAME
from metricunet.files.rtstruct.outlines import Holes, Outline
from metricunet.files.scan import case_name, is_scan, read_labels
from metricunet.files.sharing import in_turn
from metricunet.files.voxels import label_volume
from metricunet.inference.case_files import (
    FORMATS,
    CaseOutcome,
    begun_record,
    checked_formats,
    chosen_structures,
    files_of,
    provenance_of,
    run_facts,
    withheld_formats,
    withheld_line,
    write_case,
)
from metricunet.inference.inputs import ScanInput, check_models, find_inputs
from metricunet.inference.models import chosen_models, models_at, warnings_of
from metricunet.inference.predict import PredictOutcome
from metricunet.inference.predict import predict as predict_files
from metricunet.inference.reruns import MOST_RERUNS
from metricunet.inference.runtimes import open_predictor
from metricunet.inference.structure_set import COLOURS, ContourOptions
from metricunet.progress import Progress, no_progress
from metricunet.quality.prediction import Prediction
from metricunet.quality.verdict import QualityReport, judge
from metricunet.volume import Volume

if TYPE_CHECKING:
    from lightning.fabric.loggers.logger import Logger

    from metricunet.cohort.splits import Fold
    from metricunet.files.model import ModelCard
    from metricunet.inference.segmenter import Segmenter

Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
P = ParamSpec("P")
R = TypeVar("R")

#: What a scan is called that came from memory and was given no name.
UNNAMED = "scan"
IN_MEMORY = "the scan"
#: Cases that a warning names.
MOST_LOST = 3


def _in_one_line(function: Callable[P, R]) -> Callable[P, R]:
    """Let an `InputError` stand alone where its sentence says all that led to it.

    What nobody foresaw is a fault of this package, and stays beneath the sentence.
    """

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except InputError as error:
            if _is_foreseen(error.__cause__):
                raise error from None
            raise

    return call


def _is_foreseen(cause: BaseException | None) -> bool:
    while isinstance(cause, OSError | ValueError):  # an InputError among them
        cause = cause.__cause__
    return cause is None


@dataclass(frozen=True, eq=False, repr=False)
class Scan:
    """A CT scan in Hounsfield units, read and checked.

    Attributes:
        volume: It holds the voxels, and where they lie in the patient.
        name: It names the case, and the names of its outputs begin with it.
        source: The scan was read from this file or DICOM series; None for a scan that came from memory.
        origins: An image in memory says that it was read from these files, which no output may replace.
        stamps: Each file of the source had this size and this time of its last change when it was read; None where
            that is not known.
    """

    volume: Volume
    name: str
    source: ScanInput | None = None
    origins: tuple[Path, ...] = ()
    stamps: tuple[tuple[int, int], ...] | None = None

    @cached_property
    def source_sha256(self) -> str:
        """Hash of the source's files, or of the affine and the voxels of a scan from memory.

        Raises:
            InputError: The files are gone, or are not those that were read any more.
        """
        if self.source is not None:
            try:
                found = self.source.sha256()
                changed = self.stamps is not None and _stamps_of(self.source) != self.stamps
            except OSError as error:
                raise InputError(f"{self.source.path}: its files can be read no more ({error})") from error
            if changed:
                raise InputError(
                    f"{self.source.path}: was changed since it was read, and what was read would be taken for "
                    "what lies there now; load it again"
                )
            return found
        content = hashlib.sha256(self.volume.geometry.affine.tobytes())
        content.update(np.ascontiguousarray(self.volume.array).tobytes())
        return content.hexdigest()

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that it was read from, as far as they are known."""
        return self.origins if self.source is None else self.source.files

    @property
    def notes(self) -> tuple[str, ...]:
        """A sentence for each fault of the files that was repaired in reading them."""
        return () if self.source is None else self.source.notes

    @property
    def is_dicom(self) -> bool:
        """Whether it is a DICOM series, to which a structure set can refer."""
        return self.source is not None and self.source.series is not None

    def __repr__(self) -> str:
        kind = "DICOM series" if self.is_dicom else "from memory" if self.source is None else self.source.path.name
        return f"Scan({self.name}: {self.volume!r}, {kind})"


@_in_one_line
def load_scan(
    source: object,
    *,
    affine: ArrayLike | None = None,
    series: str | None = None,
    name: str | None = None,
    allow_gaps: bool = False,
    allow_tilt: bool = False,
) -> Scan:
    """Read a CT scan from wherever it is.

    Values are Hounsfield units. A volume of this package is indexed [slice, row, column] and lies in DICOM's
    patient coordinates (LPS: to the left, the back and the head), in millimetres. An array is taken as nibabel
    gives it: indexed [x, y, z], with an affine to RAS (to the right, the front and the head), in millimetres.

    Args:
        source: The scan is one of these:

            - a path, str or Path, of a file (NIfTI, NRRD, MetaImage) or of a folder that holds one scan, DICOM
              files for example;
            - an image of nibabel (NIfTI) or of SimpleITK;
            - a numpy array [x, y, z], with `affine`;
            - a `Volume`, or a `Scan`, which is returned as it is.
        affine: An array alone takes it: 4 x 4, it maps the index of a voxel's centre to RAS millimetres.
        series: The series with this SeriesInstanceUID is taken, where a folder holds several.
        name: The case is called so; by default by the file's name, by twelve digits of a series' hashed UID, or
            `scan`.
        allow_gaps: A DICOM series whose slices are missing or uneven is resampled rather than refused.
        allow_tilt: A DICOM series of a tilted gantry is resampled rather than refused.

    Raises:
        InputError: There is nothing that can be read, there are several scans, the values are no Hounsfield units,
            or an argument is of no use for such a source.

    Example:
        image = nibabel.load("scan.nii.gz")
        scan = load_scan(image.get_fdata(), affine=image.affine, name="patient_1")
    """
    if name is not None:
        _check_name(name)
    if affine is not None and not isinstance(source, np.ndarray):
        raise InputError(f"affine is for an array alone, and the scan is a {type(source).__name__}; leave it out")
    of_files = {"series": series is not None, "allow_gaps": allow_gaps, "allow_tilt": allow_tilt}
    if not isinstance(source, str | os.PathLike) and (
        given := [name for name, is_given in of_files.items() if is_given]
    ):
        raise InputError(
            f"{', '.join(given)}: of use for a path alone, and the scan is a {type(source).__name__}; leave it out"
        )
    if isinstance(source, Scan):
        return source if name is None else replace(source, name=name)
    if isinstance(source, str | os.PathLike):
        if not os.fspath(source):
            raise InputError("the path of the scan is empty; expected a file, or a folder of DICOM")
        entry = _only_scan(Path(source), series, Allow(allow_gaps, allow_tilt))
        try:
            stamps = _stamps_of(entry)  # before it is read, so that no change goes unnoticed
        except OSError:
            stamps = None  # reading it says what is wrong
        return Scan(entry.read(), name or entry.case, entry, stamps=stamps)
    volume, found_name, origins = _from_memory(source, affine)
    for problem in check_image(found_name, volume, IN_MEMORY):
        if problem.severity == "error":
            raise InputError(problem.message)
    return Scan(volume, name or found_name, origins=origins)


def _stamps_of(source: ScanInput) -> tuple[tuple[int, int], ...] | None:
    """Return what tells whether a scan's files were changed: of each its size, and the time of its last change."""
    return tuple((status.st_size, status.st_mtime_ns) for status in map(os.stat, files_of(source)))


def _from_memory(source: object, affine: ArrayLike | None) -> tuple[Volume, str, tuple[Path, ...]]:
    """Return a scan that is no file, what to call it, and the files that it says it was read from."""
    if isinstance(source, Volume):
        return source, UNNAMED, ()
    if isinstance(source, np.ndarray):
        if affine is None:
            raise InputError(
                "an array does not say where its voxels lie in the patient; give affine=, 4 x 4, from the index "
                "[x, y, z] to RAS millimetres, as in load_scan(image.get_fdata(), affine=image.affine)"
            )
        return volume_of_array(source, affine), UNNAMED, ()
    if is_nibabel(source):
        origins = files_of_nibabel(source)
        return volume_of_nibabel(source), _case_of(origins[0]) if origins else UNNAMED, origins
    if is_simpleitk(source):
        return volume_of_simpleitk(source), UNNAMED, ()
    raise InputError(
        f"a scan cannot be a {type(source).__name__}; expected a path, an array with its affine, an image of "
        "nibabel or SimpleITK, or a Volume"
    )


def _case_of(path: Path) -> str:
    return case_name(path).removesuffix(CHANNEL_SUFFIX)


def _check_name(name: object) -> None:
    plain = isinstance(name, str) and name.isprintable() and name == Path(name).name
    if not plain or not name or str(name).startswith("."):
        raise InputError(f"name must be that of a file, without folders; got {name!r}")


def _only_scan(path: Path, series: str | None, allow: Allow) -> ScanInput:
    """Return the one scan at a path.

    Raises:
        InputError: none, several, or another scan there that cannot be read, so that it is unclear which is meant.
    """
    inputs, refused = find_inputs([path], series, allow=allow)
    if len(inputs) > 1:
        names = [entry.path.name if entry.series is None else entry.series.series_uid for entry in inputs]
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise InputError(
            f"{path}: holds {len(inputs)} scans ({', '.join(names[:3])}{more}); give the path of one file, or "
            "series= with the UID of one series"
        )
    damaged = [entry.reason for entry in refused if entry.is_scan]
    if damaged:
        raise InputError(
            f"{damaged[0]}. Another scan there can be read, {inputs[0].case}; give its file, or its series="
        )
    return inputs[0]


class Model:
    """A model file, or several whose probabilities are averaged, ready to segment scans. See `load_model`.

    Attributes:
        paths: The model files lie there.
        predictor: It does the computing.
        provenance: Results depend on this beside the scan: the hash of the files, the version, the reruns.
    """

    def __init__(self, paths: tuple[Path, ...], predictor: Segmenter) -> None:
        self.paths, self.predictor = paths, predictor
        self.provenance = provenance_of(paths, predictor.reruns, None)

    @property
    def card(self) -> ModelCard:
        """What the first model file says of itself."""
        return self.predictor.card

    @property
    def structures(self) -> tuple[str, ...]:
        """Names of the structures that it segments; `target` is one of them."""
        return tuple(self.card.labels)

    @property
    def target(self) -> str:
        """The structure that it looks for first, and that is never cut off."""
        return self.card.target

    def __repr__(self) -> str:
        first = self.paths[0].name
        files = first if len(self.paths) == 1 else f"{first} and {len(self.paths) - 1} more"
        trained = ", trained on synthetic scans" if self.predictor.ensemble.synthetic else ""
        return f"Model({files}: {', '.join(self.structures)}{trained}, on {self.predictor.device})"

    @_in_one_line
    def predict(self, scan: object) -> Result:
        """Segment a scan, and judge the result.

        Args:
            scan: It is a `Scan`, or anything that `load_scan` takes without further arguments.

        Raises:
            InputError: The scan cannot be used; see `load_scan`.
        """
        loaded = load_scan(scan)
        began = time.perf_counter()
        prediction = self.predictor.predict(loaded.volume)
        quality = judge(loaded.name, loaded.volume, prediction, loaded.notes)
        return Result(loaded, self, prediction, quality, time.perf_counter() - began)


@_in_one_line
def load_model(
    models: Paths | None = None,
    *,
    device: str = "auto",
    reruns: int = MOST_RERUNS,
    provider: str | None = None,
) -> Model:
    """Load a model to segment scans with.

    Args:
        models: This is a model file or a run folder, str or Path, or the folder of an exported model, which needs
            no torch; or several of a kind, whose probabilities are averaged. By default these are the files that
            the environment variable METRICUNET_MODEL names, separated as in PATH, else the model that is shipped
            with the package, which gives a `UserWarning`.
        device: It computes: `auto` (a CUDA GPU where there is one; the CPU for an exported model), `cpu`, `cuda`
            or `cuda:N`, likewise `gpu` or `gpu:N`, or `mps` (the GPU of an Apple machine).
        reruns: A scan may be segmented again as often as this, elsewhere or farther, where the target reaches the
            edge of what was looked at.
        provider: This computes an exported model: `cpu`, `cuda` or `openvino`; by default what suits the device.

    Raises:
        InputError: There is no model file, one that is damaged, or models of different structures, or the device
            is not there.
    """
    paths = _chosen(models)
    return Model(paths, _opened(paths, device, reruns, provider))


@dataclass(frozen=True, eq=False, repr=False)
class Result:
    """A segmented scan: masks and probabilities on the scan's own grid, and a verdict.

    Attributes:
        scan: This was segmented.
        model: This segmented it.
        prediction: This is what came out, with all that is known of how.
        quality: It holds the verdict (`pass`, `review` or `fail`), its `reasons`, and the numbers that it is made
            of.
        seconds: It took so long to segment and judge the scan.
    """

    scan: Scan
    model: Model
    prediction: Prediction = field(repr=False)
    quality: QualityReport
    seconds: float = 0.0

    @property
    def is_absent(self) -> bool:
        """Whether the target was not found in the scan: by stage 1, or by stage 2 where stage 1 suspected it."""
        return self.model.target not in self.prediction.masks

    @cached_property
    def labels(self) -> Volume:
        """The label map: 0 for the background, each structure by its value in `model.card.labels`.

        All is 0 where the target was not found.
        """
        found = self.prediction.labels
        volume = self.scan.volume
        return volume.with_array(np.zeros(volume.array.shape, dtype=np.uint8)) if found is None else found

    def mask(self, structure: str | None = None) -> Volume:
        """Return the mask of a structure: bool, on the scan's own grid. All is False where it was not found.

        Args:
            structure: It is named as in the model; by default it is the model's target.

        Raises:
            InputError: The model has no such structure.
        """
        return self.prediction.mask(self._named(structure))

    def probability(self, structure: str | None = None) -> Volume:
        """Return the probability of a structure: float32, 0 to 1, on the scan's own grid.

        It is what the networks say, averaged over the models. Stage 2 looks at a box around the target alone, the
        organs' network at a larger one; outside its box a structure's probability is 0, and all is 0 where the
        target was not found. Separate pieces that were left out of a mask still have theirs.

        Args:
            structure: It is named as in the model; by default it is the model's target.

        Raises:
            InputError: The model has no such structure.
        """
        name = self._named(structure)
        return self.prediction.probability_map(name)

    def volume_ml(self, structure: str | None = None) -> float:
        """Return the volume of a structure's mask in millilitres; 0 where it was not found.

        Args:
            structure: It is named as in the model; by default it is the model's target.

        Raises:
            InputError: The model has no such structure.
        """
        mask = self.mask(structure)
        return int(np.count_nonzero(mask.array)) * mask.geometry.voxel_volume_ml

    def plot(self, structure: str | None = None) -> Picture:
        """Draw the scan in three planes through a structure's centre, with the contours of all structures.

        The picture shows itself at the end of a notebook's cell; `save("case.svg")` and `save("case.html")`
        write it. Display is radiological: the patient's right is on the viewer's left. Where the target was not
        found, the planes meet in the middle of the scan, and the picture says so.

        Args:
            structure: It is named as in the model; by default it is the model's target.

        Raises:
            InputError: The model has no such structure.
        """
        name, card = self._named(structure), self.model.card
        values = {label: Drawn(value, _colour(k)) for k, (label, value) in enumerate(card.labels.items())}
        centre_mm = self.prediction.localisation.centre_mm
        overlay = draw_overlay(
            self.scan.name,
            name,
            card.labels[name],
            self.labels,
            None,
            self.scan.volume,
            self.scan.volume.geometry.centre_mm if centre_mm is None else centre_mm,
        )
        remark = f"{card.target.replace('_', ' ')} not found: no contour" if self.is_absent else ""
        return draw_picture(overlay, self._in_words(name), values, self.quality.reasons, remark)

    @_in_one_line
    def save(
        self,
        folder: str | os.PathLike[str],
        formats: str | Sequence[str] = ("nifti",),
        *,
        structures: str | Sequence[str] | None = None,
        contours: Outline = "surface",
        holes: Holes = "keep",
        smooth: bool = False,
        add_to: str | os.PathLike[str] | None = None,
        overwrite: bool = False,
        draw_anyway: bool = False,
    ) -> tuple[Path, ...]:
        """Write the files that `metricunet predict` writes, and return their paths.

        These are NAME.nii.gz, NAME.rtstruct.dcm and so on, as asked for, NAME.quality.json with the verdict, and
        run.json. Where the target was not found there are the verdict and the page alone.
        The mask of a NIfTI file has the very order and orientation of that file's axes. Files of an earlier
        prediction are replaced while they are as they were written; a mask that somebody corrected is not.

        Args:
            folder: The files are written into it; it is made where it is missing.
            formats: They are one or several of `nifti`, `probability`, `probability_uint8`, `page` (one HTML file
                to look at in a browser), and `rtstruct`, `seg` and `probability_seg`, which need a DICOM series.
            structures: These structures of the model alone are written; by default all are. The verdict is that of
                all, but it is `fail` where none of these was found.
            contours: Those of a structure set run where the probability is one half (`surface`) or along voxels'
                edges (`voxel`).
            holes: Those in a structure set are kept as outlines of their own (`keep`), filled (`close`), or joined
                to the outline around them (`keyhole`).
            smooth: The contours of a structure set are smoothed, no point by more than 0.5 mm.
            add_to: The new structures are added to this structure set of the same scan.
            overwrite: Files of others that have an output's name are replaced. Inputs are never replaced.
            draw_anyway: Structure sets and segmentations are written even where `quality.doubt` is `strong` and
                the model was trained on synthetic scans, or descends from one that was, without validation on
                patients. Otherwise they are withheld then, with a `UserWarning`.

        Raises:
            InputError: The scan cannot be written in a format, the model has no such structure, or an output has
                the name of an input or of somebody else's file. Nothing is written then.
        """
        wanted, chosen = _several(formats), None if structures is None else _several(structures)
        options = ContourOptions(contours, holes, smooth, None if add_to is None else Path(add_to))
        if options.add_to is not None and not options.add_to.is_file():
            raise InputError(f"{options.add_to}: no such file; expected the structure set to add to")
        if not wanted:
            raise InputError(f"formats names none; expected one or several of {', '.join(FORMATS)}")
        return _saved(self, Path(folder), wanted, chosen, options, overwrite, draw_anyway)

    def _named(self, structure: str | None) -> str:
        name = self.model.target if structure is None else structure
        if name not in self.model.structures:
            raise InputError(f"the model has no structure {name!r}; it has {', '.join(self.model.structures)}")
        return name

    def _in_words(self, structure: str) -> str:
        found = "not found" if self.is_absent else f"{self.volume_ml(structure):.1f} mL"
        return f"{self.scan.name}: {structure.replace('_', ' ')} {found}, verdict {self.quality.verdict}"

    def __repr__(self) -> str:
        reasons = len(self.quality.reasons)
        why = f" for {reasons} reason{'s' if reasons > 1 else ''}" if reasons else ""
        return f"Result({self._in_words(self.model.target)}{why})"


def _several(names: str | Sequence[str]) -> list[str]:
    return [names] if isinstance(names, str) else list(names)


def _colour(number: int) -> str:
    return "#" + "".join(f"{part:02x}" for part in COLOURS[number % len(COLOURS)])


def _saved(
    result: Result,
    folder: Path,
    formats: Sequence[str],
    structures: Sequence[str] | None,
    options: ContourOptions,
    overwrite: bool,
    draw_anyway: bool,
) -> tuple[Path, ...]:
    """Write the files of a result, and the record of a run beside them."""
    scan, model = result.scan, result.model
    prediction, quality = result.prediction, result.quality
    if chosen := chosen_structures(structures, model.card.labels, model.card.tg263):
        prediction, quality = prediction.only(chosen), quality.only(chosen)
    known = checked_formats(formats)
    drawn = {"structure_set": options.key()} if "rtstruct" in known else {}
    provenance = {**model.provenance, **drawn}
    scans = [] if scan.source is None else [scan.source.path]
    reruns = model.predictor.reruns
    record = begun_record(scans, model.paths, folder, formats, options, reruns, draw_anyway, structures)
    kept = [*scan.files, *(file for path in model.paths for file in files_of_model(path))]
    own = OwnFiles(folder, RECORD_NAME, "predict", inputs=kept, overwrite=overwrite)
    if folder.is_dir():
        own.check([])
    written = write_case(
        folder,
        prediction,
        quality,
        scan.source,
        scan=scan.volume,
        formats=known,
        options=options,
        provenance={"input_sha256": scan.source_sha256, **provenance},
        inputs=kept,
        overwrite=overwrite,
        draw_anyway=draw_anyway,
    )
    withheld = () if draw_anyway else withheld_formats(prediction, quality, known)
    outcome = CaseOutcome.of(quality, result.seconds, withheld)
    record.facts |= run_facts(provenance, model.predictor.device, [outcome])
    with in_turn(own.claim, "the record of a prediction"):  # another process may save into this folder, too
        own.commit(record.content())
    if withheld:
        warnings.warn(f"{scan.name}: {withheld_line(withheld)}", stacklevel=4)  # at the line that called save
    return (*written, own.path)


@overload
def predict(
    scans: object,
    models: Paths | Model | None = None,
    output: None = None,
    *,
    device: str = "auto",
    provider: str | None = None,
    reruns: int = MOST_RERUNS,
    series: str | None = None,
    allow_gaps: bool = False,
    allow_tilt: bool = False,
) -> Result: ...


@overload
def predict(
    scans: Paths,
    models: Paths | None = None,
    *,
    output: str | os.PathLike[str],
    device: str = "auto",
    provider: str | None = None,
    reruns: int = MOST_RERUNS,
    series: str | None = None,
    allow_gaps: bool = False,
    allow_tilt: bool = False,
    formats: str | Sequence[str] = ("nifti",),
    structures: str | Sequence[str] | None = None,
    contours: Outline = "surface",
    holes: Holes = "keep",
    smooth: bool = False,
    add_to: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    draw_anyway: bool = False,
    progress: Progress | None = None,
    engine: Engine | None = None,
) -> PredictOutcome: ...


@overload
def predict(
    scans: Paths,
    models: Paths | None,
    output: str | os.PathLike[str],
    *,
    device: str = "auto",
    provider: str | None = None,
    reruns: int = MOST_RERUNS,
    series: str | None = None,
    allow_gaps: bool = False,
    allow_tilt: bool = False,
    formats: str | Sequence[str] = ("nifti",),
    structures: str | Sequence[str] | None = None,
    contours: Outline = "surface",
    holes: Holes = "keep",
    smooth: bool = False,
    add_to: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    draw_anyway: bool = False,
    progress: Progress | None = None,
    engine: Engine | None = None,
) -> PredictOutcome: ...


@_in_one_line
def predict(
    scans: Any,
    models: Any = None,
    output: str | os.PathLike[str] | None = None,
    *,
    device: str = "auto",
    provider: str | None = None,
    reruns: int = MOST_RERUNS,
    series: str | None = None,
    allow_gaps: bool = False,
    allow_tilt: bool = False,
    formats: str | Sequence[str] = ("nifti",),
    structures: str | Sequence[str] | None = None,
    contours: Outline = "surface",
    holes: Holes = "keep",
    smooth: bool = False,
    add_to: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    draw_anyway: bool = False,
    progress: Progress | None = None,
    engine: Engine | None = None,
) -> Result | PredictOutcome:
    """Segment one scan; or, with `output`, whole folders of scans, as `metricunet predict` does.

    Without `output` nothing is written, and a `Result` comes back. For many scans in memory, load the model once
    and call its `predict`.

    Args:
        scans: This is one scan, anything that `load_scan` takes. With `output` these are paths of files, of
            folders of them, or of folders of DICOM series.
        models: This is a model file, or several to be averaged, and by default what `load_model` takes then;
            without `output` it may be a `Model`, which has its own device, provider and reruns.
        output: The files are written into this folder.
        device: It computes; see `load_model`.
        provider: It computes an exported model; see `load_model`.
        reruns: A scan may be segmented again as often as this; see `load_model`.
        series: The series with this SeriesInstanceUID is taken alone.
        allow_gaps: A series with missing or uneven slices is resampled; see `load_scan`.
        allow_tilt: A series of a tilted gantry is resampled; see `load_scan`.
        formats: With `output`, these formats are written; see `Result.save`, also for what follows.
        structures: With `output`, these structures are written.
        contours: With `output`, contours of structure sets run so.
        holes: With `output`, holes in structure sets are drawn so.
        smooth: With `output`, contours of structure sets are smoothed.
        add_to: With `output`, the new structures are added to this structure set.
        overwrite: With `output`, files of others that have an output's name are replaced.
        draw_anyway: With `output`, structure sets are written whatever the doubt is.
        progress: With `output`, it is called with (done, all).
        engine: With `output`, it shares the scans out, as `metricunet.engine.opened` yields it.

    Returns:
        The result; with `output` what became of each scan.

    Raises:
        InputError: Nothing can be done with the input or the arguments.
    """
    if output is None:
        writing = {
            "formats": formats != ("nifti",),
            "structures": structures is not None,
            "contours": contours != "surface",
            "holes": holes != "keep",
            "smooth": smooth,
            "add_to": add_to is not None,
            "overwrite": overwrite,
            "draw_anyway": draw_anyway,
            "progress": progress is not None,
            "engine": engine is not None,
        }
        if given := ", ".join(name for name, is_given in writing.items() if is_given):
            raise InputError(f"{given}: of use with output= alone; give that, or call save on the result")
        scan = load_scan(scans, series=series, allow_gaps=allow_gaps, allow_tilt=allow_tilt)
        if not isinstance(models, Model):
            paths = _chosen(models)
            return Model(paths, _opened(paths, device, reruns, provider)).predict(scan)
        if device != "auto" or reruns != MOST_RERUNS or provider is not None:
            raise InputError(
                "device, provider and reruns: a loaded model has its own; give them to load_model, or a path here"
            )
        return models.predict(scan)
    if isinstance(models, Model):
        raise InputError("with output=, models must be paths; for a loaded model, call its predict and save")
    return predict_files(
        _listed(scans),
        _chosen(models),
        Path(output),
        device=device,
        provider=provider,
        reruns=reruns,
        series=series,
        allow_gaps=allow_gaps,
        allow_tilt=allow_tilt,
        formats=_several(formats),
        structures=None if structures is None else _several(structures),
        contours=contours,
        holes=holes,
        smooth=smooth,
        add_to=None if add_to is None else Path(add_to),
        overwrite=overwrite,
        draw_anyway=draw_anyway,
        progress=progress,
        engine=engine,
    )


@overload
def evaluate(
    prediction: object,
    reference: object,
    output: None = None,
    *,
    scan: object = None,
    names: str | os.PathLike[str] | None = None,
    tolerance_mm: float | None = None,
    tolerances_mm: Mapping[str, float] | None = None,
) -> dict[str, Measures]: ...


@overload
def evaluate(
    prediction: str | os.PathLike[str],
    reference: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    scan: str | os.PathLike[str] | None = None,
    names: str | os.PathLike[str] | None = None,
    tolerance_mm: float | None = None,
    tolerances_mm: Mapping[str, float] | None = None,
    images: str | os.PathLike[str] | None = None,
    write_card: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Evaluation: ...


@_in_one_line
def evaluate(
    prediction: Any,
    reference: Any,
    output: str | os.PathLike[str] | None = None,
    *,
    scan: Any = None,
    names: str | os.PathLike[str] | None = None,
    tolerance_mm: float | None = None,
    tolerances_mm: Mapping[str, float] | None = None,
    images: str | os.PathLike[str] | None = None,
    write_card: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> dict[str, Measures] | Evaluation:
    """Measure a prediction against its reference; or, with `output`, whole folders, as `metricunet evaluate` does.

    Structures are those of the dataset.json beside the reference file or one folder above; without one, those of
    the result, or label 1 is the prostate. A `Result`, and a mask with the verdict that was written beside it
    (CASE.quality.json), is compared by the names of structures, all else by label values. A structure that was not
    contoured in the reference (contoured.json) is left out.

    Where a side is a DICOM structure set or segmentation, both are compared by names: those of the names file that
    the reference has, else those that both sides have. What the reference has no contour of is left out, what the
    prediction has none of was missed.

    Args:
        prediction: This is a `Result`, or a label map: a file, a `Volume`, or an image of nibabel or SimpleITK; or
            the file of a structure set or segmentation. With `output` it is one such file, or a folder of them.
        reference: This is a label map on the same grid: a file, a `Volume`, or an image of nibabel or SimpleITK;
            or the file of a structure set or segmentation. With `output` it is one such file, a folder of them,
            or a cohort.
        output: The folder receives cases.csv, summary.json and report.html.
        scan: All is measured on the grid of this scan: a path or a `Scan`; with `output` a path of one or several.
            Structure sets and segmentations need their DICOM series; a `Result` of a series has it.
        names: This names file, as of an import, says which spellings of a name mean which structure.
        tolerance_mm: By so much a contour may be off in added path length and surface Dice; 2 by default.
        tolerances_mm: Structures of these names have a tolerance of their own.
        images: With `output`, the report's pictures show these scans: a folder of them, or one.
        write_card: With `output`, a copy of this model file, which made the predictions, is written into that
            folder with the scores in its card. It takes 20 or more scans of patients that no training has seen.
        overwrite: With `output`, files of others that have an output's name are replaced.
        progress: With `output`, it is called with the steps done and the steps in all.

    Returns:
        The measures of each structure; with `output` the rows and the summary of all cases.

    Raises:
        InputError: Something cannot be read, the two grids differ, a voxel names no structure, contours were drawn
            on another scan, or no structure has a name that both sides have.
    """
    if output is not None:
        if not isinstance(prediction, str | os.PathLike) or not isinstance(reference, str | os.PathLike):
            raise InputError("with output=, both must be paths; save the result, and evaluate its folder")
        if scan is not None and not isinstance(scan, str | os.PathLike):
            raise InputError(f"with output=, scan must be a path; got {type(scan).__name__}")
        return evaluate_files(
            Path(prediction),
            Path(reference),
            Path(output),
            scan=None if scan is None else Path(scan),
            names=None if names is None else Path(names),
            tolerance_mm=tolerance_mm,
            tolerances_mm=tolerances_mm,
            images=None if images is None else Path(images),
            write_card=None if write_card is None else Path(write_card),
            overwrite=overwrite,
            progress=progress,
        )
    if images is not None or write_card is not None or overwrite or progress is not None:
        raise InputError(
            "images, write_card, overwrite and progress are for the report of whole folders; give output="
        )
    naming = Naming(None if names is None else read_names(Path(names)))
    sides = _ComparedSide.of(prediction, "the prediction"), _ComparedSide.of(reference, "the reference")
    files = [side.file for side in sides if side.file is not None]
    if files or scan is not None or names is not None:
        if not files and names is None:
            naming = Naming(exact=True)
        return _compared_on_scan(sides, _case_scan(scan, prediction, files), naming, tolerance_mm, tolerances_mm)
    of_model = prediction.model.card.labels if isinstance(prediction, Result) else None
    found, truth = sides
    labels, ignore, unknown = truth.maps(found.labels or DEFAULT_LABELS)
    shared = [name for name in labels if of_model is None or name in of_model]
    if not shared:
        raise InputError(
            f"{truth.name}: holds {', '.join(labels)}, and the model segments {', '.join(of_model or {})}; "
            "nothing can be compared"
        )
    drawn, predicted = truth.volume(), found.volume()
    if isinstance(prediction, Result):
        masks = {name: prediction.mask(name).array for name in shared}
        array = np.zeros(predicted.array.shape, dtype=np.uint16)
        for name in shared:
            array[masks[name]] = labels[name]
        predicted = predicted.with_array(array)
    else:  # the values of a predicted mask are the model's, whatever the references call them
        predicted, _ = in_terms_of(labels, predicted, read_quality(found.quality).labels)
    tolerances = choose_tolerances({n: n for n in shared}, Naming(exact=True), tolerance_mm, tolerances_mm)
    p, r = comparable(predicted, drawn, set(labels.values()), ignore, (found.name, truth.name))
    return {
        name: measure(
            p.with_array(p.array == labels[name]), r.with_array(r.array == labels[name]), tolerances[name]
        )
        for name in shared
        if name not in unknown
    }


@dataclass(frozen=True, eq=False)
class _ComparedSide:
    """What `evaluate` was given for one side.

    Attributes:
        name: what to call it in messages.
        source: as it was given.
        file: what it says of itself, where it is a structure set or segmentation.
        labels: of the model, where it is a result.
    """

    name: str
    source: Any
    file: ContourFile | None = None
    labels: dict[str, int] | None = None

    @classmethod
    def of(cls, source: Any, name: str) -> _ComparedSide:
        if isinstance(source, Result):
            return cls(f"the result of {source.scan.name}", source, labels=dict(source.model.card.labels))
        if not isinstance(source, str | os.PathLike):
            return cls(name, source)
        path = Path(source)
        if path.is_dir():
            raise InputError(f"{path}: is a folder; give the file of one case, or output= to score all of them")
        kind = contour_kind(path) if path.is_file() and not is_scan(path) else None
        return cls(str(path), path, None if kind is None else read_contour_file(path, kind))

    @property
    def quality(self) -> Path | None:
        """The verdict that a predictor wrote beside the file of its label map, if there is one."""
        is_mask = isinstance(self.source, Path) and self.file is None
        return quality_beside(self.source) if is_mask else None

    def volume(self) -> Volume:
        """Return its label map."""
        return self.source.labels if isinstance(self.source, Result) else _label_map(self.source, self.name)

    def maps(
        self, otherwise: Mapping[str, int] = DEFAULT_LABELS
    ) -> tuple[dict[str, int], int | None, tuple[str, ...]]:
        """Return what the values of its label map mean, the ignored value, and what was not contoured."""
        if self.labels is not None or not isinstance(self.source, Path):
            return dict(self.labels or otherwise), None, ()
        labels, ignore, not_contoured = labels_beside(self.source.parent, otherwise)
        return labels, ignore, not_contoured.get(case_name(self.source), ())


def _case_scan(scan: Any, prediction: Any, files: Sequence[ContourFile]) -> CaseScan | Scan | None:
    """Return the scan that a case is measured on; None where there is none.

    Raises:
        InputError: structure sets or segmentations without the series that they were drawn on.
    """
    found: CaseScan | Scan | None = None
    if scan is None and isinstance(prediction, Result) and files:
        scan = prediction.scan
    if isinstance(scan, str | os.PathLike):
        path = Path(scan)
        finder = SeriesFinder.at(path)
        if finder is None:
            found = CaseScan(path)
        else:
            series = finder.of_files(files) if files else finder.of_case("")
            if series is None:
                raise InputError(f"{path}: holds {len(finder.search.series)} CT series; give the folder of one")
            found = CaseScan(series.folder, series)
    elif isinstance(scan, Scan):
        series = None if scan.source is None else scan.source.series
        found = scan if series is None else CaseScan(series.folder, series)
    elif scan is not None:
        raise InputError(f"scan cannot be a {type(scan).__name__}; expected a path, or what load_scan returns")
    if files and not (isinstance(found, CaseScan) and found.series is not None):
        raise InputError(
            f"{files[0].path}: is a DICOM structure set or segmentation, whose contours lie on a DICOM scan; give "
            f"the folder of that series by {argument('scan')}"
        )
    return found


def _compared_on_scan(
    sides: tuple[_ComparedSide, _ComparedSide],
    scan: CaseScan | Scan | None,
    naming: Naming,
    tolerance_mm: float | None,
    tolerances_mm: Mapping[str, float] | None,
) -> dict[str, Measures]:
    """Compare by names, on the grid of a scan or of the reference."""
    series = scan.series if isinstance(scan, CaseScan) else None
    if scan is None:
        grid, grid_name = sides[1].volume().geometry, sides[1].name
    else:
        grid = scan.geometry() if isinstance(scan, CaseScan) else scan.volume.geometry
        grid_name = f"the scan {scan.path}" if isinstance(scan, CaseScan) else "the scan"
    maps = [
        LabelMaps(
            labels,
            ignore,
            {"": unknown},
            named_in=side.source.parent / "dataset.json" if isinstance(side.source, Path) else None,
        )
        for side, (labels, ignore, unknown) in (
            (sides[0], sides[0].maps()),
            (sides[1], sides[1].maps(sides[0].labels or DEFAULT_LABELS)),
        )
    ]
    quality = sides[0].quality
    own = read_quality(quality).labels
    if not naming.exact:
        maps[0] = maps[0].as_predicted(own, naming, quality)
    elif sides[0].labels is None:
        maps[0] = maps[1]  # one dataset.json for both
    named = [
        tuple(one.labels) if side.file is None else counted_names(side.file.names, naming, side is sides[0])
        for side, one in zip(sides, maps, strict=True)
    ]
    titles = [name for side, one in zip(sides, maps, strict=True) if side.file is None for name in one.labels]
    case = (sides[1].name,) if series is None else (series.case, series.series_uid)
    names = sides[0].name, sides[1].name
    chosen = choose_structures(naming, [NamedCase(case, *named)], titles, names)
    tolerances = choose_tolerances(chosen.keys, naming, tolerance_mm, tolerances_mm)
    opened: list[Side] = []
    for side, one in zip(sides, maps, strict=True):
        if side.file is not None:
            assert series is not None  # there is no comparing such a file without it
            keys = set(chosen.keys.values())
            opened.append(open_side(side.file, series, naming, keys, predicted=side is sides[0]))
        else:
            values = on_grid(side.volume(), grid, side.name, grid_name)
            if naming.exact and side is sides[0]:
                values, _ = in_terms_of(one.labels, values, own)
            opened.append(label_side(side.name, values, one, naming, ""))
    absent = {name for name, key in chosen.keys.items() if naming.is_absent(key, *case)}
    found = measure_sides(case[0], opened[0], opened[1], grid, chosen.keys, tolerances, absent)
    for fault in found.faults:
        raise fault.error
    return {row.structure: row.measures for row in found.rows if row.contoured}


def _label_map(source: object, name: str) -> Volume:
    """Return a label map; `name` is what to call it in messages."""
    if isinstance(source, Path):
        return read_labels(source)
    if is_nibabel(source):
        source = volume_of_nibabel(source)
    elif is_simpleitk(source):
        source = volume_of_simpleitk(source)
    if not isinstance(source, Volume):
        raise InputError(
            f"{name}: cannot be a {type(source).__name__}; expected a file, a Volume, or an image of nibabel or "
            "SimpleITK"
        )
    if source.array.dtype.kind == "b":
        source = source.with_array(source.array.astype(np.uint8))
    return label_volume(name, source)


@_in_one_line
def train(
    cohort: str | os.PathLike[str] | None,
    output: str | os.PathLike[str],
    *,
    phantoms: Literal["easy", "real", "varied"] | None = None,
    workers: int = 1,
    preset: str | None = None,
    config: str | os.PathLike[str] | None = None,
    settings: Mapping[str, Any] | Sequence[str] = (),
    fold: int | Literal["all", "each"] = 0,
    device: str = "auto",
    devices: int = 1,
    nodes: int = 1,
    init: str | os.PathLike[str] | None = None,
    freeze: Literal["encoder"] | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    loggers: Sequence[Logger | str] = (),
    engine: Engine | None = None,
) -> Path:
    """Train both stages on a cohort, as `metricunet train` does, and return the path of the model file.

    Args:
        cohort: This is an nnU-Net raw data set: dataset.json, imagesTr/CASE_0000.nii.gz, labelsTr/CASE.nii.gz. It
            is None with `phantoms`.
        output: The run's folder is new or empty, and receives config.yaml, log.csv, checkpoints,
            model.safetensors and run.json.
        phantoms: Synthetic scans of this difficulty are made beside the training, in place of a cohort.
        workers: This many processes make these scans; the model does not depend on it.
        preset: The settings begin with `default`, or with `small` for a CPU. Where none is named they begin with
            `default` or, with `init`, with the networks of the model and a short training.
        config: The settings of this YAML file replace the preset's.
        settings: Single settings replace both: `{"segment.epochs": 20}`, or `["segment.epochs=20"]` as on the
            command line.
        fold: The run is validated on this fold; `all` trains on every case. `each` trains every fold in a folder
            of its own and scores each case by the model that has not seen it, with a `UserWarning` where one could
            not be segmented or scored. The path that comes back is then that of `output`, which `load_model` and
            `predict` take for the models of all folds.
        device: It computes; see `load_model`.
        devices: This many devices of this computer train together. With more than one your script is run once for
            each, up to this call, after which the first process goes on alone.
        nodes: This many computers train together, on each of which the script is started.
        init: The training begins from this model file, or from the model that comes with the package: `base`.
            Structures that it lacks begin with random weights; run.json lists them.
        freeze: With `init`, `encoder` keeps the encoders of all networks as they are.
        resume: A run that was stopped is continued.
        progress: It is called with (done, all) while the cohort is prepared.
        loggers: These are told the numbers of each epoch as log.csv has them. `mlflow` and `wandb` write into the
            run's folder; `tensorboard` does wherever it is installed. Loggers of Lightning, such as
            `lightning.fabric.loggers.CSVLogger`, stay open: finalize them when you are done. `fold="each"` takes
            names alone, each of which opens a logger for each fold.
        engine: It trains the folds of `fold="each"`, or makes the synthetic scans of `phantoms`; it is what
            `metricunet.engine.opened` yields.

    Raises:
        InputError: A cohort, setting, model or folder cannot work, or a fold of several failed; the message names
            it.
    """
    from metricunet.files.model import read_card
    from metricunet.training.config import load_config
    from metricunet.training.cross_validation import cross_validate
    from metricunet.training.fit import refuse_idle
    from metricunet.training.fit import train as train_model
    from metricunet.training.start import initial_model

    start = None if init is None else initial_model(init)
    # A preset that is named decides, and the card is not asked.
    parent = None if start is None or preset is not None else read_card(start)
    resolved = load_config(
        preset,
        None if config is None else Path(config),
        settings,
        phantoms=phantoms,
        freeze=freeze,
        parent=parent,
    )
    source = None if cohort is None else Path(cohort)
    chosen = _fold_of(fold)
    refuse_idle(source, chosen, workers=workers, engine=engine)
    if chosen == "each":
        if devices * nodes > 1:
            raise InputError("devices and nodes are for one fold; fold='each' trains each fold on one device")
        named = [one for one in loggers if isinstance(one, str)]
        if len(named) < len(loggers):
            raise InputError(
                "loggers: an open logger cannot tell the folds of fold='each' apart; give names such as 'mlflow', "
                "or train the folds singly with it"
            )
        crossed = cross_validate(
            source,
            Path(output),
            config=resolved,
            init=start,
            resume=resume,
            device=device,
            loggers=named,
            engine=engine,
            bar=lambda name: progress or no_progress,
        )
        if lost := crossed.lost:
            more = f"; and {len(lost) - MOST_LOST} more" if len(lost) > MOST_LOST else ""
            some = "; ".join(lost[:MOST_LOST])
            warnings.warn(
                f"{crossed.folder}: cases that could not be segmented or scored: {some}{more}",
                stacklevel=3,  # at the line that called train
            )
        for failed in crossed.failed:
            raise InputError(
                f"{failed.spec.folder}: fold {failed.spec.fold} failed ({failed.error}); the others are finished: "
                f"{argument('resume', True)} tries it again"
            ) from failed.cause
        return crossed.folder
    return train_model(
        source,
        Path(output),
        config=resolved,
        workers=workers,
        devices=devices,
        nodes=nodes,
        fold=chosen,
        init=start,
        resume=resume,
        device=device,
        progress=progress,
        loggers=loggers,
        engine=engine,
    )


def _fold_of(fold: object) -> Fold | Literal["each"]:
    """Return a fold as a training takes it; one of numpy's whole numbers is a whole number."""
    if isinstance(fold, int | np.integer) and not isinstance(fold, bool):
        return int(fold)
    if isinstance(fold, str):
        if fold == "all":
            return "all"
        if fold == "each":
            return "each"
    raise InputError(f"fold must be a whole number, 'all' or 'each'; got {fold!r}")


def _opened(paths: tuple[Path, ...], device: str, reruns: int, provider: str | None = None) -> Segmenter:
    check_models(paths, reruns)
    return open_predictor(paths, device, provider=provider, reruns=reruns)


def _chosen(models: Paths | None) -> tuple[Path, ...]:
    """Return the model files to segment with, and warn of what has to be said of them."""
    paths = chosen_models() if models is None else tuple(f for path in _listed(models) for f in models_at(path))
    for warning in warnings_of(paths):
        warnings.warn(warning, stacklevel=4)  # at the line that called this package
    return paths


def _listed(paths: Any) -> tuple[Path, ...]:
    if isinstance(paths, str | os.PathLike):
        return (Path(paths),)
    if not isinstance(paths, Sequence) or not all(isinstance(path, str | os.PathLike) for path in paths):
        raise InputError(f"expected a path, or a list of them; got {type(paths).__name__}")
    return tuple(Path(path) for path in paths)
