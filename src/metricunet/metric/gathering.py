"""What several processes of one training share: values of all of them, in the same order in each."""

from __future__ import annotations

import torch
from torch import Tensor, distributed


def processes() -> int:
    """Return how many processes train together; 1 where there is no group of processes."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def gathered(values: Tensor) -> Tensor:
    """Join the rows of all processes, which must be as many in each, in the order of the ranks; no gradient."""
    if processes() == 1:
        return values
    values = values.contiguous()
    parts = [torch.empty_like(values) for _ in range(processes())]
    distributed.all_gather(parts, values)
    return torch.cat(parts)
