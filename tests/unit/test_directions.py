"""The few directions that an index is about, and what they keep."""

from pathlib import Path

import numpy as np
import pytest

from export.directions import ENERGY, LANES, principal_directions, write_narrowed
from retrieval.search.indexes import HnswIndex, Vectors
from retrieval.search.pca_index import PcaIndex, rescore, to_rescore
from tests.contract.test_index import clustered


def flat_and_wide(n_labels: int = 3000, seed: int = 0) -> Vectors:
    """Vectors of 96 numbers, most of whose length lies in 20 directions that no axis follows."""
    draw = np.random.default_rng(seed)
    spread = np.concatenate([np.ones(20), np.full(76, 0.1)])
    turn = np.linalg.qr(np.random.default_rng(9).standard_normal((96, 96)))[0]
    vectors = draw.standard_normal((n_labels, 96)) * spread @ turn
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


def test_few_directions_keep_most_of_the_energy() -> None:
    """If it fails, the index is wider than it needs to be, or knows too little of the labels."""
    vectors_LD = flat_and_wide()
    directions_DW, energy = principal_directions(vectors_LD, 48)
    assert directions_DW.shape == (96, 2 * LANES)
    np.testing.assert_allclose(directions_DW.T @ directions_DW, np.eye(2 * LANES), atol=1e-5)
    kept = np.square(vectors_LD @ directions_DW).sum() / np.square(vectors_LD).sum()
    assert energy == pytest.approx(kept, abs=0.01)
    assert energy >= ENERGY


def test_a_half_of_little_length_is_kept_as_well() -> None:
    """If it fails, searches at a weight where the lesser half decides find little, and export refuses the bundle."""
    vectors_LD = np.concatenate([flat_and_wide(), 0.4 * flat_and_wide(seed=1) + 0.3], axis=1)
    directions_DW, _ = principal_directions(vectors_LD, 96)
    assert directions_DW.shape[1] < 96
    varied_LD = vectors_LD - vectors_LD.mean(axis=0)
    lost_LD = varied_LD - varied_LD @ directions_DW @ directions_DW.T
    for half in (slice(None, 96), slice(96, None)):
        assert np.square(lost_LD[:, half]).sum() < 0.2 * np.square(varied_LD[:, half]).sum()


def test_narrow_vectors_have_at_most_all_directions() -> None:
    """If it fails, a model of a few numbers cannot be exported."""
    directions_DW, energy = principal_directions(clustered(200, dim=7), 3)
    assert directions_DW.shape == (7, 7)
    assert energy == pytest.approx(1.0)


def test_vectors_of_nothing_have_directions_too() -> None:
    """If it fails, a checkpoint whose label vectors are all zero ends in a traceback."""
    directions_DW, energy = principal_directions(np.zeros((40, 24), np.float32), 12)
    assert np.isfinite(directions_DW).all()
    assert 0.0 <= energy <= 1.0


def test_equal_vectors_stay_equal(tmp_path: Path) -> None:
    """If it fails, the index does not know them as equal, and many equal ones make an island that no search leaves."""
    vectors_LD = flat_and_wide()
    vectors_LD[[5, 700, 2999]] = vectors_LD[42]
    directions_DW, _ = principal_directions(vectors_LD, 40)
    narrow_LW = write_narrowed(vectors_LD, np.arange(len(vectors_LD)), directions_DW, tmp_path / "narrowed.npy")
    np.testing.assert_allclose(narrow_LW, vectors_LD @ directions_DW, atol=1e-5)
    assert (narrow_LW[[5, 700, 2999]] == narrow_LW[42]).all()


def test_the_best_are_found_with_a_third_of_the_numbers_and_scored_with_all() -> None:
    """If it fails, the narrow index costs answers, or their scores."""
    vectors_LD, query_QD = flat_and_wide(), flat_and_wide(50, seed=4)
    directions_DW, _ = principal_directions(vectors_LD, 40)
    index = PcaIndex(HnswIndex.build(vectors_LD @ directions_DW, ef=200, threads=1), directions_DW)
    rows_QC, near_QC = index.search(query_QD, to_rescore(10, index, 200))
    rows_QK, scores_QK, dual_QK, classifier_QK = rescore(query_QD, rows_QC, vectors_LD, 40, 10)
    true_QL = query_QD @ vectors_LD.T
    best_QK = np.argsort(-true_QL, axis=1)[:, :10]
    assert np.mean([np.isin(found, best).mean() for found, best in zip(rows_QK, best_QK, strict=True)]) >= 0.99
    np.testing.assert_allclose(scores_QK, np.take_along_axis(true_QL, rows_QK, 1), atol=1e-5)
    np.testing.assert_allclose(dual_QK + classifier_QK, scores_QK, atol=1e-12)
    assert abs(near_QC[:, :10] - scores_QK).max() > 1e-3  # what the index itself says would not do
