"""NIfTI scans with a label map each: nnU-Net's raw layout, AMOS22's, and plain pairs of files.

A label map speaks of every voxel: a structure that has a value and no voxel is absent, not forgotten.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from metricunet.cohort.contoured import read_not_contoured
from metricunet.cohort.importing.names_file import listed
from metricunet.cohort.importing.privacy import Privacy, hashed, shown
from metricunet.cohort.importing.source import CohortPart, Found, LeftOut, Named, Region, SourceCase
from metricunet.cohort.layout import CHANNEL_SUFFIX, read_dataset_json
from metricunet.cohort.splits import PATIENTS_NAME, patients_of
from metricunet.errors import InputError, told
from metricunet.files import slicer
from metricunet.files.grids import difference
from metricunet.files.scan import case_name, is_scan, read_labels, read_scan, scan_files
from metricunet.progress import Bars
from metricunet.volume import Geometry, Volume

NNUNET, PAIRS = "nnunet", "pairs"
#: Folders of nnU-Net's layout and AMOS22's, and what their cases are for.
SPLITS: dict[str, CohortPart] = {"Tr": "Tr", "Va": "Tr", "Ts": "Ts"}
#: AMOS22 gives the prostate of men and the uterus of women one label.
BOTH_SEXES = "prostate/uterus"
AMOS_SEXES = "labeled_data_meta_*.csv"
#: Names of folders that hold the two halves of pairs, and what a label map's name may have in addition, in
#: capitals or not.
IMAGE_FOLDERS = ("images", "image", "imgs", "img", "scans", "ct", "cts", "volumes")
LABEL_FOLDERS = ("labels", "label", "masks", "mask", "segmentations", "segmentation", "segs", "seg")
LABEL_ENDINGS = ("_seg", "_segmentation", "_label", "_labels", "_mask", "-seg", "-label", "-mask", ".seg")
IMAGE_ENDINGS = (CHANNEL_SUFFIX, "_ct", "-ct", "_image", "_img")


class LabelMapCase(SourceCase):
    """A scan and its label map."""

    def __init__(
        self,
        image: Path,
        labels: Path,
        name: str,
        patient: str,
        values: Mapping[str, int],
        root: Path,
        split: CohortPart = "Tr",
        not_contoured: Sequence[str] = (),
        ignore: int | None = None,
    ) -> None:
        self.image, self.labels, self.ignore = image, labels, ignore
        self.values = dict(values)
        self.not_contoured = frozenset(not_contoured)
        self.identity, self.origin, self.split = name, root.resolve().name, split
        self.patient = hashed("patient", self.origin, patient)
        self.location = shown(image, root)
        self.structures = tuple(
            Named(spelling, f"{labels}: label {value}", spelling not in self.not_contoured, value)
            for spelling, value in values.items()
        )
        self.files = (*scan_files(image), *scan_files(labels))

    def read_image(self) -> Volume:
        """Read the scan."""
        return read_scan(self.image)

    def read_regions(self, wanted: Sequence[Named], image: Volume) -> Iterator[Region]:
        """Take structures out of the label map."""
        array = on_grid(self.labels, image.geometry, self.image.name)
        strange = sorted(set(np.unique(array).tolist()) - {0, *self.values.values()})
        if strange:
            what, advice = "has no name", "name it, or correct the label map"
            if strange[0] == self.ignore:
                what = "is nnU-Net's ignore label"
                advice = "an import keeps no such voxels: train on the data set as it is, or relabel them"
            raise InputError(
                f"{self.labels}: the value {strange[0]} {what}; expected 0 or "
                f"{', '.join(map(str, sorted(self.values.values())))}; {advice}"
            )
        for named in wanted:
            if named.spelling in self.not_contoured:
                yield Region(named, "not contoured", None, f"{named.location}: not contoured (contoured.json)")
                continue
            mask = array == named.key
            yield Region(named, "contoured", mask) if mask.any() else Region(named, "absent")


def on_grid(path: Path, grid: Geometry, scan_name: str) -> np.ndarray:
    """Read labels in the axis order of a scan.

    Args:
        path: the label map.
        grid: the scan's.
        scan_name: what to call the scan in messages.

    Raises:
        InputError: they lie on another grid.
    """
    labels = slicer.read_map(path, grid)
    try:
        return labels.reordered_like(grid).array
    except InputError:
        raise InputError(
            f"{path}: lies on another grid than its scan: "
            f"{difference(labels.geometry, grid, scan_name)}; resample it to the scan (nearest "
            "neighbour)"
        ) from None


def is_nnunet(root: Path) -> bool:
    """Tell whether a folder is a raw data set of nnU-Net's, or AMOS22."""
    if not (root / "dataset.json").is_file():
        return False
    return (root / "labelsTr").is_dir() or bool(read_dataset_json(root).listed)


