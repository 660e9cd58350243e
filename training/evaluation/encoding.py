"""Encode query and label texts with a model, in batches of similar length.

Shapes: Q queries, L labels, D and C widths of the dual and classifier vectors.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from training.data.memory_queries import labels_of
from training.data.split import Split
from training.data.token_cache import TEXTS_PER_BATCH, TokenizedTexts
from training.evaluation.imputation import impute
from training.evaluation.memory import QueryMemory
from training.evaluation.scoring import LabelVectors, QueryVectors, popularity
from training.model.unified import UnifiedModel


@torch.inference_mode()
def encode_queries(model: UnifiedModel, tokens: TokenizedTexts, device: torch.device) -> QueryVectors:
    """Encode every text with both heads, in the order of the texts."""
    dual_QD = torch.empty(len(tokens), model.dual_dim, device=device)
    classifier_QC = torch.empty(len(tokens), model.classifier_dim, device=device)
    for rows, batch in tokens.batches_by_length(TEXTS_PER_BATCH):
        batch = batch.to(device)
        dual, classifier = model.query_vectors(batch.input_ids_BT, batch.attention_mask_BT)
        at = torch.from_numpy(rows).to(device)
        dual_QD[at], classifier_QC[at] = dual.float(), classifier.float()
    return QueryVectors(dual_QD, classifier_QC)


def encode_memory(
    model: UnifiedModel, queries: Split | None, tokens: TokenizedTexts | None, device: torch.device
) -> QueryMemory | None:
    """Encode the training queries of the memory; None if there is none."""
    if queries is None or tokens is None:
        return None
    return QueryMemory(encode_queries(model, tokens, device), labels_of(queries))


@torch.inference_mode()
def encode_labels(
    model: UnifiedModel,
    tokens: TokenizedTexts,
    positives_L: NDArray[np.int64],
    device: torch.device,
    cone_fraction: float,
    frequency_L: NDArray[Any] | None = None,
) -> LabelVectors:
    """Encode every label text, and gather N(ψ), imputed with κ = `cone_fraction` for untrained labels.

    `positives_L` counts each label's training positives. Popularity is computed from `frequency_L`; None: from them.
    """
    dual_LD = torch.empty(len(tokens), model.dual_dim, device=device)
    for rows, batch in tokens.batches_by_length(TEXTS_PER_BATCH):
        batch = batch.to(device)
        at = torch.from_numpy(rows).to(device)
        dual_LD[at] = model.label_vectors(batch.input_ids_BT, batch.attention_mask_BT).float()
    rows_LC = model.label_rows(tokens)
    trained_L = model.trained_labels(positives_L)
    imputation = impute(dual_LD.cpu().numpy(), rows_LC, trained_L, torch.get_num_threads())
    popularity_L = torch.from_numpy(popularity(positives_L if frequency_L is None else frequency_L)).to(device)
    classifier_LC = F.normalize(rows_LC.float(), dim=-1)
    classifier_LC[torch.from_numpy(imputation.label_U).to(device)] = imputation.rows(cone_fraction)
    return LabelVectors(dual_LD, classifier_LC, popularity_L, imputation)
