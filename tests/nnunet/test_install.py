"""The module in nnU-Net's folder of trainers: written, found, removed. A folder stands in for nnU-Net."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from metricunet.errors import InputError
from metricunet.nnunet import install as installing
from metricunet.nnunet.install import FOLDER, MODULE, install, uninstall


@pytest.fixture
def trainers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of the trainers of an nnU-Net 2.8 that is installed."""
    folder = tmp_path / "nnunetv2" / "training" / "nnUNetTrainer"
    folder.mkdir(parents=True)
    (tmp_path / "nnunetv2" / "__init__.py").touch()
    monkeypatch.setattr(installing, "version", lambda name: "2.8.1")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    return folder


def loaded(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("found", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_module_is_written_again_and_removed(trainers: Path) -> None:
    path = install()
    assert path == trainers / "nnUNetTrainerVoxelMetric.py"
    assert install() == path
    assert path.read_text() == MODULE.read_text()
    assert uninstall() == path
    assert uninstall() is None
    assert list(trainers.iterdir()) == []


def test_the_module_imports_nothing_until_one_of_its_trainers_is_asked_for() -> None:
    module = loaded(MODULE)
    assert not hasattr(module, "nnUNetTrainerDA5")
    assert [path.name for path in FOLDER.glob("*.py")] == [MODULE.name]
    if importlib.util.find_spec("nnunetv2") is None:
        with pytest.raises(ModuleNotFoundError, match=r"metricunet\[nnunet\]"):
            getattr(module, module.TRAINERS[0])


def test_a_module_of_somebody_else_is_left_alone(trainers: Path) -> None:
    foreign = trainers / "nnUNetTrainerVoxelMetric.py"
    foreign.write_text("mine = 1\n")
    for action in (install, uninstall):
        with pytest.raises(InputError, match="was not written by this program"):
            action()
    assert foreign.read_text() == "mine = 1\n"


def test_other_versions_and_none_are_named(trainers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installing, "version", lambda name: "2.5.1")
    with pytest.raises(InputError, match=r"nnU-Net 2\.5\.1 is installed"):
        install()
    monkeypatch.undo()
    if importlib.util.find_spec("nnunetv2") is None:
        with pytest.raises(InputError, match=r'pip install "metricunet\[nnunet\]"'):
            install()
