"""Keyed hashes: the same person is known again, with this key alone."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import sqlite3
import stat
import threading
from pathlib import Path

import pytest

from metricunet.errors import InputError
from metricunet.ledger import Ledger, keys, store
from metricunet.ledger.keys import Key


def test_a_hash_is_that_of_the_standard_for_all_time(tmp_path: Path) -> None:
    key = Key(tmp_path / "k", bytes(range(32)))
    parts = [b"patient", b"id", b"", "Ä1".encode()]
    message = b"".join(len(part).to_bytes(8, "big") + part for part in parts)
    assert key.hashed("patient", "id", "", "Ä1") == hmac.new(key.secret, message, hashlib.sha256).hexdigest()[:24]
    assert key.hashed("patient", "id", "", "4711") == "73c950c1ed229bf9e0e27c3e"


def test_only_the_same_parts_of_the_same_kind_have_the_same_hash(tmp_path: Path) -> None:
    key, other = Key(tmp_path, b"a" * 32), Key(tmp_path, b"b" * 32)
    hashes = [
        key.hashed("patient", "ab", "c"),
        key.hashed("patient", "a", "bc"),
        key.hashed("patient", "abc"),
        key.hashed("series", "ab", "c"),
        other.hashed("patient", "ab", "c"),
        key.hashed("patient", "ab", "c", ""),
    ]
    assert len(set(hashes)) == len(hashes)
    assert "a" * 8 not in repr(key)


def test_the_key_is_made_once_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    made: list[Key] = []
    threads = [threading.Thread(target=lambda: made.append(Key.beside(path))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({key.secret for key in made}) == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["ledger.sqlite.key"]
    if os.name == "posix":
        assert stat.S_IMODE(made[0].path.stat().st_mode) == 0o600


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX's")
def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    key = Key.beside(tmp_path / "ledger.sqlite")
    key.path.chmod(0o640)
    with pytest.raises(InputError, match="chmod 600"):
        Key.beside(tmp_path / "ledger.sqlite")


def test_a_lost_key_is_noticed_and_a_new_one_can_be_begun(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    before, content = ledger.key.hashed("patient", "4711"), ledger.key.path.read_bytes()
    ledger.key.path.unlink()
    # The ledger is named: a command without its name would replace the key of the user's own.
    advice = re.escape(f'put that key back, or begin anew with metricunet ledger rekey "{ledger.path}"')
    for _ in range(2):
        with pytest.raises(InputError, match=advice):
            assert Ledger(ledger.path).key
        assert not ledger.key.path.exists()  # nobody takes another one for it
    ledger.key.path.touch(0o600)
    ledger.key.path.write_bytes(content)
    assert Ledger(ledger.path).key.hashed("patient", "4711") == before
    assert Ledger(ledger.path).new_key().hashed("patient", "4711") != before
    assert Ledger(ledger.path).key.hashed("patient", "4711") != before
    ledger.key.path.write_bytes(content)
    with pytest.raises(InputError, match=f"is not the key.*{advice}"):
        assert Ledger(ledger.path).key
    ledger.key.path.write_text("no key")
    with pytest.raises(InputError, match="holds no key"):
        assert Ledger(ledger.path).key


def test_a_transaction_that_is_undone_does_not_lose_the_keys_fingerprint(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")

    def first_use() -> None:
        with ledger.writing():
            assert ledger.key
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        first_use()
    assert ledger.key
    with ledger.reading() as db:
        assert db.execute("SELECT fingerprint FROM keys").fetchone()[0] == ledger.key.fingerprint


def test_a_change_of_the_key_that_fails_leaves_the_old_one_in_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite", patience_s=0.01)
    before = ledger.key
    with Ledger(ledger.path).writing(), pytest.raises(InputError, match="written by another process"):
        ledger.new_key()
    assert Ledger(ledger.path).key == before

    def full() -> str:
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(store, "now", full)
        with pytest.raises(InputError, match="disk is full"):
            ledger.new_key()
    assert Ledger(ledger.path).key == before
    after = ledger.new_key()
    assert after.secret != before.secret
    assert Ledger(ledger.path).key == ledger.key == after
    assert [path.name for path in tmp_path.glob("*.key*")] == ["ledger.sqlite.key"]  # nor is any other secret left


@pytest.mark.parametrize(
    ("owner", "step"), [(keys, "_write"), (store, "_note_key"), (os, "replace")], ids=["write", "note", "replace"]
)
def test_a_change_of_the_key_that_is_killed_leaves_the_key_that_the_ledger_knows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: object, step: str
) -> None:
    class Killed(BaseException):
        pass

    def killed(*_: object) -> None:
        raise Killed

    ledger = Ledger(tmp_path / "ledger.sqlite")
    before = ledger.key
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(owner, step, killed)
        ledger.new_key()
    found = Ledger(ledger.path).key
    assert (found == before) is (step != "replace")
    with ledger.reading() as db:
        known = db.execute("SELECT fingerprint FROM keys ORDER BY id DESC LIMIT 1").fetchone()[0]
    assert found.fingerprint == known


def test_the_key_is_given_whatever_another_thread_forgets_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    key = ledger.key
    monkeypatch.setattr(Ledger, "_key", property(lambda self: None, lambda self, value: None), raising=False)
    assert ledger.key == key
    assert ledger.new_key() is not None


def test_a_key_that_another_process_has_begun_is_the_current_one(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    before = ledger.key
    after = Ledger(ledger.path).new_key()
    assert ledger.key == before
    assert ledger.current_key() == ledger.key == after != before
