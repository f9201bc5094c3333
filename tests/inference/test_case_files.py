"""Writing one result from Python: the files of `metricunet predict`, under its rules."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from metricunet.errors import InputError
from metricunet.files.claim import claimed
from metricunet.files.nifti import read_labels, write_nifti
from metricunet.files.own import OwnFiles
from metricunet.inference.case_files import provenance_of, write_case
from metricunet.inference.inputs import ScanInput, scans_at
from metricunet.inference.predict import predict
from metricunet.inference.predictor import Predictor
from metricunet.inference.structure_set import ContourOptions
from metricunet.quality.prediction import Prediction
from metricunet.quality.verdict import QualityReport, judge
from tests.support.dicom_series import write_series
from tests.support.threshold_model import GLAND_HU, ball, drawn_scan

GLAND = drawn_scan((ball((0, 0, 0), 18), GLAND_HU))


def judged(model: Path, source: ScanInput) -> tuple[Prediction, QualityReport]:
    scan = source.read()
    prediction = Predictor([model], "cpu").predict(scan)
    return prediction, judge(source.case, scan, prediction, source.notes)


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> ScanInput:
    folder = tmp_path_factory.mktemp("dicom")
    write_series(folder, GLAND.array, spacing_mm=GLAND.spacing_mm, frame_of_reference_uid="1.2.3")
    ((found,), _) = scans_at(folder)
    return found


@pytest.fixture
def nifti(tmp_path: Path) -> ScanInput:
    write_nifti(tmp_path / "scans" / "a.nii.gz", GLAND)
    ((found,), _) = scans_at(tmp_path / "scans")
    return found


def content(path: Path) -> dict[str, Any]:
    """What a verdict says, apart from the hashes of files that hold the time."""
    return {k: v for k, v in json.loads(path.read_text()).items() if k not in ("files", "seal")}


def test_it_writes_what_the_command_writes(bands_model: Path, series: ScanInput, tmp_path: Path) -> None:
    formats = ["seg", "nifti", "rtstruct"]
    options = ContourOptions(smooth=True)
    predict([series.path], [bands_model], tmp_path / "command", formats=formats, smooth=True, device="cpu")
    provenance = {"input_sha256": series.sha256(), **provenance_of([bands_model], 3, options)}
    written = write_case(
        tmp_path / "call",
        *judged(bands_model, series),
        series,
        formats=formats,
        options=options,
        provenance=provenance,
    )
    names = {path.name for path in (tmp_path / "command").iterdir()} - {"run.json"}
    assert {path.name for path in written} == {path.name for path in (tmp_path / "call").iterdir()} == names
    verdict = f"{series.case}.quality.json"
    assert written[-1].name == verdict
    assert content(tmp_path / "call" / verdict) == content(tmp_path / "command" / verdict)
    assert "contours" in content(written[-1])["structures"]["prostate"]
    masks = [(tmp_path / way / f"{series.case}.nii.gz").read_bytes() for way in ("command", "call")]
    assert masks[0] == masks[1]
    # So the command takes it for its own.
    again = predict([series.path], [bands_model], tmp_path / "call", formats=formats, smooth=True, device="cpu")
    assert again.cases[0].skipped


def test_a_result_without_files_and_one_without_a_mask(bands_model: Path, tmp_path: Path) -> None:
    predictor, empty = Predictor([bands_model], "cpu"), drawn_scan()
    for name, scan, number in (("full", GLAND, 2), ("empty", empty, 1)):
        found = predictor.predict(scan)
        written = write_case(tmp_path / "out", found, judge(name, scan, found))
        assert len(written) == number
        assert all(path.is_file() for path in written)
    assert read_labels(tmp_path / "out" / "full.nii.gz").array.any()
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "full.nii.gz",
        "full.quality.json",
        "empty.quality.json",
    }


def test_what_is_not_ours_is_not_replaced(bands_model: Path, nifti: ScanInput, tmp_path: Path) -> None:
    result, out = judged(bands_model, nifti), tmp_path / "out"
    with pytest.raises(InputError, match="is an input"):
        write_case(nifti.path.parent, *result, nifti, overwrite=True)
    (mask, _) = write_case(out, *result, nifti)
    write_case(out, *result, nifti)
    mask.write_bytes(b"corrected by hand")
    with pytest.raises(InputError, match="is there already"):
        write_case(out, *result, nifti)
    assert mask.read_bytes() == b"corrected by hand"
    write_case(out, *result, nifti, overwrite=True)
    assert read_labels(mask).array.any()


def test_the_prediction_of_another_scan_is_not_replaced(
    bands_model: Path, nifti: ScanInput, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    (mask, _) = write_case(out, *judged(bands_model, nifti), nifti)
    before = mask.read_bytes()
    write_nifti(tmp_path / "more" / "a.nii.gz", drawn_scan((ball((4, 0, 2), 16), GLAND_HU)))
    ((other,), _) = scans_at(tmp_path / "more")
    result = judged(bands_model, other)
    with pytest.raises(InputError, match=r"another scan of this name, .*a\.nii\.gz, and would be replaced"):
        write_case(out, *result, other)
    assert mask.read_bytes() == before
    write_case(out, *result, other, overwrite=True)
    assert mask.read_bytes() != before


def test_what_cannot_be_written_is_refused_before_any_file(
    bands_model: Path, nifti: ScanInput, tmp_path: Path
) -> None:
    result, out = judged(bands_model, nifti), tmp_path / "out"
    with pytest.raises(InputError, match=r"a\.nii\.gz: formats=\['rtstruct'\] needs a DICOM series"):
        write_case(out, *result, nifti, formats=["nifti", "rtstruct"])
    with pytest.raises(InputError, match=r"nifti, rtstruct, seg, .*; got 'png'"):
        write_case(out, *result, nifti, formats=["png"])
    with pytest.raises(InputError, match="none is asked for"):
        write_case(out, *result, nifti, options=ContourOptions(smooth=True))
    with pytest.raises(InputError, match="is a file; expected a folder"):
        write_case(nifti.path, *result, nifti)
    assert not out.exists()


def test_a_case_that_another_process_works_on_is_left_to_it(
    bands_model: Path, nifti: ScanInput, tmp_path: Path
) -> None:
    result, out = judged(bands_model, nifti), tmp_path / "out"
    (mask, verdict) = write_case(out, *result, nifti)
    before = verdict.read_bytes(), mask.read_bytes()
    with (
        claimed(OwnFiles(out, verdict.name, "predict").claim, "a prediction of case a"),
        pytest.raises(InputError, match="is going on here already"),
    ):
        write_case(out, *result, nifti)
    assert (verdict.read_bytes(), mask.read_bytes()) == before
