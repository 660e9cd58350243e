"""Data-parallel training in several processes, started by `torchrun`: collectives and the process group.

The batch size does not depend on the number of processes. All processes draw the same batch, because random numbers
depend on counters only. Each process encodes a shard of the texts and gathers all vectors, and holds a shard of ψ, of
which the pool's rows are gathered (training/model/label_shard.py). Heads and loss are computed identically by all. The
gradients of a process's own texts go into its encoder; encoder gradients are summed. Each process mines for some
clusters and encodes the texts of its labels. Rank zero alone clusters, validates and writes files. All processes see
the same run folder.

Shapes: B texts of a batch, S texts or rows of a shard, R rows of a table, D its width.
"""

import atexit
import os
import signal
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
from training.model.label_shard import ALL_LABELS, LabelShard
from training.model.row_table import sum_duplicate_rows
from training.optim.collective_errors import collective_errors

Integer = TypeVar("Integer", bound=np.integer[Any])
TIMEOUT = timedelta(hours=6)  # the other processes wait while rank zero clusters and validates
GATHERED_BYTES = 1 << 26  # of a shard per call, so that rank zero needs little memory for a whole table


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

    @property
    def label_shard(self) -> LabelShard:
        """The labels whose rows this process holds."""
        return ALL_LABELS if self.world_size == 1 else LabelShard(self.rank, self.world_size, self)

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

    def gather_row_blocks(self, shard: Tensor, total: int) -> Iterator[Tensor]:
        """Yield in rank zero the rows of all shards [S, …] in the order that `shard` split, in blocks on the CPU.

        The other processes get no block, but must iterate too. No process ever has all rows.
        """
        row_bytes = shard.element_size() * shard.shape[1:].numel()
        step = max(1, GATHERED_BYTES // max(1, row_bytes))
        if self.world_size == 1:
            yield from (shard[start : start + step].cpu() for start in range(0, total, step))
            return
        if not row_bytes:
            yield from [shard.new_empty((total, *shard.shape[1:]), device="cpu")] if self.is_rank_zero else []
            return
        per_process = -(-total // self.world_size)
        for start in range(0, per_process, step):
            block = shard[start : start + step].cpu().contiguous()
            padded = block.new_zeros((min(step, per_process - start), *block.shape[1:]))
            padded[: len(block)] = block
            shards = [torch.empty_like(padded) for _ in range(self.world_size)] if self.is_rank_zero else None
            with collective_errors():
                dist.gather(_bytes(padded), None if shards is None else [_bytes(one) for one in shards], dst=0)
            if shards is not None:
                yield torch.stack(shards, dim=1).flatten(0, 1)[: total - start * self.world_size]

    def gather_rows(self, shard: Tensor, total: int) -> Tensor | None:
        """Return in rank zero the rows of all shards [total, …] on the CPU, in the order that `shard` split."""
        if self.world_size == 1:
            return shard.cpu()
        gathered, filled = torch.empty((total if self.is_rank_zero else 0, *shard.shape[1:]), dtype=shard.dtype), 0
        for block in self.gather_row_blocks(shard, total):
            gathered[filled : filled + len(block)] = block
            filled += len(block)
        return gathered if self.is_rank_zero else None

    def all_reduce_(self, tensor: Tensor) -> None:
        """Overwrite the tensor with its sum over all processes."""
        if self.world_size > 1:
            with collective_errors():
                dist.all_reduce(tensor)

    def maximum(self, tensor: Tensor) -> Tensor:
        """Overwrite the tensor with the maximum over all processes, and return it."""
        if self.world_size > 1:
            with collective_errors():
                dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return tensor

    def all_reduce_gradients_(self, parameters: Iterable[nn.Parameter]) -> None:
        """Sum each parameter's gradient over all processes, in place."""
        for parameter in parameters:
            if parameter.grad is not None:
                self.all_reduce_(parameter.grad)

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
        return bool(self.maximum(torch.tensor([int(flag)])))

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Let a signal interrupt the block in any process; then all of them raise StopRequested at its end.

        The block has no collective, and must leave consistent state when it is interrupted. Between such blocks, the
        processes of a distributed run cannot be interrupted, so that all call the same collectives.
        """
        if self.world_size == 1:
            with stopping.interruptible():
                yield
            return
        interrupted = False
        try:
            with stopping.interruptible():
                yield
        except (stopping.StopRequested, KeyboardInterrupt):
            interrupted = True
        if self.any(interrupted):
            raise stopping.StopRequested(stopping.requested() or signal.SIGTERM)

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


def _bytes(rows: Tensor) -> Tensor:
    """View contiguous rows [S, …] as bytes [S, B], because gloo does not send every type."""
    return rows.reshape(len(rows), -1).view(torch.uint8)


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
