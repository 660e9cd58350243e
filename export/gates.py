"""Parity: a bundle's ONNX encoders must give the vectors that the checkpoint gives.

Suffixes: N texts, Q queries, D vector width.
"""

from collections.abc import Sequence
from itertools import cycle, islice
from typing import Any

import numpy as np

from export.geometry import Cone
from export.quality import torch_halves
from retrieval.bundle.facts import Parity
from retrieval.errors import GateError
from retrieval.search.encoder import TextEncoder
from retrieval.search.indexes import Vectors
from training.checkpoint.files import Checkpoint
from training.model.tokens import tokenize_in_memory

COSINE_TARGET = 0.9999
QUERIES, LABELS = 1_000, 1_000
LABEL_TEXTS = 500  # for measuring recall


def prove_parity(
    checkpoint: Checkpoint, queries: Sequence[str], query_encoder: TextEncoder, label_encoder: TextEncoder, cone: Cone
) -> Parity:
    """Compare both ONNX encoders with the checkpoint over real queries and label texts; raises GateError.

    Queries of every length are among them. The checkpoint knows nothing of the cone, so the query encoder's stretch is
    undone before the comparison.
    """
    queries, longest = of_every_length(queries, checkpoint)
    labels = sample(checkpoint.labels.column("text"), LABELS)
    (dual, classifier), (label, _) = torch_halves(checkpoint, queries), torch_halves(checkpoint, labels)
    query_ND, label_ND = query_encoder.encode(queries).vectors_BD, label_encoder.encode(labels).vectors_BD
    dual_ND, classifier_ND = np.split(query_ND, [checkpoint.model.dual_dim], axis=1)
    parity = Parity(
        queries=len(queries),
        query_cosine=min(_least_cosine(dual, dual_ND), _least_cosine(classifier, cone.shrink_labels(classifier_ND))),
        labels=len(labels),
        label_cosine=_least_cosine(label, label_ND),
        longest_tokens=longest,
    )
    for name, cosine in (("query", parity.query_cosine), ("label", parity.label_cosine)):
        if not cosine >= COSINE_TARGET:
            raise GateError(
                f"parity: the ONNX {name} encoder and the checkpoint differ, least cosine {cosine:.6f} where "
                f"{COSINE_TARGET} is needed. Try the PyTorch version that constraints.txt names."
            )
    return parity


def _least_cosine(unit_ND: Vectors, other_ND: Vectors) -> float:
    """1 − ½‖a − b‖² at its least: the cosine of unit vectors, and less when the other's length is wrong, down to −1."""
    distance_N = np.linalg.norm(unit_ND.astype(np.float64) - other_ND, axis=1)
    greatest = float(np.nan_to_num(distance_N, nan=2.0).max(initial=0.0))
    return 1.0 - min(greatest, 2.0) ** 2 / 2


def of_every_length(queries: Sequence[str], checkpoint: Checkpoint) -> tuple[list[str], int]:
    """Add texts of repeatedly doubled length, up to `max_tokens`; return all texts, and the longest length in tokens.

    The number of joined queries is bounded, since texts may have no tokens.
    """
    texts, joined = list(queries), 1
    longest = int(tokenize_in_memory(texts, checkpoint.tokenizer).lengths_N.max())
    while longest < checkpoint.max_tokens and joined < 2 * checkpoint.max_tokens:
        joined *= 2
        texts.append(" ".join(islice(cycle(queries), joined)))
        longest = max(longest, int(tokenize_in_memory(texts[-1:], checkpoint.tokenizer).lengths_N.max()))
    return texts, longest


def sample(column: Any, n: int) -> list[str]:
    """At most `n` texts, spread evenly."""
    rows = np.unique(np.linspace(0, len(column) - 1, min(n, len(column))).astype(np.int64))
    texts: list[str] = column.take(rows).to_pylist()
    return texts


def sample_label_texts(column: Any) -> list[str]:
    """Sample about LABEL_TEXTS distinct texts: half over labels, which favours shared texts, half over texts."""
    texts = column.unique()
    half = LABEL_TEXTS // 2  # one more, or both halves would be equal if no text is shared
    return list(dict.fromkeys([*sample(column, half), *sample(texts, half + 1)]))
