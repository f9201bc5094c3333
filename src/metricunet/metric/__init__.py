"""Voxel-wise metric learning with online sampling. This package imports torch alone and can be used alone.

from metricunet.metric import VoxelMetricLoss

metric = VoxelMetricLoss()
out = metric(features, labels, logits=logits, spacing_mm=(1.0, 1.0))
loss = segmentation_loss + 0.1 * out.loss
"""

from metricunet.metric.background import Background, BackgroundClusters, IntensityKinds
from metricunet.metric.bank import EmbeddingBank
from metricunet.metric.branches import AdaptedMetricLoss, VoxelBranch, VoxelClassLoss, VoxelMetricLoss
from metricunet.metric.gradient_share import GradientShare
from metricunet.metric.graphed import GraphedBranch
from metricunet.metric.losses import MetricOutput, TupleOptions, tuple_losses
from metricunet.metric.offline import PatchMetricLoss, PatchTuples, draw_patch_tuples, read_patches
from metricunet.metric.sampling import (
    SAMPLERS,
    BalancedSampler,
    HardEasySampler,
    Sample,
    Sampler,
    build_sampler,
    read_features,
)

__all__ = [
    "SAMPLERS",
    "AdaptedMetricLoss",
    "Background",
    "BackgroundClusters",
    "BalancedSampler",
    "EmbeddingBank",
    "GradientShare",
    "GraphedBranch",
    "HardEasySampler",
    "IntensityKinds",
    "MetricOutput",
    "PatchMetricLoss",
    "PatchTuples",
    "Sample",
    "Sampler",
    "TupleOptions",
    "VoxelBranch",
    "VoxelClassLoss",
    "VoxelMetricLoss",
    "build_sampler",
    "draw_patch_tuples",
    "read_features",
    "read_patches",
    "tuple_losses",
]
