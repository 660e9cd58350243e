"""Start, overload, drain and stop of `diptych serve`; an engine stopped by SIGSTOP keeps requests in flight."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from retrieval.bundle.signatures import new_keys
from retrieval.open import open_store
from service.errors import longest_retry
from tests.support.bundles import make_store
from tests.support.service import (
    ADMIN_KEY,
    PATIENCE,
    Client,
    Service,
    end,
    ended_with,
    figures,
    has_ended,
    serving,
    start,
    wait_until,
)
from tests.support.web_store import Handler, web_store

RED = {"queries": ["red"]}


@pytest.fixture(scope="module")
def words_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("lifecycle") / "store", "first", "second").path


def asking(service: Service, clients: int) -> list[Client]:
    """Send a request with each of some clients and wait until all are admitted; the engine must be stopped."""
    before = figures(service)["diptych_unfinished_requests"]
    waiting = [service.client() for _ in range(clients)]
    for client in waiting:
        client.begin("POST", "/predict", b'{"queries": ["red"]}')
    wait_until(lambda: figures(service)["diptych_unfinished_requests"] == before + clients)
    return waiting


def test_sigterm_answers_what_was_admitted(words_store: Path) -> None:
    """Every deployment would break the requests in flight."""
    with serving(words_store) as service:
        with service.engine_stopped():
            waiting = asking(service, 5)
            service.process.send_signal(signal.SIGTERM)
            wait_until(lambda: not listens(service.port))
            assert service.process.poll() is None
        replies = [client.finish() for client in waiting]
        assert [reply.status for reply in replies] == [200] * 5
        assert service.process.wait(PATIENCE) == 0


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_only_signed_bundles_are_served_where_keys_are_trusted(tmp_path: Path) -> None:
    """An attacker who can write to the store, or reach the admin route, would control the answers."""
    store, keys = make_store(tmp_path / "store", "first", "second"), new_keys()
    store.sign("first", keys.signing)
    with serving(store.path, trusted_keys=keys.trusted) as service:
        refused = service.activate("second")
        assert refused.status != 200
        assert "second is not signed" in refused.body.decode()
        assert service.ask("POST", "/predict", b'{"queries": ["red"]}').json()["bundle"] == "first"
        assert store.active() == "first"
        store.sign("second", keys.signing)
        assert service.activate("second").status == 200


def test_a_stopped_service_leaves_no_process_behind(words_store: Path) -> None:
    """Engines would keep their memory after the service has ended or was killed."""
    with serving(words_store) as service:
        engines = service.engines()
        assert service.stop() == 0
        assert all(has_ended(pid) for pid in engines)
    with serving(words_store) as service:
        (engine,) = service.engines()
        service.process.kill()
        wait_until(lambda: has_ended(engine))


def test_sigint_ends_as_sigterm_does(words_store: Path) -> None:
    """Ctrl-C, which reaches the engines too, would end in tracebacks and an error code."""
    with serving(words_store) as service:
        for pid in [*service.engines(), service.process.pid]:
            os.kill(pid, signal.SIGINT)
        assert service.process.wait(PATIENCE) == 0
        assert "Traceback" not in service.log


def test_a_full_queue_is_refused_at_once(words_store: Path) -> None:
    """Overload would grow the queue without bound, and health probes would fail with it."""
    with serving(words_store, max_queries=2, max_waiting_queries=2, batches_ahead=0) as service:
        with service.engine_stopped():
            waiting = asking(service, 3)
            reply = service.ask("POST", "/predict", RED)
            assert (reply.status, reply.json()["error"]["code"]) == (429, "overloaded")
            assert 1 <= int(reply.headers["retry-after"]) <= longest_retry()
            client = service.client()  # refused before it is read: on one connection, with any body
            for body in (b"{", b"x" * 100_000, json.dumps(RED).encode()):
                refused = client.post("/predict", body, X_Request_ID="mine")
                assert (refused.status, refused.headers["x-request-id"]) == (429, "mine")
                assert refused.headers["server-timing"].startswith("total;dur=")
            last = client.post("/predict", RED, Connection="close")
            assert (last.status, last.headers["connection"]) == (429, "close")
            found = figures(service)
            assert found['diptych_rejections_total{reason="queue_full"}'] == 5
            assert found['diptych_requests_total{code="429",route="/predict"}'] == 5
            assert service.ask("GET", "/livez").status == service.ask("GET", "/readyz").status == 200
        assert [client.finish().status for client in waiting] == [200] * 3
        assert service.ask("POST", "/predict", RED).status == 200


def test_a_deadline_ends_the_wait(words_store: Path) -> None:
    """A client would wait for an engine forever."""
    with serving(words_store, deadline_seconds=0.2) as service:
        with service.engine_stopped():
            reply = service.ask("POST", "/predict", RED)
            assert (reply.status, reply.json()["error"]["code"]) == (504, "too_late")
        wait_until(lambda: service.ask("POST", "/predict", RED).status == 200)


def test_a_client_can_set_a_deadline(words_store: Path) -> None:
    """The engine would work for clients that have long shown something else; or a nonsensical wish would be obeyed."""
    with serving(words_store) as service:
        client = service.client()
        assert client.post("/predict", RED, X_Deadline_Ms="60000").status == 200
        with service.engine_stopped():
            reply = client.post("/predict", RED, X_Deadline_Ms="40")
            assert (reply.status, reply.json()["error"]["code"]) == (504, "deadline_exceeded")
            assert reply.json()["error"]["message"] == "No answer was ready within 0.04 s."
            assert figures(service)["diptych_client_deadlines_total"] == 1  # so that no alarm counts it
        for wish in ("0", "-1", "soon", "1.5", "9" * 10, ""):
            reply = client.post("/predict", RED, X_Deadline_Ms=wish)
            assert (reply.status, reply.json()["error"]["code"]) == (422, "bad_deadline")


def test_after_sigterm_it_answers_until_load_balancers_have_noticed(words_store: Path) -> None:
    """Requests that arrive shortly after SIGTERM would be refused a connection."""
    with serving(words_store, grace_seconds=PATIENCE) as service:
        service.process.send_signal(signal.SIGTERM)
        wait_until(lambda: service.ask("GET", "/readyz").status == 503)
        assert service.ask("POST", "/predict", RED).status == 200
        assert service.activate("second").json()["error"]["code"] == "busy_switching"
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(PATIENCE) == 0


def test_a_client_that_hangs_up_costs_the_engine_nothing(words_store: Path) -> None:
    """The engine would finish abandoned requests while other clients wait."""
    with serving(words_store, batches_ahead=0) as service:
        with service.engine_stopped():
            first = asking(service, 1)
            for client in asking(service, 3):
                client.close()
            wait_until(lambda: figures(service).get('diptych_rejections_total{reason="abandoned"}') == 3)
            assert figures(service)["diptych_waiting_queries"] == 0
        assert first[0].finish().status == 200
        wait_until(lambda: figures(service)["diptych_batch_queries_sum"] == 1)


@pytest.fixture
def gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """While this file does not exist, engines stop short of loading."""
    gate = tmp_path / "gate"
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys, time\n"
        f"while 'service.engine.start' in sys.orig_argv and not os.path.exists({str(gate)!r}):\n"
        "    time.sleep(0.01)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return gate


@pytest.mark.parametrize("opens", [True, False])
def test_it_is_alive_before_it_is_ready(words_store: Path, tmp_path: Path, gate: Path, opens: bool) -> None:
    """An orchestrator would kill a service that is loading a large bundle, or send it requests too early."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = start(words_store, tmp_path / "log", port=port)
    try:
        wait_until(lambda: listens(port))
        with Client(port) as client:
            assert client.get("/livez").status == 200
            wait_until(lambda: "is being prepared" in client.get("/readyz").json()["detail"])
            reply = client.get("/readyz")
            detail = "no bundle is open yet; bundle first is being prepared"
            assert (reply.status, reply.json()["detail"]) == (503, detail)
            reply = client.post("/predict", RED)
            assert (reply.status, reply.json()["error"]["code"]) == (503, "unavailable")
            if opens:
                gate.touch()
                wait_until(lambda: client.get("/readyz").status == 200)
    finally:
        end(process)
    assert process.returncode == 0


