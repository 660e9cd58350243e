"""The Ding dictionary: German → English and English → German in one set. Both directions of an entry are in one split.

ding: all entries; most labels of test queries are unseen in training. ding-common: only labels with several entries.
"""

import re
from collections.abc import Iterator, Mapping

from benchmarks.panel.table import Row

DICTIONARY = "./usr/share/trans/de-en"
BRACKETS = re.compile(r"[()\[\]{}]")  # of a note that contains the sign of an alternative
MIN_ENTRIES = 8  # of a label in `ding-common`
NOTES = re.compile(r"\{[^}]*\}|\[[^\]]*\]|\([^)]*\)|/[^/]*/|<[^>]*>")  # grammar, subject, explanation, abbreviation


def rows(files: Mapping[str, bytes]) -> Iterator[Row]:
    """Yield the rows of all entries.

    An entry is `German :: English`. `|` separates parts that correspond to each other, `;` alternatives within a part.
    """
    for line in _entries(files):
        german, _, english = line.partition("::")
        for german_part, english_part in zip(german.split("|"), english.split("|"), strict=False):
            sides = _alternatives(german_part), _alternatives(english_part)
            for queries, labels in (sides, sides[::-1]):
                for query in queries:
                    yield Row(query, labels, f"entry {line}")


def rows_of_common_labels(files: Mapping[str, bytes]) -> Iterator[Row]:
    """Yield the rows with only those labels that occur in at least MIN_ENTRIES entries."""
    entries: dict[str, set[str]] = {}
    for row in rows(files):
        for label in row.labels:
            entries.setdefault(label, set()).add(row.group)
    for row in rows(files):
        yield row._replace(labels=[label for label in row.labels if len(entries[label]) >= MIN_ENTRIES])


def _entries(files: Mapping[str, bytes]) -> Iterator[str]:
    return (line for line in files[DICTIONARY].decode().splitlines() if "::" in line and not line.startswith("#"))


def _alternatives(part: str) -> list[str]:
    texts = (" ".join(NOTES.sub(" ", text).split()) for text in part.split(";"))
    return [text for text in texts if text and not BRACKETS.search(text)]
