"""What runs a node elsewhere: the example of its file, the unit, the container file, the bundle and its script."""

from __future__ import annotations

import configparser
import fcntl
import json
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from email.message import Message
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import BaseModel

from deploy.bundle import (
    README,
    closure,
    licence_files,
    pinned,
    platform_tag,
    stated_licence,
    write_checksums,
    write_licences,
)
from metricunet.workflows.serve.config import NodeConfig, examined

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
EXAMPLE = (DEPLOY / "node.yaml").read_text(encoding="utf-8")
UNIT = (DEPLOY / "metricunet-node.service").read_text(encoding="utf-8")
CONTAINER = (DEPLOY / "Containerfile").read_text(encoding="utf-8")
MODEL = ROOT / "src" / "metricunet" / "models" / "base.safetensors"
#: A setting that only the site can know, as the example has it behind a #.
COMMENTED = re.compile(r"^#((?: {2,})?(?:- )?[a-z_]+:(?: .*)?)$", re.MULTILINE)


def example_in(folder: Path, text: str) -> Path:
    """Write an example with a state and a model that are here."""
    path = folder / "node.yaml"
    text = text.replace("/var/lib/metricunet-node", str(folder / "state"))
    path.write_text(text.replace("/opt/metricunet/models/base.safetensors", str(MODEL)), encoding="utf-8")
    return path


def keys(section: type[BaseModel]) -> Iterator[str]:
    """Yield the names of all settings of a section and those within it."""
    for name, field in section.model_fields.items():
        yield name
        waiting = [field.annotation]
        while waiting:
            kind: Any = waiting.pop()
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from keys(kind)
            waiting += get_args(kind)


def test_the_example_is_a_node_that_can_be_started(tmp_path: Path) -> None:
    config, mistakes = examined(example_in(tmp_path, EXAMPLE))
    assert mistakes == []
    assert config is not None
    assert config.bind.is_loopback
    assert not config.allow_synthetic


def test_what_the_site_fills_in_lacks_only_what_is_elsewhere(tmp_path: Path) -> None:
    whole = COMMENTED.sub(r"\1", EXAMPLE.replace("bind: 127.0.0.1    #", "#", 1))
    config, mistakes = examined(example_in(tmp_path, whole))
    assert config is not None
    assert len(config.destinations) == 2
    assert config.web is not None
    assert len(config.web.users) == 2
    elsewhere = ("no such file", "is no folder", "allow_synthetic")
    assert [line for line in mistakes if not any(words in line for words in elsewhere)] == []


def test_example_and_page_name_every_key() -> None:
    page = (ROOT / "docs" / "node.md").read_text(encoding="utf-8")
    table = page[page.index("| key |") : page.index("`metricunet serve --once")]
    for key in set(keys(NodeConfig)):
        assert re.search(rf"\b{key}:", EXAMPLE), f"deploy/node.yaml lacks {key}"
        assert re.search(rf"[`.]{key}(\[\])?[`.]", table), f"docs/node.md lacks {key}"


def unit() -> configparser.SectionProxy:
    parsed = configparser.ConfigParser(strict=False, interpolation=None)
    parsed.optionxform = str  # type: ignore[assignment, method-assign]
    parsed.read_string(UNIT)
    return parsed["Service"]


def test_unit_example_and_container_agree() -> None:
    service, example = unit(), yaml.safe_load(EXAMPLE)
    assert example["state"] == f"/var/lib/{service['StateDirectory']}"
    assert service["StateDirectoryMode"] == "0700"
    assert float(service["MemoryMax"].removesuffix("G")) > example["limits"]["memory_gb"]
    file = service["ExecStart"].split()[-1]
    assert service["ExecStartPre"].split() == ["/opt/metricunet/bin/metricunet", "serve", "--check", file]
    assert json.dumps(["serve", file]) in CONTAINER
    assert f'VOLUME ["{example["state"]}"]' in CONTAINER
    assert f"EXPOSE {example['port']} {example['web']['port']}" in CONTAINER
    assert f":{example['web']['port']}/health" in CONTAINER


