"""Sample query and label texts for the gates."""

from collections.abc import Sequence
from itertools import cycle, islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.checkpoint.opened import Checkpoint
from training.data.token_cache import tokenize_in_memory

MAX_QUERIES, MAX_LABELS = 1_000, 1_000
RECALL_LABEL_TEXTS = 500


def sample(column: Any, n: int) -> list[str]:
    """Return at most `n` texts of an Arrow column, evenly spaced."""
    texts: list[str] = column.take(sample_rows(len(column), n)).to_pylist()
    return texts


def sample_rows(size: int, n: int) -> NDArray[np.int64]:
    """Return at most `n` of the rows 0 to `size` − 1, evenly spaced and ascending."""
    return np.unique(np.linspace(0, size - 1, min(n, size)).astype(np.int64))


def sample_label_texts(column: Any) -> list[str]:
    """Return about RECALL_LABEL_TEXTS distinct texts, half sampled by label (favours shared texts), half by text."""
    texts = column.unique()
    half = RECALL_LABEL_TEXTS // 2  # one more below, or both halves would be equal if no text is shared
    return list(dict.fromkeys([*sample(column, half), *sample(texts, half + 1)]))


def with_long_texts(queries: Sequence[str], checkpoint: Checkpoint) -> tuple[list[str], int]:
    """Append texts of doubling length up to `max_tokens`; return all texts and the longest length in tokens.

    The number of joined queries is bounded, because texts may have no tokens.
    """
    texts, joined = list(queries), 1
    longest = int(tokenize_in_memory(texts, checkpoint.tokenizer).lengths_N.max())
    while longest < checkpoint.max_tokens and joined < 2 * checkpoint.max_tokens:
        joined *= 2
        texts.append(" ".join(islice(cycle(queries), joined)))
        longest = max(longest, int(tokenize_in_memory(texts[-1:], checkpoint.tokenizer).lengths_N.max()))
    return texts, longest
