"""Row tables that are spread over processes, compared with whole ones, bit by bit."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.multiprocessing.spawn import spawn

from training.model.label_shard import ALL_LABELS, LabelShard
from training.model.row_table import RowTable
from training.optim.distributed import Processes
from training.optim.row_optimizer import update_rows_

N, D, STEPS = 4, 6, 4


def trained_table(shard: LabelShard, dtype: torch.dtype) -> RowTable:
    """Train some rows for a few steps; every process draws the same pools, gradients and noise."""
    torch.manual_seed(0)
    table = RowTable(torch.randn(N, D).to(dtype)[shard.labels(N)], shard)
    for _ in range(STEPS):
        pool = torch.randperm(N)[:3]
        rows = table.take(pool)
        (rows * torch.randn(3, D)).sum().backward()  # type: ignore[no-untyped-call]
        update_rows_(table, *table.pop_gradients(), 0.1)
    return table


def train_in_process(rank: int, world_size: int, folder: str, dtype: torch.dtype) -> None:
    """Train as one of several processes, and save the rows that this one gathered and its own."""
    torch.distributed.init_process_group("gloo", f"file://{folder}/group", rank=rank, world_size=world_size)
    processes = Processes(rank, world_size)
    table = trained_table(processes.label_shard, dtype)
    held = {name: len(tensor) for name, tensor in table.state_dict().items()}
    assert set(held.values()) == {len(range(rank, N, world_size))}
    gathered = {name: processes.gather_rows(tensor, N) for name, tensor in table.state_dict().items()}
    if processes.is_rank_zero:
        save_file(gathered, Path(folder) / "gathered.safetensors")
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("world_size", [2, 5])  # of five processes, one has no label
def test_rows_of_several_processes_are_those_of_one(tmp_path: Path, world_size: int, dtype: torch.dtype) -> None:
    """If it fails, a row is lost, updated twice or rounded differently when it is in another process."""
    spawn(train_in_process, (world_size, str(tmp_path), dtype), world_size)  # type: ignore[no-untyped-call]
    gathered = load_file(tmp_path / "gathered.safetensors")
    for name, tensor in trained_table(ALL_LABELS, dtype).state_dict().items():
        assert torch.equal(gathered[name], tensor), name
