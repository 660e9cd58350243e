"""The shipped token table: vectors of a fixed English vocabulary, from a pretrained sentence encoder.

Each vector is the encoder's output for the token by itself, on the principal axes, in 8 bits. So a static encoder
starts with the meaning of words, and nothing is downloaded. `python -m training.model.build_token_table` writes the
file; NOTICE has its origin and licence.

Shapes: V tokens of a run's tokenizer, K of them known, S pieces of these, N tokens of the table, E width of the
encoder, W width of the table.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from torch import Tensor

from training.data.token_cache import UNKNOWN
from training.model.row_table import RowTable
from training.model.subword_ngrams import SubwordVectors

TABLE_FILE = Path(__file__).with_name("token_table.safetensors")
STEPS = 127  # of an 8-bit number


@dataclass(frozen=True, eq=False)
class TokenTable:
    """N tokens in WordPiece notation and their vectors [N, W], float32, of mean length 1."""

    tokens: tuple[str, ...]
    vectors_NW: Tensor


@lru_cache(1)
def shipped_table() -> TokenTable:
    """Return the table that is part of the package."""
    return load_table(TABLE_FILE)


def load_table(path: Path) -> TokenTable:
    """Read a table that `save_table` wrote."""
    tensors = load_file(path)
    tokens = bytes(tensors["tokens"].numpy()).decode().split("\n")
    return TokenTable(tuple(tokens), tensors["vectors"].float() * tensors["scales"].unsqueeze(1))


def save_table(path: Path, table: TokenTable) -> None:
    """Write a table with vectors of 8 bits and one float32 scale per token."""
    scale_N = table.vectors_NW.abs().amax(dim=1).clamp(min=1e-12) / STEPS
    text = bytearray("\n".join(table.tokens).encode())
    vectors_NW = (table.vectors_NW / scale_N.unsqueeze(1)).round().to(torch.int8)
    save_file({"tokens": torch.frombuffer(text, dtype=torch.uint8), "vectors": vectors_NW, "scales": scale_N}, path)


def table_vectors(table: TokenTable, tokens: Sequence[str], width: int) -> tuple[Tensor, Tensor]:
    """Return the vectors [V, E] of tokens in WordPiece notation, and which of them the table knows, bool [V].

    A token that the table lacks gets the mean of its longest pieces. A token with a piece that the table lacks is
    unknown: its vector is zero. Axes beyond the table's width are zero.
    """
    row = {token: place for place, token in enumerate(table.tokens)}
    splitter = Tokenizer(models.WordPiece(vocab={**row, UNKNOWN: len(row)}, unk_token=UNKNOWN))
    pieces = [encoding.ids for encoding in splitter.encode_batch(list(tokens))]
    known_V = torch.tensor([bool(ids) and len(row) not in ids for ids in pieces])
    known_pieces = [ids for ids, known in zip(pieces, known_V.tolist(), strict=True) if known]
    vectors_VE, axes = torch.zeros(len(tokens), width), min(width, table.vectors_NW.shape[1])
    if known_pieces:
        count_K = torch.tensor([len(ids) for ids in known_pieces])
        piece_S = torch.tensor([piece for ids in known_pieces for piece in ids])
        mean_KW = F.embedding_bag(piece_S, table.vectors_NW, count_K.cumsum(0) - count_K, mode="mean")
        vectors_VE[known_V, :axes] = mean_KW[:, :axes]
    return vectors_VE, known_V


@torch.no_grad()
def set_known_vectors(vectors: RowTable | SubwordVectors, vectors_VE: Tensor, known_V: Tensor) -> None:
    """Set the vectors of the tokens `known_V`, bool [V], to those in `vectors_VE`; n-grams stay as they are."""
    tokens = vectors if isinstance(vectors, RowTable) else vectors.tokens
    ngrams_VE = vectors.weight.detach() - tokens.weight.detach()
    tokens.weight[known_V] = (vectors_VE - ngrams_VE)[known_V]
    if isinstance(vectors, SubwordVectors):
        vectors.train(vectors.training)  # drops the cached sum
