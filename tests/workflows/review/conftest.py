"""A folder of predictions to review: a DICOM series, NIfTI files in odd orientations, one with an odd name."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import uvicorn

from metricunet.files.model import Calibration
from metricunet.files.nifti import read_labels, read_nifti, write_nifti
from metricunet.files.own import FILES, SEAL, write_sealed
from metricunet.files.record import sha256
from metricunet.inference.predict import predict
from metricunet.ledger.location import default_ledger
from metricunet.volume import Volume
from metricunet.workflows.review import review
from metricunet.workflows.review.desk import Desk
from metricunet.workflows.review.guard import Guard
from metricunet.workflows.review.scans import Scans
from metricunet.workflows.review.server import create_app
from tests.support.dicom_series import write_series
from tests.support.threshold_model import GLAND_BAND, GLAND_HU, ball, bands_known, drawn_scan, write_bands_model

ODD = "<b>odd & näme"
PORT = 8123
HOST = f"127.0.0.1:{PORT}"


def gland(centre: tuple[float, float, float]) -> Volume:
    """A scan with a gland and a smaller bladder above it, wider than what is shown at first; no HU below air."""
    shapes = ((ball(centre, (16, 12, 14)), GLAND_HU), (ball((0, -6, 27), 8), 300.0))
    scan = drawn_scan(*shapes, shape=(60, 80, 90), spacing_mm=(3.0, 2.0, 2.0))
    return scan.with_array(np.maximum(scan.array, -1000))


@dataclass(frozen=True)
class Predicted:
    """A copy of the predictions, for one test to change.

    `dicom`, `flipped`, `odd` and `empty` are the names of the cases; nothing was found in the last one.
    """

    folder: Path
    scans: Path
    dicom: str
    flipped: str = "flipped"
    odd: str = ODD
    empty: str = "empty"


@pytest.fixture(scope="session")
def predictions(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder that holds scans and predictions, and the name of the DICOM case. Not to be changed."""
    home = tmp_path_factory.mktemp("review")
    scans = home / "scans"
    series = gland((4, 2, 0))
    write_series(
        scans / "ct", series.array, spacing_mm=series.spacing_mm, origin_mm=tuple(series.geometry.origin_mm)
    )
    write_nifti(scans / "flipped.nii.gz", gland((-6, 0, 3)).reordered((0, 1, 2), (True, False, True)))
    write_nifti(scans / f"{ODD}.nii.gz", gland((0, 4, -3)))
    write_nifti(scans / "empty.nii.gz", drawn_scan(shape=(30, 44, 48), spacing_mm=(3.0, 2.0, 2.0)))
    with bands_known():
        model = write_bands_model(
            home / "model.safetensors",
            {"prostate": 1, "bladder": 7},
            (GLAND_BAND, (200.0, 400.0)),
            crop_voxels=(40, 40, 40),
            calibration=Calibration(1.0, 1.0, (0.1, 2.0), 5, {}),
        )
        predict([scans], [model], home / "out", device="cpu")
        predict([scans / "ct"], [model], home / "out", formats=("nifti", "rtstruct"), device="cpu")
    (dicom,) = (p.name.partition(".")[0] for p in (home / "out").glob("*.rtstruct.dcm"))
    return home, dicom


@pytest.fixture
def predicted(predictions: tuple[Path, str], tmp_path: Path) -> Predicted:
    """Scans and predictions that a test may change. They were moved together since they were made."""
    home, dicom = predictions
    shutil.copytree(home, tmp_path / "home")
    return Predicted(tmp_path / "home" / "out", tmp_path / "home" / "scans", dicom)


