"""The query memory of an evaluation: training queries whose labels get votes. `memory_votes` has the formula.

The similarity of two queries is ⟨N(Φ_C(x)), N(Φ_C(x'))⟩, or of the dual vectors if the classifier has no weight.

Shapes: Q queries, M training queries of the memory, N neighbours of a query, L labels, D width of the vectors.
"""

import dataclasses
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from retrieval.bundle.memory_labels import MemoryLabels, VoteSettings
from retrieval.search.memory_votes import cast_votes, neighbour_shares
from training.evaluation.scoring import QueryVectors

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
        half = "classifier" if self.by_classifier else "dual"
        query_QD, memory_MD = getattr(queries, half)[block], getattr(self.vectors, half)
        similarity_QM = query_QD @ memory_MD.T
        if self.own_row_Q is not None:
            own_row_Q = torch.from_numpy(self.own_row_Q[block]).to(similarity_QM.device)
            known = torch.nonzero(own_row_Q >= 0).squeeze(1)
            similarity_QM[known, own_row_Q[known]] = -torch.inf
        best = torch.topk(similarity_QM, min(count, len(memory_MD)), dim=1)
        return best.indices.cpu().numpy(), best.values.cpu().numpy()


@dataclass(eq=False)
class BlockVotes:
    """The votes for a block of queries at several settings; the neighbours are searched once."""

    neighbours: Neighbours
    labels: MemoryLabels
    n_labels: int
    device: torch.device
    _cached: tuple[tuple[float, int], Tensor] | None = field(default=None, init=False)

    def added(self, scores: Tensor, settings: VoteSettings, row_QS: Tensor | None = None) -> Tensor:
        """Return `scores` + γ · votes: of all labels [Q, L], or of the labels `row_QS` [Q, S]."""
        if not settings.weight:
            return scores
        key = (settings.temperature, settings.neighbours)
        if self._cached is None or self._cached[0] != key:
            self._cached = None  # one dense matrix at a time
            self._cached = (key, self._dense(settings))
        votes_QL = self._cached[1]
        return torch.add(scores, votes_QL if row_QS is None else votes_QL.gather(1, row_QS), alpha=settings.weight)

    def _dense(self, settings: VoteSettings) -> Tensor:
        rows_QN, similarity_QN = self.neighbours
        rows_QN, similarity_QN = rows_QN[:, : settings.neighbours], similarity_QN[:, : settings.neighbours]
        votes = cast_votes(rows_QN, neighbour_shares(similarity_QN, settings.temperature), self.labels)
        votes_QL = torch.zeros(len(rows_QN), self.n_labels)
        votes_QL[torch.from_numpy(votes.query_P), torch.from_numpy(votes.label_P)] = torch.from_numpy(
            votes.vote_P
        ).float()
        return votes_QL.to(self.device)
