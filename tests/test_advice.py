"""Advice that names an option: every command that can print it has that option."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

import metricunet
from metricunet.cli import app

ROOT = Path(metricunet.__file__).parent
#: Modules whose messages name options, and the commands that reach them. All others name none, unless they say
#: which command it is of, as in "train --resume".
REACHED_BY = {
    "networks/device.py": ("train", "predict", "study", "bench"),
    "training/config.py": ("train",),
    "cohort/importing": ("import",),
    "inference/structure_set.py": ("predict",),
    "inference/predict.py": ("predict",),
    "inference/case_files.py": ("predict",),
    "workflows/bench": ("bench",),
    "phantom/cohort.py": ("phantom",),
    "files/own.py": ("predict", "evaluate", "import", "phantom"),  # it is told by the others that they have none
    "files/dicom/series.py": ("predict",),
    "files/dicom/stack.py": ("check", "predict"),
}
#: Not advice: the command lines of other programs, of ours as it is started, and what is replaced in a message.
OF_OTHERS = {
    "workflows/commission/other_programs.py",
    "workflows/bench/predict.py",
    "workflows/bench/train.py",
}
#: Stands before any command.
OF_ALL = "--debug"
OPTION = re.compile(r"(?:\b([a-z]+) )?(--[a-z][a-z-]+)")


def options() -> dict[str, set[str]]:
    group = typer.main.get_command(app)
    commands = group.commands  # type: ignore[attr-defined]
    return {name: {o for p in command.params for o in p.opts} for name, command in commands.items()}


def named() -> Iterator[tuple[str, str, str]]:
    """Every option in a text of the package: its module, the word before it, and the option."""
    for path in sorted(ROOT.rglob("*.py")):
        module = path.relative_to(ROOT).as_posix()
        if module in OF_OTHERS or module == "cli.py":
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        documentation = {
            id(node.body[0].value)
            for node in ast.walk(tree)
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
            and node.body
            and isinstance(node.body[0], ast.Expr)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation:
                for word, option in OPTION.findall(node.value):
                    yield module, word, option


@pytest.mark.parametrize(("module", "word", "option"), sorted(set(named())))
def test_the_commands_have_the_option(module: str, word: str, option: str) -> None:
    if (word, option) == ("install", "--upgrade") or option == OF_ALL:
        return  # pip's, or that of every command
    known = options()
    if word in known:
        assert option in known[word]
        return
    reaching = [commands for place, commands in REACHED_BY.items() if module.startswith(place)]
    assert reaching, f"{module} names {option}, and does not say of which command"
    for command in reaching[0]:
        assert option in known[command], f"{command} has no {option}"