def test_the_unit_is_one_that_systemd_reads(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("needs systemd-analyze")
    file = tmp_path / "metricunet-node.service"
    file.write_text(UNIT.replace("/opt/metricunet/bin/metricunet", sys.executable), encoding="utf-8")
    ended = subprocess.run(["systemd-analyze", "verify", file], capture_output=True, text=True, check=False)
    about = [line for line in (ended.stdout + ended.stderr).splitlines() if file.name in line]
    # Where no such user was made, nothing else may be said.
    assert [line for line in about if "metricunet-node.service: Failed to" not in line] == []


def wheel_in(folder: Path, files: dict[str, str], name: str = "thing", version: str = "1.2") -> Path:
    """Write a wheel that holds nothing but its metadata, and some files beside that."""
    path = folder / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{info}/METADATA", f"Name: {name}\nVersion: {version}\nLicense-Expression: MIT\n")
        for inner, text in files.items():
            archive.writestr(f"{info}/{inner}", text)
    return path


def test_all_that_is_required_is_pinned_as_it_is_installed() -> None:
    found = closure(["pytest>=8", "nothing; extra == 'odd'", "pyyaml; extra == 'node'"], "node")
    assert found["pytest"] == pytest.__version__
    assert {"pluggy", "iniconfig", "pyyaml"} <= set(found)
    with pytest.raises(SystemExit, match="no-such-package is not installed"):
        closure(["no-such-package"], "node")
    with pytest.raises(SystemExit, match="expected pytest>=1000"):
        closure(["pytest>=1000"], "node")


def test_a_bundle_has_hashes_and_licences_of_every_wheel(tmp_path: Path) -> None:
    files = {"licenses/sub/LICENSE": "the licence", "COPYING.txt": "another", "RECORD": ""}
    wheel = wheel_in(tmp_path, files)
    (line,) = pinned(tmp_path)
    assert re.fullmatch(r"thing==1\.2 --hash=sha256:[0-9a-f]{64}", line)
    assert dict(licence_files(wheel)) == {"sub/LICENSE": b"the licence", "COPYING.txt": b"another"}
    write_licences(tmp_path, tmp_path / "licences")
    assert (tmp_path / "licences/thing-1.2/sub/LICENSE").read_text() == "the licence"
    assert "thing,1.2,MIT,2,thing-1.2-py3-none-any.whl," in (tmp_path / "licences/licences.csv").read_text()


def test_a_licence_is_named_whatever_field_names_it() -> None:
    metadata = Message()
    assert stated_licence(metadata) == "see its files"
    metadata["License"] = "BSD\nand a page of text"
    assert stated_licence(metadata) == "BSD"
    metadata["Classifier"] = "License :: OSI Approved :: MIT License"
    assert stated_licence(metadata) == "MIT License"


def seal(bundle: Path) -> Path:
    """Write the checksums of a bundle anew."""
    (bundle / "SHA256SUMS").unlink(missing_ok=True)
    write_checksums(bundle)
    return bundle


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle without wheels, which is refused before any would be looked for."""
    folder = tmp_path / "bundle"
    folder.mkdir()
    shutil.copy(DEPLOY / "install.sh", folder)
    (folder / "VERSION").write_text("1.2\n")
    (folder / "PYTHON").write_text(f"{platform_tag()}\n")
    (folder / "README.txt").write_text(README.format(version="1.2", tag=platform_tag()))
    return seal(folder)


#: An interpreter whose environments are there at once. What they install says what stands in the bundle's wheel.
STAND_IN = f"""\
#!/bin/sh
case "$1 $2" in
    "-m venv") mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
    "-m pip")
        program=${{0%python}}metricunet
        for word; do
            [ "$before" != --find-links ] || printf '#!/bin/sh\\necho %s\\n' "$(cat "$word"/*.whl)" > "$program"
            before=$word
        done
        chmod +x "$program" ;;
    *) exec {sys.executable} "$@" ;;