def find_nnunet(root: Path, privacy: Privacy, bars: Bars) -> Found:
    """Find the cases of nnU-Net's raw layout or of AMOS22, whose images lack nnU-Net's suffix.

    `labelsVa` (AMOS22) is trained on, `labelsTs` kept for testing. Images without labels are left out.

    Training cases that dataset.json lists itself are taken from there.

    Raises:
        InputError: a dataset.json, contoured.json or patients.json that cannot be used.
    """
    info = read_dataset_json(root)
    found = Found(NNUNET, trained_on=info.trained_on)
    patients = patients_of(root)
    unknown = read_not_contoured(root, info.labels)
    women = _women(root) if BOTH_SEXES in info.labels else None
    for folder, split in SPLITS.items():
        labels = _by_name(_scans(root / f"labels{folder}"), case_name)
        images = _scans_by_case(_scans(root / f"images{folder}"), labels, (CHANNEL_SUFFIX,))
        if folder == "Tr" and info.listed:
            there = {
                name: files
                for name, files in info.listed.items()
                if files.image.is_file() and files.label.is_file()
            }
            images = {name: [files.image] for name, files in there.items()}
            labels = {name: [files.label] for name, files in there.items()}
            found.left_out += [
                LeftOut(
                    name, f"{root / 'dataset.json'}: an image or label that it lists for case {name} is missing"
                )
                for name in info.listed.keys() - there.keys()
            ]
        for name in sorted(images.keys() | labels.keys()):
            privacy.learn_identifier(name)
            scans, maps = images.get(name, []), labels.get(name, [])
            if several := _several(name, scans, maps):
                found.left_out.append(several)
            elif not maps:
                reason = f"{scans[0]}: has no labels in labels{folder}"
                found.left_out.append(LeftOut(name, reason, refused=False))
            elif not scans:
                found.left_out.append(LeftOut(name, f"{maps[0]}: has no image in images{folder}"))
            elif women is not None and name in women:
                reason = f"{maps[0]}: a woman, whose label {BOTH_SEXES} is the uterus"
                found.left_out.append(LeftOut(name, reason, refused=False))
            else:
                try:
                    patient = patients.get(name, name)
                    given = split, unknown.get(name, ()), info.ignore
                    case = LabelMapCase(scans[0], maps[0], name, patient, info.labels, root, *given)
                except Exception as error:  # whatever it is, it costs this case alone
                    found.left_out.append(LeftOut(name, f"{scans[0]}: {told(error)}", error=error))
                else:
                    found.cases.append(case)
    note_strangers(found, root, patients)
    if BOTH_SEXES in info.labels and women is None:
        found.notes.append(
            f"label {BOTH_SEXES} is the uterus of women, and no {AMOS_SEXES} says who is one: put AMOS22's "
            "table beside dataset.json, or take the women out"
        )
    return found


def note_strangers(found: Found, root: Path, patients: Mapping[str, str]) -> None:
    """Say which of the cases found a patients.json leaves out: each counts as a patient of its own."""
    strangers = [case.identity for case in found.cases if case.identity not in patients]
    if patients and strangers:
        found.notes.append(
            f"{root / PATIENTS_NAME}: does not name {listed(strangers)}; each counts as a patient of its own"
        )


def _scans(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if p.is_file() and is_scan(p) and not p.name.startswith("."))


def _women(root: Path) -> frozenset[str] | None:
    """Return the names of AMOS22's women; None where no table says who is one."""
    tables = sorted(root.glob(AMOS_SEXES)) or sorted(root.resolve().parent.glob(AMOS_SEXES))
    if not tables:
        return None
    women = set()
    for table in tables:
        try:
            with table.open(newline="", encoding="utf-8-sig") as handle:
                rows = list(csv.DictReader(handle))
            (sex,) = {key for key in rows[0] if key and "sex" in key.lower()}
            women |= {
                f"amos_{int(row['amos_id']):04d}" for row in rows if row[sex].strip().upper().startswith("F")
            }
        except (OSError, UnicodeDecodeError, csv.Error, ValueError, KeyError, IndexError, AttributeError) as error:
            raise InputError(
                f"{table}: expected AMOS22's table with the columns amos_id and Patient's Sex ({error})"
            ) from error
    return frozenset(women)


