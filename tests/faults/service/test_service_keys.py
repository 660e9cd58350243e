"""Keys, hosts and headers of requests to a real service: which are accepted, which wait, and what is audited."""

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from service.access.key_guessing import FREE_ATTEMPTS
from tests.support.bundles import make_store
from tests.support.service import ADMIN_KEY, PATIENCE, Client, Reply, Service, figures, serving, wait_until

RED = {"queries": ["red"]}
ANN, BOB, CALLER = "k7Qw-92mXz.Lp4Rt", "Zt5!pq8Rw3-uJ6yM", "caller's own long key 1"


@pytest.fixture(scope="module")
def words_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("keys") / "store", "first", "second").path


@pytest.fixture(scope="module")
def service(words_store: Path) -> Iterator[Service]:
    """Three administrators' keys, one of a caller."""
    with serving(words_store, admin_keys=f"ann={ANN},bob={BOB}", predict_key=CALLER) as service:
        yield service


@pytest.fixture(scope="module")
def open_service(words_store: Path) -> Iterator[Service]:
    """A service with a list of hosts and without a key for callers."""
    with serving(words_store, allowed_hosts="shop.example, *.internal.example") as service:
        yield service


def refusal(reply: Reply) -> tuple[int, str]:
    return reply.status, reply.json()["error"]["code"]


def audited(service: Service, **wanted: Any) -> list[dict[str, Any]]:
    """The audit's lines that have these values; every line of the log must be JSON."""
    found = [json.loads(line) for line in service.log.splitlines()]
    return [one for one in found if one["event"] == "administration" and wanted.items() <= one.items()]


def raw(service: Service, head: str, body: bytes = b"", address: str = "127.0.0.1") -> Reply:
    """Send a head as it is, from an address of this machine."""
    client = Client.__new__(Client)
    client._socket = socket.create_connection(("127.0.0.1", service.port), PATIENCE, source_address=(address, 0))
    client._stream = client._socket.makefile("rb")
    try:
        lines = head.splitlines() + ([f"Content-Length: {len(body)}"] if body else [])
        client._socket.sendall("\r\n".join([*lines, "", ""]).encode() + body)
        return client.finish()
    finally:
        client.close()


def from_address(service: Service, address: str, key: str, header: str = "X-Admin-Key") -> Reply:
    path = "/admin/paused" if header == "X-Admin-Key" else "/about"
    return raw(service, f"GET {path} HTTP/1.1\nHost: test\n{header}: {key}", address=address)


@pytest.mark.parametrize(("name", "key"), [("admin", ADMIN_KEY), ("ann", ANN), ("bob", BOB)])
def test_every_named_key_administers_under_its_name(service: Service, name: str, key: str) -> None:
    """A key could not be rotated without downtime, or the audit would not show whose key was used."""
    reply = service.ask("POST", "/admin/activate", {"bundle": "absent"}, X_Admin_Key=key, X_Request_ID=f"by-{name}")
    assert refusal(reply) == (404, "not_activated")
    (line,) = wait_until(lambda: audited(service, request_id=f"by-{name}"))
    assert (line["key"], line["action"], line["bundle"], line["status"]) == (name, "activate", "absent", 404)
    assert not any(key in service.log for key in (ADMIN_KEY, ANN, BOB, CALLER))


def test_the_audit_log_shows_what_was_done(service: Service) -> None:
    """The audit would not show which labels were paused, or what was served before; or it would hold whole bodies."""
    ids = [hit["id"] for hit in service.ask("POST", "/predict", RED, X_Api_Key=CALLER).json()["results"][0]["hits"]]

    def act(path: str, body: dict[str, Any], key: str | None = ANN) -> dict[str, Any]:
        number = len(audited(service))
        headers = {"X_Admin_Key": key} if key else {}
        service.ask("POST", path, body, **headers)
        return wait_until(lambda: len(found := audited(service)) > number and found[-1])

    paused = act("/admin/paused", {"add": [*ids[:2], "not there"], "remove": ["never paused"]})
    assert (paused["action"], paused["added"], paused["added_count"]) == ("pause", [*ids[:2], "not there"], 3)
    assert (paused["removed"], paused["removed_count"], paused["paused_count"]) == ([], 0, 3)
    again = act("/admin/paused", {"add": ids[:1], "remove": [ids[1], "not there"]})
    assert (again["added"], again["removed"], again["paused_count"]) == ([], [ids[1], "not there"], 1)
    many = act("/admin/paused", {"add": [f"label {number}" for number in range(500)], "remove": ids[:1]})
    assert (many["added_count"], len(many["added"])) == (500, 20)
    act("/admin/paused", {"remove": [f"label {number}" for number in range(500)]})

    done = act("/admin/activate", {"bundle": "second"})
    assert (done["bundle"], done["previous"], done["status"], done["error_code"]) == ("second", "first", 200, None)
    back = act("/admin/rollback", {})
    assert (back["action"], back["bundle"], back["previous"]) == ("rollback", "first", "second")

    refused = act("/admin/activate", {"bundle": "second", "secret note": "a private note"})
    assert (refused["action"], refused["status"], refused["error_code"]) == ("activate", 422, "unknown_field")
    compared = act("/admin/compare", {"bundle": "absent", "queries": ["a private query"]})
    assert (compared["action"], compared["bundle"], compared["status"]) == ("compare", "absent", 404)
    keyless = act("/admin/nothing", {}, key=None)
    assert (keyless["key"], keyless["action"], keyless["request"]) == (None, None, "POST /admin/nothing")
    wrong = act("/admin/rollback", {}, key="a guessed key")
    assert (wrong["key"], wrong["action"], wrong["error_code"]) == ("unknown", "rollback", "wrong_key")
    assert not any(text in service.log for text in ("a private note", "a private query", "a guessed key"))


