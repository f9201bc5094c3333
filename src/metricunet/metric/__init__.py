"""The heart: voxel-wise metric learning with online sampling. It imports torch alone and is usable alone.

from metricunet.metric import VoxelMetricLoss

metric = VoxelMetricLoss()
out = metric(features, labels, logits=logits, spacing_mm=(1.0, 1.0))
loss = segmentation_loss + 0.1 * out.loss
"""

from metricunet.metric.sampling import HardEasySampler, Sample, Sampler
from metricunet.metric.voxel_metric import VoxelMetricLoss, VoxelMetricOutput

__all__ = ["HardEasySampler", "Sample", "Sampler", "VoxelMetricLoss", "VoxelMetricOutput"]
