"""The node's web server: who may ask what, STOW-RS in, metrics and health."""

from __future__ import annotations

import asyncio
import errno
import itertools
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset

from metricunet.errors import InputError
from metricunet.workflows.serve.config import NodeConfig, Web
from metricunet.workflows.serve.gate import Gate
from metricunet.workflows.serve.journal import Journal
from metricunet.workflows.serve.multipart import Parts, TooLarge, boundary_of
from metricunet.workflows.serve.node import Node
from metricunet.workflows.serve.state import State
from metricunet.workflows.serve.web import address_of, create_node_app
from tests.support.dicom_series import Written, write_series
from tests.workflows.serve.conftest import Clock

PORT = 8125
HERE = f"http://127.0.0.1:{PORT}"
PROXY = "10.0.0.5"
KIND = 'multipart/related; type="application/dicom"; boundary=xyz'


class Site:
    """A node's web server, asked without a network."""

    def __init__(self, node: Node) -> None:
        self.node = node
        assert node.config.web is not None
        self.gate = Gate(create_node_app(node), node.config.web, PORT, node.state, node.journal)

    def ask(self, method: str, path: str, client: str = "127.0.0.1", **more: Any) -> httpx.Response:
        async def answer() -> httpx.Response:
            transport = httpx.ASGITransport(self.gate, client=(client, 1234))
            base = more.pop("base", HERE)
            async with httpx.AsyncClient(transport=transport, base_url=base) as asking:
                return await asking.request(method, path, **more)

        return asyncio.run(answer())

    def enter(self) -> dict[str, str]:
        """The cookie of a browser that has opened the address with the token."""
        opened = self.ask("GET", f"/?token={self.gate.tokens['pages']}")
        assert opened.status_code == 200
        assert {"HttpOnly", "SameSite=Strict"} <= set(opened.headers["set-cookie"].split("; "))
        return {"cookie": opened.headers["set-cookie"].partition(";")[0]}

    def stow(
        self, *objects: bytes, path: str = "/studies", token: str | None = None, **more: Any
    ) -> httpx.Response:
        body = b"".join(b"\r\n--xyz\r\nContent-Type: application/dicom\r\n\r\n" + one for one in objects)
        headers = {"content-type": KIND, "authorization": f"Bearer {token or self.gate.tokens['stow']}"}
        headers |= more.pop("headers", {})
        return self.ask("POST", path, content=more.get("content", body + b"\r\n--xyz--\r\n"), headers=headers)


@pytest.fixture
def site(tmp_path: Path) -> Callable[..., Site]:
    def opened(**settings: Any) -> Site:
        (tmp_path / "model").write_bytes(b"not looked into")
        web = {
            "port": PORT,
            "proxy": {"addresses": PROXY, "origin": "https://node.example.org"},
            "users": [{"name": "anna", "roles": "look"}, {"name": "bert", "roles": ["look", "send"]}],
        }
        content = {"state": tmp_path / "state", "model": [tmp_path / "model"], "rules": [{"name": "any"}]}
        limits = {"free_disk_gb": 0, "object_mb": 0.1, "slices": 10}
        config = NodeConfig.model_validate({**content, "web": web, "limits": limits, **settings})
        state = State(config.state)
        state.make()
        return Site(Node(tmp_path / "node.yaml", config, Journal(state.log, None)))

    return opened


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    def named(k: int, dataset: Dataset) -> None:
        dataset.PatientName = "Secret^Name"

    return write_series(tmp_path_factory.mktemp("ct"), shape=(4, 4, 4), edit=named)


def test_without_a_token_nothing_is_shown_or_taken(site: Callable[..., Site]) -> None:
    here = site()
    for method, path in (
        ("GET", "/"),
        ("GET", "/api/cases"),
        ("GET", "/node"),
        ("GET", "/metrics"),
        ("POST", "/studies"),
    ):
        answer = here.ask(method, path, headers={"origin": HERE})
        assert answer.status_code == 401, path
        assert answer.headers["content-security-policy"].startswith("default-src 'none'")
    assert here.ask("GET", "/?token=guess").status_code == 401
    assert here.ask("GET", "/health").json() == {"status": "no worker for cpu"}
    assert here.stow(token=here.gate.tokens["metrics"]).status_code == 401


def test_the_token_opens_the_pages(site: Callable[..., Site]) -> None:
    here = site()
    cookie = here.enter()
    found = here.ask("GET", "/api/cases", headers=cookie).json()
    assert (found["cases"], found["reviewer"]) == ([], "local")
    assert "Queue" in here.ask("GET", "/node", headers=cookie).text
    assert here.ask("GET", "/review.js", headers=cookie).status_code == 200


