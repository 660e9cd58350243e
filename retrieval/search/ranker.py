"""Rank the labels of one bundle: by inner products of two halves, or with the classifiers of a cascade.

Suffixes: Q queries, K results, C candidates (at least K if there are as many), D width of a query vector, E width of a
label vector of a cascade, L labels.
"""

from functools import lru_cache
from threading import Lock
from typing import Protocol
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from retrieval.bundle.facts import IndexFacts, ModelFacts
from retrieval.quantized_vectors import LabelVectors
from retrieval.search.attributes import Allowed
from retrieval.search.candidates import Candidates
from retrieval.search.cascade_index import CascadeIndex
from retrieval.search.distinct_vectors import Nodes, ScoredRows, expand
from retrieval.search.indexes import QUERIES_PER_PASS, ExactIndex, FullScans, VectorIndex
from retrieval.search.label_tree import AllowedNodes
from retrieval.search.memory import Neighbours, QueryMemory, VotedRows, add_votes, without_votes
from retrieval.search.pca_index import rescore, to_rescore

CACHED_WEIGHTS = 64


class Ranker(Protocol):
    """Rank labels for query vectors; safe to use from several threads."""

    @property
    def vectors_LD(self) -> LabelVectors:
        """Return the label vectors."""

    @property
    def memory(self) -> QueryMemory | None:
        """Return the query memory."""

    @property
    def full_scans(self) -> FullScans:
        """Return the counter of queries for which the index had too few labels."""

    def rank(
        self,
        vectors_QD: NDArray[np.float32],
        k: int,
        weight: float,
        allowed: Allowed | None,
        exact: bool,
        memory_weight: float = 0.0,
    ) -> tuple[VotedRows, Neighbours | None]:
        """Return the k best rows of each query with their scores, fewer only if fewer labels are allowed.

        Also returns the nearest training queries, None if `memory_weight` is 0.

        Args:
            weight: the classifier's share of the score.
            exact: compare all labels and training queries instead of searching the indexes.
            memory_weight: γ; above 0 only with a memory.
        """

    def close(self) -> None:
        """Stop the threads of the indexes."""


class VectorRanker:
    """Rank labels by exact score: find candidates, score them, replace nodes by their labels, and add the votes."""

    def __init__(
        self,
        vectors_LD: LabelVectors,
        index: VectorIndex,
        nodes: Nodes | None,
        model: ModelFacts,
        index_facts: IndexFacts,
        threads: int | None = None,
        memory: QueryMemory | None = None,
    ) -> None:
        """Use an index of the label vectors, or of one vector per node; `threads` compare vectors one by one."""
        self.memory = memory
        self.vectors_LD, self.index, self.full_scans = vectors_LD, index, index.full_scans
        self._dual_dim = model.dual_dim
        self.candidates = Candidates(index, ExactIndex(vectors_LD, threads), nodes)
        self._settings = lru_cache(CACHED_WEIGHTS)(
            lambda weight, k: (model.query_scale(weight), index_facts.ef_search_at(weight, k))
        )

    def rank(
        self,
        vectors_QD: NDArray[np.float32],
        k: int,
        weight: float,
        allowed: Allowed | None,
        exact: bool,
        memory_weight: float = 0.0,
    ) -> tuple[VotedRows, Neighbours | None]:
        """Rank as `Ranker` describes."""
        k = min(k, len(self.vectors_LD) if allowed is None else allowed.count)
        scale_D, measured = self._settings(weight, k)
        ef_search = None if exact else measured
        count = to_rescore(k, self.index, ef_search)
        nodes, passes = self.candidates.nodes(allowed), []
        for start in range(0, max(len(vectors_QD), 1), QUERIES_PER_PASS):
            encoded_QD = vectors_QD[start : start + QUERIES_PER_PASS]
            query_QD = encoded_QD * scale_D
            rows_QC = self.candidates.find(query_QD, count, ef_search, allowed)
            scored = rescore(query_QD, rows_QC, self.vectors_LD, self._dual_dim, k)
            scored = scored if nodes is None else expand(scored, nodes, k)
            passes.append(self._with_votes(scored, encoded_QD, query_QD, allowed, exact, memory_weight))
        if len(passes) == 1:
            return passes[0]
        voted, neighbours = zip(*passes, strict=True)
        joined = VotedRows(*map(np.concatenate, zip(*voted, strict=True)))
        return joined, Neighbours(*map(np.concatenate, zip(*neighbours, strict=True))) if memory_weight else None

    def _with_votes(
        self,
        scored: ScoredRows,
        encoded_QD: NDArray[np.float32],
        query_QD: NDArray[np.float32],
        allowed: Allowed | None,
        exact: bool,
        memory_weight: float,
    ) -> tuple[VotedRows, Neighbours | None]:
        if self.memory is None or not memory_weight:
            return without_votes(scored), None
        neighbours = self.memory.neighbours(encoded_QD, None if exact else self.memory.facts.ef_search.ef)
        votes = self.memory.votes(neighbours, None if allowed is None else allowed.mask_L)
        return add_votes(scored, votes, memory_weight, query_QD, self.vectors_LD, self._dual_dim), neighbours

    def close(self) -> None:
        """Stop the threads of the indexes."""
        self.candidates.close()
        if self.memory is not None:
            self.memory.close()


class CascadeRanker:
    """Rank labels with a cascade. The whole score is that of the classifiers."""

    def __init__(self, index: CascadeIndex) -> None:
        self.index, self.full_scans = index, index.full_scans
        self.memory: QueryMemory | None = None
        self._allowed_nodes: WeakKeyDictionary[Allowed, AllowedNodes] = WeakKeyDictionary()  # by compiled filter
        self._lock = Lock()

    @property
    def vectors_LD(self) -> NDArray[np.float32]:
        """Return the rows of the labels [L, E]."""
        return self.index.rows[-1]

    def rank(
        self,
        vectors_QD: NDArray[np.float32],
        k: int,
        weight: float,
        allowed: Allowed | None,
        exact: bool,
        memory_weight: float = 0.0,
    ) -> tuple[VotedRows, Neighbours | None]:
        """Rank as `Ranker` describes; `weight` is 1 and `memory_weight` 0."""
        rows_QK, scores_QK = self.index.rank(vectors_QD, k, self._nodes(allowed), exact=exact)
        zeros_QK = np.zeros_like(scores_QK)
        return VotedRows(rows_QK, scores_QK, zeros_QK, scores_QK, zeros_QK), None

    def _nodes(self, allowed: Allowed | None) -> AllowedNodes | None:
        if allowed is None:
            return None
        with self._lock:
            nodes = self._allowed_nodes.get(allowed)
        if nodes is None:
            nodes = self.index.tree.among(allowed.mask_L)
            with self._lock:
                self._allowed_nodes[allowed] = nodes
        return nodes

    def close(self) -> None:
        """Stop the threads of the index."""
        self.index.close()
