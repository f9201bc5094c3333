"""nnU-Net's raw layout: dataset.json, imagesTr, labelsTr, imagesTs, labelsTs; and imagesUnlabeled beside it.

A case CASE is `imagesTr/CASE_0000.nii.gz` with `labelsTr/CASE.nii.gz`, or what the key `dataset` of dataset.json
says it is. Cohorts of one channel made for nnU-Net work as they are, except those with regions (labels of several
values), and cohorts written here work in nnU-Net. `imagesUnlabeled/CASE_0000.nii.gz` are scans that nobody
contoured, which nnU-Net overlooks (`metricunet.cohort.uncontoured`). `contoured.json` says which structures were
contoured where (`metricunet.cohort.contoured`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from metricunet.cohort.contoured import CONTOURED_NAME, read_not_contoured
from metricunet.errors import InputError
from metricunet.files.json_file import read_json
from metricunet.files.scan import case_name, is_scan

#: The only channel: nnU-Net marks the first one like this.
CHANNEL_SUFFIX = "_0000"
#: The name of value 0, in capitals or not.
BACKGROUND = "background"
#: What `images` is followed by in the name of the folder of scans without labels.
UNLABELED = "Unlabeled"


@dataclass(frozen=True)
class ListedFiles:
    """The files of a training case that dataset.json names; whether they are there is not known."""

    image: Path
    label: Path


@dataclass(frozen=True)
class DatasetInfo:
    """What dataset.json says.

    Attributes:
        labels: structure name to its value in the label files, background left out.
        ignore: value of voxels that nobody contoured, or None.
        trained_on: `synthetic` for phantoms; what the user says otherwise; None if the file is silent.
        description: free text.
        listed: training case to its files, where dataset.json lists them itself; these are all there are, then.
    """

    labels: dict[str, int]
    ignore: int | None = None
    trained_on: str | None = None
    description: str = ""
    listed: Mapping[str, ListedFiles] = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    """One scan and, for all but unseen scans, its contours.

    Attributes:
        name: name of the case.
        image: file of the scan.
        label: file of the labels, if there is one.
        not_contoured: structures of which the labels say nothing: their voxels are among the background's.
    """

    name: str
    image: Path
    label: Path | None
    not_contoured: tuple[str, ...] = ()


@dataclass(frozen=True)
class Cohort:
    """A folder of cases.

    Attributes:
        folder: the folder.
        info: what its dataset.json says.
        training: cases with labels.
        test: cases of imagesTs, with or without labels.
        unlabeled: scans of imagesUnlabeled; of each every structure counts as not contoured.
    """

    folder: Path
    info: DatasetInfo
    training: tuple[Case, ...]
    test: tuple[Case, ...]
    unlabeled: tuple[Case, ...] = ()


def read_dataset_json(folder: Path) -> DatasetInfo:
    """Read `dataset.json` of a cohort.

    Raises:
        InputError: if the file is missing, not JSON, has no usable labels, or more than one channel.
    """
    path = folder / "dataset.json"
    if not path.is_file():
        raise InputError(
            f"{folder}: no dataset.json here; expected an nnU-Net raw data set "
            "(dataset.json, imagesTr/CASE_0000.nii.gz, labelsTr/CASE.nii.gz)"
        )
    content = read_json(path)
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected a JSON object, found {type(content).__name__}")
    labels = _labels(path, content.get("labels"))
    ignore = labels.pop("ignore", None)
    labels.pop(BACKGROUND, None)
    if not labels:
        raise InputError(f"{path}: labels name no structure beside the background")
    channels = content.get("channel_names", content.get("modality", {"0": "CT"}))
    if not isinstance(channels, dict | list) or len(channels) != 1:  # people write ["CT"]
        raise InputError(f"{path}: channel_names must hold one channel (CT); found {_shown(channels)}")
    trained_on = content.get("trained_on")
    return DatasetInfo(
        labels=labels,
        ignore=ignore,
        trained_on=None if trained_on is None else str(trained_on),
        description=str(content.get("description", "")),
        listed=_listed(path, content.get("dataset")),
    )


def _listed(path: Path, found: Any) -> dict[str, ListedFiles]:
    """Read the key `dataset`, by which nnU-Net finds training cases outside imagesTr and labelsTr."""
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise InputError(f"{path}: dataset is {_shown(found)}; expected an object of case to its images and label")
    listed: dict[str, ListedFiles] = {}
    for name, entry in found.items():
        if not name or name.startswith(".") or "/" in name or "\\" in name:
            raise InputError(
                f"{path}: dataset: {_shown(name)} cannot be a case's name, for files are named after it"
            )
        images = entry.get("images") if isinstance(entry, dict) else None
        label = entry.get("label") if isinstance(entry, dict) else None
        if not isinstance(images, list) or not all(isinstance(p, str) for p in [*images, label]):
            raise InputError(
                f'{path}: dataset: case {_shown(name)} needs {{"images": [FILE], "label": FILE}}; found '
                f"{_shown(entry)}"
            )
        if len(images) != 1:
            raise InputError(
                f"{path}: dataset: case {_shown(name)} has {len(images)} images; expected one, the CT alone"
            )
        listed[name] = ListedFiles(path.parent / images[0], path.parent / str(label))
    return listed


def _shown(value: Any) -> str:
    """A value of any size, as it may stand in a message."""
    return repr(value)[:100]


def _is_number(text: Any) -> bool:
    return isinstance(text, str) and text.isascii() and text.isdecimal() and len(text) <= 5


def _labels(path: Path, found: Any) -> dict[str, int]:
    if not isinstance(found, dict) or not found:
        raise InputError(f'{path}: labels must be an object such as {{"background": 0, "prostate": 1}}')
    if all(_is_number(k) and isinstance(v, str) and not _is_number(v) for k, v in found.items()):
        found = {name: int(value) for value, name in found.items()}  # the older spelling of nnU-Net v1
    labels: dict[str, int] = {}
    for name, value in found.items():
        if isinstance(value, list):
            raise InputError(
                f"{path}: label {_shown(name)} is a region of several values; regions are not supported"
            )
        if _is_number(value):
            value = int(value)  # nnU-Net reads "1" as 1
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 65535:
            raise InputError(
                f"{path}: label {_shown(name)} has the value {_shown(value)}; expected a whole number"
            )
        background = name.casefold() == BACKGROUND
        if (value == 0) != background:
            raise InputError(
                f"{path}: value 0 is the background's and only the background's; found {_shown(name)}: {value}. "
                f'Write "{BACKGROUND}": 0, and for each structure its name and its value'
            )
        labels[BACKGROUND if background else name] = value
    if len(set(labels.values())) != len(labels):
        raise InputError(f"{path}: two labels share one value: {_shown(labels)}")
    return labels


def dataset_content(
    labels: Mapping[str, int], num_training: int, description: str, trained_on: str
) -> dict[str, Any]:
    """Return what `dataset.json` holds."""
    return {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, **labels},
        "numTraining": num_training,
        "file_ending": ".nii.gz",
        "description": description,
        "trained_on": trained_on,
    }


def image_path(folder: Path, case: str, split: str = "Tr") -> Path:
    """Return where the image of a new case is written."""
    return folder / f"images{split}" / f"{case}{CHANNEL_SUFFIX}.nii.gz"


def label_path(folder: Path, case: str, split: str = "Tr") -> Path:
    """Return where the labels of a new case are written."""
    return folder / f"labels{split}" / f"{case}.nii.gz"


def read_cohort(folder: Path) -> Cohort:
    """Find the cases of a cohort; files are not opened.

    Raises:
        InputError: if the layout is not nnU-Net's, a training image has no labels or the reverse, or
            contoured.json names a case or a structure that is not there.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    info = read_dataset_json(folder)
    missing = read_not_contoured(folder, info.labels)
    training = _listed_cases(folder, info, missing) if info.listed else _cases(folder, "Tr", True, missing)
    if not training:
        raise InputError(f"{folder}: imagesTr holds no case; expected imagesTr/CASE_0000.nii.gz")
    test = _cases(folder, "Ts", False, missing)
    nothing = tuple(info.labels)
    unlabeled = tuple(replace(case, not_contoured=nothing) for case in _cases(folder, UNLABELED, False, missing))
    for case in unlabeled:
        if case.label is not None:
            raise InputError(
                f"{case.label}: labels of a scan in images{UNLABELED}; move the two to labelsTr and imagesTr"
            )
        missing.pop(case.name, None)  # it has no labels, so nothing of it can be contoured
    for name in missing.keys() - {case.name for case in (*training, *test)}:
        raise InputError(
            f"{folder / CONTOURED_NAME}: names case {_shown(name)}, which neither imagesTr nor imagesTs holds"
        )
    return Cohort(folder, info, training, test, unlabeled)


