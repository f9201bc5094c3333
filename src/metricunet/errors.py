"""The one error that is meant for the user's eyes, and how its messages name what the user can change.

Anything wrong with what the user gave (a file, a folder, a setting) raises `InputError`. The command line
prints its message as one line and ends with status 2; everything else is a defect of this package. Where many
cases are worked on, either costs its own case alone: see `told`.
"""

from __future__ import annotations

import errno
import os
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

Error = TypeVar("Error", bound=BaseException)

#: A message of a library may be a page long.
LONGEST_MESSAGE = 300

#: What libraries say where memory does not suffice and their error is of no kind of its own: torch of the
#: machine's memory, torch and its libraries of a GPU's, and onnxruntime.
WORDS_OF_MEMORY = (
    "DefaultCPUAllocator: ",
    "out of memory",
    "_ALLOC_FAILED",
    "Failed to allocate memory",
    "bad_alloc",
)

#: Numbers of the errors by which a system refuses a path or a disk, whatever the program does.
REFUSALS = frozenset(
    {
        errno.EACCES,
        errno.EDQUOT,
        errno.EIO,
        errno.ELOOP,
        errno.ENAMETOOLONG,
        errno.ENOSPC,
        errno.ENOTDIR,
        errno.EPERM,
        errno.EROFS,
        errno.ESTALE,
    }
)

#: Writes an argument of a Python function, and its value unless that is None, as the user at hand knows it.
Naming = Callable[[str, object], str]


class InputError(ValueError):
    """Bad input. The message names the file and field, what was found, what was expected, and what to do."""


class WorkerDied(RuntimeError):  # noqa: N818 - it is what happened
    """The process that worked on a task was killed, or its machine was lost. The message says how often."""


def as_python(name: str, value: object = None) -> str:
    """Write an argument as in a call in Python: `overwrite`, or `overwrite=True`."""
    return name if value is None else f"{name}={value!r}"


_naming: Naming = as_python


def argument(name: str, value: object = None) -> str:
    """Name an argument in a message, as whoever reads the message gives it.

    Users of Python read `formats`, or `formats=['nifti']`; those of the command line read `--format`, or
    `--format nifti`, within `arguments_named`.

    Args:
        name: of the parameter of the Python function that was called.
        value: what the argument should be or was; None leaves it out.
    """
    return _naming(name, value)


@contextmanager
def arguments_named(naming: Naming) -> Iterator[None]:
    """Let the messages of this process, in every thread, name arguments in another way while this is open."""
    global _naming
    before, _naming = _naming, naming
    try:
        yield
    finally:
        _naming = before


def told(error: BaseException) -> str:
    """Return what went wrong in one line: the words of our own errors, or the kind and words of anything else."""
    words = " ".join(str(error).split())
    if isinstance(error, InputError | WorkerDied):
        return words
    short = words if len(words) <= LONGEST_MESSAGE else f"{words[:LONGEST_MESSAGE]} ..."
    if is_out_of_memory(error):
        return "there is not enough memory for it on this machine" + (f" ({short})" if short else "")
    return f"an unexpected {type(error).__name__} stopped it" + (f": {short}" if short else "")


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether memory did not suffice, the machine's or a GPU's."""
    if isinstance(error, InputError | WorkerDied):
        return False
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    # torch has its own error for a GPU alone, and must not be imported for the sake of a message.
    said = str(error)
    return type(error).__name__ == "OutOfMemoryError" or any(words in said for words in WORDS_OF_MEMORY)


def refused_by_system(error: BaseException) -> InputError | None:
    """Return what to tell of a path that the system refuses, as where a permission is missing.

    Doors tell of what they open themselves; this is for the many places that only look whether something is there.

    Returns:
        None for every other error.
    """
    if not isinstance(error, OSError) or error.errno not in REFUSALS or not error.filename:
        return None
    path = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else str(error.filename)
    return InputError(
        f"{path}: the system refuses it ({error.strerror}); check its name, its permissions and the disk that it "
        "lies on"
    )


def without_frames(error: Error) -> Error:
    """Let go of what the functions held that an error went through: scans, networks, memory of a GPU.

    For an error that is kept. Its traceback still names every line, and so do those of its causes. Functions that
    have not returned yet keep what they hold.
    """
    seen: set[int] = set()
    left: list[BaseException | None] = [error]
    while left:
        one = left.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        traceback.clear_frames(one.__traceback__)
        left += [one.__cause__, one.__context__]
    return error


def unlike_limits(value: float, *limits: float, digits: int = 3) -> str:
    """Write a number that is not within limits with as many digits as it takes to read unlike them.

    Args:
        value: the number that was found.
        limits: the limits that the message names, as they are written there.
        digits: the smallest number of significant digits.
    """
    texts = (f"{value:.{n}g}" for n in range(digits, 18))
    return next(
        (text for text in texts if all(float(text) != limit or value == limit for limit in limits)), repr(value)
    )
