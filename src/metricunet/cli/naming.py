"""How messages name an argument for a user of the command line."""

from __future__ import annotations

from typing import Any

from metricunet.errors import Naming, as_python

#: Arguments of Python functions that are not called as the parameter of the command which they come from.
PARAMETERS = {
    "formats": "format_",
    "loggers": "logger",
    "models": "model",
    "settings": "set_",
    "tolerance_mm": "tolerance",
    "tolerances_mm": "tolerance",
}


def flags_of(commands: dict[str, Any], called: str | None) -> Naming:
    """Return how messages name an argument for a user of the command line: by the flag of the called command.

    An argument that this command lacks is named by the flag of one that has it, after that command's name.

    Args:
        commands: all commands by their names.
        called: name of the one that was called; None for none.
    """
    parameters = {name: {p.name: p for p in command.params} for name, command in commands.items()}
    order = [*filter(None, [called]), *commands]

    def flag(name: str, value: object = None) -> str:
        for command in order:
            parameter = parameters[command].get(PARAMETERS.get(name, name))
            if parameter is not None and parameter.opts[0].startswith("-"):
                words = [] if command == called else [command]
                words.append(parameter.opts[0])
                if value is not None and value is not True:
                    words.append(",".join(map(str, value)) if isinstance(value, list | tuple) else str(value))
                return " ".join(words)
        return as_python(name, value)

    return flag
