"""The command line: one thin function for each verb. Heavy imports happen inside the verbs."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from metricunet.errors import InputError, Naming, arguments_named, as_python, is_out_of_memory, told
from metricunet.progress import Bars, Progress
from metricunet.workflows.ledger_commands import commands as ledger_commands

if TYPE_CHECKING:
    from metricunet.inference.predict import PredictOutcome

app = typer.Typer(
    name="metricunet",
    help="Segment the prostate in CT scans with MetricUNet, a network trained with voxel-wise metric learning.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.add_typer(ledger_commands, name="ledger")

DONE, SOME_FAILED, NOTHING_DONE, INTERRUPTED = 0, 1, 2, 130

#: Arguments of Python functions that are not called as the parameter of the command which they come from.
PARAMETERS = {
    "formats": "format_",
    "loggers": "logger",
    "models": "model",
    "settings": "set_",
    "tolerance_mm": "tolerance",
    "tolerances_mm": "tolerance",
}

Output = Annotated[Path, typer.Option("-o", "--output", help="Write all results into this folder.")]
Device = Annotated[
    str,
    typer.Option(
        help="Compute on cpu, cuda or gpu (an NVIDIA GPU), cuda:N or gpu:N (GPU number N), mps (the GPU of an "
        "Apple machine), or auto (an NVIDIA GPU if there is one, else the CPU)."
    ),
]
AllowGaps = Annotated[
    bool,
    typer.Option(
        "--allow-gaps",
        help="Accept DICOM series with missing or unevenly spaced slices, and interpolate between the slices.",
    ),
]
AllowTilt = Annotated[
    bool,
    typer.Option(
        "--allow-tilt", help="Accept DICOM series of a tilted gantry, and resample them to axial slices."
    ),
]
Overwrite = Annotated[
    bool,
    typer.Option(
        "--overwrite",
        help="Replace files that have the name of an output but were not written by this program. "
        "Inputs are never replaced.",
    ),
]
Engine = Annotated[
    str | None,
    typer.Option(
        help="Share the work out by Ray: to all cores or GPUs of this machine (ray), or to a cluster that is "
        "running, given the address of its head or auto (ray://ADDRESS).",
        metavar="ray[://ADDRESS]",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON, for other programs to read.")]

#: Packages that are not installed where only exported models are computed (requirements-onnx.txt).
LEFT_OUT = ("torch", "lightning", "safetensors", "matplotlib")

#: Whether `--debug` was given.
_debug = False


@app.callback(invoke_without_command=True)
def _options(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and end.")] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show with every error where in the program it was raised.")
    ] = False,
) -> None:
    global _debug
    _debug = debug
    commands: dict[str, Any] = getattr(context.command, "commands", {})
    context.with_resource(arguments_named(flags_of(commands, context.invoked_subcommand)))
    if version:
        from metricunet import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.command()
def demo(output: Output = Path("demo")) -> None:
    """Try everything without data: make synthetic scans, train, predict, evaluate, and write a report."""
    from metricunet.workflows.demo import demo as run

    with progress_bars() as bar:
        result = run(output, say=_say, bar=bar)
    for case in result.prediction.cases:
        if case.verdict == "fail":
            _say(f"{case.case}: {case.verdict}, {case.status}: {'; '.join(case.reasons)}")
    _say_refused(result.prediction)
    for fault in result.evaluation.faults:
        _trace(fault.error)
    typer.echo(result.summary)
    typer.echo(f"report: {result.report}")
    raise typer.Exit(SOME_FAILED if result.failed else DONE)


@app.command()
def phantom(
    output: Output,
    n: Annotated[int, typer.Option("-n", min=1, help="Make this many scans for training.")] = 10,
    test: Annotated[
        int, typer.Option(min=0, help="Make this many more scans for testing, in the folder imagesTs.")
    ] = 0,
    seed: Annotated[
        int, typer.Option(help="Draw all that is random from this seed. The same seed gives the same files.")
    ] = 0,
    difficulty: Annotated[
        Literal["easy", "real", "varied"],
        typer.Option(
            help="Make coarse scans with little noise (easy), scans like those of hospitals (real), or "
            "scans and men as different as they come (varied)."
        ),
    ] = "real",
    without: Annotated[
        list[str] | None,
        typer.Option(
            help="Leave this group of what varied scans draw as in real ones: floor, base, rectum, gland, image, "
            "beyond, absent, joints or pelvis. Give it again to leave out more.",
            metavar="GROUP",
        ),
    ] = None,
    structures: Annotated[
        str, typer.Option(help="Label these structures, separated by commas, such as prostate,bladder,rectum.")
    ] = "prostate",
    absent: Annotated[
        float, typer.Option(min=0, max=1, help="Let this share of the scans show no prostate.")
    ] = 0.0,
    readers: Annotated[
        int,
        typer.Option(
            min=0,
            help="Add labels by this many simulated clinicians, in the folders reader1Tr, reader1Ts and so on.",
        ),
    ] = 0,
    displaced: Annotated[
        Path | None,
        typer.Option(
            help="Write a second cohort into this folder: the same scans, with the training labels of reader 1.",
            metavar="FOLDER",
        ),
    ] = None,
    dicom: Annotated[
        bool,
        typer.Option(
            "--dicom",
            help="Write each scan also as a DICOM series with a structure set, in the folder dicom, to try "
            "import, predict and serve without a patient.",
        ),
    ] = False,
    workers: Annotated[
        int, typer.Option(min=1, help="Make the scans in this many processes, where no --engine shares them out.")
    ] = 1,
    overwrite: Overwrite = False,
    engine: Engine = None,
) -> None:
    """Make synthetic CT scans of the pelvis with exact labels, in nnU-Net's raw data layout."""
    from metricunet.engine import opened
    from metricunet.phantom import Variety, displace_cohort, make_cohort
    from metricunet.phantom.cohort import CohortPlan
    from metricunet.phantom.displaced import check_displaced

    wanted: dict[str, Any] = {"n": n, "seed": seed, "difficulty": difficulty, "n_test": test, "n_readers": readers}
    wanted |= {"structures": [s.strip() for s in structures.split(",")], "absent_fraction": absent}
    if without:
        if difficulty != "varied":
            raise InputError(f"--without is for varied scans; add --difficulty varied to --without {without[0]}")
        if unknown := [name for name in without if name not in Variety().groups]:
            raise InputError(f"--without must be one of {', '.join(Variety().groups)}; got {unknown[0]!r}")
        wanted["variety"] = Variety(**dict.fromkeys(without, False))
    if displaced is not None:
        if readers < 1:
            raise InputError("--displaced needs a reader's contours; add --readers 1 or more")
        if displaced.resolve() == output.resolve():
            raise InputError(f"--displaced and -o name one folder, {output}; name two")
        check_displaced(output, displaced, CohortPlan(**wanted), overwrite=overwrite)  # before any work
    with opened(engine) as shared, progress_bars() as bar:
        names = make_cohort(
            output, **wanted, progress=bar("phantoms"), workers=workers, overwrite=overwrite, engine=shared
        )
    typer.echo(f"{len(names)} phantoms in {output}")
    if dicom:
        from metricunet.workflows.phantom_dicom import write_as_dicom

        with progress_bars() as bar:
            folders = write_as_dicom(output, names, progress=bar("DICOM"))
        typer.echo(f"each as a CT series with a structure set in {folders}")
    if displaced is not None:
        displace_cohort(output, displaced, overwrite=overwrite)
        typer.echo(f"the same with reader 1's training labels in {displaced}")


