"""Token vectors with subword n-grams, as in fastText: character n-grams of a token, word boundaries marked.

    v[t] = token[t] + Σ_{g in t} ngram[g] / √n_t                   n_t n-grams of token t

"runner" and "runners" have similar initial vectors, and a token that occurs in one text profits from the n-grams that
other texts have trained. After training, the sum is stored as one vector per token.

Shapes: V tokens, U distinct tokens of a batch, H n-grams, S n-grams of all tokens, E width.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.model.row_table import RowTable

MIN_LENGTH, MAX_LENGTH = 3, 5  # of an n-gram, in characters
CONTINUATION = "##"  # prefix of WordPiece tokens that continue a word
WORD_START = "▁", "Ġ"  # prefixes of SentencePiece and byte-level tokens that start a word
SPECIAL = re.compile(r"\[.*\]|<.*>")
TOKEN_LENGTH = 0.5  # initial length of a token's random vector; that of its n-grams' sum is 1


@dataclass(frozen=True)
class SubwordNgrams:
    """The n-grams of V tokens: token t has the rows `ngram_S[offset_V1[t]:offset_V1[t + 1]]` of `n_ngrams`."""

    ngram_S: Tensor
    offset_V1: Tensor
    n_ngrams: int


def shared_ngrams(tokens: Sequence[str], maximum: int) -> SubwordNgrams:
    """Return the `maximum` most frequent n-grams that at least two tokens share; ties are broken alphabetically."""
    marks_start = any(map(_starts_word, tokens)) and not any(token.startswith(CONTINUATION) for token in tokens)
    by_token = [_ngrams(token, marks_start) for token in tokens]
    counts = Counter(ngram for ngrams in by_token for ngram in ngrams)
    shared = sorted((ngram for ngram, count in counts.items() if count > 1), key=lambda ngram: (-counts[ngram], ngram))
    row = {ngram: place for place, ngram in enumerate(shared[:maximum])}
    rows = [[row[ngram] for ngram in ngrams if ngram in row] for ngrams in by_token]
    offset_V1 = torch.tensor([0, *map(len, rows)]).cumsum(0)
    ngram_S = torch.tensor([place for of_token in rows for place in of_token], dtype=torch.int64)
    return SubwordNgrams(ngram_S, offset_V1, len(row))


def _ngrams(token: str, marks_start: bool) -> list[str]:
    """Return the distinct n-grams of a token, without the whole token; none for a special token like [PAD] or <s>."""
    if SPECIAL.fullmatch(token):
        return []
    continues = not _starts_word(token) if marks_start else token.startswith(CONTINUATION)
    letters = token.removeprefix(CONTINUATION).lstrip("".join(WORD_START))
    word = f"{letters}>" if continues else f"<{letters}>"
    lengths = range(MIN_LENGTH, MAX_LENGTH + 1)
    ngrams = {word[start : start + length] for length in lengths for start in range(len(word) - length + 1)}
    return sorted(ngrams - {word})


def _starts_word(token: str) -> bool:
    return token.startswith(WORD_START)


class SubwordVectors(nn.Module):
    """V vectors of width E: the sum of a token's row and the rows of its n-grams, trained row by row."""

    def __init__(self, token_VE: Tensor, ngram_HE: Tensor, ngrams: SubwordNgrams) -> None:
        super().__init__()
        self.tokens = RowTable(token_VE)
        self.ngrams = RowTable(ngram_HE)
        self.ngram_S: Tensor
        self.offset_V1: Tensor
        self.register_buffer("ngram_S", ngrams.ngram_S, persistent=False)
        self.register_buffer("offset_V1", ngrams.offset_V1, persistent=False)
        self.width = self.tokens.width
        self._sum_VE: Tensor | None = None

    def train(self, mode: bool = True) -> "SubwordVectors":
        """Switch between training and evaluation mode; drops the cached sum."""
        self._sum_VE = None
        return super().train(mode)

    @property
    def weight(self) -> Tensor:
        """The vectors [V, E] for inference; the sum is cached."""
        if self._sum_VE is None:
            self._sum_VE = self.tokens.weight + _sum_ngrams(self.ngram_S, self.ngrams.weight, self.offset_V1.diff())
        return self._sum_VE

    def take(self, token_U: Tensor) -> Tensor:
        """Return the vectors [U, E] of distinct tokens, with gradients for the rows that they use."""
        count_U = self.offset_V1.diff().index_select(0, token_U)
        begin_U = count_U.cumsum(0) - count_U
        shift_S = torch.repeat_interleave(self.offset_V1.index_select(0, token_U) - begin_U, count_U)
        ngram_S = self.ngram_S[torch.arange(len(shift_S), device=shift_S.device) + shift_S]
        row_H, position_S = torch.unique(ngram_S, return_inverse=True)
        return self.tokens.take(token_U) + _sum_ngrams(position_S, self.ngrams.take(row_H), count_U)


def subword_vectors(token_VE: Tensor, ngrams: SubwordNgrams, generator: torch.Generator | None) -> SubwordVectors:
    """Return vectors [V, E] that start from `token_VE`, scaled down, plus random n-gram vectors.

    Without a `generator`, for pretrained vectors, n-grams start at zero and the vectors are not scaled.
    """
    shape = ngrams.n_ngrams, token_VE.shape[1]
    if generator is None:
        return SubwordVectors(token_VE, torch.zeros(shape), ngrams)
    ngram_HE = torch.randn(shape, generator=generator) / math.sqrt(shape[1])
    return SubwordVectors(TOKEN_LENGTH * token_VE, ngram_HE, ngrams)


def _sum_ngrams(position_S: Tensor, ngram_HE: Tensor, count_V: Tensor) -> Tensor:
    """Return the sum of each token's n-gram vectors divided by √n_t, [V, E]; `count_V` are the n_t."""
    share_S = torch.repeat_interleave(count_V.clamp(min=1).to(ngram_HE.dtype).rsqrt(), count_V)
    begin_V = count_V.cumsum(0) - count_V
    return F.embedding_bag(position_S, ngram_HE, begin_V, mode="sum", per_sample_weights=share_S)
