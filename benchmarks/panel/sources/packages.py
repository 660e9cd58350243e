"""Debian packages: description → debtags. Long queries, few labels, many labels per query.

Binary packages of one source package often share a description, so they are in one split.
"""

from collections.abc import Iterator, Mapping

from benchmarks.panel.table import Row

INDEX, DESCRIPTIONS = "Packages", "Translation-en"


def rows(files: Mapping[str, bytes]) -> Iterator[Row]:
    """Yield a row per tagged package: its description, and its tags as `facet tag`."""
    descriptions = dict(_description(paragraph) for paragraph in _paragraphs(files[DESCRIPTIONS]))
    for paragraph in _paragraphs(files[INDEX]):
        if "Tag" not in paragraph:
            continue
        name = paragraph["Package"]
        source = paragraph.get("Source", name).split()[0]
        text = descriptions.get(paragraph.get("Description-md5", ""), paragraph.get("Description", ""))
        yield Row(text, (_label(tag) for tag in paragraph["Tag"].split(",")), f"source {source}")


def _paragraphs(content: bytes) -> Iterator[dict[str, str]]:
    """Yield the fields of each paragraph by name; continuation lines are joined with spaces."""
    for paragraph in content.decode().split("\n\n"):
        fields: dict[str, str] = {}
        name = ""
        for line in paragraph.splitlines():
            if line.startswith(" "):
                fields[name] += " " + line.strip().removeprefix(".")
            else:
                name, _, value = line.partition(":")
                fields[name] = value.strip()
        if fields:
            yield fields


def _description(fields: Mapping[str, str]) -> tuple[str, str]:
    return fields["Description-md5"], fields["Description-en"]


def _label(tag: str) -> str:
    return tag.strip().replace("::", " ").replace(":", " ")
