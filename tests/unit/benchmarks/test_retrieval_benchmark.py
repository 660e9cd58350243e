"""benchmarks/retrieval_cost.py: both sides do the same work, copies lie as near as labels do, runs can be resumed."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from benchmarks.measuring import bare_parts, label_scale, offline
from benchmarks.measuring.retrieval_page import page
from retrieval import Retriever, open_bundle
from retrieval.search.indexes import HnswIndex
from tests.support.bundles import WORDS, make_bundle

QUERIES = [f"{one} {other}" for one in WORDS for other in WORDS if one != other]


@pytest.fixture
def retriever(tmp_path: Path) -> Retriever:
    """A small real bundle."""
    return open_bundle(make_bundle(tmp_path / "bundle"), threads=1)


def test_the_bare_parts_find_what_search_finds(retriever: Retriever, monkeypatch: pytest.MonkeyPatch) -> None:
    """If it fails, the sum of the parts is that of another search, and the ratio says nothing."""
    bare, found = bare_parts.Bare(retriever), []

    def kept(call: object) -> tuple[object, bare_parts.Seconds]:
        found.append(call())  # type: ignore[operator]
        return found[-1], (0.0, 0.0)

    monkeypatch.setattr(bare_parts, "_taken", kept)
    bare.search(QUERIES[:8])
    place_QK, _ = found[-1]
    ranking = retriever.search_rows(QUERIES[:8], bare_parts.K)
    assert place_QK.shape == ranking.rows_QK.shape
    nodes = retriever.candidates.nodes()
    best_QK = nodes.node_L[ranking.rows_QK]  # texts of the same words share a node
    alike = [np.isin(best, row).mean() for row, best in zip(place_QK, best_QK, strict=True)]
    assert np.mean(alike) > 0.7  # the graph knows less of a label than what its score is from
    assert list(bare.spent) == list(bare_parts.PARTS)


def test_a_search_costs_more_than_its_parts_and_every_query_is_counted(retriever: Retriever) -> None:
    """If it fails, a figure is of a batch where it is said to be of a query, or a part is left out of the sum."""
    alone, together = (bare_parts.rounds(retriever, QUERIES, batch, 4, repeats=2) for batch in (1, 32))
    for one in (*alone, *together):
        assert set(one.parts) == set(bare_parts.PARTS)
        assert one.sums()[0] == pytest.approx(sum(clock for clock, _ in one.parts.values()))
        assert one.ratios()[0] == pytest.approx(one.sums()[0] / one.whole[0])
    assert min(one.parts["ONNX Runtime"][0] for one in alone) > max(one.parts["ONNX Runtime"][0] for one in together)


def test_copies_lie_as_near_as_labels_do(retriever: Retriever, tmp_path: Path) -> None:
    """If it fails, a million labels are an easier or a harder set than real ones."""
    real_LD, dual_dim = retriever.vectors_LD, retriever.manifest.model.dual_dim
    wide_LD = label_scale.extended(real_LD, dual_dim, 1000, tmp_path / "wide.npy", lambda _: None)
    real = len(real_LD)
    assert sorted(map(bytes, wide_LD[:real])) == sorted(map(bytes, real_LD))
    moved_N = np.linalg.norm(wide_LD[real:] - wide_LD[np.arange(real, 1000) % real], axis=1)
    distance_N = label_scale.Moves.of(real_LD, np.random.default_rng(1)).distance_N
    assert 0.5 < np.median(moved_N) / np.median(distance_N) < 1.1
    for half in (slice(None, dual_dim), slice(dual_dim, None)):
        lengths = np.linalg.norm(wide_LD[:, half], axis=1)
        assert np.allclose(lengths, lengths[np.arange(1000) % real], atol=1e-5)
    assert len(np.unique(wide_LD, axis=0)) > 900


def test_an_untrained_label_has_untrained_copies() -> None:
    """If it fails, copies have a classifier half that their label does not have."""
    draw = np.random.default_rng(0)
    label_LD = draw.standard_normal((50, 8)).astype(np.float32)
    label_LD[::2, 4:] = 0
    copies_LD = label_scale.Moves.of(label_LD, draw).copies(label_LD, 4, draw)
    assert not copies_LD[::2, 4:].any()
    assert copies_LD[1::2, 4:].all()


def test_the_least_ef_that_reaches_the_recall_is_taken() -> None:
    """If it fails, latencies are compared at unequal recall."""
    draw = np.random.default_rng(0)
    label_LD, query_QD = (draw.standard_normal((rows, 24)).astype(np.float32) for rows in (3000, 200))
    index = HnswIndex.build(label_LD, m=4, ef_construction=20, threads=1)
    scores_QL = query_QD.astype(np.float64) @ label_LD.T.astype(np.float64)
    best_QK = -np.sort(-scores_QL, axis=1)[:, :10]
    ef, recall = label_scale.least_ef(index, query_QD, best_QK, label_LD)

    def recall_of(ef: int) -> float:
        found_QK = np.take_along_axis(scores_QL, index.search(query_QD, ef)[0][:, :10], 1)
        return float((found_QK >= best_QK[:, -1:] - 1e-6).mean())

    assert recall == pytest.approx(recall_of(ef))
    assert recall_of(ef) >= label_scale.RECALL > recall_of(ef - 1)


def test_indexes_that_are_built_are_not_built_again(
    retriever: Retriever, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it fails, an interrupted run of an hour begins anew, or the page mixes up sizes."""
    monkeypatch.setattr(label_scale, "LABELS_BETWEEN", 150)
    query_QD = np.concatenate(retriever.encode(QUERIES), axis=1) * retriever.manifest.model.query_scale(0.5)
    told: list[str] = []
    vectors_LD, dual_dim = retriever.vectors_LD, retriever.manifest.model.dual_dim
    first = label_scale.measure(vectors_LD, dual_dim, query_QD, [50, 400], tmp_path / "work", 1, told.append)
    assert [line.split()[0] for line in told if "building" in line] == ["50", "150", "300", "400"]
    kept = sorted(path.name for path in (tmp_path / "work").glob("index-*") if not path.suffix)
    assert kept == ["index-400", "index-50"]
    told.clear()
    again = label_scale.measure(vectors_LD, dual_dim, query_QD, [50, 400], tmp_path / "work", 1, told.append)
    assert not [line for line in told if "building" in line]
    assert [one.labels for one in first] == [one.labels for one in again] == [50, 400]
    assert [one.build_seconds for one in first] == [one.build_seconds for one in again]
    assert all(one.recall_at_10 >= label_scale.RECALL for one in first)


