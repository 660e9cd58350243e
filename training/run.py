"""`diptych train` without the console: prepared dataset and recipe → checkpoint, anew or from where it stopped."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from tokenizers import Tokenizer

from retrieval import metrics
from retrieval.errors import CheckpointError, DatasetError, RecipeError
from training import checkpoint as ck
from training.data.dataset import Dataset, Split
from training.model import fresh_model
from training.recipe import Recipe
from training.tokens import make_tokenizer, tokenize
from training.trainer import Listener, Material, Trainer


class RunFacts(BaseModel):
    """run.json: what a folder's run is made of; what does not match it may not go on in that folder."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    recipe: Recipe
    dataset_fingerprint: str


def train(
    dataset: Dataset,
    recipe: Recipe,
    folder: Path,
    listener: Listener,
    *,
    device: str = "auto",
    restart: bool = False,
    should_stop: Callable[[], bool] = lambda: False,
) -> ck.CheckpointFacts:
    """Train `recipe` on `dataset`; `folder` holds the checkpoint afterwards.

    A folder that holds the same run is gone on with, or left as it is when that run has finished; one that holds
    another run is refused unless `restart`. Raises DatasetError, RecipeError, CheckpointError, and trainer.Stopped
    when asked to stop.
    """
    chosen = choose_device(device)
    _claim(folder, RunFacts(recipe=recipe, dataset_fingerprint=dataset.fingerprint), restart)
    if (folder / "checkpoint.json").is_file() and (facts := ck.read_facts(folder)).finished:
        return facts
    validation = validation_queries(dataset, recipe)
    with listener.stage("tokenizing"):
        tokenizer = _tokenizer(folder, dataset, recipe)
        material = _material(dataset, recipe, validation, tokenizer, folder / "tokens")
    model = fresh_model(recipe, dataset.n_labels, tokenizer.get_vocab_size())
    ck.save_surroundings(folder, model, tokenizer, dataset.label_table, validation)
    trainer = Trainer(recipe, material, model, folder, chosen, listener, should_stop)
    if (folder / "state.safetensors").is_file():
        trainer.restore_state()
    cursor = trainer.run()
    if cursor.best is None:
        raise CheckpointError(f"{folder}: the run ended without a validated epoch. Start it again with --restart.")
    facts = ck.CheckpointFacts(
        recipe=recipe,
        dataset_name=dataset.meta.name,
        dataset_fingerprint=dataset.fingerprint,
        n_labels=dataset.n_labels,
        vocabulary=tokenizer.get_vocab_size(),
        classifier_weight=cursor.best.classifier_weight,
        finished=True,
        best=cursor.best,
        history=cursor.history,
    )
    ck.save_facts(folder, facts)
    return facts


def choose_device(name: str) -> torch.device:
    """`auto` is CUDA where there is one, else the CPU; a device that was asked for and is not there is an error."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise RecipeError(f"device '{name}' is unknown; choose auto, cpu or cuda") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise RecipeError(f"device '{name}' was asked for, but torch sees no CUDA device here; choose cpu or auto")
    return device


def validation_queries(dataset: Dataset, recipe: Recipe) -> Split:
    """Up to `validation.max_queries` validation queries that have truth, the same ones each time."""
    split = dataset.split("validation")
    scored = np.flatnonzero(split.labels.lengths > 0)
    if not len(scored):
        raise DatasetError(
            f"{dataset.folder} has no validation query with a true label, and the best epoch is chosen on them. "
            "Prepare the dataset with a greater --validation."
        )
    most = recipe.validation.max_queries
    if len(scored) > most:
        scored = np.sort(np.random.default_rng(recipe.seed).choice(scored, size=most, replace=False))
    return split.take(scored)


def _claim(folder: Path, facts: RunFacts, restart: bool) -> None:
    """Make `folder` this run's, or see that it already is."""
    path = folder / "run.json"
    if restart and path.is_file():
        shutil.rmtree(folder)
    if path.is_file():
        return _same_run(path, facts)
    if folder.exists() and any(folder.iterdir()):
        raise CheckpointError(f"{folder} is not empty and holds no training run. Give --out a new folder.")
    folder.mkdir(parents=True, exist_ok=True)
    ck.write_text(path, facts.model_dump_json(indent=2))
    return None


def _same_run(path: Path, facts: RunFacts) -> None:
    try:
        there = RunFacts.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise CheckpointError(f"{path} is damaged. Give another --out, or --restart to begin anew.") from error
    way_out = "Give another --out, or --restart to throw that run away."
    if there.dataset_fingerprint != facts.dataset_fingerprint:
        raise CheckpointError(f"{path.parent} holds a run on another dataset. {way_out}")
    if changed := there.recipe.differences(facts.recipe):
        raise CheckpointError(f"{path.parent} holds a run with another recipe ({'; '.join(changed[:3])}). {way_out}")


def _tokenizer(folder: Path, dataset: Dataset, recipe: Recipe) -> Tokenizer:
    """The run's tokenizer, from the folder once it is there."""
    path = folder / "tokenizer.json"
    if path.is_file():
        return ck.read_tokenizer(path)
    tokenizer = make_tokenizer(recipe, [*dataset.split("train").texts, *dataset.label_texts])
    ck.write_text(path, tokenizer.to_str())
    return tokenizer


def _material(dataset: Dataset, recipe: Recipe, validation: Split, tokenizer: Tokenizer, tokens: Path) -> Material:
    train = dataset.split("train")
    counts_L = np.bincount(train.labels.values, minlength=dataset.n_labels)
    held_out = dataset.split("validation").labels
    seen_L = counts_L + np.bincount(held_out.values, minlength=dataset.n_labels)
    constants = recipe.propensity
    return Material(
        train=train,
        train_tokens=tokenize(train.texts, tokenizer, tokens, "train"),
        validation=validation,
        validation_tokens=tokenize(validation.texts, tokenizer, tokens, "validation"),
        label_tokens=tokenize(dataset.label_texts, tokenizer, tokens, "labels"),
        trained_L=counts_L > 0,
        inverse_propensity_L=metrics.propensities(seen_L, len(train) + len(held_out), constants.a, constants.b),
    )
