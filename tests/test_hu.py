"""What is HU, and level and noise of a crop, on drawn tissue whose numbers are known."""

from __future__ import annotations

import numpy as np
import pytest

from metricunet.hu import level_hu, noise_hu, why_not_hu


def tissue(noise: float) -> np.ndarray:
    """Half fat, half muscle, a gas bubble, a bone, and independent noise."""
    hu = np.full((12, 40, 40), -90.0)
    hu[:, :, 20:] = 50
    hu[:, 5:10, 5:10] = -900
    hu[:, 30:34, 30:34] = 900
    return hu + np.random.default_rng(0).normal(0, noise, hu.shape)


@pytest.mark.parametrize("noise", [5.0, 15.0, 30.0])
def test_noise_is_its_standard_deviation_in_spite_of_organs(noise: float) -> None:
    assert noise_hu(tissue(noise)) == pytest.approx(noise, rel=0.15)
    # The same in 16 bits, where differences must not wrap.
    assert noise_hu(np.rint(tissue(noise)).astype(np.int16)) == pytest.approx(noise, rel=0.15)


def test_level_is_the_median_of_the_body() -> None:
    hu = tissue(5)
    assert level_hu(np.where(hu > -300, 42, hu)) == 42
    assert level_hu(np.concatenate([np.full((20, 40, 40), -1000.0), np.full((3, 40, 40), 7.0)])) == 7


def test_air_says_nothing() -> None:
    air = np.full((4, 20, 20), -1000.0)
    assert level_hu(air) is None
    assert noise_hu(air) is None


def test_what_cannot_be_hounsfield_units() -> None:
    assert why_not_hu(-1000, 3071) is None
    assert why_not_hu(-1000) is None
    assert "lowest value is 0, so these are no Hounsfield units" in str(why_not_hu(0, 4095))
    assert "highest value is 65535, so these are no Hounsfield units" in str(why_not_hu(-1000, 65535))


def test_what_no_padding_is() -> None:
    """The lowest number of float32 overflows where it is averaged, and NaN would spread over a whole field."""
    for padding in (-2000, -3024, -32768 - 1024, -1e5):
        assert why_not_hu(padding, 3071) is None
    for value in (float(np.finfo(np.float32).min), -np.inf, np.nan):
        reason = str(why_not_hu(value, 3071))
        assert f"lowest value is {value:g}, so these are no Hounsfield units" in reason
        assert "the value of air" in reason
