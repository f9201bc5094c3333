"""A cohort of phantoms as DICOM: a CT series and a structure set each, to try a clinic's way in with."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from metricunet.cohort.layout import CHANNEL_SUFFIX
from metricunet.cohort.names import standard_name
from metricunet.errors import InputError
from metricunet.files.dicom.identity import Identity
from metricunet.files.dicom.series import find_series
from metricunet.files.json_file import read_json
from metricunet.files.nifti import read_labels
from metricunet.files.record import sha256
from metricunet.files.rtstruct.outlines import Structure
from metricunet.files.rtstruct.write import write_rtstruct
from metricunet.files.scan import read_scan
from metricunet.inference.structure_set import COLOURS
from metricunet.phantom.cohort import RECIPE_FILE, read_recipe
from metricunet.progress import Progress, no_progress
from metricunet.volume import Volume
from metricunet.workflows.ct_writer import CtGrid, write_ct_series

#: Folder of the cohort that holds a folder for each case.
FOLDER = "dicom"
CT, STRUCTURE_SET = "ct", "rtstruct.dcm"
WORDS = "Exact shapes of a synthetic scan. Not of any patient."


def write_as_dicom(cohort: Path, cases: Sequence[str], *, progress: Progress | None = None) -> Path:
    """Write each case of a cohort of phantoms as `dicom/CASE/ct/*.dcm` and `dicom/CASE/rtstruct.dcm`.

    What comes back through the DICOM intake has the very HU and labels of the cohort's files. Who lies prone is
    written as a scanner would write him (HFP), with the couch at the bottom of the picture. The same cohort gives
    the same UIDs. A case whose folder is there already is left as it is.

    Args:
        cohort: folder that `metricunet phantom` wrote.
        cases: names of its cases.
        progress: called with (done, all).

    Returns:
        The folder of all cases.

    Raises:
        InputError: a file that cannot be read or written.
    """
    known = progress or no_progress
    facts = read_recipe(cohort / RECIPE_FILE)[1]
    labels = {str(k): int(v) for k, v in read_json(cohort / "dataset.json")["labels"].items() if int(v)}
    for done, case in enumerate(cases, start=1):
        target = cohort / FOLDER / case
        if not target.exists():
            split = "Tr" if (cohort / "imagesTr" / f"{case}{CHANNEL_SUFFIX}.nii.gz").exists() else "Ts"
            image = cohort / f"images{split}" / f"{case}{CHANNEL_SUFFIX}.nii.gz"
            partial = target.with_name(f".partial-{case}")
            shutil.rmtree(partial, ignore_errors=True)
            prone = facts.get(case, {}).get("position") == "prone"
            try:
                _write_case(partial, case, image, cohort / f"labels{split}" / f"{case}.nii.gz", labels, prone)
                os.replace(partial, target)
            except OSError as error:
                raise InputError(f"{target}: cannot be written ({error.strerror or error})") from error
            finally:
                shutil.rmtree(partial, ignore_errors=True)
        known(done, len(cases))
    return cohort / FOLDER


def _write_case(folder: Path, case: str, image: Path, label: Path, labels: dict[str, int], prone: bool) -> None:
    scan, position = read_scan(image).canonical(), "HFP" if prone else "HFS"
    if prone:  # rows to the front, columns to the right
        scan = scan.reordered((0, 1, 2), (False, True, True))
    # Earlier versions wrote all as supine; other pixels must not have the UIDs of those.
    identity = Identity(("phantom", *((position,) if prone else ()), sha256([image])))
    grid = CtGrid.of(scan.geometry, position)
    words = f"Synthetic scan {case}"
    write_ct_series(folder / CT, scan.array, grid, patient=f"phantom-{case}", description=words, identity=identity)
    (series,) = find_series(folder / CT).series
    truth = read_labels(label).reordered_like(series.geometry)
    structures = [
        Structure(standard_name(name, {}), Volume(mask, series.geometry), colour=COLOURS[k % len(COLOURS)])
        for k, (name, value) in enumerate(labels.items())
        if (mask := np.asarray(truth.array == value)).any()
    ]
    # Sets of other structures on one scan are other objects; one of the prostate alone has the UIDs of before.
    names = tuple(structure.name for structure in structures)
    if names != (standard_name("prostate", {}),):
        identity = Identity((*identity.source, *names))
    if structures:  # a scan that shows none of them has no structure set
        write_rtstruct(
            folder / STRUCTURE_SET,
            series,
            structures,
            description=WORDS,
            label="phantom",
            set_name="Exact shapes, synthetic",
            identity=identity,
            outline="voxel",
        )
