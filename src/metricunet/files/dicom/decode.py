"""Decoding compressed slices in processes of their own, so that this one can do something else meanwhile.

The decoders hold the interpreter's lock for as long as a slice takes: in a thread of this process they would stall
every other one. The processes are plain children that talk through pipes. Unlike those of `multiprocessing` they
need no guard in the user's script, and they end with their input, so none outlives this process. They import numpy
and pydicom alone, and are at work within a third of a second.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.filereader import read_file_meta_info
from pydicom.pixels.utils import iter_pixels
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, RLELossless

from metricunet.files.dicom.codestream import check_codestreams, has_codestreams
from metricunet.files.dicom.file import is_bare, read_readable, state_syntax

#: Slices on their way to one process: while one is decoded, the next is already there.
AHEAD = 2
#: Bytes of the number before each answer: the length of the pixels, 0 for a slice that could not be decoded.
_LENGTH_BYTES = 8
#: The tag that each fragment of compressed pixels begins with, and the offset table before them.
_ITEM = b"\xfe\xff\x00\xe0"
#: Bytes of one offset in that table.
_OFFSET_BYTES = 4
#: What a process says once it has imported what it needs.
_READY = b"ready\n"
_PROGRAM = "import sys; sys.path[:] = {paths!r}; from metricunet.files.dicom.decode import {serve}; {serve}()"


def stored_pixels(path: Path | str) -> NDArray[Any]:
    """Decode one file's pixels as they are stored, before any rescaling.

    Raises:
        Exception: whatever pydicom and the decoders raise for a damaged file.
    """
    dataset = read_readable(Path(path))
    state_syntax(dataset)
    _join_fragments(dataset)
    check_codestreams(dataset)
    dataset.pixel_array_options(raw=True)
    pixels: NDArray[Any] = dataset.pixel_array
    return pixels


def _join_fragments(dataset: Dataset) -> None:
    """Empty an offset table of several entries for one compressed frame: all fragments belong to that frame.

    Some programs list each fragment there, which the table must not: the first alone would count as the frame.
    """
    syntax = UID(dataset.file_meta.get("TransferSyntaxUID", "") or "")
    if not has_codestreams(dataset.file_meta) and syntax != RLELossless:
        return
    if int(dataset.get("NumberOfFrames") or 1) != 1 or "PixelData" not in dataset:
        return
    data: bytes = dataset.PixelData or b""
    begin, length = data[:4], int.from_bytes(data[4:8], "little")
    if begin == _ITEM and _OFFSET_BYTES < length <= len(data) - 8:
        dataset["PixelData"].value = _ITEM + bytes(4) + data[8 + length :]


def stored_frames(path: Path, frames: Sequence[int | None]) -> Iterator[NDArray[Any]]:
    """Decode some frames of one file, one after the other, as `stored_pixels` does.

    Args:
        path: the file.
        frames: their numbers, from 1, in any order; None for a file's only one.

    Raises:
        Exception: whatever pydicom and the decoders raise for a damaged file.
    """
    if None in frames:
        yield from (stored_pixels(path) for _ in frames)
    else:
        indices = [frame - 1 for frame in frames if frame is not None]
        meta = None if is_bare(path) else read_file_meta_info(path)
        # pydicom finds frames within a file, but not within one that has to be inflated first, or has no preamble.
        deflated = meta is not None and meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian
        whole = meta is None or deflated or has_codestreams(meta)
        dataset = read_readable(path) if whole else None
        if dataset is not None:
            state_syntax(dataset)
            _join_fragments(dataset)
            check_codestreams(dataset)
        yield from iter_pixels(path if dataset is None else dataset, indices=indices, raw=True)


def frames_apart(path: Path, frames: Sequence[int | None]) -> Iterator[NDArray[Any]]:
    """Decode frames as `stored_frames` does, in another process: some damaged files make the decoders end theirs.

    Where no process can be started, frames are decoded here.
    """
    command = [sys.executable, "-c", _PROGRAM.format(paths=sys.path, serve="serve_frames")]
    request = json.dumps({"path": str(path), "frames": list(frames)}).encode()
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        assert process.stdin is not None
        assert process.stdout is not None
    except OSError:
        yield from stored_frames(path, frames)
        return
    try:
        if process.stdout.readline() != _READY:
            yield from stored_frames(path, frames)
            return
        with suppress(BrokenPipeError):  # its end shows in what it answers
            process.stdin.write(request + b"\n")
            process.stdin.flush()
        for _ in frames:
            answer = json.loads(process.stdout.readline() or b'{"fault": "the decoder crashed"}')
            if "fault" in answer:
                raise RuntimeError(answer["fault"])
            dtype = np.dtype(answer["dtype"])
            content = process.stdout.read(math.prod(answer["shape"]) * dtype.itemsize)
            yield np.frombuffer(content, dtype=dtype).reshape(answer["shape"])
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process of ours, whatever it is at, and close both pipes."""
    process.kill()
    for pipe in (process.stdout, process.stdin):
        if pipe is not None:
            with suppress(OSError):  # what it never read
                pipe.close()
    process.wait()


