"""What glibc is asked to keep, of versions that take any size and of older ones that refuse large ones."""

from __future__ import annotations

import ctypes
import sys

import pytest

from metricunet.networks.device import keep_freed_memory

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
MIB = 1 << 20


class Glibc:
    """A C library that refuses to keep mapped buffers larger than a limit, and otherwise does as it is told."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.kept: dict[int, int] = {}

    def mallopt(self, which: int, value: int) -> int:
        if which == MMAP_THRESHOLD and value > self.limit:
            return 0
        self.kept[which] = value
        return 1


@pytest.mark.parametrize(
    ("limit", "kept"), [(2048 * MIB, 1024 * MIB), (32 * MIB, 32 * MIB), (0, None)], ids=["new", "old", "neither"]
)
def test_as_much_is_kept_as_this_version_takes(
    limit: int, kept: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trim threshold alone would make it worse: it ends the rise of the other, which begins at 128 KiB."""
    libc = Glibc(limit)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: libc)
    keep_freed_memory()
    assert libc.kept.get(MMAP_THRESHOLD) == kept
    assert (TRIM_THRESHOLD in libc.kept) == (kept is not None)


def test_elsewhere_nothing_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(ctypes, "CDLL", asked.append)
    keep_freed_memory()
    assert asked == []
