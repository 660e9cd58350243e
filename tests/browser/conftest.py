"""A headless Chromium before a real service on a store of two bundles that give other answers to the same labels.

Screenshots are written to `artefacts/` beside this file, for people to look at; git does not keep them.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from retrieval.sandboxed_opening import verify_in_process
from retrieval.store.local import Store
from tests.support.bundles import label_texts, make_bundle
from tests.support.service import ADMIN_KEY, PATIENCE, Service, serving

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

ARTEFACTS = Path(__file__).parent / "artefacts"
HOSTILE = '<img src=x onerror="document.title=1"> cheap'


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bundles `first` and `second`, of the same labels; one label's text is markup."""
    store = Store(tmp_path_factory.mktemp("browser") / "store", verify_in_process)
    texts = [HOSTILE, *label_texts(199)]
    for seed, name in enumerate(("first", "second")):
        with store.incoming() as folder:
            store.publish(make_bundle(folder, texts, seed=seed, weight=0.5 - seed / 4), name)
    store.activate("first")
    return store.path


@pytest.fixture(scope="module")
def service(store: Path) -> Iterator[Service]:
    with serving(store) as service:
        yield service


@pytest.fixture(scope="module")  # not longer: while it lives, no other test of this process can start a loop
def browser() -> Iterator["Browser"]:
    driver = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed: pip install playwright")
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("there is no Chromium: apt-get install chromium")
    as_root = ["--no-sandbox"] if os.geteuid() == 0 else []  # Chromium's sandbox refuses root
    driver.expect.set_options(timeout=1000 * PATIENCE)  # a bundle is opened behind whatever else the machine does
    with driver.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=as_root)
        yield browser
        browser.close()


@pytest.fixture
def opened(browser: "Browser", service: Service) -> Iterator[Callable[..., "Page"]]:
    """Opens the console; the test fails if the page logged an error or asked anybody but its own origin."""
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
    """Keeps a screenshot of a whole page under a name."""
    ARTEFACTS.mkdir(exist_ok=True)
    return lambda page, name: page.screenshot(path=ARTEFACTS / f"{name}.png", full_page=True) and None


@pytest.fixture
def administrator(page: "Page") -> "Page":
    """The console after its administrator has typed the key."""
    page.get_by_label("Administration").fill(ADMIN_KEY)
    page.get_by_role("button", name="Use", exact=True).click()
    page.wait_for_selector("#bundle-list li")
    return page
