"""The predictor with exported networks, which onnxruntime or OpenVINO computes; torch is not needed."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from metricunet.errors import InputError, argument, is_out_of_memory
from metricunet.files.exported import IMAGES, PROBABILITIES, ExportedNetwork, read_exported
from metricunet.files.model import ModelCard
from metricunet.inference.inputs import check_models
from metricunet.inference.reruns import MOST_RERUNS
from metricunet.inference.segmenter import Segmenter, Stage
from metricunet.stages.array_forward import coarse_shares, field_shares

Provider = Literal["cpu", "cuda", "openvino"]
PROVIDERS: tuple[Provider, ...] = get_args(Provider)
Run = Callable[[NDArray[np.float32]], NDArray[np.float32]]
#: Maps a path of an ONNX file to what computes it.
Opener = Callable[[Path], Run]
#: The package with which OpenVINO tells its makers, by the internet, that it was imported. It can do without.
TELLTALE = "openvino_telemetry"


@dataclass(frozen=True, eq=False)
class OnnxNetwork:
    """A network that is ready to compute; see `metricunet.stages.array_forward.ArrayNetwork`."""

    run: Run
    spatial_dims: int
    divisor: int

    def __call__(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return probabilities [batch, classes, *space]."""
        return self.run(images)


@dataclass(frozen=True, eq=False)
class OnnxModel:
    """An exported model, ready to compute; the organs' network is missing where it is not wanted."""

    card: ModelCard
    networks: Mapping[str, OnnxNetwork]

    def probabilities(self, stage: Stage, hu: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the probabilities of a stage; see `metricunet.inference.segmenter.StageModel`."""
        network = self.networks[stage]
        if stage == "locate":
            return coarse_shares(network, self.card.locate, hu)
        return field_shares(network, getattr(self.card, stage), hu)


class OnnxPredictor(Segmenter):
    """Segments scans with one exported model, or with the mean probabilities of several.

    Args:
        models: folders of exported models; all must name the same structures, target and organs.
        device: `auto`, `cpu`, `cuda`, `cuda:N`, `gpu` or `gpu:N`.
        provider: what computes: `cpu` or `cuda` of onnxruntime, or `openvino`; None for what suits the device.
        reruns: how often stage 2 may look again, elsewhere or farther, where the target reaches its crop's edge.
        organs: whether the organs' network is wanted, where the models have one. Without it its structures are
            not segmented; all else is the same.

    Raises:
        InputError: no model, one that cannot be read, models of different structures, a provider that is not
            installed or does not suit the device, or a negative number of reruns.
    """

    def __init__(
        self,
        models: Sequence[Path],
        device: str = "auto",
        provider: str | None = None,
        reruns: int = MOST_RERUNS,
        organs: bool = True,
    ) -> None:
        check_models(models, reruns)
        chosen, gpu = provider_for(device, provider)
        asked = argument("provider", provider), argument("provider", "cpu")
        if provider is None:
            asked = argument("device", device), argument("device", "cpu")
        opener = _openvino() if chosen == "openvino" else _onnxruntime(gpu, *asked)
        name = "openvino" if chosen == "openvino" else f"onnxruntime, {chosen}{'' if gpu is None else f':{gpu}'}"
        super().__init__(models, [opened_model(path, opener, organs) for path in models], name, reruns, organs)


def provider_for(device: str, provider: str | None) -> tuple[Provider, int | None]:
    """Return what is to compute, and the number of the GPU; None for the CPU.

    Raises:
        InputError: an unknown name, or a device that the provider does not compute on.
    """
    if provider is not None and provider not in PROVIDERS:
        raise InputError(f"{argument('provider')} must be {', '.join(PROVIDERS)}; got {provider!r}")
    found = re.fullmatch(r"(auto|cpu|cuda|gpu)(?::(\d+))?", device)
    if found is None or (found[2] and found[1] in ("auto", "cpu")):
        raise InputError(
            f"{argument('device')} must be auto, cpu, cuda, cuda:N, gpu or gpu:N for an exported model; "
            f"got {device!r}"
        )
    on_gpu = found[1] in ("cuda", "gpu")
    if provider is not None and found[1] != "auto" and on_gpu != (provider == "cuda"):
        raise InputError(
            f"{argument('provider', provider)} does not compute on {argument('device', device)}; leave one of "
            "them out"
        )
    if on_gpu or provider == "cuda":
        return "cuda", int(found[2] or 0)
    return ("openvino" if provider == "openvino" else "cpu"), None


def opened_model(path: Path, opener: Opener, organs: bool = True) -> OnnxModel:
    """Read an exported model and make it ready to compute.

    Args:
        path: folder of the exported model.
        opener: makes what computes a network of its ONNX file.
        organs: whether the organs' network is wanted, where the model has one.

    Raises:
        InputError: a folder that is damaged, or a file that cannot be opened.
    """
    exported = read_exported(path)
    wanted = {name: network for name, network in exported.networks.items() if organs or name != "organs"}
    networks = {name: _opened(network, opener) for name, network in wanted.items()}
    return OnnxModel(exported.card, networks)


def _opened(network: ExportedNetwork, opener: Opener) -> OnnxNetwork:
    try:
        run = opener(network.path)
    except InputError:
        raise
    except Exception as error:  # both libraries have errors of their own kinds
        if is_out_of_memory(error):
            raise
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{network.path}: cannot be opened ({reason}); export the model again") from error
    return OnnxNetwork(run, network.spatial_dims, network.divisor)


def import_onnxruntime() -> Any:
    """Import onnxruntime, which then says nothing of this machine to its makers unless the user asks for that.

    Raises:
        ImportError: it is not installed.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read as it is imported
    import onnxruntime

    return onnxruntime


def _onnxruntime(gpu: int | None, asked: str, otherwise: str) -> Opener:
    """Return what opens a network with onnxruntime.

    Args:
        gpu: number of the GPU; None for the CPU.
        asked: the argument that asked for it, as messages name it.
        otherwise: the same argument where it asks for the CPU.
    """
    try:
        ort = import_onnxruntime()
    except ImportError as error:
        raise InputError(
            "onnxruntime, which computes an exported model, is not installed; run `pip install onnxruntime`"
        ) from error
    wanted: list[Any] = ["CPUExecutionProvider"]
    if gpu is not None:
        name = "CUDAExecutionProvider"
        if name not in ort.get_available_providers():
            raise InputError(
                f"{asked}: this onnxruntime ({ort.__version__}) computes on the CPU alone; "
                f"run `pip uninstall onnxruntime` and `pip install onnxruntime-gpu`, or use {otherwise}"
            )
        wanted.insert(0, (name, {"device_id": gpu}))
    options = ort.SessionOptions()
    options.intra_op_num_threads = _threads()
    options.log_severity_level = 3  # errors alone: they are raised as well, and warnings are for developers

    def opened(path: Path) -> Run:
        session = ort.InferenceSession(str(path), options, providers=wanted)
        if gpu is not None and session.get_providers()[0] != "CUDAExecutionProvider":
            raise InputError(
                f"{asked}: onnxruntime {ort.__version__} cannot use GPU {gpu}; see what CUDA and cuDNN "
                f"it needs, or use {otherwise}"
            )
        return lambda images: np.asarray(session.run([PROBABILITIES], {IMAGES: images})[0])

    return opened


def import_openvino() -> Any:
    """Import OpenVINO, which then says nothing of this machine to its makers.

    Raises:
        ImportError: it is not installed.
    """
    modules: dict[str, Any] = sys.modules
    is_to_be_hidden = TELLTALE not in modules
    if is_to_be_hidden:
        modules[TELLTALE] = None  # so it cannot be imported
    try:
        import openvino
    finally:
        if is_to_be_hidden:
            del modules[TELLTALE]
    return openvino


def _openvino() -> Opener:
    try:
        openvino = import_openvino()
    except ImportError as error:
        raise InputError(
            f"{argument('provider', 'openvino')}: OpenVINO is not installed; run `pip install openvino`"
        ) from error
    core = openvino.Core()
    # By default it computes in bf16 where the processor can, and masks differ.
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": _threads()}

    def opened(path: Path) -> Run:
        compiled = core.compile_model(str(path), "CPU", settings)
        # The result is a view of memory that the next run writes anew.
        return lambda images: np.array(compiled([images])[0])

    return opened


def _threads() -> int:
    """Return on how many cores to compute: those that this process may use, or as OMP_NUM_THREADS says."""
    stated = os.environ.get("OMP_NUM_THREADS", "")
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return int(stated) if stated.isdecimal() and int(stated) > 0 else usable
