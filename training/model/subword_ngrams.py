"""Token vectors that share what their spelling shares: runs of a few letters, the start and the end of a word marked.

    v[t] = own[t] + Σ_{p in t} piece[p] / √n_t                     n_t pieces in token t

"runner" and "runners" begin near each other, and a token that stands in one text knows what its pieces have learned
elsewhere. None of it is left after training: the sum is one vector a token.

Shapes: V tokens, U of them in a batch, H pieces, S pieces of all tokens one after the other, E width.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.model.row_tables import RowTable

LETTERS = 3, 5  # least and most in a piece
JOINED = "##"  # how WordPiece marks a token that goes on a word
BEGUN = "▁", "Ġ"  # how SentencePiece and byte-level tokenizers mark one that begins a word
SPECIAL = re.compile(r"\[.*\]|<.*>")
OWN_LENGTH = 0.5  # of a token's own random vector, beside pieces that start with a length of 1 together


@dataclass(frozen=True)
class Spelling:
    """Which pieces each of V tokens holds: token t those in `piece_S[offset_V1[t]:offset_V1[t + 1]]`, of H in all."""

    piece_S: Tensor
    offset_V1: Tensor
    pieces: int


def shared_pieces(tokens: Sequence[str], most: int) -> Spelling:
    """The pieces that at least two tokens share, the most shared `most` of them (equals in the order of letters)."""
    marks_begin = any(map(_begun, tokens)) and not any(token.startswith(JOINED) for token in tokens)
    found = [_pieces(token, marks_begin) for token in tokens]
    counts = Counter(piece for of_token in found for piece in of_token)
    shared = sorted((piece for piece, count in counts.items() if count > 1), key=lambda piece: (-counts[piece], piece))
    row = {piece: place for place, piece in enumerate(shared[:most])}
    rows = [[row[piece] for piece in of_token if piece in row] for of_token in found]
    offset_V1 = torch.tensor([0, *map(len, rows)]).cumsum(0)
    piece_S = torch.tensor([place for of_token in rows for place in of_token], dtype=torch.int64)
    return Spelling(piece_S, offset_V1, len(row))


def _pieces(token: str, marks_begin: bool) -> list[str]:
    """The distinct runs of a few letters of a token, its whole left out; none of a special one such as [PAD] or <s>."""
    if SPECIAL.fullmatch(token):
        return []
    joined = not _begun(token) if marks_begin else token.startswith(JOINED)
    letters = token.removeprefix(JOINED).lstrip("".join(BEGUN))
    word = f"{letters}>" if joined else f"<{letters}>"
    least, most = LETTERS
    runs = {word[at : at + n] for n in range(least, most + 1) for at in range(len(word) - n + 1)}
    return sorted(runs - {word})


def _begun(token: str) -> bool:
    return token.startswith(BEGUN)


class SpelledVectors(nn.Module):
    """V vectors of width E, learned row by row as `RowTable` does, each with the pieces of its token added."""

    def __init__(self, own_VE: Tensor, piece_HE: Tensor, spelling: Spelling) -> None:
        super().__init__()
        self.own = RowTable(own_VE)
        self.pieces = RowTable(piece_HE)
        self.piece_S: Tensor
        self.offset_V1: Tensor
        self.register_buffer("piece_S", spelling.piece_S, persistent=False)
        self.register_buffer("offset_V1", spelling.offset_V1, persistent=False)
        self.width = self.own.width
        self._whole_VE: Tensor | None = None

    def train(self, mode: bool = True) -> "SpelledVectors":
        """Switch between learning and answering; what was added up for answering is forgotten."""
        self._whole_VE = None
        return super().train(mode)

    @property
    def weight(self) -> Tensor:
        """The vectors [V, E] as answers need them, added up once."""
        if self._whole_VE is None:
            self._whole_VE = self.own.weight + self._spelled(self.piece_S, self.pieces.weight, self.offset_V1.diff())
        return self._whole_VE

    def take(self, token_U: Tensor) -> Tensor:
        """The vectors [U, E] of distinct tokens, for a step to learn."""
        pieces_U = self.offset_V1.diff().index_select(0, token_U)
        begin_U = pieces_U.cumsum(0) - pieces_U
        shift_S = torch.repeat_interleave(self.offset_V1.index_select(0, token_U) - begin_U, pieces_U)
        piece_S = self.piece_S[torch.arange(len(shift_S), device=shift_S.device) + shift_S]
        row_H, place_S = torch.unique(piece_S, return_inverse=True)
        return self.own.take(token_U) + self._spelled(place_S, self.pieces.take(row_H), pieces_U)

    @staticmethod
    def _spelled(place_S: Tensor, piece_HE: Tensor, pieces_V: Tensor) -> Tensor:
        share_S = torch.repeat_interleave(pieces_V.clamp(min=1).to(piece_HE.dtype).rsqrt(), pieces_V)
        begin_V = pieces_V.cumsum(0) - pieces_V
        return F.embedding_bag(place_S, piece_HE, begin_V, mode="sum", per_sample_weights=share_S)


def spelled(own_VE: Tensor, spelling: Spelling, generator: torch.Generator | None) -> SpelledVectors:
    """Vectors [V, E] that start from `own_VE`, shortened to leave room for random pieces.

    Without a `generator` pieces start at zero and the vectors as they are: they mean something already.
    """
    shape = spelling.pieces, own_VE.shape[1]
    if generator is None:
        return SpelledVectors(own_VE, torch.zeros(shape), spelling)
    piece_HE = torch.randn(shape, generator=generator) / math.sqrt(shape[1])
    return SpelledVectors(OWN_LENGTH * own_VE, piece_HE, spelling)
