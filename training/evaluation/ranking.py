"""Rank all labels for each query by exact search, without an index.

Shapes: Q queries, L labels, S rows of a shortlist, K ranks (best first).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from retrieval.bundle.memory_labels import VoteSettings
from retrieval.metrics import KS
from training.data.ragged import Ragged
from training.evaluation.memory import BlockVotes, QueryMemory
from training.evaluation.scoring import LabelVectors, QueryVectors, ScoreMix

DEPTH = max(KS)  # ranks per query
SHORTLIST_SIZE = 100  # far more than DEPTH, so that equal scores at the cut are ordered by row number
SCORES_PER_BLOCK = 1 << 25
QUERIES_PER_BLOCK = 1024  # of `score_rows`
EXCLUDED_COSINE = -1e4  # below any sum of cosines; unlike −∞ it survives a mix with weight 0
SHORTLIST_MIXES = (
    ScoreMix(0.0, 0.0), ScoreMix(0.5, 0.0), ScoreMix(1.0, 0.0), ScoreMix(0.5, 0.2), ScoreMix(1.0, 0.2),
)  # fmt: skip
MEMORY_SHORTLIST_MIXES = (
    ScoreMix(0.3, 0.2, VoteSettings(0.2, 0.1, 16)), ScoreMix(0.5, 0.0, VoteSettings(0.5, 0.1, 32)),
    ScoreMix(0.8, 0.1, VoteSettings(0.2, 0.1, 16)),
)  # fmt: skip

LabelRows = NDArray[np.int64]


@dataclass(frozen=True)
class ExactRanker:
    """Rank labels by the model's own vectors.

    Rankings at the mixes in `exact` search all labels. Other mixes rank only the shortlists found at these, which makes
    a fine grid of mixes cheap. None: every mix searches all labels.
    """

    queries: QueryVectors
    labels: LabelVectors
    exclude: Ragged
    exact: Sequence[ScoreMix] | None = None
    memory: QueryMemory | None = None

    def rank(
        self, mixes: Sequence[ScoreMix], allowed_L: NDArray[np.bool_] | None = None
    ) -> Mapping[ScoreMix, LabelRows]:
        """Return the best of the labels `allowed_L` (None: all) at each mix, as rows [Q, K].

        Excluded labels never appear; −1 pads short rankings.
        """
        distinct = list(dict.fromkeys(mixes))
        exact = distinct if self.exact is None else self.exact
        return rank_labels(self.queries, self.labels, distinct, self.exclude, exact, allowed_L, self.memory)

    def scores(self, row_QK: LabelRows, mix: ScoreMix) -> NDArray[np.float32]:
        """Return the scores [Q, K] of the labels `row_QK`; −∞ where the row is −1."""
        return score_rows(self.queries, self.labels, row_QK, mix, self.memory)


@torch.inference_mode()
def rank_labels(
    queries: QueryVectors,
    labels: LabelVectors,
    mixes: Sequence[ScoreMix],
    exclude: Ragged,
    exact: Sequence[ScoreMix] = SHORTLIST_MIXES,
    allowed_L: NDArray[np.bool_] | None = None,
    memory: QueryMemory | None = None,
) -> dict[ScoreMix, LabelRows]:
    """Return the best label rows [Q, K] of each query at each mix, best first.

    All labels are scored at the mixes in `exact`; the best SHORTLIST_SIZE at each of them form a shortlist, which the
    other mixes rank. Equal scores are ordered by row number, as in the served index. Only the labels `allowed_L` (None:
    all) that are not excluded appear; a ranking with too few labels ends in −1.
    """
    hidden = torch.from_numpy(np.zeros(0, np.int64) if allowed_L is None else np.flatnonzero(~allowed_L))
    blocks: dict[ScoreMix, list[LabelRows]] = {mix: [] for mix in mixes}
    block = _queries_per_block(labels, memory)
    for start in range(0, len(queries.dual), block):
        stop = min(start + block, len(queries.dual))
        dual_QL = queries.dual[start:stop] @ labels.dual.T
        classifier_QL = queries.classifier[start:stop] @ labels.classifier.T
        exclude_Q = exclude.take(np.arange(start, stop))
        excluded = torch.from_numpy(exclude_Q.row_of_value), torch.from_numpy(exclude_Q.values.astype(np.int64))
        dual_QL[excluded] = classifier_QL[excluded] = EXCLUDED_COSINE
        dual_QL[:, hidden] = classifier_QL[:, hidden] = EXCLUDED_COSINE
        votes = _block_votes(memory, queries, slice(start, stop), labels, [*mixes, *exact])
        row_QS = _shortlist(dual_QL, classifier_QL, labels.popularity, exact, votes)
        dual_QS, classifier_QS = dual_QL.gather(1, row_QS), classifier_QL.gather(1, row_QS)
        popularity_QS = labels.popularity[row_QS]
        # Rows ascend along a shortlist, so duplicates of a row are adjacent.
        masked_QS = F.pad(row_QS[:, 1:] == row_QS[:, :-1], (1, 0))
        excluded_QL = torch.zeros_like(dual_QL, dtype=torch.bool)
        excluded_QL[excluded] = True
        excluded_QL[:, hidden] = True
        masked_QS |= excluded_QL.gather(1, row_QS)
        for mix, rankings in blocks.items():
            scores_QS = mix.combine(dual_QS, classifier_QS, popularity_QS)
            if votes is not None:
                scores_QS = votes.added(scores_QS, mix.memory, row_QS)
            rankings.append(_best(row_QS, scores_QS.masked_fill(masked_QS, -torch.inf)))
    return {mix: np.concatenate(rankings) for mix, rankings in blocks.items()}


@torch.inference_mode()
def score_rows(
    queries: QueryVectors, labels: LabelVectors, row_QK: LabelRows, mix: ScoreMix, memory: QueryMemory | None = None
) -> NDArray[np.float32]:
    """Return the scores [Q, K] of each query's labels `row_QK`; −∞ where the row is −1."""
    blocks = []
    block = min(QUERIES_PER_BLOCK, _queries_per_block(labels, memory)) if mix.memory.weight else QUERIES_PER_BLOCK
    for start in range(0, len(row_QK), block):
        at = slice(start, start + block)
        rows_QK = torch.from_numpy(row_QK[at]).to(labels.dual.device)
        known_QK = rows_QK.clamp(min=0)
        dual_QK = torch.einsum("qd,qkd->qk", queries.dual[at], labels.dual[known_QK])
        classifier_QK = torch.einsum("qc,qkc->qk", queries.classifier[at], labels.classifier[known_QK])
        scores_QK = mix.combine(dual_QK, classifier_QK, labels.popularity[known_QK])
        if (votes := _block_votes(memory, queries, at, labels, [mix])) is not None:
            scores_QK = votes.added(scores_QK, mix.memory, known_QK)
        blocks.append(scores_QK.masked_fill(rows_QK < 0, -torch.inf).cpu().numpy())
    return np.concatenate(blocks)


