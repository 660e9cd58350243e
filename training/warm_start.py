"""A run that begins with what an earlier one learned of texts: its encoder and heads; every ψ starts anew.

Labels may have come and gone since, so their rows are not taken over.
"""

from pathlib import Path

import torch

from retrieval.errors import RecipeError
from training.checkpoint import load_checkpoint
from training.model import TransformerEncoder, UnifiedModel
from training.rowwise import RowTable
from training.spelling import SpelledVectors
from training.static_encoder import StaticEncoder


@torch.no_grad()
def warm_start(model: UnifiedModel, source: Path) -> None:
    """Give `model` encoder and heads of the checkpoint in `source`.

    What its tokens share in spelling stands added up in their vectors, so pieces begin at zero. Raises CheckpointError
    when there is no checkpoint, RecipeError when its encoder or heads have another shape.
    """
    learned = load_checkpoint(source).model
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
