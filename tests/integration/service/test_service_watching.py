"""Changes of other processes in the store, rollbacks, and what an administrator sees of both."""

from pathlib import Path

import pytest

from retrieval.store.local import Store
from tests.support.bundles import make_store
from tests.support.command import run
from tests.support.service import ADMIN_KEY, Reply, Service, figures, serving, wait_until, write_whole

RED = {"queries": ["red winter city"]}
MB = 1 << 20


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return make_store(tmp_path / "store", "one", "two", "three")


def served(service: Service) -> str | None:
    """Return the bundle that answers; None while requests are refused."""
    return service.ask("POST", "/predict", RED).headers.get("x-bundle")


def detail(service: Service) -> str:
    return str(service.ask("GET", "/readyz").json()["detail"])


def switches(service: Service, result: str) -> float:
    return figures(service)[f'diptych_switches_total{{result="{result}"}}']


def admin(service: Service, method: str, path: str) -> Reply:
    return service.ask(method, f"/admin/{path}", X_Admin_Key=ADMIN_KEY)


def states(service: Service) -> dict[str, str]:
    return {one["bundle"]: one["state"] for one in admin(service, "GET", "bundles").json()["generations"]}


def test_a_bundle_that_another_process_activates_is_served(store: Store) -> None:
    """A training job that ends with `export --activate` would change nothing until the service is restarted."""
    with serving(store.path, watch_seconds=0.05, load_share=1) as service:
        assert served(service) == "one"
        assert run("bundles", "activate", store.path, "two") == 0
        wait_until(lambda: served(service) == "two")
        assert run("bundles", "rollback", store.path) == 0
        wait_until(lambda: served(service) == "one")
        assert service.activate("three").status == 200
        assert (store.active(), served(service), switches(service, "done")) == ("three", "three", 3)


def test_a_rollback_in_the_store_is_seen_right_after_an_activation_by_the_service(store: Store) -> None:
    """The store would name one bundle and the service would serve another: the watcher would see no change."""
    with serving(store.path, watch_seconds=1) as service:
        assert service.activate("two").status == 200
        store.rollback()
        wait_until(lambda: served(service) == "one")
        assert (store.active(), switches(service, "done")) == ("one", 2)


def test_a_broken_bundle_is_tried_once_and_the_old_one_stays(store: Store) -> None:
    """One bad activation would end a working service, or load its bundle again and again."""
    index = store.bundle_path("two") / "index.hnsw"
    index.write_bytes(index.read_bytes()[:-1] + b"?")
    with serving(store.path, watch_seconds=0.05) as service:
        write_whole(store.path / "CURRENT", "two\n")
        wait_until(lambda: "bundle two was not activated: bundles/two/index.hnsw is damaged" in detail(service))
        assert served(service) == "one"
        write_whole(store.path / "CURRENT", b"\xff")
        wait_until(lambda: "the store cannot be read (CURRENT cannot be read" in detail(service))
        assert service.ask("GET", "/readyz").status == 200
        write_whole(store.path / "CURRENT", "three\n")
        wait_until(lambda: served(service) == "three")
        assert (switches(service, "failed"), detail(service)) == (1, "serving")


