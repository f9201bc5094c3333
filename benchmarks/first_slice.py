"""How long it takes until the pages of `metricunet review` show the first slice of a large scan.

In a real Chromium without a screen, which draws by software: the worst that a reviewer's machine can do.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.report import value_target
from metricunet.errors import InputError
from metricunet.files.nifti import write_nifti
from metricunet.volume import Geometry, Volume

#: A planning CT of the pelvis and more.
SHAPE, SPACING_MM = (235, 512, 512), (3.0, 0.98, 0.98)
RADII_MM = (20.0, 22.0, 25.0)
NOISE_HU = 15.0
TARGET_S = 5.0
SOFTWARE = (
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--ignore-gpu-blocklist",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)
PATIENCE_MS = 600_000


@dataclass(frozen=True)
class FirstSlice:
    """Seconds until a case is seen.

    Attributes:
        case_s: from the address to the first slice, around the structure, as a case opens.
        case_cpu_s: that server and browser have computed meanwhile, all their threads together: what it would take
            at most where nothing else computes.
        whole_s: from the button *Whole scan* to the slice of the whole scan.
    """

    case_s: float
    case_cpu_s: float
    whole_s: float

    def to_json(self) -> dict[str, float]:
        """Return a plain dictionary."""
        return asdict(self)

    def text(self) -> str:
        """Return the lines to print."""
        return "\n".join(
            [
                f"review: a scan of {SHAPE[2]} x {SHAPE[1]} x {SHAPE[0]} in Chromium, drawn by software",
                value_target("first slice", f"{self.case_s:.1f} s", f"{TARGET_S:g} s", self.case_s <= TARGET_S),
                f"  of which computed, server and browser: {self.case_cpu_s:.1f} s",
                f"  whole scan after that: {self.whole_s:.1f} s",
            ]
        )


def bench_first_slice(scan: Path | None = None) -> FirstSlice:
    """Make a scan and a prediction of it, serve them, and open them in a browser.

    Args:
        scan: DICOM folder or file, in whose middle an ellipsoid is taken for the prediction. Default: noise of 512
            x 512 x 235 voxels with air above it, as NIfTI.

    Raises:
        InputError: no playwright or no Chromium.
    """
    try:
        from playwright.sync_api import sync_playwright
    except ModuleNotFoundError as error:
        raise InputError("needs playwright, which is not installed; pip install playwright") from error
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        raise InputError("needs Chromium, which is not installed")
    with tempfile.TemporaryDirectory() as name:
        folder = _predicted(Path(name), scan)
        command = [sys.executable, "-m", "metricunet", "review", str(folder), "--no-browser"]
        with (
            subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server,
            sync_playwright() as playwright,
        ):
            try:
                assert server.stdout is not None
                address = server.stdout.readline().split()[-1]
                browser = playwright.chromium.launch(executable_path=chromium, args=SOFTWARE, timeout=PATIENCE_MS)
                page = browser.new_page(viewport={"width": 1400, "height": 900})
                return _measured(page, address)
            finally:
                server.kill()


def _measured(page: Any, address: str) -> FirstSlice:
    from playwright.sync_api import expect

    expect.set_options(timeout=PATIENCE_MS)
    page.set_default_timeout(PATIENCE_MS)
    computed, began = _computed_s(), time.perf_counter()
    page.goto(address)
    _wait(page, expect)
    case_s, case_cpu_s = time.perf_counter() - began, _computed_s() - computed
    began = time.perf_counter()
    page.locator("#whole").click()
    expect(page.locator("#whole")).to_have_attribute("aria-pressed", "true")
    _wait(page, expect)
    return FirstSlice(case_s, case_cpu_s, time.perf_counter() - began)


def _wait(page: Any, expect: Any) -> None:
    """Wait until a slice is shown and the browser has drawn it."""
    expect(page.locator("#covering")).to_have_text("")  # else it says what is wrong
    expect(page.locator("#accept")).to_be_enabled()
    page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    page.evaluate("review.viewer.planes.gl.finish()")


def _computed_s() -> float:
    """Seconds that the processes below this one have computed so far; one that ends meanwhile is not counted."""
    total = 0.0
    for process in psutil.Process().children(recursive=True):
        try:
            times = process.cpu_times()
        except psutil.Error:
            continue
        total += times.user + times.system
    return total


def _predicted(home: Path, scan: Path | None) -> Path:
    """Return a folder that looks as if a scan had been predicted: mask and verdict."""
    if scan is None:
        hu = np.random.default_rng(0).normal(0, NOISE_HU, SHAPE).astype(np.int16)
        hu[:, : SHAPE[1] // 8] -= 1000  # air, without which it is no CT
        geometry = Geometry.from_parts(SHAPE, SPACING_MM, (-250.0, -250.0, -350.0))
        scan, case = home / "scan.nii.gz", "scan"
        write_nifti(scan, Volume(hu, geometry))
    else:
        from metricunet.inference.inputs import find_inputs

        (entry, *_), _ = find_inputs([scan])
        case, geometry = entry.case, entry.read().geometry
    index = np.meshgrid(*[np.arange(n) for n in geometry.shape], indexing="ij", sparse=True)
    middle = [n // 2 for n in geometry.shape]
    steps = zip(index, middle, geometry.spacing_mm, RADII_MM, strict=True)
    mask = sum(((i - m) * step / radius) ** 2 for i, m, step, radius in steps) < 1
    out = home / "out"
    write_nifti(out / f"{case}.nii.gz", Volume(np.asarray(mask, dtype=np.uint8), geometry))
    verdict = {"case": case, "verdict": "review", "labels": {"prostate": 1}, "scan": {"path": str(scan.resolve())}}
    (out / f"{case}.quality.json").write_text(json.dumps(verdict))
    return out
