"""One process of a distributed run, as `torchrun` starts it; reports its losses, its shard and its final weights.

    torchrun --nproc-per-node W -m tests.support.programs.parallel_run DATASET OUT REPORTS RECIPE STEPS [KEY=VALUE ...]

RECIPE is `small`, or the folder of a cascade's transformer. The run stops after STEPS steps, or at its end if they are
0. REPORTS/RANK.json has the loss of every step of this process, a hash of the weights that all processes have, and the
number of label rows that it holds.
"""

import hashlib
import json
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.support.listener import RecordingCallback
from tests.support.training.cascade_run import cascade_recipe
from tests.support.training.small_run import small_recipe, stop_after
from training.batching.batch_source import BatchSource
from training.data.dataset import Dataset
from training.model.cascade import Model, has_label_rows
from training.optim.distributed import torchrun_processes
from training.run import train
from training.trainer import Stopped


class ModelCapture(BatchSource):
    """A batch source that remembers the model of its run."""

    captured: Model

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        ModelCapture.captured = self.model


def main() -> None:
    """Train, then write the report."""
    dataset, out, reports = (Path(argument) for argument in sys.argv[1:4])
    kind, steps, *overrides = sys.argv[4:]
    recipe = small_recipe(*overrides) if kind == "small" else cascade_recipe(Path(kind), *overrides)
    callback = RecordingCallback()
    with torchrun_processes() as processes, suppress(Stopped):
        train(
            Dataset.open(dataset), recipe, out, callback, processes=processes, source_type=ModelCapture,
            should_stop=stop_after(int(steps) or 10**9),
        )  # fmt: skip
    digest, model = hashlib.sha256(), ModelCapture.captured
    for name, tensor in sorted(model.state_dict().items()):
        if not has_label_rows(model, name):
            digest.update(name.encode() + tensor.float().numpy().tobytes())
    report = {
        "losses": [step.loss for step in callback.steps],
        "weights": digest.hexdigest(),
        "label_rows": len(model.row_tables()["classifier"]),
    }
    (reports / f"{processes.rank}.json").write_text(json.dumps(report), encoding="utf-8")


if __name__ == "__main__":
    main()
