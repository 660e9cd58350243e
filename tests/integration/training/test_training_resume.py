"""Runs that are stopped, resumed, already finished or refused."""

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from retrieval.errors import CheckpointError, RecipeError
from tests.support.listener import RecordingCallback
from tests.support.processes import running, wait_for_file
from tests.support.training.small_run import SMALL, measured, small_recipe, stop_after, weights_hash
from training.batching.batch_source import BatchSource
from training.checkpoint.files import read_facts
from training.data.dataset import Dataset
from training.optim.cascade_loss import CascadeBatch
from training.optim.training_step import DeviceBatch
from training.recipe.loading import load_recipe
from training.run import train
from training.trainer import Stopped

SHARE = 0.25


@pytest.mark.parametrize("stops", [[1], [16, 3], [5, 20, 17]])
def test_a_resumed_run_ends_with_the_same_weights_bit_for_bit(
    small: Dataset, finished: Path, tmp_path: Path, stops: list[int]
) -> None:
    """If it fails, a resumed run loses optimizer state, or draws other batches or dropout."""
    folder = tmp_path / "run"
    for steps in stops:
        with pytest.raises(Stopped):
            train(small, small_recipe(), folder, RecordingCallback(), should_stop=stop_after(steps))
    train(small, small_recipe(), folder, RecordingCallback())
    assert weights_hash(folder) == weights_hash(finished)
    assert measured(folder) == measured(finished)


def test_rows_in_bfloat16_resume_bit_for_bit(small: Dataset, tmp_path: Path) -> None:
    """If it fails, stochastic rounding draws other numbers after a stop, or the state changes its dtype."""
    recipe = small_recipe("optimizer.classifier_rows=bfloat16", "optimizer.epochs=2")
    train(small, recipe, tmp_path / "whole", RecordingCallback())
    with pytest.raises(Stopped):
        train(small, recipe, tmp_path / "stopped", RecordingCallback(), should_stop=stop_after(7))
    train(small, recipe, tmp_path / "stopped", RecordingCallback())
    assert weights_hash(tmp_path / "stopped") == weights_hash(tmp_path / "whole")


@pytest.fixture
def recorded() -> tuple[list[set[int]], type[BatchSource]]:
    """A list for the rows of each batch, and a batch source that records them."""
    rows: list[set[int]] = []

    class RecordingSource(BatchSource):
        def device_batch(self, epoch: int, step: int, query_Q: np.ndarray) -> DeviceBatch | CascadeBatch:
            rows.append(set(query_Q.tolist()))
            return super().device_batch(epoch, step, query_Q)

    return rows, RecordingSource


@pytest.mark.parametrize("clustered", ["true", "false"])
def test_a_resumed_run_draws_the_same_label_queries(
    small: Dataset, tmp_path: Path, recorded: tuple[list[set[int]], type[BatchSource]], clustered: str
) -> None:
    """If it fails, a resumed run draws other label texts, or ones without hard negatives."""
    recipe = small_recipe(
        "optimizer.epochs=3", f"batching.label_queries.share={SHARE}", f"batching.clustered={clustered}"
    )
    rows, source = recorded
    train(small, recipe, tmp_path / "whole", RecordingCallback(), source_type=source)
    whole, queries = list(rows), set(range(len(small.split("train"))))
    steps = len(whole) // 3
    epochs = [set.union(*whole[at : at + steps]) for at in range(0, len(whole), steps)]
    assert all(queries < epoch for epoch in epochs)
    drawn = [epoch - queries for epoch in epochs]
    assert [len(epoch) for epoch in drawn] == [round(SHARE * len(queries))] * 3
    assert drawn[0] == drawn[1] != drawn[2]  # the third epoch begins with a refresh
    rows.clear()
    for more in (3, steps, steps):  # stops in the first, the second and the third epoch
        with pytest.raises(Stopped):
            train(
                small, recipe, tmp_path / "parts", RecordingCallback(),
                should_stop=stop_after(more), source_type=source,
            )  # fmt: skip
    train(small, recipe, tmp_path / "parts", RecordingCallback(), source_type=source)
    assert rows == whole
    assert weights_hash(tmp_path / "parts") == weights_hash(tmp_path / "whole")


def test_a_killed_run_resumes_from_its_last_saved_state(small: Dataset, finished: Path, tmp_path: Path) -> None:
    """If it fails, a crash between two saves changes the result or breaks the folder."""
    folder = tmp_path / "run"
    with pytest.raises(Stopped):
        train(small, small_recipe(), folder, RecordingCallback(), should_stop=stop_after(18))

    class Crash(Exception):
        pass

    def crash() -> bool:
        raise Crash

    with pytest.raises(Crash):
        train(small, small_recipe(), folder, RecordingCallback(), should_stop=crash)
    (folder / ".state.safetensors.partial").write_bytes(b"half a file")
    train(small, small_recipe(), folder, RecordingCallback())
    assert weights_hash(folder) == weights_hash(finished)


