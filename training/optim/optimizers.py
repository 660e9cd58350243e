"""Optimizers: AdamW for dense weights, row-wise RMSprop for row tables, one learning-rate schedule for both."""

import math

import torch
from torch import Tensor, nn

from training.model.cascade import Model
from training.optim.distributed import SINGLE_PROCESS, Processes
from training.optim.row_optimizer import update_rows_
from training.recipe.sections import OptimizerRecipe

MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # AdamW's state per parameter


def learning_rate_scale(step: int, total: int, warmup: float) -> float:
    """Return the learning rate at `step` of `total` as a share of its peak.

    It rises linearly over the first `warmup` share of the steps, then falls along a cosine towards 0.
    """
    rising = max(1, round(total * warmup))
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1.0 + math.cos(math.pi * (step - rising) / max(1, total - rising)))


def three_phase_scale(step: int, total: int, per_epoch: int, warmup_epochs: float, final_epochs: float) -> float:
    """Return the learning rate at `step` of `total` as a share of its peak: warm-up, constant, annealing (CascadeXML).

    It rises along a cosine from a tenth of its peak and falls along one to a thousandth. The first and the last phase
    last a number of epochs of `per_epoch` steps.
    """
    rising, falling = warmup_epochs * per_epoch, final_epochs * per_epoch
    if step < rising:
        return _between(0.1, 1.0, step / rising)
    if (left := total - step) <= falling:
        return _between(1e-3, 1.0, (left - 1) / falling)
    return 1.0


def _between(low: float, high: float, share: float) -> float:
    """Return the value at `share` of the way along a half cosine from `low` to `high`."""
    return low + (high - low) * 0.5 * (1.0 - math.cos(math.pi * share))


class Optimizers:
    """All optimizers of a model. `peak_rates` are the learning rates to report, by the weights they apply to."""

    def __init__(self, model: Model, recipe: OptimizerRecipe, processes: Processes = SINGLE_PROCESS) -> None:
        self.model = model
        self.dense = dense_optimizer(model, recipe)
        self.peak_rates = _peak_rates(model, recipe)
        self._row_rates = _row_rates(model, recipe)
        self._clip_norm = recipe.clip_norm
        self._processes = processes

    def step(self, scale: float) -> None:
        """Update all weights with `scale` times their peak rates, and clear the gradients.

        Each process encoded other texts, so the encoder's gradients are summed over the processes. Heads and ψ have the
        gradients of the whole batch in every process, which updates the rows ψ of its labels.
        """
        self._processes.all_reduce_gradients_(self.model.encoder.parameters())
        nn.utils.clip_grad_norm_([p for group in self.dense.param_groups for p in group["params"]], self._clip_norm)
        for group in self.dense.param_groups:
            group["lr"] = group["peak"] * scale
        self.dense.step()
        self.dense.zero_grad(set_to_none=True)
        for name, table in self.model.row_tables().items():
            rows_R, gradient_RD = table.pop_gradients()
            if name != "classifier":
                rows_R, gradient_RD = self._processes.all_reduce_rows(rows_R, gradient_RD)
            update_rows_(table, rows_R, gradient_RD, self._row_rates[name] * scale)

    def state_dict(self) -> dict[str, Tensor]:
        """Return AdamW's moments and step counts by parameter name; row tables have theirs in the model's state."""
        return {
            f"{name}.{key}": value.detach().cpu().contiguous()
            for name, parameter in self.model.named_parameters()
            for key, value in self.dense.state.get(parameter, {}).items()
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Load what `state_dict` returned."""
        for name, parameter in self.model.named_parameters():
            keys = [key for key in MOMENTS if f"{name}.{key}" in state]
            if keys:
                self.dense.state[parameter] = {key: state[f"{name}.{key}"].to(parameter.device) for key in keys}


def dense_optimizer(model: Model, recipe: OptimizerRecipe) -> torch.optim.AdamW:
    """Return AdamW over encoder and heads (or clusters), without weight decay for biases and norms.

    Each parameter group has its peak learning rate in `peak`.
    """
    encoder = list(model.encoder.parameters())
    heads = list(model.head_parameters())
    groups = [
        {"params": params, "weight_decay": decay, "lr": rate, "peak": rate}
        for parameters, rate in ((encoder, recipe.encoder_lr), (heads, recipe.heads_lr))
        for params, decay in (
            ([p for p in parameters if p.ndim > 1], recipe.weight_decay),
            ([p for p in parameters if p.ndim <= 1], 0.0),
        )
        if params
    ]
    return torch.optim.AdamW(groups, betas=(0.9, 0.999), fused=True)


def _row_rates(model: Model, recipe: OptimizerRecipe) -> dict[str, float]:
    """Return the peak learning rate of each row table by name."""
    return {name: recipe.classifier_lr if name == "classifier" else recipe.token_lr for name in model.row_tables()}


def _peak_rates(model: Model, recipe: OptimizerRecipe) -> dict[str, float]:
    """Return the peak learning rates to report: encoder (if AdamW updates it), heads, classifier and token rows."""
    dense = {"encoder": recipe.encoder_lr} if any(True for _ in model.encoder.parameters()) else {}
    rows = {name: rate for name, rate in _row_rates(model, recipe).items() if name in ("classifier", "token")}
    return {**dense, "heads": recipe.heads_lr, **rows}
