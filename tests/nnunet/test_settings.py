"""Settings of the branch in nnU-Net, from the environment."""

from __future__ import annotations

from pathlib import Path

import pytest

from metricunet.errors import InputError
from metricunet.nnunet.settings import VARIABLE, read_settings
from metricunet.training.config import MetricConfig


def test_defaults_are_those_of_a_training_of_this_package() -> None:
    assert read_settings("online", {}) == MetricConfig()
    assert read_settings("control", {VARIABLE: " "}) == MetricConfig(mode="control")


def test_settings_come_from_the_variable_or_from_the_file_that_it_names(tmp_path: Path) -> None:
    file = tmp_path / "metric.yaml"
    file.write_text("weight: 0.2\ntaps: [0, 1]\n")
    expected = MetricConfig(weight=0.2, taps=(0, 1))
    assert read_settings("online", {VARIABLE: "{weight: 0.2, taps: [0, 1]}"}) == expected
    assert read_settings("online", {VARIABLE: str(file)}) == expected
    file.write_text("")
    assert read_settings("online", {VARIABLE: str(file)}) == MetricConfig()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("{wieght: 0.2}", "metric.wieght .*unknown"),
        ("{weight: -1}", "metric.weight"),
        ("{weight: [", "not valid YAML"),
        ("nowhere.yaml", "no such file"),
        ("{mode: control}", "the name of the trainer decides"),
        ("{patch_voxels: 32}", "offline"),
        ("{background: hu}", "clusters or one"),
    ],
)
def test_what_cannot_be_set_is_named(given: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_settings("online", {VARIABLE: given})


def test_a_file_that_holds_no_settings_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "metric.yaml"
    file.write_text("- weight\n")
    with pytest.raises(InputError, match="expected settings"):
        read_settings("online", {VARIABLE: str(file)})
