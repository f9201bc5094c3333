"""Training that begins from a model: which of its weights are kept, for which structures, and what it has seen.

A network is kept whole but for the layers that are as wide as there are classes. Of these, the rows of structures
that both trainings have go on, wherever they stand among the classes, and so does the background's; the other
structures begin with random weights.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metricunet.cohort.prepare import PreparedCase
from metricunet.errors import InputError, argument
from metricunet.files.model import Ancestor, ModelCard, of_stage, read_model
from metricunet.inference.models import BASE, SHIPPED
from metricunet.networks import build_network
from metricunet.specs import LocateSpec, SegmentSpec
from metricunet.structures import class_of

#: What is said of structures that begin anew though the model has them, by its stage that does.
ELSEWHERE = {
    "organs": "its organs' network: what organs.structures names of these is kept",
    "segment": "its stage 2: what organs.structures leaves out of these is kept",
}

Spec = LocateSpec | SegmentSpec
#: Structures of a network in the order of its classes, each with its standard name.
Structures = Mapping[str, str]


@dataclass(frozen=True, eq=False)
class Parent:
    """The model that a training begins from.

    Attributes:
        path: the file it was read from.
        name: `base`, or the name of the file without its ending.
        card: what the model says of itself.
        weights: its weights by their names in the file.
        weights_sha256: hash of these.
    """

    path: Path
    name: str
    card: ModelCard
    weights: dict[str, Tensor]
    weights_sha256: str

    @property
    def lineage(self) -> tuple[Ancestor, ...]:
        """The lineage of whatever begins from this model: its own, and then the model itself."""
        card = self.card
        own = Ancestor(self.name, self.weights_sha256, card.synthetic, card.cases, card.validation_cases)
        return (*card.lineage, own)

    def spec(self, stage: str) -> Spec | None:
        """Return what a stage of the model is; None where it has no such stage."""
        spec: Spec | None = getattr(self.card, stage, None)
        return spec

    def structures(self, stage: str) -> Structures:
        """Return the structures of a stage; none where the model has no such stage."""
        if self.spec(stage) is None:
            return {}
        organs = stage == "organs"
        names: Iterable[str] = self.card.organs_structures if organs else self.card.staged_labels
        return {name: self.card.tg263[name] for name in names}


@dataclass(frozen=True)
class Inherited:
    """Which structures of a stage go on with the parent's weights.

    Attributes:
        kept: structures whose weights are kept, each with what the parent calls it.
        anew: structures that begin with random weights.
    """

    kept: dict[str, str]
    anew: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Inheritance:
    """What a training has of the model that it begins from.

    Attributes:
        parent: that model.
        stages: for each stage what it inherits; None where the parent has no such stage.
        elsewhere: structures that begin anew though the parent has them, each with its stage that does: `organs`
            where the training has them in stage 2, `segment` where it has them in the organs' network.
    """

    parent: Parent
    stages: dict[str, Inherited | None]
    elsewhere: dict[str, str] = field(default_factory=dict)

    def facts(self) -> dict[str, Any]:
        """Return what run.json says of it."""
        stages = {name: None if found is None else asdict(found) for name, found in self.stages.items()}
        more = {"elsewhere": self.elsewhere} if self.elsewhere else {}
        return {"name": self.parent.name, "weights_sha256": self.parent.weights_sha256, "stages": stages, **more}

    def text(self) -> str:
        """Say in one line what is kept and what begins anew."""
        stages: dict[str, list[str]] = {}
        for stage, found in self.stages.items():
            stages.setdefault(_text(found), []).append(stage)
        said = "; ".join(f"{' and '.join(names)}: {text}" for text, names in stages.items())
        line = f"begins from {self.parent.name} ({said})"
        for stage, words in ELSEWHERE.items():
            if names := [name for name, other in self.elsewhere.items() if other == stage]:
                line += f"; the model has {', '.join(names)} in {words}"
        return line


def _text(found: Inherited | None) -> str:
    if found is None:
        return "the whole network begins anew"
    parts = [f"{', '.join(found.kept) or 'no structure'} kept"]
    parts += [f"{', '.join(found.anew)} anew"] if found.anew else []
    return ", ".join(parts)


def initial_model(init: str | os.PathLike[str]) -> Path:
    """Return the model file to begin from.

    Args:
        init: a model file, or `base` for the model that comes with the package.

    Raises:
        InputError: `base`, and this build comes without a model.
    """
    if os.fspath(init) != BASE:
        return Path(init)
    if not SHIPPED.is_file():
        raise InputError(
            f"{argument('init', BASE)}: this build of metricunet comes without a model; name a model file, such "
            "as the model.safetensors of a training"
        )
    return SHIPPED


def read_parent(path: Path) -> Parent:
    """Read the model that a training begins from.

    Raises:
        InputError: as `metricunet.files.model.read_model`.
    """
    card, weights = read_model(path)
    return Parent(path, BASE if path == SHIPPED else path.stem, card, weights, _sha256(weights))


def _sha256(weights: Mapping[str, Tensor]) -> str:
    """Hash weights by their names, types, shapes and numbers: the card may change, and they stay the model's."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].contiguous()
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}:".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def check_networks(parent: Parent, specs: Mapping[str, Spec]) -> None:
    """Refuse a training whose networks or grids are not those of the model that it begins from.

    The number of classes may differ, and so may the stages.

    Args:
        parent: the model to begin from.
        specs: the stages of the training by their names.

    Raises:
        InputError: the first difference, with both values.
    """
    for stage, spec in specs.items():
        found = parent.spec(stage)
        if found is None:
            continue
        theirs, ours = _values(found), _values(spec)
        for key, value in ours.items():
            if theirs.get(key) != value:
                raise InputError(
                    f"{parent.path}: its {stage} network has {key} {theirs.get(key)}, this training {value}; "
                    f"leave out {argument('preset')} and the settings of {stage}, and they are those of the "
                    "model, or train without it"
                )


