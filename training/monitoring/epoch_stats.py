"""What a run's steps did and what an epoch of them adds up to: the figures that a person follows while it trains."""

from collections.abc import Mapping
from dataclasses import dataclass

import psutil
import torch
from pydantic import BaseModel, ConfigDict


@dataclass(frozen=True)
class Step:
    """One step: where it stands in the run, and what it did. Epochs and steps count from 1.

    `parts` are the loss by `head/direction/term` and sum to it; `positives` counts the true pairs among its queries and
    the `labels` of its pool; `rates` are the learning rates by what they move; `gpu_bytes` is 0 on the CPU.
    """

    epoch: int
    epochs: int
    number: int
    of: int
    parts: Mapping[str, float]
    queries: int
    labels: int
    positives: int
    rates: Mapping[str, float]
    seconds: float
    memory_bytes: int
    gpu_bytes: int

    @property
    def done(self) -> int:
        """Steps taken since the run began."""
        return (self.epoch - 1) * self.of + self.number

    @property
    def total(self) -> int:
        """Steps of the whole run."""
        return self.epochs * self.of

    @property
    def loss(self) -> float:
        """The sum of the parts."""
        return sum(self.parts.values())


class Tally(BaseModel):
    """The steps of one epoch so far, summed. Part of the saved state, so a resumed run reports the same epoch."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int = 0
    queries: int = 0
    labels: int = 0
    positives: int = 0
    seconds: float = 0.0
    parts: dict[str, float] = {}
    memory_bytes: int = 0
    gpu_bytes: int = 0

    def plus(self, step: Step) -> "Tally":
        """With one more step; of memory the most that any step saw."""
        return Tally(
            steps=self.steps + 1,
            queries=self.queries + step.queries,
            labels=self.labels + step.labels,
            positives=self.positives + step.positives,
            seconds=self.seconds + step.seconds,
            parts={name: self.parts.get(name, 0.0) + part for name, part in step.parts.items()},
            memory_bytes=max(self.memory_bytes, step.memory_bytes),
            gpu_bytes=max(self.gpu_bytes, step.gpu_bytes),
        )

    @property
    def loss(self) -> float:
        """Mean loss of a step."""
        return sum(self.mean_parts.values())

    @property
    def mean_parts(self) -> dict[str, float]:
        """Mean of each part of the loss."""
        return {name: part / self.steps for name, part in self.parts.items()}

    @property
    def positives_a_query(self) -> float:
        """True labels that a query finds in its pool."""
        return self.positives / max(self.queries, 1)

    @property
    def labels_a_pool(self) -> float:
        """Labels that a query is compared with."""
        return self.labels / max(self.steps, 1)

    @property
    def queries_a_second(self) -> float:
        """Throughput of the steps alone; clustering, mining and validation are not in it."""
        return self.queries / self.seconds if self.seconds else 0.0


def by_head_and_term(parts: Mapping[str, float]) -> dict[str, float]:
    """Parts of a loss by `head/term`, the two directions added."""
    added: dict[str, float] = {}
    for name, part in parts.items():
        head, _, term = name.split("/")
        added[f"{head}/{term}"] = added.get(f"{head}/{term}", 0.0) + part
    return added


def resident_bytes() -> int:
    """Memory that this process holds now."""
    return int(psutil.Process().memory_info().rss)


def gpu_bytes(device: torch.device) -> int:
    """Memory that torch holds on `device` at most since the run began; 0 for the CPU. Needs no synchronisation."""
    return torch.cuda.max_memory_reserved(device) if device.type == "cuda" else 0
