"""Keyed hashes: patients, scans and series are known again by them, and nobody without the key can guess whose.

A patient's number is so short that a plain hash can be undone by trying all numbers. So the hash takes a key,
which lies beside the ledger, for its owner alone. Without the key the hashes still tell who is the same, but
nobody can find a patient's rows any more, and new rows cannot be joined to them.
"""

from __future__ import annotations

import glob
import hashlib
import hmac
import os
import secrets
import stat
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from metricunet.errors import InputError
from metricunet.files.atomic import sync_folder

#: The key's file is called as the ledger, and this.
KEY_SUFFIX = ".key"
KEY_BYTES = 32
#: Hex digits of a hash: no two of a billion patients share one, but by a chance of 1 in 10^11.
DIGITS = 24


@dataclass(frozen=True)
class Key:
    """A key and the file that holds it, in hex digits.

    Attributes:
        path: of the file.
        secret: the key; not shown.
    """

    path: Path
    secret: bytes = field(repr=False)

    @staticmethod
    def beside(ledger: Path, create: bool = True) -> Key:
        """Return the key beside a ledger; it is made where there is none, by one of several that come at once.

        Args:
            ledger: path of the ledger.
            create: whether a missing key is made; not where the ledger has hashes of another one.

        Raises:
            InputError: the file is missing or holds no key, or others than its owner can read it, or it cannot be
                made.
        """
        path = _path(ledger)
        try:
            if not os.path.lexists(path):
                if not create:
                    raise InputError(
                        f"{path}: the key that {ledger.name} was written with is gone, so patients would get "
                        f"other hashes; {restored(ledger)}"
                    )
                _make(path)
            mode = stat.S_IMODE(path.stat().st_mode)
            if os.name == "posix" and mode & 0o077:
                raise InputError(
                    f"{path}: others than its owner can read this key (mode {mode:04o}, expected 0600); "
                    f"run chmod 600 {path}"
                )
            text = path.read_text(encoding="ascii").strip()
            secret = bytes.fromhex(text)
        except OSError as error:
            raise InputError(f"{path}: the key cannot be read or made ({error.strerror or error})") from error
        except ValueError as error:
            if isinstance(error, InputError):
                raise
            secret = b""
        if len(secret) != KEY_BYTES:
            raise InputError(f"{path}: holds no key ({2 * KEY_BYTES} hex digits expected); put the key back")
        return Key(path, secret)

    @staticmethod
    def following(ledger: Path) -> Key:
        """Make the key that is to follow the one beside a ledger, which stays in its place until `take_over`.

        Until then it lies in a file of its own, so that a process killed at any moment loses neither of the two.
        Such keys of before, which have not taken over, are removed.

        Args:
            ledger: path of the ledger.

        Raises:
            InputError: it cannot be made.
        """
        key = Key(_path(ledger), secrets.token_bytes(KEY_BYTES))
        try:
            named = f"{glob.escape(_path(ledger).name)}-{'[0-9a-f]' * DIGITS}"
            for left in ledger.parent.glob(named):  # by a change that was undone
                left.unlink(missing_ok=True)
            _write(_path_of_following(ledger, key.fingerprint), key.secret)
            sync_folder(ledger.parent)
        except OSError as error:
            raise InputError(f"{key.path}: no other key can be made ({error.strerror or error})") from error
        return key

    @staticmethod
    def take_over(ledger: Path, fingerprint: str) -> None:
        """Put the key that follows in the place of the one beside a ledger; without such a key, do nothing.

        Args:
            ledger: path of the ledger.
            fingerprint: of the key that follows.

        Raises:
            InputError: the folder cannot be written.
        """
        following, path = _path_of_following(ledger, fingerprint), _path(ledger)
        if not os.path.lexists(following):
            return
        try:
            with suppress(FileNotFoundError):  # another process was faster
                os.replace(following, path)
        except OSError as error:
            raise InputError(
                f"{path}: the new key, {following.name}, cannot take its place ({error.strerror or error}); "
                "move it there"
            ) from error

    @property
    def fingerprint(self) -> str:
        """What tells this key from others, and nothing of it."""
        return self.hashed("fingerprint")

    def hashed(self, kind: str, *parts: str) -> str:
        """Return the keyed hash (HMAC-SHA256) of what identifies somebody or something, in hex digits.

        Args:
            kind: of what it identifies, such as `patient`; equal parts of two kinds have two hashes.
            parts: in an order that matters.
        """
        # Each part with its length, so that no two lists of parts are written alike.
        texts = [part.encode("utf-8", "surrogatepass") for part in (kind, *parts)]
        message = b"".join(len(text).to_bytes(8, "big") + text for text in texts)
        return hmac.new(self.secret, message, hashlib.sha256).hexdigest()[:DIGITS]


def restored(ledger: Path) -> str:
    """Say what to do where the key of a ledger is not there.

    The ledger is named, for without its name the command takes the user's own, whose key it would replace.

    Args:
        ledger: path of the ledger.
    """
    return f'put that key back, or begin anew with metricunet ledger rekey "{ledger.absolute()}"'


def _path(ledger: Path) -> Path:
    return ledger.with_name(f"{ledger.name}{KEY_SUFFIX}")


def _path_of_following(ledger: Path, fingerprint: str) -> Path:
    return ledger.with_name(f"{ledger.name}{KEY_SUFFIX}-{fingerprint}")


def _make(path: Path) -> None:
    """Write a new key, whole or not at all; that of a faster process stays."""
    temporary = path.with_name(f".partial-{os.getpid()}-{secrets.token_hex(4)}")
    try:
        _write(temporary, secrets.token_bytes(KEY_BYTES))
        try:
            os.link(temporary, path)  # unlike a rename, it replaces nothing
        except FileExistsError:
            pass
        except OSError:  # a file system without hard links
            if not os.path.lexists(path):
                os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def _write(path: Path, secret: bytes) -> None:
    """Write a key into a new file that its owner alone can read."""
    with os.fdopen(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as handle:
        handle.write(f"{secret.hex()}\n")
        handle.flush()
        os.fsync(handle.fileno())
