"""Number the texts of a click log: spellings of queries, query identities, labels and label texts.

Numbers count from 0 in the order of the first occurrence, so they depend only on the order of the rows.
Shapes: S spellings, N texts.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from retrieval.query_text import query_identities

TEXT = pa.large_string()  # a column may have more than 2 GB


class Numbering:
    """Distinct texts with numbers."""

    def __init__(self, texts: Any = None) -> None:
        """`texts`: Arrow array of distinct texts to begin with."""
        self.texts = pa.array([], TEXT) if texts is None else texts

    def __len__(self) -> int:
        return len(self.texts)

    def add(self, columns: Sequence[Any]) -> list[npt.NDArray[np.int32]]:
        """Number the texts of Arrow columns without nulls; return the numbers of each column."""
        chunks = [pa.DictionaryArray.from_arrays(_range(len(column)), column) for column in (self.texts, *columns)]
        unified = pa.chunked_array(chunks).unify_dictionaries()
        self.texts = unified.chunk(0).dictionary
        return [np.asarray(chunk.indices) for chunk in unified.chunks[1:]]


class Vocabulary:
    """The texts of a click log with their numbers, and the clicks and rows of each spelling."""

    def __init__(self, spellings: Any = None, labels: Any = None, label_texts: Any = None) -> None:
        """Begin with Arrow arrays of distinct texts."""
        self.spellings, self.labels, self.label_texts = map(Numbering, (spellings, labels, label_texts))
        identities = query_identities(self.spellings.texts).dictionary_encode()
        self.identities = Numbering(identities.dictionary)
        self.query_S = np.asarray(identities.indices)  # number of the identity of each spelling
        self.clicks_S, self.rows_S = (np.zeros(len(self.spellings), np.int64) for _ in range(2))

    def add_spellings(self, columns: Sequence[Any]) -> list[npt.NDArray[np.int32]]:
        """Number the spellings of Arrow columns, and their identities; return the spelling numbers of each column."""
        before = len(self.spellings)
        numbers = self.spellings.add(columns)
        new = self.spellings.texts.slice(before)
        self.query_S = np.concatenate([self.query_S, *self.identities.add([query_identities(new)])])
        self.clicks_S, self.rows_S = (np.pad(count_S, (0, len(new))) for count_S in (self.clicks_S, self.rows_S))
        return numbers

    def count(self, spelling_N: npt.NDArray[np.int32], clicks_N: Any, rows_N: Any) -> None:
        """Add clicks and rows to spellings."""
        np.add.at(self.clicks_S, spelling_N, np.asarray(clicks_N))
        np.add.at(self.rows_S, spelling_N, np.asarray(rows_N))

    def most_frequent_spellings(self) -> Any:
        """Return an Arrow column with a spelling per query: with most clicks, then most rows, then the first one."""
        order_S = np.lexsort((-self.rows_S, -self.clicks_S, self.query_S))  # a stable sort
        first_Q = np.unique(self.query_S[order_S], return_index=True)[1]
        return self.spellings.texts.take(pa.array(order_S[first_Q]))


def _range(length: int) -> Any:
    return pa.array(np.arange(length, dtype=np.int32))
