"""Tables of which a batch uses a few rows: ψ, and the vectors of the static encoder.

A step gathers rows, computes their gradients and updates these rows only: O(rows·d) for any number of rows in the
table. Dense AdamW would also decay and move all rows without a gradient. The row-wise optimizer
(training/optim/row_optimizer.py) keeps its state here: one second moment and one step count per row, so a row takes
4·D + 8 bytes, or 2·D + 8 in bfloat16. With several processes, each holds a shard of ψ (label_shard.py).

Shapes: N rows of the table in this process, D its width, R rows that a batch uses.
"""

import torch
from torch import Tensor, nn

from training.model.label_shard import ALL_LABELS, LabelShard


class RowTable(nn.Module):
    """N rows of width D, trained row by row; with a `shard` of several processes, the rows of its labels.

    `take` returns rows as a float32 leaf that collects gradients; `pop_gradients` returns the gradients of all rows
    taken since its last call. Both name rows by their number in the whole table, and return the same in every process.
    """

    def __init__(self, weight_ND: Tensor, shard: LabelShard = ALL_LABELS) -> None:
        super().__init__()
        self.shard = shard
        self.weight: Tensor
        self.second_moment: Tensor
        self.steps: Tensor
        self.register_buffer("weight", weight_ND)
        self.register_buffer("second_moment", torch.zeros(len(weight_ND)))
        self.register_buffer("steps", torch.zeros(len(weight_ND), dtype=torch.int32))
        self._leaves: list[tuple[Tensor, Tensor]] = []

    def __len__(self) -> int:
        return len(self.weight)

    @property
    def width(self) -> int:
        """D, the width of a row."""
        return self.weight.shape[1]

    def take(self, rows_R: Tensor) -> Tensor:
        """Return distinct rows, `rows_R` int64, as a leaf [R, D]; in evaluation mode, a plain gather."""
        leaf_RD = self.shard.take(self.weight, rows_R)
        if self.training and torch.is_grad_enabled():
            leaf_RD.requires_grad_(True)
            self._leaves.append((rows_R, leaf_RD))
        return leaf_RD

    def pop_gradients(self) -> tuple[Tensor, Tensor]:
        """Return the distinct rows [R] taken since the last call and their gradients [R, D], and forget them."""
        gradients = [(rows_R, leaf.grad) for rows_R, leaf in self._leaves if leaf.grad is not None]
        self._leaves.clear()
        if gradients:
            return sum_duplicate_rows(gradients)
        device = self.weight.device
        return torch.empty(0, dtype=torch.int64, device=device), torch.empty(0, self.width, device=device)


def sum_duplicate_rows(gradients: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Merge pairs of distinct rows [R] and gradients [R, D]; the gradients of rows in several pairs are summed."""
    if len(gradients) == 1:
        return gradients[0]
    rows_R, position = torch.unique(torch.cat([rows for rows, _ in gradients]), return_inverse=True)
    all_gradients = torch.cat([gradient for _, gradient in gradients])
    summed_RD = all_gradients.new_zeros(len(rows_R), all_gradients.shape[1]).index_add_(0, position, all_gradients)
    return rows_R, summed_RD
