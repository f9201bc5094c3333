"""`metricunet demo` and `metricunet phantom`: what can be tried without data, and synthetic scans."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from metricunet.cli.options import Engine, Output, Overwrite
from metricunet.cli.terminal import DONE, SOME_FAILED, progress_bars, say, say_refused, trace
from metricunet.errors import InputError


def demo(output: Output = Path("demo")) -> None:
    """Try everything without data: make synthetic scans, train, predict, evaluate, and write a report."""
    from metricunet.workflows.demo import demo as run

    with progress_bars() as bar:
        result = run(output, say=say, bar=bar)
    for case in result.prediction.cases:
        if case.verdict == "fail":
            say(f"{case.case}: {case.verdict}, {case.status}: {'; '.join(case.reasons)}")
    say_refused(result.prediction)
    for fault in result.evaluation.faults:
        trace(fault.error)
    typer.echo(result.summary)
    typer.echo(f"report: {result.report}")
    raise typer.Exit(SOME_FAILED if result.failed else DONE)


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
