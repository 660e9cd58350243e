"""Label vectors in int8 and exact indexes: their numbers, and the answers of bundles that contain them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from retrieval import Retriever, open_bundle
from retrieval.bundle.manifest import VECTOR_SCALES, VECTORS
from retrieval.bundle.verified_files import verify_bundle
from retrieval.errors import BundleError
from retrieval.quantized_vectors import QuantizedVectors, quantize
from retrieval.search.indexes import ExactIndex
from service.bundles.memory_check import needed_memory
from tests.support.bundles import VOTES, label_texts, make_bundle
from tests.support.mutations import rehash

TEXTS = [*label_texts(), *label_texts(3) * 20]  # some labels share a vector
QUERIES = label_texts(60, seed=3)
KINDS: dict[str, dict[str, Any]] = {
    "hnsw, int8": {"vectors": "int8"},
    "exact, int8": {"vectors": "int8", "kind": "exact"},
    "exact, float32": {"kind": "exact"},
}


def some(n: int, dim: int = 20, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, dim)).astype(np.float32)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Bundles that differ in precision and kind only."""
    folder = tmp_path_factory.mktemp("quantized")
    kinds = KINDS | {"hnsw, float32": {}}
    return {name: make_bundle(folder / name, TEXTS, memory=VOTES, **facts) for name, facts in kinds.items()}


@pytest.fixture(params=KINDS)
def retriever(request: pytest.FixtureRequest, folders: dict[str, Path]) -> Retriever:
    return open_bundle(folders[request.param], paused=())


@pytest.fixture(scope="module")
def usual(folders: dict[str, Path]) -> Retriever:
    return open_bundle(folders["hnsw, float32"], paused=())


@pytest.mark.parametrize("dual_dim", [7, 20])
def test_a_number_is_off_by_at_most_half_a_step(dual_dim: int) -> None:
    """If it fails, scores differ from the checkpoint's by more than int8 explains."""
    vectors_LD = some(300) * np.geomspace(1e-3, 1e3, 300, dtype=np.float32)[:, None]
    vectors_LD[:, 7:] *= 50
    quantized = QuantizedVectors(*quantize(vectors_LD, dual_dim), dual_dim)
    for half in (slice(0, dual_dim), slice(dual_dim, 20)):
        error_LD = np.abs(quantized[:] - vectors_LD)[:, half]
        if error_LD.size:
            step_L1 = np.abs(vectors_LD[:, half]).max(axis=1, keepdims=True) / 127
            assert (error_LD <= 0.501 * step_L1).all()


def test_special_vectors_stay_special() -> None:
    """If it fails, labels with equal vectors have different scores, or a label without a vector is returned."""
    vectors_LD = some(50)
    vectors_LD[[3, 17]] = vectors_LD[40]
    vectors_LD[5] = 0
    vectors_LD[6, :8] = 0
    quantized = QuantizedVectors(*quantize(vectors_LD, 8), 8)
    assert (quantized[np.array([3, 17])] == quantized[40]).all()
    assert not quantized[5].any()
    assert not quantized[6][:8].any()
    assert quantized[6][8:].any()


def test_rows_are_read_in_every_way_that_an_array_offers() -> None:
    """If it fails, a search gets the vectors of other labels."""
    quantized = QuantizedVectors(*quantize(some(30), 8), 8)
    whole_LD = quantized[:]
    assert whole_LD.dtype == np.float32
    assert (len(quantized), quantized.shape, quantized.ndim, quantized.size) == (30, (30, 20), 2, 600)
    rows = np.random.default_rng(1).integers(0, 30, (4, 5))
    for key in (slice(3, 9), slice(28, 99), rows, rows[0], 7, np.arange(30) % 2 == 0):
        np.testing.assert_array_equal(quantized[key], whole_LD[key])
    assert quantized[np.empty((2, 0), np.int64)].shape == (2, 0, 20)


def test_scales_of_other_vectors_are_refused() -> None:
    """If it fails, codes are multiplied with the scales of other labels or of another half."""
    codes_LD, scales_LH = quantize(some(30), 8)
    for scales in (scales_LH[1:], scales_LH[:, :1]):
        with pytest.raises(ValueError, match="do not fit scales"):
            QuantizedVectors(codes_LD, scales, 8)


