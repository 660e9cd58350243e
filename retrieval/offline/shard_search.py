"""Search for the queries of a shard, in this process or in others.

Suffixes: Q queries of a shard, K results, M matches.
"""

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa

from retrieval.offline.query_files import QueryShard
from retrieval.offline.shards import MATCHES
from retrieval.results import NO_ROW, Ranking
from retrieval.retriever import Retriever
from retrieval.search.filters import Filter

HITS_PER_CHUNK = 65_536  # labels per Arrow array
CONCURRENT_SHARDS = 2  # the index search of one uses all cores while the other is scored and written on one core

Write = Callable[[pa.Table], None]


@dataclass(frozen=True)
class SearchOptions:
    """Options of each search; see `Retriever.search`."""

    k: int = 10
    weight: float | None = None
    filter: Filter | None = None
    min_score: float | None = None
    memory_weight: float | None = None


class SearchEngine(Protocol):
    """Searches for shards of queries in the background; at most `concurrent_shards` at a time are of use."""

    concurrent_shards: int

    def submit(self, shard: QueryShard, options: SearchOptions, write: Write) -> Future[None]:
        """Search for the queries of a shard, and call `write` with their matches in some thread."""
        ...

    def close(self) -> None:
        """Cancel what has not started, and release threads and processes."""
        ...


class EmbeddedEngine:
    """Searches in threads of this process."""

    concurrent_shards = CONCURRENT_SHARDS

    def __init__(self, retriever: Retriever) -> None:
        self._retriever = retriever
        self._pool = ThreadPoolExecutor(CONCURRENT_SHARDS)

    def submit(self, shard: QueryShard, options: SearchOptions, write: Write) -> Future[None]:
        """Search for the queries of a shard, and call `write` with their matches in the same thread."""
        return self._pool.submit(lambda: write(search_shard(self._retriever, shard, options)))

    def close(self) -> None:
        """Cancel what has not started, and wait for the rest."""
        self._pool.shutdown(cancel_futures=True)


def manifest_hash(retriever: Retriever) -> str:
    """Return the SHA-256 of the manifest of an open bundle, which has the hashes of its files."""
    return hashlib.sha256(retriever.manifest.model_dump_json().encode()).hexdigest()


def search_shard(retriever: Retriever, shard: QueryShard, options: SearchOptions) -> pa.Table:
    """Return the matches of a shard's queries."""
    places = shard.places
    if not places:
        return MATCHES.empty_table()
    texts = [shard.texts[place] or "" for place in places]
    ranking = retriever.search_rows(
        texts, options.k, weight=options.weight, filter=options.filter, min_score=options.min_score,
        memory_weight=options.memory_weight,
    )  # fmt: skip
    return _match_table(retriever, ranking, np.array(places) + shard.first_row, texts)


def _match_table(retriever: Retriever, ranking: Ranking, row_Q: np.ndarray, texts: Sequence[str]) -> pa.Table:
    query_M, rank_M = np.nonzero(ranking.rows_QK != NO_ROW)
    labels = _label_columns(retriever, ranking.rows_QK[query_M, rank_M])
    scores = (ranking.scores_QK, ranking.dual_QK, ranking.classifier_QK, ranking.memory_QK)
    columns = [
        pa.array(row_Q[query_M]),
        pa.array(texts, pa.large_string()).take(pa.array(query_M)),
        pa.array(rank_M + 1, pa.int32()),
        labels.column("id"),
        labels.column("text"),
        *(pa.array(scores_QK[query_M, rank_M].astype(np.float32)) for scores_QK in scores),
    ]
    return pa.table(columns, schema=MATCHES)


def _label_columns(retriever: Retriever, row_M: np.ndarray) -> pa.Table:
    """Return ids and texts of labels by row, in several chunks, since they may exceed 2 GB in total."""
    table = retriever.labels.table.select(["id", "text"])
    schema = pa.schema([MATCHES.field("id"), MATCHES.field("text")])
    chunks = [
        table.take(pa.array(row_M[start : start + HITS_PER_CHUNK])).cast(schema)
        for start in range(0, len(row_M), HITS_PER_CHUNK)
    ]
    return pa.concat_tables(chunks) if chunks else schema.empty_table()
