"""Trainers of nnU-Net with the metric branch. Needs nnU-Net 2.8: `pip install "metricunet[nnunet]"`.

Network, loss, augmentation, schedule and prediction are nnU-Net's. The branch reads maps of its decoder through
hooks, is trained by its optimiser, and is left out of what plain nnU-Net reads of a checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from metricunet.errors import InputError
from metricunet.files.atomic import written_whole
from metricunet.metric.gathering import processes
from metricunet.nnunet.branched import BranchedLoss, Taps, tapped_modules
from metricunet.nnunet.settings import VARIABLE, changed_settings, check_shares, read_settings
from metricunet.structures import IGNORE_CLASS
from metricunet.training.config import MetricConfig
from metricunet.training.voxel_branch import voxel_branch

try:
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        'nnU-Net is not installed; run: pip install "metricunet[nnunet]"', name=error.name
    ) from error

if TYPE_CHECKING:
    Trainer = nnUNetTrainer
else:
    Trainer = object

#: Where a checkpoint has what plain nnU-Net does not know, and does not look for.
KEY = "metricunet"
#: Begins the names of the branch's numbers in nnU-Net's logger.
PREFIX = "metric_"


class VoxelMetricMixin(Trainer):  # type: ignore[misc, valid-type]
    """Adds the metric branch to a trainer of nnU-Net: `class Mine(VoxelMetricMixin, nnUNetTrainerDA5): ...`.

    The trainer must predict by a U-Net with nnU-Net's decoder and take its loss from `self.loss(output, target)`.

    Attributes:
        metric_mode: `online`, the method; or `control`, cross-entropy on the same voxels.
        metric: settings of the branch.
        branch: the loss on sampled voxels; None before the trainer is initialized.
    """

    metric_mode: Literal["online", "control"] = "online"

    def __init__(
        self,
        plans: dict[str, Any],
        configuration: str,
        fold: int,
        dataset_json: dict[str, Any],
        device: torch.device = torch.device("cuda"),  # noqa: B008 nnU-Net reads this signature
    ) -> None:
        self.metric = read_settings(self.metric_mode)
        self.branch: nn.Module | None = None
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.logger.update_config({KEY: self.metric.model_dump(mode="json")})

    def configure_optimizers(self, *arguments: Any, **named: Any) -> Any:
        """Let nnU-Net make its optimiser, and have it train the branch, too."""
        configured = super().configure_optimizers(*arguments, **named)
        if self.branch is None:
            self._add_branch()
        # To the last group, so that any schedule of nnU-Net's fits, and a checkpoint is easily told apart.
        configured[0].param_groups[-1]["params"] += self._branch_parameters()
        return configured

    def _add_branch(self) -> None:
        if self.metric.weight_as == "gradient_share" and self._do_i_compile():
            raise InputError(
                f"setting metric.weight_as (from {VARIABLE}) is gradient_share, which cannot look into a compiled "
                "network; set nnUNet_compile=f, or use factor"
            )
        check_shares(self.metric, self.configuration_manager.batch_size, processes())
        network: Any = getattr(self.network, "_orig_mod", self.network)
        modules, channels = tapped_modules(network, self.metric.taps)
        heads = self.label_manager.num_segmentation_heads
        classes = heads + 1 if self.label_manager.has_regions else heads
        self.branch = voxel_branch(self.metric, channels, classes, IGNORE_CLASS).to(self.device)
        self._taps = Taps(modules)

    def _branch_parameters(self) -> list[nn.Parameter]:
        assert self.branch is not None
        return list(self.branch.parameters())

    def _build_loss(self) -> BranchedLoss:
        assert self.branch is not None
        labels = self.label_manager
        branch = DistributedDataParallel(self.branch, device_ids=[self.local_rank]) if self.is_ddp else self.branch
        axes = len(self.configuration_manager.patch_size)
        return BranchedLoss(
            super()._build_loss(),
            branch,
            self._taps,
            self.metric,
            self.configuration_manager.spacing[-axes:],
            labels.num_segmentation_heads if labels.has_regions else 0,
            labels.ignore_label,
        ).to(self.device)

    def on_train_start(self) -> None:
        """Begin, and say with which settings."""
        super().on_train_start()
        usual = MetricConfig(mode=self.metric_mode)
        changed = [f"{name} {value}" for name, value in self.metric if value != getattr(usual, name)]
        said = ", ".join(changed) or "all at their defaults"
        self.print_to_log_file(f"metricunet: branch in mode {self.metric_mode}; settings: {said}")

    def on_train_epoch_start(self) -> None:
        """Turn the branch on."""
        super().on_train_epoch_start()
        self.loss.train()

    def on_validation_epoch_start(self) -> None:
        """Turn the branch off, so that the validation loss is nnU-Net's own."""
        super().on_validation_epoch_start()
        self.loss.eval()

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Take a step; its `loss` is nnU-Net's own, and the numbers of the branch stand beside it."""
        outputs: dict[str, Any] = super().train_step(batch)
        values = torch.stack([value.float() for value in self.loss.facts.values()]).cpu().numpy()
        facts = dict(zip(self.loss.facts, values, strict=True))
        return outputs | {"loss": facts.pop("segmentation")} | {PREFIX + name: one for name, one in facts.items()}

    def on_train_epoch_end(self, train_outputs: list[dict[str, Any]]) -> None:
        """Log the means of an epoch, those of the branch among them."""
        super().on_train_epoch_end(train_outputs)
        names = [name for name in train_outputs[0] if name.startswith(PREFIX)]
        means = {name: float(np.mean([one[name] for one in train_outputs])) for name in names}
        logged = self._logged()
        for name, mean in means.items():
            # An epoch that was trained without the branch has no number of it.
            logged.setdefault(name, [float("nan")] * self.current_epoch)
            self.logger.log(name, mean, self.current_epoch)
        said = ", ".join(f"{name.removeprefix(PREFIX)} {mean:.4f}" for name, mean in means.items())
        self.print_to_log_file(f"metric branch: {said}")

    def _logged(self) -> dict[str, list[Any]]:
        logged: dict[str, list[Any]] = self.logger.local_logger.my_fantastic_logging
        return logged

    def save_checkpoint(self, filename: str) -> None:
        """Write a checkpoint that is plain nnU-Net's, with the branch under a key of its own."""
        if self.local_rank != 0 or self.disable_checkpointing:
            super().save_checkpoint(filename)
            return
        with written_whole(Path(filename)) as temporary:
            super().save_checkpoint(str(temporary))
            content = torch.load(temporary, map_location="cpu", weights_only=False)
            content[KEY] = self._taken_out(content)
            torch.save(content, temporary)

    def _taken_out(self, content: dict[str, Any]) -> dict[str, Any]:
        """Take out of a checkpoint what plain nnU-Net does not know, and return it."""
        assert self.branch is not None
        group, states = content["optimizer_state"]["param_groups"][-1], content["optimizer_state"]["state"]
        ours = group["params"][-len(self._branch_parameters()) :]
        group["params"] = group["params"][: -len(ours)]
        logged = content["logging"]
        plain = self._plain_trainer()
        if plain is not None:
            content["trainer_name"] = plain.__name__
        return {
            "settings": self.metric.model_dump(mode="json"),
            "branch": {name: value.cpu() for name, value in self.branch.state_dict().items()},
            "share": None if self.loss.share is None else self.loss.share.state_dict(),
            "optimizer": [states.pop(number, {}) for number in ours],
            "updates": self.loss.updates,
            "logging": {name: logged.pop(name) for name in list(logged) if name.startswith(PREFIX)},
        }

    def _plain_trainer(self) -> Any:
        """Return the trainer that builds the same network without the branch; None where there is none."""
        for one in type(self).__mro__:
            if not issubclass(one, VoxelMetricMixin) and issubclass(one, nnUNetTrainer):
                plain: Any = one
                same = plain.build_network_architecture is type(self).build_network_architecture
                return plain if same else None
        return None

    def load_checkpoint(self, filename_or_checkpoint: str) -> None:
        """Take up a training where a checkpoint left it; one without the branch gets a new branch.

        Raises:
            InputError: the checkpoint was trained with other settings of the branch.
        """
        if not self.was_initialized:
            self.initialize()
        content = torch.load(filename_or_checkpoint, map_location="cpu", weights_only=False)
        ours = content.get(KEY)
        if ours is not None:
            self._refuse_other_settings(filename_or_checkpoint, ours["settings"])
        with self._without_branch():
            super().load_checkpoint(filename_or_checkpoint)
        if ours is None:
            self.print_to_log_file(f"metricunet: {filename_or_checkpoint} holds no branch; it begins anew")
            return
        assert self.branch is not None
        self.branch.load_state_dict(ours["branch"])
        if self.loss.share is not None:
            self.loss.share.load_state_dict(ours["share"])
        self.loss.updates = ours["updates"]
        self._logged().update(ours["logging"])
        for weights, state in zip(self._branch_parameters(), ours["optimizer"], strict=True):
            self.optimizer.state[weights] = {
                name: value.to(weights.device) if isinstance(value, torch.Tensor) else value
                for name, value in state.items()
            }

    def _refuse_other_settings(self, filename: str, before: dict[str, Any]) -> None:
        other = changed_settings(before, self.metric)
        if other:
            raise InputError(
                f"{filename}: was trained with other settings of the branch ({'; '.join(other)}); set {VARIABLE} "
                "as it was, or start a new training"
            )

    @contextmanager
    def _without_branch(self) -> Iterator[None]:
        """Hide the branch's weights from the optimiser, whose state in a checkpoint is of the network alone."""
        ours = self._branch_parameters()
        group = self.optimizer.param_groups[-1]
        group["params"] = group["params"][: -len(ours)]
        try:
            yield
        finally:
            self.optimizer.param_groups[-1]["params"] += ours


class nnUNetTrainerVoxelMetric(VoxelMetricMixin, nnUNetTrainer):  # type: ignore[misc]
    """nnU-Net's trainer with the metric branch."""


class nnUNetTrainerVoxelControl(VoxelMetricMixin, nnUNetTrainer):  # type: ignore[misc]
    """The control: the same voxels, heads and weight, but cross-entropy in place of triplets and pairs."""

    metric_mode = "control"
