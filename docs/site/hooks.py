"""What the site makes of the pages of the repository, as MkDocs builds it.

The pages are written for the repository, where a link may lead to any of its files. Here

- pages outside docs (README.md and others) become pages of the site, and so do notebooks, with their outputs;
- files of code that a page links to become pages under `source/`;
- links in pages lead to these;
- the reference of the command line is made from the command line itself.
"""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
#: A fenced block, whose text holds no links, or else a link's target.
LINK = re.compile(
    r"(?P<code>^```.*?^```|`[^`\n]+`)|(?P<open>\]\()(?P<target>[^)\s]+)(?P<close>\))", re.MULTILINE | re.DOTALL
)
#: What a file of code is called to the highlighter.
LANGUAGES = {".py": "python", ".yaml": "yaml", ".yml": "yaml", ".json": "json", ".toml": "toml", ".txt": "text"}
#: Where in the repository the page of each address in the site comes from.
_origins: dict[str, str] = {}
#: The address in the site of each page that is not the file of that name in docs.
_moved: dict[str, str] = {}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Name the pages of `nav` that lie outside docs, and the notebooks, as the site has them."""
    _origins.clear()
    _moved.clear()
    config.nav = [_entry(entry) for entry in config.nav]
    return config


def _entry(entry: Any) -> Any:
    if isinstance(entry, dict):
        return {title: _entry(inner) for title, inner in entry.items()}
    if isinstance(entry, list):
        return [_entry(inner) for inner in entry]
    path = Path(entry)
    if path.suffix == ".ipynb":
        return _claim(entry, f"docs/{entry}", path.with_suffix(".md").as_posix())
    if path.parts[0] == "..":
        return _claim(entry, path.name, path.name.lower())
    return entry


def _claim(entry: str, origin: str, address: str) -> str:
    _moved[origin] = address
    _origins[address] = origin
    return address


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that docs does not hold."""
    for origin, address in list(_moved.items()):
        if origin.endswith(".ipynb"):
            for file in _notebook(ROOT / origin, address, config):
                files.append(file)
        else:
            text = (ROOT / origin).read_text(encoding="utf-8")
            files.append(File.generated(config, address, content=text))
    if (DOCS / "reference" / "commands.md").exists():
        raise FileExistsError("docs/reference/commands.md is made from the command line; it cannot be written")
    files.append(File.generated(config, "reference/commands.md", content=commands_page()))
    for file in list(files.documentation_pages()):
        origin = _origins.setdefault(file.src_uri, f"docs/{file.src_uri}")
        for target in _targets(file.content_string):
            _add_source(_resolved(origin, target), files, config)
    return files


def _targets(markdown: str) -> Iterator[str]:
    for found in LINK.finditer(markdown):
        if found["target"] and not re.match(r"[a-z]+:|#", found["target"]):
            yield found["target"].partition("#")[0]


def _resolved(origin: str, target: str) -> str:
    """Return the path in the repository that a page's link leads to; a folder's is that of its README."""
    path = os.path.normpath(Path(origin).parent / target)
    return f"{path}/README.md" if (ROOT / path / "README.md").is_file() else path


def _add_source(path: str, files: Files, config: MkDocsConfig) -> None:
    inside = path.startswith("docs/") and files.get_file_from_path(path.removeprefix("docs/")) is not None
    if path in _moved or inside or not (ROOT / path).is_file():
        return
    _moved[path] = address = f"source/{path}.md"
    _origins[address] = path
    text = (ROOT / path).read_text(encoding="utf-8")
    fence = "`" * (3 + max((len(run) for run in re.findall(r"`{3,}", text)), default=0))
    language = LANGUAGES.get(Path(path).suffix, "text")
    content = f"---\nsearch:\n  exclude: true\n---\n# {path}\n\n{fence}{language}\n{text.rstrip()}\n{fence}\n"
    files.append(File.generated(config, address, content=content, inclusion=InclusionLevel.NOT_IN_NAV))


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Let a page's links lead to where their targets are in the site."""
    origin = _origins[page.file.src_uri]
    if page.is_homepage:
        page.meta["hide"] = ["navigation"]  # which would hold this page alone

    def changed(found: re.Match[str]) -> str:
        target = found["target"]
        if not target or re.match(r"[a-z]+:|#", target):
            return found[0]
        path, mark, heading = target.partition("#")
        place = _resolved(origin, path)
        address = _moved.get(place, place.removeprefix("docs/") if place.startswith("docs/") else None)
        if address is None:
            return found[0]  # it leads nowhere, which MkDocs will say
        here = Path(page.file.src_uri).parent
        return f"]({Path(os.path.relpath(address, here)).as_posix()}{mark}{heading})"

    return LINK.sub(changed, markdown)


def _notebook(path: Path, address: str, config: MkDocsConfig) -> Iterator[File]:
    """Yield the page of a notebook, and the pictures in its outputs."""
    parts = []
    stem = Path(address).with_suffix("").as_posix()
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        for number, output in enumerate(cell["outputs"]):
            data = output.get("data", {})
            for kind, ending in (("image/svg+xml", "svg"), ("image/png", "png")):
                if kind in data:
                    picture = f"{stem}-{cell['id']}-{number}.{ending}"
                    content = "".join(data[kind])
                    as_bytes = base64.b64decode(content) if ending == "png" else content.encode()
                    yield File.generated(config, picture, content=as_bytes)
                    parts.append(f"![What the cell shows]({Path(picture).name})")
                    break
            else:
                text = "".join(output.get("text", data.get("text/plain", ())))
                parts.append(f'<div class="cell-output" markdown>\n\n```text\n{text.rstrip()}\n```\n\n</div>')
    note = f"*This page is a notebook: [{path.name}]({path.name}){{ download }} opens in Jupyter.*"
    parts.insert(1, note)
    yield File.generated(config, address, content="\n\n".join(parts) + "\n")


def commands_page() -> str:
    """Return the page on all commands: for each its arguments and options, as typer writes them."""
    # Typer runs this module anew; an app that it has met before it describes without the options of completion.
    words = [sys.executable, "-m", "typer", "metricunet.cli.program", "utils", "docs", "--name", "metricunet"]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    }
    text = subprocess.run(words, capture_output=True, text=True, check=True, env=environment).stdout
    # Its list of the commands cuts their sentences short, and the headings are such a list.
    text = re.sub(r"\*\*Commands\*\*:.*?(?=^## )", "", text, flags=re.MULTILINE | re.DOTALL)
    return text.replace("# `metricunet`", "# Commands", 1)
