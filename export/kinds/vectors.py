"""Build a bundle with label vectors of two halves, an HNSW index and a query memory."""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from export.encoders import write_encoders, write_query_encoder
from export.geometry import Cone, balance_for, bias, classifier_width, find_cone
from export.index_quality import IndexQuality
from export.job import BuiltParts, ExportJob, ExportSettings, label_facts, model_facts, query_encoder
from export.label_vectors import count_zeros, write_imputed, write_vectors
from export.memory import GraphSettings, build_memory, measured_facts
from export.parity import check_parity
from export.pca import fit_projection, write_projected
from export.precision import reduce_precision
from export.quality import ValidationQueries, checkpoint_quality
from export.recall import RECALL_TARGET, IndexProbe, choose_ef_search
from export.sampling import sample_label_texts
from retrieval.bundle.facts import IndexFacts, MemoryFacts, Parity, Reduced
from retrieval.bundle.manifest import INDEX, LABEL_ENCODER, NODES, PROJECTION, TOKENIZER, VECTORS
from retrieval.search.distinct_vectors import nodes_of
from retrieval.search.encoder import TextEncoder
from retrieval.search.indexes import ExactIndex, HnswIndex, Rows, Vectors
from retrieval.search.memory import QueryMemory
from retrieval.search.pca_index import PcaIndex
from retrieval.search.thread_pool import ThreadPool
from retrieval.system.progress import Stage
from training.checkpoint.opened import Checkpoint
from training.evaluation.results import MetricValues

PROJECTED = "projected.npy"  # temporary input of the index


@dataclass(frozen=True)
class VectorJob(ExportJob):
    """An export of label vectors."""

    cone: Cone


class BuiltIndex(NamedTuple):
    """The index of the labels, the width and the energy of its projection, and its nodes (None: one per label)."""

    probe: IndexProbe
    width: int
    energy: float
    nodes: int | None


def vector_job(
    checkpoint: Checkpoint, folder: Path, settings: ExportSettings, stage: Stage, queries: Sequence[str]
) -> VectorJob:
    """Prepare the export of a model with a dual encoder, a classifier, or both."""
    cone = find_cone(checkpoint)
    model = model_facts(
        checkpoint, queries, dual_dim=checkpoint.unified.dual_dim, classifier_dim=classifier_width(checkpoint),
        balance=balance_for(checkpoint.classifier_weight), cone_shrink=cone.shrink,
    )  # fmt: skip
    return VectorJob(checkpoint, folder, settings, stage, queries, model, cone)


def build_vectors(job: VectorJob) -> BuiltParts:
    """Write encoders, label vectors, memory and index, and pass their gates. Raises GateError."""
    checkpoint, folder, stage = job.checkpoint, job.folder, job.stage
    parity = _write_encoders_and_vectors(job)
    memory = _build_memory(job)
    validation, vectors_LD = ValidationQueries(checkpoint), np.load(folder / VECTORS, mmap_mode="r", allow_pickle=False)
    reduced = _reduce_precision(job, vectors_LD)
    with stage("quality of the checkpoint") as progress:
        expected = checkpoint_quality(checkpoint, job.model, job.cone, vectors_LD, validation, progress, memory)
    index, memory_facts = _choose_ef(job, _build_index(job, vectors_LD), memory, validation, expected)
    facts = {
        "labels": label_facts(checkpoint, imputed=True, zeros=count_zeros(folder / VECTORS)), "model": job.model,
        "parity": parity, "reduced": reduced, "index": index, "memory": memory_facts,
    }  # fmt: skip
    return BuiltParts(facts, validation, expected)


def _reduce_precision(job: VectorJob, vectors_LD: Vectors) -> Reduced | None:
    """Replace the query encoder by one of the precision in the settings; None: it stays in float32."""
    checkpoint, precision, exact = job.checkpoint, job.settings.precision, ExactIndex(vectors_LD)
    if precision == "float32":
        return None

    def rank(encoded_QD: Vectors, weight: float, k: int) -> Rows:
        return exact.search(encoded_QD * job.model.query_scale(weight), k)[0]

    write = partial(write_query_encoder, checkpoint.unified, job.cone, bias(checkpoint))
    with job.stage(f"query encoder in {precision}"):
        return reduce_precision(checkpoint, job.model, precision, job.queries, job.folder, write, rank)


