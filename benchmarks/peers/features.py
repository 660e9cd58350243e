"""Features of all peers: TF-IDF of words and TF-IDF of character n-grams inside words, each of unit length."""

from typing import Any

import numpy as np
import scipy.sparse as sp
from sklearn.feature_extraction.text import TfidfVectorizer

WORDS = {"token_pattern": r"(?u)\b\w+\b", "sublinear_tf": True}
CHARACTERS = {"analyzer": "char_wb", "ngram_range": (3, 5), "sublinear_tf": True}


class Features:
    """Learns its vocabulary from N texts; converts texts to rows of unit length (float32 CSR)."""

    def __init__(self) -> None:
        self.parts = [TfidfVectorizer(**WORDS), TfidfVectorizer(**CHARACTERS)]

    def fit(self, texts: list[str]) -> Any:
        """Learn from the texts and return their rows [N, F]."""
        return _concatenate([part.fit_transform(texts) for part in self.parts])

    def transform(self, texts: list[str]) -> Any:
        """Return the rows of other texts; unknown words and n-grams are ignored."""
        return _concatenate([part.transform(texts) for part in self.parts])


def _concatenate(halves: list[Any]) -> Any:
    # The vectorizers return float64, like scikit-learn's idf; the solvers of the peers need float32.
    return (sp.hstack(halves).tocsr() * 0.5**0.5).astype(np.float32)
