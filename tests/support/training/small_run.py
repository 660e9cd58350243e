"""The small run that tests train, stop and resume, and functions to compare two runs of it."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from training.checkpoint.files import read_facts
from training.recipe.loading import load_recipe
from training.recipe.schema import Recipe

SMALL = [
    "batching.batch_size=64",
    "batching.clustered=true",
    "batching.hard_negatives=2",
    "batching.refresh_epochs=2",
    "optimizer.epochs=4",
    "validation.every_epochs=1",
    "encoder={kind: static, dim: 32, vocabulary_size: 3000}",
    "heads.dual_encoder.dropout=0.1",
    "heads.classifier.dropout=0.1",
]


def small_recipe(*overrides: str) -> Recipe:
    """Return a recipe that trains in seconds, with `overrides` applied."""
    return load_recipe("default", [*SMALL, *overrides])


def stop_after(steps: int) -> Callable[[], bool]:
    """Return a function that asks a run to stop after `steps` steps."""
    calls = iter(range(10**9))
    return lambda: next(calls) + 1 >= steps


def weights_hash(folder: Path) -> str:
    """Return a hash of the best weights and of the whole saved state."""
    digest = hashlib.sha256()
    for file in ("model.safetensors", "state.safetensors"):
        for name, tensor in sorted(load_file(folder / file).items()):
            digest.update(name.encode())
            digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def measured(folder: Path) -> list[dict[str, Any]]:
    """Return the record of each validated epoch without its durations and statistics."""
    return [record.model_dump(exclude={"seconds", "stats"}) for record in read_facts(folder).history]
