"""The cases of a prediction folder, those that need a person's eyes most first."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from metricunet.errors import InputError
from metricunet.files.json_file import read_json
from metricunet.files.own import FILES
from metricunet.files.reviews import QUALITY_SUFFIX, Review
from metricunet.inference.case_files import MASKS, SUFFIXES

#: What is looked at first comes first. A folder of an earlier version states no doubt.
DOUBTS = ("strong", "some", "none", "")
VERDICTS = ("fail", "review", "pass", "")

Value = TypeVar("Value")


@dataclass(frozen=True, eq=False)
class PredictedCase:
    """What `CASE.quality.json` says of a case; what it lacks, or says in no known way, is empty.

    Attributes:
        name: of the case.
        folder: that it lies in.
        verdict: `pass`, `review` or `fail`.
        doubt: `none`, `some` or `strong`.
        reasons: why the verdict is not `pass`.
        expected_error_mm: of the target's boundary; None where it is not known.
        slices_mm: LPS z of each slice with the target, and the error expected there.
        structures: what is said of each structure that has a voxel.
        labels: structure to its value in the mask; empty in a folder of an earlier version.
        tg263: structure to its standard name.
        scan: where the scan lies: `path`, and `relative` to the folder; empty where it is not known.
        stated: names of its files to their SHA-256.
        scanner: what took the scan: `manufacturer`, `model` and `kernel`; empty where it is not known.
        codes: of the verdict's flags.
        model: what it was made with: hash of the models and version of the program.
        input_sha256: of the scan's files.
        of_synthetic_origin: whether its model, or an ancestor of it, was trained on synthetic scans only, and no
            patients were scored since.
    """

    name: str
    folder: Path
    verdict: str = ""
    doubt: str = ""
    reasons: tuple[str, ...] = ()
    expected_error_mm: float | None = None
    slices_mm: tuple[tuple[float, float], ...] = ()
    structures: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    labels: Mapping[str, int] = field(default_factory=dict)
    tg263: Mapping[str, str] = field(default_factory=dict)
    scan: Mapping[str, str] = field(default_factory=dict)
    scanner: Mapping[str, str] = field(default_factory=dict)
    codes: tuple[str, ...] = ()
    stated: Mapping[str, str] = field(default_factory=dict)
    model: Mapping[str, str] = field(default_factory=dict)
    input_sha256: str = ""
    of_synthetic_origin: bool = False

    @property
    def order(self) -> tuple[int, int, float, str]:
        """What cases are sorted by: doubt, verdict, expected error, name."""
        return (
            DOUBTS.index(self.doubt),
            VERDICTS.index(self.verdict),
            -(self.expected_error_mm or 0.0),
            self.name,
        )

    def is_another_scan_than(self, review: Review) -> bool:
        """Tell whether a review is of another scan that had the case's name; False where it cannot be known."""
        return bool(self.input_sha256 and review.input_sha256) and self.input_sha256 != review.input_sha256

    def file(self, suffix: str) -> Path | None:
        """Return a file of the prediction, such as that of `.nii.gz`; None where there is none. No link counts."""
        path = self.folder / f"{self.name}{suffix}"
        return path if path.is_file() and not path.is_symlink() else None

    @property
    def mask_files(self) -> tuple[Path, ...]:
        """The files that hold its masks, the label map first."""
        return tuple(path for name in MASKS if (path := self.file(SUFFIXES[name])) is not None)


@dataclass(frozen=True)
class UnreadableCase:
    """A case whose verdict cannot be read, and why."""

    name: str
    reason: str


def read_cases(folder: Path, *, empty: bool = False) -> tuple[list[PredictedCase], list[UnreadableCase]]:
    """Return the cases of a folder in the order in which to look at them, and those that cannot be read.

    Args:
        folder: of the predictions.
        empty: whether a folder without a case will do, as that of a node to begin with.

    Raises:
        InputError: no folder, or no case in it.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; expected one that metricunet predict wrote")
    cases: list[PredictedCase] = []
    unreadable: list[UnreadableCase] = []
    for path in sorted(folder.glob(f"*{QUALITY_SUFFIX}")):
        name = path.name.removesuffix(QUALITY_SUFFIX)
        if not name or name.startswith("."):
            continue
        try:
            cases.append(read_case(folder, name))
        except InputError as error:
            unreadable.append(UnreadableCase(name, str(error)))
    if not cases and not unreadable and not empty:
        raise InputError(
            f"{folder}: holds no prediction (no *{QUALITY_SUFFIX}); give the folder of metricunet predict"
        )
    return sorted(cases, key=lambda case: case.order), unreadable


def read_case(folder: Path, name: str) -> PredictedCase:
    """Read what is said of one case.

    Raises:
        InputError: the file is a link, is no JSON, or holds no fields.
    """
    path = folder / f"{name}{QUALITY_SUFFIX}"
    if path.is_symlink():
        raise InputError(f"{path}: is a link, and no link is followed out of the folder; copy the file here")
    content = read_json(path, "; predict the case again")
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds no fields; predict the case again")
    boundary, scan = _table(content.get("boundary")), _table(content.get("scan"))
    flags = content.get("flags")
    codes = tuple(code for flag in _list(flags) if (code := _text(_table(flag).get("code"))) is not None)
    return PredictedCase(
        name=name,
        folder=folder,
        verdict=_one_of(content.get("verdict"), VERDICTS),
        doubt=_one_of(content.get("doubt"), DOUBTS),
        reasons=tuple(str(reason) for reason in _list(content.get("reasons"))),
        expected_error_mm=_number(boundary.get("expected_error_mm")),
        slices_mm=tuple(_slices(boundary.get("slices"))),
        structures={str(k): v for k, v in _table(content.get("structures")).items() if isinstance(v, dict)},
        labels=_entries(content.get("labels"), _label),
        tg263=_entries(content.get("tg263"), _text),
        scan=_entries(scan, _text),
        scanner=_entries(content.get("scanner"), _text),
        codes=codes,
        stated=_entries(content.get(FILES), _text),
        model=_entries({key: content.get(key) for key in ("model_sha256", "version")}, _text),
        input_sha256=_text(content.get("input_sha256")) or "",
        of_synthetic_origin="synthetic_model" in codes,
    )


def _slices(value: object) -> list[tuple[float, float]]:
    found = []
    for entry in _list(value):
        z, mm = (_number(_table(entry).get(key)) for key in ("z_mm", "expected_error_mm"))
        if z is not None and mm is not None:
            found.append((z, mm))
    return found


def _table(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _entries(value: object, read: Callable[[object], Value | None]) -> dict[str, Value]:
    return {str(key): known for key, entry in _table(value).items() if (known := read(entry)) is not None}


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _one_of(value: object, known: tuple[str, ...]) -> str:
    return value if isinstance(value, str) and value in known else ""


def _label(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value <= 65535 else None


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)
