"""HTTP of real clients and proxies: upgrade offers, probes, pipelining, half-closed connections."""

import json
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from service.connections.connection import LINGER_SECONDS
from tests.support.bundles import make_store
from tests.support.service import ADMIN_KEY, PATIENCE, Client, Reply, Service, figures, serving, wait_until

RED = {"queries": ["red"]}
BODY = json.dumps(RED).encode()
POST = b"POST /predict HTTP/1.1\r\nHost: test\r\n"
LENGTH = b"Content-Length: %d\r\n" % len(BODY)
PLAIN = POST + LENGTH + b"\r\n" + BODY
CHUNKED_BODY = b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)
H2C = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n"
GET_ROUTES = ["/", "/livez", "/readyz", "/metrics", "/about", "/openapi.json", "/admin/bundles", "/admin/paused"]
JAVA = """
import java.net.URI;
import java.net.http.*;

public class Ask {
    public static void main(String[] given) throws Exception {
        var client = HttpClient.newHttpClient();
        var body = HttpRequest.BodyPublishers.ofString("{\\"queries\\": [\\"red\\"]}");
        var request = HttpRequest.newBuilder(URI.create(given[0])).POST(body).build();
        for (int time = 0; time < 2; time++) {
            var answer = client.send(request, HttpResponse.BodyHandlers.ofString());
            System.out.println(answer.statusCode() + " " + answer.body());
        }
    }
}
"""


@pytest.fixture(scope="module")
def words_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("details") / "store", "first").path


@pytest.fixture(scope="module")
def service(words_store: Path) -> Iterator[Service]:
    with serving(words_store, batches_ahead=0) as service:
        yield service


@pytest.fixture(scope="module")
def impatient(words_store: Path) -> Iterator[Service]:
    """A service that ends unfinished requests before it closes a refused one, but not before a megabyte is sent."""
    with serving(words_store, receive_seconds=LINGER_SECONDS / 2) as service:
        yield service


@contextmanager
def sent(service: Service, *parts: bytes) -> Iterator[Client]:
    with closing(service.client()) as client:
        for part in parts:
            client._socket.sendall(part)
        yield client


def results(reply: Reply) -> object:
    assert reply.status == 200, reply
    return reply.json()["results"]


def cut(content: bytes, size: int) -> list[bytes]:
    return [content[start : start + size] for start in range(0, len(content), size)]


UPGRADES = {
    "h2c": POST + H2C + LENGTH + b"\r\n" + BODY,
    "h2c chunked": POST + H2C + b"Transfer-Encoding: chunked\r\n\r\n" + CHUNKED_BODY,
    "websocket": POST + b"Upgrade: websocket\r\nConnection: upgrade\r\n" + LENGTH + b"\r\n" + BODY,
    "anything": POST + b"UPGRADE: x/1, y\r\nCONNECTION: keep-alive, UPGRADE\r\n" + LENGTH + b"\r\n" + BODY,
}


@pytest.mark.parametrize("piece", [7, 10_000])
@pytest.mark.parametrize("kind", UPGRADES)
def test_an_offer_to_upgrade_is_ignored(service: Service, kind: str, piece: int) -> None:
    """Java's default client and `curl --http2` would get 400 on every POST, because the body was lost."""
    with sent(service, PLAIN) as client:
        expected = results(client.finish())
    with sent(service, *cut(UPGRADES[kind], piece)) as client:
        assert results(client.finish()) == expected
        client._socket.sendall(UPGRADES[kind] + PLAIN + UPGRADES[kind])
        assert [results(client.finish()) for _ in range(3)] == [expected] * 3
        assert client.get("/livez").status == 200


