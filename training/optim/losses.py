"""The PSL reduction and the losses it can carry: pure functions of scores and masks (UniDEC, section 3).

PSL, Pick-Some-Labels: for each query, the mean over its in-batch positives of a multi-class loss against the label
pool; POL, Pick-One-Label: the same loss for the one positive that was drawn for the query. Every function works on one
direction; the other one is the same function on the transposed scores and mask.

Shapes: Q rows (queries), P columns (labels of the pool), M positive pairs, O picked ones. Masks are −inf, never a
large number: scores are divided by the temperature and may well lie below −100.

Rows that may repeat are gathered with `index_select`: on the CPU, the gradient of `x[rows]` is added up by several
threads in any order, so that two runs would differ in their last bits.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from training.recipe.schema import LossRecipe

INFINITY = float("inf")


@dataclass(frozen=True)
class Targets:
    """Which of Q×P pairs are positive and which are to be left out altogether.

    `positive_QP` and `ignored_QP` are bool [Q, P] (ignored: neither positive nor negative; None when there is none);
    `row_M`, `column_M` are the coordinates of the positives that a loss is taken of, int64; `target_M` float says how
    true each of them is, in (0, 1], None when all are.
    """

    positive_QP: Tensor
    row_M: Tensor
    column_M: Tensor
    ignored_QP: Tensor | None = None
    target_M: Tensor | None = None

    def of(self, row_O: Tensor, column_O: Tensor) -> "Targets":
        """The same, the loss taken of some of the positives alone, as true; the others are still no negatives."""
        return replace(self, row_M=row_O, column_M=column_O, target_M=None)

    @cached_property
    def transposed(self) -> "Targets":
        """The same pairs seen from the labels: label→query."""
        ignored_PQ = None if self.ignored_QP is None else self.ignored_QP.T
        return Targets(self.positive_QP.T, self.column_M, self.row_M, ignored_PQ, self.target_M)

    @cached_property
    def not_negative_QP(self) -> Tensor:
        """What is positive or left out, bool [Q, P]."""
        return self.positive_QP if self.ignored_QP is None else self.positive_QP | self.ignored_QP

    @cached_property
    def has_negative_Q(self) -> Tensor:
        """Rows that have something to be told from, bool [Q]."""
        return ~self.not_negative_QP.all(dim=1)


def head_loss(scores_QP: Tensor, targets: Targets, picked: Targets, terms: LossRecipe) -> dict[str, Tensor]:
    """One head's loss by its parts, `direction/term`; their sum is the loss.

    Shapes: scores_QP float [Q, P], not yet divided by the temperature; each part a scalar, its weights multiplied in.
    `picked` is `targets` of the one positive that was drawn for each query. UniDEC, section 3; `terms.query_to_label`
    is λ_D (λ_C).
    """
    scaled_QP = scores_QP / terms.temperature
    pairs = picked if terms.positives == "one" else targets
    share = terms.query_to_label
    return {
        **_direction("query_to_label", share, scaled_QP, targets, pairs, terms),
        **_direction("label_to_query", 1 - share, scaled_QP.T, targets.transposed, pairs.transposed, terms),
    }


def _direction(
    name: str, share: float, scores_QP: Tensor, targets: Targets, pairs: Targets, terms: LossRecipe
) -> dict[str, Tensor]:
    """One direction's parts that have a weight: the contrastive ones of `pairs`, the binary one of all positives."""
    losses: dict[str, tuple[float, Callable[[], Tensor]]] = {
        "decoupled_softmax": (terms.decoupled_softmax, lambda: decoupled_softmax(scores_QP, pairs)),
        "supcon": (terms.supcon, lambda: supcon(scores_QP, pairs)),
        "triplet": (terms.triplet, lambda: triplet(scores_QP, pairs, terms.margin)),
        "bce": (terms.bce, lambda: binary_cross_entropy(scores_QP, targets)),
    }
    weighted = {term: (share * weight, loss) for term, (weight, loss) in losses.items()}
    return {f"{name}/{term}": weight * loss() for term, (weight, loss) in weighted.items() if weight > 0}


