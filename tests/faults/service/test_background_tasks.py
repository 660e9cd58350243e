"""Background tasks of a real service when the store, the system or their code fails: reported, and retried."""

import os
import resource
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from retrieval.store.local import Store
from tests.support.bundles import make_store
from tests.support.faults import with_code_before
from tests.support.service import (
    ADMIN_KEY,
    PATIENCE,
    Reply,
    Service,
    command_line,
    ended_with,
    figures,
    serving,
    wait_until,
    write_whole,
)

RED = {"queries": ["red winter city"], "k": 10}
BAD_LISTS = {
    "an invalid byte": b'{"paused": ["one-1\xff"]}',
    "no JSON": b"{",
    "another shape": b'["one-1"]',
    "half a character": b'{"paused": ["\\ud800"]}',
}

FAIL_ONCE = """
import {module} as module
original, failures = module.{method}, [ZeroDivisionError("injected")]
def failing(self, *given, **named):
    if failures and ({condition}):
        raise failures.pop()
    return original(self, *given, **named)
module.{method} = failing
"""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return make_store(tmp_path / "store", "one", "two", "three")


def detail(service: Service) -> str:
    return str(service.ask("GET", "/readyz").json()["detail"])


def served(service: Service) -> str | None:
    """Return the bundle that answers; None while requests are refused."""
    return service.ask("POST", "/predict", RED).headers.get("x-bundle")


def shown(service: Service) -> list[str]:
    return [hit["id"] for hit in service.ask("POST", "/predict", RED).json()["results"][0]["hits"]]


def failures(service: Service, task: str) -> float:
    return figures(service)[f'diptych_task_failures_total{{task="{task}"}}']


def pause(service: Service, **change: Any) -> Reply:
    return service.ask("POST", "/admin/paused", change, X_Admin_Key=ADMIN_KEY)


@pytest.mark.parametrize("content", BAD_LISTS.values(), ids=BAD_LISTS.keys())
def test_a_service_does_not_start_on_a_list_that_cannot_be_read(store: Store, tmp_path: Path, content: bytes) -> None:
    """The service would wait forever without a log line, or show labels that must not be shown."""
    (store.path / "PAUSED.json").write_bytes(content)
    code, log = ended_with(store.path, tmp_path / "log")
    errors = [line for line in log.splitlines() if line.startswith("error: ")]
    assert (code, len(errors)) == (1, 1)
    assert "PAUSED.json" in errors[0]
    assert "Traceback" not in log


@pytest.mark.parametrize("content", BAD_LISTS.values(), ids=BAD_LISTS.keys())
def test_an_invalid_list_is_reported_and_watching_continues(store: Store, content: bytes) -> None:
    """One invalid byte would end the watcher: no later pause or bundle would be noticed, without a log line."""
    file = store.path / "PAUSED.json"
    with serving(store.path, watch_seconds=0.05, load_share=1) as service:
        gone = shown(service)[0]
        assert pause(service, add=[gone]).status == 200
        write_whole(file, content)
        wait_until(
            lambda: "the list of paused labels cannot be read, so the last one stays in force" in detail(service)
        )
        assert service.ask("GET", "/readyz").status == 200
        wait_until(lambda: failures(service, "store_watch") > 2)
        assert gone not in shown(service)
        store.activate("two")
        wait_until(lambda: served(service) == "two")
        write_whole(file, f'{{"paused": ["{shown(service)[0]}"]}}')
        wait_until(lambda: detail(service) == "serving")
        assert service.log.count("the list of paused labels cannot be read") == 2  # when it began and when it ended


def test_a_removed_list_pauses_nothing_and_is_reported(store: Store) -> None:
    """An operator would not know why paused labels are shown again."""
    with serving(store.path, watch_seconds=0.05) as service:
        gone = shown(service)[:2]
        pause(service, add=gone)
        assert not set(gone) & set(shown(service))
        (store.path / "PAUSED.json").unlink()
        wait_until(lambda: shown(service)[:2] == gone)
        assert service.wait_for_log(r"PAUSED.json is empty or has been removed: (\d+) labels are shown again") == "2"
        assert service.ask("GET", "/admin/paused", X_Admin_Key=ADMIN_KEY).json()["paused"] == []


