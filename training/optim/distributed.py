"""Data-parallel training in several processes, started by `torchrun`: collectives and the process group.

The batch size does not depend on the number of processes. All processes draw the same batch, because random numbers
depend on counters only. Each process encodes a shard of the texts and gathers all vectors. Heads, loss and ψ are
computed identically by all. The gradients of a process's own texts go into its encoder; encoder gradients are summed.
Rank zero alone clusters, mines, validates and writes files. All processes see the same run folder.

Shapes: B texts of a batch, S texts of a shard, R rows of a table, D its width.
"""

import atexit
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

from retrieval.errors import RecipeError, TrainingError
from retrieval.system import stopping
from training.model.row_table import sum_duplicate_rows
from training.optim.collective_errors import collective_errors

Integer = TypeVar("Integer", bound=np.integer[Any])
TIMEOUT = timedelta(hours=6)  # the other processes wait while rank zero clusters, mines and validates


@dataclass(frozen=True)
class Processes:
    """The processes of a run, seen from the one with this `rank`. With world size 1 every collective is a no-op.

    Every collective raises TrainingError if another process has ended.
    """

    rank: int = 0
    world_size: int = 1

    @property
    def is_rank_zero(self) -> bool:
        """Whether this process writes files and decides."""
        return self.rank == 0

    def require_batch_size(self, batch_size: int) -> None:
        """Raise RecipeError if some process could get no text of a batch."""
        if self.world_size > max(1, batch_size // 2):
            raise RecipeError(
                f"{self.world_size} processes cannot share batches of {batch_size} queries. Raise batching.batch_size "
                f"to {2 * self.world_size}, or start fewer."
            )

    def shard(self, order_B: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return this process's shard [S]: every world_size-th value."""
        return order_B[self.rank :: self.world_size]

    def all_gather_rows(self, shard: Tensor, total: int) -> Tensor:
        """Gather the shards [S, …] of all processes into [total, …], in the order that `shard` split."""
        if self.world_size == 1:
            return shard
        padded = shard.new_zeros((-(-total // self.world_size), *shard.shape[1:]))
        padded[: len(shard)] = shard
        shards = [torch.empty_like(padded) for _ in range(self.world_size)]
        with collective_errors():
            dist.all_gather(shards, padded)
        return torch.stack(shards, dim=1).flatten(0, 1)[:total]

    def all_reduce_gradients_(self, parameters: Iterable[nn.Parameter]) -> None:
        """Sum each parameter's gradient over all processes, in place."""
        if self.world_size == 1:
            return
        for parameter in parameters:
            if parameter.grad is not None:
                with collective_errors():
                    dist.all_reduce(parameter.grad)

    def all_reduce_rows(self, rows_R: Tensor, gradient_RD: Tensor) -> tuple[Tensor, Tensor]:
        """Sum the gradients of table rows over all processes; each process has its own R distinct rows."""
        if self.world_size == 1:
            return rows_R, gradient_RD
        counts = self.all_gather_rows(torch.tensor([len(rows_R)], device=rows_R.device), self.world_size).tolist()
        rows, gradients = (self._all_gather_padded(values, max(counts)) for values in (rows_R, gradient_RD))
        return sum_duplicate_rows([(rows[rank][:count], gradients[rank][:count]) for rank, count in enumerate(counts)])

    def _all_gather_padded(self, values: Tensor, length: int) -> Tensor:
        """Gather the values of all processes as [world_size, length, …], padded with zeros."""
        padded = values.new_zeros((length, *values.shape[1:]))
        padded[: len(values)] = values
        gathered = self.all_gather_rows(padded, length * self.world_size)
        return gathered.view(length, self.world_size, *values.shape[1:]).transpose(0, 1)

    def broadcast_array(self, array: NDArray[Integer]) -> NDArray[Integer]:
        """Return rank zero's array; the others pass one with the same dtype and number of dimensions."""
        if self.world_size == 1:
            return array
        shape = torch.tensor(array.shape)
        self.broadcast_([shape])
        values = array.copy() if self.is_rank_zero else np.empty(shape.tolist(), array.dtype)
        if values.size:
            self.broadcast_([torch.from_numpy(values)])
        return values

    def broadcast_(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite the tensors with rank zero's."""
        if self.world_size > 1:
            for tensor in tensors:
                with collective_errors():
                    dist.broadcast(tensor, src=0)

    def any(self, flag: bool) -> bool:
        """Return whether the flag is true in any process."""
        if self.world_size == 1:
            return flag
        flags = torch.tensor([int(flag)])
        with collective_errors():
            dist.all_reduce(flags, dist.ReduceOp.MAX)
        return bool(flags)

    @contextmanager
    def rank_zero_first(self) -> Iterator[None]:
        """Run the block in rank zero first; the others run it afterwards and can read rank zero's files."""
        if not self.is_rank_zero:
            self._barrier()
        yield
        if self.is_rank_zero:
            self._barrier()

    def _barrier(self) -> None:
        self.any(False)


SINGLE_PROCESS = Processes()


@contextmanager
def torchrun_processes() -> Iterator[Processes]:
    """Initialize the process group that `torchrun` describes and yield it; SINGLE_PROCESS without torchrun."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield SINGLE_PROCESS
        return
    backend = "gloo"
    if torch.cuda.is_available():
        backend = "cpu:gloo,cuda:nccl"
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group(backend, timeout=TIMEOUT)
    try:
        yield Processes(dist.get_rank(), dist.get_world_size())
    except TrainingError:
        # Destroying a group with dead processes, here or at exit, may end this process with a signal.
        atexit.register(os._exit, 1)
        raise
    except BaseException:
        if (number := stopping.requested()) is None:
            dist.destroy_process_group()
        else:
            atexit.register(os._exit, 128 + number)  # the other processes stop too, and may have ended
        raise
    dist.destroy_process_group()
