"""What `import metricunet` offers, how it shows itself, and that what is wrong is said in a line."""

from __future__ import annotations

import errno
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from lightning.fabric.loggers import CSVLogger

import metricunet as mu
from metricunet.api import Model, Result
from metricunet.engine import Serial
from metricunet.files.nifti import write_nifti
from metricunet.volume import Geometry, Volume
from tests.support.threshold_model import drawn_scan


class TestImport:
    def test_it_loads_nothing_until_a_name_is_used(self) -> None:
        code = (
            "import sys, metricunet as mu\n"
            "heavy = {'torch', 'numpy', 'scipy', 'nibabel', 'pydicom'}\n"
            "assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()\n"
            "assert set(mu.__all__) <= set(dir(mu))\n"
            "mu.InputError, mu.__version__\n"
            "assert not heavy & sys.modules.keys()\n"
        )
        subprocess.run([sys.executable, "-c", code], check=True)

    def test_every_name_is_there(self) -> None:
        assert all(getattr(mu, name) is not None for name in mu.__all__)
        with pytest.raises(AttributeError, match="no attribute 'segment'"):
            mu.segment  # noqa: B018


def test_what_is_shown_fits_on_a_line(result: Result, model: Model, scan: Path, nothing: Result) -> None:
    shown = [
        (result, "Result(pelvis: prostate 2"),
        (nothing, "Result(scan: prostate not found, verdict fail"),
        (model, "Model(model.safetensors: prostate, bladder, on cpu)"),
        (
            result.scan,
            "Scan(pelvis: Volume(44 x 60 x 64 voxels (slice, row, column) of 2.5 x 1.9 x 1.7 mm, int16)",
        ),
        (result.labels, "Volume(44 x 60 x 64 voxels (slice, row, column) of 2.5 x 1.9 x 1.7 mm, uint8)"),
        (result.labels.geometry, "Geometry(44 x 60 x 64 voxels"),
        (result.quality, "QualityReport(pelvis: pass)"),
        (nothing.quality, "QualityReport(scan: fail; "),
        (result.prediction, "Prediction(prostate found, confidence "),
        (result.plot(), "Picture(pelvis: prostate"),
        (mu.evaluate(result, result.labels)["prostate"], "Measures(dice=1, asd_mm=0, "),
        (mu.evaluate(nothing, nothing.labels)["prostate"], "Measures(true_absent)"),
    ]
    for value, beginning in shown:
        assert repr(value).startswith(beginning)
        assert "\n" not in repr(value)
        assert len(repr(value)) < 170


ARRAY = np.zeros((8, 8, 8), dtype=np.int16)
ARRAY_20 = np.zeros((20, 20, 20), dtype=np.int16)


def two_scans(folder: Path) -> Path:
    for name in ("a.nii.gz", "b.nii.gz"):
        write_nifti(folder / name, drawn_scan(shape=(20, 20, 20)))
    return folder


def magnetic(folder: Path) -> Volume:
    return Volume(
        np.arange(8000, dtype=np.int16).reshape(20, 20, 20), Geometry.from_parts((20, 20, 20), (2, 2, 2))
    )


def holed(folder: Path) -> Volume:
    array = np.full((20, 20, 20), -100.0)
    array[3, 4, 5] = np.nan
    return mu.load_scan(array, affine=np.eye(4)).volume


def with_a_hole(value: float) -> Volume:
    array = np.full((20, 20, 20), -100.0)
    array[0, 0, 0] = -1000.0
    array[3, 4, 5] = value
    return Volume(array, Geometry.from_parts((20, 20, 20), (2, 2, 2)))


def cut_short(folder: Path) -> Any:
    """An image of nibabel whose file was damaged after it was opened."""
    path = folder / "short.nii"
    nib.save(nib.Nifti1Image(ARRAY, np.eye(4)), path)
    image = nib.load(path)
    path.write_bytes(path.read_bytes()[:400])
    return image


