"""Write the vectors of all labels, chunk by chunk: [√(1−b)·N(g1 Φ(z)) ; √b·classifier vector, with the cone applied].

Shapes: L labels, U untrained ones, B labels of a chunk, E those of them to encode, D vector width, C width of the
classifier vectors.
"""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.geometry import LABELS_PER_CHUNK, Cone, classifier_vectors, with_bias
from retrieval.bundle.facts import ModelFacts
from retrieval.errors import GateError
from retrieval.search.encoder import TextEncoder
from retrieval.search.indexes import Vectors
from retrieval.system.progress import Progress
from training.checkpoint.opened import Checkpoint
from training.evaluation.imputation import impute


def write_vectors(
    checkpoint: Checkpoint, encoder: TextEncoder, facts: ModelFacts, cone: Cone, path: Path, progress: Progress
) -> None:
    """Encode the label texts with the bundle's own label encoder, and append the trained classifier vectors.

    Texts with the same tokens get identical vectors: each is encoded once, because the other texts of a batch change
    the last bits. Memory is bounded by one chunk and 24 bytes per label. Untrained labels get a zero classifier vector,
    which `write_imputed` replaces. Raises GateError for a vector with NaN or Inf.
    """
    n_labels, scale_D = checkpoint.labels.num_rows, facts.label_scale()
    first_L = first_of_same_tokens(checkpoint, encoder)
    vectors_LD: np.memmap[Any, np.dtype[np.float32]]
    vectors_LD = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(n_labels, facts.dim))
    for start in range(0, n_labels, LABELS_PER_CHUNK):
        stop = min(start + LABELS_PER_CHUNK, n_labels)
        row_B = np.arange(start, stop)
        row_E = row_B[first_L[start:stop] == row_B]
        if len(row_E):
            dual_ED = encoder.encode(checkpoint.labels.column("text").take(row_E).to_pylist()).vectors_BD
            vectors_LD[row_E, : facts.dual_dim] = dual_ED * scale_D[: facts.dual_dim]
        vectors_LD[start:stop, : facts.dual_dim] = vectors_LD[first_L[start:stop], : facts.dual_dim]
        classifier_BC = cone.apply(classifier_vectors(checkpoint, start, stop))
        vectors_LD[start:stop, facts.dual_dim :] = classifier_BC * scale_D[facts.dual_dim :]
        finite_B = np.isfinite(vectors_LD[start:stop]).all(axis=1)
        if not finite_B.all():
            row = start + int(finite_B.argmin())
            raise GateError(
                f"label {row} ({checkpoint.labels['id'][row].as_py()!r}) has a vector with NaN or Inf: training "
                "diverged. Train again with a lower learning rate."
            )
        progress(stop, n_labels)
    vectors_LD.flush()


def first_of_same_tokens(checkpoint: Checkpoint, encoder: TextEncoder) -> NDArray[np.int64]:
    """Return for each label the first row whose text has the same tokens [L]."""
    n_labels, digests = checkpoint.labels.num_rows, []
    for start in range(0, n_labels, LABELS_PER_CHUNK):
        texts = checkpoint.labels.column("text").slice(start, LABELS_PER_CHUNK).to_pylist()
        digests += [
            hashlib.blake2b(np.array(ids, np.int32).tobytes(), digest_size=16).digest()
            for ids in encoder.tokenize(texts)
        ]
    digest_L = np.frombuffer(b"".join(digests), np.dtype((np.void, 16)))
    _, first_U, place_L = np.unique(digest_L, return_index=True, return_inverse=True)
    return first_U[place_L].astype(np.int64)


def write_imputed(
    checkpoint: Checkpoint, facts: ModelFacts, cone: Cone, path: Path, threads: int | None, progress: Progress
) -> None:
    """Impute the classifier vectors of untrained labels from their nearest trained neighbours."""
    vectors_LD: Vectors = np.load(path, mmap_mode="r+", allow_pickle=False)
    dual_dim, scale_C = facts.dual_dim, facts.label_scale()[facts.dual_dim :]
    imputation = impute(
        vectors_LD[:, :dual_dim], checkpoint.unified.classifier_rows(), checkpoint.trained_L, threads, progress
    )
    for start in range(0, len(imputation.label_U), LABELS_PER_CHUNK):
        stop = start + LABELS_PER_CHUNK
        label_B = imputation.label_U[start:stop]
        rows_BC = with_bias(checkpoint, imputation.rows(checkpoint.cone_fraction, start, stop).numpy(), label_B)
        vectors_LD[label_B, dual_dim:] = cone.apply(rows_BC) * scale_C
    vectors_LD.flush()  # type: ignore[attr-defined]  # a memmap


def count_zeros(path: Path) -> int:
    """Count the labels whose vector is zero: every query gives them score 0."""
    vectors_LD: Vectors = np.load(path, mmap_mode="r", allow_pickle=False)
    chunks = range(0, len(vectors_LD), LABELS_PER_CHUNK)
    return sum(int((~vectors_LD[start : start + LABELS_PER_CHUNK].any(axis=1)).sum()) for start in chunks)
