"""The temperature: what it does to probabilities, and that a known distortion is found and undone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from metricunet.quality.temperature import LOWEST, fit_temperature, tempered

TEMPERATURES = st.floats(0.25, 8)


def softmax(logits: np.ndarray) -> np.ndarray:
    return torch.from_numpy(logits).double().softmax(dim=0).float().numpy()


def drawn(probabilities: np.ndarray, seed: int) -> np.ndarray:
    """Draw a class for each voxel from its probabilities [classes, voxels]."""
    uniform = np.random.default_rng(seed).random(probabilities.shape[1])
    return (uniform > np.cumsum(probabilities, axis=0)[:-1]).sum(axis=0)


def expected_calibration_error(probability: np.ndarray, outcome: np.ndarray, bins: int = 15) -> float:
    """The mean gap between probability and frequency, over bins of equal width weighted by their voxels."""
    of_bin = np.minimum((probability * bins).astype(int), bins - 1)
    stated = np.bincount(of_bin, weights=probability, minlength=bins)
    happened = np.bincount(of_bin, weights=outcome, minlength=bins)
    return float(np.abs(stated - happened).sum() / len(probability))


@given(TEMPERATURES, st.integers(2, 4), st.integers(0, 1000))
def test_it_is_the_softmax_of_logits_over_the_temperature(temperature: float, classes: int, seed: int) -> None:
    logits = np.random.default_rng(seed).normal(0, 3, (classes, 50))
    found = tempered(softmax(logits), temperature)
    np.testing.assert_allclose(found, softmax(logits / temperature), rtol=2e-4, atol=1e-7)


@given(TEMPERATURES, st.integers(2, 4), st.integers(0, 1000))
def test_the_likeliest_class_stays(temperature: float, classes: int, seed: int) -> None:
    given = softmax(np.random.default_rng(seed).normal(0, 3, (classes, 50)))
    np.testing.assert_array_equal(tempered(given, temperature).argmax(axis=0), given.argmax(axis=0))


def test_with_three_classes_a_half_can_be_lost() -> None:
    """By hand: 0.6, 0.2, 0.2 at temperature 2 are in the ratio of their roots."""
    roots = np.sqrt([0.6, 0.2, 0.2])
    found = tempered(np.array([[0.6], [0.2], [0.2]], dtype=np.float32), 2)
    np.testing.assert_allclose(found[:, 0], roots / roots.sum(), rtol=1e-6)
    assert found[0, 0] < 0.5 < 0.6


def test_a_certain_network_stays_certain_and_one_leaves_all_as_it_is() -> None:
    given = np.array([[0.0, 1.0, 0.3], [1.0, 0.0, 0.7]], dtype=np.float32)
    np.testing.assert_array_equal(tempered(given, 3)[:, :2], given[:, :2])
    np.testing.assert_array_equal(tempered(given, 1), given)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("distortion", [0.5, 1.0, 2.5, 6.0])
def test_a_known_distortion_is_found(classes: int, distortion: float) -> None:
    """Classes drawn from honest probabilities, which the network then overstates by the distortion."""
    logits = np.random.default_rng(7).normal(0, 2, (classes, 100_000))
    honest = softmax(logits)
    truth, stated = drawn(honest, 8), softmax(logits * distortion)
    fit = fit_temperature([(stated[:, :1000], truth[:1000]), (stated[:, 1000:], truth[1000:])])
    assert fit.temperature == pytest.approx(distortion, rel=0.03)
    assert fit.nll_after <= fit.nll_before
    target = truth == 1
    after = expected_calibration_error(tempered(stated, fit.temperature)[1], target)
    assert after < 0.006
    if distortion != 1:
        assert expected_calibration_error(stated[1], target) > 5 * after


def test_the_likelihood_is_that_of_torch() -> None:
    logits = np.random.default_rng(1).normal(0, 4, (3, 400))
    truth = np.random.default_rng(2).integers(0, 3, 400)
    fit = fit_temperature([(softmax(logits), truth)])
    for temperature, found in ((1.0, fit.nll_before), (fit.temperature, fit.nll_after)):
        wanted = torch.nn.functional.cross_entropy(torch.from_numpy(logits.T / temperature), torch.tensor(truth))
        assert found == pytest.approx(float(wanted), rel=1e-5)


def test_a_network_without_errors_gets_the_lowest_temperature_and_stays_finite() -> None:
    given = softmax(np.array([[-2.0, 2.0], [2.0, -2.0]]))
    fit = fit_temperature([(given, np.array([1, 0]))])
    assert fit.temperature == pytest.approx(LOWEST, rel=1e-3)
    assert np.isfinite(fit.nll_after)
    # One that is certain, and wrong, is made as unsure as can be.
    wrong = fit_temperature([(np.array([[1.0, 0.0], [0.0, 1.0]], dtype=np.float32), np.array([1, 0]))])
    assert wrong.temperature > 15
    assert np.isfinite(wrong.nll_before)
