"""dataset.html in a real browser, without JavaScript: light and dark mode, desk and phone."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.browser.test_console_access import CONTRASTS, DESK, LEAST_CONTRAST, PHONE
from tests.unit.prepare.test_dataset_page import SCRIPT, TEXTS, log
from training.data.statistics import dataset_statistics
from training.pages.dataset_page import write_dataset_page

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    dataset = log(tmp_path_factory.mktemp("log") / "dataset")
    path: Path = write_dataset_page(dataset, dataset_statistics(dataset), TEXTS)
    return path.as_uri()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("device", "viewport"), [("desk", DESK), ("phone", PHONE)])
def test_it_can_be_read(
    browser: "Browser",
    picture: Callable[["Page", str], None],
    address: str,
    scheme: str,
    device: str,
    viewport: dict[str, int],
) -> None:
    """If this failed, the page would need JavaScript or a network, be too pale, or scroll sideways on a phone."""
    context = browser.new_context(color_scheme=scheme, viewport=viewport, java_script_enabled=False)  # type: ignore[arg-type]
    page, requests, errors = context.new_page(), [], []
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: errors.append(message.text))
    page.goto(address)
    picture(page, f"dataset-{device}-{scheme}")
    assert (requests, errors) == ([address], [])
    assert page.locator("h1").inner_text() == SCRIPT
    assert page.locator("svg path").first.is_visible()
    pale = [(text, contrast) for text, contrast in page.evaluate(CONTRASTS) if contrast < LEAST_CONTRAST]
    assert pale == []
    assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
    context.close()
