"""Render the templates of self-contained HTML pages.

A page is one file: its style and its charts are inside, and it has no script and no link. Texts of data are untrusted;
the templates escape them. Equal values give equal bytes.
"""

from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from retrieval.system.terminal import strip_controls

MAX_CHARACTERS = 160  # per text; texts of some datasets are pages long


def render(package: str, template: str, **values: object) -> str:
    """Return a page: a template of `package`, which may use the templates of `training.pages`, filled with `values`."""
    loader = ChoiceLoader([PackageLoader(package), PackageLoader("training.pages")])
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"cut": cut, "integer": lambda count: f"{count:,}", "number": number}
    return environment.get_template(template).render(values)


def cut(text: str) -> str:
    """Return a text for display: at most MAX_CHARACTERS, without control characters and bidirectional overrides."""
    text = strip_controls(text[: 2 * MAX_CHARACTERS])
    return text if len(text) <= MAX_CHARACTERS else f"{text[: MAX_CHARACTERS - 1]}…"


def number(value: float) -> str:
    """Return a number with thousands separators, and with one decimal if it is below 100 and not an integer."""
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:,.1f}"
