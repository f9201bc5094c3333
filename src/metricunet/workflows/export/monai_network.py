"""What a bundle of MONAI runs of this package: both stages as one network, from a scan to its label map.

The configuration of every bundle names these classes, so they keep their names and arguments.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import SequentialSampler

from metricunet.cohort.case import refuse_no_hu
from metricunet.errors import InputError, told
from metricunet.files.images import volume_of_array
from metricunet.files.model import card_of
from metricunet.files.nifti import RAS_TO_LPS, is_nifti, stated_grid
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
            InputError: more than one channel, images that do not say where they lie, or values that are no HU.
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
    scan = volume_of_array(hu, affine, "the scan")
    refuse_no_hu(scan, "the scan")
    labels = segmenter.predict(scan).labels
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
        """Segment all of it, and return how many scans it were. One that cannot be segmented costs no other.

        Raises:
            InputError: when all others are done, naming the scans that were not segmented, and why; or there is
                none.
        """
        from monai.data.meta_tensor import MetaTensor
        from monai.data.utils import decollate_batch

        done = 0
        failed: list[str] = []
        named: dict[str, str] = {}
        self.network.eval()
        device = next(self.network.parameters()).device
        for batch in _loaded(self.dataloader, failed):
            names = [_name(image) for image in decollate_batch(batch["image"])]
            try:
                for name in names:
                    _check_stated(name)
                    _check_own_name(name, named)
                images = batch["image"].to(device)
                found = self.inferer(images, self.network)
                for image, labels in zip(decollate_batch(images), torch.as_tensor(found), strict=True):
                    self.postprocessing({"image": image, "pred": MetaTensor(labels, meta=image.meta)})
                    done += 1
            except Exception as error:  # whatever it is, it costs these scans alone
                failed.append(f"{', '.join(names)}: {told(error)}")
        if failed:
            raise InputError(f"segmented: {done}; not segmented: {len(failed)}: {'; '.join(failed)}")
        if not done:
            raise InputError("there is no scan; expected NIfTI files (.nii, .nii.gz) in the folder dataset_dir")
        return done


def _loaded(loader: Iterable[dict[str, Any]], failed: list[str]) -> Iterator[dict[str, Any]]:
    """Yield the batches that a loader gives, and note why it could not load others; it goes on after them."""
    files, batches = _files_in_order(loader), iter(loader)
    for number in count():
        try:
            batch = next(batches)
        except StopIteration:
            return
        except Exception as error:
            cause: BaseException = error
            while cause.__cause__ is not None:  # what MONAI raised of it says which of its transforms it was
                cause = cause.__cause__
            name = files[number] if number < len(files) else "a scan"
            failed.append(f"{name}: cannot be loaded: {told(cause)}")
        else:
            yield batch


def _files_in_order(loader: Any) -> list[str]:
    """Return the files that a loader gives one after the other; none where that is not known."""
    one_by_one = isinstance(getattr(loader, "sampler", None), SequentialSampler) and loader.batch_size == 1
    return [str(item["image"]) for item in loader.dataset.data] if one_by_one else []


def _name(image: Any) -> str:
    """Return the file of an image, as MONAI has noted it."""
    return str(image.meta.get("filename_or_obj", "a scan"))


def _check_own_name(name: str, named: dict[str, str]) -> None:
    """Refuse a scan whose label map would replace another one's: MONAI names it by what is before .nii or .nii.gz.

    Raises:
        InputError: it names the other scan.
    """
    other = named.setdefault(Path(name).name.removesuffix(".gz").removesuffix(".nii"), name)
    if other != name:
        raise InputError(f"its label map would have the name of that of {Path(other).name}; rename one of the two")


def _check_stated(name: str) -> None:
    """Refuse a file that does not say where it lies, or says it twice and differently: MONAI takes any of it.

    Raises:
        InputError: as `metricunet.files.nifti.read_nifti`, of what the header states.
    """
    path = Path(name)
    if is_nifti(path) and path.is_file():
        stated_grid("the scan", nib.load(path))
