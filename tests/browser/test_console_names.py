"""The console with attributes of any name: those that every JavaScript object has, markup, quotes, none, very long."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from retrieval.sandboxed_opening import verify_in_process
from retrieval.store.local import Store
from tests.support.bundles import label_texts, make_bundle
from tests.support.service import ADMIN_KEY, Service, figures, serving

playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed: pip install playwright")
Page = playwright.Page
expect = playwright.expect

LONG = "very long name " * 40
NAMES = [
    "__proto__",
    "constructor",
    "toString",
    "hasOwnProperty",
    "__defineGetter__",
    "length",
    "",
    " ",
    "<img src=x onerror=document.title=1>",
    'it\'s "quoted" $HOME `id` \\ !x; rm',
    "two\nlines\ttab",
    "市场\u202e",
    LONG,
]
VALUES = ["plain", 'it\'s "$(id)"']


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two bundles whose labels have an attribute of each name."""
    store = Store(tmp_path_factory.mktemp("names") / "store", verify_in_process)
    attributes = {name: [VALUES[(row >> place % 2) % 2] for row in range(200)] for place, name in enumerate(NAMES)}
    for seed, name in enumerate(("toString", "constructor")):
        with store.incoming() as folder:
            store.publish(make_bundle(folder, label_texts(), seed=seed, attributes=attributes), name)
    store.activate("toString")
    return store.path


@pytest.fixture(scope="module")
def service(store: Path) -> Iterator[Service]:
    with serving(store) as service:
        yield service


def open_parts(page: Page) -> None:
    for part in ("filters", "copying"):
        page.locator(f"#{part}").evaluate("one => { one.open = true; }")


def box(page: Page, name: str, value: str) -> Any:
    """The box for a value of the attribute with exactly this name."""
    groups = page.locator("#attributes fieldset")
    names = groups.evaluate_all("all => all.map((one) => one.dataset.name)")
    assert names == NAMES
    return groups.nth(names.index(name)).get_by_label(value, exact=True)


def shown(page: Page) -> list[str]:
    page.wait_for_selector("#hits:not(.outdated) li")
    texts: list[str] = page.locator("#hits .text").evaluate_all("all => all.map((one) => one.firstChild.data)")
    return texts


def filters_by(request: Any, names: list[str]) -> bool:
    """Whether a response is that to /predict with a filter of exactly these attributes."""
    return request.url.endswith("/predict") and list(request.request.post_data_json.get("filter", {})) == names


def test_a_filter_of_any_name_is_asked_for(page: Page, service: Service) -> None:
    """A filter would not be sent, the page would stop working, or a name would be read as markup."""
    page.get_by_label("Query").fill("cheap running shoes")
    open_parts(page)
    for name in NAMES:
        with page.expect_response(lambda one, name=name: filters_by(one, [name])) as answer:
            box(page, name, VALUES[1]).check()
        body = answer.value.request.post_data_json
        assert body["filter"] == {name: [VALUES[1]]}
        hits = service.ask("POST", "/predict", body).json()["results"][0]["hits"]
        assert {hit["attributes"][name] for hit in hits} == {VALUES[1]}
        assert shown(page) == [hit["text"] for hit in hits]
        about = page.locator("#hits .about").first.text_content() or ""
        assert f"{name if name.strip() else '(no name)'} {VALUES[1]}" in about
        expect(page.locator("#filters-count")).to_have_text("(1)")
        box(page, name, VALUES[1]).uncheck()
    assert page.title() == "Diptych"
    assert page.locator("main img").count() == 0


