"""The page of a case: what it holds, how large it is, and what it may replace."""

from __future__ import annotations

import base64
import json
import os
import re
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import metricunet as mu
from metricunet.errors import InputError
from metricunet.files.nifti import write_nifti
from metricunet.inference.page.shown import Excerpt, as_shown, excerpt_of
from metricunet.inference.page.write import MOST_BYTES, packed, unpacked, write_page
from metricunet.inference.predict import predict
from metricunet.inference.predictor import Predictor
from metricunet.quality.checks import Flag
from metricunet.quality.prediction import Prediction
from metricunet.quality.verdict import QualityReport, judge
from metricunet.volume import Geometry, Volume
from tests.support.threshold_model import GLAND_HU, ball, drawn_scan

SCAN = drawn_scan((ball((10, -6, 4), (18, 14, 16)), GLAND_HU))
EMPTY = drawn_scan()


def judged(model: Path, scan: Volume, case: str = "a") -> tuple[Prediction, QualityReport]:
    prediction = Predictor([model], "cpu").predict(scan)
    return prediction, judge(case, scan, prediction)


def block(page: str, name: str) -> str:
    """What an element of the page holds."""
    found = re.search(rf'<script type="[a-z/]+" id="{name}">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    return found[1]


def held(page: Path) -> tuple[Excerpt | None, dict[str, object]]:
    """HU and numbers of structures that a page holds, and what its script is told."""
    text = page.read_text(encoding="utf-8")
    facts = json.loads(block(text, "facts"))
    shape = facts["dims"][::-1]
    hu = unpacked(base64.b64decode(block(text, "scan")), shape)
    numbers = np.frombuffer(zlib.decompress(base64.b64decode(block(text, "numbers"))), np.uint8).reshape(shape)
    return hu, {**facts, "numbers": numbers}  # type: ignore[return-value]


@pytest.mark.parametrize("spread", [0, 15, 30_000])
def test_packing_keeps_every_hu(spread: int) -> None:
    hu = np.random.default_rng(0).integers(-spread, spread + 1, (5, 6, 7)).astype(np.int16)
    assert np.array_equal(unpacked(packed(hu), hu.shape), hu)
    assert np.array_equal(unpacked(packed(hu[:1, :1, :1]), (1, 1, 1)), hu[:1, :1, :1])


@pytest.mark.parametrize(
    ("axes", "flips"),
    [((0, 1, 2), (False, False, False)), ((0, 1, 2), (True, False, True)), ((0, 2, 1), (True, True, False))],
)
def test_it_shows_thirty_mm_around_the_structures_in_any_orientation(
    bands_model: Path, axes: tuple[int, int, int], flips: tuple[bool, bool, bool]
) -> None:
    scan = SCAN.reordered(axes, flips)
    prediction, _ = judged(bands_model, scan)
    excerpt = excerpt_of(scan, prediction)
    assert excerpt is not None
    assert prediction.labels is not None
    whole, labels = as_shown(scan), as_shown(prediction.labels).array
    field = tuple(slice(first, first + n) for first, n in zip(excerpt.start, excerpt.hu.shape, strict=True))
    assert np.array_equal(excerpt.hu, np.rint(whole.array[field]).astype(np.int16))
    assert np.array_equal(excerpt.numbers, labels[field])
    assert (excerpt.numbers > 0).sum() == (labels > 0).sum()
    for axis, voxels in enumerate(np.nonzero(excerpt.numbers)):
        step, n = excerpt.geometry.spacing_mm[axis], excerpt.hu.shape[axis]
        edges = (excerpt.start[axis] == 0, excerpt.start[axis] + n == whole.geometry.shape[axis])
        for edge, margin in zip(edges, (voxels.min(), n - 1 - voxels.max()), strict=True):
            assert edge or 30 <= margin * step < 30 + step
    assert np.allclose(excerpt.geometry.origin_mm, whole.geometry.to_world(excerpt.start))
    # To the head, the front and the right.
    assert np.allclose(whole.geometry.directions, np.transpose([[0, 0, 1], [0, -1, 0], [-1, 0, 0]]))


def test_a_page_holds_what_it_shows(bands_model: Path, tmp_path: Path) -> None:
    prediction, quality = judged(bands_model, SCAN)
    excerpt = excerpt_of(SCAN, prediction)
    assert excerpt is not None
    write_page(tmp_path / "a.page.html", excerpt, prediction, quality)
    hu, facts = held(tmp_path / "a.page.html")
    assert np.array_equal(hu, excerpt.hu)
    assert np.array_equal(facts["numbers"], excerpt.numbers)
    assert facts["scan_slices"] == SCAN.geometry.shape[0]
    text = (tmp_path / "a.page.html").read_text(encoding="utf-8")
    assert f"{quality.structures['prostate']['volume_ml']:.1f} mL" in text
    assert all(reason in text for reason in quality.reasons)
    assert 'id="reduced"' not in text


def test_slices_that_lean_are_found_by_their_heights_in_the_middle_of_the_scan(
    bands_model: Path, tmp_path: Path
) -> None:
    upright = drawn_scan((ball((10, -30, 4), (18, 14, 16)), GLAND_HU))
    affine, angle = upright.geometry.affine.copy(), np.radians(20)
    affine[1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]] @ affine[1:3]
    scan = Volume(upright.array, Geometry(upright.geometry.shape, affine))
    prediction, quality = judged(bands_model, scan)
    part = prediction.masks["prostate"].box[0]
    used = list(range(part.start, part.stop))
    _, row, column = (np.asarray(scan.geometry.shape) - 1) / 2
    heights = scan.geometry.to_world([(k, row, column) for k in used])[:, 2]
    np.testing.assert_allclose([entry["z_mm"] for entry in quality.boundary["slices"]], heights, atol=0.006)
    excerpt = excerpt_of(scan, prediction)
    assert excerpt is not None
    for factors in ((1, 1, 1), (1, 2, 3)):
        write_page(tmp_path / "a.page.html", excerpt.reduced(factors), prediction, quality)
        _, facts = held(tmp_path / "a.page.html")
        assert [entry["k"] + facts["first_slice"] for entry in facts["slices"]] == used  # type: ignore[attr-defined]


