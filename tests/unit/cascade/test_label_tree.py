"""The label tree of a cascade: features of labels, and balanced nested clusters."""

from collections import Counter

import numpy as np
import pytest
from scipy.sparse import csr_array

from training.batching.label_tree import label_features, normalized, tf_idf, tree_of
from training.data.ragged import Ragged
from training.data.token_cache import TokenizedTexts, inverse_document_frequency

LABELS, TOPICS, WIDTH = 200, 8, 40
CLUSTERS = (2, 8, 64)


@pytest.fixture
def topic_L() -> np.ndarray:
    return np.random.default_rng(0).permutation(np.repeat(np.arange(TOPICS), LABELS // TOPICS))


@pytest.fixture
def features_LV(topic_L: np.ndarray) -> csr_array:
    """Noisy vectors around one direction per topic."""
    noise_LV = np.abs(np.random.default_rng(1).normal(0, 0.1, (LABELS, WIDTH)))
    noise_LV[np.arange(LABELS), topic_L] += 1
    return normalized(csr_array(noise_LV.astype(np.float32)))


def tokens(*texts: list[int]) -> TokenizedTexts:
    return TokenizedTexts(Ragged.from_lists(texts), 0)


def test_clusters_are_balanced_and_nested(features_LV: csr_array) -> None:
    """If it fails, one cluster makes every search that keeps it slow, or a label is below two clusters of a level."""
    parents = tree_of(features_LV, CLUSTERS, np.random.default_rng(0))
    assert [len(parent_N) for parent_N in parents] == [8, 64, LABELS]
    assert set(np.bincount(parents[0])) == {4}
    assert set(np.bincount(parents[1])) == {8}
    assert set(np.bincount(parents[2])) == {3, 4}
    for level, node_L in enumerate((parents[1][parents[2]], parents[0][parents[1][parents[2]]])):
        count = np.bincount(node_L)
        assert len(count) == CLUSTERS[1 - level]
        assert count.max() - count.min() <= 1


def test_similar_labels_are_in_one_cluster(features_LV: csr_array, topic_L: np.ndarray) -> None:
    """If it fails, the tree is random, and no shortlist can find the true clusters."""
    parents = tree_of(features_LV, CLUSTERS, np.random.default_rng(0))
    middle_L = parents[1][parents[2]]
    most_frequent = sum(Counter(topic_L[middle_L == node].tolist()).most_common(1)[0][1] for node in range(8))
    assert most_frequent / LABELS > 0.9


def test_the_same_seed_gives_the_same_tree(features_LV: csr_array) -> None:
    """If it fails, the same recipe gives other weights; or the seed has no effect."""
    first, again, other = (tree_of(features_LV, CLUSTERS, np.random.default_rng(seed)) for seed in (3, 3, 4))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[-1], other[-1])


def test_a_label_has_the_normalized_sum_of_its_queries() -> None:
    """If it fails, clusters do not follow the queries: the features are not N(Yᵀ X)."""
    queries, texts = tokens([1, 2, 2], [1, 3], [4]), tokens([5], [1, 4])
    labels = Ragged.from_lists([[0], [0], []])
    features_LV = label_features(queries, labels, texts, 6).toarray()
    idf_V = inverse_document_frequency(6, queries).numpy()
    assert idf_V[2] == pytest.approx(np.log(3 / 2))
    rows = [np.zeros(6), np.zeros(6)]
    for row, ids in zip(rows, ([1, 2, 2], [1, 3]), strict=True):
        np.add.at(row, ids, idf_V[ids])
    expected_V = sum(row / np.linalg.norm(row) for row in rows)
    assert features_LV[0] == pytest.approx(expected_V / np.linalg.norm(expected_V), abs=1e-6)


def test_a_label_without_a_query_has_the_features_of_its_text() -> None:
    """If it fails, labels that are new to training are all in one arbitrary cluster."""
    queries, texts = tokens([1], [2], [3]), tokens([1], [2, 3])
    features_LV = label_features(queries, Ragged.from_lists([[0], [], []]), texts, 4).toarray()
    text_LV = tf_idf(texts, inverse_document_frequency(4, queries).numpy().astype(np.float32)).toarray()
    assert features_LV[1] == pytest.approx(text_LV[1])
    assert np.linalg.norm(features_LV, axis=1) == pytest.approx([1, 1])
