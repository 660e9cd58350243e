"""Estimate the number of tokens of a text without the tokenizer, which only the engine has."""

from collections.abc import Sequence
from typing import NamedTuple

SPECIAL_TOKENS = 2  # most tokenizers add one at each end


class TokenEstimator(NamedTuple):
    """Token counts of a bundle's encoder: tokens per byte, maximum per text, and whether it pads batches."""

    tokens_per_byte: float
    max_tokens: int
    padded: bool

    def estimate(self, texts: Sequence[str]) -> list[int]:
        """Estimate the tokens of each text."""
        per_byte, limit = self.tokens_per_byte, self.max_tokens
        return [min(SPECIAL_TOKENS + int(per_byte * len(text.encode())), limit) for text in texts]