def test_exact_search_reads_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """If it fails, labels at the border of two blocks are lost, or all vectors become float32 at once."""
    monkeypatch.setattr("retrieval.search.indexes.QUANTIZED_LABELS_PER_BLOCK", 7)
    quantized, query_QD = QuantizedVectors(*quantize(some(100), 8), 8), some(9, seed=2)
    rows_QK, scores_QK = ExactIndex(quantized, 1).search(query_QD, 12)
    expected_QK, best_QK = ExactIndex(quantized[:], 1).search(query_QD, 12)
    assert (rows_QK == expected_QK).all()
    np.testing.assert_allclose(scores_QK, best_QK, atol=1e-5)


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(
    "search",
    [{}, {"exact": True}, {"filter": {"market": ["US"]}}, {"filter": {"year": [2021]}, "memory_weight": 0.0}],
    ids=str,
)
def test_answers_are_those_of_the_usual_bundle(
    retriever: Retriever, usual: Retriever, weight: float, search: dict[str, Any]
) -> None:
    """If it fails, a bundle with small vectors or without a graph answers differently."""
    for k in (1, 10, 70):
        found = retriever.search_rows(QUERIES, k, weight=weight, **search)
        expected = usual.search_rows(QUERIES, k, weight=weight, **({"exact": True} | search))
        np.testing.assert_allclose(found.scores_QK, expected.scores_QK, atol=0.01)
        same = [len(set(one) & set(other)) for one, other in zip(found.rows_QK, expected.rows_QK, strict=True)]
        assert np.mean(same) >= 0.95 * k
    assert retriever.full_scans == 0


def test_labels_with_equal_vectors_are_ranked_by_row(retriever: Retriever) -> None:
    """If it fails, an answer lists equal labels in any order, or leaves some of them out."""
    vectors_LD = retriever.vectors_LD[:]
    equal = np.flatnonzero((vectors_LD == vectors_LD[-1]).all(axis=1))
    assert len(equal) > 20
    ranking = retriever.search_rows([TEXTS[-1]], len(equal) + 10, weight=0.0, memory_weight=0.0)
    assert [row for row in ranking.rows_QK[0].tolist() if row in equal] == equal.tolist()


def test_int8_takes_a_quarter_of_the_bytes(folders: dict[str, Path]) -> None:
    """If it fails, a bundle in int8 is not smaller, or a service starts an engine that does not fit into memory."""
    whole, small, exact = (
        verify_bundle(folders[name]) for name in ("hnsw, float32", "hnsw, int8", "exact, int8")
    )  # fmt: skip
    assert small.files[VECTORS].bytes < 0.3 * whole.files[VECTORS].bytes
    assert small.files[VECTOR_SCALES].bytes < 8 * len(TEXTS) + 200
    assert needed_memory(exact) >= 4 * exact.labels.count * exact.label_dim


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        (VECTOR_SCALES, lambda array: np.full_like(array, np.nan), "vector_scales.npy contains a vector that is not"),
        (VECTOR_SCALES, lambda array: array[1:], r"float32 of shape \(599, 2\)"),
        (VECTOR_SCALES, lambda array: np.repeat(array, 9, axis=1), "vector_scales.npy has .* too many"),
        (VECTORS, lambda array: array[:, :-1], "vectors.npy is too short"),
        (VECTORS, lambda array: array.view(np.uint8), "vectors.npy is an array of uint8"),
        (VECTORS, lambda array: array.astype(np.float32), "vectors.npy has .* too many"),
    ],
)
def test_other_arrays_are_refused(tmp_path: Path, name: str, change: Any, said: str) -> None:
    """If it fails, a hostile bundle is searched with numbers of another type or size."""
    folder = make_bundle(tmp_path / "bundle", label_texts(600), vectors="int8")
    np.save(folder / name, change(np.load(folder / name)))
    rehash(folder, name)
    with pytest.raises(BundleError, match=said):
        open_bundle(folder)
