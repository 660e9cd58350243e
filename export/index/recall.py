"""Gate "recall": choose ef_search, the number of candidates that the index examines, at each classifier weight.

Recall is the share of the best labels of an exact search that the index finds. It is measured with validation queries
and with label texts, since users send both, for k = 10 and k = 100.

Shapes: Q queries, K ranks, D vector width, L labels.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from retrieval.bundle.facts import LARGE_K, SMALL_K, EfSearch, ModelFacts
from retrieval.errors import GateError
from retrieval.quantized_vectors import LabelVectors
from retrieval.search.candidates import Candidates
from retrieval.search.distinct_vectors import Nodes, ScoredRows, expand
from retrieval.search.encoder import TextEncoder
from retrieval.search.indexes import QUERIES_PER_PASS, ExactIndex, Rows, VectorIndex, Vectors
from retrieval.search.pca_index import rescore, to_rescore
from retrieval.system.progress import Progress

RECALL_TARGET = 0.995  # recall@1, @10 and @100 that ef_search is chosen for
MIN_RECALL = 0.99  # recall@10 and @100; if the index does not reach it, all labels are compared
WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)
EF_LADDER = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048)
EF_LADDER_AT_100 = (384, 512, 768, 1024, 1536, 2048, 3072, 4096)
STEPS_PER_RUNG = 4
FULL_SCAN_RECALLS = {
    "ef_at_100": None, "recall_at_1": 1.0, "recall_at_10": 1.0, "recall_at_100": 1.0, "label_text_recall_at_10": 1.0,
    "label_text_recall_at_100": 1.0,
}  # fmt: skip
QUERIES_PER_BLOCK = 64  # bounds the memory of LARGE_K label vectors per query
EQUAL_SCORE = 1e-6


class IndexProbe:
    """Search an index like a bundle's reader: `ef` candidates, rescored with their full vectors."""

    def __init__(self, index: VectorIndex, vectors_LD: LabelVectors, dual_dim: int, nodes: Nodes | None = None) -> None:
        self.vectors_LD, self.size = vectors_LD, index.size
        self._index, self._dual_dim, self._nodes = index, dual_dim, nodes
        self._candidates = Candidates(index, ExactIndex(vectors_LD), nodes)

    def search(self, query_QD: Vectors, k: int, ef: int | None) -> ScoredRows:
        """Return the k best rows [Q, K] among `ef` candidates (None: among all labels), with their scores."""
        parts, k = [], min(k, len(self.vectors_LD))
        for start in range(0, len(query_QD), QUERIES_PER_PASS):
            part_QD = query_QD[start : start + QUERIES_PER_PASS]
            rows_QC = self._candidates.find(part_QD, to_rescore(k, self._index, ef), ef)
            scored = rescore(part_QD, rows_QC, self.vectors_LD, self._dual_dim, k)
            parts.append(scored if self._nodes is None else expand(scored, self._nodes, k))
        rows, scores, dual, classifier = zip(*parts, strict=True)
        return np.concatenate(rows), np.concatenate(scores), np.concatenate(dual), np.concatenate(classifier)


