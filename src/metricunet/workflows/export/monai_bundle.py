"""Exporting a model as a bundle of MONAI: metadata, configuration, weights, and how to run it."""

from __future__ import annotations

import io
import json
import shlex
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from metricunet.files.atomic import written_whole
from metricunet.files.claim import claimed
from metricunet.files.model import ModelCard, card_content, read_model
from metricunet.files.own import OwnFiles
from metricunet.files.record import sha256
from metricunet.inference.models import warnings_of
from metricunet.inference.predictor import load_model
from metricunet.workflows.export import monai_network
from metricunet.workflows.export.result import Exported

RECORD = "export.json"
METADATA, INFERENCE, CARD = "configs/metadata.json", "configs/inference.json", "configs/card.json"
WEIGHTS, README = "models/model.pt", "docs/README.md"
#: Where MONAI keeps the schema of a bundle's metadata.
SCHEMA = "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"
#: MONAI's version where none is installed, which an export does not need.
TESTED_MONAI = "1.5.0"


def export_bundle(model: Path, output: Path, *, overwrite: bool = False) -> Exported:
    """Write a model as a bundle, which `python -m monai.bundle run` runs where this package is installed.

    Args:
        model: the model file.
        output: the bundle's folder.
        overwrite: whether files of others that have an output's name are replaced.

    Raises:
        InputError: a model that cannot be read, or a file in the place of an output.
    """
    load_model(model, torch.device("cpu"))  # weights that do not fit the card are refused
    card, weights = read_model(model)
    texts = {
        METADATA: _json(metadata(card)),
        INFERENCE: _json(inference(card)),
        CARD: _json(card_content(card)),
        README: _readme(card, warnings_of([model])),
    }
    own = OwnFiles(output, RECORD, "export", overwrite=overwrite, inputs=[model])
    own.check([*texts, WEIGHTS])
    with claimed(own.claim, "an export"):
        try:
            for name, text in texts.items():
                with written_whole(own.stage(name)) as file:
                    file.write_text(text, encoding="utf-8")
            buffer = io.BytesIO()  # what torch raises on a full disk does not say so
            torch.save(weights, buffer)
            with written_whole(own.stage(WEIGHTS)) as file:
                file.write_bytes(buffer.getbuffer())
            own.commit({"model_sha256": sha256([model]), "version": version("metricunet")})
        finally:
            own.discard()
    lines = (
        f"a bundle of MONAI in {output}",
        f"run it with: {_command(str(output))}",
    )
    return Exported(output, (*texts, WEIGHTS, RECORD), lines)


def metadata(card: ModelCard) -> dict[str, Any]:
    """Return what MONAI's tools read of a bundle."""
    channel = {"0": "background", **{str(value): name for name, value in card.labels.items()}}
    # The network takes whole scans of any size, which the schema writes as stars.
    common = {"num_channels": 1, "spatial_shape": ["*", "*", "*"], "is_patch_data": False}
    scan = {"format": "hounsfield", "modality": "CT", "dtype": "float32", "value_range": [-1024, 3071]}
    labels = {"format": "segmentation", "dtype": _dtype_of(card), "value_range": [0, max(card.labels.values())]}
    return {
        "schema": SCHEMA,
        "version": "0.1.0",
        "changelog": {"0.1.0": f"exported by metricunet {version('metricunet')}"},
        "monai_version": _version_of("monai", TESTED_MONAI),
        "pytorch_version": _version_of("torch").partition("+")[0],
        "numpy_version": _version_of("numpy"),
        "required_packages_version": {
            "metricunet": version("metricunet"),
            "nibabel": _version_of("nibabel"),
            "fire": "0.7.0",
        },
        "supported_apps": {},
        "name": f"metricunet {card.target}",
        "task": f"Segmentation of {', '.join(card.labels)} in CT",
        "description": "MetricUNet: stage 1 finds the target on a coarse grid of the whole scan, stage 2 segments "
        "a crop around it. Both are one network here, which takes whole scans in HU.",
        "authors": "The metricunet authors",
        "copyright": f"Licence of the weights: {card.license}",
        "license": card.license,
        "intended_use": card.intended_use,
        "data_source": card.trained_on,
        "data_type": "nibabel",
        "image_classes": "one channel of HU, as stored",
        "label_classes": ", ".join(f"{value} {name}" for value, name in channel.items()),
        "pred_classes": "one channel of label values",
        "eval_metrics": card.validation,
        "references": [],
        "network_data_format": {
            "inputs": {"image": {"type": "image", **scan, **common, "channel_def": {"0": "image"}}},
            "outputs": {"pred": {"type": "image", **labels, **common, "channel_def": channel}},
        },
    }


