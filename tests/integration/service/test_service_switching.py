"""Switches under load: every answer is complete and comes from one bundle."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from retrieval import open_bundle
from retrieval.store.local import Store
from service.engine.options import EngineOptions
from tests.support.bundles import make_store
from tests.support.service import ADMIN_KEY, Load, Service, serving, wait_until

SWITCHES = 6
REQUESTS = [
    {"queries": ["cheap running shoes"], "k": 5},
    {"queries": ["red winter city", "light rain", "kids blue trail"], "k": 3},
    {"queries": [f"summer {word}" for word in ("red", "blue", "cheap", "kids")] * 5, "k": 10, "weight": 0.2},
]
BODIES = [json.dumps(request).encode() for request in REQUESTS]
Answer = list[list[tuple[str, str, float]]]  # id, text and score of each hit of each query


@pytest.fixture(scope="module")
def words_store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return make_store(tmp_path_factory.mktemp("switching") / "store", "left", "right")


def library_answers(store: Store, bundle: str) -> dict[bytes, Answer]:
    """Return the answers of a bundle that is opened as a library."""
    with open_bundle(store.bundle_path(bundle)) as retriever:
        return {
            body: [
                [(hit.id, hit.text, hit.score) for hit in hits]
                for hits in retriever.search(request["queries"], request["k"], weight=request.get("weight"))
            ]
            for body, request in zip(BODIES, REQUESTS, strict=True)
        }


def hits_of(answer: dict[str, Any]) -> Answer:
    return [[(hit["id"], hit["text"], hit["score"]) for hit in one["hits"]] for one in answer["results"]]


def assert_equal(answer: Answer, expected: Answer) -> None:
    # The other texts of a batch may change the last bits of a score, never which labels a text gets.
    assert [[hit[:2] for hit in hits] for hits in answer] == [[hit[:2] for hit in hits] for hits in expected]
    for hits, same in zip(answer, expected, strict=True):
        assert [hit[2] for hit in hits] == pytest.approx([hit[2] for hit in same], abs=1e-5)


def test_switches_under_load(words_store: Store) -> None:
    """A switch would fail requests, or give one request the results of two bundles."""
    expected = {bundle: library_answers(words_store, bundle) for bundle in ("left", "right")}
    with serving(words_store.path, load_share=0.5) as service:
        with Load(service, BODIES, clients=3) as load:
            for number in range(SWITCHES):
                answered = len(load.replies)
                reply = service.activate(("right", "left")[number % 2])
                assert (reply.status, reply.json()["bundle"]) == (200, ("right", "left")[number % 2])
                wait_until(lambda answered=answered: len(load.replies) > answered + 8 or load.errors)
        assert not load.errors
        assert {reply.status for _, reply in load.replies} == {200}
        for body, reply in load.replies:
            answer = reply.json()
            assert answer["bundle"] == reply.headers["x-bundle"]
            assert_equal(hits_of(answer), expected[answer["bundle"]][body])
        served = [reply.headers["x-bundle"] for _, reply in load.replies]
        assert {"left", "right"} == set(served)
        wait_until(lambda: len(service.engines()) == 1)
        assert f'diptych_switches_total{{result="done"}} {SWITCHES}.0' in metrics(service)


def metrics(service: Service) -> str:
    return service.ask("GET", "/metrics").body.decode()


def test_a_switch_outlives_the_service(words_store: Store) -> None:
    """After a restart the service would fall back to the bundle from before the switch."""
    words_store.activate("left")
    with serving(words_store.path) as service:
        assert service.activate("right").json()["previous"] == "left"
        assert words_store.active() == "right"
        assert service.activate("right").json() | {"seconds": 0} == {
            "bundle": "right",
            "previous": "right",
            "seconds": 0,
        }
    with serving(words_store.path) as service:
        assert service.ask("POST", "/predict", REQUESTS[0]).headers["x-bundle"] == "right"


@pytest.mark.parametrize("through", ["service", "store"])
def test_a_rollback_is_not_throttled(words_store: Store, through: str) -> None:
    """A bad bundle would be served ten times as long after an administrator rolls back."""
    words_store.activate("left")
    with serving(words_store.path, load_share=0.001, watch_seconds=0.05) as service:
        assert service.activate("right").status == 200
        with Load(service, BODIES, clients=1) as load:
            wait_until(lambda: load.replies)
            if through == "service":
                assert service.ask("POST", "/admin/rollback", X_Admin_Key=ADMIN_KEY).status == 200
            else:
                words_store.rollback()
            wait_until(lambda: service.ask("GET", "/readyz").json()["bundle"] == "left")
        assert not load.errors


def test_the_store_changes_only_when_the_new_bundle_can_answer(words_store: Store) -> None:
    """A bundle that cannot be opened would be active at the next start."""
    words_store.activate("left")
    with serving(words_store.path) as service:
        assert service.activate("absent").status == 404
        assert words_store.active() == "left"
        assert service.ask("GET", "/readyz").json()["detail"].startswith("bundle absent was not activated")
        assert service.activate("right").status == 200
        assert service.ask("GET", "/readyz").json() == {"ready": True, "bundle": "right", "detail": "serving"}


def test_an_engine_has_low_priority_only_while_another_bundle_is_served(words_store: Store) -> None:
    """Loading would slow the served bundle, or the replacement of an engine would load slowly while clients wait."""
    words_store.activate("left")
    with serving(words_store.path) as service:
        (first,) = wait_until(service.engines)
        assert not loads_at_low_priority(first)
        assert service.activate("right").status == 200
        wait_until(lambda: len(service.engines()) == 1)
        (second,) = service.engines()
        assert loads_at_low_priority(second)
        os.kill(second, signal.SIGKILL)
        wait_until(lambda: service.engines() not in ([], [second]))
        assert not loads_at_low_priority(service.engines()[0])
        assert service.wait_for_log(rf"process {second}\) ended by (\w+);") == "SIGKILL"


def loads_at_low_priority(engine: int) -> bool:
    """Return whether the options of this engine say low priority."""
    words = Path(f"/proc/{engine}/cmdline").read_bytes().decode().split("\0")
    return EngineOptions.from_json(words[words.index("service.engine.start") + 3]).low_priority
