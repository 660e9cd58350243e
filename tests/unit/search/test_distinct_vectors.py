"""Labels with equal vectors share a node of the index; answers are those of an index with a node per label."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval import Retriever, open_bundle
from retrieval.bundle.manifest import NODES
from retrieval.errors import BundleError
from retrieval.search import distinct_vectors as nodes_module
from retrieval.search.distinct_vectors import Nodes, expand, first_equal_rows, nodes_in, nodes_of
from tests.support.bundles import make_bundle
from tests.support.mutations import rehash

TEXTS = ["red shoes", "light rain", "winter city", "blue trail kids", "cheap summer"]
SHARED = [TEXTS[row % 5] for row in range(400)] + ["running"]


def numbered(values: list[int]) -> Nodes:
    return nodes_of(np.array(values, np.float32)[:, None])


def test_equal_vectors_share_a_node_numbered_by_their_first_label() -> None:
    """If it fails, equal vectors are in the graph many times, or different ones count as equal."""
    nodes = nodes_of(np.array([[0.0, 1], [2, 0], [-0.0, 1], [2, 1], [2, 0]], np.float32))
    assert nodes.node_L.tolist() == [0, 1, 0, 2, 1]
    assert (nodes.size, nodes.representatives.tolist()) == (3, [0, 1, 3])
    assert nodes.rows_S.tolist() == [0, 2, 1, 4, 3]


def test_a_shared_hash_merges_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """If it fails, two labels whose hashes collide share a node, and one of them has the other's score."""

    class Zeros:
        def integers(self, *_: object) -> np.ndarray:
            return np.zeros(4, np.uint64) - np.uint64(1)  # every factor equal: a sum, which permutations share

    monkeypatch.setattr(nodes_module.np.random, "default_rng", lambda _: Zeros())
    vectors_LD = np.array([[1, 2, 3, 4], [4, 3, 2, 1], [1, 2, 3, 4]], np.float32)
    assert first_equal_rows(vectors_LD).tolist() == [0, 1, 0]


@settings(max_examples=200)
@given(
    st.lists(st.integers(0, 6), min_size=1, max_size=40),
    st.lists(st.integers(0, 3), min_size=7, max_size=7),
    st.integers(1, 50),
    st.lists(st.booleans(), min_size=40, max_size=40),
)
def test_expanding_is_sorting_all_labels(values: list[int], scores: list[int], k: int, shown: list[bool]) -> None:
    """If it fails, the labels of a node replace better ones, have the wrong order, or are fewer than k."""
    mask_L = np.array(shown[: len(values)])
    if not mask_L.any():
        return
    nodes = numbered(values).among(mask_L)
    score_L = np.array([scores[value] for value in values], np.float64)
    k = min(k, int(mask_L.sum()))
    rows_N = nodes.representatives
    order_N = np.lexsort((rows_N, -score_L[rows_N]))
    rows_QC = rows_N[order_N][None]
    found = expand((rows_QC, score_L[rows_QC], 2 * score_L[rows_QC], -score_L[rows_QC]), nodes, k)
    best = [row for row in np.lexsort((np.arange(len(values)), -score_L)) if mask_L[row]][:k]
    assert found[0].tolist() == [best]
    assert found[1].tolist() == [score_L[best].tolist()]
    assert found[2].tolist() == [(2 * score_L[best]).tolist()]
    assert found[3].tolist() == [(-score_L[best]).tolist()]


def test_queries_are_expanded_in_parts_of_bounded_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """If it fails, a batch with a large k uses unlimited memory, or its passes are mixed up."""
    nodes = numbered([0, 1, 0, 1, 2])
    rows_QC = np.array([[0, 1, 4], [4, 1, 0], [1, 4, 0]])
    scored = (rows_QC, *(np.array([[3.0, 2, 1]] * 3) for _ in range(3)))
    whole = expand(scored, nodes, 4)
    assert whole[0].tolist() == [[0, 2, 1, 3], [4, 1, 3, 0], [1, 3, 4, 0]]
    monkeypatch.setattr(nodes_module, "MAX_EXPANDED", 1)
    assert expand(scored, nodes, 4)[0].tolist() == whole[0].tolist()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("shared") / "bundle", SHARED)


@pytest.fixture(scope="module")
def retriever(bundle: Path) -> Retriever:
    return open_bundle(bundle, threads=1)


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("k", [1, 10, 79, 80, 81, 100, 401, 1000])
def test_all_ids_of_a_text_are_found_in_row_order(retriever: Retriever, k: int, exact: bool) -> None:
    """If it fails, labels with the same text are missed, or have a random order."""
    assert retriever.manifest.index.nodes == 6
    for place, hits in enumerate(retriever.search(TEXTS, k, exact=exact)):
        rows = [int(hit.id.removeprefix("label-")) for hit in hits]
        assert rows[:80] == list(range(place, 400, 5))[:k]
        assert len(set(rows)) == min(k, 401)
        assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
        assert [hit.text for hit in hits] == [SHARED[row] for row in rows]


