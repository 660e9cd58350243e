"""How a batch's texts become vectors that the loss sends gradients back through: at once, or a few at a time.

A few at a time puts large batches on small memory (GradCache, Gao et al. 2021): texts are encoded twice. The first time
nothing is kept but the vectors, on which the loss of the whole batch is computed; the second time, a few texts after
another, each vector's gradient goes on into the encoder. Dropout is drawn alike both times.

Shapes: B texts, E width of the encoder.
"""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from training.model.tokens import TokenBatch, TokenizedTexts

Encode = Callable[[TokenBatch], Tensor]


class Encoding(Protocol):
    """Vectors of texts [B, E]; `backward` comes once after the loss's own and carries on what that left undone."""

    vectors_BE: Tensor

    def backward(self) -> None:
        """Carry the gradients of `vectors_BE` into the encoder where the loss's backward did not."""
        ...


class WholeEncoding:
    """The vectors of all `texts` at once, a part of the loss's own graph."""

    def __init__(self, encode: Encode, texts: TokenizedTexts, device: torch.device) -> None:
        self.vectors_BE = encode(texts.padded().to(device))

    def backward(self) -> None:
        """Nothing is left to do."""


class ChunkedEncoding:
    """The vectors of `texts`, `at_once` of like length at a time; `vectors_BE` is a leaf that collects gradients."""

    def __init__(self, encode: Encode, texts: TokenizedTexts, at_once: int, device: torch.device) -> None:
        self.encode, self.device = encode, device
        self.chunks: list[tuple[Tensor, TokenBatch, list[Tensor]]] = []
        vectors = []
        with torch.no_grad():
            for places, batch in texts.batches_by_length(at_once):
                at, drawn = torch.from_numpy(places).to(device), _random_state(device)
                batch = batch.to(device)
                vectors.append(encode(batch))
                self.chunks.append((at, batch, drawn))
        order_B = torch.cat([at for at, _, _ in self.chunks])
        self.vectors_BE = torch.cat(vectors)[order_B.argsort()].requires_grad_()

    def backward(self) -> None:
        """Carry the gradients of `vectors_BE` into the encoder; call it once, after the loss's own backward."""
        gradient_BE = self.vectors_BE.grad
        assert gradient_BE is not None, "the loss's backward comes first"
        for at, batch, drawn in self.chunks:
            _restore(drawn, self.device)
            self.encode(batch).backward(gradient_BE.index_select(0, at))  # type: ignore[no-untyped-call]


def _random_state(device: torch.device) -> list[Tensor]:
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


def _restore(state: list[Tensor], device: torch.device) -> None:
    torch.set_rng_state(state[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state[1], device)
