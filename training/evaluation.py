"""A model against queries with known answers: the unified model and each head alone.

    score = (1−w)·⟨N(Φ_D(x)), N(Φ_D(z))⟩ + w·⟨N(Φ_C(x)), N(ψ)⟩

w = 0 is the dual encoder alone, w = 1 the classifier alone. Search is exact: these are the model's figures, not an
index's. Shapes: Q queries, L labels, D and C widths of the halves, K ranks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from retrieval import metrics
from training.data.ragged import Ragged
from training.model import UnifiedModel
from training.tokens import TokenizedTexts

KS = (1, 3, 5, 10)
DEPTH = max(KS)
TIES = 32  # looked at beyond the depth, so that equal scores at its edge are cut by row number
TEXTS_A_BATCH = 1024
SCORES_A_BLOCK = 1 << 25
HEADS = ("unified", "dual_encoder", "classifier")

Figures = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Vectors:
    """Unit-length halves of queries or labels: dual [·, D], classifier [·, C] (zero for a label never trained)."""

    dual: Tensor
    classifier: Tensor


@dataclass(frozen=True)
class Truth:
    """What Q queries should find, and what counts neither as prediction nor as truth."""

    labels: Ragged
    exclude: Ragged


@torch.inference_mode()
def encode_queries(model: UnifiedModel, tokens: TokenizedTexts, device: torch.device) -> Vectors:
    """Both halves of every text, in the order of the texts, float32."""
    dual_QD = torch.empty(len(tokens), model.dual_dim, device=device)
    classifier_QC = torch.empty(len(tokens), model.classifier_dim, device=device)
    for rows, batch in tokens.batches_by_length(TEXTS_A_BATCH):
        batch = batch.to(device)
        dual, classifier = model.query_vectors(batch.input_ids_BT, batch.attention_mask_BT)
        at = torch.from_numpy(rows).to(device)
        dual_QD[at], classifier_QC[at] = dual.float(), classifier.float()
    return Vectors(dual_QD, classifier_QC)


@torch.inference_mode()
def encode_labels(
    model: UnifiedModel, tokens: TokenizedTexts, trained_L: NDArray[np.bool_], device: torch.device
) -> Vectors:
    """Dual half of every label text and N(ψ); a label that was never a training positive has a zero classifier half."""
    dual_LD = torch.empty(len(tokens), model.dual_dim, device=device)
    for rows, batch in tokens.batches_by_length(TEXTS_A_BATCH):
        batch = batch.to(device)
        at = torch.from_numpy(rows).to(device)
        dual_LD[at] = model.label_vectors(batch.input_ids_BT, batch.attention_mask_BT).float()
    known_L1 = torch.from_numpy(trained_L).to(device).unsqueeze(1)
    return Vectors(dual_LD, F.normalize(model.classifier_rows().float(), dim=-1) * known_L1)


@torch.inference_mode()
def rank(
    queries: Vectors, labels: Vectors, weights: Sequence[float], exclude: Ragged, depth: int = DEPTH
) -> dict[float, NDArray[np.int64]]:
    """The `depth` best label rows [Q, K] of each query, best first, at each weight between the halves.

    An excluded label scores −∞; where fewer than `depth` labels are left the row ends in −1.
    """
    depth = min(depth, len(labels.dual))
    found: dict[float, list[NDArray[np.int64]]] = {weight: [] for weight in weights}
    block = max(1, SCORES_A_BLOCK // len(labels.dual))
    for start in range(0, len(queries.dual), block):
        rows = slice(start, start + block)
        dual_QL = queries.dual[rows] @ labels.dual.T
        classifier_QL = queries.classifier[rows] @ labels.classifier.T
        left_out = exclude.take(np.arange(start, min(start + block, len(queries.dual))))
        dual_QL[
            torch.from_numpy(left_out.row_of_value), torch.from_numpy(left_out.values.astype(np.int64))
        ] = -torch.inf
        for weight in weights:
            found[weight].append(_best(torch.lerp(dual_QL, classifier_QL, weight), dual_QL, depth))
    return {weight: np.concatenate(blocks) for weight, blocks in found.items()}


def _best(scores_QL: Tensor, dual_QL: Tensor, depth: int) -> NDArray[np.int64]:
    """Top rows, equal scores by row number as in the served index: labels of the same tokens have equal halves.

    lerp turns −∞ into NaN at weight 1, so the excluded ones are set again from the dual half.
    """
    scores_QL.masked_fill_(dual_QL.isneginf(), -torch.inf)
    top = torch.topk(scores_QL, min(depth + TIES, scores_QL.shape[1]), dim=1)
    row_QK = torch.where(top.values.isneginf(), -1, top.indices)
    by_row_QK = row_QK.argsort(dim=1)
    by_score_QK = top.values.gather(1, by_row_QK).argsort(dim=1, descending=True, stable=True)
    return row_QK.gather(1, by_row_QK).gather(1, by_score_QK)[:, :depth].cpu().numpy()


def figures_by_head(
    rankings: Mapping[float, NDArray[np.int64]], weight: float, truth: Ragged, inverse_propensity_L: NDArray[np.float64]
) -> Figures:
    """Every metric in percent for the unified model at `weight` and for each head alone."""
    labels = [truth[row] for row in range(len(truth))]
    at = {"unified": weight, "dual_encoder": 0.0, "classifier": 1.0}
    return {head: metrics.evaluate(rankings[at[head]], labels, inverse_propensity_L, KS) for head in HEADS}


def choose_weight(
    rankings: Mapping[float, NDArray[np.int64]],
    truth: Ragged,
    inverse_propensity_L: NDArray[np.float64],
    chosen_by: Sequence[str],
) -> tuple[float, float]:
    """The weight whose mean of `chosen_by` is greatest, and that mean; the nearest to ½ among equals."""
    labels = [truth[row] for row in range(len(truth))]
    scores: dict[float, float] = {}
    for weight, ranking in rankings.items():
        figures = metrics.evaluate(ranking, labels, inverse_propensity_L, KS)
        scores[weight] = float(np.mean([figures[name] for name in chosen_by]))
    best = max(scores, key=lambda weight: (scores[weight], -abs(weight - 0.5)))
    return best, scores[best]


def gaps(
    rankings: Mapping[float, NDArray[np.int64]], weight: float, truth: Ragged, k: int
) -> dict[str, tuple[float, float, float]]:
    """P@k of the unified model minus that of each head alone: mean and 95 % interval in points, paired by query."""
    labels = [truth[row] for row in range(len(truth))]
    unified_Q = metrics.per_query_precision(rankings[weight], labels, k)
    alone = {"dual_encoder": 0.0, "classifier": 1.0}
    return {
        head: _points(metrics.paired_interval(unified_Q, metrics.per_query_precision(rankings[at], labels, k)))
        for head, at in alone.items()
    }


def _points(interval: tuple[float, float, float]) -> tuple[float, float, float]:
    mean, low, high = interval
    return 100 * mean, 100 * low, 100 * high
