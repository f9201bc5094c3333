"""The ledger's file: opened, brought up to date, and changed in whole transactions by any number of processes."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path

from metricunet.errors import InputError
from metricunet.ledger.keys import Key, restored
from metricunet.ledger.schema import APPLICATION_ID, MIGRATIONS

#: Another process that writes is waited for so long.
PATIENCE_S = 10.0
#: Switching to the journal that many processes share does not wait by itself; it is asked for so often.
PAUSE_S = 0.02
#: What SQLite says where its file is no file of SQLite's, or is damaged.
NO_DATABASE = ("file is not a database", "malformed", "unsupported file format")


class Ledger:
    """A ledger's file. The object may be shared by threads, and each process makes its own.

    Every change is one transaction: after a kill it has happened as a whole or not at all.

    Args:
        path: of the file. It is made, for its owner alone, where it is missing; so is its folder.
        create: whether a missing file is made. Where not, the file is only read, and may lie where nobody can
            write.
        patience_s: how long to wait for another process that writes.

    Raises:
        InputError: no ledger, one of a newer program, or one that cannot be read or written.

    Example:
        ledger = Ledger(Path("ledger.sqlite"))
        with ledger.writing() as db:
            db.execute("UPDATE ...")
    """

    def __init__(self, path: Path, *, create: bool = True, patience_s: float = PATIENCE_S) -> None:
        self.path, self.patience_s, self._create = path, patience_s, create
        self._open = threading.local()
        self._key: Key | None = None
        if create:
            with self._explained():
                _make_file(path)
                with closing(self._connect()) as db:
                    _check_known(db, path)  # first, for what is not ours stays as it is
                    self._share(db)
                    bring_up_to_date(db, path)
        else:
            if not path.is_file():
                raise InputError(f"{path}: no such ledger; give the file that metricunet review has written")
            with self.reading() as db:
                _check_known(db, path)

    def __repr__(self) -> str:
        return f"Ledger({str(self.path)!r})"

    @property
    def key(self) -> Key:
        """The key of its hashes, made at first use. One that another process has begun since is not noticed.

        Raises:
            InputError: as `current_key`.
        """
        return self._key or self.current_key()

    def current_key(self) -> Key:
        """Return the key of its hashes, read anew, for a process that may outlive a `metricunet ledger rekey`.

        Raises:
            InputError: the key is not the one that the ledger's hashes were made with, or others can read it.
        """
        with self.writing() as db:
            fingerprint = _last_fingerprint(db)
            if fingerprint is not None:
                Key.take_over(self.path, fingerprint)  # where a process was killed before it could
            key = Key.beside(self.path, create=fingerprint is None)
            if fingerprint not in (None, key.fingerprint):
                raise InputError(
                    f"{key.path}: is not the key that {self.path.name} was written with, so patients would "
                    f"get other hashes; {restored(self.path)}"
                )
            if fingerprint is None:
                _note_key(db, key)
        self._key = key
        return key

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """Open a transaction that changes the ledger; it is undone where the block raises.

        Within a block of the same thread it is the transaction of that block, so that several steps become one.

        Raises:
            InputError: the disk is full or may not be written, or another process held the ledger for too long.
        """
        outer: sqlite3.Connection | None = getattr(self._open, "writing", None)
        if outer is not None:
            yield outer
            return
        with self._explained(), closing(self._connect()) as db:
            db.execute("BEGIN IMMEDIATE")
            self._open.writing = db
            try:
                yield db
                db.execute("COMMIT")
            except BaseException:
                self._key = None  # what was noted of it may be undone
                if db.in_transaction:
                    db.execute("ROLLBACK")
                raise
            finally:
                self._open.writing = None

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Open a transaction that sees the ledger as it is at its first statement, whoever writes meanwhile.

        Raises:
            InputError: the file cannot be read.
        """
        outer: sqlite3.Connection | None = getattr(self._open, "writing", None)
        if outer is not None:
            yield outer
            return
        with self._explained(), closing(self._connect()) as db:
            db.execute("BEGIN")
            yield db

    def new_key(self) -> Key:
        """Begin to hash with a new key, which replaces the one beside the ledger.

        Rows that are there keep their hashes, and no later row can be joined to them.

        Raises:
            InputError: the key or the ledger cannot be written.
        """
        with self.writing() as db:
            fingerprint = _last_fingerprint(db)
            if fingerprint is not None:
                Key.take_over(self.path, fingerprint)
            key = Key.following(self.path)
            _note_key(db, key)
        # Not before the ledger knows it: were the change undone, the key that it needs would be gone. Should this
        # process be killed here, the next one to need the key does it.
        Key.take_over(self.path, key.fingerprint)
        self._key = key
        return key

    def overwrite_deleted(self) -> None:
        """Let nothing of what was deleted stay in the ledger's files.

        Raises:
            InputError: the ledger cannot be written, or another process reads it all the time.
        """
        with self._explained(), closing(self._connect()) as db:
            db.execute("VACUUM")
            (is_busy, *_) = db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if is_busy:
            raise InputError(
                f"{self.path}: what was to be deleted is deleted, but another process reads the ledger all the "
                f"time, so {self.path.name}-wal may still hold it; run the command again when it has ended"
            )

    def _connect(self) -> sqlite3.Connection:
        # sqlite3 would open a transaction by itself unless told not to.
        db = sqlite3.connect(self._address(), uri=True, timeout=self.patience_s, isolation_level=None)
        try:
            db.row_factory = sqlite3.Row
            db.execute("PRAGMA foreign_keys = ON")
            # A commit that was acknowledged outlives a power cut, too.
            db.execute("PRAGMA synchronous = FULL")
            # What is deleted is overwritten, not only forgotten.
            db.execute("PRAGMA secure_delete = ON")
            if not self._create:
                db.execute("SELECT count(*) FROM sqlite_master").fetchone()
        except sqlite3.Error:
            db.close()
            raise
        return db

    def _address(self) -> str:
        address = self.path.resolve().as_uri()
        if self._create:
            return f"{address}?mode=rw"
        # Where nobody can write, nobody does; and SQLite could not make the file by which readers know of writers.
        writable = os.access(self.path.parent, os.W_OK) or os.path.lexists(f"{self.path}-shm")
        journal = Path(f"{self.path}-wal")
        if not writable and journal.is_file() and journal.stat().st_size:
            raise InputError(
                f"{self.path}: its last changes are in {journal.name} alone, which is not read where nobody can "
                "write; copy both files into a folder that you can write to, and give that copy"
            )
        return f"{address}?mode=ro" if writable else f"{address}?mode=ro&immutable=1"

    def _share(self, db: sqlite3.Connection) -> None:
        """Use the journal with which readers and a writer do not wait for each other."""
        end = time.monotonic() + self.patience_s
        while True:
            try:
                if db.execute("PRAGMA journal_mode").fetchone()[0] == "wal":
                    return
                db.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > end:
                    raise
                time.sleep(PAUSE_S)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.IntegrityError:
            raise  # a defect of the caller
        except sqlite3.Error as error:
            raise InputError(f"{self.path}: {_in_words(str(error))}") from error
        except OSError as error:
            raise InputError(f"{self.path}: the ledger cannot be written ({error.strerror or error})") from error


