"""The identifiers and the date of a DICOM object that is written: drawn at random, or made from what it holds."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from pydicom.uid import UID, generate_uid


@dataclass(frozen=True)
class Identity:
    """Where the UIDs of a DICOM object come from, and when it was made.

    Attributes:
        source: what the UIDs are derived from: equal texts give equal UIDs, others give others. Empty: each UID is
            drawn at random.
        made: date and time of the object; None for now.
    """

    source: tuple[str, ...] = ()
    made: datetime | None = None

    def uid(self, *part: str) -> UID:
        """Return the UID of a part of the object.

        Args:
            part: which part it is, such as "series".
        """
        if not self.source:
            return generate_uid()
        # The lengths keep ("ab", "c") apart from ("a", "bc").
        return generate_uid(entropy_srcs=[f"{len(text)}:{text}" for text in (*self.source, *part)])

    def moment(self) -> datetime:
        """Return the date and time of the object."""
        return self.made or datetime.now()


#: Random UIDs, made now.
RANDOM = Identity()
