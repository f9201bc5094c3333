"""Make a bundle: a folder and an archive with all that a machine without internet needs to run metricunet.

Run by `make bundle`, in the environment whose versions are to be bundled: what is installed there, and was tested
there, is what the bundle pins. It holds the wheels of metricunet and of all that a node needs, for this platform
and this version of Python; the model; the site's pages; an example of a node's file, a unit for systemd and a file
for a container; every package's licences; checksums; and `install.sh`.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from email.message import Message
from email.parser import BytesParser
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path, PurePosixPath

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename

ROOT = Path(__file__).parents[1]
#: What is bundled of the extras: a node, which segments, reviews and exports as well.
EXTRA = "node"
COPIED = ("node.yaml", "metricunet-node.service", "Containerfile", "install.sh")
#: Where builds of torch such as +cpu lie, if they are not where pip looks by itself.
TORCH_INDEX = "https://download.pytorch.org/whl"
#: Words that names of licence files begin with, outside the folder that newer wheels have for them.
LICENCE_WORDS = ("licen", "copying", "notice", "authors", "copyright", "third")
README = """\
metricunet {version} for {tag}, with all that it needs, for a machine without internet.

    ./install.sh /opt/metricunet        (or another folder; it asks for no network)

Then open pages/node.html in a browser: how a node is set up. Each package's licence: licences/licences.csv.
SHA256SUMS has the checksum of every file; install.sh compares them. For research; not a medical device.
"""


def platform_tag() -> str:
    """Return the Python and the platform that the bundle is for, such as cp311-linux-x86_64."""
    return f"cp{sys.version_info[0]}{sys.version_info[1]}-{sysconfig.get_platform()}"


def metadata_of(wheel: Path) -> Message:
    """Return the metadata of a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [
            one for one in archive.namelist() if one.count("/") == 1 and one.endswith(".dist-info/METADATA")
        ]
        return BytesParser().parsebytes(archive.read(name))


def closure(requirements: Iterable[str], extra: str) -> dict[str, str]:
    """Return what is installed here of requirements and of all that those require: version by name.

    Args:
        requirements: as a wheel's metadata has them.
        extra: that is asked for, too.

    Raises:
        SystemExit: one of them is not installed, or in a version that does not fit.
    """
    found: dict[str, str] = {}
    waiting = [(Requirement(text), frozenset({"", extra})) for text in requirements]
    seen: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        wanted, extras = waiting.pop()
        if wanted.marker is not None and not any(wanted.marker.evaluate({"extra": one}) for one in extras):
            continue
        name = canonicalize_name(wanted.name)
        try:
            installed = distribution(name)
        except PackageNotFoundError:
            sys.exit(f"{wanted} is not installed here; run pip install -c constraints.txt '.[dev]'")
        if not wanted.specifier.contains(installed.version, prereleases=True):
            sys.exit(f"{name} {installed.version} is installed here, expected {wanted}; install what fits")
        found[name] = installed.version
        asked = frozenset({"", *wanted.extras})
        if (name, asked) not in seen:
            seen.add((name, asked))
            waiting += [(Requirement(text), asked) for text in installed.requires or ()]
    return dict(sorted(found.items()))


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def pinned(wheels: Path) -> Iterator[str]:
    """Yield a line of requirements for each wheel, with its hash."""
    for wheel in sorted(wheels.glob("*.whl")):
        name, version, _, _ = parse_wheel_filename(wheel.name)
        yield f"{name}=={version} --hash=sha256:{sha256(wheel)}"


def licence_files(wheel: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the licences that a wheel holds, each with a name below its folder."""
    with zipfile.ZipFile(wheel) as archive:
        for one in archive.infolist():
            path = PurePosixPath(one.filename)
            if one.is_dir() or not path.parts[0].endswith(".dist-info") or ".." in path.parts:
                continue
            inner = path.parts[1:]
            if inner[0] in ("licenses", "license_files") and len(inner) > 1:
                yield "/".join(inner[1:]), archive.read(one)
            elif len(inner) == 1 and inner[0].lower().startswith(LICENCE_WORDS):
                yield inner[0], archive.read(one)


def stated_licence(metadata: Message) -> str:
    """Return in a line what a wheel says of its licence: an expression, a word, or classifiers."""
    words = metadata.get("License-Expression") or ""
    if not words:
        classifiers = metadata.get_all("Classifier") or []
        words = "; ".join(one.rpartition(" :: ")[2] for one in classifiers if one.startswith("License ::"))
    if not words:
        words = next(iter((metadata.get("License") or "").strip().splitlines()), "")
    return words or "see its files"


def write_licences(wheels: Path, folder: Path) -> None:
    """Write every wheel's licences, and a table of them."""
    folder.mkdir()
    rows = []
    for wheel in sorted(wheels.glob("*.whl")):
        name, version, _, _ = parse_wheel_filename(wheel.name)
        count = 0
        for inner, content in licence_files(wheel):
            target = folder / f"{name}-{version}" / inner
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
            count += 1
        rows.append((name, str(version), stated_licence(metadata_of(wheel)), count, wheel.name, sha256(wheel)))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("package", "version", "licence", "files", "wheel", "sha256"))
    writer.writerows(rows)
    (folder / "licences.csv").write_text(text.getvalue(), encoding="utf-8")
    shutil.copy(ROOT / "THIRD_PARTY.md", folder)


