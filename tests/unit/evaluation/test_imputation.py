"""Imputed classifier rows of untrained labels, against the formula and in edge cases."""

import numpy as np
import pytest
import torch

from training.evaluation import imputation
from training.evaluation.imputation import CONE_FRACTIONS, NEIGHBOURS, impute

L, D, C = 60, 8, 6


@pytest.fixture
def dual_LD() -> np.ndarray:
    vectors_LD = np.random.default_rng(0).standard_normal((L, D)).astype(np.float32)
    return vectors_LD / np.linalg.norm(vectors_LD, axis=1, keepdims=True)


@pytest.fixture
def rows_LC() -> torch.Tensor:
    return 3 * torch.randn(L, C, generator=torch.Generator().manual_seed(0)) + 2


@pytest.fixture
def trained_L() -> np.ndarray:
    return np.arange(L) % 4 > 0


def by_definition(
    dual_LD: np.ndarray, rows_LC: torch.Tensor, trained_L: np.ndarray, cone_fraction: float = 0.5
) -> np.ndarray:
    unit_LC = (rows_LC / rows_LC.norm(dim=1, keepdim=True)).numpy().astype(np.float64)
    mean_C = unit_LC[trained_L].mean(axis=0)
    rows = []
    for label in np.flatnonzero(~trained_L):
        order = sorted(np.flatnonzero(trained_L), key=lambda other: -float(dual_LD[label] @ dual_LD[other]))
        near_C = unit_LC[order[:NEIGHBOURS]].mean(axis=0)
        rows.append(near_C - (1 - cone_fraction) * (near_C @ mean_C) / (mean_C @ mean_C) * mean_C)
    return np.array(rows)


@pytest.mark.parametrize("block", [4, 8192])
def test_an_untrained_label_takes_after_its_nearest_trained_ones(
    dual_LD: np.ndarray, rows_LC: torch.Tensor, trained_L: np.ndarray, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    """If it fails, new labels are scored by labels that have nothing to do with them."""
    monkeypatch.setattr(imputation, "LABELS_PER_BLOCK", block)
    imputation_ = impute(dual_LD, rows_LC, trained_L)
    for cone_fraction in CONE_FRACTIONS:
        expected_UC = by_definition(dual_LD, rows_LC, trained_L, cone_fraction)
        np.testing.assert_allclose(imputation_.rows(cone_fraction).numpy(), expected_UC, atol=1e-5)
    torch.testing.assert_close(imputation_.rows(0.5, 3, 7), imputation_.rows(0.5)[3:7])


def test_a_scaled_view_of_half_a_vector_will_do(
    dual_LD: np.ndarray, rows_LC: torch.Tensor, trained_L: np.ndarray
) -> None:
    """If it fails, export and validation give an untrained label different rows."""
    wide_LD = 0.7 * np.concatenate([dual_LD, np.ones((L, 3), np.float32)], axis=1)
    expected_UC = impute(dual_LD, rows_LC, trained_L).rows(0.5)
    torch.testing.assert_close(
        impute(wide_LD[:, :D], rows_LC.bfloat16(), trained_L).rows(0.5), expected_UC, atol=0.02, rtol=0
    )


def test_a_graph_finds_the_neighbours_of_many(
    dual_LD: np.ndarray, rows_LC: torch.Tensor, trained_L: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it fails, a catalogue of millions gets other rows than a small one, or an export of days."""
    expected_UC = impute(dual_LD, rows_LC, trained_L).rows(0.5)
    monkeypatch.setattr(imputation, "MAX_EXACT_PAIRS", 1)
    monkeypatch.setattr(imputation, "MAX_EXACT_LABELS", 1)
    monkeypatch.setattr(imputation, "ExactIndex", None)
    torch.testing.assert_close(impute(dual_LD, rows_LC, trained_L).rows(0.5), expected_UC)


def test_vectors_that_are_not_copied_have_the_same_neighbours(
    dual_LD: np.ndarray, rows_LC: torch.Tensor, trained_L: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it fails, a catalogue of a million labels gets other rows than a small one."""
    expected_UC = impute(dual_LD, rows_LC, trained_L).rows(0.5)
    monkeypatch.setattr(imputation, "MAX_COPIED_VALUES", 1)
    torch.testing.assert_close(impute(dual_LD, rows_LC, trained_L).rows(0.5), expected_UC)


def test_fewer_trained_labels_than_neighbours(dual_LD: np.ndarray, rows_LC: torch.Tensor) -> None:
    """If it fails, a dataset of few clicks cannot be validated or exported."""
    two_L = np.arange(L) < 2
    np.testing.assert_allclose(
        impute(dual_LD, rows_LC, two_L).rows(0.5).numpy(), by_definition(dual_LD, rows_LC, two_L), atol=1e-5
    )
    assert not impute(dual_LD, rows_LC, np.zeros(L, bool)).rows(0.5).any()
    assert impute(dual_LD, rows_LC, np.ones(L, bool)).rows(0.5).shape == (0, C)


def test_progress_ends_at_the_last_label(
    dual_LD: np.ndarray, rows_LC: torch.Tensor, trained_L: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it fails, the progress bar of an export never reaches its end."""
    monkeypatch.setattr(imputation, "LABELS_PER_BLOCK", 4)
    seen: list[tuple[int, int]] = []
    impute(dual_LD, rows_LC, trained_L, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(4, 15), (8, 15), (12, 15), (15, 15)]
