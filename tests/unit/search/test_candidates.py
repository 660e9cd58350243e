"""Filtered search returns the best allowed labels, by scan and by index."""

import numpy as np
import pytest

from retrieval.search.attributes import Allowed
from retrieval.search.candidates import Candidates, scan_is_cheaper
from retrieval.search.indexes import ExactIndex, HnswIndex, Rows, Vectors
from tests.contract.test_index import clustered

LABELS = 4_000
Indexes = tuple[HnswIndex, ExactIndex]


@pytest.fixture(scope="module")
def vectors_LD() -> Vectors:
    return clustered(LABELS)


@pytest.fixture(scope="module")
def indexes(vectors_LD: Vectors) -> Indexes:
    return HnswIndex.build(vectors_LD, ef=64, threads=2), ExactIndex(vectors_LD, threads=1)


@pytest.fixture(scope="module")
def candidates(indexes: Indexes) -> Candidates:
    return Candidates(*indexes)


def best(query_QD: Vectors, vectors_LD: Vectors, mask_L: np.ndarray, k: int) -> Rows:
    scores_QL = np.where(mask_L, query_QD @ vectors_LD.T, -np.inf)
    return np.argsort(-scores_QL, axis=1)[:, : min(k, int(mask_L.sum()))]


@pytest.mark.parametrize("scan", [True, False])
@pytest.mark.parametrize("share", [0.5, 0.1, 0.01, 0.001])
def test_the_best_allowed_labels_are_found_either_way(
    indexes: Indexes, vectors_LD: Vectors, share: float, scan: bool
) -> None:
    """If it fails, a filtered search returns too few labels, forbidden ones, or not the best."""
    candidates = Candidates(*indexes, prefer_scan=lambda *_: scan)
    mask_L = np.random.default_rng(7).random(LABELS) < share
    query_QD = clustered(60, seed=8)
    found_QC = candidates.find(query_QD, 10, 64, Allowed(mask_L))
    best_QK = best(query_QD, vectors_LD, mask_L, 10)
    assert found_QC.shape == best_QK.shape
    assert mask_L[found_QC].all()
    assert all(len(set(row)) == len(row) for row in found_QC.tolist())
    assert np.mean([np.isin(row, top).mean() for row, top in zip(found_QC, best_QK, strict=True)]) >= 0.99


def test_labels_far_from_the_query_are_found_as_well(indexes: Indexes, vectors_LD: Vectors) -> None:
    """If it fails, a filter that allows only unlikely labels gives fewer than k though k exist."""
    candidates = Candidates(*indexes, prefer_scan=lambda *_: False)
    query_QD = clustered(20, seed=9)
    scores_L = query_QD.mean(axis=0) @ vectors_LD.T
    mask_L = scores_L < np.quantile(scores_L, 0.1)
    found_QC = candidates.find(query_QD, 10, 64, Allowed(mask_L))
    assert mask_L[found_QC].all()
    assert found_QC.shape == (20, 10)


def test_no_python_code_runs_for_a_candidate(indexes: Indexes, vectors_LD: Vectors) -> None:
    """If it fails, hnswlib calls a Python function per candidate, which is slower by an order of magnitude."""
    searched: list[int] = []

    class CountingIndex(HnswIndex):
        def search(self, query_QD: Vectors, k: int) -> tuple[Rows, Vectors]:
            searched.append(k)
            return super().search(query_QD, k)

    index = CountingIndex.build(vectors_LD, ef=64, threads=2)
    candidates = Candidates(index, indexes[1], prefer_scan=lambda *_: False)
    candidates.find(clustered(2), 10, 64, Allowed(np.arange(LABELS) % 10 == 0))
    assert searched == [640]  # an ef_search of 64, for a tenth of the labels


def test_a_filter_that_allows_everything_or_nothing(candidates: Candidates) -> None:
    """If it fails, a filter that allows all labels lowers recall, or one that allows none raises."""
    query_QD = clustered(5, seed=10)
    everything, nothing = Allowed(np.ones(LABELS, np.bool_)), Allowed(np.zeros(LABELS, np.bool_))
    assert candidates.find(query_QD, 10, 64, everything).tolist() == candidates.find(query_QD, 10, 64).tolist()
    assert candidates.find(query_QD, 10, 64, nothing).shape == (5, 0)


def test_small_subsets_are_scanned_and_large_ones_searched() -> None:
    """If it fails, small subsets are searched in the index, or large ones are scanned."""
    assert scan_is_cheaper(queries=1, candidates=2_600, rows=1_000)
    assert not scan_is_cheaper(queries=1, candidates=100, rows=500_000)