def test_a_page_that_would_be_too_large_shows_less_and_says_so(bands_model: Path, tmp_path: Path) -> None:
    prediction, quality = judged(bands_model, SCAN)
    excerpt = excerpt_of(SCAN, prediction)
    assert excerpt is not None
    write_page(tmp_path / "whole.page.html", excerpt, prediction, quality)
    whole = (tmp_path / "whole.page.html").stat().st_size
    room = len(packed(excerpt.hu)) * 4 // 3
    for share in (0.5, 0.05):
        path = tmp_path / f"{share}.page.html"
        limit = whole - int(room * (1 - share))
        write_page(path, excerpt, prediction, quality, limit)
        assert path.stat().st_size <= limit
        assert 'id="reduced"' in path.read_text(encoding="utf-8")
        hu, facts = held(path)
        assert hu.size < excerpt.hu.size  # type: ignore[union-attr]
        voxels_ml = np.prod(facts["spacing_mm"]) / 1000  # type: ignore[call-overload]
        volume_ml = (facts["numbers"] == 1).sum() * voxels_ml  # type: ignore[attr-defined]
        assert volume_ml == pytest.approx(quality.structures["prostate"]["volume_ml"], rel=0.2)
    assert MOST_BYTES == 20_000_000


def test_a_coarser_excerpt_lies_where_the_fine_one_does(bands_model: Path) -> None:
    prediction, _ = judged(bands_model, SCAN)
    excerpt = excerpt_of(SCAN, prediction)
    assert excerpt is not None
    for factors in ((1, 2, 2), (2, 3, 4)):
        coarse = excerpt.reduced(factors)
        means = [
            found.geometry.to_world(np.argwhere(found.numbers == 1)).mean(axis=0) for found in (excerpt, coarse)
        ]
        assert np.allclose(*means, atol=1.0)
        assert np.allclose(coarse.geometry.spacing_mm, np.multiply(excerpt.geometry.spacing_mm, factors))
        block = excerpt.hu[: factors[0], : factors[1], : factors[2]]
        assert abs(coarse.hu[0, 0, 0] - block.mean()) <= 0.5


