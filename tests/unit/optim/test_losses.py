"""The losses against slow, direct implementations of their equations."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

from training.optim import losses
from training.optim.losses import Targets
from training.recipe.sections import LossRecipe


def make_targets(positive_QP: Tensor, ignored_QP: Tensor | None = None) -> Targets:
    row_M, column_M = positive_QP.nonzero(as_tuple=True)
    return Targets(positive_QP, row_M, column_M, ignored_QP)


def slow(scores_QP: Tensor, positive_QP: Tensor, ignored_QP: Tensor, *, decoupled: bool) -> float:
    """Return the mean over rows of the mean over positives, directly from the paper's equation."""
    rows = []
    for scores, positive, ignored in zip(scores_QP.tolist(), positive_QP.tolist(), ignored_QP.tolist(), strict=True):
        negatives = [s for s, p, i in zip(scores, positive, ignored, strict=True) if not p and not i]
        positives = [s for s, p in zip(scores, positive, strict=True) if p]
        if not negatives or not positives:
            continue
        others = 0.0 if decoupled else sum(math.exp(s) for s in positives)
        below = [sum(math.exp(n) for n in negatives) + (math.exp(s) if decoupled else others) for s in positives]
        rows.append(sum(-math.log(math.exp(s) / b) for s, b in zip(positives, below, strict=True)) / len(positives))
    return sum(rows) / len(rows) if rows else 0.0


@pytest.fixture
def example() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(7)
    scores_QP = 3 * torch.randn(6, 9, generator=generator)
    positive_QP = torch.rand(6, 9, generator=generator) < 0.3
    positive_QP[0], positive_QP[1] = False, True  # a row without a positive, a row without a negative
    ignored_QP = (torch.rand(6, 9, generator=generator) < 0.2) & ~positive_QP
    return scores_QP, positive_QP, ignored_QP


def test_decoupled_softmax_is_the_equation(example: tuple[Tensor, Tensor, Tensor]) -> None:
    """If it fails, the denominator includes another positive or an excluded label."""
    scores_QP, positive_QP, ignored_QP = example
    found = losses.decoupled_softmax(scores_QP, make_targets(positive_QP, ignored_QP))
    assert found.item() == pytest.approx(slow(scores_QP, positive_QP, ignored_QP, decoupled=True), rel=1e-5)


def test_supcon_is_the_equation(example: tuple[Tensor, Tensor, Tensor]) -> None:
    """If it fails, SupCon recipes train another loss."""
    scores_QP, positive_QP, ignored_QP = example
    found = losses.supcon(scores_QP, make_targets(positive_QP, ignored_QP))
    assert found.item() == pytest.approx(slow(scores_QP, positive_QP, ignored_QP, decoupled=False), rel=1e-5)


def test_bce_is_a_sum_over_the_pool_per_query(example: tuple[Tensor, Tensor, Tensor]) -> None:
    """If it fails, the BCE weight of a recipe does not apply to the sum over the pool, per query."""
    scores_QP, positive_QP, ignored_QP = example
    each_QP = torch.nn.functional.binary_cross_entropy_with_logits(scores_QP, positive_QP.float(), reduction="none")
    rows_Q = each_QP.masked_fill(ignored_QP, 0).sum(dim=1)
    expected = rows_Q[positive_QP.any(dim=1)].mean().item()
    assert losses.binary_cross_entropy(scores_QP, make_targets(positive_QP, ignored_QP)).item() == pytest.approx(
        expected
    )


def test_triplet_is_the_mean_over_the_negatives_within_the_margin(example: tuple[Tensor, Tensor, Tensor]) -> None:
    """If it fails, NGAME recipes train another loss."""
    scores_QP, positive_QP, ignored_QP = example
    rows = []
    for scores, positive, left_out in zip(scores_QP, positive_QP, positive_QP | ignored_QP, strict=True):
        if not positive.any() or left_out.all():
            continue
        short = [(scores[~left_out] - best + 0.3).clamp(min=0) for best in scores[positive]]
        rows.append(sum(each.sum().item() / max(1, int((each > 0).sum())) for each in short) / len(short))
    found = losses.triplet(scores_QP, make_targets(positive_QP, ignored_QP), 0.3)
    assert found.item() == pytest.approx(sum(rows) / len(rows), rel=1e-5)


def test_pick_one_label_uses_the_picked_pairs_only(example: tuple[Tensor, Tensor, Tensor]) -> None:
    """If it fails, POL equals PSL, or treats the other true labels as negatives."""
    scores_QP, positive_QP, ignored_QP = example
    targets = make_targets(positive_QP, ignored_QP)
    rows = [row for row in range(len(positive_QP)) if positive_QP[row].any()]
    columns = [int(positive_QP[row].nonzero()[-1]) for row in rows]
    picked = targets.with_positives(torch.tensor(rows), torch.tensor(columns))
    each = []
    for row, column in zip(rows, columns, strict=True):
        negative_P = ~(positive_QP[row] | ignored_QP[row])
        if negative_P.any():
            against = torch.cat([scores_QP[row, column].unsqueeze(0), scores_QP[row, negative_P]])
            each.append((against.logsumexp(0) - scores_QP[row, column]).item())
    terms = LossRecipe(positives="one", query_to_label=1.0)
    (found,) = losses.head_loss(scores_QP, targets, picked, terms).values()
    assert found.item() == pytest.approx(sum(each) / len(each), rel=1e-5)


