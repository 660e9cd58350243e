"""Rank all labels for each query by exact search, without an index.

Shapes: Q queries, L labels, S candidate columns, K ranks (best first).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from retrieval.metrics import KS
from training.data.ragged import Ragged
from training.evaluation.memory import BlockVotes, QueryMemory
from training.evaluation.scoring import LabelVectors, QueryVectors, ScoreMix

DEPTH = max(KS)  # ranks per query
CANDIDATES = 100  # per query; far more than DEPTH, so that equal scores at the cut are ordered by row number
SCORES_PER_BLOCK = 1 << 25
QUERIES_PER_BLOCK = 1024  # of `score_rows`
EXCLUDED_COSINE = -1e4  # below any sum of cosines; unlike −∞ it survives a mix with weight 0
MIN_GROUP = 4  # columns per group of `best_columns`, which are not grouped below

LabelRows = NDArray[np.int64]


@dataclass(frozen=True)
class ExactRanker:
    """Rank labels by the model's own vectors."""

    queries: QueryVectors
    labels: LabelVectors
    exclude: Ragged
    memory: QueryMemory | None = None

    def rank(
        self, mixes: Sequence[ScoreMix], allowed_L: NDArray[np.bool_] | None = None
    ) -> Mapping[ScoreMix, LabelRows]:
        """Return the best of the labels `allowed_L` (None: all) at each mix, as rows [Q, K].

        Excluded labels never appear; −1 pads short rankings.
        """
        return rank_labels(self.queries, self.labels, mixes, self.exclude, allowed_L, self.memory)

    def scores(self, row_QK: LabelRows, mix: ScoreMix) -> NDArray[np.float32]:
        """Return the scores [Q, K] of the labels `row_QK`; −∞ where the row is −1."""
        return score_rows(self.queries, self.labels, row_QK, mix, self.memory)


@torch.inference_mode()
def rank_labels(
    queries: QueryVectors,
    labels: LabelVectors,
    mixes: Sequence[ScoreMix],
    exclude: Ragged,
    allowed_L: NDArray[np.bool_] | None = None,
    memory: QueryMemory | None = None,
) -> dict[ScoreMix, LabelRows]:
    """Return the best label rows [Q, K] of each query at each mix, best first.

    Equal scores are ordered by row number, as in the served index. Only the labels `allowed_L` (None: all) that are not
    excluded appear; a ranking with too few labels ends in −1.
    """
    blocks: dict[ScoreMix, list[LabelRows]] = {mix: [] for mix in mixes}
    hidden = torch.from_numpy(np.zeros(0, np.int64) if allowed_L is None else np.flatnonzero(~allowed_L))
    size = queries_per_block(labels, memory)
    for block in (slice(start, start + size) for start in range(0, len(queries.dual), size)):
        dual_QL, classifier_QL = cosines(queries, labels, exclude, block)
        dual_QL[:, hidden] = classifier_QL[:, hidden] = EXCLUDED_COSINE
        votes = block_votes(memory, queries, block, mixes)
        for mix, rankings in blocks.items():
            scores_QL = mix.combine(dual_QL, classifier_QL, labels.popularity)
            if votes is not None and mix.memory.weight:
                scores_QL = scores_QL.clone() if scores_QL is dual_QL or scores_QL is classifier_QL else scores_QL
                votes.add_to(scores_QL, mix.memory)
            row_QS = best_columns(scores_QL, CANDIDATES).sort(dim=1).values
            scores_QS = scores_QL.gather(1, row_QS)
            rankings.append(_best(row_QS, scores_QS.masked_fill(scores_QS < EXCLUDED_COSINE / 2, -torch.inf)))
    return {mix: np.concatenate(rankings) for mix, rankings in blocks.items()}


