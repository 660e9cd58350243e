"""Texts as token ids: tokenized once, cached in a memory-mapped file, padded per batch.

Shapes: S tokens of all texts, N texts, R selected texts, B texts of a batch, T tokens of its longest text, V tokens of
the vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor

from retrieval.query_text import QueryIdentity, encoder_texts
from retrieval.system.atomic_files import atomic_file
from training.data.ragged import IntArray, Ragged

PAD, UNKNOWN = "[PAD]", "[UNK]"
TEXTS_PER_CALL = 10_000  # of the tokenizer
TEXTS_PER_BATCH = 1024  # of the encoder, without gradients
TEXTS_PER_BLOCK = 262_144  # whose distinct tokens are counted at once


@dataclass(frozen=True)
class TextTokenizer:
    """A tokenizer, and the version of `query_identity` that is applied to texts before it; 0: none."""

    tokenizer: Tokenizer
    query_identity: QueryIdentity

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of each text."""
        encodings = self.tokenizer.encode_batch_fast(encoder_texts(texts, self.query_identity))
        return [encoding.ids for encoding in encodings]


@dataclass(frozen=True)
class TokenBatch:
    """Encoder input: token ids and attention mask, int64 [B, T], padded to the longest text."""

    input_ids_BT: Tensor
    attention_mask_BT: Tensor

    def to(self, device: torch.device) -> "TokenBatch":
        """Copy the batch to a device."""
        return TokenBatch(self.input_ids_BT.to(device), self.attention_mask_BT.to(device))


@dataclass(frozen=True)
class TokenizedTexts:
    """Token ids of N texts: row n of `ids` (int32) has those of text n; every text has at least one."""

    ids: Ragged
    pad_id: int

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def lengths_N(self) -> NDArray[np.int64]:
        """Number of tokens per text."""
        return self.ids.lengths

    def batch(self, rows_B: NDArray[np.int64]) -> TokenBatch:
        """Return the texts `rows_B`, in that order, as one padded batch."""
        ids_S, starts_B = self.ids.values, self.ids.offsets[rows_B]
        lengths_B = self.ids.offsets[rows_B + 1] - starts_B
        position_T = np.arange(lengths_B.max(initial=1))
        mask_BT = position_T < lengths_B[:, None]
        last = max(len(ids_S) - 1, 0)
        ids_BT = ids_S[np.minimum(starts_B[:, None] + position_T, last)]
        ids_BT = np.where(mask_BT, ids_BT, self.pad_id).astype(np.int64)
        return TokenBatch(torch.from_numpy(ids_BT), torch.from_numpy(mask_BT.astype(np.int64)))

    def padded(self) -> TokenBatch:
        """Return all texts as one padded batch."""
        return self.batch(np.arange(len(self)))

    def batches_by_length(
        self, size: int, rows_R: NDArray[np.int64] | None = None
    ) -> Iterator[tuple[NDArray[np.int64], TokenBatch]]:
        """Yield the texts `rows_R` (None: all) in batches of `size` texts of similar length.

        Each batch comes with its positions in `rows_R`, int64 [B].
        """
        lengths_R = self.lengths_N if rows_R is None else self.lengths_N[rows_R]
        order_R = np.argsort(lengths_R, kind="stable")
        for start in range(0, len(order_R), size):
            positions_B = order_R[start : start + size]
            yield positions_B, self.batch(positions_B if rows_R is None else rows_R[positions_B])

    def take(self, rows_B: IntArray) -> "TokenizedTexts":
        """Return the texts `rows_B`, in that order."""
        return TokenizedTexts(self.ids.take(rows_B), self.pad_id)

    def followed_by(self, other: "TokenizedTexts") -> "TokenizedTexts":
        """Concatenate with `other`, which the same tokenizer made."""
        return TokenizedTexts(self.ids.followed_by(other.ids), self.pad_id)


def tokenize_cached(texts: Sequence[str], tokenizer: TextTokenizer, folder: Path, name: str) -> TokenizedTexts:
    """Return the token ids of `texts` from the cache `name` in `folder`; write the cache if it is missing.

    The cache is not checked against `texts`, so a folder must belong to one tokenizer and one dataset.
    """
    ids_path, offsets_path = folder / f"{name}.ids.npy", folder / f"{name}.offsets.npy"
    if (ids := _read_cache(ids_path, offsets_path)) is None:
        folder.mkdir(parents=True, exist_ok=True)
        computed = tokenize_in_memory(texts, tokenizer).ids
        _save(ids_path, computed.values)
        _save(offsets_path, computed.offsets)
        ids = Ragged(np.load(ids_path, mmap_mode="r", allow_pickle=False), computed.offsets)
    return TokenizedTexts(ids, special_ids(tokenizer.tokenizer)[0])


def tokenize_in_memory(texts: Sequence[str], tokenizer: TextTokenizer) -> TokenizedTexts:
    """Return the token ids of `texts`; a text without a token becomes one unknown token."""
    pad_id, unknown_id = special_ids(tokenizer.tokenizer)
    ids, lengths = [np.zeros(0, np.int32)], [np.zeros(0, np.int64)]
    for start in range(0, len(texts), TEXTS_PER_CALL):
        rows = [row or [unknown_id] for row in tokenizer.encode(texts[start : start + TEXTS_PER_CALL])]
        ids.append(np.fromiter(chain.from_iterable(rows), np.int32))
        lengths.append(np.fromiter(map(len, rows), np.int64))
    return TokenizedTexts(Ragged.from_lengths(np.concatenate(ids), np.concatenate(lengths)), pad_id)


def special_ids(tokenizer: Tokenizer) -> tuple[int, int]:
    """Return the ids of the padding token and the unknown token, by their usual names; 0 if there is none."""
    pad = next((i for token in (PAD, "<pad>") if (i := tokenizer.token_to_id(token)) is not None), 0)
    unknown = next((i for token in (UNKNOWN, "<unk>") if (i := tokenizer.token_to_id(token)) is not None), pad)
    return pad, unknown


def inverse_document_frequency(vocabulary: int, *tokenized: TokenizedTexts) -> Tensor:
    """Return log(number of texts / (1 + number of texts with the token)) per token, float64 [V], at least 0."""
    texts_with_token_V, total = np.zeros(vocabulary, np.int64), sum(map(len, tokenized))
    for texts in tokenized:
        for start in range(0, len(texts), TEXTS_PER_BLOCK):
            block = texts.ids[start : start + TEXTS_PER_BLOCK]
            distinct = np.unique(block.row_of_value * vocabulary + block.values)
            texts_with_token_V += np.bincount(distinct % vocabulary, minlength=vocabulary)
    return torch.from_numpy(np.log(np.maximum(total, 1) / (texts_with_token_V + 1.0)).clip(min=0.0))


def _read_cache(ids_path: Path, offsets_path: Path) -> Ragged | None:
    """Return the cached ids; None if the cache is missing or incomplete."""
    try:
        ids_S = np.load(ids_path, mmap_mode="r", allow_pickle=False)
        offsets_N1 = np.load(offsets_path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return Ragged(ids_S, offsets_N1) if len(offsets_N1) and offsets_N1[-1] == len(ids_S) else None


def _save(path: Path, array: IntArray) -> None:
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        np.save(file, array, allow_pickle=False)
