"""One process of a distributed run, as `torchrun` starts it; reports the losses of its steps and its final weights.

    torchrun --nproc-per-node W -m tests.support.programs.parallel_run DATASET OUT REPORTS [KEY=VALUE ...]

REPORTS/RANK.json has the loss of every step of this process and a hash of all its weights.
"""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from tests.support.listener import RecordingCallback
from tests.support.training.small_run import small_recipe
from training.batching.batch_source import BatchSource
from training.data.dataset import Dataset
from training.model.cascade import Model
from training.optim.distributed import torchrun_processes
from training.run import train


class ModelCapture(BatchSource):
    """A batch source that remembers the model of its run."""

    captured: Model

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        ModelCapture.captured = self.model


def main() -> None:
    """Train, then write the report."""
    dataset, out, reports = (Path(argument) for argument in sys.argv[1:4])
    callback = RecordingCallback()
    with torchrun_processes() as processes:
        train(
            Dataset.open(dataset), small_recipe(*sys.argv[4:]), out, callback,
            processes=processes, source_type=ModelCapture,
        )  # fmt: skip
    digest = hashlib.sha256()
    for name, tensor in sorted(ModelCapture.captured.state_dict().items()):
        digest.update(name.encode() + tensor.float().numpy().tobytes())
    report = {"losses": [step.loss for step in callback.steps], "weights": digest.hexdigest()}
    (reports / f"{processes.rank}.json").write_text(json.dumps(report), encoding="utf-8")


if __name__ == "__main__":
    main()