@app.command("import")
def import_(
    sources: Annotated[
        list[Path],
        typer.Argument(
            help="Folders to import: DICOM of patients, data sets of TotalSegmentator, nnU-Net or AMOS22, "
            "or pairs of images and label maps in NIfTI. With --reviewed: folders of predictions."
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", help="Write the cohort into this folder. It is not needed with --list-names."
        ),
    ] = None,
    names: Annotated[
        Path | None,
        typer.Option(
            help="Read from this YAML file which spellings of a name mean which structure.", metavar="FILE"
        ),
    ] = None,
    list_names: Annotated[
        bool,
        typer.Option(
            "--list-names",
            help="Import nothing; count the spellings of structures' names, and print a file to complete "
            "for --names. With --names, print only the spellings that this file does not sort.",
        ),
    ] = False,
    layout: Annotated[
        str,
        typer.Option(
            help="Read the folders as dicom, totalsegmentator, nnunet or pairs, or recognise their layout (auto)."
        ),
    ] = "auto",
    uids: Annotated[
        Literal["keep", "hash"],
        typer.Option(help="Keep the identifiers of the sources in import.json, or write only hashes of them."),
    ] = "hash",
    reviewed: Annotated[
        bool,
        typer.Option(
            "--reviewed",
            help="Take from folders of predictions what was accepted or corrected in `metricunet review`.",
        ),
    ] = False,
    scans: Annotated[
        Path | None,
        typer.Option(
            help="With --reviewed: find the scans in this folder. Without it they are found where they were "
            "predicted.",
            metavar="FOLDER",
        ),
    ] = None,
    overwrite: Overwrite = False,
    engine: Engine = None,
) -> None:
    """Make a cohort to train on from CT scans with contours: DICOM with structure sets, or other layouts."""
    from metricunet.cohort.importing import import_cohort
    from metricunet.cohort.importing import list_names as spellings
    from metricunet.cohort.importing.layouts import Finder
    from metricunet.engine import opened

    found_by: str | Finder = layout
    if reviewed:
        from metricunet.workflows.review.learn import ReviewedCases

        if layout != "auto":
            raise InputError(f"--reviewed reads folders of predictions; leave --layout {layout} out")
        found_by = ReviewedCases(scans)
    elif scans is not None:
        raise InputError("--scans says where the scans of predictions lie; give it together with --reviewed")
    if not list_names and output is None:
        raise InputError("import needs -o COHORT, or --list-names to see the names of structures first")
    of_import = {"--uids": uids != "hash", "--overwrite": overwrite, "--engine": engine is not None}
    if list_names and (given := [flag for flag, is_given in of_import.items() if is_given]):
        raise InputError(f"--list-names imports nothing, so {' and '.join(given)} would do nothing; leave it out")
    notes: tuple[str, ...] = ()
    with opened(engine) as shared, progress_bars() as bar:
        if list_names or output is None:
            listed = spellings(sources, names=names, layout=found_by, bars=bar)
            typer.echo(_as_names_file(listed.text.rstrip()))
            left_out, refused, failed = listed.left_out, listed.refused, False
        else:
            done = import_cohort(
                sources,
                output,
                names=names,
                layout=found_by,
                uids=uids,
                overwrite=overwrite,
                bars=bar,
                engine=shared,
            )
            for error in done.errors:
                _trace(error)
            typer.echo(done.text())
            notes, left_out, refused, failed = done.notes, done.left_out, done.refused, done.failed
    for kind, lines in (("note", notes), ("left out", left_out), ("refused", refused)):
        for line in lines:
            _say(f"{kind}: {line}")
    raise typer.Exit(SOME_FAILED if failed else DONE)


