"""Gate "parity": the ONNX encoders of a bundle must return the vectors of the checkpoint.

Shapes: N texts, D vector width.
"""

from collections.abc import Sequence

import numpy as np

from export.geometry import Cone
from export.quality import torch_vectors
from export.sampling import MAX_LABELS, sample, with_long_texts
from retrieval.bundle.facts import Parity
from retrieval.errors import GateError
from retrieval.search.encoder import TextEncoder
from retrieval.search.indexes import Vectors
from training.checkpoint.opened import Checkpoint

MIN_COSINE = 0.9999


def check_parity(
    checkpoint: Checkpoint, queries: Sequence[str], query_encoder: TextEncoder, label_encoder: TextEncoder, cone: Cone
) -> Parity:
    """Compare both ONNX encoders with the checkpoint on real queries and label texts; raises GateError.

    Texts of up to the maximum length are added to the queries. The checkpoint has no cone, so the query encoder's
    stretch is undone before the comparison.
    """
    queries, longest = with_long_texts(queries, checkpoint)
    labels = sample(checkpoint.labels.column("text"), MAX_LABELS)
    (dual, classifier), (label, _) = torch_vectors(checkpoint, queries), torch_vectors(checkpoint, labels)
    query_ND, label_ND = query_encoder.encode(queries).vectors_BD, label_encoder.encode(labels).vectors_BD
    dual_ND, classifier_ND = np.split(query_ND, [checkpoint.unified.dual_dim], axis=1)
    parity = Parity(
        queries=len(queries),
        query_cosine=min(smallest_cosine(dual, dual_ND), smallest_cosine(classifier, cone.apply(classifier_ND))),
        labels=len(labels),
        label_cosine=smallest_cosine(label, label_ND),
        longest_tokens=longest,
    )
    require_parity("query", parity.query_cosine)
    require_parity("label", parity.label_cosine)
    return parity


def require_parity(name: str, cosine: float) -> None:
    """Raise GateError if the smallest cosine of an encoder is too small."""
    if not cosine >= MIN_COSINE:
        raise GateError(
            f"parity: vectors of the ONNX {name} encoder differ from the checkpoint's: the smallest cosine is "
            f"{cosine:.6f}, at least {MIN_COSINE} is required. Install the PyTorch version in constraints.txt and "
            "export again."
        )


def smallest_cosine(unit_ND: Vectors, other_ND: Vectors) -> float:
    """Return the smallest 1 − ½‖a − b‖²: the cosine of unit vectors, and less if the length of b is wrong; min −1."""
    distance_N = np.linalg.norm(unit_ND.astype(np.float64) - other_ND, axis=1)
    largest = float(np.nan_to_num(distance_N, nan=2.0).max(initial=0.0))
    return 1.0 - min(largest, 2.0) ** 2 / 2
