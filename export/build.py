"""Build a bundle from a checkpoint: write it to a staging folder, pass the gates, reopen it, publish it."""

import re
import shutil
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from export.job import ExportSettings, check_end_to_end
from export.kinds.cascade import build_cascade, cascade_job
from export.kinds.milvus import move_index_to_milvus
from export.kinds.vectors import build_vectors, vector_job
from export.sampling import MAX_QUERIES, sample
from retrieval.bundle.golden_answers import GoldenReport
from retrieval.bundle.label_size import check_label_size
from retrieval.bundle.labels import write_labels
from retrieval.bundle.manifest import LABELS, TOKENIZER, Manifest, read_manifest
from retrieval.errors import BadInput, BundleError
from retrieval.store.local import Store
from retrieval.system.progress import Stage, silent_stage
from training.checkpoint.opened import Checkpoint, load_checkpoint
from training.model.unified import UnifiedModel


@dataclass(frozen=True)
class ExportedBundle:
    """A published bundle, its manifest, and the report of its golden answers."""

    name: str
    path: Path
    manifest: Manifest
    golden: GoldenReport


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
    shutil.copyfile(checkpoint.tokenizer_path, folder / TOKENIZER)
    write_labels(folder / LABELS, checkpoint.labels)
    if isinstance(checkpoint.model, UnifiedModel):
        job = vector_job(checkpoint, folder, settings, stage, queries)
        report = check_end_to_end(job, build_vectors(job))
        return report if settings.index != "milvus" else move_index_to_milvus(folder, settings.parquet, stage)
    if settings.index == "milvus":
        raise BadInput("a cascade has no index that could be in Milvus. Export it without --index milvus.")
    cascade = cascade_job(checkpoint, checkpoint.model, folder, settings, stage, queries)
    return check_end_to_end(cascade, build_cascade(cascade))


def _free_name(checkpoint: Checkpoint, store: Store) -> str:
    words = dict.fromkeys([checkpoint.dataset_name, checkpoint.recipe.name])  # without repetition if they are equal
    readable = re.sub(r"[^A-Za-z0-9]+", "-", "-".join(words)).strip("-")[:40] or "bundle"
    stamped = f"{readable}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
    used = set(store.bundles())
    return next(name for name in (stamped, *(f"{stamped}-{n}" for n in range(2, 1000))) if name not in used)