@app.command()
def check(
    path: Annotated[Path, typer.Argument(help="Cohort to check, or scan: one file, or a folder of DICOM.")],
    allow_gaps: AllowGaps = False,
    allow_tilt: AllowTilt = False,
    json: Json = False,
) -> None:
    """Find the problems of a cohort or a scan, and print one line for each."""
    from metricunet.workflows.check import check as run

    with progress_bars() as bar:
        problems = run(path, bar("checking"), allow_gaps=allow_gaps, allow_tilt=allow_tilt)
    if json:
        _print_json([{"case": p.case, "severity": p.severity, "message": p.message} for p in problems])
    else:
        for problem in problems:
            typer.echo(str(problem))
        errors = sum(p.severity == "error" for p in problems)
        typer.echo(f"{errors} errors, {len(problems) - errors} warnings")
    raise typer.Exit(SOME_FAILED if any(p.severity == "error" for p in problems) else DONE)


@app.command()
def train(
    output: Output,
    cohort: Annotated[
        Path | None,
        typer.Argument(
            help="Cohort to train on: a folder in nnU-Net's raw data layout. It is left out with --phantoms."
        ),
    ] = None,
    phantoms: Annotated[
        Literal["easy", "real", "varied"] | None,
        typer.Option(
            help="Train on synthetic scans of this difficulty, made beside the training, in place of a cohort."
        ),
    ] = None,
    workers: Annotated[
        int, typer.Option(min=1, help="Make the synthetic scans of --phantoms in this many processes.")
    ] = 1,
    engine: Annotated[
        str | None,
        typer.Option(
            help="Have the folds of --fold each trained, or the synthetic scans of --phantoms made, by Ray: on "
            "all cores or GPUs of this machine (ray), or on a cluster that is running (ray://ADDRESS).",
            metavar="ray[://ADDRESS]",
        ),
    ] = None,
    config: Annotated[Path | None, typer.Option(help="Read settings from this YAML file.")] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help="Begin with the settings named default, or with small ones, which suit a CPU. If not given, it "
            "is default, or with --init the model's networks and a short training.",
            show_default=False,
        ),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="Change one setting, given as section.key=value, such as segment.epochs=20. "
            "Give it again to change more.",
        ),
    ] = None,
    fold: Annotated[
        str,
        typer.Option(
            help="Validate on the cases of this fold, counted from 0; or train on all cases (all); or train every "
            "fold, and score each case by the model that has not seen it (each)."
        ),
    ] = "0",
    init: Annotated[
        str | None,
        typer.Option(
            "--init",
            "--pretrained",
            help="Begin with the weights of this model file in place of random ones, or with those of the model "
            "that comes with the program (base). Structures that it lacks begin anew.",
            metavar="MODEL",
        ),
    ] = None,
    freeze: Annotated[
        Literal["encoder"] | None,
        typer.Option(help="With --init, keep the encoders of all networks as they are."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the training in the output folder where it was stopped.")
    ] = False,
    logger: Annotated[
        list[str] | None,
        typer.Option(
            help="Also tell this logger the numbers of each epoch: mlflow or wandb, which write into the output "
            "folder and send nothing unless their environment variables say so; or tensorboard, which is told "
            "wherever it is installed. Give it again for more.",
        ),
    ] = None,
    device: Device = "auto",
    devices: Annotated[
        int,
        typer.Option(
            min=1, help="Train on this many devices of this computer together, each with a share of every batch."
        ),
    ] = 1,
    nodes: Annotated[
        int, typer.Option(min=1, help="Train on this many computers together, on each of which this is started.")
    ] = 1,
) -> None:
    """Train both stages of a model on a cohort, and write it to the output folder as model.safetensors."""
    from metricunet.engine import opened
    from metricunet.files.model import read_card
    from metricunet.training.config import load_config
    from metricunet.training.fit import refuse_idle
    from metricunet.training.fit import train as run
    from metricunet.training.start import initial_model

    if fold not in ("all", "each") and not fold.isdecimal():
        raise InputError(f"--fold must be a whole number, all or each; got {fold!r}")
    start = None if init is None else initial_model(init)
    parent = None if start is None else read_card(start)
    settings = load_config(preset, config, set_ or [], phantoms=phantoms, freeze=freeze, parent=parent)
    refuse_idle(cohort, fold, workers=workers, engine=engine)
    if fold == "each":
        if devices * nodes > 1:
            raise InputError(
                "--fold each trains each fold on one device; start the command again with --resume and another "
                "--device, such as cuda:1, and both share the folds"
            )
        from metricunet.training.cross_validation import cross_validate, lines_of

        with opened(engine) as shared, progress_bars() as bar:
            crossed = cross_validate(
                cohort,
                output,
                config=settings,
                init=start,
                resume=resume,
                device=device,
                loggers=logger or (),
                engine=shared,
                bar=bar,
                say=_say,
            )
        for line in lines_of(crossed):
            typer.echo(line)
        for cause in filter(None, (fold.cause for fold in crossed.failed)):
            _trace(cause)
        raise typer.Exit(SOME_FAILED if crossed.incomplete else DONE)
    with opened(engine) as shared, progress_bars() as bar:
        model = run(
            cohort,
            output,
            config=settings,
            fold=int(fold) if fold != "all" else "all",
            init=start,
            resume=resume,
            device=device,
            progress=bar("preparing" if settings.phantoms is None else "phantoms"),
            loggers=logger or (),
            workers=workers,
            devices=devices,
            nodes=nodes,
            engine=shared,
            say=_say,
        )
    typer.echo(f"model: {model}")


