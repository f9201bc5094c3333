"""The file of a ledger: made, brought up to date as a whole, refused where it is another, sound after kills."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from metricunet.errors import InputError
from metricunet.ledger import Ledger
from metricunet.ledger.schema import APPLICATION_ID, MIGRATIONS
from metricunet.ledger.store import bring_up_to_date
from metricunet.ledger.table import count_rows, read_rows
from tests.ledger.support import fill, write_many

MANY = 10**6


def raw(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path, isolation_level=None)


def version_1(path: Path) -> None:
    """A ledger as the first version of its tables left it, with a row in each of them."""
    with closing(raw(path)) as db:
        bring_up_to_date(db, path, MIGRATIONS[:1])
        db.execute("INSERT INTO models VALUES (1, 'm', '1.0', 'abc')")
        db.execute("INSERT INTO scanners VALUES (1, 'ACME', 'One', 'B30f')")
        db.execute("INSERT INTO cases VALUES (1, 's', 'p', 1, 1, 'pass', 'none', '[]', NULL, '2030')")
        db.execute("INSERT INTO decisions VALUES (1, 1, 'r', 1, 'accepted', '', 'Bo', '2030', 1.0, '2030')")
        db.execute(f"INSERT INTO edits VALUES (1, 'prostate', {', '.join(['1.0'] * 17)})")


def tables(path: Path) -> list[tuple[object, ...]]:
    with closing(raw(path)) as db:
        names = [row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")]
        return [(name, *row) for name in names for row in db.execute(f"SELECT * FROM {name} ORDER BY 1")]


def test_it_is_made_for_its_owner_alone(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "new" / "ledger.sqlite")
    assert ledger.key
    if os.name == "posix":
        assert stat.S_IMODE(ledger.path.stat().st_mode) == 0o600
        assert stat.S_IMODE(ledger.path.parent.stat().st_mode) == 0o700
    with ledger.reading() as db:
        assert db.execute("PRAGMA journal_mode").fetchone()[0] == "wal"


def test_a_ledger_of_version_1_keeps_its_rows(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    version_1(path)
    before = tables(path)
    ledger = Ledger(path)
    assert tables(path) == before  # the tables of the queue are there, and empty
    assert [row["reviewer"] for row in read_rows(ledger)] == ["Bo"]
    with ledger.reading() as db:
        assert db.execute("PRAGMA user_version").fetchone()[0] == len(MIGRATIONS)
        assert count_rows(db, "jobs") == 0
    Ledger(path)
    assert tables(path) == before


@pytest.mark.parametrize("die", ["raise ZeroDivisionError", "os.kill(os.getpid(), signal.SIGKILL)"])
@pytest.mark.parametrize("after", [0, 1, 3, len(MIGRATIONS[1])])
def test_a_migration_that_is_stopped_changes_nothing(tmp_path: Path, die: str, after: int) -> None:
    path = tmp_path / "ledger.sqlite"
    version_1(path)
    before = tables(path)
    code = f"""
import os, signal, sqlite3
from pathlib import Path
from metricunet.ledger.schema import MIGRATIONS
from metricunet.ledger.store import bring_up_to_date
class Dying(tuple):
    def __iter__(self):
        for k, one in enumerate(tuple.__iter__(self)):
            if k == {after}:
                {die}
            yield one
        {die}
db = sqlite3.connect({str(path)!r}, isolation_level=None)
bring_up_to_date(db, Path("x"), (MIGRATIONS[0], Dying(MIGRATIONS[1])))
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode != 0
    assert "ZeroDivisionError" in ended.stderr or ended.returncode == -signal.SIGKILL
    assert tables(path) == before
    with closing(raw(path)) as db:
        assert db.execute("PRAGMA user_version").fetchone()[0] == 1
    assert len(read_rows(Ledger(path))) == 1


def test_an_older_program_refuses_a_newer_ledger_and_leaves_it_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    Ledger(path)
    with closing(raw(path)) as db:
        db.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    before = path.read_bytes()
    for create in (True, False):
        with pytest.raises(InputError, match=r"newer metricunet .* update metricunet"):
            Ledger(path, create=create)
    assert path.read_bytes() == before


