"""A gland with a texture of its own: the same mean, another variance, and nothing else changed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from metricunet.errors import InputError
from metricunet.phantom import Drawn, draw_phantom, make_phantom
from metricunet.phantom.cohort import CohortPlan
from metricunet.phantom.stream import within

TEXTURE_HU = 12.0
#: Without markers and stones.
SEEDS = (2, 3)


def around_gland(drawn: Drawn, noise_hu: float | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """HU around the gland, distance into it and distance from it in mm."""
    scan = drawn.scan if noise_hu is None else replace(drawn.scan, noise_hu=noise_hu)
    low, high = drawn.gland_mm
    part = within(scan, [v - 12 for v in low], [v + 12 for v in high])
    assert part is not None
    labels = drawn.labels({"prostate": 1}, part).array > 0
    inside, outside = (ndimage.distance_transform_edt(m, part.spacing_mm) for m in (labels, ~labels))
    return drawn.image(part).array.astype(float), inside, outside


@pytest.mark.parametrize("seed", SEEDS)
def test_the_mean_stays_and_the_variance_grows_by_that_of_the_texture(seed: int) -> None:
    plain, textured = draw_phantom(seed), draw_phantom(seed, gland_texture_hu=TEXTURE_HU)
    assert not plain.description["markers"]
    assert not plain.description["calcifications"]
    (before, inside, outside), (after, *_) = around_gland(plain), around_gland(textured)
    deep, far = inside > 4, outside > 4
    assert np.count_nonzero(deep) > 3000
    assert abs(after[deep].mean() - before[deep].mean()) < 0.5
    gained = after[deep].var() - before[deep].var()
    # Interpolation between the lattice's planes takes a part of so short waves.
    assert (0.5 * TEXTURE_HU) ** 2 < gained < (0.75 * TEXTURE_HU) ** 2
    np.testing.assert_array_equal(after[far], before[far])


def test_it_is_the_difference_of_two_images_in_the_gland_alone() -> None:
    images = [around_gland(draw_phantom(SEEDS[0], gland_texture_hu=hu), noise_hu=0.0) for hu in (0.0, 6.0, 12.0)]
    one, two = (images[k][0] - images[0][0] for k in (1, 2))
    deep = images[0][1] > 4
    assert two[deep].std() == pytest.approx(2 * one[deep].std(), rel=0.05)


def test_without_it_nothing_is_drawn_or_said() -> None:
    drawn, again = draw_phantom(SEEDS[0]), draw_phantom(SEEDS[0], gland_texture_hu=0.0)
    assert drawn.appearance.gland_texture is again.appearance.gland_texture is None
    assert drawn.description == again.description
    assert "gland_texture_hu" not in drawn.description
    assert draw_phantom(SEEDS[0], gland_texture_hu=7.0).description == drawn.description | {
        "gland_texture_hu": 7.0
    }


def test_recipes_name_it_where_there_is_one() -> None:
    assert "gland_texture_hu" not in CohortPlan(2).recipe
    assert CohortPlan(2, gland_texture_hu=7.0).recipe == CohortPlan(2).recipe | {"gland_texture_hu": 7.0}
    assert {order.gland_texture_hu for order in CohortPlan(2, n_test=1, gland_texture_hu=7.0).orders()} == {7.0}


@pytest.mark.parametrize(
    ("difficulty", "texture_hu", "message"),
    [
        ("easy", 5.0, "is for the difficulty real alone; got 5 for easy"),
        ("varied", 5.0, "is for the difficulty real alone; got 5 for varied"),
        ("real", -1.0, "must be a number from 0 up"),
        ("real", float("nan"), "must be a number from 0 up"),
    ],
)
def test_what_is_refused(difficulty: str, texture_hu: float, message: str) -> None:
    for call in (make_phantom, draw_phantom):
        with pytest.raises(InputError, match=message):
            call(0, difficulty, gland_texture_hu=texture_hu)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=message):
        CohortPlan(1, difficulty=difficulty, gland_texture_hu=texture_hu)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"gland_texture_hu is for the difficulty real alone; got 5 for varied"):
        CohortPlan(1, test_difficulty="varied", gland_texture_hu=5.0)
