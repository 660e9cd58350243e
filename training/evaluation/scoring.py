"""A model against queries with known answers: the unified model and each head alone.

    score = (1−w)·⟨N(Φ_D(x)), N(Φ_D(z))⟩ + w·(⟨N(Φ_C(x)), N(ψ)⟩ + b·p)

p ∈ [0, 1] is the label's popularity and b its worth, the classifier's bias: a cosine alone ranks a label that is
nearly always right no higher than one that was right once. w = 0 is the dual encoder alone, w = 1 the classifier alone.
Search is exact: these are the model's figures, not an index's.

Shapes: Q queries, L labels, D and C widths of the halves, S rows of a shortlist, K ranks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from retrieval import metrics
from retrieval.metrics import KS
from training.data.ragged import Ragged
from training.data.token_cache import TokenizedTexts
from training.evaluation.imputation import KEPT, Imputed, impute
from training.model.unified import UnifiedModel

DEPTH = max(KS)  # ranks kept of each query
SHORTLIST = 100  # far more than the depth, so that equal scores at its edge are cut by row number
TEXTS_A_BATCH = 1024
SCORES_PER_BLOCK = 1 << 25
FAR_BELOW = -1e4  # any sum of cosines; unlike −∞ it survives a mixture with weight 0
HEADS = {"unified": "unified", "dual_encoder": "dual encoder", "classifier": "classifier"}  # as people read them

Figures = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Vectors:
    """Halves of queries or labels, dual [·, D] and classifier [·, C], of unit length; an imputed one is shorter."""

    dual: Tensor
    classifier: Tensor


@dataclass(frozen=True)
class LabelVectors(Vectors):
    """The halves of L labels, how popular each is, [L] in [0, 1], and what is known of those never learned."""

    popularity: Tensor
    imputed: Imputed

    @torch.inference_mode()
    def keep(self, kept: float) -> None:
        """Give the labels that were never learned the classifier half that `imputation` has for κ = `kept`."""
        self.classifier[torch.from_numpy(self.imputed.label_U).to(self.classifier.device)] = self.imputed.rows(kept)


class Blend(NamedTuple):
    """How the halves are mixed: w, the classifier's share of the score, and b, the worth of popularity within it."""

    weight: float
    popularity: float

    def of(self, dual: Tensor, classifier: Tensor, popularity: Tensor) -> Tensor:
        """Scores from the halves' cosines and the labels' popularities, all of one shape or broadcast to it.

        One half alone is given back as it is, not copied.
        """
        match self.weight:
            case 0.0:
                mixed = dual
            case 1.0:
                mixed = classifier
            case _:
                mixed = torch.lerp(dual, classifier, self.weight)
        bonus = self.weight * self.popularity
        return torch.add(mixed, popularity, alpha=bonus) if bonus else mixed


SEARCHED = (Blend(0.0, 0.0), Blend(0.5, 0.0), Blend(1.0, 0.0), Blend(0.5, 0.2), Blend(1.0, 0.2))


def popularity(positives_L: NDArray[np.int64]) -> NDArray[np.float32]:
    """How popular each of L labels is, in [0, 1]: log(1 + n) of its n training positives over the greatest such."""
    log_L = np.log1p(positives_L).astype(np.float32)
    return log_L / max(float(log_L.max(initial=0.0)), 1e-6)


