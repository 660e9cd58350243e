"""Read the queries of a table in shards: CSV, TSV, JSON Lines or Parquet, one file or a folder of part files."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retrieval.errors import BadInput
from retrieval.query_text import is_blank
from retrieval.tables.account import RowAccount
from retrieval.tables.delimited import Layout
from retrieval.tables.table import Table
from retrieval.tables.values import BadRow, parse_id, parse_labels, parse_list_cell, preview, refuse_surrogates

COLUMNS = ("query", "text")  # default columns of the queries, in order of preference
MAX_PROBLEMS = 20  # messages about bad rows
LONGEST = 2**26  # characters of one query


@dataclass(frozen=True)
class QueryShard:
    """Consecutive queries; `first_row` is the row of the first one, and None is a skipped row."""

    first_row: int
    texts: list[str | None]

    @property
    def places(self) -> list[int]:
        """Return the positions in `texts` of the queries that have text."""
        return [place for place, text in enumerate(self.texts) if text is not None and not is_blank(text)]


class Queries:
    """The queries of a table. Rows are counted from 0; blank lines count as rows only if there is no other column."""

    def __init__(
        self, path: Path, column: str | None, *, layout: Layout | None = None, skip_bad_rows: bool = False
    ) -> None:
        """Open `path`. Raises BadInput if it cannot be read or does not have the column.

        column: None takes `query`, or `text`. skip_bad_rows: skip invalid rows instead of raising.
        """
        self.path, self._skip = path, skip_bad_rows
        self.table = Table(path, layout)
        names = self.table.names
        self.column = column or next((name for name in COLUMNS if name in names), COLUMNS[0])
        if names:
            self.table.require(self.column, "--column")
        self.count = self.blank = self.blank_lines = self.skipped = self._missing = 0
        self.problems: list[str] = []
        self.account: RowAccount | None = None

    def scan(self) -> None:
        """Read and count all rows. Raises BadInput that names the invalid rows, unless they are skipped."""
        self.count = self.blank = self.blank_lines = self.skipped = self._missing = 0
        self.problems = []
        for text in self._texts(counted=True):
            self.count += 1
            self.blank += text is not None and is_blank(text)
        if self.count and self._missing == self.count:
            has = ", ".join(self.table.names)
            raise BadInput(f"{self.path} has no column {self.column!r}. It has: {has}. Choose with --column.")
        if self.skipped and not self._skip:
            rows = "1 bad row" if self.skipped == 1 else f"{self.skipped:,} bad rows"
            raise BadInput(
                f"{self.path} has {rows}. Fix them, or skip them with --skip-bad-rows.\n  " + "\n  ".join(self.problems)
            )

    def shards(self, size: int, characters: int = LONGEST) -> Iterator[QueryShard]:
        """Yield shards of at most `size` queries and about `characters` in total; the same shards on every call."""
        texts: list[str | None] = []
        first = length = 0
        for text in self._texts():
            texts.append(text)
            length += len(text or "")
            if len(texts) == size or length >= characters:
                yield QueryShard(first, texts)
                first, texts, length = first + len(texts), [], 0
        if texts:
            yield QueryShard(first, texts)

    def first(self, most: int, *, truths: bool = True) -> tuple[list[str], list[list[str]] | None]:
        """Return the first queries that have text, at most `most`, and the ids of their true labels; set `account`.

        The ids are lists in a column `labels`; None without that column, or without `truths`. Raises BadInput if there
        is no query, and for an invalid row.
        """
        texts: list[str] = []
        labels: list[list[str]] = []
        skipped = Counter[str]()
        # In JSON Lines, the first object may lack keys of later ones.
        may_have = truths and (not self.table.has_header or "labels" in self.table.names)
        has_labels = may_have and self.table.has_header
        if may_have:
            self.table.require("labels", "another name")
        columns = [self.column, "labels"] if may_have else [self.column]
        for where, record in self.table.rows(columns if self.table.names else []):
            if len(texts) == most:
                break
            try:
                text = self._text(record)
                if text is None or is_blank(text):
                    skipped["blank_line" if record is None else "blank_query"] += 1
                    continue
                has_labels = has_labels or (may_have and isinstance(record, dict) and "labels" in record)
                labels.append(parse_labels(parse_list_cell(_labels(record)), "labels", _id) if may_have else [])
                texts.append(text)
            except BadRow as bad:
                raise BadInput(f"{where}: {bad}") from bad
        if not texts:
            raise BadInput(f"{self.path} contains no query.")
        read = len(texts) + sum(skipped.values())
        self.account = RowAccount(read=read, written=len(texts), skipped=dict(skipped)).check(str(self.path))
        return texts, labels if has_labels else None

    def _texts(self, *, counted: bool = False) -> Iterator[str | None]:
        """Yield the text of each row: empty if it has none, None if the row is invalid."""
        is_only_column = self.table.has_header and len(self.table.names) == 1
        for where, record in self.table.rows([self.column] if self.table.names else []):
            if record is None and not is_only_column:
                self.blank_lines += counted
                continue
            if isinstance(record, dict) and self.column not in record:
                self._missing += counted
            try:
                yield self._text(record)
            except BadRow as bad:
                if counted:
                    self.skipped += 1
                    if len(self.problems) < MAX_PROBLEMS:
                        self.problems.append(f"{where}: {bad}")
                yield None

    def _text(self, record: dict[str, Any] | BadRow | None) -> str | None:
        if isinstance(record, BadRow):
            raise record
        value = "" if record is None else record.get(self.column)
        if value is None:
            return ""
        if not isinstance(value, str):
            raise BadRow(f"{self.column} is {preview(value)}, not text. Write text or remove the row.")
        if len(value) > LONGEST:
            raise BadRow(f"{self.column} has {len(value):,} characters, more than {LONGEST:,}. Shorten it.")
        if not value.isascii():
            refuse_surrogates(value, self.column)
        return value


def _labels(record: Any) -> Any:
    value = record.get("labels") if isinstance(record, dict) else None
    return [] if value is None else value


def _id(value: Any, name: str) -> str:
    return parse_id(value, name, LONGEST)
