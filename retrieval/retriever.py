"""An open bundle: verified, immutable except for paused labels, and safe to search from several threads.

Suffixes: Q queries, K results, C candidates (at least K where there are as many), D vector width, L labels.
"""

import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, islice
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from retrieval.bundle.golden_answers import GoldenReport, check_golden
from retrieval.bundle.index_file import Buffer
from retrieval.bundle.labels import LabelTable
from retrieval.bundle.manifest import (
    DIRECTIONS,
    GOLDEN,
    INDEX,
    LABEL_ENCODER,
    LABELS,
    NODES,
    QUERY_ENCODER,
    TOKENIZER,
    VECTORS,
    Manifest,
)
from retrieval.bundle.signatures import Signature
from retrieval.bundle.vector_file import vectors_in
from retrieval.bundle.verified_files import BundleFiles, read_bundle
from retrieval.errors import BundleError
from retrieval.open import bundle_at
from retrieval.search.arguments import check_queries, check_search
from retrieval.search.attributes import BYTES_PER_LABEL, BYTES_WITH_NODES, Allowed, Attributes
from retrieval.search.candidates import Candidates
from retrieval.search.distinct_vectors import Nodes, Scored, expand, nodes_in
from retrieval.search.encoder import TextEncoder
from retrieval.search.filters import Filter
from retrieval.search.indexes import ExactIndex, HnswIndex, VectorIndex
from retrieval.search.pca_index import NarrowIndex, rescore, to_rescore
from retrieval.search.thread_pool import Workers
from retrieval.store.paused_labels import read_paused
from retrieval.store.read_lock import lease
from retrieval.system.low_priority import at_low_priority, directly

QUERIES_A_PASS = 256
NO_ROW = -1  # behind the last answer of a query that has fewer than K
WEIGHTS_REMEMBERED = 64
Part = TypeVar("Part")


@dataclass(frozen=True, slots=True)
class Hit:
    """One answer; score = dual_encoder + classifier, the shares of the two halves at the weight searched with."""

    id: str
    text: str
    score: float
    dual_encoder: float
    classifier: float
    attributes: dict[str, Any]


