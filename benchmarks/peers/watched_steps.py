"""What both sides of pairs_per_second.py share: the task, and what is measured of each step.

Standard library alone, since one side runs in an environment of its own.
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
    """Learn `warm` steps and then `steps` measured ones of `batch` pairs each; `model` is a Hugging Face encoder."""

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
class StepWatch:
    """Counts what the encoder reads, and notes at the end of each step the time and all that was read until then.

    `wall` and `cpu` are seconds of the clock and of this process on all its threads; `texts` and `tokens` what the
    transformer computed, padding included.
    """

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    texts: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    texts_read: int = 0
    tokens_read: int = 0

    def reads(self, module: Any, arguments: tuple[Any, ...]) -> None:
        """A forward pre-hook for what is first given a batch's tokens [B, T], or their mask."""
        tokens_BT = arguments[0]
        self.texts_read += tokens_BT.shape[0]
        self.tokens_read += tokens_BT.numel()

    def step_ended(self) -> None:
        """Note the end of a step."""
        self.wall.append(time.perf_counter())
        self.cpu.append(time.process_time())
        self.texts.append(self.texts_read)
        self.tokens.append(self.tokens_read)

    def spent(self, task: StepTask) -> dict[str, float]:
        """What the measured steps took together."""
        first, last = task.warm - 1, task.warm + task.steps - 1
        noted: dict[str, Sequence[float]] = {
            "wall": self.wall,
            "cpu": self.cpu,
            "texts": self.texts,
            "tokens": self.tokens,
        }
        return {name: at[last] - at[first] for name, at in noted.items()}

    def write(self, path: Path, task: StepTask, packages: tuple[str, ...]) -> None:
        """That and the versions of what took the steps, as JSON."""
        versions = {name: version(name) for name in packages}
        path.write_text(json.dumps({**self.spent(task), "versions": versions}), encoding="utf-8")
