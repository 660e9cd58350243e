"""The contract of every VectorIndex; add a new implementation to `INDEXES`."""

import atexit
import shutil
import tempfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from retrieval.errors import BadInput
from retrieval.milvus.index import MilvusIndex
from retrieval.milvus.server import GraphFacts, MilvusServer, batches
from retrieval.milvus.settings import MilvusSettings
from retrieval.milvus.source import DirectSource
from retrieval.quantized_vectors import QuantizedVectors, quantize
from retrieval.search.cascade_index import CascadeIndex, sigmoid
from retrieval.search.indexes import ExactIndex, HnswIndex, VectorIndex, Vectors
from retrieval.search.pca_index import PcaIndex

CLUSTER_DIM = 8  # columns of the vectors that score clusters in a cascade


def turned(vectors_LD: Vectors) -> VectorIndex:
    """Return a PCA index with as many directions as dimensions: a rotation, which keeps inner products."""
    directions_DD = np.linalg.qr(np.random.default_rng(3).standard_normal((vectors_LD.shape[1],) * 2))[0]
    directions_DD = directions_DD.astype(np.float32)
    return PcaIndex(HnswIndex.build(vectors_LD @ directions_DD, ef=200, threads=2), directions_DD)


def quantized(vectors_LD: Vectors) -> QuantizedVectors:
    """Return the vectors in int8, with halves of unequal width."""
    return QuantizedVectors(*quantize(vectors_LD, 10), dual_dim=10) if vectors_LD.size else vectors_LD  # type: ignore[return-value]  # an empty array has no halves


def cluster_of(vectors_LD: Vectors) -> tuple[np.ndarray, Vectors]:
    """Return the cluster of each label, of up to 40 labels that are alike, and the rows of the clusters."""
    number_L = np.argsort(np.argsort(vectors_LD[:, 0], kind="stable"), kind="stable") // 40
    rows_N = [vectors_LD[number_L == one, :CLUSTER_DIM].mean(axis=0) for one in range(number_L.max(initial=-1) + 1)]
    return number_L, np.asarray(rows_N, np.float32).reshape(-1, CLUSTER_DIM)


def cascade(vectors_LD: Vectors) -> VectorIndex:
    """Return a cascade of two levels: the first columns score clusters, the others labels."""
    number_L, clusters_NE = cluster_of(vectors_LD)
    return CascadeIndex.build((clusters_NE, vectors_LD[:, CLUSTER_DIM:]), (number_L,), (100,))


class LiteServer:
    """A Milvus Lite file, and the number of collections made in it."""

    def __init__(self, folder: Path) -> None:
        self.settings = MilvusSettings(str(folder / "milvus.db"), seconds=120, wait_seconds=0)
        self.server = MilvusServer(self.settings)
        self.made = 0

    def index_of(self, vectors_LD: Vectors) -> VectorIndex:
        """Fill a new collection and return its index."""
        if vectors_LD.ndim != 2 or not vectors_LD.size:
            raise BadInput(f"an index needs vectors of shape (labels, width), not {vectors_LD.shape}")
        size, width = vectors_LD.shape
        self.made += 1
        name = f"test_{self.made}"
        self.server.create(name, GraphFacts(width, 16, 200), "contract test")
        for start, block_BW in batches(vectors_LD, 2_000):
            self.server.insert(name, start, block_BW)
        self.server.finish(name)
        return MilvusIndex(DirectSource(self.settings, name), size, width, ef=200)


@lru_cache(1)
def lite_server() -> LiteServer:
    """One server for all tests of this process, since a start takes a second."""
    folder = Path(tempfile.mkdtemp(prefix="diptych-milvus-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return LiteServer(folder)


def inner_products(query_QD: Vectors, vectors_LD: Vectors) -> np.ndarray:
    return query_QD @ vectors_LD.T


def cascade_scores(query_QD: Vectors, vectors_LD: Vectors) -> np.ndarray:
    number_L, clusters_NE = cluster_of(vectors_LD)
    above_QN = sigmoid(query_QD[:, :CLUSTER_DIM] @ clusters_NE.T)
    return sigmoid(query_QD[:, CLUSTER_DIM:] @ vectors_LD[:, CLUSTER_DIM:].T) * above_QN[:, number_L]


class Kind(NamedTuple):
    """An implementation, and the scores [Q, L] that it must find the largest of."""

    make: Callable[[Vectors], VectorIndex]
    scores: Callable[[Vectors, Vectors], np.ndarray] = inner_products
    is_exact: bool = False


INDEXES = {
    "exact": Kind(lambda vectors_LD: ExactIndex(vectors_LD, threads=1), is_exact=True),
    "exact, int8": Kind(
        lambda vectors_LD: ExactIndex(quantized(vectors_LD), threads=1),
        lambda query_QD, vectors_LD: query_QD @ quantized(vectors_LD)[:].T,
        is_exact=True,
    ),
    "hnsw": Kind(lambda vectors_LD: HnswIndex.build(vectors_LD, ef=200, threads=2)),
    "narrow": Kind(turned),
    "milvus": Kind(lambda vectors_LD: lite_server().index_of(vectors_LD)),
    "cascade": Kind(cascade, cascade_scores),
}


@pytest.fixture(params=sorted(INDEXES))
def kind(request: pytest.FixtureRequest) -> Kind:
    return INDEXES[request.param]


@pytest.fixture
def make(kind: Kind) -> Callable[[Vectors], VectorIndex]:
    return kind.make


def clustered(n_labels: int, dim: int = 24, seed: int = 0) -> Vectors:
    """Return vectors of different lengths around a few centres, like label vectors."""
    draw = np.random.default_rng(seed)
    centres = draw.standard_normal((12, dim))
    vectors = centres[draw.integers(0, 12, n_labels)] + 0.4 * draw.standard_normal((n_labels, dim))
    lengths = draw.choice([1.0, 0.7], n_labels)
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True) * lengths[:, None], np.float32)


