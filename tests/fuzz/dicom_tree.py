"""DICOM files as trees of elements that may be changed into what no standard allows, and written as they are."""

from __future__ import annotations

import io
import struct
import warnings
from dataclasses import dataclass, field
from random import Random

import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian

from tests.fuzz.mutators import ODD_INTEGERS, ODD_NUMBERS, damaged, deflate_bomb

UNDEFINED = 0xFFFFFFFF
LONG_FORM = frozenset({"OB", "OD", "OF", "OL", "OV", "OW", "SQ", "SV", "UC", "UN", "UR", "UT", "UV"})
VRS = (
    *("AE", "AS", "AT", "CS", "DA", "DS", "DT", "FD", "FL", "IS", "LO", "LT", "OB", "OD", "OF", "OW", "PN", "SH"),
    *("SL", "SQ", "SS", "ST", "TM", "UC", "UI", "UL", "UN", "UR", "US", "UT", "UV", "??", "\0\0", "ox"),
)
NUMBER_TEXT = frozenset({"DS", "IS"})
BINARY = {"US": 2, "SS": 2, "UL": 4, "SL": 4, "FL": 4, "FD": 8, "AT": 4}
CHARACTER_SETS = (
    *(
        "ISO_IR 100",
        "ISO_IR 192",
        "ISO 2022 IR 87",
        "\\ISO 2022 IR 13",
        "GB18030",
        "nonsense",
        "",
        "ISO_IR 6\\\\x",
    ),
    *("utf-7", "idna", "rot13", "unicode_escape", "\x00"),
)
SYNTAXES = (
    *("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99"),
    *("1.2.840.10008.1.2.5", "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51", "1.2.840.10008.1.2.4.57"),
    *("1.2.840.10008.1.2.4.70", "1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91"),
    *("1.2.840.10008.1.2.4.100", "1.2.840.10008.1.2.4.201", "1.2.3", "", "x", "1.2.840.10008.1.2.1.98"),
)
#: Beginnings of JPEG, JPEG-LS and JPEG 2000 streams that announce pictures of 65535 x 65535.
CODED = (
    b"\xff\xd8\xff\xc3\x00\x0b\x10\xff\xff\xff\xff\x01\x00\x11\x00",
    b"\xff\xd8\xff\xf7\x00\x0b\x10\xff\xff\xff\xff\x01\x01\x11\x00\xff\xda\x00\x08\x01\x01\x00\x00\x00\x00",
    b"\xff\x4f\xff\x51\x00\x29\x00\x00" + struct.pack(">8I", 65535, 65535, 0, 0, 65535, 65535, 0, 0)
    + b"\x00\x01\x0f\x01\x01",
)  # fmt: skip


@dataclass
class Element:
    """An element of raw bytes, or of items; `length` is what it says of itself where that is not the truth."""

    tag: int
    vr: str
    value: bytes = b""
    items: list[list[Element]] | None = None
    encapsulated: bool = False
    length: int | None = None


@dataclass
class Tree:
    """A file: its group 2, its elements, and its transfer syntax."""

    meta: list[Element]
    elements: list[Element] = field(default_factory=list)
    syntax: str = ""

    @property
    def explicit(self) -> bool:
        return self.syntax != ImplicitVRLittleEndian

    @property
    def order(self) -> str:
        return ">" if self.syntax == ExplicitVRBigEndian else "<"


