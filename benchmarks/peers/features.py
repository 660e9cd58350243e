"""The features all peers share: TF-IDF of words, and of character n-grams inside words, each half of unit length."""

from typing import Any

import numpy as np
import scipy.sparse as sp
from sklearn.feature_extraction.text import TfidfVectorizer

WORDS = {"token_pattern": r"(?u)\b\w+\b", "sublinear_tf": True}
CHARACTERS = {"analyzer": "char_wb", "ngram_range": (3, 5), "sublinear_tf": True}


class Features:
    """Learns its vocabulary from N texts; turns texts into rows of unit length (float32 CSR)."""

    def __init__(self) -> None:
        self.parts = [TfidfVectorizer(**WORDS), TfidfVectorizer(**CHARACTERS)]

    def fit(self, texts: list[str]) -> Any:
        """Learn from the texts and return their rows [N, F]."""
        return _joined([part.fit_transform(texts) for part in self.parts])

    def transform(self, texts: list[str]) -> Any:
        """Rows of other texts; what was never seen is left out."""
        return _joined([part.transform(texts) for part in self.parts])


def _joined(halves: list[Any]) -> Any:
    # float64 through the vectoriser, since scikit-learn's idf is; the peers' solvers want float32.
    return (sp.hstack(halves).tocsr() * 0.5**0.5).astype(np.float32)