def serve_frames() -> None:
    """Run as the process of `frames_apart`: read one request, and answer with a line and pixels for each frame."""
    answers = sys.stdout.buffer
    answers.write(_READY)
    answers.flush()
    request = json.loads(sys.stdin.buffer.readline())
    try:
        for pixels in stored_frames(Path(request["path"]), request["frames"]):
            head = {"shape": pixels.shape, "dtype": pixels.dtype.str}
            answers.write(json.dumps(head).encode() + b"\n" + np.ascontiguousarray(pixels).tobytes())
            answers.flush()
    except Exception as error:  # whatever pydicom and the decoders raise goes to the process that asked
        reason = " ".join(str(error).partition("Traceback (most recent call last)")[0].split())[:200]
        answers.write(json.dumps({"fault": f"{type(error).__name__}: {reason}"}).encode() + b"\n")
        answers.flush()


def decode_in_processes(paths: Sequence[Path], stored: NDArray[Any], processes: int) -> list[int]:
    """Decode files in several processes.

    Args:
        paths: one file for each slice.
        stored: [slice, row, column], 16-bit integers, to be filled.
        processes: how many.

    Returns:
        The slices that were not decoded: damaged, of another shape or kind, or left over because a process could
        not be started or ended early. Decoding them here tells which.
    """
    done = [False] * len(paths)
    indices = iter(range(len(paths)))
    lock = threading.Lock()

    def drive() -> None:
        waiting: deque[int] = deque()
        # What a process leaves undone is the caller's to decode.
        with suppress(OSError), _worker(stored) as (requests, answers):
            while True:
                while len(waiting) < AHEAD:
                    with lock:
                        index = next(indices, None)
                    if index is None:
                        break
                    requests.write(json.dumps(str(paths[index])).encode() + b"\n")
                    requests.flush()
                    waiting.append(index)
                if not waiting:
                    return
                done[waiting[0]] = _receive(answers, stored[waiting[0]])
                waiting.popleft()

    threads = [threading.Thread(target=drive, daemon=True) for _ in range(processes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [k for k, finished in enumerate(done) if not finished]


def serve() -> None:
    """Run as a process of `decode_in_processes`: answer each path on standard input with the file's pixels."""
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    kind = json.loads(requests.readline())
    for line in requests:
        try:
            pixels = stored_pixels(json.loads(line))
            fits = list(pixels.shape) == kind["shape"] and pixels.dtype == np.dtype(kind["dtype"])
            content = np.ascontiguousarray(pixels).tobytes() if fits else b""
        except Exception:  # the caller decodes it again, and names the fault
            content = b""
        try:
            answers.write(len(content).to_bytes(_LENGTH_BYTES, "little") + content)
            answers.flush()
        except BrokenPipeError:
            break


@contextmanager
def _worker(stored: NDArray[Any]) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    command = [sys.executable, "-c", _PROGRAM.format(paths=sys.path, serve="serve")]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        kind = {"shape": list(stored.shape[1:]), "dtype": stored.dtype.str}
        process.stdin.write(json.dumps(kind).encode() + b"\n")
        yield process.stdin, process.stdout
    finally:
        _end(process)


def _receive(answers: IO[bytes], plane: NDArray[Any]) -> bool:
    """Read one answer into a slice; False where the process could not decode it."""
    head = answers.read(_LENGTH_BYTES)
    length = int.from_bytes(head, "little")
    if len(head) < _LENGTH_BYTES or length not in (0, plane.nbytes):
        raise OSError("the decoding process ended early")
    if length == 0:
        return False
    content = answers.read(length)
    if len(content) < length:
        raise OSError("the decoding process ended early")
    plane[...] = np.frombuffer(content, dtype=plane.dtype).reshape(plane.shape)
    return True
