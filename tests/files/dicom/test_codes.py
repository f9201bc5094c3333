"""Codes of structures: those of the standard's own tables, for names as clinics and programs spell them."""

from __future__ import annotations

import pytest
from pydicom.sr.codedict import codes

from metricunet.files.dicom.codes import LEFT, RIGHT, SNOMED, Code, code_of

#: In SNOMED CT, but not among the concepts that the standard names.
NOT_IN_THE_STANDARD = {"52737000", "34381000"}


def test_every_code_has_its_meaning_in_the_standard() -> None:
    concepts = [getattr(codes.SCT, keyword) for keyword in codes.SCT.dir()]
    known = {(concept.value, concept.meaning.casefold()) for concept in concepts}
    for value, meaning in SNOMED.values():
        if value not in NOT_IN_THE_STANDARD:
            assert (value, meaning.casefold()) in known
    for side in (LEFT, RIGHT):
        assert (side.value, side.meaning.casefold()) in known


@pytest.mark.parametrize(
    ("name", "meaning", "side"),
    [
        ("Prostate^auto", "Prostate", None),
        ("urinary_bladder", "Bladder", None),
        ("seminal_vesicles", "Seminal vesicle", None),
        ("Femur_Head_L", "Head of femur", LEFT),
        ("femoral_head_right", "Head of femur", RIGHT),
        ("Kidney Lt", "Kidney", LEFT),
        ("SpinalCord", "Spinal cord", None),
        ("colon", "Colon", None),
    ],
)
def test_names_and_their_sides(name: str, meaning: str, side: Code | None) -> None:
    code = code_of(name)
    assert code is not None
    assert (code.scheme, code.meaning, code.side) == ("SCT", meaning, side)


@pytest.mark.parametrize("name", ["PTV_L", "GTVp", "", "_", "L", "left", "Prostate_opt", "前立腺", "a" * 999])
def test_names_without_a_code(name: str) -> None:
    assert code_of(name) is None