@app.command()
def predict(
    scans: Annotated[
        list[Path],
        typer.Argument(help="Scans to segment: NIfTI, NRRD or MetaImage files, or folders of these or of DICOM."),
    ],
    output: Output,
    model: Annotated[
        list[Path] | None,
        typer.Option(
            "-m",
            "--model",
            help="Segment with this model file, with that of this run folder, or with the exported model in this "
            "folder; of a cross-validation's folder, with those of all folds. Several models are averaged; give "
            "it again for more. Without it, the environment variable METRICUNET_MODEL names the model or models; "
            "without that, the shipped model is used.",
        ),
    ] = None,
    format_: Annotated[
        str,
        typer.Option(
            "--format",
            "--output_type",
            help="Write nifti (masks), rtstruct (DICOM structure sets), seg (DICOM segmentations), probability "
            "(NIfTI, in 4 bytes a voxel), probability_uint8 (in one byte), probability_seg (fractional DICOM "
            "segmentations), page (as --page), or several of these, separated by commas. The words dicom_rtstruct "
            "and dicom_seg mean the same.",
        ),
    ] = "nifti",
    structures: Annotated[
        list[str] | None,
        typer.Option(
            "--structures",
            "--roi_subset",
            help="Write only these structures of the model, separated by commas, such as prostate,bladder. The "
            "verdict is still that of all, but of organs at risk only where one of them is chosen: their network "
            "does not run otherwise.",
            metavar="NAMES",
        ),
    ] = None,
    series: Annotated[
        str | None, typer.Option(help="Segment only the DICOM series with this SeriesInstanceUID.")
    ] = None,
    contours: Annotated[
        Literal["surface", "voxel"],
        typer.Option(
            help="Draw the contours of a structure set where the probability is one half (surface), or along the "
            "edges of the mask's voxels (voxel)."
        ),
    ] = "surface",
    smooth: Annotated[
        bool,
        typer.Option(
            "--smooth", help="Smooth the contours of a structure set, moving no point by more than 0.5 mm."
        ),
    ] = False,
    holes: Annotated[
        Literal["keep", "close", "keyhole"],
        typer.Option(
            help="Draw a hole in a structure set as a contour of its own (keep), leave it out (close), or join it "
            "to the contour around it by a line (keyhole)."
        ),
    ] = "keep",
    add_to: Annotated[
        Path | None,
        typer.Option(
            help="Write a copy of this structure set with the new structures added. It must be of the one DICOM "
            "series that is given.",
            metavar="RTSTRUCT",
        ),
    ] = None,
    reruns: Annotated[
        int,
        typer.Option(
            min=0, help="Move or enlarge the crop up to this many times where the prostate reaches its edge."
        ),
    ] = 3,
    allow_gaps: AllowGaps = False,
    allow_tilt: AllowTilt = False,
    device: Device = "auto",
    runtime: Annotated[
        Literal["torch", "onnx"] | None,
        typer.Option(
            help="Compute with torch, or without it an exported model, a folder of `metricunet export --to onnx` "
            "(onnx). Without the option, what is given decides.",
            show_default=False,
        ),
    ] = None,
    provider: Annotated[
        Literal["cpu", "cuda", "openvino"] | None,
        typer.Option(
            help="Compute an exported model on the CPU or an NVIDIA GPU by onnxruntime (cpu, cuda), or on the CPU "
            "by OpenVINO. Without it, --device decides, and its auto means the CPU.",
            show_default=False,
        ),
    ] = None,
    fail_on: Annotated[
        Literal["fail", "review"] | None,
        typer.Option(
            "--fail-on",
            help="End with status 1 if a case has the verdict fail, or also if one needs review (review).",
            show_default="fail",
        ),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="The same as --fail-on review.")] = False,
    draw_anyway: Annotated[
        bool,
        typer.Option(
            "--draw-anyway",
            help="Write structure sets and segmentations also where the doubt is strong and the model was trained "
            "on synthetic scans, or descends from one that was, without validation on patients.",
        ),
    ] = False,
    page: Annotated[
        bool,
        typer.Option(
            "--page",
            help="Write also a page for each case, CASE.page.html, to look at in any browser: scan, structures "
            "and verdict in one file.",
        ),
    ] = False,
    overwrite: Overwrite = False,
    engine: Engine = None,
) -> None:
    """Segment the prostate in scans; write masks or structure sets, and say which cases need review."""
    from metricunet.inference.models import chosen_models, warnings_of

    if strict and fail_on == "fail":
        raise InputError("--strict means --fail-on review, and --fail-on fail is given; leave one of them out")
    models = chosen_models(model or ())
    for warning in warnings_of(models):
        _say(f"warning: {warning}")
    from metricunet.engine import opened
    from metricunet.inference.case_files import withheld_line
    from metricunet.inference.predict import predict as run

    formats = [*_names([format_]), *(["page"] if page else [])]
    with opened(engine) as shared, progress_bars() as bar:
        outcome = run(
            scans,
            models,
            output,
            formats=formats,
            structures=_names(structures) if structures else None,
            series=series,
            contours=contours,
            holes=holes,
            smooth=smooth,
            add_to=add_to,
            reruns=reruns,
            device=device,
            runtime=runtime,
            provider=provider,
            allow_gaps=allow_gaps,
            allow_tilt=allow_tilt,
            overwrite=overwrite,
            draw_anyway=draw_anyway,
            progress=bar("segmenting"),
            engine=shared,
        )
    for case in outcome.cases:
        time = "done before" if case.skipped else f"{case.seconds:.1f} s"
        typer.echo(f"{case.case}: {case.verdict}, {case.status}, doubt {case.doubt} ({time})")
        for reason in case.reasons:
            typer.echo(f"  {reason}")
        if case.withheld:
            typer.echo(f"  {withheld_line(case.withheld)}")
    _say_refused(outcome)
    raise typer.Exit(SOME_FAILED if outcome.failed(strict or fail_on == "review") else DONE)


