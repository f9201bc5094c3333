"""TotalSegmentator's layout: a folder for each subject with `ct.nii.gz` and `segmentations/STRUCTURE.nii.gz`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from metricunet.cohort.importing.label_maps import on_grid
from metricunet.cohort.importing.privacy import Privacy, hashed, shown
from metricunet.cohort.importing.source import Found, LeftOut, Named, Region, SourceCase
from metricunet.errors import InputError, told
from metricunet.files.scan import case_name, is_scan, read_scan
from metricunet.progress import Bars
from metricunet.volume import Volume

LAYOUT = "totalsegmentator"
SCAN, MASKS = "ct.nii.gz", "segmentations"


class SubjectCase(SourceCase):
    """A subject. An empty mask says that there is no such structure; a missing file says nothing."""

    def __init__(self, folder: Path, root: Path) -> None:
        self.folder = folder
        self.identity, self.origin = folder.resolve().name, root.resolve().name
        self.patient = hashed("patient", self.origin, self.identity)
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
        InputError: there is none.
    """
    found = Found(LAYOUT)
    folders = subjects(root)
    if not folders:
        raise InputError(f"{root}: holds no subject; expected SUBJECT/{SCAN} and SUBJECT/{MASKS}/STRUCTURE.nii.gz")
    for folder in folders:
        privacy.learn_identifier(folder.name)
        if not (folder / SCAN).is_file():
            found.left_out.append(LeftOut(folder.name, f"{folder}: has no {SCAN}"))
        elif not (folder / MASKS).is_dir():
            found.left_out.append(LeftOut(folder.name, f"{folder}: has no folder {MASKS}", refused=False))
        else:
            try:
                found.cases.append(SubjectCase(folder, root))
            except Exception as error:  # whatever it is, it costs this subject alone
                found.left_out.append(LeftOut(folder.name, f"{folder}: {told(error)}", error=error))
    return found
