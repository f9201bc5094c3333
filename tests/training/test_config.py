"""Configuration: presets, files and single settings resolve in that order; mistakes are named."""

from __future__ import annotations

from pathlib import Path

import pytest

from metricunet.errors import InputError
from metricunet.files.model import ModelCard
from metricunet.stages.locate import locate_spec
from metricunet.stages.segment import segment_spec
from metricunet.training.checks import check_settings
from metricunet.training.config import PRESETS, TrainConfig, differences, dump_config, load_config


def test_order_of_precedence(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("segment:\n  base_channels: 24\n  epochs: 7\nseed: 5\n")
    config = load_config("small", path, ["segment.epochs=9", "metric.taps=[0, 1]"])
    assert config.segment.base_channels == 24
    assert config.segment.batch_size == PRESETS["small"]["segment"]["batch_size"]
    assert config.segment.epochs == 9
    assert config.seed == 5
    assert config.metric.taps == (0, 1)
    assert config.locate.base_channels == 8


def test_a_single_setting_may_stand_alone() -> None:
    assert load_config("small", settings="segment.epochs=3") == load_config("small", settings=["segment.epochs=3"])


def test_settings_may_be_values_themselves() -> None:
    given = {
        "segment.learning_rate": 1e-05,
        "segment.spacing_mm": (3.0, 1.0, 1.0),
        "metric": {"taps": [0, 1]},
        "license": "yes",
        "target": "1: a",
    }
    config = load_config("small", settings=given)
    assert config.segment.learning_rate == 1e-05
    assert config.segment.spacing_mm == (3.0, 1.0, 1.0)
    assert config.metric.taps == (0, 1)
    assert (config.license, config.target) == ("yes", "1: a")
    assert config.segment.base_channels == PRESETS["small"]["segment"]["base_channels"]
    with pytest.raises(InputError, match=r"segment\.epoch .*unknown"):
        load_config("small", settings={"segment.epoch": 3})
    with pytest.raises(InputError, match=r"segment\.epochs .*object"):
        load_config("small", settings={"segment.epochs": object()})


def test_a_decoder_map_is_tapped_once() -> None:
    with pytest.raises(InputError, match=r"metric\.taps .* is \[1, 0, 1\]: a map .*name each once"):
        load_config("small", settings=["metric.taps=[1, 0, 1]"])


def test_what_is_dumped_is_read_again(tmp_path: Path) -> None:
    config = load_config("small", settings=["metric.weight=0.3"])
    (tmp_path / "c.yaml").write_text(dump_config(config))
    assert load_config("default", tmp_path / "c.yaml") == config


def test_an_empty_file_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("# nothing\n")
    assert load_config("default", tmp_path / "c.yaml") == TrainConfig()


def card_of(config: TrainConfig, classes: int = 3) -> ModelCard:
    labels = {f"structure_{k}": k for k in range(1, classes)}
    return ModelCard(
        locate=locate_spec(config.locate, classes),
        segment=segment_spec(config.segment, classes),
        labels=labels,
        tg263={name: name for name in labels},
        target="structure_1",
        ranges={},
        validation={},
        trained_on="synthetic",
        data_sha256="",
        seed=0,
        version="0.1.0",
    )


@pytest.mark.parametrize(
    "settings",
    [
        (),
        ("segment.spacing_mm=[3, 0.7, 0.7]", "segment.crop_mm=[150, 179.2, 179.2]", "segment.hu_window=[0, 200]"),
        ("segment.network=vnet", "segment.spatial_dims=3", "segment.block_slices=16", "segment.base_channels=16"),
        ("segment.network=fcn", "segment.slices=3", "segment.levels=4", "locate.spacing_mm=[5, 6, 6]"),
        ("locate.levels=5", "locate.patch_voxels=[48, 48, 48]"),
    ],
)
@pytest.mark.parametrize("preset", PRESETS)
def test_a_model_brings_its_networks_and_grids(preset: str, settings: tuple[str, ...]) -> None:
    trained = load_config(preset, settings=settings)
    card = card_of(trained)
    tuned = load_config(parent=card)
    check_settings(tuned, {"prostate": 1, "bladder": 2})
    assert locate_spec(tuned.locate, 3) == card.locate
    assert segment_spec(tuned.segment, 3) == card.segment
    for stage, was in ((tuned.segment, trained.segment), (tuned.organs, trained.organs)):
        assert stage.epochs * stage.updates_per_epoch < was.epochs * was.updates_per_epoch
        assert stage.learning_rate < was.learning_rate


def test_what_is_said_is_over_what_a_model_brings(tmp_path: Path) -> None:
    card = card_of(load_config("small"))
    (tmp_path / "c.yaml").write_text("segment: {epochs: 3}")
    tuned = load_config(None, tmp_path / "c.yaml", ["segment.learning_rate=0.1"], freeze="encoder", parent=card)
    assert (tuned.segment.epochs, tuned.segment.learning_rate, tuned.freeze) == (3, 0.1, "encoder")
    assert load_config("default", parent=card) == TrainConfig()
    with pytest.raises(InputError, match=r"freeze .*'decoder'.*'encoder'"):
        load_config(freeze="decoder")


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("segment.epoch=3", r"segment\.epoch .*unknown; expected one of .*epochs"),
        ("segments.epochs=3", r"segments .*unknown; expected one of .*segment"),
        ("segment.epochs=0", r"segment\.epochs .*greater than or equal to 1"),
        ("segment.epochs=many", r"segment\.epochs .*'many'"),
        ("segment.epochs", "expected section"),
        ("segment.spacing_mm=[1, 2]", r"segment\.spacing_mm"),
        ("metric.weight=[", "not valid YAML"),
        ("precision=fp8", "precision"),
        ("augment.elastic_mm=20", r"augment\.elastic_mm .*less than or equal to 12\.8"),
        ("augment.low_resolution_factor=0.5", r"augment\.low_resolution_factor .*greater than or equal to 1"),
    ],
)
def test_mistakes_are_named(setting: str, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        load_config("default", settings=[setting])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("section", ["locate", "segment", "organs"])
@pytest.mark.parametrize("window", ["[250, -150]", "[40, 40]", "[.nan, 40]"])
def test_a_window_that_does_not_rise_is_named_before_any_work(section: str, window: str) -> None:
    """No model file could hold it."""
    config = load_config(
        settings=[f"{section}.hu_window={window}", "metric.mode=none", "organs.structures=[bladder]"]
    )
    with pytest.raises(InputError, match=rf"{section}\.hu_window is \[.*; expected the lower HU, then the higher"):
        check_settings(config, {"prostate": 1, "bladder": 2})


@pytest.mark.parametrize("name", ["", "p" * 65, "penile\u00a0bulb", "bulb\t"])
def test_a_structure_that_no_model_file_can_name_is_refused_before_any_work(name: str) -> None:
    """The file is read back at the end of a training, which would be lost."""
    with pytest.raises(InputError, match="expected 1 to 64 characters that can be printed: rename it in dataset"):
        check_settings(load_config("small"), {"prostate": 1, name: 2})
    if name:  # without any the structure has the usual one
        config = load_config("small", settings={"tg263": {"prostate": name}})
        with pytest.raises(InputError, match="structure 'prostate': a model file cannot name it"):
            check_settings(config, {"prostate": 1})


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("license", "x" * 10_001, "license: expected a text of at most 10000 characters"),
        ("segment.spacing_mm", (25.0, 1.0, 1.0), r"segment\.spacing_mm: expected 0\.1 to 20 mm"),
        ("locate.hu_window", (-1e6, 450.0), r"locate\.hu_window: expected low and high HU"),
    ],
)
def test_settings_that_no_model_file_can_hold_are_refused_before_any_work(
    key: str, value: object, words: str
) -> None:
    with pytest.raises(InputError, match=f"beyond what a model file can hold: {words}"):
        check_settings(load_config("small", settings={key: value}), {"prostate": 1})


def test_bad_files_and_presets(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="default, small"):
        load_config("large")
    with pytest.raises(InputError, match="no such file; expected a YAML file"):
        load_config("default", tmp_path / "none.yaml")
    (tmp_path / "c.yaml").write_text("- 1\n")
    with pytest.raises(InputError, match="expected sections"):
        load_config("default", tmp_path / "c.yaml")


def test_differences_name_both_values() -> None:
    one, two = load_config("small"), load_config("small", settings=["metric.weight=0.3", "seed=2"])
    assert differences(one, two) == ["seed was 0, is 2", "metric.weight was 0.1, is 0.3"]
    assert differences(one, one) == []


def test_settings_of_organs_that_are_not_asked_for_make_no_difference() -> None:
    """A run from before there were organs is resumed under any preset of today."""
    before, after = load_config("default"), load_config("default", settings=["organs.epochs=3"])
    assert differences(before, after) == []
    asked = load_config("default", settings=["organs.structures=[bladder]"])
    assert len(differences(before, asked)) == 1
    more = load_config("default", settings=["organs.structures=[bladder]", "organs.epochs=3"])
    assert differences(asked, more) == ["organs.epochs was 40, is 3"]
