"""Training runs on a small real dataset: learning, stopping, going on, refusing."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file

from retrieval.errors import CheckpointError, RecipeError
from tests.support.listener import Kept
from tests.support.pretrained import save_tiny_bert
from training.batches import Batch, make_batch
from training.checkpoint import load_checkpoint, read_facts
from training.data.dataset import Dataset, DatasetMeta
from training.data.writing import write_dataset
from training.measure import measure
from training.recipe import Recipe, load_recipe
from training.run import train
from training.trainer import Stopped

SMALL = [
    "batching.batch_size=64",
    "batching.hard_negatives=2",
    "batching.refresh_epochs=2",
    "optimizer.epochs=4",
    "validation.every_epochs=1",
    "encoder={kind: static, dim: 32, vocabulary_size: 3000}",
    "heads.dual_encoder.dropout=0.1",
    "heads.classifier.dropout=0.1",
]
SHARE = 0.25


def small_recipe(*overrides: str) -> Recipe:
    return load_recipe("default", [*SMALL, *overrides])


def stop_after(steps: int) -> Callable[[], bool]:
    calls = iter(range(10**9))
    return lambda: next(calls) + 1 >= steps


def weights_hash(folder: Path) -> str:
    """One hash over the checkpoint's weights and the whole training state, bit for bit."""
    digest = hashlib.sha256()
    for file in ("model.safetensors", "state.safetensors"):
        for name, tensor in sorted(load_file(folder / file).items()):
            digest.update(name.encode())
            digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def measured(folder: Path) -> list[dict[str, Any]]:
    """What each validated epoch reached, without what it cost."""
    return [record.model_dump(exclude={"seconds", "tally"}) for record in read_facts(folder).history]


