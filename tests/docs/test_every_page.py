"""Every page: commands are those of the command line, code runs, links lead somewhere, every room is named."""

from __future__ import annotations

import ast
import json
import re
import shlex
import shutil
import tomllib
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from typer.main import get_command

from benchmarks.__main__ import app as benchmarks
from metricunet.cli import app
from metricunet.inference.models import VARIABLE
from tests.support.command import Command
from tests.support.dicom_series import write_series
from tests.support.patients import Patient, write_ct, write_set

ROOT = Path(__file__).parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    ROOT / "THIRD_PARTY.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
#: A name of the package with all that leads to it.
DOTTED = re.compile(r"(?<![\w./-])metricunet(?:\.[A-Za-z_]\w*)+")
#: Pages whose Python has a test of its own.
TESTED = ("metric-learning.md", "python.md")
#: Commands that are run as they stand.
RUN = ("check", "export", "predict", "import")
#: Commands whose words are checked by the real command line and that are not run here, and why.
NOT_RUN = {
    "bench": "it measures for minutes",
    "commission": "it takes half a minute, and has tests of its own",
    "convert": "its sources are files of other programs",
    "evaluate": "it scores what a training or a reader has made",
    "ledger": "it tells of reviews that a person has made",
    "nnunet": "it needs nnU-Net in an environment of its own",
    "serve": "it serves until it is stopped",
    "phantom": "it makes dozens of scans",
    "review": "it serves until it is stopped",
    "study": "it trains for hours",
    "train": "it trains for hours",
}
#: Words that keep a command of RUN from being run, and why.
KEPT_BACK = {
    "--reviewed": "reviews are a person's, and nobody has made any here",
    "--engine": "Ray starts processes of its own, which has tests of its own",
}
#: Other programs that a page may ask for; nothing of them is checked but what `check_command` says.
PROGRAMS = {"echo", "export", "sbatch", "nnUNetv2_train", "nnUNetv2_predict", "nnUNetv2_plan_and_preprocess"}
#: What is done with the blocks of each language.
LANGUAGES = {
    "sh": "each command is parsed, and those of RUN are run",
    "python": "run",
    "json": "read",
    "yaml": "read",
    "bibtex": "not code",
    "text": "what a program shows, or what is for a program that is not here",
    "dockerfile": "there is no container runtime here",
}
#: What joins commands on a line, and what sends their output elsewhere.
JOINED = {"||", "&&", "|", ";"}


def blocks(page: Path, language: str) -> list[str]:
    """Return the fenced blocks of a language."""
    return [text for kind, text in BLOCK.findall(page.read_text(encoding="utf-8")) if kind == language]


def commands(line: str) -> Iterator[list[str]]:
    """Yield the commands of a line of shell, without what redirects them."""
    words: list[str] = []
    for word in [*shlex.split(line, comments=True), ";"]:
        if word not in JOINED:
            words.append(word)
            continue
        if ">" in words:
            del words[words.index(">") :]
        if words:
            yield words
        words = []


def lines(block: str) -> list[str]:
    """Return the lines of a block, those that a backslash continues as one."""
    return block.replace("\\\n", " ").splitlines()


def mentioned(page: Path) -> Iterator[list[str]]:
    """Yield commands in the running text and in tables."""
    for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", BLOCK.sub("", page.read_text(encoding="utf-8"))):
        if re.match(r"(metricunet|python|make|pip install) ", span):
            yield from commands(" ".join(span.split()))


def parse(command: Any, words: list[str], *, whole: bool) -> None:
    """Parse the words of a command with subcommands; those that are not whole may lack an argument."""
    options = {option for parameter in command.params for option in parameter.opts}
    while words and words[0].startswith("-"):
        assert words[0] in {*options, "--help"}, f"no option {words[0]}"
        words = words[1:]
    if not words or words[0].isupper():  # COMMAND or PART stands for any
        return
    assert words[0] in command.commands, f"no command {words[0]}"
    arguments = [word for word in words[1:] if word != "--help"]
    try:
        command.commands[words[0]].make_context(words[0], arguments)
    except Exception as error:
        if whole or type(error).__name__ != "MissingParameter":
            raise AssertionError(f"{' '.join(words)}: {error}") from error


