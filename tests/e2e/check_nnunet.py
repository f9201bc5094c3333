"""Train the metric branch within the real nnU-Net, in an environment of its own.

Run by `make check-nnunet`. Without `--inside` it makes the environment, a cohort of phantoms and nnU-Net's plans,
and then runs itself there. Exit status 0 if all of this holds, with U-Net and residual encoder, in 2D and in 3D:

- nnU-Net finds the trainers by name, and the branch's loss falls;
- regions and an ignore label are respected;
- a training that was stopped goes on with the weights and the optimiser's state of the branch;
- plain nnU-Net, without this package, predicts the very masks and probabilities from the checkpoint, and can train
  on from it.

`--cost` measures instead what a training step costs with the branch and without, `--steps` of each in turn.

The environment takes torch from the constraints file. nnU-Net would bring torchvision (through timm, for networks
that are not used here), so it is installed without its dependencies, and those that are needed are named below.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
NNUNET = (
    "nnunetv2==2.8.1",
    "dynamic-network-architectures==0.4.4",
    "batchgenerators==0.25.5",
    "batchgeneratorsv2==0.3.6",
    "acvl-utils==0.2.6",
)
NEEDED = (
    *("numpy", "scipy", "scikit-learn", "scikit-image>=0.19.3", "SimpleITK", "nibabel", "blosc2>=3.3.2", "pandas"),
    *("matplotlib", "seaborn", "tifffile", "imagecodecs", "graphviz", "requests", "tqdm", "einops", "yacs"),
    *("pillow", "future", "threadpoolctl", "connected-components-3d", "pydantic", "PyYAML", "typer", "rich"),
)
COHORT, REGIONS = "Dataset501_Phantom", "Dataset502_Regions"
#: Small networks in place of the planned ones: what a test can pay for.
SMALL = {
    "small_2d": ("2d", "PlainConvUNet", [64, 64], 8, 2),
    "small_2d_resenc": ("2d", "ResidualEncoderUNet", [64, 64], 8, 2),
    "small_3d": ("3d_fullres", "PlainConvUNet", [16, 32, 32], 2, 3),
    "small_3d_resenc": ("3d_fullres", "ResidualEncoderUNet", [16, 32, 32], 2, 3),
}
#: The planned networks on smaller patches: what the cost of the branch is measured on.
COST = {"cost_2d": ("2d", [128, 128], 8), "cost_3d": ("3d_fullres", [32, 96, 96], 2)}
EPOCHS, ITERATIONS = 4, 40
#: How much two computations of a probability may differ.
MOST = 1e-6
#: A mean over the violators of a margin hardly falls while they become rare; one over all tuples does.
SETTINGS = "{warm_up_updates: 5, mean_over: all}"
#: Beside nnU-Net's own trainers, so that its commands find it: the trainer, shortened as nnU-Net's users do, and
#: without mirroring, which would take four or eight times as long to predict.
SHORT = f"""
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from metricunet.nnunet.trainers import nnUNetTrainerVoxelMetric


class nnUNetTrainerVoxelShort(nnUNetTrainerVoxelMetric):
    def __init__(self, plans, configuration, fold, dataset_json, device=None):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs, self.num_iterations_per_epoch = {EPOCHS}, {ITERATIONS}
        self.num_val_iterations_per_epoch = 2
        self.oversample_foreground_percent = 1.0  # so that so short a training learns where the structures are
        self.save_every = 1

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self):
        *other, _ = super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        self.inference_allowed_mirroring_axes = None
        return *other, None
