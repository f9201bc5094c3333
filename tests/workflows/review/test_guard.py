"""Who is let in to a review, and what is said to everybody else."""

from __future__ import annotations

import pytest

from metricunet.workflows.review.guard import Guard
from tests.workflows.review.conftest import HOST, PORT, Browser, Enter, Predicted, guarded

PATHS = ("/", "/review.js", "/api/cases", "/api/cases/flipped", "/api/cases/flipped/mask?review=0")


def stranger(guard: Guard, **headers: str) -> Browser:
    return Browser(guard, **headers)


@pytest.mark.parametrize("path", PATHS)
def test_nothing_is_shown_without_the_cookie(predicted: Predicted, path: str) -> None:
    guard = guarded(predicted.folder)
    answer = stranger(guard).get(path)
    assert answer.status_code == 401
    assert "flipped" not in answer.text
    assert stranger(guard, cookie=f"{guard.cookie}=guessed").get(path).status_code == 401
    assert stranger(guard).get(path, params={"token": "guessed"}).status_code == 401


def test_the_token_works_once_and_gives_a_cookie_that_scripts_and_other_sites_do_not_get(
    predicted: Predicted,
) -> None:
    guard = guarded(predicted.folder)
    first = stranger(guard)
    answer = first.get(f"/?token={guard.token}")
    assert answer.status_code == 200
    assert guard.token not in answer.text
    stated = answer.headers["set-cookie"]
    assert stated.startswith(f"metricunet-review-{PORT}=")
    assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= {part.strip() for part in stated.split(";")}
    assert guard.token not in stated
    assert first.get("/api/cases").status_code == 200
    assert first.get("/").status_code == 200  # a reload
    assert stranger(guard).get(f"/?token={guard.token}").status_code == 401


def test_the_token_is_taken_at_the_front_door_alone(predicted: Predicted) -> None:
    guard = guarded(predicted.folder)
    assert stranger(guard).get(f"/api/cases?token={guard.token}").status_code == 401
    assert stranger(guard, origin=f"http://{HOST}").post(f"/?token={guard.token}").status_code == 401


@pytest.mark.parametrize(
    "host", ["example.org", f"example.org:{PORT}", "127.0.0.1", "127.0.0.1:1", "[::1]:8123", ""]
)
def test_a_name_that_was_made_to_point_here_is_refused(predicted: Predicted, enter: Enter, host: str) -> None:
    answer = enter(predicted.folder).get("/api/cases", headers={"host": host})
    assert answer.status_code == 421
    assert f"http://{HOST} alone" in answer.text
    assert "flipped" not in answer.text


@pytest.mark.parametrize("origin", [None, "null", "http://example.org", "http://127.0.0.1:1", f"https://{HOST}"])
def test_a_change_must_come_from_the_page(predicted: Predicted, enter: Enter, origin: str | None) -> None:
    client = enter(predicted.folder)
    del client.headers["origin"]
    headers = {} if origin is None else {"origin": origin}
    answer = client.post("/api/cases/flipped/reviews", content=b"", headers=headers)
    assert answer.status_code == 403
    assert not list(predicted.folder.glob("*.reviewed*"))


def test_requests_that_a_browser_calls_those_of_another_site_are_refused(
    predicted: Predicted, enter: Enter
) -> None:
    client = enter(predicted.folder)
    for path in PATHS[1:]:
        assert client.get(path, headers={"sec-fetch-site": "cross-site"}).status_code == 403
    assert client.get("/api/cases", headers={"sec-fetch-site": "same-origin"}).status_code == 200
    assert client.ask("PUT", "/api/cases").status_code == 405


def test_every_answer_lets_the_page_load_from_here_alone(predicted: Predicted, enter: Enter) -> None:
    client = enter(predicted.folder)
    for path in ("/", "/review.js", "/api/cases", "/nothing"):
        headers = client.get(path).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "script-src 'self';" in policy
        assert "connect-src 'self';" in policy
        assert "http" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cache-control"] == "no-store"


def test_a_fault_of_the_program_is_one_line(predicted: Predicted, monkeypatch: pytest.MonkeyPatch) -> None:
    guard = guarded(predicted.folder)
    client = stranger(guard)
    client.get(f"/?token={guard.token}")

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("of a kind that nobody foresaw")

    monkeypatch.setattr("metricunet.workflows.review.desk.read_cases", broken)
    answer = client.get("/api/cases")
    assert answer.status_code == 500
    assert answer.json() == {"error": "an unexpected RuntimeError stopped it: of a kind that nobody foresaw"}
    assert "content-security-policy" in answer.headers


@pytest.mark.parametrize("odd", ['seen={"a": "b c"}', "no pair", "=", 'x="', "a,b@c;d=[1"])
def test_cookies_of_other_servers_on_this_machine_shut_nobody_out(predicted: Predicted, odd: str) -> None:
    guard = guarded(predicted.folder)
    own = stranger(guard).get(f"/?token={guard.token}").headers["set-cookie"].partition(";")[0]
    for given in (f"{odd}; {own}", f"{own}; {odd}", f"{guard.cookie}=old; {own}"):
        assert stranger(guard, cookie=given).get("/api/cases").status_code == 200
    for given in (f"{odd}; x{own}", f"{own}x", f"{guard.cookie}="):
        assert stranger(guard, cookie=given).get("/api/cases").status_code == 401


def test_browsers_leave_the_usual_port_out() -> None:
    async def nothing(*_: object) -> None:
        raise AssertionError("nobody is let in")

    asked = stranger(Guard(nothing, 80))
    for host, status in (("127.0.0.1", 401), ("localhost", 401), ("127.0.0.1:80", 401), ("example.org", 421)):
        assert asked.get("/", headers={"host": host}).status_code == status
