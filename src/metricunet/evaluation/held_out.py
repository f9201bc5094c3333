"""Scores on patients for a model's card: whose predictions they are of, and that no training has seen the scans.

A model of synthetic origin is held at `review` until its card has such scores. So they count only for what the
model itself predicted, each file as it was written, of enough scans of patients, none of which its own training
has seen, or that of a model that it descends from; validation cases have chosen the epoch, so they are seen, too.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from metricunet import __version__
from metricunet.errors import InputError, argument
from metricunet.evaluation.cases import CasePair, Matching, said_synthetic
from metricunet.evaluation.summary import Evaluation
from metricunet.files.model import (
    LEAST_PATIENT_CASES,
    Ancestor,
    ModelCard,
    PatientScores,
    read_card,
    read_model,
    write_model,
)
from metricunet.files.own import FILES, Inputs, read_sealed
from metricunet.files.record import sha256
from metricunet.files.scan import scan_files


@dataclass(frozen=True)
class HeldOut:
    """Cases that a model may be scored on for its card.

    Attributes:
        model: the model file.
        card: what it says of itself.
        scans: case to the SHA-256 of its scan.
        written: where the model goes with its scores.
        inputs: files that are never replaced.
        overwrite: whether another file that lies there may be replaced.
    """

    model: Path
    card: ModelCard
    scans: Mapping[str, str]
    written: Path
    inputs: tuple[Path, ...] = ()
    overwrite: bool = False

    def check_place(self) -> None:
        """Refuse to replace a file that lies where the model goes.

        Raises:
            InputError: it is named.
        """
        _refuse_taken(self.written, self.inputs, self.overwrite)

    def scores(self, evaluation: Evaluation) -> PatientScores:
        """Return what the card will say.

        Raises:
            InputError: a case, or a structure of the model in a case, could not be scored, or too few of the
                references hold the target.
        """
        faults = evaluation.faults
        lost = next((one for one in faults if not one.scored or one.structure in self.card.labels), None)
        if lost is not None:
            what = f"{lost.case}: {lost.structure}" if lost.structure else f"{lost.case}:"
            raise InputError(
                f"{what} could not be scored ({lost.reason}); scores for a model's card must be of all cases"
            )
        outcomes = [row.outcome for row in evaluation.rows if row.structure == self.card.target]
        missed, cases = outcomes.count("missed"), outcomes.count("missed") + outcomes.count("measured")
        _check_number(self.model, cases, f"cases whose reference holds {self.card.target}")
        means = {
            name: {measure: found.mean for measure, found in summary.measures.items() if found.mean is not None}
            for name, summary in evaluation.summary.items()
            if name in self.card.labels
        }
        return PatientScores(cases, missed, means, tuple(sorted(self.scans.values())), __version__)

    def write(self, scores: PatientScores) -> Path:
        """Write the model with its scores, and return the path."""
        write_model(self.written, replace(self.card, validated=scores), read_model(self.model)[1])
        return self.written


def held_out_cases(model: Path, matching: Matching, output: Path, overwrite: bool) -> HeldOut:
    """Make sure, before any scoring, that the scores of these cases may stand in the card of a model.

    Args:
        model: the model file that made the predictions.
        matching: the cases.
        output: folder that the model is written into, under its own name.
        overwrite: whether a file that has this name there may be replaced; the model itself never is.

    Raises:
        InputError: the scans are synthetic or too few, one is known to a training or occurs twice, what the
            training has seen is not known, a case was not predicted by this model alone or was changed since, or a
            file is in the way.
    """
    card, written, inputs = read_card(model), output / model.name, (model, *matching.files)
    _refuse_taken(written, inputs, overwrite)
    phantoms = said_synthetic(matching.files)
    if phantoms is not None:
        raise InputError(
            f"{phantoms}: says that its scans are synthetic; scores for a model's card must be of patients"
        )
    value = matching.labels.get(card.target)
    if value != card.labels[card.target]:
        raise InputError(
            f"{model}: labels {card.target} with {card.labels[card.target]}, the references with "
            f"{'nothing' if value is None else value}; expected the very labels of the model in their dataset.json"
        )
    _check_number(model, len(matching.pairs), "cases")
    seen, digest = _seen(model, card), sha256([model])
    scans: dict[str, str] = {}
    for pair in matching.pairs:
        scan = _scan_of(pair, model, digest)
        hashes = {scan, *(() if pair.image is None else (sha256(scan_files(pair.image)),))}
        known = next((seen[found] for found in hashes if found in seen), None)
        if known is not None:
            raise InputError(
                f"{pair.case}: its scan was a {known}; scores for a model's card must be of scans that no "
                "training has seen"
            )
        twin = next((case for case, other in scans.items() if other == scan), None)
        if twin is not None:
            raise InputError(f"{pair.case}: its scan is that of {twin}; leave one of the two out")
        scans[pair.case] = scan
    return HeldOut(model, card, scans, written, inputs, overwrite)


def _refuse_taken(written: Path, inputs: Iterable[Path], overwrite: bool) -> None:
    if not os.path.lexists(written):
        return
    if written in Inputs(inputs):
        raise InputError(f"{written}: is an input and would be overwritten; choose another folder")
    if written.is_dir() or not overwrite:
        raise InputError(
            f"{written}: is there already; choose another folder, or replace it with {argument('overwrite', True)}"
        )


def _check_number(model: Path, found: int, what: str) -> None:
    if found < LEAST_PATIENT_CASES:
        raise InputError(
            f"{model}: scores for its card must be of {LEAST_PATIENT_CASES} or more {what}; {found} are there"
        )


def _seen(model: Path, card: ModelCard) -> dict[str, str]:
    """Return the hash of each scan that a training has seen, and what it was there."""
    seen: dict[str, str] = {}
    trainings: list[tuple[str, ModelCard | Ancestor]] = [(str(model), card)]
    trainings += [(one.name, one) for one in card.lineage]
    for name, one in trainings:
        if not one.cases and not one.synthetic:
            raise InputError(
                f"{model}: its card does not say which cases {name} was trained on, so nobody can tell whether "
                "these were among them; train it again with this version"
            )
        seen |= dict.fromkeys(one.validation_cases, f"validation case of {name}")
        seen |= dict.fromkeys(one.cases, f"training case of {name}")
    return seen


def _scan_of(pair: CasePair, model: Path, digest: str) -> str:
    """Return the hash of the scan of a case that this model predicted, and nobody has changed since."""
    verdict = None if pair.quality is None else read_sealed(pair.quality)
    if verdict is None or verdict.get("command") != "predict":
        raise InputError(
            f"{pair.case}: has no verdict that `metricunet predict` wrote and nobody changed; predict the case "
            f"with {model}, or leave its reference out"
        )
    if verdict.get("model_sha256") != digest:
        raise InputError(
            f"{pair.quality}: another model than {model} predicted this case, or several did; predict it with "
            "this one alone"
        )
    if verdict.get("chosen"):
        raise InputError(
            f"{pair.quality}: of what the model segments only {', '.join(verdict['chosen'])} was written; predict "
            "the case again with all structures"
        )
    if pair.image is None and verdict.get("scan", "") is None:  # its hash is of voxels, which no training states
        raise InputError(
            f"{pair.quality}: its scan came from memory, so nobody can tell whether a training has seen it; put "
            "the scans into imagesTs beside the folder of the references, or predict the case from its file"
        )
    stated = verdict[FILES]
    if pair.prediction is None:
        if verdict.get("structures"):
            raise InputError(f"{pair.quality}: its mask is not there; predict the case again as nifti")
    elif stated.get(pair.prediction.name) != sha256([pair.prediction]):
        raise InputError(f"{pair.prediction}: was changed since it was predicted; predict the case again")
    return str(verdict["input_sha256"])
