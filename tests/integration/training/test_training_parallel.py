"""Distributed runs of two and four processes, started by `torchrun`, over gloo."""

import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file

from retrieval.errors import RecipeError
from tests.support.listener import RecordingCallback
from tests.support.processes import running, wait_for_file
from tests.support.training.cascade_run import cascade_dataset, cascade_recipe
from tests.support.training.pretrained import save_tiny_bert
from tests.support.training.small_run import SMALL, measured, small_recipe
from training.checkpoint.files import read_facts
from training.data.dataset import Dataset, DatasetMeta, SplitName
from training.optim.distributed import Processes
from training.prepare.writing import write_dataset
from training.run import train

NO_DROPOUT = ["heads.dual_encoder.dropout=0", "heads.classifier.dropout=0"]
STATIC = "encoder={kind: static, dim: 32, vocabulary_size: 3000, pair_dropout: 0}"
# In bfloat16 a text's vector depends on its batch, so a second mining could rank near ties differently.
SHORT = ["optimizer.epochs=2", "batching.refresh_epochs=2", "precision=float32"]


def started(module: str, *arguments: str | Path, processes: int = 2) -> AbstractContextManager["subprocess.Popen[str]"]:
    """Run `module` in several processes, on one thread each."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [*launcher, "-m", module, *arguments]
    return running(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def parallel_run(
    dataset: Dataset, folder: Path, *overrides: str, processes: int = 2, steps: int = 0, recipe: str | Path = "small"
) -> list[dict[str, Any]]:
    """Train in several processes into `folder`/run, up to `steps` steps (0: all); return the report of each."""
    folder.mkdir(exist_ok=True)
    arguments = [dataset.folder.resolve(), folder / "run", folder, recipe, str(steps), *overrides]
    with started("tests.support.programs.parallel_run", *arguments, processes=processes) as group:
        told, _ = group.communicate(timeout=300)
    assert group.returncode == 0, told
    return [json.loads((folder / f"{rank}.json").read_text("utf-8")) for rank in range(processes)]


@pytest.fixture
def transformer(small: Dataset, tmp_path: Path) -> str:
    """A recipe override for a tiny transformer without dropout."""
    words = sorted({word for text in small.split("train").texts + small.label_texts for word in text.split()})
    folder = save_tiny_bert(tmp_path / "tiny", words)
    remove_dropout(folder)
    return f"encoder={{kind: transformer, model: '{folder}'}}"


def remove_dropout(transformer: Path) -> None:
    """Set the dropout of a saved transformer to 0: each process would draw its own."""
    path = transformer / "config.json"
    config = json.loads(path.read_text()) | {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    path.write_text(json.dumps(config))


@pytest.mark.parametrize(("kind", "chunk"), [("static", "null"), ("transformer", "null"), ("transformer", "50")])
def test_two_processes_train_like_one(
    small: Dataset, tmp_path: Path, request: pytest.FixtureRequest, kind: str, chunk: str
) -> None:
    """If it fails, a run on two GPUs uses other batches, or loses or doubles gradients."""
    encoder = STATIC if kind == "static" else request.getfixturevalue("transformer")
    recipe = [*NO_DROPOUT, *SHORT, encoder, f"batching.grad_cache_chunk={chunk}"]
    both, alone = parallel_run(small, tmp_path / "two", *recipe), RecordingCallback()
    train(small, small_recipe(*recipe), tmp_path / "one", alone)
    assert len(alone.steps) > 10
    for told in both:
        assert told["losses"] == pytest.approx([step.loss for step in alone.steps], rel=1e-3)
    one, two = (measured(tmp_path / run)[-1]["metrics"]["unified"] for run in ("one", "two/run"))
    assert two["P@5"] == pytest.approx(one["P@5"], abs=0.5)


def test_two_processes_draw_the_same_clicks(small: Dataset, tmp_path: Path) -> None:
    """If it fails, two processes sample other positives or exposures than one, or than each other."""
    split = small.split("train")
    weight_V = np.random.default_rng(0).pareto(1.0, len(split.labels.values)).astype(np.float32) + 0.1
    tables: dict[SplitName, pa.Table] = {"train": split.table(), "validation": small.split("validation").table()}
    tables["train"] = tables["train"].append_column("weights", split.labels.to_arrow(weight_V))
    row = pa.array(np.arange(len(split)), pa.int32())
    shown = {"split": ["train"] * len(row), "query": split.texts, "row": row, "label": row}
    exposures = pa.table(shown | {"impressions": [1] * len(row)})
    dataset = write_dataset(
        tmp_path / "dataset", small.label_table, tables, DatasetMeta(name="clicks"), exposures=exposures
    )
    clicks = ["clicks.sampling=1", "clicks.loss=1", "clicks.exposed_negatives=2", "batching.positives=2"]
    recipe = [*NO_DROPOUT, *SHORT, STATIC, *clicks]
    both, single = parallel_run(dataset, tmp_path / "two", *recipe), RecordingCallback()
    train(dataset, small_recipe(*recipe), tmp_path / "one", single)
    for process in both:
        assert process["losses"] == pytest.approx([step.loss for step in single.steps], rel=1e-3)


def test_two_processes_have_the_same_weights(small: Dataset, tmp_path: Path) -> None:
    """If it fails, the processes draw different dropout for heads or rows, and their weights diverge."""
    overrides = ["batching.refresh_epochs=1", "optimizer.epochs=2", "optimizer.classifier_rows=bfloat16"]
    one, two = parallel_run(small, tmp_path / "two", *overrides)
    assert one["losses"] == two["losses"]
    assert one["weights"] == two["weights"]


def test_each_process_holds_its_share_of_the_rows_and_all_write_the_same_file(small: Dataset, tmp_path: Path) -> None:
    """If it fails, ψ of 450 million labels does not fit, or a file depends on the number of processes."""
    recipe = [*NO_DROPOUT, *SHORT, STATIC, "heads.label_rows=text"]
    four, single = parallel_run(small, tmp_path / "four", *recipe, processes=4), RecordingCallback()
    train(small, small_recipe(*recipe), tmp_path / "one", single)
    assert [process["label_rows"] for process in four] == [len(range(rank, small.n_labels, 4)) for rank in range(4)]
    for process in four:
        assert process["losses"] == pytest.approx([step.loss for step in single.steps], rel=1e-3)
    for file in ("state.safetensors", "model.safetensors"):
        one, other = load_file(tmp_path / "one" / file), load_file(tmp_path / "four/run" / file)
        assert {name: (each.shape, each.dtype) for name, each in one.items()} == {
            name: (each.shape, each.dtype) for name, each in other.items()
        }
        for name in ("model.classifier.weight", "average.classifier.weight", "classifier.weight"):
            if name in one:
                assert one[name].abs().max() > 0
                assert (one[name] - other[name]).abs().max() < 1e-2 * one[name].abs().max()
    assert torch.equal(*(load_file(tmp_path / run / "model.safetensors")["trained"] for run in ("one", "four/run")))


def test_four_processes_stop_two_continue_and_one_ends_like_one(small: Dataset, tmp_path: Path) -> None:
    """If it fails, a run cannot continue on fewer machines, or loses rows or their optimizer state."""
    recipe, losses = [*NO_DROPOUT, *SHORT, STATIC], []
    for processes, steps in ((4, 7), (2, 14)):
        losses += parallel_run(small, tmp_path / "run", *recipe, processes=processes, steps=steps)[0]["losses"]
    assert len(losses) == 7 + 14
    rest, single = RecordingCallback(), RecordingCallback()
    train(small, small_recipe(*recipe), tmp_path / "run/run", rest)
    train(small, small_recipe(*recipe), tmp_path / "one", single)
    losses += [step.loss for step in rest.steps]
    assert losses == pytest.approx([step.loss for step in single.steps], rel=1e-3)


def test_a_cascade_trains_in_two_processes_like_in_one(tmp_path: Path) -> None:
    """If it fails, the processes of a cascade gather other labels than each other, or lose their rows."""
    dataset, single = cascade_dataset(tmp_path), RecordingCallback()
    exact = ["precision=float32", "optimizer.epochs=2", "cascade.dropout=[0, 0, 0]"]
    recipe = cascade_recipe(tmp_path, *exact)  # writes the transformer too
    remove_dropout(tmp_path / "bert")
    two = parallel_run(dataset, tmp_path / "two", *exact, recipe=tmp_path, steps=6)
    train(dataset, recipe, tmp_path / "one", single)
    assert [process["label_rows"] for process in two] == [(dataset.n_labels + 1) // 2, dataset.n_labels // 2]
    rest = RecordingCallback()
    train(dataset, recipe, tmp_path / "two/run", rest)
    assert two[0]["losses"] == two[1]["losses"]
    losses = two[0]["losses"] + [step.loss for step in rest.steps]
    assert losses == pytest.approx([step.loss for step in single.steps], rel=1e-2)  # near ties change a shortlist
    assert [record.epoch for record in read_facts(tmp_path / "two/run").history] == [1, 2]


def test_two_processes_stop_and_one_resumes(small: Dataset, tmp_path: Path) -> None:
    """If it fails, stopping a distributed run loses it, or some processes hang."""
    arguments = ["train", "--dataset", str(small.folder.resolve()), "--out", str(tmp_path / "run")]
    arguments += [part for override in [*SMALL, "optimizer.epochs=12"] for part in ("--set", override)]
    with started("diptych", *arguments) as two:
        wait_for_file(tmp_path / "run" / "model.safetensors", two)
        two.send_signal(signal.SIGTERM)
        told, _ = two.communicate(timeout=120)
    assert "Stopped and saved in" in told
    again = subprocess.run([sys.executable, "-m", "diptych", *arguments], capture_output=True, text=True, timeout=300)
    assert again.returncode == 0, again.stderr
    assert [record.epoch for record in read_facts(tmp_path / "run").history] == list(range(1, 13))


@pytest.mark.parametrize(
    "stage", ["training.evaluation.validator:select", "training.batching.batch_source:mine_hard_negatives"]
)
def test_two_processes_stop_while_one_validates_or_both_mine(small: Dataset, tmp_path: Path, stage: str) -> None:
    """If it fails, a distributed run continues after SIGTERM until validation or mining ends, or loses its state."""
    arguments = ["train", "--dataset", str(small.folder.resolve()), "--out", str(tmp_path / "run")]
    arguments += [part for override in [*SMALL, "optimizer.epochs=2"] for part in ("--set", override)]
    with started("tests.support.programs.stopped_at", stage, "python", *arguments) as two:
        assert two.stdout is not None
        assert any("reached" in line for line in two.stdout), f"the run never came to {stage}"
        two.send_signal(signal.SIGTERM)
        told, _ = two.communicate(timeout=120)
    assert "Stopped and saved in" in told
    assert "has ended" not in told
    again = subprocess.run([sys.executable, "-m", "diptych", *arguments], capture_output=True, text=True, timeout=300)
    assert again.returncode == 0, again.stderr
    assert [record.epoch for record in read_facts(tmp_path / "run").history] == [1, 2]


def test_a_process_reports_that_another_has_ended(small: Dataset, tmp_path: Path) -> None:
    """If it fails, the processes wait for hours after one has died, or end in a traceback."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-m", "diptych", "train", "--dataset", str(small.folder), "--out", str(tmp_path / "run")]
    command += [part for override in [*SMALL, "optimizer.epochs=200"] for part in ("--set", override)]
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    with (
        running(command, env=os.environ | group | {"RANK": "0"}, stderr=subprocess.PIPE) as first,
        running(command, env=os.environ | group | {"RANK": "1"}, stderr=subprocess.PIPE) as second,
    ):
        wait_for_file(tmp_path / "run" / "model.safetensors", first)
        second.kill()
        second.communicate()
        _, told = first.communicate(timeout=120)
    assert first.returncode == 1
    assert "another process of this run has ended" in told
    assert "Traceback" not in told


def test_too_many_processes_for_the_batch_size_are_refused(small: Dataset, tmp_path: Path) -> None:
    """If it fails, a process without texts ends the run with a traceback."""
    with pytest.raises(RecipeError, match=r"3 processes cannot share batches of 4 queries.*to 6"):
        train(
            small,
            small_recipe("batching.batch_size=4"),
            tmp_path / "run",
            RecordingCallback(),
            processes=Processes(0, 3),
        )