def write_checksums(folder: Path) -> None:
    """Write the checksums of all files of a bundle, as sha256sum reads them."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    lines = [f"{sha256(path)}  {path.relative_to(folder).as_posix()}\n" for path in files]
    (folder / "SHA256SUMS").write_text("".join(lines), encoding="utf-8")


def collect(folder: Path) -> str:
    """Put the wheels into a folder; return metricunet's version."""
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder)]
    subprocess.run([*pip, str(ROOT)], check=True)
    (own,) = folder.glob("*.whl")
    needed = closure(metadata_of(own).get_all("Requires-Dist") or [], EXTRA)
    with tempfile.TemporaryDirectory() as name:
        listed = Path(name) / "requirements.txt"
        plain = {one: version for one, version in needed.items() if "+" not in version}
        listed.write_text("".join(f"{one}=={version}\n" for one, version in plain.items()), encoding="utf-8")
        subprocess.run([*pip, "--requirement", str(listed)], check=True)
    for one, version in needed.items():
        if "+" in version:
            exact = [*pip, f"{one}=={version}"]
            more = ["--find-links", f"{TORCH_INDEX}/{version.partition('+')[2]}/{one}/"]
            if subprocess.run(exact, check=False).returncode:
                subprocess.run([*exact, *more], check=True)
    there = {canonicalize_name(parse_wheel_filename(path.name)[0]) for path in folder.glob("*.whl")}
    if missing := needed.keys() - there:
        sys.exit(f"no wheel came of {', '.join(sorted(missing))}")
    return str(parse_wheel_filename(own.name)[1])


def make(output: Path, pages: Path) -> Path:
    """Make the bundle; return its folder, beside which the archive lies.

    Args:
        output: folder that both are put into.
        pages: the built site.
    """
    if not (pages / "node.html").is_file():
        sys.exit(f"{pages}: holds no built site; run make docs")
    output.mkdir(parents=True, exist_ok=True)
    partial = output / ".partial"
    shutil.rmtree(partial, ignore_errors=True)
    wheels = partial / "wheels"
    wheels.mkdir(parents=True)
    version, tag = collect(wheels), platform_tag()
    (partial / "requirements.txt").write_text("".join(f"{line}\n" for line in pinned(wheels)), encoding="utf-8")
    write_licences(wheels, partial / "licences")
    shutil.copytree(pages, partial / "pages")
    (partial / "models").mkdir()
    shutil.copy(ROOT / "src/metricunet/models/base.safetensors", partial / "models")
    for name in COPIED:
        shutil.copy(ROOT / "deploy" / name, partial)
    for name, text in (
        ("VERSION", f"{version}\n"),
        ("PYTHON", f"{tag}\n"),
        ("README.txt", README.format(version=version, tag=tag)),
    ):
        (partial / name).write_text(text, encoding="utf-8")
    for path in partial.rglob("*"):
        path.chmod(0o755 if path.is_dir() or path.name == "install.sh" else 0o644)
    write_checksums(partial)
    folder = output / f"metricunet-{version}-{tag}"
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial, folder)
    archive = folder.with_name(f"{folder.name}.tar")
    whole = archive.with_name(f".partial-{archive.name}")
    with tarfile.open(whole, "w") as tar:  # wheels are compressed already
        tar.add(folder, folder.name, filter=_nobody)
    os.replace(whole, archive)
    return folder


def _nobody(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = "root"
    return entry


def main() -> None:
    """Make the bundle and say where it is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "build/bundle")
    parser.add_argument("--pages", type=Path, default=ROOT / "build/site", help="the site, as make docs builds it")
    options = parser.parse_args()
    folder = make(options.output, options.pages)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"{folder} and {folder.name}.tar: {size / 1e6:.0f} MB, {len([*folder.glob('wheels/*.whl')])} wheels")


if __name__ == "__main__":
    main()