esac
"""


@pytest.fixture
def stand_in(tmp_path: Path) -> Path:
    path = tmp_path / "python"
    path.write_text(STAND_IN)
    path.chmod(0o755)
    return path


def fill(bundle: Path, code: str, model: str) -> Path:
    """Put a wheel, a model and all else that is installed into a bundle."""
    for name in ("wheels", "models", "pages", "licences"):
        (bundle / name).mkdir(exist_ok=True)
    (bundle / "wheels" / "metricunet-1.2.whl").write_text(code)
    (bundle / "requirements.txt").write_text(f"metricunet==1.2 --hash=sha256:{code}\n")
    (bundle / "models" / "base.safetensors").write_text(model)
    (bundle / "pages" / "node.html").write_text(f"pages of {code}")
    for name in ("node.yaml", "metricunet-node.service"):
        shutil.copy(DEPLOY / name, bundle)
    return seal(bundle)


def install(bundle: Path, *words: object, python: object = sys.executable) -> subprocess.CompletedProcess[str]:
    command = ["env", f"PYTHON={python}", str(bundle / "install.sh"), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_install_script_refuses_with_a_reason(bundle: Path, tmp_path: Path) -> None:
    target = tmp_path / "there"
    assert "expected the folder" in install(bundle).stderr
    assert "choose another folder" in install(bundle, "a folder").stderr
    (target / "bin").mkdir(parents=True)
    (target / "bin" / "theirs").touch()
    assert "holds something else in bin" in install(bundle, target).stderr
    (bundle / "VERSION").write_text("1.3\n")
    assert "damaged or missing" in install(bundle, target).stderr
    (bundle / "PYTHON").write_text("cp27-sunos\n")
    ended = install(bundle, target)
    assert ended.returncode == 2
    assert "this bundle is for cp27-sunos" in ended.stderr
    assert [path.name for path in target.rglob("*")] == ["bin", "theirs"]


def test_two_installations_into_one_folder_do_not_mix(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with (tmp_path / "there" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "another installation is at work" in install(bundle, tmp_path / "there").stderr


def says(folder: Path) -> str:
    """Return what the installed program prints."""
    return subprocess.run([folder / "bin/metricunet"], capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.parametrize("part", ["pages", "node.yaml"])
def test_an_installation_that_broke_off_is_made_good(
    bundle: Path, stand_in: Path, tmp_path: Path, part: str
) -> None:
    """What is to be copied cannot be read; the folder may hold an empty bin, as an earlier script left one."""
    there = tmp_path / "there"
    fill(bundle, "first", "model")
    (bundle / part).rename(tmp_path / part)
    seal(bundle)
    assert install(bundle, there, python=stand_in).returncode != 0
    (there / "bin").mkdir(exist_ok=True)
    (tmp_path / part).rename(bundle / part)
    ended = install(seal(bundle), there, python=stand_in)
    assert ended.returncode == 0, ended.stderr
    assert says(there) == "first"
    assert (there / "pages" / "node.html").read_text() == "pages of first"
    expected = re.sub(r"/opt/metricunet(?=[/ ])", str(there), EXAMPLE)
    assert (there / "node.yaml").read_text(encoding="utf-8") == expected


def test_a_later_bundle_of_the_same_version_brings_its_code(bundle: Path, stand_in: Path, tmp_path: Path) -> None:
    there = tmp_path / "there"
    assert install(fill(bundle, "first", "one"), there, python=stand_in).returncode == 0
    (there / "node.yaml").write_text("mine")
    for code, model in (("second", "two"), ("third", "three")):
        ended = install(fill(bundle, code, model), there, python=stand_in)
        assert ended.returncode == 0, ended.stderr
        assert says(there) == code
        assert (there / "pages" / "node.html").read_text() == f"pages of {code}"
    # Nothing that settings may name is another than it was.
    assert (there / "models" / "base.safetensors").read_text() == "one"
    assert sorted(path.read_text() for path in (there / "models").iterdir()) == ["one", "three", "two"]
    assert (there / "node.yaml").read_text() == "mine"
    assert len([*there.glob("env-1.2-*")]) == 3
    ended = install(fill(bundle, "second", "two"), there, python=stand_in)
    assert "is there already" in ended.stdout
    assert says(there) == "second"
    assert len([*there.glob("env-1.2-*")]) == 3
    assert len([*(there / "models").iterdir()]) == 3
