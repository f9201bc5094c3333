"""Exporting a model for other programs: ONNX files, and a bundle of MONAI. Behind `metricunet export`."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

from metricunet.errors import InputError, argument
from metricunet.inference.models import named_model
from metricunet.workflows.export.result import Exported, Target

__all__ = ["TARGETS", "Exported", "export"]

TARGETS: tuple[Target, ...] = get_args(Target)


def export(model: Path, output: Path, *, to: str, overwrite: bool = False) -> Exported:
    """Export a model.

    Args:
        model: the model file, or `base` for the one that comes with the package.
        output: folder of the result.
        to: `onnx` or `monai-bundle`.
        overwrite: whether files of others that have an output's name are replaced.

    Raises:
        InputError: an unknown target, a model that cannot be read, a library that is not installed, or a file in
            the place of an output.
    """
    if to not in TARGETS:
        raise InputError(f"{argument('to')} must be {' or '.join(TARGETS)}; got {to!r}")
    if output.exists() and not output.is_dir():
        raise InputError(f"{output}: is a file; expected a folder for the exported model")
    model = named_model(model)
    if to == "onnx":
        from metricunet.workflows.export.onnx_files import export_onnx

        return export_onnx(model, output, overwrite=overwrite)
    from metricunet.workflows.export.monai_bundle import export_bundle

    return export_bundle(model, output, overwrite=overwrite)
