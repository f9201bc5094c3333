"""Write docs/quickstart.ipynb: the cells below, run here, with what they show.

Run from the repository: python docs/make_quickstart.py
"""

from __future__ import annotations

import ast
import json
import os
import tempfile
from pathlib import Path
from typing import Any

NOTEBOOK = Path(__file__).with_name("quickstart.ipynb")
#: Text is a string, code a list of one.
CELLS: tuple[str | list[str], ...] = (
    """# From a phantom to a contour

No data needed: this makes seven synthetic pelvic CT scans, trains both stages on six of them, and segments the
seventh, in about a minute on two CPU cores. The networks are tiny and hardly trained, so expect a contour that is
roughly right, not a good one. For research use; not a medical device.""",
    [
        """import metricunet as mu
from metricunet.phantom import make_cohort

make_cohort("cohort", 6, n_test=1, seed=3, difficulty="easy")"""
    ],
    """A cohort is an nnU-Net raw data set, so your own works just as well. The settings below make everything
tiny; without them `preset="small"` is what a CPU can train.""",
    [
        """tiny = {
    "locate.base_channels": 4,
    "locate.levels": 3,
    "locate.spacing_mm": [6, 6, 6],
    "locate.patch_voxels": [24, 32, 32],
    "locate.epochs": 1,
    "locate.updates_per_epoch": 200,
    "locate.learning_rate": 0.01,
    "segment.base_channels": 8,
    "segment.levels": 4,
    "segment.spacing_mm": [3, 2, 2],
    "segment.crop_mm": [96, 96, 96],
    "segment.box_mm": [120, 128, 128],
    "segment.epochs": 1,
    "segment.updates_per_epoch": 150,
    "segment.learning_rate": 0.005,
}
path = mu.train("cohort", "run", preset="small", settings=tiny, fold="all", device="cpu")
model = mu.load_model(path, device="cpu")
model"""
    ],
    "A scan is a file, a folder of DICOM, an image of nibabel or SimpleITK, or an array with its affine.",
    [
        """scan = mu.load_scan("cohort/imagesTs/phantom_ts0000_0000.nii.gz")
scan"""
    ],
    [
        """result = model.predict(scan)
result"""
    ],
    ["result.plot()"],
    """Every result has a verdict with its reasons. A model that has seen synthetic scans only is never let pass
unreviewed.""",
    ["result.quality.reasons"],
    "Of a phantom the truth is known:",
    [
        """measures = mu.evaluate(result, "cohort/labelsTs/phantom_ts0000.nii.gz")
measures"""
    ],
    "Masks and probabilities lie on the scan's own grid. `save` writes what `metricunet predict` writes.",
    [
        """mask, probability = result.mask("prostate"), result.probability("prostate")
result.save("out")
mask"""
    ],
)


def main() -> None:
    """Run the cells in an empty folder, and write the notebook with their outputs."""
    space: dict[str, Any] = {"__name__": "__main__"}
    cells = []
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            for number, cell in enumerate(CELLS, start=1):
                count = sum(isinstance(entry, list) for entry in CELLS[:number])
                cells.append(
                    _text(number, cell) if isinstance(cell, str) else _code(number, count, cell[0], space)
                )
        finally:
            os.chdir(before)
    metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    notebook = {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
    NOTEBOOK.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _text(number: int, source: str) -> dict[str, Any]:
    return {"cell_type": "markdown", "id": f"cell-{number}", "metadata": {}, "source": _lines(source)}


def _code(number: int, count: int, source: str, space: dict[str, Any]) -> dict[str, Any]:
    """Run a cell, and return it with what its last line shows."""
    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, f"cell {number}", "exec"), space)
    shown = eval(compile(ast.Expression(last.value), f"cell {number}", "eval"), space) if last else None
    data: dict[str, Any] = {"text/plain": _lines(repr(shown))}
    if hasattr(shown, "_repr_svg_"):
        data["image/svg+xml"] = _lines(shown._repr_svg_())
    output = {"output_type": "execute_result", "execution_count": count, "metadata": {}, "data": data}
    return {
        "cell_type": "code",
        "id": f"cell-{number}",
        "execution_count": count,
        "metadata": {},
        "outputs": [] if shown is None else [output],
        "source": _lines(source),
    }


def _lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)


if __name__ == "__main__":
    main()
