"""Routes of the console: the front page, the description of the bundle, and comparisons with another bundle."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from retrieval import open_bundle
from retrieval.results import hit_record
from tests.support.bundles import make_store
from tests.support.faults import with_hanging_bundle
from tests.support.service import ADMIN_KEY, Reply, Service, figures, serving, wait_until

QUESTION = {"queries": ["cheap running shoes", "red winter city"], "k": 5}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("comparing") / "store", "first", "second", "third").path


@pytest.fixture
def own_store(tmp_path: Path) -> Path:
    """A store for one test: an activation in `store` would switch the service of all other tests, which watches it."""
    return make_store(tmp_path / "store", "first", "second", "third").path


@pytest.fixture(scope="module")
def service(store: Path) -> Iterator[Service]:
    with serving(store) as service:
        yield service


def compare(service: Service, key: str = ADMIN_KEY, **body: object) -> Reply:
    return service.ask("POST", "/admin/compare", {**QUESTION, **body}, X_Admin_Key=key)


def opened(service: Service) -> dict[str, str]:
    """The state of each bundle that is open."""
    answer = service.ask("GET", "/admin/bundles", X_Admin_Key=ADMIN_KEY).json()
    return {one["bundle"]: one["state"] for one in answer["generations"]}


def test_a_bundle_is_described_with_its_filter_attributes(service: Service) -> None:
    """A client could not see which filters a bundle takes, nor which weight it answers with."""
    about = service.ask("GET", "/about").json()
    assert (about["bundle"], about["labels"], about["weight"]) == ("first", 200, 0.5)
    assert about["attributes"] == [
        {"name": "market", "values": ["US", "CA"], "more": False},
        {"name": "year", "values": [2020, 2021, 2022], "more": False},
    ]
    assert about["administration"] is True


def test_filter_attributes_need_the_key_of_predictions(store: Path) -> None:
    """Attributes of labels would be shown without a key, although predictions need one."""
    with serving(store, predict_key="sesame") as service:
        assert service.ask("GET", "/about").status == 401
        assert service.ask("GET", "/about", X_Api_Key="sesame").json()["bundle"] == "first"


def test_another_bundle_answers_as_it_does_when_it_is_served(service: Service, store: Path) -> None:
    """A comparison would show other answers than those that activating the bundle gives."""
    reply = compare(service, bundle="second", weight=0.25, filter={"market": ["US"]})
    with open_bundle(store / "bundles" / "second") as alone:
        found = alone.search(QUESTION["queries"], 5, weight=0.25, filter={"market": ["US"]})
    assert reply.headers["x-bundle"] == "second"
    assert reply.json() == {
        "bundle": "second",
        "results": [
            {"query": query, "hits": [hit_record(hit) for hit in hits]}
            for query, hits in zip(QUESTION["queries"], found, strict=True)
        ],
    }


def test_one_bundle_is_compared_at_a_time_and_the_served_one_goes_on(service: Service) -> None:
    """Every bundle that was ever compared would stay in memory, or the served one would change."""
    for name in ("second", "third"):
        assert compare(service, bundle=name).status == 200
        assert opened(service) == {"first": "serving", name: "compared"}
    assert compare(service, bundle="first").json()["bundle"] == "first"
    assert service.ask("POST", "/predict", QUESTION).json()["bundle"] == "first"


def test_comparing_is_not_counted_as_traffic(service: Service) -> None:
    """Charts and alerts would include an administrator's queries to a bundle that is not served."""
    compare(service, bundle="second")
    before = figures(service)
    compare(service, bundle="second")
    after = figures(service)
    for name in ("diptych_batch_queries_sum", 'diptych_stage_seconds_count{stage="total"}'):
        assert after.get(name, 0) == before.get(name, 0)
    assert any('bundle="second"' in name for name in after if name.startswith("diptych_engine_resident_bytes"))


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"bundle": "nowhere"}, 404, "not_compared"),
        ({"bundle": "../first"}, 422, "bad_name"),
        ({}, 422, "missing_field"),
        ({"bundle": "second", "k": 1000}, 422, "out_of_range"),
        ({"bundle": "second", "filter": {"colour": ["red"]}}, 422, "bad_query"),
    ],
)
def test_an_impossible_comparison_is_refused_in_one_sentence(
    service: Service, body: dict[str, object], status: int, code: str
) -> None:
    """A wrong request would end in a traceback, or in an answer of another bundle."""
    reply = compare(service, **body)
    assert (reply.status, reply.json()["error"]["code"]) == (status, code)
    assert reply.json()["error"]["message"].endswith(".")


def test_comparing_needs_the_administrators_key(service: Service) -> None:
    """A client without a key could make the service load further bundles."""
    assert compare(service, key="guessed", bundle="second").status == 401


def test_an_idle_compared_bundle_is_closed(store: Path) -> None:
    """One comparison with another bundle would cost its memory for ever."""
    with serving(store, compare_seconds=0.2) as service:
        assert compare(service, bundle="second").status == 200
        wait_until(lambda: opened(service) == {"first": "serving"})
        wait_until(lambda: len(service.engines()) == 1)


