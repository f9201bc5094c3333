"""Choosing where to compute, as the user names it."""

from __future__ import annotations

import torch

from metricunet.errors import InputError, argument

#: What a device may be called.
NAMES = "auto, cpu, cuda, cuda:N, gpu, gpu:N or mps"
FIRST_GPU = torch.device("cuda", 0)


def device_named(name: str) -> torch.device:
    """Resolve the name of a device. A CUDA GPU is the first one where no number is given.

    That is said to torch by its number: for torch, `cuda` is whichever GPU it was told to use last, by a training
    before or by the caller, and what is put there at different times would lie on different GPUs.

    Args:
        name: `auto` (a CUDA GPU where there is one, else the CPU), `cpu`, `cuda` or `cuda:N`, likewise `gpu` or
            `gpu:N`, or `mps` (the GPU of an Apple machine).

    Raises:
        InputError: an unknown name, or a GPU that this torch does not see.
    """
    if name == "auto":
        return FIRST_GPU if torch.cuda.is_available() else torch.device("cpu")
    kind, colon, number = name.partition(":")
    try:
        device = torch.device(f"{'cuda' if kind == 'gpu' else kind}{colon}{number}")
    except RuntimeError as error:
        raise _unknown(name) from error
    if device.type not in ("cpu", "cuda", "mps"):
        raise _unknown(name)
    if device.type != "cpu" and (device.index or 0) >= _gpus(device.type):
        raise InputError(
            f"{argument('device', name)}: this torch ({_build()}) sees {_seen()}; use {argument('device', 'cpu')}"
        )
    return FIRST_GPU if device.type == "cuda" and device.index is None else device


def _gpus(kind: str) -> int:
    """Return how many GPUs of a kind, `cuda` or `mps`, this torch can use."""
    if kind == "mps":
        return int(torch.backends.mps.is_available())
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def _build() -> str:
    """Return the version of torch, and what it was built for, which tells why a GPU may not be seen."""
    kinds = [*(["CUDA"] if torch.version.cuda else []), *(["mps"] if torch.backends.mps.is_built() else [])]
    return f"{torch.__version__}, built {'with ' + ' and '.join(kinds) if kinds else 'for the CPU alone'}"


def _seen() -> str:
    gpus = [f"cuda:{number}" for number in range(_gpus("cuda"))] + ["mps"] * _gpus("mps")
    return f"{', '.join(gpus)} beside the CPU" if gpus else "no GPU"


def _unknown(name: str) -> InputError:
    return InputError(f"{argument('device')} must be {NAMES}; got {name!r}")