def parse(data: bytes) -> Tree:
    """Take a sound file apart."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = pydicom.dcmread(io.BytesIO(data))
        return Tree(_elements(dataset.file_meta), _elements(dataset), str(dataset.file_meta.TransferSyntaxUID))


def _elements(dataset: Dataset) -> list[Element]:
    found = []
    for tag in sorted(dataset.keys()):
        raw = dataset.get_item(tag)
        vr = raw.VR or pydicom.datadict.dictionary_VR(tag) if raw is not None else "UN"
        if vr == "SQ":
            found.append(Element(int(tag), "SQ", items=[_elements(item) for item in dataset[tag].value]))
            continue
        value = raw.value if isinstance(raw.value, bytes) else _encoded(dataset, tag)
        long = getattr(raw, "length", 0) == UNDEFINED or getattr(raw, "is_undefined_length", False)
        found.append(Element(int(tag), "US" if vr == "US or SS" else vr[:2], value, encapsulated=long))
    return found


def _encoded(dataset: Dataset, tag: int) -> bytes:
    """The bytes of an element that pydicom has looked at already (the transfer syntax, the character set)."""
    element = dataset[tag]
    if element.VR in BINARY:
        letter = {"US": "H", "SS": "h", "UL": "I", "SL": "i", "FL": "f", "FD": "d", "AT": "I"}[element.VR]
        values = element.value if element.VM > 1 else [element.value]
        return struct.pack(f"<{len(values)}{letter}", *values)
    text = "\\".join(map(str, element.value)) if element.VM > 1 else str(element.value or "")
    return text.encode("utf-8")


def write(tree: Tree) -> bytes:
    """Put a file together, right or wrong."""
    meta = _written([e for e in tree.meta if e.tag != 0x00020000], True, "<")
    length = _written([Element(0x00020000, "UL", struct.pack("<I", len(meta)))], True, "<")
    body = _written(tree.elements, tree.explicit, tree.order)
    if tree.syntax == DeflatedExplicitVRLittleEndian:
        body = deflated(body)
    return bytes(128) + b"DICM" + length + meta + body


def deflated(body: bytes) -> bytes:
    import zlib

    packer = zlib.compressobj(6, wbits=-zlib.MAX_WBITS)
    return packer.compress(body) + packer.flush()


def _written(elements: list[Element], explicit: bool, order: str) -> bytes:
    parts = []
    for element in elements:
        undefined = element.encapsulated
        if element.items is not None:
            items = [_written(item, explicit, order) for item in element.items]
            value = b"".join(struct.pack(order + "HHI", 0xFFFE, 0xE000, len(item)) + item for item in items)
        else:
            value = element.value + b"\0" * (len(element.value) % 2)
        length = UNDEFINED if undefined else len(value)
        if element.length is not None:
            length = element.length
        head = struct.pack(order + "HH", element.tag >> 16, element.tag & 0xFFFF)
        if not explicit:
            head += struct.pack(order + "I", length)
        elif element.vr in LONG_FORM:
            head += element.vr.encode("latin-1") + b"\0\0" + struct.pack(order + "I", length)
        else:
            head += element.vr.encode("latin-1")[:2] + struct.pack(order + "H", length & 0xFFFF)
        parts.append(head + value)
        if undefined:
            parts.append(struct.pack(order + "HHI", 0xFFFE, 0xE0DD, 0))
    return b"".join(parts)


def change(rng: Random, data: bytes) -> bytes:
    """Change one to four things of a sound DICOM file."""
    tree = parse(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        rng.choice(CHANGES)(rng, tree)
    return write(tree)


def bomb(rng: Random, data: bytes) -> bytes:
    """A deflated data set that unpacks to 3 GiB, its first elements as they should be."""
    tree = parse(data)
    tree.syntax = str(DeflatedExplicitVRLittleEndian)
    _set_syntax(tree, tree.syntax)
    last = Element(
        0x00091001 if rng.random() < 0.5 else 0x7FE00010, "OB", b"", length=rng.choice((3 << 30, 1 << 20))
    )
    tree.elements = [e for e in tree.elements if e.tag < last.tag]
    body = _written([*tree.elements, last], True, "<")
    tree.elements = []
    return write(tree)[: -len(deflated(b""))] + deflate_bomb(body, wrapped=False)


def _holders(tree: Tree) -> list[list[Element]]:
    """Every list of elements, the nested ones as likely as the outermost."""
    found = [tree.elements, tree.elements]
    waiting = list(tree.elements)
    while waiting:
        element = waiting.pop()
        for item in element.items or ():
            found.append(item)
            waiting += item
    return [holder for holder in found if holder]


def _pick(rng: Random, tree: Tree) -> tuple[list[Element], int] | None:
    holders = _holders(tree)
    if not holders:
        return None
    holder = rng.choice(holders)
    return holder, rng.randrange(len(holder))


def _delete(rng: Random, tree: Tree) -> None:
    if picked := _pick(rng, tree):
        del picked[0][picked[1]]


def _duplicate(rng: Random, tree: Tree) -> None:
    if picked := _pick(rng, tree):
        holder, k = picked
        holder[k:k] = [holder[k]] * rng.choice((1, 1, 5))


def _retag(rng: Random, tree: Tree) -> None:
    if picked := _pick(rng, tree):
        holder, k = picked
        old, other = holder[k], rng.choice(rng.choice(_holders(tree)))
        tag = rng.choice(
            (other.tag, other.tag, rng.getrandbits(32), old.tag ^ (1 << rng.randrange(32)), 0xFFFEE00D)
        )
        holder[k] = Element(tag, old.vr, old.value, old.items, old.encapsulated, old.length)


def _revalue(rng: Random, tree: Tree) -> None:
    if not (picked := _pick(rng, tree)):
        return
    element = picked[0][picked[1]]
    if element.items is not None:
        element.items = rng.choice(([], [[]], element.items * 2, element.items[:1], element.items[::-1]))
        return
    if element.vr in NUMBER_TEXT:
        words = element.value.decode("latin-1").split("\\")
        kind = rng.randrange(4)
        if kind == 0:
            words = words[: rng.randrange(len(words) + 1)]
        elif kind == 1:
            words += rng.choices(words, k=rng.choice((1, 2, 3000)))
        else:
            for _ in range(rng.choice((1, 1, 3))):
                words[rng.randrange(len(words))] = rng.choice(ODD_NUMBERS)
        element.value = "\\".join(words).encode("utf-8")
    elif element.vr in BINARY and rng.random() < 0.7:
        size = BINARY[element.vr]
        odd = (rng.choice(ODD_INTEGERS) % (1 << 8 * size)).to_bytes(size, "little")
        element.value = odd * rng.choice((1, 1, 2)) if rng.random() < 0.8 else odd[:-1]
    elif element.vr == "UI":
        element.value = rng.choice(
            (b"", b"1.2..3", b"1" * 200, b"x", b"1.2.3\\1.2.4", b"../../up", element.value[:-2])
        )
    else:
        texts = (
            b"",
            b"\\",
            b"\xff\xfe\x80",
            b"a\nb\r\nc",
            b"\x1b$B\x1b(J",
            b"A" * 70000,
            b"a\\b\\c",
            b"../x",
            b"\0",
        )
        element.value = rng.choice((*texts, damaged(rng, element.value), element.value * 2, rng.randbytes(9)))


def _other_vr(rng: Random, tree: Tree) -> None:
    if picked := _pick(rng, tree):
        picked[0][picked[1]].vr = rng.choice(VRS)


def _other_length(rng: Random, tree: Tree) -> None:
    if picked := _pick(rng, tree):
        odd = (0, 1, 2, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFF0, UNDEFINED, 1 << 28, rng.getrandbits(16))
        picked[0][picked[1]].length = rng.choice(odd)


def _deep(rng: Random, tree: Tree) -> None:
    if picked := _pick(rng, tree):
        holder, k = picked
        inner = holder[k]
        # Written from the inside at once: as a tree it would be too deep to be walked.
        for _ in range(rng.choice((1, 3, 40, 300, 1500))):
            content = _written([inner], tree.explicit, tree.order)
            item = struct.pack(tree.order + "HHI", 0xFFFE, 0xE000, len(content)) + content
            inner = Element(inner.tag, "SQ", item)
        holder[k] = inner


def _sequence_or_not(rng: Random, tree: Tree) -> None:
    if picked := _pick(rng, tree):
        element = picked[0][picked[1]]
        if element.items is None:
            element.items, element.vr = [[Element(element.tag, element.vr, element.value)]], "SQ"
        else:
            element.items, element.value = None, rng.choice((b"", b"1", rng.randbytes(30)))


def _character_set(rng: Random, tree: Tree) -> None:
    tree.elements = [e for e in tree.elements if e.tag != 0x00080005]
    tree.elements.insert(0, Element(0x00080005, "CS", rng.choice(CHARACTER_SETS).encode()))


def _syntax(rng: Random, tree: Tree) -> None:
    """State another transfer syntax; now and then the file is written in it as well."""
    syntax = rng.choice(SYNTAXES)
    _set_syntax(tree, syntax)
    if rng.random() < 0.3:
        tree.syntax = syntax


def _set_syntax(tree: Tree, syntax: str) -> None:
    for element in tree.meta:
        if element.tag == 0x00020010:
            element.value = syntax.encode()


def _coded_garbage(rng: Random, tree: Tree) -> None:
    """Pixels that are said to be compressed and are not, or are of another size."""
    pixels = [e for e in tree.elements if e.tag == 0x7FE00010]
    if not pixels:
        return
    _set_syntax(tree, rng.choice([s for s in SYNTAXES if ".4." in s or s.endswith(".5")]))
    old = pixels[0].value
    stream = rng.choice(
        (*CODED, rng.choice(CODED) + rng.randbytes(200), damaged(rng, old), rng.randbytes(64), b"")
    )
    stream += b"\0" * (len(stream) % 2)
    table = struct.pack("<HHI", 0xFFFE, 0xE000, 0)
    pixels[0].value = table + struct.pack("<HHI", 0xFFFE, 0xE000, len(stream)) + stream
    pixels[0].vr, pixels[0].encapsulated = "OB", True


def _damaged_stream(rng: Random, tree: Tree) -> None:
    for element in tree.elements:
        if element.tag == 0x7FE00010:
            element.value = damaged(rng, element.value)


def _size(rng: Random, tree: Tree) -> None:
    """Another matrix or pixel format than the pixels have."""
    fields = (0x00280010, 0x00280011, 0x00280002, 0x00280008, 0x00280100, 0x00280101, 0x00280102, 0x00280103)
    tag = rng.choice(fields)
    for element in tree.elements:
        if element.tag == tag:
            value = rng.choice((0, 1, 2, 8, 9, 16, 32, 1000, 40000, 65535))
            element.value = str(value).encode() if tag == 0x00280008 else struct.pack("<H", value)


def _order(rng: Random, tree: Tree) -> None:
    for holder in rng.sample(_holders(tree) or [[]], 1):
        rng.shuffle(holder)


def _meta(rng: Random, tree: Tree) -> None:
    if tree.meta:
        k = rng.randrange(len(tree.meta))
        if rng.random() < 0.4:
            del tree.meta[k]
        else:
            tree.meta[k].value = damaged(rng, tree.meta[k].value)


CHANGES = (
    *(_delete, _duplicate, _retag, _revalue, _revalue, _revalue, _other_vr, _other_length, _deep, _order, _meta),
    *(_sequence_or_not, _character_set, _syntax, _coded_garbage, _damaged_stream, _size),
)