def ill_packed(folder: Path, name: str) -> Path:
    """A file whose beginning is whole, and whose voxels are packed into what no program unpacks."""
    path = folder / name
    image = nib.Nifti1Image(np.arange(8000, dtype=np.int16).reshape(20, 20, 20), np.eye(4))
    packer = zlib.compressobj(wbits=zlib.MAX_WBITS | 16)
    whole = packer.compress(image.to_bytes()[:12000]) + packer.flush(zlib.Z_FULL_FLUSH)
    path.write_bytes(whole + b"\xff" * 1000)  # a block of a kind that there is not
    return path


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda f: mu.load_scan(f / "none.nii.gz"), "none.nii.gz: no such file or folder"),
        (lambda f: mu.load_scan(two_scans(f)), r"holds 2 scans \(a.nii.gz, b.nii.gz\); give the path of one file"),
        (lambda f: mu.load_scan(f), "holds no CT scan"),
        (lambda f: mu.load_scan(ARRAY), "does not say where its voxels lie.*affine="),
        (lambda f: mu.load_scan(f, affine=np.eye(4)), "affine is for an array alone"),
        (lambda f: mu.load_scan(ARRAY, affine=np.eye(4), series="1.2"), "series: of use for a path alone"),
        (
            lambda f: mu.load_scan(nib.Nifti1Image(ARRAY, np.eye(4)), allow_gaps=True, allow_tilt=True),
            "allow_gaps, allow_tilt: of use for a path alone, and the scan is a Nifti1Image; leave",
        ),
        (lambda f: mu.load_scan(ARRAY[0], affine=np.eye(4)), r"has shape \(8, 8\).*expected three axes"),
        (lambda f: mu.load_scan(ARRAY, affine=np.eye(3)), "its affine .3, 3.*4 x 4"),
        (lambda f: mu.load_scan(ARRAY, affine=np.zeros((4, 4))), "the array: the affine"),
        (lambda f: mu.load_scan(ARRAY.astype(complex), affine=np.eye(4)), "the array: voxels of type complex"),
        (holed, "the array: 1 voxels are NaN or infinite"),
        (lambda f: mu.load_scan(with_a_hole(np.nan)), "the volume: 1 voxels are NaN or infinite"),
        (lambda f: mu.load_scan(with_a_hole(-np.inf)), "the volume: 1 voxels are NaN or infinite"),
        (lambda f: mu.load_scan(with_a_hole(0).with_array(ARRAY_20 + 0j)), "the volume: voxels of type complex"),
        (lambda f: mu.load_scan(ARRAY, affine=np.eye(4)), "every voxel is 0; the scan is empty"),
        (lambda f: mu.load_scan(magnetic(f)), "the scan: "),
        (lambda f: mu.load_scan(nib.MGHImage(ARRAY, np.eye(4))), "is MGHImage, expected NIfTI; give its array"),
        (lambda f: mu.load_scan(sitk.Image(8, 8, sitk.sitkInt16)), "SimpleITK image: has 2 axes"),
        (lambda f: mu.load_scan(nib.Nifti1Image(ARRAY, None)), "the nibabel image: states no orientation"),
        (lambda f: mu.load_scan(7), "a scan cannot be a int; expected a path"),
        (lambda f: mu.load_scan("x", name="a/b"), "name must be that of a file"),
        (lambda f: mu.load_scan("x", name="a\nb"), "name must be that of a file"),
        (lambda f: mu.load_scan("x", name="\ud800"), "name must be that of a file"),
        (lambda f: mu.load_scan("x", name=3), "name must be that of a file"),
        (lambda f: mu.load_scan(""), "the path of the scan is empty"),
        (lambda f: mu.load_scan(np.ma.masked_less(ARRAY, 1), affine=np.eye(4)), "the array: is masked"),
        (lambda f: mu.load_scan(ARRAY, affine="abc"), "the array: its affine holds no numbers"),
        (lambda f: mu.load_scan(cut_short(f)), "the nibabel image: its voxels cannot be read from its file"),
        (lambda f: mu.load_scan(nib.load(ill_packed(f, "a.nii.gz"))), "its voxels cannot be read from its file"),
        (lambda f: mu.load_scan(ill_packed(f, "a.nii.gz")), "the file is truncated or damaged"),
        (lambda f: mu.load_model(3), "expected a path, or a list of them; got int"),
        (lambda f: mu.load_model([]), "models: no model file is given"),
        (lambda f: mu.load_model(f / "none", reruns=-1), "reruns must be 0 or more; got -1"),
        (lambda f: mu.predict(two_scans(f), [], f / "out"), "models: no model file is given"),
        (lambda f: mu.predict(two_scans(f), f / "none", f / "out", reruns=-1), "reruns must be 0 or more; got -1"),
        (lambda f: mu.load_model(f / "none"), "none"),
        (
            lambda f: mu.predict("x", "m", formats=["nifti"]),
            "formats: of use with output= alone; give that, or call save",
        ),
        (
            lambda f: mu.predict("x", "m", engine=Serial(), holes="close", smooth=True),
            "holes, smooth, engine: of use with output= alone",
        ),
        (lambda f: mu.load_scan(two_scans(f) / "a.nii.gz", series="1.2"), "no DICOM series, and series names one"),
        (lambda f: mu.train(f, f / "run", workers=2), "workers says how many .* leave it out with the cohort"),
        (lambda f: mu.train(f, f / "run", fold="each", workers=2), "workers says how many"),
        (lambda f: mu.train(f, f / "run", engine=Serial()), "engine trains the folds of fold='each'"),
        (lambda f: mu.train(f, f / "run", fold="1"), "fold must be a whole number, 'all' or 'each'; got '1'"),
        (lambda f: mu.train(f, f / "run", fold=None), "fold must be a whole number, 'all' or 'each'; got None"),
        (lambda f: mu.train(None, f / "run", phantoms="easy", fold=3), "fold=3: is of a cohort; phantoms"),
        (
            lambda f: mu.train(f, f / "run", fold="each", loggers=["mlflow", CSVLogger(f)]),
            "an open logger cannot tell the folds of fold='each' apart; give names",
        ),
        (lambda f: mu.evaluate(f, f), "is a folder; give the file of one case, or output="),
        (lambda f: mu.evaluate(ARRAY, ARRAY), "the reference: cannot be a ndarray"),
        (lambda f: mu.evaluate(with_a_hole(1), with_a_hole(np.nan)), "the reference: label values are NaN"),
        (lambda f: mu.evaluate("a", "b", write_card="m"), "for the report of whole folders; give output="),
        (lambda f: mu.evaluate("a", "b", images="c"), "for the report of whole folders; give output="),
        (lambda f: mu.train(f / "none", f / "run"), "none"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(call: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(mu.InputError, match=message) as refused:
        call(tmp_path)
    assert "\n" not in str(refused.value)
    assert refused.value.__cause__ is None
    assert refused.value.__suppress_context__


def test_a_path_that_the_system_refuses_is_wrong_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: Path) -> bool:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "is_dir", refused)
        with pytest.raises(mu.InputError, match=r"a\.nii\.gz: the system refuses it .Permission denied."):
            mu.evaluate(tmp_path / "a.nii.gz", tmp_path / "b.nii.gz")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda r, f: r.mask("prostat"), "the model has no structure 'prostat'; it has prostate, bladder"),
        (lambda r, f: r.plot("gland"), "the model has no structure 'gland'"),
        (lambda r, f: r.save(f, ["rtstruct"]), r"pelvis_0000.nii.gz: formats=\['rtstruct'\] needs a DICOM series"),
        (lambda r, f: r.save(f, "dicom"), "formats must be of nifti, .*, page; got 'dicom'"),
        (lambda r, f: r.save(f, smooth=True), "structure set"),
        (lambda r, f: r.save(f, []), "formats names none"),
        (lambda r, f: r.save(f, "rtstruct", add_to=f / "none"), "none: no such file; expected the structure set"),
        (lambda r, f: r.plot().save(f / "a.jpg"), "saved as .svg or .html"),
        (lambda r, f: mu.predict("x", r.model, f), "models must be paths"),
        (lambda r, f: mu.predict(r.scan, r.model, device="cpu"), "device, provider and reruns: a loaded model"),
        (lambda r, f: mu.predict(r.scan, r.model, reruns=0), "device, provider and reruns: a loaded model"),
        (lambda r, f: mu.predict(r.scan, r.model, provider="cpu"), "device, provider and reruns: a loaded model"),
        (lambda r, f: mu.predict(r.scan, r.model, series="1.2"), "series: of use for a path alone.* a Scan"),
        (lambda r, f: mu.evaluate(r, r.labels, f), "both must be paths; save the result"),
        (lambda r, f: mu.evaluate(r, drawn_scan(shape=(20, 20, 20))), "range|whole"),
    ],
)
def test_what_a_result_cannot_do_is_said_in_one_line(
    call: Any, message: str, result: Result, tmp_path: Path
) -> None:
    with pytest.raises(mu.InputError, match=message) as refused:
        call(result, tmp_path)
    assert "\n" not in str(refused.value)
    assert list(tmp_path.iterdir()) == []