def guess_until_refused(service: Service, address: str, header: str) -> tuple[int, Reply]:
    """Send wrong keys until one is not even looked at; how many were looked at, and that answer."""
    for number in range(2 * FREE_ATTEMPTS):  # on a busy machine the first waits may be over before the next attempt
        reply = from_address(service, address, f"guess {number}", header)
        if reply.status != 401:
            return number, reply
    raise AssertionError("guessing is not slowed down")


def test_only_guessing_is_slowed_down(words_store: Path) -> None:
    """A weak key would be guessed in minutes, or one client could lock out the administrators."""
    with serving(words_store, predict_key=CALLER) as service:
        assert from_address(service, "127.0.0.7", ADMIN_KEY).status == 200  # known here from now on
        looked_at, reply = guess_until_refused(service, "127.0.0.7", "X-Admin-Key")
        assert looked_at >= FREE_ATTEMPTS
        assert refusal(reply) == (429, "too_many_wrong_keys")
        assert int(reply.headers["retry-after"]) >= 1
        # who was known before the guessing, who asks from elsewhere, and who sends no key, do not wait
        assert from_address(service, "127.0.0.7", ADMIN_KEY).status == 200
        assert from_address(service, "127.0.0.8", ADMIN_KEY).status == 200
        assert from_address(service, "127.0.0.8", CALLER, "X-Api-Key").status == 200
        assert raw(service, "GET /readyz HTTP/1.1\nHost: test", address="127.0.0.7").status == 200
        seen = figures(service)
        assert seen['diptych_wrong_keys_total{header="X-Admin-Key"}'] == looked_at
        assert seen['diptych_wrong_keys_total{header="X-Api-Key"}'] == 0
        assert seen['diptych_rejections_total{reason="too_many_wrong_keys"}'] == 1
        # the wait ends
        wait_until(lambda: from_address(service, "127.0.0.7", CALLER, "X-Api-Key").status == 200)


def test_guessing_keys_of_callers_is_slowed_down(words_store: Path) -> None:
    """Only administrative routes would be protected, or /predict would not be."""
    body = json.dumps(RED).encode()
    head = "POST /predict HTTP/1.1\nHost: test\nX-Api-Key: "
    with serving(words_store, predict_key=CALLER) as service:
        replies = [raw(service, f"{head}guess {n}", body, "127.0.0.9") for n in range(2 * FREE_ATTEMPTS)]
        codes = [refusal(reply) for reply in replies]
        assert codes[:FREE_ATTEMPTS] == [(401, "wrong_key")] * FREE_ATTEMPTS
        assert (429, "too_many_wrong_keys") in codes
        assert raw(service, f"{head}{CALLER}", body).status == 200


@pytest.mark.parametrize(
    "lines",
    [
        f"X-Admin-Key: wrong\nX-Admin-Key: {ADMIN_KEY}",
        f"X-Admin-Key: {ADMIN_KEY}\nx-admin-key: {ADMIN_KEY}",
        f"X-Api-Key: {CALLER}\nX-Api-Key: other",
        "Host: evil.example",
        "X-Deadline-Ms: 1\nX-Deadline-Ms: 1000",
        "X-Request-ID: a\nX-Request-ID: b",
        "Content-Encoding: gzip\nContent-Encoding: identity",
        "Content-Type: text/plain\nContent-Type: application/json",
    ],
)
@pytest.mark.parametrize("path", ["/predict", "/admin/paused", "/livez"])
def test_a_header_that_is_read_once_is_sent_once(service: Service, path: str, lines: str) -> None:
    """A proxy that checks the first of two keys would pass a request whose second key counts, or the reverse."""
    method = "POST" if path == "/predict" else "GET"
    body = json.dumps(RED).encode() if path == "/predict" else b""
    reply = raw(service, f"{method} {path} HTTP/1.1\nHost: test\n{lines}", body)
    assert refusal(reply) == (400, "repeated_header")
    assert "was sent more than once" in reply.json()["error"]["message"]


