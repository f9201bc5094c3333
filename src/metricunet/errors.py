"""The one error that is meant for the user's eyes.

Anything wrong with what the user gave (a file, a folder, a setting) raises `InputError`. The command line
prints its message as one line and ends with status 2; everything else is a defect of this package and may
show a traceback.
"""


class InputError(ValueError):
    """Bad input. The message names the file and field, what was found, what was expected, and what to do."""


def reason_of(error: Exception) -> str:
    """Say in one line what went wrong with one of several cases; of a defect of this package, its kind too."""
    text = " ".join(str(error).split())
    if isinstance(error, InputError):
        return text
    kind = type(error).__name__
    return (
        f"{kind}: {text} (unforeseen; --debug shows where)"
        if text
        else f"{kind} (unforeseen; --debug shows where)"
    )
