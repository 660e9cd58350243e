"""The label tree and the cascade index: invalid input, extreme trees, widened shortlists and saturated scores."""

import logging

import numpy as np
import pytest

from retrieval.errors import BadInput, BundleError
from retrieval.search.cascade_index import CascadeIndex
from retrieval.search.label_tree import LabelTree


def index_of(clusters: int, labels: int, shortlist: int) -> CascadeIndex:
    """Return a cascade of two levels, [clusters, labels], of random rows with two numbers each."""
    rng = np.random.default_rng(0)
    parent_L = np.arange(labels, dtype=np.int32) % clusters
    rows = [rng.standard_normal((size, 2)).astype(np.float32) for size in (clusters, labels)]
    return CascadeIndex.build(rows, (parent_L,), (shortlist,))


@pytest.mark.parametrize(
    ("parents", "clusters", "message"),
    [
        ([np.array([0, 2, 1])], 2, "node 1 of level 1 of the label tree has the parent 2, but level 0 has"),
        ([np.array([0, -1, 1])], 2, "node 1 of level 1 of the label tree has the parent -1"),
        ([np.array([0, 0, 2])], 3, "node 1 of level 0 of the label tree has no children"),
        ([np.array([0, 1]), np.array([0, 0, 0])], 2, "node 1 of level 1 of the label tree has no children"),
        ([np.array([], np.int32)], 1, "node 0 of level 0 of the label tree has no children"),
        ([np.array([0.0, 1.0])], 2, "not one integer per node"),
        ([np.array([[0, 1]])], 2, "not one integer per node"),
        ([], 2, "the label tree has one level"),
    ],
)  # fmt: skip
def test_an_invalid_tree_is_refused(parents: list[np.ndarray], clusters: int, message: str) -> None:
    """If it fails, a damaged bundle reads outside its arrays, or has labels that no search can reach."""
    with pytest.raises(BundleError, match=message):
        LabelTree.of(parents, clusters)


def test_rows_and_shortlists_must_fit_the_tree() -> None:
    """If it fails, scores are computed with rows of other nodes."""
    tree = LabelTree.of([np.array([0, 1, 1])], 2)
    rows = [np.zeros((2, 2), np.float32), np.zeros((4, 2), np.float32)]
    with pytest.raises(BundleError, match=r"the levels have \[2, 4\] rows, but the label tree has \[2, 3\] nodes"):
        CascadeIndex(rows, tree, (1,))
    for shortlist in ((), (1, 1), (0,)):
        with pytest.raises(BundleError, match="a tree of 2 levels needs 1 of at least 1"):
            CascadeIndex([rows[0], rows[1][:3]], tree, shortlist)
    with pytest.raises(BadInput, match="needs vectors"):
        CascadeIndex([rows[0][:, :0], rows[1][:3]], tree, (1,))


@pytest.mark.parametrize(("clusters", "labels"), [(1, 1), (1, 9), (9, 9), (4, 9)])
def test_extreme_trees_give_all_labels(clusters: int, labels: int) -> None:
    """If it fails, one cluster, or clusters of one label, hide labels or crash a search."""
    index = index_of(clusters, labels, 1)
    query_QD = np.random.default_rng(1).standard_normal((3, 4)).astype(np.float32)
    rows_QK, scores_QK = index.search(query_QD, 100)
    assert rows_QK.shape == (3, labels)
    assert all(sorted(row_K) == list(range(labels)) for row_K in rows_QK.tolist())
    assert (np.diff(scores_QK, axis=1) <= 0).all()


def test_a_widened_shortlist_is_counted_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    """If it fails, slow searches are not reported."""
    index, query_QD = index_of(4, 16, 1), np.ones((3, 4), np.float32)
    with caplog.at_level(logging.WARNING, "diptych.index"):
        index.search(query_QD, 4)
        assert index.full_scans.queries == 0
        index.search(query_QD, 5)
        assert index.full_scans.queries == 3
        index.rank(query_QD, 16, exact=True)
    assert index.full_scans.queries == 3
    assert "the shortlists had too few labels for" in caplog.text


def test_large_logits_keep_their_order() -> None:
    """If it fails, labels that the classifiers are sure of are ranked by row instead of by score."""
    rows = [np.array([[3e3, 0]], np.float32), np.array([[18, 0], [19, 0], [20, 0], [-900, 0], [1e6, 1e6]], np.float32)]
    index = CascadeIndex.build(rows, (np.zeros(5, np.int32),), (1,))
    rows_QK, scores_QK = index.rank(np.ones((1, 4), np.float32), 5)
    assert rows_QK.tolist() == [[4, 2, 1, 0, 3]]
    assert np.isfinite(scores_QK).all()
    assert index.rank(np.ones((1, 4), np.float32), 5, exact=True)[0].tolist() == rows_QK.tolist()


@pytest.mark.parametrize("exact", [False, True])
def test_a_query_of_nan_has_k_labels(exact: bool) -> None:
    """If it fails, a broken encoder makes a search loop or crash instead of returning low scores."""
    rows_QK, scores_QK = index_of(3, 9, 1).rank(np.full((1, 4), np.nan, np.float32), 5, exact=exact)
    assert len(set(rows_QK[0].tolist())) == 5
    assert (scores_QK == 0).all()


def test_no_allowed_label_gives_no_results() -> None:
    """If it fails, a filter that allows nothing crashes the search."""
    index = index_of(3, 9, 1)
    rows_QK, scores_QK = index.rank(np.ones((2, 4), np.float32), 5, index.tree.among(np.zeros(9, np.bool_)))
    assert rows_QK.shape == scores_QK.shape == (2, 0)
