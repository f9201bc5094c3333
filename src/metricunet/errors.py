"""The one error that is meant for the user's eyes.

Anything wrong with what the user gave (a file, a folder, a setting) raises `InputError`. The command line
prints its message as one line and ends with status 2; everything else is a defect of this package. Where many
cases are worked on, either costs its own case alone: see `told`.
"""

from __future__ import annotations

#: A message of a library may be a page long.
LONGEST_MESSAGE = 300


class InputError(ValueError):
    """Bad input. The message names the file and field, what was found, what was expected, and what to do."""


def told(error: BaseException) -> str:
    """Return what went wrong in one line: the words of an `InputError`, or the kind and words of anything else."""
    words = " ".join(str(error).split())
    if isinstance(error, InputError):
        return words
    if isinstance(error, MemoryError):
        return "there is not enough memory for it on this machine"
    short = words if len(words) <= LONGEST_MESSAGE else f"{words[:LONGEST_MESSAGE]} ..."
    return f"an unexpected {type(error).__name__} stopped it" + (f": {short}" if short else "")


def beyond(value: float, *limits: float, digits: int = 3) -> str:
    """Write a number that lies beyond a limit with digits enough that it does not read like the limit.

    Args:
        value: what was found.
        limits: what the message says is accepted, as it is written there.
        digits: the fewest significant digits.
    """
    texts = (f"{value:.{n}g}" for n in range(digits, 18))
    return next(
        (text for text in texts if all(float(text) != limit or value == limit for limit in limits)), repr(value)
    )