def test_another_seed_ends_with_other_weights(small: Dataset, finished: Path, tmp_path: Path) -> None:
    """If it fails, the bit-for-bit tests pass for a trainer that does nothing."""
    train(small, small_recipe("seed=1"), tmp_path / "run", RecordingCallback())
    assert weights_hash(tmp_path / "run") != weights_hash(finished)


def test_ctrl_c_saves_and_the_same_command_resumes(
    dataset_folder: Path, small: Dataset, finished: Path, tmp_path: Path
) -> None:
    """If it fails, an interrupted `diptych train` loses its work or ends in a traceback."""
    command = [sys.executable, "-m", "diptych", "train", "--dataset", str(small.folder), "--out", str(tmp_path / "run")]
    command += [part for override in SMALL for part in ("--set", override)]
    with running(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE) as first:
        # signal handlers are installed before this file is written
        wait_for_file(tmp_path / "run" / "tokens" / "labels.offsets.npy", first)
        first.send_signal(signal.SIGINT)
        _, told = first.communicate(timeout=120)
    assert first.returncode == 130, told
    assert "Stopped and saved in" in told
    assert "Traceback" not in told
    again = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0, again.stderr
    assert "dual encoder" in again.stdout
    assert weights_hash(tmp_path / "run") == weights_hash(finished)


def test_a_finished_run_is_left_as_it_is(small: Dataset, finished: Path) -> None:
    """If it fails, repeating the command trains again or changes a finished checkpoint."""
    before, callback = weights_hash(finished), RecordingCallback()
    train(small, small_recipe(), finished, callback)
    assert callback.steps == []
    assert weights_hash(finished) == before


def test_another_run_in_the_same_folder_is_refused_and_restart_begins_anew(
    small: Dataset, finished: Path, tmp_path: Path
) -> None:
    """If it fails, a checkpoint is overwritten or mixed with another recipe's."""
    with pytest.raises(CheckpointError, match=r"another recipe \(optimizer.epochs: 4 → 2\).*--restart"):
        train(small, small_recipe("optimizer.epochs=2"), finished, RecordingCallback())
    run = tmp_path / "run"
    train(small, small_recipe("optimizer.epochs=1"), run, RecordingCallback())
    (run / "notes.txt").write_text("mine")
    train(small, small_recipe("optimizer.epochs=2"), run, RecordingCallback(), restart=True)
    assert read_facts(run).recipe.optimizer.epochs == 2
    assert (run / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("also", [{}, {"run.json": '{"wandb": 1}'}], ids=["a file", "another program's run.json"])
def test_a_folder_without_a_run_is_not_changed(small: Dataset, tmp_path: Path, also: dict[str, str]) -> None:
    """If it fails, a mistyped --out with --restart deletes unrelated files."""
    files = {"thesis.txt": "not yours", **also}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(CheckpointError, match="new folder"):
        train(small, small_recipe(), tmp_path, RecordingCallback(), restart=True)
    assert {name: (tmp_path / name).read_text() for name in files} == files


def test_a_run_that_failed_to_start_does_not_block_its_folder(small: Dataset, tmp_path: Path) -> None:
    """If it fails, correcting a mistyped model name needs another --out."""
    wrong = f"encoder={{kind: transformer, model: '{tmp_path / 'nowhere'}'}}"
    with pytest.raises(RecipeError, match="there is no such folder"):
        train(small, load_recipe("default", [wrong]), tmp_path / "run", RecordingCallback())
    train(small, small_recipe("optimizer.epochs=1"), tmp_path / "run", RecordingCallback())
    assert read_facts(tmp_path / "run").recipe.encoder.kind == "static"


def test_two_runs_cannot_share_a_folder(small: Dataset, tmp_path: Path) -> None:
    """If it fails, two overlapping runs mix their files."""
    refused: list[str] = []

    def start_another() -> bool:
        if not refused:
            with pytest.raises(CheckpointError) as caught:
                train(small, small_recipe(), tmp_path / "run", RecordingCallback())
            refused.append(str(caught.value))
        return False

    train(small, small_recipe("optimizer.epochs=1"), tmp_path / "run", RecordingCallback(), should_stop=start_another)
    assert "another process is training" in refused[0]
