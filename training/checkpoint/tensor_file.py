"""Write and read safetensors files, also of tensors whose rows are spread over the processes of a run.

A file has the same layout for any number of processes. No process holds a spread tensor as a whole: rank zero receives
and writes it in blocks of rows, and each process reads its own rows.

Shapes: N rows of a tensor, S rows of a process's shard.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor

from retrieval.errors import CheckpointError
from retrieval.system.atomic_files import atomic_file
from training.optim.distributed import SINGLE_PROCESS, Processes

DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
ROWS_PER_READ = 1 << 16


@dataclass(frozen=True)
class ShardedRows:
    """A tensor of `total` rows, of which this process has those of its shard."""

    rows: Tensor
    total: int

    @property
    def shape(self) -> list[int]:
        """Return the shape of the whole tensor."""
        return [self.total, *self.rows.shape[1:]]


def write_tensors(
    path: Path,
    tensors: Mapping[str, Tensor | ShardedRows],
    facts: Mapping[str, Any],
    processes: Processes = SINGLE_PROCESS,
) -> None:
    """Write a safetensors file with JSON facts in its header. All processes call it; rank zero writes.

    Raises SafetensorError or OSError.
    """
    metadata = {"facts": json.dumps(facts)}
    if processes.world_size == 1:
        whole = {name: each.rows if isinstance(each, ShardedRows) else each for name, each in tensors.items()}
        with atomic_file(path) as temporary:
            save_file(whole, temporary, metadata=metadata)
        return
    header, names = _header(tensors, metadata)
    if not processes.is_rank_zero:
        for _ in _content(tensors, names, processes):
            pass
        return
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        file.write(header)
        for block in _content(tensors, names, processes):
            if block.numel():  # an empty one may have a stride of 0, which cannot be viewed as bytes
                file.write(block.reshape(-1).view(torch.uint8).numpy().data)


def read_tensors(
    path: Path, is_sharded: Callable[[str], bool] = lambda _: False, processes: Processes = SINGLE_PROCESS
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read tensors and facts of a file that `write_tensors` wrote.

    Of tensors whose name `is_sharded` accepts, only the rows of this process's shard are read. Raises CheckpointError.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} is missing. Train again.")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            tensors = {
                name: _read_shard(file, name, processes)
                if processes.world_size > 1 and is_sharded(name)
                else file.get_tensor(name)
                for name in file.keys()  # noqa: SIM118
            }
            return tensors, json.loads(file.metadata()["facts"])
    except (safetensors.SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} is damaged ({error}). Delete the folder and train again.") from error


def _read_shard(file: Any, name: str, processes: Processes) -> Tensor:
    """Read the rows of this process's shard [S, …], in blocks."""
    stored = file.get_slice(name)
    total, step = stored.get_shape()[0], ROWS_PER_READ * processes.world_size
    return torch.cat([
        stored[start : min(start + step, total)][processes.rank :: processes.world_size].clone()
        for start in range(0, total, step)
    ])  # fmt: skip


def _header(tensors: Mapping[str, Tensor | ShardedRows], metadata: dict[str, str]) -> tuple[bytes, list[str]]:
    """Return the header of a safetensors file and the names of the tensors in the order of their content.

    Wide types come first, so that every tensor is aligned.
    """
    dtypes = {name: each.rows.dtype if isinstance(each, ShardedRows) else each.dtype for name, each in tensors.items()}
    names = sorted(tensors, key=lambda name: (-dtypes[name].itemsize, name))
    header: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name in names:
        shape, start = list(tensors[name].shape), end
        end += dtypes[name].itemsize * torch.Size(shape).numel()
        header[name] = {"dtype": DTYPES[dtypes[name]], "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, names


def _content(tensors: Mapping[str, Tensor | ShardedRows], names: list[str], processes: Processes) -> Iterator[Tensor]:
    """Yield the content in the order of `names`, in blocks on the CPU; in rank zero the rows of all processes."""
    for name in names:
        match tensors[name]:
            case ShardedRows(rows, total):
                yield from processes.gather_row_blocks(rows, total)
            case Tensor() as whole:
                yield whole.detach().cpu().contiguous()
