"""What each index does beyond the common contract: files, blocks, progress, unreachable nodes."""

import struct
from pathlib import Path

import numpy as np
import pytest

import retrieval.index as index_module
from retrieval.errors import BundleError
from retrieval.index import ExactIndex, HnswIndex, Vectors, check_index_file


def some(n_labels: int, dim: int = 8, seed: int = 0) -> Vectors:
    return np.random.default_rng(seed).standard_normal((n_labels, dim)).astype(np.float32)


def test_a_saved_index_answers_the_same(tmp_path: Path) -> None:
    """If it fails, a bundle answers differently from the index that passed the export gates."""
    built = HnswIndex.build(some(400), ef=50, threads=1)
    built.save(tmp_path / "index.hnsw")
    loaded = HnswIndex.load(tmp_path / "index.hnsw", dim=8, size=400, ef=50)
    for ours, theirs in zip(built.search(some(20, seed=1), 10), loaded.search(some(20, seed=1), 10), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_building_reports_its_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    """If it fails, the progress bar of a long build stands still or never ends."""
    monkeypatch.setattr(index_module, "LABELS_AN_INSERTION", 100)
    steps: list[tuple[int, int]] = []
    HnswIndex.build(some(250), progress=lambda done, total: steps.append((done, total)))
    assert steps == [(100, 250), (200, 250), (250, 250)]


def test_blocks_join_without_a_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    """If it fails, exact search over many labels loses or misnumbers rows where two blocks meet."""
    vectors_LD, query_QD = some(1000), some(30, seed=1)
    whole = ExactIndex(vectors_LD).search(query_QD, 25)
    monkeypatch.setattr(index_module, "LABELS_A_BLOCK", 64)
    monkeypatch.setattr(index_module, "QUERIES_A_PASS", 7)
    parts = ExactIndex(vectors_LD, threads=3).search(query_QD, 25)
    np.testing.assert_array_equal(whole[0], parts[0])
    np.testing.assert_allclose(whole[1], parts[1], atol=1e-5)


def test_equal_scores_are_ordered_by_row() -> None:
    """If it fails, labels with the same vector change places from one answer to the next."""
    rows_QK, _ = ExactIndex(np.ones((6, 3), np.float32)).search(np.ones((1, 3), np.float32), 6)
    assert rows_QK.tolist() == [[0, 1, 2, 3, 4, 5]]


def test_unreachable_vectors_are_found_exactly(tmp_path: Path) -> None:
    """If it fails, hnswlib's "cannot return the results" reaches the caller and the whole batch has no answer."""
    path = tmp_path / "index.hnsw"
    HnswIndex.build(some(50), threads=1).save(path)
    content = bytearray(path.read_bytes())
    element_bytes = struct.unpack_from("<Q", content, 24)[0]
    for row in range(50):  # cut every link on the ground level
        struct.pack_into("<I", content, 96 + row * element_bytes, 0)
    path.write_bytes(content)
    rows_QK, _ = HnswIndex.load(path, dim=8, size=50, ef=64).search(some(3, seed=1), 10)
    assert rows_QK.tolist() == ExactIndex(some(50)).search(some(3, seed=1), 10)[0].tolist()


# offset in the header, format, value that cannot be right
DAMAGE = {
    "capacity below the count": (8, "<Q", 3),
    "another count": (16, "<Q", 51),
    "element size": (24, "<Q", 20),
    "label offset": (32, "<Q", 1 << 40),
    "vector offset": (40, "<Q", 4),
    "top level": (48, "<i", -5),
    "entry point": (52, "<I", 50),
    "links": (72, "<Q", 500),
    "level factor": (80, "<d", float("nan")),
    "ef_construction": (88, "<Q", 0),
}


@pytest.mark.parametrize("damage", sorted(DAMAGE))
def test_a_header_that_cannot_be_right_is_refused(tmp_path: Path, damage: str) -> None:
    """If it fails, hnswlib trusts the header, and reads out of bounds or takes the process down."""
    path = tmp_path / "index.hnsw"
    HnswIndex.build(some(50), threads=1).save(path)
    check_index_file(path, dim=8, size=50)
    content = bytearray(path.read_bytes())
    offset, layout, value = DAMAGE[damage]
    struct.pack_into(layout, content, offset, value)
    path.write_bytes(content)
    with pytest.raises(BundleError, match=r"index\.hnsw"):
        HnswIndex.load(path, dim=8, size=50, ef=10)


@pytest.mark.parametrize("length", [0, 95, 96, 1000])
def test_a_cut_index_file_is_refused(tmp_path: Path, length: int) -> None:
    """If it fails, a half-copied index is loaded."""
    path = tmp_path / "index.hnsw"
    HnswIndex.build(some(50), threads=1).save(path)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(BundleError, match=r"index\.hnsw"):
        HnswIndex.load(path, dim=8, size=50, ef=10)


@pytest.mark.parametrize(("dim", "size"), [(9, 50), (8, 49)])
def test_an_index_of_another_shape_is_refused(tmp_path: Path, dim: int, size: int) -> None:
    """If it fails, the index of another model is searched with vectors that do not fit it."""
    HnswIndex.build(some(50), threads=1).save(tmp_path / "index.hnsw")
    with pytest.raises(BundleError, match="is needed"):
        HnswIndex.load(tmp_path / "index.hnsw", dim=dim, size=size, ef=10)
