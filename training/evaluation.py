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
from retrieval.metrics import KS
from training.data.ragged import Ragged
from training.model import UnifiedModel
from training.tokens import TokenizedTexts

DEPTH = max(KS)  # ranks kept of each query
SHORTLIST = 100  # far more than the depth, so that equal scores at its edge are cut by row number
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
    queries: Vectors,
    labels: Vectors,
    weights: Sequence[float],
    exclude: Ragged,
    searched: Sequence[float] = (0.0, 0.5, 1.0),
) -> dict[float, NDArray[np.int64]]:
    """The best label rows [Q, K] of each query, best first, at each weight between the halves.

    Every label is looked at for the weights in `searched`, and those rankings are exact; the other weights rank what
    was found there, SHORTLIST labels each, which makes a fine grid of weights as cheap as three. Equal scores go by
    row number, as in the served index. An excluded label never appears; a row with too few labels left ends in −1.
    """
    found: dict[float, list[NDArray[np.int64]]] = {weight: [] for weight in weights}
    block = max(1, SCORES_A_BLOCK // len(labels.dual))
    for start in range(0, len(queries.dual), block):
        stop = min(start + block, len(queries.dual))
        dual_QL = queries.dual[start:stop] @ labels.dual.T
        classifier_QL = queries.classifier[start:stop] @ labels.classifier.T
        left_out = exclude.take(np.arange(start, stop))
        excluded = torch.from_numpy(left_out.row_of_value), torch.from_numpy(left_out.values.astype(np.int64))
        row_QS = _shortlist(dual_QL, classifier_QL, excluded, searched)
        dual_QS, classifier_QS = dual_QL.gather(1, row_QS), classifier_QL.gather(1, row_QS)
        # Rows rise along a shortlist, so a row that stands there twice stands beside itself.
        gone_QS = F.pad(row_QS[:, 1:] == row_QS[:, :-1], (1, 0))
        excluded_QL = torch.zeros_like(dual_QL, dtype=torch.bool)
        excluded_QL[excluded] = True
        gone_QS |= excluded_QL.gather(1, row_QS)
        for weight in weights:
            scores_QS = torch.lerp(dual_QS, classifier_QS, weight).masked_fill_(gone_QS, -torch.inf)
            found[weight].append(_best(row_QS, scores_QS))
    return {weight: np.concatenate(blocks) for weight, blocks in found.items()}


def _shortlist(
    dual_QL: Tensor, classifier_QL: Tensor, excluded: tuple[Tensor, Tensor], searched: Sequence[float]
) -> Tensor:
    """Rows [Q, S] of the best SHORTLIST labels at each searched weight, rising; a row may stand there twice."""
    size = min(SHORTLIST, dual_QL.shape[1])
    tops = []
    for weight in searched:
        scores_QL = torch.lerp(dual_QL, classifier_QL, weight)
        scores_QL[excluded] = -torch.inf
        tops.append(torch.topk(scores_QL, size, dim=1, sorted=False).indices)
    return torch.cat(tops, dim=1).sort(dim=1).values


def _best(row_QS: Tensor, scores_QS: Tensor) -> NDArray[np.int64]:
    """The first DEPTH rows by score; a stable sort keeps equal scores in the order of rows."""
    order_QK = scores_QS.argsort(dim=1, descending=True, stable=True)[:, :DEPTH]
    row_QK = row_QS.gather(1, order_QK).masked_fill(scores_QS.gather(1, order_QK).isneginf(), -1)
    return row_QK.cpu().numpy()


@torch.inference_mode()
def scores(queries: Vectors, labels: Vectors, row_QK: NDArray[np.int64], weight: float) -> NDArray[np.float32]:
    """The scores [Q, K] of each query's labels `row_QK` at one weight; −∞ where the row is −1."""
    found = []
    for start in range(0, len(row_QK), TEXTS_A_BATCH):
        at = slice(start, start + TEXTS_A_BATCH)
        rows_QK = torch.from_numpy(row_QK[at]).to(labels.dual.device)
        known_QK = rows_QK.clamp(min=0)
        dual_QK = torch.einsum("qd,qkd->qk", queries.dual[at], labels.dual[known_QK])
        classifier_QK = torch.einsum("qc,qkc->qk", queries.classifier[at], labels.classifier[known_QK])
        found.append(torch.lerp(dual_QK, classifier_QK, weight).masked_fill_(rows_QK < 0, -torch.inf).cpu().numpy())
    return np.concatenate(found)


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
