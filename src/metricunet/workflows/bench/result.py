"""What a part measured, for programs and for people."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from metricunet.files.record import machine
from metricunet.workflows.bench.timing import Ratio, Times

NAME_WIDTH = 46


@dataclass(frozen=True)
class MeasuredOn:
    """What was measured on: processor, cores, system and versions; device; torch's threads on the CPU."""

    machine: dict[str, Any]
    device: str
    threads: int

    @staticmethod
    def of(device: torch.device) -> MeasuredOn:
        """Describe this machine; a GPU by its name."""
        described = machine()
        if device.type == "cuda":
            described["gpu"] = torch.cuda.get_device_name(device)
        return MeasuredOn(described, str(device), torch.get_num_threads())


@dataclass(frozen=True)
class Row:
    """One quantity: its name, what was found (a plain number has a unit), and what that is held against."""

    name: str
    found: Times | Ratio | float
    unit: str = ""
    against: str = ""

    def text(self) -> str:
        """Write it in one line."""
        if isinstance(self.found, Times):
            line = times_line(self.name, self.found)
        elif isinstance(self.found, Ratio):
            line = ratio_line(self.name, self.found)
        else:
            line = value_line(self.name, f"{self.found:.3g} {self.unit}")
        return f"{line}; {self.against}" if self.against else line


@dataclass(frozen=True)
class Result:
    """All that a part measured, its rows by short names; `about` says on what."""

    part: str
    facts: MeasuredOn
    about: Mapping[str, str]
    rows: Mapping[str, Row]

    def to_json(self) -> dict[str, Any]:
        """Return it as plain dictionaries and lists."""
        return asdict(self)

    def text(self) -> str:
        """Write it for people to read."""
        about = [f"  {name}: {words}" for name, words in self.about.items()]
        return "\n".join([head(self.part, self.facts), *about, *(row.text() for row in self.rows.values())])


def head(part: str, facts: MeasuredOn) -> str:
    """Name the part and where it was measured."""
    where = facts.machine.get("gpu", facts.machine["processor"])
    version = facts.machine["packages"]["torch"]
    return f"{part}: {where}, {facts.device}, {facts.threads} threads, torch {version}"


def duration(seconds: float) -> str:
    """Write seconds in the unit that suits them."""
    if seconds < 0.01:
        return f"{seconds * 1e3:.2f} ms"
    return f"{seconds * 1e3:.0f} ms" if seconds < 1 else f"{seconds:.2f} s"


def times_line(name: str, times: Times) -> str:
    """A line with the median and the quartiles."""
    low, high = times.quartiles_s
    spread = f"({duration(low)} to {duration(high)}, n {times.n})" if times.n > 1 else "(once)"
    return f"{value_line(name, duration(times.median_s))}  {spread}"


def ratio_line(name: str, ratio: Ratio) -> str:
    """A line with the median of a ratio and its quartiles."""
    low, high = ratio.quartiles
    digits = 1 if ratio.median >= 10 else 2
    return f"{value_line(name, f'{ratio.median:.{digits}f}')}  ({low:.{digits}f} to {high:.{digits}f})"


def value_line(name: str, value: str) -> str:
    """A line with any value."""
    return f"  {name:<{NAME_WIDTH}}{value:>10}"
