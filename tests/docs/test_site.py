"""The site is built without a warning, has no dead link, fits a narrow screen, and asks no other host."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.support.scripts import docs_script

ROOT = Path(__file__).parents[2]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytest.importorskip("mkdocs", reason="the site needs pip install 'metricunet[docs]'")


@pytest.fixture(scope="module")
def check() -> ModuleType:
    return docs_script("site/check")


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    return docs_script("site/hooks")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, as `make docs` builds it."""
    folder = tmp_path_factory.mktemp("site")
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    ended = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return folder


def test_no_link_is_dead_and_nothing_is_loaded_from_elsewhere(check: ModuleType, site: Path) -> None:
    assert list(check.problems(site, check.listed(check.EXTERNAL))) == []


def test_what_the_pages_of_the_site_are_made_from(site: Path) -> None:
    for page, words in {
        "readme.html": "What it cannot do",
        "contour.html": "Read the verdict before the contour",
        "reference/commands.html": "--install-completion",
        "reference/python.html": "load_scan",
        "source/src/metricunet/training/config.py.html": "updates_per_epoch",
    }.items():
        assert words in (site / page).read_text(encoding="utf-8"), page
    assert not list(site.rglob("*.py"))


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@pytest.fixture
def address(site: Path) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(site)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("no Chromium to look at the site with")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


def test_pages_fit_the_screen_of_a_phone(chromium: Any, site: Path, address: str) -> None:
    asked: set[str] = set()
    page = chromium.new_page(viewport={"width": 390, "height": 844})
    page.on("request", lambda request: asked.add(request.url))
    for file in sorted(site.rglob("*.html")):
        name = file.relative_to(site).as_posix()
        if name == "404.html" or name.startswith("source/"):
            continue
        page.goto(address + name)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, name
        broken = "[...document.images].filter(i => i.complete && !i.naturalWidth).map(i => i.src)"
        assert page.evaluate(broken) == [], name
    page.close()
    assert [url for url in asked if not url.startswith((address, "data:"))] == []


@pytest.mark.parametrize("served", [True, False], ids=["served", "from its folder"])
def test_the_search_finds_a_page(chromium: Any, site: Path, address: str, served: bool) -> None:
    page = chromium.new_page(viewport={"width": 1300, "height": 900})
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"{address}index.html" if served else (site / "index.html").as_uri())
    page.locator(".md-search__input").fill("METRICUNET_MODEL")
    page.wait_for_selector(".md-search-result__link[href*='predictions.html']")
    page.close()
    assert not [url for url in asked if url.startswith("http") and not url.startswith(address)]


def test_what_is_wrong_with_a_site_is_found(check: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(
        '<h1 id="top">A</h1><a href="b.html">b</a><a href="c.html#no">c</a><a href="#top">up</a>'
        '<a href="#down">x</a><a href="https://known.org">k</a><a href="https://unknown.org">u</a>'
        '<script src="//cdn.org/x.js"></script>'
    )
    (tmp_path / "c.html").write_text('<p id="yes"></p><img src="data:image/png,A"><a href="mailto:a@b.c">m</a>')
    (tmp_path / "x.css").write_text("a { background: url(https://fonts.org/f) }")
    assert list(check.problems(tmp_path, {"https://known.org", "https://gone.org"})) == [
        "a.html: loads //cdn.org/x.js from another host",
        "a.html: links to b.html, which is not there",
        "a.html: links to c.html#no, which has no such heading",
        "a.html: links to #down, which has no such heading",
        "a.html: links to https://unknown.org, which external.txt does not list",
        "x.css: loads from elsewhere",
        "external.txt: lists https://gone.org, which no page links to",
    ]


def test_links_are_led_to_their_places_and_code_is_left_alone(hooks: ModuleType) -> None:
    text = (
        "[a](x.md) `[b](y.md)`\n```sh\n[c](z.md)\n```\n![p](images/p.png) [d](https://e.org) [f](#g) [h](i.md#j)"
    )
    assert list(hooks._targets(text)) == ["x.md", "images/p.png", "i.md"]
