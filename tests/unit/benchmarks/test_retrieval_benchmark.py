"""benchmarks/retrieval_cost.py: both sides do the same work, copies are as near as labels, runs can be resumed."""

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
    """If it fails, the parts do another search than `Retriever.search`, so the ratio has no meaning."""
    bare, results = bare_parts.BareParts(retriever), []

    def record(call: object) -> tuple[object, bare_parts.Seconds]:
        results.append(call())  # type: ignore[operator]
        return results[-1], (0.0, 0.0)

    monkeypatch.setattr(bare_parts, "timed", record)
    bare.search(QUERIES[:8])
    row_QK, _ = results[-1]
    ranking = retriever.search_rows(QUERIES[:8], bare_parts.K)
    assert row_QK.shape == ranking.rows_QK.shape
    nodes = retriever.candidates.nodes()
    best_QK = nodes.node_L[ranking.rows_QK]  # texts of the same words share a node
    alike = [np.isin(best, row).mean() for row, best in zip(row_QK, best_QK, strict=True)]
    assert np.mean(alike) > 0.7  # the graph knows less of a label than what its score is from
    assert list(bare.spent) == list(bare_parts.PARTS)


def test_a_search_costs_more_than_its_parts_and_every_query_is_counted(retriever: Retriever) -> None:
    """If it fails, a time per query is a time per batch, or the sum lacks a part."""
    alone, together = (bare_parts.rounds(retriever, QUERIES, batch, 4, repeats=2) for batch in (1, 32))
    for one in (*alone, *together):
        assert set(one.parts) == set(bare_parts.PARTS)
        assert one.sums()[0] == pytest.approx(sum(clock for clock, _ in one.parts.values()))
        assert one.ratios()[0] == pytest.approx(one.sums()[0] / one.whole[0])
    assert min(one.parts["ONNX Runtime"][0] for one in alone) > max(one.parts["ONNX Runtime"][0] for one in together)


def test_copies_are_as_near_as_labels(retriever: Retriever, tmp_path: Path) -> None:
    """If it fails, a million labels are easier or harder to search than real labels."""
    real_LD, dual_dim = retriever.vectors_LD, retriever.manifest.model.dual_dim
    wide_LD = label_scale.extend_labels(real_LD, dual_dim, 1000, tmp_path / "wide.npy", lambda _: None)
    real = len(real_LD)
    assert sorted(map(bytes, wide_LD[:real])) == sorted(map(bytes, real_LD))
    moved_N = np.linalg.norm(wide_LD[real:] - wide_LD[np.arange(real, 1000) % real], axis=1)
    distance_N = label_scale.Jitter.of(real_LD, np.random.default_rng(1)).distance_N
    assert 0.5 < np.median(moved_N) / np.median(distance_N) < 1.1
    for half in (slice(None, dual_dim), slice(dual_dim, None)):
        lengths = np.linalg.norm(wide_LD[:, half], axis=1)
        assert np.allclose(lengths, lengths[np.arange(1000) % real], atol=1e-5)
    assert len(np.unique(wide_LD, axis=0)) > 900


def test_an_untrained_label_has_untrained_copies() -> None:
    """If it fails, copies have a classifier vector that their label does not have."""
    draw = np.random.default_rng(0)
    label_LD = draw.standard_normal((50, 8)).astype(np.float32)
    label_LD[::2, 4:] = 0
    copies_LD = label_scale.Jitter.of(label_LD, draw).copies(label_LD, 4, draw)
    assert not copies_LD[::2, 4:].any()
    assert copies_LD[1::2, 4:].all()


