"""`metricunet export --to monai-bundle`: MONAI runs it, and its masks are ours."""

from __future__ import annotations

import errno
import json
import shlex
import traceback
import warnings
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

import metricunet as mu
from metricunet.errors import InputError
from metricunet.files.nifti import read_labels, read_nifti, write_nifti
from metricunet.inference.predictor import Predictor
from metricunet.workflows.export import export
from metricunet.workflows.export.monai_bundle import inference, metadata
from metricunet.workflows.export.monai_network import BundleEvaluator, TwoStageNetwork


@pytest.fixture(scope="module")
def bundle(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(tiny_model, tmp_path_factory.mktemp("bundle") / "model", to="monai-bundle").folder


def test_a_full_disk_leaves_nothing(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(InputError, match="the disk is full"):
        export(tiny_model, tmp_path / "bundle", to="monai-bundle")
    assert list(tmp_path.iterdir()) == []


def test_its_masks_are_ours(bundle: Path, tiny_model: Path, tiny_cohort: Path, tmp_path: Path) -> None:
    """In any order and direction of a file's axes, and where there is no target."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run = pytest.importorskip("monai.bundle").run
    scan = read_nifti(tiny_cohort / "imagesTs" / "case_06_0000.nii.gz")
    scans = {
        "plain": scan,
        "turned": scan.reordered((1, 2, 0), (True, False, True)),
        "absent": read_nifti(tiny_cohort / "imagesTr" / "case_05_0000.nii.gz"),
    }
    (tmp_path / "scans").mkdir()
    for name, image in scans.items():
        write_nifti(tmp_path / "scans" / f"{name}.nii.gz", image)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run(
            bundle_root=str(bundle),
            config_file=str(bundle / "configs" / "inference.json"),
            meta_file=str(bundle / "configs" / "metadata.json"),
            dataset_dir=str(tmp_path / "scans"),
            output_dir=str(tmp_path / "out"),
        )
    predictor = Predictor([tiny_model], "cpu")
    for name in scans:
        ours = predictor.predict(read_nifti(tmp_path / "scans" / f"{name}.nii.gz")).labels
        theirs = read_labels(tmp_path / "out" / f"{name}_seg.nii.gz")
        if ours is None:
            assert name == "absent"
            assert not theirs.array.any()
        else:
            assert (ours.array > 0).any()
            np.testing.assert_array_equal(theirs.reordered_like(ours.geometry).array, ours.array)


def test_what_predict_refuses_is_named_and_costs_no_other_its_mask(
    bundle: Path, tiny_cohort: Path, tmp_path: Path
) -> None:
    """In a folder whose name is a pattern of other names."""
    scans, out = tmp_path / "scans [1]", tmp_path / "out"
    scan = read_nifti(tiny_cohort / "imagesTs" / "case_06_0000.nii.gz")
    write_nifti(scans / "good.nii.gz", scan)
    write_nifti(scans / "good.nii", scan)  # its label map would have the same name
    write_nifti(scans / "a_scaled.nii.gz", scan.with_array((scan.array / 1000).astype(np.float32)))
    (scans / "b_cut.nii.gz").write_bytes((scans / "good.nii.gz").read_bytes()[:-3000])
    nowhere = nib.load(scans / "good.nii.gz")
    nowhere.set_sform(None, code=0)
    nowhere.set_qform(None, code=0)
    nib.save(nowhere, scans / "c_nowhere.nii.gz")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run = pytest.importorskip("monai.bundle").run
        with pytest.raises((InputError, RuntimeError)) as refused:
            run(
                bundle_root=str(bundle),
                config_file=str(bundle / "configs" / "inference.json"),
                meta_file=str(bundle / "configs" / "metadata.json"),
                dataset_dir=str(scans),
                output_dir=str(out),
            )
    said = "".join(traceback.format_exception(refused.value))  # MONAI has words of its own around ours
    assert "segmented: 1; not segmented: 4: " in said
    assert "a_scaled.nii.gz: the scan: the lowest value is -" in said
    assert "b_cut.nii.gz: cannot be loaded: " in said
    assert "c_nowhere.nii.gz: the scan: states no orientation" in said
    assert "good.nii.gz: its label map would have the name of that of good.nii; rename" in said
    assert [path.name for path in out.iterdir()] == ["good_seg.nii.gz"]
    assert read_labels(out / "good_seg.nii.gz").array.any()


def test_a_loader_that_gives_nothing_is_told_of(bundle: Path) -> None:
    network = TwoStageNetwork(bundle / "configs" / "card.json")
    evaluator = BundleEvaluator([], network, lambda images, network: network(images), lambda item: None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("monai.data")
        with pytest.raises(InputError, match=r"there is no scan; expected NIfTI files .* dataset_dir"):
            evaluator.run()


def test_metadata_says_what_monai_asks_for(bundle: Path, tiny_model: Path) -> None:
    """The fields that MONAI's specification of bundles requires, and those of its network_data_format."""
    content = json.loads((bundle / "configs" / "metadata.json").read_text(encoding="utf-8"))
    required = {
        "version", "monai_version", "pytorch_version", "numpy_version", "required_packages_version", "task",
        "description", "authors", "copyright", "network_data_format", "changelog", "schema",
    }  # fmt: skip
    assert required <= content.keys()
    assert "metricunet" in content["required_packages_version"]
    image, pred = (
        content["network_data_format"]["inputs"]["image"],
        content["network_data_format"]["outputs"]["pred"],
    )
    fields = {
        "type",
        "format",
        "num_channels",
        "spatial_shape",
        "dtype",
        "value_range",
        "is_patch_data",
        "channel_def",
    }
    assert fields <= image.keys()
    assert fields <= pred.keys()
    assert len(image["value_range"]) == len(pred["value_range"]) == 2
    labels = mu.load_model(tiny_model).card.labels
    assert pred["channel_def"] == {"0": "background", **{str(value): name for name, value in labels.items()}}


def test_label_maps_are_of_the_type_that_metadata_says(tiny_model: Path) -> None:
    card = mu.load_model(tiny_model).card
    for highest, kind in ((255, "uint8"), (256, "uint16")):
        other = replace(card, labels=card.labels | {"rectum": highest})
        assert metadata(other)["network_data_format"]["outputs"]["pred"]["dtype"] == kind
        (saving,) = inference(other)["postprocessing"]["transforms"]
        assert saving["output_dtype"] == f"$np.{kind}"


def test_the_command_can_be_copied_whatever_the_folder_is_called(tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "my models; new"
    command = export(tiny_model, folder, to="monai-bundle").lines[-1].partition("run it with: ")[2]
    words = shlex.split(command)
    assert words[words.index("--bundle_root") + 1] == str(folder)
    for option in ("--config_file", "--meta_file"):
        assert Path(words[words.index(option) + 1]).is_file()


def test_weights_are_plain(bundle: Path) -> None:
    network = TwoStageNetwork(bundle / "configs" / "card.json")
    network.load_state_dict(torch.load(bundle / "models" / "model.pt", weights_only=True))


def test_images_that_say_not_where_they_lie(bundle: Path) -> None:
    network = TwoStageNetwork(bundle / "configs" / "card.json").eval()
    with pytest.raises(InputError, match=r"shape \(1, 1, 8, 8, 8\) and no affine; expected \[batch, 1, x, y, z\]"):
        network(torch.zeros(1, 1, 8, 8, 8))


def test_another_target(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="to must be onnx or monai-bundle; got 'coreml'"):
        export(tiny_model, tmp_path / "out", to="coreml")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file: is a file; expected a folder"):
        export(tiny_model, tmp_path / "file", to="onnx")
