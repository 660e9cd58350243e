"""Shared by both sides of pairs_per_second.py: the task, and the measurements of each step.

Uses only the standard library, because one side runs in a separate environment.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class StepTask:
    """Take `warm` steps and then `steps` measured steps of `batch` pairs each; `model` is a Hugging Face encoder."""

    model: str
    max_tokens: int
    batch: int
    warm: int
    steps: int
    threads: int
    seed: int

    def write(self, folder: Path) -> None:
        """Write folder/task.json."""
        (folder / "task.json").write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> "StepTask":
        """Read what `write` wrote."""
        return cls(**json.loads((folder / "task.json").read_text(encoding="utf-8")))


@dataclass
class StepRecorder:
    """Counts texts and tokens of the encoder, and records times and totals at the end of each step.

    `wall` and `cpu` are seconds of wall time and of CPU time of all threads; `tokens` include padding.
    """

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    texts: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    texts_read: int = 0
    tokens_read: int = 0

    def on_forward(self, module: Any, arguments: tuple[Any, ...]) -> None:
        """Count the texts and tokens of a batch: a pre-hook for a module whose input is token ids or mask [B, T]."""
        tokens_BT = arguments[0]
        self.texts_read += tokens_BT.shape[0]
        self.tokens_read += tokens_BT.numel()

    def step_ended(self) -> None:
        """Record the end of a step."""
        self.wall.append(time.perf_counter())
        self.cpu.append(time.process_time())
        self.texts.append(self.texts_read)
        self.tokens.append(self.tokens_read)

    def total(self, task: StepTask) -> dict[str, float]:
        """Return the sums over the measured steps."""
        first, last = task.warm - 1, task.warm + task.steps - 1
        records: dict[str, Sequence[float]] = {
            "wall": self.wall,
            "cpu": self.cpu,
            "texts": self.texts,
            "tokens": self.tokens,
        }
        return {name: at[last] - at[first] for name, at in records.items()}

    def write(self, path: Path, task: StepTask, packages: tuple[str, ...]) -> None:
        """Write the sums and the versions of packages as JSON."""
        versions = {name: version(name) for name in packages}
        path.write_text(json.dumps({**self.total(task), "versions": versions}), encoding="utf-8")
