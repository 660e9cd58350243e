"""Encode the texts of a batch for a loss that sends gradients back: at once, in chunks, or sharded over processes.

GradCache (Gao et al. 2021) trains large batches in little memory by encoding texts twice. The first pass keeps only the
vectors, on which the loss of the whole batch is computed. The second pass encodes one chunk after another and
backpropagates the gradients of its vectors. Both passes draw the same dropout.

Shapes: B texts, S texts of a shard, E width of the encoder.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from training.data.token_cache import TokenBatch, TokenizedTexts
from training.optim.distributed import Processes

Encode = Callable[[TokenBatch], Tensor]


class Encoding(Protocol):
    """Vectors of texts [B, E]; call `backward` once, after the loss's backward pass."""

    vectors_BE: Tensor

    def backward(self) -> None:
        """Backpropagate the gradients of `vectors_BE` into the encoder, unless the loss's backward pass did."""
        ...


class DirectEncoding:
    """All texts encoded at once, as part of the loss's own graph."""

    def __init__(self, encode: Encode, texts: TokenizedTexts, device: torch.device) -> None:
        self.vectors_BE = encode(texts.padded().to(device))

    def backward(self) -> None:
        """Do nothing: the loss's backward pass includes the encoder."""


class GradCacheEncoding:
    """Texts encoded in chunks of `chunk_size` texts of similar length; `vectors_BE` is a leaf."""

    def __init__(self, encode: Encode, texts: TokenizedTexts, chunk_size: int, device: torch.device) -> None:
        self._encode, self._device = encode, device
        self._chunks: list[tuple[Tensor, TokenBatch, list[Tensor]]] = []
        vectors = []
        with torch.no_grad():
            for positions, tokens in texts.batches_by_length(chunk_size):
                rows, random_state = torch.from_numpy(positions).to(device), _random_state(device)
                tokens = tokens.to(device)
                vectors.append(encode(tokens))
                self._chunks.append((rows, tokens, random_state))
        order_B = torch.cat([rows for rows, _, _ in self._chunks])
        self.vectors_BE = torch.cat(vectors)[order_B.argsort()].requires_grad_()

    def backward(self) -> None:
        """Encode each chunk again with the same dropout and backpropagate the gradients of its vectors."""
        gradient_BE = self.vectors_BE.grad
        assert gradient_BE is not None, "the loss's backward comes first"
        for rows, tokens, random_state in self._chunks:
            _set_random_state(random_state, self._device)
            self._encode(tokens).backward(gradient_BE.index_select(0, rows))  # type: ignore[no-untyped-call]


class ShardedEncoding:
    """Texts of which each process encodes a shard; `vectors_BE` is a leaf with the vectors of all.

    Shards are taken in order of length. Each process draws its own dropout for its shard. The gradient exchange is
    explicit because all processes compute the whole loss: torch.distributed.nn.functional.all_gather would sum their
    equal gradients, which is world_size times too much and needs another collective.
    """

    def __init__(self, processes: Processes, encode: Callable[[TokenizedTexts], Encoding], texts: TokenizedTexts):
        order_B = np.argsort(texts.lengths_N, kind="stable")
        shard_S = processes.shard(order_B)
        seed = torch.initial_seed()
        with _preserved_random_state():
            torch.manual_seed((seed + 1 + processes.rank) % 2**63)
            self._shard = encode(texts.take(shard_S))
        device = self._shard.vectors_BE.device
        self._rows_S = torch.from_numpy(shard_S).to(device)
        position_B = torch.from_numpy(order_B).to(device).argsort()
        gathered_BE = processes.all_gather_rows(self._shard.vectors_BE.detach(), len(order_B))
        self.vectors_BE = gathered_BE[position_B].requires_grad_()

    def backward(self) -> None:
        """Backpropagate the gradients of this process's shard into its encoder."""
        gradient_BE = self.vectors_BE.grad
        assert gradient_BE is not None, "the loss's backward comes first"
        with _preserved_random_state():
            self._shard.vectors_BE.backward(gradient_BE.index_select(0, self._rows_S))  # type: ignore[no-untyped-call]
            self._shard.backward()


@contextmanager
def _preserved_random_state() -> Iterator[None]:
    """Restore torch's random state after the block, so all processes draw the same numbers afterwards."""
    with torch.random.fork_rng([torch.cuda.current_device()] if torch.cuda.is_available() else []):
        yield


def _random_state(device: torch.device) -> list[Tensor]:
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


def _set_random_state(state: list[Tensor], device: torch.device) -> None:
    torch.set_rng_state(state[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state[1], device)
