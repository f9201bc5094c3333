"""Lines that several parts print, beside those of `metricunet bench`."""

from __future__ import annotations

from benchmarks.work import Work
from metricunet.workflows.bench.result import MeasuredOn, ratio_line, times_line, value_line
from metricunet.workflows.bench.timing import Ratio, Times


def rate_line(name: str, times: Times, rate: str) -> str:
    """A line of times, and how much that is in a second."""
    return f"{times_line(name, times)}, {rate}"


def ratio_target(name: str, ratio: Ratio, target: str, met: bool) -> str:
    """A line with a ratio that has a target."""
    return f"{ratio_line(name, ratio)}; target {target} {verdict(met)}"


def value_target(name: str, value: str, target: str, met: bool) -> str:
    """A line with any other value that has a target."""
    return f"{value_line(name, value)}; target {target} {verdict(met)}"


def verdict(met: bool) -> str:
    """How a target is answered."""
    return "met" if met else "MISSED"


def work_lines(work: Work) -> list[str]:
    """How much arithmetic, how fast, and which share of the peak that is."""
    peak = work.peak
    return [
        value_line("multiply-adds of the network", f"{work.multiply_adds / 1e9:.1f} G"),
        value_line(f"multiply-adds per second, {peak.precision}", f"{work.per_second / 1e9:.0f} G")
        + f", {work.share:.0%} of the measured peak ({peak.best / 1e9:.0f} G: matrix product"
        f" {peak.matrix / 1e9:.0f}, convolution {peak.convolution / 1e9:.0f})",
    ]


def cuda_line(facts: MeasuredOn) -> list[str]:
    """Say so where no GPU was used."""
    return [] if facts.device.startswith("cuda") else ["  CUDA: not run, no CUDA GPU was used"]


def missing(package: str, requirement: str) -> str:
    """The line that stands in for a baseline that is not installed."""
    return f'  {package}: not installed, so no baseline (pip install "{requirement}")'
