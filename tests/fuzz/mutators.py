"""Damage to bytes, texts and headers: what disks, networks, careless programs and ill will do to files.

A mutator takes a source of randomness and a file's bytes and returns other bytes; the same source gives the same
bytes. Nothing here knows the package. What needs a DICOM file's structure is in `dicom_tree`.
"""

from __future__ import annotations

import bz2
import gzip
import json
import re
import struct
import zlib
from collections.abc import Callable, Sequence
from functools import cache
from random import Random
from typing import Any

Mutator = Callable[[Random, bytes], bytes]

#: No mutated file is longer than this, bombs before they are unpacked included.
LONGEST = 8 << 20
#: Numbers as text that readers have tripped over.
ODD_NUMBERS = (
    *("nan", "inf", "-inf", "1e400", "-1e400", "1e308", "-1e308", "1e-320", "1e-30", "1e20", "1e6", "-1e6", "0"),
    *("-0", "-1", "1", "2", "65535", "65536", "4294967296", "99999999999999999999", "9" * 400, "1.5", "0.1", ""),
    *(" ", "abc", "0x10", "1_000", "--1", "1,5", "1e", "\uff11", "\x00", "None", "true", "1\\2", "(1,2,3)"),
)
#: The same for 2, 4 and 8 bytes.
ODD_INTEGERS = (
    *(0, 1, 2, 3, 7, 255, 256, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFF0),
    *(0xFFFFFFFE, 0xFFFFFFFF, 1 << 40, 1 << 62, (1 << 63) - 1, (1 << 64) - 1),
)
#: Of zeros in one piece of a bomb, and of pieces: 3 GiB unpacked, 3 MiB packed.
BOMB_PIECE = 64 << 20
BOMB_PIECES = 48


def _place(rng: Random, data: bytes) -> tuple[int, int]:
    """A stretch of the file: anywhere, but often in its first 512 bytes, where headers are."""
    end = len(data) if rng.random() < 0.5 else min(len(data), 512)
    begin = rng.randrange(end) if end else 0
    length = rng.choice((1, 1, 2, 4, 8, 16, 64, 256, 1024, 1 << 14))
    return begin, min(len(data), begin + length)


def flip_bits(rng: Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5, 20))):
        if changed:
            begin, _ = _place(rng, data)
            changed[begin] ^= 1 << rng.randrange(8)
    return bytes(changed)


def random_bytes(rng: Random, data: bytes) -> bytes:
    begin, end = _place(rng, data)
    return data[:begin] + rng.randbytes(end - begin) + data[end:]


def constant_range(rng: Random, data: bytes) -> bytes:
    begin, end = _place(rng, data)
    return data[:begin] + rng.choice((b"\0", b"\0", b"\xff", b" ")) * (end - begin) + data[end:]


