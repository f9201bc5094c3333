"""YAML of others: what is none, and a few lines that stand for a thousand million values."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from metricunet.errors import InputError
from metricunet.files.yaml_file import read_yaml

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "\n".join(
    f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 10)}]" for k in range(1, 9)
)


@pytest.mark.parametrize(
    "text", ["a: 1\nb: &b [1, 2]\nc: *b\n", "base: &b {x: 1}\nmore: {<<: *b, y: 2}\n", "", "3"]
)
def test_reads_what_yaml_reads(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.yaml").write_text(text, encoding="utf-8")
    assert read_yaml(tmp_path / "a.yaml") == yaml.safe_load(text)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_reads_what_windows_writes(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "a.yaml").write_bytes("prostate: [Größe]\r\nignore: ['前']\r\n".encode(encoding))
    assert read_yaml(tmp_path / "a.yaml") == {"prostate": ["Größe"], "ignore": ["前"]}


def test_refuses_what_is_not_unicode(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes("a: Größe".encode("latin-1"))
    with pytest.raises(InputError, match="not a readable YAML file"):
        read_yaml(tmp_path / "a.yaml")


@pytest.mark.parametrize(
    "text", [BOMB, "a: &a [*a]", "[" * 3000, "a: [", "a: !!int x", "2001-99-99", "\x00", "--- 1\n--- 2"]
)
def test_refuses_in_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=r"a\.yaml: not a readable YAML file \(.+\)$") as caught:
        read_yaml(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "locate: {updates: 10}\nsegment: {updates: 20}\nlocate: {updates: 30}\n",
        "rules:\n  - name: all\n    send_to: [tps]\n    send_to: [pacs]\n",
        "a: &a {b: 1, 'b': 2}\nc: *a\n",
    ],
)
def test_a_key_that_occurs_twice_is_refused(tmp_path: Path, text: str) -> None:
    """YAML's readers keep the second alone, so that a section or a destination would be lost in silence."""
    path = tmp_path / "a.yaml"
    path.write_text(text, encoding="utf-8")
    key = next(key for key in ("locate", "send_to", "b") if key in text)
    with pytest.raises(InputError, match=rf"a\.yaml: not a readable YAML file \('{key}' occurs twice") as caught:
        read_yaml(path)
    assert "\n" not in str(caught.value)
