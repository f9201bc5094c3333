"""Names of structures: their sides, and how planning systems know them."""

from __future__ import annotations

import pytest

from metricunet.cohort.names import has_sides, standard_name


@pytest.mark.parametrize("name", ["femur_left", "Femur_L", "femur-lt", "FemurLeft", "LFemur", "Hip R", "femur.rt"])
def test_a_side_is_seen_however_it_is_spelt(name: str) -> None:
    assert has_sides({"prostate": 1, name: 2})


@pytest.mark.parametrize("name", ["prostate", "Rectum", "bladder", "Lens", "PTV4140", "SeminalVes", "Colon", "LN"])
def test_no_side_is_seen_where_there_is_none(name: str) -> None:
    assert not has_sides({name: 1})


def test_the_users_name_goes_before_the_standard_one() -> None:
    assert standard_name("prostate", {"prostate": "CTVp"}) == "CTVp"
    assert standard_name("urinary_bladder", {}) == "Bladder"
    assert standard_name("Levator", {}) == "Levator"
