"""What is said of an error, and what is kept of it."""

from __future__ import annotations

import errno
import traceback
import weakref

import torch

from metricunet.errors import InputError, refused_by_system, told, without_frames


class Scan:
    """Something large."""


def test_what_an_error_went_through_is_let_go_and_its_lines_are_kept() -> None:
    scans: list[weakref.ref[Scan]] = []

    def reading() -> None:
        scan = Scan()
        scans.append(weakref.ref(scan))
        raise KeyError("first line")

    def segmenting() -> None:
        scan = Scan()
        scans.append(weakref.ref(scan))
        try:
            reading()
        except KeyError as error:
            raise InputError("second line") from error

    def judging() -> None:
        scan = Scan()
        scans.append(weakref.ref(scan))
        try:
            segmenting()
        except InputError:
            raise ValueError("third line")  # noqa: B904 - its context is meant

    try:
        judging()
    except ValueError as error:
        kept = error
    assert [scan() is None for scan in scans] == [False] * 3
    assert without_frames(kept) is kept
    assert [scan() is None for scan in scans] == [True] * 3
    lines = "".join(traceback.format_exception(kept))
    assert all(f'{word} line")' in lines for word in ("first", "second", "third"))


def test_an_error_that_is_its_own_context_ends() -> None:
    one, other = ValueError("one"), ValueError("other")
    one.__context__, other.__context__ = other, one
    assert without_frames(one) is one


def test_memory_that_does_not_suffice_is_no_unexpected_error() -> None:
    assert told(MemoryError()) == "there is not enough memory for it on this machine"
    of_gpu = told(torch.OutOfMemoryError("CUDA out of memory.\n1 GiB"))
    assert of_gpu == "there is not enough memory for it on this machine (CUDA out of memory. 1 GiB)"
    assert told(ValueError("odd")) == "an unexpected ValueError stopped it: odd"


def test_what_the_system_refuses_is_told_apart_from_faults() -> None:
    said = refused_by_system(OSError(errno.ENAMETOOLONG, "File name too long", b"n" * 300))
    assert str(said).startswith("nnn")
    assert "the system refuses it (File name too long)" in str(said)
    for other in (FileNotFoundError(errno.ENOENT, "none", "a"), OSError(errno.EIO, "of a socket"), KeyError("a")):
        assert refused_by_system(other) is None