def check_command(words: list[str], *, whole: bool) -> None:
    """Check that a command can be given: its program, subcommand, options, scripts and targets exist."""
    while re.fullmatch(r"[A-Z_]+=\S*", words[0]):  # a variable for this command alone
        words = words[1:]
    program = words[0].removeprefix(".venv/bin/")
    if program == "metricunet":
        parse(get_command(app), words[1:], whole=whole)
    elif words[:3] == ["python", "-m", "benchmarks"]:
        parse(get_command(benchmarks), words[3:], whole=whole)
    elif program == "python":
        script = (ROOT / words[1]).read_text(encoding="utf-8")
        for option in words[2:]:
            assert not option.startswith("--") or f'"{option}"' in script, f"{words[1]} has no {option}"
    elif program == "make":
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
        assert re.search(rf"^{words[1]}:", makefile, re.MULTILINE), f"no target {words[1]}"
    elif words[:2] == ["pip", "install"]:
        for extra in re.findall(r"metricunet\[([\w-]+)\]", " ".join(words)):
            assert extra in PROJECT["project"]["optional-dependencies"]
        if "-c" in words:
            assert (ROOT / words[words.index("-c") + 1]).is_file()
    else:
        assert program in PROGRAMS, f"{program} is no program that a page may ask for"
        for word in words[1:]:
            assert not word.endswith(".sh") or (ROOT / word).is_file(), f"there is no script {word}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_is_one_of_the_command_line(page: Path) -> None:
    for block in blocks(page, "sh"):
        for line in lines(block):
            for words in commands(line):
                check_command(words, whole=True)
    for words in mentioned(page):
        check_command(words, whole=False)


def test_a_command_that_is_none_is_found() -> None:
    for line in (
        "metricunet predicted scan.nii.gz", "metricunet predict scan.nii.gz -m model -o out --colour red",
        "metricunet phantom -o out --difficulty absurd", "metricunet --quick", "python -m benchmarks slowness",
        "python docs/make_evidence.py --study paper/ --quick", "make money", "pip install 'metricunet[x]'", "rm x",
        "metricunet predict scan.nii.gz -m model",
    ):  # fmt: skip
        with pytest.raises(AssertionError):
            check_command(next(commands(line)), whole=True)
    check_command(["metricunet", "predict", "scan.nii.gz"], whole=False)


@pytest.fixture
def prepared(
    tiny_cohort: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: Any
) -> Path:
    """A folder with what the pages name: scans, a cohort, models, patients. The test works in it."""
    shutil.copytree(tiny_cohort, tmp_path / "demo" / "cohort")
    for model in ("model", "one", "two", "demo/model"):
        shutil.copy(tiny_model, tmp_path / f"{model}.safetensors")
    shutil.copy(tiny_cohort / "imagesTs" / "case_06_0000.nii.gz", tmp_path / "scan.nii.gz")
    (tmp_path / "new_scans").mkdir()
    shutil.copy(tmp_path / "scan.nii.gz", tmp_path / "new_scans" / "scan.nii.gz")
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    shutil.copy(tiny_model, tmp_path / "runs" / "mine" / "model.safetensors")
    write_series(tmp_path / "dicom_folder")
    if "metricunet import patients/" in request.getfixturevalue("page").read_text(encoding="utf-8"):
        series = write_ct(tmp_path / "patients" / "ct", Patient())
        write_set(tmp_path / "patients" / "set.dcm", Patient(), series, {"Prostate": (6.5, 14.5, range(1, 4))})
    else:
        shutil.copytree(tiny_cohort, tmp_path / "cohort")
    monkeypatch.setenv(VARIABLE, "model.safetensors")  # for commands that name none
    monkeypatch.chdir(tmp_path)
    return tmp_path


def is_run(words: list[str]) -> bool:
    """Return whether a command of a page is run here."""
    return words[0].endswith("metricunet") and words[1] in RUN and not KEPT_BACK.keys() & set(words)


