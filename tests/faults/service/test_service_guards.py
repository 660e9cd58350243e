"""Slow, hostile and idle clients: each is limited, gets a clear answer, and does not affect other clients."""

import json
import random
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.support.bundles import make_store
from tests.support.service import ADMIN_KEY, PATIENCE, Client, Reply, Service, figures, serving, wait_until

RED = {"queries": ["red"]}
BODY = json.dumps(RED).encode()
HEAD = b"POST /predict HTTP/1.1\r\nHost: test\r\n"
HOSTILE = 400
LEAKS = ("/tmp", "Traceback", ".py")


@pytest.fixture(scope="module")
def words_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("guards") / "store", "first", "second").path


@pytest.fixture(scope="module")
def service(words_store: Path) -> Iterator[Service]:
    """A service with few connections and small heads. It waits longer for a client than a busy machine delays one."""
    with serving(words_store, max_connections=30, max_head_bytes=4096, receive_seconds=PATIENCE) as service:
        yield service


@pytest.fixture(scope="module")
def impatient(words_store: Path) -> Iterator[Service]:
    """A service that soon ends unfinished requests and silent connections."""
    with serving(words_store, receive_seconds=0.4, keep_alive_seconds=2) as service:
        yield service


@pytest.fixture(scope="module")
def locked(words_store: Path) -> Iterator[Service]:
    """Predicting needs a key, and no caller may ask much."""
    limits = {"max_queries": 3, "rate_limit": 0.01, "rate_burst": 5, "cors_origins": "https://shop.example"}
    with serving(words_store, predict_key="alpha, beta, delta", **limits) as service:
        yield service


TOKENS = [
    b"null", b"NaN", b"-0", b"1e999", b"9" * 400, b'"\\ud800"', b'"\\u0000"', b"\x00", b"\xff", b"[" * 300, b"{}",
    b'"', b",", b'{"a":' * 200, b'"k":true', b'"weight":1e-320', b'"min_score":-1e308', b"\xe2\x80\xae", b"../../etc",
]  # fmt: skip


def mutated(content: bytes, draw: random.Random) -> bytes:
    """One to four changes: bytes flipped, cut out, repeated, or replaced by what parsers trip over."""
    for _ in range(draw.randint(1, 4)):
        start = draw.randrange(len(content) + 1)
        stop = min(len(content), start + draw.choice([0, 1, 2, 8, 40]))
        piece = content[start:stop]
        changed = draw.choice([draw.randbytes(len(piece)), b"", piece * draw.choice([2, 50]), draw.choice(TOKENS)])
        content = content[:start] + changed + content[stop:]
    return content


def raw(service: Service, *parts: bytes) -> Client:
    client = service.client()
    for part in parts:
        client._socket.sendall(part)
    return client


def refusal(reply: Reply) -> tuple[int, str]:
    error = reply.json()["error"]
    assert error["message"].endswith(".")
    assert {"x-request-id", "server-timing"} <= reply.headers.keys()
    return reply.status, error["code"]


def rejected(service: Service, reason: str) -> float:
    return figures(service).get(f'diptych_rejections_total{{reason="{reason}"}}', 0.0)


def ends(client: Client) -> bool:
    """Return whether the server closes the connection."""
    try:
        return client._stream.read(1) == b""
    except ConnectionResetError:
        return True


@pytest.mark.parametrize(
    "begun",
    [
        b"POST /pre",
        HEAD + b"X-Slow: y",
        HEAD + b"Content-Length: 100\r\n\r\n{",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n",
    ],
)
def test_a_request_that_never_ends_is_ended(impatient: Service, begun: bytes) -> None:
    """A few thousand clients that send a byte per minute would occupy all connections."""
    with closing(raw(impatient, begun)) as client:
        assert refusal(client.finish()) == (408, "too_slow")
        assert ends(client)


def test_a_connection_that_says_nothing_is_closed(impatient: Service) -> None:
    """Half-open connections of clients that disconnected long ago would accumulate."""
    with closing(impatient.client()) as client:
        assert ends(client)


def test_a_client_that_does_not_read_is_cut_off(words_store: Path) -> None:
    """Answers to clients that do not read them would fill the memory."""
    big = json.dumps({"queries": ["red winter city"] * 256, "k": 100}).encode()
    request = HEAD + b"Content-Length: %d\r\n\r\n" % len(big) + big
    with serving(words_store, send_seconds=0.4) as service:
        with closing(service.client()) as client:
            client._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client._socket.sendall(request)
            wait_until(lambda: rejected(service, "slow_reader") == 1)
        assert service.ask("POST", "/predict", RED).status == 200


