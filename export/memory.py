"""Write the query memory of a bundle, and pass its gates: parity of its vectors and recall of its index.

A training query is stored like a classifier row of a label: ⟨invert([c ; √b]), apply([c' ; 0])⟩ = ⟨c, c'⟩, so the
output of the query encoder is compared with it as it is. See export/geometry.

Shapes: M training queries of the memory, B of a chunk, Q validation queries, N neighbours, H width of the half that is
compared, C width of the classifier vectors, W directions.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from export.geometry import LABELS_PER_CHUNK, Cone
from export.index.pca import fit_projection, write_projected
from export.index.recall import EF_LADDER, smallest_ef
from export.parity import MIN_COSINE, smallest_cosine
from export.quality import torch_vectors
from export.sampling import MAX_QUERIES, sample_rows
from retrieval.bundle.facts import MemoryEfSearch, MemoryFacts, ModelFacts
from retrieval.bundle.manifest import MEMORY_INDEX, MEMORY_PROJECTION, MEMORY_QUERIES, MEMORY_VECTORS
from retrieval.bundle.memory_file import write_memory
from retrieval.errors import GateError
from retrieval.search.candidates import scan_is_cheaper
from retrieval.search.encoder import TextEncoder
from retrieval.search.indexes import HnswIndex, Vectors
from retrieval.search.memory import QueryMemory
from retrieval.search.pca_index import PcaIndex
from retrieval.system.progress import Progress
from training.checkpoint.opened import Checkpoint
from training.data.memory_queries import labels_of
from training.data.split import Split

RECALL_TARGET = 0.99  # of the neighbours
MIN_RECALL = 0.97
MEMORY_M, MEMORY_EF_CONSTRUCTION = 32, 200  # defaults of the graph
PROJECTED = "projected.npy"  # temporary input of the index


class GraphSettings(NamedTuple):
    """Settings of the index's graph, as in ExportSettings."""

    m: int
    ef_construction: int
    threads: int | None


def build_memory(
    checkpoint: Checkpoint, encoder: TextEncoder, model: ModelFacts, cone: Cone, folder: Path, graph: GraphSettings,
    progress: Progress,
) -> QueryMemory | None:  # fmt: skip
    """Write the files of the memory and open it; None if the checkpoint selected no votes.

    `encoder` is the query encoder in float32. Raises GateError. Until `measured_facts`, the facts have no ef_search.
    """
    memory, votes = checkpoint.memory, checkpoint.facts.best.votes
    if memory is None or not votes.weight:
        return None
    vectors_MH = _write_vectors(checkpoint, memory, encoder, cone, folder / MEMORY_VECTORS, progress)
    compared, cosine = _check_parity(checkpoint, memory, cone, vectors_MH)
    projection_HW, energy = fit_projection(vectors_MH, vectors_MH.shape[1])
    projected_MW = write_projected(vectors_MH, np.arange(len(vectors_MH)), projection_HW, folder / PROJECTED)
    index = HnswIndex.build(projected_MW, m=graph.m, ef_construction=graph.ef_construction, threads=graph.threads)
    index.save(folder / MEMORY_INDEX)
    (folder / PROJECTED).unlink()
    np.save(folder / MEMORY_PROJECTION, projection_HW)
    labels = labels_of(memory)
    write_memory(folder / MEMORY_QUERIES, memory.texts_column.combine_chunks(), labels)
    facts = MemoryFacts(
        half="classifier" if checkpoint.memory_by_classifier else "dual_encoder",
        weight=votes.weight, temperature=votes.temperature, neighbours=votes.neighbours,
        queries=len(memory), width=projection_HW.shape[1], energy=energy, m=graph.m,
        ef_construction=graph.ef_construction,
        recall_target=RECALL_TARGET, recall_queries=0, ef_search=MemoryEfSearch(ef=None, recall=1.0),
        parity_queries=compared, parity_cosine=cosine,
    )  # fmt: skip
    return QueryMemory(vectors_MH, PcaIndex(index, projection_HW), labels, facts, model, graph.threads)


