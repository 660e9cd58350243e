"""Text → token ids once; memory-mapped afterwards, so an epoch never tokenizes.

Shapes: S tokens of all texts, one after the other; N texts; B texts of a batch, T tokens of the longest of them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor

from retrieval.errors import RecipeError
from training.data.ragged import IntArray, Ragged
from training.model import pretrained
from training.recipe.schema import Recipe, StaticEncoderRecipe, TransformerEncoderRecipe

PAD, UNKNOWN = "[PAD]", "[UNK]"
CHUNK = 10_000
TEXTS_PER_BLOCK = 262_144


@dataclass(frozen=True)
class TokenBatch:
    """Texts as the encoder takes them: ids and mask int64 [B, T], padded to the longest of the batch."""

    input_ids_BT: Tensor
    attention_mask_BT: Tensor

    def to(self, device: torch.device) -> "TokenBatch":
        """The same batch on another device."""
        return TokenBatch(self.input_ids_BT.to(device), self.attention_mask_BT.to(device))


@dataclass(frozen=True)
class TokenizedTexts:
    """Token ids of N texts, flat: text n is `ids_S[offsets_N1[n]:offsets_N1[n+1]]`."""

    ids_S: NDArray[np.int32]
    offsets_N1: NDArray[np.int64]
    pad_id: int

    def __len__(self) -> int:
        return len(self.offsets_N1) - 1

    @property
    def lengths_N(self) -> NDArray[np.int64]:
        """Tokens of each text."""
        return np.diff(self.offsets_N1)

    def batch(self, rows_B: NDArray[np.int64]) -> TokenBatch:
        """The texts `rows_B`, in that order, padded to the longest of them."""
        starts_B = self.offsets_N1[rows_B]
        lengths_B = self.offsets_N1[rows_B + 1] - starts_B
        position_T = np.arange(lengths_B.max(initial=1))
        mask_BT = position_T < lengths_B[:, None]
        last = max(len(self.ids_S) - 1, 0)
        ids_BT = self.ids_S[np.minimum(starts_B[:, None] + position_T, last)]
        ids_BT = np.where(mask_BT, ids_BT, self.pad_id).astype(np.int64)
        return TokenBatch(torch.from_numpy(ids_BT), torch.from_numpy(mask_BT.astype(np.int64)))

    def padded(self) -> TokenBatch:
        """All the texts as one batch."""
        return self.batch(np.arange(len(self)))

    def batches_by_length(
        self, size: int, rows_R: NDArray[np.int64] | None = None
    ) -> Iterator[tuple[NDArray[np.int64], TokenBatch]]:
        """The texts `rows_R` (all of them when None), `size` at a time, similar lengths together.

        With each batch the places in `rows_R` that it holds.
        """
        lengths_R = self.lengths_N if rows_R is None else self.lengths_N[rows_R]
        order_R = np.argsort(lengths_R, kind="stable")
        for start in range(0, len(order_R), size):
            places_B = order_R[start : start + size]
            yield places_B, self.batch(places_B if rows_R is None else rows_R[places_B])

    def take(self, rows_B: IntArray) -> "TokenizedTexts":
        """The texts `rows_B`, in that order."""
        taken = Ragged(self.ids_S, self.offsets_N1).take(rows_B)
        return TokenizedTexts(taken.values.astype(np.int32, copy=False), taken.offsets, self.pad_id)

    def followed_by(self, other: "TokenizedTexts") -> "TokenizedTexts":
        """These texts and then those of `other`, which the same tokenizer made."""
        ids_S = np.concatenate([self.ids_S, other.ids_S])
        return TokenizedTexts(
            ids_S, np.concatenate([self.offsets_N1, self.offsets_N1[-1] + other.offsets_N1[1:]]), self.pad_id
        )


def tokenize(texts: Sequence[str], tokenizer: Tokenizer, folder: Path, name: str) -> TokenizedTexts:
    """Token ids of `texts`, written to `folder` once and memory-mapped; a text without a token becomes [UNK].

    The caller names a folder that belongs to one tokenizer and one dataset; what stands there is taken as it is.
    """
    ids_path, offsets_path = folder / f"{name}.ids.npy", folder / f"{name}.offsets.npy"
    pad_id, unknown_id = special_ids(tokenizer)
    if (cached := _cached(ids_path, offsets_path)) is None:
        folder.mkdir(parents=True, exist_ok=True)
        ids_S, offsets_N1 = _encode(texts, tokenizer, unknown_id)
        _save(ids_path, ids_S)
        _save(offsets_path, offsets_N1)
        cached = np.load(ids_path, mmap_mode="r", allow_pickle=False), offsets_N1
    return TokenizedTexts(*cached, pad_id)


def _cached(ids_path: Path, offsets_path: Path) -> tuple[NDArray[np.int32], NDArray[np.int64]] | None:
    """What an earlier call wrote, or None when there is nothing whole to read."""
    try:
        ids_S = np.load(ids_path, mmap_mode="r", allow_pickle=False)
        offsets_N1 = np.load(offsets_path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return (ids_S, offsets_N1) if len(offsets_N1) and offsets_N1[-1] == len(ids_S) else None


def tokenize_in_memory(texts: Sequence[str], tokenizer: Tokenizer) -> TokenizedTexts:
    """The same for a few texts, without a file."""
    pad_id, unknown_id = special_ids(tokenizer)
    ids_S, offsets_N1 = _encode(texts, tokenizer, unknown_id)
    return TokenizedTexts(ids_S, offsets_N1, pad_id)


def inverse_document_frequency(vocabulary: int, *tokenized: TokenizedTexts) -> Tensor:
    """How rare each token is, float [V]: log of all texts over the texts it stands in, at least 0."""
    texts_with_token_V, total = np.zeros(vocabulary, np.int64), sum(map(len, tokenized))
    for texts in tokenized:
        for start in range(0, len(texts), TEXTS_PER_BLOCK):
            offsets_B1 = texts.offsets_N1[start : start + TEXTS_PER_BLOCK + 1]
            text_S = np.repeat(np.arange(len(offsets_B1) - 1, dtype=np.int64), np.diff(offsets_B1))
            pairs = np.unique(text_S * vocabulary + texts.ids_S[offsets_B1[0] : offsets_B1[-1]])
            texts_with_token_V += np.bincount(pairs % vocabulary, minlength=vocabulary)
    return torch.from_numpy(np.log(np.maximum(total, 1) / (texts_with_token_V + 1.0)).clip(min=0.0))


def special_ids(tokenizer: Tokenizer) -> tuple[int, int]:
    """Ids of padding and of the unknown token, under whichever of their usual names the tokenizer has them."""
    pad = next((i for t in (PAD, "<pad>") if (i := tokenizer.token_to_id(t)) is not None), 0)
    unknown = next((i for t in (UNKNOWN, "<unk>") if (i := tokenizer.token_to_id(t)) is not None), pad)
    return pad, unknown


def make_tokenizer(recipe: Recipe, texts: Sequence[str]) -> Tokenizer:
    """The run's tokenizer: learned from `texts` for a static encoder, the transformer's own otherwise.

    Truncation stands inside the tokenizer, so that training, export and service cut alike; padding is off.
    Raises RecipeError when the transformer has no fast tokenizer.
    """
    match recipe.encoder:
        case StaticEncoderRecipe(start_from=None, vocabulary_size=size):
            tokenizer = learn_wordpiece(texts, size)
        case StaticEncoderRecipe(start_from=str(source)):
            tokenizer = pretrained.tokenizer("encoder.start_from", source)
            # Averaged in, a start or an end token would be the same in every text.
            tokenizer.post_processor = processors.TemplateProcessing(single="$A", pair="$A $B", special_tokens=[])
        case TransformerEncoderRecipe(model=source):
            tokenizer = pretrained.tokenizer("encoder.model", source)
    cut_at(tokenizer, recipe.encoder.max_tokens)
    return tokenizer


def cut_at(tokenizer: Tokenizer, max_tokens: int) -> None:
    """Truncate at `max_tokens` and do not pad. Raises RecipeError if special tokens leave no room for the text."""
    special = tokenizer.num_special_tokens_to_add(False)
    if max_tokens <= special:
        raise RecipeError(f"encoder.max_tokens is {max_tokens}, but the tokenizer adds {special} of its own: give more")
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_length=max_tokens)


def learn_wordpiece(texts: Sequence[str], size: int) -> Tokenizer:
    """A lower-casing, accent-stripping WordPiece vocabulary of about `size` tokens; whole words where they recur.

    More than `size` only where the texts have more distinct letters than that.

    The same texts always give the same vocabulary. The library's trainer alone does not: it numbers the `##x` pieces in
    hash order and breaks ties by number (huggingface/tokenizers#1794). So every `##x` is numbered before it starts.
    """
    normalizer, splitter = (
        normalizers.BertNormalizer(lowercase=True, strip_accents=True),
        pre_tokenizers.BertPreTokenizer(),
    )
    seen: set[str] = set()
    for start in range(0, len(texts), CHUNK):
        seen.update(normalizer.normalize_str("\n".join(texts[start : start + CHUNK])))
    letters = sorted(letter for letter in seen if not letter.isspace())
    learner = Tokenizer(models.WordPiece(unk_token=UNKNOWN))
    learner.normalizer, learner.pre_tokenizer = normalizer, splitter
    numbered = [PAD, UNKNOWN, *(f"##{letter}" for letter in letters)]
    trainer = trainers.WordPieceTrainer(
        vocab_size=size, min_frequency=2, special_tokens=numbered, limit_alphabet=len(letters), show_progress=False
    )
    learner.train_from_iterator(texts, trainer)
    vocabulary = [PAD, UNKNOWN, *sorted(set(learner.get_vocab()) - {PAD, UNKNOWN})]
    model = models.WordPiece(
        vocab={token: place for place, token in enumerate(vocabulary)}, unk_token=UNKNOWN, max_input_chars_per_word=200
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, splitter
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def _encode(texts: Sequence[str], tokenizer: Tokenizer, unknown_id: int) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    ids, lengths = [np.zeros(0, np.int32)], [np.zeros(1, np.int64)]
    for start in range(0, len(texts), CHUNK):
        found = [one.ids or [unknown_id] for one in tokenizer.encode_batch_fast(list(texts[start : start + CHUNK]))]
        ids.append(np.fromiter(chain.from_iterable(found), np.int32))
        lengths.append(np.fromiter(map(len, found), np.int64))
    return np.concatenate(ids), np.cumsum(np.concatenate(lengths))


def _save(path: Path, array: NDArray[np.int32] | NDArray[np.int64]) -> None:
    """Whole or not at all: a half-written file must never pass for a token cache."""
    aside = path.with_name(f".{path.name}.partial.npy")
    np.save(aside, array, allow_pickle=False)
    aside.replace(path)
