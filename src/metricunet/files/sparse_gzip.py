"""Compressing what is zero but for one run of planes: the zeros are compressed once, not in every file.

A mask of a small structure in a large scan is such a file. The result is one plain gzip member.
"""

from __future__ import annotations

import struct
import zlib
from functools import lru_cache

#: A gzip member without name and time, as nibabel begins it, so that the same voxels give the same bytes.
BEGINNING = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x04\xff"
#: The last block of a deflated stream, without a byte.
LAST_BLOCK = b"\x03\x00"
#: Of CRC-32, the lowest power first.
POLYNOMIAL = 0xEDB88320
BITS = 32


def gzip_of(head: bytes, plane_bytes: int, before: int, middle: bytes, after: int) -> bytes:
    """Return the gzip file of a head, planes of zeros, other planes, and planes of zeros.

    Args:
        head: what comes first.
        plane_bytes: of a plane of zeros.
        before: planes of zeros before the middle.
        middle: what lies between the zeros.
        after: planes of zeros after it.
    """
    parts, crc, size = [BEGINNING], 0, 0
    for data, check, length in (
        _piece(head, 1),
        _zeros(plane_bytes, before),
        _piece(middle, 1),
        _zeros(plane_bytes, after),
    ):
        parts.append(data)
        crc = joined_crc(crc, check, length)
        size += length
    return b"".join([*parts, LAST_BLOCK, struct.pack("<II", crc, size & 0xFFFFFFFF)])


def joined_crc(first: int, second: int, length: int) -> int:
    """Return the CRC-32 of two pieces of data that follow each other.

    Args:
        first: CRC-32 of the first piece.
        second: of the second one.
        length: bytes of the second one.
    """
    return _past_zeros(first, length) ^ second


def _piece(data: bytes, level: int) -> tuple[bytes, int, int]:
    """Return data deflated so that another piece may follow, its CRC-32 and its length."""
    packer = zlib.compressobj(level, zlib.DEFLATED, -zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush(zlib.Z_FULL_FLUSH), zlib.crc32(data), len(data)


@lru_cache(maxsize=4096)
def _zeros(plane_bytes: int, count: int) -> tuple[bytes, int, int]:
    """Return planes of zeros, likewise. Many are put together from few."""
    if count < 2:
        return _piece(bytes(plane_bytes * count), 9)
    half = count // 2
    (first, crc, length), (second, other, more) = _zeros(plane_bytes, half), _zeros(plane_bytes, count - half)
    return first + second, joined_crc(crc, other, more), length + more


def _past_zeros(crc: int, length: int) -> int:
    """Return what a CRC-32 becomes when so many bytes of zeros are passed, but for its own start and end."""
    step = 0
    while length:
        if length & 1:
            crc = _times(_matrix(step), crc)
        length >>= 1
        step += 1
    return crc


@lru_cache(maxsize=64)
def _matrix(step: int) -> tuple[int, ...]:
    """Return the matrix over two elements that passes 2^step bytes of zeros: what becomes of each bit."""
    if step == 0:
        one_bit = (POLYNOMIAL, *(1 << n for n in range(BITS - 1)))
        return _squared(_squared(_squared(one_bit)))
    return _squared(_matrix(step - 1))


def _squared(matrix: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(_times(matrix, column) for column in matrix)


def _times(matrix: tuple[int, ...], vector: int) -> int:
    total, bit = 0, 0
    while vector:
        if vector & 1:
            total ^= matrix[bit]
        vector >>= 1
        bit += 1
    return total
