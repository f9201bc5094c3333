"""Names of structures: their sides, and how planning systems know them."""

from __future__ import annotations

import pytest

from metricunet.cohort.names import mirrored_classes, standard_name


@pytest.mark.parametrize(
    "name",
    [
        *("femur_left", "Femur_L", "femur-lt", "FemurLeft", "LFemur", "Hip R", "femur.rt"),
        *("Femur_links", "Hüftkopf re", "FémurGauche", "Femur_dx", "Fe\u0301mur_L"),
    ],
)
def test_a_side_is_seen_however_it_is_spelt(name: str) -> None:
    assert mirrored_classes(["prostate", name]) is None


@pytest.mark.parametrize(
    "name",
    [
        *("prostate", "Rectum", "bladder", "Lens", "PTV4140", "SeminalVes", "Colon", "LN"),
        # Letters that are not English ones part no words, and lumbar vertebrae are named L.
        *("Rückenmark", "Ru\u0308ckenmark", "Sphinctér", "Lôbule", "VB_L5", "S1-L4", "FEMURL", "Liver"),
    ],
)
def test_no_side_is_seen_where_there_is_none(name: str) -> None:
    assert mirrored_classes([name]) == (0, 1)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("femoral_head_left", "femoral_head_right"),
        ("Femur_L", "Femur_R"),
        ("femur-lt", "femur-rt"),
        ("FemurLeft", "FemurRight"),
        ("LFemur", "RFemur"),
        ("HIP LEFT", "HIP RIGHT"),
        ("Femur_links", "Femur_rechts"),
        ("HüftkopfLi", "HüftkopfRe"),
        ("LINKER FEMUR", "RECHTER FEMUR"),
        ("fémur gauche", "fémur droit"),
        ("Tête_gauche", "Tête_droite"),
        ("Femur_sin", "Femur_dx"),
        ("Hu\u0308fte_L", "Hüfte_R"),
        ("FEMURL", "FEMURR"),
        ("lfemur", "rfemur"),
        ("Node_L2", "Node_R2"),
        ("Femur_G", "Femur_D"),
        ("Femore D", "Femore S"),
        ("FemurI", "FemurD"),
        ("CABEÇA FEMUR E", "CABEÇA FEMUR D"),
        ("femur_esquerdo", "femur_direito"),
    ],
)
def test_in_a_mirror_image_each_side_is_the_other(one: str, other: str) -> None:
    assert mirrored_classes([one, "prostate", other]) == (0, 3, 2, 1)
    assert mirrored_classes([other, one]) == (0, 2, 1)


@pytest.mark.parametrize(
    "names",
    [
        ["femur_left", "hip_right"],
        ["femur_left", "femur_right", "hip_l"],
        ["FemurLeft", "femur_right"],
        ["Femur_links", "Femur_right"],
        ["femur_gauche", "femur_droit", "femur_droite"],
    ],
)
def test_a_side_without_a_partner_of_its_name_forbids_mirror_images(names: list[str]) -> None:
    assert mirrored_classes(names) is None


@pytest.mark.parametrize(
    "names",
    [
        ["Femur_D", "prostate"],
        ["Node_C", "Node_D", "Node_E"],
        ["Plan_A", "Plan_D"],
        ["Level_D1", "Level_E2"],
    ],
)
def test_letters_that_count_or_stand_alone_are_no_sides(names: list[str]) -> None:
    assert mirrored_classes(names) == tuple(range(len(names) + 1))


def test_the_users_name_goes_before_the_standard_one() -> None:
    assert standard_name("prostate", {"prostate": "CTVp"}) == "CTVp"
    assert standard_name("urinary_bladder", {}) == "Bladder"
    assert standard_name("Levator", {}) == "Levator"


def test_a_name_of_many_sides_takes_no_time() -> None:
    assert mirrored_classes(["sin_" * 60, "dx_" * 60]) == (0, 2, 1)