def _values(spec: Spec) -> dict[str, Any]:
    values = asdict(spec)
    return {key: value for key, value in (values.pop("network") | values).items() if key != "classes"}


def first_weights(
    parent: Parent, specs: Mapping[str, Spec], structures: Mapping[str, Structures], seed: int
) -> tuple[dict[str, Tensor], Inheritance]:
    """Return the weights that a training begins with when it begins from a model, and what they are.

    Args:
        parent: the model to begin from; its networks must be those of the training (`check_networks`).
        specs: the stages of the training by their names.
        structures: the structures of each stage.
        seed: seed of the training, which draws the weights that begin anew as it would without a model.

    Returns:
        The weights of every stage that the parent has, by their names in a model file; and the inheritance.

    Raises:
        InputError: weights of the model are missing, or have another shape than its card says.
    """
    weights: dict[str, Tensor] = {}
    stages: dict[str, Inherited | None] = {}
    for stage, spec in specs.items():
        theirs, ours = parent.structures(stage), structures[stage]
        if not theirs:
            stages[stage] = None
            continue
        kept = matching(ours, theirs)
        stages[stage] = Inherited(kept, tuple(name for name in ours if name not in kept))
        classes = {0: 0} | {class_of(ours, own): class_of(theirs, other) for own, other in kept.items()}
        own = of_stage(parent.weights, stage)
        try:
            first = with_kept_classes(own, spec.network, len(theirs) + 1, classes, seed)
        except ValueError as error:
            raise InputError(f"{parent.path}: stage {stage}: {error}; copy the file again") from error
        weights |= {f"{stage}.{name}": tensor for name, tensor in first.items()}
    return weights, Inheritance(parent, stages, _elsewhere(parent, structures))


def _elsewhere(parent: Parent, structures: Mapping[str, Structures]) -> dict[str, str]:
    """Return the structures that begin anew though the parent has them, each with its stage that does."""
    found: dict[str, str] = {}
    for stage, other in (("segment", "organs"), ("organs", "segment")):
        ours = structures.get(stage, {})
        kept = matching(ours, parent.structures(stage))
        anew = {name: standard for name, standard in ours.items() if name not in kept}
        found |= dict.fromkeys(matching(anew, parent.structures(other)), other)
    return found


