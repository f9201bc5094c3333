"""Puts a module into nnU-Net's folder of trainers, by which it finds those of this package, and removes it."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from metricunet.errors import InputError
from metricunet.files.atomic import write_text

EXTRA = 'pip install "metricunet[nnunet]"'
#: Oldest nnU-Net whose trainers and loggers these trainers fit, and the first that they were not tried with.
OLDEST, NEWER = (2, 8), (3, 0)
#: The folder that the environment variable nnUNet_extTrainer may name.
FOLDER = Path(__file__).parent / "found_by_name"
MODULE = FOLDER / "nnUNetTrainerVoxelMetric.py"
#: Tells our module from somebody else's of the same name.
MARK = "Written by `metricunet nnunet install`"


def install() -> Path:
    """Write the module into nnU-Net, and return its path.

    Raises:
        InputError: nnU-Net is missing, of another version, or cannot be written; or somebody else's module is
            there.
    """
    path = _target()
    _refuse_foreign(path)
    try:
        write_text(path, MODULE.read_text(encoding="utf-8"))
    except InputError as error:
        raise InputError(f"{error}; without writing there, set nnUNet_extTrainer={FOLDER}") from error
    return path


def uninstall() -> Path | None:
    """Remove the module from nnU-Net, and return its path; None where there is none.

    Raises:
        InputError: nnU-Net is missing, the module is somebody else's, or it cannot be removed.
    """
    path = _target()
    if not path.exists():
        return None
    _refuse_foreign(path)
    try:
        path.unlink()
    except OSError as error:
        raise InputError(f"{path}: cannot be removed ({error.strerror})") from error
    return path


def _target() -> Path:
    # Its version comes from the package's metadata, since importing nnU-Net takes seconds.
    try:
        found = version("nnunetv2")
        spec = find_spec("nnunetv2")
    except PackageNotFoundError as error:
        raise InputError(f"nnU-Net is not installed in this environment; run: {EXTRA}") from error
    numbers = tuple(int(part) for part in found.split(".")[:2] if part.isdecimal())
    if not OLDEST <= numbers < NEWER:
        raise InputError(f"nnU-Net {found} is installed; these trainers are for 2.8 and later 2.x: {EXTRA}")
    assert spec is not None
    folder = Path(next(iter(spec.submodule_search_locations or []), "")) / "training" / "nnUNetTrainer"
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; expected nnU-Net's trainers there, so reinstall nnunetv2")
    return folder / MODULE.name


def _refuse_foreign(path: Path) -> None:
    if path.exists() and MARK not in path.read_text(encoding="utf-8", errors="replace"):
        raise InputError(f"{path}: was not written by this program; move it elsewhere")
