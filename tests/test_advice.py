"""Messages name what their reader can change: an argument in Python, an option of the command at hand."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

import metricunet
from metricunet.cli import app, flags_of
from metricunet.cohort.importing import import_cohort, list_names
from metricunet.errors import argument, arguments_named
from metricunet.evaluation.compare import evaluate
from metricunet.inference.case_files import FORMATS
from metricunet.inference.predict import predict
from metricunet.phantom import make_cohort
from metricunet.study.run import study
from metricunet.training.config import load_config
from metricunet.training.fit import train
from metricunet.workflows.bench import bench
from metricunet.workflows.check import check
from metricunet.workflows.convert import convert
from metricunet.workflows.export import export
from metricunet.workflows.review import review
from tests.support.command import Command

ROOT = Path(metricunet.__file__).parent
#: Modules whose messages name arguments, and the commands that reach them.
REACHED_BY = {
    "stages/device.py": ("train", "predict", "bench"),
    "training": ("train",),
    "cohort/importing": ("import",),
    "inference/structure_set.py": ("predict",),
    "inference/inputs.py": ("predict",),
    "inference/predict.py": ("predict",),
    "inference/models.py": ("predict",),
    "evaluation": ("evaluate",),
    "api/compared.py": ("evaluate",),
    "api/training.py": ("train",),
    "inference/case_files.py": ("predict",),
    "workflows/bench": ("bench",),
    "workflows/review": ("review",),
    "phantom/cohort.py": ("phantom",),
    "phantom/workers.py": ("phantom", "train"),
    "files/own.py": ("predict", "evaluate", "import", "phantom"),  # it is told by the others that they have none
    "files/dicom/series.py": ("predict",),
    "workflows/convert.py": ("convert",),
    "workflows/export": ("export",),
    "inference/runtimes.py": ("predict",),
    "inference/onnx_predictor.py": ("predict",),
    "files/dicom/stack.py": ("check", "predict"),
    "engine": ("predict",),
    "study/kept.py": ("study",),
    "study/run.py": ("study",),
}
#: What a message names of another command than those that reach its module.
OF_ANOTHER = {
    ("inference/models.py", "resume"): ("train",),
    ("workflows/review/opened.py", "formats"): ("predict",),
}
#: The folder whose modules are the command line.
COMMAND_LINE = "cli/"
#: What a user of Python calls in place of each command.
CALLS: dict[str, tuple[Callable[..., Any], ...]] = {
    "train": (train, load_config),
    "import": (import_cohort,),
    "predict": (predict,),
    "bench": (bench,),
    "review": (review,),
    "phantom": (make_cohort,),
    "evaluate": (evaluate,),
    "convert": (convert,),
    "export": (export,),
    "check": (check,),
    "study": (study,),
}
#: A function or a layout of its own in Python, an option of a command.
FUNCTIONS = {list_names.__name__, "reviewed"}
#: Not advice: the command lines of other programs, and of ours as it is started.
OF_OTHERS = {
    "workflows/commission/other_programs.py",
    "workflows/bench/predict.py",
    "workflows/bench/train.py",
    "workflows/export/monai_bundle.py",
}
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]+")
COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def modules() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(ROOT.rglob("*.py")):
        module = path.relative_to(ROOT).as_posix()
        if not module.startswith(COMMAND_LINE):
            yield module, ast.parse(path.read_text(encoding="utf-8"))


def named() -> Iterator[tuple[str, str]]:
    """Every argument that a message of the package names: the module and the name."""
    for module, tree in modules():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == argument.__name__:
                assert isinstance(node.args[0], ast.Constant), (
                    f"{module} names an argument that is not written there"
                )
                yield module, str(node.args[0].value)


def reaching(module: str) -> tuple[str, ...]:
    found = [commands for start, commands in REACHED_BY.items() if module.startswith(start)]
    assert found, f"{module} names an argument; which commands reach it?"
    return found[0]


@pytest.mark.parametrize(("module", "name"), sorted(set(named())))
def test_what_a_message_names_is_there_for_its_reader(module: str, name: str) -> None:
    for command in OF_ANOTHER.get((module, name)) or reaching(module):
        taken = [parameter for call in CALLS[command] for parameter in inspect.signature(call).parameters]
        assert name in taken or name in FUNCTIONS, f"no call of {command} has the argument {name}"
        with arguments_named(flags_of(COMMANDS, command)):
            flag = argument(name)
        assert flag in {option for parameter in COMMANDS[command].params for option in parameter.opts}


def test_no_other_text_names_an_option() -> None:
    for module, tree in modules():
        if module in OF_OTHERS:
            continue
        documentation = {
            id(node.body[0].value)
            for node in ast.walk(tree)
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
            and node.body
            and isinstance(node.body[0], ast.Expr)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation:
                found = set(OPTION.findall(node.value)) - ({"--upgrade"} if "pip install" in node.value else set())
                assert not found, f"{module}:{node.lineno} names {found}; use metricunet.errors.argument"


def offers_to_overwrite(node: ast.stmt) -> bool:
    """Tell whether a function takes `overwrite`, and offers it in messages unless that is None."""
    if not isinstance(node, ast.FunctionDef):
        return False
    defaults = zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
    return any(
        one.arg == "overwrite" and isinstance(value, ast.Constant) and value.value is False
        for one, value in defaults
    )


def test_who_has_no_option_to_overwrite_says_so() -> None:
    """Commands such as demo and train call others, whose messages would name an option that they lack."""
    offering = {node.name for _, tree in modules() for node in tree.body if offers_to_overwrite(node)}
    assert {"predict", "evaluate", "evaluate_matched"} <= offering
    for module, tree in modules():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in offering:
                given = [keyword.arg for keyword in node.keywords]
                assert "overwrite" in given, f"{module}:{node.lineno} leaves overwrite to its default; say None"


def test_arguments_are_named_as_their_reader_gives_them() -> None:
    assert argument("formats") == "formats"
    assert argument("formats", ["nifti"]) == "formats=['nifti']"
    assert argument("overwrite", True) == "overwrite=True"
    with arguments_named(flags_of(COMMANDS, "predict")):
        assert argument("formats", ["nifti", "seg"]) == "--format nifti,seg"
        assert argument("models") == "-m"
        assert argument("reruns", 2) == "--reruns 2"
        assert argument("overwrite", True) == "--overwrite"
        assert argument("resume", True) == "train --resume", "an option of another command"
        assert argument("progress") == "progress", "an option of none"
    assert argument("formats") == "formats"


def test_one_message_for_both(metricunet: Command, tmp_path: Path) -> None:
    wrong = metricunet("predict", tmp_path, "-m", tmp_path / "model", "-o", tmp_path / "out", "--format", "dcm")
    known = ", ".join(FORMATS)
    assert wrong.err == f"error: --format must be of {known}; got 'dcm'\n"
    with pytest.raises(ValueError, match=f"^formats must be of {known}; got 'dcm'$"):
        predict([tmp_path], [tmp_path / "model"], tmp_path / "out", formats=["dcm"])
