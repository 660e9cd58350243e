"""Tables of which a batch touches a few rows: ψ, and the static encoder's tokens, with their optimiser.

A step gathers the rows, learns on them and scatters them back: O(rows·d) whatever the table's length. A dense AdamW
would also decay and move all the rows that had no data. State: one second moment and one step count a row, so a row
takes 4·D + 8 bytes, or 2·D + 8 in bfloat16.

Shapes: N rows of the table, D its width, R rows that a batch touches.
"""

import torch
from torch import Tensor, nn

DECAY = 0.99  # of the second moment; rows are seen tens of times, so a longer memory would never fill
EPSILON = 1e-12


class RowTable(nn.Module):
    """N rows of width D that are learned row by row.

    `take` hands out rows as a float32 leaf that collects gradients; `step` moves every row handed out since the last
    step. A bfloat16 table rounds at random, or steps smaller than its 8 bits would be lost.
    """

    def __init__(self, weight_ND: Tensor) -> None:
        super().__init__()
        self.weight: Tensor
        self.second_moment: Tensor
        self.steps: Tensor
        self.register_buffer("weight", weight_ND)
        self.register_buffer("second_moment", torch.zeros(len(weight_ND)))
        self.register_buffer("steps", torch.zeros(len(weight_ND), dtype=torch.int32))
        self._taken: list[tuple[Tensor, Tensor]] = []

    def __len__(self) -> int:
        return len(self.weight)

    @property
    def width(self) -> int:
        """D, the width of a row."""
        return self.weight.shape[1]

    def take(self, rows_R: Tensor) -> Tensor:
        """Rows [R, D] as a leaf; `rows_R` int64 holds no row twice. Outside of training it is a plain gather."""
        leaf_RD = self.weight.index_select(0, rows_R).float()
        if self.training and torch.is_grad_enabled():
            leaf_RD.requires_grad_(True)
            self._taken.append((rows_R, leaf_RD))
        return leaf_RD

    def step(self, learning_rate: float) -> None:
        """Move the rows taken since the last step along their gradients, and forget them."""
        self.move(*self.gradient(), learning_rate)

    def gradient(self) -> tuple[Tensor, Tensor]:
        """Rows [R] taken since the last step and their gradients [R, D], each row once; they are forgotten here."""
        taken = [(rows_R, leaf.grad) for rows_R, leaf in self._taken if leaf.grad is not None]
        self._taken.clear()
        if taken:
            return merged(taken)
        device = self.weight.device
        return torch.empty(0, dtype=torch.int64, device=device), torch.empty(0, self.width, device=device)

    @torch.no_grad()
    def move(self, rows_R: Tensor, gradient_RD: Tensor, learning_rate: float) -> None:
        """Move these rows, none of them twice, along their gradients.

        RMSprop with one second moment a row, corrected for its start: v ← βv + (1−β)·mean(g²), row −= lr·g/√v̂.
        """
        if not len(rows_R):
            return
        steps_R = self.steps.index_select(0, rows_R) + 1
        moment_R = self.second_moment.index_select(0, rows_R)
        mean_square_R = torch.linalg.vector_norm(gradient_RD, dim=1).square() / self.width
        moment_R = DECAY * moment_R + (1 - DECAY) * mean_square_R
        unbiased_R = moment_R / (1 - DECAY ** steps_R.to(moment_R.dtype))
        scale_R1 = (-learning_rate / (unbiased_R.sqrt() + EPSILON)).unsqueeze(1)
        if self.weight.dtype == torch.bfloat16:
            moved_RD = self.weight.index_select(0, rows_R).float().addcmul_(gradient_RD, scale_R1)
            self.weight.index_copy_(0, rows_R, rounded_at_random(moved_RD))
        else:
            self.weight.index_add_(0, rows_R, gradient_RD * scale_R1)
        self.second_moment.index_copy_(0, rows_R, moment_R)
        self.steps.index_copy_(0, rows_R, steps_R)


def rounded_at_random(values: Tensor) -> Tensor:
    """float32 → bfloat16 of the same shape, to either neighbour with the odds of its nearness: right on average.

    bfloat16 is the upper half of a float32's bits, and those order magnitudes as integers do: a random lower half
    carries into the upper one exactly as often as it should.
    """
    bits = values.view(torch.int32)
    noise = torch.randint_like(bits, 1 << 16)
    return ((bits + noise) & -(1 << 16)).view(torch.float32).to(torch.bfloat16)


def merged(taken: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Rows [R] and gradients [R, D] of several takes as one, gradients summed where two takes share a row."""
    if len(taken) == 1:
        return taken[0]
    rows_R, place = torch.unique(torch.cat([rows for rows, _ in taken]), return_inverse=True)
    gradient = torch.cat([gradient for _, gradient in taken])
    summed_RD = gradient.new_zeros(len(rows_R), gradient.shape[1]).index_add_(0, place, gradient)
    return rows_R, summed_RD
