"""Labels and their index, for the other services; runs in their environments, without Diptych.

LABELS_JSONL has one label per line: {"id": …, "text": …}. The vectors are saved next to it, for the next service with
the same model.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hnswlib
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field

LINKS, CONSTRUCTION, SEARCH = 32, 200, 100  # M, ef_construction and ef; M and ef_construction as in `diptych export`
Vectors = NDArray[np.float32]


class SearchRequest(BaseModel):
    """Request body: queries, and the number of labels per query."""

    queries: list[str] = Field(min_length=1, max_length=256)
    k: int = Field(10, ge=1, le=100)


class LabelIndex:
    """Labels, and an hnswlib index of their vectors."""

    def __init__(self, path: Path, encode: Callable[[list[str]], Vectors]) -> None:
        """Read the labels of a JSON Lines file; `encode` returns vectors [labels, width] of unit length."""
        self._labels = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        saved = path.with_suffix(".npy")
        if not saved.is_file():
            np.save(saved, encode([label["text"] for label in self._labels]))
        vectors_LE = np.load(saved)
        self._index = hnswlib.Index(space="ip", dim=vectors_LE.shape[1])
        self._index.init_index(len(self._labels), M=LINKS, ef_construction=CONSTRUCTION)
        self._index.add_items(vectors_LE)
        self._index.set_ef(SEARCH)

    def answer(self, queries: list[str], queries_QE: Vectors, k: int) -> dict[str, Any]:
        """Return the best k labels of each query."""
        rows_QK, distances_QK = self._index.knn_query(queries_QE, k=k)
        return {
            "results": [
                {"query": query, "hits": [
                    {**self._labels[row], "score": 1 - float(distance)}
                    for row, distance in zip(rows, distances, strict=True)
                ]}
                for query, rows, distances in zip(queries, rows_QK, distances_QK, strict=True)
            ]
        }  # fmt: skip
