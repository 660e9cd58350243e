"""Several processes that learn as one, started by `torchrun`: each encodes a share of a batch, all know its loss.

A batch is the recipe's, however many processes there are, and all of them draw the same one, since randomness is
counted. Each encodes its share of the texts and hears the others' vectors; heads, loss and ψ are computed by each
alike. The gradients of its own texts go on into its encoder, and what encoders collected is summed. Process 0 alone
clusters, mines, validates and writes files. All of them see the same run folder.

Shapes: B texts of a batch, S of them encoded here, E width of the encoder, N rows of an array, R rows of a table that a
process touched, D width.
"""

import atexit
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

from retrieval.errors import RecipeError, TrainingError, one_line
from retrieval.system import stopping
from training.model.row_tables import merged
from training.model.tokens import TokenizedTexts
from training.optim.grad_cache import Encoding

Number = TypeVar("Number", bound=np.integer[Any])
# Messages of gloo and NCCL that mean a lost process. Their exception types do not tell: they have other causes too.
LOST = re.compile(
    r"connection (closed|reset|refused)|connection was|broken pipe|closed by peer|socket|timed? ?out|remote process|"
    r"recv(value)? failed|store->get|heartbeat", re.IGNORECASE,
)  # fmt: skip
NO_MEMORY = re.compile(r"out of memory|can.?t allocate|cannot allocate|bad_alloc", re.IGNORECASE)
PATIENCE = timedelta(hours=6)  # the others wait while process 0 clusters, mines and validates


