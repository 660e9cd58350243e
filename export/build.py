"""Build a bundle from a checkpoint: write it to a staging folder, pass the gates, reopen it, publish it."""

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from export.encoders import write_encoders
from export.geometry import Cone, balance_for, bias, classifier_width, find_cone
from export.label_vectors import count_zeros, write_imputed, write_vectors
from export.memory import GraphSettings, build_memory
from export.parity import check_parity
from export.pca import fit_projection, write_projected
from export.precision import MAX_PRECISION_LOSS, reduce_precision
from export.quality import MAX_QUALITY_LOSS, ValidationQueries, bundle_quality, check_quality, checkpoint_quality
from export.recall import RECALL_TARGET, IndexProbe, QualityCheck, choose_ef_search
from export.sampling import MAX_QUERIES, sample, sample_label_texts
from retrieval import open_bundle
from retrieval.bundle.facts import (
    GoldenFacts,
    IndexFacts,
    LabelFacts,
    MemoryFacts,
    ModelFacts,
    Parity,
    Precision,
    Provenance,
    Quality,
)
from retrieval.bundle.golden_answers import Golden, GoldenReport, record_golden, write_golden
from retrieval.bundle.label_size import check_label_size
from retrieval.bundle.labels import write_labels
from retrieval.bundle.manifest import (
    INDEX,
    LABEL_ENCODER,
    LABELS,
    NODES,
    PROJECTION,
    QUERY_ENCODER,
    TOKENIZER,
    VECTORS,
    Manifest,
    read_manifest,
)
from retrieval.bundle.verified_files import seal
from retrieval.errors import BundleError, GateError
from retrieval.search.distinct_vectors import nodes_of
from retrieval.search.encoder import TextEncoder
from retrieval.search.indexes import HnswIndex
from retrieval.search.memory import QueryMemory
from retrieval.search.pca_index import PcaIndex
from retrieval.search.thread_pool import ThreadPool
from retrieval.store.local import Store
from retrieval.system.progress import Stage, silent_stage
from training.checkpoint.opened import Checkpoint, load_checkpoint
from training.data.token_cache import special_ids, tokenize_in_memory
from training.evaluation.results import MetricValues

PROJECTED = "projected.npy"  # temporary input of the index
GOLDEN_QUERIES = 100
GOLDEN_OVERLAP = 0.99
# CPUs sum in different orders, so scores differ in their last digits; reduced precision enlarges the difference.
# Measured differences stay below 1e-6 with float32 and below 1e-3 with the others.
SCORE_TOLERANCE: dict[Precision, float] = {"float32": 1e-4, "float16": 5e-3, "int8": 5e-3}


@dataclass(frozen=True)
class ExportSettings:
    """Settings of an export.

    m: links per node of the index graph. ef_construction: candidates examined when a node is linked. threads: native
    threads (None: all cores). precision: of the query encoder.
    """

    m: int = 32
    ef_construction: int = 200
    threads: int | None = None
    precision: Precision = "float32"

    @property
    def max_quality_loss(self) -> float:
        """Return the points of P@1 and P@5 that the bundle may lose against its checkpoint."""
        return MAX_QUALITY_LOSS if self.precision == "float32" else MAX_PRECISION_LOSS


@dataclass(frozen=True)
class ExportedBundle:
    """A published bundle, its manifest, and the report of its golden answers."""

    name: str
    path: Path
    manifest: Manifest
    golden: GoldenReport


@dataclass(frozen=True)
class _Export:
    """Inputs that every step of one export shares; `queries` are a sample of the validation queries' texts."""

    checkpoint: Checkpoint
    folder: Path
    settings: ExportSettings
    stage: Stage
    queries: Sequence[str]
    model: ModelFacts
    cone: Cone


def export(
    checkpoint: Path,
    store: Store,
    *,
    name: str | None = None,
    settings: ExportSettings | None = None,
    stage: Stage = silent_stage,
) -> ExportedBundle:
    """Build, check and publish a bundle; does not activate it.

    Raises CheckpointError; GateError if a check fails (the store is then unchanged); BundleError if the name is in use
    or the store cannot be written.
    """
    if name is not None:
        store.check_free(name)
    opened = load_checkpoint(checkpoint)
    try:
        with store.incoming() as folder:
            golden = _build(opened, folder, settings or ExportSettings(), stage)
            name = name or _free_name(opened, store)
            with stage("publish"):
                path = store.publish(folder, name)
    except OSError as error:
        raise BundleError(
            f"the bundle cannot be written to {store.path} ({error}). Free disk space, or pass another --store."
        ) from error
    return ExportedBundle(name, path, read_manifest(path), golden)


