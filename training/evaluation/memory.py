"""The query memory of an evaluation: training queries whose labels get votes. `memory_votes` has the formula.

The similarity of two queries is ⟨N(Φ_C(x)), N(Φ_C(x'))⟩, or of the dual vectors if the classifier has no weight.

Shapes: Q queries, M training queries of the memory, N neighbours of a query, L labels, S labels of a shortlist, P pairs
of a query and a label with a vote, D width of the vectors.
"""

import dataclasses
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from retrieval.bundle.memory_labels import MemoryLabels, VoteSettings
from retrieval.search.memory_votes import Votes, cast_votes, neighbour_shares
from training.evaluation.scoring import QueryVectors

SIMILARITIES_PER_BLOCK = 1 << 25

Neighbours = tuple[NDArray[np.int64], NDArray[np.float32]]


@dataclass(frozen=True, eq=False)
class QueryMemory:
    """M training queries with their labels, and whether their similarity is that of the classifier vectors.

    `own_row_Q` is the row of each evaluated query in the memory, −1 if it is not there: a query never votes for itself.
    """

    vectors: QueryVectors
    labels: MemoryLabels
    by_classifier: bool = True
    own_row_Q: NDArray[np.int64] | None = None

    def with_half(self, by_classifier: bool) -> "QueryMemory":
        """Return this memory with the similarity of the classifier vectors or of the dual vectors."""
        return dataclasses.replace(self, by_classifier=by_classifier)

    @torch.inference_mode()
    def neighbours(self, queries: QueryVectors, block: slice, count: int) -> Neighbours:
        """Return rows and similarities [Q, N] of the nearest training queries of a block of queries, nearest first."""
        start, stop, _ = block.indices(len(queries.dual))
        step = max(1, SIMILARITIES_PER_BLOCK // max(len(self.labels), 1))
        parts = [
            self._nearest(queries, slice(at, min(at + step, stop)), min(count, len(self.labels)))
            for at in range(start, stop, step)
        ]
        return np.concatenate([rows for rows, _ in parts]), np.concatenate([values for _, values in parts])

    def _nearest(self, queries: QueryVectors, block: slice, count: int) -> Neighbours:
        half = "classifier" if self.by_classifier else "dual"
        similarity_QM = getattr(queries, half)[block] @ getattr(self.vectors, half).T
        if self.own_row_Q is not None:
            own_row_Q = torch.from_numpy(self.own_row_Q[block]).to(similarity_QM.device)
            known = torch.nonzero(own_row_Q >= 0).squeeze(1)
            similarity_QM[known, own_row_Q[known]] = -torch.inf
        best = torch.topk(similarity_QM, count, dim=1)
        return best.indices.cpu().numpy(), best.values.cpu().numpy()


@dataclass(eq=False)
class BlockVotes:
    """The votes for a block of queries at several settings; the neighbours are searched once."""

    neighbours: Neighbours
    labels: MemoryLabels
    _cached: tuple[tuple[float, int], Votes] | None = field(default=None, init=False)

    def add_to(self, scores_QL: Tensor, settings: VoteSettings) -> None:
        """Add γ · votes to the scores of all labels, in place."""
        votes = self.cast(settings)
        at = torch.from_numpy(votes.query_P), torch.from_numpy(votes.label_P.astype(np.int64))
        vote_P = torch.from_numpy(votes.vote_P.astype(np.float32)).to(scores_QL.device)
        scores_QL[at] += settings.weight * vote_P  # a pair of query and label occurs once

    def of_rows(self, row_QS: Tensor, settings: VoteSettings) -> Tensor:
        """Return the votes, without γ, for each query's labels `row_QS`, float32; 0 where the row is −1."""
        votes = self.cast(settings)
        row_QS_ = row_QS.cpu().numpy()
        base = 1 + max(int(row_QS_.max(initial=0)), int(votes.label_P.max(initial=0)))
        key_P = votes.query_P * base + votes.label_P
        key_QS = np.where(row_QS_ < 0, -1, np.arange(len(row_QS_))[:, None] * base + row_QS_)
        place_QS = np.minimum(np.searchsorted(key_P, key_QS), max(len(key_P) - 1, 0))
        vote_QS = np.zeros(row_QS_.shape, np.float32)
        if len(key_P):
            vote_QS = np.where(key_P[place_QS] == key_QS, votes.vote_P[place_QS], 0.0).astype(np.float32)
        return torch.from_numpy(vote_QS).to(row_QS.device)

    def cast(self, settings: VoteSettings) -> Votes:
        """Return the votes per pair of a query and a label."""
        key = (settings.temperature, settings.neighbours)
        if self._cached is None or self._cached[0] != key:
            row_QN = self.neighbours[0][:, : settings.neighbours]
            similarity_QN = self.neighbours[1][:, : settings.neighbours]
            self._cached = (key, cast_votes(row_QN, neighbour_shares(similarity_QN, settings.temperature), self.labels))
        return self._cached[1]
