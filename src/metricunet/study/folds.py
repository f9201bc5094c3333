"""What all arms and seeds of a fold share: stage 1, and where it finds the target in the cases to score.

Localisation is the same for every run of a fold. So each scan is located once and cut, on its own grid, to what
stage 2 may read and to what its references hold; a run reads these cuts and gets the masks that it would get from
the whole scans. What the tables need of a fold lies in prepared.json, which is enough where all its runs are
finished.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from metricunet.cohort.case import read_case
from metricunet.cohort.layout import Case, DatasetInfo, read_cohort
from metricunet.cohort.splits import Fold, split_for
from metricunet.cohort.uncontoured import uncontoured_cases, unseen_cases
from metricunet.errors import InputError
from metricunet.files.atomic import written_whole
from metricunet.files.own import read_sealed, write_sealed
from metricunet.files.record import sha256
from metricunet.files.scan import scan_files
from metricunet.progress import Bars, no_bars
from metricunet.stages.forward import coarse_probabilities
from metricunet.stages.locate import Localisation, localise, locate_spec
from metricunet.study.data import ScoredCase
from metricunet.study.design import Labels
from metricunet.study.sharing import refuse_others
from metricunet.training.config import TrainConfig
from metricunet.training.fit import Located, open_run, train_locate, trained_locate
from metricunet.training.run import Run, state_file
from metricunet.volume import Geometry, Volume

LOCATE_NAME = "locate.safetensors"
#: Record of what a fold came to: all that its finished runs and the tables need of it.
PREPARED_NAME = "prepared.json"
#: Folders of the cuts: of the cases to score, and of the training cases that probes are fitted on.
SCORED, FITTING = "cuts", "fitting"
#: Raised whenever a cut would come out differently.
CUT_VERSION = 1


class OtherScoredCases(InputError):  # noqa: N818 - it is what was found
    """The finished runs of a fold were scored on other cases than are here."""


@dataclass(frozen=True)
class FoldSpec:
    """What it takes to prepare a fold: to train its stage 1, and to locate and cut its cases.

    Attributes:
        folder: folder for stage 1 and the cuts.
        cohort: folder of the cohort that training reads.
        config: configuration of the base.
        fold: number of the fold to validate on, or `all`.
        cases: cases to score, which are to be located and cut.
        fitting: training cases that are to be located and cut, too, so that probes of features can be fitted on
            them.
        half_mm: half the sides of what stage 2 may read: slice, row, column.
        cache_fallback: folder for prepared cases where the cohort is read-only.
        device: `auto`, `cpu`, `cuda`, `cuda:N`, `gpu`, `gpu:N` or `mps`.
        finished: whether all its runs have their tables, so that none of them needs stage 1 or a cut.
        further: whether any of its runs learns from cases that stage 1 does not read: from scans without contours,
            or from labels that are not to be read in other runs.
    """

    folder: Path
    cohort: Path
    config: TrainConfig
    fold: Fold
    cases: tuple[ScoredCase, ...]
    fitting: tuple[ScoredCase, ...]
    half_mm: tuple[float, float, float]
    cache_fallback: Path
    device: str
    finished: bool = False
    further: bool = False


@dataclass(frozen=True)
class PreparedFold:
    """What a fold that was prepared came to.

    Attributes:
        fold: number of the fold, or `all`.
        data_sha256: hash of the training and validation cases.
        locate_sha256: hash of stage 1's file.
        scored_sha256: hash of the scored cases, images and references.
        labels: name of each structure to its value.
        ignore: value of voxels that nobody contoured, or None.
        off_mm: how far from the target's centroid stage 1 puts it, for each of the scored cases that hold the
            target; None where it finds nothing.
        uncontoured_sha256: hash of the scans that runs learn from without contours; empty where none does.
        revealed_sha256: hash of the cases whose labels some runs alone read; empty likewise.
    """

    fold: Fold
    data_sha256: str
    locate_sha256: str
    scored_sha256: str
    labels: dict[str, int]
    ignore: int | None
    off_mm: tuple[float | None, ...]
    uncontoured_sha256: str = ""
    revealed_sha256: str = ""


@dataclass(frozen=True, eq=False)
class Cut:
    """The part of a scan that counts: what stage 2 may read, and all that the references hold.

    Attributes:
        name: name of the case.
        image: HU on the scan's own grid; axes to the head, the back and the left.
        references: whose contours they are to label values on the image's grid.
        found: what stage 1 made of the whole scan.
        source_sha256: hash of the image and the references.
        not_contoured: structures that the references say nothing of.
    """

    name: str
    image: Volume
    references: dict[str, Volume]
    found: Localisation
    source_sha256: str
    not_contoured: tuple[str, ...] = ()

    def holds(self, value: int) -> bool:
        """Tell whether the first reference holds a structure."""
        return bool((next(iter(self.references.values())).array == value).any())

    def off_mm(self, value: int) -> float | None:
        """Return how far a structure's centroid, in the first reference, is from what stage 1 found, if it did."""
        if self.found.centre_mm is None:
            return None
        voxels = np.argwhere(next(iter(self.references.values())).array == value)
        return float(np.linalg.norm(self.image.geometry.to_world(voxels.mean(axis=0)) - self.found.centre_mm))