def test_finds_the_greatest_scores(kind: Kind) -> None:
    """If it fails, searches miss labels that a comparison of all labels finds."""
    vectors_LD, query_QD = clustered(3000), clustered(40, seed=1)
    rows_QK, scores_QK = kind.make(vectors_LD).search(query_QD, 10)
    scores_QL = kind.scores(query_QD, vectors_LD)
    best_QK = np.argsort(-scores_QL, axis=1)[:, :10]
    recall = np.mean([len(set(found) & set(best)) / 10 for found, best in zip(rows_QK, best_QK, strict=True)])
    assert recall >= 0.99
    true_QK = np.take_along_axis(scores_QL, rows_QK, 1)
    np.testing.assert_allclose(scores_QK, true_QK, atol=1e-5)


def test_only_exact_indexes_say_that_they_miss_nothing(kind: Kind) -> None:
    """If it fails, every label is compared a second time, or approximate answers are taken for exact ones."""
    assert kind.make(clustered(50)).is_exact == kind.is_exact


def test_answers_come_best_first_and_once(make: Callable[[Vectors], VectorIndex]) -> None:
    """If it fails, a caller that truncates a ranking loses good labels, or shows one twice."""
    rows_QK, scores_QK = make(clustered(500)).search(clustered(9, seed=2), 50)
    assert (np.diff(scores_QK, axis=1) <= 1e-6).all()
    assert all(len(set(row)) == 50 for row in rows_QK)
    assert rows_QK.dtype == np.int64
    assert scores_QK.dtype == np.float32


def test_many_equal_vectors_hide_nothing(kind: Kind) -> None:
    """If it fails, many labels with equal vectors make themselves, or labels near them, unreachable."""
    draw = np.random.default_rng(0)
    vectors_LD = np.asarray(draw.standard_normal((5000, 24)), np.float32)
    vectors_LD[draw.permutation(5000)[:2000]] = vectors_LD[0]
    vectors_LD[draw.permutation(5000)[:200]] = 0
    query_QD = np.asarray(vectors_LD[::25] + 0.1 * draw.standard_normal((200, 24)), np.float32)
    scores_QL = kind.scores(query_QD, vectors_LD)
    rows_QK, _ = kind.make(vectors_LD).search(query_QD, 10)
    assert all(len(set(row)) == 10 for row in rows_QK)
    tenth_Q1 = np.partition(scores_QL, -10, axis=1)[:, -10, None]
    assert (np.take_along_axis(scores_QL, rows_QK, 1) >= tenth_Q1 - 1e-4).mean() >= 0.99


@pytest.mark.parametrize("k", [1, 5, 6, 1000])
def test_a_small_index_gives_all_it_has(make: Callable[[Vectors], VectorIndex], k: int) -> None:
    """If it fails, a request for more labels than exist raises or pads instead of returning all of them."""
    index = make(clustered(6))
    rows_QK, scores_QK = index.search(clustered(3, seed=3), k)
    assert rows_QK.shape == scores_QK.shape == (3, min(k, 6))
    assert (index.size, index.dim) == (6, 24)


def test_one_vector_is_an_index(make: Callable[[Vectors], VectorIndex]) -> None:
    """If it fails, a catalogue with a single label cannot be served."""
    rows_QK, _ = make(clustered(1)).search(clustered(2), 3)
    assert rows_QK.tolist() == [[0], [0]]


def test_no_queries_give_no_answers(make: Callable[[Vectors], VectorIndex]) -> None:
    """If it fails, an empty batch crashes the caller that assembled it."""
    rows_QK, scores_QK = make(clustered(10)).search(np.empty((0, 24), np.float32), 4)
    assert rows_QK.shape == scores_QK.shape == (0, 4)


def test_many_queries_equal_single_ones(make: Callable[[Vectors], VectorIndex]) -> None:
    """If it fails, an answer depends on which other queries share its batch."""
    index, query_QD = make(clustered(800)), clustered(600, seed=4)
    rows_QK, _ = index.search(query_QD, 5)
    for query in (0, 255, 256, 599):
        assert index.search(query_QD[query : query + 1], 5)[0].tolist() == [rows_QK[query].tolist()]


def test_a_column_major_query_of_doubles_is_understood(make: Callable[[Vectors], VectorIndex]) -> None:
    """If it fails, vectors in another memory layout are read incorrectly."""
    index, query_QD = make(clustered(100)), clustered(7, seed=5)
    odd_QD = np.asfortranarray(query_QD.astype(np.float64))
    assert index.search(odd_QD, 3)[0].tolist() == index.search(query_QD, 3)[0].tolist()  # type: ignore[arg-type]


@pytest.mark.parametrize(("shape", "k"), [((1, 23), 1), ((24,), 1), ((1, 24), 0)])
def test_a_bad_question_is_refused(make: Callable[[Vectors], VectorIndex], shape: tuple[int, ...], k: int) -> None:
    """If it fails, a vector of the wrong width reaches native code, which reads past its end."""
    with pytest.raises(BadInput):
        make(clustered(10)).search(np.zeros(shape, np.float32), k)


def test_no_vectors_are_refused(make: Callable[[Vectors], VectorIndex]) -> None:
    """If it fails, an empty index is built and every later search fails obscurely."""
    with pytest.raises(BadInput, match="needs vectors"):
        make(np.empty((0, 4), np.float32))
