"""Tensor files of several processes: the layout of safetensors' own writer, with rows from every process."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.multiprocessing.spawn import spawn

from retrieval.errors import CheckpointError
from training.checkpoint.tensor_file import ShardedRows, read_tensors, write_tensors
from training.optim import distributed
from training.optim.distributed import Processes

N = 23  # rows; no multiple of the number of processes


def whole_tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "rows": torch.randn(N, 5, generator=generator),
        "half": torch.randn(N, 3, generator=generator).bfloat16(),
        "steps": torch.arange(N, dtype=torch.int32),
        "trained": (torch.arange(N) % 3).to(torch.uint8),
        "no_width": torch.zeros(N, 0),
        "head": torch.randn(2, 2, generator=generator).T,
        "step": torch.tensor(3.0),
        "empty": torch.zeros(0, dtype=torch.int64),
    }


SHARDED = ("rows", "half", "steps", "trained", "no_width")


def write_in_process(rank: int, world_size: int, folder: str) -> None:
    """Write the tensors as one of several processes, in blocks of a few rows, and read them again."""
    torch.distributed.init_process_group("gloo", f"file://{folder}/group", rank=rank, world_size=world_size)
    distributed.GATHERED_BYTES = 40
    processes, path = Processes(rank, world_size), Path(folder) / "sharded.safetensors"
    tensors: dict[str, torch.Tensor | ShardedRows] = {
        name: ShardedRows(each[rank::world_size], N) if name in SHARDED else each
        for name, each in whole_tensors().items()
    }
    write_tensors(path, tensors, {"epoch": 3}, processes)
    with processes.rank_zero_first():
        mine, facts = read_tensors(path, lambda name: name in SHARDED, processes)
    assert facts == {"epoch": 3}
    for name, each in whole_tensors().items():
        assert torch.equal(mine[name], each[rank::world_size] if name in SHARDED else each), name
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("world_size", [2, 3])
def test_a_file_of_several_processes_is_that_of_one(tmp_path: Path, world_size: int) -> None:
    """If it fails, a checkpoint has rows in another order, or cannot be read by another number of processes."""
    spawn(write_in_process, (world_size, str(tmp_path)), world_size)  # type: ignore[no-untyped-call]
    one = {name: each.contiguous() for name, each in whole_tensors().items()}
    write_tensors(tmp_path / "one.safetensors", one, {"epoch": 3})
    assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "sharded.safetensors").read_bytes()
    several = load_file(tmp_path / "sharded.safetensors")
    assert several.keys() == one.keys()
    assert all(torch.equal(several[name], one[name]) for name in one)


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    """If it fails, a process of a resumed run reads random rows."""
    path = tmp_path / "one.safetensors"
    write_tensors(path, {"rows": torch.ones(N, 5)}, {})
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(CheckpointError, match="is damaged"):
        read_tensors(path, lambda _: True, Processes(1, 2))
