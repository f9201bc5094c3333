"""What to segment: files of one scan, folders of them, or folders of DICOM series, as one list of cases."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from metricunet.cohort.case import HIGHEST_MINIMUM_HU
from metricunet.cohort.layout import CHANNEL_SUFFIX
from metricunet.errors import InputError
from metricunet.files.dicom.series import STRICT, CtSeries, find_series
from metricunet.files.dicom.stack import Allow
from metricunet.files.record import sha256
from metricunet.files.scan import case_name, is_scan, read_scan, scan_files
from metricunet.volume import Volume


@dataclass(frozen=True, eq=False)
class ScanInput:
    """One scan to segment. `series` is set where it is DICOM.

    Attributes:
        case: name of its outputs.
        path: the file (NIfTI, NRRD or MetaImage), or the folder of the series.
        series: the DICOM series; None for a file.
    """

    case: str
    path: Path
    series: CtSeries | None

    def read(self) -> Volume:
        """Read the scan in HU.

        Raises:
            InputError: unreadable, or not in Hounsfield units.
        """
        volume = read_scan(self.path) if self.series is None else self.series.read()
        lowest = float(volume.array.min())
        if lowest > HIGHEST_MINIMUM_HU:
            raise InputError(
                f"{self.path}: the lowest value is {lowest:g}, so these are no Hounsfield units (air is -1000); "
                "expected a CT"
            )
        return volume

    @property
    def notes(self) -> tuple[str, ...]:
        """A sentence for each fault of the scan that is repaired in reading it; a reason to look at the result."""
        return () if self.series is None else self.series.notes

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file that it consists of.

        Raises:
            InputError: a header that cannot be read, or data that are missing.
        """
        # A file of many frames stands for each of its slices.
        return scan_files(self.path) if self.series is None else tuple(dict.fromkeys(self.series.files))

    def sha256(self) -> str:
        """Hash the contents of its files."""
        return sha256(self.files)


@dataclass(frozen=True)
class Refused:
    """Something that cannot be segmented, and why; `is_scan` is False for a localizer and the like."""

    path: Path
    reason: str
    is_scan: bool = True


def find_inputs(
    paths: Sequence[Path], series_uid: str | None = None, *, allow: Allow = STRICT, draw: bool = False
) -> tuple[list[ScanInput], list[Refused]]:
    """List the scans at the paths, and what was refused.

    Args:
        paths: files of one scan (NIfTI, NRRD, MetaImage), folders of them, or folders of DICOM files.
        series_uid: take this DICOM series alone.
        allow: faults of DICOM series that are repaired rather than refused.
        draw: refuse DICOM series that a structure set or segmentation cannot refer to.

    Raises:
        InputError: a path does not exist or holds nothing to segment, the series is not there, two scans
            would get one name, or nothing is left that can be segmented.
    """
    inputs: list[ScanInput] = []
    refused: list[Refused] = []
    for path in paths:
        if not path.exists():
            raise InputError(f"{path}: no such file or folder")
        files = sorted(p for p in path.iterdir() if is_scan(p) and p.is_file()) if path.is_dir() else [path]
        files = [p for p in files if is_scan(p) and not p.name.startswith(".")]
        if files:
            inputs += [ScanInput(case_name(p).removesuffix(CHANNEL_SUFFIX), p, None) for p in files]
            continue
        search = find_series(path, allow)
        for series in search.series:
            if series_uid not in (None, series.series_uid):
                continue
            try:
                if draw:
                    series.check_planes()
                inputs.append(ScanInput(series.case, path, series))
            except InputError as error:
                refused.append(Refused(path, str(error)))
        refused += [
            Refused(path, r.reason, r.is_scan) for r in search.refused if series_uid in (None, r.series_uid)
        ]
        if series_uid is not None and not inputs and not refused:
            found = ", ".join(s.series_uid for s in search.series) or "none"
            raise InputError(f"{path}: no series {series_uid}; usable series here: {found}")
    names: dict[str, Path] = {}
    for entry in inputs:
        if entry.case in names:
            raise InputError(
                f"{entry.path}: case {entry.case} is there twice (see {names[entry.case]}); outputs would "
                "overwrite each other, so predict them into two folders"
            )
        names[entry.case] = entry.path
    if not inputs:
        refused.sort(key=lambda r: not r.is_scan)
        more = f" ({len(refused) - 1} more were refused)" if len(refused) > 1 else ""
        raise InputError(f"{refused[0].reason}{more}" if refused else "nothing to segment")
    return inputs, refused
