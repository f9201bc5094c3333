"""What every layout offers: cases that are not read yet, and what is known of them without reading."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from metricunet.cohort.importing.privacy import hashed
from metricunet.volume import Volume

#: What a source says of a structure in a case. `contoured`: there is a mask. `absent`: the source speaks of every
#: voxel and none is of it. `not contoured`: nothing was drawn. `unusable`: something was, and cannot be used.
RegionStatus = Literal["contoured", "absent", "not contoured", "unusable"]
CohortPart = Literal["Tr", "Ts"]


@dataclass(frozen=True)
class Named:
    """A structure of one case, as its source names it.

    Attributes:
        spelling: the name in the source, as it is spelled there.
        location: the file and the structure in it, for messages.
        drawn: False where the source names the structure but holds no contour of it.
        key: the value by which the source finds the structure.
        file: the file that holds it; None where all structures of a case lie in one file.
    """

    spelling: str
    location: str
    drawn: bool = True
    key: Any = None
    file: Path | None = None


@dataclass(frozen=True, eq=False)
class Region:
    """A structure as read: its mask on the scan's grid, or the reason why there is none."""

    named: Named
    status: RegionStatus
    mask: NDArray[np.bool_] | None = None
    reason: str = ""
    notes: tuple[str, ...] = ()


class SourceCase(ABC):
    """A scan that may become a case.

    Attributes:
        identity: the name or UID by which its source knows it.
        origin: a text that tells it from a case of another source with the same identity; empty where the identity
            is unique in the world.
        patient: a hash that tells patients apart.
        location: its file or folder, for messages.
        structures: the structures that its source names for it.
        files: all files that it is read from.
        split: `Tr` to train on, `Ts` to keep for testing.
        notes: a sentence for each oddity of the case.
    """

    identity: str
    origin: str = ""
    patient: str
    location: str
    structures: tuple[Named, ...]
    files: tuple[Path, ...]
    split: CohortPart = "Tr"
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The case's name in the cohort: 12 hex digits."""
        return hashed(self.origin, self.identity) if self.origin else hashed(self.identity)

    @abstractmethod
    def read_image(self) -> Volume:
        """Read the scan in HU.

        Raises:
            InputError: it cannot be read.
        """

    @abstractmethod
    def read_regions(self, wanted: Sequence[Named], image: Volume) -> Iterator[Region]:
        """Read structures, in the order asked for, on the scan's grid.

        Raises:
            InputError: a file that cannot be read or does not fit the scan.
        """


@dataclass(frozen=True)
class LeftOut:
    """What does not become a case, and why.

    Attributes:
        what: an identifier, or a file.
        reason: one line.
        refused: it failed a check, rather than that nothing in it was asked for.
        files: how many it consists of.
        error: what stopped it, where nobody foresaw it.
        words: more of the reason, which may be personal: for the terminal, and for no file of the cohort.
    """

    what: str
    reason: str
    refused: bool = True
    files: int = 1
    error: Exception | None = None
    words: str = ""

    @property
    def said(self) -> str:
        """The reason as the user at hand is told it."""
        return f"{self.reason}: {self.words}" if self.words else self.reason


@dataclass
class Found:
    """What a folder holds.

    Attributes:
        layout: name of the folder's layout.
        cases: cases that may be imported.
        left_out: what cannot be imported, with the reason.
        loose: structures that are named in files without a scan; they are listed, never imported.
        trained_on: what the source says of itself, such as `synthetic`.
        notes: what a user of the cohort has to know.
        structures: what is imported without a names file, in the order of the labels, where the source has fixed
            names of its own.
        withdrawn: names of cases that the source held once and takes back: those of an earlier import are removed.
    """

    layout: str
    cases: list[SourceCase] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    loose: list[Named] = field(default_factory=list)
    trained_on: str | None = None
    notes: list[str] = field(default_factory=list)
    structures: tuple[str, ...] = ()
    withdrawn: frozenset[str] = frozenset()
