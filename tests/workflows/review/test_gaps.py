"""Review of a scan whose missing slices were filled in: structure sets have no place for what lies there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from metricunet.errors import InputError
from metricunet.files.dicom.series import CtSeries, find_series
from metricunet.files.dicom.stack import Allow
from metricunet.files.nifti import write_nifti
from metricunet.files.rtstruct.outlines import Structure
from metricunet.files.rtstruct.read import read_rtstruct
from metricunet.files.rtstruct.write import write_rtstruct
from metricunet.files.seg.write import write_seg
from metricunet.inference.inputs import ScanInput
from metricunet.volume import Volume
from metricunet.workflows.review.decide import Verdict, decide
from metricunet.workflows.review.folder import PredictedCase
from metricunet.workflows.review.opened import open_case
from tests.support.dicom_series import write_series

LABELS = {"prostate": 1, "bulb": 2}


@pytest.fixture
def series(tmp_path: Path) -> CtSeries:
    """A scan without its slice 5."""
    write_series(tmp_path / "ct", shape=(12, 40, 40), spacing_mm=(3.0, 2.0, 2.0), leave_out=[5])
    (found,) = find_series(tmp_path / "ct", Allow(gaps=True)).series
    return found


def masks(series: CtSeries) -> Volume:
    """A gland across the gap, and a bulb that lies on the plane in it alone."""
    array = np.zeros(series.geometry.shape, dtype=np.uint8)
    array[3:9, 4:12, 4:12] = 1
    array[5, 14:18, 14:18] = 2
    return Volume(array, series.geometry)


@pytest.mark.parametrize("suffix", [".rtstruct.dcm", ".seg.dcm"])
def test_contours_do_not_stand_for_the_mask_where_slices_were_filled_in(
    series: CtSeries, tmp_path: Path, suffix: str
) -> None:
    labels = masks(series)
    gland = Structure("Prostate", labels.with_array((labels.array == 1).astype(np.uint8)))
    if suffix == ".rtstruct.dcm":
        write_rtstruct(tmp_path / f"a{suffix}", series, [gland], description="")
    else:
        write_seg(tmp_path / f"a{suffix}", series, [gland], description="")
    case = PredictedCase("a", tmp_path, labels=LABELS, structures={"prostate": {"contours": {"name": "Prostate"}}})
    with pytest.raises(InputError, match="says nothing of 1 of the scan's 12 planes"):
        open_case(case, ScanInput("a", tmp_path / "ct", series))
    write_nifti(tmp_path / "a.nii.gz", labels)  # as the message advises
    opened = open_case(case, ScanInput("a", tmp_path / "ct", series))
    assert [int(np.count_nonzero(opened.predicted == k)) for k in (1, 2)] == [6 * 64, 16]


def test_a_structure_in_a_gap_alone_costs_no_other_its_contours(series: CtSeries, tmp_path: Path) -> None:
    write_nifti(tmp_path / "a.nii.gz", masks(series))
    case = PredictedCase("a", tmp_path, labels=LABELS)
    opened = open_case(case, ScanInput("a", tmp_path / "ct", series))
    review, problem = decide(opened, Verdict(False, "", "Ann Reader", 1.0, 0, 0), opened.predicted)
    assert problem == ""
    assert review.structure_set is not None
    assert read_rtstruct(review.structure_set).names == ("Prostate^rev",)
