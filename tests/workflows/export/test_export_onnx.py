"""`metricunet export --to onnx`, and prediction with what it wrote, where torch is not imported."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

import metricunet as mu
from metricunet.engine import Needs, Serial
from metricunet.errors import InputError
from metricunet.files.model import ModelCard, joined, read_card, write_model
from metricunet.files.nifti import read_labels, read_nifti, write_nifti
from metricunet.inference.onnx_predictor import OnnxPredictor, provider_for
from metricunet.inference.predict import predict
from metricunet.inference.predictor import Predictor, load_model
from metricunet.networks import build_network
from metricunet.specs import LocateSpec, SegmentSpec
from metricunet.workflows.ct_writer import CtGrid, write_ct_series
from metricunet.workflows.export import export
from tests.support.command import Command

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")
#: Not by importing it: that would tell its makers.
needs_openvino = pytest.mark.skipif(find_spec("openvino") is None, reason="OpenVINO is not installed")

#: Runs the command line, and tells at its end what it has imported.
TELLING = """
import sys
from metricunet.cli import main
try:
    main()
except SystemExit as ended:
    heavy = ("torch", "lightning", "onnx", "matplotlib")
    print("imported:", sorted({name.partition(".")[0] for name in sys.modules} & set(heavy)), "status", ended.code)
"""


@pytest.fixture(scope="module")
def exported(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(tiny_model, tmp_path_factory.mktemp("exported") / "model", to="onnx").folder


def same_share(one: Path, other: Path) -> float:
    return float((read_labels(one).array == read_labels(other).array).mean())


def test_from_dicom_to_structure_set_without_torch(
    tiny_model: Path, exported: Path, tiny_cohort: Path, tmp_path: Path
) -> None:
    scan = read_nifti(tiny_cohort / "imagesTs" / "case_06_0000.nii.gz").canonical()
    write_ct_series(tmp_path / "series", scan.array, CtGrid.of(scan.geometry))
    words = ["predict", tmp_path / "series", "--format", "nifti,rtstruct,seg", "--draw-anyway"]
    ended = subprocess.run(
        [sys.executable, "-c", TELLING, *words, "--runtime", "onnx", "-m", exported, "-o", tmp_path / "onnx"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "imported: [] status 0" in ended.stdout, ended.stderr
    plain = Predictor([tiny_model], "cpu", "fp32").predict(scan).labels
    (mask,) = (tmp_path / "onnx").glob("*.nii.gz")
    found = read_labels(mask)
    assert plain is not None
    assert (plain.array > 0).any()
    assert (found.reordered_like(plain.geometry).array == plain.array).mean() >= 0.9999
    assert {path.suffixes[-2] for path in (tmp_path / "onnx").glob("*.dcm")} == {".rtstruct", ".seg"}
    record = json.loads((tmp_path / "onnx" / "run.json").read_text(encoding="utf-8"))
    assert record["device"] == "onnxruntime, cpu"


@pytest.mark.parametrize(
    ("architecture", "dims", "organs"),
    [("unet", 2, True), ("unet", 3, False), ("fcn", 2, False), ("vnet", 3, False)],
)
def test_every_network_and_stage(tmp_path: Path, architecture: str, dims: int, organs: bool) -> None:
    """Fields larger and smaller than what a network was exported with, for the windows are this package's."""
    torch.manual_seed(0)
    levels = {"unet": 3, "fcn": 3, "vnet": 3}[architecture]
    network = {
        "architecture": architecture, "in_channels": 3 if dims == 2 else 1, "classes": 2, "base_channels": 2,
        "levels": levels, "spatial_dims": dims, "norm": "instance",
    }  # fmt: skip
    locate = {"architecture": "unet", "in_channels": 1, "classes": 2, "base_channels": 2, "levels": 2,
              "spatial_dims": 3, "norm": "batch"}  # fmt: skip
    spec = SegmentSpec(network, (2.0, 2.0, 2.0), (8, 16, 16), (-100.0, 100.0), 8 if dims == 3 else None)
    stages = {"locate": locate, "segment": network, **({"organs": network} if organs else {})}
    card = ModelCard(
        locate=LocateSpec(locate, (4.0, 4.0, 4.0), (-100.0, 100.0)),
        segment=spec,
        labels={"prostate": 1, **({"bladder": 2} if organs else {})},
        tg263={"prostate": "Prostate", "bladder": "Bladder"},
        target="prostate", ranges={}, validation={}, trained_on="", data_sha256="", seed=0, version="0",
        organs=spec if organs else None,
        organs_structures=("bladder",) if organs else (),
        format_version=2 if organs else 1,
    )  # fmt: skip
    write_model(
        tmp_path / "m.safetensors",
        card,
        joined(**{stage: build_network(**own).state_dict() for stage, own in stages.items()}),
    )
    folder = export(tmp_path / "m.safetensors", tmp_path / "onnx", to="onnx").folder
    (model,) = OnnxPredictor([folder]).models
    plain = load_model(tmp_path / "m.safetensors", torch.device("cpu"), "fp32")
    (staged,) = OnnxPredictor([folder], organs=False).models
    assert set(staged.networks) == {"locate", "segment"}
    random = np.random.default_rng(0)
    fields = {"locate": [(5, 7, 9), (8, 8, 8)], "segment": [(8, 16, 16), (13, 16, 24)], "organs": [(8, 16, 16)]}
    for stage in stages:
        for shape in fields[stage]:
            hu = random.normal(0, 80, shape).astype(np.float32)
            found, wanted = (m.probabilities(stage, hu) for m in (model, plain))  # type: ignore[arg-type]
            assert found.shape == wanted.shape == (2, *shape)
            np.testing.assert_allclose(found, wanted, atol=2e-5)


