"""Reviews in the ledger: what is written of them, shown of them, and what becomes of them where it cannot be."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from metricunet.evaluation.measures import measure
from metricunet.files.nifti import read_labels
from metricunet.files.own import FILES, SEAL, read_sealed, write_sealed
from metricunet.files.reviews import reviews_of
from metricunet.ledger import Ledger, Scanner, record_case
from metricunet.ledger.table import read_rows
from metricunet.workflows.review.desk import Desk
from metricunet.workflows.review.guard import Guard
from metricunet.workflows.review.ledger_page import render_ledger
from metricunet.workflows.review.recording import Recorder, add_folder
from metricunet.workflows.review.scans import Scans
from metricunet.workflows.review.server import create_app
from tests.ledger.support import ODD, facts, fill
from tests.support.cohorts import edit_json
from tests.support.command import Command
from tests.workflows.review.conftest import HOST, PORT, Browser, Enter, Predicted, served, served_here
from tests.workflows.review.test_server import send, shown

Open = Callable[[Path, Path], Browser]


@pytest.fixture
def recorded() -> Open:
    """Opens a folder whose decisions go into a ledger."""

    def open_folder(folder: Path, ledger: Path) -> Browser:
        guard = Guard(create_app(Desk(folder, Scans(), "Ann Reader", Recorder(ledger))), PORT)
        browser = Browser(guard, origin=f"http://{HOST}")
        assert browser.get(f"/?token={guard.token}").status_code == 200
        return browser

    return open_folder


def test_what_is_decided_is_in_the_ledger_with_its_edit(
    predicted: Predicted, recorded: Open, tmp_path: Path
) -> None:
    path = tmp_path / "ledger.sqlite"
    client = recorded(predicted.folder, path)
    assert send(client, predicted.dicom).json()["not_recorded"] == ""
    mask = shown(client, predicted.flipped)
    mask[:, : mask.shape[1] // 2][mask[:, : mask.shape[1] // 2] == 1] = 0  # the back half
    assert send(client, predicted.flipped, mask).json()["decision"] == "corrected"
    send(client, predicted.odd, rejected=True, reason="wrong patient")
    rows = {(row["decision"], row["structure"]): row for row in read_rows(Ledger(path))}
    assert set(rows) == {
        *(("accepted", name) for name in ("prostate", "bladder")),
        *(("corrected", name) for name in ("prostate", "bladder")),
        ("rejected", None),
    }
    accepted = rows["accepted", "prostate"]
    assert (accepted["dice"], accepted["added_path_length_mm"]) == (1.0, 0.0)
    assert accepted["reviewer"] == "Ann Reader"
    quality = json.loads((predicted.folder / f"{predicted.dicom}.quality.json").read_text())
    assert accepted["model"] == "model.safetensors"
    assert (accepted["model_sha256"], accepted["model_version"]) == (quality["model_sha256"], quality["version"])
    assert accepted["codes"].split() == sorted({flag["code"] for flag in quality["flags"]})
    assert quality["scanner"] == {
        name: accepted[old] or ""
        for name, old in (("manufacturer", "manufacturer"), ("model", "scanner"), ("kernel", "kernel"))
    }
    automatic, reviewed = (
        read_labels(predicted.folder / f"flipped{end}") for end in (".nii.gz", ".reviewed.nii.gz")
    )
    for name, value in (("prostate", 1), ("bladder", 7)):
        found = rows["corrected", name]
        wanted = measure(*(m.with_array(m.array == value) for m in (automatic, reviewed)), tolerance_mm=0.0)
        for measured in ("dice", "added_path_length_mm", "volume_ratio", "shift_back_mm"):
            assert found[measured] == pytest.approx(wanted.value(measured))
    found = rows["corrected", "prostate"]
    assert found["removed_ml"] > 0
    assert found["added_ml"] == 0
    # What is left of the gland is its front half, so all that is gone lies nearest to that half's back.
    assert found["back_ml"] == pytest.approx(found["removed_ml"])
    assert rows["rejected", None]["reason"] == "wrong patient"
    # Neither the names of cases nor the patient's number are in the file.
    content = b"".join(file.read_bytes() for file in tmp_path.glob("ledger.sqlite*"))
    series = predicted.dicom.encode()
    assert not any(word in content for word in (series, b"flipped", predicted.odd.encode()))


@pytest.mark.parametrize("hurdle", ["folder", "text", "newer", "key"])
def test_a_ledger_that_cannot_be_written_costs_no_decision(
    predicted: Predicted, recorded: Open, tmp_path: Path, hurdle: str
) -> None:
    path = tmp_path / "ledger.sqlite"
    if hurdle == "folder":
        path.mkdir()
    elif hurdle == "text":
        path.write_text("no database, but some text that is long enough to be looked at " * 9)
    else:
        ledger = Ledger(path)
        assert ledger.key
        if hurdle == "key":
            ledger.key.path.unlink()
        else:
            with ledger.writing() as db:
                db.execute("PRAGMA user_version = 99")
    client = recorded(predicted.folder, path)
    answer = send(client, predicted.flipped)
    assert answer.status_code == 200
    assert str(path) in answer.json()["not_recorded"]
    (review,) = reviews_of(predicted.folder, "flipped")
    assert review.is_whole()
    if hurdle != "key":
        page = client.get("/ledger")
        assert page.status_code == 400
        assert page.headers["content-type"].startswith("text/html")
        assert any(str(path) in text for text in Tags(page.text).texts)


def test_one_value_gets_an_axis_that_can_be_read(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    fill(ledger, 1)
    page = render_ledger(ledger, {})
    assert all(tick in page for tick in (">0.00<", ">0.10<", ">1.00<", ">0.90<"))


def test_a_folder_is_added_afterwards_and_once(
    metricunet: Command, predicted: Predicted, recorded: Open, tmp_path: Path
) -> None:
    direct, later = tmp_path / "direct.sqlite", tmp_path / "later.sqlite"
    client = recorded(predicted.folder, direct)
    mask = shown(client, predicted.flipped)
    mask[mask == 1] = 2
    send(client, predicted.flipped, mask)
    send(client, predicted.odd)
    send(client, predicted.odd, rejected=True, reason="on second thoughts")
    ended = metricunet("ledger", "add", predicted.folder, later)
    assert (ended.status, ended.err) == (0, "")
    assert "4 verdicts, 3 new decisions" in ended.out
    ended = metricunet("ledger", "add", predicted.folder, later)
    assert "4 verdicts, 0 new decisions, 3 were there" in ended.out
    of_hashes = ("case", "patient")
    rows, same = ([row for row in read_rows(Ledger(file)) if row["decision"]] for file in (direct, later))
    assert [{**row, **dict.fromkeys(of_hashes)} for row in rows] == [
        {**row, **dict.fromkeys(of_hashes)} for row in same
    ]
    assert [row["is_last"] for row in same if row["review"] == 1 and row["decision"] == "accepted"] == [0, 0]
    # A mask that was changed since cannot be compared any more.
    (predicted.folder / "flipped.nii.gz").write_bytes((predicted.folder / "flipped.reviewed.nii.gz").read_bytes())
    added = add_folder(tmp_path / "third.sqlite", predicted.folder)
    assert (added.decisions, len(added.left_out)) == (2, 1)
    assert "flipped.reviewed.json: is a review of an earlier prediction" in added.left_out[0]


def test_a_scan_that_is_not_found_is_to_be_named_by_the_option_of_the_command_at_hand(
    metricunet: Command, predicted: Predicted, recorded: Open, tmp_path: Path
) -> None:
    send(recorded(predicted.folder, tmp_path / "direct.sqlite"), predicted.odd)
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(predicted.scans / "flipped.nii.gz", other)
    words = ["ledger", "add", predicted.folder, tmp_path / "later.sqlite", "--scans"]
    ended = metricunet(*words, other)
    assert (ended.status, ended.err.count("\n")) == (1, 1)
    assert ended.err.endswith("; name its folder with --scans\n")
    ended = metricunet(*words, predicted.scans)
    assert (ended.status, ended.err) == (0, "")
    assert "1 new decisions" in ended.out


class Tags(HTMLParser):
    """The tags and texts of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [str(value) for name, value in attrs if name in ("href", "src")]

    def handle_data(self, data: str) -> None:
        self.texts.append(data.strip())


