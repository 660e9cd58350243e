"""The static encoder: Φ as a weighted mean of token vectors and of token pair vectors, without a transformer.

    Φ(x) = Σ_t a_t·v[t] / Σ_t a_t  +  mean_t u[h(t, t+1)]        a_t = softplus(w[t]) · e^(front[i] + back[j])

The weight of a token depends on the token (w starts from its inverse document frequency) and on its position: i tokens
from the front, j from the back. In training, v[t] includes vectors of subword n-grams (subword_ngrams.py). Pairs of
adjacent tokens add word order: they share the rows of `u` by a hash and start at zero. In training, a share of the
texts is encoded without pairs, because the classifier would otherwise memorize training queries by their pairs.
Everything is one graph of gathers and sums, so it exports to ONNX as it is.

Shapes: B texts, T tokens of the longest text, S tokens without padding, V tokens of the vocabulary, U distinct rows of
a batch, H rows for pairs, P positions, E width.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.model.row_table import RowTable
from training.model.subword_ngrams import SubwordVectors

PLACES = 8  # positions with a weight of their own at each end of a text; all farther in share the last
MULTIPLIERS = 1_000_003, 7_919  # of the hash of a pair; primes, small enough for int64 with any vocabulary
MIN_WEIGHT = 0.02
MEDIAN_WEIGHT = 0.7


class StaticEncoder(nn.Module):
    """Weighted mean of one vector per token, plus the mean of one vector per pair of adjacent tokens."""

    def __init__(
        self, vectors: RowTable | SubwordVectors, weights_V1: Tensor, pairs: int = 0, pair_dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.vectors = vectors
        self.weights = RowTable(weights_V1)
        self.width = self.vectors.width
        self.places = RowTable(torch.zeros(2 * PLACES, 1))
        self.pairs = RowTable(torch.zeros(pairs, self.width)) if pairs else None
        self.pair_dropout = pair_dropout

    def forward(self, input_ids_BT: Tensor, attention_mask_BT: Tensor) -> Tensor:
        """Encode token ids and mask, int64 [B, T], as float [B, E]."""
        if self.training:
            return self._forward_training(input_ids_BT, attention_mask_BT)
        weights_BT = F.softplus(self.weights.weight[input_ids_BT].squeeze(-1)) * attention_mask_BT
        weights_BT = weights_BT * self._position_factor(self.places.weight, attention_mask_BT)
        share_BT1 = (weights_BT / weights_BT.sum(dim=1, keepdim=True)).unsqueeze(-1)
        mean_BE = (self.vectors.weight[input_ids_BT] * share_BT1).sum(dim=1)
        if self.pairs is None:
            return mean_BE
        row_BT, present_BT = self._pair_rows(input_ids_BT, attention_mask_BT)
        share_BT = present_BT / present_BT.sum(dim=1, keepdim=True).clamp(min=1)
        return mean_BE + (self.pairs.weight[row_BT] * share_BT.unsqueeze(-1)).sum(dim=1)

    def _forward_training(self, input_ids_BT: Tensor, attention_mask_BT: Tensor) -> Tensor:
        """Compute the same with gradients: takes each distinct row once per batch and skips padding."""
        present_BT = attention_mask_BT.bool()
        lengths_B = attention_mask_BT.sum(dim=1)
        tokens_U, position_S = torch.unique(input_ids_BT[present_BT], return_inverse=True)
        places_P1 = self.places.take(torch.arange(2 * PLACES, device=lengths_B.device))
        weights_S = F.softplus(self.weights.take(tokens_U).squeeze(-1)).index_select(0, position_S)
        weights_S = weights_S * self._position_factor(places_P1, attention_mask_BT)[present_BT]
        text_S = torch.repeat_interleave(torch.arange(len(lengths_B), device=lengths_B.device), lengths_B)
        total_B = weights_S.new_zeros(len(lengths_B)).index_add(0, text_S, weights_S)
        share_S = weights_S / total_B.index_select(0, text_S)
        mean_BE = _weighted_bags(position_S, self.vectors.take(tokens_U), lengths_B, share_S)
        if self.pairs is None:
            return mean_BE
        row_BT, paired_BT = self._pair_rows(input_ids_BT, attention_mask_BT)
        rows_U, position_S = torch.unique(row_BT[paired_BT.bool()], return_inverse=True)
        pairs_B = paired_BT.sum(dim=1)
        share_S = torch.repeat_interleave(1.0 / pairs_B.clamp(min=1), pairs_B)
        with_pairs_B1 = (torch.rand(len(pairs_B), 1, device=pairs_B.device) >= self.pair_dropout).to(mean_BE.dtype)
        return mean_BE + with_pairs_B1 * _weighted_bags(position_S, self.pairs.take(rows_U), pairs_B, share_S)

    def _position_factor(self, places_P1: Tensor, attention_mask_BT: Tensor) -> Tensor:
        """Return the weight of each position [B, T], by its distance from both ends."""
        front_T = torch.arange(attention_mask_BT.shape[1], device=attention_mask_BT.device)
        back_BT = attention_mask_BT.sum(dim=1, keepdim=True) - 1 - front_T
        # Not `places[rows]`: on the CPU its gradient is added up in any order, which would make runs differ.
        front_T1 = F.embedding(front_T.clamp(max=PLACES - 1), places_P1[:PLACES])
        back_BT1 = F.embedding(back_BT.clamp(0, PLACES - 1), places_P1[PLACES:])
        return torch.exp(front_T1 + back_BT1).squeeze(-1)

    def _pair_rows(self, input_ids_BT: Tensor, attention_mask_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Return the row of `pairs` for each token and the next, and whether there is a next (0 or 1), int64 [B, T]."""
        assert self.pairs is not None
        present_BT = F.pad(attention_mask_BT[:, 1:], (0, 1))
        next_BT = F.pad(input_ids_BT[:, 1:], (0, 1))
        first, second = MULTIPLIERS
        return (input_ids_BT * first + next_BT * second) % len(self.pairs) * present_BT, present_BT


