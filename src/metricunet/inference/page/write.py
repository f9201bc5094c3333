"""Making the page of a case: what it says, what it shows, and how both fit into one file."""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from collections.abc import Sequence
from importlib.metadata import version
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from metricunet.files.atomic import written_whole
from metricunet.inference.page.script import STATIC, one_script
from metricunet.inference.page.shown import AROUND_MM, Excerpt, HuArray
from metricunet.inference.structure_set import COLOURS
from metricunet.quality.prediction import Prediction
from metricunet.quality.verdict import QualityReport
from metricunet.volume import Shape

#: A page is not larger than this; e-mail and viewers of records take no more.
MOST_BYTES = 20_000_000
#: A case or a model may be named after a file whose name is no text, and is shown with the numbers of its bytes.
ODD_NAMES = "backslashreplace"
SCRIPTS = ("niivue.js", "paint.js", "viewer.js", "page.js")
STYLES = ("base.css", "page.css")
#: Nothing may be loaded, and no script may run but the one whose hash this is.
CONTENT_POLICY = (
    "default-src 'none'; script-src {scripts}; style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'; "
    "form-action 'none'"
)


def write_page(
    path: Path,
    excerpt: Excerpt | None,
    prediction: Prediction,
    quality: QualityReport,
    most_bytes: int = MOST_BYTES,
) -> None:
    """Write the page of a case, whole or not at all.

    It shows the scan around the structures, and the structures, in three planes and in space, and says what
    `CASE.quality.json` says. It asks for nothing: all that it needs is in it. Where nothing was found it says so.

    Args:
        path: of the page.
        excerpt: of the scan, as `excerpt_of` gives it; None where there is no structure.
        prediction: of the case.
        quality: its verdict.
        most_bytes: that the page may have. The scan is shown more coarsely where it takes more, and the page says
            so.

    Raises:
        InputError: the file cannot be written.
    """
    said = _said(prediction, quality)
    if excerpt is None:
        page = _rendered(said, None, "")
    else:
        script = one_script(SCRIPTS)
        frame = len(_rendered(said, _shown(excerpt, b"", b"", quality), script).encode(errors=ODD_NAMES))
        excerpt, scan = _fitting(excerpt, (most_bytes - frame) * 3 // 4)
        numbers = zlib.compress(excerpt.numbers.tobytes(), 9)
        page = _rendered(said, _shown(excerpt, scan, numbers, quality), script)
    with written_whole(path) as temporary:
        temporary.write_text(page, encoding="utf-8", errors=ODD_NAMES, newline="\n")


def packed(hu: HuArray) -> bytes:
    """Return HU compressed: the step from each voxel to the next, its low bytes first, then its high ones.

    Args:
        hu: in any shape; the last axis is the fastest.
    """
    flat = hu.ravel()
    step = np.diff(flat, prepend=np.int16(0))  # may wrap, and wraps back
    unsigned = ((step << 1) ^ (step >> 15)).view(np.uint16)  # small steps of either sign have no high byte
    planes = np.concatenate([(unsigned & 255).astype(np.uint8), (unsigned >> 8).astype(np.uint8)])
    return zlib.compress(planes.tobytes(), 6)


def unpacked(content: bytes, shape: Sequence[int]) -> HuArray:
    """Return HU that `packed` has compressed, as the page's script does.

    Args:
        content: compressed.
        shape: of the HU.
    """
    planes = np.frombuffer(zlib.decompress(content), dtype=np.uint8).astype(np.uint16)
    unsigned = planes[: planes.size // 2] | (planes[planes.size // 2 :] << 8)
    step = ((unsigned >> 1) ^ -(unsigned & 1)).view(np.int16)
    return np.cumsum(step, dtype=np.int16).reshape(shape)


def _fitting(excerpt: Excerpt, room: int) -> tuple[Excerpt, bytes]:
    """Return the finest excerpt that takes no more bytes than there is room for, and its HU compressed."""
    reduced, factors = excerpt, excerpt.factors
    while True:
        scan = packed(reduced.hu)
        size = len(scan) + len(zlib.compress(reduced.numbers.tobytes(), 9))
        if size <= room or prod(reduced.hu.shape) == 1:
            return reduced, scan
        wanted = prod(factors) * size / max(room, 1)
        while prod(factors) < wanted and prod(factors) < prod(excerpt.hu.shape):
            factors = _coarser(factors, excerpt)
        reduced = excerpt.reduced(factors)


def _coarser(factors: Shape, excerpt: Excerpt) -> Shape:
    """Return factors that are larger by one where the voxels are smallest, within the slice first."""
    sizes = np.multiply(factors, excerpt.geometry.spacing_mm)
    axis = 2 - int(np.argmin(sizes[::-1]))
    s, r, c = (factor + (axis == number) for number, factor in enumerate(factors))
    return s, r, c


def _said(prediction: Prediction, quality: QualityReport) -> dict[str, Any]:
    """Return what the page says in words."""
    card = prediction.card
    structures = [
        {
            "number": number,
            "name": name,
            "standard_name": card.tg263[name],
            "volume_ml": quality.structures[name].get("volume_ml"),
            "cropped": bool(quality.structures[name].get("cropped")),
            "colour": COLOURS[(number - 1) % len(COLOURS)],
        }
        for number, name in enumerate(card.labels, start=1)
        if name in quality.structures
    ]
    return {
        "case": quality.case,
        "verdict": quality.verdict,
        "doubt": quality.doubt,
        "reasons": quality.reasons,
        "structures": structures,
        "target": card.target.replace("_", " "),
        "expected_error_mm": quality.boundary.get("expected_error_mm"),
        "version": version("metricunet"),
    }


def _shown(excerpt: Excerpt, scan: bytes, numbers: bytes, quality: QualityReport) -> dict[str, Any]:
    """Return what the page's script needs, and what is said of the picture."""
    shape, spacing = excerpt.geometry.shape[::-1], excerpt.geometry.spacing_mm[::-1]
    facts = {
        "dims": shape,
        "spacing_mm": spacing,
        "first_slice": excerpt.start[0],
        "slices_in_one": excerpt.factors[0],
        "scan_slices": excerpt.scan_shape[0],
        "slices": _slices(excerpt, quality),
    }
    return {
        "facts": _in_script(facts),
        "scan": base64.b64encode(scan).decode(),
        "numbers": base64.b64encode(numbers).decode(),
        "around_mm": AROUND_MM,
        "sides_mm": [n * step for n, step in zip(shape, spacing, strict=True)],
        "spacing_mm": spacing,
        "scan_spacing_mm": [step / n for step, n in zip(spacing, excerpt.factors[::-1], strict=True)],
        "is_reduced": excerpt.factors != (1, 1, 1),
    }


def _slices(excerpt: Excerpt, quality: QualityReport) -> list[dict[str, float]]:
    """Return for each slice of the excerpt that an error is stated for the largest one."""
    geometry = excerpt.geometry
    # Slices that lean are told by their heights in the middle of the scan, see `metricunet.quality.boundary`.
    factors = np.asarray(excerpt.factors)
    middle = ((np.asarray(excerpt.scan_shape) - 1) / 2 - excerpt.start - (factors - 1) / 2) / factors
    heights = geometry.to_world([(k, middle[1], middle[2]) for k in range(geometry.shape[0])])[:, 2]
    found: dict[int, float] = {}
    for entry in quality.boundary.get("slices", ()):
        k = int(np.abs(heights - entry["z_mm"]).argmin())
        found[k] = max(found.get(k, 0.0), entry["expected_error_mm"])
    return [{"k": k, "mm": mm} for k, mm in found.items()]


def _in_script(content: object) -> str:
    """Return JSON that cannot end the element that it stands in."""
    return json.dumps(content, allow_nan=False).replace("<", "\\u003c")


def _rendered(said: dict[str, Any], shown: dict[str, Any] | None, script: str) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(STATIC),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = f"\n{script}"
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template("page.html.j2").render(
        said,
        shown=shown,
        script=script,
        policy=CONTENT_POLICY.format(scripts=f"'sha256-{digest}'" if shown else "'none'"),
        style="".join((STATIC / name).read_text(encoding="utf-8") for name in STYLES),
        licence=(STATIC / "niivue.LICENSE.txt").read_text(encoding="utf-8") if shown else "",
    )
