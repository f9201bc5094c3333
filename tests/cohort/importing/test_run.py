"""The import as a whole: reruns, stops, foreign folders, the command line, and nothing personal in any byte."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from pydicom.dataset import Dataset

from metricunet.cohort.importing import import_cohort
from metricunet.cohort.importing.run import IMPORT_NAME
from metricunet.cohort.layout import read_cohort
from metricunet.cohort.splits import split_for
from metricunet.errors import InputError
from metricunet.evaluation.compare import evaluate
from metricunet.files.dicom.series import find_series
from metricunet.files.nifti import read_labels, read_nifti
from metricunet.files.rtstruct.read import read_rtstruct
from tests.support.command import Command
from tests.support.patients import Patient, write_ct, write_set

PROSTATE, BLADDER = (6.5, 11.5, [1, 2, 3]), (12.5, 15.5, [2, 3, 4])
NAMES = "prostate: [Prostate]\nbladder: [Bladder]\n"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Three patients; the last one's bladder was not contoured."""
    for k in range(3):
        patient = Patient(f"Doe{k}^John", f"P-{k}00")
        series = write_ct(tmp_path / "tree" / str(k) / "ct", patient)
        squares = {"Prostate": PROSTATE, "Bladder": BLADDER if k < 2 else None}
        write_set(tmp_path / "tree" / str(k) / "RS.dcm", patient, series, squares)
    (tmp_path / "names.yaml").write_text(NAMES)
    return tmp_path / "tree"


def stamps(folder: Path) -> dict[str, int]:
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in folder.rglob("*.nii.gz")}


def content_of(cohort: Path) -> dict[str, object]:
    """Every file of a cohort; of the record what does not change from one run to the next."""
    files: dict[str, object] = {
        str(p.relative_to(cohort)): p.read_bytes() for p in cohort.rglob("*") if p.is_file()
    }
    record = json.loads((cohort / IMPORT_NAME).read_text())
    passing = ("started", "timings_s", "arguments", "seal")
    return files | {IMPORT_NAME: {key: value for key, value in record.items() if key not in passing}}


def test_a_rerun_skips_what_is_done_and_makes_anew_what_changed(tree: Path, tmp_path: Path) -> None:
    names, cohort = tmp_path / "names.yaml", tmp_path / "cohort"
    first = import_cohort([tree], cohort, names=names)
    assert first.done_before == 0
    before = stamps(cohort)
    again = import_cohort([tree], cohort, names=names)
    assert again.done_before == 3
    assert again.cases == first.cases
    assert stamps(cohort) == before
    missing = sorted(before)[0]
    (cohort / missing).unlink()
    assert import_cohort([tree], cohort, names=names).done_before == 2
    assert stamps(cohort).keys() == before.keys()
    names.write_text("bladder: [Bladder]\nprostate: [Prostate]\n")
    assert import_cohort([tree], cohort, names=names).done_before == 0
    content = read_cohort(cohort)
    assert content.info.labels == {"bladder": 1, "prostate": 2}
    for case in content.training:
        assert case.label is not None
        assert int((read_labels(case.label).array == 2).sum()) == 3 * 25
    path = next(tree.rglob("RS.dcm"))
    os.utime(path, ns=(1, 1))
    assert import_cohort([tree], cohort, names=names).done_before == 2


def test_an_import_that_is_stopped_goes_on_and_cannot_be_trained_on_before(tree: Path, tmp_path: Path) -> None:
    names, cohort = tmp_path / "names.yaml", tmp_path / "cohort"

    def stopping(name: str):  # type: ignore[no-untyped-def]
        def progress(done: int, total: int) -> None:
            if name == "importing" and done == 2:
                raise KeyboardInterrupt

        return progress

    with pytest.raises(KeyboardInterrupt):
        import_cohort([tree], cohort, names=names, bars=stopping)
    with pytest.raises(InputError, match=r"no dataset\.json here"):
        read_cohort(cohort)
    half = stamps(cohort)
    assert len(half) == 4
    assert import_cohort([tree], cohort, names=names).done_before == 2
    assert half.items() <= stamps(cohort).items()
    whole = tmp_path / "whole"
    import_cohort([tree], whole, names=names)
    assert content_of(cohort) == content_of(whole)


