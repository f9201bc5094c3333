"""What training refuses, and what it is told to begin with."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from metricunet.errors import InputError
from metricunet.files.nifti import read_labels, write_nifti
from tests.support.cohorts import TINY_SETTINGS, make_scan, make_tiny_cohort
from tests.support.command import Command


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("value", "label value 3"),
        ("fraction", "whole numbers"),
        ("grid", "another grid"),
        ("json", "no dataset.json"),
    ],
)
def test_train_refuses_bad_labels(
    metricunet: Command, tiny_cohort: Path, tmp_path: Path, fault: str, words: str
) -> None:
    cohort = Path(shutil.copytree(tiny_cohort, tmp_path / "cohort", ignore=shutil.ignore_patterns("prepared")))
    path = cohort / "labelsTr" / "case_01.nii.gz"
    labels = read_labels(path)
    if fault == "value":
        write_nifti(path, labels.with_array(labels.array * 3))
    elif fault == "fraction":
        write_nifti(path, labels.with_array(labels.array * np.float32(0.5)))
    elif fault == "grid":
        write_nifti(path, labels.crop((1, 0, 0), labels.array.shape))
    else:
        (cohort / "dataset.json").unlink()
    ended = metricunet("train", cohort, "-o", tmp_path / "run")
    assert ended.status == 2
    assert words in ended.err
    assert ended.err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_train_names_a_bad_setting(metricunet: Command, tiny_cohort: Path, tmp_path: Path) -> None:
    for words, message in (
        (["--set", "segment.epoch=3"], "segment.epoch"),
        (["--preset", "huge"], "default, small"),
        (["--fold", "x"], "--fold"),
    ):
        ended = metricunet("train", tiny_cohort, "-o", tmp_path / "run", *words)
        assert ended.status == 2
        assert message in ended.err
    assert not (tmp_path / "run").exists()


def test_scans_without_contours_are_prepared_after_those_with_them(
    metricunet: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(run: object) -> None:
        raise InputError("all is prepared")  # what follows has tests of its own

    monkeypatch.setattr("metricunet.training.fit.train_locate", stop)
    cohort = make_tiny_cohort(tmp_path / "cohort", 3)
    for k in (10, 11):
        write_nifti(cohort / "imagesUnlabeled" / f"case_{k}_0000.nii.gz", make_scan(k)[0])
    words = [word for setting in (*TINY_SETTINGS, "teacher.share=0.5") for word in ("--set", setting)]
    ended = metricunet("train", cohort, "-o", tmp_path / "run", "--preset", "small", "--device", "cpu", *words)
    assert (ended.status, ended.err) == (2, "error: all is prepared\n")


def test_the_weights_to_begin_with_have_another_word(
    metricunet: Command, tiny_cohort: Path, tmp_path: Path
) -> None:
    for word in ("--init", "--pretrained"):
        ended = metricunet("train", tiny_cohort, "-o", tmp_path / "run", word, tmp_path / "none.safetensors")
        assert ended.status == 2
        assert "none.safetensors" in ended.err
    assert not (tmp_path / "run").exists()