def test_positives_count_with_their_shares_of_clicks(example: tuple[Tensor, Tensor, Tensor]) -> None:
    """If it fails, `clicks.loss` has no effect, or a rarely clicked label is taught to be a negative."""
    scores_QP, positive_QP, ignored_QP = example
    equal = make_targets(positive_QP, ignored_QP)
    share_M = torch.linspace(0.1, 1, len(equal.row_M))
    shared = replace(equal, share_M=share_M)
    loss_M = torch.linspace(2, 5, len(equal.row_M))
    rows = []
    for row in range(len(scores_QP)):
        of_row = equal.row_M == row
        if of_row.any() and equal.has_negative_Q[row]:
            rows.append(((share_M * loss_M)[of_row].sum() / share_M[of_row].sum()).item())
    assert losses.pick_some_labels(loss_M, shared).item() == pytest.approx(sum(rows) / len(rows), rel=1e-5)
    assert shared.transposed.share_M is share_M
    assert losses.binary_cross_entropy(scores_QP, shared) == losses.binary_cross_entropy(scores_QP, equal)


def test_positives_are_weighted_by_their_targets(example: tuple[Tensor, Tensor, Tensor]) -> None:
    """If it fails, Gandalf's soft targets count as 1."""
    scores_QP, positive_QP, ignored_QP = example
    hard = make_targets(positive_QP, ignored_QP)
    target_M = torch.linspace(0.1, 1, len(hard.row_M))
    soft = Targets(hard.positive_QP, hard.row_M, hard.column_M, hard.ignored_QP, target_M)
    rows = []
    for row in hard.row_M.unique().tolist():
        of_row = (hard.row_M == row).nonzero().squeeze(1)
        alone = [
            losses.decoupled_softmax(
                scores_QP, hard.with_positives(hard.row_M[at : at + 1], hard.column_M[at : at + 1])
            ).item()
            for at in of_row.tolist()
        ]
        if hard.has_negative_Q[row]:
            weight = target_M[of_row] / target_M[of_row].sum()
            rows.append(sum(w * loss for w, loss in zip(weight.tolist(), alone, strict=True)))
    assert losses.decoupled_softmax(scores_QP, soft).item() == pytest.approx(sum(rows) / len(rows), rel=1e-5)

    how_true_QP = torch.zeros(scores_QP.shape).index_put((hard.row_M, hard.column_M), target_M)
    each_QP = torch.nn.functional.binary_cross_entropy_with_logits(scores_QP, how_true_QP, reduction="none")
    expected = each_QP.masked_fill(ignored_QP, 0).sum(dim=1)[positive_QP.any(dim=1)].mean()
    assert losses.binary_cross_entropy(scores_QP, soft).item() == pytest.approx(expected.item(), rel=1e-5)


def test_rows_without_negatives_or_positives_give_zero_loss_and_finite_gradients() -> None:
    """If it fails, one query whose pool has only positives turns all weights into NaN."""
    for positive_QP in (torch.ones(2, 3, dtype=torch.bool), torch.zeros(2, 3, dtype=torch.bool)):
        for loss in (losses.decoupled_softmax, losses.supcon, partial(losses.triplet, margin=0.3)):
            scores_QP = torch.randn(2, 3, requires_grad=True)
            value = loss(scores_QP, make_targets(positive_QP))
            assert value.item() == 0
            value.backward()
            assert scores_QP.grad is not None
            assert torch.equal(scores_QP.grad, torch.zeros(2, 3))


def test_scores_far_below_minus_100_stay_exact() -> None:
    """If it fails, masks are large negative numbers: scores divided by a temperature can be smaller."""
    scores_QP = torch.tensor([[-400.0, -401.0, -402.0]])
    positive_QP = torch.tensor([[False, True, False]])
    expected = -math.log(math.exp(-1) / (math.exp(-1) + math.exp(0) + math.exp(-2)))
    assert losses.decoupled_softmax(scores_QP, make_targets(positive_QP)).item() == pytest.approx(expected, rel=1e-5)


def test_both_directions_and_terms_add_up_with_their_weights(example: tuple[Tensor, Tensor, Tensor]) -> None:
    """If it fails, λ_D, λ_C or the weight of a term has no effect or a wrong one."""
    scores_QP, positive_QP, ignored_QP = example
    targets = make_targets(positive_QP, ignored_QP)
    terms = LossRecipe(decoupled_softmax=0.5, supcon=2.0, bce=0.1, temperature=0.5, query_to_label=0.8)

    def one_way(scores: Tensor, of: Targets) -> Tensor:
        return (
            0.5 * losses.decoupled_softmax(scores, of)
            + 2.0 * losses.supcon(scores, of)
            + 0.1 * losses.binary_cross_entropy(scores, of)
        )

    scaled_QP = scores_QP / 0.5
    expected = 0.8 * one_way(scaled_QP, targets) + 0.2 * one_way(scaled_QP.T, targets.transposed)
    assert sum(losses.head_loss(scores_QP, targets, targets, terms).values()).item() == pytest.approx(
        expected.item(), rel=1e-6
    )


def test_the_gradient_pulls_positives_up_and_negatives_down(example: tuple[Tensor, Tensor, Tensor]) -> None:
    """If it fails, a sign is wrong, or an excluded pair has a gradient."""
    scores_QP, positive_QP, ignored_QP = example
    scores_QP = scores_QP.clone().requires_grad_(True)
    targets = make_targets(positive_QP, ignored_QP)
    sum(losses.head_loss(scores_QP, targets, targets, LossRecipe(query_to_label=1.0)).values()).backward()
    gradient_QP = scores_QP.grad
    assert gradient_QP is not None
    taught_Q = positive_QP.any(dim=1) & ~(positive_QP | ignored_QP).all(dim=1)
    assert (gradient_QP[positive_QP & taught_Q.unsqueeze(1)] < 0).all()
    assert (gradient_QP[~positive_QP & ~ignored_QP & taught_Q.unsqueeze(1)] > 0).all()
    assert (gradient_QP[ignored_QP] == 0).all()
