"""Pages opened as files in a real browser without a screen and without a network."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from metricunet.files.model import Calibration
from metricunet.files.nifti import write_nifti
from metricunet.inference.predict import predict
from metricunet.volume import Volume
from tests.support.chromium import CHROMIUM, PATIENCE_MS, chromium, picture, sync_api
from tests.support.threshold_model import GLAND_BAND, GLAND_HU, ball, bands_known, drawn_scan, write_bands_model

__all__ = ["chromium"]  # a fixture

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium to show the pages")

ODD = "<b>odd & näme"
ORANGE, BLUE = (230, 159, 0), (86, 180, 233)

Show = Callable[[str], Any]


def gland(centre: tuple[float, float, float]) -> Volume:
    shapes = ((ball(centre, (16, 12, 14)), GLAND_HU), (ball((0, -6, 27), 8), 300.0))
    return drawn_scan(*shapes, shape=(60, 80, 90), spacing_mm=(3.0, 2.0, 2.0))


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("pages")
    write_nifti(home / "scans" / "flipped.nii.gz", gland((-6, 0, 3)).reordered((0, 1, 2), (True, False, True)))
    write_nifti(home / "scans" / f"{ODD}.nii.gz", gland((0, 4, -3)))
    write_nifti(home / "scans" / "empty.nii.gz", drawn_scan(shape=(30, 44, 48), spacing_mm=(3.0, 2.0, 2.0)))
    with bands_known():
        model = write_bands_model(
            home / "model.safetensors",
            {"prostate": 1, "bladder": 7},
            (GLAND_BAND, (200.0, 400.0)),
            crop_voxels=(40, 40, 40),
            calibration=Calibration(1.0, 1.0, (0.1, 2.0), 5, {}),
        )
        predict([home / "scans"], [model], home / "out", formats=["page"], device="cpu")
    return home / "out"


@pytest.fixture
def show(chromium: Any, pages: Path) -> Iterator[Show]:
    context = chromium.new_context(viewport={"width": 1000, "height": 640}, offline=True)
    context.set_default_timeout(PATIENCE_MS)
    faults: list[str] = []
    asked: list[str] = []

    def opened(case: str) -> Any:
        page = context.new_page()
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda said: said.type == "error" and faults.append(said.text))
        page.on("request", lambda request: asked.append(request.url))
        page.goto((pages / f"{case}.page.html").as_uri())
        if page.locator("#covering").count():
            sync_api.expect(page.locator("#covering")).to_have_text("")
        return page

    yield opened
    context.close()
    assert faults == []
    files = [url for url in asked if not url.startswith(("data:", "blob:"))]
    assert all(url.startswith(pages.as_uri()) and url.endswith(".page.html") for url in files)


def test_structures_lie_where_they_belong(show: Show) -> None:
    page = show("flipped")
    page.locator("#style").select_option(label="Filled")
    page.evaluate("page.viewer.planes.setCrosshairWidth(0)")
    dims = page.evaluate("page.facts.dims")
    numbers = np.array(page.evaluate("[...page.mask.data]"), dtype=np.uint8).reshape(dims[::-1])
    for number, colour in ((1, ORANGE), (2, BLUE)):
        k, j, i = (int(v) for v in np.argwhere(numbers == number).mean(axis=0).round())
        page.evaluate("(v) => page.viewer.goTo(v)", [i, j, k])
        pixels = picture(page)
        box = page.locator("#stage").bounding_box()

        def place(voxel: list[int], axis: int = 2, box: dict[str, float] = box) -> tuple[float, float]:
            x, y = page.evaluate("([v, axis]) => page.viewer.shownAt(v, axis)", [voxel, axis])
            return box["x"] + x, box["y"] + y

        for axis in (0, 1, 2):
            x, y = place([i, j, k], axis)
            found = pixels[round(y), round(x)]
            assert np.argmax(found - found.mean()) == np.argmax(colour)
        # The patient's left is on the right, and the front above.
        assert place([i + 3, j, k])[0] < place([i, j, k])[0]
        assert place([i, j + 3, k])[1] < place([i, j, k])[1]
    # The gland was drawn 6 mm to the patient's right of the bladder, and 24 mm nearer to the feet.
    middles = [
        np.argwhere(numbers == n).mean(axis=0)[::-1] * page.evaluate("page.facts.spacing_mm") for n in (1, 2)
    ]
    assert np.allclose(middles[0] - middles[1], [6, -6, -24], atol=1.5)


def test_it_opens_at_the_worst_slice_and_goes_through_them(show: Show) -> None:
    page = show("flipped")
    listed = page.locator("#slices button").all_inner_texts()
    assert "mm" in listed[0]
    current = page.locator("#slices button[aria-current=true]")
    assert current.inner_text() == listed[0]
    assert listed[0].split()[1] in page.locator("#place").inner_text()
    page.keyboard.press("n")
    assert current.inner_text() == listed[1]
    page.keyboard.press("p")
    assert current.inner_text() == listed[0]
    before = page.locator("#place").inner_text()
    page.keyboard.press("ArrowUp")
    assert page.locator("#place").inner_text() != before


def test_windows_and_structures_can_be_chosen(show: Show) -> None:
    page = show("flipped")
    page.get_by_role("button", name="Axial", exact=True).click()
    page.locator("#structures button").first.click()  # to the middle of the gland
    assert "prostate" in page.locator("#place").inner_text()
    page.evaluate("page.viewer.planes.setCrosshairWidth(0)")
    page.locator("#style").select_option(label="Filled")

    def orange() -> int:
        pixels = picture(page)
        return int((pixels[:, :600, 0] - pixels[:, :600, 2] > 30).sum())

    seen = orange()
    assert seen > 5000
    page.locator("#structures input").first.uncheck()
    assert orange() < seen / 50
    page.locator("#structures input").first.check()
    assert orange() > seen * 0.98
    page.locator("#window").select_option(label="Bone")
    assert page.evaluate("page.viewer.planes.volumes[0].cal_max") == 1150


def test_structures_are_drawn_in_space_and_their_volumes_stated(show: Show) -> None:
    page = show("flipped")
    page.evaluate("page.viewer.drawSolid()")
    frame = page.locator("#solid-frame")
    frame.scroll_into_view_if_needed()
    box = frame.bounding_box()
    part = picture(page)[
        int(box["y"]) : int(box["y"] + box["height"]), int(box["x"]) : int(box["x"] + box["width"])
    ]
    assert (part[..., 0] - part[..., 2] > 80).sum() > 500
    assert (part[..., 2] - part[..., 0] > 60).sum() > 100
    assert all(text.endswith("mL") for text in page.locator("#structures .number").all_inner_texts())


def test_names_are_shown_as_text_and_nothing_can_be_asked_for(show: Show) -> None:
    page = show(ODD)
    assert page.locator("h1").inner_text() == ODD
    assert page.title().startswith(ODD)
    assert page.locator("h1 b").count() == 0
    blocked = """(word) => new Promise((done) => {
      addEventListener("securitypolicyviolation", (event) => done(event.effectiveDirective), { once: true });
      if (word === "connect") fetch("http://127.0.0.1:9/").catch(() => {});
      if (word === "image") new Image().src = "http://127.0.0.1:9/x.png";
      const script = Object.assign(document.createElement("script"), { textContent: "1" });
      if (word === "script") document.body.append(script);
    })"""
    context = page.context
    silent = context.browser.new_context(offline=True)  # what is blocked is logged as an error
    other = silent.new_page()
    other.goto(page.url)
    found = [other.evaluate(blocked, word) for word in ("connect", "image", "script")]
    silent.close()
    assert found == ["connect-src", "img-src", "script-src-elem"]


def test_where_nothing_was_found_it_says_so(show: Show) -> None:
    page = show("empty")
    assert "There is no mask" in page.locator("#nothing").inner_text()
    assert "not found" in page.locator("#reasons").inner_text()
    assert page.locator("canvas").count() == 0


def test_a_narrow_window_shows_all_below_each_other(show: Show) -> None:
    page = show("flipped")
    page.set_viewport_size({"width": 400, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    stage, aside = (page.locator(name).bounding_box() for name in ("#stage", "aside"))
    assert aside["y"] >= stage["y"] + stage["height"]


def test_a_wheel_that_is_tilted_stays_in_the_slice(show: Show) -> None:
    page = show("flipped")
    before = page.evaluate("page.viewer.position")
    box = page.locator("#stage").bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.3, box["y"] + box["height"] / 2)
    page.mouse.wheel(120, 0)
    page.mouse.wheel(0, -120)
    page.wait_for_function("(k) => page.viewer.position[2] !== k", arg=before[2])
    assert page.evaluate("page.viewer.position[2]") == before[2] + 1


def test_slices_that_stand_for_several_are_counted_to_the_last_one(show: Show) -> None:
    page = show("flipped")
    last = page.evaluate("page.facts.dims[2] - 1")
    facts = {
        "first_slice": 2,
        "slices_in_one": 4,
        "scan_slices": 2 + 4 * last + 1,
    }  # of the last one, one is there
    page.evaluate("(facts) => Object.assign(page.facts, facts)", facts)
    for k, number in ((0, 4), (last, 2 + 4 * last + 1)):
        page.evaluate("(k) => page.viewer.goTo([0, 0, k])", k)
        assert page.locator("#place").inner_text().startswith(f"Slice {number} of {2 + 4 * last + 1} ")


def test_the_picture_gets_smaller_until_it_is_as_small_as_it_gets(show: Show) -> None:
    page = show("flipped")
    sizes = []
    for key in "------0+":
        page.keyboard.press(key)
        sizes.append(page.evaluate("page.viewer.planes.scene.pan2Dxyzmm[3]"))
    assert np.allclose(sizes, [0.8, 0.64, 0.512, 0.5, 0.5, 0.5, 1, 1.25])
