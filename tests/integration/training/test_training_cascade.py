"""A cascade: trained, stopped and resumed, validated, evaluated and reported as any other recipe."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from retrieval.errors import CheckpointError, RecipeError
from tests.support.command import run
from tests.support.listener import RecordingCallback
from tests.support.training.cascade_run import cascade_dataset, cascade_recipe
from tests.support.training.checkpoints import N_LABELS
from tests.support.training.small_run import measured, stop_after, weights_hash
from training.batching.batch_source import BatchSource
from training.checkpoint.opened import load_checkpoint
from training.data.dataset import Dataset
from training.data.token_cache import tokenize_in_memory
from training.evaluation.cascade.ranker import cascade_ranker, encode_cascade_queries
from training.evaluation.checkpoint_evaluation import checkpoint_ranker, evaluate_checkpoint
from training.model.cascade import CascadeModel
from training.optim.cascade_loss import CascadeBatch
from training.run import train
from training.trainer import Stopped

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cascade")


@pytest.fixture(scope="module")
def dataset(folder: Path) -> Dataset:
    return cascade_dataset(folder)


@pytest.fixture(scope="module")
def callback() -> RecordingCallback:
    return RecordingCallback()


@pytest.fixture(scope="module")
def trained(dataset: Dataset, folder: Path, callback: RecordingCallback) -> Path:
    train(dataset, cascade_recipe(folder), folder / "run", callback)
    return folder / "run"


@pytest.fixture(scope="module")
def model(trained: Path) -> CascadeModel:
    model = load_checkpoint(trained).model
    assert isinstance(model, CascadeModel)
    return model


def test_the_loss_of_every_level_falls(trained: Path, callback: RecordingCallback) -> None:
    """If it fails, a level's classifier or its layers are not trained."""
    first, last = callback.records[0].stats.mean_losses, callback.records[-1].stats.mean_losses
    assert list(first) == [f"classifier/level_{level}/bce" for level in range(3)]
    assert all(last[name] < first[name] for name in first), (first, last)
    assert trained.is_dir()


@pytest.mark.parametrize("stops", [[1], [8, 9]])
def test_a_resumed_cascade_ends_with_the_same_weights_bit_for_bit(
    dataset: Dataset, folder: Path, trained: Path, tmp_path: Path, stops: list[int]
) -> None:
    """If it fails, a resumed run builds another tree, or loses the state of a level's classifier."""
    for steps in stops:
        with pytest.raises(Stopped):
            train(dataset, cascade_recipe(folder), tmp_path / "run", RecordingCallback(), should_stop=stop_after(steps))
    train(dataset, cascade_recipe(folder), tmp_path / "run", RecordingCallback())
    assert weights_hash(tmp_path / "run") == weights_hash(trained)
    assert measured(tmp_path / "run") == measured(trained)


def test_a_step_encodes_each_query_once_and_no_label_text(dataset: Dataset, folder: Path, tmp_path: Path) -> None:
    """If it fails, a step of a cascade costs more than one forward pass over its queries."""
    texts: list[int] = []

    class CountingSource(BatchSource):
        def device_batch(self, epoch: int, step: int, query_Q: np.ndarray) -> CascadeBatch:
            batch = super().device_batch(epoch, step, query_Q)
            assert isinstance(batch, CascadeBatch)
            assert len(batch.texts) == batch.n_queries == len(query_Q)
            return batch

        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments)  # type: ignore[arg-type]
            self.model.encoder.register_forward_pre_hook(lambda _, given: texts.append(len(given[0])))

    callback = RecordingCallback()
    train(
        dataset, cascade_recipe(folder, "optimizer.epochs=2"), tmp_path / "run", callback, source_type=CountingSource
    )  # fmt: skip
    steps = [step.queries for step in callback.steps]
    validation = len(texts) - len(steps)
    assert sorted([*steps, *[120] * validation]) == sorted(texts)
    assert validation == 2, "one pass over the validation queries per validated epoch"


def test_evaluate_gives_the_metrics_of_validation(trained: Path, dataset: Dataset) -> None:
    """If it fails, `diptych evaluate` ranks by other scores or shortlists than validation."""
    again = evaluate_checkpoint(trained, dataset, "validation")
    best = load_checkpoint(trained).facts.best
    assert set(again.metrics) == {"unified"}
    assert again.metrics["unified"] == pytest.approx(best.metrics["unified"], abs=1e-6)
    assert again.result.seen is not None
    assert again.result.seen.metrics["unified"] == pytest.approx(best.seen_metrics["unified"], abs=1e-6)


