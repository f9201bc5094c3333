"""The heart: voxel-wise metric learning with online sampling. It imports torch alone and is usable alone.

from metricunet.metric import VoxelMetricLoss

metric = VoxelMetricLoss()
out = metric(features, labels, logits=logits, spacing_mm=(1.0, 1.0))
loss = segmentation_loss + 0.1 * out.loss
"""

from metricunet.metric.control import VoxelClassLoss, VoxelClassOutput
from metricunet.metric.graphed import GraphedBranch
from metricunet.metric.offline import PatchMetricLoss, PatchTuples, draw_patch_tuples, read_patches
from metricunet.metric.sampling import SAMPLERS, HardEasySampler, Sample, Sampler, build_sampler
from metricunet.metric.voxel_metric import VoxelMetricLoss, VoxelMetricOutput

__all__ = [
    "SAMPLERS",
    "GraphedBranch",
    "HardEasySampler",
    "PatchMetricLoss",
    "PatchTuples",
    "Sample",
    "Sampler",
    "VoxelClassLoss",
    "VoxelClassOutput",
    "VoxelMetricLoss",
    "VoxelMetricOutput",
    "build_sampler",
    "draw_patch_tuples",
    "read_patches",
]
