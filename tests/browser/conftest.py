"""Fixtures: a headless Chromium, and a real service on a store of two bundles with the same labels and other answers.

Screenshots are written to `artefacts/` beside this file, which git ignores.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from retrieval.sandboxed_opening import verify_in_process
from retrieval.store.local import Store
from tests.support.bundles import VOTES, label_texts, make_bundle
from tests.support.service import ADMIN_KEY, PATIENCE, Service, serving

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

ARTEFACTS = Path(__file__).parent / "artefacts"
HOSTILE = '<img src=x onerror="document.title=1"> cheap'


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create the bundles `first` and `second` with the same labels; one label's text is markup."""
    store = Store(tmp_path_factory.mktemp("browser") / "store", verify_in_process)
    texts = [HOSTILE, *label_texts(199)]
    for seed, name in enumerate(("first", "second")):
        with store.incoming() as folder:
            store.publish(make_bundle(folder, texts, seed=seed, weight=0.5 - seed / 4, memory=VOTES), name)
    store.activate("first")
    return store.path


@pytest.fixture(scope="module")
def service(store: Path) -> Iterator[Service]:
    with serving(store) as service:
        yield service


@pytest.fixture(scope="module")  # not the session: while it runs, no other test of this process can start an event loop
def browser() -> Iterator["Browser"]:
    driver = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed: pip install playwright")
    executable = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if executable is None:
        pytest.skip("there is no Chromium: apt-get install chromium")
    as_root = ["--no-sandbox"] if os.geteuid() == 0 else []  # Chromium's sandbox refuses root
    driver.expect.set_options(timeout=1000 * PATIENCE)  # opening a bundle is slow on a busy machine
    with driver.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=as_root)
        yield browser
        browser.close()


@pytest.fixture
def opened(browser: "Browser", service: Service) -> Iterator[Callable[..., "Page"]]:
    """Open the console. The test fails if the page logs an error or sends a request to another origin."""
    contexts, errors, origin = [], [], f"http://127.0.0.1:{service.port}/"

    def open_(at: str = origin, ready: bool = True, **options: object) -> "Page":
        context = browser.new_context(**options)
        context.set_default_timeout(1000 * PATIENCE)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", lambda request: errors.append(request.url) if not request.url.startswith(at) else None)
        page.goto(at)
        if ready:
            page.wait_for_selector("#status[data-ready=true]")
        return page

    yield open_
    for context in contexts:
        context.close()
    assert errors == []


@pytest.fixture
def page(opened: Callable[..., "Page"]) -> "Page":
    return opened()


@pytest.fixture
def picture() -> Callable[["Page", str], None]:
    """Return a function that saves a screenshot of the full page under a name."""
    ARTEFACTS.mkdir(exist_ok=True)
    return lambda page, name: page.screenshot(path=ARTEFACTS / f"{name}.png", full_page=True) and None


@pytest.fixture
def administrator(page: "Page") -> "Page":
    """Open the console and enter the administrator key."""
    page.get_by_label("Administrator key").fill(ADMIN_KEY)
    page.get_by_role("button", name="Use", exact=True).click()
    page.wait_for_selector("#bundle-list li")
    return page
