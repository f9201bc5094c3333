"""The pages in a real browser without a screen, drawn by software: what is seen, painted and kept."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray

from metricunet.errors import InputError
from metricunet.files.reviews import reviews_of
from tests.support.chromium import CHROMIUM, PATIENCE_MS, chromium, picture, sync_api
from tests.workflows.review.conftest import ODD, Predicted, predict_anew, served, served_here

__all__ = ["chromium"]  # a fixture

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium to show the pages")


class Desk:
    """A served folder in a browser."""

    def __init__(self, chromium: Any, address: str) -> None:
        self.context = chromium.new_context(viewport={"width": 1000, "height": 640})
        self.context.set_default_timeout(PATIENCE_MS)
        self.faults: list[str] = []
        self.asked: list[str] = []
        self.address = address.partition("?")[0]
        self.page = self.open(address)

    def open(self, address: str = "", case: str = "") -> Any:
        page = self.context.new_page()
        page.on("pageerror", lambda error: self.faults.append(str(error)))
        page.on("console", lambda said: said.type == "error" and self.faults.append(said.text))
        page.on("request", lambda request: self.asked.append(request.url))
        page.goto(address or f"{self.address}#{case}")
        wait(page)
        return page

    def show(self, case: str) -> Any:
        self.page.locator(f"#cases button[data-name='{case}']").click()
        wait(self.page, case)
        return self.page


def wait(page: Any, case: str = "") -> None:
    """Wait until a case is shown."""
    expect = sync_api.expect
    if case:
        expect(page.locator("#case-name")).to_have_text(case)
    expect(page.locator("#accept")).to_be_enabled()
    expect(page.locator("#covering")).to_have_text("")


@pytest.fixture
def desk(chromium: Any, predicted: Predicted) -> Iterator[Desk]:
    with served_here(predicted.folder) as address:
        opened = Desk(chromium, address)
        yield opened
        opened.context.close()
        # That somebody was faster is an answer that the browser logs.
        assert [fault for fault in opened.faults if "409" not in fault] == []
        assert all(url.startswith((opened.address, "data:", "blob:")) for url in opened.asked)


def near(page: Any) -> dict[str, Any]:
    return dict(page.evaluate("review.info.near"))


def on_page(page: Any, voxel: list[int], axis: int = 2) -> tuple[float, float]:
    """Where the middle of a voxel (right, front, head) is on the page."""
    x, y = page.evaluate("([v, axis]) => review.viewer.shownAt(v, axis)", [voxel, axis])
    box = page.locator("#stage").bounding_box()
    return box["x"] + x, box["y"] + y


def saved(predicted: Predicted, page: Any, name: str) -> NDArray[np.uint8]:
    """A written mask in the field that the page shows [right, front, head]."""
    whole = np.asarray(nib.as_closest_canonical(nib.load(predicted.folder / name)).dataobj)
    start, shape = (near(page)[key][::-1] for key in ("start", "shape"))
    return whole[tuple(slice(first, first + n) for first, n in zip(start, shape, strict=True))]


def test_the_page_opens_at_the_worst_slice_of_the_most_doubtful_case(desk: Desk, predicted: Predicted) -> None:
    assert desk.page.locator("#case-name").inner_text() == predicted.empty  # failed
    page = desk.show(predicted.flipped)
    quality = json.loads((predicted.folder / "flipped.quality.json").read_text())
    worst = max(quality["boundary"]["slices"], key=lambda s: s["expected_error_mm"])
    errors = page.locator("#slices button").all_inner_texts()
    assert errors[0].endswith(f"{worst['expected_error_mm']:.1f} mm")
    assert f"expected error {worst['expected_error_mm']:.1f} mm" in page.locator("#place").inner_text()
    shown = page.evaluate(
        "review.info.slices.find((s) => s.slice === review.viewer.position[2] + review.field.start[0])"
    )
    assert shown["z_mm"] == worst["z_mm"]
    page.keyboard.press("n")
    assert page.locator("#slices button[aria-current=true]").inner_text() == errors[1]


def test_structures_lie_on_what_the_scan_shows(desk: Desk, predicted: Predicted) -> None:
    for case in (predicted.dicom, predicted.flipped):
        page = desk.show(case)
        page.get_by_role("button", name="Axial", exact=True).click()
        page.keyboard.press("5")  # everything between air and bone
        page.evaluate("review.viewer.planes.setCrosshairWidth(0)")
        page.evaluate("review.viewer.goTo([0, 0, review.mask.slicesWith(1)[4]])")
        box = page.locator("#stage").bounding_box()
        part = np.s_[
            int(box["y"]) + 40 : int(box["y"] + box["height"]), int(box["x"]) + 40 : int(box["x"] + box["width"])
        ]
        page.locator("#style").select_option(label="Hidden")
        bare = picture(page)[part]
        page.locator("#style").select_option(label="Filled")
        covered = picture(page)[part]
        gland = (bare.mean(axis=2) > 128) & (np.ptp(bare, axis=2) < 12)  # 60 HU lies above the middle, fat below
        orange = covered[..., 0] - covered[..., 2] > 30
        assert gland.sum() > 5000
        assert (gland & orange).sum() / (gland | orange).sum() > 0.9


def test_a_named_place_has_the_colour_of_its_structure(desk: Desk, predicted: Predicted) -> None:
    page = desk.show(predicted.dicom)
    mask = saved(predicted, page, f"{predicted.dicom}.nii.gz")
    page.locator("#style").select_option(label="Filled")
    page.evaluate("review.viewer.planes.setCrosshairWidth(0)")
    for value, colour in ((1, (230, 159, 0)), (7, (86, 180, 233))):
        i, j, k = (int(v) for v in np.argwhere(mask == value).mean(axis=0).round())
        assert mask[i, j, k] == value
        page.evaluate("(v) => review.viewer.goTo(v)", [i, j, k])
        pixels = picture(page)
        for axis in (0, 1, 2):
            x, y = on_page(page, [i, j, k], axis)
            found = pixels[round(y), round(x)]
            assert np.argmax(found - found.mean()) == np.argmax(colour)
        # The patient's left is on the right, and the front above.
        assert on_page(page, [i + 3, j, k])[0] < on_page(page, [i, j, k])[0]
        assert on_page(page, [i, j + 3, k])[1] < on_page(page, [i, j, k])[1]
        assert on_page(page, [i, j, k + 3], axis=1)[1] < on_page(page, [i, j, k], axis=1)[1]


def test_a_stroke_over_a_disc_changes_exactly_its_voxels(desk: Desk, predicted: Predicted) -> None:
    page = desk.show(predicted.dicom)
    before = saved(predicted, page, f"{predicted.dicom}.nii.gz")
    i, j, k = page.evaluate("review.viewer.position")
    i += 9
    spacing = page.evaluate("review.mask.spacing")
    across, down = np.meshgrid(*[np.arange(n) for n in before.shape[:2]], indexing="ij")
    disc = np.hypot((across - i) * spacing[0], (down - j) * spacing[1]) <= 5
    page.keyboard.press("b")
    page.mouse.move(*on_page(page, [i, j, k]))
    page.mouse.down()
    page.mouse.up()
    expected = before.copy()
    expected[..., k][disc] = 1
    assert (expected != before).sum() > 10
    assert page.locator("#accept").inner_text() == "Save correction"
    page.locator("#accept").click()
    sync_api.expect(page.locator("#message")).to_contain_text("Saved as")
    assert np.array_equal(saved(predicted, page, f"{predicted.dicom}.reviewed.nii.gz"), expected)
    page.keyboard.press("e")
    page.mouse.move(*on_page(page, [i, j, k]))
    page.mouse.down()
    page.mouse.up()
    page.locator("#accept").click()
    sync_api.expect(page.locator("#message")).to_contain_text("reviewed-2")
    expected[..., k][disc & (expected[..., k] == 1)] = 0
    assert np.array_equal(saved(predicted, page, f"{predicted.dicom}.reviewed-2.nii.gz"), expected)
    assert reviews_of(predicted.folder, predicted.dicom)[1].based_on == 1


def test_undo_undoes_and_redo_does_again(desk: Desk, predicted: Predicted) -> None:
    page = desk.show(predicted.flipped)
    voxels = "review.mask.data.reduce((sum, v, n) => (31 * sum + v * (n % 9973)) % 1000003, 7)"
    first = page.evaluate(voxels)
    page.keyboard.press("b")
    x, y = on_page(page, page.evaluate("review.viewer.position"))
    seen = []
    for step in (60, 100):
        page.mouse.move(x + step, y)
        page.mouse.down()
        page.mouse.move(x + step, y - 60, steps=3)
        page.mouse.up()
        seen.append(page.evaluate(voxels))
    assert first != seen[0] != seen[1]
    page.keyboard.press("z")
    assert page.evaluate(voxels) == seen[0]
    page.keyboard.press("Control+z")
    assert page.evaluate(voxels) == first
    assert page.locator("#accept").inner_text() == "Accept"
    page.keyboard.press("y")
    assert page.evaluate(voxels) == seen[0]
    page.keyboard.press("c")
    assert page.evaluate("review.mask.slicesWith(1).includes(review.viewer.position[2])") is False
    page.keyboard.press("f")  # between its neighbours, where it has any
    page.locator("#undo").click()


def test_structures_are_listed_with_their_colours_hidden_and_chosen(desk: Desk, predicted: Predicted) -> None:
    page = desk.show(predicted.dicom)
    assert page.locator("#structures button").all_inner_texts() == ["prostate", "bladder"]
    assert page.locator("#structures .colour").first.evaluate("e => e.style.background") == "rgb(230, 159, 0)"
    page.locator("#structures button").nth(1).click()  # to its middle, and the brush paints it
    assert "bladder" in page.locator("#place").inner_text()
    assert page.locator("#structure").input_value() == "2"
    page.evaluate("review.viewer.planes.setCrosshairWidth(0)")
    page.locator("#style").select_option(label="Filled")
    x, y = (round(v) for v in on_page(page, page.evaluate("review.viewer.position")))
    shown = picture(page)[y, x]
    page.locator("#structures input").nth(1).uncheck()
    hidden = picture(page)[y, x]
    assert np.ptp(shown) > 50
    assert np.ptp(hidden) < 12
    # The keys are the page's, whatever was chosen before.
    page.keyboard.press("b")
    assert page.locator("#tools button[data-tool=brush]").get_attribute("aria-pressed") == "true"
    before = page.locator("#place").inner_text()
    page.locator("#window").focus()
    page.keyboard.press("e")
    page.keyboard.press("Escape")
    assert page.locator("#tools button[data-tool=eraser]").get_attribute("aria-pressed") == "true"
    assert page.locator("#place").inner_text() == before


@pytest.mark.parametrize(("width", "height"), [(1000, 640), (1400, 900)])
def test_what_is_decided_is_in_sight(desk: Desk, predicted: Predicted, width: int, height: int) -> None:
    page = desk.show(predicted.dicom)
    page.set_viewport_size({"width": width, "height": height})
    page.locator("#accept").click()
    sync_api.expect(page.locator("#message")).to_contain_text("Saved as")
    for name in ("#accept", "#reject", "#reason", "#message"):
        box = page.locator(name).bounding_box()
        assert box["y"] + box["height"] <= height


def test_what_was_painted_after_an_undo_during_a_save_is_not_taken_for_saved(desk: Desk) -> None:
    found = desk.page.evaluate("""async () => {
      const { Mask } = await import("/paint.js");
      const mask = new Mask([9, 9, 9], [1, 1, 1], new Uint8Array(729));
      const paint = (k) => { mask.begin(); mask.set(k, 1); mask.end(); };
      paint(0); paint(1);
      const step = mask.top, said = [mask.isChanged];
      mask.undo(); paint(2);  // while it is being saved
      mask.saved = step;
      said.push(mask.isChanged);
      mask.undo(); mask.undo(); mask.saved = mask.top; said.push(mask.isChanged);
      for (let k = 0; k < 250; k++) paint(10 + k);
      while (mask.undo());
      said.push(mask.isChanged);  // the first steps can no longer be undone
      const wide = mask.within([9, 9, 10], [0, 0, 1], new Uint8Array(810));
      return [...said, wide.isChanged, wide.at(0, 0, 1)];
    }""")
    assert found == [True, True, False, True, True, 0]


def test_a_reload_keeps_the_decision_and_the_place(desk: Desk, predicted: Predicted) -> None:
    page = desk.show(predicted.flipped)
    page.locator("#reject").click()
    sync_api.expect(page.locator("#message")).to_have_text("Write what is wrong with the case.")
    page.locator("#reason").fill("wrong <i>organ</i>")
    page.locator("#reviewer").fill("Cleo")
    page.locator("#reject").click()
    sync_api.expect(page.locator("#message")).to_contain_text("Saved as flipped.reviewed.json")
    page.reload()
    wait(page, predicted.flipped)
    assert "rejected by Cleo" in page.locator("#decided").inner_text()
    assert "wrong <i>organ</i>" in page.locator("#decided").inner_text()
    assert page.locator("#progress").inner_text() == "1 of 4 decided"
    (review,) = reviews_of(predicted.folder, predicted.flipped)
    assert (review.decision, review.reviewer) == ("rejected", "Cleo")
    assert review.seconds > 0


def test_two_tabs_do_not_lose_each_others_work(desk: Desk, predicted: Predicted) -> None:
    one, two = desk.show(predicted.flipped), desk.open(case=predicted.flipped)
    for page, step in ((one, 60), (two, 110)):
        page.bring_to_front()
        page.keyboard.press("b")
        x, y = on_page(page, page.evaluate("review.viewer.position"))
        page.mouse.move(x + step, y)
        page.mouse.down()
        page.mouse.up()
    one.bring_to_front()
    one.locator("#accept").click()
    sync_api.expect(one.locator("#message")).to_contain_text("Saved as")
    two.bring_to_front()
    two.locator("#accept").click()
    sync_api.expect(two.get_by_role("alert")).to_contain_text("was corrected meanwhile")
    assert len(reviews_of(predicted.folder, predicted.flipped)) == 1
    two.locator("#save-beside").click()
    sync_api.expect(two.locator("#message")).to_contain_text("reviewed-2")
    masks = [saved(predicted, two, f"flipped.{name}.nii.gz") for name in ("reviewed", "reviewed-2")]
    assert not np.array_equal(*masks)


def test_a_case_that_was_predicted_anew_is_opened_again_before_it_is_decided_on(
    desk: Desk, predicted: Predicted
) -> None:
    expect, voxels = sync_api.expect, "review.mask.data.reduce((count, v) => count + (v === 1), 0)"
    page = desk.show(predicted.flipped)
    page.keyboard.press("b")
    x, y = on_page(page, page.evaluate("review.viewer.position"))
    page.mouse.move(x + 60, y)
    page.mouse.down()
    page.mouse.up()
    painted = page.evaluate(voxels)
    page.locator("#reason").fill("too small")
    predict_anew(predicted.folder, predicted.flipped, {"bladder": 1, "prostate": 7})
    page.locator("#accept").click()
    expect(page.locator("#conflict-text")).to_contain_text("was predicted anew since it was opened")
    expect(page.locator("#conflict-text")).to_contain_text("Your corrections are of the earlier prediction")
    expect(page.locator("#save-beside")).to_be_hidden()
    assert reviews_of(predicted.folder, predicted.flipped) == ()
    page.once("dialog", lambda asked: asked.dismiss())
    page.get_by_role("button", name="Open it again").click()
    assert page.evaluate(voxels) == painted
    page.once("dialog", lambda asked: asked.accept())
    page.get_by_role("button", name="Open it again").click()
    wait(page, predicted.flipped)
    expect(page.locator("#conflict")).to_be_hidden()
    assert page.locator("#accept").inner_text() == "Accept"
    assert page.locator("#structures button").all_inner_texts() == ["bladder", "prostate"]
    assert page.locator("#reason").input_value() == "too small"
    page.locator("#accept").click()
    expect(page.locator("#message")).to_contain_text("Saved as")
    (review,) = reviews_of(predicted.folder, predicted.flipped)
    assert (review.decision, review.labels) == ("accepted", {"bladder": 1, "prostate": 7})


def test_the_whole_scan_keeps_the_strokes_and_their_undoing(desk: Desk, predicted: Predicted) -> None:
    page = desk.show(predicted.dicom)
    voxels = "review.mask.data.reduce((count, v) => count + (v === 1), 0)"
    before = page.evaluate(voxels)
    page.keyboard.press("b")
    x, y = on_page(page, page.evaluate("review.viewer.position"))
    page.mouse.move(x + 60, y)
    page.mouse.down()
    page.mouse.up()
    painted = page.evaluate(voxels)
    assert painted > before
    place = page.locator("#place").inner_text()
    page.locator("#whole").click()
    wait(page)
    sync_api.expect(page.locator("#whole")).to_have_attribute("aria-pressed", "true")
    assert page.evaluate("review.mask.dims") == [90, 80, 60]
    assert page.locator("#place").inner_text() == place
    assert page.evaluate(voxels) == painted
    page.locator("#undo").click()
    assert page.evaluate(voxels) == before
    page.locator("#redo").click()
    page.locator("#accept").click()
    sync_api.expect(page.locator("#message")).to_contain_text("Saved as")
    reviewed = np.asarray(nib.load(predicted.folder / f"{predicted.dicom}.reviewed.nii.gz").dataobj)
    assert (reviewed == 1).sum() == painted


def test_names_are_shown_as_text(desk: Desk) -> None:
    page = desk.show(ODD)
    assert page.locator("#case-name").inner_text() == ODD
    assert page.locator("#case-name b, #cases b").count() == 0


def test_structures_are_drawn_in_space(desk: Desk, predicted: Predicted) -> None:
    page = desk.show(predicted.dicom)
    page.evaluate("review.viewer.drawSolid()")
    box = page.locator("#solid-frame").bounding_box()
    page.locator("#solid-frame").scroll_into_view_if_needed()
    box = page.locator("#solid-frame").bounding_box()
    part = picture(page)[
        int(box["y"]) : int(box["y"] + box["height"]), int(box["x"]) : int(box["x"] + box["width"])
    ]
    orange = (part[..., 0] - part[..., 2] > 80).sum()
    blue = (part[..., 2] - part[..., 0] > 60).sum()
    assert orange > 500
    assert blue > 100


PAINT = """async () => {
  const { Mask } = await import("/paint.js");
  const dims = [40, 30, 9], spacing = [1, 2, 3];
  const mask = new Mask(dims, spacing, new Uint8Array(40 * 30 * 9));
  const disc = (k, mm) => mask.stroke(2, [20, 15, k], [20, 15, k], mm, 1, 1);
  const count = (k) => mask.data.subarray(k * 1200, (k + 1) * 1200).filter((v) => v === 1).length;
  mask.begin(); disc(1, 6); disc(7, 12); mask.set(20 + 40 * (15 + 30 * 4), 2); mask.end();
  mask.begin(); const filled = mask.fillBetween(1); const added = mask.end();
  const counts = [...Array(9).keys()].map(count);
  const depth = [...mask.depth(7, 1)], slice = [...mask.data.subarray(7 * 1200, 8 * 1200)];
  mask.undo();
  const emptied = [...Array(9).keys()].map(count);
  return { filled, added, counts, depth, slice, emptied, other: mask.at(20, 15, 4) };
}"""


def test_slices_between_are_filled_by_distance(desk: Desk) -> None:
    found = desk.page.evaluate(PAINT)
    across, down = np.meshgrid(np.arange(40), np.arange(30), indexing="ij")
    mm = np.hypot(across - 20, 2 * (down - 15))
    expected = [0, *(int((mm <= 6 + k - 0.5).sum()) for k in range(7)), 0]
    assert found["filled"] == [2, 3, 4, 5, 6]
    assert found["counts"][1] == (mm <= 6).sum()
    assert found["counts"][7] == (mm <= 12).sum()
    for k in range(2, 7):
        assert found["counts"][k] == pytest.approx(expected[k], rel=0.15)
    assert found["other"] == 2  # another structure stays
    assert found["added"] == sum(found["counts"][2:7])
    assert found["emptied"] == [0, found["counts"][1], 0, 0, 0, 0, 0, found["counts"][7], 0]
    # The distances are exact: against those of all pairs.
    inside = np.array(found["slice"]).reshape(30, 40) == 1
    places = np.stack(np.meshgrid(2.0 * np.arange(30), 1.0 * np.arange(40), indexing="ij"), axis=-1).reshape(-1, 2)
    apart = np.hypot(*(places[:, None] - places[None]).transpose(2, 0, 1))
    flat = inside.ravel()
    exact = np.where(flat, apart[:, ~flat].min(axis=1), -apart[:, flat].min(axis=1))
    assert np.allclose(found["depth"], exact)


VOXELS = "review.mask.data.reduce((sum, v, n) => (31 * sum + v * (n % 9973)) % 1000003, 7)"


def test_nothing_that_comes_in_between_breaks_a_stroke(desk: Desk, predicted: Predicted) -> None:
    page = desk.show(predicted.flipped)
    first = page.evaluate(VOXELS)
    page.keyboard.press("b")
    x, y = on_page(page, page.evaluate("review.viewer.position"))
    page.mouse.move(x + 60, y)
    page.mouse.down()
    for key in ("c", "f", "j", "z", "a"):
        page.keyboard.press(key)
    page.evaluate(
        """([x, y]) => document.getElementById("brush-layer").dispatchEvent(
          new PointerEvent("pointerdown", { pointerId: 7, button: 0, clientX: x, clientY: y, bubbles: true }))""",
        [x, y],
    )
    page.mouse.move(x + 60, y - 60, steps=3)
    page.mouse.up()
    assert page.locator("#case-name").inner_text() == predicted.flipped
    painted = page.evaluate(VOXELS)
    assert painted != first
    page.keyboard.press("z")
    assert page.evaluate(VOXELS) == first
    assert page.locator("#accept").inner_text() == "Accept"
    page.keyboard.press("y")
    assert page.evaluate(VOXELS) == painted
    assert reviews_of(predicted.folder, predicted.flipped) == ()


def test_a_key_that_is_pressed_twice_or_held_decides_once(desk: Desk, predicted: Predicted) -> None:
    page = desk.show(predicted.flipped)
    twice = """() => { for (let n = 0; n < 2; n++) {
      document.body.dispatchEvent(new KeyboardEvent("keydown", { key: "a", bubbles: true }));
    } }"""
    page.evaluate(twice)
    sync_api.expect(page.locator("#message")).to_contain_text("Saved as flipped.reviewed.nii.gz")
    page.keyboard.down("a")
    page.keyboard.down("a")  # as a held key is sent again
    page.keyboard.up("a")
    sync_api.expect(page.locator("#message")).to_contain_text("Saved as flipped.reviewed-2.nii.gz")
    assert sum(url.endswith("/reviews") for url in desk.asked) == 2
    assert page.locator("#conflict").is_hidden()


def test_a_page_that_was_open_for_weeks_can_still_save(desk: Desk, predicted: Predicted) -> None:
    page = desk.show(predicted.flipped)
    page.evaluate("""() => {
      const now = performance.now.bind(performance);
      performance.now = () => now() + 8 * 24 * 3600e3;
    }""")
    page.locator("#accept").click()
    sync_api.expect(page.locator("#message")).to_contain_text("Saved as")
    (review,) = reviews_of(predicted.folder, predicted.flipped)
    assert review.seconds == 7 * 24 * 3600


def test_the_right_button_moves_the_picture_with_any_tool(desk: Desk, predicted: Predicted) -> None:
    page = desk.show(predicted.flipped)
    first = page.evaluate(VOXELS)
    x, y = on_page(page, page.evaluate("review.viewer.position"))
    for tool in ("v", "b", "e"):
        page.keyboard.press(tool)
        page.keyboard.press("0")
        page.mouse.move(x, y)
        page.mouse.down(button="right")
        page.mouse.move(x + 30, y + 20, steps=3)
        page.mouse.up(button="right")
        pan = page.evaluate("[...review.viewer.planes.scene.pan2Dxyzmm]")
        assert np.abs(pan[:3]).max() > 5, tool
        page.mouse.move(x, y)  # the button is up: it moves no more
        assert page.evaluate("[...review.viewer.planes.scene.pan2Dxyzmm]") == pan
    assert page.evaluate(VOXELS) == first


def test_a_wheel_that_is_tilted_stays_in_the_slice(desk: Desk, predicted: Predicted) -> None:
    page = desk.show(predicted.flipped)
    position = page.evaluate("review.viewer.position")
    page.mouse.move(*on_page(page, position))
    page.mouse.wheel(120, 0)
    page.mouse.wheel(0, -120)
    page.wait_for_function("(k) => review.viewer.position[2] !== k", arg=position[2])
    assert page.evaluate("review.viewer.position[2]") == position[2] + 1


def test_a_small_brush_between_thick_slices_takes_the_voxel_that_it_is_in(desk: Desk) -> None:
    found = desk.page.evaluate("""async () => {
      const { Mask } = await import("/paint.js");
      const mask = new Mask([9, 9, 9], [1, 1, 3], new Uint8Array(729));
      const where = () => [...mask.data.keys()].filter((n) => mask.data[n])
        .map((n) => [n % 9, Math.floor(n / 9) % 9, Math.floor(n / 81)]);
      mask.begin();
      mask.stroke(0, [4, 4.4, 4.45], [4, 4.4, 4.45], 1, 1, 1);
      mask.stroke(0, [4, -0.45, 8.45], [4, -0.45, 8.45], 1, 2, 2);
      const painted = where();
      mask.stroke(0, [4, 4.4, 4.45], [4, 4.4, 4.45], 1, 0, 2); // not that structure
      mask.stroke(0, [4, 0.3, 7.6], [4, 0.3, 7.6], 1, 0, 2);
      mask.end();
      return [painted, where()];
    }""")
    assert found == [[[4, 4, 4], [4, 0, 8]], [[4, 4, 4]]]


#: Elements with words of their own whose colour stands out from what lies behind by less than WCAG 2 asks (AA).
FAINT = """() => {
  const linear = (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  const luminance = (colour) => colour.match(/[0-9.]+/g).slice(0, 3).map((v) => linear(v / 255))
    .reduce((sum, v, n) => sum + v * [0.2126, 0.7152, 0.0722][n], 0);
  const behind = (e) => {
    const colour = getComputedStyle(e).backgroundColor;
    return colour === "rgba(0, 0, 0, 0)" && e.parentElement ? behind(e.parentElement) : colour;
  };
  const ratio = (e) => {
    const [dark, light] = [getComputedStyle(e).color, behind(e)].map(luminance).sort((a, b) => a - b);
    return (light + 0.05) / (dark + 0.05);
  };
  const speaks = (e) => [...e.childNodes].some((n) => n.nodeType === Node.TEXT_NODE && n.textContent.trim());
  return [...document.querySelectorAll("body *")]
    .filter((e) => e.checkVisibility() && !e.disabled && speaks(e) && ratio(e) < 4.5)
    .map((e) => `${e.tagName} ${e.id} ${e.className}: ${e.textContent.trim()}`);
}"""


def test_words_stand_out_and_pictures_have_names(desk: Desk, predicted: Predicted) -> None:
    page = desk.show(predicted.dicom)
    page.locator("#accept").click()
    sync_api.expect(page.locator("#message")).to_contain_text("Saved as")
    assert page.evaluate(FAINT) == []
    for name in ("Scan in planes", "Structures in space"):
        assert page.get_by_role("img", name=name).count() == 1
    page.goto(f"{desk.address}ledger")
    assert page.evaluate(FAINT) == []


def test_a_page_outlives_its_server(chromium: Any, predicted: Predicted) -> None:
    """And the name of its reviewer is offered to nobody else."""
    expect = sync_api.expect
    with socket.socket() as probing:
        probing.bind(("127.0.0.1", 0))
        port = probing.getsockname()[1]
    with served(predicted.folder, "--port", port, "--reviewer", "Ann") as (process, address):
        opened = Desk(chromium, address)
        page = opened.show(predicted.flipped)
        page.locator("#reviewer").fill("Ann B.")
        page.locator("#accept").click()
        expect(page.locator("#message")).to_contain_text("Saved as")
        page.reload()
        wait(page, predicted.flipped)
        assert page.locator("#reviewer").input_value() == "Ann B."
        page.keyboard.press("c")
        process.kill()
        process.wait()
        page.locator("#accept").click()
        expect(page.locator("#message")).to_contain_text("The server does not answer.")
        expect(page.locator("#message")).to_contain_text(f"start metricunet review again with --port {port}")
    with served(predicted.folder, "--port", port, "--reviewer", "Bo") as (_, address):
        page.locator("#accept").click()
        expect(page.locator("#message")).to_contain_text("Open the address that metricunet review has printed.")
        assert opened.open(address).locator("#reviewer").input_value() == "Bo"
        page.bring_to_front()
        page.locator("#accept").click()
        expect(page.locator("#message")).to_contain_text("Saved as flipped.reviewed-2.nii.gz")
        opened.context.close()
    assert [review.reviewer for review in reviews_of(predicted.folder, predicted.flipped)] == ["Ann B.", "Ann B."]


def test_a_reason_belongs_to_one_decision_alone(desk: Desk, predicted: Predicted) -> None:
    expect = sync_api.expect
    page = desk.show(predicted.flipped)
    page.locator("#reason").fill("wrong organ")
    page.locator("#reject").click()
    expect(page.locator("#message")).to_contain_text("Saved as flipped.reviewed.json")
    page.locator("#reject").click()
    expect(page.locator("#message")).to_have_text("Write what is wrong with the case.")
    page.reload()
    wait(page, predicted.flipped)
    assert "wrong organ" in page.locator("#decided").inner_text()
    page.locator("#accept").click()
    expect(page.locator("#message")).to_contain_text("Saved as flipped.reviewed-2.nii.gz")
    assert [review.reason for review in reviews_of(predicted.folder, predicted.flipped)] == ["wrong organ", ""]


def test_why_there_is_no_structure_set_is_said_although_the_next_case_is_open(
    desk: Desk, predicted: Predicted, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, ending = threading.Event(), threading.Event()

    def failing(*_: object, **__: object) -> None:
        begun.set()
        ending.wait()
        raise InputError("the slices are tilted")

    monkeypatch.setattr("metricunet.workflows.review.decide.write_rtstruct", failing)
    page = desk.show(predicted.dicom)
    try:
        page.locator("#accept").click()
        assert begun.wait(PATIENCE_MS / 1000)
        desk.show(predicted.flipped)
    finally:
        ending.set()
    sync_api.expect(page.locator("#message")).to_contain_text("There is no structure set: the slices are tilted")


def test_a_rejected_case_shows_what_was_saved_last(desk: Desk, predicted: Predicted) -> None:
    expect = sync_api.expect
    page = desk.show(predicted.flipped)
    page.locator("#structures button").first.click()
    assert "prostate" in page.locator("#place").inner_text()
    page.keyboard.press("c")
    assert "no structure" in page.locator("#place").inner_text()
    page.locator("#accept").click()
    expect(page.locator("#message")).to_contain_text("Saved as flipped.reviewed.nii.gz")
    saved_last = page.evaluate(VOXELS)
    page.keyboard.press("z")
    assert page.evaluate(VOXELS) != saved_last
    page.locator("#reason").fill("on second thoughts")
    page.once("dialog", lambda asked: asked.accept())
    page.locator("#reject").click()
    expect(page.locator("#message")).to_contain_text("Saved as flipped.reviewed-2.json")
    assert page.evaluate(VOXELS) == saved_last
    assert page.locator("#accept").inner_text() == "Accept"