@app.command()
def review(
    predictions: Annotated[Path, typer.Argument(help="Folder that metricunet predict has written.")],
    scans: Annotated[
        Path | None,
        typer.Option(
            help="Find the scans in this folder. Without it they are found where they were predicted.",
            metavar="FOLDER",
        ),
    ] = None,
    reviewer: Annotated[
        str | None,
        typer.Option(help="Write this name with each decision. Without it, your login.", metavar="NAME"),
    ] = None,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Listen at this port of this machine alone; 0 takes a free one.")
    ] = 0,
    browser: Annotated[
        bool,
        typer.Option("--browser/--no-browser", help="Open the page in your browser, or only print its address."),
    ] = True,
    ledger: Annotated[
        Path | None,
        typer.Option(
            help="Also write verdicts and decisions into this ledger. Without it, into the one that "
            "METRICUNET_LEDGER names, else into that of your user (see metricunet ledger).",
            metavar="FILE",
        ),
    ] = None,
    no_ledger: Annotated[
        bool, typer.Option("--no-ledger", help="Write decisions beside the predictions alone.")
    ] = False,
) -> None:
    """Look at predictions in the browser, and accept, reject or correct them; nothing leaves this machine."""
    from metricunet.ledger.location import default_ledger
    from metricunet.workflows.review import review as run

    if no_ledger and ledger is not None:
        raise InputError(
            "--no-ledger means that no ledger is written, and --ledger names one; leave one of them out"
        )
    file = None if no_ledger else ledger or default_ledger()
    run(predictions, scans=scans, reviewer=reviewer, port=port, browser=browser, ledger=file, say=typer.echo)


@app.command()
def serve(
    node: Annotated[Path, typer.Argument(help="File that says what the node takes, does and sends.")],
    check: Annotated[
        bool, typer.Option("--check", help="Name every mistake in the file, one line each, and do nothing else.")
    ] = False,
    once: Annotated[
        bool,
        typer.Option(
            "--once",
            help="Listen nowhere: take what lies in the watched folder, work off the queue, try each delivery "
            "once, and end.",
        ),
    ] = False,
) -> None:
    """Run a DICOM node: take CT series from the network, segment them, and send structure sets."""
    from metricunet.workflows.serve import check_node
    from metricunet.workflows.serve import serve as run

    if check:
        mistakes = check_node(node)
        for line in mistakes:
            typer.echo(f"{node}: {line}")
        if mistakes:
            raise typer.Exit(NOTHING_DONE)
        typer.echo(f"{node}: no mistakes")
    elif not run(node, once=once, say=_say):
        raise typer.Exit(SOME_FAILED)


