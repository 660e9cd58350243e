"""The query memory of a bundle: find the nearest training queries, and add their votes to a ranking.

A vote never lowers a score. So the k best labels with votes are among the k best without votes and the labels that have
a vote, and the result is exact.

Suffixes: Q queries, K results, N neighbours, M training queries of the memory, P pairs of a query and a label, D width
of a label vector, H width of the half that is compared, E entries of all queries, L labels.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from retrieval.bundle.facts import MemoryFacts, ModelFacts
from retrieval.bundle.memory_labels import MemoryLabels
from retrieval.quantized_vectors import LabelVectors
from retrieval.search.candidates import Candidates
from retrieval.search.distinct_vectors import ScoredRows
from retrieval.search.indexes import ExactIndex, Rows, VectorIndex, Vectors
from retrieval.search.memory_votes import Votes, cast_votes, neighbour_shares
from retrieval.search.pca_index import rescore

RESCORED = 8  # candidates to compare as whole vectors, in addition to two per neighbour
ROUNDING = 1e-6  # of scores
PAIRS_PER_BLOCK = 16_384  # label vectors compared at a time; bounds memory


class Neighbours(NamedTuple):
    """The nearest training queries of each query as rows of the memory, and their shares before γ and label weights."""

    rows_QN: Rows
    shares_QN: NDArray[np.float64]


class VotedRows(NamedTuple):
    """Label rows, best first, with their scores and the three parts; the sum of the parts is the score."""

    rows_QK: Rows
    scores_QK: NDArray[np.float64]
    dual_QK: NDArray[np.float64]
    classifier_QK: NDArray[np.float64]
    memory_QK: NDArray[np.float64]


class QueryMemory:
    """The training queries of one bundle; safe to use from several threads."""

    def __init__(
        self,
        vectors_MH: Vectors,
        index: VectorIndex,
        labels: MemoryLabels,
        facts: MemoryFacts,
        model: ModelFacts,
        threads: int | None = None,
    ) -> None:
        """Use an index of the memory's vectors; `threads` compare vectors one by one."""
        self.labels, self.facts, self.index = labels, facts, index
        self._vectors_MH, self._candidates = vectors_MH, Candidates(index, ExactIndex(vectors_MH, threads))
        self._half = slice(None, model.dual_dim) if facts.half == "dual_encoder" else slice(model.dual_dim, None)

    def neighbours(self, encoded_QD: Vectors, ef_search: int | None) -> Neighbours:
        """Return the nearest training queries of encoded queries; `ef_search` None: compare all of them."""
        count = min(self.facts.neighbours, len(self._vectors_MH))
        rows_QN, similarity_QN = self.nearest(encoded_QD, count, ef_search)
        return Neighbours(rows_QN, neighbour_shares(similarity_QN, self.facts.temperature))

    def nearest(self, encoded_QD: Vectors, count: int, ef_search: int | None) -> tuple[Rows, NDArray[np.float64]]:
        """Return rows and similarities [Q, N] of the `count` nearest training queries, nearest first."""
        query_QH = np.ascontiguousarray(encoded_QD[:, self._half])
        candidates = max(2 * count + RESCORED, ef_search or 0)  # the projection, not the graph, limits the recall
        rows_QC = self._candidates.find(query_QH, candidates, ef_search)
        return rescore(query_QH, rows_QC, self._vectors_MH, query_QH.shape[1], count)[:2]

    def votes(self, neighbours: Neighbours, allowed_L: NDArray[np.bool_] | None = None) -> Votes:
        """Return the votes of the neighbours for their labels, among the allowed ones."""
        return cast_votes(neighbours.rows_QN, neighbours.shares_QN, self.labels, allowed_L)

    def close(self) -> None:
        """Stop the threads of the index."""
        self.index.close()


def without_votes(scored: ScoredRows) -> VotedRows:
    """Return a ranking whose labels have no votes."""
    return VotedRows(*scored, np.zeros_like(scored[1]))


def add_votes(
    scored: ScoredRows, votes: Votes, weight: float, query_QD: Vectors, vectors_LD: LabelVectors, dual_dim: int
) -> VotedRows:
    """Return the K best labels of each query with γ · votes added to their scores; equal scores are ranked by row.

    Args:
        scored: the K best labels without votes [Q, K].
        weight: γ.
        query_QD: the queries, scaled to the weight of the search.
    """
    rows_QK, queries, k = scored[0], *scored[0].shape
    if not k or not len(votes.label_P):
        return without_votes(scored)
    place_QK, has_vote_QK = _places(votes, rows_QK, len(vectors_LD))
    known_QK = weight * np.where(has_vote_QK, votes.vote_P[place_QK], 0.0)
    # A label that is not in `scored` has at most the K-th score, so it needs a vote of at least this size.
    needed_Q = (scored[1] + known_QK).min(axis=1) - scored[1][:, -1] - ROUNDING
    new_P = weight * votes.vote_P >= needed_Q[votes.query_P]
    new_P[place_QK[has_vote_QK]] = False
    query_P, label_P = votes.query_P[new_P], votes.label_P[new_P]
    known, row_E = queries * k, np.concatenate([rows_QK.ravel(), label_P])
    parts_3E = np.empty((3, len(row_E)))
    for part_E, part_QK in zip(parts_3E, (scored[2], scored[3], known_QK), strict=True):
        part_E[:known] = part_QK.ravel()
    parts_3E[:2, known:] = _score_pairs(query_P, label_P, query_QD, vectors_LD, dual_dim)
    parts_3E[2, known:] = weight * votes.vote_P[new_P]
    scores_E = parts_3E.sum(axis=0)
    query_E = np.concatenate([np.repeat(np.arange(queries), k), query_P])
    counts_Q = k + np.bincount(query_P, minlength=queries)
    best_QK = np.lexsort((row_E, -scores_E, query_E))[(np.cumsum(counts_Q) - counts_Q)[:, None] + np.arange(k)]
    return VotedRows(row_E[best_QK], scores_E[best_QK], *parts_3E[:, best_QK])


def _places(votes: Votes, rows_QK: Rows, n_labels: int) -> tuple[Rows, NDArray[np.bool_]]:
    """Return the place [Q, K] of each row's vote among the pairs, and whether it has one."""
    key_P = votes.query_P * n_labels + votes.label_P  # ascending
    key_QK = np.arange(len(rows_QK))[:, None] * n_labels + rows_QK
    place_QK = np.minimum(np.searchsorted(key_P, key_QK), len(key_P) - 1)
    return place_QK, key_P[place_QK] == key_QK


def _score_pairs(
    query_P: Rows, label_P: Rows, query_QD: Vectors, vectors_LD: LabelVectors, dual_dim: int
) -> NDArray[np.float64]:
    """Return the scores of both halves of each pair [2, P]."""
    halves_2P = np.empty((2, len(label_P)))
    for start in range(0, len(label_P), PAIRS_PER_BLOCK):
        block = slice(start, start + PAIRS_PER_BLOCK)
        label_PD, query_PD = vectors_LD[label_P[block]], query_QD[query_P[block]]
        for scores_P, half in zip(halves_2P, (slice(None, dual_dim), slice(dual_dim, None)), strict=True):
            # Not a BLAS product: its rounding depends on a row's position, and equal labels must have equal scores.
            scores_P[block] = np.einsum("pd,pd->p", query_PD[:, half], label_PD[:, half])
    return halves_2P
