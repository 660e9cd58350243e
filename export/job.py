"""One export: its settings, the facts that every kind of bundle has, and the checks of the finished bundle."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, NamedTuple

from export.precision import MAX_PRECISION_LOSS
from export.quality import MAX_QUALITY_LOSS, ValidationQueries, bundle_quality, check_quality
from retrieval import open_bundle
from retrieval.bundle.facts import GoldenFacts, LabelFacts, ModelFacts, Precision, Provenance, Quality
from retrieval.bundle.golden_answers import Golden, GoldenReport, record_golden, write_golden
from retrieval.bundle.manifest import QUERY_ENCODER, TOKENIZER
from retrieval.bundle.verified_files import seal
from retrieval.errors import GateError
from retrieval.search.encoder import TextEncoder
from retrieval.system.progress import Stage
from training.checkpoint.opened import Checkpoint
from training.data.token_cache import special_ids, tokenize_in_memory
from training.evaluation.results import MetricValues

GOLDEN_QUERIES = 100
GOLDEN_OVERLAP = 0.99
# CPUs sum in different orders, so scores differ in their last digits; reduced precision enlarges the difference.
# Measured differences stay below 1e-6 with float32 and below 1e-3 with the others.
SCORE_TOLERANCE: dict[Precision, float] = {"float32": 1e-4, "float16": 5e-3, "int8": 5e-3}


@dataclass(frozen=True)
class ExportSettings:
    """Settings of an export.

    vectors: precision of the label vectors; "auto": int8 unless it loses quality. index: kind of the index; "auto": the
    faster one of hnsw and exact. parquet: file for the rows of an index in Milvus. width: numbers per label in the
    index. m: links per node of the index graph. ef_construction: candidates examined when a node is linked. None for
    these three: constants, or measured if there are many labels (docs/decisions/0096). threads:
    native threads (None: all cores). precision: of the query encoder.
    """

    vectors: Literal["auto", "float32", "int8"] = "auto"
    index: Literal["auto", "hnsw", "exact", "milvus"] = "auto"
    parquet: Path | None = None
    width: int | None = None
    m: int | None = None
    ef_construction: int | None = None
    threads: int | None = None
    precision: Precision = "float32"

    @property
    def max_quality_loss(self) -> float:
        """Return the points of P@1 and P@5 that the bundle may lose against its checkpoint."""
        return MAX_QUALITY_LOSS if self.precision == "float32" else MAX_PRECISION_LOSS


@dataclass(frozen=True)
class ExportJob:
    """Inputs that every step of one export shares; `queries` are a sample of the validation queries' texts."""

    checkpoint: Checkpoint
    folder: Path
    settings: ExportSettings
    stage: Stage
    queries: Sequence[str]
    model: ModelFacts


class BuiltParts(NamedTuple):
    """The manifest's facts that depend on the kind of bundle, the validation queries, and the checkpoint's metrics."""

    facts: dict[str, Any]
    validation: ValidationQueries
    expected: MetricValues


def query_encoder(job: ExportJob) -> TextEncoder:
    """Open the query encoder that is in the folder now: float32, or the one that replaced it."""
    files = job.folder / TOKENIZER, job.folder / QUERY_ENCODER
    return TextEncoder.open(*files, job.model, job.model.dim, threads=job.settings.threads)


def model_facts(checkpoint: Checkpoint, queries: Sequence[str], **geometry: Any) -> ModelFacts:
    """Describe the query encoder; `geometry` are the fields that depend on the kind of model."""
    pad_id, unknown_id = special_ids(checkpoint.tokenizer.tokenizer)
    n_tokens = len(tokenize_in_memory(queries, checkpoint.tokenizer).ids.values)
    return ModelFacts(
        encoder=checkpoint.encoder_kind,  # type: ignore[arg-type]  # a str in the recipe, a Literal here; validated by pydantic
        max_tokens=checkpoint.max_tokens,
        max_characters=max(1_024, 64 * checkpoint.max_tokens),
        pad_id=pad_id,
        unknown_id=unknown_id,
        bytes_per_token=sum(len(query.encode()) for query in queries) / n_tokens,
        query_identity=checkpoint.facts.query_identity,
        **geometry,
    )


def label_facts(checkpoint: Checkpoint, imputed: bool, zeros: int) -> LabelFacts:
    """Count the labels; `imputed`: whether untrained labels have imputed rows; `zeros`: labels without a vector."""
    texts, trained = checkpoint.labels.column("text"), int(checkpoint.trained_L.sum())
    return LabelFacts(
        count=len(texts),
        trained=trained,
        imputed=len(texts) - trained if trained and imputed else 0,
        duplicates=len(texts) - len(texts.unique()),
        zeros=zeros,
    )


def check_end_to_end(job: ExportJob, built: BuiltParts) -> GoldenReport:
    """Open the bundle as a reader, check its quality, and record golden answers that a second reader must reproduce."""
    settings, folder, expected = job.settings, job.folder, built.expected
    facts = _facts(job.checkpoint, settings) | built.facts
    golden_queries = job.queries[:GOLDEN_QUERIES]
    with job.stage("quality of the bundle") as progress:
        write_golden(folder, Golden(weight=job.checkpoint.classifier_weight, answers=()))
        seal(folder, **facts, quality=None, golden=_golden_facts(0, settings))
        with open_bundle(folder, threads=settings.threads, paused=()) as retriever:
            measured, among_seen = bundle_quality(retriever, built.validation, progress)
            quality = Quality(
                queries=built.validation.scored, checkpoint=expected, bundle=measured, seen_labels=among_seen
            )
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


def _golden_facts(queries: int, settings: ExportSettings) -> GoldenFacts:
    tolerance = SCORE_TOLERANCE[settings.precision]
    return GoldenFacts(queries=queries, overlap_at_10=GOLDEN_OVERLAP, score_tolerance=tolerance)
