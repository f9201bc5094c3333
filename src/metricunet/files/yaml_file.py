"""YAML files that people wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from metricunet.errors import InputError
from metricunet.files.text_file import read_text

#: Values that a file may stand for, each alias counted as all that it names: nine lines can name 10 to the ninth.
MOST_VALUES = 100_000


def read_yaml(path: Path) -> Any:
    """Read a YAML file of one document.

    Raises:
        InputError: not readable, not Unicode (see `read_text`), not YAML, aliases that stand for more than any
            setting needs, or a key that occurs twice: the second would replace the first without a word.
    """
    try:
        reader = yaml.SafeLoader(read_text(path))
        try:
            node = reader.get_single_node()
            if node is not None and _values(node, {}) > MOST_VALUES:
                raise ValueError(f"its aliases stand for more than {MOST_VALUES} values")
            if node is not None:
                _check_keys(node, set())
            return None if node is None else reader.construct_document(node)
        finally:
            reader.dispose()
    # ValueError: numbers and dates that are none; RecursionError: nesting beyond any use, or an alias of itself.
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; expected a YAML file") from error
    except IsADirectoryError as error:
        raise InputError(f"{path}: is a folder; expected a YAML file") from error
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"{path}: not a readable YAML file ({reason})") from error


def _values(node: yaml.Node, known: dict[int, int]) -> int:
    """Count a node and all below it, aliases written out."""
    if id(node) not in known:
        below: list[yaml.Node] = []
        if isinstance(node, yaml.SequenceNode):
            below = node.value
        elif isinstance(node, yaml.MappingNode):
            below = [part for pair in node.value for part in pair]
        known[id(node)] = 1 + sum(_values(part, known) for part in below)
    return known[id(node)]


def _check_keys(node: yaml.Node, seen: set[int]) -> None:
    """Refuse a key that occurs twice in one table, here or below."""
    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for part in node.value:
            _check_keys(part, seen)
    elif isinstance(node, yaml.MappingNode):
        keys: set[str] = set()
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in keys:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"{key.value!r} occurs twice; join the two", key.start_mark
                    )
                keys.add(key.value)
            _check_keys(value, seen)
