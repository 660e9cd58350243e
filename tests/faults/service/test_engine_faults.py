"""Engines that die, hang or cannot open their bundle while clients send requests."""

import json
import os
import shutil
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from retrieval.bundle.verified_files import describe_file
from retrieval.store.local import Store
from tests.support.bundles import make_store
from tests.support.service import PATIENCE, Load, Service, has_ended, process_state, serving, wait_until

BODIES = [json.dumps({"queries": queries}).encode() for queries in (["red winter"], ["light rain", "blue city"])]
KILLS = 3
PATIENT = {"deadline_seconds": PATIENCE}  # a busy machine may take longer than the default to start an engine


@pytest.fixture
def two_bundles(tmp_path: Path) -> Store:
    return make_store(tmp_path / "store", "good", "other")


def ready(service: Service) -> bool:
    return service.ask("GET", "/readyz").status == 200


def strike(service: Service, number: int) -> int:
    """Send a signal to the only engine; return its process id."""
    (engine,) = service.engines()
    os.kill(engine, number)
    return engine


@pytest.mark.parametrize("threads", [1, 2])
def test_no_client_notices_a_killed_engine(two_bundles: Store, threads: int) -> None:
    """A crash in native code would fail the requests of its batch, and end the service."""
    with (
        serving(two_bundles.path, worker_threads=threads, **PATIENT) as service,
        Load(service, BODIES, clients=3) as load,
    ):
        for _ in range(KILLS):
            answered = len(load.replies)
            wait_until(lambda answered=answered: len(load.replies) > answered + 10 or load.errors)
            dead = strike(service, signal.SIGKILL)
            wait_until(lambda dead=dead: (now := service.engines()) and dead not in now and ready(service))
        after = len(load.replies)
        wait_until(lambda: len(load.replies) > after + 10 or load.errors)
        restarts = service.ask("GET", "/metrics").body.decode()
    assert not load.errors
    assert {reply.status for _, reply in load.replies} == {200}
    assert f"diptych_engine_restarts_total {KILLS}.0" in restarts


def test_a_hanging_engine_is_replaced(two_bundles: Store) -> None:
    """One endless search would block all later requests forever."""
    # long enough for the replacement's answer on a busy machine: a query that ends two engines is refused
    with serving(two_bundles.path, engine_timeout_seconds=2, **PATIENT) as service:
        stopped = strike(service, signal.SIGSTOP)
        assert service.ask("POST", "/predict", BODIES[0]).status == 200
        assert stopped not in service.engines()


def test_a_throttled_engine_ends_with_its_service(two_bundles: Store) -> None:
    """A stopped engine would never be detected, and would keep its memory."""
    with serving(two_bundles.path, load_share=0.01) as service, Load(service, BODIES, clients=3) as load:
        activated: list[str] = []

        def switch() -> None:
            with suppress(IndexError, OSError):  # the connection ends without an answer
                service.activate("other")
                activated.append("other")

        change = threading.Thread(target=switch)
        change.start()
        wait_until(lambda: any(process_state(engine) == "T" for engine in service.engines()) or load.errors)
        engines = service.engines()
        service.process.kill()
        service.process.wait()
        assert len(engines) == 2
        wait_until(lambda: all(has_ended(engine) for engine in engines))
        change.join(PATIENCE)
        assert not activated


