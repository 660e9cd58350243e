"""A run that begins with what an earlier one learned of texts: its encoder and heads; every ψ starts anew.

Labels may have come and gone since, so their rows are not taken over.
"""

import json

import torch
from tokenizers import Tokenizer

from retrieval.errors import RecipeError
from training.checkpoint.files import load_checkpoint
from training.model.row_tables import RowTable
from training.model.static_encoder import StaticEncoder
from training.model.subword_ngrams import SpelledVectors
from training.model.tokens import cut_at
from training.model.unified import TransformerEncoder, UnifiedModel
from training.recipe.schema import Recipe

# Fields of a transformer's config that do not change what it computes.
DESCRIPTIVE = {"_name_or_path", "name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype"}


def warm_start_tokenizer(recipe: Recipe) -> Tokenizer:
    """Return the tokenizer of the checkpoint in `recipe.warm_start`, with truncation at the recipe's max_tokens.

    Raises CheckpointError if there is no checkpoint, RecipeError if the recipe needs another tokenizer.
    """
    source = str(recipe.warm_start)
    earlier = load_checkpoint(source)
    _same_settings(source, earlier.recipe, recipe)
    cut_at(earlier.tokenizer, recipe.encoder.max_tokens)
    return earlier.tokenizer


def _same_settings(source: str, there: Recipe, here: Recipe) -> None:
    """Raise RecipeError for settings that select tokenizer or transformer and that a warm start would ignore."""
    for key in ("kind", "vocabulary_size", "start_from"):
        before, now = (getattr(one.encoder, key, None) for one in (there, here))
        if before != now:
            raise RecipeError(
                f"warm_start '{source}' was trained with encoder.{key} {before}, and the recipe says {now}. Set "
                f"encoder.{key} to {before}, or choose another checkpoint."
            )


def _same_transformer(source: str, there: TransformerEncoder, here: TransformerEncoder) -> None:
    """Raise RecipeError if two transformers have weights of equal shapes but different configs."""
    before, now = (one.transformer.config.to_dict() for one in (there, here))  # type: ignore[union-attr, operator]
    for key in sorted((before.keys() | now.keys()) - DESCRIPTIVE):
        if json.dumps(before.get(key), default=str) != json.dumps(now.get(key), default=str):
            raise RecipeError(
                f"warm_start '{source}' holds a transformer whose {key} is {before.get(key)}; the recipe's has "
                f"{now.get(key)}. Use the same encoder in the recipe, or another checkpoint."
            )


@torch.no_grad()
def warm_start(model: UnifiedModel, recipe: Recipe) -> None:
    """Copy encoder and heads of the checkpoint in `recipe.warm_start` into `model`.

    What its tokens share in spelling stands added up in their vectors, so pieces begin at zero. Raises CheckpointError
    when there is no checkpoint, RecipeError when its encoder or heads are others.
    """
    source = str(recipe.warm_start)
    earlier = load_checkpoint(source)
    _same_settings(source, earlier.recipe, recipe)
    learned = earlier.model
    mine, theirs = _shapes(model), _shapes(learned)
    if other := sorted(name for name in mine.keys() | theirs.keys() if mine.get(name) != theirs.get(name)):
        name = other[0]
        raise RecipeError(
            f"warm_start '{source}' holds an encoder or heads of another shape: {name} is {theirs.get(name)} there and "
            f"{mine.get(name)} here. Give the recipe the same encoder and heads, or another checkpoint."
        )
    for head in ("dual_head", "classifier_head"):
        getattr(model, head).load_state_dict(getattr(learned, head).state_dict())
    match model.encoder, learned.encoder:
        case StaticEncoder() as encoder, StaticEncoder() as before:
            _take_static(encoder, before)
        case TransformerEncoder() as encoder, TransformerEncoder() as before:
            _same_transformer(source, before, encoder)
            encoder.load_state_dict(before.state_dict())


def _take_static(encoder: StaticEncoder, before: StaticEncoder) -> None:
    match encoder.vectors:
        case SpelledVectors() as spelt:
            spelt.own.weight.copy_(before.vectors.weight)
            spelt.pieces.weight.zero_()
        case RowTable() as plain:
            plain.weight.copy_(before.vectors.weight)
    encoder.weights.weight.copy_(before.weights.weight)
    encoder.places.weight.copy_(before.places.weight)
    if encoder.pairs is not None and before.pairs is not None:
        encoder.pairs.weight.copy_(before.pairs.weight)


def _shapes(model: UnifiedModel) -> dict[str, list[int]]:
    """The shape of each tensor that is to be taken over, as answering needs them."""
    return {
        name: list(tensor.shape)
        for name, tensor in model.answering_state().items()
        if name.startswith(("encoder.", "dual_head.", "classifier_head.")) and name.endswith(("weight", "bias"))
    }
