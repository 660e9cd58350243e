"""The files of a run are consistent: after kills at any moment, and after a file was damaged or replaced."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from retrieval.errors import CheckpointError
from tests.support.listener import RecordingCallback
from tests.support.training.checkpoints import write_words
from tests.support.training.small_run import stop_after
from training.checkpoint.files import read_facts, read_record
from training.checkpoint.opened import load_checkpoint
from training.checkpoint.schema import STATE, WEIGHTS
from training.checkpoint.tensor_file import read_tensors, write_tensors
from training.data.dataset import Dataset
from training.recipe.loading import load_recipe
from training.recipe.schema import Recipe
from training.run import train
from training.trainer import Stopped

ROOT = Path(__file__).parents[3]
SMALL = [
    "optimizer.epochs=3",
    "validation.every_epochs=1",
    "encoder.dim=32",
    "encoder.vocabulary_size=64",
    "batching.batch_size=64",
    "batching.clustered=true",
    "batching.hard_negatives=1",
    "batching.refresh_epochs=3",
]
Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return write_words(tmp_path_factory.mktemp("words") / "dataset")


def recipe() -> Recipe:
    return load_recipe("default", SMALL)


@pytest.fixture(scope="module")
def begun_once(words: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped, and saved, in its second epoch."""
    folder = tmp_path_factory.mktemp("begun") / "run"
    with pytest.raises(Stopped):
        train(words, recipe(), folder, RecordingCallback(), should_stop=stop_after(9))
    return folder


@pytest.fixture
def begun(begun_once: Path, tmp_path: Path) -> Path:
    return shutil.copytree(begun_once, tmp_path / "run")


@pytest.fixture(scope="module")
def whole(words: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    train(words, recipe(), folder, RecordingCallback())
    return folder


def test_weights_and_record_agree_after_kills_at_any_moment(tmp_path: Path) -> None:
    """If it fails, a killed run reports metrics of other weights, or cannot resume."""
    command = [sys.executable, "-m", "tests.support.programs.train_kill_runner", "4", "1", str(tmp_path)]
    # One thread: sums of several threads may differ in their last bits on a busy machine.
    environment = os.environ | dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, ended.stderr
    *kills, last = [json.loads(line) for line in ended.stdout.splitlines()]
    assert len(kills) == 4
    assert any(kill["weights"] for kill in kills), "no kill came after the first best epoch"
    assert last == {"differences": [], "best": True}


def test_better_weights_than_the_saved_state_records_are_the_best(
    words: Dataset, begun: Path, whole: Path, tmp_path: Path
) -> None:
    """If it fails, a kill between the two writes combines the metrics of one epoch with the weights of another."""
    tensors, facts = read_tensors(begun / WEIGHTS)
    record = facts["record"] | {"score": 1e9, "epoch": 2}  # an epoch that the run will not reach as well again
    write_tensors(begun / WEIGHTS, tensors, {"record": record})
    train(words, recipe(), begun, RecordingCallback())
    assert read_facts(begun).best.score == 1e9
    assert read_record(begun / WEIGHTS) == read_facts(begun).best
    assert load_checkpoint(begun).facts.best.epoch == 2


def test_a_run_that_lost_its_best_weights_is_refused(words: Dataset, begun: Path) -> None:
    """If it fails, a run ends with worse weights than it had, without an error."""
    tensors, facts = read_tensors(begun / WEIGHTS)
    write_tensors(begun / WEIGHTS, tensors, {"record": facts["record"] | {"score": -1.0, "epoch": 7}})
    with pytest.raises(
        CheckpointError, match=r"has the weights of epoch 7, but .* those of epoch 1 are the best.*--restart"
    ):
        train(words, recipe(), begun, RecordingCallback())
    (begun / WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match=r"the best weights \(epoch 1\), is missing\..*--restart"):
        train(words, recipe(), begun, RecordingCallback())
    train(words, recipe(), begun, RecordingCallback(), restart=True)


def test_a_checkpoint_with_the_weights_of_another_epoch_is_refused(whole: Path, tmp_path: Path) -> None:
    """If it fails, an export has weights whose metrics were never measured."""
    mixed = shutil.copytree(whole, tmp_path / "mixed")
    tensors, facts = read_tensors(mixed / WEIGHTS)
    write_tensors(mixed / WEIGHTS, tensors, {"record": facts["record"] | {"epoch": 77}})
    with pytest.raises(CheckpointError, match=r"has the weights of epoch 77, but checkpoint.json describes epoch"):
        load_checkpoint(mixed)


def _without(part: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if part not in name}


def _changed(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Tensors], Tensors]:
    return lambda tensors: tensors | {name: change(tensors[name])}


