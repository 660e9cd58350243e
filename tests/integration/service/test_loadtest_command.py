"""`diptych loadtest` against a real service, at small rates and for a second or two; no test asserts a time."""

import asyncio
import itertools
import json
import os
import re
import signal
import socket
import socketserver
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from loadtest.plan import Plan, request_bodies
from loadtest.report import Report
from loadtest.run import WARM_CONNECTIONS, Snapshot
from loadtest.run import run as measure
from loadtest.sweep import kept_up, knee
from loadtest.target import Target
from loadtest.timer import now
from tests.support.bundles import make_store
from tests.support.command import run
from tests.support.processes import running
from tests.support.service import ADMIN_KEY, PATIENCE, Service, serving, wait_until

CALM = ["--rate", "40", "--duration", "1s", "--max-lag", "1h"]  # valid on a busy machine too


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with serving(make_store(tmp_path_factory.mktemp("loadtest") / "store", "first", "second").path) as service:
        yield service


@pytest.fixture
def url(service: Service) -> str:
    return f"http://127.0.0.1:{service.port}"


def measured(capsys: pytest.CaptureFixture[str], code: int, *arguments: str | Path) -> Any:
    """The JSON report of a run that ends with `code`."""
    capsys.readouterr()
    assert run("loadtest", *arguments, "--json") == code
    return json.loads(capsys.readouterr().out)


