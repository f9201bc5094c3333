"""The software bill of materials of a release: what is installed with the wheel, and what the wheel itself holds.

cyclonedx-py lists the packages of an environment. It knows neither the model nor what the wheel holds of others:
these are added here, as THIRD_PARTY.md and the licences beside the files name them.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "src" / "metricunet"
#: Packages of npm that are bundled in one file of ours, by the headings of the licences beside it.
BUNDLED = SHIPPED / "inference" / "page" / "static" / "niivue.LICENSE.txt"
MODEL = SHIPPED / "models" / "base.safetensors"


def bundled(licences: str) -> list[dict[str, Any]]:
    """Return a component for each `==== name version ====` in a file of licences; some state no version."""
    found = []
    for name, version in re.findall(r"^==== (\S+)(?: (\S+))? ====$", licences, re.MULTILINE):
        address = f"pkg:npm/{name.replace('@', '%40')}" + (f"@{version}" if version else "")
        component = {"type": "library", "bom-ref": address, "name": name, "purl": address}
        found.append(component | ({"version": version} if version else {}))
    return found


def model(path: Path) -> dict[str, Any]:
    """Return the component of a model file, with its SHA-256."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return {
        "type": "machine-learning-model",
        "bom-ref": f"model:{path.stem}",
        "name": f"metricunet {path.stem}",
        "hashes": [{"alg": "SHA-256", "content": digest}],
        "licenses": [{"license": {"id": "Apache-2.0"}}],
    }


def write_bill(python: Path, output: Path) -> None:
    """Write the bill of an environment in which the wheel alone was installed.

    Args:
        python: the environment's interpreter.
        output: the file to write, CycloneDX in JSON.
    """
    words = [sys.executable, "-m", "cyclonedx_py", "environment", "--pyproject", str(ROOT / "pyproject.toml")]
    words += ["--output-reproducible", "--of", "JSON", "-o", str(output), str(python)]
    subprocess.run(words, check=True, capture_output=True, text=True)
    bill = json.loads(output.read_text(encoding="utf-8"))
    bill["components"] += bundled(BUNDLED.read_text(encoding="utf-8"))
    if MODEL.is_file():
        bill["components"].append(model(MODEL))
    output.write_text(json.dumps(bill, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
