"""Where networks compute."""

from __future__ import annotations

import pytest

from metricunet.cli import app, flags_of
from metricunet.errors import InputError, arguments_named
from metricunet.stages.device import device_named


def test_devices_that_are_there_and_others() -> None:
    assert device_named("cpu").type == "cpu"
    assert device_named("auto").type in ("cpu", "cuda")
    for name in ("gpu", "meta", "mps", "abacus"):
        with pytest.raises(InputError, match=f"device must be auto, cpu, cuda or cuda:N; got '{name}'"):
            device_named(name)
    with pytest.raises(InputError, match=r"device='cuda:99': this torch sees . CUDA GPUs; use device='cpu'"):
        device_named("cuda:99")


def test_the_option_is_named_on_the_command_line() -> None:
    import typer

    with (
        arguments_named(flags_of(typer.main.get_command(app).commands, "train")),  # type: ignore[attr-defined]
        pytest.raises(InputError, match=r"--device cuda:99: .*; use --device cpu"),
    ):
        device_named("cuda:99")
