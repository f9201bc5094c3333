"""Part `calls`: calls of `metricunet predict`: time and memory, many cases in one, and whether they repeat."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import torch

from benchmarks.report import cuda_line, value_target, verdict
from benchmarks.subject import Subject
from metricunet.files.nifti import read_labels, write_nifti
from metricunet.inference.predictor import Predictor
from metricunet.progress import Progress
from metricunet.workflows.bench.predict import nothing_found, seconds_of_cases
from metricunet.workflows.bench.process import Ended, run_metricunet
from metricunet.workflows.bench.result import MeasuredOn, duration, head, times_line, value_line
from metricunet.workflows.bench.timing import Advance, Times, counter

REPEATS = 3
CASES = 10
THREADS = (1, 2)
#: (most slices of 512 x 512, seconds, MiB): what a prediction may take on two cores with preset `default`.
TARGETS = ((235, 20.0, 1536.0), (650, 30.0, 2048.0))
#: Share of a scan's voxels that may differ between thread counts.
MOST_DIFFERING = 1e-5
#: How much the Dice with the true shape may differ between bf16 and fp32.
MOST_DICE_DIFFERENCE = 0.002


@dataclass(frozen=True)
class CallsBench:
    """What a prediction costs as a whole, and whether it can be repeated.

    Attributes:
        facts: where it was measured.
        subject: scan and model, in words.
        shape: slices, rows, columns of the scan.
        formats: that were written.
        whole: wall time of the process, imports counted in.
        peak_mib: of its memory; the largest of all runs; None where the system does not tell.
        target_s, target_mib: for a scan of this size; None where there is none.
        cases: how many went into one call.
        one: a call with one case, NIfTI to NIfTI.
        many_s: a call with all cases.
        startup_s: of a call with one case, what is not spent on the case.
        saved_s: `cases` calls with one case less one call with all.
        same_masks: whether all runs with equal arguments gave the same mask.
        same_contours: the same for the structure set's coordinates; None where none was written.
        threads: thread counts that were compared; empty on a GPU.
        differing_share: share of the scan's voxels that differ between them.
        precisions_dice: Dice of the masks in bf16 and fp32 with each other; None without the user's model.
        dice_difference: of their Dice with the true shape; None without the user's model or without a phantom.
    """

    facts: MeasuredOn
    subject: tuple[str, ...]
    shape: tuple[int, ...]
    formats: tuple[str, ...]
    whole: Times
    peak_mib: float | None
    target_s: float | None
    target_mib: float | None
    cases: int
    one: Times
    many_s: float
    startup_s: float
    saved_s: float
    same_masks: bool
    same_contours: bool | None
    threads: tuple[int, ...]
    differing_share: float | None
    precisions_dice: float | None
    dice_difference: float | None

    def to_json(self) -> dict[str, Any]:
        """Return it as plain dictionaries and lists."""
        return asdict(self)

    def text(self) -> str:
        """Write it for people to read."""
        lines = [head("calls", self.facts), *self.subject]
        lines.append(
            times_line(f"the whole process, to {' and '.join(self.formats)}", self.whole)
            + _against(self.whole.median_s, self.target_s, "s")
        )
        if self.peak_mib is not None:
            peak = value_line("peak memory", f"{self.peak_mib:.0f} MiB")
            lines.append(peak + _against(self.peak_mib, self.target_mib, "MiB"))
        if self.target_s is not None:
            lines.append("  (the targets are for two cores and preset default)")
        lines.append(times_line("one case, NIfTI to NIfTI", self.one))
        lines.append(value_line("  of that, start-up", duration(self.startup_s)))
        lines.append(value_line(f"{self.cases} cases in one call", duration(self.many_s)))
        least = (self.cases - 1) * self.startup_s
        saved = f"saved against {self.cases} calls"
        met = self.saved_s >= least
        lines.append(value_target(saved, f"{self.saved_s:.1f} s", f"at least {least:.1f} s of start-up", met))
        lines.append(value_target("equal runs give equal masks", _word(self.same_masks), "yes", self.same_masks))
        if self.same_contours is not None:
            same = self.same_contours
            lines.append(value_target("equal runs give equal contours", _word(same), "yes", same))
        if self.differing_share is not None:
            few = self.differing_share <= MOST_DIFFERING
            name = f"voxels that differ, {' and '.join(map(str, self.threads))} threads"
            lines.append(value_target(name, f"{self.differing_share:.1e}", f"at most {MOST_DIFFERING:g}", few))
        if self.precisions_dice is None:
            lines.append("  bf16 against fp32: not compared, for that takes a trained model (--model)")
        else:
            lines.append(value_line("Dice of the masks in bf16 and in fp32", f"{self.precisions_dice:.4f}"))
        if self.dice_difference is not None:
            met = abs(self.dice_difference) < MOST_DICE_DIFFERENCE
            target = f"below {MOST_DICE_DIFFERENCE:g} either way"
            name = "Dice in bf16 less Dice in fp32"
            lines.append(value_target(name, f"{self.dice_difference:+.4f}", target, met))
        return "\n".join([*lines, *cuda_line(self.facts)])


def bench_calls(
    subject: Subject,
    device: torch.device,
    *,
    repeats: int | None = None,
    cases: int = CASES,
    progress: Progress | None = None,
) -> CallsBench:
    """Measure `metricunet predict`.

    Args:
        subject: scan and model.
        device: to compute on.
        repeats: of the whole process; two at least, to compare what they write.
        cases: how many go into one call.
        progress: called with (done, all).

    Raises:
        InputError: the prediction ends in an error, or finds nothing.
    """
    repeats = max(2, repeats or REPEATS)
    on_cpu = device.type == "cpu"
    advance = counter(2 * repeats + 1 + len(THREADS) * on_cpu + 1, progress)
    formats = ("nifti", "rtstruct") if subject.is_dicom else ("nifti",)
    ended, outputs = _repeat([subject.path], subject, formats, device, repeats, advance)
    if next(outputs[0].glob("*.nii.gz"), None) is None:
        raise nothing_found(subject.model, subject.scan_name)
    ones, one_outputs, many_s = _one_and_many(subject, device, repeats, cases, advance)
    one = Times.of([e.seconds for e in ones])
    startups = [e.seconds - seconds_of_cases(o) for e, o in zip(ones, one_outputs, strict=True)]
    target = target_of(subject.scan.array.shape)
    differing = _differing_share(subject, device, advance) if on_cpu else None
    between, difference = _precisions(subject, device) if subject.trained else (None, None)
    advance()
    peaks = [e.peak_mib for e in ended if e.peak_mib is not None]
    return CallsBench(
        facts=MeasuredOn.of(device),
        subject=tuple(subject.describe()),
        shape=subject.scan.array.shape,
        formats=formats,
        whole=Times.of([e.seconds for e in ended]),
        peak_mib=max(peaks) if peaks else None,
        target_s=target[0],
        target_mib=target[1],
        cases=cases,
        one=one,
        many_s=many_s,
        startup_s=Times.of(startups).median_s,
        saved_s=cases * one.median_s - many_s,
        same_masks=len({mask_sha256(folder) for folder in outputs}) == 1,
        same_contours=len({contour_sha256(f) for f in outputs}) == 1 if "rtstruct" in formats else None,
        threads=THREADS if on_cpu else (),
        differing_share=differing,
        precisions_dice=between,
        dice_difference=difference,
    )


def target_of(shape: Sequence[int]) -> tuple[float | None, float | None]:
    """Return seconds and MiB that a prediction of such a scan may take; none where nothing was promised."""
    for slices, seconds, mib in TARGETS:
        if shape[0] <= slices and tuple(shape[1:]) == (512, 512):
            return seconds, mib
    return None, None


def mask_sha256(folder: Path) -> str:
    """Hash the voxels of all masks of a prediction folder."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.nii.gz")):
        digest.update(np.ascontiguousarray(read_labels(path).array).tobytes())
    return digest.hexdigest()


