"""MetricUNet: two-stage segmentation of the prostate in CT with online voxel-wise metric learning.

Example:
    import metricunet as mu

    scan = mu.load_scan("scan.nii.gz")
    result = mu.load_model("model.safetensors").predict(scan)
    result.save("out")

Every name is imported when it is first used, so that `import metricunet` itself takes no time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from metricunet.api import evaluate, load_model, load_scan, predict, train
    from metricunet.errors import InputError
    from metricunet.metric import VoxelMetricLoss
    from metricunet.volume import Volume
    from metricunet.workflows.convert import convert

    __version__: str

__all__ = [
    "InputError",
    "Volume",
    "VoxelMetricLoss",
    "__version__",
    "convert",
    "evaluate",
    "load_model",
    "load_scan",
    "predict",
    "train",
]

#: Where each name comes from.
_HOMES = {
    "InputError": "metricunet.errors",
    "Volume": "metricunet.volume",
    "VoxelMetricLoss": "metricunet.metric",
    "convert": "metricunet.workflows.convert",
    "evaluate": "metricunet.api",
    "load_model": "metricunet.api",
    "load_scan": "metricunet.api",
    "predict": "metricunet.api",
    "train": "metricunet.api",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        value: Any = version("metricunet")
    elif name in _HOMES:
        from importlib import import_module

        value = getattr(import_module(_HOMES[name]), name)
    else:
        raise AttributeError(f"module 'metricunet' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
