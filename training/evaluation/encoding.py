"""Encode query and label texts with a model, in batches of similar length.

Shapes: Q queries, L labels, S labels of a process's shard, D and C widths of the dual and classifier vectors.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from training.data.memory_queries import labels_of
from training.data.split import Split
from training.data.token_cache import TEXTS_PER_BATCH, TokenizedTexts
from training.evaluation.imputation import impute
from training.evaluation.memory import QueryMemory
from training.evaluation.scoring import LabelVectors, QueryVectors, popularity
from training.model.unified import UnifiedModel
from training.optim.distributed import Processes


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


@dataclass(frozen=True)
class EncodedLabels:
    """Dual vectors [L, D], rows ψ [L, C] and which of them are trained, bool [L]: of all labels or of a shard."""

    dual_LD: Tensor
    rows_LC: Tensor
    trained_L: NDArray[np.bool_]

    def gathered(self, processes: Processes, n_labels: int) -> "EncodedLabels | None":
        """Return in rank zero those of all labels, on the CPU with several processes; None in the others."""
        if processes.world_size == 1:
            return self
        trained_S = torch.from_numpy(self.trained_L.view(np.uint8))
        dual_LD, rows_LC, trained_L = (
            processes.gather_rows(shard, n_labels) for shard in (self.dual_LD, self.rows_LC, trained_S)
        )
        if dual_LD is None or rows_LC is None or trained_L is None:
            return None
        return EncodedLabels(dual_LD, rows_LC, trained_L.numpy().view(np.bool_))

    def label_vectors(self, frequency_L: NDArray[Any], device: torch.device, cone_fraction: float) -> LabelVectors:
        """Impute the rows of untrained labels with κ = `cone_fraction`; of all labels only."""
        rows_LC = self.rows_LC.to(device)
        imputation = impute(self.dual_LD.cpu().numpy(), rows_LC, self.trained_L, torch.get_num_threads())
        classifier_LC = F.normalize(rows_LC.float(), dim=-1)
        classifier_LC[torch.from_numpy(imputation.label_U).to(device)] = imputation.rows(cone_fraction)
        popularity_L = torch.from_numpy(popularity(frequency_L)).to(device)
        return LabelVectors(self.dual_LD.to(device), classifier_LC, popularity_L, imputation)


@torch.inference_mode()
def encode_label_shard(
    model: UnifiedModel, tokens: TokenizedTexts, positives_L: NDArray[np.int64], device: torch.device
) -> EncodedLabels:
    """Encode the texts of the labels of the model's shard, and take their rows ψ; other arguments: of all labels."""
    label_S = model.shard.labels(len(tokens)).numpy()
    dual_SD = torch.empty(len(label_S), model.dual_dim, device=device)
    for positions, batch in tokens.batches_by_length(TEXTS_PER_BATCH, label_S):
        batch = batch.to(device)
        at = torch.from_numpy(positions).to(device)
        dual_SD[at] = model.label_vectors(batch.input_ids_BT, batch.attention_mask_BT).float()
    return EncodedLabels(dual_SD, model.label_rows(tokens), model.trained_labels(positives_L))


@torch.inference_mode()
def encode_labels(
    model: UnifiedModel,
    tokens: TokenizedTexts,
    positives_L: NDArray[np.int64],
    device: torch.device,
    cone_fraction: float,
    frequency_L: NDArray[Any] | None = None,
) -> LabelVectors:
    """Encode every label text, and take N(ψ), imputed with κ = `cone_fraction` for untrained labels.

    `positives_L` counts each label's training positives. Popularity is computed from `frequency_L`; None: from them.
    """
    frequency_L = positives_L if frequency_L is None else frequency_L
    return encode_label_shard(model, tokens, positives_L, device).label_vectors(frequency_L, device, cone_fraction)
