"""The configuration of a training: every setting, its default, and where the default comes from.

None of the defaults is known to be the paper's. They are choices of this package, each open to an ablation.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from metricunet.errors import InputError, argument
from metricunet.files.yaml_file import read_yaml
from metricunet.volume import voxels_of

if TYPE_CHECKING:
    from metricunet.files.model import ModelCard
    from metricunet.specs import SegmentSpec

Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Size = tuple[Positive, Positive, Positive]

#: Distance between the control points of an elastic field: about half a gland, so that a gland bends as a whole.
ELASTIC_GRID_MM = 32.0


def _each_once(taps: tuple[int, ...]) -> tuple[int, ...]:
    if len(set(taps)) < len(taps):
        raise ValueError("a map stands there twice; name each once")
    return taps


Taps = Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1), AfterValidator(_each_once)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class LocateConfig(_Section):
    """Stage 1: a 3D U-Net on a coarse grid of the whole scan.

    Attributes:
        learning_rate: largest learning rate of the schedule. At 1e-2 some trainings end by calling everything
            background, and stay there.
        dice_of_absent: whether the Dice loss counts classes that no patch of a batch holds, or leaves them out.
            `counted` drives a training in which many scans hold no target towards calling everything background.
        aim_where_absent: whether patches are also aimed at where the target would lie, in phantoms that show that
            place and no target (women, men after prostatectomy). What came of a training with it, and with other
            changes, is in docs/models-tried.md.
    """

    spacing_mm: Size = (4.0, 4.0, 4.0)
    hu_window: tuple[float, float] = (-250.0, 450.0)
    base_channels: Count = 16
    levels: Annotated[int, Field(ge=2, le=6)] = 4
    patch_voxels: tuple[Count, Count, Count] = (40, 48, 48)
    target_share: Share = 0.6
    batch_size: Count = 2
    epochs: Count = 12
    updates_per_epoch: Count = 100
    learning_rate: Positive = 3e-3
    dice_of_absent: Literal["counted", "left_out"] = "counted"
    aim_where_absent: bool = False


class BoxConfig(_Section):
    """A network on a fixed box around the located centre.

    Attributes:
        network: `unet`, `fcn` (FCN-8s, 2.5D alone) or `vnet` (3D alone).
        spatial_dims: 2 is 2.5D: `slices` neighbouring slices in, the middle one out. 3: blocks of `block_slices`.
        spacing_mm: voxel spacing: slice, row, column.
        crop_mm: sides of the box that is predicted: slice, row, column.
        box_mm: sides of the cached box that training crops are cut from.
        hu_window: HU that map to -1 and 1.
        slices: number of neighbouring slices that a 2.5D network takes; it must be odd.
        block_slices: number of slices that a 3D network takes, in training and in each window of a prediction; no
            more than the crop has.
        base_channels: number of channels at the finest level.
        levels: number of resolutions of a U-Net or V-Net, or of stages of an FCN.
        target_share: share of training slices (3D: blocks) that are chosen to hold a structure.
        target_margin_mm: slices within this of one that holds a structure count as such in that choice. With 0,
            slices just beyond a structure's ends are shown several times less often than those just within, so
            that a network that cannot tell which it sees takes it for one within, and draws an end too far out.
        batch_size: number of slices in a batch, or of blocks in 3D.
        dice_of_absent: as of stage 1, of the slices or blocks of a batch.
    """

    network: Literal["unet", "fcn", "vnet"] = "unet"
    spatial_dims: Literal[2, 3] = 2
    spacing_mm: Size = (2.0, 1.0, 1.0)
    crop_mm: Size = (96.0, 128.0, 128.0)
    box_mm: Size = (136.0, 160.0, 160.0)
    hu_window: tuple[float, float] = (-150.0, 250.0)
    slices: Annotated[int, Field(ge=1, le=15)] = 5
    block_slices: Count = 32
    base_channels: Count = 32
    levels: Annotated[int, Field(ge=2, le=6)] = 5
    target_share: Share = 0.67
    target_margin_mm: Annotated[float, Field(ge=0, le=100)] = 0.0
    batch_size: Count = 16
    epochs: Count = 40
    updates_per_epoch: Count = 250
    learning_rate: Positive = 2e-3
    dice_weight: Annotated[float, Field(ge=0)] = 1.0
    cross_entropy_weight: Annotated[float, Field(ge=0)] = 1.0
    dice_of_absent: Literal["counted", "left_out"] = "counted"
    smallest_jitter_mm: Annotated[float, Field(ge=0)] = 3.0

    @property
    def crop_voxels(self) -> tuple[int, int, int]:
        """Sides of the box that is predicted: slice, row, column."""
        return voxels_of(self.crop_mm, self.spacing_mm)

    @property
    def box_voxels(self) -> tuple[int, int, int]:
        """Sides of the cached box that training crops are cut from: slice, row, column."""
        return voxels_of(self.box_mm, self.spacing_mm)

    @property
    def input_slices(self) -> int:
        """Slices that the network takes: of a block in 3D, neighbours in 2.5D."""
        return self.block_slices if self.spatial_dims == 3 else self.slices


class SegmentConfig(BoxConfig):
    """Stage 2: the target, and what lies close to it."""


class OrgansConfig(BoxConfig):
    """The organs' network: organs at risk, wanted whole, in a larger and coarser box around the located centre.

    Attributes:
        structures: names of the structures that it segments, which stage 2 then does not; none of them: there is
            no such network. The target is always stage 2's.
    """

    spacing_mm: Size = (2.0, 2.0, 2.0)
    crop_mm: Size = (192.0, 160.0, 256.0)
    box_mm: Size = (232.0, 192.0, 288.0)
    hu_window: tuple[float, float] = (-250.0, 450.0)
    structures: tuple[str, ...] = ()


class MetricConfig(_Section):
    """The branch of stage 2 that shapes its features beside the segmentation; it is absent at inference.

    The settings from `triplets` to `temperature` are those of `metricunet.metric.TupleOptions`, by its names.

    Attributes:
        mode: `online` samples voxels of the decoder's maps anew in each update (metric learning); `offline` draws
            tuples of image patches once and embeds them by the pooled bottleneck (the conventional baseline);
            `control` puts cross-entropy in place of the metric losses, on the voxels and heads of `online`; `none`
            trains without the branch.
        weight: weight of the branch's loss in the sum; 0 trains without the branch.
        weight_as: `factor` of the loss, or `gradient_share`: the norm of the branch's gradient at the maps that it
            reads, over that of all else; the factor follows from what earlier updates measured (`online`,
            `control`).
        warm_up_updates: number of updates over which the weight rises from 0.
        taps: decoder maps that feed the branch, 0 the finest, each with a head of its own (`online`, `control`).
        embedding: number of dimensions of the embeddings.
        sampler: `mixture` (hard and easy voxels), `uniform`, `balanced` (the classes), `boundary`,
            `misclassified` or `uncertain` (`online`, `control`).
        voxels: number of voxels drawn in each image; time and memory of mining grow with its square.
        hard_share: share of hard voxels in a class (`mixture`, and the patches of `offline`).
        band_mm: half width of the band around the surface that counts as hard (`mixture`, `boundary`, `offline`).
        triplets: `semi_hard`, `random`, `hardest` or `distance_weighted` (`online`).
        triplet_form: `hinge` or `soft`.
        pairs: `random`, `hard` or `all` (`online`).
        across: whether tuples reach across the batch instead of staying within an image (`online`).
        margin: gap between the two distances that a triplet is asked to keep.
        positive_margin: distance up to which a pair of one class is left alone.
        negative_margin: distance from which on a pair of two classes is left alone.
        triplet_weight: weight of the triplet loss; 0 leaves it out.
        pair_weight: weight of the contrastive loss; 0 leaves it out.
        supcon_weight: weight of the supervised contrastive loss; 0 leaves it out (`online`).
        temperature: temperature of the supervised contrastive loss.
        mean_over: what the losses on tuples are means over: the `violators` of a margin, or `all` tuples.
        unsure_mm: distance from a surface up to which labels are less sure, and margins (in `control` the weights
            of voxels) shrink in proportion; 0: all are sure (`online`, `control`).
        left_out_mm: voxels within this distance of a voxel of another class are left out (`online`, `control`).
        background: `one` class; or several kinds, each of which counts as a class: by `hu` (air, fat, soft tissue,
            bone), or `clusters` of its embeddings (`online`, `control`).
        background_clusters: number of these clusters.
        bank: number of embeddings of each class that a memory bank holds across images; 0: no bank (`online`).
        bank_new: greatest number of voxels of each class that a contoured image adds to it at each update.
        bank_share: share of the tuples with the bank in the branch's loss; those within images have the rest.
        patch_voxels: side of a patch in the slice; a multiple of what the network divides its input by, and at
            least twice that (`offline`).
        patch_tuples: number of tuples drawn before training (`offline`).
        patch_tuples_per_update: number of these that an update looks at, with three patches each (`offline`).
    """

    mode: Literal["online", "offline", "control", "none"] = "online"
    weight: Annotated[float, Field(ge=0)] = 0.1
    weight_as: Literal["factor", "gradient_share"] = "factor"
    warm_up_updates: Annotated[int, Field(ge=0)] = 250
    taps: Taps = (0,)
    embedding: Count = 32
    sampler: Literal["mixture", "uniform", "balanced", "boundary", "misclassified", "uncertain"] = "mixture"
    voxels: Annotated[int, Field(ge=8)] = 512
    hard_share: Share = 0.5
    band_mm: Annotated[float, Field(ge=0)] = 3.0
    triplets: Literal["semi_hard", "random", "hardest", "distance_weighted"] = "semi_hard"
    triplet_form: Literal["hinge", "soft"] = "hinge"
    pairs: Literal["random", "hard", "all"] = "random"
    across: bool = False
    margin: Positive = 0.2
    positive_margin: Annotated[float, Field(ge=0)] = 0.2
    negative_margin: Positive = 1.0
    triplet_weight: Annotated[float, Field(ge=0)] = 1.0
    pair_weight: Annotated[float, Field(ge=0)] = 1.0
    supcon_weight: Annotated[float, Field(ge=0)] = 0.0
    temperature: Positive = 0.1
    mean_over: Literal["violators", "all"] = "violators"
    unsure_mm: Annotated[float, Field(ge=0, le=10)] = 0.0
    left_out_mm: Annotated[float, Field(ge=0, le=10)] = 0.0
    background: Literal["one", "hu", "clusters"] = "one"
    background_clusters: Annotated[int, Field(ge=2, le=32)] = 4
    bank: Annotated[int, Field(ge=0)] = 0
    bank_new: Count = 16
    bank_share: Share = 0.5
    patch_voxels: Count = 32
    patch_tuples: Count = 4096
    patch_tuples_per_update: Count = 16


class TeacherConfig(_Section):
    """Learning from scans whose target nobody contoured, by a teacher: the moving average of stage 2's weights.

    The teacher looks at the crop of such a scan before its HU are changed, the network that is trained after that,
    and is to say what the teacher is sure of (Tarvainen, Valpola: Mean teachers are better role models, NeurIPS
    2017; Sohn et al.: FixMatch, NeurIPS 2020).

    Attributes:
        share: share of each batch that comes from such scans; 0 does without them, and without a teacher.
        decay: share of the teacher's weights that remains at each update; smaller in the first hundred.
        weight: weight of the loss on these scans.
        ramp_updates: number of updates over which that weight rises.
        loss: `pseudo_labels` (cross-entropy and Dice, weighed as on contoured scans, on the voxels of which the
            teacher is sure) or `squared` (mean squared difference of the probabilities, on all voxels).
        threshold: probability from which the teacher is sure of a voxel of a structure.
        background_threshold: probability from which it is sure of a voxel of the background.
        final: whose weights are validated and written to the model: the `student`'s, or the `teacher`'s, which a
            training without such scans averages, too.
        reveal: whether the labels of cases that splits.json lists as `unlabeled` are read after all: what a study
            compares with, to see how much there is to win.
    """

    share: Annotated[float, Field(ge=0, lt=1)] = 0.0
    decay: Share = 0.99
    weight: Annotated[float, Field(ge=0)] = 1.0
    ramp_updates: Annotated[int, Field(ge=0)] = 500
    loss: Literal["pseudo_labels", "squared"] = "pseudo_labels"
    threshold: Share = 0.8
    background_threshold: Share = 0.95
    final: Literal["student", "teacher"] = "student"
    reveal: bool = False


class AugmentConfig(_Section):
    """Random changes of the training crops, drawn anew for each update and each image.

    All ranges are our choice: wide enough to cover how patients lie, how their organs fill, and how scanners and
    reconstructions differ; not so wide that an image stops being a pelvic CT. A range or share of 0 costs nothing.
    There is no gamma: HU are calibrated, and a curve through them is no scanner's.

    Attributes:
        rotation_deg: greatest turn in the axial plane, either way. Patients lie within a few degrees of straight.
        scale: greatest stretch or shrinking, along columns and rows apart; 0.1 is 10 %.
        mirror: whether left and right are exchanged in half of the images, with the structures of either side;
            never done where one of these has no partner on the other side among the network's structures.
        elastic_mm: greatest move of a control point of the smooth random field, along each axis; no voxel moves
            further. The field's standard deviation is about a quarter of it in the slice, a fifth in space. Up to
            0.4 of the distance of the control points (`ELASTIC_GRID_MM`) it cannot fold. A few mm are what bladder
            and rectum do to the gland between two days.
        elastic_share: share of images that are moved by such a field.
        shift_hu: greatest change of level, either way.
        contrast: greatest change of contrast about soft tissue, either way; 0.2 is 20 %.
        noise_hu: greatest standard deviation of added noise.
        blur_mm: greatest standard deviation of the Gaussian blur; a soft kernel. Stage 1's coarse voxels hardly
            notice it.
        blur_share: share of images that are blurred.
        low_resolution_factor: greatest factor by which an image is sampled down, and up again.
        low_resolution_share: share of images that are sampled down.
    """

    rotation_deg: Annotated[float, Field(ge=0, le=180)] = 10.0
    scale: Annotated[float, Field(ge=0, lt=1)] = 0.1
    mirror: bool = True
    elastic_mm: Annotated[float, Field(ge=0, le=0.4 * ELASTIC_GRID_MM)] = 8.0
    elastic_share: Share = 0.3
    shift_hu: Annotated[float, Field(ge=0)] = 20.0
    contrast: Annotated[float, Field(ge=0, lt=1)] = 0.2
    noise_hu: Annotated[float, Field(ge=0)] = 15.0
    blur_mm: Annotated[float, Field(ge=0)] = 1.0
    blur_share: Share = 0.2
    low_resolution_factor: Annotated[float, Field(ge=1)] = 2.0
    low_resolution_share: Share = 0.2


class PhantomsConfig(_Section):
    """Phantoms that are made beside the training, in place of a cohort.

    Attributes:
        difficulty: `easy`, `real` or `varied`, as `metricunet phantom` makes them.
        structures: structures of a phantom that the model learns, by their names.
        without: groups that `varied` phantoms do not draw; they look as in `real` there.
        locate_without: groups that stage 1 does without as well; it can be `joints` alone, for the others move
            what the stages look for.
        tissues_anew: who learns from scans half of which have the means of their tissues drawn anew, each for
            itself and without regard to what is real: `none`, stage 1 (`locate`), or `all` networks. Validation
            patients stay as they are.
        mistaken: where stage 2 sees scans without a prostate: `anywhere` stage 1 might suspect one, or `elsewhere`
            alone, where no prostate could lie: not in women and after prostatectomy.
        absent_fraction: share of the patients whose scan shows no prostate.
        pool: number of patients that an epoch draws from.
        new_per_epoch: number of them that are exchanged after each epoch of a stage, the oldest first.
        validation: number of further patients that are scored after each epoch; with none the last weights stay.
    """

    difficulty: Literal["easy", "real", "varied"] = "varied"
    structures: tuple[str, ...] = ("prostate",)
    without: tuple[str, ...] = ()
    locate_without: tuple[str, ...] = ()
    tissues_anew: Literal["none", "locate", "all"] = "none"
    mistaken: Literal["anywhere", "elsewhere"] = "anywhere"
    absent_fraction: Share = 0.2
    pool: Annotated[int, Field(ge=4)] = 96
    new_per_epoch: Annotated[int, Field(ge=0)] = 32
    validation: Annotated[int, Field(ge=0)] = 24


class TrainConfig(_Section):
    """Everything that decides how a training ends, the cohort and the model that it begins from apart.

    Attributes:
        weights: how the model file keeps the weights; `float16` halves it, and networks compute as before.
        freeze: `encoder` keeps the encoders of all networks, weights and statistics, as they are in the model that
            the training begins from; None trains all weights.
        phantoms: the patients that are made beside the training; None where they come from a cohort.
        intended_use: what the model's card says it is for, and what is not known of it; None for the usual words.
    """

    seed: Annotated[int, Field(ge=0, lt=1 << 32)] = 0
    target: str = "prostate"
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    weights: Literal["float32", "float16"] = "float32"
    license: str = "as the user decides"
    tg263: dict[str, str] = {}
    freeze: Literal["encoder"] | None = None
    locate: LocateConfig = LocateConfig()
    segment: SegmentConfig = SegmentConfig()
    organs: OrgansConfig = OrgansConfig()
    metric: MetricConfig = MetricConfig()
    teacher: TeacherConfig = TeacherConfig()
    augment: AugmentConfig = AugmentConfig()
    phantoms: PhantomsConfig | None = None
    intended_use: str | None = None


#: Named starting points. `small` fits a CPU: half the width, smaller batches.
PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "small": {
        "locate": {"base_channels": 8, "epochs": 8},
        "segment": {"base_channels": 16, "batch_size": 8, "epochs": 12},
        "organs": {"base_channels": 16, "batch_size": 8, "epochs": 12},
    },
}

#: How a training goes on from a model where no preset is named: shorter, and with smaller steps, so that what the
#: model knows is bent and not lost. Our choice, as all defaults.
FINE_TUNING: dict[str, Any] = {
    "locate": {"epochs": 4, "updates_per_epoch": 50, "learning_rate": 1e-3},
    "segment": {"batch_size": 8, "epochs": 10, "updates_per_epoch": 50, "learning_rate": 5e-4},
    "organs": {"batch_size": 8, "epochs": 10, "updates_per_epoch": 50, "learning_rate": 5e-4},
    "metric": {"warm_up_updates": 100},
}


def load_config(
    preset: str | None = None,
    file: Path | None = None,
    settings: Mapping[str, Any] | Sequence[str] = (),
    phantoms: str | None = None,
    freeze: str | None = None,
    parent: ModelCard | None = None,
) -> TrainConfig:
    """Resolve a configuration: the preset, over it the file, over it the single settings.

    Args:
        preset: a key of `PRESETS`; default: `default`, or what `parent` asks for.
        file: YAML with any part of `TrainConfig`.
        settings: `section.key=value`, one or several, the values in YAML; or a mapping of `section.key` to the
            value itself.
        phantoms: difficulty of phantoms that take the cohort's place; None where the file and the settings decide.
        freeze: the setting of that name, over all others; None leaves it to them.
        parent: card of the model that the training begins from. Where no preset is named, its networks and grids
            take the preset's place, and the training is as long as `FINE_TUNING` says.

    Raises:
        InputError: unknown preset, key or section, or a value of the wrong kind, each named.
    """
    layers: list[Mapping[str, Any]] = []
    if preset is None and parent is not None:
        layers += [FINE_TUNING, settings_of(parent)]
    preset = "default" if preset is None else preset
    if preset not in PRESETS:
        raise InputError(f"{argument('preset')} must be one of {', '.join(PRESETS)}; got {preset!r}")
    layers += [] if file is None else [_yaml(file)]
    if phantoms is not None:
        layers.append({"phantoms": {"difficulty": phantoms}})
    lines = [settings] if isinstance(settings, str) else settings
    given = lines.items() if isinstance(lines, Mapping) else map(_setting, lines)
    for key, value in given:
        nested = value
        for part in reversed(key.split(".")):
            nested = {part: nested}
        layers.append(nested)
    layers += [] if freeze is None else [{"freeze": freeze}]
    return merged_config(preset, layers, f"{file} or {argument('settings')}" if file else argument("settings"))


def settings_of(card: ModelCard) -> dict[str, Any]:
    """Return the settings that give a training the networks and grids of a model, as a part of `TrainConfig`.

    Args:
        card: the card of the model.
    """
    locate = card.locate
    least = 2 ** (locate.network.get("levels", 1) - 1)
    settings: dict[str, Any] = {
        "locate": {
            "spacing_mm": locate.spacing_mm,
            "hu_window": locate.hu_window,
            "patch_voxels": tuple(math.ceil(n / least) * least for n in LocateConfig().patch_voxels),
            **_named(locate.network, "base_channels", "levels"),
        },
        "segment": _box_settings(card.segment, SegmentConfig()),
    }
    if card.organs is not None:  # which of its structures a cohort has is not known here
        settings["organs"] = _box_settings(card.organs, OrgansConfig())
    return settings


def _box_settings(spec: SegmentSpec, usual: BoxConfig) -> dict[str, Any]:
    # A card does not say how large the cached box was: as much larger than the crop as it is by default.
    boxes = zip(spec.crop_mm, usual.crop_mm, usual.box_mm, strict=True)
    return {
        "network": spec.network["architecture"],
        "spacing_mm": spec.spacing_mm,
        "crop_mm": spec.crop_mm,
        "box_mm": tuple(max(box, crop + box - shorter) for crop, shorter, box in boxes),
        "hu_window": spec.hu_window,
        **_named(spec.network, "spatial_dims", "base_channels", "levels"),
        ("slices" if spec.block_slices is None else "block_slices"): spec.input_slices,
    }


def _named(arguments: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: arguments[name] for name in names if name in arguments}


def _setting(line: str) -> tuple[str, Any]:
    """Return key and value of a line `section.key=value`."""
    key, sign, text = line.partition("=")
    if not sign or not key:
        raise InputError(f"{argument('settings')} {line}: expected section.key=value, such as segment.epochs=20")
    try:
        return key, yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"{argument('settings')} {line}: the value is not valid YAML") from error


def merged_config(preset: str, layers: Sequence[Mapping[str, Any]], source: str) -> TrainConfig:
    """Merge nested settings over a preset, the later ones over the earlier ones.

    Args:
        preset: a key of `PRESETS`.
        layers: settings, each any part of `TrainConfig`.
        source: the file or argument that the settings come from, for messages.

    Raises:
        InputError: unknown key or section, or a value of the wrong kind, each named.
    """
    content: dict[str, Any] = PRESETS[preset]
    for layer in layers:
        content = merge_settings(content, layer)
    try:
        return TrainConfig.model_validate(content)
    except ValidationError as error:
        raise InputError(_explain(error, source)) from error


def dump_config(config: TrainConfig) -> str:
    """Write a configuration as YAML that `load_config` reads back."""
    return yaml.safe_dump(plain(config), sort_keys=False)


def plain(config: TrainConfig) -> dict[str, Any]:
    """Return a configuration as plain values for YAML and JSON; a section that is not there is left out."""
    return config.model_dump(mode="json", exclude_none=True)


def differences(before: TrainConfig, after: TrainConfig) -> list[str]:
    """Name each setting that differs, with both values; those of an organs' network only where there is one."""
    one, two = _flat(plain(before)), _flat(plain(after))
    idle = not before.organs.structures and not after.organs.structures
    differing = [key for key in one | two if one.get(key) != two.get(key)]
    return [
        f"{key} was {one.get(key)}, is {two.get(key)}"
        for key in differing
        if not (idle and key.startswith("organs."))
    ]


def _flat(content: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in content.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def merge_settings(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested settings with others over them; neither is changed."""
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge_settings(merged[key], value) if both else value
    return merged


def _yaml(path: Path) -> dict[str, Any]:
    content = read_yaml(path)
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected sections with settings; found {type(content).__name__}")
    return content


def _explain(error: ValidationError, source: str) -> str:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        section = key.rpartition(".")[0]
        default = PhantomsConfig() if section == "phantoms" else getattr(TrainConfig(), section, None)
        model: type[BaseModel] = type(default) if isinstance(default, BaseModel) else TrainConfig
        return f"setting {key} (from {source}) is unknown; expected one of {', '.join(model.model_fields)}"
    message = first["msg"].removeprefix("Value error, ")
    return f"setting {key} (from {source}) is {repr(first['input'])[:200]}: {message}"
