"""Where readers put what they read: rows and click pairs become flat columns, one number a label, no object a row.

Shapes: L labels, R rows, P pairs.
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
from retrieval.tables.values import BadRow, shown
from training.data.ragged import Ragged

UNSPLIT = -1
_CHUNK, _CHUNK_CHARACTERS = 65_536, 2**26  # texts and characters per chunk


@dataclass
class Raw:
    """All of a source, read and numbered, before anything is cut, filtered or left out.

    label_ids, label_texts: Arrow, L; attributes: Arrow columns of L; is_label_L: false for texts met only in `exclude`;
    ids, texts: Arrow, R; split_R: 0 train, 1 validation, 2 test, −1 not said; hash_R2: text_hashes of the text;
    spelling_R: Python's hash of the text as written; it differs between processes.
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
    """An Arrow string column that grows, holding at most one chunk as Python strings."""

    def __init__(self) -> None:
        self._chunks: list[Any] = []
        self._pending: list[str] = []
        self._characters = 0

    def append(self, text: str) -> None:
        """Add one text."""
        self._pending.append(text)
        self._characters += len(text)
        if len(self._pending) == _CHUNK or self._characters > _CHUNK_CHARACTERS:
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
        """Add one list."""
        self._values.extend(values)
        self._lengths.append(len(values))

    def finish(self) -> Ragged:
        """The lists so far."""
        return Ragged.from_lengths(np.asarray(self._values, np.int32), np.asarray(self._lengths, np.int64))


@dataclass
class Rows:
    """Queries with their label numbers, in the order met."""

    ids: TextColumn = field(default_factory=TextColumn)
    texts: TextColumn = field(default_factory=TextColumn)
    labels: RaggedColumn = field(default_factory=RaggedColumn)
    exclude: RaggedColumn = field(default_factory=RaggedColumn)
    split: "array[int]" = field(default_factory=lambda: array("b"))
    hashes: "array[int]" = field(default_factory=lambda: array("Q"))
    spellings: "array[int]" = field(default_factory=lambda: array("q"))
    known_ids: set[str] = field(default_factory=set)
    repeated_labels: int = 0

    def __len__(self) -> int:
        return len(self.split)

    def append(
        self, split: int, row_id: str | None, text: str, labels: Sequence[int], exclude: Sequence[int] = ()
    ) -> None:
        """Add a row; one without an id is named by its number. BadRow when another row has the id."""
        name = str(len(self) + 1) if row_id is None else row_id
        if name in self.known_ids:
            raise BadRow(f"id {shown(name)} stands in an earlier row too. Give each row its own id.")
        self.known_ids.add(name)
        distinct = list(dict.fromkeys(labels))
        self.repeated_labels += len(labels) - len(distinct)
        self.ids.append(name)
        self.texts.append(text)
        self.labels.append(distinct)
        self.exclude.append(list(dict.fromkeys(exclude)))
        self.split.append(split)
        self.hashes.extend(text_hashes(text))
        self.spellings.append(hash(text))


@dataclass
class Pairs:
    """Clicks: P (query, label, times), grouped into rows at the end. Spellings of one query share a row."""

    texts: list[str] = field(default_factory=list)  # per row: the spelling that came first
    splits: "array[int]" = field(default_factory=lambda: array("b"))
    query_of_pair: "array[int]" = field(default_factory=lambda: array("i"))
    label_of_pair: "array[int]" = field(default_factory=lambda: array("i"))
    times: "array[int]" = field(default_factory=lambda: array("q"))
    _row_of_text: list[dict[str, int]] = field(default_factory=lambda: [{}, {}, {}, {}])
    _row_of_identity: list[dict[str, int]] = field(default_factory=lambda: [{}, {}, {}, {}])

    def append(self, split: int, query: str, label: int, times: int = 1) -> None:
        """Count a pair; pairs of one query and one split share a row."""
        row = self._row_of_text[split].get(query)
        if row is None:
            row = self._row_of_text[split][query] = self._row(split, query)
        self.query_of_pair.append(row)
        self.label_of_pair.append(label)
        self.times.append(times)

    def _row(self, split: int, query: str) -> int:
        row = self._row_of_identity[split].setdefault(query_identity(query), len(self.texts))
        if row == len(self.texts):
            self.texts.append(query)
            self.splits.append(split)
        return row

    def into_rows(self, rows: Rows, min_count: int, report: Counter[str], skipped: Counter[str]) -> None:
        """Add a row a query: its labels clicked at least `min_count` times, in the order first met."""
        query_P, label_P = np.asarray(self.query_of_pair, np.int64), np.asarray(self.label_of_pair, np.int64)
        base = int(label_P.max(initial=0)) + 1
        keys_U, first_U, pair_P = np.unique(query_P * base + label_P, return_index=True, return_inverse=True)
        times_U = np.bincount(pair_P, weights=np.array(self.times, np.float64), minlength=len(keys_U))
        kept_U = times_U >= min_count
        skipped["repeated_pair"] += len(query_P) - len(keys_U)
        skipped["below_min_count"] += int(np.count_nonzero(~kept_U))
        merged = sum(map(len, self._row_of_text)) - len(self.texts)
        report["spellings of a query merged with its first one (case, spaces, invisible characters)"] += merged
        query_U, label_U = np.divmod(keys_U[kept_U], base)
        order_U = np.lexsort((first_U[kept_U], query_U))
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
