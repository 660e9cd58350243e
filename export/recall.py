"""Choose how many candidates the index examines at each weight to reach its recall.

Recall is measured with validation queries and with label texts, since users send both. For each, the first 10 and the
first 100 answers are compared with exact search.

Suffixes: Q queries, K ranks, D vector width, L labels.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from export.progress import Progress
from export.quality import Figures, Validation, falls_short
from retrieval.bundle.facts import LARGE_K, SMALL_K, EfSearch, ModelFacts
from retrieval.errors import GateError
from retrieval.search.candidates import Candidates
from retrieval.search.distinct_vectors import Nodes, expand
from retrieval.search.encoder import TextEncoder
from retrieval.search.indexes import QUERIES_PER_PASS, ExactIndex, Rows, VectorIndex, Vectors
from retrieval.search.pca_index import rescore, to_rescore

RECALL_TARGET = 0.995  # recall@1, @10 and @100
RECALL_REQUIRED = 0.99  # recall@10 and @100, at every weight
WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)
EF_LADDER = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048)
EF_LADDER_OF_MANY = (384, 512, 768, 1024, 1536, 2048, 3072, 4096)
EF_STEPS = 4  # steps between two rungs
EVERY_LABEL = {
    "ef_at_100": None, "recall_at_1": 1.0, "recall_at_10": 1.0, "recall_at_100": 1.0, "label_text_recall_at_10": 1.0,
    "label_text_recall_at_100": 1.0,
}  # fmt: skip
QUERIES_PER_BLOCK = 64  # queries per block; bounds the memory of LARGE_K label vectors for each
EQUAL_SCORE = 1e-6


class Ranked:
    """An index searched as a reader does: `ef` candidates, rescored with their whole vectors."""

    def __init__(self, index: VectorIndex, vectors_LD: Vectors, dual_dim: int, nodes: Nodes | None = None) -> None:
        self.vectors_LD, self.size = vectors_LD, index.size
        self._index, self._dual_dim, self._nodes = index, dual_dim, nodes
        self._candidates = Candidates(index, ExactIndex(vectors_LD), nodes)

    def search(self, query_QD: Vectors, k: int, ef: int) -> Rows:
        """Return the k best rows [Q, K] found with `ef` candidates."""
        parts, k = [], min(k, len(self.vectors_LD))
        for start in range(0, len(query_QD), QUERIES_PER_PASS):
            part_QD = query_QD[start : start + QUERIES_PER_PASS]
            rows_QC = self._candidates.find(part_QD, to_rescore(k, self._index, ef), ef)
            scored = rescore(part_QD, rows_QC, self.vectors_LD, self._dual_dim, k)
            parts.append(scored[0] if self._nodes is None else expand(scored, self._nodes, k)[0])
        return np.concatenate(parts)


def choose_efforts(
    encoder: TextEncoder, facts: ModelFacts, index: Ranked, queries: Sequence[str], label_texts: Sequence[str],
    default_weight: float, keeps_quality: Callable[[int], bool], progress: Progress,
) -> tuple[EfSearch, ...]:  # fmt: skip
    """Return the smallest efforts that reach the recall target at each weight, and keep quality at the default one.

    If none on the ladder suffices at a weight, every label is compared there. Raises GateError if that happens at the
    default weight for k = 10, since most searches would be slow.
    """
    query_QD, label_QD = (encoder.encode(texts).vectors_BD for texts in (queries, label_texts))
    weights = sorted({*WEIGHTS, default_weight})
    efforts = []
    for done, weight in enumerate(weights):
        enough = keeps_quality if weight == default_weight else _anything
        scale_D = facts.query_scale(weight)
        effort = _effort(Measured(index, query_QD * scale_D, label_QD * scale_D), weight, index.size, enough)
        if effort.ef is None and weight == default_weight:
            raise GateError(
                f"recall: at weight {weight:g}, the default, and ef {EF_LADDER[-1]} the index reaches recall@10 "
                f"{effort.recall_at_10:.4f} for queries and {effort.label_text_recall_at_10:.4f} for label texts, "
                f"where {RECALL_REQUIRED} is needed. Raise --m or --ef-construction."
            )
        efforts.append(effort if effort.ef else effort.model_copy(update=EVERY_LABEL))
        progress(done + 1, len(weights))
    return tuple(efforts)


def _anything(ef: int) -> bool:
    return True


class KeepsQuality:
    """Whether an index, asked with some ef at the default weight, answers as well as the checkpoint does.

    A recall of 0.995 may cost a fifth of a point of P@5, or not: which answers are missed decides.
    """

    def __init__(
        self, encoder: TextEncoder, facts: ModelFacts, index: Ranked, asked: Validation, own: Figures, weight: float,
        allowed: float,
    ) -> None:  # fmt: skip
        self._query_QD = encoder.encode(asked.texts).vectors_BD * facts.query_scale(weight)
        self._index, self._asked, self._own, self._allowed = index, asked, own, allowed

    def __call__(self, ef: int) -> bool:
        rows_QK = self._index.search(self._query_QD, self._asked.k, ef)
        return falls_short(self._own, self._asked.figures(rows_QK), self._asked.scored, self._allowed) is None


def recall_at(k: int, found_scores_QK: NDArray[np.floating], best_scores_QK: NDArray[np.floating]) -> float:
    """Return the share of the k best that were found; a label counts if its score reaches the k-th best within 1e-6.

    Which of several equal labels stand among the k best is chance, and equal they often are: those of the same tokens,
    and at weight 1 all that were never trained, whose score is 0. Both sides best first, by scores computed alike.
    """
    k = min(k, best_scores_QK.shape[1])
    threshold_Q1 = best_scores_QK[:, k - 1 : k] - EQUAL_SCORE
    return float((found_scores_QK[:, :k] >= threshold_Q1).mean())


class Measured:
    """Measure the recalls of an index for scaled validation queries and label texts."""

    def __init__(self, index: Ranked, query_QD: Vectors, label_QD: Vectors) -> None:
        self._index, self._asked = index, (query_QD, label_QD)
        exact = ExactIndex(index.vectors_LD)
        self._best = [self._scores(one_QD, exact.search(one_QD, LARGE_K)[0]) for one_QD in self._asked]

    def at(self, ef: int, k: int, *places: int) -> list[tuple[float, float]]:
        """Return the recall at each place, for queries and label texts; k answers are searched with `ef` candidates."""
        found = [self._scores(one_QD, self._index.search(one_QD, k, ef)) for one_QD in self._asked]
        queries, labels = (
            [recall_at(place, found_QK, best_QK) for place in places]
            for found_QK, best_QK in zip(found, self._best, strict=True)
        )
        return list(zip(queries, labels, strict=True))

    def _scores(self, query_QD: Vectors, rows_QK: Rows) -> NDArray[np.float64]:
        """Compute the scores of rows, best first, in one order of summation; BLAS and hnswlib round differently."""
        parts = []
        for start in range(0, len(query_QD), QUERIES_PER_BLOCK):
            block = slice(start, start + QUERIES_PER_BLOCK)
            label_QKD = self._index.vectors_LD[rows_QK[block]]
            parts.append(np.einsum("qd,qkd->qk", query_QD[block], label_QKD, dtype=np.float64))
        return -np.sort(-np.concatenate(parts), axis=1)


def _effort(measured: Measured, weight: float, size: int, enough: Callable[[int], bool]) -> EfSearch:
    """Return the smallest efforts for SMALL_K and LARGE_K answers; None if the largest on the ladder is not enough."""

    def few(ef: int) -> bool:
        at_1, at_10 = measured.at(ef, SMALL_K, 1, SMALL_K)
        return min(at_1[0], *at_10) >= RECALL_TARGET and enough(ef)

    def many(ef: int) -> bool:
        return min(*measured.at(ef, LARGE_K, LARGE_K)[0]) >= RECALL_TARGET

    ef = _least(EF_LADDER, size, few)
    at_1, at_10 = measured.at(ef, SMALL_K, 1, SMALL_K)
    ef_at_100 = max(ef, _least(EF_LADDER_OF_MANY, size, many))
    (at_100,) = measured.at(ef_at_100, LARGE_K, LARGE_K)
    if min(at_100) < RECALL_REQUIRED:
        ef_at_100, at_100 = 0, (1.0, 1.0)
    return EfSearch(
        weight=weight, ef=ef if min(at_10) >= RECALL_REQUIRED else None, ef_at_100=ef_at_100 or None,
        recall_at_1=at_1[0], recall_at_10=at_10[0], recall_at_100=at_100[0],
        label_text_recall_at_10=at_10[1], label_text_recall_at_100=at_100[1],
    )  # fmt: skip


def _least(ladder: Sequence[int], size: int, reached: Callable[[int], bool]) -> int:
    """Return the smallest sufficient effort: a rung, refined down to the rung below; else the last rung."""
    below = 0
    for rung in ladder:
        if reached(rung):
            break
        below = rung
        if rung >= size:
            return rung
    else:
        return rung
    if below:
        for ef in range(below + (rung - below) // EF_STEPS, rung, max(1, (rung - below) // EF_STEPS)):
            if reached(ef):
                return ef
    return rung
