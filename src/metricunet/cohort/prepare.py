"""Preparing a cohort for training: what both stages read, resampled once and cached.

For each case: the whole scan on stage 1's coarse grid, and a fine box around the target, larger than stage 2's
crop so that the crop can be jittered and turned inside it. The cache notices when a file, the settings or the
meaning of the labels change.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from metricunet.cohort.case import read_case, refuse_no_hu
from metricunet.cohort.layout import Case, DatasetInfo
from metricunet.errors import InputError
from metricunet.files.atomic import written_whole
from metricunet.files.record import sha256
from metricunet.files.scan import read_scan, scan_files
from metricunet.hu import AIR_HU
from metricunet.progress import Progress
from metricunet.stages.locate import Localisation, coarse_grid
from metricunet.stages.network_input import read_hu
from metricunet.stages.segment import central_crop
from metricunet.structures import IGNORE_CLASS, class_of, classes_of
from metricunet.volume import Geometry, Volume, resample_labels, voxels_of

#: Raised whenever the cached arrays would come out differently.
CACHE_VERSION = 2


@dataclass(frozen=True)
class PrepareSettings:
    """What the cached arrays depend on beside the files.

    Attributes:
        target: the structure the fine box is centred on.
        coarse_spacing_mm: voxel spacing of stage 1: slice, row, column.
        fine_spacing_mm: voxel spacing of stage 2: slice, row, column.
        box_mm: sides of the fine box: slice, row, column.
    """

    target: str
    coarse_spacing_mm: tuple[float, float, float] = (4.0, 4.0, 4.0)
    fine_spacing_mm: tuple[float, float, float] = (2.0, 1.0, 1.0)
    box_mm: tuple[float, float, float] = (136.0, 160.0, 160.0)


@dataclass(frozen=True, eq=False)
class PreparedCase:
    """A case as training reads it. Axes run to the head, the back and the left.

    Attributes:
        name: name of the case.
        coarse: int16 HU [slice, row, column] of the whole scan.
        coarse_labels: uint8 classes on the same grid.
        fine: int16 HU of the box around the target; None where the scan holds no target.
        fine_labels: uint8 classes on the same grid.
        facts: numbers that describe the case: `spacing_mm` of the scan, and of the target `volume_ml`,
            `target_hu` and `centre_mm`, which are absent without it. Where stage 1 placed the box of a scan whose
            target nobody contoured: `located_slices`, the first and the last slice of the box that it found it in.
        source_sha256: hash of image and labels.
        unknown: classes that were not contoured, whose voxels are among the background's.
    """

    name: str
    coarse: Volume
    coarse_labels: Volume
    fine: Volume | None
    fine_labels: Volume | None
    facts: dict[str, Any]
    source_sha256: str
    unknown: tuple[int, ...] = ()

    def central_crop(self, shape: Sequence[int]) -> tuple[Volume, Volume] | None:
        """Cut image and classes to the middle of the fine box; None where the scan holds no target.

        Args:
            shape: voxels along slice, row and column, no more than the box has.
        """
        if self.fine is None or self.fine_labels is None:
            return None
        return central_crop(self.fine, shape), central_crop(self.fine_labels, shape)


def prepare(
    cases: Sequence[Case],
    info: DatasetInfo,
    settings: PrepareSettings,
    cache: Path,
    progress: Progress | None = None,
) -> list[PreparedCase]:
    """Read each case from the cache, or from its files where the cache does not hold it as it is now.

    Raises:
        InputError: as `metricunet.cohort.case.read_case`; unknown target; a file that has the name of a prepared
            case, and is none that was written here. Nothing was written then.
    """
    if settings.target not in info.labels:
        raise InputError(
            f"setting target is {settings.target!r}; it must be one of {', '.join(info.labels)}, as dataset.json "
            "spells them"
        )
    stored = {case.name: _stored(case, _key(case, info, settings), cache) for case in cases}
    prepared = []
    for done, case in enumerate(cases, start=1):
        found = stored.pop(case.name)
        if found is None:
            found = _prepare(case, info, settings)
            _store(_cache_file(case, cache), found, _key(case, info, settings))
        unknown = tuple(class_of(info.labels, name) for name in case.not_contoured)
        prepared.append(replace(found, unknown=unknown))
        if progress is not None:
            progress(done, len(cases))
    return prepared


def _stored(case: Case, key: dict[str, Any], cache: Path) -> PreparedCase | None:
    """Return what the cache holds of a case under a key; None where that is yet to be written.

    Raises:
        InputError: a file of that name would be replaced, and is not the cache's.
    """
    path = _cache_file(case, cache)
    found = _load(path)
    if found is not None and found[1] == key:
        return found[0]
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
        "settings": json.loads(json.dumps(asdict(settings))),
        "labels": info.labels,
        "ignore": info.ignore,
        "not_contoured": list(case.not_contoured),  # its labels are checked against this
        "stamp": [[p.stat().st_size, p.stat().st_mtime_ns] for p in _files(case)],
    }


def _files(case: Case) -> tuple[Path, ...]:
    return (*scan_files(case.image), *(() if case.label is None else scan_files(case.label)))


def _read(case: Case, info: DatasetInfo) -> tuple[Volume, Volume]:
    """Return image and classes; without labels every voxel is one that nobody contoured."""
    if case.label is None:
        image = read_scan(case.image).canonical()
        refuse_no_hu(image, case.image)
        return image, image.with_array(np.full(image.array.shape, IGNORE_CLASS, dtype=np.uint8))
    scan = read_case(case, info)
    values = scan.labels.canonical()
    return scan.image.canonical(), values.with_array(classes_of(values.array, info.labels, info.ignore))


def _prepare(case: Case, info: DatasetInfo, settings: PrepareSettings) -> PreparedCase:
    image, labels = _read(case, info)
    target = class_of(info.labels, settings.target)
    coarse = coarse_grid(image.geometry, settings.coarse_spacing_mm)
    mask = labels.array == target
    facts: dict[str, Any] = {"spacing_mm": list(image.spacing_mm)}
    fine = fine_labels = None
    if mask.any():
        centre = image.geometry.to_world(np.argwhere(mask).mean(axis=0))
        shape = voxels_of(settings.box_mm, settings.fine_spacing_mm)
        fine_grid = image.geometry.box_around(centre, shape, settings.fine_spacing_mm)
        fine, fine_labels = _hu(image, fine_grid), resample_labels(labels, fine_grid)
        facts["volume_ml"] = float(mask.sum()) * labels.geometry.voxel_volume_ml
        facts["target_hu"] = float(np.median(image.array[mask]))
        facts["centre_mm"] = [float(v) for v in centre]
    return PreparedCase(
        case.name,
        _hu(image, coarse),
        resample_labels(labels, coarse),
        fine,
        fine_labels,
        facts,
        sha256(list(_files(case))),
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

    Its labels are what was contoured of other structures; all else may be anything, and is `IGNORE_CLASS`.

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
        image, labels = _read(case, info)
        known = labels.with_array(np.where(labels.array == 0, np.uint8(IGNORE_CLASS), labels.array))
        located = replace(coarse, fine=_hu(image, grid), fine_labels=resample_labels(known, grid))
        _store(_cache_file(case, cache / "located"), located, key)
    candidate = found.candidate.geometry
    ends = candidate.to_world(np.array([[-0.5, 0, 0], [candidate.shape[0] - 0.5, 0, 0]]))
    low, high = np.clip(np.rint(grid.to_index(ends)[:, 0]).astype(int), 0, shape[0] - 1)
    facts = located.facts | {"located_slices": [int(low), int(high)]}
    return replace(located, facts=facts, unknown=coarse.unknown)


def _hu(image: Volume, grid: Geometry) -> Volume:
    array = read_hu(image, grid).array
    return Volume(np.rint(np.clip(array, AIR_HU, 32767)).astype(np.int16), grid)


def _store(path: Path, case: PreparedCase, key: dict[str, Any]) -> None:
    arrays: dict[str, NDArray[Any]] = {}
    for name in ("coarse", "coarse_labels", "fine", "fine_labels"):
        volume = getattr(case, name)
        if volume is not None:
            arrays[name] = volume.array
            arrays[f"{name}_affine"] = volume.geometry.affine
    text = json.dumps({"key": key, "name": case.name, "facts": case.facts, "source_sha256": case.source_sha256})
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
            for name in ("coarse", "coarse_labels", "fine", "fine_labels"):
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
