"""Other people's models: pretrained transformers, their tokenizers and token vectors, by name or from a folder.

Whatever their loading code raises becomes one sentence that names the recipe's key and the model.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from retrieval.errors import CheckpointError, RecipeError
from training.recipe.schema import TransformerEncoderRecipe


def transformer(choice: TransformerEncoderRecipe) -> nn.Module:
    """The transformer with its first `layers` layers, in float32, without its unused pooler.

    Raises RecipeError when it cannot be loaded, has fewer layers or reads fewer tokens than asked for.
    """
    from transformers import AutoConfig, AutoModel

    with _loading("encoder.model", choice.model):
        config = AutoConfig.from_pretrained(choice.model)
        _keep_layers(config, choice)
        _check_length(config, choice)
        model = AutoModel.from_pretrained(choice.model, config=config, dtype=torch.float32, **_no_pooler(config))
        encoder: nn.Module = _encoder_half(model)
        return encoder


def empty_transformer(folder: Path) -> nn.Module:
    """A transformer of the shape that a checkpoint's `folder` says, its weights still to be filled."""
    from transformers import AutoConfig, AutoModel

    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder}: the encoder's config cannot be read: {error}") from error
    encoder: nn.Module = _encoder_half(AutoModel.from_config(config, **_no_pooler(config)))  # type: ignore[no-untyped-call]
    return encoder


def token_vectors(source: str, vocabulary: int) -> Tensor:
    """The vectors [V, H] of the first V tokens of a pretrained transformer; RecipeError when there are fewer."""
    from transformers import AutoModel

    with _loading("encoder.start_from", source):
        table_VH: Tensor = AutoModel.from_pretrained(source, dtype=torch.float32).get_input_embeddings().weight.detach()
    if len(table_VH) < vocabulary:
        raise RecipeError(
            f"encoder.start_from '{source}' has vectors for {len(table_VH):,} tokens, but its tokenizer knows "
            f"{vocabulary:,}. Choose another model."
        )
    return table_VH[:vocabulary]


def tokenizer(key: str, source: str) -> Tokenizer:
    """The model's own tokenizer; `key` is the recipe's key that names it. RecipeError when it has no fast one."""
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
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # it would list the layers left out on purpose
    looks_local = model.startswith((".", "/", "~")) or model.count("/") > 1
    if looks_local and not Path(model).is_dir():
        raise RecipeError(f"{key} '{model}': there is no such folder. Give a folder that holds a model.")
    try:
        yield
    except RecipeError:
        raise
    except Exception as error:  # transformers and what it calls raise anything
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise RecipeError(
            f"{key} '{model}' cannot be loaded: {reason} Give a folder that holds the model, "
            "or a name that the Hugging Face hub knows and this machine can reach."
        ) from error


def _keep_layers(config: Any, choice: TransformerEncoderRecipe) -> None:
    depth = config.num_hidden_layers
    kept = choice.layers or depth
    if kept > depth:
        raise RecipeError(f"encoder.layers is {kept}, but '{choice.model}' has {depth}: give at most that")
    config.num_hidden_layers = kept
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:kept]


def _check_length(config: Any, choice: TransformerEncoderRecipe) -> None:
    """RoBERTa's kind counts positions from behind the padding id, so it has that many fewer."""
    reserved = config.pad_token_id + 1 if config.model_type in ("roberta", "xlm-roberta", "camembert", "mpnet") else 0
    most = getattr(config, "max_position_embeddings", None)
    if isinstance(most, int) and choice.max_tokens > most - reserved > 0:
        raise RecipeError(
            f"encoder.max_tokens is {choice.max_tokens}, but '{choice.model}' reads {most - reserved} tokens: "
            "give at most that"
        )


def _encoder_half(model: Any) -> Any:
    """Of an encoder-decoder (T5, BART) only the encoder: mean pooling has no use for a decoder."""
    return model.get_encoder() if model.config.is_encoder_decoder else model


def _no_pooler(config: Any) -> dict[str, bool]:
    """Mean pooling has no use for the pooler that some architectures add; unused weights would never learn."""
    return {"add_pooling_layer": False} if config.model_type in ("bert", "roberta", "xlm-roberta", "camembert") else {}
