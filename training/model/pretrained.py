"""Load pretrained transformers, their tokenizers and token vectors, by name or from a folder.

Any exception of the loading code becomes a RecipeError that names the recipe's key and the model.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from retrieval.errors import CheckpointError, RecipeError
from training.recipe.sections import TransformerEncoderRecipe


def transformer(choice: TransformerEncoderRecipe) -> nn.Module:
    """Load a transformer with its first `layers` layers, in float32, without pooler.

    Raises RecipeError if it cannot be loaded, or if it has fewer layers or a shorter context than the recipe needs.
    """
    from transformers import AutoConfig, AutoModel

    with _loading("encoder.model", choice.model):
        config = AutoConfig.from_pretrained(choice.model)
        _keep_layers(config, choice)
        _check_length(config, choice)
        model = AutoModel.from_pretrained(choice.model, config=config, dtype=torch.float32, **_no_pooler(config))
        encoder: nn.Module = _encoder_half(model)
        return encoder


def transformer_skeleton(folder: Path) -> nn.Module:
    """Return a transformer with the config in a checkpoint's `folder`; its weights will be loaded."""
    from transformers import AutoConfig, AutoModel

    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder}: the encoder's config cannot be read: {error}") from error
    encoder: nn.Module = _encoder_half(AutoModel.from_config(config, **_no_pooler(config)))  # type: ignore[no-untyped-call]
    return encoder


def token_vectors(source: str, vocabulary: int) -> Tensor:
    """Return the vectors [V, H] of the first V tokens of a transformer. Raises RecipeError if it has fewer tokens."""
    from transformers import AutoModel

    with _loading("encoder.start_from", source):
        table_VH: Tensor = AutoModel.from_pretrained(source, dtype=torch.float32).get_input_embeddings().weight.detach()
    if len(table_VH) < vocabulary:
        raise RecipeError(
            f"encoder.start_from '{source}' has vectors for {len(table_VH):,} tokens, but its tokenizer has "
            f"{vocabulary:,}. Choose another model."
        )
    return table_VH[:vocabulary]


def tokenizer(key: str, source: str) -> Tokenizer:
    """Load a model's tokenizer; `key` is the recipe's key for it. Raises RecipeError if it has no fast tokenizer."""
    from transformers import AutoTokenizer

    with _loading(key, source):
        fast = AutoTokenizer.from_pretrained(source, use_fast=True)
    backend = getattr(fast, "backend_tokenizer", None)
    if backend is None:
        raise RecipeError(f"{key} '{source}' has no fast tokenizer; choose a model that ships a tokenizer.json")
    return Tokenizer.from_str(backend.to_str())


@contextmanager
def _loading(key: str, model: str) -> Iterator[None]:
    from transformers import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # it would list the layers that are dropped on purpose
    looks_local = model.startswith((".", "/", "~")) or model.count("/") > 1
    if looks_local and not Path(model).is_dir():
        raise RecipeError(f"{key} '{model}': there is no such folder. Give a folder that holds a model.")
    try:
        yield
    except RecipeError:
        raise
    except Exception as error:  # transformers and its dependencies raise any exception
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise RecipeError(
            f"{key} '{model}' cannot be loaded: {reason} Give a folder that holds the model, "
            "or a name on the Hugging Face hub, if this machine can reach it."
        ) from error


def _keep_layers(config: Any, choice: TransformerEncoderRecipe) -> None:
    depth = config.num_hidden_layers
    layers = choice.layers or depth
    if layers > depth:
        raise RecipeError(f"encoder.layers is {layers}, but '{choice.model}' has {depth}: give at most that")
    config.num_hidden_layers = layers
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:layers]


def _check_length(config: Any, choice: TransformerEncoderRecipe) -> None:
    """Raise RecipeError if the context is too short; RoBERTa models use the first positions for padding."""
    reserved = config.pad_token_id + 1 if config.model_type in ("roberta", "xlm-roberta", "camembert", "mpnet") else 0
    most = getattr(config, "max_position_embeddings", None)
    if isinstance(most, int) and choice.max_tokens > most - reserved > 0:
        raise RecipeError(
            f"encoder.max_tokens is {choice.max_tokens}, but '{choice.model}' reads {most - reserved} tokens: "
            "give at most that"
        )


def _encoder_half(model: Any) -> Any:
    """Return the encoder of an encoder-decoder model (T5, BART); mean pooling does not use the decoder."""
    return model.get_encoder() if model.config.is_encoder_decoder else model


def _no_pooler(config: Any) -> dict[str, bool]:
    """Return arguments that disable the pooler; mean pooling does not use it, so its weights would not be trained."""
    return {"add_pooling_layer": False} if config.model_type in ("bert", "roberta", "xlm-roberta", "camembert") else {}
