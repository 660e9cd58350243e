"""Training runs on a small real dataset, and the checkpoints that they write."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from export.sampling import with_long_texts
from retrieval.errors import CheckpointError, RecipeError
from tests.support.listener import RecordingCallback
from tests.support.training.pretrained import save_tiny_bert
from tests.support.training.small_run import SMALL, small_recipe, stop_after, weights_hash
from training.checkpoint.files import read_facts
from training.checkpoint.opened import load_checkpoint
from training.data.dataset import Dataset, DatasetMeta
from training.evaluation.checkpoint_evaluation import evaluate_checkpoint
from training.prepare.writing import write_dataset
from training.recipe.loading import load_recipe, shipped_recipes
from training.run import train
from training.trainer import Stopped


def test_training_learns_and_the_unified_model_is_better_than_either_head(
    checkpoint: Path, dataset_folder: Path
) -> None:
    """If it fails, the model does not learn, or combining the heads has no benefit."""
    figures = evaluate_checkpoint(checkpoint, Dataset.open(dataset_folder), "validation").metrics
    assert figures["unified"]["P@1"] > 50
    # by what the weight was not chosen by: there the unified model could not lose
    assert figures["unified"]["nDCG@5"] > figures["dual_encoder"]["nDCG@5"]
    assert figures["unified"]["nDCG@5"] > figures["classifier"]["nDCG@5"]


def test_a_checkpoint_has_the_metrics_of_its_run(finished: Path, small: Dataset) -> None:
    """If it fails, the saved weights are not those of the epoch in checkpoint.json."""
    facts = read_facts(finished)
    again = evaluate_checkpoint(finished, small, "validation").metrics
    for head, figures in facts.best.metrics.items():
        assert again[head] == pytest.approx(figures, abs=1e-6)


def test_labels_never_trained_are_marked(finished: Path, small: Dataset) -> None:
    """If it fails, export uses noise as classifier vectors of labels without data."""
    opened = load_checkpoint(finished)
    positives = np.zeros(small.n_labels, bool)
    positives[small.split("train").labels.values] = True
    moved = opened.unified.classifier_rows().norm(dim=1).numpy() > 0
    assert opened.trained_L.tolist() == (positives & moved).tolist()
    assert 0.5 * positives.sum() < opened.trained_L.sum() < small.n_labels


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json", "labels.parquet", "checkpoint.json"])
def test_a_damaged_checkpoint_is_one_sentence(finished: Path, tmp_path: Path, file: str) -> None:
    """If it fails, a truncated file ends in a traceback or is loaded."""
    for source in finished.iterdir():
        if source.is_file():
            (tmp_path / source.name).write_bytes(source.read_bytes())
    whole = (tmp_path / file).read_bytes()
    (tmp_path / file).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=file):
        load_checkpoint(tmp_path)


def test_a_checkpoint_of_another_version_is_one_sentence(finished: Path, tmp_path: Path) -> None:
    """If it fails, an older checkpoint ends in a traceback, or is used with another score."""
    facts = json.loads((finished / "checkpoint.json").read_text())
    (tmp_path / "checkpoint.json").write_text(json.dumps({**facts, "format_version": 1}))
    with pytest.raises(CheckpointError, match=r"format_version: Input should be 3\. Train again"):
        load_checkpoint(tmp_path)


KINDS = {
    "bce": ["loss.classifier.bce=0.1"],
    "supcon": ["loss.dual_encoder.supcon=1", "loss.dual_encoder.decoupled_softmax=0", "loss.classifier.supcon=1"],
    "random": ["batching.clustered=false"],
    "random, no mining": ["batching.clustered=false", "batching.hard_negatives=0"],
    "one direction": ["loss.dual_encoder.query_to_label=1", "loss.classifier.query_to_label=1"],
    "tiny pool, uneven heads": ["batching.pool_size=50", "heads.dual_encoder.dim=16", "heads.classifier.dim=24"],
    "encoder only": ["loss.dual_encoder_share=1"],
    "classifier only": ["loss.dual_encoder_share=0", "batching.hard_negatives=0"],
    "GradCache": ["batching.grad_cache_chunk=50"],
    "half the memory for ψ": ["optimizer.classifier_rows=bfloat16"],
    "gandalf": ["batching.label_queries={share: 1, targets: gandalf}"],
    "label queries only": ["batching.label_queries={share: 1, targets: gandalf, epoch: only, graph: random_walk}"],
    "an equal budget": ["batching.label_queries={share: 1, targets: glas, epoch: equal_budget, labels_share: 0.5}"],
    "one-hot label queries": ["batching.label_queries={share: 1, targets: one_hot}"],
    "pick one label": ["loss.dual_encoder.positives=one", "loss.classifier.positives=one"],
    "triplet": ["loss.dual_encoder={decoupled_softmax: 0, triplet: 1, temperature: 1}"],
    "the whole label space": ["batching.pool_size=all", "optimizer.epochs=2"],
    "no pairs": ["encoder.pair_rows=0"],
    "no label queries": ["batching.label_queries.share=0"],
    "the dual encoder is the model": ["validation.weights=[0]"],
    "the classifier is the model": ["validation.weights=[1]", "validation.popularities=[0.1]"],
    "precision": ["objective=precision"],
    "tail": ["objective=tail"],
}


@pytest.mark.parametrize("overrides", KINDS.values(), ids=KINDS)
def test_every_kind_of_recipe_trains(small: Dataset, tmp_path: Path, overrides: list[str]) -> None:
    """If it fails, a recipe that the schema allows crashes or diverges."""
    callback = RecordingCallback()
    train(small, small_recipe("optimizer.epochs=2", *overrides), tmp_path / "run", callback)
    assert callback.records[1].loss < callback.records[0].loss


def test_the_objective_tail_changes_what_is_learned(small: Dataset, tmp_path: Path) -> None:
    """If it fails, `objective=tail` selects other epochs and weights, but trains the classifier as `balanced` does."""
    terms = {}
    for objective in ("balanced", "tail"):
        recipe, callback = small_recipe("optimizer.epochs=1", f"objective={objective}"), RecordingCallback()
        train(small, recipe, tmp_path / objective, callback)
        terms[objective] = callback.steps[0].losses
    for direction in ("query_to_label", "label_to_query"):
        bce, softmax = (f"classifier/{direction}/{term}" for term in ("bce", "decoupled_softmax"))
        # The first step starts from equal weights, so only the weights of the terms differ.
        assert terms["tail"][bce] == pytest.approx(terms["balanced"][bce] * 0.02 / 0.05)
        assert terms["tail"][softmax] == pytest.approx(terms["balanced"][softmax])
    weights = [load_checkpoint(tmp_path / objective).unified.classifier_rows() for objective in ("balanced", "tail")]
    assert not torch.allclose(*weights)


SYSTEMS = [  # a cascade has a test of its own: test_training_cascade.py
    name for name in shipped_recipes() if name.startswith("systems/") and load_recipe(name).cascade is None
]


@pytest.mark.parametrize("name", SYSTEMS)
def test_every_recipe_of_the_literature_learns(small: Dataset, finished: Path, tmp_path: Path, name: str) -> None:
    """If it fails, a recipe used in comparisons does not train."""
    callback = RecordingCallback()
    start = [f"warm_start={finished}"] if name == "systems/renee" else []
    train(small, load_recipe(name, [*SMALL, "optimizer.epochs=2", *start]), tmp_path / "run", callback)
    assert callback.records[1].loss < 0.95 * callback.records[0].loss


def test_a_fixed_weight_is_used_and_the_tuned_one_is_reported(small: Dataset, tmp_path: Path) -> None:
    """If it fails, a published recipe is measured with a weight that is not published, or hides the tuned one."""
    keys = [
        "optimizer.epochs=2",
        "validation.fixed_weight=0.5",
        "validation.popularities=[0.0]",
        "memory.max_queries=0",
        "validation.distractors=0",
    ]
    facts = train(small, small_recipe(*keys), tmp_path / "run", RecordingCallback())
    assert (facts.classifier_weight, facts.best.popularity) == (0.5, 0.0)
    assert facts.best.tuned is not None
    tuned = evaluate_checkpoint(tmp_path / "run", small, "validation", weight=facts.best.tuned[0])
    assert tuned.metrics["unified"] == pytest.approx(facts.best.metrics["tuned"], abs=1e-6)
    score = np.mean([facts.best.metrics["unified"][name] for name in facts.recipe.validation.metrics])
    assert facts.best.score == pytest.approx(score)


def test_a_warm_start_begins_with_the_metrics_of_its_checkpoint(finished: Path, small: Dataset, tmp_path: Path) -> None:
    """If it fails, a warm start uses another encoder than its checkpoint has."""
    before = evaluate_checkpoint(finished, small, "validation").metrics["dual_encoder"]
    still = ["optimizer.epochs=1", *(f"optimizer.{rate}=1e-30" for rate in ("token_lr", "heads_lr", "classifier_lr"))]
    recipe = small_recipe(*still, f"warm_start={finished}")
    facts = train(small, recipe, tmp_path / "run", RecordingCallback())
    assert facts.best.metrics["dual_encoder"] == pytest.approx(before, abs=0.2)


def test_a_warm_start_of_another_shape_is_one_sentence(finished: Path, small: Dataset, tmp_path: Path) -> None:
    """If it fails, a run starts with part of another encoder, or ends in a traceback."""
    with pytest.raises(RecipeError, match=r"another shape: classifier_head.* is \[32\], the recipe needs \[16\]"):
        train(
            small,
            small_recipe("heads.classifier.dim=16", f"warm_start={finished}"),
            tmp_path / "run",
            RecordingCallback(),
        )


def test_a_warm_start_truncates_at_the_new_max_tokens(finished: Path, small: Dataset, tmp_path: Path) -> None:
    """If it fails, a run ignores its max_tokens, and export fails its check of long texts."""
    longer = "encoder={kind: static, dim: 32, vocabulary_size: 3000, max_tokens: 96}"
    train(
        small,
        small_recipe(longer, "optimizer.epochs=1", f"warm_start={finished}"),
        tmp_path / "run",
        RecordingCallback(),
    )
    opened = load_checkpoint(tmp_path / "run")
    assert (opened.max_tokens, len(opened.tokenizer.tokenizer.encode("fast car " * 200).ids)) == (96, 96)
    assert with_long_texts(opened.validation.texts, opened)[1] == 96


def test_a_warm_start_of_another_tokenizer_is_one_sentence(finished: Path, small: Dataset, tmp_path: Path) -> None:
    """If it fails, a setting of the recipe is silently ignored."""
    other = "encoder={kind: static, dim: 32, vocabulary_size: 2000}"
    with pytest.raises(RecipeError, match=r"encoder\.vocabulary_size 3000, and the recipe says 2000\. Set "):
        train(small, small_recipe(other, f"warm_start={finished}"), tmp_path / "run", RecordingCallback())


def test_a_warm_start_of_a_transformer_with_another_config_is_one_sentence(small: Dataset, tmp_path: Path) -> None:
    """If it fails, weights are loaded into a model of equal shapes that computes something else."""
    folder = save_tiny_bert(tmp_path / "tiny", ["fast", "car"])
    encoder = f"encoder={{kind: transformer, model: '{folder}', max_tokens: 8}}"
    train(small, small_recipe(encoder, "optimizer.epochs=1"), tmp_path / "first", RecordingCallback())
    start = f"warm_start={tmp_path / 'first'}"
    longer = encoder.replace("max_tokens: 8", "max_tokens: 12")
    train(small, small_recipe(longer, "optimizer.epochs=1", start), tmp_path / "second", RecordingCallback())
    assert load_checkpoint(tmp_path / "second").tokenizer.tokenizer.truncation["max_length"] == 12
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_act": "relu"}))
    with pytest.raises(RecipeError, match="whose hidden_act is gelu; the recipe's has relu"):
        train(small, small_recipe(encoder, "optimizer.epochs=1", start), tmp_path / "third", RecordingCallback())


def test_every_nth_epoch_and_the_last_one_are_validated(small: Dataset, tmp_path: Path) -> None:
    """If it fails, validation runs too often, or the last weights are never measured."""
    callback = RecordingCallback()
    facts = train(small, small_recipe("validation.every_epochs=3"), tmp_path / "run", callback)
    assert [record.epoch for record in callback.records] == [record.epoch for record in facts.history] == [3, 4]
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
    """If it fails, a checkpoint needs its pretrained model, does not resume exactly, or folds the case of its texts."""
    source = shutil.copytree(tiny_transformer, tmp_path / "there")
    recipe = load_recipe(
        "default",
        ["batching.batch_size=64", "optimizer.epochs=2", "batching.hard_negatives=2", "optimizer.encoder_lr=1e-3",
         "validation.every_epochs=1", f"encoder={{kind: {kind}, {choice.format(source)}, max_tokens: 12}}"],
    )  # fmt: skip
    callback = RecordingCallback()
    train(small, recipe, tmp_path / "whole", callback)
    assert callback.records[1].loss < callback.records[0].loss
    with pytest.raises(Stopped):
        train(small, recipe, tmp_path / "parts", RecordingCallback(), should_stop=stop_after(13))
    shutil.rmtree(source)
    train(small, recipe, tmp_path / "parts", RecordingCallback())
    assert weights_hash(tmp_path / "parts") == weights_hash(tmp_path / "whole")
    opened = load_checkpoint(tmp_path / "whole")
    assert (opened.encoder_kind, opened.facts.query_identity) == (kind, 0)
    assert opened.tokenizer.tokenizer.encode("a " * 50).ids.__len__() == 12


def test_excluded_labels_are_neither_trained_nor_predicted(tmp_path: Path) -> None:
    """If it fails, excluded labels are trained as positives or negatives, or counted as errors."""
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
    recipe = small_recipe("batching.batch_size=4", "optimizer.epochs=40")
    train(data, recipe, tmp_path / "run", RecordingCallback())
    assert evaluate_checkpoint(tmp_path / "run", data, "test").metrics["unified"]["P@1"] > 90


def test_a_missing_device_is_an_error(small: Dataset, tmp_path: Path) -> None:
    """If it fails, `--device cuda` without a GPU silently trains on the CPU."""
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    with pytest.raises(RecipeError, match="sees 0 CUDA devices"):
        train(small, small_recipe(), tmp_path / "run", RecordingCallback(), device="cuda")
    assert not (tmp_path / "run").exists()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_training_runs_on_cuda(small: Dataset, tmp_path: Path) -> None:
    """If it fails, a tensor is not moved to the GPU."""
    callback = RecordingCallback()
    train(small, small_recipe("loss.classifier.bce=0.1"), tmp_path / "run", callback, device="cuda")
    assert callback.records[-1].loss < callback.records[0].loss
