"""Preparing a cohort for training: what the networks read, resampled once and cached.

For each case: the whole scan on stage 1's coarse grid, and a fine box around the target, larger than stage 2's
crop so that the crop can be jittered and turned inside it; where there is an organs' network, a box of its own,
likewise. The cache notices when a file, the settings or the meaning of the labels change.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from metricunet.cohort.case import read_case, refuse_no_hu
from metricunet.cohort.layout import Case, DatasetInfo
from metricunet.errors import InputError
from metricunet.files.atomic import written_whole
from metricunet.files.record import sha256
from metricunet.files.scan import read_scan, scan_files
from metricunet.hu import AIR_HU, why_not_hu
from metricunet.progress import Progress
from metricunet.stages.locate import Localisation, coarse_grid
from metricunet.stages.read import read_hu
from metricunet.stages.segment import central_crop
from metricunet.structures import IGNORE_CLASS, class_of, classes_of, without
from metricunet.volume import Geometry, Volume, resample_labels, voxels_of

#: Raised whenever the cached arrays would come out differently.
CACHE_VERSION = 2
#: Numbers of the errors of a folder that this user may not write.
NOT_ALLOWED = (errno.EACCES, errno.EPERM, errno.EROFS)
#: The boxes of a case around the target: stage 2's, and the organs' network's.
BoxName = Literal["fine", "organs"]


@dataclass(frozen=True)
class OrgansSettings:
    """What the box of the organs' network depends on.

    Attributes:
        structures: the structures that the network segments, in the order of its classes.
        spacing_mm: voxel spacing of the box: slice, row, column.
        box_mm: sides of the box: slice, row, column.
    """

    structures: tuple[str, ...]
    spacing_mm: tuple[float, float, float]
    box_mm: tuple[float, float, float]


@dataclass(frozen=True)
class PrepareSettings:
    """What the cached arrays depend on beside the files.

    Attributes:
        target: the structure the fine box is centred on.
        coarse_spacing_mm: voxel spacing of stage 1: slice, row, column.
        fine_spacing_mm: voxel spacing of stage 2: slice, row, column.
        box_mm: sides of the fine box: slice, row, column.
        organs: the box of the organs' network; None where there is no such network.
    """

    target: str
    coarse_spacing_mm: tuple[float, float, float] = (4.0, 4.0, 4.0)
    fine_spacing_mm: tuple[float, float, float] = (2.0, 1.0, 1.0)
    box_mm: tuple[float, float, float] = (136.0, 160.0, 160.0)
    organs: OrgansSettings | None = None

    @property
    def organs_structures(self) -> tuple[str, ...]:
        """Structures of the organs' network; none where there is none."""
        return () if self.organs is None else self.organs.structures

    def to_json(self) -> dict[str, Any]:
        """Return plain values; without an organs' network, those from before there was one."""
        content: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return {name: value for name, value in content.items() if value is not None}


@dataclass(frozen=True, eq=False)
class TargetBox:
    """A box around the target.

    Attributes:
        hu: int16 HU.
        labels: uint8 classes of the network that reads the box, on the same grid.
        unknown: those of its classes that were not contoured, whose voxels are among the background's.
        located_slices: the first and the last slice that stage 1 found the target in, where it placed the box;
            None where contours did.
    """

    hu: Volume
    labels: Volume
    unknown: tuple[int, ...] = ()
    located_slices: tuple[int, int] | None = None


