"""What a check is: a quantity that ought to be nought, how far it may be off, and what was found."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from metricunet.errors import InputError

CheckStatus = Literal["pass", "fail", "not run"]
#: The quantity of every check that compares two arrays.
VOXELS = "voxels that differ"


@dataclass(frozen=True)
class Measurement:
    """One measurement.

    Attributes:
        where: the geometry, and the shape if there are several.
        value: the deviation in the check's unit; 0 is perfect, and either sign counts.
        details: other figures of the same measurement, which are not judged.
    """

    where: str
    value: float
    details: dict[str, float] | None = None


@dataclass(frozen=True)
class CommissionCheck:
    """One row of the report.

    Attributes:
        group: the door.
        name: what went where.
        measured: the quantity.
        findings: all measurements; a check without any fails, unless it was not run.
        tolerance: the largest deviation that passes, included.
        unit: of the quantity; empty for counts and shares.
        reason: why it was not run, or what stopped it; one line.
        ran: whether it could be run here.
    """

    group: str
    name: str
    measured: str
    findings: Sequence[Measurement] = ()
    tolerance: float = 0
    unit: str = ""
    reason: str = ""
    ran: bool = True

    @property
    def worst(self) -> Measurement | None:
        """The measurement that is farthest off; what is no number is farther than any."""
        return max(self.findings, key=lambda f: math.inf if math.isnan(f.value) else abs(f.value), default=None)

    @property
    def status(self) -> CheckStatus:
        """`pass`, `fail`, or `not run`."""
        if not self.ran:
            return "not run"
        worst = self.worst
        if worst is None or self.reason:
            return "fail"
        return "pass" if abs(worst.value) <= self.tolerance else "fail"

    @property
    def found(self) -> str:
        """The worst measurement, in figures; empty where there is none."""
        worst = self.worst
        if worst is None:
            return ""
        if self.tolerance == 0:
            return f"{worst.value:g}"
        text = f"{abs(worst.value):.{decimals(self.tolerance)}f}"
        return f"{text if float(text) else 0} {self.unit}".rstrip()

    @property
    def location(self) -> str:
        """Where the worst measurement was made; empty where nothing is off."""
        worst = self.worst
        return "" if worst is None or self.found.split()[0] == "0" else worst.where

    @property
    def allowed(self) -> str:
        """The tolerance, in figures."""
        return f"{self.tolerance:g} {self.unit}".rstrip()

    def to_json(self) -> dict[str, Any]:
        """Return plain values; what is no number becomes None."""
        return {
            "group": self.group,
            "check": self.name,
            "measured": self.measured,
            "unit": self.unit,
            "tolerance": self.tolerance,
            "status": self.status,
            "reason": self.reason,
            "worst": None if self.worst is None else _plain(self.worst),
            "findings": [_plain(finding) for finding in self.findings],
        }


def checked(group: str, run: Callable[[], Iterable[CommissionCheck]]) -> tuple[CommissionCheck, ...]:
    """Run the checks of a group; what goes wrong becomes a check that failed, so that other groups still run."""
    done: list[CommissionCheck] = []
    try:
        done.extend(run())
    except Exception as error:  # whatever breaks a door must show up in the report, beside the doors that work
        line = " ".join(str(error).split()) or "no message"
        kind = "" if isinstance(error, InputError) else f"{type(error).__name__}: "
        done.append(CommissionCheck(group, "Runs to its end", "errors", reason=f"{kind}{line}"))
    return tuple(done)


def decimals(tolerance: float) -> int:
    """Digits behind the point that show a value against its tolerance."""
    return max(2, 2 - math.floor(math.log10(tolerance)))


def _plain(finding: Measurement) -> dict[str, Any]:
    value = finding.value if math.isfinite(finding.value) else None
    return {"where": finding.where, "value": value, **(finding.details or {})}