def test_the_page_shows_numbers_and_escapes_what_scanners_say(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    assert "No case is in the ledger yet" in render_ledger(ledger, {})
    fill(ledger, 60, corrected_from=50)
    record_case(ledger, facts(100, model="c", scanner=Scanner(ODD, '"><img src=x>', "B30f")))
    page = Tags(render_ledger(ledger, {}))
    assert not {"script", "img", "form"} & set(page.tags)
    assert any(ODD in text for text in page.texts)
    assert page.tags.count("svg") == 3 + 7  # the charts, and the bars of the parts
    assert all(link.startswith(("base.css", "ledger", ".", "data:")) for link in page.links)
    assert not any("reader" in text or "why" in text for text in page.texts)
    assert any("Above the limits of the first 40 cases" in text for text in page.texts)
    only = Tags(render_ledger(ledger, {"scanner": "ACME, One, B30f", "baseline": "20", "structure": ODD}))
    assert "30" in only.texts  # of the 61 cases
    for query in ({"baseline": "x"}, {"baseline": "-5"}, {"baseline": "9" * 99}, {"model": ODD}, {"scanner": "'"}):
        assert "61" in Tags(render_ledger(ledger, query)).texts


def test_page_and_table_are_served_to_those_alone_who_have_the_cookie(
    predicted: Predicted, recorded: Open, tmp_path: Path
) -> None:
    client = recorded(predicted.folder, tmp_path / "ledger.sqlite")
    send(client, predicted.flipped)
    page = client.get("/ledger?structure=prostate")
    assert page.status_code == 200
    assert "script-src 'self'" in page.headers["content-security-policy"]
    table = client.get("/ledger.csv")
    (row, _) = csv.DictReader(io.StringIO(table.text))
    assert row["decision"] == "accepted"
    assert "reviewer" not in row
    assert "attachment" in table.headers["content-disposition"]
    assert client.get("/ledger.css").status_code == 200
    stranger = Browser(client.guard)
    for path in ("/ledger", "/ledger.csv", "/ledger.css"):
        assert stranger.get(path).status_code == 401


def test_a_record_of_a_program_to_come_costs_its_decision_alone(
    predicted: Predicted, enter: Enter, tmp_path: Path
) -> None:
    client = enter(predicted.folder)
    for name in (predicted.flipped, predicted.dicom):
        send(client, name)
    path = predicted.folder / "flipped.reviewed.json"
    content = json.loads(path.read_text())
    write_sealed(path, {**content, "decided": "in the morning"}, content["files"])
    added = add_folder(tmp_path / "ledger.sqlite", predicted.folder)
    assert (added.cases, added.decisions) == (4, 1)
    (reason,) = added.left_out
    assert "flipped.reviewed.json" in reason


def test_decisions_after_a_change_of_the_key_have_the_new_one(
    predicted: Predicted, recorded: Open, tmp_path: Path
) -> None:
    path = tmp_path / "ledger.sqlite"
    client = recorded(predicted.folder, path)
    send(client, predicted.flipped)
    key = Ledger(path).new_key()
    send(client, predicted.odd)
    digests = {
        name: json.loads((predicted.folder / f"{name}.quality.json").read_text())["input_sha256"]
        for name in (predicted.flipped, predicted.odd)
    }
    cases = {row["case"] for row in read_rows(Ledger(path)) if row["decision"]}
    assert key.hashed("scan", digests[predicted.odd]) in cases
    assert key.hashed("scan", digests[predicted.flipped]) not in cases


def test_the_command_writes_the_verdicts_of_all_cases_at_its_start(
    predicted: Predicted, metricunet: Command, tmp_path: Path
) -> None:
    path = tmp_path / "made" / "ledger.sqlite"
    with served(predicted.folder, "--ledger", path) as (process, _):
        assert process.stdout is not None
        while "ledger:" not in (line := process.stdout.readline()):
            assert line
    assert str(path) in line
    assert len(read_rows(Ledger(path, create=False))) == 4
    ended = metricunet("review", predicted.folder, "--no-ledger", "--ledger", path)
    assert (ended.status, ended.err.count("\n")) == (2, 1)


def test_a_folder_of_an_earlier_version_is_recorded_as_far_as_it_says(
    predicted: Predicted, recorded: Open, tmp_path: Path
) -> None:
    (predicted.folder / "run.json").unlink()
    edit_json(predicted.folder / f"{predicted.dicom}.quality.json", scanner=None, doubt=None, input_sha256=None)
    client = recorded(predicted.folder, tmp_path / "ledger.sqlite")
    assert send(client, predicted.dicom).json()["not_recorded"] == ""
    row = read_rows(Ledger(tmp_path / "ledger.sqlite"))[0]
    assert (row["model"], row["doubt"], row["decision"]) == ("", "", "accepted")
    assert row["scanner"] is not None  # from the header of the scan itself


def test_a_model_whose_name_is_no_text_keeps_no_case_out_of_the_ledger(
    predicted: Predicted, tmp_path: Path
) -> None:
    record = predicted.folder / "run.json"
    content = read_sealed(record)
    assert content is not None
    plain = {name: value for name, value in content.items() if name not in (FILES, SEAL)}
    models = [os.fsdecode(b"/models/M\xfcller.safetensors")]
    write_sealed(record, {**plain, "arguments": {**content["arguments"], "models": models}}, content[FILES])
    path = tmp_path / "ledger.sqlite"
    assert add_folder(path, predicted.folder, scans=predicted.scans).cases == 4
    assert {row["model"] for row in read_rows(Ledger(path))} == {"M\\udcfcller.safetensors"}


def test_the_page_in_a_browser(predicted: Predicted, tmp_path: Path) -> None:
    sync_api = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium to show the pages")
    path = tmp_path / "ledger.sqlite"
    ledger = Ledger(path)
    fill(ledger, 130, corrected_from=100)
    record_case(ledger, facts(999, model="c", scanner=Scanner(ODD, "", "")))
    with served_here(predicted.folder, path) as address, sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, timeout=600_000)
        page = browser.new_context(viewport={"width": 1100, "height": 900}).new_page()
        page.set_default_timeout(600_000)
        faults: list[str] = []
        page.on("console", lambda said: said.type == "error" and faults.append(said.text))
        page.on("dialog", lambda dialog: faults.append(dialog.message))
        page.goto(address, wait_until="commit")
        page.locator("#ledger-link").click()
        page.get_by_role("heading", name="Does it drift?").wait_for()
        picture = tmp_path / "ledger.png"
        page.screenshot(path=picture, full_page=True)
        assert page.locator("circle.outside").count() > 0
        # The moving average of the path lies within its frame, rising at the end.
        frame = page.locator("figure svg").nth(1).bounding_box()
        dots = [dot.bounding_box() for dot in page.locator("figure svg").nth(1).locator("circle").all()]
        assert frame is not None
        assert all(dot is not None and frame["y"] <= dot["y"] <= frame["y"] + frame["height"] for dot in dots)
        assert dots[-1]["y"] < np.median([dot["y"] for dot in dots if dot is not None])
        page.get_by_role("link", name=f"{ODD}", exact=True).click()
        page.get_by_text("0 decided").wait_for()
        assert faults == []
        browser.close()