@dataclass(frozen=True, eq=False)
class PreparedCase:
    """A case as training reads it. Axes run to the head, the back and the left.

    Attributes:
        name: name of the case.
        coarse: int16 HU [slice, row, column] of the whole scan.
        coarse_labels: uint8 classes of the two stages on the same grid: all structures but the organs' network's.
        fine: int16 HU of stage 2's box around the target; where the scan holds none, None or, among the phantoms
            that are made beside a training, a box in which nothing is to be found.
        fine_labels: uint8 classes of the two stages on the same grid.
        facts: numbers that describe the case: `spacing_mm` of the scan, and of the target `volume_ml`,
            `target_hu` and `centre_mm`, which are absent without it. Where stage 1 placed the box of a scan whose
            target nobody contoured: `located_slices`, the first and the last slice of the box that it found it in.
        source_sha256: hash of image and labels.
        unknown: classes of all structures that were not contoured, whose voxels are among the background's.
        organs: int16 HU of the organs' box; None where the scan holds no target, or there is no such network.
        organs_labels: uint8 classes of the organs' network on the same grid.
        organs_classes: the structures of the organs' network, in its order, by their classes among all structures.
        image_sha256: hash of the image's files alone, by which a scan is known again whoever contoured it.
    """

    name: str
    coarse: Volume
    coarse_labels: Volume
    fine: Volume | None
    fine_labels: Volume | None
    facts: dict[str, Any]
    source_sha256: str
    unknown: tuple[int, ...] = ()
    organs: Volume | None = None
    organs_labels: Volume | None = None
    organs_classes: tuple[int, ...] = ()
    image_sha256: str = ""

    def box(self, name: BoxName = "fine") -> TargetBox | None:
        """Return a box around the target; None where the scan holds no target, or there is no such box."""
        own = self.organs_classes
        if name == "organs":
            if self.organs is None or self.organs_labels is None:
                return None
            unknown = tuple(own.index(k) + 1 for k in self.unknown if k in own)
            return TargetBox(self.organs, self.organs_labels, unknown)
        if self.fine is None or self.fine_labels is None:
            return None
        located = self.facts.get("located_slices")
        return TargetBox(
            self.fine, self.fine_labels, self.staged_unknown, None if located is None else (located[0], located[1])
        )

    @property
    def staged_unknown(self) -> tuple[int, ...]:
        """Classes of the two stages that were not contoured."""
        own = self.organs_classes
        return tuple(k - sum(organ < k for organ in own) for k in self.unknown if k not in own)

    def central_crop(self, shape: Sequence[int], name: BoxName = "fine") -> TargetBox | None:
        """Cut a box to its middle; None where the scan holds no target, or there is no such box.

        Args:
            shape: voxels along slice, row and column, no more than the box has.
            name: the name of the box.
        """
        box = self.box(name)
        if box is None:
            return None
        return TargetBox(central_crop(box.hu, shape), central_crop(box.labels, shape), box.unknown)


def prepare(
    cases: Sequence[Case],
    info: DatasetInfo,
    settings: PrepareSettings,
    cache: Path,
    progress: Progress | None = None,
) -> list[PreparedCase]:
    """Read each case from the cache, or from its files where the cache does not hold it as it is now.

    Where the cache is another user's and may only be read, what it lacks is made and not kept.

    Raises:
        InputError: as `metricunet.cohort.case.read_case`; unknown target; a file that has the name of a prepared
            case, and is none that was written here (nothing was written then); a file that changed while it was
            read.
    """
    if settings.target not in info.labels:
        raise InputError(
            f"setting target is {settings.target!r}; it must be one of {', '.join(info.labels)}, as dataset.json "
            "spells them"
        )
    organs = tuple(class_of(info.labels, name) for name in settings.organs_structures)
    stored = {case.name: _stored(case, _key(case, info, settings), cache) for case in cases}
    prepared, unkept = list[PreparedCase](), 0
    for done, case in enumerate(cases, start=1):
        found = stored.pop(case.name)
        if found is None:
            key = _key(case, info, settings)
            found = _prepare(case, info, settings)
            _refuse_changed(case, key, _key(case, info, settings))
            unkept += not _keep(_cache_file(case, cache), found, key)
        unknown = tuple(class_of(info.labels, name) for name in case.not_contoured)
        prepared.append(replace(found, unknown=unknown, organs_classes=organs))
        if progress is not None:
            progress(done, len(cases))
    if unkept:
        logging.getLogger(__name__).warning(
            "%s: may not be written, so %d of %d cases are prepared anew by each training; have its owner open it "
            "to you, or remove it",
            cache,
            unkept,
            len(cases),
        )
    return prepared


def _stored(case: Case, key: dict[str, Any], cache: Path) -> PreparedCase | None:
    """Return what the cache holds of a case under a key; None where that is yet to be written.

    Raises:
        InputError: a file of that name would be replaced, and is not the cache's.
    """
    path = _cache_file(case, cache)
    found = _load(path)
    # Labels in another order are other classes.
    if found is not None and found[1] == key and [*found[1]["labels"]] == [*key["labels"]]:
        stored = found[0]
        if stored.image_sha256:
            return stored
        # A version that stored no such hash may have kept a scan that holds no HU: then its file is read again.
        coarse = stored.coarse.array
        if why_not_hu(float(coarse.min()), float(coarse.max())) is None:
            return replace(stored, image_sha256=sha256(scan_files(case.image)))
    if os.path.lexists(path) and not _is_ours(path):
        raise InputError(
            f"{path}: a prepared case would be written here, and this file was not written by this version of the "
            "program or was changed since; move it elsewhere and run again"
        )
    return None


def _cache_file(case: Case, cache: Path) -> Path:
    return cache / f"{case.name}.npz"


def _key(case: Case, info: DatasetInfo, settings: PrepareSettings) -> dict[str, Any]:
    """Return all that the cached arrays depend on."""
    return {
        "cache_version": CACHE_VERSION,
        "settings": settings.to_json(),
        "labels": info.labels,
        "ignore": info.ignore,
        "not_contoured": list(case.not_contoured),  # its labels are checked against this
        "stamp": [[p.stat().st_size, p.stat().st_mtime_ns] for p in _files(case)],
    }


