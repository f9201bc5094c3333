"""`Model`, `load_model` and `Result`: what segments scans, and what comes of it."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from metricunet.api.plain import Paths, in_one_line, listed, several
from metricunet.api.save import write_result
from metricunet.api.scan import Scan, load_scan
from metricunet.errors import InputError
from metricunet.evaluation.figures import draw_overlay
from metricunet.evaluation.picture import Drawn, Picture, draw_picture
from metricunet.files.rtstruct.outlines import Holes, Outline
from metricunet.inference.case_files import FORMATS, provenance_of
from metricunet.inference.inputs import check_models
from metricunet.inference.models import chosen_models, models_at, warnings_of
from metricunet.inference.reruns import MOST_RERUNS
from metricunet.inference.runtimes import open_predictor
from metricunet.inference.structure_set import COLOURS, ContourOptions
from metricunet.quality.prediction import Prediction
from metricunet.quality.verdict import QualityReport, judge
from metricunet.volume import Volume

if TYPE_CHECKING:
    from metricunet.files.model import ModelCard
    from metricunet.inference.segmenter import Segmenter


class Model:
    """A model file, or several whose probabilities are averaged, ready to segment scans. See `load_model`.

    Attributes:
        paths: The model files lie there.
        predictor: It does the computing.
        provenance: Results depend on this beside the scan: the hash of the files, the version, the reruns.
    """

    def __init__(self, paths: tuple[Path, ...], predictor: Segmenter) -> None:
        self.paths, self.predictor = paths, predictor
        self.provenance = provenance_of(paths, predictor.reruns, None)

    @property
    def card(self) -> ModelCard:
        """What the first model file says of itself."""
        return self.predictor.card

    @property
    def structures(self) -> tuple[str, ...]:
        """Names of the structures that it segments; `target` is one of them."""
        return tuple(self.card.labels)

    @property
    def target(self) -> str:
        """The structure that it looks for first, around which its crop moves and grows."""
        return self.card.target

    def __repr__(self) -> str:
        first = self.paths[0].name
        files = first if len(self.paths) == 1 else f"{first} and {len(self.paths) - 1} more"
        trained = ", trained on synthetic scans" if self.predictor.ensemble.synthetic else ""
        return f"Model({files}: {', '.join(self.structures)}{trained}, on {self.predictor.device})"

    @in_one_line
    def predict(self, scan: object) -> Result:
        """Segment a scan, and judge the result.

        Args:
            scan: It is a `Scan`, or anything that `load_scan` takes without further arguments.

        Raises:
            InputError: The scan cannot be used; see `load_scan`.
        """
        loaded = load_scan(scan)
        began = time.perf_counter()
        prediction = self.predictor.predict(loaded.volume)
        quality = judge(loaded.name, loaded.volume, prediction, loaded.notes, loaded.patient_sex)
        return Result(loaded, self, prediction, quality, time.perf_counter() - began)


@in_one_line
def load_model(
    models: Paths | None = None,
    *,
    device: str = "auto",
    reruns: int = MOST_RERUNS,
    provider: str | None = None,
) -> Model:
    """Load a model to segment scans with.

    Args:
        models: This is a model file or a run folder, str or Path, or the folder of an exported model, which needs
            no torch; or several of a kind, whose probabilities are averaged. By default these are the files that
            the environment variable METRICUNET_MODEL names, separated as in PATH, else the model that is shipped
            with the package, which "base" names, too, and which gives a `UserWarning`.
        device: It computes: `auto` (a CUDA GPU where there is one; the CPU for an exported model), `cpu`, `cuda`
            or `cuda:N`, likewise `gpu` or `gpu:N`, or `mps` (the GPU of an Apple machine).
        reruns: A scan may be segmented again as often as this, elsewhere or farther, where the target reaches the
            edge of what was looked at.
        provider: This computes an exported model: `cpu`, `cuda` or `openvino`; by default what suits the device.

    Raises:
        InputError: There is no model file, one that is damaged, or models of different structures, or the device
            is not there.
    """
    paths = chosen_files(models)
    return Model(paths, opened_predictor(paths, device, reruns, provider))


@dataclass(frozen=True, eq=False, repr=False)
class Result:
    """A segmented scan: masks and probabilities on the scan's own grid, and a verdict.

    Attributes:
        scan: This was segmented.
        model: This segmented it.
        prediction: This is what came out, with all that is known of how.
        quality: It holds the verdict (`pass`, `review` or `fail`), its `reasons`, and the numbers that it is made
            of.
        seconds: It took so long to segment and judge the scan.
    """

    scan: Scan
    model: Model
    prediction: Prediction = field(repr=False)
    quality: QualityReport
    seconds: float = 0.0

    @property
    def is_absent(self) -> bool:
        """Whether the target was not found in the scan: by stage 1, or by stage 2 where stage 1 suspected it."""
        return self.model.target not in self.prediction.masks

    @cached_property
    def labels(self) -> Volume:
        """The label map: 0 for the background, each structure by its value in `model.card.labels`.

        All is 0 where the target was not found.
        """
        found = self.prediction.labels
        volume = self.scan.volume
        return volume.with_array(np.zeros(volume.array.shape, dtype=np.uint8)) if found is None else found

    def mask(self, structure: str | None = None) -> Volume:
        """Return the mask of a structure: bool, on the scan's own grid. All is False where it was not found.

        Args:
            structure: It is named as in the model; by default it is the model's target.

        Raises:
            InputError: The model has no such structure.
        """
        return self.prediction.mask(self._named(structure))

    def probability(self, structure: str | None = None) -> Volume:
        """Return the probability of a structure: float32, 0 to 1, on the scan's own grid.

        It is what the networks say, averaged over the models. Stage 2 looks at a box around the target alone, the
        organs' network at a larger one; outside its box a structure's probability is 0, and all is 0 where the
        target was not found. Separate pieces that were left out of a mask still have theirs.

        Args:
            structure: It is named as in the model; by default it is the model's target.

        Raises:
            InputError: The model has no such structure.
        """
        name = self._named(structure)
        return self.prediction.probability_map(name)

    def volume_ml(self, structure: str | None = None) -> float:
        """Return the volume of a structure's mask in millilitres; 0 where it was not found.

        Args:
            structure: It is named as in the model; by default it is the model's target.

        Raises:
            InputError: The model has no such structure.
        """
        mask = self.mask(structure)
        return int(np.count_nonzero(mask.array)) * mask.geometry.voxel_volume_ml

    def plot(self, structure: str | None = None) -> Picture:
        """Draw the scan in three planes through a structure's centre, with the contours of all structures.

        The picture shows itself at the end of a notebook's cell; `save("case.svg")` and `save("case.html")`
        write it. Display is radiological: the patient's right is on the viewer's left. Where the target was not
        found, the planes meet in the middle of the scan, and the picture says so.

        Args:
            structure: It is named as in the model; by default it is the model's target.

        Raises:
            InputError: The model has no such structure.
        """
        name, card = self._named(structure), self.model.card
        values = {label: Drawn(value, _colour(k)) for k, (label, value) in enumerate(card.labels.items())}
        centre_mm = self.prediction.localisation.centre_mm
        overlay = draw_overlay(
            self.scan.name,
            name,
            card.labels[name],
            self.labels,
            None,
            self.scan.volume,
            self.scan.volume.geometry.centre_mm if centre_mm is None else centre_mm,
        )
        remark = f"{card.target.replace('_', ' ')} not found: no contour" if self.is_absent else ""
        return draw_picture(overlay, self._in_words(name), values, self.quality.reasons, remark)

    @in_one_line
    def save(
        self,
        folder: str | os.PathLike[str],
        formats: str | Sequence[str] = ("nifti",),
        *,
        structures: str | Sequence[str] | None = None,
        contours: Outline = "surface",
        holes: Holes = "keep",
        smooth: bool = False,
        add_to: str | os.PathLike[str] | None = None,
        overwrite: bool = False,
        draw_anyway: bool = False,
    ) -> tuple[Path, ...]:
        """Write the files that `metricunet predict` writes, and return their paths.

        These are NAME.nii.gz, NAME.rtstruct.dcm and so on, as asked for, NAME.quality.json with the verdict, and
        run.json. Where the target was not found there are the verdict and the page alone.
        The mask of a NIfTI file has the very order and orientation of that file's axes. Files of an earlier
        prediction of this scan are replaced while they are as they were written; a mask that somebody corrected is
        not, nor is the prediction of another scan of this name.

        Args:
            folder: The files are written into it; it is made where it is missing.
            formats: They are one or several of `nifti`, `probability`, `probability_uint8`, `page` (one HTML file
                to look at in a browser), and `rtstruct`, `seg` and `probability_seg`, which need a DICOM series.
            structures: These structures of the model alone are written; by default all are. The verdict is that of
                all, but it is `fail` where none of these was found.
            contours: Those of a structure set run where the probability is one half (`surface`) or along voxels'
                edges (`voxel`).
            holes: Those in a structure set are kept as outlines of their own (`keep`), filled (`close`), or joined
                to the outline around them (`keyhole`).
            smooth: The contours of a structure set are smoothed, no point by more than 0.5 mm.
            add_to: The new structures are added to this structure set of the same scan.
            overwrite: Files of others that have an output's name are replaced, and so is the prediction of another
                scan of this name. Inputs are never replaced.
            draw_anyway: Structure sets and segmentations are written even where `quality.doubt` is `strong` and
                the model was trained on synthetic scans, or descends from one that was, without validation on
                patients. Otherwise they are withheld then, with a `UserWarning`.

        Raises:
            InputError: The scan cannot be written in a format, the model has no such structure, or an output has
                the name of an input or of somebody else's file. Nothing is written then.
        """
        wanted, chosen = several(formats), None if structures is None else several(structures)
        options = ContourOptions(contours, holes, smooth, None if add_to is None else Path(add_to))
        if options.add_to is not None and not options.add_to.is_file():
            raise InputError(f"{options.add_to}: no such file; expected the structure set to add to")
        if not wanted:
            raise InputError(f"formats names none; expected one or several of {', '.join(FORMATS)}")
        return write_result(
            Path(folder),
            self.scan,
            self.prediction,
            self.quality,
            self.seconds,
            models=self.model.paths,
            predictor=self.model.predictor,
            provenance=self.model.provenance,
            formats=wanted,
            structures=chosen,
            options=options,
            overwrite=overwrite,
            draw_anyway=draw_anyway,
        )

    def _named(self, structure: str | None) -> str:
        name = self.model.target if structure is None else structure
        if name not in self.model.structures:
            raise InputError(f"the model has no structure {name!r}; it has {', '.join(self.model.structures)}")
        return name

    def _in_words(self, structure: str) -> str:
        found = "not found" if self.is_absent else f"{self.volume_ml(structure):.1f} mL"
        return f"{self.scan.name}: {structure.replace('_', ' ')} {found}, verdict {self.quality.verdict}"

    def __repr__(self) -> str:
        reasons = len(self.quality.reasons)
        why = f" for {reasons} reason{'s' if reasons > 1 else ''}" if reasons else ""
        return f"Result({self._in_words(self.model.target)}{why})"


def _colour(number: int) -> str:
    return "#" + "".join(f"{part:02x}" for part in COLOURS[number % len(COLOURS)])


def opened_predictor(paths: tuple[Path, ...], device: str, reruns: int, provider: str | None = None) -> Segmenter:
    """Return what computes these models, once it is known that they can be computed so."""
    check_models(paths, reruns)
    return open_predictor(paths, device, provider=provider, reruns=reruns)


def chosen_files(models: Paths | None) -> tuple[Path, ...]:
    """Return the model files to segment with, and warn of what has to be said of them."""
    paths = chosen_models() if models is None else tuple(f for path in listed(models) for f in models_at(path))
    for warning in warnings_of(paths):
        warnings.warn(warning, stacklevel=4)  # at the line that called this package
    return paths
