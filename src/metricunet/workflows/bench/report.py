"""Writing results for people to read: one way of writing times, ratios and verdicts for all parts."""

from __future__ import annotations

from metricunet.workflows.bench.cost import Work
from metricunet.workflows.bench.timing import Facts, Ratio, Times

NAME_WIDTH = 46


def head(part: str, facts: Facts) -> str:
    """Name the part and where it was measured."""
    where = facts.machine.get("gpu", facts.machine["processor"])
    torch = facts.machine["packages"]["torch"]
    return f"{part}: {where}, {facts.device}, {facts.threads} threads, torch {torch}"


def duration(seconds: float) -> str:
    """Write seconds in the unit that suits them."""
    if seconds < 0.01:
        return f"{seconds * 1e3:.2f} ms"
    return f"{seconds * 1e3:.0f} ms" if seconds < 1 else f"{seconds:.2f} s"


def times_line(name: str, times: Times, more: str = "") -> str:
    """A line with the median and the quartiles."""
    low, high = times.quartiles_s
    spread = f"({duration(low)} to {duration(high)}, n {times.n})" if times.n > 1 else "(once)"
    return f"  {name:<{NAME_WIDTH}}{duration(times.median_s):>10}  {spread}{more and ', ' + more}"


def ratio_line(name: str, ratio: Ratio, target: str = "", met: bool | None = None) -> str:
    """A line with a ratio, its quartiles, and whether it is as it ought to be."""
    low, high = ratio.quartiles
    digits = 1 if ratio.median >= 10 else 2
    spread = f"({low:.{digits}f} to {high:.{digits}f})"
    return f"  {name:<{NAME_WIDTH}}{ratio.median:>10.{digits}f}  {spread}{_target(target, met)}"


def value_line(name: str, value: str, target: str = "", met: bool | None = None) -> str:
    """A line with any other value."""
    return f"  {name:<{NAME_WIDTH}}{value:>10}{_target(target, met)}"


def work_lines(work: Work) -> list[str]:
    """How much arithmetic, how fast, and which share of the peak that is."""
    peak = work.peak
    return [
        value_line("multiply-adds of the network", f"{work.multiply_adds / 1e9:.1f} G"),
        value_line(f"multiply-adds per second, {peak.precision}", f"{work.per_second / 1e9:.0f} G")
        + f", {work.share:.0%} of the measured peak ({peak.best / 1e9:.0f} G: matrix product"
        f" {peak.matrix / 1e9:.0f}, convolution {peak.convolution / 1e9:.0f})",
    ]


def cuda_line(facts: Facts) -> list[str]:
    """Say so where no GPU was used."""
    return [] if facts.device.startswith("cuda") else ["  CUDA: not run, no CUDA GPU was used"]


def verdict(met: bool) -> str:
    """How a target is answered."""
    return "met" if met else "MISSED"


def missing(package: str, requirement: str) -> str:
    """The line that stands in for a baseline that is not installed."""
    return f'  {package}: not installed, so no baseline (pip install "{requirement}")'


def shape_text(shape: tuple[int, ...]) -> str:
    """Write a scan's shape as people do: slices last."""
    slices, rows, columns = shape
    return f"{columns} x {rows} x {slices}"


def _target(target: str, met: bool | None) -> str:
    if not target:
        return ""
    return f"; target {target}" + ("" if met is None else f" {verdict(met)}")
