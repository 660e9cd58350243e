"""The PCA projection of an index: its width, and the variance that it keeps."""

from pathlib import Path

import numpy as np
import pytest

from export.index.pca import ENERGY, SIMD_WIDTH, fit_projection, write_projected
from retrieval.search.indexes import HnswIndex, Vectors
from retrieval.search.pca_index import PcaIndex, rescore, to_rescore
from tests.contract.test_index import clustered


def flat_and_wide(n_labels: int = 3000, seed: int = 0) -> Vectors:
    """Return vectors of width 96 with most of their length in 20 directions that are not axes."""
    draw = np.random.default_rng(seed)
    spread = np.concatenate([np.ones(20), np.full(76, 0.1)])
    turn = np.linalg.qr(np.random.default_rng(9).standard_normal((96, 96)))[0]
    vectors = draw.standard_normal((n_labels, 96)) * spread @ turn
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


def test_few_directions_keep_most_of_the_energy() -> None:
    """If it fails, the index stores more numbers per label than needed, or too few to distinguish labels."""
    vectors_LD = flat_and_wide()
    projection_DW, energy = fit_projection(vectors_LD, 48)
    assert projection_DW.shape == (96, 2 * SIMD_WIDTH)
    np.testing.assert_allclose(projection_DW.T @ projection_DW, np.eye(2 * SIMD_WIDTH), atol=1e-5)
    kept = np.square(vectors_LD @ projection_DW).sum() / np.square(vectors_LD).sum()
    assert energy == pytest.approx(kept, abs=0.01)
    assert energy >= ENERGY


def test_a_short_half_is_projected_as_well() -> None:
    """If it fails, searches at a weight that favours the smaller half find little, and the recall gate fails."""
    vectors_LD = np.concatenate([flat_and_wide(), 0.4 * flat_and_wide(seed=1) + 0.3], axis=1)
    projection_DW, _ = fit_projection(vectors_LD, 96)
    assert projection_DW.shape[1] < 96
    varied_LD = vectors_LD - vectors_LD.mean(axis=0)
    lost_LD = varied_LD - varied_LD @ projection_DW @ projection_DW.T
    for half in (slice(None, 96), slice(96, None)):
        assert np.square(lost_LD[:, half]).sum() < 0.2 * np.square(varied_LD[:, half]).sum()


def test_narrow_vectors_have_at_most_all_directions() -> None:
    """If it fails, a model with very short vectors cannot be exported."""
    projection_DW, energy = fit_projection(clustered(200, dim=7), 3)
    assert projection_DW.shape == (7, 7)
    assert energy == pytest.approx(1.0)


def test_vectors_of_nothing_have_directions_too() -> None:
    """If it fails, a checkpoint whose label vectors are all zero ends in a traceback."""
    projection_DW, energy = fit_projection(np.zeros((40, 24), np.float32), 12)
    assert np.isfinite(projection_DW).all()
    assert 0.0 <= energy <= 1.0


def test_equal_vectors_stay_equal(tmp_path: Path) -> None:
    """If it fails, equal labels get different projections, and many of them form an unreachable part of the graph."""
    vectors_LD = flat_and_wide()
    vectors_LD[[5, 700, 2999]] = vectors_LD[42]
    projection_DW, _ = fit_projection(vectors_LD, 40)
    projected_LW = write_projected(vectors_LD, np.arange(len(vectors_LD)), projection_DW, tmp_path / "projected.npy")
    np.testing.assert_allclose(projected_LW, vectors_LD @ projection_DW, atol=1e-5)
    assert (projected_LW[[5, 700, 2999]] == projected_LW[42]).all()


def test_the_best_are_found_with_a_third_of_the_numbers_and_scored_with_all() -> None:
    """If it fails, the PCA index loses answers, or changes their scores."""
    vectors_LD, query_QD = flat_and_wide(), flat_and_wide(50, seed=4)
    projection_DW, _ = fit_projection(vectors_LD, 40)
    index = PcaIndex(HnswIndex.build(vectors_LD @ projection_DW, ef=200, threads=1), projection_DW)
    rows_QC, near_QC = index.search(query_QD, to_rescore(10, index, 200))
    rows_QK, scores_QK, dual_QK, classifier_QK = rescore(query_QD, rows_QC, vectors_LD, 40, 10)
    true_QL = query_QD @ vectors_LD.T
    best_QK = np.argsort(-true_QL, axis=1)[:, :10]
    assert np.mean([np.isin(found, best).mean() for found, best in zip(rows_QK, best_QK, strict=True)]) >= 0.99
    np.testing.assert_allclose(scores_QK, np.take_along_axis(true_QL, rows_QK, 1), atol=1e-5)
    np.testing.assert_allclose(dual_QK + classifier_QK, scores_QK, atol=1e-12)
    assert abs(near_QC[:, :10] - scores_QK).max() > 1e-3  # what the index itself says would not do
