"""Synthetic male pelvic CT: scans whose true shapes are known, for demonstration, tests and studies.

`make_phantom` makes one scan with its label map, `make_cohort` a data set in nnU-Net's raw layout.
"""

from metricunet.phantom.cohort import make_cohort
from metricunet.phantom.make import STRUCTURES, Phantom, make_phantom

__all__ = ["STRUCTURES", "Phantom", "make_cohort", "make_phantom"]