def rarity_weights(rarity_V: Tensor) -> Tensor:
    """Return raw weights [V, 1] whose softplus is the inverse document frequency [V], scaled to a median MEDIAN_WEIGHT.

    With equal initial weights, "a", "of" and "the" would count as much as other words until training lowers them.
    """
    median = rarity_V[rarity_V > 0].median() if (rarity_V > 0).any() else rarity_V.new_ones(())
    weight_V = (MEDIAN_WEIGHT * rarity_V / median).clamp(min=MIN_WEIGHT)
    raw_V1: Tensor = (weight_V + torch.log(-torch.expm1(-weight_V))).float().unsqueeze(1)  # inverse of softplus
    return raw_V1


def random_vectors(vocabulary: int, width: int, generator: torch.Generator) -> Tensor:
    """Return random token vectors [V, E] of length about 1."""
    return torch.randn(vocabulary, width, generator=generator) / math.sqrt(width)


def pretrained_vectors(table_VH: Tensor, width: int) -> Tensor:
    """Return a transformer's token vectors, centred, on their first E principal axes, with mean length 1, [V, E].

    Axes beyond the transformer's width are zero.
    """
    centred_VH = table_VH - table_VH.mean(dim=0)
    _, axes_HH = torch.linalg.eigh(centred_VH.T @ centred_VH)  # ascending eigenvalues: the principal axes are last
    axes = min(width, table_VH.shape[1])
    projected_VK = centred_VH @ axes_HH[:, -axes:].flip(1)
    length = torch.linalg.vector_norm(projected_VK, dim=1).mean()
    return F.pad(projected_VK / length, (0, width - axes))


def _weighted_bags(position_S: Tensor, rows_UE: Tensor, lengths_B: Tensor, share_S: Tensor) -> Tensor:
    """Return the weighted sum of each text's rows [B, E]; `lengths_B` are rows per text."""
    starts_B = lengths_B.cumsum(0) - lengths_B
    return F.embedding_bag(position_S, rows_UE, starts_B, mode="sum", per_sample_weights=share_S)
