"""Behaviour of each index beyond the common contract: files, blocks, progress, unreachable nodes."""

import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import retrieval.search.indexes as index_module
from retrieval.bundle.index_file import HEADER, check_index_file
from retrieval.errors import BundleError
from retrieval.search.indexes import ExactIndex, FullScans, HnswIndex, Vectors
from retrieval.search.thread_pool import ThreadPool


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
    """If it fails, the progress bar of a long build does not move or never ends."""
    monkeypatch.setattr(index_module, "LABELS_PER_INSERTION", 100)
    steps: list[tuple[int, int]] = []
    HnswIndex.build(some(250), progress=lambda done, total: steps.append((done, total)))
    assert steps == [(100, 250), (200, 250), (250, 250)]


def test_blocks_join_without_a_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    """If it fails, exact search over many labels loses or misnumbers rows at the border of two blocks."""
    vectors_LD, query_QD = some(1000), some(30, seed=1)
    whole = ExactIndex(vectors_LD).search(query_QD, 25)
    monkeypatch.setattr(index_module, "LABELS_PER_BLOCK", 64)
    monkeypatch.setattr(index_module, "QUERIES_PER_PASS", 7)
    parts = ExactIndex(vectors_LD, threads=3).search(query_QD, 25)
    np.testing.assert_array_equal(whole[0], parts[0])
    np.testing.assert_allclose(whole[1], parts[1], atol=1e-5)


def test_equal_scores_are_ordered_by_row() -> None:
    """If it fails, labels with the same vector change their order from one answer to the next."""
    rows_QK, _ = ExactIndex(np.ones((6, 3), np.float32)).search(np.ones((1, 3), np.float32), 6)
    assert rows_QK.tolist() == [[0, 1, 2, 3, 4, 5]]


def test_other_errors_of_the_graph_are_not_hidden() -> None:
    """If it fails, every failure of hnswlib becomes a slow search without an error."""

    class Broken:
        dim = 8

        def set_ef(self, ef: int) -> None: ...

        def get_current_count(self) -> int:
            return 50

        def knn_query(self, *_: object, **__: object) -> None:
            raise RuntimeError("wrong dimensionality of the vectors")

    index = HnswIndex(Broken(), ef=10, pool=ThreadPool(1))
    with pytest.raises(RuntimeError, match="wrong dimensionality"):
        index.search(some(1), 1)
    assert index.full_scans.queries == 0


def test_full_scans_are_counted_and_logged_ever_more_rarely(caplog: pytest.LogCaptureFixture) -> None:
    """If it fails, an index that falls back to a full scan makes a service slow without a log line."""
    scans = FullScans()
    for queries in (1, 3, 5, 2, 50, 100, 1):
        scans.add(queries)
    assert scans.queries == 162
    assert [record.args for record in caplog.records] == [(1,), (11,), (161,)]
    assert "every label was compared" in caplog.text


def test_unreachable_vectors_are_found_exactly(tmp_path: Path) -> None:
    """If it fails, hnswlib's "cannot return the results" reaches the caller, and no query of the batch is answered."""
    path = tmp_path / "index.hnsw"
    HnswIndex.build(some(50), threads=1).save(path)
    content = bytearray(path.read_bytes())
    element_bytes = struct.unpack_from("<Q", content, 24)[0]
    for row in range(50):  # cut every link on the ground level
        struct.pack_into("<I", content, 96 + row * element_bytes, 0)
    path.write_bytes(content)
    index = HnswIndex.load(path, dim=8, size=50, ef=64)
    rows_QK, _ = index.search(some(3, seed=1), 10)
    assert index.full_scans.queries == 3
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
    """If it fails, hnswlib trusts the header, and reads out of bounds or crashes."""
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
    with pytest.raises(BundleError, match=r"is \d+, not \d+"):
        HnswIndex.load(tmp_path / "index.hnsw", dim=dim, size=size, ef=10)