def test_nothing_that_a_file_says_becomes_part_of_the_page(bands_model: Path, tmp_path: Path) -> None:
    prediction, quality = judged(bands_model, SCAN)
    bad = '</script><script>alert(1)</script><img src="x" onerror="alert(2)">'
    card = replace(prediction.card, tg263={"prostate": bad}, labels={bad: 1}, target=bad)
    prediction = replace(prediction, card=card, masks={bad: prediction.masks["prostate"]})
    quality = replace(
        quality, case=bad, flags=(Flag("volume", bad),), structures={bad: quality.structures["prostate"]}
    )
    prediction = replace(prediction, card=replace(card, tg263={bad: bad}))
    for excerpt in (excerpt_of(SCAN, prediction), None):
        write_page(tmp_path / "bad.page.html", excerpt, prediction, quality)
        text = (tmp_path / "bad.page.html").read_text(encoding="utf-8")
        assert "alert(1)" in text
        assert "<script>" not in text
        assert "<img" not in text.replace("alert", "").split("<script type")[0]
        assert text.count("</script>") == (4 if excerpt else 0)


@pytest.mark.parametrize("scan", [SCAN, EMPTY], ids=["found", "not found"])
def test_a_case_whose_name_is_no_text_has_a_page(bands_model: Path, tmp_path: Path, scan: Volume) -> None:
    """Linux takes any bytes for a name, such as an umlaut of Latin-1."""
    prediction, quality = judged(bands_model, scan, os.fsdecode(b"M\xfcller"))
    write_page(tmp_path / "a.page.html", excerpt_of(scan, prediction), prediction, quality)
    assert r"<h1>M\udcfcller</h1>" in (tmp_path / "a.page.html").read_text(encoding="utf-8")


def test_where_nothing_was_found_a_plain_page_says_so(bands_model: Path, tmp_path: Path) -> None:
    prediction, quality = judged(bands_model, EMPTY)
    assert excerpt_of(EMPTY, prediction) is None
    write_page(tmp_path / "a.page.html", None, prediction, quality)
    text = (tmp_path / "a.page.html").read_text(encoding="utf-8")
    assert len(text) < 20_000
    assert quality.reasons[0] in text
    assert "There is no mask" in text
    assert "<canvas" not in text
    assert "script-src &#39;none&#39;" in text


def test_the_command_writes_pages_under_the_rules_of_its_files(bands_model: Path, tmp_path: Path) -> None:
    scans, out = tmp_path / "scans", tmp_path / "out"
    write_nifti(scans / "a.nii.gz", SCAN)
    write_nifti(scans / "empty.nii.gz", EMPTY)

    def run(*formats: str, overwrite: bool = False) -> dict[str, bool]:
        outcome = predict([scans], [bands_model], out, formats=formats, device="cpu", overwrite=overwrite)
        return {case.case: case.skipped for case in outcome.cases}

    run("nifti")
    assert not list(out.glob("*.html"))
    assert run("nifti", "page") == {"a": False, "empty": False}
    assert {path.name for path in out.glob("*.html")} == {"a.page.html", "empty.page.html"}
    before = (out / "a.page.html").read_bytes()
    assert run("nifti", "page") == {"a": True, "empty": True}
    assert run("nifti") == {"a": True, "empty": True}  # what is there does no harm
    (out / "empty.page.html").unlink()
    assert run("page") == {"a": True, "empty": False}
    assert (out / "a.page.html").read_bytes() == before
    (out / "a.page.html").write_text("my notes")
    with pytest.raises(InputError, match=r"a\.page\.html: is there already"):
        run("nifti", "page")
    assert (out / "a.page.html").read_text() == "my notes"
    run("nifti", "page", overwrite=True)
    assert (out / "a.page.html").read_bytes() == before


def test_a_result_in_python_saves_its_page(bands_model: Path, tmp_path: Path) -> None:
    result = mu.load_model(bands_model, device="cpu").predict(mu.load_scan(SCAN, name="here"))
    written = result.save(tmp_path, formats=["page"])
    assert {path.name for path in written} == {"here.page.html", "here.quality.json", "run.json"}
    chosen = excerpt_of(SCAN, result.prediction)
    assert chosen is not None
    assert np.array_equal(held(tmp_path / "here.page.html")[0], chosen.hu)
