"""What MkDocs calls: pages that are made from the code while the site is built, so that nothing is written twice.

Beside the pages of the reference come those that live elsewhere in the repository: the kept results of the benchmarks,
CONTRIBUTING.md and CHANGELOG.md. Their links are turned to where they stand on the site.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))  # the `mkdocs` command does not look into the folder that it is called in

import capacity  # noqa: E402
import command_line  # noqa: E402
import decisions  # noqa: E402
import http_api  # noqa: E402
import tables  # noqa: E402

MADE = {
    "reference/http.md": http_api.page,
    "reference/commands.md": command_line.page,
    "reference/settings.md": tables.settings_page,
    "reference/metrics.md": tables.metrics_page,
    "decisions/index.md": decisions.page,
}
TAKEN = {
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "benchmarks/README.md": "benchmarks/how.md",
    "examples/errors/README.md": "errors.md",
}
RESULTS = "benchmarks/results"
# How a link of the repository is written, and what it is on the site, where CONTRIBUTING.md stands beside the pages.
MOVED = {
    "docs/findings.md": [("](../benchmarks/", "](benchmarks/")],
    "CONTRIBUTING.md": [("](docs/", "](")],
    "CHANGELOG.md": [("](docs/", "](")],
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what is made and what is taken from elsewhere."""
    for place, content in _added():
        files.append(File.generated(config, place, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Turn the links of a page that point out of docs/, and fill in the capacity table."""
    return _relinked(markdown.replace(capacity.MARK, capacity.table()), f"docs/{page.file.src_uri}")


def _added() -> Iterator[tuple[str, str | bytes]]:
    for place, make in MADE.items():
        yield place, make()
    for source, place in TAKEN.items():
        yield place, _relinked((ROOT / source).read_text(encoding="utf-8"), source)
    for kept in sorted((ROOT / RESULTS).iterdir()):
        if kept.suffix == ".md":
            yield f"{RESULTS}/{kept.name}", re.sub(r"!\[\]\((\S+)\)", r"![\1](\1)", kept.read_text(encoding="utf-8"))
        elif kept.suffix == ".svg":
            yield f"{RESULTS}/{kept.name}", kept.read_bytes()


def _relinked(markdown: str, source: str) -> str:
    for written, meant in MOVED.get(source, []):
        markdown = markdown.replace(written, meant)
    return markdown
