"""The tables of differences between `default` and UniDEC as published are complete, in README and architecture."""

import re

import pytest

from tests.support.pages import ROOT
from training.recipe.loading import load_recipe

HEADER = "| key | published (`systems/unidec`) | `default` |"
SHORTENED = {"[0.0]": "0.0", "[0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7]": "0.0 to 0.7"}


def expected_rows() -> list[str]:
    """Return a row per differing key; values as in a recipe's file."""
    rows = []
    for line in load_recipe("systems/unidec").differences(load_recipe("default")):
        key, published, default = re.fullmatch(r"(\S+): (.+) → (.+)", line).groups()  # type: ignore[union-attr]
        rows.append(f"| `{key}` | {_as_yaml(published)} | {_as_yaml(default)} |")
    return rows


def _as_yaml(value: str) -> str:
    words = {"True": "true", "False": "false", "None": "null"}
    listed = value.replace("(", "[").replace(",)", "]").replace(")", "]")
    return SHORTENED.get(listed, words.get(value, value))


@pytest.mark.parametrize("page", ["README.md", "docs/architecture.md"])
def test_the_table_lists_every_difference(page: str) -> None:
    """If it fails, a reader takes a setting of ours for a published one."""
    lines = (ROOT / page).read_text(encoding="utf-8").split("\n")
    start = lines.index(HEADER) + 2
    assert lines[start : lines.index("", start)] == expected_rows()
