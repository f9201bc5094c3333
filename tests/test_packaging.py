"""What is shipped is ours or has its licence beside it; the bill of materials and the checks of a release."""

from __future__ import annotations

import hashlib
import re
import tomllib
from pathlib import Path
from typing import Any

from tests.e2e.bill_of_materials import BUNDLED, bundled, model
from tests.e2e.check_wheel import release_faults

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
    log = "# Changelog\n\n## Unreleased\n\n## 1.2.0 (2026-12-01)\n"
    assert list(release_faults("1.2.0", ["v1.2.0"], [], log)) == []
    assert list(release_faults("1.2.0", ["v1.1.0"], ["README.md"], "## 1.20\n")) == [
        "this commit has no tag v1.2.0, which pyproject.toml states (tags: v1.1.0)",
        "files that are not committed: README.md",
        "CHANGELOG.md has no heading for 1.2.0",
    ]


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
