"""Write the label vectors of a bundle: in int8, unless that loses quality.

Shapes: L labels, B labels of a chunk, D vector width, H halves, Q queries, K ranks.
"""

import os
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.geometry import LABELS_PER_CHUNK
from export.quality import ValidationQueries, failed_metric
from retrieval.bundle.facts import ModelFacts, VectorPrecision
from retrieval.bundle.manifest import VECTOR_SCALES, VECTORS
from retrieval.quantized_vectors import LabelVectors, QuantizedVectors, halves, quantize
from retrieval.search.encoder import TextEncoder
from retrieval.search.indexes import ExactIndex, Rows, Vectors
from retrieval.search.memory import QueryMemory, add_votes
from retrieval.search.pca_index import rescore

COMPARED = 100  # labels per query, in addition to those of a ranking, that int8 may move into it


def write_float32(whole: Path, folder: Path) -> Vectors:
    """Move the file of float32 vectors to its place in the bundle, and return the vectors [L, D]."""
    os.rename(whole, folder / VECTORS)
    return mapped(folder / VECTORS)


def write_int8(whole: Path, folder: Path, dual_dim: int) -> QuantizedVectors:
    """Write the vectors of a float32 file in int8, with their scales, chunk by chunk."""
    whole_LD = mapped(whole)
    codes_LD: np.memmap[Any, np.dtype[np.int8]]
    codes_LD = np.lib.format.open_memmap(folder / VECTORS, mode="w+", dtype=np.int8, shape=whole_LD.shape)
    scales_LH = np.empty((len(whole_LD), halves(whole_LD.shape[1], dual_dim)), np.float32)
    for start in range(0, len(whole_LD), LABELS_PER_CHUNK):
        chunk = slice(start, start + LABELS_PER_CHUNK)
        codes_LD[chunk], scales_LH[chunk] = quantize(whole_LD[chunk], dual_dim)
    codes_LD.flush()
    np.save(folder / VECTOR_SCALES, scales_LH)
    return open_vectors(folder, "int8", dual_dim)  # type: ignore[return-value]  # int8 was just written


def open_vectors(folder: Path, precision: VectorPrecision, dual_dim: int) -> LabelVectors:
    """Open the label vectors in a bundle's folder, memory-mapped."""
    if precision == "float32":
        return mapped(folder / VECTORS)
    return QuantizedVectors(mapped(folder / VECTORS), mapped(folder / VECTOR_SCALES), dual_dim)


def mapped(path: Path) -> NDArray[Any]:
    """Return the array in an .npy file as a plain array over the mapped file; slices of a memmap are slow."""
    return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))


def metric_lost_by_int8(
    encoder: TextEncoder, facts: ModelFacts, whole_LD: Vectors, quantized_LD: QuantizedVectors,
    validation: ValidationQueries, max_loss: float, memory: QueryMemory | None = None,
) -> str | None:  # fmt: skip
    """Return "P@1" or "P@5" if exact search among int8 vectors is worse by more than `max_loss` points, else None.

    With the `memory` of the bundle, votes are added, because the gate "quality" measures answers with votes.
    """
    encoded_QD, exact = encoder.encode(validation.texts).vectors_BD, ExactIndex(whole_LD)

    @cache
    def nearest(weight: float, k: int) -> Rows:
        return exact.search(encoded_QD * facts.query_scale(weight), k + COMPARED)[0]

    def search(vectors_LD: LabelVectors, weight: float, k: int) -> Rows:
        query_QD, rows_QC, ranked = encoded_QD * facts.query_scale(weight), nearest(weight, k), []
        for start in range(0, len(query_QD), LABELS_PER_CHUNK // COMPARED):  # bounds memory
            part = slice(start, start + LABELS_PER_CHUNK // COMPARED)
            scored = rescore(query_QD[part], rows_QC[part], vectors_LD, facts.dual_dim, k)
            if memory is None:
                ranked.append(scored[0])
                continue
            votes = memory.votes(memory.neighbours(encoded_QD[part], None))
            voted = add_votes(scored, votes, memory.facts.weight, query_QD[part], vectors_LD, facts.dual_dim)
            ranked.append(voted.rows_QK)
        return np.concatenate(ranked)

    whole, quantized = (validation.metrics(partial(search, vectors_LD)) for vectors_LD in (whole_LD, quantized_LD))
    return failed_metric(whole, quantized, validation.scored, max_loss)
