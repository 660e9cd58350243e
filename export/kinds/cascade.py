"""Build a bundle with a cascade: the query encoder, the rows of each level, the label tree, and the shortlists.

Shapes: Q queries, N nodes of a level, E width of a level's rows, D width of a query vector.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from export.encoders import write_cascade_encoder
from export.job import BuiltParts, ExportJob, ExportSettings, label_facts, model_facts, query_encoder
from export.kinds.shortlists import choose_shortlists, search_of
from export.parity import require_parity, smallest_cosine
from export.precision import reduce_precision
from export.quality import CPU, ValidationQueries
from export.sampling import with_long_texts
from retrieval.bundle.facts import Parity, Reduced
from retrieval.bundle.manifest import QUERY_ENCODER, VECTORS, level_file, parents_file
from retrieval.errors import GateError
from retrieval.search.cascade_index import CascadeIndex
from retrieval.search.indexes import Rows, Vectors
from retrieval.search.thread_pool import ThreadPool
from retrieval.system.progress import Stage
from training.checkpoint.opened import Checkpoint
from training.data.token_cache import tokenize_in_memory
from training.evaluation.cascade.ranker import encode_cascade_queries
from training.model.cascade import CascadeModel

BALANCE = 0.5  # has no meaning without a dual encoder


@dataclass(frozen=True)
class CascadeJob(ExportJob):
    """An export of a cascade; `index` has the checkpoint's shortlists."""

    cascade: CascadeModel
    index: CascadeIndex


def cascade_job(
    checkpoint: Checkpoint, cascade: CascadeModel, folder: Path, settings: ExportSettings, stage: Stage,
    queries: Sequence[str],
) -> CascadeJob:  # fmt: skip
    """Prepare the export of a cascade. Raises GateError for rows with NaN or Inf."""
    rows = cascade.level_rows()
    for level, rows_NE in enumerate(rows):
        if not np.isfinite(rows_NE).all():
            node = int(np.isfinite(rows_NE).all(axis=1).argmin())
            raise GateError(
                f"node {node} of level {level} has a row with NaN or Inf: training diverged. Train again with a lower "
                "learning rate."
            )
    index = CascadeIndex.build(rows, cascade.parents, cascade.shortlist, ThreadPool(settings.threads))
    model = model_facts(checkpoint, queries, dual_dim=0, classifier_dim=index.dim, balance=BALANCE)
    return CascadeJob(checkpoint, folder, settings, stage, queries, model, cascade, index)


def build_cascade(job: CascadeJob) -> BuiltParts:
    """Write encoder, rows and tree, choose the shortlists, and pass the gates. Raises GateError."""
    checkpoint, index = job.checkpoint, job.index
    with job.stage("ONNX encoder"):
        write_cascade_encoder(job.cascade, job.folder / QUERY_ENCODER)
    with job.stage("parity with the checkpoint"):
        parity = check_cascade_parity(job)
    _write_levels(job)
    reduced = _reduce_precision(job)
    validation = ValidationQueries(checkpoint)
    with job.stage("quality of the checkpoint"):
        vectors_QD = _torch_vectors(job, validation.texts)
        expected = validation.metrics(search_of(index, vectors_QD))
    with job.stage("shortlists"):
        encoded_QD = query_encoder(job).encode(validation.texts).vectors_BD
        facts = choose_shortlists(index, encoded_QD, validation, expected, job.settings.max_quality_loss)
    index.close()
    return BuiltParts(
        {
            "labels": label_facts(checkpoint, imputed=False, zeros=0), "model": job.model, "parity": parity,
            "reduced": reduced, "index": None, "cascade": facts,
        },
        validation,
        expected,
    )  # fmt: skip


def _torch_vectors(job: CascadeJob, texts: Sequence[str]) -> Vectors:
    """Return the query vectors [Q, D] of the checkpoint itself."""
    return encode_cascade_queries(job.cascade, tokenize_in_memory(texts, job.checkpoint.tokenizer), CPU)


def check_cascade_parity(job: CascadeJob) -> Parity:
    """Compare the ONNX encoder with the checkpoint on queries of up to the maximum length; raises GateError."""
    texts, longest = with_long_texts(job.queries, job.checkpoint)
    cosine = level_cosine(_torch_vectors(job, texts), query_encoder(job).encode(texts).vectors_BD, job.index.dims)
    require_parity("query", cosine)
    return Parity(queries=len(texts), query_cosine=cosine, labels=0, label_cosine=1.0, longest_tokens=longest)


def level_cosine(expected_QD: Vectors, actual_QD: Vectors, dims: Sequence[int]) -> float:
    """Return the smallest cosine of a query's parts at any level, of widths `dims`.

    The features of one level may be much longer than those of another, and hide it in the cosine of whole vectors.
    """
    ends, cosines = np.cumsum(dims)[:-1], []
    for expected_QE, actual_QE in zip(np.split(expected_QD, ends, 1), np.split(actual_QD, ends, 1), strict=True):
        length_Q1 = np.linalg.norm(expected_QE, axis=1, keepdims=True)  # at least that of the last number, which is 1
        cosines.append(smallest_cosine(expected_QE / length_Q1, actual_QE / length_Q1))
    return min(cosines)


def _write_levels(job: CascadeJob) -> None:
    """Write the rows of each level, and the parents of each level after the first."""
    *above, labels_LE = job.index.rows
    for level, rows_NE in enumerate(above):
        np.save(job.folder / level_file(level), rows_NE)
    np.save(job.folder / VECTORS, labels_LE)
    for level, parent_N in enumerate(job.index.tree.parents, start=1):
        np.save(job.folder / parents_file(level), parent_N)


def _reduce_precision(job: CascadeJob) -> Reduced | None:
    """Replace the query encoder by one of the precision in the settings; None: it stays in float32."""
    precision = job.settings.precision
    if precision == "float32":
        return None

    def rank(encoded_QD: Vectors, weight: float, k: int) -> Rows:
        return job.index.rank(encoded_QD, k)[0]

    write = partial(write_cascade_encoder, job.cascade)
    with job.stage(f"query encoder in {precision}"):
        return reduce_precision(job.checkpoint, job.model, precision, job.queries, job.folder, write, rank)
