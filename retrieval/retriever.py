"""An open bundle: verified, immutable except for paused labels, and safe to search from several threads.

`retrieval.open.open_bundle` opens one by path or URL. Suffixes: Q queries, D vector width, L labels.
"""

import os
import time
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, NamedTuple, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from retrieval.bundle.golden_answers import GoldenReport, check_golden
from retrieval.bundle.labels import LabelTable
from retrieval.bundle.manifest import (
    GOLDEN,
    INDEX,
    LABEL_ENCODER,
    LABELS,
    MANIFEST,
    MEMORY_INDEX,
    MEMORY_PROJECTION,
    MEMORY_QUERIES,
    MEMORY_VECTORS,
    NODES,
    PROJECTION,
    QUERY_ENCODER,
    TOKENIZER,
    VECTORS,
)
from retrieval.bundle.memory_file import memory_in
from retrieval.bundle.read_lock import read_lock
from retrieval.bundle.vector_file import vectors_in
from retrieval.bundle.verified_files import BundleFiles, read_bundle
from retrieval.errors import BundleError
from retrieval.results import NO_ROW, Hit, Ranking, SearchResults, SupportingQuery, Timings, hits_of
from retrieval.search.arguments import check_memory, check_queries, check_search, check_weight
from retrieval.search.attributes import BYTES_PER_LABEL, BYTES_PER_LABEL_WITH_NODES, Attributes
from retrieval.search.candidates import Candidates
from retrieval.search.distinct_vectors import nodes_in
from retrieval.search.encoder import TextEncoder
from retrieval.search.filters import Filter
from retrieval.search.indexes import HnswIndex, VectorIndex
from retrieval.search.memory import QueryMemory
from retrieval.search.memory_votes import supporters
from retrieval.search.pca_index import PcaIndex
from retrieval.search.ranker import Ranker
from retrieval.search.thread_pool import ThreadPool
from retrieval.system.low_priority import at_low_priority, directly


@dataclass(frozen=True)
class LoadOptions:
    """Options for loading a bundle; `open_bundle` explains them."""

    threads: int | None = None
    search_threads: int | None = None
    provider: str = "cpu"
    low_priority: bool = False


class LoadedParts(NamedTuple):
    """The parts of an open bundle. Closing a retriever frees them."""

    labels: LabelTable
    encoder: TextEncoder
    attributes: Attributes
    ranker: Ranker
    memory_texts: pa.Array | None = None