def inference(card: ModelCard) -> dict[str, Any]:
    """Return the configuration that loads scans, segments them and saves label maps."""
    module = monai_network.__name__
    loading = [
        {"_target_": "LoadImaged", "keys": "image", "dtype": "$np.float64"},
        {"_target_": "EnsureChannelFirstd", "keys": "image"},
    ]
    saving = {
        "_target_": "SaveImaged",
        "keys": "pred",
        "output_dir": "@output_dir",
        "output_postfix": "seg",
        "output_dtype": f"$np.{_dtype_of(card)}",
        "resample": False,
        "separate_folder": False,
        "print_log": False,
    }
    return {
        "imports": ["$import glob", "$import numpy as np", "$import torch"],
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/scans'",
        "output_dir": "$@bundle_root + '/eval'",
        "ckpt_path": f"$@bundle_root + '/{WEIGHTS}'",
        "device": "$torch.device('cuda' if torch.cuda.is_available() else 'cpu')",
        "datalist": "$sorted(glob.glob(glob.escape(@dataset_dir) + '/*.nii*'))",
        "network_def": {
            "_target_": f"{module}.TwoStageNetwork",
            "card": f"$@bundle_root + '/{CARD}'",
            "precision": "auto",
        },
        "network": "$@network_def.to(@device)",
        "preprocessing": {"_target_": "Compose", "transforms": loading},
        "dataset": {
            "_target_": "Dataset",
            "data": "$[{'image': path} for path in @datalist]",
            "transform": "@preprocessing",
        },
        # Scans differ in size, so a batch is one of them.
        "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1, "num_workers": 0},
        "inferer": {"_target_": "SimpleInferer"},
        "postprocessing": {"_target_": "Compose", "transforms": [saving]},
        "evaluator": {
            "_target_": f"{module}.BundleEvaluator",
            "dataloader": "@dataloader",
            "network": "@network",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
        },
        "initialize": [
            "$@network.load_state_dict(torch.load(@ckpt_path, map_location=@device, weights_only=True))"
        ],
        "run": ["$@evaluator.run()"],
    }


def _readme(card: ModelCard, warnings: list[str]) -> str:
    said = "".join(f"\n**{line[0].upper()}{line[1:]}.**\n" for line in warnings)
    return (
        f"# {card.target}\n{said}\n{card.intended_use}\n\n"
        f"Structures and their values: {', '.join(f'{name} {value}' for name, value in card.labels.items())}.\n\n"
        "Needs the packages of `configs/metadata.json`, metricunet among them. It segments the NIfTI files of a "
        f"folder:\n\n```\n{_command('BUNDLE')}\n```\n\n"
        "Label maps are named as the scans, with `_seg`. What is no CT in HU, or does not say where it lies, is "
        "named at the end, and the others are segmented. Verdicts on their quality, structure sets and DICOM "
        "segmentations are what `metricunet predict` writes beside them; a bundle has label maps alone.\n"
    )


def _dtype_of(card: ModelCard) -> str:
    """Return the type of the label maps: the smallest that holds all values."""
    return "uint8" if max(card.labels.values()) < 256 else "uint16"


def _command(folder: str) -> str:
    root, config, meta = (shlex.quote(path) for path in (folder, f"{folder}/{INFERENCE}", f"{folder}/{METADATA}"))
    return (
        f"python -m monai.bundle run --bundle_root {root} --config_file {config} --meta_file {meta} "
        "--dataset_dir SCANS --output_dir OUT"
    )


def _json(content: Any) -> str:
    return json.dumps(content, indent=2, allow_nan=False) + "\n"


def _version_of(package: str, otherwise: str = "") -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return otherwise