def _refuse_changed(case: Case, before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    """Refuse a case whose files were replaced while they were read: the cache would give out the old ones as new.

    Raises:
        InputError: it names the case.
    """
    if before != after:
        raise InputError(
            f"{case.image}: this scan or its labels were changed while they were read; run again when nobody "
            "writes to them"
        )


def _files(case: Case) -> tuple[Path, ...]:
    return (*scan_files(case.image), *(() if case.label is None else scan_files(case.label)))


def _read(case: Case, info: DatasetInfo) -> tuple[Volume, Volume | None]:
    """Return the image and the values of its label file; None without one."""
    if case.label is None:
        image = read_scan(case.image).canonical()
        refuse_no_hu(image, case.image)
        return image, None
    scan = read_case(case, info)
    return scan.image.canonical(), scan.labels.canonical()


def _staged(image: Volume, values: Volume | None, info: DatasetInfo, settings: PrepareSettings) -> Volume:
    """Return the classes of the two stages; without labels every voxel is one that nobody contoured."""
    if values is None:
        return image.with_array(np.full(image.array.shape, IGNORE_CLASS, dtype=np.uint8))
    return _classes(values, without(info.labels, settings.organs_structures), info.ignore)


def _prepare(case: Case, info: DatasetInfo, settings: PrepareSettings) -> PreparedCase:
    image, values = _read(case, info)
    labels = _staged(image, values, info, settings)
    target = class_of(without(info.labels, settings.organs_structures), settings.target)
    coarse = coarse_grid(image.geometry, settings.coarse_spacing_mm)
    mask = labels.array == target
    facts: dict[str, Any] = {"spacing_mm": list(image.spacing_mm)}
    fine = fine_labels = organs = organs_labels = None
    if mask.any():
        centre = image.geometry.to_world(np.argwhere(mask).mean(axis=0))
        shape = voxels_of(settings.box_mm, settings.fine_spacing_mm)
        fine_grid = image.geometry.box_around(centre, shape, settings.fine_spacing_mm)
        fine, fine_labels = hu_on(image, fine_grid), resample_labels(labels, fine_grid)
        if settings.organs is not None:
            assert values is not None  # nothing else holds a target
            shape = voxels_of(settings.organs.box_mm, settings.organs.spacing_mm)
            grid = image.geometry.box_around(centre, shape, settings.organs.spacing_mm)
            own = {name: info.labels[name] for name in settings.organs.structures}
            organs, organs_labels = hu_on(image, grid), resample_labels(_classes(values, own, info.ignore), grid)
        facts["volume_ml"] = float(mask.sum()) * labels.geometry.voxel_volume_ml
        facts["target_hu"] = float(np.median(image.array[mask]))
        facts["centre_mm"] = [float(v) for v in centre]
    return PreparedCase(
        case.name,
        hu_on(image, coarse),
        resample_labels(labels, coarse),
        fine,
        fine_labels,
        facts,
        sha256(list(_files(case))),
        organs=organs,
        organs_labels=organs_labels,
        image_sha256=sha256(scan_files(case.image)),
    )


def prepare_located(
    case: Case,
    coarse: PreparedCase,
    info: DatasetInfo,
    settings: PrepareSettings,
    found: Localisation,
    cache: Path,
) -> PreparedCase:
    """Cut the fine box of a scan whose target nobody contoured, around where stage 1 finds it.

    Its labels are what was contoured of other structures, those of the organs' network as background; all else may
    be anything, and is `IGNORE_CLASS`. A box of the organs' network it has none.

    Args:
        case: the scan.
        coarse: what `prepare` made of it.
        info: what dataset.json says.
        settings: the settings that `coarse` was prepared with.
        found: what stage 1 found, which is not absent.
        cache: folder of prepared cases; of each scan the box of one stage 1 is kept there, that of the last.

    Raises:
        InputError: as `prepare`.
    """
    assert found.centre_mm is not None
    assert found.candidate is not None
    shape = voxels_of(settings.box_mm, settings.fine_spacing_mm)
    grid = coarse.coarse.geometry.box_around(found.centre_mm, shape, settings.fine_spacing_mm)
    key = _key(case, info, settings) | {"box": grid.affine.tolist()}
    located = _stored(case, key, cache / "located")
    if located is None:
        image, values = _read(case, info)
        labels = _staged(image, values, info, settings)
        if values is not None:
            labels = labels.with_array(np.where(values.array == 0, np.uint8(IGNORE_CLASS), labels.array))
        located = replace(coarse, fine=hu_on(image, grid), fine_labels=resample_labels(labels, grid))
        _refuse_changed(case, key, key | _key(case, info, settings))
        _keep(_cache_file(case, cache / "located"), located, key)
    candidate = found.candidate.geometry
    ends = candidate.to_world(np.array([[-0.5, 0, 0], [candidate.shape[0] - 0.5, 0, 0]]))
    low, high = np.clip(np.rint(grid.to_index(ends)[:, 0]).astype(int), 0, shape[0] - 1)
    facts = located.facts | {"located_slices": [int(low), int(high)]}
    return replace(located, facts=facts, unknown=coarse.unknown, organs_classes=coarse.organs_classes)


def _classes(values: Volume, labels: Mapping[str, int], ignore: int | None) -> Volume:
    return values.with_array(classes_of(values.array, labels, ignore))


def hu_on(image: Volume, grid: Geometry) -> Volume:
    """Read a scan on a grid of training: int16 HU, air where the scan has none."""
    array = read_hu(image, grid).array
    return Volume(np.rint(np.clip(array, AIR_HU, 32767)).astype(np.int16), grid)


#: What the cache holds of a case, by the names of its attributes.
_VOLUMES = ("coarse", "coarse_labels", "fine", "fine_labels", "organs", "organs_labels")


def _keep(path: Path, case: PreparedCase, key: dict[str, Any]) -> bool:
    """Store a prepared case, and tell whether that was allowed: the cache may be another user's."""
    try:
        _store(path, case, key)
    except InputError as error:
        cause = error.__cause__
        if isinstance(cause, OSError) and cause.errno in NOT_ALLOWED:
            return False
        raise
    return True


def _store(path: Path, case: PreparedCase, key: dict[str, Any]) -> None:
    arrays: dict[str, NDArray[Any]] = {}
    for name in _VOLUMES:
        volume = getattr(case, name)
        if volume is not None:
            arrays[name] = volume.array
            arrays[f"{name}_affine"] = volume.geometry.affine
    described = {name: getattr(case, name) for name in ("name", "facts", "source_sha256", "image_sha256")}
    text = json.dumps({"key": key, **described})
    arrays["description"] = np.frombuffer(text.encode("utf-8"), dtype=np.uint8)
    arrays["seal"] = np.frombuffer(_seal_of(arrays), dtype=np.uint8)
    with written_whole(path) as temporary, temporary.open("wb") as handle:
        np.savez(handle, allow_pickle=False, **arrays)


def _load(path: Path) -> tuple[PreparedCase, dict[str, Any]] | None:
    """Return the cached case and its key; None where there is none or it cannot be read."""
    if not path.is_file():
        return None
    try:
        with path.open("rb") as handle, np.load(handle, allow_pickle=False) as content:
            description = json.loads(content["description"].tobytes().decode("utf-8"))
            volumes = {}
            for name in _VOLUMES:
                if name in content:
                    array = content[name]
                    volumes[name] = Volume(array, Geometry(array.shape, content[f"{name}_affine"]))
        case = PreparedCase(
            description["name"],
            volumes["coarse"],
            volumes["coarse_labels"],
            volumes.get("fine"),
            volumes.get("fine_labels"),
            description["facts"],
            description["source_sha256"],
            organs=volumes.get("organs"),
            organs_labels=volumes.get("organs_labels"),
            # A cache of before lacks it, and holds the very arrays of today.
            image_sha256=description.get("image_sha256", ""),
        )
        return case, description["key"]
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        return None


def _seal_of(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Return the SHA-256 of a cached case, its seal apart: only as long as it holds may the file be replaced."""
    digest = hashlib.sha256()
    for name in sorted(arrays.keys() - {"seal"}):
        array = arrays[name]
        digest.update(f"{name}:{array.dtype.str}:{array.shape}:".encode())
        digest.update(array.tobytes())
    return digest.digest()


def _is_ours(path: Path) -> bool:
    """Whether a file is a cached case with the bytes that were stored."""
    if path.is_symlink() or not path.is_file():
        return False
    try:
        with path.open("rb") as handle, np.load(handle, allow_pickle=False) as content:
            arrays = {name: content[name] for name in content}
        return bool(arrays["seal"].tobytes() == _seal_of(arrays))
    except (OSError, ValueError, KeyError, EOFError, BadZipFile, AttributeError):
        return False


def cohort_sha256(cases: Sequence[PreparedCase]) -> str:
    """One hash over the files of all cases and what was not contoured in them, in the order of their names."""
    digest = hashlib.sha256()
    for case in sorted(cases, key=lambda c: c.name):
        unknown = f":{case.unknown}" if case.unknown else ""
        digest.update(f"{case.name}:{case.source_sha256}{unknown}\n".encode())
    return digest.hexdigest()
