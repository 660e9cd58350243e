"""Width, links per node and candidates per insertion are chosen by measuring before the index is built."""

from pathlib import Path

import numpy as np
import pytest

from export.build import export
from export.index import graph
from export.index.choice import WIDTHS, candidate_recalls, choose_width
from export.index.graph import CHOICES, GraphChoice, choose_graph, ef_of_sample, predicted_ef, sample_nodes
from export.index.pca import fit_directions
from export.job import ExportSettings
from retrieval.open import open_store
from retrieval.quantized_vectors import QuantizedVectors, quantize
from retrieval.search.indexes import Vectors
from retrieval.system.progress import no_progress
from tests.unit.export.test_pca import flat_and_wide


def noise(size: int, dim: int, seed: int = 0) -> Vectors:
    return np.asarray(np.random.default_rng(seed).standard_normal((size, dim)), np.float32)


@pytest.mark.parametrize("chunk", [100, 8192])
def test_recalls_are_those_of_a_search_in_the_projection(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """If it fails, the width is chosen by a number that is not the recall of the index."""
    monkeypatch.setattr("export.index.choice.LABELS_PER_CHUNK", chunk)
    vectors_LD, query_QD = noise(900, 96), noise(30, 96, seed=2)
    row_N = np.flatnonzero(np.arange(900) % 3)
    directions_DD, _ = fit_directions(vectors_LD, 48)
    recalls = candidate_recalls(vectors_LD, row_N, directions_DD, query_QD, 48, 20, no_progress)
    assert list(recalls) == [48, 64, 96]
    true_QN = query_QD @ vectors_LD[row_N].T
    for width, recall in recalls.items():
        near_QN = (query_QD @ directions_DD[:, :width]) @ (vectors_LD[row_N] @ directions_DD[:, :width]).T
        best, found = (np.argsort(-scores, axis=1)[:, :count] for scores, count in ((true_QN, 10), (near_QN, 20)))
        shares = [np.isin(one, other).mean() for one, other in zip(best, found, strict=True)]
        assert recall == pytest.approx(np.mean(shares), abs=1e-3)
    assert recalls[48] < recalls[96] == 1.0


def test_the_width_is_the_smallest_that_finds_the_best_labels() -> None:
    """If it fails, an index needs more memory than its recall, or a million labels cannot be exported."""
    easy_LD, query_QD = flat_and_wide(2000), flat_and_wide(60, seed=3)
    quantized = QuantizedVectors(*quantize(easy_LD, 48), 48)
    directions_DD, _ = fit_directions(easy_LD, 48)
    row_N = np.arange(2000)
    assert choose_width(quantized, row_N, directions_DD, query_QD, [query_QD], 48, no_progress) == WIDTHS[0]
    # Copies that differ in few, unimportant numbers: a narrow projection cannot tell the best ten from the others.
    moves_LD = np.zeros_like(easy_LD)
    moves_LD[:, -40:] = 0.02 * np.random.default_rng(5).standard_normal((2000, 40))
    similar_LD = np.asarray(easy_LD[np.arange(2000) % 4] + moves_LD @ directions_DD.T, np.float32)
    exact_QD = np.asarray(similar_LD[::40] + 0.5 * moves_LD[::40] @ directions_DD.T, np.float32)
    chosen = choose_width(similar_LD, row_N, fit_directions(easy_LD, 48)[0], exact_QD, [], 48, no_progress)
    assert chosen > WIDTHS[0]


def test_a_hard_weight_widens_the_projection(monkeypatch: pytest.MonkeyPatch) -> None:
    """If it fails, searches at weight 0 or 1 compare all of a million labels."""
    recalls = iter([{48: 0.999, 64: 0.999, 96: 1.0}, {48: 0.9, 64: 0.991, 96: 1.0}, {48: 0.5, 64: 0.5, 96: 0.6}])
    monkeypatch.setattr("export.index.choice.candidate_recalls", lambda *given: next(recalls))
    vectors_LD, directions_DD = flat_and_wide(50), np.eye(96, dtype=np.float32)
    row_N = np.arange(50)
    assert choose_width(vectors_LD, row_N, directions_DD, vectors_LD, [vectors_LD], 48, no_progress) == 64
    assert choose_width(vectors_LD, row_N, directions_DD, vectors_LD, [], 48, no_progress) == 96


def test_given_settings_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """If it fails, --m or --ef-construction is ignored, or a given value is measured for minutes."""
    tried: list[GraphChoice] = []

    def never_enough(sample_SW: Vectors, size: int, query_QW: Vectors, choice: GraphChoice, threads: object) -> float:
        tried.append(choice)
        return 10_000.0 - choice.m

    monkeypatch.setattr(graph, "predicted_ef", never_enough)
    vectors_SW = flat_and_wide(10)
    for m, ef_construction, expected, trials in ((8, 50, (8, 50), 0), (8, None, (8, 200), 2), (None, 50, (48, 50), 4)):
        tried.clear()
        assert choose_graph(vectors_SW, 10, vectors_SW, m, ef_construction, 1, no_progress) == expected
        assert len(tried) == trials
    assert choose_graph(vectors_SW, 10, vectors_SW, None, None, 1, no_progress) == CHOICES[-1]


def test_an_easy_graph_has_few_links() -> None:
    """If it fails, every label has more links than its recall needs."""
    sample_SW, query_QW = flat_and_wide(1500), flat_and_wide(50, seed=8)
    assert choose_graph(sample_SW, 1500, query_QW, None, None, 1, no_progress) == CHOICES[0]


def test_the_candidates_of_a_large_graph_are_extrapolated(monkeypatch: pytest.MonkeyPatch) -> None:
    """If it fails, a graph of a million nodes gets the settings that suffice for a few thousand."""
    efs = {1600: 64, 200: 32}
    monkeypatch.setattr(graph, "ef_of_sample", lambda sample_SW, *given: efs[len(sample_SW)])
    sample_SW = flat_and_wide(1600)
    assert predicted_ef(sample_SW, 1600, sample_SW, CHOICES[0], 1) == 64
    assert predicted_ef(sample_SW, 1600 * 64, sample_SW, CHOICES[0], 1) == pytest.approx(256)
    efs[200] = 96  # chance
    assert predicted_ef(sample_SW, 1600 * 64, sample_SW, CHOICES[0], 1) == 64


def test_more_links_need_fewer_candidates() -> None:
    """If it fails, the measurement on a sample does not tell good settings from bad ones."""
    sample_SW, query_QW = noise(2500, 16), noise(50, 16, seed=1) / 4
    few, many = (ef_of_sample(sample_SW, query_QW, GraphChoice(m, 200), 1) for m in (4, 24))
    assert many < few


def test_a_sample_is_spread_over_all_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """If it fails, a graph is measured on the first labels of a sorted catalogue."""
    monkeypatch.setattr(graph, "SAMPLE", 100)
    row_S = sample_nodes(1000)
    assert (len(set(row_S.tolist())), row_S.min() < 100, row_S.max() > 900) == (100, True, True)
    assert (np.diff(row_S) > 0).all()
    assert sample_nodes(40).tolist() == list(range(40))


@pytest.mark.parametrize("measured", [True, False])
def test_width_and_links_of_many_labels_are_measured(
    measured: bool, words_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it fails, an index of a million labels has the settings of a small one, or the other way round."""
    if measured:
        monkeypatch.setattr("export.kinds.vector_index.MIN_MEASURED", 1)
    exported = export(words_checkpoint, open_store(tmp_path), settings=ExportSettings(index="hnsw", threads=1))
    assert exported.manifest.index.m == (16 if measured else 32)
