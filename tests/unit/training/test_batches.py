"""Sampling, clusters and hard negatives on random data."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.batching import batches
from training.batching.clustering import balanced_clusters, random_clusters
from training.batching.hard_negatives import (
    CLUSTERS_PER_LABEL,
    cluster_centres,
    labels_near,
    mine_hard_negatives,
    nearest_clusters,
)
from training.data.ragged import Ragged
from training.recipe.sections import BatchingRecipe

LABELS = 40
label_lists = st.lists(
    st.lists(st.integers(0, LABELS - 1), min_size=1, max_size=8, unique=True), min_size=1, max_size=12
)


@given(label_lists, st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_positives_are_sampled_without_replacement(lists: list[list[int]], count: int, seed: int) -> None:
    """If it fails, β is not the number of positives per query, or a query gets labels of another query."""
    positives = Ragged.from_lists(lists)
    for row in range(len(positives)):
        alone = positives.take(np.array([row]))
        sampled = batches.sample_positives(alone, count, np.random.default_rng(seed))
        assert len(sampled[0]) == min(count, len(lists[row])) == len(set(sampled.values.tolist()))
        assert set(sampled.values.tolist()) <= set(lists[row])
    together = batches.sample_positives(positives, count, np.random.default_rng(seed))
    assert len(together.values) == sum(min(count, len(labels)) for labels in lists)


def test_all_labels_can_be_the_pool() -> None:
    """If it fails, recipes with pool_size=all (DEXML, Renee) omit labels."""
    positives = Ragged.from_lists([[3, 5], [7]])
    recipe = BatchingRecipe(pool_size="all")
    generator = np.random.default_rng(0)
    batch = batches.make_batch(np.arange(2), positives, None, Ragged.empty(2), None, LABELS, recipe, generator)
    assert batch.pool_P.tolist() == list(range(LABELS))
    assert batch.positive_column_M.tolist() == [3, 5, 7]
    assert batch.picked_column_O[0] in (3, 5)
    assert batch.picked_column_O[1] == 7


def test_every_positive_is_sampled_equally_often() -> None:
    """If it fails, sampling favours some labels of a query, such as the first ones."""
    positives, generator = Ragged.from_lists([list(range(6))]), np.random.default_rng(0)
    drawn = np.concatenate([batches.sample_positives(positives, 2, generator).values for _ in range(3000)])
    assert np.bincount(drawn, minlength=6) == pytest.approx(1000, rel=0.12)


@given(label_lists, st.integers(0, 2**32 - 1), st.integers(3, 30))
def test_every_true_label_in_the_pool_is_a_positive(lists: list[list[int]], seed: int, pool: int) -> None:
    """If it fails, a true label that another query added to the pool is treated as a negative."""
    generator = np.random.default_rng(seed)
    mined = generator.integers(-1, LABELS, size=(len(lists), 6)).astype(np.int32)
    exclude = Ragged.from_lists([[int(generator.integers(LABELS))] for _ in lists])
    positives = Ragged.from_lists(lists)
    positives = positives.keep(~positives.overlap(exclude))
    recipe = BatchingRecipe(positives=2, hard_negatives=3, pool_size=pool)
    true_V = generator.random(len(positives.values)).astype(np.float32)
    batch = batches.make_batch(np.arange(len(lists)), positives, true_V, exclude, mined, LABELS, recipe, generator)
    assert len(batch.pool_P) <= pool
    assert (np.diff(batch.pool_P) > 0).all()
    found = set(zip(batch.positive_row_M.tolist(), batch.pool_P[batch.positive_column_M].tolist(), strict=True))
    members = set(batch.pool_P.tolist())
    assert found == {(r, int(v)) for r in range(len(lists)) for v in positives[r] if int(v) in members}
    ignored = set(zip(batch.ignored_row.tolist(), batch.pool_P[batch.ignored_column].tolist(), strict=True))
    assert ignored == {(r, int(v)) for r in range(len(lists)) for v in exclude[r] if int(v) in members}
    assert not found & ignored
    how_true = {(r, int(v)): t for r, v, t in zip(positives.row_of_value, positives.values, true_V, strict=True)}
    assert batch.target_M is not None
    of_pairs = zip(batch.positive_row_M, batch.pool_P[batch.positive_column_M], batch.target_M, strict=True)
    assert all(how_true[int(row), int(label)] == target for row, label, target in of_pairs)
    picked = list(zip(batch.picked_row_O.tolist(), batch.pool_P[batch.picked_column_O].tolist(), strict=True))
    assert set(picked) <= found
    assert len({row for row, _ in picked}) == len(picked)


def test_a_full_pool_drops_hard_negatives_before_positives() -> None:
    """If it fails, a full pool drops positives although it has hard negatives."""
    generator = np.random.default_rng(1)
    pool = batches.label_pool(np.arange(10), np.arange(5, 40), 14, generator)
    assert len(pool) == 14
    assert set(range(10)) <= set(pool.tolist())
    assert len(batches.label_pool(np.arange(10), np.arange(5, 40), 6, generator)) == 6


def test_hard_negatives_are_drawn_without_replacement() -> None:
    """If it fails, padding is used as label −1, or a hard negative is drawn twice."""
    mined = np.array([[1, 2, 3, 4, -1, -1], [7, -1, -1, -1, -1, -1]], np.int32)
    drawn = batches.draw_hard_negatives(np.array([0]), mined, 3, np.random.default_rng(0))
    assert len(set(drawn.tolist())) == 3
    assert set(drawn.tolist()) <= {1, 2, 3, 4}
    assert batches.draw_hard_negatives(np.array([1]), mined, 3, np.random.default_rng(0)).tolist() == [7]


@given(st.integers(1, 300), st.integers(2, 64))
@settings(max_examples=40)
def test_clusters_are_balanced_and_complete(count: int, largest: int) -> None:
    """If it fails, a batch exceeds batch_size, or a query is never used for training."""
    vectors = np.random.default_rng(count).standard_normal((count, 5)).astype(np.float32)
    for clusters in (
        balanced_clusters(vectors, largest, np.random.default_rng(0)),
        random_clusters(count, largest, np.random.default_rng(0)),
    ):
        sizes = [len(cluster) for cluster in clusters]
        assert max(sizes) <= largest
        assert max(sizes) - min(sizes) <= 1
        assert sorted(np.concatenate(clusters).tolist()) == list(range(count))
        assert len(clusters) == 1 or len(clusters) & (len(clusters) - 1) == 0


def test_clusters_group_near_queries() -> None:
    """If it fails, batches are random and in-batch negatives easy."""
    generator = np.random.default_rng(3)
    centres = 10 * generator.standard_normal((4, 16))
    group = np.repeat(np.arange(4), 32)
    vectors = (centres[group] + generator.standard_normal((128, 16))).astype(np.float32)
    for cluster in balanced_clusters(vectors, 32, generator):
        assert np.bincount(group[cluster], minlength=4).max() >= 28


def candidates(queries: np.ndarray, labels: np.ndarray, clusters: Sequence[np.ndarray]) -> Ragged:
    return labels_near(nearest_clusters(cluster_centres(queries, clusters), labels), len(clusters))


def mined_from(
    queries: np.ndarray, labels: np.ndarray, clusters: Sequence[np.ndarray], not_negative: Ragged, count: int
) -> np.ndarray:
    near = candidates(queries, labels, clusters)
    return mine_hard_negatives(queries, labels, clusters, near, not_negative, count)


@pytest.mark.parametrize("block", [1 << 24, 130, 1])
def test_mined_negatives_are_the_nearest_that_are_not_true(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    """If it fails, a true or excluded label is a hard negative, or mining in blocks gives other labels."""
    monkeypatch.setattr("training.batching.hard_negatives.SCORES_PER_BLOCK", block)
    generator = np.random.default_rng(5)
    queries, labels = (generator.standard_normal((n, 8)).astype(np.float32) for n in (30, 50))
    not_negative = Ragged.from_lists(
        [generator.choice(50, size=int(n), replace=False) for n in generator.integers(0, 12, 30)]
    )
    clusters = np.array_split(generator.permutation(30), 5)  # fewer than CLUSTERS_PER_LABEL: every label is a candidate
    mined = mined_from(queries, labels, clusters, not_negative, 7)
    for row in range(30):
        order = [int(label) for label in np.argsort(-(labels @ queries[row])) if label not in not_negative[row]]
        assert mined[row].tolist() == order[:7]


def test_mined_negatives_are_padded_when_there_are_too_few() -> None:
    """If it fails, a query with few negatives gets invalid ones."""
    ones, both = np.ones((3, 2), np.float32), [np.array([1]), np.array([0])]
    mined = mined_from(ones[:2], ones, both, Ragged.from_lists([[2, 0, 1], [1]]), 4)
    assert mined[0].tolist() == [-1] * 4
    assert sorted(mined[1].tolist()) == [-1, -1, 0, 2]
    assert mined_from(ones[:2], ones[:0], both, Ragged.empty(2), 1).tolist() == [[-1], [-1]]


def test_with_many_clusters_mined_negatives_come_from_near_them() -> None:
    """If it fails, mining scores every query with every label, or returns distant labels."""
    generator = np.random.default_rng(6)
    subjects = generator.standard_normal((2 * CLUSTERS_PER_LABEL, 128)).astype(np.float32)
    subjects /= np.linalg.norm(subjects, axis=1, keepdims=True)
    own_N, own_L = np.repeat(np.arange(len(subjects)), 5), generator.permutation(np.repeat(np.arange(len(subjects)), 9))
    queries, labels = (
        subjects[own] + 0.02 * generator.standard_normal((len(own), 128)).astype(np.float32) for own in (own_N, own_L)
    )
    clusters = np.split(np.arange(len(own_N)), len(subjects))
    near = candidates(queries, labels, clusters)
    assert len(near.values) == CLUSTERS_PER_LABEL * len(labels)
    assert all((np.diff(rows) > 0).all() for rows in near)
    mined = mined_from(queries, labels, clusters, Ragged.empty(len(queries)), 9)
    assert (own_L[mined] == own_N[:, None]).all()


def test_processes_that_mine_for_some_clusters_each_find_all_negatives() -> None:
    """If it fails, mining in several processes gives other hard negatives, or none for some queries."""
    generator = np.random.default_rng(7)
    queries, labels = (generator.standard_normal((n, 8)).astype(np.float32) for n in (400, 90))
    not_negative = Ragged.from_lists([generator.choice(90, size=3, replace=False) for _ in range(400)])
    clusters = np.array_split(generator.permutation(400), 2 * CLUSTERS_PER_LABEL + 1)
    whole = mined_from(queries, labels, clusters, not_negative, 5)
    cluster_LF = nearest_clusters(cluster_centres(queries, clusters), labels)
    parts = [
        mine_hard_negatives(
            queries, labels, clusters[rank::3], labels_near(cluster_LF, len(clusters), rank, 3), not_negative, 5
        )
        for rank in range(3)
    ]
    assert np.array_equal(np.max(parts, axis=0), whole)
    assert all((part == -1).all(axis=1).any() for part in parts), "each process mined for all queries"


def test_a_pool_is_filled_with_other_positives_of_its_queries() -> None:
    """If it fails, a pool without hard negatives is smaller than one with them, or gets labels of other queries."""
    positives = Ragged.from_lists([[0, 1, 2, 3], [3, 4, 5, 6], [9]])

    def pool(**keys: object) -> list[int]:
        recipe = BatchingRecipe.model_validate({"positives": 1, "hard_negatives": 0, **keys})
        batch = batches.make_batch(
            np.array([0, 1]), positives, None, Ragged.empty(3), None, 10, recipe, np.random.default_rng(5)
        )
        in_pool = [set(positives[row].tolist()) & set(batch.pool_P.tolist()) for row in (0, 1)]
        assert len(batch.positive_row_M) == sum(map(len, in_pool))
        return batch.pool_P.tolist()

    assert len(pool(pool_size=5)) <= 2
    assert len(pool(pool_size=5, fill_with_positives=True)) == 5
    assert pool(pool_size=100, fill_with_positives=True) == [0, 1, 2, 3, 4, 5, 6]
