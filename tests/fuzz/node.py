"""Rubbish for a node: `python tests/fuzz/node.py --associations 200 --bodies 5000 --seed 0`.

A node takes associations that are broken off, lie about lengths, bring mixed patients, gaps, MR, reports,
duplicates, thousands of objects or a compressed file that unpacks to very much, and fuzzed C-STORE and STOW
bodies. It must not crash, hang or take much memory, and a good series that comes between them must be delivered.
The status is 1 otherwise.
"""

from __future__ import annotations

import argparse
import http.client
import io
import os
import random
import socket
import struct
import sys
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

import psutil  # noqa: E402 - the paths come first
import pydicom  # noqa: E402
from pydicom.dataset import Dataset  # noqa: E402
from pydicom.uid import (  # noqa: E402
    CTImageStorage,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    MRImageStorage,
    generate_uid,
)
from pynetdicom import AE  # noqa: E402
from pynetdicom.dimse_primitives import C_STORE  # noqa: E402

from tests.support.dicom_series import write_series  # noqa: E402
from tests.support.threshold_model import GLAND_HU, ball, bands_known, drawn_scan, write_bands_model  # noqa: E402
from tests.workflows.serve.conftest import debian, eventually, free_port, listens, orthanc_in, serving  # noqa: E402

REPORT = "1.2.840.10008.5.1.4.1.1.88.11"
DEFLATED = "1.2.840.10008.1.2.1.99"
MOST_MEMORY = 3 << 30


def opened(port: int, calling: str = "CT", called: str = "METRICUNET") -> Any:
    """Open an association."""
    entity = AE(calling)
    for kind in (CTImageStorage, MRImageStorage, REPORT):
        entity.add_requested_context(kind, ExplicitVRLittleEndian)
    entity.add_requested_context(CTImageStorage, JPEG2000Lossless)
    entity.add_requested_context(CTImageStorage, DEFLATED)
    entity.network_timeout = entity.dimse_timeout = entity.acse_timeout = 60
    return entity.associate("127.0.0.1", port, ae_title=called)


def store_bytes(
    association: Any, body: bytes, syntax: str = ExplicitVRLittleEndian, uid: str = "1.2.3"
) -> int | None:
    """Store bytes that need be no data set; return the status, None where the peer hung up."""
    contexts = [
        one.context_id
        for one in association.accepted_contexts
        if one.abstract_syntax == CTImageStorage and one.transfer_syntax[0] == syntax
    ]
    if not contexts or not association.is_established:
        return None
    request = C_STORE()
    request.MessageID, request.Priority = 1, 2
    request.AffectedSOPClassUID, request.AffectedSOPInstanceUID = CTImageStorage, uid
    request.DataSet = io.BytesIO(body)
    association._reactor_checkpoint.clear()  # else the association's own thread takes the answer
    try:
        association.dimse.send_msg(request, contexts[0])
        _, answer = association.dimse.get_msg(block=True)
    finally:
        association._reactor_checkpoint.set()
    return None if answer is None else int(answer.Status)


def encoded(dataset: Dataset) -> bytes:
    """A data set's bytes, explicit little endian."""
    buffer = io.BytesIO()
    pydicom.filewriter.write_dataset(_writer(buffer), dataset)
    return buffer.getvalue()


def _writer(buffer: io.BytesIO) -> Any:
    handle = pydicom.filebase.DicomFileLike(buffer)
    handle.is_implicit_VR, handle.is_little_endian = False, True
    return handle


def rubbish(kind: int, port: int, slices: list[Dataset], rng: random.Random) -> None:
    """Bring one association of rubbish of a kind; whatever the node answers, it must go on."""
    if kind == 0:
        opened(port, called="WRONG")
        return
    if kind == 1:
        with socket.create_connection(("127.0.0.1", port), timeout=60) as raw:
            raw.sendall(
                struct.pack(">BBL", rng.randrange(1, 8), 0, rng.choice([0, 9, 0xFFFFFFF0])) + os.urandom(900)
            )
        return
    association = opened(port)
    if not association.is_established:
        return
    if kind == 2:  # broken off in the middle
        association.dul.socket.send(struct.pack(">BBL", 4, 0, 9000) + b"\0\0\x20\0\x01\x03" + os.urandom(99))
        association.dul.socket.close()
        return
    series = generate_uid()
    for k, original in enumerate(slices):
        one = pydicom.dcmread(io.BytesIO(_file(original)))
        one.SeriesInstanceUID = series
        one.SOPInstanceUID = one.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        if kind == 3:  # mixed patients
            one.PatientID = f"patient {k % 2}"
        elif kind == 4 and k == len(slices) // 2:  # a gap
            continue
        elif kind == 5:
            one.SOPClassUID, one.Modality = MRImageStorage, "MR"
            one.file_meta.MediaStorageSOPClassUID = MRImageStorage
        elif kind == 6:
            one.SOPClassUID, one.Modality = REPORT, "SR"
            one.file_meta.MediaStorageSOPClassUID = REPORT
        for _ in range(2 if kind == 7 else 1):  # each twice
            if association.is_established:
                association.send_c_store(one)
    if kind == 8:  # a small file that unpacks to very much
        packer = zlib.compressobj(9, zlib.DEFLATED, -15)
        packed = b"".join(packer.compress(bytes(1 << 20)) for _ in range(600)) + packer.flush()
        store_bytes(association, packed, DEFLATED)
    if association.is_established:
        association.release()


