"""ef_search of the label index and of the query memory's index: chosen so that the bundle answers well enough."""

from pathlib import Path

import numpy as np
import pytest

from export.index.quality import IndexQuality
from export.index.recall import EF_LADDER, IndexProbe
from export.job import ExportSettings
from export.memory import measured_facts
from export.quality import ValidationQueries
from retrieval import open_bundle
from retrieval.bundle.facts import MemoryFacts
from retrieval.bundle.manifest import QUERY_ENCODER, TOKENIZER, read_manifest
from retrieval.bundle.memory_labels import MemoryLabels, VoteSettings
from retrieval.search.candidates import scan_is_cheaper
from retrieval.search.encoder import TextEncoder
from retrieval.search.indexes import HnswIndex, Vectors
from retrieval.search.memory import QueryMemory
from tests.support.bundles import make_bundle
from training.checkpoint.opened import load_checkpoint

SIZE = 4_096
RUNGS = [ef for ef in EF_LADDER if not scan_is_cheaper(1, ef, SIZE)]


@pytest.fixture(scope="module")
def memory(tmp_path_factory: pytest.TempPathFactory) -> tuple[QueryMemory, Vectors]:
    """A memory of random vectors, whose recall of four neighbours is sufficient with any ef_search, and queries."""
    bundle = make_bundle(tmp_path_factory.mktemp("memory") / "bundle", memory=VoteSettings(0.5, 0.1, 4))
    manifest = read_manifest(bundle)
    assert manifest.memory is not None
    dim = manifest.model.dual_dim
    vectors_MH = np.random.default_rng(0).standard_normal((SIZE, dim)).astype(np.float32)
    vectors_MH[:, 4:] = 0  # few dimensions are easy to search
    facts = manifest.memory.model_copy(update={"queries": SIZE, "half": "dual_encoder", "neighbours": 4})
    labels = MemoryLabels(np.arange(SIZE + 1), np.zeros(SIZE, np.int32), np.ones(SIZE, np.float32))
    index = HnswIndex.build(vectors_MH, threads=1)
    query_QD = np.pad(vectors_MH[:50], ((0, 0), (0, manifest.model.dim - dim)))
    return QueryMemory(vectors_MH, index, labels, facts, manifest.model, 1), query_QD


def chosen(memory: tuple[QueryMemory, Vectors], least: int) -> MemoryFacts:
    """Choose the ef_search of a memory if quality holds from `least`."""
    return measured_facts(*memory, lambda ef: ef >= least)


def test_the_memory_s_ef_search_grows_until_quality_is_sufficient(memory: tuple[QueryMemory, Vectors]) -> None:
    """If it fails, an index of the memory with sufficient recall loses hits, and the export is refused at random."""
    easiest, harder = chosen(memory, 0), chosen(memory, 64)
    assert easiest.ef_search.ef is not None
    assert easiest.ef_search.ef < 64
    assert harder.ef_search.ef == 64
    assert (harder.recall_queries, harder.ef_search.recall >= 0.99) == (50, True)


def test_a_small_memory_is_compared_as_a_whole_if_its_index_would_not_be_faster(
    memory: tuple[QueryMemory, Vectors],
) -> None:
    """If it fails, a search in a small memory examines a large part of it in the graph, which is slower than all."""
    assert chosen(memory, RUNGS[-1]).ef_search.ef == RUNGS[-1]
    facts = chosen(memory, RUNGS[-1] + 1)
    assert (facts.ef_search.ef, facts.ef_search.recall) == (None, 1.0)


def test_the_label_index_may_lose_half_of_what_both_indexes_may_lose(words_checkpoint: Path, tmp_path: Path) -> None:
    """If it fails, the label index alone may use up the allowed loss, and no ef_search of the memory is sufficient."""
    from export.build import export
    from retrieval.open import open_store

    checkpoint, store = load_checkpoint(words_checkpoint), open_store(tmp_path / "store")
    bundle = export(words_checkpoint, store, settings=ExportSettings(threads=1)).path
    facts, validation = read_manifest(bundle).model, ValidationQueries(checkpoint)
    encoder = TextEncoder.open(bundle / TOKENIZER, bundle / QUERY_ENCODER, facts, facts.dim, threads=1)
    with open_bundle(bundle, threads=1, paused=()) as retriever:
        ranker = retriever._open_parts().ranker
        assert ranker.memory is not None
        probe = IndexProbe(retriever.candidates.index, retriever.vectors_LD, facts.dual_dim)
        measured = validation.metrics(
            lambda weight, k: retriever.search_rows(validation.texts, k, weight=weight).rows_QK
        )
        expected = {**measured, "P@1": measured["P@1"] + 15}
        both = IndexQuality(encoder, facts, probe, validation, expected, 20, ranker.memory)
        labels_only = IndexQuality(encoder, facts, probe, validation, expected, 20)
        assert (both.labels_suffice(300), both.memory_suffices(300, 400)) == (False, True)
        without_votes = validation.metrics(
            lambda weight, k: retriever.search_rows(validation.texts, k, weight=weight, memory_weight=0).rows_QK
        )
        assert labels_only.labels_suffice(300) == (expected["P@1"] - without_votes["P@1"] <= 20)
