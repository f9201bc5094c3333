"""The buttons of the queue in a real browser without a screen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from metricunet.workflows.serve.web import WebServer
from tests.support.chromium import CHROMIUM, PATIENCE_MS, chromium, sync_api
from tests.workflows.serve.conftest import free_port
from tests.workflows.serve.test_web import Failed, Site, site

__all__ = ["chromium", "site"]  # fixtures

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium to show the pages")


def test_the_buttons_in_a_browser(site: Callable[..., Site], chromium: Any) -> None:
    here = site(web={"port": free_port()})
    failed = Failed(here.node)
    server = WebServer(here.node, here.node.config)
    context = chromium.new_context()
    context.set_default_timeout(PATIENCE_MS)
    try:
        page = context.new_page()
        faults: list[str] = []
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda said: said.type == "error" and faults.append(said.text))
        page.goto(f"http://127.0.0.1:{server.port}/?token={here.gate.tokens['pages']}")
        page.wait_for_url(f"http://127.0.0.1:{server.port}/")
        page.goto(f"http://127.0.0.1:{server.port}/node")
        page.get_by_text("try now").click()
        sync_api.expect(page.get_by_text("rtstruct to pacs: waiting")).to_be_visible()
        page.get_by_text("segment again").click()
        sync_api.expect(page.get_by_text("segment again")).to_have_count(0)
        assert {job.state for job in failed.queue.jobs()} == {"sending", "waiting"}
        failed.queue.delivered(failed.delivery.id)
        page.get_by_text("try now").click()  # it is still on this page, and comes too late
        sync_api.expect(page.locator("#said")).to_contain_text("cannot become sending")
        assert [fault for fault in faults if "409" not in fault] == []
    finally:
        context.close()
        server.stop()
    assert ("local", "delivery again", failed.sent.id) in failed.audit()


def test_the_pages_name_the_reviewer_whom_the_node_knows(site: Callable[..., Site], chromium: Any) -> None:
    here = site(web={"port": free_port()})
    server = WebServer(here.node, here.node.config)
    context = chromium.new_context()
    context.set_default_timeout(PATIENCE_MS)
    try:
        page = context.new_page()
        page.goto(f"http://127.0.0.1:{server.port}/?token={here.gate.tokens['pages']}")
        page.wait_for_url(f"http://127.0.0.1:{server.port}/")
        sync_api.expect(page.locator("#reviewer")).to_have_value("local")
        sync_api.expect(page.locator("#reviewer")).not_to_be_editable()
    finally:
        context.close()
        server.stop()
