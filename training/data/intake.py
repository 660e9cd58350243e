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

from training.data.ragged import Ragged
from training.data.rows import BadRow, shown

UNSPLIT = -1
_CHUNK = 65_536


@dataclass
class Raw:
    """All of a source, read and numbered, before anything is cut, filtered or left out.

    label_ids, label_texts: Arrow, L; attributes: Arrow columns of L; is_label_L: false for texts met only in `exclude`;
    ids, texts: Arrow, R; split_R: 0 train, 1 validation, 2 test, −1 not said; hash_R2: text_hashes of the text.
    """

    label_ids: Any
    label_texts: Any
    attributes: dict[str, Any]
    is_label_L: npt.NDArray[np.bool_]
    ids: Any
    texts: Any
    split_R: npt.NDArray[np.int8]
    hash_R2: npt.NDArray[np.uint64]
    labels: Ragged
    exclude: Ragged


class TextColumn:
    """An Arrow string column that grows, holding at most one chunk as Python strings."""

    def __init__(self) -> None:
        self._chunks: list[Any] = []
        self._pending: list[str] = []

    def append(self, text: str) -> None:
        """Add one text."""
        self._pending.append(text)
        if len(self._pending) == _CHUNK:
            self._flush()

    def finish(self) -> Any:
        """The column so far."""
        self._flush()
        return pa.chunked_array(self._chunks, pa.string())

    def _flush(self) -> None:
        self._chunks.append(pa.array(self._pending, pa.string()))
        self._pending = []


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


@dataclass
class Pairs:
    """Clicks: P (query, label, times), gathered into rows at the end."""

    queries: list[dict[str, int]] = field(default_factory=lambda: [{}, {}, {}, {}])
    n_queries: int = 0
    query_of_pair: "array[int]" = field(default_factory=lambda: array("i"))
    label_of_pair: "array[int]" = field(default_factory=lambda: array("i"))
    times: "array[int]" = field(default_factory=lambda: array("q"))

    def append(self, split: int, query: str, label: int, times: int = 1) -> None:
        """Count a pair; pairs of one query and one split share a row."""
        row = self.queries[split].setdefault(query, self.n_queries)
        self.n_queries += row == self.n_queries
        self.query_of_pair.append(row)
        self.label_of_pair.append(label)
        self.times.append(times)

    def into_rows(self, rows: Rows, min_count: int, report: Counter[str]) -> None:
        """Add a row a query: its labels clicked at least `min_count` times, in the order first met."""
        query_P, label_P = np.asarray(self.query_of_pair, np.int64), np.asarray(self.label_of_pair, np.int64)
        base = int(label_P.max(initial=0)) + 1
        keys_U, first_U, pair_P = np.unique(query_P * base + label_P, return_index=True, return_inverse=True)
        times_U = np.bincount(pair_P, weights=np.array(self.times, np.float64), minlength=len(keys_U))
        kept_U = times_U >= min_count
        report["pairs read"] += len(query_P)
        report["pairs met again, counted together"] += len(query_P) - len(keys_U)
        report[f"pairs below --min-count {min_count}"] += int(np.count_nonzero(~kept_U))
        query_U, label_U = np.divmod(keys_U[kept_U], base)
        order_U = np.lexsort((first_U[kept_U], query_U))
        lengths_Q = np.bincount(query_U, minlength=self.n_queries)
        labels = Ragged.from_lengths(label_U[order_U].astype(np.int32), lengths_Q)
        named = [(row, text, split) for split, texts in enumerate(self.queries) for text, row in texts.items()]
        for row, text, split in sorted(named):
            rows.append(split if split < 3 else UNSPLIT, None, text, labels[row].tolist())


def text_hashes(text: str) -> tuple[int, int]:
    """Two independent numbers below 2^64 that depend on the text alone, on every machine and in every version."""
    digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
    return int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")
