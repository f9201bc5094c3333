"""The commands on a ledger."""

from __future__ import annotations

from pathlib import Path

from metricunet.files.claim import claimed
from metricunet.ledger import Ledger
from metricunet.workflows.serve.state import State
from tests.ledger.support import fill
from tests.support.command import Command


def test_commands_on_a_ledger(metricunet: Command, tmp_path: Path) -> None:
    path, table = tmp_path / "ledger.sqlite", tmp_path / "out.csv"
    for command in (["show"], ["export", "-o", table], ["prune", "--keep", "3d"], ["rekey"]):
        ended = metricunet("ledger", *command, path)
        assert ended.status == 2
        assert "no such ledger" in ended.err
        assert not path.exists()
    ledger = Ledger(path)
    assert ledger.key
    assert "No case" in metricunet("ledger", "show", path).out
    fill(ledger, 45)
    said = metricunet("ledger", "show", path).out
    assert "45 cases, 45 decided: 30 accepted, 15 corrected, 0 rejected" in said
    assert "apex 100 %" in said
    assert all(len(line) <= 140 for line in said.splitlines())
    assert "of the first 10 cases" in metricunet("ledger", "show", path, "--baseline", 10).out.splitlines()[-3]
    assert "45 rows" in metricunet("ledger", "export", path, "-o", table).out
    assert "reader" not in table.read_text()
    before = table.read_text()
    kept = metricunet("ledger", "export", path, "-o", table, "--people")
    assert (kept.status, kept.err) == (
        2,
        f"error: {table}: is there already; choose another name for the table, or replace it with --overwrite\n",
    )
    assert table.read_text() == before
    assert metricunet("ledger", "export", path, "-o", table, "--people", "--overwrite").status == 0
    assert "reader 7" in table.read_text()
    assert metricunet("ledger", "export", path, "-o", path).status == 2
    assert "reviewer and reason of 45 decisions" in metricunet("ledger", "prune", path, "--keep", "30d").out
    assert "no length of time" in metricunet("ledger", "prune", path, "--keep", "soon").err
    assert "is a new key" in metricunet("ledger", "rekey", path).out


def test_odd_inputs_of_the_commands_on_a_ledger_are_told_in_a_line(metricunet: Command, tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    key = ledger.key
    fill(ledger, 3)
    (tmp_path / "link.csv").symlink_to(key.path)
    for name in ("ledger.sqlite", "ledger.sqlite.key", "link.csv"):
        ended = metricunet("ledger", "export", ledger.path, "-o", tmp_path / name, "--overwrite")
        assert (ended.status, ended.err.count("\n")) == (2, 1)
        assert "is a file of the ledger itself" in ended.err
    assert Ledger(ledger.path).key == key
    ended = metricunet("ledger", "show", ledger.path, "--structure", "prostata")
    assert (ended.status, ended.err.count("\n")) == (2, 1)
    assert "no edit of 'prostata'; choose one of prostate" in ended.err
    assert "prostate changed" in metricunet("ledger", "show", ledger.path, "--structure", "prostate").out


def test_the_key_is_not_changed_under_a_node(metricunet: Command, tmp_path: Path) -> None:
    state = State(tmp_path / "state")
    ledger = Ledger(state.ledger)
    before = ledger.key
    (tmp_path / "link.sqlite").symlink_to(state.ledger)
    with claimed(state.claim, "metricunet serve"):
        for path in (state.ledger, tmp_path / "link.sqlite"):
            ended = metricunet("ledger", "rekey", path)
            assert ended.status == 2
            assert f"{state.folder}: metricunet serve or another rekey is going on here already" in ended.err
    assert Ledger(state.ledger).key == before
    assert metricunet("ledger", "rekey", state.ledger).status == 0
    assert Ledger(state.ledger).key != before
    assert not state.claim.exists()