def test_a_removed_store_is_reported_and_used_again_when_it_is_back(store: Store) -> None:
    """A missing file share would not be noticed until the next start, or its paused labels would be shown again."""
    with serving(store.path, watch_seconds=0.05, load_share=1) as service:
        gone = shown(service)[0]
        pause(service, add=[gone])
        away = store.path.rename(store.path.with_name("away"))
        wait_until(lambda: "the store cannot be read (the store cannot be reached: No such file" in detail(service))
        assert service.ask("GET", "/readyz").status == 200
        wait_until(lambda: failures(service, "store_watch") > 4)
        assert gone not in shown(service)
        assert str(store.path) not in detail(service)
        assert service.log.count("the store cannot be read (") == 1
        store.path.mkdir()  # as where a share is not mounted
        wait_until(lambda: "has no file CURRENT" in detail(service))
        assert gone not in shown(service)
        store.path.rmdir()
        away.rename(store.path)
        wait_until(lambda: detail(service) == "serving")
        store.activate("two")
        wait_until(lambda: served(service) == "two")


def change_link(link: Path, target: Path) -> None:
    """Change a symlink in one step, as git-sync does."""
    new = link.with_name("live.new")
    new.symlink_to(target)
    new.replace(link)


def test_a_store_that_is_a_symlink_is_followed(tmp_path: Path) -> None:
    """A release that is deployed by changing a symlink would never be served."""
    old, new = make_store(tmp_path / "old", "one", "two"), make_store(tmp_path / "new", "three", "one")
    link = tmp_path / "live"
    link.symlink_to(old.path)
    with serving(link, watch_seconds=0.05, load_share=1) as service:
        assert served(service) == "one"
        pause(service, add=["one-1", "three-1"])
        change_link(link, new.path)
        wait_until(lambda: served(service) == "three")
        wait_until(lambda: service.ask("GET", "/admin/paused", X_Admin_Key=ADMIN_KEY).json()["paused"] == [])
        assert service.activate("one").json()["bundle"] == served(service) == "one"
        assert (old.active(), new.active()) == ("one", "one")
        change_link(link, old.path)  # another bundle of the same name
        wait_until(lambda: engine_folder(service) == old.bundle_path("one"))
        assert service.ask("GET", "/admin/paused", X_Admin_Key=ADMIN_KEY).json()["paused"] == ["one-1", "three-1"]
        reply = service.activate("absent")
        assert (reply.status, str(tmp_path) in reply.body.decode()) == (404, False)
        link.unlink()
        wait_until(lambda: "the store cannot be read" in detail(service))
        assert str(tmp_path) not in detail(service)
        assert served(service) == "one"


def engine_folder(service: Service) -> Path | None:
    """Return the folder of the only engine's bundle; None unless there is exactly one engine."""
    engines = service.engines()
    if len(engines) != 1:
        return None
    return next((Path(word) for word in command_line(engines[0]) if "/bundles/" in word), None)


def test_a_copy_of_the_served_bundle_is_not_loaded_again(tmp_path: Path) -> None:
    """Every release of a store would load its bundle again, or a replacement engine would open a removed folder."""
    old, new = make_store(tmp_path / "old", "one"), make_store(tmp_path / "new", "one")
    link = tmp_path / "live"
    link.symlink_to(old.path)
    with serving(link, watch_seconds=0.05, deadline_seconds=PATIENCE) as service:
        engines = service.engines()
        change_link(link, new.path)
        service.wait_for_log("bundle one is served, and is in another folder of the store now")
        assert service.engines() == engines
        old.path.rename(tmp_path / "gone")
        os.kill(engines[0], signal.SIGKILL)
        wait_until(lambda: engine_folder(service) == new.bundle_path("one"))
        assert served(service) == "one"


@contextmanager
def no_descriptors(service: Service) -> Iterator[None]:
    """While the block runs, let the service open no file and no socket."""
    pid = service.process.pid
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