def _listed_cases(folder: Path, info: DatasetInfo, missing: Mapping[str, tuple[str, ...]]) -> tuple[Case, ...]:
    for name, files in info.listed.items():
        for what, path in (("image", files.image), ("label", files.label)):
            if not path.is_file() or not is_scan(path):
                reason = "no such file" if not path.is_file() else "neither NIfTI, NRRD nor MetaImage by its name"
                raise InputError(
                    f"{path}: {reason}; {folder / 'dataset.json'} names it as the {what} of case {_shown(name)}"
                )
    return tuple(Case(n, f.image, f.label, missing.get(n, ())) for n, f in sorted(info.listed.items()))


def _cases(
    folder: Path, split: str, labels_needed: bool, missing: Mapping[str, tuple[str, ...]]
) -> tuple[Case, ...]:
    images: dict[str, Path] = {}
    for path in sorted(p for p in (folder / f"images{split}").glob("*") if is_scan(p)):
        if path.name.startswith("."):
            continue
        name = case_name(path)
        if not name.endswith(CHANNEL_SUFFIX):
            raise InputError(
                f"{path}: expected a name that ends in {CHANNEL_SUFFIX} before the suffix (channel 0: CT); rename "
                "the images, or make a cohort of this folder with `metricunet import`, which takes such names"
            )
        name = name[: -len(CHANNEL_SUFFIX)]
        if name in images:
            raise InputError(f"{path}: case {name} occurs twice; see also {images[name].name}")
        images[name] = path
    labels: dict[str, Path] = {}
    for path in sorted(p for p in (folder / f"labels{split}").glob("*") if is_scan(p)):
        if path.name.startswith("."):
            continue
        other = labels.setdefault(case_name(path), path)
        if other is not path:
            raise InputError(
                f"{path}: labels of case {case_name(path)} occur twice; see also {other.name}, and take one of "
                "the two away"
            )
    for name in sorted(labels.keys() - images.keys()):
        raise InputError(
            f"{labels[name]}: labels without an image; expected images{split}/{name}{CHANNEL_SUFFIX}.nii.gz"
        )
    if labels_needed:
        for name in sorted(images.keys() - labels.keys()):
            raise InputError(f"{images[name]}: an image without labels; expected labels{split}/{name}.nii.gz")
    return tuple(Case(name, path, labels.get(name), missing.get(name, ())) for name, path in images.items())
