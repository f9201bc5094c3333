"""Names and birth dates are found in whatever text they stand; identifiers are hashed where they should be."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
from pydicom.dataset import Dataset

from metricunet.cohort.importing.privacy import Privacy, hashed

UID = "1.2.840.113619.2.55.3.671756986"


def knowing(name: str, identifier: str = "MRN-4711", born: str = "19480317", uids: str = "hash") -> Privacy:
    header = Dataset()
    header.SpecificCharacterSet = "ISO_IR 192"
    header.PatientName, header.PatientID, header.PatientBirthDate = name, identifier, born
    privacy = Privacy(uids)  # type: ignore[arg-type]
    privacy.learn(header)
    return privacy


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("Müller^Max", "/data/Müller^Max/CT/1.dcm: slice at z = 2.00 mm"),
        ("Müller^Max", "/data/mueller_max/1.dcm: is odd"),
        ("Müller^Max", "/data/MULLERMAX/1.dcm: is odd"),
        ("Müller^Max", "/data/Mu\u0308ller/1.dcm: is odd"),
        ("Müller^Max", "see Müller.dcm and most others"),
        ("Müller^Max", "RS.dcm: ROI 3 'MÜLLER_Prostata': nothing is drawn"),
        ("Müller^Max", "Becken max"),
        ("Müller-Lüdenscheidt^Max", "/data/Lüdenscheidt/1.dcm"),
        ("Yamada^Tarou=山田^太郎", "/data/山田太郎/1.dcm"),
        ("Li^Na", "/data/Li/CT/1.dcm"),
        ("Any^Body", "born 19480317"),
        ("Any^Body", "/data/17.03.1948/1.dcm"),
        ("Any^Body", "/data/pat_1948-03-17_ct/1.dcm"),
        ("Any^Body", "/data/480317/1.dcm"),
    ],
)
def test_no_personal_data_are_left_in_a_text(name: str, text: str) -> None:
    spoken = knowing(name).spoken(text)
    assert "REDACTED" in spoken
    for piece in ("müller", "mueller", "muller", "max", "lüdens", "山田", "1948", "480317", "/li/"):
        assert piece not in spoken.lower()


@pytest.mark.parametrize(
    "text",
    [
        "/data/case/CT/1.dcm: slice at z = 2.00 mm (slice 2 of 5): 1 slice is missing; export the whole series",
        "RS.dcm: ROI 3 'Prostate': nothing is drawn",
        "ROI 'Lung_L' has no contours, an image was lost",
    ],
)
@pytest.mark.parametrize("name", ["Prostate^001", "An^Was", "Lung^Test", ""])
def test_what_names_nobody_stays(text: str, name: str) -> None:
    assert knowing(name).spoken(text) == text


def test_a_name_that_is_the_patient_id_is_an_identifier() -> None:
    privacy = knowing("EDGE01", "EDGE01")
    assert privacy.spoken("/data/EDGE01/1.dcm") == "/data/EDGE01/1.dcm"
    assert privacy.written("/data/EDGE01/1.dcm") == f"/data/{hashed('EDGE01')}/1.dcm"


@pytest.mark.parametrize("uid", [UID, "2.25.329800735698586629295641978511506172918"])
def test_identifiers_are_hashed_in_what_is_written_unless_they_are_kept(uid: str) -> None:
    text = f"tree/MRN-4711/{uid}.dcm: was drawn on series {uid}, at z = 10.25 mm"
    privacy = knowing("Doe^John")
    assert privacy.spoken(text) == text
    written = privacy.written(text)
    assert "MRN-4711" not in written
    assert uid not in written
    assert f"series {hashed(uid)}, at z = 10.25 mm" in written
    assert knowing("Doe^John", uids="keep").written(text) == text


def test_names_of_cases_are_hashed_as_whole_names(tmp_path: Path) -> None:
    privacy = Privacy()
    privacy.learn_identifier("s1")
    privacy.learn_root(tmp_path / "ts")
    assert privacy.written(f"{tmp_path}/ts/s1/ct.nii.gz: has no ls1") == f"ts/{hashed('s1')}/ct.nii.gz: has no ls1"


@pytest.mark.parametrize("ending", ["", "_0000", "_seg", "_mask", "-label", ".seg", "_ct_seg"])
def test_a_short_name_is_hashed_whatever_a_file_of_the_case_is_called_beside_it(ending: str) -> None:
    privacy = Privacy()
    for name in ("07", "071", "x"):
        privacy.learn_identifier(name)
    for name in ("07", "071", "x"):
        text = "in labels/{}" + ending + ".nii.gz: has no box"
        assert privacy.written(text.format(name)) == text.format(hashed(name))


def test_a_name_that_begins_another_leaves_it_whole() -> None:
    privacy = Privacy()
    names = [f"pelvis{number}" for number in range(1, 20)]
    for name in names:
        privacy.learn_identifier(name)
    for name in names:
        assert privacy.written(f"ct_{name}.nii.gz: is odd") == f"ct_{hashed(name)}.nii.gz: is odd"


@pytest.mark.parametrize("name", ["my case", "P 17", "4711/12", "Jo\u0308rg01", "a, b: c"])
def test_an_identifier_of_several_words_is_hashed_too(name: str) -> None:
    privacy = Privacy()
    for known in (name, "case", "other"):
        privacy.learn_identifier(known)
    plain = unicodedata.normalize("NFC", name)
    assert privacy.written(name) == hashed(plain)
    assert (
        privacy.written(f"in/{name}.nii.gz: has no other")
        == f"in/{hashed(plain)}.nii.gz: has no {hashed('other')}"
    )


def test_a_hash_is_not_taken_for_an_identifier() -> None:
    privacy = Privacy()
    privacy.learn_identifier("scan")
    for part in (hashed("scan")[2:7], hashed(UID)[2:7]):
        privacy.learn_identifier(part)
    assert privacy.written(f"my_scan_{UID}.dcm") == f"my_{hashed('scan')}_{hashed(UID)}.dcm"


def test_other_names_count_too() -> None:
    header = Dataset()
    header.PatientName, header.OtherPatientNames = "Doe^Jane", ["Roe^Janet", "Poe^Jan"]
    privacy = Privacy()
    privacy.learn(header)
    assert privacy.spoken("Doe Roe Poe Moe") == "REDACTED REDACTED REDACTED Moe"
