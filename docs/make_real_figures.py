"""Segment the real scans and write what docs/real.md shows: pictures in three planes, and where the mask lies.

    python docs/make_real_figures.py [-m MODEL] [-o FOLDER] [--scans NAME ...] [--data FOLDER]

The scans come from a folder as the tests read it, by default that of the environment variable METRICUNET_DATA.
Without `-m` the shipped model segments them. Written are NAME.svg for each scan and found.csv with its row; rows
of other scans that are there stay. Looks at real scans are rationed: name those that may be looked at.
"""

from __future__ import annotations

import argparse
import csv
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np

import metricunet as mu

#: Name of a scan, where it lies, and whether it holds a gland: whole, cut or none.
SCANS = {
    "pelvis_ct_dicom": ("pelvis_ct_dicom", "whole"),
    "example_ct": ("pelvis_ct_nifti/example_ct.nii.gz", "cut"),
    "STS_044": ("pelvis_ct_petct/STS_044_CT.nii.gz", "whole"),
    "STS_001": ("pelvis_ct_petct/STS_001_CT.nii.gz", "cut"),
    "STS_002": ("pelvis_ct_petct/STS_002_CT.nii.gz", "none"),
    "STS_014": ("pelvis_ct_petct/STS_014_CT.nii.gz", "none"),
    "STS_025": ("pelvis_ct_petct/STS_025_CT.nii.gz", "none"),
    "STS_037": ("pelvis_ct_petct/STS_037_CT.nii.gz", "none"),
    "cort_liver_real_ct": ("pelvis_ct_petct/cort_liver_real_ct.nii.gz", "none"),
}
#: They are shown to a model once, at the end (docs/real.md), and only where they are named.
UNOPENED = ("STS_044", "STS_001")


@dataclass(frozen=True)
class Row:
    """What was found in a scan; lengths are mm in LPS, and empty where the gland was not found."""

    scan: str
    gland: str
    status: str
    volume_ml: str = ""
    centre_x_mm: str = ""
    centre_y_mm: str = ""
    centre_z_mm: str = ""
    apex_z_mm: str = ""
    base_z_mm: str = ""
    left_right_mm: str = ""
    front_back_mm: str = ""
    doubt: str = ""
    seconds: str = ""
    reasons: str = ""


def row_of(name: str, gland: str, result: mu.Result) -> Row:
    """Return where a result's target lies."""
    status, facts = result.prediction.localisation.status, {}
    if result.is_absent and status != "absent":
        status = "absent in stage 2"
    if not result.is_absent:
        mask = result.mask()
        index = np.argwhere(mask.array)
        points = mask.geometry.to_world(index)
        half = np.abs(mask.geometry.directions) @ np.asarray(mask.spacing_mm) / 2  # of a voxel, turned as it is
        low, high = points.min(axis=0) - half, points.max(axis=0) + half
        centre = points.mean(axis=0)
        facts = {
            "volume_ml": f"{result.volume_ml():.1f}",
            **{f"centre_{axis}_mm": f"{value:.1f}" for axis, value in zip("xyz", centre, strict=True)},
            "apex_z_mm": f"{low[2]:.1f}",
            "base_z_mm": f"{high[2]:.1f}",
            "left_right_mm": f"{high[0] - low[0]:.1f}",
            "front_back_mm": f"{high[1] - low[1]:.1f}",
        }
    reasons = "; ".join(result.quality.reasons)
    doubt = str(getattr(result.quality, "doubt", ""))
    return Row(name, gland, status, **facts, doubt=doubt, seconds=f"{result.seconds:.1f}", reasons=reasons)


def main() -> None:
    """Segment, draw and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--model", type=Path)
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).parent / "real")
    opened = [name for name in SCANS if name not in UNOPENED]
    parser.add_argument("--scans", nargs="+", choices=list(SCANS), default=opened)
    data = os.environ.get("METRICUNET_DATA")
    parser.add_argument("--data", type=Path, default=data, required=data is None, help="default: METRICUNET_DATA")
    arguments = parser.parse_args()
    model = mu.load_model() if arguments.model is None else mu.load_model(arguments.model)
    arguments.output.mkdir(parents=True, exist_ok=True)
    table = arguments.output / "found.csv"
    rows = {}
    if table.is_file():
        with table.open(newline="", encoding="utf-8") as handle:
            rows = {row["scan"]: row for row in csv.DictReader(handle)}
    for name in arguments.scans:
        path, gland = SCANS[name]
        result = model.predict(mu.load_scan(arguments.data / path))
        rows[name] = asdict(row_of(name, gland, result))
        picture = arguments.output / f"{name}.svg"
        result.plot().save(picture, overwrite=True)
        print(", ".join(f"{key} {value}" for key, value in rows[name].items() if value))
    with table.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, [field.name for field in fields(Row)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows[name] for name in SCANS if name in rows)


if __name__ == "__main__":
    main()