def test_excluded_and_unseen_labels_are_not_ranked(trained: Path, dataset: Dataset) -> None:
    """If it fails, a label that counts neither way takes a rank."""
    evaluation = evaluate_checkpoint(trained, dataset, "test")
    assert not np.isin(evaluation.result.rankings["unified"], [0, 5]).any(), "excluded for every query"
    assert (evaluation.result.rankings["unified"] >= 0).all()
    assert evaluation.result.seen is not None
    unseen = np.flatnonzero(evaluation.result.data.positives_L == 0)
    assert not np.isin(evaluation.result.seen.rankings["unified"], unseen).any()
    assert (np.diff(evaluation.scores_QK, axis=1) <= 0).all(), "best first"


def test_query_vectors_and_rows_give_the_scores_of_the_model(model: CascadeModel, trained: Path) -> None:
    """If it fails, an export of the level rows scores differently than training does."""
    opened = load_checkpoint(trained)
    tokens = tokenize_in_memory(opened.validation.texts[:5], opened.tokenizer)
    query_QD = encode_cascade_queries(model, tokens, CPU)
    assert query_QD.shape == (5, sum(model.level_dims))
    parts = np.split(query_QD, np.cumsum(model.level_dims)[:-1], axis=1)
    batch = tokens.padded()
    with torch.inference_mode():
        features = model.features(model.encoder(batch.input_ids_BT, batch.attention_mask_BT))
        for level, (part_QE, rows_NE) in enumerate(zip(parts, model.level_rows(), strict=True)):
            logits_QN = model.logits(level, features[level], torch.arange(len(rows_NE)))
            np.testing.assert_allclose(part_QE @ rows_NE.T, logits_QN.numpy(), atol=1e-4)
    assert [len(rows_NE) for rows_NE in model.level_rows()] == [4, 16, N_LABELS]
    assert [parent_N.dtype for parent_N in model.parents] == [np.int32, np.int32]


def test_the_report_and_the_screen_have_one_model(
    trained: Path, dataset: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    """If it fails, `train` or `evaluate` of a cascade ends in a traceback, or shows heads that it lacks."""
    assert run("evaluate", trained, "--dataset", dataset.folder, "--resamples", "100") == 0
    shown = capsys.readouterr().out
    assert "dual encoder" not in shown
    assert run("evaluate", trained, "--dataset", dataset.folder, "--compare", trained, "--resamples", "100") == 0
    capsys.readouterr()
    page = trained / "report.html"
    page.unlink(missing_ok=True)
    recipe = load_checkpoint(trained).recipe
    settings = [part for key in ("cascade", "encoder", "batching", "optimizer", "validation")
                for part in ("--set", f"{key}={json.dumps(recipe.model_dump(mode='json')[key])}")]  # fmt: skip
    where = ["--dataset", dataset.folder, "--out", trained]
    assert run("train", *where, "--recipe", "systems/cascadexml", *settings) == 0
    html = page.read_text(encoding="utf-8")
    assert "Classifier weight</h2>" not in html
    assert "Score of a label = its own × its cluster" in html
    assert run("evaluate", trained, "--dataset", dataset.folder, "--weight", "0.5") != 0
    assert "has a cascade, which has no classifier weight" in capsys.readouterr().err


def test_the_parts_for_two_heads_refuse_a_cascade(trained: Path) -> None:
    """If it fails, code for a dual encoder fails on a cascade with a traceback."""
    opened = load_checkpoint(trained)
    with pytest.raises(CheckpointError, match="has a cascade, which this command does not support"):
        checkpoint_ranker(opened, opened.validation, CPU)


def test_more_clusters_than_labels_are_refused(dataset: Dataset, folder: Path, tmp_path: Path) -> None:
    """If it fails, a tree with empty clusters is trained, or ends in a traceback."""
    recipe = cascade_recipe(folder, "cascade.clusters=[4, 512]")
    with pytest.raises(RecipeError, match="has 512 clusters, but the dataset has 300 labels"):
        train(dataset, recipe, tmp_path / "run", RecordingCallback())


def test_a_damaged_tree_is_refused(trained: Path, tmp_path: Path) -> None:
    """If it fails, a checkpoint with a wrong parent ranks by a wrong tree, or ends in a traceback."""
    copy = shutil.copytree(trained, tmp_path / "copy")
    with (copy / "model.safetensors").open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        metadata = json.loads(file.read(size))["__metadata__"]
    tensors = load_file(copy / "model.safetensors")
    tensors["cascade.parent.1"][3] = 9
    save_file(tensors, copy / "model.safetensors", metadata=metadata)
    with pytest.raises(CheckpointError, match="node 3 of level 1 of the label tree has the parent 9"):
        load_checkpoint(copy)


def test_a_ranker_of_the_model_is_that_of_the_checkpoint(model: CascadeModel, trained: Path, dataset: Dataset) -> None:
    """If it fails, the shortlists of the recipe do not reach the index."""
    opened = load_checkpoint(trained)
    queries = dataset.scored("test")
    ranker = cascade_ranker(model, tokenize_in_memory(queries.texts, opened.tokenizer), queries.exclude, CPU)
    assert ranker.index.shortlist == (3, 6)
    assert ranker.index.dim == sum(model.level_dims)
