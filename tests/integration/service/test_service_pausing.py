"""Paused labels: not shown from the next request on."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from retrieval.store.local import Store
from tests.support.bundles import make_store
from tests.support.service import ADMIN_KEY, PATIENCE, Reply, Service, serving, wait_until, write_whole

RED = {"queries": ["red winter city"], "k": 10}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return make_store(tmp_path / "store", "one", "two")


def shown(service: Service, **more: Any) -> list[str]:
    reply = service.ask("POST", "/predict", RED | more)
    assert reply.status == 200
    return [hit["id"] for hit in reply.json()["results"][0]["hits"]]


def pause(service: Service, **change: Any) -> Reply:
    return service.ask("POST", "/admin/paused", change, X_Admin_Key=ADMIN_KEY)


def listed(service: Service) -> list[str]:
    return list(service.ask("GET", "/admin/paused", X_Admin_Key=ADMIN_KEY).json()["paused"])


def test_the_next_answer_has_another_label_instead_of_a_paused_one(store: Store) -> None:
    """A campaign that has to stop would be shown until the next training, or leave answers with holes."""
    with serving(store.path) as service:
        before, filtered = shown(service, k=20), shown(service, k=20, filter={"market": ["US"]})
        gone = [*before[:4], *filtered[:3]]
        reply = pause(service, add=[*gone, "misspelt"])
        assert reply.json() == {"paused": [*dict.fromkeys([*gone, "misspelt"])], "unknown": ["misspelt"]}
        assert shown(service) == [one for one in before if one not in gone][:10]
        assert shown(service, filter={"market": ["US"]}) == [one for one in filtered if one not in gone][:10]
        assert pause(service, remove=[*gone, "misspelt", "never paused"]).json() == {"paused": [], "unknown": []}
        assert shown(service, k=20) == before


def test_paused_labels_survive_switches_restarts_and_engines(store: Store) -> None:
    """A paused label would be shown again after the next deployment."""
    with serving(store.path, keep_previous=True, deadline_seconds=PATIENCE) as service:
        gone = shown(service)[0]
        pause(service, add=[gone, "two-0", "two-1", "two-2"])
        service.activate("two")
        everything = shown(service, k=100) + shown(service, k=100, queries=["light rain"])
        assert not {"two-0", "two-1", "two-2"} & set(everything)
        pause(service, add=["two-3"])
        service.ask("POST", "/admin/rollback", X_Admin_Key=ADMIN_KEY)
        assert gone not in shown(service)
        for engine in service.engines():
            os.kill(engine, signal.SIGKILL)
        assert gone not in shown(service)
    with serving(store.path) as service:
        assert listed(service) == [gone, "two-0", "two-1", "two-2", "two-3"]
        assert gone not in shown(service)


def test_services_on_one_store_share_the_list(store: Store) -> None:
    """With several replicas, only the one that got the request would pause the label."""
    with serving(store.path, watch_seconds=0.05) as first, serving(store.path, watch_seconds=0.05) as second:
        gone = shown(first)[0]
        pause(first, add=[gone])
        wait_until(lambda: gone not in shown(second))
        pause(second, add=["other"])
        wait_until(lambda: listed(first) == [gone, "other"])


def test_the_list_is_bounded_and_its_changes_are_guarded(store: Store) -> None:
    """A client without a key could pause labels, or fill memory and disk with ids."""
    with serving(store.path, max_paused=3) as service:
        assert service.ask("POST", "/admin/paused", {"add": ["one-1"]}).status == 401
        assert service.ask("GET", "/admin/paused").status == 401
        assert pause(service, add=["a", "b"]).status == 200
        for change, code in (
            ({"add": ["c", "d"]}, "too_many_paused"),
            ({"add": ["c"] * 4}, "too_many_queries"),
            ({"add": [""]}, "empty_text"),
            ({"add": ["x" * 1025]}, "text_too_long"),
            ({"add": "one-1"}, "wrong_type"),
            ({"pause": ["one-1"]}, "unknown_field"),
        ):
            reply = pause(service, **change)
            assert (reply.status, reply.json()["error"]["code"]) == (422, code)
        assert listed(service) == ["a", "b"]
        assert pause(service, add=["c", "d"], remove=["a", "d"]).json()["paused"] == ["b", "c"]


def test_an_unreadable_list_is_not_an_empty_list(store: Store, tmp_path: Path) -> None:
    """A mistake in an edited file would show all paused labels again."""
    file = store.path / "PAUSED.json"
    with serving(store.path, watch_seconds=0.05) as service:
        gone = shown(service)[0]
        write_whole(file, json.dumps({"paused": [gone]}))
        wait_until(lambda: gone not in shown(service))
        write_whole(file, '{"paused": [')
        wait_until(lambda: "PAUSED.json is not a list" in service.ask("GET", "/readyz").json()["detail"])
        reply = pause(service, add=["more"])
        assert (reply.status, reply.json()["error"]["code"]) == (422, "not_paused")
        assert str(tmp_path) not in reply.json()["error"]["message"]
        assert gone not in shown(service)
    with pytest.raises(AssertionError, match=r"PAUSED\.json is not a list of paused labels"), serving(store.path):
        pass
