"""What a bundle must prove before it exists: parity with the checkpoint, and an index that misses next to nothing.

Suffixes: N texts, Q queries, K ranks, D vector width, L labels.
"""

from collections.abc import Callable, Sequence
from itertools import cycle, islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.geometry import Cone
from export.progress import Progress
from export.quality import Figures, Validation, falls_short, torch_halves
from retrieval.candidates import Candidates
from retrieval.encoder import TextEncoder
from retrieval.errors import GateError
from retrieval.index import QUERIES_A_PASS, ExactIndex, Rows, VectorIndex, Vectors
from retrieval.manifest import Effort, ModelFacts, Parity
from retrieval.narrow import rescore, to_rescore
from training.checkpoint import Checkpoint
from training.tokens import tokenize_in_memory

COSINE_TARGET = 0.9999
RECALL_TARGET = 0.995  # of the first place and of the first ten: what is missed are good answers, not random ones
RECALL_REQUIRED = 0.99  # of the first ten, at every weight
WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)
EF_LADDER = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048)
EF_STEPS = 4  # parts of a rung, the cheapest of which is looked for
QUERIES, LABELS = 1_000, 1_000
EQUAL_SCORE = 1e-6


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


class Ranked:
    """An index asked as a reader asks it: `ef` candidates, the best of them by their whole vectors."""

    def __init__(self, index: VectorIndex, vectors_LD: Vectors, dual_dim: int) -> None:
        self.vectors_LD, self.size = vectors_LD, index.size
        self._index, self._dual_dim = index, dual_dim
        self._candidates = Candidates(index, ExactIndex(vectors_LD))

    def search(self, query_QD: Vectors, k: int, ef: int) -> Rows:
        """The k best rows [Q, K] that are found with this effort."""
        parts = []
        for start in range(0, len(query_QD), QUERIES_A_PASS):
            part_QD = query_QD[start : start + QUERIES_A_PASS]
            rows_QC = self._candidates.find(part_QD, to_rescore(k, self._index, ef), ef)
            parts.append(rescore(part_QD, rows_QC, self.vectors_LD, self._dual_dim, k)[0])
        return np.concatenate(parts)


def choose_efforts(
    encoder: TextEncoder, facts: ModelFacts, index: Ranked, queries: Sequence[str],
    default_weight: float, keeps_quality: Callable[[int], bool], progress: Progress,
) -> tuple[Effort, ...]:  # fmt: skip
    """The smallest effort that reaches the recall target at each weight; at the default one it keeps quality as well.

    At a weight where none on the ladder reaches enough, every label is to be compared. Raises GateError where that is
    the default one: most searches would be slow.
    """
    encoded_QD = encoder.encode(queries).vectors_BD
    weights = sorted({*WEIGHTS, default_weight})
    efforts = []
    for done, weight in enumerate(weights):
        enough = keeps_quality if weight == default_weight else _anything
        efforts.append(_effort(encoded_QD * facts.query_scale(weight), weight, index, enough))
        progress(done + 1, len(weights))
    missed = {one.weight: one for one in efforts if one.recall_at_10 < RECALL_REQUIRED}
    if own := missed.get(default_weight):
        raise GateError(
            f"recall: at weight {own.weight:g}, the default, and ef {own.ef} the index reaches recall@10 "
            f"{own.recall_at_10:.4f} where {RECALL_REQUIRED} is needed. Raise --m or --ef-construction."
        )
    every_label = {"ef": None, "recall_at_10": 1.0, "recall_at_1": 1.0}
    return tuple(one.model_copy(update=every_label) if one.weight in missed else one for one in efforts)


def _anything(ef: int) -> bool:
    return True