@pytest.mark.parametrize("exact", [True, False])
def test_filters_pauses_and_least_scores_see_every_id(bundle: Path, exact: bool) -> None:
    """If it fails, a filter or pause hides all labels of a node, allows an excluded label, or leaves fewer than k."""
    with open_bundle(bundle, threads=1) as retriever:
        us = list(range(0, 400, 10))
        (hits,) = retriever.search([TEXTS[0]], 50, filter={"market": ["US"]}, exact=exact)
        assert [int(hit.id.removeprefix("label-")) for hit in hits[:40]] == us
        assert len(hits) == 50
        assert all(hit.attributes["market"] == "US" for hit in hits)
        retriever.pause(f"label-{row}" for row in range(0, 395, 5))
        (hits,) = retriever.search([TEXTS[0]], 3, exact=exact)
        assert (hits[0].id, hits[0].text, len(hits)) == ("label-395", TEXTS[0], 3)
        (hits,) = retriever.search([TEXTS[0]], 100, min_score=0.999, exact=exact)
        assert [hit.id for hit in hits] == ["label-395"]
        retriever.pause(f"label-{row}" for row in range(0, 400, 5))
        (hits,) = retriever.search([TEXTS[0]], 1000, exact=exact)
        assert len(hits) == 401 - 80
        assert TEXTS[0] not in {hit.text for hit in hits}
        retriever.pause(f"label-{row}" for row in range(401))
        assert list(retriever.search([TEXTS[0]], 5, exact=exact)) == [[]]


def test_a_filter_answered_by_the_index_expands_only_allowed_ids(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it fails, a filter gives different answers in the index than in a scan."""
    monkeypatch.setattr("retrieval.search.candidates.COST_PER_CANDIDATE", -1)  # a scan is never cheaper
    texts = [
        f"{one} {other}" for one in ("red", "blue", "cheap", "city") for other in ("rain", "kids", "trail", "light")
    ]
    with open_bundle(make_bundle(tmp_path / "bundle", (texts * 5)[:79]), threads=1) as retriever:
        for wanted in ({"market": ["CA"]}, {"year": [2021]}, {"year": [2020], "market": ["US"]}):
            for k in (1, 4, 30):
                found = retriever.search(texts, k, filter=wanted)
                assert found == retriever.search(texts, k, filter=wanted, exact=True)


@pytest.mark.parametrize(
    ("node_L", "said"),
    [
        (np.zeros(401, np.int64), "int64 of shape"),
        (np.zeros(400, np.int32), r"not of int32 of shape \(401,\)"),
        (np.zeros((401, 1), np.int32), r"not of int32 of shape \(401,\)"),
        (np.zeros(401, np.int32), "does not number 6 nodes"),
        (np.full(401, -1, np.int32), "does not number 6 nodes"),
        (np.r_[0, 2, np.arange(399) % 6].astype(np.int32), "does not number 6 nodes"),
        (np.r_[np.arange(6), np.full(395, -2)].astype(np.int32), "does not number 6 nodes"),
        (np.r_[np.arange(7), np.zeros(394)].astype(np.int32), "does not number 6 nodes"),
        (np.r_[np.arange(6), [2**31 - 1], np.zeros(394)].astype(np.int32), "does not number 6 nodes"),
    ],
)
def test_a_file_of_nodes_is_checked_number_by_number(tmp_path: Path, node_L: np.ndarray, said: str) -> None:
    """If it fails, a hostile file makes numpy or hnswlib read beyond the data, or hides labels."""
    np.save(tmp_path / NODES, node_L)
    with pytest.raises(BundleError, match=said):
        nodes_in((tmp_path / NODES).read_bytes(), tmp_path / NODES, 401, 6)


def test_a_file_that_is_no_array_is_one_sentence(bundle: Path, tmp_path: Path) -> None:
    """If it fails, a damaged file with an updated hash ends in a traceback of numpy's."""
    import shutil

    folder = shutil.copytree(bundle, tmp_path / "bundle")
    for content in (b"", b"no numbers", np.load(folder / NODES).tobytes()):
        (folder / NODES).write_bytes(content)
        rehash(folder, NODES)
        with pytest.raises(BundleError, match=r"nodes.npy is not an array of numbers"):
            open_bundle(folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["index"]["nodes"] = 5
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=r"index.hnsw"):
        open_bundle(folder)
