"""What other programs make of a reviewed structure set: its place, and whether it is proper DICOM."""

from __future__ import annotations

import highdicom as hd
import numpy as np
import pydicom

from metricunet.files.dicom.series import find_series
from metricunet.files.nifti import read_labels
from metricunet.workflows.convert import convert
from tests.support.structure_sets import dciodvfy_complaints, plastimatch
from tests.workflows.review.conftest import Predicted
from tests.workflows.review.test_learn import decide


def test_a_reviewed_structure_set_lies_where_the_reviewed_mask_does(predicted: Predicted) -> None:
    case, ct = predicted.dicom, predicted.scans / "ct"
    decide(predicted.folder, case, {2: 1})  # the bladder was prostate
    path = predicted.folder / f"{case}.reviewed.rtstruct.dcm"
    reviewed = read_labels(predicted.folder / f"{case}.reviewed.nii.gz")
    assert dciodvfy_complaints(path) == []
    (series,) = find_series(ct).series
    mask = reviewed.reordered_like(series.geometry).array == 1
    theirs = plastimatch(path, series, predicted.folder / "plastimatch")
    assert {name.partition("^")[0] for name in theirs} == {"Prostate"}
    (filled,) = theirs.values()
    assert np.array_equal(filled.array != 0, mask)
    # highdicom reads no structure sets: it places a segmentation that is made of this one.
    seg = convert(path, predicted.folder / "seg", scan=ct, to="seg").files[0]
    assert dciodvfy_complaints(seg) == []
    volume = hd.seg.segread(seg).get_volume(combine_segments=False, rescale_fractional=False)
    scan = hd.get_volume_from_series([pydicom.dcmread(file) for file in sorted(ct.iterdir())])
    placed = volume.match_geometry(scan) if hasattr(volume, "match_geometry") else volume
    found = np.squeeze(placed.array) != 0
    voxels = np.argwhere(found).mean(axis=0)
    middle = (placed.affine @ [*voxels, 1])[:3]
    ours = series.geometry.to_world(np.argwhere(mask).mean(axis=0))
    assert int(found.sum()) == int(mask.sum())
    assert np.allclose(middle, ours, atol=1e-3)
