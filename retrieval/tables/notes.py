"""Notes about an input: counts of what a user should know, such as rows with a column that is not used."""

from collections import Counter, defaultdict
from collections.abc import Mapping

Counts = Mapping[str, int | Mapping[str, int]]  # by identifier, or by identifier and name

# Texts of notes about the files of a table. A text with {name} is one line per name; one with {names} lists all names.
TABLE_NOTES: Mapping[str, str] = {
    "unusual_separators": "files with {name} between cells, as detected in the header",
    "quoted_cells": "rows with cells in quotes; the quotes are part of the text; --quoting csv removes them",
    "multi_line_row_lines": "lines in rows that span several lines",
    "multi_line_rows": "rows that span several lines, because of quotes, such as {names}",
    "path_columns": "files whose path gives the column {name}",
    "unread_files": "files in the folder that were not read: {names}",
}
MAX_NAMES = 5  # in one line


class Notes:
    """Counts by identifier, or by identifier and name."""

    def __init__(self) -> None:
        self._counts: defaultdict[str, Counter[str | None]] = defaultdict(Counter)

    def add(self, note: str, count: int, name: str | None = None) -> None:
        """Add `count` to a note; `name` is the column, file or place that the count is about."""
        self._counts[note][name] += count

    def update(self, counts: Counts) -> None:
        """Add all counts of other notes."""
        for note, count in counts.items():
            if isinstance(count, int):
                self.add(note, count)
            else:
                for name, number in count.items():
                    self.add(note, number, name)

    def counts(self) -> dict[str, int | dict[str, int]]:
        """Return all counts except zeros."""
        counts: dict[str, int | dict[str, int]] = {}
        for note, names in self._counts.items():
            by_name = {name: count for name, count in names.items() if name is not None and count}
            if count := names[None] or by_name:
                counts[note] = count
        return counts


def note_lines(counts: Counts, texts: Mapping[str, str]) -> list[tuple[int, str]]:
    """Return count and text of each note. An identifier without a text in `texts` is its own text."""
    lines: list[tuple[int, str]] = []
    for note, count in counts.items():
        text = texts.get(note, note)
        if isinstance(count, int):
            lines.append((count, text))
        elif "{names}" in text:
            names = ", ".join(list(count)[:MAX_NAMES]) + (", …" if len(count) > MAX_NAMES else "")
            lines.append((sum(count.values()), text.format(names=names)))
        else:
            lines += [(number, text.format(name=name)) for name, number in count.items()]
    return lines
