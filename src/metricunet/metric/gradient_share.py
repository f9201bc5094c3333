"""The weight of a branch as a share: its gradient at the maps it reads, against that of all else in the loss."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, distributed, nn

from metricunet.metric.gathering import processes, sharing

#: A branch whose gradient fades away is not blown up beyond this weight.
LARGEST_WEIGHT = 10.0


class GradientShare(nn.Module):
    """Weighs a branch so that its gradient is a fixed share of that of all else, at the maps that it reads.

    Both gradients pass through the maps on their way back anyway, so measuring them costs two sums and no pass of
    its own. What an update measures decides the weight of later ones, as a running mean; the first updates, before
    anything was measured, take the share itself as the weight. The running mean is a buffer.

    The branch's gradient at a map is what comes straight from the branch. Where one map is made of another, what
    the branch sends back by way of the later one is among the rest at the earlier one: little where the share is
    small, and not where that is near 1.

        share = GradientShare(0.1)
        weight = share.weight()
        out = metric(share.watched(maps, weight), labels, logits)
        (segmentation_loss + weight * out.loss).backward()

    Args:
        share: norm of the branch's gradient over the norm of the rest's.
        decay: share of the running mean that remains at each update.
    """

    def __init__(self, share: float, decay: float = 0.9) -> None:
        super().__init__()
        self.share, self.decay = share, decay
        self.register_buffer("ratio", torch.ones(()))
        self.register_buffer("measured", torch.zeros((), dtype=torch.bool))
        self.ratio: Tensor
        self.measured: Tensor

    @torch.no_grad()
    def weight(self, rise: float = 1.0) -> Tensor:
        """Return the weight of the branch's loss, a scalar without gradient.

        Args:
            rise: 0 to 1, share of the full weight, as during a warm-up.
        """
        if processes() > 1 and not sharing():  # of a batch that they share, all measure alike
            distributed.all_reduce(self.ratio)
            self.ratio /= processes()
        return (self.share * self.ratio).clamp(max=LARGEST_WEIGHT) * rise

    def watched(self, maps: Sequence[Tensor], weight: Tensor) -> list[Tensor]:
        """Return the maps for the branch to read; the next backward pass measures both gradients there.

        Args:
            maps: the maps, which the rest of the loss depends on, too.
            weight: the weight that the branch's loss gets in this step.
        """
        learning = [one for one in maps if one.requires_grad]
        together = sharing()  # now, for the gradients come when the batch is closed
        squares: list[tuple[Tensor, Tensor]] = []

        def watch(one: Tensor) -> Tensor:
            view = one.view_as(one)
            of_branch: list[Tensor] = []
            view.register_hook(lambda gradient: of_branch.append(gradient.detach()))  # type: ignore[no-untyped-call]

            def at_map(gradient: Tensor) -> None:
                branch = of_branch.pop().float() if of_branch else torch.zeros_like(gradient, dtype=torch.float32)
                rest = gradient.detach().float() - branch
                squares.append((branch.square().sum(), rest.square().sum()))
                if len(squares) == len(learning):
                    self._take_up(squares, weight, together)

            one.register_hook(at_map)  # type: ignore[no-untyped-call]
            return view

        return [watch(one) if one.requires_grad else one for one in maps]

    @torch.no_grad()
    def _take_up(self, squares: Sequence[tuple[Tensor, Tensor]], weight: Tensor, together: bool) -> None:
        sums = torch.stack([torch.stack(part).sum() for part in zip(*squares, strict=True)])
        if together:  # each process has measured at its own rows
            distributed.all_reduce(sums)
        branch, rest = sums.sqrt()
        found = rest * weight / branch
        usable = torch.isfinite(found) & (found > 0)
        mean = torch.where(self.measured, self.decay * self.ratio + (1 - self.decay) * found, found)
        self.ratio.copy_(torch.where(usable, mean, self.ratio))
        self.measured |= usable
