"""Build the index of a bundle's label vectors: a graph over projected vectors, or exact search where it is faster.

Shapes: L labels, N distinct vectors, D vector width, W width of the projection.
"""

from collections.abc import Sequence
from contextlib import closing
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from export.index.choice import choose_width
from export.index.graph import GraphChoice, choose_graph, sample_nodes
from export.index.int8_vectors import mapped, metric_lost_by_int8, write_float32, write_int8
from export.index.kind import MAX_EXACT, exact_settings, is_exact_faster, without_slow_weights
from export.index.pca import first_directions, fit_directions, width_of_energy, write_projected
from export.index.quality import IndexQuality
from export.index.recall import RECALL_TARGET, IndexProbe, choose_ef_search
from export.job import ExportJob, query_encoder
from export.memory import measured_facts
from export.quality import ValidationQueries
from export.sampling import sample_label_texts, sample_rows
from retrieval.bundle.facts import EfSearch, IndexFacts, MemoryFacts, VectorPrecision
from retrieval.bundle.manifest import INDEX, NODES, PROJECTION, VECTOR_SCALES
from retrieval.errors import GateError
from retrieval.quantized_vectors import LabelVectors
from retrieval.search.distinct_vectors import Nodes, nodes_of
from retrieval.search.encoder import TextEncoder
from retrieval.search.indexes import ExactIndex, HnswIndex, Rows, Vectors
from retrieval.search.memory import QueryMemory
from retrieval.search.pca_index import PcaIndex
from retrieval.search.thread_pool import ThreadPool
from training.evaluation.results import MetricValues

WHOLE = "float32.npy"  # temporary: the vectors before they are quantised
PROJECTED = "projected.npy"  # temporary: the input of the graph
MIN_SAMPLE_QUERIES, MAX_SAMPLE_QUERIES = 100, 400  # that width and graph settings are chosen with
# From this number of distinct vectors on, width and graph settings are measured. Below, a wider projection and
# more links take little memory and allow a smaller ef_search.
MIN_MEASURED = 200_000
SMALL_GRAPH = GraphChoice(m=32, ef_construction=200)
MAX_PAIRS = 300_000_000  # of a query and a label that are compared to choose the width, at each weight


class _Graph(NamedTuple):
    """The search in a graph that was written, and the facts about it."""

    probe: IndexProbe
    facts: dict[str, Any]


def write_label_vectors(
    job: ExportJob, validation: ValidationQueries, memory: QueryMemory | None
) -> tuple[LabelVectors, VectorPrecision]:
    """Write the label vectors in the precision of the settings; "auto": int8, unless it loses quality.

    The float32 vectors are in WHOLE. int8 may lose a third of what the bundle may lose, the indexes the rest. Raises
    GateError if int8 is required and loses quality.
    """
    whole, folder, wanted = job.folder / WHOLE, job.folder, job.settings.vectors
    max_loss = job.settings.max_quality_loss / 3
    if wanted != "float32":
        with job.stage("label vectors in int8"):
            quantized_LD = write_int8(whole, folder, job.model.dual_dim)
            lost = metric_lost_by_int8(
                query_encoder(job), job.model, mapped(whole), quantized_LD, validation, max_loss, memory
            )
        if lost is None:
            whole.unlink()
            return quantized_LD, "int8"
        if wanted == "int8":
            raise GateError(
                f"precision: label vectors in int8 lower {lost} by more than {max_loss:.2f} points. Export with "
                "--vectors float32."
            )
        (folder / VECTOR_SCALES).unlink()
    return write_float32(whole, folder), "float32"


def build_index(
    job: ExportJob, vectors_LD: LabelVectors, memory: QueryMemory | None, validation: ValidationQueries,
    expected: MetricValues,
) -> tuple[IndexFacts, MemoryFacts | None]:  # fmt: skip
    """Build the index of the settings' kind, "auto": the faster one. Choose ef_search of it and of the memory's index.

    Closes the memory. Raises GateError if the recall of a graph is too low, unless exact search is possible instead.
    """
    settings, encoder, nodes = job.settings, query_encoder(job), nodes_of(vectors_LD)
    shared = nodes if nodes.size < len(vectors_LD) else None
    if shared is not None:
        np.save(job.folder / NODES, shared.node_L)
    label_texts = sample_label_texts(job.checkpoint.labels.column("text"))
    encoded = encoder.encode(job.queries).vectors_BD, encoder.encode(label_texts).vectors_BD
    graph = None if settings.index == "exact" else _write_graph(job, vectors_LD, nodes, encoded)
    probe = _exact_probe(job, vectors_LD, shared) if graph is None else graph.probe
    quality = IndexQuality(encoder, job.model, probe, validation, expected, settings.max_quality_loss, memory)
    chosen = None if graph is None else _choose_ef_search(job, probe, nodes, encoder, label_texts, quality)
    kind = _exact_kind(job) if graph is None or chosen is None else {**graph.facts, "ef_search": chosen}
    facts = IndexFacts(
        nodes=None if shared is None else shared.size, recall_target=RECALL_TARGET, recall_queries=len(job.queries),
        recall_label_texts=len(label_texts), **kind,
    )  # fmt: skip
    return facts, None if memory is None else _memory_facts(job, memory, encoder, quality, facts)


def _exact_kind(job: ExportJob) -> dict[str, Any]:
    """Remove the files of a graph, if there is one, and return the facts of an exact index."""
    for name in (INDEX, PROJECTION):
        (job.folder / name).unlink(missing_ok=True)
    return {"kind": "exact", "ef_search": exact_settings(job.checkpoint.classifier_weight)}


