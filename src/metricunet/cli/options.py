"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Output = Annotated[Path, typer.Option("-o", "--output", help="Write all results into this folder.")]
Device = Annotated[
    str,
    typer.Option(
        help="Compute on cpu, cuda or gpu (an NVIDIA GPU), cuda:N or gpu:N (GPU number N), mps (the GPU of an "
        "Apple machine), or auto (an NVIDIA GPU if there is one, else the CPU)."
    ),
]
AllowGaps = Annotated[
    bool,
    typer.Option(
        "--allow-gaps",
        help="Accept DICOM series with missing or unevenly spaced slices, and interpolate between the slices.",
    ),
]
AllowTilt = Annotated[
    bool,
    typer.Option(
        "--allow-tilt", help="Accept DICOM series of a tilted gantry, and resample them to axial slices."
    ),
]
Overwrite = Annotated[
    bool,
    typer.Option(
        "--overwrite",
        help="Replace files that have the name of an output but were not written by this program. "
        "Inputs are never replaced.",
    ),
]
Engine = Annotated[
    str | None,
    typer.Option(
        help="Share the work out by Ray: to all cores or GPUs of this machine (ray), or to a cluster that is "
        "running, given the address of its head or auto (ray://ADDRESS).",
        metavar="ray[://ADDRESS]",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON, for other programs to read.")]
