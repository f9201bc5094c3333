"""The two-stage predictor on scans in any orientation, with one model and with several."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest

from metricunet.errors import InputError
from metricunet.files.model import Calibration, read_card, read_model, write_model
from metricunet.files.nifti import read_labels, read_nifti
from metricunet.inference.predictor import Predictor
from metricunet.inference.segmenter import Segmenter, StageModel
from metricunet.quality.verdict import judge
from metricunet.volume import Geometry, Volume


@pytest.fixture(scope="module")
def predictor(tiny_model: Path) -> Predictor:
    return Predictor([tiny_model], "cpu", "fp32")


@pytest.fixture(scope="module")
def unseen(tiny_cohort: Path) -> tuple[Volume, Volume]:
    folder = tiny_cohort
    return read_nifti(folder / "imagesTs" / "case_06_0000.nii.gz"), read_labels(
        folder / "labelsTs" / "case_06.nii.gz"
    )


def dice(a: Volume, b: Volume) -> float:
    x, y = a.array > 0, b.array > 0
    return 2 * float((x & y).sum()) / float(x.sum() + y.sum())


def test_an_unseen_scan(predictor: Predictor, unseen: tuple[Volume, Volume]) -> None:
    scan, reference = unseen
    found = predictor.predict(scan)
    assert found.localisation.status == "found"
    assert found.labels is not None
    assert found.labels.geometry is scan.geometry
    assert found.labels.array.dtype == np.uint8
    assert dice(found.labels, reference) > 0.8
    centre = reference.geometry.to_world(np.argwhere(reference.array).mean(axis=0))
    assert found.localisation.centre_mm is not None
    assert np.linalg.norm(found.localisation.centre_mm - centre) < 5


@pytest.mark.parametrize("axes", list(permutations(range(3))))
def test_storage_order_does_not_matter(
    predictor: Predictor, unseen: tuple[Volume, Volume], axes: tuple[int, int, int]
) -> None:
    """Only where voxels lie in the patient counts: any order and direction of axes gives the same voxels."""
    scan = unseen[0]
    straight = predictor.predict(scan).labels
    turned = predictor.predict(scan.reordered(axes, (True, False, True))).labels
    assert straight is not None
    assert turned is not None
    np.testing.assert_array_equal(turned.reordered_like(scan.geometry).array, straight.array)


def test_a_scan_without_the_target_is_absent(predictor: Predictor, tiny_cohort: Path) -> None:
    scan = read_nifti(tiny_cohort / "imagesTr" / "case_05_0000.nii.gz")
    found = predictor.predict(scan)
    assert (found.localisation.status, found.labels) == ("absent", None)
    quality = judge("case_05", scan, found)
    assert quality.verdict == "fail"
    assert "not found" in quality.reasons[0]
    assert quality.structures == {}


def test_the_average_of_a_model_with_itself_is_the_model(
    tiny_model: Path, predictor: Predictor, unseen: tuple[Volume, Volume]
) -> None:
    one = predictor.predict(unseen[0]).labels
    two = Predictor([tiny_model, tiny_model], "cpu", "fp32").predict(unseen[0]).labels
    assert one is not None
    assert two is not None
    np.testing.assert_array_equal(one.array, two.array)


def test_averaging_uses_every_model(
    tiny_model: Path, predictor: Predictor, unseen: tuple[Volume, Volume], tmp_path: Path
) -> None:
    """A second model whose stage 2 is certain of background everywhere outweighs the first one."""
    card, weights = read_model(tiny_model)
    weights = {k: v.clone() for k, v in weights.items()}
    weights["segment.classify.weight"].zero_()
    weights["segment.classify.bias"][:] = weights["segment.classify.bias"].new_tensor([50.0, -50.0])
    write_model(tmp_path / "blind.safetensors", card, weights)
    blind = Predictor([tmp_path / "blind.safetensors"], "cpu", "fp32")
    found = blind.predict(unseen[0])
    quality = judge("case_06", unseen[0], found)
    assert quality.verdict == "fail"
    assert "no voxel" in quality.reasons[0]
    one = predictor.predict(unseen[0]).labels
    both = Predictor([tiny_model, tmp_path / "blind.safetensors"], "cpu", "fp32").predict(unseen[0]).labels
    assert one is not None
    assert both is None, "nothing of the target is left, and so nothing at all"


def recalibrated(model: Path, output: Path, temperature: float) -> Path:
    card, weights = read_model(model)
    calibration = Calibration(temperature, 1.0, (0.1, 0.2), 3, {})
    write_model(output, replace(card, calibration=calibration), weights)
    return output


@pytest.mark.parametrize("temperature", [0.3, 4.0])
def test_the_temperature_changes_the_confidence_and_not_the_mask(
    tiny_model: Path, unseen: tuple[Volume, Volume], tmp_path: Path, temperature: float
) -> None:
    """With two classes and one model, on a grid other than the network's."""
    plain = Predictor([recalibrated(tiny_model, tmp_path / "one.safetensors", 1.0)], "cpu", "fp32")
    other = Predictor([recalibrated(tiny_model, tmp_path / "t.safetensors", temperature)], "cpu", "fp32")
    before, after = plain.predict(unseen[0]), other.predict(unseen[0])
    assert before.labels is not None
    assert after.labels is not None
    np.testing.assert_array_equal(after.labels.array, before.labels.array)
    assert before.boundary is not None
    assert after.boundary is not None
    assert (after.boundary.case_mm > before.boundary.case_mm) == (temperature > 1)


