"""Losses with the PSL reduction: pure functions of scores and masks (UniDEC, section 3).

PSL (Pick-Some-Labels) averages a multi-class loss over the in-batch positives of each query. POL (Pick-One-Label) uses
one positive per query. Each function computes one direction; the other direction is the same function of the transposed
scores and masks.

Shapes: Q rows (queries), P columns (labels of the pool), M positive pairs, O picked pairs. Masked scores are −inf, not
a large negative number: scores are divided by the temperature and can be below −100.

Rows that may repeat are gathered with `index_select`: on the CPU, the gradient of `x[rows]` is summed by several
threads in varying order, so two runs would differ in their last bits.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from training.recipe.sections import LossRecipe

INFINITY = float("inf")


@dataclass(frozen=True)
class Targets:
    """Positive and ignored pairs among Q×P.

    `positive_QP` and `ignored_QP` are bool [Q, P]; ignored pairs are neither positive nor negative (None: no pair).
    `row_M` and `column_M`, int64, are the coordinates of the positives whose loss is computed; `target_M`, float, are
    their targets in (0, 1] (None: 1 for all). `share_M`, float in (0, 1], multiplies a positive's part in a mean over
    positives (None: 1 for all); it does not change BCE.
    """

    positive_QP: Tensor
    row_M: Tensor
    column_M: Tensor
    ignored_QP: Tensor | None = None
    target_M: Tensor | None = None
    share_M: Tensor | None = None

    def with_positives(self, row_O: Tensor, column_O: Tensor) -> "Targets":
        """Compute the loss of these positives only, with targets of 1; the other positives do not become negatives."""
        return replace(self, row_M=row_O, column_M=column_O, target_M=None, share_M=None)

    def ignoring(self, row_X: Tensor, column_X: Tensor) -> "Targets":
        """Return the targets with these pairs neither positive nor negative."""
        added_QP = torch.zeros_like(self.positive_QP)
        added_QP[row_X, column_X] = True
        kept_M = ~added_QP[self.row_M, self.column_M]
        return Targets(
            self.positive_QP & ~added_QP, self.row_M[kept_M], self.column_M[kept_M],
            added_QP if self.ignored_QP is None else self.ignored_QP | added_QP,
            None if self.target_M is None else self.target_M[kept_M],
            None if self.share_M is None else self.share_M[kept_M],
        )  # fmt: skip

    @cached_property
    def transposed(self) -> "Targets":
        """The targets of the direction label→query."""
        ignored_PQ = None if self.ignored_QP is None else self.ignored_QP.T
        return Targets(self.positive_QP.T, self.column_M, self.row_M, ignored_PQ, self.target_M, self.share_M)

    @cached_property
    def not_negative_QP(self) -> Tensor:
        """Positive and ignored pairs, bool [Q, P]."""
        return self.positive_QP if self.ignored_QP is None else self.positive_QP | self.ignored_QP

    @cached_property
    def has_negative_Q(self) -> Tensor:
        """Rows with at least one negative, bool [Q]."""
        return ~self.not_negative_QP.all(dim=1)


def head_loss(scores_QP: Tensor, targets: Targets, picked: Targets, terms: LossRecipe) -> dict[str, Tensor]:
    """Return one head's loss as weighted scalar terms by `direction/term`; their sum is the loss (UniDEC, section 3).

    Shapes: scores_QP float [Q, P], before division by the temperature. `picked` are the targets with one positive per
    query. `terms.query_to_label` is λ_D (λ_C).
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
    """Return one direction's terms with a positive weight: contrastive terms of `pairs`, BCE of all positives."""
    losses: dict[str, tuple[float, Callable[[], Tensor]]] = {
        "decoupled_softmax": (terms.decoupled_softmax, lambda: decoupled_softmax(scores_QP, pairs)),
        "supcon": (terms.supcon, lambda: supcon(scores_QP, pairs)),
        "triplet": (terms.triplet, lambda: triplet(scores_QP, pairs, terms.margin)),
        "bce": (terms.bce, lambda: binary_cross_entropy(scores_QP, targets)),
    }
    weighted = {term: (share * weight, loss) for term, (weight, loss) in losses.items()}
    return {f"{name}/{term}": weight * loss() for term, (weight, loss) in weighted.items() if weight > 0}


