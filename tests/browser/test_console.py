"""The console in a real browser: it shows the service's answers, and its controls change the requests."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.browser.conftest import HOSTILE
from tests.support.bundles import VOTES
from tests.support.service import Service, serving
from tests.support.training.cascades import make_cascade_checkpoint
from tests.support.training.checkpoints import export_to_store

playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed: pip install playwright")
Page = playwright.Page
expect = playwright.expect


def predicted(service: Service, **body: Any) -> list[dict[str, Any]]:
    hits: list[dict[str, Any]] = service.ask("POST", "/predict", body).json()["results"][0]["hits"]
    return hits


def shown(page: Page, where: str = "#hits") -> list[str]:
    return page.locator(f"{where} .text").evaluate_all("all => all.map(one => one.firstChild.data)")


def expect_shown(page: Page, hits: list[dict[str, Any]], where: str = "#hits") -> None:
    """Expect these texts, scores and contributions on the page, and bars as wide as the contributions."""
    rows = page.locator(f"{where} li")
    expect(page.locator(f"{where} .score")).to_have_text([f"{hit['score']:.3f}" for hit in hits])
    assert shown(page, where) == [hit["text"] for hit in hits]
    for place, hit in enumerate(hits):
        row = rows.nth(place)
        expect(row.locator(".bar.memory")).to_have_count(int(hit["memory"] > 0))
        for half in ("dual_encoder", "classifier", *(["memory"] if hit["memory"] > 0 else [])):
            name = half.split("_")[0]
            expect(row.locator(f".shares .{name}")).to_have_text(f"{half.replace('_', ' ')} {hit[half]:.3f}")
            widths = row.locator(f".bar.{name}").evaluate(
                "bar => bar.getBoundingClientRect().width / bar.parentElement.getBoundingClientRect().width"
            )
            assert widths == pytest.approx(max(hit[half], 0), abs=0.005)


@contextmanager
def recorded_requests(page: Page, path: str = "/predict") -> Iterator[list[dict[str, Any]]]:
    """Collect the bodies that the page sends to a path within the block."""
    bodies: list[dict[str, Any]] = []

    def note(request: Any) -> None:
        if request.url.endswith(path):
            bodies.append(request.post_data_json)

    page.on("request", note)
    yield bodies
    page.remove_listener("request", note)


def test_answers_while_typing_are_those_of_the_service(page: Page, service: Service) -> None:
    """If this failed, the page would show other labels, scores or contributions than POST /predict returns."""
    page.get_by_label("Query").press_sequentially("red win", delay=30)
    expect_shown(page, predicted(service, queries=["red win"]))
    page.get_by_label("Query").press_sequentially("ter city", delay=30)
    expect_shown(page, predicted(service, queries=["red winter city"]))
    for stage in ("queue", "tokenize", "encode", "search", "serialize"):
        expect(page.locator("#timing-stages dt", has_text=stage)).to_be_visible()


def test_an_outdated_answer_never_replaces_a_newer_one(page: Page, service: Service) -> None:
    """If this failed, a slow answer to an earlier query would replace the answer to the current one."""
    held: list[Any] = []

    def hold(route: Any) -> None:
        if route.request.post_data_json["queries"] == ["red"]:
            held.append(route)
        else:
            route.continue_()

    page.route("**/predict", hold)
    with page.expect_request("**/predict"):
        page.get_by_label("Query").fill("red")
    page.get_by_label("Query").fill("winter")
    expect_shown(page, predicted(service, queries=["winter"]))
    assert len(held) == 1
    page.unroute("**/predict")
    expect_shown(page, predicted(service, queries=["winter"]))


def test_the_memory_weight_is_sent_and_its_share_shown(page: Page, service: Service) -> None:
    """If this failed, a user could not see what the votes of training queries change."""
    with recorded_requests(page) as bodies:
        page.fill("#query", "light rain")
        expect_shown(page, predicted(service, queries=["light rain"]))
        expect(page.locator("#memory-weight")).to_have_attribute("placeholder", str(VOTES.weight))
        page.fill("#memory-weight", "2")
        expect_shown(page, predicted(service, queries=["light rain"], memory_weight=2))
    assert "memory_weight" not in bodies[0]
    assert bodies[-1]["memory_weight"] == 2
    page.fill("#memory-weight", "")


def test_the_slider_sends_its_weight(page: Page, service: Service) -> None:
    """If this failed, the weight of the slider would be shown but not sent."""
    page.get_by_label("Query").fill("light rain")
    expect_shown(page, predicted(service, queries=["light rain"]))
    with recorded_requests(page) as bodies:
        page.get_by_label("Weight of the classifier").press("Home")
        expect_shown(page, predicted(service, queries=["light rain"], weight=0))
        page.get_by_role("button", name="Reset to the bundle’s weight").click()
        expect_shown(page, predicted(service, queries=["light rain"]))
    assert bodies[0]["weight"] == 0
    assert "weight" not in bodies[-1]


def test_filters_and_minimum_score_are_sent(page: Page, service: Service) -> None:
    """If this failed, a selected filter would have no effect, or a number would be sent as text."""
    page.get_by_label("Query").fill("cheap running shoes")
    page.locator("#filters summary").click()
    page.get_by_label("CA").check()
    page.get_by_label("2021").check()
    filter_ = {"market": ["CA"], "year": [2021]}
    expect_shown(page, predicted(service, queries=["cheap running shoes"], filter=filter_))
    page.get_by_label("Minimum score").fill("0.5")
    page.get_by_role("spinbutton", name="Answers").fill("3")
    expected = predicted(service, queries=["cheap running shoes"], filter=filter_, min_score=0.5, k=3)
    expect_shown(page, expected)
    expect(page.locator("#filters-count")).to_have_text("(2)")


def test_two_bundles_side_by_side(administrator: Page, service: Service) -> None:
    """If this failed, the second column would show the served bundle's answers or wrong rank changes."""
    page = administrator
    page.get_by_label("Query").fill("cheap running shoes")
    page.get_by_label("Compare with").select_option("second")
    page.wait_for_selector("#other-hits li")
    reply = service.ask(
        "POST",
        "/admin/compare",
        {"bundle": "second", "queries": ["cheap running shoes"]},
        X_Admin_Key="the administrator's key",
    )
    others = reply.json()["results"][0]["hits"]
    hits = predicted(service, queries=["cheap running shoes"])
    expect_shown(page, hits)
    expect_shown(page, others, "#other-hits")
    ranks = {hit["id"]: place for place, hit in enumerate(hits)}
    for place, hit in enumerate(others):
        before = ranks.get(hit["id"])
        text = "only here" if before is None else "same rank" if before == place else None
        text = text or (f"↑ {before - place}" if before > place else f"↓ {place - before}")
        expect(page.locator("#other-hits .rank-change").nth(place)).to_have_text(text)