@dataclass(frozen=True, eq=False)
class StoredStageOne:
    """A trained stage 1 as it is kept: what goes into the models of all runs, without a network built of it.

    Attributes:
        tensors: weights by their names in a model file.
        errors_mm: localisation errors [cases, 3]; see `metricunet.training.fit.Located`.
    """

    tensors: dict[str, Tensor]
    errors_mm: NDArray[np.float64]

    def weights(self) -> dict[str, Tensor]:
        """Return the weights by their names in a model file."""
        return self.tensors


def fold_folder(output: Path, labels: Labels | None, fold: Fold) -> Path:
    """Return where stage 1 of a fold and its cuts lie in a study's folder."""
    return output / "stage-one" / (labels or "") / f"fold-{fold}"


def prepare_fold(spec: FoldSpec, bar: Bars = no_bars) -> PreparedFold:
    """Train stage 1 of a fold, or resume its training, and cut the cases to score. What is done already is kept.

    A finished fold of which this folder holds the record alone, as its runs were carried out elsewhere, is neither
    trained nor cut.

    Args:
        spec: what it takes to prepare the fold.
        bar: opens a progress bar by its name.

    Raises:
        OtherScoredCases: a finished fold, and other cases to score than its runs had.
        InputError: cases that cannot be used, or a folder with a stage 1 of other settings, cases or version.
    """
    refuse_others(spec.folder, state_file(spec.folder), "stage 1 of a study")
    kept = None if can_be_cut_from(spec.folder) or not spec.finished else read_prepared(spec.folder)
    if kept is not None and scored_sha256(spec.cases) != kept.scored_sha256:
        raise OtherScoredCases(_other_cases(spec, "scored"))
    run = open_run(
        spec.cohort,
        spec.folder,
        spec.config,
        spec.fold,
        resume=state_file(spec.folder).is_file(),
        device=spec.device,
        cache_fallback=spec.cache_fallback,
        progress=bar("preparing"),
    )
    if kept is not None:
        if kept.data_sha256 != run.data_sha256:
            raise InputError(_other_cases(spec, "training"))
        uncontoured, revealed = further_sha256(spec)
        return replace(kept, uncontoured_sha256=uncontoured, revealed_sha256=revealed)
    located = trained_in(spec.folder, run)
    locate_sha256 = sha256([spec.folder / LOCATE_NAME])
    hashes, off_mm, progress = [], [], bar("locating")
    target = run.labels[spec.config.target]
    steps = len(spec.cases) + len(spec.fitting)
    for done, case in enumerate(spec.cases, start=1):
        cut = _cut(spec, SCORED, case, run, located, locate_sha256)
        hashes.append((cut.name, cut.source_sha256, cut.not_contoured))
        if cut.holds(target):
            off_mm.append(cut.off_mm(target))
        progress(done, steps)
    for done, case in enumerate(spec.fitting, start=len(spec.cases) + 1):
        _cut(spec, FITTING, case, run, located, locate_sha256)
        progress(done, steps)
    prepared = PreparedFold(
        spec.fold,
        run.data_sha256,
        locate_sha256,
        _one_hash(hashes),
        run.labels,
        run.info.ignore,
        tuple(off_mm),
        *further_sha256(spec),
    )
    _write_prepared(spec.folder, prepared)
    return prepared


