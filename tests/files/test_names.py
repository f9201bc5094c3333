"""Names of files: as long as the file system bears, and one line beyond it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from metricunet.errors import InputError
from metricunet.files.names import check_name_fits


@pytest.mark.parametrize("letter", ["a", "é", "前"])
def test_the_longest_name_fits_and_one_byte_more_does_not(tmp_path: Path, letter: str) -> None:
    most = os.pathconf(tmp_path, "PC_NAME_MAX")
    room = most - len(".nii.gz")
    name = letter * (room // len(letter.encode()))
    name += "x" * (room - len(name.encode()))
    check_name_fits(tmp_path / name, ".nii.gz", ".dcm")
    (tmp_path / f"{name}.nii.gz").touch()
    with pytest.raises(InputError, match=rf"would have {most + 1} bytes, and at most {most}") as caught:
        check_name_fits(tmp_path / f"{name}x", ".dcm", ".nii.gz")
    assert "\n" not in str(caught.value)
    with pytest.raises(OSError, match="too long"):
        (tmp_path / f"{name}x.nii.gz").touch()


def test_a_folder_that_is_not_there_yet_is_its_parents(tmp_path: Path) -> None:
    check_name_fits(tmp_path / "a" / "b" / ("x" * 200))
    with pytest.raises(InputError, match="would have 5000 bytes"):
        check_name_fits(tmp_path / "a" / "b" / ("x" * 5000))


def test_bytes_that_are_no_text_count_as_one_each(tmp_path: Path) -> None:
    most = os.pathconf(tmp_path, "PC_NAME_MAX")
    check_name_fits(tmp_path / os.fsdecode(b"\xfc" * most))
    with pytest.raises(InputError):
        check_name_fits(tmp_path / os.fsdecode(b"\xfc" * (most + 1)))