@app.command()
def convert(
    source: Annotated[
        Path,
        typer.Argument(
            help="Structures to convert: a label map (NIfTI, NRRD, MetaImage), a folder of masks, an RTSTRUCT or "
            "a SEG."
        ),
    ],
    output: Output,
    scan: Annotated[
        Path,
        typer.Option(
            help="The scan that the structures belong to: a folder of DICOM or, for --to nifti and masks, a file."
        ),
    ],
    to: Annotated[
        str,
        typer.Option(
            help="Write nifti (a label map), masks (a file for each structure), rtstruct (DICOM structure set), "
            "seg (DICOM segmentation), or several of these, separated by commas."
        ),
    ],
    names: Annotated[
        Path | None,
        typer.Option(
            help="Read from this YAML file which spellings of a name mean which structure, and which to ignore.",
            metavar="FILE",
        ),
    ] = None,
    series: Annotated[str | None, typer.Option(help="Take the DICOM series with this SeriesInstanceUID.")] = None,
    case: Annotated[str | None, typer.Option(help="Name the outputs so, and not as the source is named.")] = None,
    contours: Annotated[
        Literal["surface", "voxel"],
        typer.Option(
            help="Draw the contours of a structure set along the edges of the mask's voxels (voxel), or halfway "
            "between the voxels' centres (surface)."
        ),
    ] = "voxel",
    smooth: Annotated[
        bool,
        typer.Option(
            "--smooth", help="Smooth the contours of a structure set, moving no point by more than 0.5 mm."
        ),
    ] = False,
    holes: Annotated[
        Literal["keep", "close", "keyhole"],
        typer.Option(
            help="Draw a hole in a structure set as a contour of its own (keep), leave it out (close), or join it "
            "to the contour around it by a line (keyhole)."
        ),
    ] = "keep",
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Convert label maps, structure sets (RTSTRUCT) and segmentations (SEG) into each other, on their scan."""
    from metricunet.workflows.convert import convert as run

    with progress_bars() as bar:
        done = run(
            source,
            output,
            scan=scan,
            to=to,
            names=names,
            series=series,
            case=case,
            contours=contours,
            smooth=smooth,
            holes=holes,
            overwrite=overwrite,
            progress=bar("converting"),
        )
    if json:
        _print_json(done.to_json())
    else:
        typer.echo(done.text())
    for note in done.notes:
        _say(f"note: {note}")
    for outcome in done.structures:
        for note in outcome.notes:
            _say(f"note: {note}")
        if outcome.status == "left out":
            _say(f"left out: {outcome.name}: {outcome.reason}")
    raise typer.Exit(SOME_FAILED if done.failed else DONE)


@app.command()
def evaluate(
    predictions: Annotated[
        Path, typer.Argument(help="Predicted mask, RTSTRUCT or DICOM SEG, or a folder of these.")
    ],
    references: Annotated[
        Path, typer.Argument(help="Reference mask, RTSTRUCT or DICOM SEG, or a folder of these.")
    ],
    output: Output,
    scan: Annotated[
        Path | None,
        typer.Option(
            help="Measure on the grid of this scan. RTSTRUCT and SEG need the folder of their DICOM series, or a "
            "folder of several."
        ),
    ] = None,
    names: Annotated[
        Path | None,
        typer.Option(
            help="Read from this YAML file which spellings of a name mean which structure, as import does.",
            metavar="FILE",
        ),
    ] = None,
    tolerance: Annotated[
        list[str] | None,
        typer.Option(
            help="Accept contours that are off by this many mm in added path length and surface Dice: 2, or for "
            "one structure rectum=3. Give it again for more.",
            metavar="MM",
        ),
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="Show these scans, a file or a folder, in the report's pictures.")
    ] = None,
    write_card: Annotated[
        Path | None,
        typer.Option(
            help="Write a copy of this model file, which made the predictions, into the output folder, with the "
            "scores in its card. It takes 20 or more scans of patients that no training has seen.",
            metavar="MODEL",
        ),
    ] = None,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Score predicted masks or contours against references; write a row for each case, a summary and a report."""
    from metricunet.evaluation.compare import evaluate as run
    from metricunet.evaluation.naming import split_tolerances
    from metricunet.evaluation.summary import fault_line, format_summary

    general, of_structures = split_tolerances(tolerance or [])
    with progress_bars() as bar:
        result = run(
            predictions,
            references,
            output,
            scan=scan,
            names=names,
            tolerance_mm=general,
            tolerances_mm=of_structures,
            images=images,
            write_card=write_card,
            overwrite=overwrite,
            progress=bar("scoring"),
        )
    for fault in result.faults:
        _trace(fault.error)
    if json:
        _print_json({name: entry.to_json() for name, entry in result.summary.items()})
        for fault in result.faults:
            _say(fault_line(fault))
        for note in result.notes:
            _say(f"note: {note}")
    else:
        typer.echo(format_summary(result))
        typer.echo(f"report: {output / 'report.html'}")
        if result.model is not None:
            typer.echo(f"model with these scores in its card: {result.model}")
    raise typer.Exit(SOME_FAILED if result.failed or result.faults else DONE)


@app.command()
def study(
    file: Annotated[Path, typer.Argument(help="YAML file with the data, arms, seeds and folds of the study.")],
    output: Output,
    device: Device = "auto",
    engine: Engine = None,
    replicates: Annotated[
        int | None,
        typer.Option(
            help="Carry out this many of the replicates of a study that has some, the first ones; run again "
            "without it for the rest."
        ),
    ] = None,
    keep: Annotated[
        Path | None,
        typer.Option(
            help="Keep the small files of finished runs in this folder as well, and take up what it holds. With "
            "it in version control, the same command continues the study on another machine.",
            metavar="FOLDER",
        ),
    ] = None,
) -> None:
    """Train and score every arm of a study with every seed and fold, and write tables; run again to continue."""
    from metricunet.engine import opened
    from metricunet.study.run import study as run

    with opened(engine) as shared, progress_bars() as bar:
        result = run(
            file, output, device=device, engine=shared, replicates=replicates, keep=keep, say=_say, bar=bar
        )
    typer.echo(result.text)
    typer.echo(f"tables: {result.tables}")
    for failed in result.failed:
        _say_failed(f"{failed.spec.title}: {failed.error}", failed.cause)
    raise typer.Exit(SOME_FAILED if result.failed else DONE)


@app.command()
def info(
    model: Annotated[
        Path | None,
        typer.Argument(
            help="Model file, or folder of an exported model, to describe, or base for the one that comes along. "
            "Without it, that one is described."
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Print what a model file says of its model (structures, training data, calibration), and its SHA-256."""
    from metricunet.files.exported import files_of_model, read_any_card
    from metricunet.files.model import card_content
    from metricunet.files.record import sha256
    from metricunet.inference.models import named_model, shipped_model

    path = shipped_model() if model is None else named_model(model)
    card = read_any_card(path)
    # As predictions and the ledger state it.
    content = card_content(card) | {"model_sha256": sha256(files_of_model(path))}
    if json:
        _print_json(content)
        return
    for name, value in content.items():
        if isinstance(value, dict):
            typer.echo(f"{name}:")
            for key, entry in value.items():
                shown = f"{len(entry)} known by the hashes of their files" if key == "scans" else entry
                typer.echo(f"  {key}: {shown}")
        elif name == "calibration":
            typer.echo("calibration: not calibrated, so the temperature is 1")
        elif name == "lineage":
            typer.echo(
                f"lineage: {'' if value else 'none known, trained from random weights or by an older version'}"
            )
            for ancestor in value:
                kind = "synthetic scans only" if ancestor["synthetic"] else f"{len(ancestor['cases'])} known cases"
                typer.echo(f"  {ancestor['name']}: trained on {kind}, weights {ancestor['weights_sha256']}")
        elif name == "cases":
            typer.echo(f"cases: {len(value)} known by the hashes of their files (--json lists them)")
        elif name == "validated":
            typer.echo("validated: no scores on patients in this card")
        else:
            typer.echo(f"{name}: {value}")
    if card.held_back:
        typer.echo(f"verdicts are review at best: {card.held_back}")


@app.command()
def export(
    model: Annotated[Path, typer.Argument(help="Model file to export, or base for the one that comes along.")],
    output: Output,
    to: Annotated[
        Literal["onnx", "monai-bundle"],
        typer.Option(
            help="Write ONNX files, which metricunet predict --runtime onnx computes without torch (onnx), or a "
            "bundle for python -m monai.bundle (monai-bundle)."
        ),
    ],
    overwrite: Overwrite = False,
) -> None:
    """Write a model for other programs: as ONNX files, or as a bundle of MONAI."""
    from metricunet.workflows.export import export as run

    done = run(model, output, to=to, overwrite=overwrite)
    for line in done.lines:
        typer.echo(line)


@app.command()
def bench(
    part: Annotated[str, typer.Argument(help="Part to measure: predict, train, metric, or all.")] = "all",
    scan: Annotated[
        Path | None,
        typer.Option(help="Predict this scan, a file or a DICOM folder. Without it, a synthetic scan is made."),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(
            "-m", "--model", help="Predict with this model file. Without it, an untrained model is made."
        ),
    ] = None,
    preset: Annotated[
        str, typer.Option(help="Measure the networks and the training of this preset: default or small.")
    ] = "default",
    repeats: Annotated[
        int | None,
        typer.Option(
            min=1, help="Repeat each measurement this many times. Without it, each part chooses its own number."
        ),
    ] = None,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Measure how fast this machine predicts, trains and computes the metric losses, and in how much memory."""
    from metricunet.workflows.bench import bench as run

    found: dict[str, Any] = {}
    with progress_bars() as bar:
        for name, result in run(
            part, scan=scan, model=model, preset=preset, repeats=repeats, device=device, bar=bar
        ):
            found[name] = result.to_json()
            if not json:
                typer.echo(f"{result.text()}\n")
    if json:
        _print_json(found if part == "all" else found[part])


@app.command()
@app.command("validate", hidden=True)  # its name until 0.1.0
def commission(output: Output, json: Json = False) -> None:
    """Send shapes of known size through every file format and back, and write a page to sign for commissioning."""
    from metricunet.workflows.commission.run import commission as run

    with progress_bars() as bar:
        result = run(output, progress=bar("commissioning"))
    if json:
        _print_json(result.to_json())
    else:
        typer.echo(result.text())
        typer.echo(f"report: {result.report}")
    raise typer.Exit(SOME_FAILED if result.failed else DONE)


@app.command()
def nnunet(
    action: Annotated[
        Literal["install", "uninstall", "path"],
        typer.Argument(
            help="Make nnU-Net in this environment find the trainers (install), undo that (uninstall), or print "
            "the folder that nnUNet_extTrainer may name instead (path)."
        ),
    ],
) -> None:
    """Let nnU-Net 2.8 find trainers with the metric branch by name, such as nnUNetTrainerVoxelMetric."""
    from metricunet.nnunet.install import FOLDER, install, uninstall

    if action == "path":
        typer.echo(FOLDER)
    elif action == "install":
        typer.echo(f"nnU-Net finds nnUNetTrainerVoxelMetric and nnUNetTrainerVoxelControl by {install()}")
    else:
        removed = uninstall()
        typer.echo("nothing was installed" if removed is None else f"removed {removed}")


@contextmanager
def progress_bars() -> Iterator[Bars]:
    """Yield a function that opens a named progress bar on standard error; silent without a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as LiveBars

    console = Console(stderr=True)
    columns = (TextColumn("{task.description:<12}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    progress = LiveBars(*columns, console=console, disable=not console.is_terminal)

    def bar(name: str) -> Progress:
        task: Any = None

        def advance(done: int, total: int) -> None:
            nonlocal task
            if task is None:
                # Started with its first step and stopped with its last, for rich allows one live display only.
                progress.start()
                task = progress.add_task(name, total=total)
            progress.update(task, completed=done, total=total)
            if done >= total:
                progress.stop()
                progress.remove_task(task)  # its last state stays on the screen; the next bar must not repeat it
                task = None  # what is told of another round, such as of scans without contours, opens it anew

        return advance

    try:
        yield bar
    finally:
        progress.stop()


def _names(given: list[str]) -> list[str]:
    """Return the names that are separated by commas in one option, or in several of a kind."""
    return [name.strip() for names in given for name in names.split(",")]


def _as_names_file(text: str) -> str:
    """Return a names file as it can be redirected to a file: UTF-8, or ASCII with the escapes that YAML knows."""
    import codecs

    name = codecs.lookup(sys.stdout.encoding or "utf-8").name
    return text if name.startswith("utf") else text.encode("ascii", "backslashreplace").decode("ascii")


def flags_of(commands: dict[str, Any], called: str | None) -> Naming:
    """Return how messages name an argument for a user of the command line: by the flag of the called command.

    An argument that this command lacks is named by the flag of one that has it, after that command's name.

    Args:
        commands: all commands by their names.
        called: name of the one that was called; None for none.
    """
    parameters = {name: {p.name: p for p in command.params} for name, command in commands.items()}
    order = [*filter(None, [called]), *commands]

    def flag(name: str, value: object = None) -> str:
        for command in order:
            parameter = parameters[command].get(PARAMETERS.get(name, name))
            if parameter is not None and parameter.opts[0].startswith("-"):
                words = [] if command == called else [command]
                words.append(parameter.opts[0])
                if value is not None and value is not True:
                    words.append(",".join(map(str, value)) if isinstance(value, list | tuple) else str(value))
                return " ".join(words)
        return as_python(name, value)

    return flag


def _say(message: str) -> None:
    typer.echo(message, err=True)


def _say_failed(message: str, error: BaseException | None) -> None:
    """Say in one line that a case failed; with --debug, also where."""
    _say(f"failed: {message}")
    if error is not None:
        _trace(error)


def _say_refused(outcome: PredictOutcome) -> None:
    """Say in one line of each scan that could not be segmented, why."""
    for refused in outcome.refused:
        if refused.error is not None:
            _say_failed(refused.reason, refused.error)
        else:
            _say(f"refused: {refused.reason}")


def _trace(error: BaseException) -> None:
    """With --debug, show where something went wrong, whether or not it ended the command."""
    if _debug:
        import traceback

        _say("".join(traceback.format_exception(error)).rstrip())


#: For characters that the encoding of a pipe or file lacks. What is not here is written as its number.
PLAIN = {"−": "-", "–": "-", "—": "-", "±": "+/-", "×": "x", "²": "2", "…": "...", "“": '"', "”": '"', "’": "'"}


def _print_in_any_encoding() -> None:
    """Let output go through whatever the encoding of standard output is: cp1252 has no minus sign, ASCII no ü.

    Where it is ASCII, Typer takes that for a mistake of the locale and writes UTF-8.
    """
    import codecs
    from io import TextIOWrapper

    codecs.register_error("metricunet.plain", _plainly)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="metricunet.plain")


def _plainly(error: UnicodeError) -> tuple[str, int]:
    """Handle an encoding error (see `codecs.register_error`): a likeness of each character, else its number."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lost = error.object[error.start : error.end]
    # Bytes of a file's name that are no text stand as characters from 0xDC80 on.
    known = (PLAIN.get(c) or (f"\\x{ord(c) - 0xDC00:02x}" if "\udc80" <= c <= "\udcff" else None) for c in lost)
    plain = (text or c.encode("ascii", "backslashreplace").decode() for c, text in zip(lost, known, strict=True))
    return "".join(plain), error.end


def _print_json(content: Any) -> None:
    import json

    typer.echo(json.dumps(content, indent=2))


def main() -> None:
    """Entry point: bad input becomes one line and status 2; --debug shows before it where it came from."""
    _print_in_any_encoding()
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # A shell without job control starts what runs in the background so; whoever sends it means it to end.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        sys.exit(app(standalone_mode=False) or DONE)
    except InputError as error:
        _trace(error)
        _say(f"error: {' '.join(str(error).split())}")
    except typer.TyperException as error:
        # Typer reads values with pydantic, which sets words of its own before a sentence.
        message = error.format_message().replace(": Value error, ", ": ")
        _say(f"error: {' '.join(message.split())} (see --help)")
    except (KeyboardInterrupt, typer.Abort):
        _say("stopped")
        sys.exit(INTERRUPTED)
    except Exception as error:
        _trace(error)
        if isinstance(error, ModuleNotFoundError) and error.name in LEFT_OUT:
            _say(f"error: this needs {error.name}, which is not installed here; run `pip install {error.name}`")
        elif is_out_of_memory(error):
            _say(f"error: {told(error)}; end other programs on it, or take a smaller scan, batch or network")
        else:
            where = "" if _debug else ": --debug after metricunet shows where"
            _say(f"error: {told(error)}; this is a fault of the program{where}")
    sys.exit(NOTHING_DONE)
