"""What computes the networks of a model: torch a model file, onnxruntime or OpenVINO an exported model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

from metricunet.errors import InputError, argument
from metricunet.files.exported import is_exported
from metricunet.inference.reruns import MOST_RERUNS
from metricunet.inference.segmenter import Segmenter

Runtime = Literal["torch", "onnx"]
RUNTIMES: tuple[Runtime, ...] = get_args(Runtime)


def runtime_for(models: Sequence[Path], runtime: str | None = None, provider: str | None = None) -> Runtime:
    """Return what is to compute: what is asked for, else what the models are made for. Nothing is imported.

    Args:
        models: model files, or folders of exported models.
        runtime: `torch`, `onnx`, or None.
        provider: of onnxruntime, or None; see `metricunet.inference.onnx_predictor`.

    Raises:
        InputError: an unknown name, models of both kinds, models that the runtime does not compute, or a provider
            for torch.
    """
    if runtime is not None and runtime not in RUNTIMES:
        raise InputError(f"{argument('runtime')} must be {' or '.join(RUNTIMES)}; got {runtime!r}")
    exported = [path for path in models if is_exported(path)]
    files = [path for path in models if not is_exported(path)]
    if exported and (files or runtime == "torch"):
        other = f"and {files[0]} is none" if files else "which torch does not compute"
        raise InputError(
            f"{exported[0]}: is an exported model, {other}; name model files, or exported models alone"
        )
    missing = next((path for path in files if not path.exists()), None)
    if missing is not None and (runtime == "onnx" or provider is not None):
        raise InputError(f"{missing}: no such file or folder; expected an exported model")
    if files and runtime == "onnx":
        raise InputError(
            f"{files[0]}: is no exported model, which {argument('runtime', 'onnx')} needs; make one with "
            "`metricunet export`, where torch is installed, and name its folder"
        )
    if provider is not None and not exported:
        raise InputError(f"{argument('provider', provider)} is for exported models, and {files[0]} is none")
    return "onnx" if exported else "torch"


def open_predictor(
    models: Sequence[Path],
    device: str = "auto",
    *,
    runtime: str | None = None,
    provider: str | None = None,
    reruns: int = MOST_RERUNS,
    organs: bool = True,
) -> Segmenter:
    """Load models to segment scans with.

    Args:
        models: model files, or folders of exported models; the probabilities of several are averaged.
        device: see `metricunet.inference.predictor.Predictor`.
        runtime: as for `runtime_for`.
        provider: likewise.
        reruns: how often stage 2 may run again.
        organs: whether the organs' network is wanted, where the models have one.

    Raises:
        InputError: as `runtime_for`, and as the predictors; or the library that is to compute is not installed.
    """
    if runtime_for(models, runtime, provider) == "onnx":
        from metricunet.inference.onnx_predictor import OnnxPredictor

        return OnnxPredictor(models, device, provider, reruns, organs)
    try:
        from metricunet.inference.predictor import Predictor
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise InputError(
            f"{', '.join(map(str, models))}: a model file is computed by torch, which is not installed here; run "
            "`pip install torch`, or name the folder of an exported model"
        ) from error
    return Predictor(models, device, reruns=reruns, organs=organs)