@pytest.fixture(scope="module")
def small(dataset_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """The first queries of the example, with all of its labels."""
    whole = Dataset.open(dataset_folder)
    splits = {
        name: whole.split(name).take(np.arange(rows)).table()
        for name, rows in (("train", 600), ("validation", 150), ("test", 150))
    }
    folder = tmp_path_factory.mktemp("small") / "dataset"
    return write_dataset(folder, whole.label_table, splits, DatasetMeta(name="small"))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def finished(small: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    train(small, small_recipe(), folder, Kept())
    return folder


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
    first = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (tmp_path / "run" / "tokens" / "labels.offsets.npy").is_file():  # handlers are in place before this
        assert time.monotonic() < deadline, "the run never began"
        assert first.poll() is None, first.communicate()
        time.sleep(0.01)
    os.kill(first.pid, signal.SIGINT)
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


def test_training_learns_and_the_unified_model_is_better_than_either_head(
    checkpoint: Path, dataset_folder: Path
) -> None:
    """If this failed, the model would not learn, or concatenating the heads would not pay."""
    figures = measure(checkpoint, Dataset.open(dataset_folder), "validation").figures
    assert figures["unified"]["P@1"] > 50
    assert figures["unified"]["P@1"] > figures["dual_encoder"]["P@1"]
    assert figures["unified"]["P@1"] > figures["classifier"]["P@1"]


def test_a_checkpoint_answers_as_the_run_that_made_it(finished: Path, small: Dataset) -> None:
    """If this failed, what was saved would not be the epoch whose figures stand beside it."""
    facts = read_facts(finished)
    again = measure(finished, small, "validation").figures
    for head, figures in facts.best.figures.items():
        assert again[head] == pytest.approx(figures, abs=1e-6)


def test_labels_never_trained_are_marked(finished: Path, small: Dataset) -> None:
    """If this failed, export would give labels without data a classifier half made of noise."""
    opened = load_checkpoint(finished)
    positives = np.zeros(small.n_labels, bool)
    positives[small.split("train").labels.values] = True
    moved = opened.model.classifier_rows().norm(dim=1).numpy() > 0
    assert opened.trained_L.tolist() == (positives & moved).tolist()
    assert 0.5 * positives.sum() < opened.trained_L.sum() < small.n_labels


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json", "labels.parquet", "checkpoint.json"])
def test_a_damaged_checkpoint_is_one_sentence(finished: Path, tmp_path: Path, file: str) -> None:
    """If this failed, a truncated file would end in a traceback or, worse, load."""
    for source in finished.iterdir():
        if source.is_file():
            (tmp_path / source.name).write_bytes(source.read_bytes())
    whole = (tmp_path / file).read_bytes()
    (tmp_path / file).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=file):
        load_checkpoint(tmp_path)


def test_a_checkpoint_of_another_version_is_one_sentence(finished: Path, tmp_path: Path) -> None:
    """If this failed, an older checkpoint would end in a traceback, or answer by another score than it was made for."""
    facts = json.loads((finished / "checkpoint.json").read_text())
    (tmp_path / "checkpoint.json").write_text(json.dumps({**facts, "format_version": 1}))
    with pytest.raises(CheckpointError, match=r"format_version: Input should be 2\. Train again"):
        load_checkpoint(tmp_path)


KINDS = {
    "bce": ["loss.classifier.bce=0.1"],
    "supcon": ["loss.dual_encoder.supcon=1", "loss.dual_encoder.decoupled_softmax=0", "loss.classifier.supcon=1"],
    "random, no mining": ["batching.clustered=false", "batching.hard_negatives=0"],
    "one direction": ["loss.dual_encoder.query_to_label=1", "loss.classifier.query_to_label=1"],
    "tiny pool, uneven heads": ["batching.pool_size=50", "heads.dual_encoder.dim=16", "heads.classifier.dim=24"],
    "encoder only": ["loss.dual_encoder_share=1"],
    "no pairs": ["encoder.pair_rows=0"],
    "no label queries": ["batching.label_queries.share=0"],
    "the dual encoder is the model": ["validation.weights=[0]"],
    "the classifier is the model": ["validation.weights=[1]", "validation.popularities=[0.1]"],
    "precision": ["objective=precision"],
    "tail": ["objective=tail"],
}


@pytest.mark.parametrize("overrides", KINDS.values(), ids=KINDS)
def test_every_kind_of_recipe_trains(small: Dataset, tmp_path: Path, overrides: list[str]) -> None:
    """If this failed, a combination that the recipe's schema allows would crash, or lose itself in NaN."""
    kept = Kept()
    train(small, small_recipe("optimizer.epochs=2", *overrides), tmp_path / "run", kept)
    assert kept.records[1].loss < kept.records[0].loss


def test_epochs_are_validated_as_often_as_asked_for_and_the_last_one_always(small: Dataset, tmp_path: Path) -> None:
    """If this failed, a run would pay for validations nobody asked for, or end with weights that nothing measured."""
    kept = Kept()
    facts = train(small, small_recipe("validation.every_epochs=3"), tmp_path / "run", kept)
    assert [record.epoch for record in kept.records] == [record.epoch for record in facts.history] == [3, 4]
    assert facts.best in facts.history


@pytest.fixture(scope="module")
def tiny_transformer(small: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model that knows 800 words of the dataset."""
    words = sorted({word for text in small.split("train").texts + small.label_texts for word in text.split()})[:800]
    return save_tiny_bert(tmp_path_factory.mktemp("models") / "tiny-bert", words)


@pytest.mark.parametrize(
    ("kind", "choice"),
    [("transformer", "model: '{}', layers: 1"), ("static", "start_from: '{}', dim: 24, pair_rows: 500")],
)
def test_a_pretrained_model_trains_resumes_and_loads_without_its_folder(
    small: Dataset, tiny_transformer: Path, tmp_path: Path, kind: str, choice: str
) -> None:
    """If this failed, checkpoints would need the model that they began with, or not resume exactly."""
    source = shutil.copytree(tiny_transformer, tmp_path / "there")
    recipe = load_recipe(
        "default",
        ["batching.batch_size=64", "optimizer.epochs=2", "batching.hard_negatives=2", "optimizer.encoder_lr=1e-3",
         "validation.every_epochs=1", f"encoder={{kind: {kind}, {choice.format(source)}, max_tokens: 12}}"],
    )  # fmt: skip
    kept = Kept()
    train(small, recipe, tmp_path / "whole", kept)
    assert kept.records[1].loss < kept.records[0].loss
    with pytest.raises(Stopped):
        train(small, recipe, tmp_path / "parts", Kept(), should_stop=stop_after(13))
    shutil.rmtree(source)
    train(small, recipe, tmp_path / "parts", Kept())
    assert weights_hash(tmp_path / "parts") == weights_hash(tmp_path / "whole")
    opened = load_checkpoint(tmp_path / "whole")
    assert opened.encoder_kind == kind
    assert opened.tokenizer.encode("a " * 50).ids.__len__() == 12


def test_excluded_labels_are_neither_taught_nor_predicted(tmp_path: Path) -> None:
    """If this failed, a query's own text would be learned as its answer, or count against it."""
    labels = pa.table({"id": [f"l{i}" for i in range(8)], "text": [f"word{i}" for i in range(8)]})
    rows = [(f"word{i}", [(i + 1) % 8, (i + 2) % 8], [i]) for i in range(8)]

    def table(name: str) -> pa.Table:
        return pa.table(
            {
                "id": [f"{name}{i}" for i in range(8)],
                "text": [text for text, _, _ in rows],
                "labels": pa.array([truth for _, truth, _ in rows], pa.list_(pa.int32())),
                "exclude": pa.array([exclude for _, _, exclude in rows], pa.list_(pa.int32())),
            }
        )

    data = write_dataset(
        tmp_path / "d",
        labels,
        {name: table(name) for name in ("train", "validation", "test")},
        DatasetMeta(name="ring"),
    )
    recipe = load_recipe("default", [*SMALL, "batching.batch_size=4", "optimizer.epochs=40"])
    train(data, recipe, tmp_path / "run", Kept())
    assert measure(tmp_path / "run", data, "test").figures["unified"]["P@1"] > 90


def test_a_device_that_is_not_there_is_an_error(small: Dataset, tmp_path: Path) -> None:
    """If this failed, asking for CUDA on a machine without one would silently train on the CPU."""
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    with pytest.raises(RecipeError, match="sees 0 CUDA devices"):
        train(small, small_recipe(), tmp_path / "run", Kept(), device="cuda")
    assert not (tmp_path / "run").exists()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_training_runs_on_cuda(small: Dataset, tmp_path: Path) -> None:
    """If this failed, a tensor would have been left on the CPU."""
    kept = Kept()
    train(small, small_recipe("loss.classifier.bce=0.1"), tmp_path / "run", kept, device="cuda")
    assert kept.records[-1].loss < kept.records[0].loss