"""


def run(*words: object, cwd: Path, environment: dict[str, str], allowed: tuple[int, ...] = (0,)) -> str:
    """Run a command, show it, and stop with its output if its status is not allowed."""
    print("+", *words, flush=True)
    ended = subprocess.run(
        [str(w) for w in words], capture_output=True, text=True, cwd=cwd, env=environment, check=False
    )
    if ended.returncode not in allowed:
        sys.exit(f"status {ended.returncode}\n{ended.stdout}{ended.stderr}")
    return ended.stdout


def make_environment(venv: Path, environment: dict[str, str]) -> Path:
    """Make the virtual environment, if it is not there, and return its Python."""
    python = venv / "bin/python"
    pip = (python, "-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt")
    if not (venv / "complete").is_file():
        run(sys.executable, "-m", "venv", venv, cwd=ROOT, environment=environment)
        run(*pip, "torch", cwd=ROOT, environment=environment)
        run(*pip, "--no-deps", *NNUNET, cwd=ROOT, environment=environment)
        run(*pip, *NEEDED, cwd=ROOT, environment=environment)
        (venv / "complete").touch()
    run(*pip, "--no-deps", "--editable", ROOT, cwd=ROOT, environment=environment)
    return python


def make_cohorts(raw: Path, environment: dict[str, str]) -> None:
    """Make five phantoms of half the resolution, and the same with regions and slices that nobody annotated."""
    import nibabel as nib
    import numpy as np

    words = ("phantom", "--difficulty", "easy", "-n", 5, "--test", 1, "--structures", "prostate,bladder")
    run(sys.executable, "-m", "metricunet", *words, "-o", raw / COHORT, cwd=raw, environment=environment)
    for path in sorted((raw / COHORT).glob("*T[rs]/*.nii.gz")):
        image = nib.load(path)
        coarse = np.ascontiguousarray(np.asarray(image.dataobj)[::2, ::2])
        nib.save(nib.Nifti1Image(coarse, image.affine @ np.diag([2, 2, 1, 1])), path)
    shutil.copytree(raw / COHORT, raw / REGIONS)
    for path in sorted((raw / REGIONS / "labelsTr").glob("*.nii.gz")):
        image = nib.load(path)
        labels = np.asarray(image.dataobj).astype(np.uint8)
        labels[:, :, ::3] = 3
        nib.save(nib.Nifti1Image(labels, image.affine), path)
    content = json.loads((raw / REGIONS / "dataset.json").read_text(encoding="utf-8"))
    content["labels"] = {"background": 0, "whole": [1, 2], "bladder": [2], "ignore": 3}
    content["regions_class_order"] = [1, 2]
    (raw / REGIONS / "dataset.json").write_text(json.dumps(content), encoding="utf-8")


def add_configurations(plans_file: Path) -> None:
    """Add the small networks, and the planned ones on smaller patches, to nnU-Net's plans."""
    plans = json.loads(plans_file.read_text(encoding="utf-8"))
    found = plans["configurations"]
    for name, (parent, network, patch, batch, axes) in SMALL.items():
        planned = found[parent]["architecture"]
        arguments = dict(planned["arch_kwargs"])
        blocks = "n_blocks_per_stage" if network == "ResidualEncoderUNet" else "n_conv_per_stage"
        del arguments["n_conv_per_stage"]
        arguments |= {
            "n_stages": 3,
            "features_per_stage": [8, 16, 32],
            blocks: [1, 1, 1],
            "kernel_sizes": [[3] * axes] * 3,
            "strides": [[1] * axes, [2] * axes, [2] * axes],
            "n_conv_per_stage_decoder": [1, 1],
        }
        class_name = f"dynamic_network_architectures.architectures.unet.{network}"
        architecture = planned | {"network_class_name": class_name, "arch_kwargs": arguments}
        sizes = {"patch_size": patch, "batch_size": batch}
        found[name] = {"inherits_from": parent, **sizes, "architecture": architecture}
    for name, (parent, patch, batch) in COST.items():
        found[name] = {"inherits_from": parent, "patch_size": patch, "batch_size": batch}
    plans_file.write_text(json.dumps(plans), encoding="utf-8")


