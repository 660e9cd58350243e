"""A bundle that hangs while it is loaded must not block a rollback, another activation or a stop."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from retrieval.store.local import Store
from tests.support.bundles import make_store
from tests.support.faults import with_hanging_bundle
from tests.support.service import (
    ADMIN_KEY,
    PATIENCE,
    Client,
    Reply,
    Service,
    children,
    command_line,
    end,
    figures,
    has_ended,
    serving,
    start,
    wait_until,
)

RED = {"queries": ["red winter city"]}
CALM = {"watch_seconds": 0.05, "load_seconds": 600}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """One and two were active; hang never opens."""
    store = make_store(tmp_path / "store", "one", "two", "three", "hang")
    store.activate("two")
    return store


@pytest.fixture
def gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Engines of the bundle hang wait for this file."""
    return with_hanging_bundle(tmp_path, monkeypatch, "hang")


def served(service: Service) -> str | None:
    """Return the bundle that answers; None while requests are refused."""
    return service.ask("POST", "/predict", RED).headers.get("x-bundle")


def detail(service: Service) -> str:
    return str(service.ask("GET", "/readyz").json()["detail"])


def admin(service: Service, path: str) -> Reply:
    return service.ask("POST", f"/admin/{path}", X_Admin_Key=ADMIN_KEY)


@contextmanager
def activating(service: Service, name: str) -> Iterator[Client]:
    """Ask for the activation of a bundle and wait until its engine has been started; yield the client that waits."""
    engines = set(service.engines())
    with service.client() as client:
        client.begin("POST", "/admin/activate", b'{"bundle": "%b"}' % name.encode(), X_Admin_Key=ADMIN_KEY)
        wait_until(lambda: f"bundle {name} is being prepared" in detail(service) and set(service.engines()) - engines)
        yield client


def refused(client: Client) -> tuple[int, str, str]:
    reply = client.finish()
    return reply.status, reply.json()["error"]["code"], reply.json()["error"]["message"]


def test_a_rollback_does_not_wait_for_a_hanging_bundle(store: Store, gate: Path) -> None:
    """After the activation of a bad bundle, a rollback would wait for a quarter of an hour."""
    with serving(store.path, **CALM) as service, activating(service, "hang") as client:
        assert admin(service, "rollback").json()["bundle"] == "one"
        why = "Bundle hang was not activated: bundle one was requested later."
        assert refused(client) == (409, "busy_switching", why)
        assert (served(service), store.active(), detail(service)) == ("one", "one", "serving")
        wait_until(lambda: len(service.engines()) == 1)
        assert figures(service)['diptych_switches_total{result="preempted"}'] == 1


def test_another_activation_preempts_it_and_the_same_is_refused(store: Store, gate: Path) -> None:
    """One bundle that hangs would prevent every later one from being served."""
    with serving(store.path, **CALM) as service, activating(service, "hang") as client:
        again = service.activate("hang")
        assert again.status == 409
        assert "bundle hang is being prepared" in again.json()["error"]["message"]
        assert service.activate("three").json()["bundle"] == served(service) == store.active() == "three"
        assert refused(client)[:2] == (409, "busy_switching")
        wait_until(lambda: len(service.engines()) == 1)


def test_the_next_active_bundle_of_the_store_preempts_it(store: Store, gate: Path) -> None:
    """A good bundle after a bad one would not be served although store commands show it as active."""
    with serving(store.path, **CALM) as service:
        store.activate("hang")
        wait_until(lambda: "bundle hang is being prepared" in detail(service) and len(service.engines()) == 2)
        store.activate("three")
        wait_until(lambda: served(service) == "three")
        wait_until(lambda: len(service.engines()) == 1)
        store.activate("hang")
        wait_until(lambda: "bundle hang is being prepared" in detail(service))
        store.rollback()
        wait_until(lambda: detail(service) == "serving" and len(service.engines()) == 1)
        assert served(service) == "three"


def test_an_admin_request_is_newer_than_the_present_value_of_current(store: Store, gate: Path) -> None:
    """The service would load the hanging bundle again after its administrator has activated another one."""
    with serving(store.path, **CALM) as service:
        store.activate("hang")
        wait_until(lambda: "bundle hang is being prepared" in detail(service))
        assert service.activate("three").json()["bundle"] == served(service) == store.active() == "three"
        wait_until(lambda: detail(service) == "serving" and len(service.engines()) == 1)