def measured_facts(memory: QueryMemory, query_QD: Vectors, suffices: Callable[[int], bool]) -> MemoryFacts:
    """Return the facts of a memory with the smallest ef_search that reaches the recall target and `suffices`.

    `query_QD` are encoded validation queries. Raises GateError.
    """
    chosen = _choose_ef_search(memory, query_QD, suffices)
    return memory.facts.model_copy(update={"ef_search": chosen, "recall_queries": len(query_QD)})


def memory_vectors(encoded_BD: Vectors, dual_dim: int, by_classifier: bool, cone: Cone) -> Vectors:
    """Return the vectors of the memory [B, H] for outputs of the query encoder [B, D]."""
    if not by_classifier:
        return encoded_BD[:, :dual_dim]
    return _without_bias(cone.apply(encoded_BD[:, dual_dim:]), cone)


def _without_bias(classifier_BC: Vectors, cone: Cone) -> Vectors:
    classifier_BC[:, -1] = 0.0
    return cone.apply(classifier_BC)


def _write_vectors(
    checkpoint: Checkpoint, memory: Split, encoder: TextEncoder, cone: Cone, path: Path, progress: Progress
) -> Vectors:
    dual_dim, by_classifier = checkpoint.unified.dual_dim, checkpoint.memory_by_classifier
    dim = checkpoint.unified.classifier_dim + 1 if by_classifier else dual_dim
    vectors_MH: np.memmap[Any, np.dtype[np.float32]]
    vectors_MH = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(len(memory), dim))
    for start in range(0, len(memory), LABELS_PER_CHUNK):
        texts = memory.texts_column.slice(start, LABELS_PER_CHUNK).to_pylist()
        chunk_BH = memory_vectors(encoder.encode(texts).vectors_BD, dual_dim, by_classifier, cone)
        vectors_MH[start : start + len(texts)] = chunk_BH
        progress(start + len(texts), len(memory))
    vectors_MH.flush()
    return vectors_MH


def _check_parity(checkpoint: Checkpoint, memory: Split, cone: Cone, vectors_MH: Vectors) -> tuple[int, float]:
    """Compare vectors of the memory with the checkpoint's; return their number and the smallest cosine."""
    rows = sample_rows(len(memory), MAX_QUERIES)
    dual_BD, classifier_BC = torch_vectors(checkpoint, memory.texts_column.take(rows).to_pylist())
    expected_BH = _without_bias(classifier_BC, cone) if checkpoint.memory_by_classifier else dual_BD
    cosine = smallest_cosine(expected_BH, vectors_MH[rows])
    if not cosine >= MIN_COSINE:
        raise GateError(
            f"parity: vectors of the query memory differ from the checkpoint's: the smallest cosine is {cosine:.6f}, "
            f"at least {MIN_COSINE} is required. Install the PyTorch version in constraints.txt and export again."
        )
    return len(rows), cosine


def _choose_ef_search(memory: QueryMemory, query_QD: Vectors, suffices: Callable[[int], bool]) -> MemoryEfSearch:
    """Return the smallest ef_search that reaches both; None, which compares all queries, if that is not slower."""
    size = memory.facts.queries
    count = min(memory.facts.neighbours, size)
    least_Q1 = memory.nearest(query_QD, count, None)[1][:, -1:] - 1e-6  # equal similarities are in any order

    def recall(ef: int) -> float:
        similarity_QN: NDArray[np.float64] = memory.nearest(query_QD, count, ef)[1]
        return float((similarity_QN >= least_Q1).mean())

    def is_enough(ef: int) -> bool:
        return recall(ef) >= RECALL_TARGET and suffices(ef)

    ladder = tuple(ef for ef in EF_LADDER if not scan_is_cheaper(1, ef, size))
    if len(ladder) < len(EF_LADDER) and not (ladder and is_enough(ladder[-1])):
        return MemoryEfSearch(ef=None, recall=1.0)
    ef = smallest_ef(ladder, size, is_enough)
    if (reached := recall(ef)) < MIN_RECALL:
        raise GateError(
            f"recall: with ef_search {ef}, the index of the query memory finds {reached:.4f} of the {count} nearest "
            f"training queries; at least {MIN_RECALL} is required. Raise --m or --ef-construction."
        )
    return MemoryEfSearch(ef=ef, recall=reached)