def decoupled_softmax(scores_QP: Tensor, targets: Targets) -> Tensor:
    """Softmax loss of each positive against the negatives only: no other positive is in the denominator.

    Shapes: scores_QP [Q, P] → scalar. A row without a negative or without a positive contributes 0.
    """
    against_Q = _logsumexp(scores_QP, targets.not_negative_QP, targets.has_negative_Q)
    positive_M = scores_QP[targets.row_M, targets.column_M]
    loss_M = F.softplus(against_Q.index_select(0, targets.row_M) - positive_M)  # −log(e^s / (e^s + Σ e^negatives))
    return pick_some_labels(loss_M, targets)


def supcon(scores_QP: Tensor, targets: Targets) -> Tensor:
    """Softmax loss of each positive against the whole pool, including the other positives (Khosla et al. 2020, L_out).

    Shapes: scores_QP [Q, P] → scalar. A row without a negative or without a positive contributes 0.
    """
    against_Q = _logsumexp(scores_QP, targets.ignored_QP, targets.has_negative_Q)
    loss_M = against_Q.index_select(0, targets.row_M) - scores_QP[targets.row_M, targets.column_M]
    return pick_some_labels(loss_M, targets)


def triplet(scores_QP: Tensor, targets: Targets, margin: float) -> Tensor:
    """Triplet loss: mean violation of `margin` over the negatives that violate it (NGAME, Dahiya et al. 2023).

    Shapes: scores_QP [Q, P] → scalar. A row without a negative or without a positive contributes 0.
    """
    positive_M = scores_QP[targets.row_M, targets.column_M]
    within_MP = F.relu(scores_QP.index_select(0, targets.row_M) - positive_M.unsqueeze(1) + margin)
    within_MP = within_MP.masked_fill(targets.not_negative_QP[targets.row_M], 0.0)
    loss_M = within_MP.sum(dim=1) / (within_MP > 0).sum(dim=1).clamp(min=1)
    return pick_some_labels(loss_M, targets)


def binary_cross_entropy(scores_QP: Tensor, targets: Targets) -> Tensor:
    """Binary cross-entropy summed over the pool, averaged over the rows with a positive.

    Without a bias, all rows of ψ learn "usually negative" as one common direction, and popular labels less of it: so a
    cosine can express popularity. With the batch's log-odds as a bias, P@1 of the classifier fell from 67 to 35.
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
    has_positive_Q = torch.bincount(targets.row_M, minlength=len(row_Q)) > 0
    return (row_Q * has_positive_Q).sum() / has_positive_Q.sum().clamp(min=1)


def pick_some_labels(loss_M: Tensor, targets: Targets) -> Tensor:
    """PSL: average over each row's positives, then over the rows with a positive (UniDEC, section 3).

    Shapes: loss_M [M], the loss per positive pair → scalar. Rows without a negative do not count. Positives are
    weighted by their targets (Gandalf) and their shares of clicks.
    """
    label_weight_M = torch.ones_like(loss_M) if targets.target_M is None else targets.target_M
    if targets.share_M is not None:
        label_weight_M = label_weight_M * targets.share_M
    total_Q = label_weight_M.new_zeros(len(targets.has_negative_Q)).index_add(0, targets.row_M, label_weight_M)
    defined_M = targets.has_negative_Q[targets.row_M]
    weight_M = defined_M * label_weight_M / total_Q[targets.row_M]
    defined_rows = (targets.has_negative_Q & (total_Q > 0)).sum().clamp(min=1)
    return (torch.where(defined_M, loss_M, 0.0) * weight_M).sum() / defined_rows


def _logsumexp(scores_QP: Tensor, masked_QP: Tensor | None, defined_Q: Tensor) -> Tensor:
    """Return logsumexp over the pairs that are not masked, for the rows in `defined_Q`.

    Other rows are not masked, because the gradient of logsumexp over −inf only is NaN; callers give them no weight.
    """
    if masked_QP is None:
        return torch.logsumexp(scores_QP, dim=1)
    return torch.logsumexp(scores_QP.masked_fill(masked_QP & defined_Q.unsqueeze(1), -INFINITY), dim=1)
