"""Patient and study of a scan, for the objects that are made from it."""

from __future__ import annotations

from pydicom.config import RAISE
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.valuerep import validate_value

_COPIED = [
    *("PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex", "PatientAge"),
    *("PatientSize", "PatientWeight", "StudyInstanceUID", "StudyDate", "StudyTime", "StudyID"),
    *("StudyDescription", "AccessionNumber", "ReferringPhysicianName"),
]
#: Elements that must be there, if only empty.
_MAY_BE_EMPTY = [
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID"),
    *("AccessionNumber", "ReferringPhysicianName"),
]


def patient_and_study(header: Dataset) -> Dataset:
    """Copy what a scan's header says of patient and study, so that a viewer puts both into one folder.

    Names and identifiers are kept whatever they are, since they must match those of the scan; dates, ages,
    numbers and codes that are none are left out, since programs refuse a file for them. Texts get the kind of
    value (VR) that is theirs, if the scan states another.
    """
    copied = Dataset()
    for keyword in _COPIED:
        if keyword in header and _is_valid(element := _of_its_kind(header[keyword])):
            copied.add(element)
    for keyword in _MAY_BE_EMPTY:
        if keyword not in copied:
            setattr(copied, keyword, "")
    return copied


def _of_its_kind(element: DataElement) -> DataElement:
    kind = dictionary_VR(element.tag)
    if kind == element.VR or not isinstance(element.value, str):
        return element
    return DataElement(element.tag, kind, element.value, already_converted=kind != "PN")


def _is_valid(element: DataElement) -> bool:
    if element.keyword == "PatientSex":
        return element.value in ("M", "F", "O")
    if element.VR not in ("AS", "DA", "DS", "TM"):
        return True
    try:
        validate_value(element.VR, str(element.value or ""), RAISE)
    except ValueError:
        return False
    return True
