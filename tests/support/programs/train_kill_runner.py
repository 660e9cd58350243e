"""Kill a training run with SIGKILL at random moments.

Usage: `python -m tests.support.programs.train_kill_runner TIMES SEED FOLDER`

Each time a forked process resumes the run in FOLDER/run until it is killed. Prints one line of JSON per kill: the
epochs of the records in weights and state. Then the run is finished and compared with a run without kills; the last
line reports whether weights, state and records agree.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

from tests.support.forked import forked, start_forked
from tests.support.listener import RecordingCallback
from tests.support.training.checkpoints import write_words
from tests.support.training.small_run import measured, weights_hash
from training.checkpoint.files import read_record
from training.checkpoint.opened import load_checkpoint
from training.checkpoint.schema import STATE, WEIGHTS
from training.checkpoint.state import read_position, reconcile
from training.checkpoint.tensor_file import read_tensors
from training.data.dataset import Dataset
from training.recipe.loading import load_recipe
from training.run import train

MAX_WRITES, MAX_SECONDS = 6, 0.03  # a kill comes after at most so many writes of weights or state, and this delay
RECIPE = [
    "optimizer.epochs=6",
    "validation.every_epochs=1",
    "checkpoint_minutes=0.001",
    "encoder.dim=32",
    "encoder.vocabulary_size=64",
    "batching.batch_size=64",
    "batching.clustered=true",
    "batching.hard_negatives=1",
]


def train_run(folder: Path, run: str) -> tuple[str, str]:
    train(Dataset.open(folder / "dataset"), load_recipe("default", RECIPE), folder / run, RecordingCallback())
    return weights_hash(folder / run), json.dumps(measured(folder / run))


def killed(folder: Path, writes: int, seconds: float) -> None:
    child = start_forked(lambda: train_run(folder, "run"))
    seen = _written(folder / "run")
    while writes and not os.waitpid(child, os.WNOHANG)[0]:
        if (now := _written(folder / "run")) != seen:
            seen, writes = now, writes - 1
        time.sleep(0.001)
    if not writes:
        time.sleep(seconds)  # a random moment for the kill, not a wait for an event
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _written(run: Path) -> list[int]:
    return [(run / name).stat().st_mtime_ns for name in (WEIGHTS, STATE) if (run / name).is_file()]


def left_behind(run: Path) -> dict[str, int | None]:
    """Return the epochs recorded in a killed run's files. Raises when the run could not be resumed from them."""
    record = read_record(run / WEIGHTS)
    found: dict[str, int | None] = {"weights": None if record is None else record.epoch, "state": None}
    if (run / STATE).is_file():
        facts = read_tensors(run / STATE)[1]
        facts.pop("tensors")
        position = read_position(facts, run / STATE)
        found["state"] = None if position.best is None else position.best.epoch
        assert reconcile(run, position).best == record
    return found


def main(times: int, seed: int, folder: Path) -> None:
    draw = random.Random(seed)
    assert forked(lambda: ("made", write_words(folder / "dataset").meta.name))[0] == "made"
    for _ in range(times):
        killed(folder, draw.randint(1, MAX_WRITES), draw.uniform(0, MAX_SECONDS))
        print(json.dumps(left_behind(folder / "run")), flush=True)
    outcomes = [forked(lambda name=name: train_run(folder, name), 120) for name in ("run", "whole")]  # type: ignore[misc]
    opened = load_checkpoint(folder / "run")
    last = {
        "differences": differences(folder, outcomes),
        "best": read_record(folder / "run" / WEIGHTS) == opened.facts.best,
    }
    print(json.dumps(last))


def differences(folder: Path, outcomes: list[tuple[str, str]]) -> list[str]:
    """Describe how the finished run differs from the run that was never killed."""
    if outcomes[0] == outcomes[1]:
        return []
    found = [f"outcomes {outcomes}"]
    for name in (WEIGHTS, STATE):
        run, whole = (read_tensors(folder / which / name)[0] for which in ("run", "whole"))
        found += [f"{name} {key}" for key in run if key not in whole or not run[key].equal(whole[key])]
    return found


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
