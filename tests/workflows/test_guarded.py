"""Secrets that are compared with what somebody says they are."""

from __future__ import annotations

from metricunet.workflows.guarded import equal


def test_a_secret_is_what_was_said_to_the_letter() -> None:
    assert equal("sesame", "sesame")
    assert not equal("Sesame", "sesame")
    assert not equal("\udcff", "sesame")


def test_nothing_is_no_secret() -> None:
    assert not equal("", "sesame")
    assert not equal("", "")