def _queries_per_block(labels: LabelVectors, memory: QueryMemory | None) -> int:
    """Return the number of queries whose scores of all labels, and of all training queries, fit into a block."""
    columns = max(len(labels.dual), 0 if memory is None else len(memory.labels))
    return max(1, SCORES_PER_BLOCK // columns)


def _block_votes(
    memory: QueryMemory | None, queries: QueryVectors, block: slice, labels: LabelVectors, mixes: Sequence[ScoreMix]
) -> BlockVotes | None:
    """Search the neighbours of a block of queries; None if no mix has votes. Raises ValueError without a memory."""
    count = max((mix.memory.neighbours for mix in mixes if mix.memory.weight), default=0)
    if not count:
        return None
    if memory is None:
        raise ValueError("a mix has votes, but there is no query memory")
    return BlockVotes(memory.neighbours(queries, block, count), memory.labels, len(labels.dual), labels.dual.device)


def _shortlist(
    dual_QL: Tensor,
    classifier_QL: Tensor,
    popularity_L: Tensor,
    exact: Sequence[ScoreMix],
    votes: BlockVotes | None = None,
) -> Tensor:
    """Return the rows [Q, S] of the best labels at each mix, ascending; a row may appear more than once."""
    size = min(SHORTLIST_SIZE, dual_QL.shape[1])
    tops = []
    for mix in exact:
        scores_QL = mix.combine(dual_QL, classifier_QL, popularity_L)
        if votes is not None:
            scores_QL = votes.added(scores_QL, mix.memory)
        tops.append(torch.topk(scores_QL, size, dim=1, sorted=False).indices)
    return torch.cat(tops, dim=1).sort(dim=1).values


def _best(row_QS: Tensor, scores_QS: Tensor) -> LabelRows:
    """Return the DEPTH best rows; a stable sort keeps equal scores in row order."""
    order_QK = scores_QS.argsort(dim=1, descending=True, stable=True)[:, :DEPTH]
    row_QK = row_QS.gather(1, order_QK).masked_fill(scores_QS.gather(1, order_QK).isneginf(), -1)
    return row_QK.cpu().numpy()