#: Runs an import in which the process is killed while the labels of the second case are being written.
KILLED = """
import os, signal, sys
from pathlib import Path
import metricunet.files.nifti as nifti
from metricunet.cohort.importing import import_cohort

save, written = nifti.nib.save, []

def killing(image, path):
    written.append(path)
    if len(written) == 4:
        Path(path).write_bytes(b"half of it")
        os.kill(os.getpid(), signal.SIGKILL)
    save(image, path)

nifti.nib.save = killing
import_cohort([Path(sys.argv[1])], Path(sys.argv[2]), names=Path(sys.argv[3]))
"""


def test_a_killed_import_leaves_whole_files_and_is_gone_on_with(tree: Path, tmp_path: Path) -> None:
    names, cohort = tmp_path / "names.yaml", tmp_path / "cohort"
    ended = subprocess.run([sys.executable, "-c", KILLED, tree, cohort, names], check=False)
    assert ended.returncode == -signal.SIGKILL
    assert len(list(cohort.rglob("[!.]*.nii.gz"))) == 3
    assert len(list(cohort.rglob(".partial-*"))) == 1
    for path in cohort.rglob("[!.]*.nii.gz"):
        read_nifti(path)
    assert import_cohort([tree], cohort, names=names).done_before == 1
    assert len(read_cohort(cohort).training) == 3
    assert not list(cohort.rglob(".partial-*"))


def test_foreign_folders_and_other_sources_are_not_touched(tree: Path, tmp_path: Path) -> None:
    names, cohort = tmp_path / "names.yaml", tmp_path / "cohort"
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("all my work")
    with pytest.raises(
        InputError, match=r"full: holds other files and no import.json; choose a new or empty folder"
    ):
        import_cohort([tree], tmp_path / "full", names=names)
    with pytest.raises(InputError, match="is a file"):
        import_cohort([tree], names, names=names)
    import_cohort([tree], cohort, names=names)
    before = stamps(cohort)
    with pytest.raises(InputError, match=r"holds 2 cases \(.*\) that the sources do not; name all its sources"):
        import_cohort([tree / "0"], cohort, names=names)
    assert stamps(cohort) == before
    assert (cohort / "dataset.json").is_file()
    (cohort / IMPORT_NAME).write_text("{")
    with pytest.raises(
        InputError, match=r"import.json: is there already, and it was not written by this program or was changed"
    ):
        import_cohort([tree], cohort, names=names)


def test_the_cohort_is_ready_for_splits_and_for_scoring(tree: Path, tmp_path: Path) -> None:
    result = import_cohort([tree], tmp_path / "cohort", names=tmp_path / "names.yaml")
    cohort = read_cohort(tmp_path / "cohort")
    assert len(split_for(cohort, 0).train) == 2
    found = evaluate(tmp_path / "cohort" / "labelsTr", tmp_path / "cohort" / "labelsTr", tmp_path / "scores")
    assert (found.summary["bladder"].n, found.summary["bladder"].not_contoured) == (2, 1)
    assert found.summary["bladder"].true_absent == found.summary["bladder"].missed == 0
    assert found.summary["prostate"].measures["dice"].mean == 1
    assert len(result.cases) == 3


SECRET = Patient("Zwölfender^Ottokar=銭形^平次", "MRN-90210", "19310728")
UIDS_TOO = ("hash", "keep")