def test_offline_queries_are_as_many_as_asked_for_and_begin_with_the_real_ones(tmp_path: Path) -> None:
    """If it fails, speed and memory are told for another number of queries."""
    offline.write_queries(tmp_path / "queries.parquet", QUERIES, 1000)
    written = pq.read_table(tmp_path / "queries.parquet")["query"].to_pylist()
    assert written[: len(QUERIES)] == QUERIES
    assert len(written) == 1000
    assert len(set(written)) > 700


def test_offline_matching_is_measured_and_goes_on(retriever: Retriever, tmp_path: Path) -> None:
    """If it fails, memory or matches are not those of the command, or a restart's matches are taken for granted."""
    taken = offline.measure(retriever.folder, QUERIES, 20_000, tmp_path, None)
    assert taken.matches == 10 * 20_000
    assert 10 * 2**20 < taken.own_bytes < taken.mapped_bytes
    found, same = offline.goes_on(retriever.folder, QUERIES, 20_000, tmp_path, None)
    assert found >= 1
    assert same


def test_the_page_has_the_parts_that_were_measured() -> None:
    """If it fails, a part that was measured is not shown, or the page cannot be written without the others."""
    one = {"parts": dict.fromkeys(bare_parts.PARTS, (0.2, 0.1)), "whole": (0.7, 0.4)}
    row = {"encoder": "static", "labels": 9, "dim": 4, "effort": 16, "batch": 1}
    row["rounds"] = [one | {"ratios": (0.86, 0.75), "sums": (0.6, 0.3)}]
    facts = {"parts": {"rows": [row], "command": "python …", "machine": "a machine", "load": 1.5}}
    lines = page(json.loads(json.dumps(facts)))
    assert (
        "| static, 9 labels, ef 16 | 1 | 0.100 | 0.100 | 0.100 | 0.300 | 0.400 | 0.75 (0.75–0.75) | 0.86 (0.86–0.86) |"
        in lines
    )
    assert not [line for line in lines if "HNSW beside" in line or "predict" in line]