def test_the_smallest_ef_that_reaches_the_recall_is_selected() -> None:
    """If it fails, latencies are compared at unequal recall."""
    draw = np.random.default_rng(0)
    label_LD, query_QD = (draw.standard_normal((rows, 24)).astype(np.float32) for rows in (3000, 200))
    index = HnswIndex.build(label_LD, m=4, ef_construction=20, threads=1)
    scores_QL = query_QD.astype(np.float64) @ label_LD.T.astype(np.float64)
    best_QK = -np.sort(-scores_QL, axis=1)[:, :10]
    ef, recall = label_scale.smallest_ef(index, query_QD, best_QK, label_LD)

    def recall_of(ef: int) -> float:
        found_QK = np.take_along_axis(scores_QL, index.search(query_QD, ef)[0][:, :10], 1)
        return float((found_QK >= best_QK[:, -1:] - 1e-6).mean())

    assert recall == pytest.approx(recall_of(ef))
    assert recall_of(ef) >= label_scale.RECALL > recall_of(ef - 1)


def test_finished_indexes_are_not_built_again(
    retriever: Retriever, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it fails, an interrupted build starts again, or the page confuses sizes."""
    monkeypatch.setattr(label_scale, "LABELS_PER_SAVE", 150)
    query_QD = np.concatenate(retriever.encode(QUERIES), axis=1) * retriever.manifest.model.query_scale(0.5)
    lines: list[str] = []
    vectors_LD, dual_dim = retriever.vectors_LD, retriever.manifest.model.dual_dim
    first = label_scale.measure(vectors_LD, dual_dim, query_QD, [50, 400], tmp_path / "work", 1, lines.append)
    assert [line.split()[0] for line in lines if "building" in line] == ["50", "150", "300", "400"]
    saved = sorted(path.name for path in (tmp_path / "work").glob("index-*") if not path.suffix)
    assert saved == ["index-400", "index-50"]
    lines.clear()
    again = label_scale.measure(vectors_LD, dual_dim, query_QD, [50, 400], tmp_path / "work", 1, lines.append)
    assert not [line for line in lines if "building" in line]
    assert [one.labels for one in first] == [one.labels for one in again] == [50, 400]
    assert [one.build_seconds for one in first] == [one.build_seconds for one in again]
    assert all(one.recall_at_10 >= label_scale.RECALL for one in first)


def test_offline_queries_have_the_requested_number_and_begin_with_real_ones(tmp_path: Path) -> None:
    """If it fails, speed and memory are reported for another number of queries."""
    offline.write_queries(tmp_path / "queries.parquet", QUERIES, 1000)
    written = pq.read_table(tmp_path / "queries.parquet")["query"].to_pylist()
    assert written[: len(QUERIES)] == QUERIES
    assert len(written) == 1000
    assert len(set(written)) > 700


def test_offline_search_is_measured_and_resumed(retriever: Retriever, tmp_path: Path) -> None:
    """If it fails, memory or matches are not those of the command, or the matches after a resume are not compared."""
    cost = offline.measure(retriever.folder, QUERIES, 20_000, tmp_path, None)
    assert cost.matches == 10 * 20_000
    assert 10 * 2**20 < cost.private_bytes < cost.mapped_bytes
    shards, same = offline.measure_resume(retriever.folder, QUERIES, 20_000, tmp_path, None)
    assert shards >= 1
    assert same


def test_the_page_has_the_parts_that_were_measured() -> None:
    """If it fails, a part that was measured is not shown, or the page cannot be written without the others."""
    one = {"parts": dict.fromkeys(bare_parts.PARTS, (0.2, 0.1)), "whole": (0.7, 0.4)}
    row = {"encoder": "static", "labels": 9, "dim": 4, "ef_search": 16, "batch": 1}
    row["rounds"] = [one | {"ratios": (0.86, 0.75), "sums": (0.6, 0.3)}]
    facts = {"parts": {"rows": [row], "command": "python …", "machine": "a machine", "load": 1.5}}
    lines = page(json.loads(json.dumps(facts)))
    assert (
        "| static, 9 labels, ef 16 | 1 | 0.100 | 0.100 | 0.100 | 0.300 | 0.400 | 0.75 (0.75–0.75) | 0.86 (0.86–0.86) |"
        in lines
    )
    assert not [line for line in lines if "HNSW and exact" in line or "predict" in line]
