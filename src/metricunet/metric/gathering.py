"""What several processes of one training share: values of all of them, in the same order in each.

A training may spread each batch over processes, each of which computes some of its rows (`one_batch`). What it
draws at random it draws for the whole batch and keeps its own rows, and what a loss takes sums of is summed over
all of them, so that the number of processes changes neither the draws nor the loss. Every process then holds the
loss of the whole batch, and its gradient by way of its own rows: that of the whole batch is the *sum* of theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, distributed

#: Rows that this process has of each part of the batch that all processes share; None where they share none.
_parts: tuple[int, ...] | None = None


def processes() -> int:
    """Return how many processes train together; 1 where there is no group of processes."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def rank() -> int:
    """Return the number of this process among them, from 0."""
    return distributed.get_rank() if processes() > 1 else 0


@contextmanager
def one_batch(*parts: int) -> Iterator[None]:
    """Let the rows that the processes hold be one batch while this is open; alone it changes nothing.

    In each part of the whole batch the rows of the first process come first, then those of the second.

    Args:
        parts: how many rows this process holds of each part of the batch, as many as the others. Without any, all
            rows are one part, however many they are.
    """
    with _set(parts if processes() > 1 else None):
        yield


@contextmanager
def each_its_own() -> Iterator[None]:
    """Let the processes share no batch while this is open: each computes what one process alone would."""
    with _set(None):
        yield


@contextmanager
def _set(parts: tuple[int, ...] | None) -> Iterator[None]:
    global _parts
    before, _parts = _parts, parts
    try:
        yield
    finally:
        _parts = before


def sharing() -> bool:
    """Tell whether the rows of this process are a share of a batch (see `one_batch`)."""
    return _parts is not None


def drawn(draw: Callable[[int], Tensor], rows: int) -> Tensor:
    """Draw random numbers for a batch, and keep those of the rows of this process.

    Args:
        draw: returns numbers [rows, ...] for a number of rows.
        rows: number of rows of this process.
    """
    return own_rows(draw(rows * processes())) if sharing() else draw(rows)


def own_rows(whole: Tensor) -> Tensor:
    """Return the rows of this process, of values of the whole batch [rows of all, ...]."""
    if not sharing():
        return whole
    rows = len(whole) // processes()
    if len(_parts_of(rows)) == 1:
        return whole[rank() * rows : (rank() + 1) * rows]
    return whole[_rows_of(rank(), rows).to(whole.device)]


def gathered(values: Tensor) -> Tensor:
    """Join the rows of all processes, which must be as many in each; no gradient.

    They come in the order of the ranks, or where the processes share a batch, in the order of that.
    """
    if processes() == 1:
        return values
    values = values.contiguous()
    parts = [torch.empty_like(values) for _ in range(processes())]
    distributed.all_gather(parts, values)
    joined = torch.cat(parts)
    if not sharing() or len(_parts_of(len(values))) == 1:
        return joined
    order = torch.cat([_rows_of(k, len(values)) for k in range(processes())])
    return joined[order.argsort().to(joined.device)]


def of_whole_batch(values: Tensor) -> Tensor:
    """Return the rows of the whole batch, with gradient to those of this process; without sharing, the values."""
    return cast(Tensor, _WholeBatch.apply(values)) if sharing() else values  # type: ignore[no-untyped-call]


def summed(*values: Tensor) -> tuple[Tensor, ...]:
    """Return sums over the processes of scalars, for a loss that each process computes of them.

    The gradient is that of the own addend alone. Where no batch is shared they are the values themselves.
    """
    if not sharing():
        return values
    total: Tensor = _Summed.apply(torch.stack([value.float() for value in values]))  # type: ignore[no-untyped-call]
    return total.unbind()


def mean_of_shares(value: Tensor) -> Tensor:
    """Return the mean over the processes of a scalar that is a mean over as many values in each."""
    return summed(value)[0] / processes() if sharing() else value


def summed_for_rows(values: Tensor) -> Tensor:
    """Return sums over the processes of values that every row depends on, such as statistics of the batch.

    Unlike with `summed`, what follows is computed by each process for its own rows alone, so the gradient is the
    sum of what all of them find.
    """
    return cast(Tensor, _SummedForRows.apply(values))  # type: ignore[no-untyped-call]


def counted_once(value: Tensor) -> Tensor:
    """Return a value whose gradient every process computes in full, such that it counts once in their sum.

    It is for a weight that is applied to rows of the whole batch, or a loss that every process computes alike.
    """
    return cast(Tensor, _CountedOnce.apply(value, processes())) if sharing() else value  # type: ignore[no-untyped-call]


def _parts_of(rows: int) -> tuple[int, ...]:
    if not _parts:
        return (rows,)
    if sum(_parts) != rows:
        raise ValueError(f"{rows} rows of a batch that has {sum(_parts)} in this process")
    return _parts


def _rows_of(number: int, rows: int) -> Tensor:
    """Return which rows of the whole batch a process has: int64 [rows]."""
    found, begin = [], 0
    for count in _parts_of(rows):
        found.append(begin + number * count + torch.arange(count))
        begin += count * processes()
    return torch.cat(found)


class _WholeBatch(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, values: Tensor) -> Tensor:
        context.parts = _parts
        return gathered(values)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        with _set(context.parts):  # the backward pass comes when the batch is closed
            return own_rows(gradients[0])


class _Summed(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, values: Tensor) -> Tensor:
        total = values.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]


class _SummedForRows(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, values: Tensor) -> Tensor:
        total = values.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone()
        distributed.all_reduce(total)
        return total


class _CountedOnce(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, value: Tensor, count: int) -> Tensor:
        context.count = count
        return value.view_as(value)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] / context.count, None