def _build(checkpoint: Checkpoint, folder: Path, settings: ExportSettings, stage: Stage) -> GoldenReport:
    check_label_size(checkpoint.labels)
    queries = sample(checkpoint.validation.texts_column, MAX_QUERIES)
    cone = find_cone(checkpoint)
    job = _Export(checkpoint, folder, settings, stage, queries, _model_facts(checkpoint, queries, cone), cone)
    shutil.copyfile(checkpoint.tokenizer_path, folder / TOKENIZER)
    write_labels(folder / LABELS, checkpoint.labels)
    parity = _write_encoders_and_vectors(job)
    memory = _build_memory(job)
    reduced = None
    if settings.precision != "float32":
        with stage(f"query encoder in {settings.precision}"):
            reduced = reduce_precision(checkpoint, job.model, cone, settings.precision, queries, folder)
    validation, vectors_LD = ValidationQueries(checkpoint), np.load(folder / VECTORS, mmap_mode="r", allow_pickle=False)
    with stage("quality of the checkpoint") as progress:
        expected = checkpoint_quality(checkpoint, job.model, cone, vectors_LD, validation, progress)
    max_loss = settings.max_quality_loss / (1 if memory is None else 2)  # the index of the memory may lose the rest
    index = _build_index(job, validation, expected, max_loss)
    if memory is not None:
        with stage("quality of the checkpoint with memory") as progress:
            expected = checkpoint_quality(checkpoint, job.model, cone, vectors_LD, validation, progress, memory[1])
        memory[1].close()
    facts = _facts(checkpoint, settings) | {
        "labels": _label_facts(checkpoint, folder), "model": job.model, "parity": parity, "reduced": reduced,
        "index": index, "memory": None if memory is None else memory[0],
    }  # fmt: skip
    return _check_end_to_end(job, facts, validation, expected)


def _write_encoders_and_vectors(job: _Export) -> Parity:
    """Write the ONNX encoders in float32 and the label vectors, and check the encoders against the checkpoint."""
    checkpoint, folder, model, cone, threads = job.checkpoint, job.folder, job.model, job.cone, job.settings.threads
    with job.stage("ONNX encoders"):
        write_encoders(checkpoint.unified, cone, bias(checkpoint), folder)
    label_encoder = TextEncoder.open(folder / TOKENIZER, folder / LABEL_ENCODER, model, model.dual_dim, threads=threads)
    with job.stage("parity with the checkpoint"):
        parity = check_parity(checkpoint, job.queries, _query_encoder(job), label_encoder, cone)
    with job.stage("label vectors") as progress:
        write_vectors(checkpoint, label_encoder, model, cone, folder / VECTORS, progress)
    with job.stage("vectors of untrained labels") as progress:
        write_imputed(checkpoint, model, cone, folder / VECTORS, threads, progress)
    return parity


def _build_memory(job: _Export) -> tuple[MemoryFacts, QueryMemory] | None:
    """Write the query memory with the float32 encoder, if the checkpoint has one."""
    settings = job.settings
    with job.stage("query memory") as progress:
        return build_memory(
            job.checkpoint, _query_encoder(job), job.model, job.cone, job.queries, job.folder,
            GraphSettings(settings.m, settings.ef_construction, settings.threads), progress,
        )  # fmt: skip


def _query_encoder(job: _Export) -> TextEncoder:
    """Open the query encoder that is in the folder now: float32, or the one that replaced it."""
    files = job.folder / TOKENIZER, job.folder / QUERY_ENCODER
    return TextEncoder.open(*files, job.model, job.model.dim, threads=job.settings.threads)


def _build_index(job: _Export, validation: ValidationQueries, expected: MetricValues, max_loss: float) -> IndexFacts:
    """Build the index over the projected label vectors, and choose ef_search at each weight."""
    settings, folder = job.settings, job.folder
    vectors_LD = np.load(folder / VECTORS, mmap_mode="r", allow_pickle=False)
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
    width, label_texts = projection_DW.shape[1], sample_label_texts(job.checkpoint.labels.column("text"))
    with job.stage("recall") as progress:
        graph = HnswIndex.load(folder / INDEX, width, nodes.size, ef=1, pool=ThreadPool(settings.threads))
        probe = IndexProbe(PcaIndex(graph, projection_DW), vectors_LD, job.model.dual_dim, shared)
        encoder, weight = _query_encoder(job), job.checkpoint.classifier_weight
        check = QualityCheck(encoder, job.model, probe, validation, expected, max_loss)
        chosen = choose_ef_search(encoder, job.model, probe, job.queries, label_texts, weight, check, progress)
    return IndexFacts(
        width=width,
        energy=energy,
        nodes=None if shared is None else shared.size,
        m=settings.m,
        ef_construction=settings.ef_construction,
        recall_target=RECALL_TARGET,
        recall_queries=len(job.queries),
        recall_label_texts=len(label_texts),
        ef_search=chosen,
    )


