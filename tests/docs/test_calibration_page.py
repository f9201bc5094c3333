"""The table on the page of calibration comes from its command, and so does its picture."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from metricunet.files.nifti import read_labels, read_nifti
from metricunet.inference.predictor import Predictor
from metricunet.study.folds import Cut

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "calibration.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def figure() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_calibration_figure", DOCS / "make_calibration_figure.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


def test_the_command_makes_the_rows_and_the_picture(
    figure: ModuleType, tiny_model: Path, tiny_cohort: Path, tmp_path: Path
) -> None:
    predictor = Predictor([tiny_model], "cpu")
    calibration = predictor.card.calibration
    assert calibration is not None
    cuts = []
    for name in ("case_06", "case_07"):
        image = read_nifti(tiny_cohort / "imagesTs" / f"{name}_0000.nii.gz").canonical()
        truth = read_labels(tiny_cohort / "labelsTs" / f"{name}.nii.gz").canonical()
        cuts.append(Cut(name, image, {"truth": truth}, predictor.locate(image), ""))
    found = figure.measure_model(tiny_model, cuts)["truth"]
    assert len(found.cases) == 2
    assert found.missed == 0
    # The same voxels, whatever the temperature; the error of a slice is what its contours are apart, or more.
    np.testing.assert_array_equal(found.before[:, [0, 2]].sum(axis=0), found.after[:, [0, 2]].sum(axis=0))
    near = found.slices[~np.isnan(found.slices[:, 4])]
    assert np.median(near[:, 3] / near[:, 4]) == pytest.approx(1.1, abs=0.35)
    made = figure.table({"tiny": [figure.figures_of(calibration, found)] * 2})
    rows = re.search(
        r"<!-- calibration table -->\n(.*?)\n?<!-- end of calibration table -->", PAGE, flags=re.DOTALL
    )
    assert rows is not None

    def titles(text: str) -> list[str]:
        return [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("|")]

    assert titles(rows[1]) == titles(made)
    figure.draw(tmp_path / "picture.png", {"tiny": [found, found]})
    assert (tmp_path / "picture.png").stat().st_size > 10_000


def test_its_pictures_are_there() -> None:
    for picture in re.findall(r"!\[.*?\]\((.*?)\)", PAGE):
        assert (DOCS / picture).is_file()
