"""The file of a node: what it says, and every mistake in it, a line each."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import yaml

from metricunet.errors import InputError
from metricunet.files.voxels import MOST_BYTES
from metricunet.workflows.serve.config import Limits, examined, read_node
from tests.support.command import Command
from tests.support.threshold_model import write_bands_model


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_bands_model(tmp_path / "model.safetensors")


def write(folder: Path, **settings: object) -> Path:
    path = folder / "node.yaml"
    content = {"state": "state", "model": "model.safetensors", "rules": [{"name": "pelvis"}], **settings}
    path.write_text(yaml.safe_dump({k: v for k, v in content.items() if v != "left out"}))
    return path


PACS = {"name": "pacs", "ae_title": "PACS", "host": "127.0.0.1", "port": 4242}


def test_a_short_file_is_enough(tmp_path: Path, model: Path) -> None:
    config = read_node(write(tmp_path, keep="12 hours", destinations=[PACS]))
    assert config.state == tmp_path / "state"
    assert config.model == (model,)
    assert config.keep == timedelta(hours=12)
    assert config.bind.is_loopback
    assert config.formats == ("nifti", "rtstruct")
    assert config.destinations_of(config.rules[0]) == config.destinations


def test_the_first_rule_that_fits_takes_a_series(tmp_path: Path, model: Path) -> None:
    rules = [
        {"name": "boost", "description": ["*boost*", "sbrt ?"], "sender": "CT1"},
        {"name": "pelvis", "protocol": "pelvis*", "destinations": []},
    ]
    config = read_node(write(tmp_path, rules=rules))

    def found(**more: str) -> dict[str, str]:
        return {"modality": "CT", "description": "", "protocol": "", "sender": "CT1", **more}

    def taken(**more: str) -> str:
        rule, reason = config.rule_for(found(**more))
        return rule.name if rule else reason

    assert taken(description="Pelvis BOOST 2") == "boost"
    assert taken(protocol="PELVIS supine") == "pelvis"
    assert (
        taken(description="SBRT 1", sender="CT2")
        == "boost does not take its sender; pelvis does not take its protocol"
    )
    assert "modality" in taken(modality="MR")


def test_one_name_may_stand_without_brackets(tmp_path: Path, model: Path) -> None:
    other = {**PACS, "name": "archive"}
    rules = [{"name": "pelvis", "destinations": "pacs"}]
    config = read_node(write(tmp_path, rules=rules, structures="prostate", destinations=[PACS, other]))
    assert config.structures == ("prostate",)
    assert [one.name for one in config.destinations_of(config.rules[0])] == ["pacs"]


def test_a_bracket_in_a_pattern_is_a_bracket(tmp_path: Path, model: Path) -> None:
    config = read_node(write(tmp_path, rules=[{"name": "pelvis", "description": "Pelvis [KM] *"}]))
    other = {"modality": "CT", "protocol": "", "sender": "CT1"}
    rule, reason = config.rule_for({**other, "description": "pelvis [km] 2.0"})
    assert (rule is not None, reason) == (True, "")
    assert config.rule_for({**other, "description": "pelvis k 2.0"})[0] is None


def test_every_mistake_is_named_in_a_line(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        model="nowhere.safetensors",
        ae_title="a title that is too long",
        bind="0.0.0.0",
        colour="blue",
        keep="a while",
        rules=[
            {"name": "pelvis", "destinations": ["tps"]},
            {"name": "pelvis"},
            {"name": "head", "modality": "MR"},
        ],
        destinations=[PACS, {**PACS, "url": "http://pacs"}, {"name": "web", "url": "ftp://pacs"}],
        tls={"certificate": "none.pem", "key": "none.key"},
        web={"port": 11112, "users": [{"name": "anna", "roles": ["rule"]}]},
        watch={"folder": "missing"},
    )
    config, mistakes = examined(path)
    assert config is None
    wanted = {
        "ae_title": "1 to 16",
        "colour": "unknown",
        "keep": "a number and a unit",
        "rules[2].modality": "CT",
        "destinations[1]": "both url",
        "destinations[2].url": "https",
        "tls.authorities": "missing",
        "web.users[0].roles[0]": "look",
        "model": "nowhere.safetensors",
        "bind": "peers",
        "watch.folder": "no folder",
    }
    for key, words in wanted.items():
        assert any(line.startswith(key) and words in line for line in mistakes), (key, mistakes)
    assert all("\n" not in line for line in mistakes)
    with pytest.raises(InputError, match="more; to see all, have the file checked"):
        read_node(path)


def test_what_is_wrong_between_settings_is_named(tmp_path: Path, model: Path) -> None:
    (tmp_path / "state").mkdir(mode=0o755)
    os.chmod(tmp_path / "state", 0o755)
    (tmp_path / "token").write_text("secret")
    os.chmod(tmp_path / "token", 0o644)
    path = write(
        tmp_path,
        rules=[{"name": "pelvis", "destinations": ["tps"]}, {"name": "pelvis"}],
        destinations=[{**PACS, "tls": True}, {"name": "web", "url": "https://pacs/dicom-web", "token": "token"}],
        structures=["liver"],
        web={"port": 11112, "bind": "10.0.0.1", "users": [{"name": "anna", "roles": "look"}]},
        watch={"folder": "."},
        keep="1 minute",
        devices=["cpu", "cpu"],
    )
    _, mistakes = examined(path)
    for words in (
        "chmod 700",
        "'tps', which is none",
        "rules has 'pelvis' more than once",
        "no tls with the node's certificate",
        "chmod 600",
        "segments no 'liver'",
        "the port for DICOM",
        "no web.proxy that encrypts",
        "no web.proxy",
        "lie within each other",
        "keep is 0:01:00",
        "devices has 'cpu' more than once; one worker uses all of a device",
    ):
        assert any(words in line for line in mistakes), (words, mistakes)


def test_what_a_synthetic_model_made_is_sent_only_where_that_is_allowed(tmp_path: Path) -> None:
    write_bands_model(tmp_path / "model.safetensors", trained_on="synthetic")
    assert "allow_synthetic" in examined(write(tmp_path, destinations=[PACS]))[1][0]
    assert examined(write(tmp_path, destinations=[PACS], allow_synthetic=True))[1] == []
    assert examined(write(tmp_path))[1] == []


def test_check_prints_a_line_for_each_mistake(tmp_path: Path, model: Path, metricunet: Command) -> None:
    path = write(tmp_path)
    assert metricunet("serve", path, "--check").out == f"{path}: no mistakes\n"
    path = write(tmp_path, colour="blue", port=0)
    ended = metricunet("serve", path, "--check")
    assert ended.status == 2
    assert [line.split(" ")[1] for line in ended.out.splitlines()] == ["port", "colour"]


def test_there_is_no_default_model(tmp_path: Path) -> None:
    assert "model is missing" in examined(write(tmp_path, model="left out"))[1]


def test_a_file_that_is_no_table_is_refused(tmp_path: Path) -> None:
    (tmp_path / "node.yaml").write_text("- a\n- b\n")
    with pytest.raises(InputError, match="expected settings"):
        examined(tmp_path / "node.yaml")


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        (
            {"bind": "10.0.0.5", "peers": [{"ae_title": "CT", "addresses": "10.0.0.300"}]},
            ["peers[0].addresses", "bind is 10.0.0.5, beyond this machine, and there is no tls"],
        ),
        (
            {
                "bind": "10.0.0.5",
                "tls": {"key": "a"},
                "destinations": [{**PACS, "tls": True}],
                "allow_synthetic": True,
            },
            ["tls.certificate", "tls.authorities", "bind is 10.0.0.5, beyond this machine, and peers is empty"],
        ),
        (
            {"destinations": [{**PACS, "port": 0}], "rules": [{"name": "a", "destinations": ["pacs"]}]},
            ["destinations[0].port"],
        ),
        ({"state": ["state"], "watch": {"folder": "."}}, ["state"]),
        ({"port": "none", "web": {"port": 11112}}, ["port"]),
        ({"port": None, "watch": {"folders": "."}}, ["watch.folder is missing", "watch.folders"]),
        ({"allow_synthetic": "perhaps", "destinations": [PACS]}, ["allow_synthetic"]),
        ({"runtime": "jax", "provider": "cpu"}, ["runtime"]),
        ({"model": "left out", "runtime": "onnx"}, ["model is missing"]),
    ],
)
def test_what_follows_from_a_mistake_is_no_mistake_of_its_own(
    tmp_path: Path, settings: dict[str, object], wanted: list[str]
) -> None:
    write_bands_model(tmp_path / "model.safetensors", trained_on="synthetic")
    os.chmod(tmp_path, 0o755)  # none of the node's business
    found = examined(write(tmp_path, **settings))[1]
    assert len(found) == len(wanted), found
    for line, beginning in zip(sorted(found), sorted(wanted), strict=True):
        assert line.startswith(beginning), found


def test_what_is_allowed_by_default_can_be_read() -> None:
    assert Limits().voxels * 1e6 * np.dtype(np.int16).itemsize <= MOST_BYTES


def test_the_origin_of_a_proxy_is_as_browsers_state_it(tmp_path: Path, model: Path) -> None:
    def read(written: str) -> str:
        web = {"proxy": {"addresses": "10.0.0.5", "origin": written}}
        config = read_node(write(tmp_path, web=web))
        assert config.web is not None
        assert config.web.proxy is not None
        return config.web.proxy.origin

    assert read("https://Node.Example.org:443/") == "https://node.example.org"
    assert read("https://node.example.org:8443") == "https://node.example.org:8443"
    assert read("HTTP://[2001:DB8::1]:80") == "http://[2001:db8::1]"
    for below in ("https://node.example.org/contours", "https://node.example.org?to=contours"):
        with pytest.raises(InputError, match="expected no path"):
            read(below)
