"""Copy a batch to the device: label pool, texts and targets.

Shapes: Q queries, P labels of the pool.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.batching.batches import Batch
from training.batching.training_data import TrainingData
from training.optim.cascade_loss import CascadeBatch
from training.optim.losses import Targets
from training.optim.training_step import DeviceBatch


def build_device_batch(batch: Batch, data: TrainingData, device: torch.device, *, encode_labels: bool) -> DeviceBatch:
    """Return the batch as tensors on `device`; `encode_labels` adds the texts of the pool's labels."""
    texts = data.train_tokens.take(batch.query_Q)
    if encode_labels:
        texts = texts.followed_by(data.label_tokens.take(batch.pool_P))
    targets, picked = _targets(batch, device)
    dual = None
    if data.own_label_N is not None:
        # A label's text as a query equals the label's text: the dual encoder would learn that a text is like itself.
        row_X, column_X = _to_device(device, *_own_labels(batch, data.own_label_N))
        dual = targets.ignoring(row_X, column_X), picked.ignoring(row_X, column_X)
    return DeviceBatch(len(batch.query_Q), torch.from_numpy(batch.pool_P).to(device), texts, targets, picked, dual)


def build_cascade_batch(query_Q: NDArray[np.int64], data: TrainingData, device: torch.device) -> CascadeBatch:
    """Return the queries `query_Q` with all their true and excluded labels, as tensors on `device`."""
    true, excluded = (
        _to_device(device, rows.row_of_value, rows.values.astype(np.int64))
        for rows in (data.train.labels.take(query_Q), data.train.exclude.take(query_Q))
    )
    return CascadeBatch(len(query_Q), data.train_tokens.take(query_Q), *true, *excluded)


def _own_labels(batch: Batch, own_label_N: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the pairs of a label query and the label whose text it is, as coordinates in Q×P."""
    own_Q = own_label_N[batch.query_Q]
    column_Q = np.minimum(np.searchsorted(batch.pool_P, own_Q), len(batch.pool_P) - 1)
    row_X = np.flatnonzero((own_Q >= 0) & (batch.pool_P[column_Q] == own_Q))
    return row_X, column_Q[row_X]


def _targets(batch: Batch, device: torch.device) -> tuple[Targets, Targets]:
    """Return the targets with all positives of the batch, and with the one picked per query."""
    shape = (len(batch.query_Q), len(batch.pool_P))
    row_M, column_M = _to_device(device, batch.positive_row_M, batch.positive_column_M)
    positive_QP = torch.zeros(shape, dtype=torch.bool, device=device)
    positive_QP[row_M, column_M] = True
    ignored_QP = None
    if len(batch.ignored_row):
        ignored_QP = torch.zeros(shape, dtype=torch.bool, device=device)
        ignored_QP[_to_device(device, batch.ignored_row, batch.ignored_column)] = True
    target_M, share_M = (
        None if value_M is None else torch.from_numpy(value_M).to(device) for value_M in (batch.target_M, batch.share_M)
    )
    targets = Targets(positive_QP, row_M, column_M, ignored_QP, target_M, share_M)
    return targets, targets.with_positives(*_to_device(device, batch.picked_row_O, batch.picked_column_O))


def _to_device(device: torch.device, *arrays: NDArray[np.int64]) -> tuple[Tensor, ...]:
    return tuple(torch.from_numpy(array).to(device) for array in arrays)
