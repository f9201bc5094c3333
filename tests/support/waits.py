"""Operations that make a device wait for the host, or the host for the device."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Waits(TorchDispatchMode):
    """Collects the operations that make a device wait for the host, or the host for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = str(func)
        masks = [k for k in args[1] or () if k is not None and k.dtype == torch.bool] if "index" in name else []
        waiting = ("_local_scalar_dense", "nonzero", "multinomial", "masked_select", "lift_fresh", "unique")
        if any(word in name for word in waiting) or masks:
            self.found.append(name)
        return func(*args, **(kwargs or {}))
