"""What answers to the checkpoint's validation queries are worth: its own, by exact search, and a bundle's.

Suffixes: Q queries, K ranks, D vector width, L labels.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from export.geometry import Cone, bias
from export.progress import Progress, unwatched
from retrieval.bundle.facts import ModelFacts, Quality
from retrieval.errors import GateError
from retrieval.metrics import evaluate
from retrieval.retriever import Retriever
from retrieval.search.indexes import ExactIndex, Rows, Vectors
from training.checkpoint.files import Checkpoint
from training.evaluation.scoring import encode_queries
from training.model.tokens import tokenize_in_memory

QUALITY_LOSS = 0.2  # points of P@1 and P@5 that a bundle may stay behind its checkpoint
KS = (1, 5)
QUERIES_PER_BLOCK = 256
CPU = torch.device("cpu")

Figures = dict[str, float]


class Validation:
    """The validation queries, with truth and what is left out; `k` answers leave enough when that is taken away."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        asked = checkpoint.validation
        self.texts = asked.texts
        self._truth, self._exclude = (
            [column[row] for row in range(len(asked))] for column in (asked.labels, asked.exclude)
        )
        self._inverse_propensity_L = checkpoint.inverse_propensity_L
        self.k = max(KS) + max(len(labels) for labels in self._exclude)
        self.scored = sum(len(labels) > 0 for labels in self._truth)

    def figures(self, rows_QK: Rows) -> Figures:
        """Every metric, in percent, of the answers to all queries, best first."""
        kept_QK = without_excluded(rows_QK, self._exclude, max(KS))
        return evaluate(kept_QK, self._truth, self._inverse_propensity_L, ks=KS)

    def blocks(self, progress: Progress) -> Iterator[list[str]]:
        """The queries, some at a time."""
        for start in range(0, len(self.texts), QUERIES_PER_BLOCK):
            block = self.texts[start : start + QUERIES_PER_BLOCK]
            yield block
            progress(start + len(block), len(self.texts))


def checkpoint_quality(
    checkpoint: Checkpoint, facts: ModelFacts, cone: Cone, vectors_LD: Vectors, asked: Validation,
    progress: Progress = unwatched,
) -> Figures:  # fmt: skip
    """What the checkpoint's own query vectors find at its weight, by exact search among a bundle's label vectors."""
    exact, scale_D = ExactIndex(vectors_LD), facts.query_scale(checkpoint.classifier_weight)
    found = []
    for block in asked.blocks(progress):
        dual_QD, classifier_QC = torch_halves(checkpoint, block)
        query_QD = np.concatenate([dual_QD, cone.stretch_queries(classifier_QC)], axis=1) * scale_D
        found.append(exact.search(query_QD, asked.k)[0])
    return asked.figures(np.concatenate(found))


def bundle_quality(retriever: Retriever, asked: Validation, progress: Progress = unwatched) -> Figures:
    """What a bundle answers, end to end."""
    return asked.figures(
        np.concatenate([retriever.search_rows(block, asked.k).rows_QK for block in asked.blocks(progress)])
    )


def prove_quality(quality: Quality, allowed: float = QUALITY_LOSS) -> None:
    """Raise GateError when the bundle answers worse than its checkpoint, by more than `allowed` points."""
    if short := falls_short(quality.checkpoint, quality.bundle, quality.queries, allowed):
        raise GateError(
            f"quality: the bundle reaches {short} {quality.bundle[short]:.2f} where its checkpoint reaches "
            f"{quality.checkpoint[short]:.2f}; {allowed} less is allowed, over {quality.queries} queries. "
            "Raise --m or --ef-construction."
        )


def falls_short(own: Figures, bundle: Figures, queries: int, allowed: float) -> str | None:
    """P@1 or P@5, when it is lower by more than `allowed` points; None where neither is.

    One hit is always forgiven: over a few hundred queries it moves a figure by more than that.
    """
    for k in KS:
        if own[f"P@{k}"] - bundle[f"P@{k}"] > max(allowed, 100 / (k * queries)) + 1e-9:
            return f"P@{k}"
    return None


def torch_halves(checkpoint: Checkpoint, texts: Sequence[str]) -> tuple[Vectors, Vectors]:
    """Both halves of some queries as the checkpoint has them, of unit length; the bias stands behind the second."""
    vectors = encode_queries(checkpoint.model, tokenize_in_memory(texts, checkpoint.tokenizer), CPU)
    bias_Q1 = np.full((len(texts), 1), bias(checkpoint), np.float32)
    return vectors.dual.numpy(), np.concatenate([vectors.classifier.numpy(), bias_Q1], axis=1)


def without_excluded(rows_QK: Rows, exclude: Sequence[NDArray[Any]], k: int) -> Rows:
    """The first k rows of each query that are not left out; −1 behind them."""
    kept_QK = np.full((len(rows_QK), k), -1, np.int64)
    for query, (rows_K, excluded) in enumerate(zip(rows_QK, exclude, strict=True)):
        kept = rows_K[~np.isin(rows_K, excluded)][:k]
        kept_QK[query, : len(kept)] = kept
    return kept_QK