def test_a_run_reports_every_request(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Requests would be lost between schedule and report, or stages, bundles and rates would be missing."""
    report = measured(capsys, 0, url, *CALM)
    assert (report["sent"], report["latency"]["count"], report["offered"]) == (40, 40, 40.0)
    assert list(report["outcomes"]) == ["200"]
    assert {"queue", "tokenize", "encode", "search", "serialize", "total"} <= set(report["stages"])
    assert report["stages"]["search"]["count"] == 40
    assert sum(report["bundles"].values()) == 40
    assert (report["invalid"], report["interrupted"], report["switching"]) == ([], False, None)
    assert report["latency"]["p50_ms"] <= report["latency"]["p99_ms"] <= report["latency"]["max_ms"]
    width = report["timeline"][1]["at_seconds"] if len(report["timeline"]) > 1 else report["seconds"]
    assert sum(one["sent_per_second"] for one in report["timeline"]) * width >= 40


def test_the_service_gets_what_was_sent(service: Service, url: str, tmp_path: Path) -> None:
    """Queries would not be those of the file, or the count would differ from the service's count."""
    (tmp_path / "queries.jsonl").write_text('{"text": "red shoes"}\n{"text": "light rain"}\n')
    before = answers(service)
    assert run("loadtest", url, *CALM, "--queries", tmp_path / "queries.jsonl", "-k", "3") == 0
    assert answers(service) - before == 41  # and one to see that it answers at all


def answers(service: Service) -> int:
    """Return the number of requests that the service has answered."""
    return count(service, "diptych_requests_total", '"/predict"')


def count(service: Service, name: str, label: str) -> int:
    """The sum of a counter of the service's, over what has this value of a label."""
    text = service.ask("GET", "/metrics").body.decode()
    return sum(int(float(one)) for one in re.findall(rf"{name}\{{[^}}]*{label}[^}}]*\}} (\S+)", text))


def test_tables_and_page_are_written(url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command would print no figures at its end, or write no page."""
    assert run("loadtest", url, *CALM, "--arrivals", "constant", "--html", tmp_path / "page.html") == 0
    shown = capsys.readouterr().out
    assert f"{url}: 40/s requested (constant" in shown
    assert re.search(r"answered, 200 +40 ", shown)
    assert "generator lag" in shown
    assert "service: search" in shown
    assert (tmp_path / "page.html").read_text().count("<svg") == 2


def test_a_missing_matplotlib_is_reported_before_the_run(
    url: str, service: Service, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run of an hour would end without its page, or with a traceback."""
    for name in ("loadtest.display.page", "loadtest.display.charts"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    before = answers(service)
    assert run("loadtest", url, *CALM, "--html", tmp_path / "page.html") == 1
    assert "Install it with: pip install 'diptych[loadtest]'" in capsys.readouterr().err
    assert answers(service) == before


def test_a_generator_that_lags_ends_with_code_1(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A script would take the generator's slowness for the service's."""
    report = measured(capsys, 1, url, "--rate", "40", "--duration", "1s", "--max-lag", "0.0001ms")
    assert "The generator was the bottleneck" in report["invalid"][0]


def test_latencies_during_switches_are_reported_separately(
    service: Service, url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """No switch would happen, or its latencies would not be reported separately."""
    monkeypatch.setenv("DIPTYCH_ADMIN_KEY", ADMIN_KEY)
    before = count(service, "diptych_switches_total", '"done"')
    report = measured(
        capsys, 0, url, "--rate", "50", "--duration", "4s", "--max-lag", "1h", "--switch-every", "1s",
        "--timeout", "1m", "--html", tmp_path / "page.html",
    )  # fmt: skip
    switching = report["switching"]
    made = [one["bundle"] for one in switching["switches"]]
    assert made == (["second", "first"] * len(made))[: len(made)]
    assert made
    assert all(one["failure"] is None for one in switching["switches"])
    assert count(service, "diptych_switches_total", '"done"') - before == len(made) + 1  # and back to the first
    assert list(report["outcomes"]) == ["200"]
    assert switching["during"]["count"] + switching["steady"]["count"] == 200
    assert switching["during"]["count"] > 0
    assert 'class="shaded-0"' in (tmp_path / "page.html").read_text()
    assert service.ask("GET", "/readyz").json()["bundle"] == "first"  # as before


def test_a_store_with_one_bundle_is_not_switched(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run would measure switches from a bundle to itself, or end in a traceback."""
    monkeypatch.setenv("DIPTYCH_ADMIN_KEY", ADMIN_KEY)
    with serving(make_store(tmp_path / "store", "only").path) as service:
        assert run("loadtest", f"http://127.0.0.1:{service.port}", "--switch-every", "1s") == 1
        assert "has fewer than two bundles to switch between" in capsys.readouterr().err
        monkeypatch.setenv("DIPTYCH_ADMIN_KEY", "another")
        assert run("loadtest", f"http://127.0.0.1:{service.port}", "--switch-every", "1s") == 1
        assert "does not list its bundles: This needs the administrator's key" in capsys.readouterr().err


def test_a_sweep_stops_at_the_rate_that_the_service_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A sweep would not raise the rate, not stop, or draw no curve."""
    store = make_store(tmp_path / "store", "only").path
    # 60 texts and then none: the first step sends 30, the second one 42
    with serving(store, max_queries=60, rate_burst=60, rate_limit=0.001) as service:
        report = measured(
            capsys, 0, f"http://127.0.0.1:{service.port}", "--sweep", "--rate", "100", "--duration", "300ms",
            "--max-lag", "1h", "--html", tmp_path / "page.html",
        )  # fmt: skip
    steps = [Report.model_validate(step) for step in report["steps"]]
    rates = [step.rate for step in steps]
    assert rates == [round(100 * 2 ** (number / 2), 1) for number in range(len(rates))]
    assert report["ended"] == f"the service did not keep up with {rates[-1]:,g} requests per second"
    assert report["saturation"] == max(step.achieved for step in steps)
    best = knee([step for step in steps if kept_up(step)])
    assert report["knee"] == (best.offered if best else None)
    assert (tmp_path / "page.html").read_text().count("<svg") == 1


def test_a_stopped_service_does_not_delay_the_schedule(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The generator would wait for the service, and what was never sent would be missing from the latencies."""
    store = make_store(tmp_path / "store", "only").path
    with serving(store) as service:
        address, stopping = f"http://127.0.0.1:{service.port}", threading.Thread(target=stop_when_asked, args=[service])
        stopping.start()
        try:
            report = measured(
                capsys, 0, address, "--rate", "100", "--duration", "3s", "--timeout", "300ms", "--max-lag", "1h"
            )
        finally:
            stopping.join(PATIENCE)
            os.kill(service.process.pid, signal.SIGCONT)
    assert report["sent"] == 300  # on schedule all the same
    assert report["outcomes"]["timeout"]["count"] > 0
    assert sum(found["count"] for found in report["outcomes"].values()) == 300
    assert sum(point["failed"] for point in report["timeline"]) == 300 - report["outcomes"]["200"]["count"]


def stop_when_asked(service: Service) -> None:
    """Stop the service's clock once it has answered a few requests."""
    wait_until(lambda: answers(service) > 20)
    os.kill(service.process.pid, signal.SIGSTOP)


def test_latency_counts_from_when_a_request_was_due(service: Service) -> None:
    """Requests that were sent late would look as fast as the others, without their waiting time."""
    target, plan = Target.resolve(f"http://127.0.0.1:{service.port}"), Plan(rate=100, duration=2)

    def hold_up(at: Snapshot) -> None:
        """Keep the generator from sending for a while."""
        until = now() + 0.3
        while now() < until:
            pass

    report = asyncio.run(measure(target, request_bodies(None, None, 1), plan, asyncio.Event(), hold_up))
    assert report.late
    assert report.latency.count == report.sent == 200
    assert report.latency.p99_ms >= report.lag.p99_ms
    assert report.latency.max_ms >= report.lag.max_ms


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_is_reported(service: Service, url: str, number: signal.Signals) -> None:
    """An hour's measurement would be lost by ending it a minute early."""
    before = answers(service)
    command = [sys.executable, "-m", "diptych", "loadtest", url, "--rate", "50", "--duration", "10m", "--json"]
    with running(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        wait_until(lambda: answers(service) > before + 20)
        process.send_signal(number)
        shown, errors = process.communicate(timeout=PATIENCE)
    assert (process.returncode, errors) == (128 + number, "")
    report = json.loads(shown)
    assert report["interrupted"]
    assert sum(found["count"] for found in report["outcomes"].values()) == report["sent"] > 10


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["-k", "1000"], "answered POST /predict with 422: k is 1000; the maximum is 100."),
        (["--sweep", "--switch-every", "1s"], "--sweep and --switch-every cannot be combined"),
        (["--bundles", "first", "second"], "--bundles needs --switch-every"),
        (
            ["--switch-every", "1s", "--bundles", "nowhere", "second"],
            "store has no bundle nowhere; it has first, second.",
        ),
        (["--queries", "nowhere.csv"], "nowhere.csv does not exist. Check the path."),
        (["--html", "nowhere/page.html"], "nowhere/page.html: No such file or directory"),
    ],
)
def test_an_impossible_run_is_refused_in_one_sentence(
    url: str, arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that cannot succeed would begin, or end in a traceback."""
    monkeypatch.setenv("DIPTYCH_ADMIN_KEY", ADMIN_KEY)
    assert run("loadtest", url, *arguments) == 1
    message = capsys.readouterr().err
    assert sentence in message
    assert message.startswith("error: ")
    assert message.count("\n") == 1


def test_a_wrong_address_is_refused_in_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    """Forgetting to start the service would look like a slow one."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    assert run("loadtest", f"http://127.0.0.1:{port}") == 1
    assert capsys.readouterr().err == (
        f"error: Nothing answers at http://127.0.0.1:{port} (Connection refused). "
        "Start it with `diptych serve`, or give another URL.\n"
    )


@contextmanager
def peer(first: bytes, then: bytes, tls: ssl.SSLContext | None = None) -> Iterator[int]:
    """The port of a server that answers the first request, and then every other one, with these bytes, and ends."""
    answers = itertools.chain([first], itertools.repeat(then))

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with suppress(ssl.SSLError), tls.wrap_socket(self.request, True) if tls else self.request as connection:
                if connection.recv(65_536):
                    connection.sendall(answer := next(answers))
                    if b"connection: close" in answer:
                        connection.recv(1)  # the client closes first and sends nothing more

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=[0.01])
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join(PATIENCE)


GOOD = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}"


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (GOOD, "200"),
        (b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\nconnection: close\r\n\r\n", "503"),
        (b"this is not HTTP\r\n\r\n", "not HTTP"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\ncut", "connection lost"),
    ],
)
def test_every_outcome_is_counted(answer: bytes, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A service that breaks the protocol or hangs up would be counted as answering, or hang the generator."""
    with peer(GOOD, answer) as port:
        code = 0 if kind == "200" else 1
        report = measured(capsys, code, f"127.0.0.1:{port}", "--rate", "20", "--duration", "1s", "--max-lag", "1h")
    assert report["outcomes"][kind]["count"] == sum(found["count"] for found in report["outcomes"].values())
    assert report["sent"] == 20


def test_a_tls_target_needs_a_valid_certificate(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A service behind TLS could not be measured, or the keys would be sent to an impostor."""
    certificate = self_signed(tmp_path / "certificate.pem")
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)
    with peer(GOOD, GOOD, tls) as port:
        assert run("loadtest", f"https://localhost:{port}") == 1
        assert "certificate verify failed" in capsys.readouterr().err
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        report = measured(capsys, 0, f"https://localhost:{port}", "--rate", "10", "--duration", "1s", "--max-lag", "1h")
    assert report["outcomes"]["200"]["count"] == 10


def self_signed(path: Path) -> Path:
    """Create a key and a self-signed certificate for localhost."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    start, end = datetime(2020, 1, 1, tzinfo=UTC), datetime(2120, 1, 1, tzinfo=UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    certificate = (
        builder.serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(end)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(secret + certificate.public_bytes(serialization.Encoding.PEM))
    return path


def test_the_key_is_sent_to_a_service_that_needs_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A service with keys could not be measured, or a missing key would look like a slow service."""
    with serving(make_store(tmp_path / "store", "only").path, predict_key="one key, another") as service:
        address = f"http://127.0.0.1:{service.port}"
        assert run("loadtest", address, *CALM) == 1
        assert "answered POST /predict with 401: This needs a key" in capsys.readouterr().err
        monkeypatch.setenv("DIPTYCH_PREDICT_KEY", "one key, another")
        assert measured(capsys, 0, address, *CALM)["outcomes"]["200"]["count"] == 40


def test_idle_connections_are_closed_before_the_service_closes_them(
    url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests would be sent on connections that the server is closing, and count as failed."""
    monkeypatch.setattr("loadtest.client.MAX_IDLE_SECONDS", 0.05)
    report = measured(capsys, 0, url, "--rate", "4", "--duration", "2s", "--arrivals", "constant", "--max-lag", "1h")
    assert report["connections"] > WARM_CONNECTIONS
    assert report["outcomes"]["200"]["count"] == 8
