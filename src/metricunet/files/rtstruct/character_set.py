"""The character set of an object that is made from a scan."""

from __future__ import annotations

from collections.abc import Iterable

from pydicom.dataset import Dataset


def set_character_set(dataset: Dataset, header: Dataset, texts: Iterable[str]) -> None:
    """Keep the scan's own encoding, so that names match to the byte; take UTF-8 where new text needs it.

    An empty first value (the default set, with code extensions) and a value that DICOM does not define are kept as
    well: readers take the names of both objects for the same, right or wrong.

    Args:
        dataset: the object, with patient and study as `patient_and_study` copies them. Its character set is set.
        header: a header of the scan.
        texts: the texts that are written beside these.
    """
    if all(text.isascii() for text in texts):
        if header.get("SpecificCharacterSet"):
            dataset.SpecificCharacterSet = header.SpecificCharacterSet
    else:
        dataset.SpecificCharacterSet = "ISO_IR 192"
