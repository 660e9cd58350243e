"""Build a bundle from a checkpoint: write it to a staging folder, run the gates, reopen it, publish it."""

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from export.directions import principal_directions, write_narrowed
from export.encoders import write_encoders
from export.gates import QUERIES, prove_parity, sample, sample_label_texts
from export.geometry import Cone, balance_for, bias, find_cone
from export.precision import PRECISION_LOSS, reduce_precision
from export.progress import Stage, silent
from export.quality import (
    QUALITY_LOSS,
    Figures,
    Validation,
    bundle_quality,
    checkpoint_quality,
    prove_quality,
)
from export.recall import RECALL_TARGET, KeepsQuality, Ranked, choose_efforts
from export.vectors import count_zeros, write_imputed, write_vectors
from retrieval import open_bundle
from retrieval.bundle.facts import GoldenFacts, IndexFacts, LabelFacts, ModelFacts, Precision, Provenance, Quality
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
from retrieval.search.pca_index import PcaIndex
from retrieval.search.thread_pool import ThreadPool
from retrieval.store.local import Store
from training.checkpoint.files import Checkpoint, load_checkpoint
from training.model.tokens import special_ids, tokenize_in_memory

NARROWED = "narrowed.npy"  # what the index is built from, and not part of the bundle
GOLDEN_QUERIES = 100
GOLDEN_OVERLAP = 0.99
# Processors sum in different orders, and where they round to less precision, a last digit may fall to the other side.
# Measured deviations stay below 1e-6 with float32 and below 1e-3 with the others.
SCORE_TOLERANCE: dict[Precision, float] = {"float32": 1e-4, "float16": 5e-3, "int8": 5e-3}


@dataclass(frozen=True)
class Settings:
    """The graph's `m` links a node and `ef_construction` candidates, native threads (None: all cores), precision."""

    m: int = 32
    ef_construction: int = 200
    threads: int | None = None
    precision: Precision = "float32"


@dataclass(frozen=True)
class Built:
    """A published bundle and what it proved."""

    name: str
    path: Path
    manifest: Manifest
    golden: GoldenReport


def export(
    checkpoint: Path, store: Store, *, name: str | None = None, settings: Settings | None = None, stage: Stage = silent
) -> Built:
    """Build, prove and publish a bundle; does not activate it.

    Raises CheckpointError, GateError with the figures when a gate refuses (the store is then as before), BundleError
    when the name is taken or the store cannot be written.
    """
    if name is not None:
        store.check_free(name)
    opened = load_checkpoint(checkpoint)
    try:
        with store.incoming() as folder:
            golden = _build(opened, folder, settings or Settings(), stage)
            name = name or _free_name(opened, store)
            with stage("publish"):
                path = store.publish(folder, name)
    except OSError as error:
        raise BundleError(
            f"{store.path}: the bundle cannot be written ({error}). Free space, or name another."
        ) from error
    return Built(name, path, read_manifest(path), golden)


def _build(checkpoint: Checkpoint, folder: Path, settings: Settings, stage: Stage) -> GoldenReport:
    check_label_size(checkpoint.labels)
    queries = sample(checkpoint.validation.texts_column, QUERIES)
    cone = find_cone(checkpoint)
    model = _model_facts(checkpoint, queries, cone)
    shutil.copyfile(checkpoint.tokenizer_path, folder / TOKENIZER)
    write_labels(folder / LABELS, checkpoint.labels)
    with stage("ONNX encoders"):
        write_encoders(checkpoint.model, cone, bias(checkpoint), folder)
    encoder, label_encoder = (
        TextEncoder.open(folder / TOKENIZER, folder / file, model, dim, threads=settings.threads)
        for file, dim in ((QUERY_ENCODER, model.dim), (LABEL_ENCODER, model.dual_dim))
    )
    with stage("parity with the checkpoint"):
        parity = prove_parity(checkpoint, queries, encoder, label_encoder, cone)
    with stage("label vectors") as progress:
        write_vectors(checkpoint, label_encoder, model, cone, folder / VECTORS, progress)
    with stage("labels that were not trained") as progress:
        write_imputed(checkpoint, model, cone, folder / VECTORS, settings.threads, progress)
    reduced = None
    if settings.precision != "float32":
        with stage(f"query encoder in {settings.precision}"):
            reduced = reduce_precision(checkpoint, model, cone, settings.precision, queries, folder)
        encoder = TextEncoder.open(
            folder / TOKENIZER, folder / QUERY_ENCODER, model, model.dim, threads=settings.threads
        )
    asked, vectors_LD = Validation(checkpoint), np.load(folder / VECTORS, mmap_mode="r", allow_pickle=False)
    with stage("quality of the checkpoint") as progress:
        own = checkpoint_quality(checkpoint, model, cone, vectors_LD, asked, progress)
    index = _build_index(checkpoint, folder, model, encoder, queries, asked, own, settings, stage)
    proved = {"model": model, "parity": parity, "reduced": reduced, "index": index}
    facts = _facts(checkpoint, settings) | {"labels": _label_facts(checkpoint, folder)} | proved
    return _prove_end_to_end(checkpoint, folder, facts, asked, own, queries, settings, stage)


