"""Check the links of the site that `mkdocs build` made.

Run from the repository: python docs/site/check.py [build/site]

Every link within the site must lead to a file of it, and to a heading where it names one. No page may load
anything from another host. Links to other hosts are not followed: each must stand in external.txt, which a person
looks through before a release. Exit status 0: all is well; 1: what is wrong is printed, a line each.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).parents[2]
EXTERNAL = Path(__file__).with_name("external.txt")
#: Which attribute of which element makes a browser load something by itself.
LOADED = {
    ("script", "src"), ("img", "src"), ("iframe", "src"), ("source", "src"), ("video", "src"), ("audio", "src"),
    ("embed", "src"), ("object", "data"), ("input", "src"),
}  # fmt: skip
#: A `link` with one of these loads nothing.
QUIET = {"canonical", "prev", "next", "alternate", "license", "author"}


class Found(HTMLParser):
    """What a page links to, what it loads, and where it can be linked to."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.anchors: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note the addresses in an element."""
        given = {name: value or "" for name, value in attrs}
        self.anchors |= {given[name] for name in ("id", "name") if name in given and tag != "meta"}
        for name, value in given.items():
            if (tag, name) in LOADED:
                self.loads.append(value)
        if tag == "link" and not set(given.get("rel", "").split()) <= QUIET:
            self.loads.append(given.get("href", ""))
        elif tag in ("a", "area", "link") and "href" in given:
            self.links.append(given["href"])


def read(page: Path) -> Found:
    """Return what is found in a page."""
    found = Found()
    found.feed(page.read_text(encoding="utf-8"))
    return found


def is_external(address: str) -> bool:
    """Return whether an address leads to another host."""
    return address.startswith("//") or urlsplit(address).scheme in ("http", "https")


def problems(site: Path, known: set[str]) -> Iterator[str]:
    """Yield what is wrong with a site, a line each; KNOWN are the addresses elsewhere that a page may link to."""
    pages = {page: read(page) for page in sorted(site.rglob("*.html"))}
    if not pages:
        yield f"{site}: no page; build the site first (make docs)"
    unused = set(known)
    for page, found in pages.items():
        name = page.relative_to(site)
        for address in found.loads:
            if is_external(address):
                yield f"{name}: loads {address} from another host"
        for address in (*found.links, *found.loads):
            parts = urlsplit(address)
            if is_external(address):
                unused.discard(address)
                if address in found.links and address not in known:
                    yield f"{name}: links to {address}, which {EXTERNAL.name} does not list"
                continue
            if parts.scheme:  # data: and mailto: lead to no page
                continue
            place = site / unquote(parts.path).lstrip("/") if parts.path.startswith("/") else page.parent
            target = place if parts.path.startswith("/") else place / unquote(parts.path)
            target = page if not parts.path else target.resolve()
            target = target / "index.html" if target.is_dir() else target
            if not target.is_file():
                yield f"{name}: links to {address}, which is not there"
            elif parts.fragment and target in pages:
                anchor = unquote(parts.fragment)
                if anchor not in pages[target].anchors and anchor != "__skip":
                    yield f"{name}: links to {address}, which has no such heading"
    for sheet in sorted(site.rglob("*.css")):
        text = sheet.read_text(encoding="utf-8")
        if "url(http" in text or "url(//" in text or "@import" in text:
            yield f"{sheet.relative_to(site)}: loads from elsewhere"
    for address in sorted(unused):
        yield f"{EXTERNAL.name}: lists {address}, which no page links to"


def listed(file: Path) -> set[str]:
    """Return the addresses in a list: a line each, with comments behind `# `."""
    lines = (line.split("# ")[0].strip() for line in file.read_text(encoding="utf-8").splitlines())
    return {line for line in lines if line and not line.startswith("#")}


def main() -> None:
    """Print what is wrong with the site."""
    site = (Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "build" / "site").resolve()
    found = list(problems(site, listed(EXTERNAL)))
    print("\n".join(found) if found else f"{sum(1 for _ in site.rglob('*.html'))} pages, no dead link")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