@dataclass(frozen=True)
class Processes:
    """The processes of a run as one of them sees them; alone, each of these is what it says without any word sent.

    Each of them raises TrainingError when another process has ended.
    """

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the one that writes and decides."""
        return self.rank == 0

    def refuse_small_batches(self, batch_size: int) -> None:
        """RecipeError when a batch may have no text for one of the processes."""
        if self.size > max(1, batch_size // 2):
            raise RecipeError(
                f"{self.size} processes cannot share batches of {batch_size} queries. Raise batching.batch_size to "
                f"{2 * self.size}, or start fewer."
            )

    def encoding(self, encode: Callable[[TokenizedTexts], Encoding], texts: TokenizedTexts) -> Encoding:
        """The vectors of all `texts`, of which this process encodes its share."""
        return encode(texts) if self.size == 1 else SharedEncoding(self, encode, texts)

    def own(self, order_B: NDArray[np.int64]) -> NDArray[np.int64]:
        """Every size-th of these: this process's share."""
        return order_B[self.rank :: self.size]

    def joined(self, own: Tensor, total: int) -> Tensor:
        """All `total` rows in the order of which `own` gave each process its share; `own` [S, …] are this one's."""
        if self.size == 1:
            return own
        padded = own.new_zeros((-(-total // self.size), *own.shape[1:]))
        padded[: len(own)] = own
        parts = [torch.empty_like(padded) for _ in range(self.size)]
        with _collective():
            dist.all_gather(parts, padded)
        return torch.stack(parts, dim=1).flatten(0, 1)[:total]

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Add up each parameter's gradient over all processes, in place."""
        if self.size == 1:
            return
        for parameter in parameters:
            if parameter.grad is not None:
                with _collective():
                    dist.all_reduce(parameter.grad)

    def sum_rows(self, row_R: Tensor, gradient_RD: Tensor) -> tuple[Tensor, Tensor]:
        """Rows of a table with their gradients, added up over all processes; each brings its own R rows."""
        if self.size == 1:
            return row_R, gradient_RD
        counts = self.joined(torch.tensor([len(row_R)], device=row_R.device), self.size).tolist()
        rows, gradients = (self._of_each(own, max(counts)) for own in (row_R, gradient_RD))
        return merged([(rows[at][:count], gradients[at][:count]) for at, count in enumerate(counts)])

    def _of_each(self, own: Tensor, most: int) -> Tensor:
        """Every process's rows [size, most, …], padded at the end."""
        padded = own.new_zeros((most, *own.shape[1:]))
        padded[: len(own)] = own
        return self.joined(padded, most * self.size).view(most, self.size, *own.shape[1:]).transpose(0, 1)

    def from_first(self, array: NDArray[Number]) -> NDArray[Number]:
        """Process 0's array; the others bring one of as many dimensions and the same dtype."""
        if self.size == 1:
            return array
        shape = torch.tensor(array.shape)
        self.agree([shape])
        values = array.copy() if self.first else np.empty(shape.tolist(), array.dtype)
        if values.size:
            self.agree([torch.from_numpy(values)])
        return values

    def agree(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite these with process 0's."""
        if self.size > 1:
            for tensor in tensors:
                with _collective():
                    dist.broadcast(tensor, src=0)

    def any(self, flag: bool) -> bool:
        """Whether one of the processes says so."""
        if self.size == 1:
            return flag
        said = torch.tensor([int(flag)])
        with _collective():
            dist.all_reduce(said, dist.ReduceOp.MAX)
        return bool(said)

    @contextmanager
    def first_ahead(self) -> Iterator[None]:
        """What follows is done by process 0 first, and by the others when it has finished: they find its files."""
        if not self.first:
            self.any(False)
        yield
        if self.first:
            self.any(False)


ALONE = Processes()


class SharedEncoding:
    """The vectors of `texts`, of which this process encodes every size-th by length, the others the rest.

    Each process draws dropout of its own for its share; what follows is drawn alike by all.
    """

    def __init__(
        self, processes: Processes, encode: Callable[[TokenizedTexts], Encoding], texts: TokenizedTexts
    ) -> None:
        order_B = np.argsort(texts.lengths_N, kind="stable")
        own_S = processes.own(order_B)
        seed = torch.initial_seed()
        with _as_drawn_before():
            torch.manual_seed((seed + 1 + processes.rank) % 2**63)
            self.share = encode(texts.take(own_S))
        device = self.share.vectors_BE.device
        self.own_S = torch.from_numpy(own_S).to(device)
        place_B = torch.from_numpy(order_B).to(device).argsort()
        self.vectors_BE = processes.joined(self.share.vectors_BE.detach(), len(order_B))[place_B].requires_grad_()

    def backward(self) -> None:
        """Carry the gradients of this process's share into its encoder; call it once, after the loss's backward."""
        gradient_BE = self.vectors_BE.grad
        assert gradient_BE is not None, "the loss's backward comes first"
        with _as_drawn_before():
            self.share.vectors_BE.backward(gradient_BE.index_select(0, self.own_S))  # type: ignore[no-untyped-call]
            self.share.backward()


@contextmanager
def processes_of_torchrun() -> Iterator[Processes]:
    """The processes that `torchrun` started, this one among them; ALONE without it."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield ALONE
        return
    backend = "gloo"
    if torch.cuda.is_available():
        backend = "cpu:gloo,cuda:nccl"
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group(backend, timeout=PATIENCE)
    try:
        yield Processes(dist.get_rank(), dist.get_world_size())
    except TrainingError:
        # A group whose processes are gone may end this one with a signal when it is taken apart, here or at exit.
        atexit.register(os._exit, 1)
        raise
    except BaseException:
        if (number := stopping.requested()) is None:
            dist.destroy_process_group()
        else:
            atexit.register(os._exit, 128 + number)  # the other processes stop too, and may have ended
        raise
    dist.destroy_process_group()


@contextmanager
def _as_drawn_before() -> Iterator[None]:
    """Whatever is drawn inside, what follows is drawn as if nothing had been."""
    with torch.random.fork_rng([torch.cuda.current_device()] if torch.cuda.is_available() else []):
        yield


@contextmanager
def _collective() -> Iterator[None]:
    """Turn the RuntimeError of a failed collective into a TrainingError that names the cause.

    torchrun signals all processes at once, so a connection lost after a signal raises StopRequested instead.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise  # faults.told handles it
    except RuntimeError as error:  # from gloo, NCCL, and torch's checks of tensors
        text = one_line(error)
        if NO_MEMORY.search(text):
            raise TrainingError(
                f"memory ran out while the processes of this run exchanged data ({text}). Train into another --out "
                "with a smaller batching.batch_size or batching.pool_size; what was saved before is kept."
            ) from error
        if not LOST.search(text):
            raise TrainingError(
                f"the processes of this run cannot exchange data ({text}). Start all of them with the same releases of "
                "diptych and PyTorch, and the same arguments; what was saved before is kept."
            ) from error
        if (number := stopping.requested()) is not None:
            raise stopping.StopRequested(number) from None
        raise TrainingError(
            f"another process of this run has ended, and its message says why ({text}). Rerun the same command to "
            "resume from what was saved."
        ) from error
