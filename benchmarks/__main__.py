"""The command line of the benchmarks."""

from __future__ import annotations

import json as json_format
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from metricunet.errors import InputError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)

Scan = Annotated[Path | None, typer.Option(help="DICOM folder or file. Default: a phantom.")]
Model = Annotated[Path | None, typer.Option("-m", "--model", help="Model file. Default: one that is made here.")]
Preset = Annotated[str, typer.Option(help="Of networks and training: default or small.")]
Slices = Annotated[int, typer.Option(min=2, help="Slices of the phantom.")]
Repeats = Annotated[int | None, typer.Option(min=1, help="Of each measurement. Default: enough for the part.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N, gpu, gpu:N or mps.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


def _on_subject(
    part: str, scan: Path | None, model: Path | None, preset: str, slices: int, repeats: int | None, device: str
) -> Any:
    from benchmarks.calls import bench_calls
    from benchmarks.files import bench_files
    from benchmarks.locate import bench_locate
    from benchmarks.segment import bench_segment
    from benchmarks.subject import prepared_subject
    from metricunet.stages.device import device_named

    run: Any = {"locate": bench_locate, "segment": bench_segment, "calls": bench_calls, "io": bench_files}[part]
    where = device_named(device)
    with prepared_subject(scan, model, preset, slices) as subject:
        return run(subject, where, repeats=repeats)


def _show(result: Any, json: bool) -> None:
    typer.echo(json_format.dumps(result.to_json(), indent=1) if json else result.text())


@app.command()
def locate(
    scan: Scan = None,
    model: Model = None,
    preset: Preset = "default",
    slices: Slices = 235,
    repeats: Repeats = None,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Stage 1 against its bare network, and against the same network slid by MONAI."""
    _show(_on_subject("locate", scan, model, preset, slices, repeats, device), json)


@app.command()
def segment(
    scan: Scan = None,
    model: Model = None,
    preset: Preset = "default",
    slices: Slices = 235,
    repeats: Repeats = None,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Stage 2 against its bare network, and both stages against stage 2 slid over the scan by MONAI."""
    _show(_on_subject("segment", scan, model, preset, slices, repeats, device), json)


@app.command()
def calls(
    scan: Scan = None,
    model: Model = None,
    preset: Preset = "default",
    slices: Slices = 235,
    repeats: Repeats = None,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Calls of `metricunet predict`: ten cases in one, equal runs, one thread against two, bf16 against fp32."""
    _show(_on_subject("calls", scan, model, preset, slices, repeats, device), json)


@app.command()
def io(
    scan: Scan = None,
    slices: Slices = 235,
    repeats: Repeats = None,
    json: Json = False,
) -> None:
    """Reading and writing, against pydicom and nibabel by hand."""
    _show(_on_subject("io", scan, None, "small", slices, repeats, "cpu"), json)


@app.command()
def feeding(
    preset: Preset = "default", repeats: Repeats = None, device: Device = "auto", json: Json = False
) -> None:
    """A training step with its data, against one on a fixed batch and one that MONAI feeds."""
    from benchmarks.feeding import bench_feeding
    from metricunet.stages.device import device_named

    _show(bench_feeding(device_named(device), preset=preset, repeats=repeats), json)


@app.command()
def uncontoured(
    preset: Preset = "default", repeats: Repeats = None, device: Device = "auto", json: Json = False
) -> None:
    """A training step that learns from scans without contours, against one of an equal batch."""
    from benchmarks.uncontoured import bench_uncontoured
    from metricunet.stages.device import device_named

    _show(bench_uncontoured(device_named(device), preset=preset, repeats=repeats), json)


@app.command()
def branch(device: Device = "auto", json: Json = False) -> None:
    """The metric branch alone: memory, growth, pytorch-metric-learning beside it, one CUDA graph."""
    from benchmarks.branch import bench_branch
    from metricunet.stages.device import device_named

    _show(bench_branch(device_named(device)), json)


@app.command()
def growth(model: Path, device: Device = "auto") -> None:
    """How the time of each stage grows with the slices, the matrix and the crop."""
    from benchmarks.growth import print_growth

    print_growth(model, device)


@app.command()
def engine_study(
    file: Path,
    output: Path,
    part: Annotated[
        list[str], typer.Option(help="serial, nodes or lost (one is killed in the middle). Default: all.")
    ] = ["serial", "nodes", "lost"],  # noqa: B006
    lose_after: Annotated[float | None, typer.Option(help="Kill it after so many seconds.")] = None,
) -> None:
    """A study in one process, on two Ray nodes of one core, and with one of these killed; done parts are kept."""
    from benchmarks.engine import measure_study

    measure_study(file, output, part, lose_after)


@app.command()
def engine_predict(
    folder: Path,
    count: list[int] = [40, 400],  # noqa: B006
    model: Model = None,
    serial: Annotated[bool, typer.Option(help="Segment the first of the counts in one process as well.")] = True,
) -> None:
    """Predictions in one process and on two Ray nodes of one core, with a scan that kills its worker."""
    from benchmarks.engine import measure_predictions

    measure_predictions(folder, count, model, serial=serial)


@app.command()
def precision(model: Path, cohort: Path, cases: int = 20) -> None:
    """Masks in bf16 against fp32, and of one thread against two."""
    from benchmarks.precision import print_precisions

    print_precisions(model, cohort, cases)


@app.command()
def runtimes(
    scans: Annotated[list[Path] | None, typer.Argument(help="DICOM folders or files. Default: none.")] = None,
    model: Annotated[str, typer.Option("-m", "--model", help="Model file. Default: the shipped one.")] = "base",
    phantoms: Annotated[int, typer.Option(min=0, help="Segment this many phantoms as well, as DICOM.")] = 0,
    python: Annotated[
        Path | None, typer.Option(help="Interpreter of an environment without torch, for the exported model.")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Of each process and network.")] = 3,
    json: Json = False,
) -> None:
    """Whole predictions by torch, onnxruntime and OpenVINO: seconds, memory, masks; and the networks alone."""
    from benchmarks.runtimes import bench_runtimes

    _show(bench_runtimes(scans or [], Path(model), phantoms=phantoms, python=python, repeats=repeats), json)


@app.command()
def first_slice(
    scan: Annotated[Path | None, typer.Option(help="DICOM folder or file.")] = None, json: Json = False
) -> None:
    """How long the review's pages take to show the first slice of a large scan, drawn by software."""
    from benchmarks.first_slice import bench_first_slice

    _show(bench_first_slice(scan), json)


@app.command()
def node_delivery(
    folder: Annotated[Path, typer.Argument(help="DICOM folder with one CT series.")],
    cases: Annotated[int, typer.Option(min=1, help="Of each kind: as the files are, and uncompressed.")] = 20,
    json: Json = False,
) -> None:
    """From a scan at a node to its structure set at a peer: seconds of each case, memory after each."""
    from benchmarks.node_delivery import bench_node_delivery

    _show(bench_node_delivery(folder, cases, lambda line: typer.echo(line, err=True)), json)


@app.command()
def review_loop(home: Path | None = None, device: Device = "auto", json: Json = False) -> None:
    """Predict phantoms, correct the worst by script, learn from them: Dice of unseen ones before and after."""
    from benchmarks.review_loop import bench_review_loop

    _show(bench_review_loop(home, device, lambda line: typer.echo(line, err=True)), json)


@app.command()
def fine_tuning(home: Path, without: str = "floor", device: Device = "auto", json: Json = False) -> None:
    """Five patients of a kind that a model has not seen: learning from it, against learning from nothing."""
    from benchmarks.fine_tuning import bench_fine_tuning

    result = bench_fine_tuning(home, without=without, device=device, say=lambda line: typer.echo(line, err=True))
    _show(result, json)


@app.command()
def groups(
    home: Path,
    without: Annotated[list[str] | None, typer.Option(help="Group to leave out. Default: each in turn.")] = None,
    unseen: Annotated[int, typer.Option(min=2, help="Phantoms that are scored.")] = 60,
    seeds: Annotated[int, typer.Option(min=1, help="Trainings of each kind.")] = 3,
) -> None:
    """What each group of `varied` phantoms buys: trainings without it, scored on phantoms with all of them."""
    from benchmarks.groups import STAGES, UPDATES, Plan, bench_groups, table

    plan = Plan(UPDATES, unseen=unseen, seeds=seeds)
    rows = bench_groups(home, plan, groups=without or tuple(STAGES), say=lambda line: typer.echo(line, err=True))
    typer.echo(table(rows))


@app.command()
def updates(cohort: Path, count: int = 300, seeds: int = 2) -> None:
    """Validation Dice after equal updates on our batches and on MONAI's."""
    from benchmarks.equal_updates import print_equal_updates

    print_equal_updates(cohort, count, seeds)


def main() -> None:
    """Run a part; a user's error is one line."""
    try:
        app()
    except InputError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