def learned(classifier_LC: Tensor, positives_L: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which of L labels had a training positive and a row ψ that moved: some positives are never sampled."""
    moved_L: NDArray[np.bool_] = classifier_LC.any(dim=1).cpu().numpy()
    return moved_L & (positives_L > 0)


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
    model: UnifiedModel, tokens: TokenizedTexts, positives_L: NDArray[np.int64], device: torch.device, kept: float
) -> LabelVectors:
    """Dual half of every label text, and N(ψ); of labels never learned what `imputation` has for κ = `kept`."""
    dual_LD = torch.empty(len(tokens), model.dual_dim, device=device)
    for rows, batch in tokens.batches_by_length(TEXTS_A_BATCH):
        batch = batch.to(device)
        at = torch.from_numpy(rows).to(device)
        dual_LD[at] = model.label_vectors(batch.input_ids_BT, batch.attention_mask_BT).float()
    rows_LC = model.classifier_rows()
    trained_L = learned(rows_LC, positives_L)
    found = impute(dual_LD.cpu().numpy(), rows_LC, trained_L, torch.get_num_threads())
    popularity_L = torch.from_numpy(popularity(positives_L)).to(device)
    labels = LabelVectors(dual_LD, F.normalize(rows_LC.float(), dim=-1), popularity_L, found)
    labels.keep(kept)
    return labels


@torch.inference_mode()
def rank(
    queries: Vectors,
    labels: LabelVectors,
    blends: Sequence[Blend],
    exclude: Ragged,
    searched: Sequence[Blend] = SEARCHED,
) -> dict[Blend, NDArray[np.int64]]:
    """The best label rows [Q, K] of each query, best first, at each blend of the halves.

    Every label is looked at for the blends in `searched`, and those rankings are exact; the other blends rank what was
    found there, SHORTLIST labels each, which makes a fine grid as cheap as five. Equal scores go by row number, as in
    the served index. An excluded label never appears; a row with too few labels left ends in −1.
    """
    found: dict[Blend, list[NDArray[np.int64]]] = {blend: [] for blend in blends}
    block = max(1, SCORES_PER_BLOCK // len(labels.dual))
    for start in range(0, len(queries.dual), block):
        stop = min(start + block, len(queries.dual))
        dual_QL = queries.dual[start:stop] @ labels.dual.T
        classifier_QL = queries.classifier[start:stop] @ labels.classifier.T
        left_out = exclude.take(np.arange(start, stop))
        excluded = torch.from_numpy(left_out.row_of_value), torch.from_numpy(left_out.values.astype(np.int64))
        dual_QL[excluded] = classifier_QL[excluded] = FAR_BELOW
        row_QS = _shortlist(dual_QL, classifier_QL, labels.popularity, searched)
        dual_QS, classifier_QS = dual_QL.gather(1, row_QS), classifier_QL.gather(1, row_QS)
        popularity_QS = labels.popularity[row_QS]
        # Rows rise along a shortlist, so a row that stands there twice stands beside itself.
        gone_QS = F.pad(row_QS[:, 1:] == row_QS[:, :-1], (1, 0))
        excluded_QL = torch.zeros_like(dual_QL, dtype=torch.bool)
        excluded_QL[excluded] = True
        gone_QS |= excluded_QL.gather(1, row_QS)
        for blend in found:
            scores_QS = blend.of(dual_QS, classifier_QS, popularity_QS).masked_fill(gone_QS, -torch.inf)
            found[blend].append(_best(row_QS, scores_QS))
    return {blend: np.concatenate(blocks) for blend, blocks in found.items()}


def _shortlist(
    dual_QL: Tensor,
    classifier_QL: Tensor,
    popularity_L: Tensor,
    searched: Sequence[Blend],
) -> Tensor:
    """Rows [Q, S] of the best SHORTLIST labels at each searched blend, rising; a row may stand there twice."""
    size = min(SHORTLIST, dual_QL.shape[1])
    tops = []
    for blend in searched:
        scores_QL = blend.of(dual_QL, classifier_QL, popularity_L)
        tops.append(torch.topk(scores_QL, size, dim=1, sorted=False).indices)
    return torch.cat(tops, dim=1).sort(dim=1).values


def _best(row_QS: Tensor, scores_QS: Tensor) -> NDArray[np.int64]:
    """The first DEPTH rows by score; a stable sort keeps equal scores in the order of rows."""
    order_QK = scores_QS.argsort(dim=1, descending=True, stable=True)[:, :DEPTH]
    row_QK = row_QS.gather(1, order_QK).masked_fill(scores_QS.gather(1, order_QK).isneginf(), -1)
    return row_QK.cpu().numpy()


@torch.inference_mode()
def scores(queries: Vectors, labels: LabelVectors, row_QK: NDArray[np.int64], blend: Blend) -> NDArray[np.float32]:
    """The scores [Q, K] of each query's labels `row_QK` at one blend; −∞ where the row is −1."""
    found = []
    for start in range(0, len(row_QK), TEXTS_A_BATCH):
        at = slice(start, start + TEXTS_A_BATCH)
        rows_QK = torch.from_numpy(row_QK[at]).to(labels.dual.device)
        known_QK = rows_QK.clamp(min=0)
        dual_QK = torch.einsum("qd,qkd->qk", queries.dual[at], labels.dual[known_QK])
        classifier_QK = torch.einsum("qc,qkc->qk", queries.classifier[at], labels.classifier[known_QK])
        scores_QK = blend.of(dual_QK, classifier_QK, labels.popularity[known_QK])
        found.append(scores_QK.masked_fill(rows_QK < 0, -torch.inf).cpu().numpy())
    return np.concatenate(found)


def by_head(blend: Blend) -> dict[str, Blend]:
    """The blend of the unified model, and what it is at either end: the dual encoder alone, the classifier alone."""
    return {"unified": blend, "dual_encoder": Blend(0.0, blend.popularity), "classifier": Blend(1.0, blend.popularity)}


def figures_by_head(
    rankings: Mapping[Blend, NDArray[np.int64]],
    blend: Blend,
    truth: Ragged,
    inverse_propensity_L: NDArray[np.float64],
) -> Figures:
    """Every metric in percent for the unified model at `blend` and for each head alone."""
    labels = [truth[row] for row in range(len(truth))]
    return {
        head: metrics.evaluate(rankings[at], labels, inverse_propensity_L, KS) for head, at in by_head(blend).items()
    }


def choose_blend(
    rankings: Mapping[Blend, NDArray[np.int64]],
    truth: Ragged,
    inverse_propensity_L: NDArray[np.float64],
    chosen_by: Sequence[str],
) -> tuple[Blend, float]:
    """The blend whose mean of `chosen_by` is greatest, and that mean; of equals the nearest to w = ½, b = 0."""
    labels = [truth[row] for row in range(len(truth))]
    scores: dict[Blend, float] = {}
    for blend, ranking in rankings.items():
        figures = metrics.evaluate(ranking, labels, inverse_propensity_L, KS)
        scores[blend] = float(np.mean([figures[name] for name in chosen_by]))
    best = max(scores, key=lambda blend: (scores[blend], -abs(blend.weight - 0.5), -blend.popularity))
    return best, scores[best]


def choose_kept(
    queries: Vectors, labels: LabelVectors, blend: Blend, exclude: Ragged, truth: Ragged,
    inverse_propensity_L: NDArray[np.float64], chosen_by: Sequence[str],
) -> tuple[float, float]:  # fmt: skip
    """κ of the labels that were never learned, chosen as `choose_blend` chooses, and the score; `labels` keep it."""
    scores = {}
    for kept in KEPT if blend.weight and len(labels.imputed.label_U) else KEPT[:1]:
        labels.keep(kept)
        found = rank(queries, labels, [blend], exclude, searched=[blend])
        scores[kept] = choose_blend(found, truth, inverse_propensity_L, chosen_by)[1]
    best = max(scores, key=lambda kept: scores[kept])
    labels.keep(best)
    return best, scores[best]
