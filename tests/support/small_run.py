"""The small run that tests train, stop and go on with: its recipe, and what two runs of it are compared by."""

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
    """A recipe that trains in seconds, with `overrides` laid over it."""
    return load_recipe("default", [*SMALL, *overrides])


def stop_after(steps: int) -> Callable[[], bool]:
    """What asks a run to stop after that many steps."""
    calls = iter(range(10**9))
    return lambda: next(calls) + 1 >= steps


def weights_hash(folder: Path) -> str:
    """One hash over the checkpoint's weights and the whole training state, bit for bit."""
    digest = hashlib.sha256()
    for file in ("model.safetensors", "state.safetensors"):
        for name, tensor in sorted(load_file(folder / file).items()):
            digest.update(name.encode())
            digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def measured(folder: Path) -> list[dict[str, Any]]:
    """What each validated epoch reached, without what it cost."""
    return [record.model_dump(exclude={"seconds", "tally"}) for record in read_facts(folder).history]
