from __future__ import annotations

import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from metricunet.evaluation.cases import RecordedQuality
from metricunet.evaluation.compare import evaluate
from metricunet.evaluation.measures import DEFINITIONS, Measures
from metricunet.evaluation.report import MAX_OVERLAYS, render_report, worst_first
from metricunet.evaluation.summary import CaseRow, Evaluation, summarise

Gland = Callable[..., NDArray[Any]]
VOID = {"meta", "link", "br", "img", "hr", "input"}


class Page(HTMLParser):
    """Checks that elements close in order; collects text, links, ids and anything that could be fetched."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""
        self.cells: list[str] = []
        self.references: list[str] = []
        self.ids: list[str] = []
        self.tags: list[str] = []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "data", "action", "srcset"):
                self.references.append(value or "")
            if name == "id":
                self.ids.append(value or "")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open, tag
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.text += data


def measured(dice: float) -> Measures:
    return Measures(dice, 1.0, dice, dice, 3.0, dice, 1.0)


def make_evaluation(*rows: CaseRow, quality: dict[str, RecordedQuality] | None = None) -> Evaluation:
    verdicts = {row.case: RecordedQuality() for row in rows} | (quality or {})
    return Evaluation(rows, summarise(rows), (), (), verdicts)


def render(evaluation: Evaluation) -> str:
    return render_report(evaluation, [], predictions=Path("prediction"), references=Path("labelsTs"))


def test_worst_first() -> None:
    missed = Measures(0.0, None, 0.0, 0.0, None, 0.0, -30.0)
    absent = Measures(None, None, None, None, None, None, None)
    rows = [
        CaseRow("a", "prostate", measured(0.9)),
        CaseRow("a", "bladder", measured(0.6)),
        CaseRow("b", "prostate", measured(0.8)),
        CaseRow("b", "bladder", absent),
        CaseRow("c", "prostate", missed),
        CaseRow("d", "prostate", absent),
    ]
    order = [(row.case, row.structure) for row in worst_first(make_evaluation(*rows))]
    assert order == [("c", "prostate"), ("a", "bladder"), ("b", "prostate")]


def test_one_file_that_fetches_nothing(folders: Any, gland: Gland) -> None:
    rng = np.random.default_rng(0)
    for k in range(8):
        hu = np.where(gland(), 45, -90) + rng.normal(0, 30, gland().shape)
        folders.add(f"case_{k}", gland(), gland((k, 0, 0)), hu=hu, quality={"verdict": "pass"})
    evaluate(folders.predictions, folders.cohort, folders.output)
    path = folders.output / "report.html"
    html = path.read_text(encoding="utf-8")
    page = Page(html)
    assert path.stat().st_size < 5_000_000
    assert not {"script", "iframe", "link-stylesheet", "object", "embed"} & set(page.tags)
    for reference in page.references:
        assert reference.startswith(("data:", "#")), reference
    assert not re.search(r"https?://|@import|url\(", html)
    # Links inside the page lead somewhere; every case has three pictures, the worst case first.
    assert {r[1:] for r in page.references if r.startswith("#")} <= set(page.ids)
    assert html.count("data:image/png;base64,") == 8 * 3
    titles = re.findall(r"<h3>(case_\d)</h3>", html)
    assert titles == [f"case_{k}" for k in reversed(range(8))]


def test_it_says_what_it_must() -> None:
    quality = {"b": RecordedQuality("review", ("gland cut by the scan",), "uncertain", 0.41, "two regions")}
    rows = (CaseRow("a", "prostate", measured(0.9)), CaseRow("b", "prostate", measured(0.8)))
    html = render(make_evaluation(*rows, quality=quality))
    text = re.sub(r"\s+", " ", Page(html).text)
    assert "For research use; not a medical device" in text
    assert "0.850 ± 0.071" in text
    assert "gland cut by the scan; localisation uncertain (0.41): two regions" in text
    for definition in DEFINITIONS:
        assert definition.text in text


def test_names_are_escaped() -> None:
    evil = '<script>alert("x")</script>&'
    html = render(
        make_evaluation(
            CaseRow(evil, evil, measured(0.9)),
            quality={evil: RecordedQuality("review", (evil,), evil, 0.5, evil)},
        )
    )
    assert "<script" not in html
    assert evil in Page(html).text


def test_means_of_distances_say_over_how_many() -> None:
    missed = Measures(0.0, None, 0.0, 0.0, None, 0.0, -30.0)
    html = render(make_evaluation(CaseRow("a", "prostate", measured(0.9)), CaseRow("b", "prostate", missed)))
    text = re.sub(r"\s+", " ", Page(html).text)
    assert "n = 1 of 2" in text
    assert "Missed: b" in text
    assert "1 missed: no distance to show" in text


def test_missed_are_told_of_the_cases_that_hold_the_structure_and_false_positives_beside_them() -> None:
    missed = Measures(0.0, None, 0.0, 0.0, None, 0.0, -30.0)
    invented = Measures(0.0, None, None, 0.0, None, 0.0, 12.0)
    absent = Measures(None, None, None, None, None, None, None)
    found = [missed, missed, *[invented] * 8, *[absent] * 3]
    text = re.sub(r"\s+", " ", Page(render(make_evaluation(*_rows(found)))).text)
    assert "Missed2 of 2each counts as 0" in text
    assert "Not in the reference8 of 11the reference holds none" in text
    text = re.sub(r"\s+", " ", Page(render(make_evaluation(*_rows([missed, absent])))).text)
    assert "Missed1 of 1each counts as 0" in text
    assert "Not in the reference" not in text


def _rows(found: list[Measures]) -> list[CaseRow]:
    return [CaseRow(f"c{k:02}", "prostate", measures) for k, measures in enumerate(found)]


@pytest.mark.parametrize("count", [MAX_OVERLAYS, MAX_OVERLAYS + 2])
def test_no_more_than_the_worst_in_pictures(folders: Any, gland: Gland, count: int) -> None:
    for k in range(count):
        folders.add(f"case_{k:02d}", gland(), gland((0.7 * k, 0, 0)))
    evaluate(folders.predictions, folders.cohort, folders.output)
    html = (folders.output / "report.html").read_text(encoding="utf-8")
    assert html.count("<article") == MAX_OVERLAYS
    assert (f"The {MAX_OVERLAYS} worst of {count} cases are shown" in html) is (count > MAX_OVERLAYS)
    assert html.count("No scan was found") == MAX_OVERLAYS


def test_nothing_measured_at_all() -> None:
    absent = Measures(None, None, None, None, None, None, None)
    html = render(make_evaluation(CaseRow("a", "prostate", absent)))
    assert "truly absent" in Page(html).text


def test_plots_hold_numbers_only() -> None:
    rows = [CaseRow(f"c{i}", "prostate", measured(0.7 + 0.02 * i)) for i in range(9)]
    html = render(make_evaluation(*rows))
    assert html.count("<circle") >= 9 * len(DEFINITIONS)
    assert not re.search(r'(="| )(nan|inf|None)\b', html)