def scored_sha256(cases: Iterable[ScoredCase]) -> str:
    """Return the hash of scored cases, their images and references, as `PreparedFold` has it.

    Raises:
        InputError: a file that cannot be read.
    """
    hashes = []
    for case in cases:
        try:
            source = sha256([case.image, *case.references.values()])
        except OSError as error:
            raise _unreadable(error) from error
        hashes.append((case.name, source, case.not_contoured))
    return _one_hash(hashes)


def further_sha256(spec: FoldSpec) -> tuple[str, str]:
    """Return the hashes of the cases that runs of a fold learn from and stage 1 does not read.

    Args:
        spec: of the fold.

    Returns:
        `uncontoured_sha256` and `revealed_sha256` of a `PreparedFold`.

    Raises:
        InputError: a file that cannot be read.
    """
    if not spec.further:
        return "", ""
    cohort = read_cohort(spec.cohort)
    split = split_for(cohort, spec.fold)
    unseen = unseen_cases(cohort, split)
    revealed = [c for c in cohort.training if c.name in split.unlabeled and c.name not in unseen]
    return _cases_sha256(uncontoured_cases(cohort, split, spec.config.target)), _cases_sha256(revealed)


def _cases_sha256(cases: Iterable[Case]) -> str:
    """Return one hash of cases, of their images and of the labels that they have."""
    hashes = []
    for case in cases:
        files = (*scan_files(case.image), *(() if case.label is None else scan_files(case.label)))
        try:
            hashes.append((case.name, " ".join(map(_sha256_once, files)), case.not_contoured))
        except OSError as error:
            raise _unreadable(error) from error
    return _one_hash(hashes)


def _sha256_once(path: Path) -> str:
    """Hash a file; most of these are the same in every fold."""
    status = path.stat()
    return _known_sha256(path, status.st_size, status.st_mtime_ns)


@cache
def _known_sha256(path: Path, size: int, mtime_ns: int) -> str:
    return sha256([path])


def _unreadable(error: OSError) -> InputError:
    return InputError(f"{error.filename}: cannot be read ({error.strerror or error})")


def read_prepared(folder: Path) -> PreparedFold | None:
    """Return what a fold came to when it was prepared; None where no record says so, or anybody has changed it.

    Args:
        folder: folder of the fold.
    """
    content = read_sealed(folder / PREPARED_NAME)
    try:
        return None if content is None else PreparedFold(**_prepared_fields(content))
    except (KeyError, TypeError):
        return None  # of another version


def _prepared_fields(content: dict[str, Any]) -> dict[str, Any]:
    later = {name: content.get(name, "") for name in ("uncontoured_sha256", "revealed_sha256")}
    values = {name: content[name] for name in PreparedFold.__dataclass_fields__ if name not in later} | later
    return values | {"off_mm": tuple(values["off_mm"])}


def _write_prepared(folder: Path, prepared: PreparedFold) -> None:
    """Write the record of a fold, unless it is there; one that somebody changed is theirs."""
    path = folder / PREPARED_NAME
    if read_prepared(folder) != prepared and (not os.path.lexists(path) or read_sealed(path) is not None):
        write_sealed(path, asdict(prepared), {})


def can_be_cut_from(folder: Path) -> bool:
    """Tell whether a fold was prepared in this folder: stage 1 is there, and cuts are."""
    return (folder / LOCATE_NAME).is_file() and (folder / SCORED).is_dir()


def _one_hash(cases: Iterable[tuple[str, str, Sequence[str]]]) -> str:
    """Return one hash of cases: their names, the hashes of their files, and what was not contoured in them."""
    lines = [f"{name}:{source}{':' + ','.join(unknown) if unknown else ''}" for name, source, unknown in cases]
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


def _other_cases(spec: FoldSpec, kind: str) -> str:
    return (
        f"{spec.folder / PREPARED_NAME}: the runs of this fold were carried out on other {kind} cases than "
        f"{spec.cohort} holds on this machine; results must not be mixed: bring the files here that they were "
        "carried out on, byte for byte, or begin the study anew in other folders"
    )


def trained_in(folder: Path, run: Run, *, may_find_nothing: bool = False) -> Located:
    """Train stage 1 of a run and keep it in a folder, or read the one that is there.

    Raises:
        InputError: as `train_locate` and `read_located`.
    """
    path = folder / LOCATE_NAME
    if not path.is_file():
        _write_located(path, train_locate(run, may_find_nothing=may_find_nothing))
    return read_located(folder, run)


