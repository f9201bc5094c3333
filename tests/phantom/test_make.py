"""One phantom as a whole: seeds, coverage, geometry, agreement of image, labels and description."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from metricunet.errors import InputError
from metricunet.phantom import STRUCTURES, Phantom, draw_phantom, make_phantom
from metricunet.volume import CANONICAL_DIRECTIONS


@cache
def easy(seed: int) -> Phantom:
    return make_phantom(seed, "easy")


def digest(made: Phantom) -> str:
    content = made.image.array.tobytes() + made.labels.array.tobytes() + made.image.geometry.affine.tobytes()
    return hashlib.sha256(content + json.dumps(made.description).encode()).hexdigest()


def test_a_seed_gives_the_same_bytes_in_any_process() -> None:
    code = (
        "import numpy, sys; numpy.random.seed(5); numpy.random.random(3); sys.path.insert(0, sys.argv[1]);"
        "from test_make import digest; from metricunet.phantom import make_phantom;"
        "print(digest(make_phantom(11, 'easy')))"
    )
    here = str(Path(__file__).parent)
    other = subprocess.run([sys.executable, "-c", code, here], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == digest(make_phantom(11, "easy"))


def test_making_a_phantom_leaves_the_global_state_alone() -> None:
    np.random.seed(1)  # noqa: NPY002
    before = np.random.get_state()[1].tolist()  # noqa: NPY002
    make_phantom(4, "easy")
    assert np.random.get_state()[1].tolist() == before  # noqa: NPY002


def test_another_seed_is_another_man() -> None:
    a, b = easy(1), easy(2)
    assert digest(a) != digest(b)
    assert a.description["gland_volume_ml"] != b.description["gland_volume_ml"]


def test_a_seed_is_one_man_in_either_difficulty() -> None:
    simple, real = easy(4), make_phantom(4, "real")
    for fact in ("gland_volume_ml", "bladder_volume_ml", "rectum_filling"):
        assert simple.description[fact] == real.description[fact]
    assert max(simple.image.array.shape) <= 192
    assert real.image.array.shape[1:] == (512, 512)


@pytest.mark.parametrize("seed", range(6))
def test_a_scan_that_reaches_the_gland_holds_it_whole(seed: int) -> None:
    made = easy(seed)
    labels = made.labels.array == STRUCTURES["prostate"]
    slices = np.flatnonzero(labels.any(axis=(1, 2)))
    assert slices[0] > 0
    assert slices[-1] < labels.shape[0] - 1
    volume = labels.sum() * made.labels.geometry.voxel_volume_ml
    assert volume == pytest.approx(made.description["gland_volume_ml"], rel=0.06)


@pytest.mark.parametrize("seed", range(6))
def test_a_scan_that_misses_the_gland_holds_none_of_it(seed: int) -> None:
    made = make_phantom(seed, "easy", reaches_prostate=False)
    assert not (made.labels.array == STRUCTURES["prostate"]).any()
    assert made.description["reaches_prostate"] is False
    assert made.labels.array.any()
    assert made.image.array.shape[0] >= 5
    assert (made.image.array > 300).sum() > 500  # bone: it is still a man


@pytest.mark.parametrize("seed", range(6))
def test_geometry_is_a_head_first_supine_scan(seed: int) -> None:
    made = easy(seed)
    assert made.image.array.dtype == np.int16
    assert made.labels.array.dtype == np.uint8
    assert made.image.geometry.same_grid(made.labels.geometry)
    np.testing.assert_allclose(made.image.geometry.directions, CANONICAL_DIRECTIONS, atol=1e-12)
    assert list(made.image.array.shape) == made.description["shape"]

    def centre(name: str) -> np.ndarray:
        where = np.argwhere(made.labels.array == STRUCTURES[name]).mean(axis=0)
        return np.asarray(made.labels.geometry.to_world(where))

    assert centre("femur_left")[0] > centre("prostate")[0] > centre("femur_right")[0]  # x to the left
    assert centre("rectum")[1] > centre("prostate")[1]  # y to the back
    assert centre("bladder")[2] > centre("prostate")[2]  # z to the head


def test_scans_vary_as_scanners_do() -> None:
    made = [easy(seed).image.geometry for seed in range(6)]
    assert len({g.shape for g in made}) > 3
    assert len({g.spacing_mm[0] for g in made}) > 1
    assert np.ptp([g.origin_mm[2] for g in made]) > 300


def test_the_description_is_plain_json() -> None:
    description = easy(3).description
    assert json.loads(json.dumps(description, allow_nan=False)) == description
    assert description["seed"] == 3


def test_what_is_drawn_renders_on_its_own_scan_and_on_any_part_of_it() -> None:
    drawn, made = draw_phantom(11, "easy"), easy(11)
    assert drawn.image().array.tobytes() == made.image.array.tobytes()
    assert drawn.labels().array.tobytes() == made.labels.array.tobytes()
    assert drawn.description == made.description
    dz, dy, dx = drawn.scan.spacing_mm
    x, y, z = drawn.scan.start_mm
    slices, rows, columns = drawn.scan.shape
    part = replace(
        drawn.scan, start_mm=(x + 20 * dx, y + 10 * dy, z + 2 * dz), shape=(slices - 3, rows - 25, columns - 40)
    )
    inside = np.s_[2:-1, 10:-15, 20:-20]
    np.testing.assert_array_equal(drawn.labels(scan=part).array, made.labels.array[inside])
    # The same tissues under other noise.
    difference = drawn.image(part).array.astype(float) - made.image.array[inside]
    assert abs(difference.mean()) < 0.5
    assert 3 < difference.std() < 20
    assert drawn.image(part).geometry.same_grid(drawn.labels({"bladder": 7}, part).geometry)
    np.testing.assert_array_equal(
        drawn.labels({"bladder": 7}, part).array == 7, drawn.labels(scan=part).array == STRUCTURES["bladder"]
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((-1, "easy"), "seed must be 0 or more"), ((0, "hard"), "difficulty must be one of easy, real")],
)
def test_bad_arguments_are_refused(arguments: tuple[int, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_phantom(*arguments)  # type: ignore[arg-type]
