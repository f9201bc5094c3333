"""Where networks compute."""

from __future__ import annotations

import pytest
import torch

from metricunet.cli import app, flags_of
from metricunet.errors import InputError, arguments_named
from metricunet.stages.device import device_named


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with two CUDA GPUs and Apple's, as far as torch tells."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


@pytest.mark.usefixtures("gpus")
@pytest.mark.parametrize(
    ("name", "device"),
    [
        ("auto", "cuda:0"), ("cpu", "cpu"), ("cuda", "cuda:0"), ("cuda:1", "cuda:1"),
        ("gpu", "cuda:0"), ("gpu:0", "cuda:0"), ("gpu:1", "cuda:1"), ("mps", "mps"), ("mps:0", "mps:0"),
    ],
)  # fmt: skip
def test_a_device_by_each_of_its_names(name: str, device: str) -> None:
    assert device_named(name) == torch.device(device)


@pytest.mark.usefixtures("no_gpu")
def test_without_a_gpu_it_is_the_cpu_and_a_gpu_is_refused() -> None:
    assert device_named("auto") == torch.device("cpu")
    for name in ("cuda", "cuda:0", "gpu", "gpu:3", "mps"):
        with pytest.raises(InputError, match=rf"device='{name}': this torch \(.*\) sees no GPU; use device='cpu'"):
            device_named(name)


@pytest.mark.usefixtures("gpus")
def test_what_this_torch_sees_is_named() -> None:
    for name in ("cuda:2", "gpu:2", "mps:1"):
        with pytest.raises(InputError, match=f"'{name}': .* sees cuda:0, cuda:1, mps beside the CPU"):
            device_named(name)


def test_names_of_none() -> None:
    said = "device must be auto, cpu, cuda, cuda:N, gpu, gpu:N or mps; got "
    for name in ("meta", "abacus", "gpu:", "gpu:x", "gpus", "", "xpu"):
        with pytest.raises(InputError, match=f"{said}'{name}'"):
            device_named(name)


def test_the_option_is_named_on_the_command_line() -> None:
    import typer

    with (
        arguments_named(flags_of(typer.main.get_command(app).commands, "train")),  # type: ignore[attr-defined]
        pytest.raises(InputError, match=r"--device gpu:99: .*; use --device cpu"),
    ):
        device_named("gpu:99")
