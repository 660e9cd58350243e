"""What moves the weights: AdamW for what every batch touches, row tables for the rest, one schedule for both."""

import math

import torch
from torch import Tensor, nn

from retrieval.errors import RecipeError
from training.model.unified import UnifiedModel
from training.optim.distributed import ALONE, Processes
from training.recipe.schema import OptimizerRecipe, Recipe

MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # AdamW's state of a parameter


def schedule(step: int, total: int, warmup: float) -> float:
    """Share of the peak rate at `step` of `total`: rises linearly over the first `warmup` share, then a cosine to 0."""
    rising = max(1, round(total * warmup))
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1.0 + math.cos(math.pi * (step - rising) / max(1, total - rising)))


def dense_optimizer(model: UnifiedModel, recipe: OptimizerRecipe) -> torch.optim.AdamW:
    """AdamW over encoder and heads; biases and norms are not decayed. Each group keeps its peak rate in `peak`."""
    encoder = list(model.encoder.parameters())
    heads = [*model.dual_head.parameters(), *model.classifier_head.parameters()]
    groups = [
        {"params": chosen, "weight_decay": decay, "lr": rate, "peak": rate}
        for parameters, rate in ((encoder, recipe.encoder_lr), (heads, recipe.heads_lr))
        for chosen, decay in (_matrices(parameters, recipe.weight_decay), _vectors(parameters))
        if chosen
    ]
    return torch.optim.AdamW(groups, betas=(0.9, 0.999), fused=True)


def row_rates(model: UnifiedModel, recipe: OptimizerRecipe) -> dict[str, float]:
    """Peak rate of each row table by its name."""
    return {name: recipe.classifier_lr if name == "classifier" else recipe.token_lr for name in model.row_tables()}


def peak_rates(model: UnifiedModel, recipe: OptimizerRecipe) -> dict[str, float]:
    """Peak rates to tell a person, by what they move: the encoder where AdamW moves one, heads, tables of rows."""
    dense = {"encoder": recipe.encoder_lr} if any(True for _ in model.encoder.parameters()) else {}
    rows = {name: rate for name, rate in row_rates(model, recipe).items() if name in ("classifier", "token")}
    return {**dense, "heads": recipe.heads_lr, **rows}


def apply_step(
    model: UnifiedModel,
    dense: torch.optim.AdamW,
    rates: dict[str, float],
    scale: float,
    clip_norm: float,
    processes: Processes = ALONE,
) -> None:
    """Move everything along its gradients at `scale` times its peak rate, and clear the gradients.

    Each of `processes` encoded other texts, so the encoder's gradients are added up first; heads and ψ saw them all.
    """
    processes.sum_gradients(model.encoder.parameters())
    nn.utils.clip_grad_norm_([p for group in dense.param_groups for p in group["params"]], clip_norm)
    for group in dense.param_groups:
        group["lr"] = group["peak"] * scale
    dense.step()
    dense.zero_grad(set_to_none=True)
    for name, table in model.row_tables().items():
        rows_R, gradient_RD = table.gradient()
        if name != "classifier":
            rows_R, gradient_RD = processes.sum_rows(rows_R, gradient_RD)
        table.move(rows_R, gradient_RD, rates[name] * scale)


def dense_state(model: UnifiedModel, dense: torch.optim.AdamW) -> dict[str, Tensor]:
    """AdamW's moments and step counts by parameter name, for a checkpoint."""
    return {
        f"{name}.{key}": value.detach().cpu().contiguous()
        for name, parameter in model.named_parameters()
        for key, value in dense.state.get(parameter, {}).items()
    }


def restore_dense_state(model: UnifiedModel, dense: torch.optim.AdamW, saved: dict[str, Tensor]) -> None:
    """Put back what `dense_state` gave."""
    for name, parameter in model.named_parameters():
        keys = [key for key in MOMENTS if f"{name}.{key}" in saved]
        if keys:
            dense.state[parameter] = {key: saved[f"{name}.{key}"].to(parameter.device) for key in keys}


def choose_device(name: str) -> torch.device:
    """`auto` is CUDA where there is one, else the CPU; a device that was asked for and is not there is an error."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise RecipeError(f"device '{name}' is unknown; choose auto, cpu or cuda") from error
    if device.type not in ("cpu", "cuda"):
        raise RecipeError(f"device '{name}' is not supported; choose auto, cpu or cuda")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise RecipeError(
            f"device '{name}' was asked for, but torch sees {torch.cuda.device_count()} CUDA devices here; "
            "choose cpu or auto"
        )
    return device


def uses_bfloat16(recipe: Recipe, device: torch.device) -> bool:
    """Whether the encoder runs under bf16 autocast: asked for, or a transformer where the processor is good at it."""
    if recipe.precision != "auto":
        return recipe.precision == "bfloat16"
    if recipe.encoder.kind == "static":
        return False
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def _matrices(parameters: list[nn.Parameter], decay: float) -> tuple[list[nn.Parameter], float]:
    return [p for p in parameters if p.ndim > 1], decay


def _vectors(parameters: list[nn.Parameter]) -> tuple[list[nn.Parameter], float]:
    return [p for p in parameters if p.ndim <= 1], 0.0