def test_a_user_counts_only_from_the_proxy(site: Callable[..., Site]) -> None:
    here = site()
    base = "https://node.example.org"

    def ask(user: str, client: str, method: str = "GET", path: str = "/api/cases") -> int:
        headers = {"x-forwarded-user": user, "origin": base}
        return here.ask(method, path, client, base=base, headers=headers).status_code

    assert ask("anna", PROXY) == 200
    assert ask("anna", "127.0.0.1") == 401  # forged
    assert ask("eve", PROXY) == 401
    assert ask("anna", PROXY, "POST", "/api/cases/x/reviews") == 403
    assert ask("anna", PROXY, "POST", "/api/node/x/send") == 403
    assert ask("bert", PROXY, "POST", "/api/node/x/send") == 400  # he may, but there is no such case
    twice = [("x-forwarded-user", "eve"), ("x-forwarded-user", "anna")]
    assert here.ask("GET", "/api/cases", PROXY, base=base, headers=twice).status_code == 401
    also = {"x-forwarded-user": "anna", "x-forwarded-for": PROXY}
    assert here.ask("GET", "/api/cases", "10.9.9.9", base=base, headers=also).status_code == 401


def test_a_user_is_known_by_letters_beyond_ascii(site: Callable[..., Site]) -> None:
    base = "https://node.example.org"
    proxy = {"addresses": PROXY, "origin": base}
    here = site(web={"port": PORT, "proxy": proxy, "users": [{"name": "müller", "roles": "look"}]})
    for name, status in (("müller".encode(), 200), ("müller".encode("latin-1"), 200), (b"mueller", 401)):
        headers = [(b"x-forwarded-user", name)]
        answer = here.ask("GET", "/api/cases", PROXY, base=base, headers=headers)
        assert answer.status_code == status
        assert status == 401 or answer.json()["reviewer"] == "müller"


def test_foreign_sites_hosts_and_paths_are_refused(site: Callable[..., Site]) -> None:
    here = site()
    cookie = here.enter()
    assert here.ask("GET", "/api/cases", headers=cookie, base=f"http://evil.example:{PORT}").status_code == 421
    assert (
        here.ask("POST", "/api/node/x/send", headers={**cookie, "origin": "http://evil.example"}).status_code
        == 403
    )
    assert here.ask("POST", "/api/node/x/send", headers=cookie).status_code == 403
    assert here.ask("GET", "/api/cases", headers={**cookie, "sec-fetch-site": "cross-site"}).status_code == 403
    assert here.ask("DELETE", "/api/cases", headers=cookie).status_code == 405
    secret = here.node.state.folder / "pages.token"
    for path in (
        "/..%2fpages.token",
        "/%2e%2e/pages.token",
        "/api/cases/..%2F..%2Fpages",
        "/api/node/..%2Fx/send",
    ):
        answer = here.ask("GET", path, headers=cookie)
        assert answer.status_code in (400, 404), path
        assert secret.read_text().strip() not in answer.text


def test_objects_come_in_by_stow(site: Callable[..., Site], written: Written) -> None:
    here = site()
    objects = [path.read_bytes() for path in written.files]
    assert here.stow(*objects).status_code == 200
    (job,) = here.node.arrivals.gather(at_once=True)
    assert (job.sender, job.files, job.state) == ("stow", 4, "waiting")
    assert here.stow(objects[0], b"rubbish" * 50).status_code == 202
    assert here.stow(objects[0], path="/studies/1.2.3").status_code == 409
    assert not any(here.node.state.receiving.iterdir())