def test_an_engine_is_replaced_once_there_are_descriptors_again(store: Store) -> None:
    """EMFILE at the moment when an engine dies would leave the service without an engine permanently."""
    with serving(store.path, watch_seconds=0.05) as service, service.client() as client:
        assert client.post("/predict", RED).status == 200
        with no_descriptors(service):
            for engine in service.engines():
                os.kill(engine, signal.SIGKILL)
            reason = "no process can be started for bundle one (Too many open files)"
            wait_until(lambda: reason in client.get("/readyz").json()["detail"])
            assert client.post("/predict", RED).status == 503
        wait_until(lambda: client.get("/readyz").json()["detail"] == "serving")
        assert client.post("/predict", RED).status == 200


def test_a_bundle_is_followed_once_there_are_descriptors_again(store: Store) -> None:
    """A bundle that was activated while the service had no free descriptor would never be served."""
    with serving(store.path, watch_seconds=0.05, load_share=1) as service, service.client() as client:
        assert client.post("/predict", RED).headers["x-bundle"] == "one"  # the connection is accepted before
        with no_descriptors(service):
            store.activate("two")
            wait_until(lambda: "Too many open files" in client.get("/readyz").json()["detail"])
        wait_until(lambda: client.get("/readyz").json()["bundle"] == "two")


@pytest.mark.parametrize(
    ("task", "module", "method", "condition"),
    [
        ("connection_watch", "service.connections.pool", "ConnectionPool.watch", "True"),
        ("generation_closing", "service.bundles.generation", "Generation.close", "self.name == 'one'"),
        (
            "engine_replacement",
            "service.bundles.generation_set",
            "GenerationSet.choose_policy",
            "self.current is given[0]",
        ),
        ("store_follow", "service.bundles.generation_set", "GenerationSet.serves", "True"),
        ("store_watch", "service.bundles.store_access", "StoreAccess.active_folder", "True"),
        ("comparison_closing", "service.bundles.comparison", "Comparison.close", "self.generation"),
    ],
)
def test_a_task_that_fails_once_is_counted_and_goes_on(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str, module: str, method: str, condition: str
) -> None:
    """An unexpected exception would end a background task permanently, without a log line or a metric."""
    code = FAIL_ONCE.format(module=module, method=method, condition=condition)
    with_code_before(tmp_path, monkeypatch, "service.server", code)
    with serving(store.path, watch_seconds=0.05, load_share=1, compare_seconds=0.1, keep_alive_seconds=1) as service:
        body = {"bundle": "three", "queries": ["red"]}
        assert service.ask("POST", "/admin/compare", body, X_Admin_Key=ADMIN_KEY).status == 200
        wait_until(lambda: len(service.engines()) == 1)
        for engine in service.engines():
            os.kill(engine, signal.SIGKILL)
        wait_until(
            lambda engine=engine: engine not in service.engines() and service.ask("GET", "/readyz").status == 200
        )
        store.activate("two")
        wait_until(lambda: served(service) == "two")
        wait_until(lambda: len(service.engines()) == 1)
        with service.client() as silent:
            assert silent._stream.read(1) == b""  # idle connections are still closed
        assert failures(service, task) == 1
        assert "ZeroDivisionError: injected" in service.log
        wait_until(lambda: detail(service) == "serving")
    assert service.process.returncode == 0


@pytest.mark.parametrize(
    ("task", "method", "path", "body"),
    [
        ("bundle_loading", "BundleLoader.open", "activate", {"bundle": "two"}),
        ("comparison_opening", "BundleLoader.open_for_comparison", "compare", {"bundle": "two", "queries": ["red"]}),
    ],
)
def test_an_admin_request_that_fails_unexpectedly_is_answered_and_can_be_repeated(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str, method: str, path: str, body: Any
) -> None:
    """The administrator would get no answer, or no bundle could be opened any more."""
    condition = "given[0] != 'one'"
    code = FAIL_ONCE.format(module="service.bundles.loader", method=method, condition=condition)
    code = code.replace("def failing", "async def failing").replace("return original", "return await original")
    with_code_before(tmp_path, monkeypatch, "service.server", code)
    with serving(store.path) as service:
        reply = service.ask("POST", f"/admin/{path}", body, X_Admin_Key=ADMIN_KEY)
        assert (reply.status, reply.json()["error"]["code"]) == (500, "internal")
        assert failures(service, task) == 1
        assert (served(service), len(service.engines())) == ("one", 1)
        assert service.ask("POST", f"/admin/{path}", body, X_Admin_Key=ADMIN_KEY).status == 200
        assert detail(service) == "serving"


