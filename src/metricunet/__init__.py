"""MetricUNet: two-stage segmentation of the prostate in CT with online voxel-wise metric learning."""

from importlib.metadata import version

__version__ = version("metricunet")