def test_each_model_has_its_own_temperature(
    tiny_model: Path, unseen: tuple[Volume, Volume], tmp_path: Path
) -> None:
    """The mean of two probabilities is as far from the common mask as the two are on average."""
    cold = recalibrated(tiny_model, tmp_path / "cold.safetensors", 0.5)
    warm = recalibrated(tiny_model, tmp_path / "warm.safetensors", 3.0)
    one, two, both = (
        Predictor(models, "cpu", "fp32").predict(unseen[0]).boundary for models in ([cold], [warm], [cold, warm])
    )
    assert one is not None
    assert two is not None
    assert both is not None
    assert both.case_mm == pytest.approx((one.case_mm + two.case_mm) / 2, rel=1e-4)
    assert both.case_mm > 1.2 * one.case_mm


def test_a_model_without_calibration_says_so(
    tiny_model: Path, unseen: tuple[Volume, Volume], tmp_path: Path
) -> None:
    card, weights = read_model(tiny_model)
    write_model(tmp_path / "old.safetensors", replace(card, calibration=None), weights)
    old = Predictor([tmp_path / "old.safetensors"], "cpu", "fp32")
    quality = judge("c", unseen[0], old.predict(unseen[0]))
    assert quality.boundary["calibrated"] is False
    assert quality.boundary["expected_error_mm"] > 0


def test_more_error_than_in_validation_is_a_reason(
    tiny_model: Path, unseen: tuple[Volume, Volume], tmp_path: Path
) -> None:
    doubtful = Predictor([recalibrated(tiny_model, tmp_path / "hot.safetensors", 8.0)], "cpu", "fp32")
    quality = judge("c", unseen[0], doubtful.predict(unseen[0]))
    assert any("0.1 to 0.2 mm were expected in the validation cases" in reason for reason in quality.reasons)
    assert quality.to_json()["boundary"]["validation_mm"] == [0.1, 0.2]


def test_models_of_other_structures_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    card, weights = read_model(tiny_model)
    other = replace(card, labels={"bladder": 1}, tg263={"bladder": "Bladder"}, target="bladder")
    write_model(tmp_path / "other.safetensors", other, weights)
    with pytest.raises(InputError, match="same structures"):
        Predictor([tiny_model, tmp_path / "other.safetensors"], "cpu")


