"""Read the queries of a table in shards: CSV, TSV, JSON Lines or Parquet, one file or a folder of part files."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from retrieval.errors import BadInput
from retrieval.query_text import is_blank
from retrieval.tables.account import RowAccount
from retrieval.tables.arrow_types import to_mask
from retrieval.tables.batches import PLACE, Batch
from retrieval.tables.columns import Fast, IdentifierList, Parser
from retrieval.tables.delimited import Layout
from retrieval.tables.table import Table
from retrieval.tables.values import BadRow, preview, refuse_surrogates

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
        self, path: Path | str, column: str | None, *, layout: Layout | None = None, skip_bad_rows: bool = False
    ) -> None:
        """Open `path`. Raises BadInput if it cannot be read or does not have the column.

        column: None takes `query`, or `text`. skip_bad_rows: skip invalid rows instead of raising.
        """
        self.table, self._skip = Table(path, layout), skip_bad_rows
        self.path = self.table.path
        names = self.table.names
        self.column = column or next((name for name in COLUMNS if name in names), COLUMNS[0])
        if names:
            self.table.require(self.column, "--column")
        self.count = self.blank = self.blank_lines = self.skipped = 0
        self.problems: list[str] = []
        self.account: RowAccount | None = None

    def scan(self) -> None:
        """Read and count all rows. Raises BadInput that names the invalid rows, unless they are skipped."""
        self.count = self.blank = self.blank_lines = self.skipped = 0
        self.problems = []
        has_text = False
        for batch in self._batches():
            texts = self._texts(batch)
            self.count += len(texts)
            self.blank += sum(text is not None and is_blank(text) for text in texts)
            self.blank_lines += batch.read - len(texts)
            self.skipped += len(batch.bad)
            self.problems += [
                f"{place}: {message}" for place, message in batch.bad[: MAX_PROBLEMS - len(self.problems)]
            ]
            has_text = has_text or any(text != "" for text in texts)
        if self.count and not has_text and self.column not in self.table.names:
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
        for text in chain.from_iterable(map(self._texts, self._batches())):
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
        columns = {"labels": IdentifierList(LONGEST, required=False)} if may_have else {}
        for text, true_labels in chain.from_iterable(self._rows(batch) for batch in self._batches(columns)):
            if len(texts) == most:
                break
            if isinstance(text, BadRow):
                raise BadInput(str(text))
            if text is None or is_blank(text):
                skipped["blank_line" if text is None else "blank_query"] += 1
                continue
            has_labels = has_labels or true_labels is not None
            labels.append(true_labels or [])
            texts.append(text)
        if not texts:
            raise BadInput(f"{self.path} contains no query.")
        read = len(texts) + sum(skipped.values())
        self.account = RowAccount(read=read, written=len(texts), skipped=dict(skipped)).check(str(self.path))
        return texts, labels if has_labels else None

    def _batches(self, columns: Mapping[str, Parser] | None = None) -> Iterator[Batch]:
        """Yield all rows with the query and other columns."""
        return self.table.batches({self.column: QueryText(LONGEST, required=False), **(columns or {})})

    def _texts(self, batch: Batch) -> list[str | None]:
        """Return the text of each row: empty if it has none, None if it is invalid. Blank lines are left out."""
        is_only_column = self.table.has_header and len(self.table.names) == 1
        texts = [text or "" for text, _ in self._rows(batch) if is_only_column or text is not None]
        return [None if isinstance(text, BadRow) else text for text in texts]

    def _rows(self, batch: Batch) -> list[tuple[str | BadRow | None, list[str] | None]]:
        """Return text and labels of each row in the order of the file; None for a blank line."""
        texts = [text or "" for text in batch.rows[self.column].to_pylist()]
        labels = batch.rows["labels"].to_pylist() if "labels" in batch.rows.column_names else [None] * len(texts)
        if batch.read == len(texts):
            return list(zip(texts, labels, strict=True))
        rows = dict(zip(batch.rows[PLACE].to_pylist(), zip(texts, labels, strict=True), strict=True))
        bad = (BadRow(f"{place}: {message}") for place, message in batch.bad)
        rows |= zip(batch.bad_places, ((one, None) for one in bad), strict=True)
        rows |= dict.fromkeys(batch.blank_places, (None, None))
        return [rows[place] for place in sorted(rows)]


@dataclass(frozen=True)
class QueryText(Parser):
    """The text of a query, unchanged; null if there is none."""

    limit: int

    def _fast(self, column: Any) -> Fast | None:
        is_short = pc.less_equal(pc.binary_length(column), self.limit) if column.type == pa.large_string() else None
        return None if is_short is None else (column, to_mask(is_short))

    def _scalar(self, value: Any, name: str) -> str:
        if not isinstance(value, str):
            raise BadRow(f"{name} is {preview(value)}, not text. Write text or remove the row.")
        if len(value) > self.limit:
            raise BadRow(f"{name} has {len(value):,} characters, more than {self.limit:,}. Shorten it.")
        refuse_surrogates(value, name)
        return value