def contour_sha256(folder: Path) -> str:
    """Hash the coordinates of all contours of a prediction folder; identifiers and dates are left out."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.rtstruct.dcm")):
        for roi in pydicom.dcmread(path).ROIContourSequence:
            for contour in roi.get("ContourSequence", []):
                digest.update("\\".join(map(str, contour.ContourData)).encode())
    return digest.hexdigest()


def _call(
    scans: Sequence[Path],
    subject: Subject,
    output: Path,
    formats: Sequence[str],
    device: torch.device,
    environment: dict[str, str] | None = None,
) -> Ended:
    words = ["predict", *scans, "-m", subject.model, "-o", output, "--format", ",".join(formats)]
    if not subject.trained:
        words += ["--reruns", "0"]  # the stand-in's region reaches the crop's ends wherever it is
    return run_metricunet([*words, "--device", device], environment)


def _repeat(
    scans: Sequence[Path],
    subject: Subject,
    formats: Sequence[str],
    device: torch.device,
    repeats: int,
    advance: Advance,
) -> tuple[list[Ended], list[Path]]:
    """Call it with fresh output folders; return how the calls ended and the folders."""
    outputs = [subject.folder / f"{'-'.join(formats)}-{k}" for k in range(repeats)]
    ended = []
    for output in outputs:
        shutil.rmtree(output, ignore_errors=True)
        ended.append(_call(scans, subject, output, formats, device))
        advance()
    return ended, outputs


def _one_and_many(
    subject: Subject, device: torch.device, repeats: int, cases: int, advance: Advance
) -> tuple[list[Ended], list[Path], float]:
    """Call it with one case several times, and with many once; the cases are one file under several names."""
    folder = subject.folder / "cases"
    folder.mkdir(exist_ok=True)
    paths = [folder / f"case_{k:02d}.nii" for k in range(cases)]
    write_nifti(paths[0], subject.scan.canonical())
    for path in paths[1:]:
        path.unlink(missing_ok=True)
        try:
            os.link(paths[0], path)
        except OSError:  # a file system without links
            shutil.copyfile(paths[0], path)
    ones, outputs = _repeat(paths[:1], subject, ("nifti",), device, repeats, advance)
    many = subject.folder / "many"
    shutil.rmtree(many, ignore_errors=True)
    ended = _call(paths, subject, many, ("nifti",), device)
    advance()
    shutil.rmtree(folder)
    return ones, outputs, ended.seconds


def _differing_share(subject: Subject, device: torch.device, advance: Advance) -> float:
    masks = []
    for threads in THREADS:
        output = subject.folder / f"threads-{threads}"
        shutil.rmtree(output, ignore_errors=True)
        names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        _call([subject.path], subject, output, ("nifti",), device, dict.fromkeys(names, str(threads)))
        masks.append(read_labels(next(output.glob("*.nii.gz"))).array)
        advance()
    return float((masks[0] != masks[1]).mean())


def _precisions(subject: Subject, device: torch.device) -> tuple[float | None, float | None]:
    """Return the Dice of the masks in bf16 and fp32 with each other, and how much their own Dice differ."""
    masks = {}
    for precision in ("bf16", "fp32"):
        predictor = Predictor([subject.model], str(device), precision)
        labels = predictor.predict(subject.scan).labels
        if labels is None:
            return None, None
        masks[precision] = labels.array == predictor.card.labels[predictor.card.target]
    between = _dice(masks["bf16"], masks["fp32"])
    if subject.truth is None:
        return between, None
    truth = subject.truth.array > 0
    return between, _dice(masks["bf16"], truth) - _dice(masks["fp32"], truth)


def _dice(one: np.ndarray, two: np.ndarray) -> float:
    total = int(one.sum()) + int(two.sum())
    return 2 * int((one & two).sum()) / total if total else 1.0


def _against(value: float, target: float | None, unit: str) -> str:
    if target is None:
        return ""
    return f"; target at most {target:g} {unit} {verdict(value <= target)}"


def _word(yes: bool) -> str:
    return "yes" if yes else "no"
