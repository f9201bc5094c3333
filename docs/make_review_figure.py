"""Draw docs/images/review.png: phantoms under review, as the pages show them.

    python docs/make_review_figure.py [-m MODEL] [-o FILE] [--seed N]

Makes three `real` phantoms, segments them with the shipped model or with MODEL, opens them for review in a
Chromium without a screen, and takes a picture of the most doubtful one, at the middle of its prostate.
Needs the extras `review` and playwright, and a Chromium.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import metricunet as mu
from metricunet.phantom import make_cohort

IMAGE = Path(__file__).with_name("images") / "review.png"
WIDTH, HEIGHT = 1700, 1340
#: Software draws, and other work may go on beside.
PATIENCE_MS = 600_000
SOFTWARE = ("--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist")


def take_picture(address: str, path: Path) -> None:
    """Open the pages, and save what is seen."""
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=PATIENCE_MS)
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=[*SOFTWARE], timeout=PATIENCE_MS)
        page = browser.new_context(viewport={"width": WIDTH, "height": HEIGHT}).new_page()
        page.set_default_timeout(PATIENCE_MS)
        page.goto(address)
        expect(page.locator("#accept")).to_be_enabled()
        page.locator("#structures button").first.click()  # to the middle of the prostate
        page.mouse.move(0, 0)
        page.evaluate("review.viewer.drawSolid()")
        page.evaluate("new Promise((drawn) => requestAnimationFrame(() => requestAnimationFrame(drawn)))")
        page.screenshot(path=path)
        browser.close()


def main() -> None:
    """Draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("-m", "--model", type=Path, help="segment with this model")
    parser.add_argument("-o", "--output", type=Path, default=IMAGE, help="write this file")
    parser.add_argument("--seed", type=int, default=5, help="of the phantoms")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        cohort, out = Path(home) / "cohort", Path(home) / "predictions"
        make_cohort(cohort, 3, seed=options.seed)
        model = mu.load_model(*([options.model] if options.model else []))
        for scan in sorted((cohort / "imagesTr").iterdir()):
            model.predict(mu.load_scan(scan)).save(out)
        words = [sys.executable, "-m", "metricunet", "review", str(out), "--no-browser", "--no-ledger"]
        with subprocess.Popen([*words, "--reviewer", "A. Reader"], stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout is not None
            try:
                take_picture(server.stdout.readline().split()[-1], options.output)
            finally:
                server.terminate()


if __name__ == "__main__":
    main()
