"""ICD-10-CM: title or inclusion term of a diagnosis → titles of the classes that contain it, up to the chapter.

Codes with the same parent are in one split, so the nearest training query is not the other side of the body.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from xml.etree import ElementTree

from benchmarks.panel.table import Row

TABULAR = "simple_icd_10_cm/data/icd10c-tabular-April-1-2026.xml"
CODES = re.compile(r"\s*\([A-Z0-9.,\- ]+\)$")  # as in `Diseases of the nervous system (G00-G99)`


def rows(files: Mapping[str, bytes]) -> Iterator[Row]:
    """Yield a row per title and per inclusion term."""
    for chapter in ElementTree.fromstring(files[TABULAR]).iter("chapter"):
        chapter_title = _title(chapter)
        for section in chapter.iter("section"):
            path = (_title(section), chapter_title)
            for node in section.findall("diag"):
                yield from _rows_of(node, path, section.get("id", ""))


def _rows_of(node: ElementTree.Element, path: Sequence[str], parent: str) -> Iterator[Row]:
    """Yield the rows of a class and of those below it; `path` has the titles above it, the nearest first."""
    title, code = _title(node), node.findtext("name", "")
    yield Row(title, path, f"below {parent}")
    for kind in ("includes", "inclusionTerm"):
        for note in node.findall(f"{kind}/note"):
            yield Row(note.text or "", (title, *path), f"below {parent}")
    for child in node.findall("diag"):
        yield from _rows_of(child, (title, *path), code)


def _title(node: ElementTree.Element) -> str:
    return CODES.sub("", node.findtext("desc", ""))