def predict_anew(folder: Path, case: str, labels: dict[str, int]) -> None:
    """Replace a prediction as that of another model would, which has other values for the structures, or fewer."""
    mask, quality = folder / f"{case}.nii.gz", folder / f"{case}.quality.json"
    stated = json.loads(quality.read_text())
    before, array = read_labels(mask), np.zeros_like(read_labels(mask).array)
    for name, value in labels.items():
        array[before.array == stated["labels"][name]] = value
    write_nifti(mask, before.with_array(array), like=mask)
    content = {name: value for name, value in stated.items() if name not in (FILES, SEAL)}
    files = {**stated[FILES], mask.name: sha256([mask])}
    write_sealed(quality, {**content, "labels": labels}, files)


def scan_anew(predicted: Predicted, case: str, change: Callable[[Volume], Volume]) -> None:
    """Put another scan in the place of a case's, and what is predicted of it in that of the prediction."""
    scan, mask = (folder / f"{case}.nii.gz" for folder in (predicted.scans, predicted.folder))
    write_nifti(scan, change(read_nifti(scan)))
    write_nifti(mask, change(read_labels(mask)))
    quality = predicted.folder / f"{case}.quality.json"
    stated = json.loads(quality.read_text())
    content = {name: value for name, value in stated.items() if name not in (FILES, SEAL)}
    files = {**stated[FILES], mask.name: sha256([mask])}
    write_sealed(quality, {**content, "input_sha256": sha256([scan])}, files)


def guarded(folder: Path, scans: Path | None = None) -> Guard:
    """The whole application on a folder."""
    return Guard(create_app(Desk(folder, Scans(scans), "Ann Reader")), PORT)


class Browser:
    """Asks an application as a browser would, without a network. It keeps cookies, and sends the headers given."""

    def __init__(self, guard: Guard, **headers: str) -> None:
        self.guard, self.headers, self.cookies = guard, headers, httpx.Cookies()

    def get(self, path: str, **more: Any) -> httpx.Response:
        return self.ask("GET", path, **more)

    def post(self, path: str, **more: Any) -> httpx.Response:
        return self.ask("POST", path, **more)

    def ask(self, method: str, path: str, **more: Any) -> httpx.Response:
        async def answer() -> httpx.Response:
            transport = httpx.ASGITransport(self.guard)
            headers = {**self.headers, **more.pop("headers", {})}
            async with httpx.AsyncClient(
                transport=transport, base_url=f"http://{HOST}", headers=headers, cookies=self.cookies
            ) as client:
                found = await client.request(method, path, **more)
                self.cookies = client.cookies
                return found

        return asyncio.run(answer())


Enter = Callable[..., Browser]


@pytest.fixture
def enter() -> Enter:
    """Opens a folder as a browser does: by the token, with the cookie from then on."""

    def open_folder(folder: Path, scans: Path | None = None) -> Browser:
        guard = guarded(folder, scans)
        browser = Browser(guard, origin=f"http://{HOST}")
        assert browser.get(f"/?token={guard.token}").status_code == 200
        return browser

    return open_folder


@contextmanager
def served(*words: object) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run the command, and give its address."""
    command = [sys.executable, "-m", "metricunet", "review", *map(str, words), "--no-browser"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process, process.stdout.readline().split()[-1]
        finally:
            process.kill()


@contextmanager
def served_here(folder: Path, ledger: Path | None = None) -> Iterator[str]:
    """Do what the command does in a thread of this process, which begins much sooner, and give its address."""
    said: list[str] = []
    servers: list[uvicorn.Server] = []
    begun = threading.Event()

    class Kept(uvicorn.Server):
        def __init__(self, config: uvicorn.Config) -> None:
            super().__init__(config)
            servers.append(self)
            begun.set()

    def serve() -> None:
        try:
            review(folder, browser=False, ledger=ledger or default_ledger(), say=said.append)
        finally:
            begun.set()  # also if there never is a server

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(uvicorn, "Server", Kept)
        thread = threading.Thread(target=serve)
        thread.start()
        begun.wait()
        try:
            yield said[0].split()[-1]
        finally:
            for server in servers:
                server.should_exit = True
            thread.join()