def test_a_bundle_whose_engines_keep_ending_is_rolled_back(two_bundles: Store) -> None:
    """A bundle that crashes on some request would be restarted again and again while its clients wait."""
    with serving(two_bundles.path, crashes=3, watch_seconds=0.05, **PATIENT) as service:
        assert service.activate("other").status == 200
        wait_until(lambda: len(service.engines()) == 1)
        with Load(service, BODIES, clients=3) as load:
            for _ in range(3):
                answered = len(load.replies)
                wait_until(lambda answered=answered: len(load.replies) > answered + 10 or load.errors)
                dead = strike(service, signal.SIGKILL)
                wait_until(lambda dead=dead: (now := service.engines()) and dead not in now and ready(service))
            wait_until(lambda: service.ask("GET", "/readyz").json()["bundle"] == "good")
            answered = len(load.replies)
            wait_until(lambda: len(load.replies) > answered + 10 or load.errors)
        detail = service.ask("GET", "/readyz").json()["detail"]
        assert detail.startswith("bundle other was given up: 3 engines ended in 60 s; bundle good is served")
        figures = service.ask("GET", "/metrics").body.decode()
        assert 'diptych_switches_total{result="fallback"} 1.0' in figures
        assert two_bundles.active() == "other"
        assert service.activate("good").status == 200
        assert service.ask("GET", "/readyz").json() == {"ready": True, "bundle": "good", "detail": "serving"}
        assert two_bundles.active() == "good"
    assert not load.errors
    assert {reply.status for _, reply in load.replies} == {200}
    for _, reply in load.replies:
        bundle = reply.headers["x-bundle"]
        hits = [hit["id"] for result in reply.json()["results"] for hit in result["hits"]]
        assert reply.json()["bundle"] == bundle
        assert hits
        assert all(id_.startswith(bundle) for id_ in hits)


def flip_a_byte(folder: Path) -> None:
    path = folder / "vectors.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def remove_a_file(folder: Path) -> None:
    (folder / "golden.json").unlink()


def spoil_the_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text("{")


def empty_it(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def spoil_the_answers(folder: Path) -> None:
    """Write golden answers that the bundle does not give, with a correct hash in the manifest."""
    golden = json.loads((folder / "golden.json").read_bytes())
    for answer in golden["answers"]:
        answer["ids"] = [f"absent-{place}" for place, _ in enumerate(answer["ids"])]
    (folder / "golden.json").write_text(json.dumps(golden))
    manifest = json.loads((folder / "manifest.json").read_bytes())
    manifest["files"]["golden.json"] = describe_file(folder / "golden.json").model_dump()
    (folder / "manifest.json").write_text(json.dumps(manifest))


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "flipped": (flip_a_byte, "vectors.npy is damaged"),
    "partial": (remove_a_file, "golden.json is missing"),
    "spoiled": (spoil_the_manifest, "manifest.json is not JSON"),
    "empty": (empty_it, "no manifest.json"),
    "strange": (spoil_the_answers, "does not give its golden answers here"),
}


def test_a_damaged_bundle_is_not_activated(tmp_path: Path) -> None:
    """A damaged copy would end a working service, or the operator would not get the reason."""
    store = make_store(tmp_path / "store", "good", *DAMAGES)
    with serving(store.path, load_share=1) as service, Load(service, BODIES, clients=1) as load:
        for name, (damage, reason) in DAMAGES.items():
            damage(store.bundle_path(name))
            reply = service.activate(name)
            assert (reply.status, reply.json()["error"]["code"]) == (422, "not_activated")
            message = reply.json()["error"]["message"]
            assert message.startswith(f"Bundle {name} was not activated: ")
            assert reason in message
            assert str(tmp_path) not in message
            readiness = service.ask("GET", "/readyz").json()
            assert (readiness["ready"], readiness["bundle"]) == (True, "good")
            assert reason in readiness["detail"]
            assert store.active() == "good"
        assert len(service.engines()) == 1
        figures = service.ask("GET", "/metrics").body.decode()
        assert f'diptych_switches_total{{result="failed"}} {len(DAMAGES)}.0' in figures
    assert not load.errors
    assert {(reply.status, reply.headers.get("x-bundle")) for _, reply in load.replies} == {(200, "good")}


def test_the_reason_why_an_engine_cannot_be_replaced_is_reported(two_bundles: Store) -> None:
    """Requests would wait without an answer, and the damage of the bundle on disk would not be reported."""
    index = two_bundles.bundle_path("good") / "index.hnsw"
    whole = index.read_bytes()
    with serving(two_bundles.path) as service:
        index.write_bytes(whole[:-1])
        strike(service, signal.SIGKILL)
        wait_until(lambda: service.ask("GET", "/readyz").json()["detail"].startswith("bundles/good/index.hnsw"))
        reply = service.ask("POST", "/predict", BODIES[0])
        assert (reply.status, reply.json()["error"]["code"]) == (503, "unavailable")
        index.write_bytes(whole)
        wait_until(lambda: ready(service))
        assert service.ask("POST", "/predict", BODIES[0]).status == 200
