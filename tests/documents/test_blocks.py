"""Every code block of docs/, README.md and CONTRIBUTING.md is run as it stands, or says why not and is checked."""

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
from tests.support.page_runner import run_page
from tests.support.pages import ROOT, RUN, Block, blocks, needs, written_pages
from training.recipe.loading import load_recipe

sys.path.insert(0, str(ROOT / "docs" / "generating"))
import command_line

PAGES = {str(page.relative_to(ROOT)): blocks(page) for page in written_pages()}
TO_RUN = sorted(name for name, found in PAGES.items() if any(b.language in RUN and not b.reason for b in found))
LEFT_OUT = [block for found in PAGES.values() for block in found if block.reason]
DATA = [block for found in PAGES.values() for block in found if block.language in ("json", "yaml", "toml", "csv")]


@pytest.mark.parametrize("page", TO_RUN)
def test_a_page_can_be_followed(page: str, prepared: Preparer) -> None:
    """If this failed, a reader who types what a page says would meet an error."""
    needed = needs(ROOT / page)
    assert needed, f"{page} has blocks to run and no comment <!-- needs: … -->"
    run_page(PAGES[page], prepared(needed))


def test_every_block_is_of_a_known_kind() -> None:
    """If this failed, a block would be neither run nor checked because nobody knows what it is."""
    known = RUN | {"text", "json", "yaml", "toml", "csv"}
    assert [block.place for found in PAGES.values() for block in found if block.language not in known] == []


@pytest.mark.parametrize("block", DATA, ids=lambda block: block.place)
def test_data_is_whole(block: Block) -> None:
    """If this failed, a reader would copy JSON, YAML or CSV that nothing can read."""
    match block.language:
        case "json":
            json.loads(block.text)
        case "yaml":
            yaml.safe_load(block.text)
        case "csv":
            assert len({len(row) for row in csv.reader(block.text.splitlines())}) == 1
        case kind:
            pytest.fail(f"{block.place}: {kind} is checked nowhere")


@pytest.mark.parametrize("block", LEFT_OUT, ids=lambda block: block.place)
def test_what_is_not_run_could_be(block: Block) -> None:
    """If this failed, a block that needs a GPU or a download would have a slip that nobody meets before a reader."""
    assert block.language == "sh", "only shell blocks may say that they are not run"
    checked = subprocess.run(["bash", "-n"], input=block.text, text=True, capture_output=True, check=False)
    assert checked.returncode == 0, checked.stderr
    for words in commands(block):
        room = [word for word in words if not word.startswith("-")][:2]
        path = room[: 2 if room[0] == "bundles" else 1]
        given = {word.split("=")[0] for word in words if re.match(r"--?[a-z]", word)}
        assert given <= options(*path), f"{block.place}: {' '.join(words)}"
        if path == ["train"]:
            load_recipe(*recipe_of(words))


def test_the_checks_find_what_is_wrong(tmp_path: Path) -> None:
    """If this failed, a page with a command that ends in an error, or a slip in an option, would pass."""
    with pytest.raises(AssertionError, match="no such store"):
        run_page(
            [Block("page.md", 1, "sh", "diptych search no-such-store x || { echo no such store; false; }", None)],
            tmp_path,
        )
    with pytest.raises(AssertionError):
        test_what_is_not_run_could_be(Block("page.md", 1, "sh", "diptych train --datasets d --out c\n", "it is wrong"))


def commands(block: Block) -> Iterator[list[str]]:
    """The words behind each `diptych` of a shell block."""
    for line in block.text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if "diptych" in words and words[0] in ("diptych", "torchrun", "python"):
            yield words[words.index("diptych") + 1 :]


def options(*path: str) -> set[str]:
    """Every option that the help of a command names."""
    return {"-h", *re.findall(r"(?<![\w-])--?[a-z][a-z-]*", command_line.help_of(*path))}


def recipe_of(words: list[str]) -> tuple[str, list[str]]:
    """The recipe and what is set, of the words of `diptych train`."""
    recipe = words[words.index("--recipe") + 1] if "--recipe" in words else "default"
    return recipe, [value for word, value in itertools.pairwise(words) if word == "--set"]
