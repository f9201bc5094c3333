"""What is said of an error, and what is kept of it."""

from __future__ import annotations

import errno
import traceback
import weakref

import pytest
import torch

from metricunet.errors import InputError, is_out_of_memory, refused_by_system, told, without_frames


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


def test_memory_of_the_machine_that_torch_lacks_is_told_as_such() -> None:
    with pytest.raises(RuntimeError) as raised:
        torch.empty(10**15, dtype=torch.uint8)
    assert type(raised.value) is RuntimeError
    assert told(raised.value).startswith("there is not enough memory for it on this machine (")


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[enforce fail at alloc_cpu.cpp:99] . DefaultCPUAllocator: not enough memory: you tried to"),
        RuntimeError("MPS backend out of memory (MPS allocated: 8.21 GiB, other allocations: 0.4 GiB)"),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported elsewhere"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        Exception("[ONNXRuntimeError] : 1 : FAIL : Failed to allocate memory for requested buffer of size 4"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
    ],
)
def test_memory_that_a_library_lacks_is_known_by_its_words(error: Exception) -> None:
    assert is_out_of_memory(error)


def test_words_of_our_own_are_no_want_of_memory() -> None:
    assert not is_out_of_memory(InputError("case out of memory.nii: odd"))
    assert not is_out_of_memory(OSError(errno.ENOSPC, "No space left on device"))


def test_what_the_system_refuses_is_told_apart_from_faults() -> None:
    said = refused_by_system(OSError(errno.ENAMETOOLONG, "File name too long", b"n" * 300))
    assert str(said).startswith("nnn")
    assert "the system refuses it (File name too long)" in str(said)
    for other in (FileNotFoundError(errno.ENOENT, "none", "a"), OSError(errno.EIO, "of a socket"), KeyError("a")):
        assert refused_by_system(other) is None
