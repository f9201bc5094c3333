"""The two sides of a comparison, and what they are compared on."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from metricunet.api.model import Result
from metricunet.api.scan import Scan
from metricunet.errors import InputError, argument
from metricunet.evaluation.cases import DEFAULT_LABELS, LabelMaps, labels_beside, own_labels, quality_beside
from metricunet.evaluation.compare import in_terms_of, label_side, measure_sides, unnamed_by
from metricunet.evaluation.contour_files import (
    CaseScan,
    ContourFile,
    SeriesFinder,
    Side,
    contour_kind,
    open_side,
    read_contour_file,
)
from metricunet.evaluation.measures import Measures, on_grid
from metricunet.evaluation.naming import NamedCase, Naming, choose_structures, choose_tolerances, counted_names
from metricunet.files import slicer
from metricunet.files.images import (
    is_nibabel,
    is_simpleitk,
    volume_of_nibabel,
    volume_of_simpleitk,
)
from metricunet.files.scan import case_name, is_scan
from metricunet.files.voxels import label_volume
from metricunet.volume import Geometry, Volume


@dataclass(frozen=True, eq=False)
class ComparedSide:
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
    def of(cls, source: Any, name: str) -> ComparedSide:
        """Return a side; `name` is what to call it where it has no path."""
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

    @property
    def own_labels(self) -> Mapping[str, int]:
        """What the values of its file mean by the file's header, else by the verdict beside it."""
        return own_labels(self.source, self.quality) if isinstance(self.source, Path) else {}

    @property
    def header_labels(self) -> Mapping[str, int]:
        """What the values of its file mean by the file's header alone."""
        return slicer.stated_names(self.source) if isinstance(self.source, Path) else {}

    @property
    def may_be_cut(self) -> bool:
        """Whether its file may hold a box of the scan alone."""
        return isinstance(self.source, Path) and slicer.is_segmentation(self.source)

    def volume(self, geometry: Geometry | None = None) -> Volume:
        """Return its label map; one that is cut to what it holds on a whole grid, where that is known."""
        if isinstance(self.source, Result):
            return self.source.labels
        return _label_map(self.source, self.name, geometry)

    def maps(
        self, otherwise: Mapping[str, int] = DEFAULT_LABELS
    ) -> tuple[dict[str, int], int | None, tuple[str, ...]]:
        """Return what the values of its label map mean, the ignored value, and what was not contoured."""
        if self.labels is not None or not isinstance(self.source, Path):
            return dict(self.labels or otherwise), None, ()
        labels, ignore, not_contoured = labels_beside(self.source.parent, otherwise)
        return labels, ignore, not_contoured.get(case_name(self.source), ())


def case_scan(scan: Any, prediction: Any, files: Sequence[ContourFile]) -> CaseScan | Scan | None:
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


def compared_on_scan(
    sides: tuple[ComparedSide, ComparedSide],
    scan: CaseScan | Scan | None,
    naming: Naming,
    tolerance_mm: float | None,
    tolerances_mm: Mapping[str, float] | None,
) -> dict[str, Measures]:
    """Compare by names, on the grid of a scan or of the reference."""
    series = scan.series if isinstance(scan, CaseScan) else None
    if scan is None:
        whole = next((side for side in sides[::-1] if not side.may_be_cut), sides[1])
        grid, grid_name = whole.volume().geometry, whole.name
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
    own, drawn = sides[0].own_labels, sides[1].header_labels
    if not naming.exact:
        maps[0] = maps[0].as_stated(own, naming, sides[0].source if sides[0].header_labels else sides[0].quality)
        maps[1] = maps[1].as_stated(drawn, naming, sides[1].source)
    elif sides[0].labels is None:
        maps[0] = maps[1]  # one dataset.json for both
    else:  # a model's names, as the reference spells them
        spelled = Naming().counterparts(maps[0].labels, maps[1].labels)
        maps[0] = replace(maps[0], labels={spelled.get(name, name): v for name, v in maps[0].labels.items()})
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
            values = on_grid(side.volume(grid), grid, side.name, grid_name)
            if naming.exact:
                values, _ = in_terms_of(one.labels, values, own if side is sides[0] else drawn)
            map_side = label_side(side.name, values, one, naming, "")
            if naming.exact and side is sides[1]:
                map_side.not_contoured = (*map_side.not_contoured, *unnamed_by(drawn, one.labels))
            opened.append(map_side)
    absent = {name for name, key in chosen.keys.items() if naming.is_absent(key, *case)}
    found = measure_sides(case[0], opened[0], opened[1], grid, chosen.keys, tolerances, absent)
    for fault in found.faults:
        raise fault.error
    return {row.structure: row.measures for row in found.rows if row.contoured}


def _label_map(source: object, name: str, geometry: Geometry | None = None) -> Volume:
    """Return a label map; `name` is what to call it in messages, `geometry` as in `ComparedSide.volume`."""
    if isinstance(source, Path):
        return slicer.read_map(source, geometry)
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
