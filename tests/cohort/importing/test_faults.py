"""Whatever goes wrong in one patient, foreseen or not, at whatever step of an import, costs that patient alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from metricunet.cohort.importing import (
    dicom_tree,
    import_cohort,
    label_maps,
    list_names,
    plan,
    run,
    totalsegmentator,
)
from metricunet.cohort.importing.run import IMPORT_NAME
from metricunet.files.dicom import series
from metricunet.files.dicom.header import DicomFile
from metricunet.files.nifti import write_nifti
from tests.support.command import Command
from tests.support.patients import SHAPE, Patient, scan, write_ct, write_labels, write_set

PROSTATE = (6.5, 11.5, [1, 2, 3])
FAULTS = (RuntimeError, MemoryError, OSError, RecursionError, KeyError)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three patients, each with a CT and a structure set. Not to be changed."""
    root = tmp_path_factory.mktemp("faults")
    for name in ("one", "two", "three"):
        patient = Patient(f"Doe{name}^John", f"P-{name}")
        written = write_ct(root / "tree" / name / "ct", patient)
        write_set(root / "tree" / name / "RS.dcm", patient, written, {"Prostate": PROSTATE})
    (root / "names.yaml").write_text("prostate: [Prostate]\n")
    return root / "tree"


@pytest.fixture(scope="module")
def whole(tree: Path) -> dict[str, Any]:
    """What an import leaves in which nothing goes wrong."""
    import_cohort([tree], tree.parent / "whole", names=tree.parent / "names.yaml")
    return content_of(tree.parent / "whole")


def content_of(cohort: Path) -> dict[str, Any]:
    files: dict[str, Any] = {str(p.relative_to(cohort)): p.read_bytes() for p in cohort.rglob("*.nii.gz")}
    for path in cohort.glob("*.json"):
        files[path.name] = json.loads(path.read_text())
    return files


#: Step: what holds the function that fails, and its name.
STEPS: dict[str, tuple[Any, str]] = {
    "open a file": (series, "read_dicom_file"),
    "what kind of file": (series, "check_kind"),
    "look for a scout": (series, "is_localizer"),
    "read a slice": (series, "read_slice"),
    "stack the slices": (series, "stack_slices"),
    "read the header": (series, "read_full_header"),
    "who the patient is": (dicom_tree, "person_of"),
    "learn what is personal": (dicom_tree.Privacy, "learn"),
    "identity of a set": (dicom_tree, "_identity"),
    "read a set": (dicom_tree, "read_rtstruct"),
    "hash what a set holds": (dicom_tree, "_content"),
    "find the series of a set": (dicom_tree, "_shared_out"),
    "make a case": (dicom_tree, "_without_repeats"),
    "plan a case": (plan, "_doubles"),
    "describe what was done before": (plan.PlannedCase, "key"),
    "read the image": (dicom_tree.DicomCase, "read_image"),
    "fill the contours": (dicom_tree.DicomCase, "read_regions"),
    "merge": (run, "merge"),
    "hash the sources": (run, "sha256"),
    "write": (run, "write_nifti"),
}


def belongs(entry: Any, name: str) -> bool:
    """Whether an argument is, or lies in, the folder of a patient, or has the patient's ID in its header."""
    if isinstance(entry, Path):
        return name in entry.parts
    if isinstance(entry, DicomFile):
        return belongs(entry.path, name)
    if isinstance(entry, series.CtSeries):
        return belongs(entry.folder, name)
    if isinstance(entry, dicom_tree.RtStruct | dicom_tree.StructureSet):
        return belongs(entry.path, name)
    if isinstance(entry, dicom_tree.DicomCase):
        return belongs(entry.series, name)
    if isinstance(entry, plan.PlannedCase):
        return belongs(entry.source, name)
    if isinstance(entry, tuple | list):
        return any(belongs(item, name) for item in entry[:1])
    if isinstance(entry, series.SliceHeader):
        return belongs(entry.path, name)
    return isinstance(entry, dicom_tree.Dataset) and entry.get("PatientID") == f"P-{name}"