def test_an_activation_takes_precedence_over_a_comparison(own_store: Path) -> None:
    """A switch would fail because a compared bundle takes the memory."""
    with serving(own_store) as service:
        compare(service, bundle="second")
        assert service.activate("third").status == 200
        assert opened(service)["third"] == "serving"
        assert "second" not in opened(service)


def test_a_switch_does_not_wait_for_a_comparison(
    own_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An administrator's switch would wait until a bundle for comparison is loaded."""
    gate = with_hanging_bundle(tmp_path, monkeypatch, "second")
    with serving(own_store) as service:
        asking = service.client()
        body = json.dumps({**QUESTION, "bundle": "second"}).encode()
        asking.begin("POST", "/admin/compare", body, X_Admin_Key=ADMIN_KEY)
        wait_until(lambda: len(service.engines()) == 2)
        assert service.activate("third").status == 200
        reply = asking.finish()
        assert (reply.status, reply.json()["error"]["code"]) == (409, "busy_switching")
        wait_until(lambda: opened(service) == {"third": "serving"})
        gate.touch()
        assert compare(service, bundle="second").status == 200


def test_a_compared_engine_that_dies_does_not_affect_the_served_bundle(store: Path) -> None:
    """A crash in the compared bundle would fail requests to the served one."""
    with serving(store) as service:
        served = service.engines()
        before = compare(service, bundle="second").body
        (second,) = set(service.engines()) - set(served)
        os.kill(second, signal.SIGKILL)
        assert service.ask("POST", "/predict", QUESTION).status == 200
        assert service.ask("GET", "/readyz").json()["detail"] == "serving"
        assert compare(service, bundle="second").body == before


def test_a_bundle_that_does_not_fit_is_not_opened(store: Path, tmp_path: Path) -> None:
    """The kernel might kill the serving engine because a compared bundle needs memory."""
    (tmp_path / "memory.current").write_text(f"{100 << 20}")
    (tmp_path / "memory.max").write_text(f"{1000 << 20}")
    with serving(store, cgroups=tmp_path) as service:
        (tmp_path / "memory.max").write_text(f"{150 << 20}")
        reply = compare(service, bundle="second")
        assert (reply.status, reply.json()["error"]["code"]) == (422, "not_compared")
        assert "50 MB are free" in reply.json()["error"]["message"]
        assert service.ask("POST", "/predict", QUESTION).status == 200


def test_comparing_can_be_off(store: Path) -> None:
    """An operator with little memory could not disable comparisons."""
    with serving(store, compare_seconds=0) as service:
        reply = compare(service, bundle="second")
        assert (reply.status, reply.json()["error"]["code"]) == (403, "compare_off")
        assert compare(service, bundle="first").status == 200


def test_a_paused_label_is_missing_in_both(service: Service) -> None:
    """A paused label would be shown in a comparison."""
    first = compare(service, bundle="second").json()["results"][0]["hits"][0]["id"]
    service.ask("POST", "/admin/paused", {"add": [first]}, X_Admin_Key=ADMIN_KEY)
    try:
        hits = compare(service, bundle="second").json()["results"][0]["hits"]
        assert first not in [hit["id"] for hit in hits]
    finally:
        service.ask("POST", "/admin/paused", {"remove": [first]}, X_Admin_Key=ADMIN_KEY)


def test_a_comparison_leaves_no_text_in_the_log(service: Service) -> None:
    """Texts would be logged although DIPTYCH_LOG_QUERIES is off."""
    body = {**QUESTION, "bundle": "second", "queries": ["a secret question"]}
    for number, key in enumerate((ADMIN_KEY, "guessed")):
        service.ask("POST", "/admin/compare", body, X_Admin_Key=key, X_Request_ID=f"secret-free-{number}")
    service.wait_for_log(r"secret-free-1")  # a comparison that succeeds has no line
    assert "secret question" not in service.log


def test_a_browser_gets_the_console_and_other_clients_json(service: Service) -> None:
    """A browser would show JSON at `/`, or a script would get a page."""
    page = service.ask("GET", "/", Accept="text/html,application/xhtml+xml")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "unsafe" not in page.headers["content-security-policy"]
    assert page.headers["x-content-type-options"] == "nosniff"
    assert page.headers["referrer-policy"] == "no-referrer"
    assert service.ask("GET", "/").json()["predict"] == "POST /predict"
    again = service.ask("GET", "/", Accept="text/html", If_None_Match=page.headers["etag"])
    assert (again.status, again.body) == (304, b"")


def test_the_console_can_be_off(store: Path) -> None:
    """A public service could not turn the page off."""
    with serving(store, console=False) as service:
        assert service.ask("GET", "/", Accept="text/html").json()["predict"] == "POST /predict"
        assert service.ask("GET", "/console/console.css").status == 404
