"""How the front door takes arguments, and how it says what was wrong with them."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from metricunet.errors import InputError, refused_by_system

#: A path, or several.
Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
P = ParamSpec("P")
R = TypeVar("R")
#: What a damaged file raises, and an `InputError` says.
FORESEEN = (OSError, EOFError, ValueError, zlib.error)


def in_one_line(function: Callable[P, R]) -> Callable[P, R]:
    """Let an `InputError` stand alone where its sentence says all that led to it.

    What nobody foresaw is a fault of this package, and stays beneath the sentence. A path that the system refuses,
    as where a permission is missing, is wrong input as well.
    """

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except InputError as error:
            if _is_foreseen(error.__cause__):
                raise error from None
            raise
        except OSError as error:
            if (refused := refused_by_system(error)) is not None:
                raise refused from None
            raise

    return call


def _is_foreseen(cause: BaseException | None) -> bool:
    while isinstance(cause, FORESEEN):  # an InputError, which is a ValueError, among them
        cause = cause.__cause__
    return cause is None


def several(names: str | Sequence[str]) -> list[str]:
    """Return the names that were given as one or as several."""
    return [names] if isinstance(names, str) else list(names)


def listed(paths: Any) -> tuple[Path, ...]:
    """Return the paths that were given as one or as several.

    Raises:
        InputError: They are none.
    """
    if isinstance(paths, str | os.PathLike):
        return (Path(paths),)
    if not isinstance(paths, Sequence) or not all(isinstance(path, str | os.PathLike) for path in paths):
        raise InputError(f"expected a path, or a list of them; got {type(paths).__name__}")
    return tuple(Path(path) for path in paths)
