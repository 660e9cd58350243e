"""Runs that stop, go on, are left alone or refused."""

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from retrieval.errors import CheckpointError, RecipeError
from tests.support.listener import Kept
from tests.support.processes import running, wait_for_file
from tests.support.small_run import SMALL, measured, small_recipe, stop_after, weights_hash
from training.batching.batches import Batch, make_batch
from training.checkpoint.files import read_facts
from training.data.dataset import Dataset
from training.recipe.loading import load_recipe
from training.run import train
from training.trainer import Stopped

SHARE = 0.25


@pytest.mark.parametrize("stops", [[1], [16, 3], [5, 20, 17]])
def test_a_resumed_run_ends_with_the_same_weights_bit_for_bit(
    small: Dataset, finished: Path, tmp_path: Path, stops: list[int]
) -> None:
    """If this failed, an interrupted run would end elsewhere: lost optimiser state, other batches, other dropout."""
    folder = tmp_path / "run"
    for steps in stops:
        with pytest.raises(Stopped):
            train(small, small_recipe(), folder, Kept(), should_stop=stop_after(steps))
    train(small, small_recipe(), folder, Kept())
    assert weights_hash(folder) == weights_hash(finished)
    assert measured(folder) == measured(finished)


def test_rows_in_bfloat16_resume_bit_for_bit(small: Dataset, tmp_path: Path) -> None:
    """If this failed, rounding at random would draw other numbers after a stop, or the state would lose its format."""
    recipe = small_recipe("optimizer.classifier_rows=bfloat16", "optimizer.epochs=2")
    train(small, recipe, tmp_path / "whole", Kept())
    with pytest.raises(Stopped):
        train(small, recipe, tmp_path / "stopped", Kept(), should_stop=stop_after(7))
    train(small, recipe, tmp_path / "stopped", Kept())
    assert weights_hash(tmp_path / "stopped") == weights_hash(tmp_path / "whole")


@pytest.fixture
def learned(monkeypatch: pytest.MonkeyPatch) -> list[set[int]]:
    """The rows of each batch that is made from here on."""
    rows: list[set[int]] = []

    def noted(query_Q: np.ndarray, *rest: Any) -> Batch:
        rows.append(set(query_Q.tolist()))
        return make_batch(query_Q, *rest)

    monkeypatch.setattr("training.trainer.make_batch", noted)
    return rows


@pytest.mark.parametrize("clustered", ["true", "false"])
def test_a_resumed_run_learns_from_the_same_label_queries(
    small: Dataset, tmp_path: Path, learned: list[set[int]], clustered: str
) -> None:
    """If this failed, an interrupted run would draw other label texts, or ones that no negatives were mined for."""
    recipe = small_recipe(
        "optimizer.epochs=3", f"batching.label_queries.share={SHARE}", f"batching.clustered={clustered}"
    )
    train(small, recipe, tmp_path / "whole", Kept())
    whole, queries = list(learned), set(range(len(small.split("train"))))
    steps = len(whole) // 3
    epochs = [set.union(*whole[at : at + steps]) for at in range(0, len(whole), steps)]
    assert all(queries < rows for rows in epochs)
    drawn = [rows - queries for rows in epochs]
    assert [len(rows) for rows in drawn] == [round(SHARE * len(queries))] * 3
    assert drawn[0] == drawn[1] != drawn[2]  # the third epoch mines and clusters anew
    learned.clear()
    for more in (3, steps, steps):  # stops in the first, the second and the third epoch
        with pytest.raises(Stopped):
            train(small, recipe, tmp_path / "parts", Kept(), should_stop=stop_after(more))
    train(small, recipe, tmp_path / "parts", Kept())
    assert learned == whole
    assert weights_hash(tmp_path / "parts") == weights_hash(tmp_path / "whole")


