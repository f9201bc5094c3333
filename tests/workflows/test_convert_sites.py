"""Round trips over the scans of `metricunet commission`: their orientations, spacings and ways to store HU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from metricunet.files.nifti import read_labels, write_nifti
from metricunet.files.rtstruct.read import read_rtstruct
from metricunet.volume import Volume
from metricunet.workflows.commission.subjects import PLANS, ScanPlan, make_site
from metricunet.workflows.convert import convert
from tests.support.structure_sets import dciodvfy_complaints, plastimatch


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: plan.name)
def test_no_voxel_is_lost_and_other_programs_agree(plan: ScanPlan, tmp_path: Path) -> None:
    site = make_site(plan, tmp_path / "site")
    ct, masks = site.folder / "ct", tmp_path / "masks"
    # Names that file systems and plastimatch take as they are.
    drawn = {f"shape_{n}": structure.mask.array != 0 for n, (_, structure) in enumerate(site.each())}
    assert all(array.any() for array in drawn.values())
    for name, array in drawn.items():
        write_nifti(masks / f"{name}.nii.gz", Volume(array.astype(np.uint8), site.geometry))
    there = convert(masks, tmp_path / "there", scan=ct, to="rtstruct,seg")
    assert not there.failed
    rtstruct, seg = there.files
    for path in (rtstruct, seg):
        back = convert(path, tmp_path / path.name, scan=ct, to="masks")
        assert not back.failed
        for name, array in drawn.items():
            found = read_labels(tmp_path / path.name / "masks" / f"{name}.nii.gz")
            assert np.array_equal(found.reordered_like(site.geometry).array != 0, array)
        assert dciodvfy_complaints(path) == []
    for name, mask in plastimatch(rtstruct, site.series, tmp_path / "plastimatch").items():
        assert np.array_equal(mask.array != 0, drawn[name])
    again = convert(tmp_path / rtstruct.name / "masks", tmp_path / "again", scan=ct, to="rtstruct").files[0]
    first, second = (read_rtstruct(path, site.series) for path in (rtstruct, again))
    for name in drawn:
        ours, theirs = (one.structure(name).contours for one in (first, second))
        assert [points.tolist() for points in ours] == [points.tolist() for points in theirs]