@pytest.mark.parametrize("uids", UIDS_TOO)
def test_no_name_and_no_birth_date_reaches_any_output(
    tmp_path: Path, metricunet: Command, caplog: pytest.LogCaptureFixture, uids: str
) -> None:
    """Not from headers, folders, file names, ROI names or descriptions, whether all goes well or not."""
    root = tmp_path / "Zwölfender_Ottokar_1931-07-28"

    def described(k: int, dataset) -> None:  # type: ignore[no-untyped-def]
        dataset.SpecificCharacterSet = "ISO_IR 192"
        dataset.SeriesDescription = "CT Zwoelfender 28.07.1931"

    good = write_ct(root / "ottokar ct", SECRET, described)
    write_set(
        root / "ZWÖLFENDER.dcm", SECRET, good, {"Prostate": PROSTATE, "PTV Zwölfender": PROSTATE, "Bladder": None}
    )
    bad = write_ct(root / "1931" / "zwoelfenderottokar", SECRET, described, leave_out=[2])
    write_set(root / "RS_19310728.dcm", SECRET, bad, {"Ottokar": PROSTATE})
    names = tmp_path / "names.yaml"
    said = []
    said.append(metricunet("import", root, "--list-names"))
    names.write_text("prostate: [Prostate]\nbladder: [Bladder]\n")
    said.append(metricunet("import", root, "-o", tmp_path / "cohort", "--names", names, "--uids", uids))
    assert "in no list: 'PTV REDACTED' in 1" in said[-1].err
    names.write_text("prostate: [Prostate, 'PTV REDACTED']\nbladder: [Bladder]\n")
    said.append(metricunet("import", root, "-o", tmp_path / "cohort", "--names", names, "--uids", uids))
    assert "drawn twice" in said[-1].err
    names.write_text("ptv: ['PTV REDACTED']\nprostate: [Prostate]\nbladder: [Bladder]\n")
    said.append(metricunet("import", root, "-o", tmp_path / "cohort", "--names", names, "--uids", uids))
    assert [ended.status for ended in said] == [0, 2, 2, 1]
    assert "refused:" in said[-1].err
    texts = [text.encode() for ended in said for text in (ended.out, ended.err)] + [caplog.text.encode()]
    files = [p for p in (tmp_path / "cohort").rglob("*") if p.is_file()]
    assert len(files) == 6
    for path in files:
        content = path.read_bytes()
        texts += [str(path.relative_to(tmp_path)).encode(), content]
        if path.suffix == ".gz":
            texts.append(gzip.decompress(content))
    secrets = ["zwölf", "zwoelf", "zwolf", "ottokar", "銭形", "平次", "19310728", "1931-07-28", "28.07.1931"]
    for text in texts:
        lowered = text.lower()
        for secret in secrets:
            for encoding in ("utf-8", "latin-1") if secret.isascii() or "ö" in secret else ("utf-8",):
                assert secret.encode(encoding) not in lowered, (secret, text[:300])
    written = b"".join(p.read_bytes() for p in files)
    assert (b"MRN-90210" in written) is False
    assert (good.series_uid.encode() in written) == (uids == "keep")
    assert (bad.series_uid.encode() in written) == (uids == "keep")


def test_the_verb_prints_what_it_did(tree: Path, tmp_path: Path, metricunet: Command) -> None:
    listed = metricunet("import", tree, "--list-names")
    assert listed.status == 0
    assert '- "Prostate"  # 3 cases' in listed.out
    ended = metricunet("import", tree, "-o", tmp_path / "cohort", "--names", tmp_path / "names.yaml")
    assert ended.status == 0
    assert ended.out.splitlines()[:3] == [
        f"3 cases of 3 patients in {tmp_path / 'cohort'}",
        "prostate: 3 contoured",
        "bladder: 2 contoured, 1 not contoured",
    ]
    again = metricunet("import", tree, "-o", tmp_path / "cohort", "--names", tmp_path / "names.yaml")
    assert again.out.splitlines()[0].endswith(", 3 of them done before")
    nothing = metricunet("import", tree)
    assert nothing.status == 2
    assert nothing.err == "error: import needs -o COHORT, or --list-names to see the names of structures first\n"
    record = json.loads((tmp_path / "cohort" / IMPORT_NAME).read_text())
    assert record["command"] == "import"
    assert record["arguments"]["uids"] == "hash"