def test_other_headers_may_be_repeated(service: Service) -> None:
    """Headers that are lists, which proxies add lines to, would be refused."""
    lines = "Accept: text/html\nAccept: */*\nX-Forwarded-For: 10.0.0.1\nX-Forwarded-For: 10.0.0.2\nVia: a\nVia: b"
    assert raw(service, f"GET /livez HTTP/1.1\nHost: test\n{lines}").status == 200


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("Host: shop.example", 200),
        ("Host: SHOP.example:8000", 200),
        ("Host: a.internal.example", 200),
        ("Host: evil.example", 421),
        ("Host: 127.0.0.1", 421),
        ("Host: internal.example", 421),
        ("X: no host", 400),
        ("Host: ", 400),
    ],
)
@pytest.mark.parametrize("request_line", ["POST /predict", "GET /about", "GET /", "GET /admin/paused", "GET /metrics"])
def test_only_listed_names_are_answered(open_service: Service, request_line: str, host: str, expected: int) -> None:
    """A page of another site could send queries through a host name that resolves to this service."""
    body = json.dumps(RED).encode() if request_line.startswith("POST") else b""
    reply = raw(open_service, f"{request_line} HTTP/1.1\n{host}\nX-Admin-Key: {ADMIN_KEY}", body)
    assert reply.status == expected
    if expected != 200:
        assert refusal(reply) == (expected, "wrong_host" if expected == 421 else "bad_host")
        assert reply.headers["cache-control"] == "no-store"


def test_probes_do_not_need_a_listed_name(open_service: Service) -> None:
    """Kubernetes would restart every pod, because it probes by address."""
    for path in ("/livez", "/readyz"):
        assert raw(open_service, f"GET {path} HTTP/1.1\nHost: 10.0.0.9:8000").status == 200


@pytest.mark.parametrize(
    ("method", "path", "body", "key", "status"),
    [
        ("GET", "/admin/bundles", {}, ADMIN_KEY, 200),
        ("GET", "/admin/paused", {}, ADMIN_KEY, 200),
        ("POST", "/admin/compare", {"bundle": "first", **RED}, ADMIN_KEY, 200),
        ("POST", "/admin/paused", {"add": []}, ADMIN_KEY, 200),
        ("GET", "/admin/bundles", {}, "wrong", 401),
        ("POST", "/admin/activate", {"bundle": ".."}, ADMIN_KEY, 422),
        ("POST", "/admin/activate", {"bundle": "absent"}, ADMIN_KEY, 404),
        ("GET", "/admin/rollback", {}, ADMIN_KEY, 405),
        ("GET", "/admin/nothing", {}, ADMIN_KEY, 404),
        ("OPTIONS", "/admin/bundles", {}, ADMIN_KEY, 204),
        ("GET", "/about", {}, None, 200),
        ("GET", "/metrics", {}, None, 200),
        ("GET", "/readyz", {}, None, 200),
        ("POST", "/predict", {"queries": []}, None, 422),
    ],
)
def test_no_shared_cache_stores_private_responses(
    service: Service, method: str, path: str, body: dict[str, Any], key: str | None, status: int
) -> None:
    """A proxy or a browser would give one client's administrative or keyed answer to another client."""
    headers = {"X_Admin_Key": key} if key else {"X_Api_Key": CALLER}
    reply = service.ask(method, path, body or b"", **headers)
    assert reply.status == status
    assert reply.headers["cache-control"] == "no-store"


def test_unchanged_console_files_are_cached(service: Service) -> None:
    """A browser would fetch every file of the page again each time."""
    reply = service.ask("GET", "/console/main.js")
    assert reply.headers["cache-control"] == "no-cache"


def test_weak_keys_of_callers_are_reported_at_the_start(words_store: Path) -> None:
    """An operator would not learn that callers' keys can be guessed; or the log would contain one."""
    with serving(words_store, predict_key=f"{CALLER},alpha") as service:
        assert "DIPTYCH_PREDICT_KEY: key 2 is weak" in service.log
        assert "alpha" not in service.log
