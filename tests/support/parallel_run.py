"""One of the processes of a run, as `torchrun` starts it: the losses of its steps, and its weights in the end.

    torchrun --nproc-per-node W -m tests.support.parallel_run DATASET OUT TOLD [KEY=VALUE ...]

TOLD/RANK.json holds the loss of every step this process took and one hash over all of its weights.
"""

import hashlib
import json
import sys
from pathlib import Path
from typing import ClassVar
from unittest.mock import patch

import numpy as np

from tests.support.listener import Kept
from tests.support.small_run import small_recipe
from training import run
from training.data.dataset import Dataset
from training.monitoring.epoch_stats import Step
from training.optim.distributed import processes_of_torchrun
from training.trainer import Trainer


class Watched(Trainer):
    """The one trainer of its process, and the losses of its steps."""

    last: "Watched"
    losses: ClassVar[list[float]] = []

    def step(self, epoch: int, at: int, of: int, query_Q: np.ndarray) -> Step:
        Watched.last = self
        taken = super().step(epoch, at, of, query_Q)
        self.losses.append(taken.loss)
        return taken


def main() -> None:
    """Train, then tell."""
    dataset, out, told = (Path(argument) for argument in sys.argv[1:4])
    with processes_of_torchrun() as processes, patch.object(run, "Trainer", Watched):
        run.train(Dataset.open(dataset), small_recipe(*sys.argv[4:]), out, Kept(), processes=processes)
    digest = hashlib.sha256()
    for name, tensor in sorted(Watched.last.model.state_dict().items()):
        digest.update(name.encode() + tensor.float().numpy().tobytes())
    facts = {"losses": Watched.losses, "weights": digest.hexdigest()}
    (told / f"{processes.rank}.json").write_text(json.dumps(facts), encoding="utf-8")


if __name__ == "__main__":
    main()
