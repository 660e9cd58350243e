"""Train a recipe on a dataset into a checkpoint folder, from the beginning or from the last saved state."""

from collections.abc import Callable
from contextlib import nullcontext
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import torch
from tokenizers import Tokenizer

from retrieval.system.atomic_files import write_text
from training.batching.batch_source import BatchSource
from training.batching.label_tree import label_tree
from training.batching.training_data import TrainingData, build_training_data, validation_queries
from training.checkpoint.files import read_facts, read_tokenizer, save_facts, save_static_files
from training.checkpoint.manager import CheckpointManager
from training.checkpoint.run_folder import TENSORBOARD, TOKEN_CACHE, locked_run_folder
from training.checkpoint.schema import (
    CHECKPOINT,
    ENCODER,
    STATE,
    TOKENIZER,
    WEIGHTS,
    CheckpointFacts,
    RunFacts,
    RunPosition,
)
from training.checkpoint.warm_start import warm_start, warm_start_tokenizer
from training.data.dataset import Dataset
from training.data.token_cache import TextTokenizer, inverse_document_frequency
from training.evaluation.cascade.validator import CascadeValidator
from training.evaluation.validator import Validator
from training.model.cascade import CascadeModel, Model, cascade_skeleton, init_cascade
from training.model.device import choose_device
from training.model.label_shard import LabelShard
from training.model.tokenizer import make_tokenizer, query_identity_version
from training.model.unified import init_model, model_skeleton
from training.monitoring.callbacks import Callback, CallbackPair
from training.monitoring.tensorboard import TensorBoardCallback
from training.optim.averaging import AveragedWeights
from training.optim.distributed import SINGLE_PROCESS, Processes
from training.optim.optimizers import Optimizers
from training.optim.training_step import TrainingStep
from training.recipe.schema import Recipe
from training.trainer import Trainer


def train(
    dataset: Dataset,
    recipe: Recipe,
    folder: Path,
    callback: Callback,
    *,
    device: str = "auto",
    restart: bool = False,
    should_stop: Callable[[], bool] = lambda: False,
    processes: Processes = SINGLE_PROCESS,
    source_type: type[BatchSource] = BatchSource,
) -> CheckpointFacts:
    """Train `recipe` on `dataset`; `folder` has the checkpoint afterwards.

    If the folder has the same run, the run is resumed, or left as it is if it has finished. Another run is refused
    unless `restart`. All `processes` of a distributed run call this with the same arguments. `source_type` is the class
    of the batch source; a subclass can record batches. Raises DatasetError, RecipeError, CheckpointError and
    TrainingError, and trainer.Stopped if asked to stop.
    """
    processes.require_batch_size(recipe.batching.batch_size)
    torch_device = choose_device(device)
    validation = validation_queries(dataset, recipe)
    run = RunFacts(recipe=recipe, dataset_fingerprint=dataset.fingerprint)
    with locked_run_folder(folder, run, restart) if processes.is_rank_zero else nullcontext():
        if processes.any(processes.is_rank_zero and (folder / CHECKPOINT).is_file()):
            return read_facts(folder)
        with processes.rank_zero_first(), callback.stage("tokenizing"):
            tokenizer = _load_or_make_tokenizer(folder, dataset, recipe)
            data = build_training_data(dataset, recipe, validation, tokenizer, folder / TOKEN_CACHE)
        model = _load_or_init_model(folder, dataset, recipe, data, tokenizer, processes)
        position = _train_model(
            model.to(torch_device), data, recipe, folder, torch_device, callback, should_stop, processes, source_type
        )
        with processes.rank_zero_first():
            if processes.is_rank_zero:
                save_facts(folder, _checkpoint_facts(position, dataset, recipe, tokenizer, torch_device))
    return read_facts(folder)


def _train_model(
    model: Model,
    data: TrainingData,
    recipe: Recipe,
    folder: Path,
    device: torch.device,
    callback: Callback,
    should_stop: Callable[[], bool],
    processes: Processes,
    source_type: type[BatchSource],
) -> RunPosition:
    """Build the parts of a trainer, restore the saved state if there is one, and train to the end."""
    optimizers = Optimizers(model, recipe.optimizer, processes)
    average = AveragedWeights(model, recipe.optimizer.averaging)
    checkpoints = CheckpointManager(folder, model, optimizers, average, recipe, data, processes)
    state = checkpoints.restore()
    tensorboard = TensorBoardCallback(folder / TENSORBOARD, state.position) if processes.is_rank_zero else nullcontext()
    with tensorboard as events:
        trainer = Trainer(
            recipe=recipe,
            source=source_type(recipe, data, model, device, state.mined, processes),
            training_step=TrainingStep(model, optimizers, recipe, device, processes),
            validator=_validator(model, data, recipe, device, processes),
            average=average,
            checkpoints=checkpoints,
            callback=callback if events is None else CallbackPair(callback, events),
            position=state.position,
            should_stop=should_stop,
            processes=processes,
        )
        return trainer.run()