KINDS = 9


def many_objects(port: int, original: Dataset, count: int) -> None:
    """Bring a series of very many small objects."""
    association, series = opened(port), generate_uid()
    small = pydicom.dcmread(io.BytesIO(_file(original)))
    small.SeriesInstanceUID, small.PixelData = series, b"\0\0"
    for _ in range(count):
        if not association.is_established:
            return
        small.SOPInstanceUID = generate_uid()
        association.send_c_store(small)
    association.release()


def damaged(body: bytes, rng: random.Random) -> bytes:
    """Damage bytes: flipped, cut, repeated or with lengths that lie."""
    content = bytearray(body)
    for _ in range(rng.randrange(1, 6)):
        at = rng.randrange(len(content))
        way = rng.randrange(4)
        if way == 0:
            content[at] = rng.randrange(256)
        elif way == 1:
            content = content[: max(at, 2)]
        elif way == 2:
            content[at:at] = content[at : at + rng.randrange(1, 200)]
        else:
            content[at : at + 4] = rng.choice([b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", bytes(4)])
    return bytes(content)


def fuzzed_stores(port: int, original: Dataset, count: int, rng: random.Random) -> None:
    """Store damaged data sets."""
    body, association = encoded(original), None
    for _ in range(count):
        if association is None or not association.is_established:
            association = opened(port)
        store_bytes(association, damaged(body, rng), uid=str(original.SOPInstanceUID))
    if association is not None and association.is_established:
        association.release()


def fuzzed_posts(port: int, token: str, original: Dataset, count: int, rng: random.Random) -> None:
    """Post damaged bodies to STOW-RS."""
    whole = b"--xyz\r\nContent-Type: application/dicom\r\n\r\n" + _file(original) + b"\r\n--xyz--\r\n"
    headers = {
        "Content-Type": 'multipart/related; type="application/dicom"; boundary=xyz',
        "Authorization": f"Bearer {token}",
    }
    for _ in range(count):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        try:
            connection.request("POST", "/studies", damaged(whole, rng), headers)
            assert connection.getresponse().status in (200, 202, 400, 409, 413, 503)
        finally:
            connection.close()


def _file(dataset: Dataset) -> bytes:
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def memory(process: psutil.Process) -> int:
    """Bytes of the node and its workers."""
    return sum(one.memory_info().rss for one in (process, *process.children()))


def main() -> None:
    """Bring all of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--associations", type=int, default=200)
    parser.add_argument("--bodies", type=int, default=5000)
    parser.add_argument("--objects", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    debian("Orthanc")
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        with bands_known():
            model = write_bands_model(home / "model.safetensors", crop_voxels=(40, 40, 40))
        small = [pydicom.dcmread(path) for path in write_series(home / "small", shape=(5, 8, 8)).files]
        gland = (ball((3, 0, 0), (16, 12, 14)), GLAND_HU)
        volume = drawn_scan(gland, shape=(30, 60, 66), spacing_mm=(3.0, 2.0, 2.0))
        x, y, z = (float(v) for v in volume.geometry.origin_mm)
        good = write_series(home / "good", volume.array, spacing_mm=volume.spacing_mm, origin_mm=(x, y, z))
        with orthanc_in(home / "orthanc") as peer:
            settings = {
                "model": str(model),
                "quiet": "2 seconds",
                "rules": [{"name": "any"}],
                "destinations": [{"name": "pacs", "ae_title": "ORTHANC", "host": "127.0.0.1", "port": peer.dicom}],
                "web": {"port": free_port()},
            }
            with serving(home, **settings) as node:
                process, most = psutil.Process(node.process.pid), 0
                secret = node.state / "stow.token"
                eventually(lambda: secret.exists() and listens(settings["web"]["port"]), "the web server's start")
                token = secret.read_text().strip()
                steps: list[Callable[[], object]] = [
                    lambda k=k: rubbish(k % KINDS, node.port, small, rng)  # type: ignore[misc]
                    for k in range(options.associations)
                ]
                steps += [lambda: many_objects(node.port, small[0], options.objects)]
                half = options.bodies // 2
                steps += [lambda: fuzzed_stores(node.port, small[0], 50, rng)] * (half // 50)
                steps += [lambda: fuzzed_posts(settings["web"]["port"], token, small[0], 50, rng)] * (half // 50)
                rng.shuffle(steps)
                for number, step in enumerate(steps):
                    if number == len(steps) // 2:
                        association = opened(node.port)
                        statuses = [association.send_c_store(path).Status for path in good.files]
                        assert statuses == [0] * len(statuses), statuses
                        association.release()
                    step()
                    most = max(most, memory(process))
                    assert node.process.poll() is None, "the node has crashed"
                eventually(lambda: len(peer.find("RTSTRUCT")) == 1, "the delivery of the good series")
                most = max(most, memory(process))
        print(f"{options.associations} associations, {options.bodies} bodies: {most / (1 << 20):.0f} MiB at most")
        sys.exit(1 if most > MOST_MEMORY else 0)


if __name__ == "__main__":
    main()