def test_a_service_that_starts_with_it_accepts_admin_requests(store: Store, gate: Path, tmp_path: Path) -> None:
    """A service that starts with a hanging bundle could only be repaired in the store."""
    store.activate("hang")
    process = start(store.path, tmp_path / "log", **CALM)
    try:
        with Client(port_of(process.pid)) as client:
            wait_until(lambda: "bundle hang is being prepared" in client.get("/readyz").json()["detail"])
            reply = client.post("/admin/rollback", b"", X_Admin_Key=ADMIN_KEY)
            assert (reply.status, reply.json()["bundle"]) == (200, "two")
            assert client.post("/predict", RED).headers["x-bundle"] == "two"
            wait_until(lambda: "serving bundle two" in (tmp_path / "log").read_text())
            wait_until(lambda: len(children(process.pid)) == 1)
    finally:
        end(process)
    assert process.returncode == 0


def port_of(pid: int) -> int:
    """Return the port on which a process listens, from /proc."""

    def found() -> int:
        try:
            links = {os.readlink(one) for one in Path(f"/proc/{pid}/fd").iterdir()}
        except FileNotFoundError:
            return 0
        for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in links:
                return int(fields[1].partition(":")[2], 16)
        return 0

    return int(wait_until(found))


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("stage", ["opening", "activating", "comparing", "following", "replacing"])
def test_the_service_ends_and_leaves_no_engine_behind(
    store: Store, gate: Path, tmp_path: Path, stage: str, how: signal.Signals
) -> None:
    """An engine that hangs would prevent its service from ending, or outlive it."""
    log = tmp_path / "log"
    if stage in ("opening", "replacing"):
        store.activate("hang")
    if stage == "replacing":
        gate.touch()
    process = start(store.path, log, **CALM)
    try:
        # Closed after the service has ended: a comparison ends when its client hangs up.
        with Client(port_of(process.pid)) as client:
            if stage != "opening":
                # A service that is ready but has not finished its own switch refuses a comparison.
                wait_until(lambda: client.get("/readyz").json()["detail"] == "serving")
            before = [] if stage == "opening" else children(process.pid)
            reach(stage, client, store, gate, before)
            expected = {"opening": 1, "replacing": 1}.get(stage, 2)
            engines = wait_until(lambda: len(now := children(process.pid)) == expected and now != before and now)
            process.send_signal(how)
            assert process.wait(PATIENCE) == (0 if how is signal.SIGTERM else -how)
        wait_until(lambda: all(has_ended(engine) for engine in engines))
    finally:
        process.kill()
        process.wait()


def reach(stage: str, client: Client, store: Store, gate: Path, engines: list[int]) -> None:
    """Start an engine of the bundle hang in one of the ways there are."""
    if stage in ("activating", "comparing"):
        path = {"activating": "/admin/activate", "comparing": "/admin/compare"}[stage]
        body = b'{"bundle": "hang"}' if stage == "activating" else b'{"bundle": "hang", "queries": ["red"]}'
        client.begin("POST", path, body, X_Admin_Key=ADMIN_KEY)
    elif stage == "following":
        store.activate("hang")
    elif stage == "replacing":
        gate.unlink()
        os.kill(engines[0], signal.SIGKILL)


def engine_of(service: Service, bundle: str) -> int | None:
    """Return the engine of a bundle, if it has one now."""
    engines = service.engines()
    return next((one for one in engines if any(f"/bundles/{bundle}" in word for word in command_line(one))), None)


def test_an_automatic_rollback_does_not_wait_for_a_hanging_bundle(store: Store, gate: Path) -> None:
    """A bundle whose engines keep dying would be served until the next one opens."""
    with serving(store.path, crashes=2, **CALM) as service:
        assert service.activate("three").status == 200
        store.activate("hang")
        wait_until(lambda: engine_of(service, "hang"))
        for _ in range(2):
            dead = wait_until(lambda: service.ask("GET", "/readyz").status == 200 and engine_of(service, "three"))
            os.kill(dead, signal.SIGKILL)
            wait_until(lambda dead=dead: engine_of(service, "three") != dead)
        wait_until(lambda: service.ask("GET", "/readyz").json()["bundle"] == "two")
        assert served(service) == "two"
        wait_until(lambda: engine_of(service, "hang"))  # what the store names is tried again
