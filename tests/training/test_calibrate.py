"""Calibration on validation cases: what training stores, and the same for a model that has none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from metricunet.cohort.prepare import PreparedCase
from metricunet.errors import InputError
from metricunet.files.model import Ancestor, read_card, read_model, write_model
from metricunet.networks import Network, NetworkOutput
from metricunet.specs import SegmentSpec
from metricunet.structures import IGNORE_CLASS
from metricunet.training.calibrate import calibrate, calibration, mm_scale
from metricunet.volume import Geometry, Volume

SPACING = (2.0, 1.0, 1.0)
STAGE = SegmentSpec({"in_channels": 1}, SPACING, (32, 64, 64), (-1000.0, 1000.0))


class Reader(Network):
    """A network whose logit of the target is what the image says, times a constant."""

    in_channels, spatial_dims, divisor = 1, 2, 1

    def __init__(self, times: float) -> None:
        super().__init__()
        self.times = torch.nn.Parameter(torch.tensor(times))

    def forward_with_maps(self, images: torch.Tensor) -> NetworkOutput:
        # HU of -1000 to 1000 are -1 to 1 when they come here.
        logits = torch.cat([torch.zeros_like(images), images * 20 * self.times], dim=1)
        return NetworkOutput(logits, [images], images)

    def encode(self, images: torch.Tensor) -> list[torch.Tensor]:
        return [images]

    @property
    def encoder_parts(self) -> list[torch.nn.Module]:
        return []


def case(seed: int, shift_mm: float, ignored: bool = False) -> PreparedCase:
    """A ball whose radius is logistic about 18 mm with scale 1.5 mm, as the image says, and lies at a known place.

    Args:
        seed: of the name alone.
        shift_mm: true radius beyond 18 mm.
        ignored: whether the upper half was contoured by nobody.
    """
    geometry = Geometry.from_parts((36, 72, 72), SPACING)
    axes = [(np.arange(n) - (n - 1) / 2) * step for n, step in zip(geometry.shape, SPACING, strict=True)]
    s, r, c = np.meshgrid(*axes, indexing="ij")
    distance = np.sqrt(s**2 + r**2 + c**2)
    hu = np.clip((18 - distance) / 1.5 * 50, -1000, 1000)
    labels = (distance < 18 + shift_mm).astype(np.uint8)
    if ignored:
        labels[18:] = IGNORE_CLASS
    image, classes = Volume(np.rint(hu).astype(np.int16), geometry), Volume(labels, geometry)
    return PreparedCase(f"case_{seed}", image, classes, image, classes, {}, "")


def logistic_cases(n: int, ignored: bool = False) -> list[PreparedCase]:
    """Cases whose radii are evenly spread over the distribution that the image states."""
    share = (np.arange(n) + 0.5) / n
    return [case(k, 1.5 * float(np.log(u / (1 - u))), ignored) for k, u in enumerate(share)]


@pytest.mark.parametrize("times", [1.0, 3.0])
@pytest.mark.parametrize("ignored", [False, True])
def test_a_network_that_overstates_is_found_out(times: float, ignored: bool) -> None:
    found = calibration(Reader(times), STAGE, logistic_cases(24, ignored), 1, "fp32")
    assert found is not None
    assert found.temperature == pytest.approx(times, rel=0.12)
    assert found.cases == 24
    # The mean distance of a logistic variable from its middle is 2 ln 2 scales; every case expects the same.
    low, high = found.boundary_error_mm
    assert low == pytest.approx(high)
    assert 1 < found.mm_scale < 1.35
    if not ignored:
        assert high == pytest.approx(found.mm_scale * 1.5 * 2 * np.log(2), rel=0.06)


def test_cases_without_the_target_are_passed_over() -> None:
    full = logistic_cases(3)
    empty = [replace(full[0], fine=None, fine_labels=None), replace(full[0], fine=blank(full[0]))]
    assert calibration(Reader(1.0), STAGE, empty, 1, "fp32") is None
    one = calibration(Reader(1.0), STAGE, [*full, *empty], 1, "fp32")
    assert one == calibration(Reader(1.0), STAGE, full, 1, "fp32")


def test_a_mask_in_what_nobody_contoured_is_passed_over() -> None:
    full = logistic_cases(3)
    assert full[0].fine_labels is not None
    nobodys = full[0].fine_labels.with_array(np.full_like(full[0].fine_labels.array, IGNORE_CLASS))
    hidden = replace(full[0], fine_labels=nobodys)
    assert calibration(Reader(1.0), STAGE, [hidden], 1, "fp32") is None
    one = calibration(Reader(1.0), STAGE, [*full, hidden], 1, "fp32")
    assert one == calibration(Reader(1.0), STAGE, full, 1, "fp32")


def blank(case: PreparedCase) -> Volume:
    assert case.fine is not None
    return case.fine.with_array(np.full_like(case.fine.array, -1000))


def test_the_scale_by_hand() -> None:
    """Ratios without one case: 6/2, 4/2 and 2/2, about 2; their jackknife standard error is sqrt(2/3 * 2)."""
    expected, true = np.array([1.0, 1.0, 1.0]), np.array([0.0, 2.0, 4.0])
    assert mm_scale(expected, true) == pytest.approx(2 + np.sqrt(2 / 3 * 2))
    assert mm_scale(np.array([2.0]), np.array([1.0])) == 1
    assert mm_scale(np.array([1.0]), np.array([1.7])) == pytest.approx(1.7)


def test_a_model_without_calibration_gets_the_one_that_training_gives(
    tiny_cohort: Path, tiny_model: Path, tmp_path: Path
) -> None:
    card, weights = read_model(tiny_model)
    write_model(tmp_path / "old.safetensors", replace(card, calibration=None), weights)
    again = calibrate(tmp_path / "old.safetensors", tiny_cohort, tmp_path / "new.safetensors", device="cpu")
    found, wanted = read_card(again).calibration, card.calibration
    assert found is not None
    assert wanted is not None
    assert found.temperature == pytest.approx(wanted.temperature, rel=1e-3)
    assert found.mm_scale == pytest.approx(wanted.mm_scale, rel=1e-3)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in read_model(again)[1].items())


def test_the_card_lists_the_cases_of_a_calibration_among_those_that_were_validated_on(
    tiny_cohort: Path, tiny_model: Path, tmp_path: Path
) -> None:
    """Else a card could get scores on the very scans that its calibration was fitted on."""
    card, weights = read_model(tiny_model)
    assert card.validation_cases
    for known in ((), ("a" * 64,)):
        write_model(tmp_path / "old.safetensors", replace(card, validation_cases=known), weights)
        new = tmp_path / f"new_{len(known)}.safetensors"
        calibrate(tmp_path / "old.safetensors", tiny_cohort, new, device="cpu")
        assert read_card(new).validation_cases == tuple(sorted({*known, *card.validation_cases}))


def test_other_structures_are_refused(tiny_cohort: Path, tiny_model: Path, tmp_path: Path) -> None:
    card, weights = read_model(tiny_model)
    other = replace(card, labels={"bladder": 1}, tg263={"bladder": "Bladder"}, target="bladder")
    write_model(tmp_path / "other.safetensors", other, weights)
    with pytest.raises(InputError, match=r"has the structures prostate; expected those of .*bladder"):
        calibrate(tmp_path / "other.safetensors", tiny_cohort, tmp_path / "new.safetensors", device="cpu")
    with pytest.raises(InputError, match="no validation case"):
        calibrate(tiny_model, tiny_cohort, tmp_path / "new.safetensors", fold="all", device="cpu")
    assert not (tmp_path / "new.safetensors").exists()


def test_cases_that_the_model_was_trained_on_are_refused(
    tiny_cohort: Path, tiny_model: Path, tmp_path: Path
) -> None:
    """Their boundaries are the ones that it learned, so too small an error would be expected."""
    with pytest.raises(InputError, match=r"was trained on case_0\d .* name the fold that it was validated on"):
        calibrate(tiny_model, tiny_cohort, tmp_path / "new.safetensors", fold=1, device="cpu")
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="is there already"):
        calibrate(tiny_model, tiny_cohort, tmp_path / "notes.txt", device="cpu")
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_cases_that_an_ancestor_was_trained_on_are_refused(
    tiny_cohort: Path, tiny_model: Path, tmp_path: Path
) -> None:
    card, weights = read_model(tiny_model)
    tuned = replace(card, calibration=None, cases=(), lineage=(Ancestor("first", "a" * 64, False, card.cases),))
    write_model(tmp_path / "tuned.safetensors", tuned, weights)
    with pytest.raises(InputError, match=r"descends from first, which was trained on case_0\d .*without them"):
        calibrate(tmp_path / "tuned.safetensors", tiny_cohort, tmp_path / "new.safetensors", fold=1, device="cpu")
    assert not (tmp_path / "new.safetensors").exists()