def test_an_offer_to_upgrade_is_ignored_in_every_refusal(words_store: Path) -> None:
    """The body after the offer would be read as the next request."""
    with serving(words_store, max_queries=2, max_waiting_queries=2, batches_ahead=0) as service:
        with service.engine_stopped():
            waiting = [service.client() for _ in range(3)]
            for client in waiting:
                client.begin("POST", "/predict", BODY)
            wait_until(lambda: figures(service)["diptych_unfinished_requests"] == 3)
            with sent(service, UPGRADES["h2c"] * 2) as client:
                assert [client.finish().status for _ in range(2)] == [429, 429]
            with sent(
                service, b"POST /predict HTTP/1.0\r\nConnection: keep-alive\r\n" + LENGTH + b"\r\n" + BODY
            ) as client:
                reply = client.finish()
                assert (reply.status, reply.headers["connection"], client._stream.read()) == (429, "close", b"")
        for client in waiting:
            client.close()


@pytest.mark.skipif(not shutil.which("java"), reason="there is no java on this machine")
def test_javas_own_client_is_answered(service: Service, tmp_path: Path) -> None:
    """Every client in Java would have to be configured for HTTP/1.1."""
    (tmp_path / "Ask.java").write_text(JAVA)
    command = ["java", "-Xmx64m", str(tmp_path / "Ask.java"), f"http://127.0.0.1:{service.port}/predict"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    lines = ended.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["200", "200"], ended


@pytest.mark.skipif(not shutil.which("curl"), reason="there is no curl on this machine")
@pytest.mark.parametrize(
    "options", [["--http2", "-d", BODY.decode()], ["-d", BODY.decode(), "-H", "Expect: 100-continue"]]
)
def test_curl_is_answered(service: Service, options: list[str]) -> None:
    """The first request of most users would fail."""
    command = ["curl", "-sS", "--max-time", "30", *options, f"http://127.0.0.1:{service.port}/predict"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    if "does not support" in ended.stderr:
        pytest.skip("this curl has no HTTP/2")
    assert json.loads(ended.stdout)["results"], ended


@pytest.mark.parametrize(
    "header",
    [
        b"Content-Length: " + b"0" * 4400, b"Content-Length: " + b"9" * 4400, b"Content-Length: " + b"0" * 4400 + b"2",
        b"Content-Length: 00000000000000000002", b"Content-Length: +2", b"Content-Length: 2, 2", b"Content-Length: 0x2",
        b"Content-Length: 2\r\nContent-Length: 2", b"Content-Length: 2\r\ncontent-length: 3", b"Content-Length:",
        b"Content-Length: 1_0", b"Transfer-Encoding: gzip, chunked", b"Transfer-Encoding: chunked, chunked",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", b"Transfer-Encoding: identity",
        b"Transfer-Encoding: xchunked", b"Transfer-Encoding: chunked\r\nContent-Length: 2", b"Transfer-Encoding:",
        b"Transfer-Encoding: chunked;q=1", b"Transfer-Encoding : chunked", b"X: a\r\n folded: b", b"X: a\nY: b",
    ],
)  # fmt: skip
def test_an_ambiguous_length_is_refused(service: Service, header: bytes) -> None:
    """A length of 4,400 zeros would be an error of the service; two lengths would hide a request in a body."""
    with sent(service, POST + header + b"\r\n\r\n2\r\n{}\r\n0\r\n\r\n" + PLAIN) as client:
        reply = client.finish()
        assert (reply.status, reply.json()["error"]["code"]) == (400, "not_http")
        assert client._stream.read() == b""


def test_chunks_need_http_11(service: Service) -> None:
    """An HTTP/1.0 proxy, which knows no chunks, would read a request where this service reads a body."""
    with sent(service, b"POST /predict HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n" + CHUNKED_BODY) as client:
        assert client.finish().status == 400


def test_a_request_behind_a_chunked_one_is_answered(service: Service) -> None:
    """A pipeline would end at the first body without a length."""
    chunked = POST + b"Transfer-Encoding: chunked\r\n\r\n" + CHUNKED_BODY
    with sent(service, chunked + PLAIN + chunked + b"\r\n\r\n" + PLAIN) as client:
        assert len({json.dumps(results(client.finish())) for _ in range(4)}) == 1


def test_a_trailer_is_no_header(service: Service) -> None:
    """A key or a length could be slipped past a proxy, which looks at headers only."""
    head = b"POST /admin/rollback HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n"
    with sent(service, head, b"1\r\n{\r\n0\r\nX-Admin-Key: " + ADMIN_KEY.encode() + b"\r\n\r\n") as client:
        assert client.finish().status == 401
        assert client.get("/livez").status == 200


EARLY = {
    "too large": (413, POST + b"Content-Length: 90000000\r\n\r\n{"),
    "compressed": (415, POST + b"Content-Encoding: gzip\r\nContent-Length: 900\r\n\r\n{"),
    "too large, asked first": (413, POST + b"Content-Length: 90000000\r\nExpect: 100-continue\r\n\r\n"),
    "not known, asked first": (404, b"POST /x HTTP/1.1\r\nContent-Length: 9\r\nExpect: 100-continue\r\n\r\n"),
    "too large in chunks": (
        413, POST + b"Transfer-Encoding: chunked\r\n\r\n" + (b"8000\r\n" + b" " * 0x8000 + b"\r\n") * 34,
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", EARLY)
def test_a_request_gets_one_answer(impatient: Service, kind: str) -> None:
    """A refusal before the body's end would be followed by 408, which the client takes for its next answer."""
    status, request = EARLY[kind]
    with sent(impatient, request) as client:
        reply = client.finish()
        assert reply.status == status
        assert client._stream.read() == b""
        if b"Expect" in request:
            assert reply.headers["connection"] == "close"


def test_a_refused_body_may_still_be_sent(service: Service) -> None:
    """A client that sends everything before it reads would get a broken connection instead of the reason."""
    body = b" " * 3_000_000
    with sent(service, POST + b"Content-Length: %d\r\n\r\n" % len(body) + body) as client:
        assert client.finish().status == 413
        client._socket.sendall(PLAIN)
        assert client.finish().status == 200
    chunks = b"".join(b"10000\r\n" + body[:0x10000] + b"\r\n" for _ in range(40)) + b"0\r\n\r\n"
    with sent(service, POST + b"Transfer-Encoding: chunked\r\n\r\n" + chunks) as client:
        assert client.finish().status == 413


def test_a_client_that_expects_100_continue_keeps_the_connection(service: Service) -> None:
    """curl, which asks before it sends a larger body, would open a connection for each request."""
    with sent(service, POST + LENGTH + b"Expect: 100-continue\r\n\r\n") as client:
        assert client.finish().status == 100
        client._socket.sendall(BODY)
        reply = client.finish()
        assert (reply.status, reply.headers.get("connection")) == (200, None)
        assert client.get("/livez").status == 200
    with sent(service, b"POST /predict HTTP/1.0\r\nExpect: 100-continue\r\n" + LENGTH + b"\r\n" + BODY) as client:
        assert client.finish().status == 200


@pytest.mark.parametrize("requests", [1, 3])
@pytest.mark.parametrize("wait", [False, True])
def test_a_half_closed_client_is_answered(service: Service, requests: int, wait: bool) -> None:
    """Clients that close their sending side after the request, such as `nc -N`, would get no answer."""
    with service.engine_stopped(), sent(service, PLAIN * requests) as client:
        client._socket.shutdown(socket.SHUT_WR)
        if wait:
            wait_until(lambda: figures(service)["diptych_unfinished_requests"] == 1)
            assert client._stream.read(9) == b"HTTP/1.1 "
        os.kill(service.engines()[0], signal.SIGCONT)
        answers = client._stream.read()
    assert answers.count(b" 200 OK\r\n") + answers.startswith(b"200 OK\r\n") == requests
    assert answers.count(b'"results"') == requests


@pytest.mark.parametrize("ahead", [0, 4, 2_000])
@pytest.mark.parametrize("abrupt", [False, True])
def test_all_requests_of_a_disconnected_client_are_abandoned(words_store: Path, ahead: int, abrupt: bool) -> None:
    """The engine would answer thousands of requests whose client has gone."""
    with serving(words_store, batches_ahead=0) as service:
        with service.engine_stopped():
            first = service.client()
            first.begin("POST", "/predict", BODY)
            wait_until(lambda: figures(service)["diptych_unfinished_requests"] == 1)
            client = service.client()
            client._socket.sendall(PLAIN)
            wait_until(lambda: figures(service)["diptych_unfinished_requests"] == 2)
            client._socket.sendall(PLAIN * ahead)
            if abrupt:
                client._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            client.close()
            wait_until(lambda: figures(service).get('diptych_rejections_total{reason="abandoned"}') == 1)
            wait_until(lambda: figures(service)["diptych_connection_bytes"] == 0)
        assert first.finish().status == 200
        wait_until(lambda: figures(service)["diptych_connections"] == 2)
        assert figures(service)["diptych_batch_queries_sum"] == 1


def test_an_incomplete_request_of_a_half_closed_client_is_dropped(service: Service) -> None:
    """A connection that can never bring a whole request would be held for ten seconds."""
    with sent(service, PLAIN + PLAIN[:-1]) as client:
        client._socket.shutdown(socket.SHUT_WR)
        assert client.finish().status == 200
        assert client._stream.read() == b""


@pytest.mark.parametrize("path", [*GET_ROUTES, "/predict", "/nothing"])
def test_head_is_get_without_a_body(service: Service, path: str) -> None:
    """Probes by `curl -I` and `wget --spider` would report a healthy service as broken."""
    key = {"X_Admin_Key": ADMIN_KEY}
    with closing(service.client()) as client:
        expected = client.send("GET", path, b"", **key)
        for method in ("HEAD", "HEAD"):
            client.begin(method, path, b"", **key)
            status = int(client._stream.readline().split()[1])
            names = {}
            while line := client._stream.readline().decode().strip():
                name, _, value = line.partition(": ")
                names[name.lower()] = value
            assert (status, names.keys()) == (expected.status, expected.headers.keys())
            assert names["content-type"] == expected.headers["content-type"]
            if path != "/metrics":
                assert names["content-length"] == expected.headers["content-length"]
        assert client.get("/livez").json() == {"live": True}


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/livez", "GET, HEAD, OPTIONS"), ("/predict", "OPTIONS, POST"), ("*", "GET, HEAD, OPTIONS, POST"),
        ("/admin/paused", "GET, HEAD, OPTIONS, POST"),
    ],
)  # fmt: skip
def test_options_names_the_methods(service: Service, path: str, allowed: str) -> None:
    """Proxies and monitors that send OPTIONS would report an error."""
    reply = service.ask("OPTIONS", path)
    assert (reply.status, reply.headers["allow"], reply.body) == (204, allowed, b"")
    assert service.ask("OPTIONS", "/nothing").status == 404


def test_limits_and_the_log_know_the_client_behind_a_proxy(words_store: Path) -> None:
    """All clients behind a proxy would share one limit, or any client could choose its address."""
    limits = {"max_queries": 1, "rate_limit": 0.01, "rate_burst": 1, "log_requests": "all"}
    with serving(words_store, trusted_proxies="127.0.0.0/8", **limits) as service:
        forwarded = ["198.51.100.1", "198.51.100.2", "6.6.6.6, 198.51.100.2", "2001:db8::1", "198.51.100.1:99"]
        assert [service.ask("POST", "/predict", RED, X_Forwarded_For=one).status for one in forwarded] == [
            200, 200, 429, 200, 429,
        ]  # fmt: skip
        service.ask("POST", "/admin/rollback", X_Forwarded_For="198.51.100.9")
        wait_until(lambda: service.log.count('"198.51.100.9"') == 2)
    with serving(words_store, **limits) as service:
        statuses = [service.ask("POST", "/predict", RED, X_Forwarded_For=one).status for one in forwarded[:2]]
        assert statuses == [200, 429]