def test_a_bundle_that_never_opens_times_out(words_store: Path, gate: Path) -> None:
    """One bundle that hangs would keep every later one from being activated, until the service is restarted."""
    gate.touch()
    with serving(words_store, load_seconds=15) as service:
        gate.unlink()
        refused = service.activate("second")
        assert refused.status == 422
        assert "second was not ready within 15 s." in refused.json()["error"]["message"]
        assert service.ask("POST", "/predict", RED).headers["x-bundle"] == "first"
        assert service.activate("absent").status == 404  # not 409: the next one may try
        wait_until(lambda: len(service.engines()) == 1)


def test_a_stop_does_not_wait_for_a_bundle_that_is_being_prepared(words_store: Path, gate: Path) -> None:
    """A deployment during a switch would wait until a large bundle is loaded, which is then not used."""
    gate.touch()
    with serving(words_store, drain_seconds=PATIENCE) as service:
        gate.unlink()
        client = service.client()
        client.begin("POST", "/admin/activate", b'{"bundle": "second"}', X_Admin_Key=ADMIN_KEY)
        wait_until(lambda: "second is being prepared" in service.ask("GET", "/readyz").json()["detail"])
        assert service.activate("second").json()["error"]["code"] == "busy_switching"
        assert service.ask("POST", "/predict", RED).headers["x-bundle"] == "first"
        service.process.send_signal(signal.SIGTERM)
        reply = client.finish()
        assert (reply.status, reply.json()["error"]["code"]) == (409, "busy_switching")
        assert service.process.wait(PATIENCE) == 0
        assert open_store(words_store).active() == "first"