def test_a_killed_run_goes_on_from_its_last_saved_state(small: Dataset, finished: Path, tmp_path: Path) -> None:
    """If this failed, a crash between two saves would change the result or leave a folder that cannot go on."""
    folder = tmp_path / "run"
    with pytest.raises(Stopped):
        train(small, small_recipe(), folder, Kept(), should_stop=stop_after(18))

    class Crash(Exception):
        pass

    def crash() -> bool:
        raise Crash

    with pytest.raises(Crash):
        train(small, small_recipe(), folder, Kept(), should_stop=crash)
    (folder / ".state.safetensors.partial").write_bytes(b"half a file")
    train(small, small_recipe(), folder, Kept())
    assert weights_hash(folder) == weights_hash(finished)


def test_another_seed_ends_with_other_weights(small: Dataset, finished: Path, tmp_path: Path) -> None:
    """If this failed, the bit-for-bit tests would pass for a trainer that does nothing."""
    train(small, small_recipe("seed=1"), tmp_path / "run", Kept())
    assert weights_hash(tmp_path / "run") != weights_hash(finished)


def test_ctrl_c_saves_and_the_same_command_goes_on(
    dataset_folder: Path, small: Dataset, finished: Path, tmp_path: Path
) -> None:
    """If this failed, an interrupted `diptych train` would lose its work or end in a traceback."""
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
    """If this failed, repeating the command would train again or change a finished checkpoint."""
    before, kept = weights_hash(finished), Kept()
    train(small, small_recipe(), finished, kept)
    assert kept.steps == []
    assert weights_hash(finished) == before


def test_another_run_in_the_same_folder_is_refused_and_restart_begins_anew(
    small: Dataset, finished: Path, tmp_path: Path
) -> None:
    """If this failed, a checkpoint could be overwritten or mixed with another recipe's."""
    with pytest.raises(CheckpointError, match=r"another recipe \(optimizer.epochs: 4 → 2\).*--restart"):
        train(small, small_recipe("optimizer.epochs=2"), finished, Kept())
    run = tmp_path / "run"
    train(small, small_recipe("optimizer.epochs=1"), run, Kept())
    (run / "notes.txt").write_text("mine")
    train(small, small_recipe("optimizer.epochs=2"), run, Kept(), restart=True)
    assert read_facts(run).recipe.optimizer.epochs == 2
    assert (run / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("also", [{}, {"run.json": '{"wandb": 1}'}], ids=["a file", "another program's run.json"])
def test_a_folder_that_is_not_ours_keeps_everything(small: Dataset, tmp_path: Path, also: dict[str, str]) -> None:
    """If this failed, a mistyped --out with --restart would delete somebody's work."""
    files = {"thesis.txt": "not yours", **also}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(CheckpointError, match="new folder"):
        train(small, small_recipe(), tmp_path, Kept(), restart=True)
    assert {name: (tmp_path / name).read_text() for name in files} == files


def test_a_run_that_never_began_does_not_hold_its_folder(small: Dataset, tmp_path: Path) -> None:
    """If this failed, correcting a mistyped model name would need another --out."""
    wrong = f"encoder={{kind: transformer, model: '{tmp_path / 'nowhere'}'}}"
    with pytest.raises(RecipeError, match="there is no such folder"):
        train(small, load_recipe("default", [wrong]), tmp_path / "run", Kept())
    train(small, small_recipe("optimizer.epochs=1"), tmp_path / "run", Kept())
    assert read_facts(tmp_path / "run").recipe.encoder.kind == "static"


def test_two_runs_cannot_share_a_folder(small: Dataset, tmp_path: Path) -> None:
    """If this failed, a retraining that overlaps the last one would mix two runs' files."""
    refused: list[str] = []

    def start_another() -> bool:
        if not refused:
            with pytest.raises(CheckpointError) as caught:
                train(small, small_recipe(), tmp_path / "run", Kept())
            refused.append(str(caught.value))
        return False

    train(small, small_recipe("optimizer.epochs=1"), tmp_path / "run", Kept(), should_stop=start_another)
    assert "another process is training" in refused[0]
