"""The rows and labels of a source in flat columns, without a Python object per row.

Shapes: L labels, R rows, P (query, label) pairs, U distinct pairs, Q queries.
"""

import hashlib
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from retrieval.query_text import query_identity, split_key
from retrieval.tables.notes import Notes
from retrieval.tables.values import BadRow, preview
from training.data.ragged import Ragged

UNSPLIT = -1
ROWS_PER_CHUNK, CHARACTERS_PER_CHUNK = 65_536, 2**26


@dataclass
class SourceData:
    """All rows and labels of a source, before they are split and filtered.

    label_ids, label_texts: Arrow, L; attributes: Arrow columns of L; is_label_L: false for texts that occur only in
    `exclude`; ids, texts: Arrow, R; split_R: 0 train, 1 validation, 2 test, −1 none; hash_R2: text_hashes of the text;
    spelling_R: Python's hash of the text, which differs between processes.
    The first `listed` labels come from a label table. `from_pairs`: the input had a row per (query, label) pair.
    """

    label_ids: Any
    label_texts: Any
    attributes: dict[str, Any]
    is_label_L: npt.NDArray[np.bool_]
    ids: Any
    texts: Any
    split_R: npt.NDArray[np.int8]
    hash_R2: npt.NDArray[np.uint64]
    spelling_R: npt.NDArray[np.int64]
    labels: Ragged
    exclude: Ragged
    listed: int = 0
    from_pairs: bool = False


class TextColumn:
    """An Arrow string column that grows. At most one chunk is in Python strings."""

    def __init__(self, characters_per_chunk: int = CHARACTERS_PER_CHUNK) -> None:
        self._characters_per_chunk = characters_per_chunk
        self._chunks: list[Any] = []
        self._pending: list[str] = []
        self._characters = 0

    def append(self, text: str) -> None:
        """Add a text."""
        self._pending.append(text)
        self._characters += len(text)
        if len(self._pending) == ROWS_PER_CHUNK or self._characters > self._characters_per_chunk:
            self._flush()

    def finish(self) -> Any:
        """Return the column in chunks, with 64-bit offsets: all texts together may exceed 2 GB."""
        self._flush()
        return pa.chunked_array(self._chunks, pa.large_string())

    def _flush(self) -> None:
        self._chunks.append(pa.array(self._pending, pa.large_string()))
        self._pending, self._characters = [], 0


def text_column(texts: Sequence[str]) -> Any:
    """Return texts as an Arrow column."""
    return pa.chunked_array([pa.array(texts, pa.large_string())])


class RaggedColumn:
    """Integer lists that grow."""

    def __init__(self) -> None:
        self._values, self._lengths = array("i"), array("q")

    def append(self, values: Sequence[int]) -> None:
        """Add a list."""
        self._values.extend(values)
        self._lengths.append(len(values))

    def finish(self) -> Ragged:
        """Return all lists."""
        return Ragged.from_lengths(np.asarray(self._values, np.int32), np.asarray(self._lengths, np.int64))


@dataclass
class QueryRows:
    """Queries with their label numbers, in the order of the source."""

    ids: TextColumn = field(default_factory=TextColumn)
    texts: TextColumn = field(default_factory=TextColumn)
    labels: RaggedColumn = field(default_factory=RaggedColumn)
    exclude: RaggedColumn = field(default_factory=RaggedColumn)
    split: "array[int]" = field(default_factory=lambda: array("b"))
    hashes: "array[int]" = field(default_factory=lambda: array("Q"))
    spellings: "array[int]" = field(default_factory=lambda: array("q"))
    known_ids: set[str] = field(default_factory=set)

    def __len__(self) -> int:
        return len(self.split)

    def append(
        self, split: int, row_id: str | None, text: str, labels: Sequence[int], exclude: Sequence[int] = ()
    ) -> None:
        """Add a row; without an id, its number is its id. Raises BadRow for an id that an earlier row has."""
        name = str(len(self) + 1) if row_id is None else row_id
        if name in self.known_ids:
            raise BadRow(f"id {preview(name)} is the id of an earlier row too. Give each row its own id.")
        self.known_ids.add(name)
        self.ids.append(name)
        self.texts.append(text)
        self.labels.append(list(dict.fromkeys(labels)))
        self.exclude.append(list(dict.fromkeys(exclude)))
        self.split.append(split)
        self.hashes.extend(text_hashes(text))
        self.spellings.append(hash(text))


@dataclass
class ClickPairs:
    """P (query, label, count) clicks, grouped into rows at the end. Spellings of one query share a row."""

    texts: list[str] = field(default_factory=list)  # per row: the first spelling
    splits: "array[int]" = field(default_factory=lambda: array("b"))
    query_of_pair: "array[int]" = field(default_factory=lambda: array("i"))
    label_of_pair: "array[int]" = field(default_factory=lambda: array("i"))
    counts: "array[int]" = field(default_factory=lambda: array("q"))
    # per split code: train, validation, test and UNSPLIT, which is the last one
    _row_of_text: list[dict[str, int]] = field(default_factory=lambda: [{}, {}, {}, {}])
    _row_of_identity: list[dict[str, int]] = field(default_factory=lambda: [{}, {}, {}, {}])

    def append(self, split: int, query: str, label: int, count: int = 1) -> None:
        """Add a pair. Pairs of one query and one split share a row."""
        row = self._row_of_text[split].get(query)
        if row is None:
            row = self._row_of_text[split][query] = self._row(split, query)
        self.query_of_pair.append(row)
        self.label_of_pair.append(label)
        self.counts.append(count)

    def _row(self, split: int, query: str) -> int:
        row = self._row_of_identity[split].setdefault(query_identity(query), len(self.texts))
        if row == len(self.texts):
            self.texts.append(query)
            self.splits.append(split)
        return row

    def add_to(self, rows: QueryRows, min_count: int, notes: Notes, skipped: Counter[str]) -> None:
        """Add a row per query to `rows`: its labels with a count of at least `min_count`, in order of occurrence."""
        query_P, label_P = np.asarray(self.query_of_pair, np.int64), np.asarray(self.label_of_pair, np.int64)
        base = int(label_P.max(initial=0)) + 1
        keys_U, first_U, pair_P = np.unique(query_P * base + label_P, return_index=True, return_inverse=True)
        count_U = np.bincount(pair_P, weights=np.array(self.counts, np.float64), minlength=len(keys_U))
        frequent_U = count_U >= min_count
        skipped["repeated_pair"] += len(query_P) - len(keys_U)
        skipped["below_min_count"] += int(np.count_nonzero(~frequent_U))
        notes.add("merged_spellings", sum(map(len, self._row_of_text)) - len(self.texts))
        query_U, label_U = np.divmod(keys_U[frequent_U], base)
        order_U = np.lexsort((first_U[frequent_U], query_U))
        lengths_Q = np.bincount(query_U, minlength=len(self.texts))
        labels = Ragged.from_lengths(label_U[order_U].astype(np.int32), lengths_Q)
        for row, (text, split) in enumerate(zip(self.texts, self.splits, strict=True)):
            rows.append(split, None, text, labels[row].tolist())


def text_hashes(text: str) -> tuple[int, int]:
    """Return two independent hashes below 2^64 of the text, the same on every machine and in every version.

    Texts that the default encoder reads alike have the same hashes, so they are in the same split.
    """
    digest = hashlib.blake2b(split_key(text).encode(), digest_size=16).digest()
    return int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")