@torch.inference_mode()
def score_rows(
    queries: QueryVectors, labels: LabelVectors, row_QK: LabelRows, mix: ScoreMix, memory: QueryMemory | None = None
) -> NDArray[np.float32]:
    """Return the scores [Q, K] of each query's labels `row_QK`; −∞ where the row is −1."""
    blocks = []
    size = min(QUERIES_PER_BLOCK, queries_per_block(labels, memory)) if mix.memory.weight else QUERIES_PER_BLOCK
    for start in range(0, len(row_QK), size):
        at = slice(start, start + size)
        rows_QK = torch.from_numpy(row_QK[at]).to(labels.dual.device)
        known_QK = rows_QK.clamp(min=0)
        dual_QK = torch.einsum("qd,qkd->qk", queries.dual[at], labels.dual[known_QK])
        classifier_QK = torch.einsum("qc,qkc->qk", queries.classifier[at], labels.classifier[known_QK])
        scores_QK = mix.combine(dual_QK, classifier_QK, labels.popularity[known_QK])
        if (votes := block_votes(memory, queries, at, [mix])) is not None:
            scores_QK = torch.add(scores_QK, votes.of_rows(rows_QK, mix.memory), alpha=mix.memory.weight)
        blocks.append(scores_QK.masked_fill(rows_QK < 0, -torch.inf).cpu().numpy())
    return np.concatenate(blocks)


def queries_per_block(labels: LabelVectors, memory: QueryMemory | None = None) -> int:
    """Return the number of queries whose scores of all labels, and of all training queries, fit into a block."""
    columns = max(len(labels.dual), 0 if memory is None else len(memory.labels))
    return max(1, SCORES_PER_BLOCK // max(columns, 1))


def cosines(queries: QueryVectors, labels: LabelVectors, exclude: Ragged, block: slice) -> tuple[Tensor, Tensor]:
    """Return both cosines [Q, L] of a block of queries; EXCLUDED_COSINE for excluded labels."""
    dual_QL = queries.dual[block] @ labels.dual.T
    classifier_QL = queries.classifier[block] @ labels.classifier.T
    exclude_Q = exclude[block]
    excluded = torch.from_numpy(exclude_Q.row_of_value), torch.from_numpy(exclude_Q.values.astype(np.int64))
    dual_QL[excluded] = classifier_QL[excluded] = EXCLUDED_COSINE
    return dual_QL, classifier_QL


def block_votes(
    memory: QueryMemory | None, queries: QueryVectors, block: slice, mixes: Sequence[ScoreMix]
) -> BlockVotes | None:
    """Search the neighbours of a block of queries; None if no mix has votes. Raises ValueError without a memory."""
    count = max((mix.memory.neighbours for mix in mixes if mix.memory.weight), default=0)
    if not count:
        return None
    if memory is None:
        raise ValueError("a mix has votes, but there is no query memory")
    return BlockVotes(memory.neighbours(queries, block, count), memory.labels)


def best_columns(scores_QL: Tensor, count: int) -> Tensor:
    """Return the columns of the min(count, L) greatest scores of each row, unordered.

    Columns are first compared in groups: the `count` greatest scores are in the `count` groups with the greatest
    maxima. That is up to four times as fast as `topk` of all columns.
    """
    columns = scores_QL.shape[1]
    groups = math.isqrt(columns // max(count, 1))  # columns per group; minimises the comparisons of both steps
    if groups < MIN_GROUP:
        return torch.topk(scores_QL, min(count, columns), dim=1, sorted=False).indices
    width = columns // groups
    greatest_QW = scores_QL[:, : width * groups].reshape(-1, groups, width).amax(dim=1)
    group_QS = torch.topk(greatest_QW, count, dim=1, sorted=False).indices
    step_G = width * torch.arange(groups, device=scores_QL.device)
    column_QS = (group_QS[:, None, :] + step_G[:, None]).flatten(1)
    rest = torch.arange(width * groups, columns, device=scores_QL.device).expand(len(scores_QL), -1)
    column_QS = torch.cat([column_QS, rest], dim=1)
    best = torch.topk(scores_QL.gather(1, column_QS), count, dim=1, sorted=False).indices
    return column_QS.gather(1, best)


def _best(row_QS: Tensor, scores_QS: Tensor) -> LabelRows:
    """Return the DEPTH best rows; a stable sort keeps equal scores in row order."""
    order_QK = scores_QS.argsort(dim=1, descending=True, stable=True)[:, :DEPTH]
    row_QK = row_QS.gather(1, order_QK).masked_fill(scores_QS.gather(1, order_QK).isneginf(), -1)
    return row_QK.cpu().numpy()
