"""A cascade index compared with a plain implementation of its definition, on random trees.

Suffixes: Q queries, D width, N nodes, L labels, K results.
"""

from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval.search.cascade_index import CascadeIndex
from retrieval.search.thread_pool import ThreadPool

DIM = 3


@st.composite
def cascades(draw: st.DrawFn) -> CascadeIndex:
    """Draw a tree of two to four levels, with rows of few distinct values, so that many scores are equal."""
    levels = draw(st.integers(2, 4))
    sizes = sorted(draw(st.lists(st.integers(1, 12), min_size=levels, max_size=levels)))
    rng = np.random.default_rng(draw(st.integers(0, 1 << 32)))
    parents = [
        rng.permutation(np.concatenate([np.arange(above), rng.integers(0, above, size - above)]))
        for above, size in pairwise(sizes)
    ]
    scale = draw(st.sampled_from([1, 30, 1000]))  # sigmoids of large numbers are 0 or 1
    rows = [(scale * rng.integers(-2, 3, (size, DIM))).astype(np.float32) for size in sizes]
    shortlist = draw(st.lists(st.integers(1, 14), min_size=levels - 1, max_size=levels - 1))
    return CascadeIndex.build(rows, parents, shortlist)


def queries(seed: int, count: int, index: CascadeIndex) -> np.ndarray:
    return np.random.default_rng(seed).integers(-2, 3, (count, index.dim)).astype(np.float32)


def sigmoid(x: float) -> float:
    return 1 / (1 + np.exp(-x)) if x >= 0 else np.exp(x) / (1 + np.exp(x))


def logit(index: CascadeIndex, level: int, node: int, query_D: np.ndarray) -> float:
    return float(query_D[level * DIM : (level + 1) * DIM] @ index.rows[level][node])


def ranked(index: CascadeIndex, query_D: np.ndarray, labels: list[int], k: int) -> tuple[list[int], list[float]]:
    last = len(index.rows) - 1
    parent_L = index.tree.parents[-1]
    scores = {
        label: sigmoid(logit(index, last, label, query_D)) * sigmoid(logit(index, last - 1, parent_L[label], query_D))
        for label in labels
    }
    order = sorted(labels, key=lambda label: (-scores[label], label))[:k]
    return order, [scores[label] for label in order]


def descended(index: CascadeIndex, query_D: np.ndarray, allowed: set[int], k: int) -> list[int]:
    """Return the labels that a search compares: shortlists are doubled until there are k."""
    alive = [allowed]
    for parent_N in reversed(index.tree.parents):
        alive.insert(0, {int(parent_N[node]) for node in alive[0]})
    shortlist = list(index.shortlist)
    while True:
        nodes = sorted(alive[0])
        for level, size in enumerate(shortlist):
            best = set(sorted(nodes, key=lambda node: (-logit(index, level, node, query_D), node))[:size])
            parent_N = index.tree.parents[level]
            nodes = [node for node in sorted(alive[level + 1]) if parent_N[node] in best]
        if len(nodes) >= min(k, len(allowed)):
            return nodes
        shortlist = [2 * size for size in shortlist]


@settings(max_examples=150, deadline=None)
@given(cascades(), st.integers(0, 99), st.integers(1, 14))
def test_a_search_descends_by_definition(index: CascadeIndex, seed: int, k: int) -> None:
    """If it fails, a cascade keeps other nodes than the paper's, or has fewer than k results."""
    query_QD = queries(seed, 3, index)
    rows_QK, scores_QK = index.rank(query_QD, k)
    for query, query_D in enumerate(query_QD):
        labels = descended(index, query_D, set(range(index.size)), k)
        rows, scores = ranked(index, query_D, labels, k)
        assert rows_QK[query].tolist() == rows
        np.testing.assert_allclose(scores_QK[query], scores, rtol=1e-12)
    assert rows_QK.shape == (3, min(k, index.size))


@settings(max_examples=150, deadline=None)
@given(cascades(), st.integers(0, 99), st.integers(1, 14))
def test_an_exact_search_compares_all_labels(index: CascadeIndex, seed: int, k: int) -> None:
    """If it fails, recall is measured against labels that are not the best."""
    query_QD = queries(seed, 2, index)
    rows_QK, scores_QK = index.rank(query_QD, k, exact=True)
    for query, query_D in enumerate(query_QD):
        rows, scores = ranked(index, query_D, list(range(index.size)), k)
        assert rows_QK[query].tolist() == rows
        np.testing.assert_allclose(scores_QK[query], scores, rtol=1e-12)


@settings(max_examples=150, deadline=None)
@given(cascades(), st.integers(0, 99), st.integers(1, 14), st.booleans())
def test_a_filter_gives_the_best_allowed_labels(index: CascadeIndex, seed: int, k: int, exact: bool) -> None:
    """If it fails, a filtered search has labels that are not allowed, or fewer than k although there are k."""
    mask_L = np.random.default_rng(seed).random(index.size) < 0.5
    allowed = set(np.flatnonzero(mask_L).tolist())
    query_QD = queries(seed, 2, index)
    rows_QK, _ = index.rank(query_QD, k, index.tree.among(mask_L), exact=exact)
    compared_all = exact or len(allowed) <= max(min(k, len(allowed)), index.labels_per_search)
    for query, query_D in enumerate(query_QD):
        labels = sorted(allowed) if compared_all else descended(index, query_D, allowed, k)
        assert rows_QK[query].tolist() == ranked(index, query_D, labels, k)[0]


@settings(max_examples=50, deadline=None)
@given(cascades(), st.integers(0, 99), st.integers(1, 14))
def test_threads_change_nothing(index: CascadeIndex, seed: int, k: int) -> None:
    """If it fails, an answer depends on how queries are split between threads."""
    query_QD = queries(seed, 9, index)
    pool = ThreadPool(2)
    threaded = CascadeIndex(index.rows, index.tree, index.shortlist, pool)
    try:
        rows_QK, scores_QK = threaded.rank(query_QD, k)
    finally:
        threaded.close()
    single_QK, _ = index.rank(query_QD, k)
    assert np.array_equal(rows_QK, single_QK)
    assert np.array_equal(scores_QK, index.rank(query_QD, k)[1])


@settings(max_examples=100, deadline=None)
@given(cascades(), st.integers(0, 99))
def test_shortlists_are_the_best_children(index: CascadeIndex, seed: int) -> None:
    """If it fails, the recall of the shortlists is measured on other nodes than a search keeps."""
    query_QD = queries(seed, 2, index)
    for query, query_D in enumerate(query_QD):
        nodes = list(range(index.tree.sizes[0]))
        for level, chosen_QS in enumerate(index.shortlists(query_QD)):
            order = sorted(nodes, key=lambda node: (-logit(index, level, node, query_D), node))
            expected = order[: index.shortlist[level]]
            assert [node for node in chosen_QS[query].tolist() if node >= 0] == expected
            nodes = [node for node, parent in enumerate(index.tree.parents[level]) if parent in set(expected)]
