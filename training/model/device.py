"""Device and numerical precision of a run."""

import torch

from retrieval.errors import RecipeError
from training.recipe.schema import Recipe


def choose_device(name: str) -> torch.device:
    """Return the device `auto` (CUDA if available, else CPU), `cpu` or `cuda`. Raises RecipeError for any other."""
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
            f"device '{name}' is not available: torch sees {torch.cuda.device_count()} CUDA devices; choose cpu or auto"
        )
    return device


def uses_bfloat16(recipe: Recipe, device: torch.device) -> bool:
    """Return whether the encoder runs under bfloat16 autocast; `auto`: a transformer on hardware that supports it."""
    if recipe.precision != "auto":
        return recipe.precision == "bfloat16"
    if recipe.encoder.kind == "static":
        return False
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def autocast(device: torch.device, *, bfloat16: bool) -> torch.autocast:
    """Return the context in which the encoder runs."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=bfloat16)
