"""Counting the multiply-adds of a piece of work, whatever it does: forward, backward, any network."""

from __future__ import annotations

from dataclasses import dataclass

from torch.utils.flop_counter import FlopCounterMode

from benchmarks.peak import Peak
from metricunet.workflows.bench.timing import Run


@dataclass(frozen=True)
class Work:
    """How fast a piece of work was, against the machine's peak.

    Attributes:
        multiply_adds: of the work.
        per_second: multiply-adds per second.
        share: of the peak.
        peak: that was measured beside it.
    """

    multiply_adds: int
    per_second: float
    share: float
    peak: Peak

    @staticmethod
    def of(multiply_adds: int, seconds: float, peak: Peak) -> Work:
        """Divide by the time, and that by the peak."""
        return Work(multiply_adds, multiply_adds / seconds, multiply_adds / seconds / peak.best, peak)


def multiply_adds(run: Run) -> int:
    """Run something once and count the multiply-adds of its convolutions and matrix products.

    torch counts floating-point operations, two for each multiply-add. Normalisation, activations, interpolation
    and the optimiser are not counted: beside the convolutions they are little arithmetic.
    """
    with FlopCounterMode(display=False) as counted:
        run()
    return int(counted.get_total_flops()) // 2