def _validator(
    model: Model, data: TrainingData, recipe: Recipe, device: torch.device, processes: Processes
) -> Validator | CascadeValidator:
    if isinstance(model, CascadeModel):
        return CascadeValidator(model, data, recipe, device, processes)
    return Validator(model, data, recipe, device, processes)


def _load_or_init_model(
    folder: Path, dataset: Dataset, recipe: Recipe, data: TrainingData, tokenizer: TextTokenizer, processes: Processes
) -> Model:
    """Return a new model, or one whose weights the folder's saved state will replace.

    For a new run, the files that training does not change are written. A resumed run needs no pretrained model.
    """
    raw = tokenizer.tokenizer
    tokens = [raw.id_to_token(token_id) or "" for token_id in range(raw.get_vocab_size())]
    if (folder / STATE).is_file():
        if recipe.cascade is not None:
            return cascade_skeleton(recipe, dataset.n_labels, folder / ENCODER, processes.label_shard)
        return model_skeleton(recipe, dataset.n_labels, len(tokens), folder / ENCODER, tokens, processes.label_shard)
    model = _init_model(dataset, recipe, data, tokens, processes.label_shard)
    if processes.is_rank_zero:
        (folder / WEIGHTS).unlink(missing_ok=True)  # of a run that was killed before it saved its state
        save_static_files(folder, model, raw, dataset.label_table, data)
    return model


def _init_model(dataset: Dataset, recipe: Recipe, data: TrainingData, tokens: list[str], shard: LabelShard) -> Model:
    """Return a new model: a cascade on a tree of the labels, or a model with two heads, warm-started if it says so."""
    if recipe.cascade is not None:
        return init_cascade(recipe, label_tree(data, recipe.cascade.clusters, len(tokens), recipe.seed), shard)
    rarity_V = inverse_document_frequency(len(tokens), data.train_tokens, data.label_tokens)
    model = init_model(recipe, dataset.n_labels, rarity_V, tokens, shard)
    if recipe.warm_start is not None:
        warm_start(model, recipe)
    return model


def _load_or_make_tokenizer(folder: Path, dataset: Dataset, recipe: Recipe) -> TextTokenizer:
    """Return the run's tokenizer: from the folder if it has one, from the warm start's checkpoint, or a new one."""
    tokenizer = _tokenizer_file(folder, dataset, recipe)
    return TextTokenizer(tokenizer, query_identity_version(tokenizer))


def _tokenizer_file(folder: Path, dataset: Dataset, recipe: Recipe) -> Tokenizer:
    path = folder / TOKENIZER
    if path.is_file():
        return read_tokenizer(path)
    if recipe.warm_start is not None:
        tokenizer = warm_start_tokenizer(recipe)
    else:
        tokenizer = make_tokenizer(recipe, [*dataset.split("train").texts, *dataset.label_texts])
    write_text(path, tokenizer.to_str())
    return tokenizer


def _checkpoint_facts(
    position: RunPosition, dataset: Dataset, recipe: Recipe, tokenizer: TextTokenizer, device: torch.device
) -> CheckpointFacts:
    assert position.best is not None, "the last epoch is always validated"
    cpu = f"CPU, threads: {torch.get_num_threads()}"
    return CheckpointFacts(
        recipe=recipe,
        dataset_name=dataset.meta.name,
        dataset_fingerprint=dataset.fingerprint,
        n_labels=dataset.n_labels,
        train_queries=len(dataset.split("train")),
        vocabulary=tokenizer.tokenizer.get_vocab_size(),
        query_identity=tokenizer.query_identity,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else cpu,
        finished=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        versions={name: version(name) for name in ("diptych", "torch", "transformers", "tokenizers", "numpy")},
        classifier_weight=position.best.classifier_weight,
        best=position.best,
        history=position.history,
    )
