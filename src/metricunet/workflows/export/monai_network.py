"""What a bundle of MONAI runs of this package: both stages as one network, from a scan to its label map.

The configuration of every bundle names these classes, so they keep their names and arguments.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from metricunet.errors import InputError
from metricunet.files.images import volume_of_array
from metricunet.files.model import card_of
from metricunet.files.nifti import RAS_TO_LPS
from metricunet.inference.predictor import LoadedModel
from metricunet.inference.reruns import MOST_RERUNS
from metricunet.inference.segmenter import Segmenter
from metricunet.networks import build_network
from metricunet.stages.network_input import Precision
from metricunet.volume import Geometry


class TwoStageNetwork(nn.Module):
    """A model of this package as one network: HU of whole scans in, label maps out, in inference alone.

    Args:
        card: path of the model's card, as JSON.
        precision: `auto`, `bf16` or `fp32`.
        reruns: how often stage 2 may look again, elsewhere or farther, where the target reaches its crop's edge.

    Raises:
        InputError: a card that is damaged.
    """

    def __init__(self, card: str | Path, precision: Precision = "auto", reruns: int = MOST_RERUNS) -> None:
        super().__init__()
        path = Path(card)
        self.card = card_of(path, json.loads(path.read_text(encoding="utf-8")))
        self.precision, self.reruns = precision, reruns
        self.locate = build_network(**self.card.locate.network)
        self.segment = build_network(**self.card.segment.network)
        self.organs = None if self.card.organs is None else build_network(**self.card.organs.network)

    @torch.inference_mode()
    def forward(self, images: Tensor) -> Tensor:
        """Segment scans.

        Args:
            images: HU [batch, 1, x, y, z], MONAI's `MetaTensor`, whose affines map to RAS+ millimetres.

        Returns:
            Label values of the card [batch, 1, x, y, z]; all 0 where the target was not found.

        Raises:
            InputError: more than one channel, or images that do not say where they lie.
        """
        affines = getattr(images, "affine", None)
        if images.dim() != 5 or images.shape[1] != 1 or affines is None:
            raise InputError(
                f"the images have shape {tuple(images.shape)} and {'no' if affines is None else 'an'} affine; "
                "expected [batch, 1, x, y, z] with the affines that MONAI's LoadImage leaves"
            )
        affines = torch.as_tensor(affines, dtype=torch.float64, device="cpu").reshape(-1, 4, 4)
        loaded = LoadedModel(self.card, self.locate, self.segment, self.organs, self.precision)
        segmenter = Segmenter([Path("bundle")], [loaded], images.device, self.reruns)
        found = [
            _segmented(segmenter, image[0].cpu().numpy(), affine.numpy())
            for image, affine in zip(torch.as_tensor(images), affines.expand(len(images), 4, 4), strict=True)
        ]
        return torch.from_numpy(np.stack(found))[:, None].to(images.device)


def _segmented(segmenter: Segmenter, hu: np.ndarray[Any, Any], affine: np.ndarray[Any, Any]) -> Any:
    """Return the label map of one scan, its axes as the scan's."""
    labels = segmenter.predict(volume_of_array(hu, affine, "the scan")).labels
    if labels is None:
        return np.zeros(hu.shape, dtype=np.uint8)
    x, y, z = hu.shape
    return np.ascontiguousarray(labels.reordered_like(Geometry((x, y, z), RAS_TO_LPS @ affine)).array)


class BundleEvaluator:
    """Segments what a loader gives, one batch after the other, and hands it to the postprocessing.

    It stands where bundles have an evaluator of Ignite, which nothing here needs.

    Args:
        dataloader: yields batches with `image`.
        network: maps a batch of images to label maps.
        inferer: of MONAI, called with the images and the network.
        postprocessing: takes one item with `image` and `pred`.
    """

    def __init__(
        self,
        dataloader: Iterable[dict[str, Any]],
        network: nn.Module,
        inferer: Callable[[Tensor, nn.Module], Tensor],
        postprocessing: Callable[[dict[str, Any]], Any],
    ) -> None:
        self.dataloader, self.network, self.inferer = dataloader, network, inferer
        self.postprocessing = postprocessing

    def run(self) -> int:
        """Segment all of it, and return how many scans it were."""
        from monai.data.meta_tensor import MetaTensor
        from monai.data.utils import decollate_batch

        done = 0
        self.network.eval()
        device = next(self.network.parameters()).device
        for batch in self.dataloader:
            images = batch["image"].to(device)
            found = self.inferer(images, self.network)
            pairs = zip(decollate_batch(images), torch.as_tensor(found), strict=True)
            for image, labels in pairs:
                self.postprocessing({"image": image, "pred": MetaTensor(labels, meta=image.meta)})
                done += 1
        return done
