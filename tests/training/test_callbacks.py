"""What a training leaves behind while it runs."""

from __future__ import annotations

from pathlib import Path

import torch

from metricunet.training.callbacks import MovableCheckpoint


def test_a_run_whose_folder_has_moved_still_knows_its_best_weights(tmp_path: Path) -> None:
    before = MovableCheckpoint(tmp_path / "old", monitor="val_dice", mode="max")
    before.best_model_path = before.kth_best_model_path = str(tmp_path / "old" / "segment-best.ckpt")
    before.best_model_score = torch.tensor(0.87)
    before.best_k_models = {before.best_model_path: before.best_model_score}
    before.last_model_path = str(tmp_path / "old" / "segment-last.ckpt")
    after = MovableCheckpoint(tmp_path / "new", monitor="val_dice", mode="max")
    after.load_state_dict(before.state_dict())
    best = str(tmp_path / "new" / "segment-best.ckpt")
    assert after.best_model_path == after.kth_best_model_path == best
    assert after.best_model_score == 0.87
    assert after.best_k_models == {best: 0.87}
    assert after.last_model_path == str(tmp_path / "new" / "segment-last.ckpt")