def bring_up_to_date(
    db: sqlite3.Connection, path: Path, migrations: tuple[tuple[str, ...], ...] = MIGRATIONS
) -> None:
    """Carry out the migrations that a ledger lacks, all of them in one transaction.

    Args:
        db: connection that opens no transactions by itself.
        path: of the ledger, for messages.
        migrations: those that the program knows.

    Raises:
        InputError: the ledger is of a newer program, or the file is none.
    """
    if _check_known(db, path, len(migrations)) == len(migrations):
        return
    db.execute("BEGIN IMMEDIATE")
    try:
        version = _check_known(db, path, len(migrations))  # another process may have been faster
        for statements in migrations[version:]:
            for statement in statements:
                db.execute(statement)
        db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        db.execute(f"PRAGMA user_version = {len(migrations)}")
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


def now() -> str:
    """Return this moment as the ledger writes it."""
    return stamp(datetime.now(UTC))


def stamp(moment: datetime) -> str:
    """Return a moment as the ledger writes it: in UTC, with milliseconds, so that text sorts by time.

    Args:
        moment: with its time zone.
    """
    return moment.astimezone(UTC).isoformat(timespec="milliseconds")


def _last_fingerprint(db: sqlite3.Connection) -> str | None:
    """Return what tells the key that is in use; None where none was made yet."""
    row = db.execute("SELECT fingerprint FROM keys ORDER BY id DESC LIMIT 1").fetchone()
    return None if row is None else str(row[0])


def _note_key(db: sqlite3.Connection, key: Key) -> None:
    db.execute("INSERT INTO keys (fingerprint, since) VALUES (?, ?)", (key.fingerprint, now()))


def _check_known(db: sqlite3.Connection, path: Path, known: int = len(MIGRATIONS)) -> int:
    """Return the version of a ledger, 0 for an empty file; refuse what this program does not know."""
    (application,) = db.execute("PRAGMA application_id").fetchone()
    (version,) = db.execute("PRAGMA user_version").fetchone()
    (tables,) = db.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if application != APPLICATION_ID and (application or version or tables):
        raise InputError(
            f"{path}: is a database of another program, expected a ledger of metricunet; choose another"
        )
    if version > known:
        raise InputError(
            f"{path}: was written by a newer metricunet (version {version} of its tables, this program knows "
            f"{known}); update metricunet, or choose another ledger. Nothing was changed"
        )
    return int(version)


def _make_file(path: Path) -> None:
    """Make an empty file that its owner alone can read, where there is none."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except FileExistsError:
        if path.is_dir():
            raise InputError(f"{path}: is a folder, expected the file of a ledger; name a file in it") from None


def _in_words(message: str) -> str:
    if any(words in message for words in NO_DATABASE):
        return f"is no ledger of metricunet, or is damaged ({message}); choose another, or restore it from a copy"
    if "readonly" in message or "read-only" in message:
        return "the ledger cannot be written, for it is read-only; choose another with more rights"
    if "full" in message or "disk I/O" in message:
        return f"the ledger cannot be written, for the disk is full or fails ({message}); free some space"
    if "locked" in message or "busy" in message:
        return "the ledger is being written by another process all the time; try again when it has ended"
    return f"the ledger cannot be used ({message})"
