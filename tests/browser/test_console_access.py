"""Accessibility of the console: keyboard, screen reader, light and dark mode, phone."""

import re
from collections.abc import Callable

import pytest

from tests.support.service import ADMIN_KEY

playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed: pip install playwright")
Page = playwright.Page
expect = playwright.expect
DESK, PHONE = {"width": 1280, "height": 900}, {"width": 360, "height": 740}
LEAST_CONTRAST = 4.5  # WCAG 2.2 AA, text of any size

# Every visible text, with the contrast of its colour to the nearest background behind it.
CONTRASTS = """() => {
    const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
    const rgba = (colour) => {
        canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
        return [...canvas.getImageData(0, 0, 1, 1).data];
    };
    const light = (colour) => {
        const [r, g, b] = rgba(colour).map((one) => one / 255)
            .map((one) => one <= 0.04045 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const ground = (element) => {
        for (let one = element; one; one = one.parentElement) {
            const colour = getComputedStyle(one).backgroundColor;
            if (rgba(colour)[3] === 255) return colour;
        }
        return "white";
    };
    const found = [];
    const measure = (element, text, colour) => {
        const [one, other] = [light(colour), light(ground(element))];
        found.push([text, (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05)]);
    };
    for (const element of document.querySelectorAll("body *")) {
        if (!element.checkVisibility() || getComputedStyle(element).clipPath !== "none") continue;
        const texts = [...element.childNodes].filter((node) => node.nodeType === 3 && node.data.trim());
        const own = texts.map((node) => node.data).join(" ") || element.value;
        if (own) measure(element, own, getComputedStyle(element).color);
        const pale = getComputedStyle(element, "::placeholder").color;
        if (element.placeholder) measure(element, element.placeholder, pale);
    }
    return found;
}"""


def filled(page: Page) -> Page:
    """Open all parts of the page and fill all controls."""
    page.get_by_label("Administrator key").fill(ADMIN_KEY)
    page.get_by_role("button", name="Use", exact=True).click()
    page.wait_for_selector("#bundle-list li")
    page.get_by_label("Query").fill("cheap running shoes")
    page.get_by_label("Compare with").select_option("second")
    page.locator("#filters summary").click()
    page.locator("#copying summary").click()
    page.wait_for_selector("#other-hits li")
    expect(page.locator("#charts path.main").nth(1)).to_have_attribute("d", re.compile("M"))
    return page


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("device", "viewport"), [("desk", DESK), ("phone", PHONE)])
def test_it_can_be_read(
    opened: Callable[..., Page],
    picture: Callable[[Page, str], None],
    scheme: str,
    device: str,
    viewport: dict[str, int],
) -> None:
    """If this failed, texts would have too little contrast in one of the schemes, or a phone would scroll sideways."""
    page = filled(opened(color_scheme=scheme, viewport=viewport))
    picture(page, f"{device}-{scheme}")
    pale = [(text, contrast) for text, contrast in page.evaluate(CONTRASTS) if contrast < LEAST_CONTRAST]
    assert pale == []
    assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]


def test_the_empty_page_and_a_refusal(opened: Callable[..., Page], picture: Callable[[Page, str], None]) -> None:
    """If this failed, the empty page or an error message would have too little contrast."""
    page = opened(viewport=DESK)
    picture(page, "desk-empty")
    assert min(contrast for _, contrast in page.evaluate(CONTRASTS)) >= LEAST_CONTRAST
    page.get_by_label("Query").fill("red")
    page.get_by_role("spinbutton", name="Answers").fill("1000")
    expect(page.get_by_role("alert")).to_have_text("k is 1000; the maximum is 100.")
    picture(page, "desk-refusal")
    assert min(contrast for _, contrast in page.evaluate(CONTRASTS)) >= LEAST_CONTRAST


def test_every_control_has_a_name(opened: Callable[..., Page]) -> None:
    """If this failed, a screen reader would read "button" or "edit text" without a name."""
    page = filled(opened())
    controls = page.locator("input, select, button, summary, [role=img], [tabindex='0']:not(li)")
    tree = page.locator("body").aria_snapshot()
    assert controls.count() > 20
    nameless = controls.evaluate_all(
        """all => all.filter((one) => !(one.labels?.[0]?.textContent.trim() || one.getAttribute("aria-label")
            || (["BUTTON", "SUMMARY"].includes(one.tagName) && one.textContent.trim()))).map((one) => one.outerHTML)"""
    )
    assert nameless == []
    # the same in the browser's accessibility tree
    lines = [line.strip().removeprefix("- ") for line in tree.splitlines()]
    assert [line for line in lines if line.split(":")[0] in ("button", "textbox", "searchbox", "slider", "img")] == []
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map((one) => one.id)")
    assert len(ids) == len(set(ids))


def test_the_tab_key_follows_the_order_of_the_page(opened: Callable[..., Page]) -> None:
    """If this failed, the focus would jump, be trapped, or never reach a control."""
    page = filled(opened())
    page.get_by_label("Query").focus()
    reached = []
    for _ in range(60):
        place = page.evaluate(
            "[...document.querySelectorAll('*')].indexOf(document.activeElement)"
            " * (document.activeElement === document.body ? 0 : 1)"
        )
        if not place or place in reached:
            break
        reached.append(place)
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline != "none"
        page.keyboard.press("Tab")
    assert reached == sorted(reached)
    wanted = page.evaluate(
        """[...document.querySelectorAll('input, select, button, summary, [tabindex="0"]')]
            .filter((one) => one.checkVisibility() && !one.disabled).length"""
    )
    assert len(reached) == wanted


def test_the_keyboard_reaches_the_answers(page: Page) -> None:
    """If this failed, the answers could be reached only with a mouse."""
    query = page.get_by_label("Query")
    query.fill("red winter city")
    page.wait_for_selector("#hits:not(.outdated) li")
    query.press("ArrowDown")
    rows = page.locator("#hits li")
    expect(rows.nth(0)).to_be_focused()
    page.keyboard.press("ArrowDown")
    expect(rows.nth(1)).to_be_focused()
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowUp")
    expect(query).to_be_focused()
    page.get_by_role("button", name="Use", exact=True).focus()
    page.keyboard.press("/")
    expect(query).to_be_focused()
    assert query.input_value() == "red winter city"
    page.keyboard.press("Escape")
    expect(query).to_have_value("")
    expect(rows).to_have_count(0)


def test_new_answers_are_announced(page: Page) -> None:
    """If this failed, a screen reader would not announce new answers."""
    page.get_by_label("Query").fill("red winter city")
    expect(page.locator("#announcement[role=status]")).to_contain_text("10 answers, the best is ")


def test_reduced_motion_is_respected(opened: Callable[..., Page]) -> None:
    """If this failed, animations would run for users who disabled them."""
    page = opened(reduced_motion="reduce")
    moving = page.evaluate(
        """[...document.querySelectorAll("*")].filter((one) => {
            const { transitionDuration, animationName } = getComputedStyle(one);
            return transitionDuration !== "0s" || animationName !== "none";
        }).length"""
    )
    assert moving == 0
