"""A real browser without a screen and without a network, which draws by software."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

#: No name but this machine's can be found, so nothing can come from elsewhere.
ALONE = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
SOFTWARE = ("--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist")
#: Two processors that have other work take their time.
PATIENCE_MS = 600_000


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    sync_api.expect.set_options(timeout=PATIENCE_MS)
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=[ALONE, *SOFTWARE], timeout=PATIENCE_MS
        )
        yield browser
        browser.close()


def picture(page: Any) -> NDArray[np.float64]:
    """The pixels of the page [row, column, red green blue]."""
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(page.screenshot())).convert("RGB")).astype(float)
