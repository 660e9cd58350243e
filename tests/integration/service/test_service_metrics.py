"""Observability of a running service: request ids, timings, log lines, audit log, metrics and traces."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.support.bundles import make_store
from tests.support.service import ADMIN_KEY, PATIENCE, Service, ended_with, figures, serving, wait_until

RED = {"queries": ["red winter city"]}
STAGES = ["queue", "tokenize", "encode", "search", "serialize"]


@pytest.fixture(scope="module")
def words_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("seeing") / "store", "first", "second").path


@pytest.fixture(scope="module")
def service(words_store: Path) -> Iterator[Service]:
    with serving(words_store, log_requests="all") as service:
        yield service


def lines(service: Service, event: str, **wanted: Any) -> list[dict[str, Any]]:
    """The log's lines of this event that have these values; every line must be JSON."""
    found = [json.loads(line) for line in service.log.splitlines()]
    return [one for one in found if one["event"] == event and wanted.items() <= one.items()]


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/", b""),
        ("GET", "/readyz", b""),
        ("GET", "/metrics", b""),
        ("GET", "/openapi.json", b""),
        ("GET", "/absent", b""),
        ("DELETE", "/predict", b""),
        ("POST", "/predict", b"{"),
        ("POST", "/predict", b"x" * (1 << 20) + b"x"),
        ("POST", "/admin/activate", b"{}"),
        ("POST", "/predict", json.dumps(RED).encode()),
    ],
)
def test_every_answer_has_an_id_and_a_time(service: Service, method: str, path: str, body: bytes) -> None:
    """A reported bad answer could not be found in the log, nor the time of its stages."""
    reply = service.ask(method, path, body, X_Request_ID="from-the-caller.1")
    assert reply.headers["x-request-id"] == "from-the-caller.1"
    assert float(reply.headers["server-timing"].rpartition("total;dur=")[2]) > 0
    assert ("x-bundle" in reply.headers) == (reply.status == 200 and path == "/predict")


@pytest.mark.parametrize("given", ["", "x" * 65, "two words", "line\tbreak", "ü", '"quoted"'])
def test_an_invalid_request_id_is_replaced(service: Service, given: str) -> None:
    """A client could write arbitrary text into the log and into response headers."""
    made = {service.ask("GET", "/livez", X_Request_ID=given).headers["x-request-id"] for _ in range(3)}
    assert len(made) == 3
    assert given not in made
    assert all(one.replace("-", "").isalnum() and len(one) <= 64 for one in made)


def test_a_refusal_by_a_bundle_names_the_bundle(service: Service) -> None:
    """It would be unclear which bundle lacks an attribute of the filter."""
    reply = service.ask("POST", "/predict", RED | {"filter": {"absent": [1]}})
    assert (reply.status, reply.headers["x-bundle"]) == (422, "first")


def test_the_log_line_of_a_request_has_its_id_and_not_its_text(service: Service) -> None:
    """Texts of users would be logged although logging them is off."""
    service.ask("POST", "/predict", {"queries": ["wintersecret city"]}, X_Request_ID="line-1")
    service.ask("POST", "/predict", {"queries": ["wintersecret city"], "k": 0}, X_Request_ID="line-2")
    wait_until(lambda: lines(service, "request", request_id="line-2"))
    (line,) = lines(service, "request", request_id="line-1")
    assert (line["method"], line["path"], line["status"], line["bundle"], line["texts"]) == (
        "POST", "/predict", 200, "first", 1,
    )  # fmt: skip
    assert line["milliseconds"] > 0
    assert lines(service, "request", request_id="line-2", status=422, error_code="out_of_range")
    assert "wintersecret" not in service.log


def test_texts_are_logged_where_the_operator_asks_for_them(words_store: Path) -> None:
    """The setting that shows texts would do nothing; or successes would be logged where only failures should be."""
    with serving(words_store, log_requests="all", log_queries=True) as service:
        service.ask("POST", "/predict", RED)
        assert wait_until(lambda: lines(service, "request", queries=RED["queries"]))
    with serving(words_store) as service:
        service.ask("POST", "/predict", RED)
        assert service.stop() == 0
        assert lines(service, "stopped")
        assert not lines(service, "request")