def _write_graph(job: ExportJob, vectors_LD: LabelVectors, nodes: Nodes, encoded: tuple[Vectors, Vectors]) -> _Graph:
    """Choose width and graph settings, write projection and graph, and open them as a reader does."""
    settings, folder, row_N = job.settings, job.folder, nodes.representatives
    projection_DW, energy = _choose_projection(job, vectors_LD, row_N, encoded)
    with job.stage("graph settings") as progress:
        sample_SW = vectors_LD[row_N[sample_nodes(nodes.size)]] @ projection_DW
        query_QW = _queries(job, nodes.size, encoded, job.checkpoint.classifier_weight) @ projection_DW
        m, ef_construction = settings.m, settings.ef_construction
        if nodes.size < MIN_MEASURED:
            m, ef_construction = m or SMALL_GRAPH.m, ef_construction or SMALL_GRAPH.ef_construction
        choice = choose_graph(sample_SW, nodes.size, query_QW, m, ef_construction, settings.threads, progress)
    with job.stage("index") as progress:
        projected_NW = write_projected(vectors_LD, row_N, projection_DW, folder / PROJECTED)
        built = HnswIndex.build(projected_NW, **choice._asdict(), threads=settings.threads, progress=progress)
        built.save(folder / INDEX)
        del built, projected_NW  # the file is measured, and two graphs need twice the memory
        (folder / PROJECTED).unlink()
        np.save(folder / PROJECTION, projection_DW)
    width = projection_DW.shape[1]
    graph = HnswIndex.load(folder / INDEX, width, nodes.size, ef=1, pool=ThreadPool(settings.threads))
    shared = nodes if nodes.size < len(vectors_LD) else None
    probe = IndexProbe(PcaIndex(graph, projection_DW), vectors_LD, job.model.dual_dim, shared)
    return _Graph(probe, {"width": width, "energy": energy, **choice._asdict()})


def _choose_projection(
    job: ExportJob, vectors_LD: LabelVectors, row_N: Rows, encoded: tuple[Vectors, Vectors]
) -> tuple[Vectors, float]:
    """Return the directions of the settings' width, or of the smallest one that suffices, and their energy."""
    with job.stage("PCA projection") as progress:
        directions_DD, energy_D = fit_directions(vectors_LD, job.model.dual_dim)
        width = job.settings.width
        if width is None and len(row_N) < MIN_MEASURED:
            width = width_of_energy(energy_D)
        if width is None:
            default = job.checkpoint.classifier_weight
            others = {0.0, 1.0} - {default} if job.model.classifier_dim else set()
            default_QD, *other_QD = (
                _queries(job, len(row_N), encoded, weight) for weight in (default, *sorted(others))
            )  # fmt: skip
            width = choose_width(
                vectors_LD, row_N, directions_DD, default_QD, other_QD, job.model.dual_dim, progress
            )  # fmt: skip
    width = min(width, len(energy_D))
    return first_directions(directions_DD, width), float(energy_D[width - 1])


def _queries(job: ExportJob, labels: int, encoded: tuple[Vectors, Vectors], weight: float) -> Vectors:
    """Return validation queries and half as many label texts [Q, D], scaled to a weight; fewer with many labels."""
    count = min(MAX_SAMPLE_QUERIES, max(MIN_SAMPLE_QUERIES, MAX_PAIRS // labels))
    parts = [
        vectors_QD[sample_rows(len(vectors_QD), number)]
        for vectors_QD, number in zip(encoded, (count, count // 2), strict=True)
    ]
    return np.concatenate(parts) * job.model.query_scale(weight)


def _exact_probe(job: ExportJob, vectors_LD: LabelVectors, shared: Nodes | None) -> IndexProbe:
    """Return the search of an exact index, which a reader keeps as float32."""
    whole_LD = vectors_LD[:]
    exact = ExactIndex(whole_LD if shared is None else whole_LD[shared.representatives], job.settings.threads)
    return IndexProbe(exact, whole_LD, job.model.dual_dim, shared)


def _choose_ef_search(
    job: ExportJob, probe: IndexProbe, nodes: Nodes, encoder: TextEncoder, label_texts: Sequence[str],
    quality: IndexQuality,
) -> tuple[EfSearch, ...] | None:  # fmt: skip
    """Choose ef_search at each weight; None: exact search is faster, or the graph's recall is too low.

    Raises GateError for a recall that is too low if the settings require a graph, or there are too many labels.
    """
    weight, encoded_QD = job.checkpoint.classifier_weight, encoder.encode(job.queries).vectors_BD
    may_be_exact = job.settings.index == "auto" and nodes.size <= MAX_EXACT
    with job.stage("recall") as progress:
        try:
            chosen = choose_ef_search(
                encoder, job.model, probe, job.queries, label_texts, weight, quality.labels_suffice, progress
            )
        except GateError:
            if may_be_exact:
                return None
            raise
        ef = next(setting.ef for setting in chosen if setting.weight == weight)
        if may_be_exact and ef is not None:
            query_QD = encoded_QD * job.model.query_scale(weight)
            if is_exact_faster(probe, nodes, query_QD, ef, job.model.dual_dim, job.settings.threads):
                return None
        return without_slow_weights(chosen, weight, probe, encoded_QD, job.model)


def _memory_facts(
    job: ExportJob, memory: QueryMemory, encoder: TextEncoder, quality: IndexQuality, facts: IndexFacts
) -> MemoryFacts:
    """Choose ef_search of the memory's index, given that of the labels; closes the memory."""
    ef = facts.ef_search_at(job.checkpoint.classifier_weight)
    with job.stage("recall of the query memory"), closing(memory):
        query_QD = encoder.encode(job.queries).vectors_BD
        return measured_facts(memory, query_QD, partial(quality.memory_suffices, ef))
