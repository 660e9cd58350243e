"""[√(1−b)·N(g1 Φ(z)) ; √b·classifier half] for every label, the latter shrunk along its cone, a chunk at a time.

Shapes: L labels, U untrained ones, B labels of a chunk, E those of them to encode, D vector width, C width of the
classifier half.
"""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.geometry import LABELS_A_CHUNK, Cone, classifier_halves, with_bias
from export.progress import Progress
from retrieval.bundle.facts import ModelFacts
from retrieval.errors import GateError
from retrieval.search.encoder import TextEncoder
from training.checkpoint.files import Checkpoint
from training.evaluation.imputation import impute

Vectors = NDArray[np.float32]


def write_vectors(
    checkpoint: Checkpoint, encoder: TextEncoder, facts: ModelFacts, cone: Cone, path: Path, progress: Progress
) -> None:
    """Encode the label texts with the bundle's own label encoder.

    Texts with the same tokens get identical vectors: each is encoded once, since the other texts of a batch change the
    last bits. Memory is that of one chunk and 24 bytes per label. A label that was not trained has a zero
    classifier half, until `write_imputed` gives it one. Raises GateError for a vector that is not finite.
    """
    n_labels, scale_D = checkpoint.labels.num_rows, facts.label_scale()
    first_L = first_of_same_tokens(checkpoint, encoder)
    vectors_LD: np.memmap[Any, np.dtype[np.float32]]
    vectors_LD = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(n_labels, facts.dim))
    for start in range(0, n_labels, LABELS_A_CHUNK):
        stop = min(start + LABELS_A_CHUNK, n_labels)
        row_B = np.arange(start, stop)
        row_E = row_B[first_L[start:stop] == row_B]
        if len(row_E):
            dual_ED = encoder.encode(checkpoint.labels.column("text").take(row_E).to_pylist()).vectors_BD
            vectors_LD[row_E, : facts.dual_dim] = dual_ED * scale_D[: facts.dual_dim]
        vectors_LD[start:stop, : facts.dual_dim] = vectors_LD[first_L[start:stop], : facts.dual_dim]
        classifier_BC = cone.shrink_labels(classifier_halves(checkpoint, start, stop))
        vectors_LD[start:stop, facts.dual_dim :] = classifier_BC * scale_D[facts.dual_dim :]
        finite_B = np.isfinite(vectors_LD[start:stop]).all(axis=1)
        if not finite_B.all():
            row = start + int(finite_B.argmin())
            raise GateError(
                f"label {row} ({checkpoint.labels['id'][row].as_py()!r}) has a vector that is not finite. "
                "Training diverged; train again with a lower learning rate."
            )
        progress(stop, n_labels)
    vectors_LD.flush()


def first_of_same_tokens(checkpoint: Checkpoint, encoder: TextEncoder) -> NDArray[np.int64]:
    """Return for each label the first row whose text has the same tokens [L]."""
    n_labels, digests = checkpoint.labels.num_rows, []
    for start in range(0, n_labels, LABELS_A_CHUNK):
        texts = checkpoint.labels.column("text").slice(start, LABELS_A_CHUNK).to_pylist()
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
    """Give each label that was not trained a classifier half imputed from its neighbours."""
    vectors_LD: Vectors = np.load(path, mmap_mode="r+", allow_pickle=False)
    dual_dim, scale_C = facts.dual_dim, facts.label_scale()[facts.dual_dim :]
    found = impute(
        vectors_LD[:, :dual_dim], checkpoint.model.classifier_rows(), checkpoint.trained_L, threads, progress
    )
    for start in range(0, len(found.label_U), LABELS_A_CHUNK):
        stop = start + LABELS_A_CHUNK
        label_B = found.label_U[start:stop]
        half_BC = with_bias(checkpoint, found.rows(checkpoint.kept, start, stop).numpy(), label_B)
        vectors_LD[label_B, dual_dim:] = cone.shrink_labels(half_BC) * scale_C
    vectors_LD.flush()  # type: ignore[attr-defined]  # a memmap


def count_zeros(path: Path) -> int:
    """How many labels have a vector of length zero: nothing is known of them, and every query gives them score 0."""
    vectors_LD: Vectors = np.load(path, mmap_mode="r", allow_pickle=False)
    chunks = range(0, len(vectors_LD), LABELS_A_CHUNK)
    return sum(int((~vectors_LD[start : start + LABELS_A_CHUNK].any(axis=1)).sum()) for start in chunks)
