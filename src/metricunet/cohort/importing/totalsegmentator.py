"""TotalSegmentator's layout: a folder for each subject with `ct.nii.gz` and `segmentations/STRUCTURE.nii.gz`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from metricunet.cohort.importing.label_maps import note_strangers, on_grid
from metricunet.cohort.importing.privacy import Privacy, hashed, shown
from metricunet.cohort.importing.source import Found, LeftOut, Named, Region, SourceCase
from metricunet.cohort.splits import patients_of
from metricunet.errors import InputError, told
from metricunet.files.scan import case_name, is_scan, read_scan
from metricunet.progress import Bars
from metricunet.volume import Volume

LAYOUT = "totalsegmentator"
SCAN, MASKS = "ct.nii.gz", "segmentations"


class SubjectCase(SourceCase):
    """A subject. An empty mask says that there is no such structure; a missing file says nothing."""

    def __init__(self, folder: Path, root: Path, patient: str | None = None) -> None:
        self.folder = folder
        self.identity, self.origin = subject_name(folder), root.resolve().name
        self.patient = hashed("patient", self.origin, patient or self.identity)
        self.location = shown(folder, root)
        masks = sorted(p for p in (folder / MASKS).iterdir() if is_scan(p) and not p.name.startswith("."))
        self.structures = tuple(Named(case_name(path), str(path), True, path, path) for path in masks)
        self.files = (folder / SCAN, *masks)

    def read_image(self) -> Volume:
        """Read the scan."""
        return read_scan(self.folder / SCAN)

    def read_regions(self, wanted: Sequence[Named], image: Volume) -> Iterator[Region]:
        """Read the masks of structures."""
        for named in wanted:
            mask = on_grid(named.key, image.geometry, SCAN) != 0
            yield Region(named, "contoured", mask) if mask.any() else Region(named, "absent")


def subject_name(folder: Path) -> str:
    """Return the name of a subject's folder, or of the link to it: in folders of links many lead to one name."""
    return Path(os.path.abspath(folder)).name  # that of ".", too


def subjects(root: Path) -> list[Path]:
    """Return the folders of subjects: the folder itself, or those in it."""
    if not root.is_dir():
        return []
    folders = [root, *sorted(child for child in root.iterdir() if child.is_dir())]
    return [folder for folder in folders if (folder / SCAN).is_file() or (folder / MASKS).is_dir()]


def is_totalsegmentator(root: Path) -> bool:
    """Tell whether a folder holds subjects, or is one."""
    return any((folder / SCAN).is_file() and (folder / MASKS).is_dir() for folder in subjects(root))


def find_totalsegmentator(root: Path, privacy: Privacy, bars: Bars) -> Found:
    """Find the subjects of a folder.

    Raises:
        InputError: there is none, or a patients.json that cannot be used.
    """
    found = Found(LAYOUT)
    patients = patients_of(root)
    folders = subjects(root)
    if not folders:
        raise InputError(f"{root}: holds no subject; expected SUBJECT/{SCAN} and SUBJECT/{MASKS}/STRUCTURE.nii.gz")
    for folder in folders:
        name = subject_name(folder)
        privacy.learn_identifier(name)
        if not (folder / SCAN).is_file():
            found.left_out.append(LeftOut(name, f"{folder}: has no {SCAN}"))
        elif not (folder / MASKS).is_dir():
            found.left_out.append(LeftOut(name, f"{folder}: has no folder {MASKS}", refused=False))
        else:
            try:
                found.cases.append(SubjectCase(folder, root, patients.get(name)))
            except Exception as error:  # whatever it is, it costs this subject alone
                found.left_out.append(LeftOut(name, f"{folder}: {told(error)}", error=error))
    note_strangers(found, root, patients)
    return found