class Answers(list[list[Hit]]):
    """The hits of each query, and `generation`, the bundle that gave them all, whatever was activated meanwhile."""

    def __init__(self, hits: Iterable[list[Hit]], generation: str) -> None:
        super().__init__(hits)
        self.generation = generation


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds spent in each stage of one search; the tokens that were encoded, and the padding among them."""

    tokenize: float
    encode: float
    search: float
    tokens: int
    padding: int


@dataclass(frozen=True, slots=True)
class Ranking:
    """Answers as label rows, best first, with exact scores; `dual_QK` + `classifier_QK` = `scores_QK`.

    Behind the answers of a query that has fewer than K stand rows of −1.
    """

    rows_QK: NDArray[np.int64]
    scores_QK: NDArray[np.float64]
    dual_QK: NDArray[np.float64]
    classifier_QK: NDArray[np.float64]
    timings: Timings


class Retriever:
    """Search the labels of one bundle. Use `Retriever.open`."""

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        encoder: TextEncoder,
        labels: LabelTable,
        vectors_LD: NDArray[np.float32],
        index: VectorIndex,
        nodes: Nodes | None,
        golden: Buffer,
        held: IO[bytes],
        threads: int | None,
    ) -> None:
        """Combine the parts that `open` loaded and checked; `golden` are the bytes of golden.json."""
        self.folder = folder
        self.manifest = manifest
        self._process = os.getpid()
        self._labels: LabelTable | None = labels
        self._encoder: TextEncoder | None = encoder
        self._vectors_LD: NDArray[np.float32] | None = vectors_LD
        self.golden = golden
        self.signature: Signature | None = None  # None without trusted keys
        self.paused: frozenset[str] = frozenset()  # ids of labels to leave out of answers
        self._held = held
        per_label = BYTES_PER_LABEL if nodes is None else BYTES_WITH_NODES
        self._attributes: Attributes | None = Attributes(labels.table, per_label)
        self._question = lru_cache(WEIGHTS_REMEMBERED)(
            lambda weight, k: (manifest.model.query_scale(weight), manifest.index.effort(weight, k))
        )
        self._full_scans = index.full_scans
        self._candidates: Candidates | None = Candidates(index, ExactIndex(vectors_LD, threads), nodes)

    @classmethod
    def open(
        cls,
        path: Path | str,
        *,
        threads: int | None = None,
        search_threads: int | None = None,
        provider: str = "cpu",
        trusted: Sequence[str] = (),
        cache: Path | str | None = None,
        low_priority: bool = False,
        paused: Sequence[str] | None = None,
    ) -> Self:
        """Open a store's active bundle, or the folder of one bundle; verify every file against its manifest.

        A URL (s3://, gs://, az://, …) is fetched into `cache` unless it is there; see retrieval/store/pull.

        `threads` limits the threads of the encoder (default: all cores), `search_threads` those of the indexes
        (default: as `threads`). `provider` is "cpu" or "cuda". With `trusted` keys, one of them must have signed the
        bundle. `low_priority` verifies and loads files at low priority. `paused` are ids of labels to leave out of
        answers; default: those in PAUSED.json of the store that contains the bundle. Raises BundleError, and BadInput
        for an unavailable provider.
        """
        place = bundle_at(path, cache, trusted)
        listed = read_paused(place.store) if paused is None and place.store is not None else paused or ()
        held = lease(place.folder)
        try:
            retriever = cls._load(place.folder, held, threads, search_threads, provider, trusted, low_priority)
        except BaseException:
            held.close()
            raise
        try:
            if place.followed is not None:
                place.followed.follow(retriever.name, retriever.signature)
        except BaseException:
            retriever.close()
            raise
        retriever.pause(listed)
        return retriever

    @classmethod
    def _load(
        cls,
        folder: Path,
        held: IO[bytes],
        threads: int | None,
        search_threads: int | None,
        provider: str,
        trusted: Sequence[str],
        low_priority: bool,
    ) -> Self:
        """Verify a bundle and load the verified bytes; no file is opened twice."""
        run = at_low_priority if low_priority else directly
        files = run(lambda: read_bundle(folder, _is_loaded, trusted, 1 if low_priority else None))
        try:
            manifest, contents = files.manifest, files.contents
            model, size = manifest.model, manifest.labels.count
            labels = LabelTable.parse(contents[LABELS], folder / LABELS)
            if len(labels) != size:
                raise BundleError(
                    f"{folder / LABELS} holds {len(labels)} labels, the manifest {size}. Export it again."
                )
            vectors_LD = vectors_in(contents[VECTORS], folder / VECTORS, (size, model.dim))
            search_threads = search_threads or threads
            workers = Workers(search_threads)  # started here, at normal priority
            index = run(lambda: _open_index(folder, files, workers))
            shared = manifest.index.nodes
            nodes = None if shared is None else run(lambda: nodes_in(contents[NODES], folder / NODES, size, shared))
            encoder = TextEncoder.load(
                contents, folder / TOKENIZER, folder / QUERY_ENCODER, model, model.dim,
                threads=threads, provider=provider, low_priority=low_priority,
            )  # fmt: skip
        finally:
            files.close()
        opened = cls(
            folder, manifest, encoder, labels, vectors_LD, index, nodes, contents[GOLDEN], held, search_threads
        )
        opened.signature = files.signed.signature
        return opened

    @property
    def name(self) -> str:
        """The bundle's name: that of its folder."""
        return self.folder.name

    @property
    def dim(self) -> int:
        """Width of a label vector: both halves."""
        return self.manifest.model.dim

    @property
    def labels(self) -> LabelTable:
        """The label table."""
        return self._usable(self._labels)

    @property
    def vectors_LD(self) -> NDArray[np.float32]:
        """The label vectors [L, D], in memory; memory-mapped if memory is short and no keys are trusted."""
        return self._usable(self._vectors_LD)

    @property
    def full_scans(self) -> int:
        """Number of queries that compared every label because the index found fewer than k; each of them is slow."""
        return self._full_scans.queries

    def search(
        self,
        queries: Sequence[str],
        k: int = 10,
        *,
        weight: float | None = None,
        filter: Filter | None = None,  # what everybody calls it
        min_score: float | None = None,
        exact: bool = False,
    ) -> Answers:
        """The k best labels for each query, best first; fewer only where there are no more. Raises BadInput.

        `weight` is the classifier's share of the score, from 0 to 1; by default the one chosen in training.
        `filter` allows labels by their attributes, `{"market": ["US", "CA"]}`: every attribute must have one of its
        values. `min_score` leaves out what scores less. `exact` compares with every label instead of asking the index.
        """
        ranking = self.search_rows(queries, k, weight=weight, filter=filter, min_score=min_score, exact=exact)
        return Answers(self.hits(ranking), self.name)

    def filter_of(self, texts: Sequence[str]) -> Filter:
        """`["market=US,CA", "year=2025"]` as a filter, its values of the attributes' types. Raises BadInput."""
        return self._usable(self._attributes).filter_of(texts)

    def pause(self, ids: Iterable[str]) -> list[str]:
        """Leave these labels out of all answers; replaces the ids of an earlier call.

        Returns the ids that are not in this bundle.
        """
        listed = list(ids)
        self.paused = frozenset(listed)
        return self._usable(self._attributes).pause(listed)

    def search_rows(
        self,
        queries: Sequence[str],
        k: int = 10,
        *,
        weight: float | None = None,
        filter: Filter | None = None,
        min_score: float | None = None,
        exact: bool = False,
        with_paused: bool = False,
    ) -> Ranking:
        """Search as `search` does; return label rows instead of hits, and the time of each stage. Raises BadInput.

        `with_paused`: include paused labels.
        """
        weight = self.manifest.classifier_weight if weight is None else weight
        check_search(k, weight, min_score)
        encoder, attributes = self._open_encoder(), self._usable(self._attributes)
        candidates, vectors_LD = self._usable(self._candidates), self.vectors_LD
        check_queries(queries)
        masked = bool(filter) or (attributes.paused and not with_paused)
        allowed = attributes.allowed(filter or {}) if masked else None
        encoded = encoder.encode(queries)
        started = time.perf_counter()
        ranking = self._rank(candidates, vectors_LD, encoded.vectors_BD, k, weight, allowed, exact)
        if min_score is not None:
            ranking[0][ranking[1] < min_score] = NO_ROW
        seconds = (encoded.tokenize_seconds, encoded.encode_seconds, time.perf_counter() - started)
        return Ranking(*ranking, Timings(*seconds, encoded.tokens, encoded.padding))

    def hits(self, ranking: Ranking) -> list[list[Hit]]:
        """The label table's rows for a ranking."""
        rows_QK = [[row for row in rows_K if row != NO_ROW] for rows_K in ranking.rows_QK.tolist()]
        labels = self.labels.records(list(chain.from_iterable(rows_QK)))
        shares = (ranking.scores_QK.tolist(), ranking.dual_QK.tolist(), ranking.classifier_QK.tolist())
        return [
            [
                Hit(id_, text, score, dual, classifier, attributes)
                for (id_, text, attributes), score, dual, classifier in zip(islice(labels, len(rows_K)), *shares_K)  # noqa: B905  # rows may be fewer
            ]
            for rows_K, *shares_K in zip(rows_QK, *shares, strict=True)
        ]

    def encode(self, queries: Sequence[str]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The dual-encoder half of each query, of unit length, and its classifier half. Raises BadInput.

        The classifier half has unit length too, save along the direction that `cone_shrink` in the manifest is about;
        its inner product with a label's, as the bundle holds it, is their cosine.
        """
        check_queries(queries)
        vectors_QD = self._open_encoder().encode(queries).vectors_BD
        return vectors_QD[:, : self.manifest.model.dual_dim], vectors_QD[:, self.manifest.model.dual_dim :]

    def check_golden(self) -> GoldenReport:
        """Ask the golden queries and compare; `passed` says whether the manifest's tolerances are met."""
        return check_golden(self)

    def close(self) -> None:
        """Release encoder, index, vectors, labels and all threads; a later search raises BundleError."""
        encoder, candidates = self._encoder, self._candidates
        self._encoder = self._candidates = self._labels = self._vectors_LD = self._attributes = None
        self._held.close()
        if os.getpid() == self._process:  # the threads do not exist in a forked child
            for part in (encoder, candidates):
                if part is not None:
                    part.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open_encoder(self) -> TextEncoder:
        return self._usable(self._encoder)

    def _usable(self, part: Part | None) -> Part:
        """Return the part. Raises BundleError if this retriever is closed, or was opened before a fork."""
        if part is None:
            raise BundleError(f"the retriever of bundle {self.name!r} is closed. Open it again.")
        if os.getpid() != self._process:  # a search would hang: its threads do not exist here
            raise BundleError(
                f"the retriever of bundle {self.name!r} was opened before this process was forked. "
                "Open it after the fork."
            )
        return part

    def _rank(
        self, candidates: Candidates, vectors_LD: NDArray[np.float32], vectors_QD: NDArray[np.float32], k: int,
        weight: float, allowed: Allowed | None, exact: bool,
    ) -> Scored:  # fmt: skip
        k = min(k, self.manifest.labels.count if allowed is None else allowed.count)
        scale_D, measured = self._question(weight, k)
        effort = None if exact else measured
        wanted = to_rescore(k, candidates.index, effort)
        nodes, parts = candidates.nodes(allowed), []
        for start in range(0, max(len(vectors_QD), 1), QUERIES_A_PASS):
            query_QD = vectors_QD[start : start + QUERIES_A_PASS] * scale_D
            rows_QC = candidates.find(query_QD, wanted, effort, allowed)
            scored = rescore(query_QD, rows_QC, vectors_LD, self.manifest.model.dual_dim, k)
            parts.append(scored if nodes is None else expand(scored, nodes, k))
        if len(parts) == 1:
            return parts[0]
        rows, scores, dual, classifier = zip(*parts, strict=True)
        return np.concatenate(rows), np.concatenate(scores), np.concatenate(dual), np.concatenate(classifier)


def _is_loaded(name: str) -> bool:
    """Return whether to load a file of a bundle: all but the label encoder and its weights."""
    return not name.startswith(LABEL_ENCODER)


def _open_index(folder: Path, files: BundleFiles, workers: Workers) -> VectorIndex:
    manifest = files.manifest
    ef = min((effort.ef for effort in manifest.index.efforts if effort.ef), default=1)
    index = HnswIndex.load(folder / INDEX, manifest.index_dim, manifest.index_size, ef, workers, verified=files.graph)
    if manifest.index.width is None:
        return index
    shape = (manifest.model.dim, manifest.index_dim)
    return NarrowIndex(index, vectors_in(files.contents[DIRECTIONS], folder / DIRECTIONS, shape))
