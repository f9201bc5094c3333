"""What a machine does not see is said before any work."""

from __future__ import annotations

from pathlib import Path

import pytest

from metricunet.engine import Engine
from metricunet.errors import InputError


def test_what_a_machine_does_not_see_is_said_before_any_work(
    ray_engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model").write_bytes(b"weights")
    ray_engine.check_folders(tmp_path / "new" / "out", [tmp_path / "model", tmp_path])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]
    ray_engine.check_folders(None, [tmp_path / "model"])
    with monkeypatch.context() as patch:
        patch.setattr("metricunet.engine.folders.version", lambda name: "0.0.1")  # here alone
        with pytest.raises(InputError, match=r"^machine \S+ has metricunet .*, and this one has 0\.0\.1; install"):
            ray_engine.check_folders(None, [])
    # A path that is another one for each process, as one that machines do not share.
    expected = r"/proc/self/cmdline: machine \S+ sees another one; every machine must see it by this path"
    with pytest.raises(InputError, match=expected):
        ray_engine.check_folders(tmp_path, [Path("/proc/self/cmdline")])
    gone = tmp_path / "gone"
    monkeypatch.setattr("metricunet.engine.folders._seen", lambda path: "as if it were here")
    with pytest.raises(InputError, match=r"gone: machine \S+ sees none; every machine must see it by this path"):
        ray_engine.check_folders(tmp_path, [gone])