def test_answers_do_not_wait_for_the_compared_bundle(administrator: Page) -> None:
    """If this failed, answers would look outdated while another bundle is opened, or current although they belong to an
    earlier query."""
    page = administrator
    held: list[Any] = []

    def hold(route: Any) -> None:
        held.append(route)

    page.route("**/admin/compare", hold)
    page.get_by_label("Compare with").select_option("second")
    with page.expect_request("**/admin/compare"):
        page.get_by_label("Query").fill("cheap running shoes")
    page.wait_for_selector("#hits:not(.outdated) li")
    expect(page.locator("#other-empty")).to_contain_text("Opening this bundle")
    expect(page.locator("#other-hits")).to_have_class("outdated")
    page.route("**/predict", hold)
    with page.expect_request("**/predict"):
        page.get_by_label("Query").fill("light rain")
    expect(page.locator("#hits")).to_have_class("outdated")
    page.unroute("**/admin/compare")
    held[-1].continue_()
    page.wait_for_selector("#other-hits:not(.outdated) li")


def test_activating_and_rolling_back(administrator: Page, service: Service) -> None:
    """If this failed, the buttons would not change the served bundle, or the page would show the previous one."""
    page = administrator
    dialog = page.get_by_role("dialog")
    page.get_by_role("button", name="Activate second").click()
    expect(dialog).to_contain_text("Activate second?")
    dialog.get_by_role("button", name="Activate").click()
    expect(page.locator("#admin-message")).to_contain_text("Bundle second is served")
    expect(page.locator("#status")).to_contain_text("second")
    expect(page.locator("#weight-classifier")).to_have_text("0.25")
    page.get_by_role("button", name="Roll back").click()
    dialog.get_by_role("button", name="Cancel").click()
    assert service.ask("GET", "/readyz").json()["bundle"] == "second"
    page.get_by_role("button", name="Roll back").click()
    expect(dialog).to_contain_text("Roll back to the previous bundle?")
    dialog.get_by_role("button", name="Roll back").click()
    expect(page.locator("#admin-message")).to_contain_text(
        "Bundle first is served"
    )  # the status line changes before this
    expect(page.locator("#status")).to_contain_text("first")


