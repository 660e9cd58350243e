"""Detect a run that diverged: a loss or weights with NaN or Inf."""

import torch
from torch import nn

from retrieval.errors import TrainingError
from training.optim.distributed import SINGLE_PROCESS, Processes


def divergence_error(symptom: str) -> TrainingError:
    """Return the error of a run that diverged, with the ways to avoid it."""
    return TrainingError(
        f"{symptom}: the run diverged. Train into another --out with lower learning rates "
        "(--set optimizer.token_lr=… and the other optimizer.*_lr) or a higher loss.*.temperature; what was saved "
        "before is kept."
    )


def require_finite_weights(model: nn.Module, epoch: int, processes: Processes = SINGLE_PROCESS) -> None:
    """Raise TrainingError in all processes if weights of one contain NaN or Inf after epoch `epoch` (counted from 1).

    A step may break the weights although its own loss was finite. Such weights must not replace a saved state.
    """
    broken = [name for name, tensor in model.state_dict().items() if not torch.isfinite(tensor.sum())]
    if processes.any(bool(broken)):
        which = f"the weights '{broken[0]}'" if broken else "the weights of another process"
        raise divergence_error(f"{which} contain NaN or Inf after epoch {epoch}")