def test_a_store_behind_a_url_is_followed(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Services that share a bucket would never see a new bundle, or could not start while the bucket is unavailable."""
    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path / "cache"))
    url = store.path.as_uri()
    with serving(Path(url), watch_seconds=0.05) as service:
        assert served(service) == "one"
        shown = admin(service, "GET", "bundles").json()["bundles"]
        assert [(one["name"], one["active"], one["labels"]) for one in shown] == [
            ("three", False, None),
            ("two", False, None),
            ("one", True, 200),
        ]
        store.activate("two")
        wait_until(lambda: served(service) == "two")
        assert admin(service, "POST", "rollback").json()["bundle"] == served(service) == "one"
        assert store.active() == "one"
        assert service.activate("absent").status == 404
        assert service.activate("three").json()["bundle"] == served(service) == "three"
    assert store.active() == "three"


def test_a_rollback_to_a_kept_bundle_starts_no_engine(store: Store) -> None:
    """A rollback would take as long as loading the bundle."""
    with serving(store.path, keep_previous=True) as service:
        assert service.activate("two").status == 200
        (kept, serves), before = sorted(service.engines()), service.engines()
        assert (kept, serves) == tuple(sorted(before))
        assert states(service) == {"two": "serving", "one": "kept"}
        assert admin(service, "POST", "rollback").json()["bundle"] == served(service) == store.active() == "one"
        assert states(service) == {"one": "serving", "two": "kept"}
        assert service.engines() == before
        assert service.activate("three").status == 200
        wait_until(lambda: states(service) == {"three": "serving", "one": "kept"})
        wait_until(lambda: len(service.engines()) == 2)
    assert service.process.returncode == 0


def test_a_rollback_without_a_kept_bundle_loads_it(store: Store) -> None:
    """An administrator could not undo an activation, or would get no error where there is no earlier bundle."""
    with serving(store.path) as service:
        reply = admin(service, "POST", "rollback")
        assert (reply.status, reply.json()["error"]["code"]) == (409, "no_earlier_bundle")
        service.activate("two")
        assert admin(service, "POST", "rollback").json()["previous"] == "two"
        assert served(service) == store.active() == "one"
        wait_until(lambda: states(service) == {"one": "serving"})


def test_an_administrator_sees_all_bundles_and_generations(store: Store) -> None:
    """An administrator would have to log in to the machine to see the names of bundles."""
    (store.bundle_path("three") / "manifest.json").write_text("{")
    with serving(store.path) as service:
        assert service.ask("GET", "/admin/bundles").status == 401
        shown = admin(service, "GET", "bundles").json()
        assert [one["name"] for one in shown["bundles"]] == ["three", "one", "two"]
        broken, first, _ = shown["bundles"]
        assert (first["active"], first["labels"], first["trouble"]) == (True, 200, None)
        assert first["bytes"] > 10_000
        assert broken["trouble"].startswith("bundles/three/manifest.json")
        assert shown["generations"] == [
            {"number": 1, "bundle": "one", "state": "serving", "labels": 200, "unfinished": 0}
        ]
        assert shown["preparing"] is None
        paths = service.ask("GET", "/openapi.json").json()["paths"]
        for path, method in (("bundles", "get"), ("rollback", "post"), ("paused", "get"), ("paused", "post")):
            answers = paths[f"/admin/{path}"][method]["responses"]
            assert {"200", "401", "403"} <= answers.keys()
            assert answers["200"]["content"]["application/json"]["schema"]
            assert service.ask(method.upper(), f"/admin/{path}").json()["error"]["code"] == "wrong_key"


def test_a_bundle_that_does_not_fit_into_memory_is_not_loaded(store: Store, tmp_path: Path) -> None:
    """The kernel would end the service, or one of its engines, in the middle of a switch."""
    groups = tmp_path / "groups"
    groups.mkdir()
    (groups / "memory.current").write_text(f"{100 * MB}")
    (groups / "memory.max").write_text(f"{1000 * MB}")
    with serving(store.path, cgroups=groups, watch_seconds=0.05) as service:
        (groups / "memory.max").write_text(f"{150 * MB}")
        reply = service.activate("two")
        assert (reply.status, reply.json()["error"]["code"]) == (422, "not_activated")
        assert "50 MB are free (the container's limit is 150 MB)" in reply.json()["error"]["message"]
        assert "50 MB are free" in detail(service)
        assert (served(service), len(service.engines())) == ("one", 1)
        (groups / "memory.max").write_text(f"{1000 * MB}")
        assert service.activate("two").status == 200


def test_a_kept_bundle_is_closed_to_free_memory_for_a_new_one(store: Store, tmp_path: Path) -> None:
    """No new bundle could be loaded, because the kept one uses the memory."""
    groups = tmp_path / "groups"
    groups.mkdir()
    (groups / "memory.current").write_text(f"{100 * MB}")
    (groups / "memory.max").write_text(f"{1000 * MB}")
    with serving(store.path, cgroups=groups, keep_previous=True) as service:
        assert service.activate("two").status == 200
        (groups / "memory.max").write_text(f"{150 * MB}")
        assert service.activate("three").status == 422
        assert states(service) == {"two": "serving"}
        wait_until(lambda: len(service.engines()) == 1)
        assert served(service) == "two"
