"""Statistics of training steps and epochs."""

from collections.abc import Mapping
from dataclasses import dataclass

import psutil
import torch
from pydantic import BaseModel, ConfigDict


@dataclass(frozen=True)
class StepIndex:
    """Position of a step in the run: `step` of `steps_per_epoch` in `epoch` of `epochs`, counted from 0."""

    epoch: int
    step: int
    epochs: int
    steps_per_epoch: int

    @property
    def done(self) -> int:
        """Number of steps before this one."""
        return self.epoch * self.steps_per_epoch + self.step

    @property
    def total(self) -> int:
        """Number of steps in the run."""
        return self.epochs * self.steps_per_epoch


@dataclass(frozen=True)
class StepStats:
    """Statistics of one step.

    `losses` are the terms of the loss by `head/direction/term`. `positives` counts the positive pairs of its `queries`
    and the `labels` of its pool. `rates` are learning rates by the weights they apply to. `gpu_bytes` is 0 on the CPU.
    """

    index: StepIndex
    losses: Mapping[str, float]
    queries: int
    labels: int
    positives: int
    rates: Mapping[str, float]
    seconds: float
    memory_bytes: int
    gpu_bytes: int

    @property
    def loss(self) -> float:
        """Loss of the step: the sum of its terms."""
        return sum(self.losses.values())


class EpochStats(BaseModel):
    """Sums over the steps of an epoch so far; part of the saved state, so a resumed run reports the whole epoch."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int = 0
    queries: int = 0
    labels: int = 0
    positives: int = 0
    seconds: float = 0.0
    losses: dict[str, float] = {}
    memory_bytes: int = 0
    gpu_bytes: int = 0

    def add(self, step: StepStats) -> "EpochStats":
        """Return the statistics with one more step; of memory, the maximum."""
        return EpochStats(
            steps=self.steps + 1,
            queries=self.queries + step.queries,
            labels=self.labels + step.labels,
            positives=self.positives + step.positives,
            seconds=self.seconds + step.seconds,
            losses={name: self.losses.get(name, 0.0) + loss for name, loss in step.losses.items()},
            memory_bytes=max(self.memory_bytes, step.memory_bytes),
            gpu_bytes=max(self.gpu_bytes, step.gpu_bytes),
        )

    @property
    def loss(self) -> float:
        """Mean loss per step."""
        return sum(self.mean_losses.values())

    @property
    def mean_losses(self) -> dict[str, float]:
        """Mean of each term of the loss per step."""
        return {name: loss / self.steps for name, loss in self.losses.items()}

    @property
    def positives_per_query(self) -> float:
        """Mean number of positives of a query in its pool."""
        return self.positives / max(self.queries, 1)

    @property
    def labels_per_pool(self) -> float:
        """Mean size of the label pool."""
        return self.labels / max(self.steps, 1)

    @property
    def queries_per_second(self) -> float:
        """Throughput of the steps, without clustering, mining and validation."""
        return self.queries / self.seconds if self.seconds else 0.0


def by_head_and_term(losses: Mapping[str, float]) -> dict[str, float]:
    """Sum both directions of each term: losses by `head/direction/term` become losses by `head/term`."""
    summed: dict[str, float] = {}
    for name, loss in losses.items():
        head, _, term = name.split("/")
        summed[f"{head}/{term}"] = summed.get(f"{head}/{term}", 0.0) + loss
    return summed


def resident_bytes() -> int:
    """Return the resident memory of this process."""
    return int(psutil.Process().memory_info().rss)


def gpu_bytes(device: torch.device) -> int:
    """Return the peak memory that torch reserved on `device`; 0 for the CPU. Does not synchronize."""
    return torch.cuda.max_memory_reserved(device) if device.type == "cuda" else 0
