"""Two processes under DDP, one of which has no prostate in its batch: no hang, and equal weights."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

WORKER = """
import sys
import torch
import torch.distributed as dist
from metricunet.metric import HardEasySampler, VoxelClassLoss, VoxelMetricLoss

class Net(torch.nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.body = torch.nn.Conv2d(1, 6, 3, padding=1)
        sampler = HardEasySampler(32)
        self.metric = kind(sampler, head=4, channels=[6])

    def forward(self, images, labels):
        return self.metric(self.body(images), labels).loss

def main(rank, store):
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    states = {}
    for kind in (VoxelMetricLoss, VoxelClassLoss):
        torch.manual_seed(0)
        net = Net(kind)
        before = [p.detach().clone() for p in net.parameters()]
        model = torch.nn.parallel.DistributedDataParallel(net)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        for step in range(4):
            torch.manual_seed(10 * step + rank)
            labels = torch.zeros(2, 16, 16, dtype=torch.uint8)
            # The first rank never holds the organ, the second does in every other step.
            if rank == 1 and step % 2 == 0:
                labels[:, 4:10, 5:12] = 1
            images = labels[:, None] + torch.randn(2, 1, 16, 16)
            loss = model(images, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        moved = sum(float((p.detach() - b).abs().sum()) for p, b in zip(net.parameters(), before))
        states[kind.__name__] = {"moved": moved, "weights": [p.detach().clone() for p in net.parameters()]}
        del model, optimizer
    torch.save(states, f"{store}.{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()

main(int(sys.argv[1]), sys.argv[2])
"""


def test_a_rank_without_a_prostate_neither_hangs_nor_drifts(tmp_path: Path) -> None:
    if not torch.distributed.is_available():
        pytest.skip("this torch has no distributed package")
    store = tmp_path / "store"
    source = Path(__file__).parents[2] / "src"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(source)}
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(rank), str(store)], env=environment, stderr=subprocess.PIPE
        )
        for rank in range(2)
    ]
    try:
        errors = [worker.communicate(timeout=600)[1].decode() for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert [worker.returncode for worker in workers] == [0, 0], "\n".join(errors)
    one, two = (torch.load(f"{store}.{rank}.pt", weights_only=True) for rank in range(2))
    for kind in one:
        assert one[kind]["moved"] > 0
        assert all(torch.equal(a, b) for a, b in zip(one[kind]["weights"], two[kind]["weights"], strict=True))
