"""Distractors: untrained labels that are never correct, added to the validation queries while κ is chosen.

Without a label table, the catalogue has untrained labels only because validation or test rows name them. So an
untrained label is many times likelier to be correct than a label with one training positive, and a κ chosen among them
ranks untrained labels too high. Untrained labels of a real catalogue are rarely correct.

A distractor is a copy of a trained label that counts as untrained: it has the label's dual vector, no popularity, and a
classifier row imputed from the nearest other trained labels. It is excluded for the queries that the label itself is
true or excluded for. So its text is as likely as any other label's, and it is never correct (docs/decisions/0084).

Shapes: Q queries, L labels, T trained labels, X distractors, D and C widths of the dual and classifier vectors.
"""

import numpy as np
import torch
from numpy.typing import NDArray

from training.data.ragged import Ragged
from training.evaluation.imputation import Imputation, impute_copies
from training.evaluation.results import EvaluationData
from training.evaluation.scoring import LabelVectors

MAX_DISTRACTORS = 20_000
MAX_PAIRS = 1 << 31  # of distractors and trained labels; bounds the search for neighbours to about 20 s of a core


def choose_originals(
    labels: LabelVectors,
    data: EvaluationData,
    per_trained_label: float,
    seed: int,
    listed_L: NDArray[np.bool_] | None = None,
) -> NDArray[np.int64]:
    """Draw the X trained labels to copy, ascending.

    Untrained labels that are never correct for these queries are distractors already, so they reduce the number. Drawn
    labels that are not in `listed_L` (None: all are) are left out: a copy resembles its original, so it can be among
    the first answers of a query only if the original is in the query's shortlist.
    """
    untrained_L = np.zeros(len(labels.dual), np.bool_)
    untrained_L[labels.imputation.label_U] = True
    correct_L = np.zeros(len(labels.dual), np.bool_)
    correct_L[data.queries.labels.values] = True
    trained_T = np.flatnonzero(~untrained_L)
    missing = round(per_trained_label * len(trained_T)) - int((untrained_L & ~correct_L).sum())
    count = min(missing, len(trained_T), MAX_DISTRACTORS)
    if count <= 0 or len(trained_T) < 2:
        return np.zeros(0, np.int64)
    generator = np.random.default_rng(seed)
    original_X = generator.choice(trained_T, size=count, replace=False)
    if listed_L is not None:
        original_X = original_X[listed_L[original_X]]
    return np.sort(original_X[: MAX_PAIRS // len(trained_T)])


@torch.inference_mode()
def distractor_vectors(labels: LabelVectors, original_X: NDArray[np.int64]) -> LabelVectors:
    """Return the vectors of the X distractors, imputed with κ = 1."""
    at = torch.from_numpy(original_X).to(labels.dual.device)
    trained_L = np.ones(len(labels.dual), np.bool_)
    trained_L[labels.imputation.label_U] = False
    mean_XC = impute_copies(labels.dual.cpu().numpy(), labels.classifier, trained_L, original_X)
    imputation = Imputation(np.arange(len(original_X)), mean_XC, labels.imputation.direction_C)
    return LabelVectors(labels.dual[at], mean_XC, labels.popularity.new_zeros(len(original_X)), imputation)


def hidden_distractors(data: EvaluationData, original_X: NDArray[np.int64]) -> Ragged:
    """Return the distractors (rows of X) to exclude for each query: those of its true and of its excluded labels."""
    copy_L = np.full(len(data.positives_L), -1, np.int64)
    copy_L[original_X] = np.arange(len(original_X))
    hidden = Ragged.empty(len(data.queries))
    for rows in (data.queries.labels, data.queries.exclude):
        copies = Ragged(copy_L[rows.values], rows.offsets)
        hidden = hidden.concat_values(copies.keep(copies.values >= 0))
    return hidden