def read_located(folder: Path, run: Run) -> Located:
    """Read the stage 1 of a folder, ready to locate with.

    Raises:
        InputError: as `read_stage_one`.
    """
    stored = read_stage_one(folder)
    return trained_locate(run, stored.tensors, stored.errors_mm)


@lru_cache(maxsize=1)
def shared_stage_one(folder: Path, locate_sha256: str) -> StoredStageOne:
    """Return the stage 1 that the runs of a fold share; runs that follow each other read its file once.

    Args:
        folder: folder of the fold.
        locate_sha256: hash of the file; another file is another stage 1.

    Raises:
        InputError: as `read_stage_one`.
    """
    return read_stage_one(folder)


def read_stage_one(folder: Path) -> StoredStageOne:
    """Read what is kept of a stage 1 in a folder.

    Raises:
        InputError: a damaged file, or one that another version wrote.
    """
    path = folder / LOCATE_NAME
    try:
        with safe_open(path, "pt") as handle:
            facts = json.loads(handle.metadata()["stage_one"])
        weights = load_file(path)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: damaged ({error}); delete {folder} and run again") from error
    if facts["version"] != version("metricunet"):
        raise InputError(
            f"{path}: trained by metricunet {facts['version']}, this is {version('metricunet')}; go on with the "
            "version that the study was begun with, or start anew in another folder"
        )
    return StoredStageOne(weights, np.array(facts["errors_mm"], dtype=np.float64).reshape(-1, 3))


def read_cut(folder: Path, case: str, kind: str = SCORED) -> Cut:
    """Read the cut of a case.

    Args:
        folder: folder of the fold.
        case: name of the case.
        kind: `SCORED` or `FITTING`.

    Raises:
        InputError: a cut that is not there, or is damaged.
    """
    path = _cut_path(folder, case, kind)
    stored = _load(path)
    if stored is None:
        raise InputError(f"{path}: missing or damaged; run the study again")
    return stored[0]


def _write_located(path: Path, located: Located) -> None:
    facts = {"errors_mm": located.errors_mm.tolist(), "version": version("metricunet")}
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in located.weights().items()}
    content = save(weights, metadata={"stage_one": json.dumps(facts)})
    with written_whole(path) as temporary:  # what safetensors raises on a full disk does not say so
        temporary.write_bytes(content)


def _cut_path(folder: Path, case: str, kind: str) -> Path:
    return folder / kind / f"{case}.npz"


def _cut(spec: FoldSpec, kind: str, case: ScoredCase, run: Run, located: Located, locate_sha256: str) -> Cut:
    """Cut a case, if its cut is not there already."""
    files = [case.image, *case.references.values()]
    key = {
        "cut_version": CUT_VERSION,
        "locate_sha256": locate_sha256,
        "half_mm": list(spec.half_mm),
        "references": list(case.references),
        "not_contoured": list(case.not_contoured),
        "stamps": [[p.stat().st_size, p.stat().st_mtime_ns] for p in files],
    }
    path = _cut_path(spec.folder, case.name, kind)
    stored = _load(path)
    if stored is not None and stored[1] == key:
        return stored[0]
    cut = make_cut(case, run, located, spec.half_mm)
    _store(path, cut, key)
    return cut


def make_cut(case: ScoredCase, run: Run, located: Located, half_mm: tuple[float, float, float]) -> Cut:
    """Locate the target in a scan, and cut scan and references.

    Raises:
        InputError: unreadable files, two different grids, unknown label values, or values that are no HU.
    """
    image, references = read_scan(case, run.info)
    spec = locate_spec(run.config.locate, run.classes)
    found = localise(coarse_probabilities(located.network, spec, image, run.config.precision)[run.target])
    first, shape = _part(image.geometry, found, references, run.info, half_mm)
    return Cut(
        case.name,
        image.crop(first, shape),
        {whose: labels.crop(first, shape) for whose, labels in references.items()},
        found,
        sha256([case.image, *case.references.values()]),
        case.not_contoured,
    )