def test_a_stop_does_not_wait_for_a_silent_store(
    words_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A deployment would hang for minutes because a bucket does not answer, or until a large bundle is downloaded."""
    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path / "cache"))
    silent = threading.Event()

    def say_nothing(handler: Handler) -> None:
        handler.begin(1_000_000)
        silent.set()
        handler.rfile.read(1)

    for path, activated in (("/CURRENT", None), ("/bundles/second/index.hnsw", "second")):
        with web_store(words_store) as web, serving(Path(web.url), watch_seconds=0.05) as service:
            client = service.client()
            silent.clear()
            web.handlers[path] = say_nothing
            if activated:
                client.begin("POST", "/admin/activate", b'{"bundle": "second"}', X_Admin_Key=ADMIN_KEY)
            assert silent.wait(PATIENCE)
            assert service.ask("POST", "/predict", RED).headers["x-bundle"] == "first"
            service.process.send_signal(signal.SIGTERM)
            if activated:
                assert client.finish().json()["error"]["code"] == "busy_switching"
            assert service.process.wait(PATIENCE) == 0


def test_a_store_without_an_active_bundle_is_one_sentence(tmp_path: Path) -> None:
    """A user who forgot `--activate` would get a traceback, or a service that is never ready."""
    code, log = ended_with(tmp_path / "absent", tmp_path / "log")
    assert code == 1
    assert "error:" in log
    assert "has no active bundle (bundles: none yet)" in log
    assert "Traceback" not in log


def test_a_file_for_a_store_and_a_misspelt_setting_are_a_sentence_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error for a bundle's file would be about paused labels, or a misspelt limit would be ignored silently."""
    monkeypatch.setenv("DIPTYCH_MAX_KK", "3")
    (tmp_path / "file").touch()
    code, log = ended_with(tmp_path / "file", tmp_path / "log")
    assert code == 1
    assert f"{tmp_path / 'file'} is a file. Name the folder" in log
    assert "DIPTYCH_MAX_KK is not a known setting; ignored. Did you mean DIPTYCH_MAX_K?" in log
    assert "Traceback" not in log


def test_a_damaged_active_bundle_is_one_sentence(tmp_path: Path) -> None:
    """A service would start on a damaged index, which crashes or answers nonsense."""
    store = make_store(tmp_path / "store", "only")
    index = store.bundle_path("only") / "index.hnsw"
    index.write_bytes(index.read_bytes()[:-1] + b"?")
    code, log = ended_with(store.path, tmp_path / "log")
    assert code == 1
    assert "index.hnsw is damaged" in log
    assert "Traceback" not in log


def test_a_port_in_use_is_one_sentence(words_store: Path, tmp_path: Path) -> None:
    """Starting a second service on the same port would end in a traceback."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        command = [sys.executable, "-m", "diptych", "serve", "--store", str(words_store), "--port", str(port)]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert ended.returncode == 1
    assert ended.stderr == (
        f"error: cannot listen on 127.0.0.1:{port} (Address already in use). Choose another with --host or --port.\n"
    )


def test_administration_is_off_without_a_key(words_store: Path) -> None:
    """A service whose operator set no key would let every client change the served bundle."""
    with serving(words_store, admin_key="") as service:
        for headers in ({}, {"X_Admin_Key": ""}):
            reply = service.ask("POST", "/admin/activate", {"bundle": "first"}, **headers)
            assert (reply.status, reply.json()["error"]["code"]) == (403, "admin_off")


def test_it_serves_where_torch_cannot_be_imported(
    words_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server image without the training packages would fail to start."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\nfor name in ('torch', 'transformers', 'training', 'export'):\n    sys.modules[name] = None\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with serving(words_store) as service:
        assert service.ask("POST", "/predict", RED).status == 200


def test_serving_does_not_change_the_store(words_store: Path) -> None:
    """Serving alone would rewrite the store, which may be mounted read-only."""
    store = open_store(words_store)
    before = {path: path.stat().st_mtime_ns for path in store.path.rglob("*")}
    with serving(words_store) as service:
        assert service.ask("POST", "/predict", RED).status == 200
    assert {path: path.stat().st_mtime_ns for path in store.path.rglob("*")} == before
