"""Synthetic male pelvic CT: scans whose true shapes are known, for demonstration, tests and studies.

`make_phantom` makes one scan with its label map, `draw_phantom` what such scans are rendered from, `make_cohort` a
data set in nnU-Net's raw layout, and `displace_cohort` the same data set with a reader's contours to train on.
"""

from metricunet.phantom.cohort import make_cohort, reader_path
from metricunet.phantom.displaced import displace_cohort
from metricunet.phantom.make import STRUCTURES, Drawn, Phantom, draw_phantom, make_phantom
from metricunet.phantom.variety import Variety

__all__ = [
    "STRUCTURES",
    "Drawn",
    "Phantom",
    "Variety",
    "displace_cohort",
    "draw_phantom",
    "make_cohort",
    "make_phantom",
    "reader_path",
]