def _write_encoders_and_vectors(job: VectorJob) -> Parity:
    """Write the ONNX encoders in float32 and the label vectors, and check the encoders against the checkpoint."""
    checkpoint, folder, model, cone, threads = job.checkpoint, job.folder, job.model, job.cone, job.settings.threads
    with job.stage("ONNX encoders"):
        write_encoders(checkpoint.unified, cone, bias(checkpoint), folder)
    label_encoder = TextEncoder.open(folder / TOKENIZER, folder / LABEL_ENCODER, model, model.dual_dim, threads=threads)
    with job.stage("parity with the checkpoint"):
        parity = check_parity(checkpoint, job.queries, query_encoder(job), label_encoder, cone)
    with job.stage("label vectors") as progress:
        write_vectors(checkpoint, label_encoder, model, cone, folder / VECTORS, progress)
    with job.stage("vectors of untrained labels") as progress:
        write_imputed(checkpoint, model, cone, folder / VECTORS, threads, progress)
    return parity


def _build_memory(job: VectorJob) -> QueryMemory | None:
    """Write the query memory with the float32 encoder, if the checkpoint has one."""
    settings = job.settings
    graph = GraphSettings(settings.m, settings.ef_construction, settings.threads)
    with job.stage("query memory") as progress:
        return build_memory(job.checkpoint, query_encoder(job), job.model, job.cone, job.folder, graph, progress)


def _build_index(job: VectorJob, vectors_LD: Vectors) -> BuiltIndex:
    """Build the index over the projected label vectors."""
    settings, folder = job.settings, job.folder
    with job.stage("PCA projection"):
        projection_DW, energy = fit_projection(vectors_LD, job.model.dual_dim)
        nodes = nodes_of(vectors_LD)
        projected_NW = write_projected(vectors_LD, nodes.representatives, projection_DW, folder / PROJECTED)
    with job.stage("index") as progress:
        built = HnswIndex.build(
            projected_NW, m=settings.m, ef_construction=settings.ef_construction, threads=settings.threads,
            progress=progress,
        )  # fmt: skip
        built.save(folder / INDEX)
        del built, projected_NW  # the file is measured, and two graphs need twice the memory
        (folder / PROJECTED).unlink()
        np.save(folder / PROJECTION, projection_DW)
        shared = nodes if nodes.size < len(vectors_LD) else None
        if shared is not None:
            np.save(folder / NODES, shared.node_L)
    width = projection_DW.shape[1]
    graph = HnswIndex.load(folder / INDEX, width, nodes.size, ef=1, pool=ThreadPool(settings.threads))
    probe = IndexProbe(PcaIndex(graph, projection_DW), vectors_LD, job.model.dual_dim, shared)
    return BuiltIndex(probe, width, energy, None if shared is None else shared.size)


def _choose_ef(
    job: VectorJob, index: BuiltIndex, memory: QueryMemory | None, validation: ValidationQueries, expected: MetricValues
) -> tuple[IndexFacts, MemoryFacts | None]:
    """Choose ef_search of the label index at each weight, then that of the memory's index; closes the memory."""
    settings, encoder, weight = job.settings, query_encoder(job), job.checkpoint.classifier_weight
    label_texts, probe = sample_label_texts(job.checkpoint.labels.column("text")), index.probe
    with job.stage("recall") as progress:
        quality = IndexQuality(encoder, job.model, probe, validation, expected, settings.max_quality_loss, memory)
        chosen = choose_ef_search(
            encoder, job.model, probe, job.queries, label_texts, weight, quality.labels_suffice, progress
        )
    facts = IndexFacts(
        width=index.width, energy=index.energy, nodes=index.nodes, m=settings.m,
        ef_construction=settings.ef_construction, recall_target=RECALL_TARGET, recall_queries=len(job.queries),
        recall_label_texts=len(label_texts), ef_search=chosen,
    )  # fmt: skip
    if memory is None:
        return facts, None
    ef = facts.ef_search_at(weight)
    if ef is None:  # choose_ef_search raises instead
        raise AssertionError(f"all labels are compared at the default weight {weight}")
    with job.stage("recall of the query memory"), closing(memory):
        query_QD = encoder.encode(job.queries).vectors_BD
        return facts, measured_facts(memory, query_QD, partial(quality.memory_suffices, ef))
