"""Build a bundle with label vectors of two halves, an HNSW index and a query memory."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from export.encoders import write_encoders, write_query_encoder
from export.geometry import Cone, balance_for, bias, classifier_width, find_cone
from export.index.int8_vectors import mapped
from export.job import BuiltParts, ExportJob, ExportSettings, label_facts, model_facts, query_encoder
from export.kinds.vector_index import WHOLE, build_index, write_label_vectors
from export.label_vectors import count_zeros, write_imputed, write_vectors
from export.memory import MEMORY_EF_CONSTRUCTION, MEMORY_M, GraphSettings, build_memory
from export.parity import check_parity
from export.precision import reduce_precision
from export.quality import ValidationQueries, checkpoint_quality
from retrieval.bundle.facts import Parity, Reduced
from retrieval.bundle.manifest import LABEL_ENCODER, TOKENIZER
from retrieval.search.encoder import TextEncoder
from retrieval.search.indexes import ExactIndex, Rows, Vectors
from retrieval.search.memory import QueryMemory
from retrieval.system.progress import Stage
from training.checkpoint.opened import Checkpoint


@dataclass(frozen=True)
class VectorJob(ExportJob):
    """An export of label vectors."""

    cone: Cone


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
    validation, whole_LD = ValidationQueries(checkpoint), mapped(folder / WHOLE)
    zeros = count_zeros(folder / WHOLE)
    reduced = _reduce_precision(job, whole_LD)
    with stage("quality of the checkpoint") as progress:
        expected = checkpoint_quality(checkpoint, job.model, job.cone, whole_LD, validation, progress, memory)
    vectors_LD, precision = write_label_vectors(job, validation, memory)
    index, memory_facts = build_index(job, vectors_LD, memory, validation, expected)
    facts = {
        "labels": label_facts(checkpoint, imputed=True, zeros=zeros), "model": job.model, "vectors": precision,
        "parity": parity, "reduced": reduced, "index": index, "memory": memory_facts,
    }  # fmt: skip
    return BuiltParts(facts, validation, expected)


def _reduce_precision(job: VectorJob, whole_LD: Vectors) -> Reduced | None:
    """Replace the query encoder by one of the precision in the settings; None: it stays in float32."""
    checkpoint, precision, exact = job.checkpoint, job.settings.precision, ExactIndex(whole_LD)
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
        write_vectors(checkpoint, label_encoder, model, cone, folder / WHOLE, progress)
    with job.stage("vectors of untrained labels") as progress:
        write_imputed(checkpoint, model, cone, folder / WHOLE, threads, progress)
    return parity


def _build_memory(job: VectorJob) -> QueryMemory | None:
    """Write the query memory with the float32 encoder, if the checkpoint has one."""
    settings = job.settings
    graph = GraphSettings(settings.m or MEMORY_M, settings.ef_construction or MEMORY_EF_CONSTRUCTION, settings.threads)
    with job.stage("query memory") as progress:
        return build_memory(job.checkpoint, query_encoder(job), job.model, job.cone, job.folder, graph, progress)
