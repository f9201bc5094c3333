"""The checkpoints of a run: replaced epoch by epoch, and only while they are as the run left them."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

from metricunet.files.own import check_rewritten, rewritten

#: Beside the checkpoints: the hashes of each as it is, and as it was before.
HASHES = "sha256.json"
STAGES, KINDS = ("locate", "segment", "organs"), ("last", "best")


def written_checkpoint(path: Path) -> AbstractContextManager[Path]:
    """Return a block that yields a temporary path to write a checkpoint to; as it ends, its hash is stated first.

    Raises:
        InputError: if the folder cannot be written or the disk is full.
    """
    return rewritten(path, path.with_name(HASHES))


def check_checkpoints(folder: Path) -> None:
    """Refuse to resume a run whose checkpoints somebody put there or changed: resuming replaces them.

    Args:
        folder: folder of the checkpoints.

    Raises:
        InputError: it names the first one that is not as the run left it.
    """
    check_rewritten([folder / f"{stage}-{kind}.ckpt" for stage in STAGES for kind in KINDS], folder / HASHES)
