"""Φ without a transformer: learned vectors of tokens and of neighbouring tokens, averaged. Milliseconds for thousands.

    Φ(x) = Σ_t a_t·v[t] / Σ_t a_t  +  mean_t u[h(t, t+1)]        a_t = softplus(w[t]) · e^(front[i] + back[j])

A token counts by how telling it is (w starts from how rare the token is) and by where it stands: i places from the
front, j from the back. While it learns, v[t] is a vector of its own and those of what it shares with other tokens'
spelling (subword_ngrams.py). Pairs share rows of `u` by a hash, start at zero and bring in word order; in training a
share of the texts goes without them, or the classifier would learn training queries by heart from their pairs. All of
it is one graph of gathers and sums, so it exports as it is.

Shapes: B texts, T tokens of the longest of them, S tokens without padding, V tokens of the vocabulary, U distinct ones
of a batch, H rows for pairs, E width.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.model.row_tables import RowTable
from training.model.subword_ngrams import SpelledVectors

PLACES = 8  # told apart at either end of a text; those farther in share the last
MULTIPLIERS = 1_000_003, 7_919  # of the hash of a pair; primes, and small enough for int64 at any vocabulary
LEAST_WEIGHT = 0.02
USUAL_WEIGHT = 0.7


class StaticEncoder(nn.Module):
    """Weighted mean of one learned vector a token, plus the mean of one a neighbouring pair."""

    def __init__(
        self, vectors: RowTable | SpelledVectors, weights_V1: Tensor, pairs: int = 0, pair_dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.vectors = vectors
        self.weights = RowTable(weights_V1)
        self.width = self.vectors.width
        self.places = RowTable(torch.zeros(2 * PLACES, 1))
        self.pairs = RowTable(torch.zeros(pairs, self.width)) if pairs else None
        self.pair_dropout = pair_dropout

    def forward(self, input_ids_BT: Tensor, attention_mask_BT: Tensor) -> Tensor:
        """Token ids and mask, int64 [B, T] → float [B, E]."""
        if self.training:
            return self._learn(input_ids_BT, attention_mask_BT)
        weights_BT = F.softplus(self.weights.weight[input_ids_BT].squeeze(-1)) * attention_mask_BT
        weights_BT = weights_BT * self._place_factor(self.places.weight, attention_mask_BT)
        share_BT1 = (weights_BT / weights_BT.sum(dim=1, keepdim=True)).unsqueeze(-1)
        mean_BE = (self.vectors.weight[input_ids_BT] * share_BT1).sum(dim=1)
        if self.pairs is None:
            return mean_BE
        row_BT, there_BT = self._pair_rows(input_ids_BT, attention_mask_BT)
        share_BT = there_BT / there_BT.sum(dim=1, keepdim=True).clamp(min=1)
        return mean_BE + (self.pairs.weight[row_BT] * share_BT.unsqueeze(-1)).sum(dim=1)

    def _learn(self, input_ids_BT: Tensor, attention_mask_BT: Tensor) -> Tensor:
        """The same, over rows taken once for the batch and without the padding."""
        there_BT = attention_mask_BT.bool()
        lengths_B = attention_mask_BT.sum(dim=1)
        tokens_U, place_S = torch.unique(input_ids_BT[there_BT], return_inverse=True)
        places_P1 = self.places.take(torch.arange(2 * PLACES, device=lengths_B.device))
        weights_S = F.softplus(self.weights.take(tokens_U).squeeze(-1)).index_select(0, place_S)
        weights_S = weights_S * self._place_factor(places_P1, attention_mask_BT)[there_BT]
        text_S = torch.repeat_interleave(torch.arange(len(lengths_B), device=lengths_B.device), lengths_B)
        total_B = weights_S.new_zeros(len(lengths_B)).index_add(0, text_S, weights_S)
        share_S = weights_S / total_B.index_select(0, text_S)
        mean_BE = _bags(place_S, self.vectors.take(tokens_U), lengths_B, share_S)
        if self.pairs is None:
            return mean_BE
        row_BT, paired_BT = self._pair_rows(input_ids_BT, attention_mask_BT)
        rows_U, place_S = torch.unique(row_BT[paired_BT.bool()], return_inverse=True)
        pairs_B = paired_BT.sum(dim=1)
        share_S = torch.repeat_interleave(1.0 / pairs_B.clamp(min=1), pairs_B)
        kept_B1 = (torch.rand(len(pairs_B), 1, device=pairs_B.device) >= self.pair_dropout).to(mean_BE.dtype)
        return mean_BE + kept_B1 * _bags(place_S, self.pairs.take(rows_U), pairs_B, share_S)

    def _place_factor(self, places_P1: Tensor, attention_mask_BT: Tensor) -> Tensor:
        """How much each place of a text counts [B, T], by its distance from either end."""
        front_T = torch.arange(attention_mask_BT.shape[1], device=attention_mask_BT.device)
        back_BT = attention_mask_BT.sum(dim=1, keepdim=True) - 1 - front_T
        # Not `places[rows]`: on the CPU its gradient is added up in any order, which would make runs differ.
        front_T1 = F.embedding(front_T.clamp(max=PLACES - 1), places_P1[:PLACES])
        back_BT1 = F.embedding(back_BT.clamp(0, PLACES - 1), places_P1[PLACES:])
        return torch.exp(front_T1 + back_BT1).squeeze(-1)

    def _pair_rows(self, input_ids_BT: Tensor, attention_mask_BT: Tensor) -> tuple[Tensor, Tensor]:
        """The row of `pairs` for each token and the next [B, T], and whether there is a next one (int64 0 or 1)."""
        assert self.pairs is not None
        there_BT = F.pad(attention_mask_BT[:, 1:], (0, 1))
        next_BT = F.pad(input_ids_BT[:, 1:], (0, 1))
        first, second = MULTIPLIERS
        return (input_ids_BT * first + next_BT * second) % len(self.pairs) * there_BT, there_BT


def rarity_weights(rarity_V: Tensor) -> Tensor:
    """Raw weights [V, 1] whose softplus is the inverse document frequency [V], scaled so that its median is ordinary.

    Without this start "a", "of" and "the" count as much as any word until training has found out.
    """
    usual = rarity_V[rarity_V > 0].median() if (rarity_V > 0).any() else rarity_V.new_ones(())
    weight_V = (USUAL_WEIGHT * rarity_V / usual).clamp(min=LEAST_WEIGHT)
    raw_V1: Tensor = (weight_V + torch.log(-torch.expm1(-weight_V))).float().unsqueeze(1)  # softplus, undone
    return raw_V1


def random_vectors(vocabulary: int, width: int, generator: torch.Generator) -> Tensor:
    """Token vectors [V, E] of length about 1."""
    return torch.randn(vocabulary, width, generator=generator) / math.sqrt(width)


def pretrained_vectors(table_VH: Tensor, width: int) -> Tensor:
    """A transformer's token vectors as a start [V, E]: centred, on their first E principal axes, of mean length 1.

    Axes beyond the transformer's own width start at zero.
    """
    centred_VH = table_VH - table_VH.mean(dim=0)
    _, axes_HH = torch.linalg.eigh(centred_VH.T @ centred_VH)  # rising, so the first axes stand last
    kept = min(width, table_VH.shape[1])
    turned_VK = centred_VH @ axes_HH[:, -kept:].flip(1)
    length = torch.linalg.vector_norm(turned_VK, dim=1).mean()
    return F.pad(turned_VK / length, (0, width - kept))


def _bags(place_S: Tensor, rows_UE: Tensor, lengths_B: Tensor, share_S: Tensor) -> Tensor:
    starts_B = lengths_B.cumsum(0) - lengths_B
    return F.embedding_bag(place_S, rows_UE, starts_B, mode="sum", per_sample_weights=share_S)