def read_scan(case: ScoredCase, info: DatasetInfo) -> tuple[Volume, dict[str, Volume]]:
    """Read a scan and its references; axes to the head, the back and the left.

    Raises:
        InputError: unreadable files, two different grids, unknown label values, or values that are no HU.
    """
    scans = {
        whose: read_case(Case(case.name, case.image, path, case.not_contoured), info)
        for whose, path in case.references.items()
    }
    image = next(iter(scans.values())).image.canonical()
    return image, {whose: scan.labels.canonical() for whose, scan in scans.items()}


def _part(
    geometry: Geometry,
    found: Localisation,
    references: dict[str, Volume],
    info: DatasetInfo,
    half_mm: tuple[float, float, float],
) -> tuple[list[int], list[int]]:
    """Return first voxel and sides of the smallest box that holds stage 2's field and every contour."""
    low, high = np.array(geometry.shape), np.zeros(3, dtype=int)
    if found.centre_mm is not None:
        middle = geometry.to_index(found.centre_mm)
        half = np.asarray(half_mm) / np.asarray(geometry.spacing_mm)
        low, high = np.floor(middle - half).astype(int), np.ceil(middle + half).astype(int) + 1
    for labels in references.values():
        held = np.isin(labels.array, list(info.labels.values()))
        for axis in range(3):
            others = tuple(a for a in range(3) if a != axis)
            used = np.flatnonzero(held.any(axis=others))
            if used.size:
                low[axis], high[axis] = min(low[axis], used[0]), max(high[axis], used[-1] + 1)
    low = np.clip(low, 0, np.array(geometry.shape) - 1)
    high = np.clip(high, low + 1, geometry.shape)
    return [int(v) for v in low], [int(v) for v in high - low]


def reach_mm(configs: list[TrainConfig], slack_mm: float = 10.0) -> tuple[float, float, float]:
    """Return half the sides of what stage 2 of any of the configurations may read: slice, row, column.

    Beyond its crop it reads one voxel of its own grid and one of the scan's, by interpolation.

    Args:
        configs: configurations of all arms.
        slack_mm: length that covers the voxels beyond the crop; the coarsest CT has slices of 6 mm.
    """
    sides = [
        [c / 2 + s for c, s in zip(config.segment.crop_mm, config.segment.spacing_mm, strict=True)]
        for config in configs
    ]
    s, r, c = (max(side[axis] for side in sides) + slack_mm for axis in range(3))
    return s, r, c


def _store(path: Path, cut: Cut, key: dict[str, Any]) -> None:
    found = cut.found
    facts = {
        "key": key,
        "name": cut.name,
        "status": found.status,
        "confidence": found.confidence,
        "reason": found.reason,
        "centre_mm": None if found.centre_mm is None else found.centre_mm.tolist(),
        "volume_ml": found.volume_ml,
        "references": list(cut.references),
        "source_sha256": cut.source_sha256,
        "not_contoured": list(cut.not_contoured),
    }
    arrays: dict[str, NDArray[Any]] = {
        "facts": np.frombuffer(json.dumps(facts).encode("utf-8"), dtype=np.uint8),
        "image": cut.image.array,
        "affine": cut.image.geometry.affine,
    }
    for k, labels in enumerate(cut.references.values()):
        arrays[f"reference_{k}"] = labels.array
    with written_whole(path) as temporary, temporary.open("wb") as handle:
        np.savez(handle, allow_pickle=False, **arrays)


def _load(path: Path) -> tuple[Cut, dict[str, Any]] | None:
    """Return a cut and its key; None where there is none or it cannot be read."""
    if not path.is_file():
        return None
    try:
        with path.open("rb") as handle, np.load(handle, allow_pickle=False) as content:
            facts = json.loads(content["facts"].tobytes().decode("utf-8"))
            image = Volume(content["image"], Geometry(content["image"].shape, content["affine"]))
            references = {
                w: image.with_array(content[f"reference_{k}"]) for k, w in enumerate(facts["references"])
            }
        centre = facts["centre_mm"]
        found = Localisation(
            facts["status"],
            facts["confidence"],
            facts["reason"],
            None if centre is None else np.array(centre, dtype=np.float64),
            facts["volume_ml"],
        )
        unknown = tuple(facts["not_contoured"])
        return Cut(facts["name"], image, references, found, facts["source_sha256"], unknown), facts["key"]
    except (OSError, ValueError, KeyError, TypeError, EOFError, BadZipFile):
        return None  # a damaged cut is made anew