def test_a_rollback_that_fails_once_is_tried_again(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bundle whose engines keep dying would still be served because of one error at the wrong moment."""
    code = FAIL_ONCE.format(module="service.bundles.store_access", method="StoreAccess.previous", condition="True")
    with_code_before(tmp_path, monkeypatch, "service.server", code)
    with serving(store.path, crashes=1) as service:
        assert service.activate("two").status == 200
        wait_until(lambda: len(service.engines()) == 1)
        os.kill(service.engines()[0], signal.SIGKILL)
        wait_until(lambda: service.ask("GET", "/readyz").json()["bundle"] == "one")
        assert failures(service, "fall_back") == 1


def test_paused_labels_that_could_not_be_sent_are_sent_again(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The list would be right in the store and in /admin/paused, but a paused label would still be shown."""
    condition = "self.pause_version"  # the first list is sent before the generation is open
    code = FAIL_ONCE.format(module="service.bundles.generation", method="Generation.send_paused", condition=condition)
    with_code_before(tmp_path, monkeypatch, "service.server", code)
    with serving(store.path, watch_seconds=0.05) as service:
        gone = shown(service)[0]
        write_whole(store.path / "PAUSED.json", f'{{"paused": ["{gone}"]}}')
        wait_until(lambda: gone not in shown(service))
        assert failures(service, "store_watch") == 1


@pytest.mark.parametrize(
    ("where", "sentence"),
    [
        ("s.StoreAccess.fetch", "the active bundle cannot be opened: unexpected ZeroDivisionError: injected"),
        ("s.StoreAccess.folder", "the active bundle cannot be opened: unexpected ZeroDivisionError: injected"),
    ],
)
def test_a_service_that_cannot_open_its_bundle_ends_with_the_reason(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, sentence: str
) -> None:
    """The service would stay at "no bundle is open yet" forever, and no orchestrator would restart it."""
    code = "import service.bundles.store_access as s\ndef fail(*_):\n    raise ZeroDivisionError('injected')\n"
    code += f"{where} = fail\n"
    with_code_before(tmp_path, monkeypatch, "service.server", code)
    code, log = ended_with(store.path, tmp_path / "log")
    assert code == 1
    assert f"error: {sentence}" in log
    assert "the background task opening failed" in log


def test_a_service_whose_application_cannot_start_ends(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The service would listen and be alive, but never open a bundle."""
    code = (
        "import service.observe.supervisor as s\n"
        "def fail(self):\n"
        "    raise ZeroDivisionError('injected')\n"
        "s.Supervisor.watch_loop = fail\n"
    )
    with_code_before(tmp_path, monkeypatch, "service.server", code)
    code, log = ended_with(store.path, tmp_path / "log")
    assert code == 1
    assert "ZeroDivisionError: injected" in log
    assert "error: the service could not be started" in log


def test_a_stop_does_not_wait_for_a_trace_collector_that_does_not_answer(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trace collector that accepts connections and does not answer would prevent the service from ending."""
    pytest.importorskip("opentelemetry.sdk")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "600")
        with serving(store.path) as service:
            assert service.ask("POST", "/predict", RED).status == 200
            assert service.stop() == 0
            assert "the last traces were not sent" in service.log


def test_traces_that_cannot_be_sent_are_counted_and_do_not_delay_a_stop(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failing exporter would end the service with a traceback and leave its engines running."""
    pytest.importorskip("opentelemetry.sdk")
    code = FAIL_ONCE.format(module="service.observe.tracing", method="Tracing.close", condition="True")
    with_code_before(tmp_path, monkeypatch, "service.server", code)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    with serving(store.path) as service:
        assert service.stop() == 0
        assert "the background task trace_export failed (ZeroDivisionError: injected)" in service.log