class Retriever:
    """Search the labels of one bundle. Open it with `retrieval.open_bundle`."""

    def __init__(self, folder: Path, files: BundleFiles, parts: LoadedParts, lock: IO[bytes] | None = None) -> None:
        """Combine the loaded and checked parts of a bundle; `lock` is closed with the retriever."""
        self.folder = folder
        self.manifest = files.manifest
        self.signature = files.signed.signature  # None without trusted keys
        self.golden = files.contents[GOLDEN]  # bytes of golden.json
        self.paused: frozenset[str] = frozenset()  # ids of labels to leave out of answers
        self._parts: LoadedParts | None = parts
        self._full_scans = parts.ranker.full_scans
        self._lock = lock
        self._process = os.getpid()

    @classmethod
    def load(cls, folder: Path, options: LoadOptions | None = None, *, trusted: Sequence[str] = ()) -> Self:
        """Verify the bundle in a folder and load the verified bytes; no file is opened twice.

        `bundles prune` keeps the bundle until the retriever is closed. With `trusted` keys, one of them must have
        signed the bundle. Raises BundleError, and BadInput for an unavailable provider.
        """
        options = options or LoadOptions()
        run = at_low_priority if options.low_priority else directly
        lock = read_lock(folder)
        try:
            files = run(lambda: read_bundle(folder, is_loaded, trusted, 1 if options.low_priority else None))
            return cls.from_files(folder, files, options, lock=lock)
        except BaseException:
            lock.close()
            raise

    @classmethod
    def from_files(
        cls, folder: Path, files: BundleFiles, options: LoadOptions | None = None, *, lock: IO[bytes] | None = None
    ) -> Self:
        """Load a bundle from the verified contents of its files. Nothing is read from `folder`, which names it."""
        with closing(files):
            return cls(folder, files, _load_parts(folder, files, options or LoadOptions()), lock)

    @property
    def name(self) -> str:
        """Return the bundle's name: that of its folder."""
        return self.folder.name

    @property
    def dim(self) -> int:
        """Return the width of a label vector: both halves."""
        return self.manifest.model.dim

    @property
    def labels(self) -> LabelTable:
        """Return the label table."""
        return self._open_parts().labels

    @property
    def vectors_LD(self) -> NDArray[np.float32]:
        """Return the label vectors [L, D], in memory; memory-mapped if memory is short and no keys are trusted."""
        return self._open_parts().ranker.vectors_LD

    @property
    def candidates(self) -> Candidates:
        """Return the search for candidates: the index, and the comparison of all vectors."""
        return self._open_parts().ranker.candidates

    @property
    def memory_weight(self) -> float:
        """Return the default weight of the votes; 0 without a query memory."""
        return 0.0 if self.manifest.memory is None else self.manifest.memory.weight

    @property
    def full_scans(self) -> int:
        """Return the number of queries that compared all labels because the index found fewer than k, which is slow."""
        return self._full_scans.queries

    def search(
        self,
        queries: Sequence[str],
        k: int = 10,
        *,
        weight: float | None = None,
        filter: Filter | None = None,  # the usual name, though it hides the builtin
        min_score: float | None = None,
        exact: bool = False,
        memory_weight: float | None = None,
        supporting: int = 0,
    ) -> SearchResults:
        """Return the k best labels of each query, best first; fewer only if there are no more. Raises BadInput.

        Args:
            weight: the classifier's share of the score, from 0 to 1; default: the weight chosen in training.
            filter: allowed values per attribute, such as `{"market": ["US", "CA"]}`; a label needs one of the values of
                every attribute.
            min_score: leave out labels that score less.
            exact: compare all labels and training queries instead of searching the indexes.
            memory_weight: weight of the votes of the nearest training queries, from 0; default: the one chosen in
                training.
            supporting: maximum number of training queries that each hit lists because they voted for it.
        """
        check_memory(0.0, supporting, has_memory=True)
        ranking = self.search_rows(
            queries, k, weight=weight, filter=filter, min_score=min_score, exact=exact, memory_weight=memory_weight
        )
        return SearchResults(self.hits(ranking, supporting), self.name)

    def search_rows(
        self,
        queries: Sequence[str],
        k: int = 10,
        *,
        weight: float | None = None,
        filter: Filter | None = None,
        min_score: float | None = None,
        exact: bool = False,
        include_paused: bool = False,
        memory_weight: float | None = None,
    ) -> Ranking:
        """Search as `search` does; return label rows instead of hits, and the time of each stage. Raises BadInput."""
        weight = self.manifest.classifier_weight if weight is None else weight
        check_search(k, weight, min_score)
        check_weight(weight, self.manifest.model.classifier_dim)
        parts = self._open_parts()
        memory_weight = self.memory_weight if memory_weight is None else memory_weight
        check_memory(memory_weight, 0, parts.ranker.memory is not None)
        check_queries(queries)
        masked = bool(filter) or (parts.attributes.paused and not include_paused)
        allowed = parts.attributes.allowed(filter or {}) if masked else None
        encoded = parts.encoder.encode(queries)
        started = time.perf_counter()
        voted, neighbours = parts.ranker.rank(encoded.vectors_BD, k, weight, allowed, exact, memory_weight)
        if min_score is not None:
            voted.rows_QK[voted.scores_QK < min_score] = NO_ROW
        seconds = (encoded.tokenize_seconds, encoded.encode_seconds, time.perf_counter() - started)
        timings = Timings(*seconds, encoded.tokens, encoded.padding)
        return Ranking(*voted, timings, memory_weight, neighbours)

    def hits(self, ranking: Ranking, supporting: int = 0) -> list[list[Hit]]:
        """Look up the label table's rows of a ranking; `supporting` as in `search`."""
        return hits_of(ranking, self.labels, self.supporting(ranking, supporting) if supporting else ())

    def supporting(self, ranking: Ranking, count: int) -> list[list[tuple[SupportingQuery, ...]]]:
        """Return for each query and hit up to `count` training queries that voted for the label, strongest first."""
        parts = self._open_parts()
        memory, texts, neighbours = parts.ranker.memory, parts.memory_texts, ranking.neighbours
        found: list[list[tuple[SupportingQuery, ...]]] = []
        for query, row_K in enumerate(ranking.rows_QK.tolist()):
            if memory is None or texts is None or neighbours is None:
                found.append([()] * len(row_K))
                continue
            near = neighbours.rows_QN[query], neighbours.shares_QN[query], memory.labels
            found.append([
                tuple(SupportingQuery(texts[row].as_py(), ranking.memory_weight * vote) for row, vote in voters)
                for voters in supporters(*near, row_K, count)
            ])  # fmt: skip
        return found

    def encode(self, queries: Sequence[str]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return the dual-encoder half of each query, of unit length, and its classifier half. Raises BadInput.

        The classifier half also has unit length, except along the direction of `cone_shrink` in the manifest. Its inner
        product with the classifier half of a label in the bundle is their cosine.
        """
        check_queries(queries)
        vectors_QD = self._open_parts().encoder.encode(queries).vectors_BD
        return vectors_QD[:, : self.manifest.model.dual_dim], vectors_QD[:, self.manifest.model.dual_dim :]

    def parse_filter(self, texts: Sequence[str]) -> Filter:
        """Parse `["market=US,CA", "year=2025"]`; values get the types of their attributes. Raises BadInput."""
        return self._open_parts().attributes.parse_filter(texts)

    def pause(self, ids: Iterable[str]) -> list[str]:
        """Leave these labels out of all answers; replaces the ids of an earlier call.

        Returns the ids that are not in this bundle.
        """
        ids = list(ids)
        self.paused = frozenset(ids)
        return self._open_parts().attributes.pause(ids)

    def check_golden(self) -> GoldenReport:
        """Search for the golden queries and compare the answers; `passed`: the manifest's tolerances are met."""
        return check_golden(self)

    def close(self) -> None:
        """Release encoder, index, vectors, labels and all threads; a later search raises BundleError."""
        parts, self._parts = self._parts, None
        if self._lock is not None:
            self._lock.close()
        if parts is not None and os.getpid() == self._process:  # the threads do not exist in a forked child
            parts.encoder.close()
            parts.ranker.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open_parts(self) -> LoadedParts:
        """Return the parts. Raises BundleError if this retriever is closed, or was opened before a fork."""
        parts = self._parts
        if parts is None:
            raise BundleError(f"the retriever of bundle {self.name!r} is closed. Open it again.")
        if os.getpid() != self._process:  # a search would hang: its threads do not exist in this process
            raise BundleError(
                f"the retriever of bundle {self.name!r} was opened before this process was forked. "
                "Open it after the fork."
            )
        return parts


def is_loaded(name: str) -> bool:
    """Return whether a retriever needs a file of a bundle: all but the label encoder and its weights."""
    return not name.startswith(LABEL_ENCODER)


def _load_parts(folder: Path, files: BundleFiles, options: LoadOptions) -> LoadedParts:
    manifest, contents = files.manifest, files.contents
    run = at_low_priority if options.low_priority else directly
    model, size, shared = manifest.model, manifest.labels.count, manifest.index.nodes
    labels = LabelTable.parse(contents[LABELS], folder / LABELS)
    if len(labels) != size:
        raise BundleError(f"{folder / LABELS} has {len(labels)} labels, but {MANIFEST} lists {size}. Export it again.")
    vectors_LD = _array(folder, files, VECTORS)
    search_threads = options.search_threads or options.threads
    pool = ThreadPool(search_threads)  # started at normal priority, since threads inherit it
    index = run(lambda: _load_index(folder, files, pool))
    nodes = None if shared is None else run(lambda: nodes_in(contents[NODES], folder / NODES, size, shared))
    memory, memory_texts = run(lambda: _load_memory(folder, files, pool))
    encoder = TextEncoder.load(
        contents, folder / TOKENIZER, folder / QUERY_ENCODER, model, model.dim,
        threads=options.threads, provider=options.provider, low_priority=options.low_priority,
    )  # fmt: skip
    return LoadedParts(
        labels,
        encoder,
        Attributes(labels.table, BYTES_PER_LABEL if nodes is None else BYTES_PER_LABEL_WITH_NODES),
        Ranker(vectors_LD, index, nodes, model, manifest.index, search_threads, memory),
        memory_texts,
    )


def _load_index(folder: Path, files: BundleFiles, pool: ThreadPool) -> VectorIndex:
    ef = min((setting.ef for setting in files.manifest.index.ef_search if setting.ef), default=1)
    index = _load_graph(folder, files, INDEX, ef, pool)
    return index if files.manifest.index.width is None else PcaIndex(index, _array(folder, files, PROJECTION))


def _load_memory(folder: Path, files: BundleFiles, pool: ThreadPool) -> tuple[QueryMemory | None, pa.Array | None]:
    """Load the query memory and the texts of its training queries; None for both without one."""
    facts, n_labels = files.manifest.memory, files.manifest.labels.count
    if facts is None:
        return None, None
    texts, labels = memory_in(files.contents[MEMORY_QUERIES], folder / MEMORY_QUERIES, facts.queries, n_labels)
    graph = _load_graph(folder, files, MEMORY_INDEX, facts.ef_search.ef or 1, pool)
    index = PcaIndex(graph, _array(folder, files, MEMORY_PROJECTION))
    vectors_MH = _array(folder, files, MEMORY_VECTORS)
    return QueryMemory(vectors_MH, index, labels, facts, files.manifest.model, pool.threads), texts


def _load_graph(folder: Path, files: BundleFiles, name: str, ef: int, pool: ThreadPool) -> HnswIndex:
    return HnswIndex.load(folder / name, *files.manifest.graphs[name], ef, pool, verified=files.graphs[name])


def _array(folder: Path, files: BundleFiles, name: str) -> NDArray[np.float32]:
    return vectors_in(files.contents[name], folder / name, files.manifest.arrays[name])
