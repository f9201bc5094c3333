"""Which structures were contoured in which case: `contoured.json` beside `dataset.json`.

A label file cannot say why it holds nothing of a structure. *Absent*: somebody looked, and there is none. *Not
contoured*: nobody drew it, so it may be anywhere in the background. Where the second happens a cohort holds
`contoured.json`, an object of case to the structures of which its labels speak, whether they hold any or not:

    {"case_a": ["prostate", "bladder"], "case_b": ["bladder"]}

A case that is not in it, and every case of a cohort without it, was contoured in full. nnU-Net overlooks the file.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from metricunet.errors import InputError
from metricunet.files.json_file import read_json

CONTOURED_NAME = "contoured.json"


def read_not_contoured(folder: Path, labels: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Return the structures that were not contoured, by case; cases contoured in full are left out.

    Args:
        folder: the folder of the cohort; it need not hold a contoured.json.
        labels: the structures of dataset.json, in their order.

    Raises:
        InputError: not such a file, or a structure that dataset.json does not name.
    """
    path = folder / CONTOURED_NAME
    if not path.is_file():
        return {}
    content = read_json(path)
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected an object of case to structures; found {type(content).__name__}")
    known = tuple(labels)
    missing: dict[str, tuple[str, ...]] = {}
    for case, structures in content.items():
        if not isinstance(structures, list) or not all(isinstance(name, str) for name in structures):
            raise InputError(f"{path}: case {case} needs a list of structures; found {structures!r}")
        for name in structures:
            if name not in known:
                raise InputError(
                    f"{path}: case {case} names structure {name!r}; dataset.json has {', '.join(known)}"
                )
        if rest := tuple(name for name in known if name not in structures):
            missing[case] = rest
    return missing


def contoured_content(contoured: Mapping[str, Iterable[str]]) -> dict[str, list[str]]:
    """Return what `contoured.json` holds."""
    return {case: list(structures) for case, structures in contoured.items()}
