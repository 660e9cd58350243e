"""`diptych train` without the console: prepared dataset and recipe → checkpoint, anew or from where it stopped."""

import fcntl
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from tokenizers import Tokenizer

from retrieval.errors import CheckpointError
from retrieval.system.paths import require_utf8
from training.checkpoint import files as ck
from training.checkpoint.state import STATE, WEIGHTS
from training.data.dataset import Dataset
from training.data.training_data import Material, material_of, validation_queries
from training.model.tokens import inverse_document_frequency, make_tokenizer
from training.model.unified import empty_model, fresh_model
from training.model.warm_start import warm_start, warm_start_tokenizer
from training.monitoring.callbacks import Both, Listener
from training.monitoring.tensorboard import Events
from training.optim.distributed import ALONE, Processes
from training.optim.optimizers import choose_device
from training.recipe.schema import Recipe
from training.trainer import Trainer

LOCK, EVENTS = ".lock", "tensorboard"
WRITTEN = (  # in order of removal; run.json, which marks the folder as a run's, is overwritten instead
    "checkpoint.json", "state.safetensors", "model.safetensors", "tokenizer.json", "labels.parquet",
    "validation.parquet", "report.html",
)  # fmt: skip


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
    processes: Processes = ALONE,
) -> ck.CheckpointFacts:
    """Train `recipe` on `dataset`; `folder` holds the checkpoint afterwards.

    A folder that holds the same run is gone on with, or left as it is when that run has finished; one that holds
    another run is refused unless `restart`. Of several `processes` each calls this with the same arguments; the first
    one alone is heard by its listener. Raises DatasetError, RecipeError, CheckpointError, TrainingError, and
    trainer.Stopped when asked to stop.
    """
    processes.refuse_small_batches(recipe.batching.batch_size)
    chosen = choose_device(device)
    validation = validation_queries(dataset, recipe)
    run = RunFacts(recipe=recipe, dataset_fingerprint=dataset.fingerprint)
    with _claimed(folder, run, restart) if processes.first else nullcontext():
        if processes.any(processes.first and (folder / "checkpoint.json").is_file()):
            return ck.read_facts(folder)
        with processes.first_ahead(), listener.stage("tokenizing"):
            tokenizer = _tokenizer(folder, dataset, recipe)
            material = material_of(dataset, recipe, validation, tokenizer, folder / "tokens")
        trainer = _trainer(dataset, recipe, material, tokenizer, folder, chosen, listener, should_stop, processes)
        cursor = _heard(trainer, listener) if processes.first else trainer.run()
        with processes.first_ahead():
            if processes.first:
                ck.save_facts(folder, _facts(cursor, dataset, recipe, tokenizer, chosen))
    return ck.read_facts(folder)


def _heard(trainer: Trainer, listener: Listener) -> ck.Cursor:
    """Run to the end, told to `listener` and to TensorBoard."""
    with Events(trainer.folder / EVENTS, trainer.cursor) as events:
        trainer.listener = Both(listener, events)
        return trainer.run()


def _trainer(
    dataset: Dataset,
    recipe: Recipe,
    material: Material,
    tokenizer: Tokenizer,
    folder: Path,
    device: torch.device,
    listener: Listener,
    should_stop: Callable[[], bool],
    processes: Processes,
) -> Trainer:
    """A trainer at the beginning, or where the folder's state left off, which needs no pretrained model any more."""
    begun = (folder / STATE).is_file()
    tokens = [tokenizer.id_to_token(place) or "" for place in range(tokenizer.get_vocab_size())]
    if begun:
        model = empty_model(recipe, dataset.n_labels, len(tokens), folder / "encoder", tokens)
    else:
        rarity_V = inverse_document_frequency(len(tokens), material.train_tokens, material.label_tokens)
        model = fresh_model(recipe, dataset.n_labels, rarity_V, tokens)
        if recipe.warm_start is not None:
            warm_start(model, recipe)
        if processes.first:
            (folder / WEIGHTS).unlink(missing_ok=True)  # from a run that was killed before it saved its state
            ck.save_surroundings(folder, model, tokenizer, dataset.label_table, material.validation)
    trainer = Trainer(recipe, material, model, folder, device, listener, should_stop, processes)
    if begun:
        trainer.restore_state()
    return trainer


def _facts(
    cursor: ck.Cursor, dataset: Dataset, recipe: Recipe, tokenizer: Tokenizer, device: torch.device
) -> ck.CheckpointFacts:
    assert cursor.best is not None, "the last epoch is always validated"
    return ck.CheckpointFacts(
        recipe=recipe,
        dataset_name=dataset.meta.name,
        dataset_fingerprint=dataset.fingerprint,
        n_labels=dataset.n_labels,
        train_queries=len(dataset.split("train")),
        vocabulary=tokenizer.get_vocab_size(),
        device=torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"CPU, threads: {torch.get_num_threads()}",
        finished=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        versions={name: version(name) for name in ("diptych", "torch", "transformers", "tokenizers", "numpy")},
        classifier_weight=cursor.best.classifier_weight,
        best=cursor.best,
        history=cursor.history,
    )


@contextmanager
def _claimed(folder: Path, facts: RunFacts, restart: bool) -> Iterator[None]:
    """Make `folder` this run's, or see that it already is; nobody else trains in it meanwhile."""
    require_utf8(folder)
    path = folder / "run.json"
    if not path.is_file() and folder.exists() and any(item.name != LOCK for item in folder.iterdir()):
        raise CheckpointError(f"{folder} is not empty and holds no training run. Give --out a new folder.")
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise CheckpointError(
                f"another process is training in {folder}. Wait for it, or give another --out."
            ) from error
        if path.is_file():
            there = _facts_of(path)
            learned = any((folder / name).is_file() for name in ("state.safetensors", "model.safetensors"))
            if learned and not restart:
                _same_run(folder, there, facts)
            elif restart or there != facts:
                _clear(folder)
        ck.write_text(path, facts.model_dump_json(indent=2))
        yield


def _clear(folder: Path) -> None:
    """Remove what a run writes, and nothing else."""
    for name in WRITTEN:
        (folder / name).unlink(missing_ok=True)
    for name in ("tokens", "encoder", EVENTS):
        shutil.rmtree(folder / name, ignore_errors=True)


def _facts_of(path: Path) -> RunFacts:
    try:
        return RunFacts.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise CheckpointError(f"{path} is no training run of this version. Give --out a new folder.") from error


def _same_run(folder: Path, there: RunFacts, facts: RunFacts) -> None:
    way_out = "Give another --out, or --restart to throw that run away."
    if there.dataset_fingerprint != facts.dataset_fingerprint:
        was, now = there.dataset_fingerprint[:12], facts.dataset_fingerprint[:12]
        raise CheckpointError(
            f"the dataset is not the one that the run in {folder} began with (fingerprint {now} instead of {was}). "
            f"{way_out}"
        )
    if changed := there.recipe.differences(facts.recipe):
        raise CheckpointError(f"{folder} holds a run with another recipe ({'; '.join(changed[:3])}). {way_out}")


def _tokenizer(folder: Path, dataset: Dataset, recipe: Recipe) -> Tokenizer:
    """The run's tokenizer: from the folder once it is there, from where a warm start begins, or made."""
    path = folder / "tokenizer.json"
    if path.is_file():
        return ck.read_tokenizer(path)
    if recipe.warm_start is not None:
        tokenizer = warm_start_tokenizer(recipe)
    else:
        tokenizer = make_tokenizer(recipe, [*dataset.split("train").texts, *dataset.label_texts])
    ck.write_text(path, tokenizer.to_str())
    return tokenizer