@pytest.mark.parametrize("endless", [b"GET /" + b"x" * 200_000, HEAD + b"X-Endless: y\r\n" * 20_000])
def test_an_endless_head_is_refused(service: Service, endless: bytes) -> None:
    """Endless headers would be read into memory completely."""
    with closing(service.client()) as client:
        client._socket.sendall(endless[:8000])
        assert refusal(client.finish()) == (431, "head_too_large")


@pytest.mark.parametrize("nonsense", [b"\x16\x03\x01\x02\x00\x01\x00", b"hello\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n"])
def test_invalid_http_is_refused_in_the_usual_format(service: Service, nonsense: bytes) -> None:
    """A client that uses TLS on a plain port would get an error in another format."""
    with closing(raw(service, nonsense)) as client:
        assert refusal(client.finish()) == (400, "not_http")


@pytest.mark.parametrize("lengths", [b"Content-Length: 2\r\nTransfer-Encoding: chunked", b"Content-Length: 2, 900"])
def test_a_body_has_one_length(service: Service, lengths: bytes) -> None:
    """A body longer than its Content-Length would pass the limit, or hide a second request."""
    with closing(raw(service, HEAD + lengths + b"\r\n\r\n{}")) as client:
        assert refusal(client.finish()) == (400, "not_http")


def test_requests_in_one_segment_are_answered_in_turn(service: Service) -> None:
    """Pipelined requests would count as a slow sender, or be lost."""
    request = HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY
    with closing(raw(service, request * 5)) as client:
        assert [client.finish().status for _ in range(5)] == [200] * 5


def test_idle_connections_are_closed_for_new_ones(service: Service) -> None:
    """A client that opens enough connections would lock all others out."""
    idle = [service.client() for _ in range(60)]
    for client in idle[::7]:
        client._socket.sendall(b"GET /li")
    assert service.ask("POST", "/predict", RED).status == 200
    assert rejected(service, "made_room") >= 30
    assert figures(service)["diptych_connections"] <= 30
    for client in idle:
        client.close()


def test_connections_beyond_the_limit_are_refused(words_store: Path) -> None:
    """New clients of a service at its limit would wait instead of trying another replica."""
    with serving(words_store, max_connections=2, receive_seconds=PATIENCE) as service:
        asked = [service.client() for _ in range(2)]
        for client in asked:
            assert client.get("/livez").status == 200
            client._socket.sendall(HEAD + b"Content-Length: %d\r\n\r\n{" % len(BODY))
        wait_until(lambda: refusal_or_none(service) == (503, "too_many_connections"))
        for client in asked:
            client._socket.sendall(BODY[1:])
            assert client.finish().status == 200
            client.close()
        wait_until(lambda: service.ask("GET", "/livez").status == 200)


def refusal_or_none(service: Service) -> tuple[int, str] | None:
    with closing(service.client()) as client:
        reply = client.get("/livez")
        return refusal(reply) if reply.status != 200 else None


@pytest.mark.parametrize("coding", ["gzip", "br", "deflate, gzip", "x"])
def test_compressed_bodies_are_not_read(service: Service, coding: str) -> None:
    """A kilobyte could decompress to gigabytes, or the error would say that a compressed body is invalid JSON."""
    reply = service.ask("POST", "/predict", BODY, Content_Encoding=coding)
    assert refusal(reply) == (415, "compressed_body")
    assert service.ask("POST", "/predict", BODY, Content_Encoding="identity").status == 200


def test_hostile_bodies_are_refused_and_do_no_harm(service: Service) -> None:
    """Some mutation of a valid body would be answered 5xx, or end the service."""
    draw = random.Random(20261122)
    good = json.dumps({"queries": ["red winter", "北京"], "k": 5, "filter": {"market": ["US"]}, "min_score": 0.1})
    with closing(service.client()) as client:
        for number in range(HOSTILE):
            body = mutated(good.encode(), draw)
            reply = client.post("/predict", body)
            assert reply.status in (200, 400, 422), (number, body)
            if reply.status != 200:
                refusal(reply)
        assert client.post("/predict", RED).status == 200