@contextmanager
def failing(owner: Any, function: str, fault: Exception, hit: Callable[[tuple[Any, ...]], bool]):  # type: ignore[no-untyped-def]
    real = getattr(owner, function)

    def call(*arguments: Any, **options: Any) -> Any:
        if hit(arguments):
            raise fault
        return real(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, function, call)
        yield


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_at_any_step_costs_its_patient_alone(
    tree: Path, whole: Mapping[str, Any], tmp_path: Path, metricunet: Command, step: str, fault: type[Exception]
) -> None:
    owner, function = STEPS[step]
    written: list[Path] = []

    def hit(arguments: tuple[Any, ...]) -> bool:
        if function == "write_nifti":  # cases are written in their order: the second one's image is the third file
            written.append(arguments[0])
            return len(written) == 3
        return any(belongs(entry, "two") for entry in arguments)

    out, names = tmp_path / "cohort", tree.parent / "names.yaml"
    with failing(owner, function, fault("something odd\nover two lines"), hit):
        ended = metricunet("import", tree, "-o", out, "--names", names)
    assert ended.status == 1, ended.err
    assert "Traceback" not in ended.err
    assert 1 <= ended.err.count("refused: ") <= 2  # the series, and the set that was drawn on it
    assert ended.err.count("\n") <= 2
    found = content_of(out)
    assert len(found[IMPORT_NAME]["cases"]) == 2
    for name, content in found.items():
        if name.endswith(".nii.gz"):
            assert content == whole[name]
    assert sum(name.endswith(".nii.gz") for name in found) == 4
    for name in ("contoured.json", "patients.json"):
        assert found[name].items() <= whole[name].items()
    for case, entry in found[IMPORT_NAME]["cases"].items():
        assert entry == whole[IMPORT_NAME]["cases"][case]
    assert any(entry["refused"] for entry in found[IMPORT_NAME]["left_out"])
    assert metricunet("import", tree, "-o", out, "--names", names).status == 0
    again = content_of(out)
    assert {k: v for k, v in again.items() if k != IMPORT_NAME} == {
        k: v for k, v in whole.items() if k != IMPORT_NAME
    }


def test_debug_shows_where_and_a_list_of_names_goes_on(tree: Path, tmp_path: Path, metricunet: Command) -> None:
    def hit(arguments: tuple[Any, ...]) -> bool:
        return any(belongs(entry, "two") for entry in arguments)

    with failing(series, "read_dicom_file", RuntimeError("odd"), hit):
        names = ["--names", tree.parent / "names.yaml"]
        ended = metricunet("--debug", "import", tree, "-o", tmp_path / "cohort", *names)
        assert ended.status == 1
        assert "Traceback" in ended.err
        listed = list_names([tree])
    assert '"Prostate"  # 2 cases' in listed.text
    assert any("an unexpected RuntimeError stopped it: odd" in line for line in listed.refused)


def labelled(folder: Path, names: Mapping[str, str]) -> None:
    """Write scans and label maps: case to the paths of its two files, with {} for the case."""
    image, labels = names["image"], names["labels"]
    for k, case in enumerate(("one", "two", "three")):
        write_nifti(folder / image.format(case), scan(k))
        inside = np.zeros(SHAPE, dtype=bool)
        inside[1:4, 7:12, 7:12] = True
        write_labels(folder / labels.format(case), {1: inside}, scan(k))


LAYOUTS: dict[str, tuple[dict[str, str], Any, str]] = {
    "totalsegmentator": (
        {"image": "{}/ct.nii.gz", "labels": "{}/segmentations/prostate.nii.gz"},
        totalsegmentator,
        "SubjectCase",
    ),
    "nnunet": (
        {"image": "imagesTr/{}_0000.nii.gz", "labels": "labelsTr/{}.nii.gz"},
        label_maps,
        "LabelMapCase",
    ),
    "pairs": ({"image": "images/{}.nii.gz", "labels": "labels/{}.nii.gz"}, label_maps, "LabelMapCase"),
    "values of pairs": ({"image": "images/{}.nii.gz", "labels": "labels/{}.nii.gz"}, label_maps, "read_labels"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("fault", FAULTS[:2])
def test_a_fault_in_finding_a_case_costs_that_case_alone(
    tmp_path: Path, metricunet: Command, layout: str, fault: type[Exception]
) -> None:
    names, owner, function = LAYOUTS[layout]
    labelled(tmp_path / "in", names)
    if layout == "nnunet":
        content = {
            "channel_names": {"0": "CT"},
            "labels": {"background": 0, "prostate": 1},
            "file_ending": ".nii.gz",
        }
        (tmp_path / "in/dataset.json").write_text(json.dumps(content))
    more: list[object] = []
    if "pairs" in layout:
        (tmp_path / "names.yaml").write_text("prostate: ['1']\n")
        more = ["--names", tmp_path / "names.yaml"]

    def hit(arguments: tuple[Any, ...]) -> bool:
        return "two" in str(Path(arguments[0]).relative_to(tmp_path))

    assert metricunet("import", tmp_path / "in", "-o", tmp_path / "whole", *more).status == 0
    with failing(owner, function, fault("odd"), hit):
        ended = metricunet("import", tmp_path / "in", "-o", tmp_path / "out", *more)
    assert (ended.status, ended.err.count("refused: ")) == (1, 1)
    found, whole = (
        {p.name: p.read_bytes() for p in (tmp_path / name).rglob("*.nii.gz")} for name in ("out", "whole")
    )
    assert len(found) == 4
    assert found.items() <= whole.items()
