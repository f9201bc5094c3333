"""NRRD files as 3D Slicer writes them."""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metricunet.volume import Geometry


def write_nrrd(
    path: Path, array: NDArray[Any], geometry: Geometry, segments: Mapping[str, int] | None = None
) -> Path:
    """Write an array [slice, row, column], with a name and value for each segment."""
    types = {"uint8": "unsigned char", "int16": "short"}
    vectors = [geometry.affine[:3, k] for k in (2, 1, 0)]
    lines = [
        "NRRD0004",
        "# Complete NRRD file format specification at:",
        f"type: {types[array.dtype.name]}",
        "dimension: 3",
        "space: left-posterior-superior",
        f"sizes: {' '.join(map(str, array.shape[::-1]))}",
        f"space directions: {' '.join(map(_vector, vectors))}",
        "kinds: domain domain domain",
        "endian: little",
        "encoding: gzip",
        f"space origin: {_vector(geometry.origin_mm)}",
    ]
    for number, (name, value) in enumerate((segments or {}).items()):
        lines += [f"Segment{number}_Name:={name}", f"Segment{number}_LabelValue:={value}"]
    content = gzip.compress(np.ascontiguousarray(array).tobytes())
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("\n".join([*lines, "", ""]).encode() + content)
    return path


def _vector(values: NDArray[np.float64]) -> str:
    return f"({','.join(f'{v:.17g}' for v in values)})"