class KeepsQuality:
    """Whether an index, asked with some ef at the default weight, answers as well as the checkpoint does.

    A recall of 0.995 may cost a fifth of a point of P@5, or not: which answers are missed decides.
    """

    def __init__(
        self, encoder: TextEncoder, facts: ModelFacts, index: Ranked, asked: Validation, own: Figures, weight: float,
        allowed: float,
    ) -> None:  # fmt: skip
        self._query_QD = encoder.encode(asked.texts).vectors_BD * facts.query_scale(weight)
        self._index, self._asked, self._own, self._allowed = index, asked, own, allowed

    def __call__(self, ef: int) -> bool:
        rows_QK = self._index.search(self._query_QD, self._asked.k, ef)
        return falls_short(self._own, self._asked.figures(rows_QK), self._asked.scored, self._allowed) is None


def recall_at(k: int, found_scores_QK: NDArray[np.floating], best_scores_QK: NDArray[np.floating]) -> float:
    """Share of the k best that were found; a found label counts when its score reaches the k-th best within 1e-6.

    Which of several equal labels stand among the k best is chance, and equal they often are: those of the same tokens,
    and at weight 1 all that were never trained, whose score is 0. Both sides best first, by scores computed alike.
    """
    k = min(k, best_scores_QK.shape[1])
    threshold_Q1 = best_scores_QK[:, k - 1 : k] - EQUAL_SCORE
    return float((found_scores_QK[:, :k] >= threshold_Q1).mean())


def _effort(query_QD: Vectors, weight: float, index: Ranked, enough: Callable[[int], bool]) -> Effort:
    """The least effort of the ladder that is enough, then the least between it and the rung below."""
    best_QK = _scores(query_QD, ExactIndex(index.vectors_LD).search(query_QD, 10)[0], index.vectors_LD)

    def at(ef: int) -> tuple[Effort, bool]:
        found_QK = _scores(query_QD, index.search(query_QD, 10, ef), index.vectors_LD)
        at_10, at_1 = recall_at(10, found_QK, best_QK), recall_at(1, found_QK, best_QK)
        effort = Effort(weight=weight, ef=ef, recall_at_10=at_10, recall_at_1=at_1)
        return effort, min(at_10, at_1) >= RECALL_TARGET and enough(ef)

    below = 0
    for rung in EF_LADDER:
        effort, reached = at(rung)
        if reached or rung >= index.size:
            break
        below = rung
    if reached and below:
        for ef in range(below + (rung - below) // EF_STEPS, rung, max(1, (rung - below) // EF_STEPS)):
            less, reached = at(ef)
            if reached:
                return less
    return effort


def _scores(query_QD: Vectors, rows_QK: Rows, vectors_LD: Vectors) -> NDArray[np.float64]:
    """Scores of some rows, best first, summed in one way: BLAS and hnswlib each have their own, and last digits."""
    scores_QK = np.einsum("qd,qkd->qk", query_QD, vectors_LD[rows_QK], dtype=np.float64)
    return -np.sort(-scores_QK, axis=1)


def _least_cosine(unit_ND: Vectors, other_ND: Vectors) -> float:
    """1 − ½‖a − b‖² at its least: the cosine of unit vectors, and less when the other's length is wrong, down to −1."""
    distance_N = np.linalg.norm(unit_ND.astype(np.float64) - other_ND, axis=1)
    greatest = float(np.nan_to_num(distance_N, nan=2.0).max(initial=0.0))
    return 1.0 - min(greatest, 2.0) ** 2 / 2


def of_every_length(queries: Sequence[str], checkpoint: Checkpoint) -> tuple[list[str], int]:
    """The queries, and some joined to texts of twice as many tokens each time up to the cut; the longest's tokens."""
    texts, joined, longest = list(queries), 1, 0
    while True:
        longest = int(tokenize_in_memory(texts, checkpoint.tokenizer).lengths_N.max())
        if longest >= checkpoint.max_tokens:
            return texts, longest
        joined *= 2
        texts.append(" ".join(islice(cycle(queries), joined)))


def sample(column: Any, n: int) -> list[str]:
    """At most `n` texts, spread evenly."""
    rows = np.unique(np.linspace(0, len(column) - 1, min(n, len(column))).astype(np.int64))
    texts: list[str] = column.take(rows).to_pylist()
    return texts
