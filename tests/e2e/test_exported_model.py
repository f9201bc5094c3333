"""The model that comes with the package as a bundle of MONAI: its masks are those of `metricunet predict`."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest

from metricunet.files.nifti import read_labels, read_nifti, write_nifti
from metricunet.inference.models import SHIPPED
from metricunet.inference.predictor import Predictor
from metricunet.phantom import make_phantom
from metricunet.volume import Volume
from metricunet.workflows.export import export

pytestmark = pytest.mark.skipif(not SHIPPED.is_file(), reason="this tree has no shipped model")

SEEDS = range(4)


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of phantoms."""
    folder = tmp_path_factory.mktemp("phantoms")
    for seed in SEEDS:
        write_nifti(folder / f"phantom_{seed}.nii.gz", make_phantom(seed, "easy").image)
    return folder


def values_of(labels: Volume | None, scan: Volume) -> np.ndarray:
    """Return a label map in the order of its scan's file; where nothing was found, all of it is 0."""
    if labels is None:
        return np.zeros(scan.array.shape, dtype=np.uint8)
    return labels.reordered_like(scan.geometry).array


def test_the_masks_of_its_bundle_are_its_own(scans: Path, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run = pytest.importorskip("monai.bundle").run
        bundle = export(SHIPPED, tmp_path / "bundle", to="monai-bundle").folder
        run(
            bundle_root=str(bundle),
            config_file=str(bundle / "configs" / "inference.json"),
            meta_file=str(bundle / "configs" / "metadata.json"),
            dataset_dir=str(scans),
            output_dir=str(tmp_path / "out"),
        )
    predictor, seen = Predictor([SHIPPED], "cpu"), set()
    for path in sorted(scans.iterdir()):
        scan = read_nifti(path)
        ours = values_of(predictor.predict(scan).labels, scan)
        name = path.name.removesuffix(".nii.gz")
        theirs = values_of(read_labels(tmp_path / "out" / f"{name}_seg.nii.gz"), scan)
        np.testing.assert_array_equal(theirs, ours, err_msg=name)
        seen |= set(np.unique(ours).tolist())
    assert seen == {0, *predictor.card.labels.values()}
