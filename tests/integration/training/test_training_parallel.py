"""Distributed runs of two processes, started by `torchrun`, over gloo."""

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

from retrieval.errors import RecipeError
from tests.support.listener import RecordingCallback
from tests.support.processes import running, wait_for_file
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


def started(module: str, *arguments: str | Path) -> AbstractContextManager["subprocess.Popen[str]"]:
    """Run `module` in two processes, on one thread each."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", module, *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return running(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def run_of_two(dataset: Dataset, folder: Path, *overrides: str) -> list[dict[str, Any]]:
    """Train in two processes; return the losses and the hash of the weights of each."""
    folder.mkdir()
    with started(
        "tests.support.programs.parallel_run", dataset.folder.resolve(), folder / "run", folder, *overrides
    ) as two:
        told, _ = two.communicate(timeout=300)
    assert two.returncode == 0, told
    return [json.loads((folder / f"{rank}.json").read_text("utf-8")) for rank in range(2)]


@pytest.fixture
def transformer(small: Dataset, tmp_path: Path) -> str:
    """A recipe override for a tiny transformer without dropout."""
    words = sorted({word for text in small.split("train").texts + small.label_texts for word in text.split()})
    folder = save_tiny_bert(tmp_path / "tiny", words)
    config = json.loads((folder / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (folder / "config.json").write_text(json.dumps(config))
    return f"encoder={{kind: transformer, model: '{folder}'}}"


@pytest.mark.parametrize(("kind", "chunk"), [("static", "null"), ("transformer", "null"), ("transformer", "50")])
def test_two_processes_train_like_one(
    small: Dataset, tmp_path: Path, request: pytest.FixtureRequest, kind: str, chunk: str
) -> None:
    """If it fails, a run on two GPUs uses other batches, or loses or doubles gradients."""
    encoder = STATIC if kind == "static" else request.getfixturevalue("transformer")
    recipe = [*NO_DROPOUT, *SHORT, encoder, f"batching.grad_cache_chunk={chunk}"]
    both, alone = run_of_two(small, tmp_path / "two", *recipe), RecordingCallback()
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
    both, single = run_of_two(dataset, tmp_path / "two", *recipe), RecordingCallback()
    train(dataset, small_recipe(*recipe), tmp_path / "one", single)
    for process in both:
        assert process["losses"] == pytest.approx([step.loss for step in single.steps], rel=1e-3)


def test_two_processes_have_the_same_weights(small: Dataset, tmp_path: Path) -> None:
    """If it fails, the processes draw different dropout for heads or rows, and their weights diverge."""
    overrides = ["batching.refresh_epochs=1", "optimizer.epochs=2", "optimizer.classifier_rows=bfloat16"]
    one, two = run_of_two(small, tmp_path / "two", *overrides)
    assert one["losses"] == two["losses"]
    assert one["weights"] == two["weights"]


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


def test_two_processes_stop_while_one_validates(small: Dataset, tmp_path: Path) -> None:
    """If it fails, a distributed run continues after SIGTERM until validation ends."""
    arguments = ["train", "--dataset", str(small.folder.resolve()), "--out", str(tmp_path / "run")]
    arguments += [part for override in [*SMALL, "optimizer.epochs=2"] for part in ("--set", override)]
    with started(
        "tests.support.programs.stopped_at", "training.evaluation.validator:Validator.validate", "python", *arguments
    ) as two:
        assert two.stdout is not None
        assert any("reached" in line for line in two.stdout), "the run never validated"
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