def test_a_wrong_key_is_reported(page: Page) -> None:
    """If this failed, an administrator with a mistyped key would wait for a list that never comes."""
    page.get_by_label("Administrator key").fill("guessed")
    page.get_by_role("button", name="Use", exact=True).click()
    expect(page.locator("#admin-message")).to_have_text("This needs the administrator's key in the header X-Admin-Key.")
    expect(page.locator("#bundle-list li")).to_have_count(0)
    expect(page.get_by_role("button", name="Roll back")).to_be_disabled()


def test_keys_stay_in_memory(administrator: Page) -> None:
    """If this failed, a key would outlive the page on a shared machine."""
    stored = administrator.evaluate("[localStorage.length, sessionStorage.length, document.cookie, location.href]")
    assert stored[:3] == [0, 0, ""]
    assert "key" not in stored[3]


def test_a_label_that_is_markup_stays_text(page: Page, service: Service) -> None:
    """If this failed, the author of a label could run scripts in the browser of a user who sees it."""
    page.get_by_label("Query").fill("cheap")
    page.get_by_role("spinbutton", name="Answers").fill("50")
    expect_shown(page, predicted(service, queries=["cheap"], k=50))
    assert HOSTILE in shown(page)
    page.get_by_label("Query").fill(HOSTILE)
    expect_shown(page, predicted(service, queries=[HOSTILE], k=50))
    assert page.locator("main img").count() == 0
    assert page.title() == "Diptych"


@pytest.mark.parametrize("language", ["curl", "python"])
def test_the_copied_code_prints_the_answers_on_the_page(page: Page, language: str) -> None:
    """If this failed, the copied code would not run, or would send another request than the page."""
    page.get_by_label("Query").fill('it\'s "red" $HOME \\ 北京')
    page.get_by_label("Weight of the classifier").press("End")
    page.locator("#filters summary").click()
    page.get_by_label("US").check()
    page.wait_for_selector("#hits:not(.outdated) li")
    program = page.locator(f"#{language}").text_content() or ""
    command = ["bash", "-c", program] if language == "curl" else [sys.executable, "-c", program]
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8"}
    printed = subprocess.run(command, capture_output=True, check=True, text=True, env=environment, timeout=60).stdout
    if language == "curl":
        texts = [hit["text"] for hit in json.loads(printed)["results"][0]["hits"]]
    else:
        texts = [line.split("  ", 1)[1] for line in printed.splitlines()]
    assert texts == shown(page)