def matching(ours: Structures, theirs: Structures) -> dict[str, str]:
    """Find the structures of a model that are those of a training.

    A structure is the model's structure of the same spelling, else the one of the same standard name (AAPM
    TG-263). Neither depends on upper and lower case, and none of the model's is taken twice.

    Args:
        ours: structures of the training, each with its standard name.
        theirs: structures of the model, likewise.

    Returns:
        The training's structures that the model has, in their order, each with the model's spelling.
    """
    found: dict[str, str] = {}
    spelled = ([(name, name) for name in ours], [(name, name) for name in theirs])
    for own, other in (spelled, (list(ours.items()), list(theirs.items()))):
        free = {key.casefold(): name for name, key in reversed(other) if name not in found.values()}
        for name, key in own:
            if name not in found and key.casefold() in free:
                found[name] = free.pop(key.casefold())
    return {name: found[name] for name in ours if name in found}


def with_kept_classes(
    parent: Mapping[str, Tensor],
    network: Mapping[str, Any],
    parent_classes: int,
    kept: Mapping[int, int],
    seed: int,
) -> dict[str, Tensor]:
    """Return a model's weights of a stage for a network of other classes.

    Args:
        parent: the model's weights, by their names in its network.
        network: arguments of the network to begin with.
        parent_classes: number of classes of the model's network.
        kept: classes of the network that are classes of the model, with the latter; the background among them.
        seed: seed of the weights of the other classes.

    Raises:
        ValueError: weights of the model are missing, or have another shape than such a network's.
    """
    torch.manual_seed(seed)
    fresh = build_network(**network).state_dict()
    with torch.device("meta"):
        shapes = {
            name: t.shape
            for name, t in build_network(**{**network, "classes": parent_classes}).state_dict().items()
        }
        wider = build_network(**{**network, "classes": parent_classes + 1}).state_dict()
    weights = {}
    for name, first in fresh.items():
        found = parent.get(name)
        if found is None or found.shape != shapes[name]:
            what = "missing" if found is None else f"of shape {list(found.shape)}"
            raise ValueError(f"the weights {name} are {what}; expected {list(shapes[name])}")
        # Where a network of one more class is wider, there the classes lie.
        axes = [axis for axis, n in enumerate(shapes[name]) if wider[name].shape[axis] != n]
        weights[name] = _with_kept(first, found, axes, kept) if axes else found
    return weights


def _with_kept(first: Tensor, found: Tensor, axes: Sequence[int], kept: Mapping[int, int]) -> Tensor:
    """Put the values of kept classes, along all axes of classes, into freshly drawn ones."""

    def index_of(tensor: Tensor, classes: Iterable[int]) -> tuple[Tensor, ...]:
        chosen = torch.tensor(list(classes))
        along = [chosen if axis in axes else torch.arange(n) for axis, n in enumerate(tensor.shape)]
        return torch.meshgrid(along, indexing="ij")

    weights = first.clone()
    weights[index_of(first, kept)] = found[index_of(found, kept.values())].to(first.dtype)
    return weights


def refuse_seen(parent: Parent, cases: Sequence[PreparedCase]) -> None:
    """Refuse to validate on a case that the model, or one that it descends from, was trained on.

    Args:
        parent: the model to begin from.
        cases: validation cases of the training.

    Raises:
        InputError: it names the first such case, and the model that has seen it.
    """
    seen = {case: ancestor.name for ancestor in parent.lineage for case in ancestor.cases}
    known = [case for case in cases if case.image_sha256 in seen]
    if known:
        first = known[0]
        raise InputError(
            f"{parent.path}: validation case {first.name} was a training case of the model "
            f"{seen[first.image_sha256]} ({len(known)} of {len(cases)} validation cases were), so its score would "
            f"be too good; validate on a fold without such cases ({argument('fold')}), or on none "
            f"({argument('fold', 'all')})"
        )