ELEMENTS, M, DIM = 400, 4, 8
ELEMENT_BYTES = 4 + 4 * 2 * M + 4 * DIM + 8
ABOVE = HEADER.size + ELEMENTS * ELEMENT_BYTES


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    """Write a graph with several levels."""
    path = tmp_path / "index.hnsw"
    HnswIndex.build(some(ELEMENTS, DIM), m=M, threads=1).save(path)
    check_index_file(path, DIM, ELEMENTS)
    return path


def first_above(content: bytearray) -> int:
    """Return the position of the first links on higher levels, after their size."""
    place = ABOVE
    while struct.unpack_from("<I", content, place)[0] == 0:
        place += 4
    return place + 4


def lowest(content: bytearray) -> int:
    """Return an element that is only on the ground level."""
    place = ABOVE
    for element in range(ELEMENTS):
        length = struct.unpack_from("<I", content, place)[0]
        if length == 0:
            return element
        place += 4 + length
    raise AssertionError("every element is on a higher level")


# where, format, value: each is something that hnswlib would follow
LINKS: dict[str, Callable[[bytearray], tuple[int, str, float]]] = {
    "a link leads beyond": lambda content: (HEADER.size + 4, "<I", ELEMENTS),
    "links, more than 8": lambda content: (HEADER.size, "<H", 9),
    "marked as deleted": lambda content: (HEADER.size + 2, "<B", 1),
    "a label is larger than 399": lambda content: (HEADER.size + ELEMENT_BYTES - 8, "<Q", ELEMENTS),
    "label . is missing": lambda content: (HEADER.size + ELEMENT_BYTES - 8, "<Q", ELEMENTS - 1),
    "21 bytes of links on higher levels": lambda content: (first_above(content) - 4, "<I", 21),
    "2000 bytes of links on higher levels": lambda content: (first_above(content) - 4, "<I", 2000),
    "links, more than 4": lambda content: (first_above(content), "<H", 5),
    "is not on the same level": lambda content: (first_above(content) + 4, "<I", lowest(content)),
    "entry point is not on the top level": lambda content: (52, "<I", lowest(content)),
}


@pytest.mark.parametrize("said", sorted(LINKS))
def test_links_that_lead_nowhere_are_refused(graph: Path, said: str) -> None:
    """If it fails, hnswlib follows a link out of its memory, and crashes or reads other data."""
    content = bytearray(graph.read_bytes())
    place, layout, value = LINKS[said](content)
    struct.pack_into(layout, content, place, value)
    graph.write_bytes(content)
    with pytest.raises(BundleError, match=said):
        HnswIndex.load(graph, dim=DIM, size=ELEMENTS, ef=10)


@pytest.mark.parametrize("cut", [-4, -3, 4, 3])
def test_an_end_that_is_not_the_end_is_refused(graph: Path, cut: int) -> None:
    """If it fails, a file without its last links, or with bytes after them, is loaded."""
    content = graph.read_bytes()
    graph.write_bytes(content[:cut] if cut < 0 else content + bytes(cut))
    with pytest.raises(BundleError, match=r"index\.hnsw"):
        HnswIndex.load(graph, dim=DIM, size=ELEMENTS, ef=10)


def test_no_change_of_a_byte_ends_the_process(graph: Path, tmp_path: Path) -> None:
    """If it fails, some damage passes the checks and crashes hnswlib."""
    program = """
import sys, numpy as np
from pathlib import Path
from retrieval.errors import BundleError
from retrieval.search.indexes import HnswIndex
from retrieval.search.thread_pool import ThreadPool
path, refused = Path(sys.argv[1]), 0
content, draw = path.read_bytes(), np.random.default_rng(0)
for _ in range(400):
    changed = bytearray(content)
    for place in draw.integers(0, len(content), draw.integers(1, 4)):
        changed[place] ^= 1 << draw.integers(8)
    path.write_bytes(changed)
    try:
        HnswIndex.load(path, 8, 400, 50, ThreadPool(1)).search(np.ones((3, 8), np.float32), 10)
    except BundleError:
        refused += 1
print(refused)
"""
    ended = subprocess.run([sys.executable, "-c", program, str(graph)], capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    assert 100 < int(ended.stdout) < 400  # a bit of a vector may change
