"""Headers of NRRD and MetaImage files, read strictly: what they leave out is refused, never filled in.

Both formats store the axis that runs fastest first. Their readers elsewhere take a missing direction for the
identity and a missing spacing for 1 mm; a scan whose left and right are a guess is of no use here.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal, TypeVar

import numpy as np

from metricunet.errors import InputError
from metricunet.volume import FloatArray, Shape

Compression = Literal["none", "zlib", "gzip", "bzip2"]
T = TypeVar("T")

#: No header of a scan is longer than this many bytes, notes of other programs included.
LONGEST_HEADER = 1 << 20
#: Signs that turn the directions of an NRRD space to LPS.
NRRD_SPACES = {
    **dict.fromkeys(("left-posterior-superior", "lps"), (1.0, 1.0, 1.0)),
    **dict.fromkeys(("right-anterior-superior", "ras"), (-1.0, -1.0, 1.0)),
    **dict.fromkeys(("left-anterior-superior", "las"), (1.0, -1.0, 1.0)),
}
NRRD_TYPES = {
    **dict.fromkeys(("signed char", "int8", "int8_t"), "i1"),
    **dict.fromkeys(("uchar", "unsigned char", "uint8", "uint8_t"), "u1"),
    **dict.fromkeys(("short", "short int", "signed short", "signed short int", "int16", "int16_t"), "i2"),
    **dict.fromkeys(("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"), "u2"),
    **dict.fromkeys(("int", "signed int", "int32", "int32_t"), "i4"),
    **dict.fromkeys(("uint", "unsigned int", "uint32", "uint32_t"), "u4"),
    **dict.fromkeys(("longlong", "long long", "long long int", "signed long long"), "i8"),
    **dict.fromkeys(("signed long long int", "int64", "int64_t"), "i8"),
    **dict.fromkeys(("ulonglong", "unsigned long long", "unsigned long long int"), "u8"),
    **dict.fromkeys(("uint64", "uint64_t"), "u8"),
    "float": "f4",
    "double": "f8",
}
NRRD_ENCODINGS: dict[str, Compression] = {
    "raw": "none",
    **dict.fromkeys(("gzip", "gz"), "gzip"),
    **dict.fromkeys(("bzip2", "bz2"), "bzip2"),
}
#: MetaImage's long has four bytes, whatever the machine.
META_TYPES = {
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    "MET_LONG": "i4",
    "MET_ULONG": "u4",
    "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}
_UNPLACED = ", so left and right are unknown; convert it again from DICOM with its geometry"
MILLIMETRE = ("mm", "millimeter", "millimeters", "millimetre", "millimetres")


@dataclass(frozen=True, eq=False)
class ItkHeader:
    """Where the voxels of a file begin, how they are stored, and which position each has in the patient.

    Attributes:
        shape: voxels along the file's three axes, the fastest first.
        affine: maps the index in that order, at voxel centres, to LPS millimetres.
        dtype: type of a voxel, byte order included.
        compression: how the data are compressed.
        data: the file that holds the data: the header's own, or one beside it.
        offset: byte of that file at which the data begin.
        skip: bytes to pass over at the beginning of the (uncompressed) data; -1: the voxels are the last bytes.
    """

    shape: Shape
    affine: FloatArray
    dtype: np.dtype[np.generic]
    compression: Compression
    data: Path
    offset: int
    skip: int


def read_nrrd_header(path: Path) -> ItkHeader:
    """Read the header of an NRRD file (.nrrd, or .nhdr with its data beside it).

    Raises:
        InputError: not NRRD, not one volume of real numbers, without space, directions or origin, in a space
            other than LPS, RAS or LAS, or data that are spread over several files or not beside the header.
    """
    fields, end = _read(path, "an NRRD file", b"NRRD000", ":", lambda line: not line)
    _refuse_text(path, fields, "NRRD", {"line skip": "0"})
    sizes = _whole_numbers(path, "sizes", _stated(path, fields, "sizes"))
    space = _stated(path, fields, "space", _UNPLACED).lower()
    if space not in NRRD_SPACES:
        raise InputError(
            f"{path}: space is {space[:80]}, expected left-posterior-superior, right-anterior-superior or "
            "left-anterior-superior; save it again in patient coordinates"
        )
    vectors = _vectors(path, "space directions", _stated(path, fields, "space directions", _UNPLACED))
    if len(vectors) != len(sizes):
        raise InputError(f"{path}: has {len(sizes)} sizes but {len(vectors)} space directions; save it again")
    axes = [k for k, vector in enumerate(vectors) if vector is not None]
    if len(axes) != 3 or any(n != 1 for k, n in enumerate(sizes) if k not in axes):
        raise _not_three(path, sizes)
    origin = _vectors(path, "space origin", _stated(path, fields, "space origin", _UNPLACED))
    if len(origin) != 1 or origin[0] is None:
        raise InputError(f"{path}: space origin is not one vector; save it again")
    units = re.findall(r'"([^"]*)"', fields.get("spaceunits", ""))
    if any(unit and unit.lower() not in MILLIMETRE for unit in units):
        raise InputError(
            f"{path}: space units are {', '.join(units)[:80]}, expected mm; save it again in millimetres"
        )
    signs = np.asarray(NRRD_SPACES[space])[:, None]
    columns = np.stack([vector for vector in (*vectors, origin[0]) if vector is not None], axis=1) * signs
    kind = _choice(path, "type", _stated(path, fields, "type").lower(), NRRD_TYPES)
    compression = _choice(path, "encoding", _stated(path, fields, "encoding").lower(), NRRD_ENCODINGS)
    order = "little"
    if kind[1] != "1":
        order = _choice(
            path, "endian", _stated(path, fields, "endian").lower(), {"little": "little", "big": "big"}
        )
    skip = _whole_number(path, "byte skip", fields.get("byteskip", "0"))
    if skip < -1 or (skip == -1 and compression != "none"):
        raise InputError(f"{path}: byte skip is {skip}, expected 0 or more (-1 where the data are raw)")
    named = fields.get("datafile", "")
    if not named and path.name.lower().endswith(".nhdr"):
        raise InputError(f"{path}: names no data file; save it again as one .nrrd file")
    return ItkHeader(
        shape=_shape(path, [sizes[k] for k in axes]),
        affine=_affine(columns),
        dtype=np.dtype(f"{'<' if order == 'little' else '>'}{kind}"),
        compression=compression,
        data=_data_file(path, named) if named else path,
        offset=0 if named else end,
        skip=skip,
    )


def read_meta_header(path: Path) -> ItkHeader:
    """Read the header of a MetaImage (.mha, or .mhd with its data beside it).

    Raises:
        InputError: not a MetaImage, not one volume of real numbers, without spacing, direction or offset, or
            data that are text, rescaled, spread over several files or not beside the header.
    """
    fields, end = _read(path, "a MetaImage", b"", "=", lambda line: line.startswith("elementdatafile"))
    if "elementdatafile" not in fields or "ndims" not in fields:
        raise InputError(f"{path}: not a MetaImage (NDims or ElementDataFile is missing); export it again")
    _refuse_text(
        path,
        fields,
        "MetaImage",
        {
            "ObjectType": "image",
            "BinaryData": "true",
            "ElementNumberOfChannels": "1",
            "DistanceUnits": "mm",
            "ElementToIntensityFunctionSlope": "1",
            "ElementToIntensityFunctionOffset": "0",
        },
    )
    sizes = _whole_numbers(path, "DimSize", _stated(path, fields, "DimSize"))
    dimensions = _whole_number(path, "NDims", fields["ndims"])
    if dimensions != 3 or len(sizes) != 3:
        raise _not_three(path, sizes)
    spacing = _numbers(path, "ElementSpacing", _stated(path, fields, "ElementSpacing"), 3)
    if min(spacing) <= 0:
        raise InputError(f"{path}: ElementSpacing is {spacing}, expected three numbers above 0; save it again")
    matrix = _synonym(path, fields, ("TransformMatrix", "Rotation", "Orientation"), 9)
    offset = _synonym(path, fields, ("Offset", "Position", "Origin"), 3)
    # Each three numbers of the matrix are the direction of one axis of the array.
    with np.errstate(over="ignore"):  # what is too large becomes infinite, and the grid is refused for it
        columns = np.column_stack([np.reshape(matrix, (3, 3)).T * spacing, offset])
    kind = _choice(path, "ElementType", _stated(path, fields, "ElementType").upper(), META_TYPES)
    big = fields.get("binarydatabyteordermsb", fields.get("elementbyteordermsb", "False")).lower() == "true"
    compressed = fields.get("compresseddata", "False").lower() == "true"
    skip = _whole_number(path, "HeaderSize", fields.get("headersize", "0"))
    if skip < -1 or (skip and compressed):
        raise InputError(
            f"{path}: HeaderSize is {skip}, expected 0 or more (-1 where the data are not compressed)"
        )
    named = fields["elementdatafile"]
    local = named.lower() == "local"
    return ItkHeader(
        shape=_shape(path, sizes),
        affine=_affine(columns),
        dtype=np.dtype(f"{'>' if big else '<'}{kind}"),
        compression="zlib" if compressed else "none",
        data=path if local else _data_file(path, named),
        offset=end if local else 0,
        skip=0 if local else skip,
    )


def _read(
    path: Path, what: str, magic: bytes, separator: str, is_last: Callable[[str], bool]
) -> tuple[dict[str, str], int]:
    """Return the fields of a header, names in small letters, and the byte at which the data begin."""
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    fields: dict[str, str] = {}
    try:
        with path.open("rb") as handle:
            if magic and not re.fullmatch(magic + rb"[1-5]\s*", handle.readline(64)):
                raise InputError(f"{path}: not {what}; export it again, or correct its suffix")
            while line := _line(path, handle, what):
                text = line.strip()
                if not text.startswith("#") and ":=" not in text and separator in text:
                    name, value = (part.strip() for part in text.split(separator, 1))
                    if _key(name) in fields:
                        raise InputError(f"{path}: states {name} twice; save it again")
                    fields[_key(name)] = value
                if is_last(text.lower()):
                    break
            return fields, handle.tell()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error


def _key(name: str) -> str:
    """Fold the spellings of a field: capitals in MetaImage, spaces in NRRD (`data file`, `datafile`)."""
    return name.lower().replace(" ", "")


def _line(path: Path, handle: BinaryIO, what: str) -> str:
    line = handle.readline(LONGEST_HEADER)
    if handle.tell() > LONGEST_HEADER:
        raise InputError(f"{path}: not {what} (its header does not end); export it again")
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not {what} (its header is no text); export it again") from error


def _refuse_text(path: Path, fields: dict[str, str], what: str, expected: dict[str, str]) -> None:
    """Refuse fields that are stated and differ from what alone is read."""
    for name, value in expected.items():
        found = fields.get(_key(name), value)
        if found.lower() != value and not _equal_numbers(found, value):
            raise InputError(
                f"{path}: {name} is {found[:80]}, in a {what} of one scan {value} is expected; save the scan again"
            )


def _equal_numbers(found: str, value: str) -> bool:
    try:
        return float(found) == float(value)
    except ValueError:
        return False


def _stated(path: Path, fields: dict[str, str], name: str, advice: str = "; export it again") -> str:
    value = fields.get(_key(name), "")
    if not value:
        raise InputError(f"{path}: {name} is missing{advice}")
    return value


def _synonym(path: Path, fields: dict[str, str], names: Sequence[str], count: int) -> tuple[float, ...]:
    stated = [name for name in names if _key(name) in fields]
    name = stated[0] if stated else names[0]
    return _numbers(path, name, _stated(path, fields, name, _UNPLACED), count)


def _numbers(path: Path, name: str, text: str, count: int) -> tuple[float, ...]:
    try:
        found = tuple(float(word) for word in text.split())
    except ValueError:
        found = ()
    if len(found) != count or not np.isfinite(found).all():
        raise InputError(f"{path}: {name} is '{text[:80]}', expected {count} finite numbers; save it again")
    return found


def _whole_numbers(path: Path, name: str, text: str) -> list[int]:
    try:
        found = [int(word) for word in text.split()]
    except ValueError:
        found = []
    if not found:
        raise InputError(f"{path}: {name} is '{text[:80]}', expected whole numbers; save it again")
    return found


def _whole_number(path: Path, name: str, text: str) -> int:
    found = _whole_numbers(path, name, text)
    if len(found) != 1:
        raise InputError(f"{path}: {name} is '{text[:80]}', expected one whole number; save it again")
    return found[0]


def _vectors(path: Path, name: str, text: str) -> list[FloatArray | None]:
    """Read `(a,b,c) (d,e,f) none`."""
    words = re.findall(r"\([^()]*\)|[^\s()]+", text)
    found: list[FloatArray | None] = []
    for word in words:
        if word.lower() == "none":
            found.append(None)
        else:
            found.append(np.array(_numbers(path, name, word.strip("()").replace(",", " "), 3)))
    return found


def _choice(path: Path, name: str, value: str, known: dict[str, T]) -> T:
    if value not in known:
        raise InputError(
            f"{path}: {name} is {value[:80]}, expected one of {', '.join(known)}; save the scan again"
        )
    return known[value]


def _shape(path: Path, sizes: Sequence[int]) -> Shape:
    if min(sizes) < 1:
        raise InputError(
            f"{path}: its size is {' x '.join(map(str, sizes))[:80]}, expected at least one voxel each way"
        )
    return sizes[0], sizes[1], sizes[2]


def _not_three(path: Path, sizes: Sequence[int]) -> InputError:
    return InputError(
        f"{path}: has {len(sizes)} dimensions {str(tuple(sizes))[:80]}; expected one three-dimensional scan of "
        "one value for each voxel. Split a series of volumes into files first"
    )


def _affine(columns: FloatArray) -> FloatArray:
    return np.vstack([columns, [0.0, 0.0, 0.0, 1.0]])


def _data_file(path: Path, named: str) -> Path:
    if re.fullmatch(r"list(\s.*)?", named.lower()) or "%" in named:
        raise InputError(f"{path}: its data are spread over several files; save it again as one file")
    relative = Path(named)
    # A header must not make its reader open whatever it names.
    if relative.is_absolute() or ".." in relative.parts or "\\" in named:
        raise InputError(f"{path}: its data file {named[:80]} is not beside it; put both into one folder")
    data = path.parent / relative
    if not os.path.isfile(data):  # False also where the name is longer than the file system bears
        raise InputError(f"{path}: its data file {named[:80]} is missing; copy it along with the header")
    return data
