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

from retrieval.metrics import KS
from training.data.ragged import Ragged
from training.evaluation.scoring import LabelVectors, QueryVectors, ScoreMix

DEPTH = max(KS)  # ranks per query
SHORTLIST_SIZE = 100  # far more than DEPTH, so that equal scores at the cut are ordered by row number
SCORES_PER_BLOCK = 1 << 25
QUERIES_PER_BLOCK = 1024  # of `score_rows`
EXCLUDED_COSINE = -1e4  # below any sum of cosines; unlike −∞ it survives a mix with weight 0
SHORTLIST_MIXES = (
    ScoreMix(0.0, 0.0), ScoreMix(0.5, 0.0), ScoreMix(1.0, 0.0), ScoreMix(0.5, 0.2), ScoreMix(1.0, 0.2),
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

    def rank(
        self, mixes: Sequence[ScoreMix], allowed_L: NDArray[np.bool_] | None = None
    ) -> Mapping[ScoreMix, LabelRows]:
        """Return the best of the labels `allowed_L` (None: all) at each mix, as rows [Q, K].

        Excluded labels never appear; −1 pads short rankings.
        """
        distinct = list(dict.fromkeys(mixes))
        exact = distinct if self.exact is None else self.exact
        return rank_labels(self.queries, self.labels, distinct, self.exclude, exact, allowed_L)

    def scores(self, row_QK: LabelRows, mix: ScoreMix) -> NDArray[np.float32]:
        """Return the scores [Q, K] of the labels `row_QK`; −∞ where the row is −1."""
        return score_rows(self.queries, self.labels, row_QK, mix)


@torch.inference_mode()
def rank_labels(
    queries: QueryVectors,
    labels: LabelVectors,
    mixes: Sequence[ScoreMix],
    exclude: Ragged,
    exact: Sequence[ScoreMix] = SHORTLIST_MIXES,
    allowed_L: NDArray[np.bool_] | None = None,
) -> dict[ScoreMix, LabelRows]:
    """Return the best label rows [Q, K] of each query at each mix, best first.

    All labels are scored at the mixes in `exact`; the best SHORTLIST_SIZE at each of them form a shortlist, which the
    other mixes rank. Equal scores are ordered by row number, as in the served index. Only the labels `allowed_L` (None:
    all) that are not excluded appear; a ranking with too few labels ends in −1.
    """
    hidden = torch.from_numpy(np.zeros(0, np.int64) if allowed_L is None else np.flatnonzero(~allowed_L))
    blocks: dict[ScoreMix, list[LabelRows]] = {mix: [] for mix in mixes}
    block = max(1, SCORES_PER_BLOCK // len(labels.dual))
    for start in range(0, len(queries.dual), block):
        stop = min(start + block, len(queries.dual))
        dual_QL = queries.dual[start:stop] @ labels.dual.T
        classifier_QL = queries.classifier[start:stop] @ labels.classifier.T
        exclude_Q = exclude.take(np.arange(start, stop))
        excluded = torch.from_numpy(exclude_Q.row_of_value), torch.from_numpy(exclude_Q.values.astype(np.int64))
        dual_QL[excluded] = classifier_QL[excluded] = EXCLUDED_COSINE
        dual_QL[:, hidden] = classifier_QL[:, hidden] = EXCLUDED_COSINE
        row_QS = _shortlist(dual_QL, classifier_QL, labels.popularity, exact)
        dual_QS, classifier_QS = dual_QL.gather(1, row_QS), classifier_QL.gather(1, row_QS)
        popularity_QS = labels.popularity[row_QS]
        # Rows ascend along a shortlist, so duplicates of a row are adjacent.
        masked_QS = F.pad(row_QS[:, 1:] == row_QS[:, :-1], (1, 0))
        excluded_QL = torch.zeros_like(dual_QL, dtype=torch.bool)
        excluded_QL[excluded] = True
        excluded_QL[:, hidden] = True
        masked_QS |= excluded_QL.gather(1, row_QS)
        for mix, rankings in blocks.items():
            scores_QS = mix.combine(dual_QS, classifier_QS, popularity_QS).masked_fill(masked_QS, -torch.inf)
            rankings.append(_best(row_QS, scores_QS))
    return {mix: np.concatenate(rankings) for mix, rankings in blocks.items()}


@torch.inference_mode()
def score_rows(queries: QueryVectors, labels: LabelVectors, row_QK: LabelRows, mix: ScoreMix) -> NDArray[np.float32]:
    """Return the scores [Q, K] of each query's labels `row_QK`; −∞ where the row is −1."""
    blocks = []
    for start in range(0, len(row_QK), QUERIES_PER_BLOCK):
        at = slice(start, start + QUERIES_PER_BLOCK)
        rows_QK = torch.from_numpy(row_QK[at]).to(labels.dual.device)
        known_QK = rows_QK.clamp(min=0)
        dual_QK = torch.einsum("qd,qkd->qk", queries.dual[at], labels.dual[known_QK])
        classifier_QK = torch.einsum("qc,qkc->qk", queries.classifier[at], labels.classifier[known_QK])
        scores_QK = mix.combine(dual_QK, classifier_QK, labels.popularity[known_QK])
        blocks.append(scores_QK.masked_fill(rows_QK < 0, -torch.inf).cpu().numpy())
    return np.concatenate(blocks)


def _shortlist(dual_QL: Tensor, classifier_QL: Tensor, popularity_L: Tensor, exact: Sequence[ScoreMix]) -> Tensor:
    """Return the rows [Q, S] of the best labels at each mix, ascending; a row may appear more than once."""
    size = min(SHORTLIST_SIZE, dual_QL.shape[1])
    tops = []
    for mix in exact:
        scores_QL = mix.combine(dual_QL, classifier_QL, popularity_L)
        tops.append(torch.topk(scores_QL, size, dim=1, sorted=False).indices)
    return torch.cat(tops, dim=1).sort(dim=1).values


def _best(row_QS: Tensor, scores_QS: Tensor) -> LabelRows:
    """Return the DEPTH best rows; a stable sort keeps equal scores in row order."""
    order_QK = scores_QS.argsort(dim=1, descending=True, stable=True)[:, :DEPTH]
    row_QK = row_QS.gather(1, order_QK).masked_fill(scores_QS.gather(1, order_QK).isneginf(), -1)
    return row_QK.cpu().numpy()
