"""Patient and study of a scan, for the objects that are made from it."""

from __future__ import annotations

from pydicom.config import RAISE
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
    numbers and codes that are none are left out, since programs refuse a file for them.
    """
    copied = Dataset()
    for keyword in _COPIED:
        if keyword in header and _is_valid(header[keyword]):
            copied.add(header[keyword])
    for keyword in _MAY_BE_EMPTY:
        if keyword not in copied:
            setattr(copied, keyword, "")
    return copied


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
