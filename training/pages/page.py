"""Render the templates of self-contained HTML pages.

A page is one file: its style and its charts are inside, and it has no script and no link. Texts of data are untrusted;
the templates escape them. Equal values give equal bytes.
"""

from collections.abc import Callable

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from retrieval.system.terminal import strip_controls

MAX_CHARACTERS = 160  # per text; texts of some datasets are pages long


def render(package: str, template: str, **values: object) -> str:
    """Return a page: a template of `package`, which may use the templates of `training.pages`, filled with `values`."""
    loader = ChoiceLoader([PackageLoader(package), PackageLoader("training.pages")])
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    filters: dict[str, Callable[..., str]] = {
        "cut": cut,
        "integer": lambda count: f"{count:,}",
        "number": number,
        "short": short,
    }
    environment.filters |= filters
    return environment.get_template(template).render(values)


def cut(text: str) -> str:
    """Return a text for display: at most MAX_CHARACTERS, without control characters and bidirectional overrides."""
    text = strip_controls(text[: 2 * MAX_CHARACTERS])
    return text if len(text) <= MAX_CHARACTERS else f"{text[: MAX_CHARACTERS - 1]}…"


def compact(value: float) -> str:
    """Return a number in at most six characters: 950, 1.5k, 22.4k, 2M."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def short(count: int) -> str:
    """Return a count in at most six characters: 22,431 in full, larger ones rounded."""
    return f"{count:,}" if count < 100_000 else compact(count)


def number(value: float) -> str:
    """Return a number with thousands separators, and with one decimal if it is below 100 and not an integer."""
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:,.1f}"
