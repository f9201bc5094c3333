"""Run the notebooks of docs, and write into them what their cells show.

Run from the repository: python docs/make_notebooks.py [NAME ...]

Cells are edited in the notebooks themselves. They run here one after the other in an empty folder, without
Jupyter. What a cell prints is kept, and the value of its last line as text, and as a picture where it has one.
"""

from __future__ import annotations

import ast
import base64
import io
import json
import os
import sys
import tempfile
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent


def main() -> None:
    """Run the notebooks that are named, or all."""
    for path in [DOCS / f"{name}.ipynb" for name in sys.argv[1:]] or sorted(DOCS.glob("*.ipynb")):
        notebook = json.loads(path.read_text(encoding="utf-8"))
        with tempfile.TemporaryDirectory() as folder:
            run(notebook, Path(folder))
        path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def run(notebook: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Run a notebook's cells in a folder, write their outputs into it, and return what names stand for then."""
    space: dict[str, Any] = {"__name__": "__main__"}
    before, count = Path.cwd(), 0
    os.chdir(folder)
    try:
        for cell in notebook["cells"]:
            if cell["cell_type"] == "code":
                count += 1
                cell["execution_count"] = count
                cell["outputs"] = _outputs("".join(cell["source"]), count, space)
    finally:
        os.chdir(before)
    return space


def _outputs(source: str, count: int, space: dict[str, Any]) -> list[dict[str, Any]]:
    """Run a cell, and return what it prints and what its last line shows."""
    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    with redirect_stdout(io.StringIO()) as printed:
        exec(compile(tree, f"cell {count}", "exec"), space)
        shown = eval(compile(ast.Expression(last.value), f"cell {count}", "eval"), space) if last else None
    outputs: list[dict[str, Any]] = []
    if printed.getvalue():
        outputs.append({"output_type": "stream", "name": "stdout", "text": _lines(printed.getvalue())})
    if shown is not None:
        data: dict[str, Any] = {"text/plain": _lines(repr(shown))}
        if hasattr(shown, "_repr_svg_"):
            data["image/svg+xml"] = _lines(shown._repr_svg_())
        elif hasattr(shown, "savefig"):
            picture = io.BytesIO()
            shown.savefig(picture, format="png", dpi=100, metadata={"Software": None})
            data["image/png"] = base64.b64encode(picture.getvalue()).decode("ascii")
        result = {"output_type": "execute_result", "execution_count": count, "metadata": {}, "data": data}
        outputs.append(result)
    return outputs


def _lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)


if __name__ == "__main__":
    main()