def _build_index(
    checkpoint: Checkpoint, folder: Path, model: ModelFacts, encoder: TextEncoder, queries: Sequence[str],
    asked: Validation, own: Figures, settings: Settings, stage: Stage,
) -> IndexFacts:  # fmt: skip
    m, ef_construction, threads = settings.m, settings.ef_construction, settings.threads
    vectors_LD = np.load(folder / VECTORS, mmap_mode="r", allow_pickle=False)
    with stage("principal directions"):
        directions_DW, energy = principal_directions(vectors_LD, model.dual_dim)
        width = directions_DW.shape[1]
        nodes = nodes_of(vectors_LD)
        narrow_NW = write_narrowed(vectors_LD, nodes.representatives, directions_DW, folder / NARROWED)
    with stage("index") as progress:
        built = HnswIndex.build(narrow_NW, m=m, ef_construction=ef_construction, threads=threads, progress=progress)
        built.save(folder / INDEX)
        del built, narrow_NW  # what is measured is the file, and two graphs need twice the memory
        (folder / NARROWED).unlink()
        np.save(folder / PROJECTION, directions_DW)
        shared = nodes if nodes.size < len(vectors_LD) else None
        if shared is not None:
            np.save(folder / NODES, shared.node_L)
    with stage("recall") as progress:
        graph = HnswIndex.load(folder / INDEX, width, nodes.size, ef=1, pool=ThreadPool(threads))
        index = Ranked(PcaIndex(graph, directions_DW), vectors_LD, model.dual_dim, shared)
        weight = checkpoint.classifier_weight
        keeps_quality = KeepsQuality(encoder, model, index, asked, own, weight, _allowed(settings))
        label_texts = sample_label_texts(checkpoint.labels.column("text"))
        efforts = choose_efforts(encoder, model, index, queries, label_texts, weight, keeps_quality, progress)
    return IndexFacts(
        width=width,
        energy=energy,
        nodes=None if shared is None else shared.size,
        m=m,
        ef_construction=ef_construction,
        recall_target=RECALL_TARGET,
        recall_queries=len(queries),
        recall_label_texts=len(label_texts),
        ef_search=efforts,
    )


def _prove_end_to_end(
    checkpoint: Checkpoint,
    folder: Path,
    facts: dict[str, Any],
    asked: Validation,
    own: Figures,
    queries: Sequence[str],
    settings: Settings,
    stage: Stage,
) -> GoldenReport:
    """Open the bundle as a reader will, measure it, record its golden answers; a second reader must agree."""
    with stage("quality of the bundle") as progress:
        write_golden(folder, Golden(weight=checkpoint.classifier_weight, answers=()))
        seal(folder, **facts, quality=None, golden=_golden_facts(0, settings))
        with open_bundle(folder, threads=settings.threads, paused=()) as retriever:
            quality = Quality(queries=asked.scored, checkpoint=own, bundle=bundle_quality(retriever, asked, progress))
            prove_quality(quality, _allowed(settings))
            write_golden(folder, record_golden(retriever, queries[:GOLDEN_QUERIES]))
        seal(folder, **facts, quality=quality, golden=_golden_facts(len(queries[:GOLDEN_QUERIES]), settings))
    with stage("golden answers"), open_bundle(folder, threads=settings.threads, paused=()) as reader:
        report = reader.check_golden()
    if not report.passed:
        raise GateError(
            f"golden answers: the reopened bundle has overlap@10 {report.overlap_at_10:.4f} and scores that differ by "
            f"{report.score_deviation:.1e}; {GOLDEN_OVERLAP} and {SCORE_TOLERANCE[settings.precision]} are needed. "
            "Export again."
        )
    return report


def _allowed(settings: Settings) -> float:
    return QUALITY_LOSS if settings.precision == "float32" else PRECISION_LOSS


def _facts(checkpoint: Checkpoint, settings: Settings) -> dict[str, Any]:
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
    pad_id, unknown_id = special_ids(checkpoint.tokenizer)
    n_tokens = len(tokenize_in_memory(queries, checkpoint.tokenizer).ids_S)
    return ModelFacts(
        encoder=checkpoint.encoder_kind,  # type: ignore[arg-type]  # a str there, one of two words here: checked
        dual_dim=checkpoint.model.dual_dim,
        classifier_dim=checkpoint.model.classifier_dim + 1,  # the bias
        balance=balance_for(checkpoint.classifier_weight),
        cone_shrink=cone.shrink,
        max_tokens=checkpoint.max_tokens,
        max_characters=max(1_024, 64 * checkpoint.max_tokens),
        pad_id=pad_id,
        unknown_id=unknown_id,
        bytes_per_token=sum(len(query.encode()) for query in queries) / n_tokens,
    )


def _golden_facts(queries: int, settings: Settings) -> GoldenFacts:
    tolerance = SCORE_TOLERANCE[settings.precision]
    return GoldenFacts(queries=queries, overlap_at_10=GOLDEN_OVERLAP, score_tolerance=tolerance)


def _free_name(checkpoint: Checkpoint, store: Store) -> str:
    words = dict.fromkeys([checkpoint.dataset_name, checkpoint.recipe.name])  # once, if they are the same
    readable = re.sub(r"[^A-Za-z0-9]+", "-", "-".join(words)).strip("-")[:40] or "bundle"
    stamped = f"{readable}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
    taken = set(store.bundles())
    return next(name for name in (stamped, *(f"{stamped}-{n}" for n in range(2, 1000))) if name not in taken)
