"""An open bundle: verified, immutable except for paused labels, and safe to search from several threads.

`retrieval.open.open_bundle` opens one by path or URL. Suffixes: Q queries, D vector width, L labels.
"""

import os
import time
from collections.abc import Iterable, Sequence
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import numpy as np
from numpy.typing import NDArray

from retrieval.bundle.golden_answers import GoldenReport, check_golden
from retrieval.bundle.labels import LabelTable
from retrieval.bundle.manifest import GOLDEN
from retrieval.bundle.read_lock import read_lock
from retrieval.bundle.verified_files import BundleFiles, read_bundle
from retrieval.errors import BundleError
from retrieval.loading import LoadedParts, LoadOptions, is_loaded, load_parts
from retrieval.quantized_vectors import LabelVectors
from retrieval.results import NO_ROW, Hit, Ranking, SearchResults, SupportingQuery, Timings, hits_of
from retrieval.search.arguments import check_memory, check_queries, check_search, check_weight
from retrieval.search.candidates import Candidates
from retrieval.search.filters import Filter
from retrieval.search.memory_votes import supporters
from retrieval.search.ranker import VectorRanker
from retrieval.system.low_priority import at_low_priority, directly


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
            return cls(folder, files, load_parts(folder, files, options or LoadOptions()), lock)

    def start(self) -> None:
        """Open the encoder's session and start all threads of a retriever that was loaded with `deferred`.

        Call it once in each process that was forked after the bundle was loaded. Raises BundleError and BadInput.
        """
        self._process = os.getpid()
        parts = self._open_parts()
        parts.encoder.start()
        parts.pool.start()

    @property
    def name(self) -> str:
        """Return the bundle's name: that of its folder."""
        return self.folder.name

    @property
    def dim(self) -> int:
        """Return the width of a label vector."""
        return self.manifest.label_dim

    @property
    def labels(self) -> LabelTable:
        """Return the label table."""
        return self._open_parts().labels

    @property
    def vectors_LD(self) -> LabelVectors:
        """Return the label vectors [L, D], in memory; memory-mapped if memory is short and no keys are trusted."""
        return self._open_parts().ranker.vectors_LD

    @property
    def candidates(self) -> Candidates:
        """Return the search for candidates: the index, and the comparison of all vectors. A cascade has none."""
        ranker = self._open_parts().ranker
        if not isinstance(ranker, VectorRanker):
            raise BundleError(f"bundle {self.name!r} is a cascade, which has no candidates. Use another bundle.")
        return ranker.candidates

    @property
    def memory_weight(self) -> float:
        """Return the default weight of the votes; 0 without a query memory."""
        return 0.0 if self.manifest.memory is None else self.manifest.memory.weight

    @property
    def full_scans(self) -> int:
        """Return the number of queries for which the index found fewer than k, which is slow.

        They compared all labels, or widened the shortlists of a cascade.
        """
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
        check_weight(weight, self.manifest.model)
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
        product with the classifier half of a label in the bundle is their cosine. A cascade has no dual-encoder half,
        and its second half holds one feature per level, each followed by a 1.
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