def test_in_python(tiny_model: Path, exported: Path, tiny_cohort: Path, tmp_path: Path) -> None:
    scan = mu.load_scan(tiny_cohort / "imagesTs" / "case_06_0000.nii.gz")
    model = mu.load_model(exported)
    assert model.card == read_card(tiny_model)
    result = model.predict(scan)
    plain = Predictor([tiny_model], "cpu", "fp32").predict(scan.volume).labels
    assert plain is not None
    assert (result.labels.array == plain.array).mean() >= 0.9999
    files = result.save(tmp_path / "out")
    assert tmp_path / "out" / "case_06.nii.gz" in files
    np.testing.assert_array_equal(mu.predict(scan, [exported, exported]).labels.array, result.labels.array)


@needs_openvino
def test_openvino_has_the_same_masks(exported: Path, tiny_cohort: Path) -> None:
    scan = mu.load_scan(tiny_cohort / "imagesTs" / "case_06_0000.nii.gz")
    one, two = (mu.load_model(exported, provider=name).predict(scan).labels.array for name in ("cpu", "openvino"))
    assert (one == two).mean() >= 0.9999


@pytest.mark.parametrize("name", ["onnxruntime", pytest.param("openvino", marks=needs_openvino)])
def test_neither_library_tells_its_makers_of_this_machine(name: str, tmp_path: Path) -> None:
    """As they are imported they would send an event, and keep a number for this machine in the home folder."""
    silent = ("CI", "ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME")
    environment = {variable: value for variable, value in os.environ.items() if variable not in silent}
    script = f"from metricunet.inference import onnx_predictor; print(onnx_predictor.import_{name}().__name__)"
    ended = subprocess.run(
        [sys.executable, "-c", script],
        env=environment | {"HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert ended.stdout == f"{name}\n"
    assert list(tmp_path.iterdir()) == []


def test_the_variable_may_name_it_and_info_describes_it(
    exported: Path, monkeypatch: pytest.MonkeyPatch, metricunet: Command
) -> None:
    monkeypatch.setenv("METRICUNET_MODEL", str(exported))
    assert mu.load_model().paths == (exported,)
    ended = metricunet("info", exported)
    assert ended.status == 0
    assert "labels:" in ended.out


def test_an_export_replaces_its_own_files_alone(
    tiny_model: Path, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def same(model: Path, stage: str, network: object, file: Path, sides: object) -> float:
        shutil.copyfile(exported / f"{stage}.onnx", file)  # to make it anew would take long
        return 0.0

    monkeypatch.setattr("metricunet.workflows.export.onnx_files._export", same)
    export(tiny_model, exported, to="onnx")
    (tmp_path / "locate.onnx").write_text("mine")
    with pytest.raises(InputError, match=r"locate\.onnx: is there already"):
        export(tiny_model, tmp_path, to="onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["locate.onnx"]


def test_an_export_does_not_go_into_the_folder_of_a_training(tiny_model: Path, tmp_path: Path) -> None:
    """The folder's name would no longer mean the model that the training ends with."""
    (tmp_path / "model.safetensors").write_bytes(tiny_model.read_bytes())
    with pytest.raises(InputError, match=r"is the folder of a training \(model\.safetensors\).*; choose another"):
        export(tmp_path / "model.safetensors", tmp_path, to="onnx", overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_a_prediction_does_not_replace_the_model(exported: Path, tiny_cohort: Path, tmp_path: Path) -> None:
    image = read_nifti(tiny_cohort / "imagesTs" / "case_06_0000.nii.gz")
    write_nifti(tmp_path / "card.nii.gz", image)
    before = {path.name: path.read_bytes() for path in exported.iterdir()}
    mu.predict(tmp_path / "card.nii.gz", exported, exported)
    assert {name: (exported / name).read_bytes() for name in before} == before


def damaged(exported: Path, folder: Path, change: str) -> Path:
    folder.mkdir()
    for path in exported.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    if change == "missing":
        (folder / "segment.onnx").unlink()
    elif change == "bytes":
        (folder / "segment.onnx").write_bytes(b"nothing")
    elif change == "text":
        (folder / "card.json").write_text("{")
    else:
        content = json.loads((folder / "card.json").read_text(encoding="utf-8"))
        if change == "newer":
            content["format_version"] = 99
        elif change == "elsewhere":
            content["stages"]["locate"]["file"] = "../locate.onnx"
        elif change == "stages":
            del content["stages"]["segment"]
        (folder / "card.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("missing", "segment.onnx: is missing; copy the whole folder"),
        ("bytes", "segment.onnx: is damaged, or of another export"),
        ("text", "card.json: not valid JSON"),
        ("newer", "its format is 99, and this metricunet reads 1; upgrade"),
        ("elsewhere", "card.json: is damaged .*expected the name of a file in the folder"),
        ("stages", "card.json: is damaged .*expected locate, segment"),
    ],
)
def test_what_is_damaged(exported: Path, tmp_path: Path, change: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        mu.load_model(damaged(exported, tmp_path / "copy", change))


def test_models_of_the_wrong_kind(
    tiny_model: Path, exported: Path, tiny_cohort: Path, tmp_path: Path, metricunet: Command
) -> None:
    scan = tiny_cohort / "imagesTs" / "case_06_0000.nii.gz"
    for words, said in (
        (
            ["--runtime", "onnx", "-m", tiny_model],
            "is no exported model, which --runtime onnx needs; make",
        ),
        (["--runtime", "torch", "-m", exported], "is an exported model, which torch does not compute"),
        (["-m", exported, "-m", tiny_model], "is an exported model, and .* is none; name model files, or"),
        (["--provider", "cpu", "-m", tiny_model], "--provider cpu is for exported models"),
        (
            ["--device", "mps", "-m", exported],
            "--device must be auto, .* for an exported model; got 'mps'",
        ),
        (["--device", "cuda", "--provider", "openvino", "-m", exported], "does not compute on --device cuda"),
        (["--runtime", "onnx", "-m", tmp_path / "none"], "none: no such file or folder"),
        (["--provider", "cpu", "-m", tmp_path / "none"], "none: no such file or folder"),
    ):
        ended = metricunet("predict", scan, "-o", tmp_path / "out", *words)
        assert ended.status == 2
        assert ended.err.count("\n") == 1
        assert re.search(said, ended.err), ended.err
    assert not (tmp_path / "out").exists()


def test_which_provider() -> None:
    assert provider_for("auto", None) == provider_for("cpu", None) == provider_for("cpu", "cpu") == ("cpu", None)
    assert provider_for("gpu", None) == provider_for("auto", "cuda") == ("cuda", 0)
    assert provider_for("cuda:3", "cuda") == ("cuda", 3)
    assert provider_for("auto", "openvino") == ("openvino", None)
    for device, provider, said in (
        ("auto", "tensorrt", "provider must be cpu, cuda, openvino; got 'tensorrt'"),
        ("cpu:1", None, "device must be auto"),
        ("cpu", "cuda", "does not compute on device='cpu'"),
    ):
        with pytest.raises(InputError, match=said):
            provider_for(device, provider)


def test_the_advice_without_a_gpu_is_of_the_argument_that_asked_for_one(
    exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(InputError, match=r"^device='cuda:0': .* on the CPU alone; .* or use device='cpu'$"):
        mu.load_model(exported, device="cuda:0")
    with pytest.raises(InputError, match=r"^provider='cuda': .* on the CPU alone; .* or use provider='cpu'$"):
        mu.load_model(exported, provider="cuda")
    assert mu.load_model(exported, device="cpu").predictor.device == "onnxruntime, cpu"


def test_without_the_packages(
    tiny_model: Path, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(InputError, match="run `pip install onnx onnxruntime onnxscript`"):
        export(tiny_model, tmp_path / "out", to="onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    # Where it is missing torch may be missing on purpose, and the extra would bring it.
    with pytest.raises(InputError, match="run `pip install onnxruntime`"):
        mu.load_model(exported)
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(InputError, match="OpenVINO is not installed; run `pip install openvino`"):
        mu.load_model(exported, provider="openvino")


def test_an_engine_with_gpus_does_not_give_them_to_what_computes_on_the_cpu(
    exported: Path, tiny_cohort: Path, tmp_path: Path
) -> None:
    """Unnamed, the device of an exported model is the CPU, also where an engine would take a GPU for `auto`."""

    class OfGpus(Serial):
        def device(self, needs: Needs) -> str:
            return "cuda" if needs.device == "auto" else needs.device

    scan = tiny_cohort / "imagesTs" / "case_06_0000.nii.gz"
    done = predict([scan], [exported], tmp_path / "out", engine=OfGpus())
    assert [case.case for case in done.cases] == ["case_06"]