def test_the_charts_show_the_metrics(page: Page, service: Service) -> None:
    """If this failed, the charts would not show the values of /metrics."""
    for number in range(30):
        service.ask("POST", "/predict", {"queries": [f"red {number}"]})
    for name in ("Throughput", "Latency", "Batch size"):
        expect(page.get_by_role("img", name=re.compile(f"^{name}: .*maximum of three minutes (?!0 )"))).to_be_visible()
    percentiles = page.evaluate(
        """async () => {
            const { percentile, between, parse } = await import("/console/prometheus.js");
            const buckets = [{bound: 1, count: 50}, {bound: 2, count: 90}, {bound: Infinity, count: 100}];
            const text = (n) => `# HELP x\\ndiptych_requests_total{code="200",route="/predict"} ${n}\\n`
                + `diptych_batch_queries_sum ${n * 4}\\ndiptych_batch_queries_count ${n}\\n`;
            const usual = between(parse(text(10)), parse(text(30)), 4);
            const restarted = between(parse(text(10)), parse(text(4)), 4);
            return [percentile(buckets, 0.5), percentile(buckets, 0.7), percentile(buckets, 0.99), percentile([], 0.5),
                    usual.throughput, usual.batch, restarted.throughput];
        }"""
    )
    assert percentiles == [1, pytest.approx(1.5), 2, None, 5, 4, 1]


def test_a_service_that_restarts(opened: Callable[..., Page], store: Path) -> None:
    """If this failed, the page would stay blank or show errors after a restart, until it is reloaded."""
    with serving(store) as service:
        port = service.port
        page = opened(f"http://127.0.0.1:{port}/")
    page.get_by_label("Query").fill("red")
    expect(page.get_by_role("alert")).to_have_text("The service cannot be reached. The page keeps trying.")
    with serving(store, port=port):
        expect(page.locator("#hits li")).to_have_count(10)
        expect(page.get_by_role("alert")).to_be_hidden()


def test_a_service_that_requires_a_key(opened: Callable[..., Page], store: Path) -> None:
    """If this failed, a user with a key could not see that one is required, or could not use it."""
    with serving(store, predict_key="sesame") as service:
        page = opened(f"http://127.0.0.1:{service.port}/")
        page.get_by_label("Query").fill("red")
        expect(page.get_by_role("alert")).to_contain_text("requires a key")
        page.get_by_label("Search key").fill("guessed")
        page.get_by_role("button", name="Use", exact=True).click()
        expect(page.get_by_role("alert")).to_have_text("The service does not accept this key.")
        page.get_by_label("Search key").fill("sesame")
        page.get_by_role("button", name="Use", exact=True).click()
        expect(page.locator("#hits li")).to_have_count(10)
        expect(page.get_by_role("alert")).to_be_hidden()


def test_a_rate_limit_is_shown_and_the_request_repeated(opened: Callable[..., Page], store: Path) -> None:
    """If this failed, a refusal would stay on the page, or every key press would send a request into the limit."""
    # so low that the third request is refused, however slow the first two are on a busy machine
    with serving(store, rate_limit=0.2, rate_burst=2, max_queries=2) as service:
        page = opened(f"http://127.0.0.1:{service.port}/")
        for text in ("red", "red city", "red city rain"):
            with page.expect_response("**/predict"):
                page.get_by_label("Query").fill(text)
        expect(page.get_by_role("alert")).to_contain_text("Try again in")
        expect(page.get_by_role("alert")).to_be_hidden()
        expect(page.locator("#hits li")).to_have_count(10)


def test_a_bundle_with_one_head_has_no_weight_slider(opened: Callable[..., Page], tmp_path: Path) -> None:
    """If this failed, every move of the slider would be answered by an error."""
    with serving(export_to_store(make_cascade_checkpoint(tmp_path)).path) as service:
        page = opened(f"http://127.0.0.1:{service.port}/")
        page.get_by_label("Query").fill("red")
        expect(page.locator("#hits li")).to_have_count(10)
        expect(page.get_by_role("slider")).to_be_hidden()