def test_a_sender_by_stow_is_told_which_objects_are_well_and_which_are_not(
    site: Callable[..., Site], written: Written
) -> None:
    # Orthanc takes a request for failed whose answer does not list as many objects as it has sent.
    here = site(rules=[{"name": "ours", "description": "Becken*"}])
    objects = [path.read_bytes() for path in written.files]
    uids = [str(pydicom.dcmread(path).SOPInstanceUID) for path in written.files]

    def listed(answer: httpx.Response, tag: str) -> list[tuple[list[str], list[int]]]:
        items = answer.json().get(tag, {"vr": "SQ", "Value": []})["Value"]
        return [
            (item.get("00081155", {}).get("Value", []), item.get("00081197", {}).get("Value", []))
            for item in items
        ]

    unwanted = here.stow(*objects)  # no rule takes it, and the sender need not try again
    assert (unwanted.status_code, listed(unwanted, "00081199")) == (200, [([uid], []) for uid in uids])
    here = site()
    well = here.stow(*objects)
    assert (well.status_code, listed(well, "00081199")) == (200, [([uid], []) for uid in uids])
    assert not {"00081198", "0008119A"} & set(well.json())
    item = well.json()["00081199"]["Value"][0]
    assert item["00081150"] == {"vr": "UI", "Value": ["1.2.840.10008.5.1.4.1.1.2"]}
    some = here.stow(objects[0], b"rubbish" * 50)
    assert (some.status_code, listed(some, "00081199")) == (202, [([uids[0]], [])])
    assert (listed(some, "0008119A"), listed(some, "00081198")) == ([([], [0xC000])], [])
    another = here.stow(objects[0], path="/studies/1.2.3")
    assert (another.status_code, listed(another, "00081198")) == (409, [([uids[0]], [0xC000])])
    assert "00081199" not in another.json()


