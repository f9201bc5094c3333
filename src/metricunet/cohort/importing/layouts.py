"""How a folder is laid out, and the cases in it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from metricunet.cohort.importing import dicom_tree, label_maps, totalsegmentator
from metricunet.cohort.importing.privacy import Privacy
from metricunet.cohort.importing.source import Found
from metricunet.errors import InputError, argument
from metricunet.files.reviews import reviews_in
from metricunet.files.scan import is_scan
from metricunet.progress import Bars

Finder = Callable[[Path, Privacy, Bars], Found]

AUTO = "auto"
#: A known layout is looked for in so many folders within each other.
DEEPEST = 3
FINDERS: dict[str, Finder] = {
    dicom_tree.LAYOUT: dicom_tree.find_dicom,
    totalsegmentator.LAYOUT: totalsegmentator.find_totalsegmentator,
    label_maps.NNUNET: label_maps.find_nnunet,
    label_maps.PAIRS: label_maps.find_pairs,
}


def find_cases(root: Path, layout: str | Finder, privacy: Privacy, bars: Bars) -> Found:
    """Find the cases of a folder.

    Args:
        root: the folder, or a DICOM file.
        layout: a name of `FINDERS`, `auto`, or a function that finds the cases of a layout that is not among them.
        privacy: told of the personal data that are met.
        bars: opens a progress bar by its name.

    Raises:
        InputError: no such folder or layout, or nothing of that layout in the folder.
    """
    if isinstance(layout, str) and layout not in (AUTO, *FINDERS):
        raise InputError(f"{argument('layout')} must be one of {', '.join((AUTO, *FINDERS))}; got {layout!r}")
    if not root.exists():
        raise InputError(f"{root}: no such file or folder")
    privacy.learn_root(root)
    if not isinstance(layout, str):
        return layout(root, privacy, bars)
    if layout != AUTO:
        return FINDERS[layout](root, privacy, bars)
    if root.is_dir() and reviews_in(root):
        raise InputError(f"{root}: holds reviewed predictions; import them with {argument('reviewed', True)}")
    try:
        return FINDERS[detect(root)](root, privacy, bars)
    except dicom_tree.NoDicomError as error:
        there = _other_files(root)
        if not there:
            raise
        raise InputError(f"{root}: {there}") from error


def _other_files(root: Path) -> str:
    """Say what a folder holds that is neither DICOM nor of a known layout, and what to do; empty if no scans."""
    for depth in range(1, DEEPEST + 1):
        for folder in sorted(root.glob("/".join("*" * depth))):
            if folder.is_dir() and (layout := detect(folder)) != dicom_tree.LAYOUT:
                return f"is of no known layout, but {folder} in it is of layout {layout}; give that folder"
    first = next((path for path in sorted(root.rglob("*")) if is_scan(path) and path.is_file()), None)
    if first is None:
        return ""
    return (
        f"is of no known layout: it holds files of scans or label maps, such as {first}; lay them out as "
        "images/CASE.nii.gz and labels/CASE.nii.gz, or as CASE.nii.gz and CASE_seg.nii.gz in one folder"
    )


def detect(root: Path) -> str:
    """Return the layout of a folder; whatever looks like none of the others is taken for DICOM."""
    if label_maps.is_nnunet(root):
        return label_maps.NNUNET
    if totalsegmentator.is_totalsegmentator(root):
        return totalsegmentator.LAYOUT
    if label_maps.pairs_in(root):
        return label_maps.PAIRS
    return dicom_tree.LAYOUT
