"""Several scripts in one, for pages that are opened as files: browsers let those import nothing."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

STATIC = Path(__file__).with_name("static")

IMPORT = re.compile(r'^import \{ (.+) \} from "\./([\w.]+)";$', re.MULTILINE)
EXPORTED = re.compile(r"^export (?=(?:const|class|function) (\w+))", re.MULTILINE)
LISTED = re.compile(r"^export \{\n((?:  [\w $]+,?\n)+)\};$", re.MULTILINE)


@cache
def one_script(names: tuple[str, ...]) -> str:
    """Return scripts of `static` as one that imports nothing.

    Each becomes a function of its own, so that their names do not meet.

    Args:
        names: of the files, each after those that it imports.
    """
    parts = [
        _part(name, (STATIC / name).read_text(encoding="utf-8"), names[:number])
        for number, name in enumerate(names)
    ]
    return "const files = {};\n" + "".join(parts)


def _part(name: str, text: str, before: Sequence[str]) -> str:
    def taken(found: re.Match[str]) -> str:
        assert found[2] in before, f"{name} imports {found[2]}, which must come before it"
        return f'const {{ {found[1]} }} = files["{found[2]}"];'

    given = list(EXPORTED.findall(text))
    for block in LISTED.findall(text):
        for entry in block.replace(",", "").split("\n"):
            inside, _, outside = entry.strip().partition(" as ")
            given += [f"{outside}: {inside}" if outside else inside] if inside else []
    text = LISTED.sub("", EXPORTED.sub("", IMPORT.sub(taken, text)))
    assert not re.search(r"^(import|export)\b", text, re.MULTILINE), f"{name}: an import or export is left"
    return f'files["{name}"] = (() => {{\n{text}\nreturn {{ {", ".join(given)} }};\n}})();\n'
