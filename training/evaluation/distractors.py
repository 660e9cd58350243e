"""Distractors: untrained labels that are never correct, added to the validation queries while κ is chosen.

Without a label table, the catalogue has untrained labels only because validation or test rows name them. So an
untrained label is many times likelier to be correct than a label with one training positive, and a κ chosen among them
ranks untrained labels too high. Untrained labels of a real catalogue are rarely correct.

A distractor is a copy of a trained label that counts as untrained: it has the label's dual vector, no popularity, and a
classifier row imputed from the nearest other trained labels. It is excluded for the queries that the label itself is
true or excluded for. So its text is as likely as any other label's, and it is never correct (docs/decisions/0084).

Shapes: Q queries, L labels, T trained labels, X distractors, D and C widths of the dual and classifier vectors.
"""

import dataclasses

import numpy as np
import torch
from numpy.typing import NDArray

from training.data.ragged import Ragged
from training.data.split import Split
from training.evaluation.imputation import Imputation, impute_copies
from training.evaluation.results import EvaluationData
from training.evaluation.scoring import LabelVectors

MAX_DISTRACTORS = 20_000  # bounds the search for their neighbours


def choose_originals(
    labels: LabelVectors, data: EvaluationData, per_trained_label: float, seed: int
) -> NDArray[np.int64]:
    """Draw the X trained labels to copy, ascending.

    Untrained labels that are never correct for these queries are distractors already, so they reduce the number.
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
    return np.sort(np.random.default_rng(seed).choice(trained_T, size=count, replace=False))


@torch.inference_mode()
def with_distractors(labels: LabelVectors, original_X: NDArray[np.int64]) -> LabelVectors:
    """Return the vectors of L + X labels: the distractors follow the labels. κ is not yet applied to them."""
    at = torch.from_numpy(original_X).to(labels.dual.device)
    trained_L = np.ones(len(labels.dual), np.bool_)
    trained_L[labels.imputation.label_U] = False
    mean_XC = impute_copies(labels.dual.cpu().numpy(), labels.classifier, trained_L, original_X)
    return LabelVectors(
        torch.cat([labels.dual, labels.dual[at]]),
        torch.cat([labels.classifier, mean_XC]),
        torch.cat([labels.popularity, labels.popularity.new_zeros(len(original_X))]),
        Imputation(
            np.concatenate([labels.imputation.label_U, len(labels.dual) + np.arange(len(original_X))]),
            torch.cat([labels.imputation.mean_UC, mean_XC]),
            labels.imputation.direction_C,
        ),
    )


def queries_with_distractors(data: EvaluationData, original_X: NDArray[np.int64]) -> EvaluationData:
    """Return the data for L + X labels, where each distractor is excluded for the queries of its original."""
    n_labels = len(data.positives_L)
    copy_L = np.full(n_labels, -1, np.int64)
    copy_L[original_X] = n_labels + np.arange(len(original_X))
    exclude = data.queries.exclude
    for rows in (data.queries.labels, data.queries.exclude):
        copies = Ragged(copy_L[rows.values], rows.offsets)
        exclude = exclude.concat_values(copies.keep(copies.values >= 0))
    queries = Split(data.queries.ids_column, data.queries.texts_column, data.queries.labels, exclude)
    return dataclasses.replace(
        data,
        queries=dataclasses.replace(queries, weights_V=data.queries.weights_V),
        positives_L=np.concatenate([data.positives_L, np.zeros(len(original_X), np.int64)]),
        inverse_propensity_L=np.concatenate([data.inverse_propensity_L, np.ones(len(original_X))]),
    )