def test_what_is_no_ledger_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    other, text = tmp_path / "other.sqlite", tmp_path / "text.sqlite"
    with closing(raw(other)) as db:
        db.execute("CREATE TABLE mine (x)")
    text.write_text("no database at all, but long enough to be looked at " * 9)
    for path, words in ((other, "of another program"), (text, "no ledger")):
        before = path.read_bytes()
        for create in (True, False):
            with pytest.raises(InputError, match=words):
                Ledger(path, create=create)
        assert path.read_bytes() == before
    with pytest.raises(InputError, match="is a folder"):
        Ledger(tmp_path)
    with pytest.raises(InputError, match="no such ledger"):
        Ledger(tmp_path / "missing", create=False)
    assert not (tmp_path / "missing").exists()


def test_a_file_that_a_killed_process_left_empty_is_made_a_ledger(tmp_path: Path) -> None:
    (tmp_path / "ledger.sqlite").touch()
    assert read_rows(Ledger(tmp_path / "ledger.sqlite")) == []
    with closing(raw(tmp_path / "ledger.sqlite")) as db:
        assert db.execute("PRAGMA application_id").fetchone()[0] == APPLICATION_ID


def test_processes_that_write_at_once_lose_nothing(tmp_path: Path) -> None:
    path, each = tmp_path / "ledger.sqlite", 12
    command = [sys.executable, "-m", "tests.ledger.support", str(path)]
    writers = [subprocess.Popen([*command, str(100 * k), str(each)], stderr=subprocess.PIPE) for k in range(3)]
    write_many(path, 1000, each)
    assert [(writer.communicate()[1], writer.returncode) for writer in writers] == [(b"", 0)] * 3
    rows = read_rows(Ledger(path))
    assert sorted(row["case"] for row in rows) == sorted(
        f"scan{first + k}" for first in (0, 100, 200, 1000) for k in range(each)
    )
    assert {(row["dice"], row["structure"]) for row in rows} == {(0.5, "prostate")}


def test_a_writer_that_is_killed_leaves_whole_decisions(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    ledger, seen = Ledger(path), 0
    for first in (0, MANY):
        command = [sys.executable, "-m", "tests.ledger.support", str(path), str(first), str(MANY)]
        with subprocess.Popen(command) as writer:
            try:
                while len(read_rows(ledger)) < seen + 3:
                    assert writer.poll() is None
            finally:
                writer.kill()
        rows = read_rows(ledger)
        assert len(rows) >= seen + 3
        # A case without its decision may be the last one: they are two transactions. An edit is with its decision.
        assert all(row["structure"] == "prostate" for row in rows if row["decision"])
        assert sum(row["decision"] is None for row in rows) <= 2
        seen = len(rows)
        with ledger.reading() as db:
            assert db.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
            assert db.execute("PRAGMA foreign_key_check").fetchall() == []


def test_where_nobody_can_write_it_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "medium"
    ledger = Ledger(folder / "ledger.sqlite")
    fill(ledger, 3)
    folder.chmod(0o500)
    try:
        assert len(read_rows(Ledger(ledger.path, create=False))) == 3
    finally:
        folder.chmod(0o700)


def test_a_copy_whose_last_changes_would_be_passed_over_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    medium = tmp_path / "medium"
    medium.mkdir()
    with ledger.reading() as db:  # while somebody reads, what is written stays in the file beside
        assert count_rows(db, "cases") == 0
        fill(ledger, 3)
        for suffix in ("", "-wal"):
            shutil.copy(f"{ledger.path}{suffix}", medium)
    copy = medium / "ledger.sqlite"
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda *arguments: False)
        with pytest.raises(InputError, match=r"last changes are in ledger.sqlite-wal"):
            read_rows(Ledger(copy, create=False))
    assert len(read_rows(Ledger(copy, create=False))) == 3


def test_a_full_disk_is_said_plainly(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    fill(ledger, 3)
    with pytest.raises(InputError, match="disk is full"), ledger.writing() as db:
        db.execute("PRAGMA max_page_count = 1")  # as SQLite has it where no page can be had
        for k in range(1000):
            db.execute("INSERT INTO models (name, version, sha256) VALUES (?, '', ?)", ("x" * 2000, str(k)))
    assert len(read_rows(ledger)) == 3


def test_one_that_is_held_by_another_for_too_long_is_said_plainly(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite", patience_s=0.01)
    with (
        Ledger(ledger.path).writing(),
        pytest.raises(InputError, match="written by another process"),
        ledger.writing(),
    ):
        pass
