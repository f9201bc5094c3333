"""The one error that is meant for the user's eyes.

Anything wrong with what the user gave (a file, a folder, a setting) raises `InputError`. The command line
prints its message as one line and ends with status 2; everything else is a defect of this package and may
show a traceback.
"""


class InputError(ValueError):
    """Bad input. The message names the file and field, what was found, what was expected, and what to do."""