def all_commands(page: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield the commands in the shell blocks of a page, each with its line."""
    for block in blocks(page, "sh"):
        for line in lines(block):
            for words in commands(line):
                yield line, words


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_is_run_or_excepted_with_a_reason(page: Path) -> None:
    for language, text in BLOCK.findall(page.read_text(encoding="utf-8")):
        assert language in LANGUAGES, f"a block of {page.name} begins with ```{language}"
        if language == "json":
            json.loads(text)
        elif language == "yaml":
            yaml.safe_load(text)
    for line, words in all_commands(page):
        if words[0].endswith("metricunet"):
            assert words[1] in (*RUN, *NOT_RUN), f"{line}: run {words[1]}, or say in NOT_RUN why not"


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if any(is_run(words) for _, words in all_commands(page))],
    ids=lambda page: page.name,
)
def test_cheap_commands_run(page: Path, prepared: Path, metricunet: Command) -> None:
    for line, words in all_commands(page):
        if is_run(words):
            ended = metricunet(*words[1:])
            # 1: some case failed, as the ball of a DICOM series may that holds no prostate.
            assert ended.status in (0, 1), f"{line}: {ended.err}"
            assert ended.out
            if ">" in line:
                (prepared / line.split(">")[1].split()[0]).write_text(ended.out, encoding="utf-8")


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if blocks(page, "python") and page.name not in TESTED],
    ids=lambda page: page.name,
)
def test_the_code_of_the_page_runs(page: Path, prepared: Path) -> None:
    labels = torch.zeros(2, 32, 32, dtype=torch.long)
    labels[:, 8:20, 8:20] = 1
    known: dict[str, Any] = {
        "features": torch.randn(2, 16, 32, 32, requires_grad=True),
        "labels": labels,
        "logits": torch.randn(2, 2, 32, 32),
        "segmentation_loss": torch.tensor(1.0),
    }
    for block in blocks(page, "python"):
        if "opened(" in block:
            continue  # an engine: see KEPT_BACK
        exec(compile(ast.parse(block), page.name, "exec"), known)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\((?!https?:)(.*?)\)", text):
        path, _, heading = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), f"{page.name} links to {target}"
        if heading:
            titles = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles]
            assert heading in slugs, f"{page.name} links to {target}"


def is_there(name: str) -> bool:
    """Return whether a dotted name is a module, or something in one."""
    try:
        if find_spec(name) is not None:
            return True
    except ModuleNotFoundError:
        pass  # what stands before the last dot is no package
    module, _, member = name.rpartition(".")
    return hasattr(import_module(module), member)


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=lambda page: page.name
)
def test_what_a_page_names_of_the_package_is_there(page: Path) -> None:
    for name in sorted(set(DOTTED.findall(page.read_text(encoding="utf-8")))):
        assert is_there(name), f"{page.name} names {name}"


def test_a_name_that_is_none_is_found() -> None:
    assert is_there("metricunet.files.rtstruct.read.read_rtstruct")
    assert not is_there("metricunet.files.rtstruct.read_rtstruct")


def test_contributing_names_every_room_in_the_order_of_imports() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = text[text.index("| room |") : text.index("Beside the package")]
    cells = [line.split("|")[1] for line in table.splitlines() if line.startswith("|")]
    named = [frozenset(re.findall(r"`(\w+?)(?:\.py|/)?`", cell)) for cell in cells]
    rank = {room: k for k, rooms in enumerate(named) for room in rooms}
    contracts = PROJECT["tool"]["importlinter"]["contracts"]
    (contract,) = [c for c in contracts if c.get("containers") == ["metricunet"]]
    layers = [[room.strip(" ()") for room in layer.split("|")] for layer in reversed(contract["layers"])]
    ranks = [{rank[room] for room in layer} for layer in layers]
    assert all(len(found) == 1 for found in ranks)
    assert [min(found) for found in ranks] == sorted({min(found) for found in ranks})
    rooms = {
        path.stem
        for path in (ROOT / "src" / "metricunet").iterdir()
        if path.suffix == ".py" or (path / "__init__.py").is_file()
    }
    assert rooms - {"__init__", "__main__"} <= set(rank)
