"""What is shipped is ours or has its licence beside it; the bill of materials and the checks of a release."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from deploy.bundle import closure
from metricunet.cli import LEFT_OUT
from tests.e2e import check_wheel
from tests.e2e.bill_of_materials import BUNDLED, bundled, model
from tests.e2e.check_wheel import check_release, interpreter, release_faults, released_files, run

ROOT = Path(__file__).parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
#: What we write ourselves: code, templates and settings. A file of another kind is ours only if it is named below.
OURS = {".py", ".j2", ".yaml"}
OURS_BY_NAME = {
    "py.typed",
    "inference/page/static/base.css",
    "inference/page/static/page.css",
    "inference/page/static/page.js",
    "inference/page/static/paint.js",
    "inference/page/static/viewer.js",
    "models/base.safetensors",
    "workflows/review/static/index.html",
    "workflows/review/static/ledger.css",
    "workflows/review/static/review.css",
    "workflows/review/static/review.js",
    "workflows/serve/static/node.js",
}


def third_parties() -> dict[str, str]:
    """Return the files of others that THIRD_PARTY.md lists, each with the file of its licence."""
    text = (ROOT / "THIRD_PARTY.md").read_text(encoding="utf-8")
    return dict(re.findall(r"^\| `([^`]+)`.*\| `([^`]+)` \|$", text, re.MULTILINE))


def test_every_shipped_file_is_ours_or_has_its_licence_beside_it() -> None:
    package = ROOT / "src" / "metricunet"
    listed = third_parties()
    for file in package.rglob("*"):
        if not file.is_file() or "__pycache__" in file.parts or file.suffix in OURS:
            continue
        name, path = file.relative_to(package).as_posix(), file.relative_to(ROOT).as_posix()
        known = name in OURS_BY_NAME or path in listed or path in listed.values()
        assert known, f"{path}: list it in THIRD_PARTY.md with its licence, or here if it is ours"


def test_what_is_listed_is_there_and_its_licence_lies_beside_it() -> None:
    listed = third_parties()
    assert len(listed) == 2
    for path, licence in listed.items():
        assert (ROOT / path).is_file()
        assert (ROOT / path).parent == (ROOT / licence).parent
        assert len((ROOT / licence).read_text(encoding="utf-8")) > 500


def test_the_wheel_states_the_licences_of_all_that_it_holds() -> None:
    # The texts of the others' licences lie in the wheel beside their files.
    assert PROJECT["project"]["license-files"] == ["LICENSE", "THIRD_PARTY.md"]
    assert PROJECT["project"]["license"].split(" AND ") == ["Apache-2.0", "BSD-2-Clause", "ISC", "MIT"]


def test_the_bill_names_what_is_bundled_and_the_model(tmp_path: Path) -> None:
    text = BUNDLED.read_text(encoding="utf-8")
    found = {one["name"]: one for one in bundled(text)}
    assert len(found) == text.count("====") // 2
    assert found["@niivue/niivue"]["purl"] == "pkg:npm/%40niivue/niivue@0.69.0"
    assert "version" not in found["fflate"]
    (tmp_path / "base.safetensors").write_bytes(b"weights")
    assert model(tmp_path / "base.safetensors")["hashes"][0]["content"] == hashlib.sha256(b"weights").hexdigest()


def test_a_release_needs_tag_commit_and_changelog() -> None:
    log = "# Changelog\n\n## Unreleased\n\n## 1.2.0 (2026-12-01)\n\n### Added\n\n- A thing.\n"
    assert list(release_faults("1.2.0", ["v1.2.0"], [], log)) == []
    assert list(release_faults("1.2.0", ["v1.1.0"], ["README.md"], "## 1.20 (2026-12-01)\n")) == [
        "this commit has no tag v1.2.0, which pyproject.toml states (tags: v1.1.0)",
        "files that are not committed: README.md",
        "CHANGELOG.md has no heading `## 1.2.0 (YYYY-MM-DD)`",
    ]
    sentence = "Version 1.2.0 has not been released yet."
    forgotten = log.replace("## Unreleased\n", f"{sentence}\n\n## Unreleased\n\n- More.\n")
    assert list(release_faults("1.2.0", ["v1.2.0"], [], forgotten)) == [
        "CHANGELOG.md has entries under Unreleased; what is in 1.2.0 belongs under its heading",
        "CHANGELOG.md says of a version that it has not been released",
    ]


def git(folder: Path, *words: str) -> None:
    """Run git in a repository of a test, whatever whoever runs the test has set."""
    settings = ("user.name=test", "user.email=test@localhost", "commit.gpgsign=false", "tag.gpgsign=false")
    given = [word for setting in settings for word in ("-c", setting)]
    subprocess.run(["git", *given, *words], cwd=folder, check=True, capture_output=True)


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_a_release_is_refused_until_nothing_speaks_against_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check_wheel, "ROOT", tmp_path)
    (tmp_path / "pyproject.toml").write_text('[project]\nversion = "1.2.0"\n', encoding="utf-8")
    (tmp_path / "CHANGELOG.md").write_text("# Changelog\n\n## Unreleased\n", encoding="utf-8")
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "-m", "first")
    kept = tmp_path.parent / f"{tmp_path.name}-dist"
    kept.mkdir()
    (kept / "metricunet-1.1.0.tar.gz").touch()
    (tmp_path / "left behind").touch()
    with pytest.raises(SystemExit) as refused:
        check_release(kept)
    lines = str(refused.value).splitlines()
    assert lines[0] == "not to be released:"
    for words in ("has no tag v1.2.0", "not committed: ", "no heading `## 1.2.0", "ships the model"):
        assert sum(words in line for line in lines) == 1, words
    assert f"{kept} holds metricunet-1.1.0.tar.gz, which are not of 1.2.0; move them elsewhere" in lines
    (tmp_path / "left behind").unlink()
    (kept / "metricunet-1.1.0.tar.gz").unlink()
    for name in released_files("1.2.0"):  # of an attempt before, and replaced
        (kept / name).touch()
    log = "# Changelog\n\n## Unreleased\n\n## 1.2.0 (2026-12-01)\n"
    (tmp_path / "CHANGELOG.md").write_text(log, encoding="utf-8")
    (tmp_path / check_wheel.MODEL).parent.mkdir(parents=True)
    (tmp_path / check_wheel.MODEL).touch()
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "-m", "release")
    git(tmp_path, "tag", "-a", "v1.2.0", "-m", "metricunet 1.2.0")
    check_release(kept)
    check_release(tmp_path.parent / "a folder that is not there")
    check_release(None)


def test_what_is_installed_is_not_led_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in check_wheel.LEADS_ELSEWHERE:
        monkeypatch.setenv(name, str(tmp_path))
    code = f"import os; print([os.environ.get(name) for name in {check_wheel.LEADS_ELSEWHERE!r}])"
    assert run(sys.executable, "-c", code, cwd=tmp_path) == f"{[None] * len(check_wheel.LEADS_ELSEWHERE)}\n"


def test_an_interpreter_is_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "python9").symlink_to(sys.executable)
    monkeypatch.chdir(tmp_path)
    assert interpreter("./python9") == str(tmp_path / "python9")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert os.path.samefile(interpreter("python9"), sys.executable)
    with pytest.raises(SystemExit, match="python8: no such interpreter"):
        interpreter("python8")


def test_the_list_for_machines_without_torch_is_what_is_needed_there() -> None:
    pytest.importorskip("onnxruntime")
    lines = (ROOT / "requirements-onnx.txt").read_text(encoding="utf-8").splitlines()
    listed = [Requirement(line) for line in lines if line and not line.startswith("#")]
    assert all(one.specifier and str(one.specifier).startswith("==") for one in listed)
    here = {canonicalize_name(one.name): one for one in listed if one.marker is None or one.marker.evaluate()}
    (runtime,) = (text for text in PROJECT["project"]["optional-dependencies"]["onnx"] if "runtime" in text)
    own = [text for text in PROJECT["project"]["dependencies"] if Requirement(text).name not in LEFT_OUT]
    stated = [*own, runtime]
    for text in stated:
        (pin,) = here[canonicalize_name(Requirement(text).name)].specifier
        assert Requirement(text).specifier.contains(pin.version), f"{text}: {pin.version} is listed"
    assert sorted(here) == sorted(closure(stated, ""))


def test_each_supported_python_is_named_alike_everywhere() -> None:
    stated = [c.rsplit(" ", 1)[1] for c in PROJECT["project"]["classifiers"] if "Python :: 3." in c]
    (pythons,) = re.findall(r"^PYTHONS \?= (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert [name.removeprefix("python") for name in pythons.split()] == stated
    assert PROJECT["project"]["requires-python"] == f">={stated[0]}"


def test_what_make_says_of_a_target_can_be_read_alone() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    said = dict(re.findall(r"^([a-z-]+):.*## (.*)$", makefile, re.MULTILINE))
    assert {"check-wheel", "check-pythons", "release"} <= set(said)
    assert [target for target, line in said.items() if line.startswith("the same")] == []
