"""Choose between the graph and exact search by measuring both, one query at a time.

Shapes: Q queries, L labels, N distinct vectors, D vector width.
"""

import time
from collections.abc import Callable, Sequence

import numpy as np

from export.index.recall import FULL_SCAN_RECALLS, WEIGHTS, IndexProbe
from retrieval.bundle.facts import SMALL_K, EfSearch, ModelFacts
from retrieval.search.distinct_vectors import Nodes
from retrieval.search.indexes import ExactIndex, Vectors
from retrieval.search.pca_index import rescore, to_rescore

MAX_EXACT = 50_000  # labels that exact search is considered for; with more, the graph is always faster
MAX_COMPARED = 200_000  # labels that a comparison of all labels is measured for
EF_IS_LARGE = 256  # below it, no comparison of all labels is as fast
TIMED_QUERIES = 50


def is_exact_faster(
    probe: IndexProbe, nodes: Nodes, query_QD: Vectors, ef: int, dual_dim: int, threads: int | None
) -> bool:
    """Return whether comparing all vectors, kept as float32, takes less time per query than the graph with `ef`."""
    vectors_ND = probe.vectors_LD[nodes.representatives]
    exact = ExactIndex(vectors_ND, threads)

    def compare_all(query_1D: Vectors) -> None:
        rows_1C = exact.search(query_1D, to_rescore(SMALL_K, exact, None))[0]
        rescore(query_1D, rows_1C, vectors_ND, dual_dim, SMALL_K)

    seconds = median_seconds([compare_all, lambda query_1D: probe.search(query_1D, SMALL_K, ef)], query_QD)
    return seconds[0] < seconds[1]


def without_slow_weights(
    chosen: Sequence[EfSearch], default_weight: float, probe: IndexProbe, encoded_QD: Vectors, facts: ModelFacts
) -> tuple[EfSearch, ...]:
    """Compare all labels at each weight but the default whose ef_search is so large that this is as fast."""
    if probe.size > MAX_COMPARED:
        return tuple(chosen)
    limited = []
    for setting in chosen:
        if setting.weight != default_weight and setting.ef is not None and setting.ef >= EF_IS_LARGE:
            ef, query_QD = setting.ef, encoded_QD * facts.query_scale(setting.weight)
            searches = [lambda query_1D, ef=ef: probe.search(query_1D, SMALL_K, ef)]
            searches.append(lambda query_1D, ef=None: probe.search(query_1D, SMALL_K, ef))
            graph, exact = median_seconds(searches, query_QD)
            if exact <= graph:
                setting = setting.model_copy(update={"ef": None, **FULL_SCAN_RECALLS})
        limited.append(setting)
    return tuple(limited)


def exact_settings(default_weight: float) -> tuple[EfSearch, ...]:
    """Return the settings of an exact index: all labels are compared at every weight."""
    weights = sorted({*WEIGHTS, default_weight})
    return tuple(EfSearch.model_validate({"weight": weight, "ef": None, **FULL_SCAN_RECALLS}) for weight in weights)


def median_seconds(searches: Sequence[Callable[[Vectors], object]], query_QD: Vectors) -> list[float]:
    """Return the median time of each search over single queries; the searches alternate, so load affects all."""
    seconds: list[list[float]] = [[] for _ in searches]
    for row in np.linspace(0, len(query_QD) - 1, min(TIMED_QUERIES, len(query_QD))).astype(int):
        query_1D = np.ascontiguousarray(query_QD[row : row + 1])
        for place, search in enumerate(searches):
            start = time.perf_counter()
            search(query_1D)
            seconds[place].append(time.perf_counter() - start)
    return [float(np.median(one)) for one in seconds]