def test_odd_bodies_are_refused(
    site: Callable[..., Site], written: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("metricunet.workflows.serve.web.MOST_PARTS", 10)
    here = site()
    one = written.files[0].read_bytes()
    assert here.stow(one, headers={"content-type": "application/json"}).status_code == 400
    assert here.stow(content=b"--xyz\r\n\r\n" + one).status_code == 400  # broken off
    assert here.stow(content=b"x" * 20000).status_code == 400
    assert here.stow(content=b"--xyz\r\nX: " + b"y" * 20000).status_code == 400
    assert here.stow(b"x" * 200_000).status_code == 413
    assert here.stow(*([b"x"] * 11)).status_code == 413
    assert here.ask("POST", "/studies/../node", headers={"authorization": "Bearer x"}).status_code in (
        401,
        403,
        404,
    )
    assert not any(here.node.state.receiving.iterdir())


def test_a_request_may_bring_more_than_one_series(site: Callable[..., Site], tmp_path: Path) -> None:
    here = site()  # which takes 10 slices of a series
    series = [write_series(tmp_path / name, shape=(6, 4, 4)) for name in ("one", "two")]
    assert here.stow(*(path.read_bytes() for one in series for path in one.files)).status_code == 200
    assert [job.files for job in here.node.arrivals.gather(at_once=True)] == [6, 6]


def test_a_disk_that_gets_full_meanwhile_is_said(
    site: Callable[..., Site], written: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Parts, chunk: bytes) -> list[Path]:
        raise OSError(errno.ENOSPC, "No space left on device")

    here = site()
    monkeypatch.setattr(Parts, "feed", full)
    assert here.stow(written.files[0].read_bytes()).status_code == 503
    assert here.node.arrivals.connections == 0


def test_a_full_disk_is_said(site: Callable[..., Site], written: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    here = site()
    monkeypatch.setattr(State, "free_bytes", lambda self: -1)
    assert here.stow(written.files[0].read_bytes()).status_code == 503


def test_metrics_and_queue_name_no_patient(site: Callable[..., Site], written: Written) -> None:
    here = site(destinations=[{"name": "pacs", "ae_title": "PACS", "host": "127.0.0.1", "port": 104}])
    here.stow(*(path.read_bytes() for path in written.files))
    here.node.arrivals.gather(at_once=True)
    said = here.ask("GET", "/metrics", headers={"authorization": f"Bearer {here.gate.tokens['metrics']}"}).text
    assert 'metricunet_jobs{state="waiting"} 1' in said
    assert 'metricunet_undelivered{destination="pacs"} 0' in said
    said += here.ask("GET", "/node", headers=here.enter()).text
    assert "waiting" in said
    assert "Secret" not in said
    assert written.series_uid not in said


class Failed:
    """A case whose delivery was given up, and one that was set aside."""

    def __init__(self, node: Node) -> None:
        self.queue = node.queue
        for name in ("c0ffee", "decade"):
            job = self.queue.receive(
                "any:1", series=name, study="2", patient=["3"], sender="CT", folder=f"scans/{name}"
            )
            self.queue.whole(job.id, digest=name)
            self.queue.take("cpu")
        (self.sent, self.aside) = self.queue.jobs()
        self.queue.move(self.sent.id, "sending")
        self.delivery = self.queue.deliver(
            self.sent.id, "pacs", "rtstruct", "predictions/c0ffee.rtstruct.dcm", "1.2"
        )
        self.queue.give_up(self.delivery.id, "the peer is away")
        self.queue.move(self.aside.id, "set aside", "its worker died of it 2 times")

    def audit(self) -> list[tuple[str, str, int]]:
        with self.queue.ledger.reading() as db:
            rows = db.execute("SELECT actor, action, job_id FROM events WHERE actor != 'metricunet' ORDER BY id")
            return [tuple(row) for row in rows]


def test_what_somebody_waits_for_stays_in_the_queue_however_old_it_is(
    site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("metricunet.workflows.serve.web.MOST_SHOWN", 1)
    here = site()
    queue = here.node.queue
    for name in ("aaaa", "bbbb", "cccc", "dddd"):
        job = queue.receive("any:1", series=name, study="2", patient=["3"], sender="CT", folder=f"scans/{name}")
        queue.whole(job.id, digest=name)
        queue.take("cpu")
        queue.move(job.id, "review" if name == "bbbb" else "kept")
    page = here.ask("GET", "/node", headers=here.enter()).text
    assert [name in page for name in ("aaaa", "bbbb", "cccc", "dddd")] == [False, True, False, True]
    assert "2 older cases" in page


def test_who_may_send_tries_again_and_that_is_noted(site: Callable[..., Site]) -> None:
    here = site()
    failed = Failed(here.node)
    base = "https://node.example.org"

    def ask(user: str, method: str, path: str) -> httpx.Response:
        return here.ask(method, path, PROXY, base=base, headers={"x-forwarded-user": user, "origin": base})

    delivery = f"/api/node/c0ffee/deliveries/{failed.delivery.id}"
    assert "<button" not in ask("anna", "GET", "/node").text
    for path in (delivery, "/api/node/c0ffee/send", "/api/node/decade/again"):
        assert ask("anna", "POST", path).status_code == 403
        assert f'data-post="{path}"' in ask("bert", "GET", "/node").text
    assert failed.audit() == []

    assert ask("bert", "POST", delivery).json()["state"] == "waiting"
    assert ask("bert", "POST", "/api/node/decade/again").json()["state"] == "waiting"
    assert failed.queue.due()[0].id == failed.delivery.id
    assert {job.state for job in failed.queue.jobs()} == {"sending", "waiting"}
    assert failed.audit() == [
        ("bert", "delivery again", failed.sent.id),
        ("bert", "sending", failed.sent.id),
        ("bert", "waiting", failed.aside.id),
    ]
    failed.queue.delivered(failed.delivery.id)
    assert ask("bert", "POST", delivery).status_code == 409
    assert ask("bert", "POST", "/api/node/c0ffee/send").json()["state"] == "sending"
    assert failed.audit()[-1] == ("bert", "sending", failed.sent.id)
    assert ask("bert", "POST", "/api/node/decade/deliveries/1").status_code == 400  # another case's
    assert ask("bert", "POST", "/api/node/c0ffee/deliveries/x").status_code == 404


def test_an_empty_token_lets_nobody_in(site: Callable[..., Site], written: Written) -> None:
    here = site()
    here.gate.tokens = dict.fromkeys(here.gate.tokens, "")
    empty = {"authorization": "Bearer "}
    for path in ("/", "/?token="):
        assert here.ask("GET", path).status_code == 401
        assert here.ask("GET", path, headers=empty).status_code == 401
    assert here.ask("GET", "/metrics", headers=empty).status_code == 401
    assert here.stow(written.files[0].read_bytes(), headers=empty).status_code == 401


def test_a_file_without_a_token_keeps_the_server_from_starting(site: Callable[..., Site]) -> None:
    here = site()
    (here.node.state.folder / "stow.token").write_text("")
    with pytest.raises(InputError, match="holds no token"):
        Site(here.node)


def test_a_request_that_stalls_between_two_objects_is_one_series(
    site: Callable[..., Site], written: Written
) -> None:
    here, clock = site(), Clock()
    arrivals = here.node.arrivals
    arrivals.clock = clock
    bounds = [b"--xyz\r\n\r\n", *[b"\r\n--xyz\r\n\r\n"] * (len(written.files) - 1), b"\r\n--xyz--\r\n"]
    objects = [*(path.read_bytes() for path in written.files), b""]
    between: list[int] = []

    async def body() -> AsyncIterator[bytes]:
        for bound, one in zip(bounds, objects, strict=True):
            yield bound + one
            for _ in range(3):
                arrivals.end_others(set())
            clock.now += 100
            between.append(len(arrivals.gather()))

    assert here.stow(content=body()).status_code == 200
    assert between == [0] * len(bounds)
    clock.now += 11
    assert [job.files for job in arrivals.gather()] == [4]


def test_a_request_that_falls_silent_is_ended(
    site: Callable[..., Site], written: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = site()
    monkeypatch.setattr("metricunet.workflows.serve.web.SILENCE_S", 0.0)

    async def body() -> AsyncIterator[bytes]:
        yield b"--xyz\r\n\r\n" + written.files[0].read_bytes() + b"\r\n--xyz\r\n\r\nabc"
        await asyncio.Event().wait()

    answer = here.stow(content=body())
    assert (answer.status_code, "nothing of the body came" in answer.json()["error"]) == (400, True)
    assert here.node.arrivals.connections == 0
    assert [job.files for job in here.node.arrivals.gather(at_once=True)] == [1]
    assert not any(here.node.state.receiving.iterdir())


@pytest.mark.parametrize("bind", ["127.0.0.1", "127.0.0.2", "::1"])
def test_the_address_that_is_printed_can_be_opened(site: Callable[..., Site], bind: str, tmp_path: Path) -> None:
    here = site(web={"port": PORT, "bind": bind})
    assert here.node.config.web is not None
    address = address_of(here.node.config.web, PORT, tmp_path)
    opened = address.partition("?")[0].rstrip("/")
    assert opened == f"http://{'[::1]' if bind == '::1' else bind}:{PORT}"
    token = here.gate.tokens["pages"]
    cookie = here.ask("GET", f"/?token={token}", base=opened).headers["set-cookie"].partition(";")[0]
    found = here.ask("GET", "/api/cases", base=opened, headers={"cookie": cookie})
    assert found.status_code == 200
    posted = here.ask("POST", "/api/node/x/send", base=opened, headers={"cookie": cookie, "origin": opened})
    assert posted.status_code == 400  # there is no such case


def test_beyond_this_machine_the_address_of_the_proxy_is_printed(tmp_path: Path) -> None:
    proxy = {"addresses": PROXY, "origin": "https://node.example.org"}
    for bind in ("0.0.0.0", "::", "10.0.0.5"):
        web = Web.model_validate({"port": PORT, "bind": bind, "proxy": proxy})
        assert address_of(web, PORT, tmp_path).startswith("https://node.example.org/,")


BODY = b"--b c\r\nA: b\r\n\r\none\r\n--b\r\n\r\n--b c\r\n\r\n\r\n--b c\r\n\r\n\r\n\r\n--b c--\r\ntrailer"


@settings(deadline=None)
@given(st.lists(st.integers(0, len(BODY)), max_size=12))
def test_a_body_is_taken_apart_wherever_it_is_cut(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[int]
) -> None:
    folder = tmp_path_factory.mktemp("parts")
    parts = Parts(b"b c", folder, 100, 5)
    edges = [0, *sorted(cuts), len(BODY)]
    paths = [path for a, b in itertools.pairwise(edges) for path in parts.feed(BODY[a:b])]
    assert [path.read_bytes() for path in paths] == [b"one\r\n--b\r\n", b"", b"\r\n"]
    assert parts.ended


@settings(deadline=None)
@given(st.binary(max_size=400), st.integers(1, 50))
def test_any_bytes_are_taken_apart_or_refused(
    tmp_path_factory: pytest.TempPathFactory, body: bytes, step: int
) -> None:
    parts = Parts(b"b", tmp_path_factory.mktemp("parts"), 50, 2)
    try:
        for k in range(0, len(body), step):
            parts.feed(body[k : k + step])
    except (InputError, TooLarge):
        pass
    finally:
        parts.close()


def test_the_boundary_is_read_from_the_type() -> None:
    assert boundary_of('multipart/related; type="application/dicom"; boundary="a b"') == b"a b"
    assert boundary_of("multipart/related;boundary=abc;type=x") == b"abc"
    of_orthanc = "-".join(["90c59563-3bc3-42dd-98cb-e13764413316"] * 2)  # longer than the standard has it
    stated = f'multipart/related; type="application/dicom"; boundary={of_orthanc}'
    assert boundary_of(stated) == of_orthanc.encode()
    for wrong in ("", "multipart/mixed; boundary=x", "multipart/related", "multipart/related; boundary="):
        with pytest.raises(InputError, match="multipart/related"):
            boundary_of(wrong)