def decoupled_softmax(scores_QP: Tensor, targets: Targets) -> Tensor:
    """Softmax of each positive against the negatives alone: no other positive in the denominator.

    Shapes: scores_QP [Q, P] → scalar. A row without a negative or without a positive contributes 0.
    """
    against_Q = _logsumexp(scores_QP, targets.not_negative_QP, targets.has_negative_Q)
    positive_M = scores_QP[targets.row_M, targets.column_M]
    loss_M = F.softplus(against_Q.index_select(0, targets.row_M) - positive_M)  # −log(e^s / (e^s + Σ e^negatives))
    return pick_some_labels(loss_M, targets)


def supcon(scores_QP: Tensor, targets: Targets) -> Tensor:
    """Softmax of each positive against all of the pool, the other positives included (Khosla et al. 2020, L_out).

    Shapes: scores_QP [Q, P] → scalar. A row without a negative or without a positive contributes 0.
    """
    against_Q = _logsumexp(scores_QP, targets.ignored_QP, targets.has_negative_Q)
    loss_M = against_Q.index_select(0, targets.row_M) - scores_QP[targets.row_M, targets.column_M]
    return pick_some_labels(loss_M, targets)


def triplet(scores_QP: Tensor, targets: Targets, margin: float) -> Tensor:
    """How far negatives come within `margin` of a positive: the mean over those that do (NGAME, Dahiya et al. 2023).

    Shapes: scores_QP [Q, P] → scalar. A row without a negative or without a positive contributes 0.
    """
    positive_M = scores_QP[targets.row_M, targets.column_M]
    within_MP = F.relu(scores_QP.index_select(0, targets.row_M) - positive_M.unsqueeze(1) + margin)
    within_MP = within_MP.masked_fill(targets.not_negative_QP[targets.row_M], 0.0)
    loss_M = within_MP.sum(dim=1) / (within_MP > 0).sum(dim=1).clamp(min=1)
    return pick_some_labels(loss_M, targets)


def binary_cross_entropy(scores_QP: Tensor, targets: Targets) -> Tensor:
    """Sum over the pool of the logistic loss of each label on its own, mean over the rows that have a positive.

    There is no bias: every row of ψ learns "mostly no" as one common direction, popular labels less of it, and that is
    how a cosine can carry popularity. With the batch's log-odds as a bias P@1 of the classifier fell from 67 to 35.
    Shapes: scores_QP [Q, P] → scalar.
    """
    every_QP = F.softplus(scores_QP)
    if targets.ignored_QP is not None:
        every_QP = every_QP.masked_fill(targets.ignored_QP, 0.0)
    row_Q = every_QP.sum(dim=1)
    positive_M = scores_QP[targets.row_M, targets.column_M]
    row_Q = row_Q.index_add(
        0, targets.row_M, -positive_M if targets.target_M is None else -targets.target_M * positive_M
    )
    has_positive_Q = _positives_a_row(targets.row_M, len(row_Q)) > 0
    return (row_Q * has_positive_Q).sum() / has_positive_Q.sum().clamp(min=1)


def pick_some_labels(loss_M: Tensor, targets: Targets) -> Tensor:
    """PSL: the mean over each row's positives, then the mean over the rows that have any (UniDEC, section 3).

    Shapes: loss_M [M], one a positive pair → scalar. Rows without a negative do not count. A positive that is not
    wholly true weighs as much as it is true (Gandalf).
    """
    true_M = torch.ones_like(loss_M) if targets.target_M is None else targets.target_M
    true_Q = true_M.new_zeros(len(targets.has_negative_Q)).index_add(0, targets.row_M, true_M)
    defined_M = targets.has_negative_Q[targets.row_M]
    weight_M = defined_M * true_M / true_Q[targets.row_M]
    rows_with_a_loss = (targets.has_negative_Q & (true_Q > 0)).sum().clamp(min=1)
    return (torch.where(defined_M, loss_M, 0.0) * weight_M).sum() / rows_with_a_loss


def _positives_a_row(row_M: Tensor, rows: int) -> Tensor:
    return torch.bincount(row_M, minlength=rows)


def _logsumexp(scores_QP: Tensor, left_out_QP: Tensor | None, defined_Q: Tensor) -> Tensor:
    """logsumexp over what is not left out, in the rows that are defined.

    The gradient of logsumexp over −inf alone is NaN, so the other rows keep their scores; callers give them no weight.
    """
    if left_out_QP is None:
        return torch.logsumexp(scores_QP, dim=1)
    return torch.logsumexp(scores_QP.masked_fill(left_out_QP & defined_Q.unsqueeze(1), -INFINITY), dim=1)
