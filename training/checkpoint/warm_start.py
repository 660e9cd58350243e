"""Warm start: initialize encoder, heads and tokenizer from an earlier checkpoint.

The classifier rows ψ start at zero, because labels may have been added or removed.
"""

import json

import torch
from tokenizers import Tokenizer

from retrieval.errors import RecipeError
from training.checkpoint.opened import load_checkpoint
from training.model.row_table import RowTable
from training.model.static_encoder import StaticEncoder
from training.model.subword_ngrams import SubwordVectors
from training.model.tokenizer import set_truncation
from training.model.transformer_encoder import TransformerEncoder
from training.model.unified import UnifiedModel
from training.recipe.schema import Recipe

# Fields of a transformer's config that do not affect its output.
DESCRIPTIVE = {"_name_or_path", "name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype"}


def warm_start_tokenizer(recipe: Recipe) -> Tokenizer:
    """Return the tokenizer of the checkpoint in `recipe.warm_start`, with truncation at the recipe's max_tokens.

    Raises CheckpointError if there is no checkpoint, RecipeError if the recipe needs another tokenizer.
    """
    source = str(recipe.warm_start)
    earlier = load_checkpoint(source)
    _require_same_settings(source, earlier.recipe, recipe)
    tokenizer = earlier.tokenizer.tokenizer
    set_truncation(tokenizer, recipe.encoder.max_tokens)
    return tokenizer


def _require_same_settings(source: str, earlier: Recipe, recipe: Recipe) -> None:
    """Raise RecipeError if settings differ that select the tokenizer or transformer; a warm start would ignore them."""
    for key in ("kind", "vocabulary_size", "start_from"):
        before, now = (getattr(each.encoder, key, None) for each in (earlier, recipe))
        if before != now:
            raise RecipeError(
                f"warm_start '{source}' was trained with encoder.{key} {before}, and the recipe says {now}. Set "
                f"encoder.{key} to {before}, or choose another checkpoint."
            )


def _require_same_transformer(source: str, earlier: TransformerEncoder, encoder: TransformerEncoder) -> None:
    """Raise RecipeError if two transformers have weights of equal shapes but different configs."""
    before, now = (each.transformer.config.to_dict() for each in (earlier, encoder))  # type: ignore[union-attr, operator]
    for key in sorted((before.keys() | now.keys()) - DESCRIPTIVE):
        if json.dumps(before.get(key), default=str) != json.dumps(now.get(key), default=str):
            raise RecipeError(
                f"warm_start '{source}' has a transformer whose {key} is {before.get(key)}; the recipe's has "
                f"{now.get(key)}. Use the same encoder in the recipe, or another checkpoint."
            )


@torch.no_grad()
def warm_start(model: UnifiedModel, recipe: Recipe) -> None:
    """Copy encoder and heads of the checkpoint in `recipe.warm_start` into `model`.

    A checkpoint's token vectors include their subword n-grams, so the n-gram vectors start at zero. Raises
    CheckpointError if there is no checkpoint, RecipeError if its encoder or heads differ.
    """
    source = str(recipe.warm_start)
    earlier = load_checkpoint(source)
    _require_same_settings(source, earlier.recipe, recipe)
    if earlier.unified.classifier_head is None:
        # Its classifier head was not trained, so the new one starts as in any run.
        required = {name: shape for name, shape in _shapes(model).items() if not name.startswith("classifier_head.")}
        existing = _shapes(earlier.unified)
    else:
        required, existing = _shapes(model), _shapes(earlier.unified)
    if different := sorted(n for n in required.keys() | existing.keys() if required.get(n) != existing.get(n)):
        name = different[0]
        raise RecipeError(
            f"warm_start '{source}' has an encoder or heads of another shape: {name} is {existing.get(name)}, the "
            f"recipe needs {required.get(name)}. Use the same encoder and heads in the recipe, or another checkpoint."
        )
    model.dual_head.load_state_dict(earlier.unified.dual_head.state_dict())
    if model.classifier_head is not None and earlier.unified.classifier_head is not None:
        model.classifier_head.load_state_dict(earlier.unified.classifier_head.state_dict())
    match model.encoder, earlier.unified.encoder:
        case StaticEncoder() as encoder, StaticEncoder() as before:
            _copy_static(encoder, before)
        case TransformerEncoder() as encoder, TransformerEncoder() as before:
            _require_same_transformer(source, before, encoder)
            encoder.load_state_dict(before.state_dict())


def _copy_static(encoder: StaticEncoder, before: StaticEncoder) -> None:
    match encoder.vectors:
        case SubwordVectors() as vectors:
            vectors.tokens.weight.copy_(before.vectors.weight)
            vectors.ngrams.weight.zero_()
        case RowTable() as vectors:
            vectors.weight.copy_(before.vectors.weight)
    encoder.weights.weight.copy_(before.weights.weight)
    encoder.places.weight.copy_(before.places.weight)
    if encoder.pairs is not None and before.pairs is not None:
        encoder.pairs.weight.copy_(before.pairs.weight)


def _shapes(model: UnifiedModel) -> dict[str, list[int]]:
    """Return the shape of each tensor that a warm start copies, by name."""
    return {
        name: list(tensor.shape)
        for name, tensor in model.inference_state_dict().items()
        if name.startswith(("encoder.", "dual_head.", "classifier_head.")) and name.endswith(("weight", "bias"))
    }