class RecallMeasurement:
    """Measure the recall of an index for scaled validation queries and label texts."""

    def __init__(self, index: IndexProbe, query_QD: Vectors, label_QD: Vectors) -> None:
        self._index, self._inputs = index, (query_QD, label_QD)
        exact = ExactIndex(index.vectors_LD)
        self._best = [self._scores(vectors_QD, exact.search(vectors_QD, LARGE_K)[0]) for vectors_QD in self._inputs]

    def at(self, ef: int, k: int, *ranks: int) -> list[tuple[float, float]]:
        """Return the recall at each rank, for queries and label texts, when k labels are searched with `ef`."""
        found = [self._scores(vectors_QD, self._index.search(vectors_QD, k, ef)[0]) for vectors_QD in self._inputs]
        queries, labels = (
            [recall_at(rank, found_QK, best_QK) for rank in ranks]
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


def choose_ef_search(
    encoder: TextEncoder, facts: ModelFacts, index: IndexProbe, queries: Sequence[str], label_texts: Sequence[str],
    default_weight: float, quality_check: Callable[[int], bool], progress: Progress,
) -> tuple[EfSearch, ...]:  # fmt: skip
    """Return the smallest ef_search that reaches the recall target at each weight, and keeps quality at the default.

    If no value on the ladder suffices at a weight, all labels are compared there. Raises GateError if that happens at
    the default weight for k = 10, since most searches would be slow.
    """
    query_QD, label_QD = (encoder.encode(texts).vectors_BD for texts in (queries, label_texts))
    # Without a classifier, every weight below 1 has the ranking of weight 0, and searches use no other.
    weights = sorted({*WEIGHTS, default_weight}) if facts.classifier_dim else [0.0]
    chosen = []
    for done, weight in enumerate(weights):
        accepted = quality_check if weight == default_weight else always_true
        scale_D = facts.query_scale(weight)
        recall = RecallMeasurement(index, query_QD * scale_D, label_QD * scale_D)
        setting = ef_search_at(recall, weight, index.size, accepted)
        if setting.ef is None and weight == default_weight:
            raise GateError(
                f"recall: at the default weight {weight:g} with ef_search {EF_LADDER[-1]}, recall@10 of the index is "
                f"{setting.recall_at_10:.4f} for queries and {setting.label_text_recall_at_10:.4f} for label texts; at "
                f"least {MIN_RECALL} is required. Raise --m or --ef-construction."
            )
        chosen.append(setting if setting.ef else setting.model_copy(update=FULL_SCAN_RECALLS))
        progress(done + 1, len(weights))
    if not facts.classifier_dim:
        chosen.append(chosen[0].model_copy(update={"weight": 1.0}))
    return tuple(chosen)


def always_true(ef: int) -> bool:
    """Accept any ef_search."""
    return True


def ef_search_at(recall: RecallMeasurement, weight: float, size: int, accepted: Callable[[int], bool]) -> EfSearch:
    """Return the smallest accepted ef_search for k = 10 and k = 100; None if the largest on the ladder is too small."""

    def suffices_at_10(ef: int) -> bool:
        at_1, at_10 = recall.at(ef, SMALL_K, 1, SMALL_K)
        return min(at_1[0], *at_10) >= RECALL_TARGET and accepted(ef)

    def suffices_at_100(ef: int) -> bool:
        return min(*recall.at(ef, LARGE_K, LARGE_K)[0]) >= RECALL_TARGET

    ef = smallest_ef(EF_LADDER, size, suffices_at_10)
    at_1, at_10 = recall.at(ef, SMALL_K, 1, SMALL_K)
    ef_at_100 = max(ef, smallest_ef(EF_LADDER_AT_100, size, suffices_at_100))
    (at_100,) = recall.at(ef_at_100, LARGE_K, LARGE_K)
    if min(at_100) < MIN_RECALL:
        ef_at_100, at_100 = 0, (1.0, 1.0)
    return EfSearch(
        weight=weight, ef=ef if min(at_10) >= MIN_RECALL else None, ef_at_100=ef_at_100 or None,
        recall_at_1=at_1[0], recall_at_10=at_10[0], recall_at_100=at_100[0],
        label_text_recall_at_10=at_10[1], label_text_recall_at_100=at_100[1],
    )  # fmt: skip


def recall_at(k: int, found_scores_QK: NDArray[np.floating], best_scores_QK: NDArray[np.floating]) -> float:
    """Return the share of the k best labels that were found; a label counts if its score reaches the k-th best's.

    Scores within 1e-6 count as equal, because the order of equal scores is arbitrary. Many are equal: labels with the
    same tokens, and at weight 1 all labels of score 0. Both arguments are best first and computed in the same way.
    """
    k = min(k, best_scores_QK.shape[1])
    threshold_Q1 = best_scores_QK[:, k - 1 : k] - EQUAL_SCORE
    return float((found_scores_QK[:, :k] >= threshold_Q1).mean())


def smallest_ef(ladder: Sequence[int], size: int, suffices: Callable[[int], bool]) -> int:
    """Return the smallest sufficient value: a rung, found by bisection and refined down to the rung below.

    If no rung suffices, the last one is returned; no rung after the first that reaches `size` is tried.
    """
    rungs = [rung for place, rung in enumerate(ladder) if not place or ladder[place - 1] < size]
    low, high = 0, len(rungs) - 1
    while low < high:
        middle = (low + high) // 2
        if suffices(rungs[middle]):
            high = middle
        else:
            low = middle + 1
    rung = rungs[low]
    if low:
        below = rungs[low - 1]
        for ef in range(below + (rung - below) // STEPS_PER_RUNG, rung, max(1, (rung - below) // STEPS_PER_RUNG)):
            if suffices(ef):
                return ef
    return rung