def test_a_full_disk_is_no_fault_of_the_case(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import metricunet.files.nifti as nifti

    def full(image: object, path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(nifti.nib, "save", full)
    with pytest.raises(InputError, match="the disk is full"):
        import_cohort([tree], tmp_path / "cohort", names=tmp_path / "names.yaml")
    monkeypatch.undo()
    assert len(import_cohort([tree], tmp_path / "cohort", names=tmp_path / "names.yaml").cases) == 3


THORAX = """\
GTVp: [GTVp]
CTVp: [CTVp]
PTV: [PTV4140]
SpinalCord: [SPINALCORD]
Heart: [HEART]
Liver: [LIVER]
Lung_L: [LUNG_L]
Lung_R: [LUNG_R]
Lungs: [LUNGS]
"""


def test_a_real_thorax_imports_with_all_its_structures(shared_data: Path, tmp_path: Path) -> None:
    """Nine ROIs; each is, but for the voxels that an earlier one has, the mask that the reader gives alone."""
    (tmp_path / "names.yaml").write_text(THORAX)
    folder = shared_data / "thorax_rt_dicom"
    result = import_cohort([folder], tmp_path / "cohort", names=tmp_path / "names.yaml")
    assert not result.failed
    assert all(counts == {"contoured": 1} for counts in result.structures.values())
    assert len(result.structures) == 9
    (case,) = read_cohort(tmp_path / "cohort").training
    assert case.not_contoured == ()
    assert case.label is not None
    (series,) = find_series(folder).series
    assert case.name == series.case
    labels = read_labels(case.label).reordered_like(series.geometry).array
    (path,) = (p for p in folder.iterdir() if not p.name.startswith("CT") and p.suffix == ".dcm")
    drawn = read_rtstruct(path, series)
    taken = np.zeros(labels.shape, dtype=bool)
    spelled = [line.split("[")[1].rstrip("]") for line in THORAX.splitlines()]
    for value, name in enumerate(spelled, start=1):
        mask = drawn.mask(name, series.geometry).array != 0
        np.testing.assert_array_equal(labels == value, mask & ~taken)
        taken |= mask
    assert any("keeps" in note and "LUNGS" in note for note in result.notes)


def test_real_structure_sets_without_their_scans_are_named(
    shared_data: Path, tmp_path: Path, metricunet: Command
) -> None:
    folder = shared_data / "rtstruct_edge_cases"
    listed = metricunet("import", folder, "--list-names")
    assert listed.status == 0
    assert '- "PROSTATE"  # 0 cases; 1 structure set without a scan\n' in listed.out
    assert '- "PROS"  # 0 cases; 1 structure set without a scan, 1 with nothing drawn\n' in listed.out
    ended = metricunet("import", folder, "-o", tmp_path / "cohort")
    assert ended.status == 2
    assert len(ended.err.splitlines()) == 1
    frame = "1.3.12.2.1107.5.1.4.100020.30000019091622110670800000006"
    assert (
        f"prostate_no_referenced_frame.dcm: there is no CT series in its frame of reference, {frame}" in ended.err
    )
    assert "empty_rois_phantom.dcm: was drawn on series 1.2.840.113619.2.55.3.671756986" in ended.err
    assert not (tmp_path / "cohort").exists()


def test_a_scan_too_bright_for_hounsfield_units_is_left_out(tree: Path, tmp_path: Path) -> None:
    def bright(k: int, dataset: Dataset) -> None:
        dataset.RescaleSlope, dataset.RescaleIntercept = 100, -4000

    patient = Patient("Roe^Jane", "P-900")
    series = write_ct(tree / "9" / "ct", patient, bright)
    write_set(tree / "9" / "RS.dcm", patient, series, {"Prostate": PROSTATE, "Bladder": BLADDER})
    result = import_cohort([tree], tmp_path / "cohort", names=tmp_path / "names.yaml")
    (refused,) = result.refused
    assert "the highest value is" in refused
    assert "no Hounsfield units" in refused
    assert len(result.cases) == 3


def test_only_the_spellings_that_a_names_file_does_not_sort_are_listed(
    tree: Path, tmp_path: Path, metricunet: Command
) -> None:
    names = tmp_path / "some.yaml"
    names.write_text("prostate: [Prostate]\n")
    listed = metricunet("import", tree, "--list-names", "--names", names)
    assert listed.status == 0
    assert '"Bladder"' in listed.out
    assert '"Prostate"' not in listed.out
    assert "ignore" not in yaml.safe_load(listed.out)
    names.write_text("prostate: [Prostate]\nignore: ['*']\n")
    listed = metricunet("import", tree, "--list-names", "--names", names)
    assert listed.out.startswith("# 3 cases, 0 spellings that the names file does not sort. ")
    assert yaml.safe_load(listed.out) is None
    missing = metricunet("import", tree, "--list-names", "--names", tmp_path / "none.yaml")
    assert missing.status == 2
    assert "none.yaml" in missing.err


@pytest.mark.parametrize("words", ["-o cohort", "--overwrite", "--engine ray", "--uids keep"])
def test_names_are_listed_without_what_an_import_takes(tree: Path, metricunet: Command, words: str) -> None:
    ended = metricunet("import", tree, "--list-names", *words.split())
    assert ended.status == 2
    option = words.split()[0]
    assert ended.err == f"error: --list-names imports nothing, so {option} would do nothing; leave it out\n"
