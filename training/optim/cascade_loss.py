"""The loss of a cascade: binary cross-entropy over each level's candidates (CascadeXML, section 3 and algorithm 1).

Level 0 scores all its clusters. A query keeps the best nodes of a level, the true ones first, by scores without
gradient; their children are the candidates of the next level.

Shapes: Q queries, F width of the encoder, E width of a level's feature, C candidates per query, K kept nodes, N nodes
of a level, U distinct candidates of the batch, M true pairs, X excluded pairs.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from training.data.token_cache import TokenizedTexts
from training.model.cascade import CascadeModel

INFINITY = float("inf")


@dataclass(frozen=True)
class CascadeBatch:
    """Queries with all their true and excluded labels; pairs are rows of the batch and labels, int64 [M] and [X]."""

    n_queries: int
    texts: TokenizedTexts
    row_M: Tensor
    label_M: Tensor
    row_X: Tensor
    label_X: Tensor

    @property
    def n_labels(self) -> int:
        """Return the number of distinct true labels."""
        return len(torch.unique(self.label_M))

    @property
    def n_positives(self) -> int:
        """Return the number of true pairs."""
        return len(self.row_M)


@dataclass(frozen=True)
class Candidates:
    """Nodes of a level to score, int64 [Q, C], −1 where a query has fewer, and which of them are true, bool [Q, C]."""

    node_QC: Tensor
    true_QC: Tensor

    @property
    def valid_QC(self) -> Tensor:
        """Return which entries are nodes."""
        return self.node_QC >= 0


def cascade_loss(model: CascadeModel, batch: CascadeBatch, encoded_QF: Tensor) -> dict[str, Tensor]:
    """Return the weighted loss of each level by `classifier/level_r/bce`.

    Excluded labels are neither positive nor negative.
    """
    features, ancestors = model.features(encoded_QF), model.ancestors(batch.label_M)
    node_QN = torch.arange(len(model.cascade.bias[0]), device=encoded_QF.device).expand(batch.n_queries, -1)
    candidates = Candidates(node_QN, pairs_among(node_QN, batch.row_M, ancestors[0]))
    terms = {}
    for level, feature_QE in enumerate(features):
        logits_QC = candidate_logits(model, level, feature_QE, candidates.node_QC)
        counted_QC = candidates.valid_QC
        if level == model.n_levels - 1:
            counted_QC = counted_QC & ~pairs_among(candidates.node_QC, batch.row_X, batch.label_X)
        loss = binary_cross_entropy(logits_QC, candidates.true_QC, counted_QC)
        terms[f"classifier/level_{level}/bce"] = model.recipe.loss_weights[level] * loss
        if level < model.n_levels - 1:
            scores_QC = logits_QC.detach().sigmoid().masked_fill(~candidates.valid_QC, -INFINITY)
            best_QK = keep_best(candidates, scores_QC, model.shortlist[level])
            model.shard.agree_(best_QK)
            node_QC = expand(best_QK, model.child_nodes(level + 1))
            candidates = Candidates(node_QC, pairs_among(node_QC, batch.row_M, ancestors[level + 1]))
    return terms


def candidate_logits(model: CascadeModel, level: int, feature_QE: Tensor, node_QC: Tensor) -> Tensor:
    """Return the scores [Q, C] of the candidates of a level before the sigmoid, those of padding undefined.

    All queries are multiplied with the distinct candidates of the batch: one product of matrices costs less than a
    gather of Q·C rows.
    """
    if level == 0:
        return model.logits(0, feature_QE, None)
    node_QC = torch.where(node_QC < 0, node_QC[:, :1], node_QC)  # so that padding adds no row
    distinct_U, place_QC = torch.unique(node_QC, return_inverse=True)
    return model.logits(level, feature_QE, distinct_U).gather(1, place_QC)


def binary_cross_entropy(logits_QC: Tensor, true_QC: Tensor, counted_QC: Tensor) -> Tensor:
    """Return the mean binary cross-entropy over the counted entries."""
    loss_QC = F.binary_cross_entropy_with_logits(logits_QC, true_QC.to(logits_QC.dtype), reduction="none")
    return (loss_QC * counted_QC).sum() / counted_QC.sum().clamp(min=1)


def keep_best(candidates: Candidates, scores_QC: Tensor, count: int) -> Tensor:
    """Return the `count` nodes of each query with the highest scores, int64 [Q, K], −1 for padding; true nodes first.

    `scores_QC` are at most 1, and −∞ for padding.
    """
    first_QC = scores_QC + candidates.true_QC.to(scores_QC.dtype)
    best_QK = torch.topk(first_QC, min(count, first_QC.shape[1]), dim=1).indices
    return candidates.node_QC.gather(1, best_QK)


def expand(node_QK: Tensor, children_NM: Tensor) -> Tensor:
    """Return the children of the kept nodes [Q, K·M], −1 for padding; `children_NM` is padded with −1."""
    child_QKM = children_NM[node_QK.clamp(min=0)]
    return child_QKM.masked_fill((node_QK < 0).unsqueeze(-1), -1).flatten(1)


def pairs_among(node_QC: Tensor, row_M: Tensor, node_M: Tensor) -> Tensor:
    """Return which candidates are among the pairs (row, node), bool [Q, C]; padding is not."""
    base = torch.cat([node_QC.flatten(), node_M, node_M.new_zeros(1)]).max() + 2
    row_Q1 = torch.arange(len(node_QC), device=node_QC.device).unsqueeze(1)
    pairs_M = torch.unique(row_M * base + node_M + 1)
    return torch.isin(row_Q1 * base + node_QC + 1, pairs_M)
