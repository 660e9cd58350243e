"""Row-wise RMSprop for row tables: one second moment and one step count per row.

Shapes: N rows of the table, D its width, R rows to update.
"""

import torch
from torch import Tensor

from training.model.row_table import RowTable

DECAY = 0.99  # of the second moment; a row gets tens of updates, too few for a longer average
EPSILON = 1e-12


@torch.no_grad()
def update_rows_(table: RowTable, rows_R: Tensor, gradient_RD: Tensor, learning_rate: float) -> None:
    """Update distinct rows in place: v ← βv + (1−β)·mean(g²), row −= lr·g/√v̂ with the bias-corrected v̂.

    A bfloat16 table uses stochastic rounding; otherwise updates below its 8 bits of precision would be lost.
    """
    if not len(rows_R):
        return
    steps_R = table.steps.index_select(0, rows_R) + 1
    moment_R = table.second_moment.index_select(0, rows_R)
    mean_square_R = torch.linalg.vector_norm(gradient_RD, dim=1).square() / table.width
    moment_R = DECAY * moment_R + (1 - DECAY) * mean_square_R
    unbiased_R = moment_R / (1 - DECAY ** steps_R.to(moment_R.dtype))
    scale_R1 = (-learning_rate / (unbiased_R.sqrt() + EPSILON)).unsqueeze(1)
    if table.weight.dtype == torch.bfloat16:
        updated_RD = table.weight.index_select(0, rows_R).float().addcmul_(gradient_RD, scale_R1)
        table.weight.index_copy_(0, rows_R, stochastic_round(updated_RD))
    else:
        table.weight.index_add_(0, rows_R, gradient_RD * scale_R1)
    table.second_moment.index_copy_(0, rows_R, moment_R)
    table.steps.index_copy_(0, rows_R, steps_R)


def stochastic_round(values: Tensor) -> Tensor:
    """Round float32 to bfloat16 of the same shape, up or down with probabilities that make the result unbiased.

    bfloat16 is the upper half of the bits of a float32. Adding a random lower half carries into the upper half with
    exactly the required probability.
    """
    bits = values.view(torch.int32)
    noise = torch.randint_like(bits, 1 << 16)
    return ((bits + noise) & -(1 << 16)).view(torch.float32).to(torch.bfloat16)