@pytest.mark.parametrize("language", ["curl", "python"])
def test_the_program_asks_with_filters_of_any_name(page: Page, language: str) -> None:
    """The copied program would run a name as a command, lose one, or not run at all."""
    page.get_by_label("Query").fill("cheap running shoes")
    open_parts(page)
    with page.expect_response(lambda one: filters_by(one, NAMES)):
        for name in NAMES:
            box(page, name, VALUES[1]).check()
    texts = shown(page)
    program = page.locator(f"#{language}").text_content() or ""
    command = ["bash", "-c", program] if language == "curl" else [sys.executable, "-X", "utf8", "-c", program]
    printed = subprocess.run(command, capture_output=True, check=True, text=True, encoding="utf-8", timeout=60).stdout
    if language == "curl":
        assert [hit["text"] for hit in json.loads(printed)["results"][0]["hits"]] == texts
    else:
        assert [line.split("  ", 1)[1] for line in printed.splitlines()] == texts


def test_a_program_quotes_the_address_too(page: Page) -> None:
    """A page behind a proxy, under a path with a shell's characters, would copy a command that runs them."""
    url = "http://127.0.0.1:9/it's;echo$(id)/predict"
    program = page.evaluate("async (url) => (await import('/console/copy.js')).asCurl(url, {k: 1})", url)
    printed = subprocess.run(
        ["bash", "-c", f"curl() {{ printf '%s\\n' \"$@\"; }}\n{program}"], capture_output=True, check=True, text=True
    )
    assert printed.stdout.splitlines()[1] == url


def test_all_of_them_together_stay_chosen_when_the_bundle_changes(page: Page, service: Service) -> None:
    """Choices would be lost, or belong to another attribute, after every change of bundle."""
    page.get_by_label("Administration").fill(ADMIN_KEY)
    page.get_by_role("button", name="Use", exact=True).click()
    open_parts(page)
    for name in NAMES:
        box(page, name, VALUES[0]).check()
    expect(page.locator("#filters-count")).to_have_text(f"({len(NAMES)})")
    page.get_by_label("Compare with").select_option("constructor")
    for bundle in ("constructor", "toString"):
        assert service.activate(bundle).status == 200
        expect(page.locator("#status")).to_contain_text(bundle)
        expect(page.locator("#filters-count")).to_have_text(f"({len(NAMES)})")
    with page.expect_request("**/predict") as asked:
        page.get_by_label("Query").fill("cheap")
    assert asked.value.post_data_json["filter"] == {name: [VALUES[0]] for name in NAMES}


def test_long_names_leave_the_page_as_wide_as_the_window(opened: Callable[..., Page]) -> None:
    """A phone would have to scroll sideways."""
    page = opened(viewport={"width": 360, "height": 740})
    page.get_by_label("Query").fill("cheap running shoes")
    open_parts(page)
    page.wait_for_selector("#hits:not(.outdated) li")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_a_wrong_key_is_sent_once(opened: Callable[..., Page], store: Path) -> None:
    """The page asks every two seconds: it would count as a guesser, and the right key would have to wait."""
    with serving(store, predict_key="caller's own long key 1") as service:
        page = opened(f"http://127.0.0.1:{service.port}/")
        page.get_by_label("Asking").fill("mistyped")
        page.get_by_label("Administration").fill("mistyped too")
        page.get_by_role("button", name="Use", exact=True).click()
        expect(page.locator("#admin-said")).to_contain_text("needs the administrator's key")
        for text in ("red", "red city", "red city rain"):
            page.get_by_label("Query").fill(text)
            expect(page.get_by_role("alert")).to_have_text("The service does not know this key.")
        for _ in range(2):
            with page.expect_response("**/readyz"):
                pass  # the page looks again
        wrong = figures(service)
        assert wrong['diptych_wrong_keys_total{header="X-Admin-Key"}'] == 1
        assert wrong['diptych_wrong_keys_total{header="X-Api-Key"}'] <= 2  # two requests may be under way together
        page.get_by_label("Asking").fill("caller's own long key 1")
        page.get_by_label("Administration").fill(ADMIN_KEY)
        page.get_by_role("button", name="Use", exact=True).click()
        expect(page.locator("#hits li")).to_have_count(10)
        page.wait_for_selector("#bundle-list li")
