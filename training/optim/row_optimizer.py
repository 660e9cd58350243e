"""Row-wise RMSprop for row tables: one second moment and one step count per row.

Shapes: N rows of the table, D its width, R rows to update, S of them in this process's shard.
"""

import torch
from torch import Tensor

from training.model.row_table import RowTable

DECAY = 0.99  # of the second moment; a row gets tens of updates, too few for a longer average
EPSILON = 1e-12


@torch.no_grad()
def update_rows_(table: RowTable, rows_R: Tensor, gradient_RD: Tensor, learning_rate: float) -> None:
    """Update distinct rows in place: v ← βv + (1−β)·mean(g²), row −= lr·g/√v̂ with the bias-corrected v̂.

    A bfloat16 table uses stochastic rounding; otherwise updates below its 8 bits of precision would be lost. A process
    updates the rows of its shard only, and draws for all rows, so that the result is that of one process.
    """
    if not len(rows_R):
        return
    noise_RD = rounding_noise(gradient_RD) if table.weight.dtype == torch.bfloat16 else None
    if table.shard.world_size > 1:
        position_S = table.shard.positions(rows_R)
        rows_R, gradient_RD = rows_R[position_S] // table.shard.world_size, gradient_RD[position_S]
        noise_RD = None if noise_RD is None else noise_RD[position_S]
    steps_R = table.steps.index_select(0, rows_R) + 1
    moment_R = table.second_moment.index_select(0, rows_R)
    mean_square_R = torch.linalg.vector_norm(gradient_RD, dim=1).square() / table.width
    moment_R = DECAY * moment_R + (1 - DECAY) * mean_square_R
    unbiased_R = moment_R / (1 - DECAY ** steps_R.to(moment_R.dtype))
    scale_R1 = (-learning_rate / (unbiased_R.sqrt() + EPSILON)).unsqueeze(1)
    if noise_RD is not None:
        updated_RD = table.weight.index_select(0, rows_R).float().addcmul_(gradient_RD, scale_R1)
        table.weight.index_copy_(0, rows_R, stochastic_round(updated_RD, noise_RD))
    else:
        table.weight.index_add_(0, rows_R, gradient_RD * scale_R1)
    table.second_moment.index_copy_(0, rows_R, moment_R)
    table.steps.index_copy_(0, rows_R, steps_R)


def rounding_noise(values: Tensor) -> Tensor:
    """Draw the noise of `stochastic_round` for values of this shape: int32 in [0, 2¹⁶)."""
    return torch.randint_like(values, 1 << 16, dtype=torch.int32)


def stochastic_round(values: Tensor, noise: Tensor) -> Tensor:
    """Round float32 to bfloat16 of the same shape, up or down with probabilities that make the result unbiased.

    bfloat16 is the upper half of the bits of a float32. Adding a random lower half carries into the upper half with
    exactly the required probability.
    """
    return ((values.view(torch.int32) + noise) & -(1 << 16)).view(torch.float32).to(torch.bfloat16)