def test_weights_must_fit_the_card(tiny_model: Path, tmp_path: Path) -> None:
    card, weights = read_model(tiny_model)
    weights.pop("segment.classify.bias")
    write_model(tmp_path / "m.safetensors", card, weights)
    with pytest.raises(InputError, match="stage segment do not fit"):
        Predictor([tmp_path / "m.safetensors"], "cpu")
    with pytest.raises(InputError, match="device must be auto"):
        Predictor([tiny_model], "tpu")


def test_bf16_agrees_with_fp32(tiny_model: Path, unseen: tuple[Volume, Volume]) -> None:
    masks = [Predictor([tiny_model], "cpu", p).predict(unseen[0]).labels for p in ("fp32", "bf16")]
    assert masks[0] is not None
    assert masks[1] is not None
    assert dice(masks[0], masks[1]) > 0.98


def test_reasons_of_the_verdict(predictor: Predictor, unseen: tuple[Volume, Volume]) -> None:
    scan = unseen[0]
    quality = judge("c", scan, predictor.predict(scan))
    assert quality.verdict == "review"
    assert quality.reasons[0].startswith("the model was trained on synthetic scans only")
    volume = quality.structures["prostate"]["volume_ml"]
    assert volume == pytest.approx(30, abs=12)
    # Cut the scan through the middle of the target: it touches the last slice.
    centre = scan.geometry.to_index(quality.structures["prostate"]["centre_mm"])
    cut = scan.crop((0, 0, 0), (round(float(centre[0])) + 1, *scan.array.shape[1:]))
    reasons = judge("c", cut, predictor.predict(cut)).reasons
    assert any("first or last slice" in reason for reason in reasons)
    # The same voxels called twice as large: volume and spacing leave what was seen in training.
    large = Volume(scan.array, Geometry.from_parts(scan.array.shape, (4, 6, 6)))
    reasons = judge("c", large, predictor.predict(large)).reasons
    assert any("pixel spacing of 6.00 mm" in reason for reason in reasons)


def test_a_target_at_the_edge_of_the_field(predictor: Predictor, unseen: tuple[Volume, Volume]) -> None:
    """The crop reaches far beyond the scan; what lies outside is air and gets no label."""
    scan, reference = unseen
    rows = np.flatnonzero(reference.array.any(axis=(0, 2)))
    cut = scan.crop((0, int(rows[0]) - 1, 0), (scan.array.shape[0], 30, scan.array.shape[2]))
    found = predictor.predict(cut)
    assert found.labels is not None
    assert found.labels.array.shape == cut.array.shape
    assert found.labels.array.any()


def test_models_of_the_same_structures_in_another_order_are_refused(tiny_model: Path) -> None:
    """A label's place is its class: averaged, the one's prostate would be mixed with the other's bladder."""
    labels = {"prostate": 1, "bladder": 2}
    card = replace(read_card(tiny_model), labels=labels, tg263=dict.fromkeys(labels, "Other"))
    other = replace(card, labels=dict(reversed(labels.items())))
    models = [cast(StageModel, SimpleNamespace(card=one)) for one in (card, card, other)]
    paths = [Path("one"), Path("two"), Path("three")]
    assert Segmenter(paths[:2], models[:2], None, 0).card.labels == labels
    with pytest.raises(InputError, match=r"three: segments .* in the same order"):
        Segmenter(paths, models, None, 0)


def test_a_model_is_read_without_torchs_compiler(tiny_model: Path) -> None:
    """To import it takes as long as to segment a scan does."""
    code = (
        "import sys; from pathlib import Path; from metricunet.inference.predictor import Predictor; "
        f"Predictor([Path({str(tiny_model)!r})], 'cpu'); "
        "print('sympy' in sys.modules, 'torch._dynamo' in sys.modules)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.split("\n")[0] == "False False"