def _check_end_to_end(
    job: _Export, facts: dict[str, Any], validation: ValidationQueries, expected: MetricValues
) -> GoldenReport:
    """Open the bundle as a reader, check its quality, and record golden answers that a second reader must reproduce."""
    settings, folder = job.settings, job.folder
    golden_queries = job.queries[:GOLDEN_QUERIES]
    with job.stage("quality of the bundle") as progress:
        write_golden(folder, Golden(weight=job.checkpoint.classifier_weight, answers=()))
        seal(folder, **facts, quality=None, golden=_golden_facts(0, settings))
        with open_bundle(folder, threads=settings.threads, paused=()) as retriever:
            measured, among_seen = bundle_quality(retriever, validation, progress)
            quality = Quality(queries=validation.scored, checkpoint=expected, bundle=measured, seen_labels=among_seen)
            check_quality(quality, settings.max_quality_loss)
            write_golden(folder, record_golden(retriever, golden_queries))
        seal(folder, **facts, quality=quality, golden=_golden_facts(len(golden_queries), settings))
    with job.stage("golden answers"), open_bundle(folder, threads=settings.threads, paused=()) as reader:
        report = reader.check_golden()
    if not report.passed:
        raise GateError(
            f"golden answers: after reopening the bundle, overlap@10 is {report.overlap_at_10:.4f} (at least "
            f"{GOLDEN_OVERLAP} is required) and scores differ by {report.score_deviation:.1e} (at most "
            f"{SCORE_TOLERANCE[settings.precision]} is allowed). Export again."
        )
    return report


def _facts(checkpoint: Checkpoint, settings: ExportSettings) -> dict[str, Any]:
    return {
        "created": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "source": Provenance(
            dataset=checkpoint.dataset_name,
            dataset_fingerprint=checkpoint.dataset_fingerprint,
            recipe=checkpoint.recipe.name,
            diptych_version=version("diptych"),
        ),
        "precision": settings.precision,
        "classifier_weight": checkpoint.classifier_weight,
    }


def _label_facts(checkpoint: Checkpoint, folder: Path) -> LabelFacts:
    texts, trained = checkpoint.labels.column("text"), int(checkpoint.trained_L.sum())
    return LabelFacts(
        count=len(texts),
        trained=trained,
        imputed=len(texts) - trained if trained else 0,
        duplicates=len(texts) - len(texts.unique()),
        zeros=count_zeros(folder / VECTORS),
    )


def _model_facts(checkpoint: Checkpoint, queries: Sequence[str], cone: Cone) -> ModelFacts:
    pad_id, unknown_id = special_ids(checkpoint.tokenizer.tokenizer)
    n_tokens = len(tokenize_in_memory(queries, checkpoint.tokenizer).ids.values)
    return ModelFacts(
        encoder=checkpoint.encoder_kind,  # type: ignore[arg-type]  # a str in the recipe, a Literal here; validated by pydantic
        dual_dim=checkpoint.unified.dual_dim,
        classifier_dim=classifier_width(checkpoint),
        balance=balance_for(checkpoint.classifier_weight),
        cone_shrink=cone.shrink,
        max_tokens=checkpoint.max_tokens,
        max_characters=max(1_024, 64 * checkpoint.max_tokens),
        pad_id=pad_id,
        unknown_id=unknown_id,
        bytes_per_token=sum(len(query.encode()) for query in queries) / n_tokens,
        query_identity=checkpoint.facts.query_identity,
    )


def _golden_facts(queries: int, settings: ExportSettings) -> GoldenFacts:
    tolerance = SCORE_TOLERANCE[settings.precision]
    return GoldenFacts(queries=queries, overlap_at_10=GOLDEN_OVERLAP, score_tolerance=tolerance)


def _free_name(checkpoint: Checkpoint, store: Store) -> str:
    words = dict.fromkeys([checkpoint.dataset_name, checkpoint.recipe.name])  # without repetition if they are equal
    readable = re.sub(r"[^A-Za-z0-9]+", "-", "-".join(words)).strip("-")[:40] or "bundle"
    stamped = f"{readable}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
    used = set(store.bundles())
    return next(name for name in (stamped, *(f"{stamped}-{n}" for n in range(2, 1000))) if name not in used)
