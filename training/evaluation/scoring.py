"""Score labels for queries: how the dual encoder, the classifier and label popularity are combined.

    score = (1−w)·⟨N(Φ_D(x)), N(Φ_D(z))⟩ + w·(⟨N(Φ_C(x)), N(ψ)⟩ + b·p) + γ·votes

w is the classifier weight: 0 is the dual encoder only, 1 the classifier only. p ∈ [0, 1] is the label's popularity and
b the popularity bonus. A cosine alone would rank a label with many training queries no higher than a label with one.
γ is the weight of the votes of the nearest training queries (memory.py).

Shapes: Q queries, L labels, D and C widths of the dual and classifier vectors.
"""

import dataclasses
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from retrieval.bundle.memory_labels import NO_VOTES, VoteSettings
from training.evaluation.imputation import Imputation


class ScoreMix(NamedTuple):
    """w, the classifier's weight in the score; b, the popularity bonus within the classifier's part; the votes."""

    weight: float
    popularity: float
    memory: VoteSettings = NO_VOTES

    def combine(self, dual: Tensor, classifier: Tensor, popularity: Tensor, out: Tensor | None = None) -> Tensor:
        """Compute scores without votes from both cosines and the labels' popularities, which broadcast to one shape.

        The result is `dual` or `classifier` itself, a new tensor, or, if it is not None, `out`.
        """
        match self.weight:
            case 0.0:
                mixed = dual
            case 1.0:
                mixed = classifier
            case _:
                mixed = torch.lerp(dual, classifier, self.weight, out=out)
        bonus = self.weight * self.popularity
        return torch.add(mixed, popularity, alpha=bonus, out=out) if bonus else mixed


@dataclass(frozen=True)
class QueryVectors:
    """Unit-length vectors of Q queries: `dual` [Q, D] and `classifier` [Q, C], float32."""

    dual: Tensor
    classifier: Tensor


@dataclass(frozen=True)
class LabelVectors:
    """Vectors of L labels: `dual` [L, D], `classifier` [L, C] (imputed rows are shorter than 1), `popularity` [L]."""

    dual: Tensor
    classifier: Tensor
    popularity: Tensor
    imputation: Imputation

    @torch.inference_mode()
    def with_imputation(self, cone_fraction: float) -> "LabelVectors":
        """Return these vectors with untrained labels' classifier rows imputed for κ = `cone_fraction`."""
        rows_U = self.imputation.label_U
        if not len(rows_U):
            return self
        classifier_LC = self.classifier.clone()
        classifier_LC[torch.from_numpy(rows_U).to(classifier_LC.device)] = self.imputation.rows(cone_fraction)
        return dataclasses.replace(self, classifier=classifier_LC)


def mixes_by_head(mix: ScoreMix, tuned: ScoreMix | None = None) -> dict[str, ScoreMix]:
    """Return `mix` for the unified model, and for each head by itself, without votes; keys as in `headline.HEADS`.

    `tuned` is the mix with the tuned weight, if the weight of `mix` is fixed.
    """
    heads = {"unified": mix, "dual_encoder": ScoreMix(0.0, mix.popularity), "classifier": ScoreMix(1.0, mix.popularity)}
    return heads if tuned is None else heads | {"tuned": tuned}


def popularity(frequency_L: NDArray[np.int64] | NDArray[np.float64]) -> NDArray[np.float32]:
    """Compute the popularity of L labels in [0, 1]: log(1 + n) of n training positives, divided by the largest.

    `frequency_L` are numbers of positives or, with clicks, sums of their weights.
    """
    log_L = np.log1p(frequency_L).astype(np.float32)
    return log_L / max(float(log_L.max(initial=0.0)), 1e-6)
