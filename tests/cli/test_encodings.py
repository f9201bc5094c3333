"""Output that goes to a pipe or file of any encoding: nothing fails, and no number loses its sign."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from metricunet.cohort.importing.names_file import read_names
from metricunet.files.nifti import read_labels, write_nifti

MINUS = "\N{MINUS SIGN}"


def run(encoding: str, *words: object) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "metricunet", *map(str, words)]
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    return subprocess.run(command, capture_output=True, env=environment, check=False)


@pytest.fixture(scope="module")
def folders(tiny_cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A prediction that holds nothing, and its reference."""
    root = tmp_path_factory.mktemp("encodings")
    reference = read_labels(tiny_cohort / "labelsTr/case_00.nii.gz")
    write_nifti(root / "reference/Ärger.nii.gz", reference)
    write_nifti(root / "prediction/Ärger.nii.gz", reference.with_array(np.zeros_like(reference.array)))
    return root / "prediction", root / "reference"


@pytest.mark.parametrize("encoding", ["cp1252", "latin-1", "ascii", "cp437", "utf-8", "utf-16"])
def test_scores_are_printed(folders: tuple[Path, Path], tmp_path: Path, encoding: str) -> None:
    ended = run(encoding, "evaluate", *folders, "-o", tmp_path / "scores")
    assert ended.returncode == 1, ended.stderr.decode(errors="replace")
    assert not ended.stderr
    # Typer takes ASCII for a mistake of the locale, and writes UTF-8 there.
    text = ended.stdout.decode("utf-8" if encoding == "ascii" else encoding)
    (line,) = [line for line in text.splitlines() if "Volume difference" in line]
    sign = MINUS if encoding in ("ascii", "utf-8", "utf-16") else "-"
    assert line.split()[-3].startswith(sign)
    assert "Missed: Ärger" in text


@pytest.mark.parametrize("encoding", ["cp1252", "latin-1", "ascii", "utf-8"])
@pytest.mark.skipif(sys.platform != "linux", reason="names of files are bytes on Linux alone")
def test_errors_name_files_of_any_bytes(tmp_path: Path, encoding: str) -> None:
    for name in (os.fsdecode(b"M\xfcller"), "前列腺"):
        ended = run(encoding, "check", tmp_path / name)
        assert ended.returncode == 2
        assert ended.stderr.startswith(b"error: ")
        assert ended.stderr.count(b"\n") == 1


@pytest.mark.parametrize("encoding", ["cp1252", "latin-1", "ascii", "utf-8", "utf-16"])
def test_a_names_file_that_is_redirected_can_be_read(tmp_path: Path, tiny_cohort: Path, encoding: str) -> None:
    spellings = {"Prostata groß", "前列腺", "Blase – neu", "𝒫"}
    (tmp_path / "in/labelsTr").mkdir(parents=True)
    (tmp_path / "in/imagesTr").mkdir()
    labels = ", ".join(f'"{name}": {k}' for k, name in enumerate(sorted(spellings), start=1))
    (tmp_path / "in/dataset.json").write_text(f'{{"labels": {{"background": 0, {labels}}}}}', encoding="utf-8")
    shutil.copy(tiny_cohort / "imagesTr/case_00_0000.nii.gz", tmp_path / "in/imagesTr/a_0000.nii.gz")
    shutil.copy(tiny_cohort / "labelsTr/case_00.nii.gz", tmp_path / "in/labelsTr/a.nii.gz")
    ended = run(encoding, "import", tmp_path / "in", "--list-names")
    assert ended.returncode == 0, ended.stderr.decode(errors="replace")
    path = tmp_path / "names.yaml"
    path.write_bytes(ended.stdout.replace(b"undecided:", b"organ:") if encoding != "utf-16" else ended.stdout)
    if encoding == "utf-16":
        path.write_text(ended.stdout.decode("utf-16").replace("undecided:", "organ:"), encoding="utf-16")
    assert spellings <= set(read_names(path).structures["organ"])