def find_pairs(root: Path, privacy: Privacy, bars: Bars) -> Found:
    """Find scans with a label map of the same name, in a folder beside theirs or with an ending such as `_seg`.

    A segmentation of 3D Slicer names its structures itself. Those of other label maps are named by dataset.json
    where there is one, else by their values: "1", "2", ...

    Raises:
        InputError: no pair there, or a dataset.json, contoured.json or patients.json that cannot be used.
    """
    found = Found(PAIRS)
    pairs = pairs_in(root)
    if not pairs:
        raise InputError(
            f"{root}: holds no scan with a label map; expected images/CASE.nii.gz and labels/CASE.nii.gz, or "
            "CASE.nii.gz and CASE_seg.nii.gz"
        )
    info = read_dataset_json(root) if (root / "dataset.json").is_file() else None
    patients = patients_of(root)
    values: set[int] = set()
    whole: list[tuple[str, Path, Path]] = []
    segments: dict[str, dict[str, int]] = {}
    progress = bars("reading")
    for done, (name, (scans, maps)) in enumerate(sorted(pairs.items()), start=1):
        privacy.learn_identifier(name)
        if several := _several(name, scans, maps):
            found.left_out.append(several)
        elif not scans or not maps:
            reason = f"{[*scans, *maps][0]}: has no {'label map' if scans else 'scan'} of its name"
            found.left_out.append(LeftOut(name, reason))
        else:
            image, labels = scans[0], maps[0]
            try:
                own = slicer.segments(labels) if slicer.is_segmentation(labels) else {}
                if info is None and not own:
                    values |= set(np.unique(read_labels(labels).array).tolist()) - {0}
                whole.append((name, image, labels))
                if own:
                    segments[name] = {privacy.spoken(spelling): value for spelling, value in own.items()}
            except InputError as error:
                found.left_out.append(LeftOut(name, str(error)))
            except Exception as error:  # whatever it is, it costs this case alone
                found.left_out.append(LeftOut(name, f"{labels}: {told(error)}", error=error))
        progress(done, len(pairs))
    named = info.labels if info is not None else {str(value): value for value in sorted(values)}
    unknown = read_not_contoured(root, dict.fromkeys([*named, *(s for own in segments.values() for s in own)]))
    for name, image, labels in whole:
        try:
            patient, own = patients.get(name, name), segments.get(name, named)
            case = LabelMapCase(image, labels, name, patient, own, root, not_contoured=unknown.get(name, ()))
            found.cases.append(case)
        except Exception as error:  # likewise
            found.left_out.append(LeftOut(name, f"{image}: {told(error)}", error=error))
    note_strangers(found, root, patients)
    return found


def pairs_in(root: Path) -> dict[str, tuple[list[Path], list[Path]]]:
    """Return name to scans and label maps, one of each in a pair. Empty where no scan has a label map."""
    folders = (
        {child.name.lower(): child for child in sorted(root.iterdir()) if child.is_dir()} if root.is_dir() else {}
    )
    images = [folders[name] for name in IMAGE_FOLDERS if name in folders]
    labels = [folders[name] for name in LABEL_FOLDERS if name in folders]
    if images and labels:
        there, masks = _scans(images[0]), _scans(labels[0])
    else:
        both = _scans(root)
        masks = [path for path in both if case_name(path).lower().endswith(LABEL_ENDINGS)]
        there = [path for path in both if not case_name(path).lower().endswith(LABEL_ENDINGS)]
    maps = _by_name(masks, lambda path: _stem(path, LABEL_ENDINGS))
    scans = _scans_by_case(there, maps, IMAGE_ENDINGS)
    if not scans.keys() & maps.keys():
        return {}
    return {name: (scans.get(name, []), maps.get(name, [])) for name in scans.keys() | maps.keys()}


def _by_name(paths: Iterable[Path], name_of: Callable[[Path], str]) -> dict[str, list[Path]]:
    """Sort files by the case whose name they bear."""
    found: dict[str, list[Path]] = {}
    for path in paths:
        found.setdefault(name_of(path), []).append(path)
    return found


def _scans_by_case(
    paths: Sequence[Path], labelled: Collection[str], endings: Sequence[str]
) -> dict[str, list[Path]]:
    """Sort scans by their cases: one whose very name a label map bears is its scan, whatever the name ends in.

    Args:
        paths: the scans.
        labelled: the cases of the label maps.
        endings: what a scan's name may have in addition to its case's.
    """
    there = {case_name(path) for path in paths}

    def case_of(path: Path) -> str:
        name = case_name(path)
        # Where there is a scan x_0000_0000 beside x_0000, that one belongs to the labels x_0000.
        others = any(f"{name}{ending}" in there for ending in endings)
        return name if name in labelled and not others else _stem(path, endings)

    return _by_name(paths, case_of)


def _several(case: str, scans: Sequence[Path], maps: Sequence[Path]) -> LeftOut | None:
    """Leave a case out of which several scans or label maps are there: which of them counts is not known."""
    kinds = [(what, files) for what, files in (("scans", scans), ("label maps", maps)) if len(files) > 1]
    if not kinds:
        return None
    reasons = [f"{' and '.join(map(str, files))}: are {len(files)} {what} of one case" for what, files in kinds]
    return LeftOut(case, f"{'; '.join(reasons)}; take all but one away", files=len(scans) + len(maps))


def _stem(path: Path, endings: Sequence[str]) -> str:
    name = case_name(path)
    for ending in endings:
        if name.lower().endswith(ending) and len(name) > len(ending):
            return name[: -len(ending)]
    return name