def main() -> None:
    """Make what is needed, and run the checks in the environment."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--venv", type=Path, default=ROOT / "build/nnunet/venv", help="the environment")
    parser.add_argument("--work", type=Path, default=ROOT / "build/nnunet/work", help="data and results")
    parser.add_argument("--cost", action="store_true", help="measure the cost of a step instead")
    parser.add_argument("--steps", type=int, default=20, help="of each trainer, with --cost; at least two")
    parser.add_argument("--inside", action="store_true", help="the environment is made, and this runs in it")
    given = parser.parse_args()
    venv, work = given.venv.absolute(), given.work.absolute()
    if given.inside:
        measure_cost(work, given.steps) if given.cost else check(work)
        return
    folders = {name: work / name for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
    environment = os.environ | {name: str(folder) for name, folder in folders.items()}
    environment |= {"nnUNet_n_proc_DA": "1", "nnUNet_def_n_proc": "1"}
    environment.pop("METRICUNET_METRIC", None)
    began = time.perf_counter()
    python = make_environment(venv, {**environment, "PYTHONPATH": ""})
    print(f"environment: {time.perf_counter() - began:.0f} s", flush=True)
    if not (work / "complete").is_file():
        shutil.rmtree(work, ignore_errors=True)
        for folder in folders.values():
            folder.mkdir(parents=True)
        make_cohorts(folders["nnUNet_raw"], environment)
        environment["PYTHONPATH"] = ""
        for name in (COHORT, REGIONS):
            words = ("-d", name[7:10], "-c", "2d", "3d_fullres", "-np", 1, "-npfp", 1)
            run(python.with_name("nnUNetv2_plan_and_preprocess"), *words, cwd=work, environment=environment)
            folder = folders["nnUNet_preprocessed"] / name
            add_configurations(folder / "nnUNetPlans.json")
            cases = sorted(path.name[:12] for path in (folder / "gt_segmentations").iterdir())
            split = [{"train": cases[1:], "val": cases[:1]}]
            (folder / "splits_final.json").write_text(json.dumps(split), encoding="utf-8")
        (work / "complete").touch()
    # Test data are small: processes that augment them would take longer to start than to work.
    environment |= {"PYTHONPATH": "", "nnUNet_n_proc_DA": "0"}
    cost = ["--cost", "--steps", given.steps] if given.cost else []
    words = (python, Path(__file__).absolute(), "--inside", "--work", work, *cost)
    sys.exit(subprocess.run([str(word) for word in words], cwd=work, env=environment, check=False).returncode)


# Inside: nnU-Net is there.


def trainer_of(name: str, configuration: str, dataset: str = COHORT, resume: bool = False) -> Any:
    """Return a trainer as `nnUNetv2_train` makes it."""
    import torch
    from nnunetv2.run.run_training import get_trainer_from_args

    device = torch.device("cpu")
    return get_trainer_from_args(dataset, configuration, 0, name, "nnUNetPlans", resume, device=device)


@contextmanager
def installed(work: Path, environment: dict[str, str]) -> Iterator[Path]:
    """Let nnU-Net find the trainers, and yield its folder of trainers."""
    import nnunetv2

    program = Path(sys.executable).with_name("metricunet")
    folder = Path(nnunetv2.__path__[0]) / "training/nnUNetTrainer"
    print(run(program, "nnunet", "install", cwd=work, environment=environment))
    try:
        yield folder
    finally:
        print(run(program, "nnunet", "uninstall", cwd=work, environment=environment))
        assert not (folder / "nnUNetTrainerVoxelMetric.py").exists()


def check(work: Path) -> None:
    """Check everything that the head of this file promises."""
    environment = dict(os.environ)
    commands = Path(sys.executable).parent
    os.environ["METRICUNET_METRIC"] = environment["METRICUNET_METRIC"] = SETTINGS
    with installed(work, environment) as folder, short_trainer(folder):
        for configuration in SMALL:
            falls(configuration)
        falls("small_2d", REGIONS)
        falls("small_3d", REGIONS)
        words = (501, "small_2d", 0, "-tr", "nnUNetTrainerVoxelShort", "-device", "cpu")
        print(run(commands / "nnUNetv2_train", *words, "--c", cwd=work, environment=environment)[-600:])
        for configuration in ("small_2d", "small_3d"):
            resumes(configuration)
    for configuration in ("small_2d", "small_2d_resenc", "small_3d", "small_3d_resenc"):
        predicts(configuration, work, environment)
    print("nnU-Net trains with the branch")


@contextmanager
def short_trainer(folder: Path) -> Iterator[None]:
    """Put the shortened trainer beside nnU-Net's own while the block runs."""
    short = folder / "nnUNetTrainerVoxelShort.py"
    short.write_text(SHORT, encoding="utf-8")
    try:
        yield
    finally:
        short.unlink()


def falls(configuration: str, dataset: str = COHORT) -> None:
    """Train for some epochs, and see that the branch's loss falls and that nnU-Net's logger has its numbers."""
    import numpy as np
    import torch

    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 nnU-Net's loaders draw from this one
    trainer = trainer_of("nnUNetTrainerVoxelShort", configuration, dataset)
    trainer.run_training()
    logged = trainer.logger.local_logger.my_fantastic_logging
    losses = logged["metric_loss"]
    print(f"{dataset} {configuration}: branch's loss {[round(loss, 4) for loss in losses]}", flush=True)
    assert len(losses) == EPOCHS, losses
    assert all(loss == loss for loss in losses), losses
    assert all(0 < share <= 1 for share in logged["metric_valid_voxels"]), logged["metric_valid_voxels"]
    assert trainer.enable_deep_supervision
    if dataset == COHORT:
        assert losses[-1] < losses[0], losses
        trainer.perform_actual_validation(save_probabilities=True)
    else:
        assert trainer.label_manager.has_regions
        assert trainer.label_manager.has_ignore_label


