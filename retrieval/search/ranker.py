"""Rank the labels of one bundle by exact score: find candidates, score them, and replace index nodes by their labels.

Suffixes: Q queries, K results, C candidates (at least K if there are as many), D vector width, L labels.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from retrieval.bundle.facts import IndexFacts, ModelFacts
from retrieval.search.attributes import Allowed
from retrieval.search.candidates import Candidates
from retrieval.search.distinct_vectors import Nodes, ScoredRows, expand
from retrieval.search.indexes import QUERIES_PER_PASS, ExactIndex, VectorIndex
from retrieval.search.pca_index import rescore, to_rescore

CACHED_WEIGHTS = 64


class Ranker:
    """Rank labels for query vectors; safe to use from several threads."""

    def __init__(
        self,
        vectors_LD: NDArray[np.float32],
        index: VectorIndex,
        nodes: Nodes | None,
        model: ModelFacts,
        index_facts: IndexFacts,
        threads: int | None = None,
    ) -> None:
        """Use an index of the label vectors, or of one vector per node; `threads` compare vectors one by one."""
        self.vectors_LD, self.index, self.full_scans = vectors_LD, index, index.full_scans
        self._dual_dim = model.dual_dim
        self.candidates = Candidates(index, ExactIndex(vectors_LD, threads), nodes)
        self._settings = lru_cache(CACHED_WEIGHTS)(
            lambda weight, k: (model.query_scale(weight), index_facts.ef_search_at(weight, k))
        )

    def rank(
        self, vectors_QD: NDArray[np.float32], k: int, weight: float, allowed: Allowed | None, exact: bool
    ) -> ScoredRows:
        """Return the k best rows of each query with their scores, fewer only if fewer labels are allowed.

        Args:
            weight: the classifier's share of the score.
            exact: compare all labels instead of searching the index.
        """
        k = min(k, len(self.vectors_LD) if allowed is None else allowed.count)
        scale_D, measured = self._settings(weight, k)
        ef_search = None if exact else measured
        count = to_rescore(k, self.index, ef_search)
        nodes, passes = self.candidates.nodes(allowed), []
        for start in range(0, max(len(vectors_QD), 1), QUERIES_PER_PASS):
            query_QD = vectors_QD[start : start + QUERIES_PER_PASS] * scale_D
            rows_QC = self.candidates.find(query_QD, count, ef_search, allowed)
            scored = rescore(query_QD, rows_QC, self.vectors_LD, self._dual_dim, k)
            passes.append(scored if nodes is None else expand(scored, nodes, k))
        if len(passes) == 1:
            return passes[0]
        rows, scores, dual, classifier = zip(*passes, strict=True)
        return np.concatenate(rows), np.concatenate(scores), np.concatenate(dual), np.concatenate(classifier)

    def close(self) -> None:
        """Stop the threads of the index."""
        self.candidates.close()
