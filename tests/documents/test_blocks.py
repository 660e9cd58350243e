"""Every code block of docs/, README.md and CONTRIBUTING.md is run, or says why not and is checked."""

import csv
import itertools
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.documents.conftest import Preparer
from tests.support.pages import ROOT, RUN, Block, blocks, needs, written_pages
from tests.support.programs.page_runner import run_page
from training.recipe.loading import load_recipe

sys.path.insert(0, str(ROOT / "docs" / "generating"))
import command_line

PAGES = {str(page.relative_to(ROOT)): blocks(page) for page in written_pages()}
ELSEWHERE = "docs/quickstart.md"  # test_quickstart.py runs it and checks its results
TO_RUN = sorted(
    name
    for name, parts in PAGES.items()
    if name != ELSEWHERE and any(b.language in RUN and not b.reason for b in parts)
)
NOT_RUN = [block for parts in PAGES.values() for block in parts if block.reason]
DATA = [block for parts in PAGES.values() for block in parts if block.language in ("json", "yaml", "toml", "csv")]


@pytest.mark.parametrize("page", TO_RUN)
def test_a_page_can_be_followed(page: str, prepared: Preparer) -> None:
    """If this failed, a reader who follows a page would get an error."""
    requirement = needs(ROOT / page)
    assert requirement, f"{page} has blocks to run and no comment <!-- needs: … -->"
    run_page(PAGES[page], prepared(requirement))


def test_every_block_is_of_a_known_kind() -> None:
    """If this failed, a block of an unknown language would be neither run nor checked."""
    known = RUN | {"text", "json", "yaml", "toml", "csv"}
    assert [block.place for parts in PAGES.values() for block in parts if block.language not in known] == []


@pytest.mark.parametrize("block", DATA, ids=lambda block: block.place)
def test_data_can_be_parsed(block: Block) -> None:
    """If this failed, a reader would copy JSON, YAML or CSV that cannot be parsed."""
    match block.language:
        case "json":
            json.loads(block.text)
        case "yaml":
            yaml.safe_load(block.text)
        case "csv":
            assert len({len(row) for row in csv.reader(block.text.splitlines())}) == 1
        case kind:
            pytest.fail(f"{block.place}: {kind} is checked nowhere")


@pytest.mark.parametrize("block", NOT_RUN, ids=lambda block: block.place)
def test_blocks_that_are_not_run_are_valid(block: Block) -> None:
    """If this failed, a block that needs a GPU or a download could have a wrong option or a syntax error."""
    assert block.language == "sh", "only shell blocks may say that they are not run"
    checked = subprocess.run(["bash", "-n"], input=block.text, text=True, capture_output=True, check=False)
    assert checked.returncode == 0, checked.stderr
    for words in commands(block):
        names = [word for word in words if not word.startswith("-")][:2]
        path = names[: 2 if names[0] == "bundles" else 1]
        used = {word.split("=")[0] for word in words if re.match(r"--?[a-z]", word)}
        assert used <= options(*path), f"{block.place}: {' '.join(words)}"
        if path == ["train"]:
            load_recipe(*recipe_of(words))


def test_the_checks_detect_errors(tmp_path: Path) -> None:
    """If this failed, a page with a failing command or a wrong option would pass."""
    with pytest.raises(AssertionError, match="no such store"):
        run_page(
            [Block("page.md", 1, "sh", "diptych search no-such-store x || { echo no such store; false; }", None)],
            tmp_path,
        )
    with pytest.raises(AssertionError):
        test_blocks_that_are_not_run_are_valid(
            Block("page.md", 1, "sh", "diptych train --datasets d --out c\n", "it is wrong")
        )


def commands(block: Block) -> Iterator[list[str]]:
    """Yield the arguments of each `diptych` command of a shell block."""
    for line in block.text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if "diptych" in words and words[0] in ("diptych", "torchrun", "python"):
            yield words[words.index("diptych") + 1 :]


def options(*path: str) -> set[str]:
    """Return every option in the help of a command."""
    return {"-h", *re.findall(r"(?<![\w-])--?[a-z][a-z-]*", command_line.help_of(*path))}


def recipe_of(words: list[str]) -> tuple[str, list[str]]:
    """Return the recipe and the overrides in the arguments of `diptych train`."""
    recipe = words[words.index("--recipe") + 1] if "--recipe" in words else "default"
    return recipe, [value for word, value in itertools.pairwise(words) if word == "--set"]
