"""The labels whose classifier rows ψ a process holds.

With W processes, label l is in row l // W of the process with rank l % W, so that frequent labels, which often have
neighbouring numbers, are spread evenly. Each process holds 1/W of ψ and of its optimizer state.

Shapes: L labels, S labels of the shard, R rows of a batch, D width of a row.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class ProcessGroup(Protocol):
    """The collectives that the rows of a shard need."""

    def all_reduce_(self, tensor: Tensor) -> None:
        """Overwrite the tensor with its sum over all processes."""
        ...

    def broadcast_(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite the tensors with rank zero's."""
        ...


@dataclass(frozen=True)
class LabelShard:
    """The labels of the process `rank`; with world size 1 all of them. Larger ones need a `group`."""

    rank: int = 0
    world_size: int = 1
    group: ProcessGroup | None = None

    def size(self, n_labels: int) -> int:
        """Return how many of `n_labels` labels are in the shard."""
        return len(range(self.rank, n_labels, self.world_size))

    def labels(self, n_labels: int) -> Tensor:
        """Return the labels of the shard, int64 [S]."""
        return torch.arange(self.rank, n_labels, self.world_size)

    def positions(self, label_R: Tensor) -> Tensor:
        """Return the positions in `label_R` of labels of the shard, int64."""
        return (label_R % self.world_size == self.rank).nonzero().flatten()

    def take(self, weight_SD: Tensor, label_R: Tensor) -> Tensor:
        """Return the rows of the labels `label_R`, float32 [R, D]. All processes call it with the same labels."""
        if self.group is None:
            return weight_SD.index_select(0, label_R).float()
        rows_RD = torch.zeros(len(label_R), weight_SD.shape[1], device=weight_SD.device)
        position = self.positions(label_R)
        rows_RD[position] = weight_SD.index_select(0, label_R[position] // self.world_size).float()
        self.group.all_reduce_(rows_RD)  # exact: one process has the row, the others have zeros
        return rows_RD

    def agree_(self, tensor: Tensor) -> None:
        """Overwrite the tensor with rank zero's: labels chosen by scores may differ between GPUs."""
        if self.group is not None:
            self.group.broadcast_([tensor])


ALL_LABELS = LabelShard()
