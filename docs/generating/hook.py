"""Hook of MkDocs: generate reference pages from the code, and include pages from other folders of the repository.

Included are the results of the benchmarks, CONTRIBUTING.md, CHANGELOG.md and two READMEs. Their links are rewritten to
their places on the site.
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
    sys.path.insert(0, str(ROOT))  # the `mkdocs` command does not import from its working directory

import capacity  # noqa: E402
import command_line  # noqa: E402
import decisions  # noqa: E402
import http_api  # noqa: E402
import tables  # noqa: E402

GENERATED = {
    "reference/http.md": http_api.page,
    "reference/commands.md": command_line.page,
    "reference/settings.md": tables.settings_page,
    "reference/metrics.md": tables.metrics_page,
    "decisions/index.md": decisions.page,
}
INCLUDED = {
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "benchmarks/README.md": "benchmarks/how.md",
    "examples/errors/README.md": "errors.md",
}
RESULTS = "benchmarks/results"
# Per page: how a link starts in the repository, and how on the site.
REWRITTEN_LINKS = {
    "docs/findings.md": [("](../benchmarks/", "](benchmarks/")],
    "benchmarks/README.md": [("](../docs/", "](../")],
    "CONTRIBUTING.md": [("](docs/", "](")],
    "CHANGELOG.md": [("](docs/", "](")],
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add generated and included pages."""
    for path, content in _added():
        files.append(File.generated(config, path, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Rewrite links of a page that point out of docs/, and insert the capacity table."""
    return _rewrite_links(markdown.replace(capacity.MARK, capacity.table()), f"docs/{page.file.src_uri}")


def _added() -> Iterator[tuple[str, str | bytes]]:
    for path, render in GENERATED.items():
        yield path, render()
    for source, path in INCLUDED.items():
        yield path, _rewrite_links((ROOT / source).read_text(encoding="utf-8"), source)
    for result in sorted((ROOT / RESULTS).iterdir()):
        if result.suffix == ".md":
            text = result.read_text(encoding="utf-8")
            yield f"{RESULTS}/{result.name}", re.sub(r"!\[\]\((\S+)\)", r"![\1](\1)", text)
        elif result.suffix == ".svg":
            yield f"{RESULTS}/{result.name}", result.read_bytes()


def _rewrite_links(markdown: str, source: str) -> str:
    for old, new in REWRITTEN_LINKS.get(source, []):
        markdown = markdown.replace(old, new)
    return markdown
