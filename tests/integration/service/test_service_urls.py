"""Services with a store at a URL: a change through one applies to all and survives its cache, or is refused."""

import json
from pathlib import Path

import pytest

from retrieval import open_bundle
from retrieval.bundle.signatures import new_keys
from retrieval.store.local import Store
from tests.support.bundles import make_store
from tests.support.service import ADMIN_KEY, Service, serving, wait_until, write_whole
from tests.support.web_store import web_store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return make_store(tmp_path / "store", "one", "two", "three")


def shown(service: Service) -> list[str]:
    """Ids of the best labels."""
    reply = service.ask("POST", "/predict", {"queries": ["red shoes"], "k": 5})
    return [hit["id"] for hit in reply.json()["results"][0]["hits"]]


def served(service: Service) -> str:
    return str(service.ask("GET", "/readyz").json()["bundle"])


def activated(service: Service, bundle: str) -> int:
    return administer(service, "activate", bundle=bundle)[0]


def administer(service: Service, act: str, **body: object) -> tuple[int, dict[str, object]]:
    reply = service.ask("POST", f"/admin/{act}", body, X_Admin_Key=ADMIN_KEY)
    return reply.status, reply.json()


def test_replicas_share_what_is_paused_and_an_empty_cache_loses_nothing(store: Store, tmp_path: Path) -> None:
    """If it fails, a paused label is shown by other replicas, and by all after they are replaced."""
    url = Path(store.path.as_uri())
    with (
        serving(url, cache=tmp_path / "first", watch_seconds=0.05) as first,
        serving(url, cache=tmp_path / "second", watch_seconds=0.05) as second,
    ):
        gone = shown(first)[0]
        status, answer = administer(first, "paused", add=[gone])
        assert (status, answer["paused"]) == (200, [gone])
        assert gone not in shown(first)
        wait_until(lambda: gone not in shown(second))
        administer(second, "paused", add=["other"])
        assert json.loads((store.path / "PAUSED.json").read_text()) == {"paused": [gone, "other"]}
    with serving(url, cache=tmp_path / "third", watch_seconds=0.05) as third:
        assert gone not in shown(third)
        (store.path / "PAUSED.json").unlink()
        wait_until(lambda: gone in shown(third))
        assert "PAUSED.json" in third.log
    (store.path / "PAUSED.json").write_text(json.dumps({"paused": [gone]}))
    with open_bundle(str(url), cache=tmp_path / "fourth") as retriever:
        assert gone not in [hit.id for hit in retriever.search(["red shoes"], 5)[0]]


def test_replicas_share_a_rollback_and_an_empty_cache_loses_nothing(store: Store, tmp_path: Path) -> None:
    """If it fails, a rollback affects one machine only: the others, and the next restart, serve the bad bundle."""
    url = Path(store.path.as_uri())
    with serving(url, cache=tmp_path / "first", watch_seconds=0.05) as first:
        assert administer(first, "activate", bundle="two")[0] == 200
        with serving(url, cache=tmp_path / "second", watch_seconds=0.05) as second:
            assert served(second) == "two"
            status, answer = administer(second, "rollback")
            assert (status, answer.get("bundle")) == (200, "one")
            wait_until(lambda: served(first) == "one")
        assert administer(first, "activate", bundle="three")[0] == 200
    with serving(url, cache=tmp_path / "third", watch_seconds=0.05) as third:
        assert served(third) == "three"
        assert administer(third, "rollback")[1].get("bundle") == "one"
        assert administer(third, "rollback")[0] == 409
    assert store.active() == "one"


def test_a_store_that_cannot_be_written_is_reported(store: Store, tmp_path: Path) -> None:
    """If it fails, a change is acknowledged that one replica alone obeys, until its cache is gone."""
    with web_store(store.path) as web, serving(Path(web.url), cache=tmp_path / "cache", watch_seconds=0.05) as service:
        before = shown(service)
        for act, body in (("paused", {"add": [before[0]]}), ("activate", {"bundle": "two"})):
            status, answer = administer(service, act, **body)
            assert status == 422, answer
            assert "A change in the cache would apply to one replica only" in str(answer["error"])
        assert (shown(service), served(service)) == (before, "one")
        store.amend("PAUSED.json", lambda content: json.dumps({"paused": [before[0]]}))
        wait_until(lambda: before[0] not in shown(service))  # what the publisher writes there is obeyed


def test_an_older_signed_bundle_is_not_followed(store: Store, tmp_path: Path) -> None:
    """If it fails, an attacker who can write to a bucket has every replica serve a bundle that was replaced."""
    keys = new_keys()
    for serial, name in enumerate(("one", "two", "three"), 1):
        store.sign(name, keys.signing, serial)
    store.activate("two")
    for number, place in enumerate((store.path, Path(store.path.as_uri()))):
        settings = {"cache": tmp_path / f"cache{number}", "trusted_keys": keys.trusted, "watch_seconds": 0.05}
        with serving(place, **settings) as service:
            write_whole(store.path / "CURRENT", "one\n")
            wait_until(lambda: "has the serial number 1" in service.ask("GET", "/readyz").json()["detail"])
            assert served(service) == "two"
            # 409 while the service still finds out that it must not follow the bundle
            assert wait_until(lambda: (found := activated(service, "one")) != 409 and found) == 422
            write_whole(store.path / "CURRENT", "two\n")
            assert administer(service, "activate", bundle="three")[0] == 200
            assert administer(service, "rollback")[1].get("bundle") == "two"
            write_whole(store.path / "CURRENT", "one\n")
            wait_until(lambda: "has the serial number 1" in service.ask("GET", "/readyz").json()["detail"])
            assert served(service) == "two"
        (store.path / "CURRENT").write_text("two\n")
        with serving(place, **settings) as service:  # a rollback outlives a restart
            assert served(service) == "two"
