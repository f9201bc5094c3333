"""The folder of a node's state: where everything lies, for its owner alone. No name in it tells of a patient."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path

from metricunet.cohort.importing.privacy import UID
from metricunet.errors import InputError
from metricunet.files.atomic import sync_folder, written_whole

OWNER_ALONE = 0o700
TOKEN_BYTES = 32
#: What counts as a token is as long as those that are made here: 43 characters for 32 bytes.
_TOKEN = re.compile(r"[!-~]{43,}")


@dataclass(frozen=True)
class State:
    """Paths in the folder of state.

    Attributes:
        folder: that holds all.
    """

    folder: Path

    @property
    def receiving(self) -> Path:
        """Objects of which not every byte has come."""
        return self.folder / "receiving"

    @property
    def arriving(self) -> Path:
        """A folder for each series that is not whole."""
        return self.folder / "arriving"

    @property
    def scans(self) -> Path:
        """A folder for each case, with its DICOM files."""
        return self.folder / "scans"

    @property
    def predictions(self) -> Path:
        """What was predicted and reviewed, as in the folder of `metricunet predict`."""
        return self.folder / "predictions"

    @property
    def log(self) -> Path:
        """A file of JSON lines for each day."""
        return self.folder / "log"

    @property
    def ledger(self) -> Path:
        """The queue and the journal."""
        return self.folder / "ledger.sqlite"

    @property
    def claim(self) -> Path:
        """Says which process serves here."""
        return self.folder / ".claim.json"

    def make(self) -> None:
        """Make the folders that are missing, for their owner alone; drop what had only half come in.

        Raises:
            InputError: others can look into the folder, or it cannot be made.
        """
        try:
            for one in (self.folder, self.receiving, self.arriving, self.scans, self.predictions, self.log):
                one.mkdir(mode=OWNER_ALONE, parents=True, exist_ok=True)
            if stat.S_IMODE(self.folder.stat().st_mode) & 0o077:
                raise InputError(f"{self.folder}: can be read by others; run chmod 700 {self.folder}")
            for left in self.receiving.iterdir():
                left.unlink(missing_ok=True)
            sync_folder(self.folder)
        except OSError as error:
            raise InputError(f"{self.folder}: cannot be made or written ({error.strerror or error})") from error

    def free_bytes(self) -> int:
        """Return how many bytes are free on the disk of the folder."""
        return shutil.disk_usage(self.folder).free

    def token(self, name: str) -> str:
        """Return a secret of the node, from a file that its owner alone can read; made at first use.

        Args:
            name: what it is for: `pages`, `stow` or `metrics`.

        Raises:
            InputError: the file holds no token, or cannot be read or made.
        """
        path = self.folder / f"{name}.token"
        if not path.exists():
            _write_token(path)
        try:
            found = path.read_bytes().decode("ascii", "replace").strip()
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error
        if not _TOKEN.fullmatch(found):
            raise InputError(
                f"{path}: holds no token, expected 43 printable characters or more; delete it, and the next start "
                "makes a new one"
            )
        return found


def _write_token(path: Path) -> None:
    with written_whole(path) as temporary:
        temporary.unlink(missing_ok=True)  # of a process that was killed
        with os.fdopen(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as handle:
            handle.write(f"{secrets.token_urlsafe(TOKEN_BYTES)}\n")


def without_identifiers(text: str) -> str:
    """Return a sentence for logs and the ledger: one line, without UIDs of DICOM, which stand for patients."""
    return " ".join(UID.sub("(UID)", text).split())