def resumes(configuration: str) -> None:
    """Load a checkpoint into a new trainer: weights and state of the branch are there, and it trains on."""
    import torch

    trainer = trainer_of("nnUNetTrainerVoxelShort", configuration, resume=True)
    path = os.path.join(trainer.output_folder, "checkpoint_final.pth")
    trainer.load_checkpoint(path)
    content = torch.load(path, weights_only=False)
    assert content["trainer_name"] == "nnUNetTrainer"
    assert not any("metric" in name for name in content["logging"])
    ours = content["metricunet"]
    assert ours["updates"] == trainer.loss.updates == EPOCHS * ITERATIONS
    for name, value in trainer.branch.state_dict().items():
        assert torch.equal(value, ours["branch"][name]), name
    for weights, state in zip(trainer.branch.parameters(), ours["optimizer"], strict=True):
        assert torch.equal(trainer.optimizer.state[weights]["momentum_buffer"], state["momentum_buffer"])
    trainer.num_epochs = EPOCHS + 1
    trainer.disable_checkpointing = True
    trainer.run_training()
    assert len(trainer.logger.get_value("metric_loss", None)) == EPOCHS + 1
    plain = trainer_of("nnUNetTrainer", configuration)
    plain.load_checkpoint(path)
    plain.num_epochs, plain.num_iterations_per_epoch, plain.num_val_iterations_per_epoch = EPOCHS + 1, 1, 1
    plain.disable_checkpointing = True
    plain.run_training()


def predicts(configuration: str, work: Path, environment: dict[str, str]) -> None:
    """Predict by plain nnU-Net where this package cannot be imported: it finds what our validation found.

    After so short a training the masks may be empty, and so equal in any case: the probabilities tell.
    """
    import nibabel as nib
    import numpy as np

    raw = Path(environment["nnUNet_raw"]) / COHORT
    scans, masks = work / "scans", work / "masks" / configuration
    shutil.rmtree(scans, ignore_errors=True)
    shutil.rmtree(masks, ignore_errors=True)
    scans.mkdir()
    validated = (
        Path(environment["nnUNet_results"])
        / COHORT
        / f"nnUNetTrainerVoxelShort__nnUNetPlans__{configuration}/fold_0/validation"
    )
    cases = [path.name[:12] for path in sorted(validated.glob("*.nii.gz"))]
    for case in cases:
        shutil.copy(raw / "imagesTr" / f"{case}_0000.nii.gz", scans)
    code = (
        "import sys; sys.modules['metricunet'] = None; from nnunetv2.inference.predict_from_raw_data import "
        "predict_entry_point; predict_entry_point()"
    )
    words = ("-i", scans, "-o", masks, "-d", 501, "-c", configuration, "-tr", "nnUNetTrainerVoxelShort", "-f", 0)
    workers = ("-npp", 1, "-nps", 1, "-device", "cpu")
    run(sys.executable, "-c", code, *words, *workers, "--save_probabilities", cwd=work, environment=environment)
    assert cases
    for case in cases:
        one, two = (np.asarray(nib.load(f / f"{case}.nii.gz").dataobj) for f in (validated, masks))
        assert np.array_equal(one, two), f"{configuration}: {(one != two).sum()} voxels of {case} differ"
        ours, theirs = (np.load(f / f"{case}.npz")["probabilities"] for f in (validated, masks))
        difference = float(np.abs(ours.astype(np.float64) - theirs).max())
        assert difference < MOST, f"{configuration}: probabilities of {case} differ by {difference}"
        # So short a training hardly moves some networks, but far enough to tell their weights from others.
        assert float(np.ptp(ours[1:])) > 100 * MOST, f"{configuration}: {case} has one probability everywhere"
        print(
            f"{configuration}: {case} is equal in all {one.size} voxels, {np.count_nonzero(one)} of them found; "
            f"probabilities of structures up to {ours[1:].max():.3f} differ by {difference:.1e} at most",
            flush=True,
        )


def measure_cost(work: Path, steps: int) -> None:
    """Compare a training step of the planned networks with the branch and without, alternating."""
    names = ("nnUNetTrainer", "nnUNetTrainerVoxelMetric")
    for configuration in COST:
        with installed(work, dict(os.environ)):
            trainers = [trainer_of(name, configuration) for name in names]
        for trainer in trainers:
            trainer.initialize()
            trainer.set_deep_supervision_enabled(True)
            trainer.network.train()
        batches, _ = trainers[0].get_dataloaders()
        batch = next(batches)
        seconds: list[list[float]] = [[], []]
        for step in range(steps + 1):
            for one, trainer in enumerate(trainers):
                began = time.perf_counter()
                trainer.train_step(batch)
                if step:  # the first one allocates
                    seconds[one].append(time.perf_counter() - began)
        ratios = sorted(ours / plain for plain, ours in zip(*seconds, strict=True))
        low, middle, high = statistics.quantiles(ratios, n=4)
        plain, ours = (statistics.median(part) for part in seconds)
        print(
            f"{configuration}: batch {tuple(batch['data'].shape)}, plain {plain:.3f} s, with the branch "
            f"{ours:.3f} s, ratio {middle:.3f} ({low:.3f} to {high:.3f})",
            flush=True,
        )


if __name__ == "__main__":
    main()