MOMENT = "dense.dual_head.linear.weight.exp_avg"


@pytest.mark.parametrize("listed", [True, False])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_without("dense."), "has no optimizer state after 9 steps"),
        (_without(MOMENT), r"optimizer state .dual_head\.linear\.weight\.exp_avg. is missing"),
        (_without(".second_moment"), "second_moment"),
        (_without(".steps"), "steps"),
        (_without("clusters."), "has no clusters"),
        (_without("hard_negatives"), "has no hard negatives"),
        (_without("model.dual_head.linear.weight"), "missing tensors"),
    ],
)
def test_a_state_with_a_missing_part_is_refused(
    words: Dataset, begun: Path, change: Callable[[Tensors], Tensors], said: str, listed: bool
) -> None:
    """If it fails, a run resumes with part of its state and ends with other weights, without an error."""
    tensors, facts = read_tensors(begun / STATE)
    changed = change(tensors)
    if not listed:
        facts["tensors"] = sorted(changed)
    write_tensors(begun / STATE, changed, facts)
    with pytest.raises(CheckpointError, match=r"lacks .* of its tensors, the first is" if listed else said) as refused:
        train(words, recipe(), begun, RecordingCallback())
    assert str(begun / STATE) in str(refused.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            _changed(MOMENT, lambda moment: moment[:1]),
            r"'dual_head.linear.weight.exp_avg' has the shape \[1, 32\], not",
        ),
        (_changed("dense.dual_head.linear.weight.step", lambda step: step.repeat(2)), r"has the shape \[2\], not \[\]"),
        (lambda tensors: tensors | {"dense.other.step": torch.tensor(1.0)}, "'other.step' belongs to no parameter"),
        (_changed("clusters.values", lambda rows: rows + 1_000_000), "clusters of other training queries"),
        (_changed("clusters.offsets", lambda offsets: offsets.flip(0)), "clusters of other training queries"),
        (_changed("hard_negatives", lambda rows: rows + 1_000_000), "hard negatives of other training queries"),
        (_changed("hard_negatives", lambda rows: rows[:5]), "hard negatives of other training queries"),
    ],
)
def test_a_state_that_does_not_fit_is_refused(
    words: Dataset, begun: Path, change: Callable[[Tensors], Tensors], said: str
) -> None:
    """If it fails, a state of another run ends in a traceback, or trains on rows that do not exist."""
    tensors, facts = read_tensors(begun / STATE)
    write_tensors(begun / STATE, {name: one.contiguous() for name, one in change(tensors).items()}, facts)
    with pytest.raises(CheckpointError, match=said):
        train(words, recipe(), begun, RecordingCallback())


def test_a_restart_that_was_killed_can_be_repeated(
    words: Dataset, begun: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it fails, a kill during --restart leaves an unusable folder."""
    removed: list[Path] = []
    unlink = Path.unlink

    class Killed(BaseException):
        pass

    def killed(path: Path, **how: Any) -> None:
        unlink(path, **how)
        removed.append(path)
        if len(removed) == 2:
            raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", killed)
        with pytest.raises(Killed):
            train(words, recipe(), begun, RecordingCallback(), restart=True)
    train(words, recipe(), begun, RecordingCallback())


def test_a_checkpoint_of_files_of_two_runs_is_refused(whole: Path, tmp_path: Path) -> None:
    """If it fails, an export gives labels the vectors of others, or ends in a traceback."""
    mixed = shutil.copytree(whole, tmp_path / "mixed")
    pq.write_table(pq.read_table(mixed / "labels.parquet").slice(0, 299), mixed / "labels.parquet")
    with pytest.raises(CheckpointError, match=r"labels.parquet has 299 labels, checkpoint.json 300"):
        load_checkpoint(mixed)
