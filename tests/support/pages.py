"""Parse the documentation: pages, their code blocks, what a page needs, and why a block is not run."""

import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FENCED = re.compile(r"^(?P<margin> *)```(?P<language>\S*)\n(?P<text>.*?)^(?P=margin)```$", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"(?:(?<=\n\n)|\A)(?P<text>(?: {4}.*\n|\n(?= {4}))+)")
REASON = re.compile(r"<!-- not run: (?P<reason>.+?) -->\s*\Z", re.DOTALL)
NEEDS = re.compile(r"^<!-- needs: (?P<needs>[a-z ]+) -->", re.MULTILINE)
SHELL = re.compile(r"(diptych|make|pip|curl|docker|python|torchrun) ")
RUN = {"sh", "python"}


@dataclass(frozen=True)
class Block:
    """A code block. `reason` says why it is not run; None if it is run."""

    page: str
    line: int
    language: str
    text: str
    reason: str | None

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


def written_pages() -> list[Path]:
    """Return the pages that are not generated: docs/, READMEs of examples, README.md, CONTRIBUTING.md."""
    examples = sorted((ROOT / "examples").glob("*/README.md"))
    return [*sorted((ROOT / "docs").rglob("*.md")), *examples, ROOT / "README.md", ROOT / "CONTRIBUTING.md"]


def needs(page: Path) -> str | None:
    """Return what a page needs, from the comment at its top."""
    found = NEEDS.search(page.read_text(encoding="utf-8"))
    return found["needs"] if found else None


def blocks(page: Path) -> list[Block]:
    """Return a page's fenced blocks in order. README.md has indented blocks; their first word gives the language."""
    text = page.read_text(encoding="utf-8")
    found = _indented(page, text) if page == ROOT / "README.md" else _fenced(page, text)
    return sorted(found, key=lambda block: block.line)


def _fenced(page: Path, text: str) -> Iterator[Block]:
    for match in FENCED.finditer(text):
        yield _block(page, text, match, match["language"], textwrap.dedent(match["text"]))


def _indented(page: Path, text: str) -> Iterator[Block]:
    for match in INDENTED.finditer(text):
        content = textwrap.dedent(match["text"]).strip("\n") + "\n"
        if all(SHELL.match(line) for line in content.splitlines()):
            yield _block(page, text, match, "sh", content)
        elif content.startswith(("from ", "import ")):
            yield _block(page, text, match, "python", content)
        else:
            yield _block(page, text, match, "text", content)


def _block(page: Path, text: str, match: re.Match[str], language: str, content: str) -> Block:
    reason = REASON.search(text[: match.start()])
    name = str(page.relative_to(ROOT)) if page.is_relative_to(ROOT) else page.name
    line = text.count("\n", 0, match.start("text")) + 1
    return Block(name, line, language, content, reason["reason"] if reason else None)
