"""Settings of the branch in nnU-Net, from the environment."""

from __future__ import annotations

from pathlib import Path

import pytest

from metricunet.errors import InputError
from metricunet.nnunet.settings import VARIABLE, changed_settings, check_shares, read_settings
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


@pytest.mark.parametrize(
    ("metric", "words"),
    [
        (MetricConfig(bank=512), r"metric\.bank \(from METRICUNET_METRIC\) is 512, .*batch of 13 .* 2 GPUs"),
        (MetricConfig(mode="control", background="clusters"), r"metric\.background .* is clusters, .*batch of 13"),
    ],
)
def test_what_gpus_share_needs_as_many_patches_on_each(metric: MetricConfig, words: str) -> None:
    """They exchange voxels of each step, and would wait for ever, or read what nobody sent."""
    with pytest.raises(InputError, match=words):
        check_shares(metric, 13, 2)
    check_shares(metric, 12, 2)
    check_shares(metric, 13, 1)


def test_a_branch_that_shares_nothing_takes_any_batch() -> None:
    check_shares(MetricConfig(), 13, 2)
    check_shares(MetricConfig(mode="control", bank=512), 13, 2)


def test_a_checkpoint_without_a_setting_of_today_goes_on_with_its_default() -> None:
    """It was written before there was such a setting, and nothing that one sets could say so."""
    before = MetricConfig(weight=0.2).model_dump(mode="json")
    del before["bank"]
    assert changed_settings(before, MetricConfig(weight=0.2)) == []
    assert changed_settings(before, MetricConfig(weight=0.3)) == ["weight was 0.2, is 0.3"]
    assert changed_settings(before, MetricConfig(weight=0.2, bank=64)) == ["bank was 0, is 64"]