def test_every_administrative_act_leaves_a_line(service: Service) -> None:
    """The log would not show whose key changed the served bundle, or tried to."""
    service.ask("POST", "/admin/activate", {"bundle": "absent"}, X_Admin_Key=ADMIN_KEY)
    service.ask("POST", "/admin/activate", {"bundle": "second"}, X_Admin_Key="guessed")
    service.ask("POST", "/admin/activate", {"bundle": "second"})
    tried, guessed, keyless = wait_until(
        lambda: len(found := lines(service, "administration")[-3:]) == 3 and found[-1]["key"] is None and found
    )
    assert (tried["action"], tried["status"], tried["error_code"]) == ("activate", 404, "not_activated")
    assert (tried["bundle"], tried["address"]) == ("absent", "127.0.0.1")
    assert (
        (guessed["status"], guessed["error_code"]) == (keyless["status"], keyless["error_code"]) == (401, "wrong_key")
    )
    assert (tried["key"], guessed["key"], keyless["key"]) == ("admin", "unknown", None)
    assert ADMIN_KEY not in service.log
    assert "guessed" not in service.log


def test_metrics_show_generations_batches_and_memory(service: Service) -> None:
    """Operators could not see padding, an engine that grows, or requests that an old bundle still holds."""
    before = figures(service)
    service.ask("POST", "/predict", {"queries": ["red", "red winter city"]})
    after = figures(service)
    assert after["diptych_batch_tokens_sum"] - before["diptych_batch_tokens_sum"] == 4
    assert after["diptych_padding_ratio_sum"] - before["diptych_padding_ratio_sum"] == pytest.approx(2 / 6)
    labels = 'bundle="first",generation="1"'
    assert after[f"diptych_in_flight{{{labels}}}"] == 0
    assert after[f"diptych_engine_resident_bytes{{{labels}}}"] > 1e7
    assert after["process_resident_memory_bytes"] > 1e7
    wait_until(lambda: figures(service)["diptych_connections"] == 1)  # the one that asks


@contextmanager
def collector() -> Iterator[tuple[str, list[Any]]]:
    """A real OTLP collector, as far as it takes spans: its address and the spans that came."""
    spans: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["Content-Length"])))
            for resource in request.resource_spans:
                named = {one.key: one.value.string_value for one in resource.resource.attributes}
                spans.extend((named, span) for scope in resource.scope_spans for span in scope.spans)
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}", spans
        finally:
            server.shutdown()
            thread.join(PATIENCE)


def test_traces_join_the_callers_and_show_the_stages(words_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow answer could not be traced from the calling page to the slow stage."""
    with collector() as (address, spans):
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", address)
        with serving(words_store) as service:
            parent = f"00-{'ab' * 16}-{'cd' * 8}-01"
            assert service.ask("POST", "/predict", RED, traceparent=parent, X_Request_ID="traced").status == 200
            assert service.ask("POST", "/predict", b"{").status == 400
            assert service.stop() == 0  # which sends what is left
    named = {span.name: span for _, span in spans if span.trace_id.hex() == "ab" * 16}
    request = named.pop("POST /predict")
    assert request.parent_span_id.hex() == "cd" * 8
    assert set(named) == set(STAGES)
    for span in named.values():
        assert span.parent_span_id == request.span_id
        assert request.start_time_unix_nano <= span.start_time_unix_nano <= span.end_time_unix_nano
        assert span.end_time_unix_nano <= request.end_time_unix_nano
    attributes = {one.key: one.value for one in request.attributes}
    assert attributes["diptych.bundle"].string_value == "first"
    assert attributes["diptych.request_id"].string_value == "traced"
    assert attributes["http.response.status_code"].int_value == 200
    assert {about["service.name"] for about, _ in spans} == {"diptych"}
    (refused,) = [span for _, span in spans if span.trace_id.hex() != "ab" * 16]
    assert {one.key: one.value for one in refused.attributes}["error.type"].string_value == "not_json"


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("OTEL_TRACES_EXPORTER", "jaeger", "set it to 'otlp'"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc", "use 'http/protobuf'"),
    ],
)
def test_traces_that_cannot_be_sent_are_one_sentence(
    words_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, message: str
) -> None:
    """An operator who sets an unsupported exporter would wait for traces that never come."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv(variable, value)
    code, log = ended_with(words_store, tmp_path / "log")
    assert code == 1
    assert message in log
    assert "Traceback" not in log


def test_traces_need_their_extra_and_nothing_else_does(
    words_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The service would not start without packages that it does not need, or would drop traces silently."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\nfor name in ('opentelemetry.sdk', 'opentelemetry.exporter'):\n    sys.modules[name] = None\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with serving(words_store) as service:
        assert service.ask("POST", "/predict", RED).status == 200
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    code, log = ended_with(words_store, tmp_path / "log")
    assert code == 1
    assert "pip install 'diptych[otel]'" in log