def truncate(rng: Random, data: bytes) -> bytes:
    begin, _ = _place(rng, data)
    return data[: rng.choice((begin, begin, len(data) - 1, len(data) // 2, 0))]


def insert(rng: Random, data: bytes) -> bytes:
    begin, end = _place(rng, data)
    more = rng.choice((rng.randbytes(end - begin), b"\0" * (end - begin), data[begin:end] * rng.randrange(1, 4)))
    return data[:begin] + more + data[begin:]


def delete(rng: Random, data: bytes) -> bytes:
    begin, end = _place(rng, data)
    return data[:begin] + data[end:]


def move(rng: Random, data: bytes) -> bytes:
    begin, end = _place(rng, data)
    to, _ = _place(rng, data)
    rest = data[:begin] + data[end:]
    return rest[:to] + data[begin:end] + rest[to:]


def odd_integer(rng: Random, data: bytes) -> bytes:
    begin, _ = _place(rng, data)
    size = rng.choice((2, 4, 8))
    value = rng.choice(ODD_INTEGERS) % (1 << 8 * size)
    return data[:begin] + value.to_bytes(size, rng.choice(("little", "big"))) + data[begin + size :]


def odd_float(rng: Random, data: bytes) -> bytes:
    begin, _ = _place(rng, data)
    value = rng.choice((float("nan"), float("inf"), -1.0, 0.0, 1e-30, 3e38, -3e38, 1e10))
    packed = struct.pack(rng.choice(("<f", ">f", "<d")), value)
    return data[:begin] + packed + data[begin + len(packed) :]


def odd_number_as_text(rng: Random, data: bytes) -> bytes:
    found = list(re.finditer(rb"-?\d+(\.\d+)?", data[: 1 << 16]))
    if not found:
        return flip_bits(rng, data)
    chosen = rng.choice(found)
    return data[: chosen.start()] + rng.choice(ODD_NUMBERS).encode() + data[chosen.end() :]


BYTES: tuple[Mutator, ...] = (
    *(flip_bits, random_bytes, constant_range, truncate, insert, delete, move, odd_integer, odd_float),
    odd_number_as_text,
)


def splice(rng: Random, one: bytes, other: bytes) -> bytes:
    """The beginning of one file and the end of another."""
    return one[: rng.randrange(len(one) + 1)] + other[rng.randrange(len(other) + 1) :]


def damaged(rng: Random, data: bytes, others: Sequence[bytes] = (), mutators: Sequence[Mutator] = BYTES) -> bytes:
    """Apply one to four mutators, or splice the file with another."""
    if others and rng.random() < 0.08:
        return splice(rng, data, rng.choice(others))
    for _ in range(rng.choice((1, 1, 1, 2, 3, 4))):
        data = rng.choice(mutators)(rng, data)[:LONGEST]
    return data


# Texts: headers of NRRD and MetaImage, YAML.

ODD_LINES = (
    *(
        "a: b",
        "\tx",
        ":",
        "=",
        "- - - -",
        "{",
        "[",
        "&a *a",
        "!!python/object/apply:os.system [id]",
        "\ufeff",
        "%",
    ),
    *("\x00", "# note", "key:=value", "data file: ../secret.raw", "ElementDataFile = /etc/passwd", "..."),
    *(
        "data file: LIST",
        "data file: ./.",
        "ElementDataFile = .",
        "byte skip: -1",
        "HeaderSize = -1",
        "? a",
        "<<: 1",
    ),
)


def change_text(rng: Random, text: str) -> str:
    """Change a text of lines: numbers, whole lines, their order, what stands after the sign."""
    lines = text.split("\n")
    for _ in range(rng.choice((1, 1, 2, 4))):
        k = rng.randrange(len(lines))
        kind = rng.randrange(8)
        if kind < 3:
            numbers = list(re.finditer(r"-?\d+(\.\d+)?(e-?\d+)?", lines[k]))
            if numbers:
                chosen = rng.choice(numbers)
                lines[k] = lines[k][: chosen.start()] + rng.choice(ODD_NUMBERS) + lines[k][chosen.end() :]
            else:
                lines[k] = rng.choice(ODD_LINES)
        elif kind == 3:
            del lines[k]
            lines = lines or [""]
        elif kind == 4:
            lines.insert(k, rng.choice((rng.choice(lines), rng.choice(ODD_LINES))))
        elif kind == 5:
            sign = rng.choice([s for s in (":", "=") if s in lines[k]] or [":"])
            head, _, tail = lines[k].partition(sign)
            words = tail.split()
            rng.shuffle(words)
            new = rng.choice(
                (" ".join(words), tail * rng.choice((2, 3, 2000)), "", rng.choice(ODD_NUMBERS), "\xe4")
            )
            lines[k] = f"{head}{sign} {new}"
        elif kind == 6:
            other = rng.randrange(len(lines))
            lines[k], lines[other] = lines[other], lines[k]
        else:
            lines[k] = rng.choice(
                (lines[k].upper(), lines[k][: rng.randrange(len(lines[k]) + 1)], lines[k] + " 7")
            )
    return "\n".join(lines)


# JSON, for the cards of models and the files of cohorts.


def odd_value(rng: Random) -> Any:
    """Anything that JSON can hold where something else is expected."""
    choice = rng.randrange(16)
    if choice == 0:
        return nested(rng.choice((5, 50, 900)))
    return (
        *(None, True, -1, 0, 1, 2, 10**6, 10**12, 10**30, float("nan"), float("inf"), 1e-9, "", "x", [], {}),
        *(
            [1, 2, 3],
            ["a"],
            {"a": 1},
            "../../x",
            "a\nb",
            "\ud800",
            -(10**9),
            0.5,
            1e308,
            "1" * 5000,
            [[[]]],
            65536,
        ),
    )[rng.randrange(28)]


def nested(depth: int) -> Any:
    value: Any = 1
    for k in range(depth):
        value = [value] if k % 2 else {"a": value}
    return value


def change_json(rng: Random, value: Any) -> Any:
    """Change one to three places of a JSON value."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        places = list(_places(value))
        if not places:
            return odd_value(rng)
        holder, key = rng.choice(places)
        kind = rng.randrange(5)
        if kind == 0:
            del holder[key]
        elif kind == 1 and isinstance(holder, dict):
            holder[str(rng.choice(("x", "", "a b", "constructor", "../x", str(key) * 3)))] = holder[key]
        elif kind == 1:
            holder.extend([holder[key]] * rng.choice((1, 2, 50)))
        elif kind == 2 and isinstance(holder[key], int | float):
            holder[key] = holder[key] * rng.choice((-1, 0, 0.5, 10, 1000, 10**9))
        else:
            holder[key] = odd_value(rng)
    return value


def _places(value: Any) -> Any:
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from _places(value[key])


# NIfTI.

#: Offsets and kinds of the fields of a NIfTI-1 header.
NIFTI_FIELDS: tuple[tuple[int, str], ...] = (
    (0, "i"), *((40 + 2 * k, "h") for k in range(8)), (70, "h"), (72, "h"), *((76 + 4 * k, "f") for k in range(8)),
    *((k, "f") for k in (108, 112, 116)), (123, "B"), (252, "h"), (254, "h"),
    *((256 + 4 * k, "f") for k in range(6)), *((280 + 4 * k, "f") for k in range(12)), (344, "i"),
)  # fmt: skip
NIFTI_TYPES = (0, 1, 2, 4, 8, 16, 32, 64, 128, 255, 256, 512, 768, 1024, 1280, 1536, 1792, 2048, 2304, 3, -1)


def nifti_field(rng: Random, data: bytes) -> bytes:
    """Put something else into a field of the header."""
    if len(data) < 348:
        return flip_bits(rng, data)
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 3))):
        offset, kind = rng.choice(NIFTI_FIELDS)
        value: float
        if offset == 70:
            value = rng.choice(NIFTI_TYPES)
        elif kind == "f":
            odd = (float("nan"), float("inf"), -1.0, 0.0, 1e-30, 3e38, 1e10, 0.5, 1000.0, -1e6, 352.0)
            value = rng.choice((*odd, rng.gauss(0, 1), rng.gauss(0, 100)))
        else:
            value = rng.choice((0, 1, 2, 3, 4, 5, 7, 8, -1, 32767, -32768, 1000, 30, 48))
        if kind == "B":
            value = int(value) % 256
        struct.pack_into(f"<{kind}", changed, offset, int(value) if kind != "f" else value)
    return bytes(changed)


def unzipped(data: bytes) -> bytes | None:
    """What a sound gzip file holds."""
    try:
        return gzip.decompress(data) if data[:2] == b"\x1f\x8b" else None
    except (OSError, EOFError, zlib.error):
        return None


def zipped(data: bytes) -> bytes:
    return gzip.compress(data, compresslevel=1, mtime=0)


@cache
def _gzip_piece() -> bytes:
    return gzip.compress(bytes(BOMB_PIECE), compresslevel=6, mtime=0)


@cache
def _deflate_piece() -> bytes:
    packer = zlib.compressobj(6, wbits=-zlib.MAX_WBITS)
    return packer.compress(bytes(BOMB_PIECE)) + packer.flush(zlib.Z_FULL_FLUSH)


@cache
def _bzip2_piece() -> bytes:
    return bz2.compress(bytes(BOMB_PIECE), 9)


def gzip_bomb(beginning: bytes) -> bytes:
    """A gzip file that begins as it should, and goes on with 3 GiB of zeros."""
    return zipped(beginning) + _gzip_piece() * BOMB_PIECES


def deflate_bomb(beginning: bytes, wrapped: bool) -> bytes:
    """The same as one deflated stream, bare or with the head of zlib. Its checksum is wrong: it comes too late."""
    packer = zlib.compressobj(6, wbits=-zlib.MAX_WBITS)
    stream = packer.compress(beginning) + packer.flush(zlib.Z_FULL_FLUSH) + _deflate_piece() * BOMB_PIECES
    stream += zlib.compressobj(6, wbits=-zlib.MAX_WBITS).flush()
    return b"\x78\x9c" + stream + bytes(4) if wrapped else stream


def bzip2_bomb(beginning: bytes) -> bytes:
    return bz2.compress(beginning) + _bzip2_piece() * BOMB_PIECES


def nifti_bomb(rng: Random, data: bytes) -> bytes:
    """A NIfTI whose header announces more voxels than should ever be read, and whose few bytes unpack to them."""
    changed = bytearray(data)
    shape = rng.choice(
        ((1024, 1024, 700), (32767, 256, 180), (512, 512, 5000), (1600, 1000, 1000), (600, 600, 600))
    )
    struct.pack_into("<8h", changed, 40, 3, *shape, 1, 1, 1, 1)
    kind, bits = rng.choice(((2, 8), (4, 16), (16, 32), (64, 64), (512, 16), (1792, 128)))
    struct.pack_into("<2h", changed, 70, kind, bits)
    return gzip_bomb(bytes(changed))


# safetensors.


def model_parts(data: bytes) -> tuple[dict[str, Any], bytes]:
    """The JSON header of a safetensors file, and the weights after it."""
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def model_file(header: Any, weights: bytes, length: int | None = None) -> bytes:
    text = json.dumps(header).encode("utf-8", "surrogatepass")
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text) if length is None else length) + text + weights


def change_model(rng: Random, data: bytes) -> bytes:
    """Change the card, the table of tensors, the header's length, or the weights of a model file."""
    header, weights = model_parts(data)
    kind = rng.randrange(12)
    if kind < 6:
        card = change_json(rng, json.loads(header["__metadata__"]["metricunet"]))
        header["__metadata__"]["metricunet"] = json.dumps(card)
        return model_file(header, weights)
    if kind < 8:
        names = [name for name in header if name != "__metadata__"]
        for name in rng.sample(names, rng.choice((1, 2))):
            entry = header[name]
            field = rng.choice(("dtype", "shape", "data_offsets", "all"))
            if field == "dtype":
                entry["dtype"] = rng.choice(("F16", "F64", "I32", "BOOL", "BF16", "X", 3, None, "F8_E4M3", "C64"))
            elif field == "shape":
                entry["shape"] = rng.choice(
                    ([], [0], [1 << 40, 1 << 40], entry["shape"][::-1], [-1], [*entry["shape"], 1])
                )
            elif field == "data_offsets":
                entry["data_offsets"] = rng.choice(
                    ([0, 0], [0, 1 << 60], [-1, 4], [8, 4], entry["data_offsets"][::-1])
                )
            else:
                header[name] = odd_value(rng)
        return model_file(header, weights)
    if kind == 8:
        return model_file(change_json(rng, header), weights)
    if kind == 9:
        return model_file(header, weights, rng.choice((0, 1, 2, 7, 1 << 27, 1 << 40, (1 << 64) - 1, len(data))))
    if kind == 10:
        # Weights of a network that no training has left behind: infinities, NaN, noise.
        floats = rng.choice((b"\0\0\xc0\x7f", b"\0\0\x80\x7f", b"\xff\xff\x7f\x7f", rng.randbytes(4)))
        begin = 4 * rng.randrange(len(weights) // 4)
        count = rng.choice((1, 4, 64, len(weights) // 4))
        changed = weights[:begin] + floats * count
        return model_file(header, changed[: len(weights)] + weights[len(changed) :])
    return wide_header(rng, header, weights)


def wide_header(rng: Random, header: dict[str, Any], weights: bytes) -> bytes:
    """A header of millions of small things, which as text is short and as objects is not."""
    many = rng.choice((b"[]", b"{}", b'""', b"1e5"))
    count = 30_000_000 // (len(many) + 1) if rng.random() < 0.25 else 100_000
    head = json.dumps(header)[:-1].encode()
    text = head + b', "more": [' + b",".join([many] * count) + b"]}"
    return struct.pack("<Q", len(text)) + text + weights


def yaml_bomb(rng: Random) -> bytes:
    """A few lines whose aliases stand for ten to the ninth words; or a nesting that no parser likes."""
    if rng.random() < 0.3:
        depth = rng.choice((100, 3000, 100_000))
        return rng.choice((b"[" * depth, b"- " * depth, b"{a: " * depth))
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{k}: &a{k} [" + ", ".join([f"*a{k - 1}"] * 10) + "]" for k in range(1, 9)]
    lines.append(rng.choice(("segment: *a8", "name: *a8", "seed: *a8", "segment: {spacing_mm: *a8}", "<<: *a8")))
    return "\n".join(lines).encode()
