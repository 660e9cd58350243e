"""[√(1−b)·N(g1 Φ(z)) ; √b·classifier half] for every label, the latter shrunk along its cone, a chunk at a time.

Shapes: L labels, B labels of a chunk, D vector width.
"""

from pathlib import Path
from typing import Any

import numpy as np

from export.geometry import LABELS_A_CHUNK, Cone, classifier_halves
from export.progress import Progress
from retrieval.encoder import TextEncoder
from retrieval.errors import GateError
from retrieval.manifest import ModelFacts
from training.checkpoint import Checkpoint


def write_vectors(
    checkpoint: Checkpoint, encoder: TextEncoder, facts: ModelFacts, cone: Cone, path: Path, progress: Progress
) -> None:
    """Encode the label texts with the bundle's own label encoder.

    Memory is that of one chunk, whatever the number of labels. A label without a training positive has a zero
    classifier half. Raises GateError for a vector that is not finite.
    """
    n_labels, scale_D = checkpoint.labels.num_rows, facts.label_scale()
    vectors_LD: np.memmap[Any, np.dtype[np.float32]]
    vectors_LD = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(n_labels, facts.dim))
    for start in range(0, n_labels, LABELS_A_CHUNK):
        stop = min(start + LABELS_A_CHUNK, n_labels)
        texts = checkpoint.labels.column("text").slice(start, stop - start).to_pylist()
        halves = (encoder.encode(texts).vectors_BD, cone.shrink_labels(classifier_halves(checkpoint, start, stop)))
        vectors_LD[start:stop] = np.concatenate(halves, axis=1) * scale_D
        finite_B = np.isfinite(vectors_LD[start:stop]).all(axis=1)
        if not finite_B.all():
            row = start + int(finite_B.argmin())
            raise GateError(
                f"label {row} ({checkpoint.labels['id'][row].as_py()!r}) has a vector that is not finite. "
                "Training diverged; train again with a lower learning rate."
            )
        progress(stop, n_labels)
    vectors_LD.flush()