@pytest.mark.parametrize("key", [None, "", "gamma", "alpha,", "alpha, beta", "alpha,beta", ADMIN_KEY, "schlüssel"])
def test_predictions_need_a_key_if_one_is_set(locked: Service, key: str | None) -> None:
    """Any client that reaches the port could send queries, or need the administrator's key for it."""
    headers = {} if key is None else {"X_Api_Key": key}
    assert refusal(locked.ask("POST", "/predict", RED, **headers)) == (401, "wrong_key")
    assert locked.ask("GET", "/readyz").status == 200


def test_each_caller_has_its_own_rate(locked: Service) -> None:
    """One caller's flood would cause 429 for all callers; or splitting texts into requests would evade the limit."""
    ask = {"queries": ["red", "blue"]}
    assert [locked.ask("POST", "/predict", ask, X_Api_Key="alpha").status for _ in range(2)] == [200, 200]
    reply = locked.ask("POST", "/predict", ask, X_Api_Key="alpha")
    assert refusal(reply) == (429, "rate_limited")
    assert 1 <= int(reply.headers["retry-after"]) <= 300
    assert locked.ask("POST", "/predict", ask, X_Api_Key="beta").status == 200
    assert rejected(locked, "rate_limited") == 1


def test_a_body_that_is_not_parsed_is_charged(locked: Service) -> None:
    """A caller over its limit could still keep the service busy parsing bodies."""
    replies = [refusal(locked.ask("POST", "/predict", b"{" * 100, X_Api_Key="delta")) for _ in range(7)]
    assert replies == [(400, "not_json")] * 5 + [(429, "rate_limited")] * 2


def test_a_prediction_key_does_not_administer(locked: Service) -> None:
    """Every client could change what is served."""
    reply = locked.ask("POST", "/admin/activate", {"bundle": "second"}, X_Admin_Key="alpha", X_Api_Key="alpha")
    assert refusal(reply) == (401, "wrong_key")


def test_other_origins_are_refused(service: Service, locked: Service) -> None:
    """Any web page in an employee's browser could read answers of an internal service."""

    def allowed(service: Service, origin: str, **headers: str) -> str | None:
        asking = {"Origin": origin, "Access_Control_Request_Method": "POST", **headers}
        return service.ask("OPTIONS", "/predict", **asking).headers.get("access-control-allow-origin")

    shop = "https://shop.example"
    assert allowed(service, shop) is None
    assert allowed(locked, shop, Access_Control_Request_Headers="x-api-key") == shop
    assert allowed(locked, "https://shop.example.evil") is None
    asked = locked.ask("OPTIONS", "/admin/activate", Origin=shop, Access_Control_Request_Method="POST",
                       Access_Control_Request_Headers="x-admin-key")  # fmt: skip
    assert asked.status == 400
    reply = locked.ask("POST", "/predict", RED, Origin=shop)
    assert (reply.status, reply.headers["access-control-allow-origin"]) == (401, shop)


def test_keys_are_named_in_openapi(locked: Service) -> None:
    """A generated client would send the administrator's key, or none, where a key for predicting is needed."""
    document = locked.ask("GET", "/openapi.json").json()
    schemes = document["components"]["securitySchemes"]
    keys = {"predict": ["X-Api-Key"], "about": ["X-Api-Key"], "admin": ["X-Admin-Key"]}
    for path, methods in document["paths"].items():
        for method in methods.values():
            named = [schemes[name]["name"] for one in method.get("security", []) for name in one]
            assert named == keys.get(path.split("/")[1], [])


def test_no_answer_shows_a_path_or_a_trace(tmp_path: Path) -> None:
    """A client that provokes a failure would learn local paths."""
    store = make_store(tmp_path / "store", "first", "second")
    with serving(store.path) as service:
        (store.bundle_path("second") / "manifest.json").write_text("{")
        current = store.path / "CURRENT"
        current.unlink()
        current.mkdir()
        bodies = [{"bundle": name} for name in ("first", "second", "absent", "..", "a" * 64)]
        replies = [service.ask("POST", "/admin/activate", body, X_Admin_Key=ADMIN_KEY) for body in bodies]
        replies += [service.ask("GET", path) for path in ("/readyz", "/livez", "/", "/..%2f..%2fetc/passwd", "/%00")]
        replies += [service.ask("POST", "/predict", body) for body in (RED, b"\x00", RED | {"filter": {"a": ["/etc"]}})]
        assert all(400 <= reply.status < 600 for reply in replies[:5])
    leaks = [text for reply in replies for text in [reply.body.decode()] if any(leak in text for leak in LEAKS)]
    assert not leaks
