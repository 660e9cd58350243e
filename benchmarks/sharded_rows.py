"""Measure classifier rows that are spread over processes: memory, time per step, and time of a save.

    python benchmarks/sharded_rows.py [--labels 1000000] [--dim 256] [--pool 4000] [--steps 50] [--processes 1 2 4]

For each number of processes, as many are started on this machine, with gloo and one thread each. A step gathers the
rows of a random pool in every process, computes gradients, and updates the rows. A save writes all rows and their
optimizer state to one file, which is deleted. The network is the loopback device, and processes share the cores, so
times are upper limits for as many machines with a fast network. Prints one line per number of processes.
"""

import argparse
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import psutil
import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from benchmarks.measuring.running import count
from training.checkpoint.tensor_file import ShardedRows, write_tensors
from training.model.row_table import RowTable
from training.optim.distributed import Processes
from training.optim.row_optimizer import update_rows_

WARMUP_STEPS = 5


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Cost of classifier rows that are spread over processes.")
    parser.add_argument("--labels", type=count, default=1_000_000)
    parser.add_argument("--dim", type=count, default=256)
    parser.add_argument("--pool", type=count, default=4_000, help="labels of a step")
    parser.add_argument("--steps", type=count, default=50)
    parser.add_argument("--processes", type=count, nargs="+", default=[1, 2, 4])
    options = parser.parse_args()
    print(f"{options.labels:,} labels, {options.dim} dimensions, a pool of {options.pool:,}")
    for world_size in options.processes:
        with TemporaryDirectory() as folder:
            spawn(measure, (world_size, folder, options), world_size)  # type: ignore[no-untyped-call]


def measure(rank: int, world_size: int, folder: str, options: argparse.Namespace) -> None:
    """Take steps and save as one of `world_size` processes; rank zero prints the greatest values of all."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/group", rank=rank, world_size=world_size)
    processes = Processes(rank, world_size)
    before = psutil.Process().memory_info().rss
    shard = processes.label_shard
    table = RowTable(torch.randn(shard.size(options.labels), options.dim), shard)
    resident = psutil.Process().memory_info().rss - before
    seconds = [step(table, at, options) for at in range(WARMUP_STEPS + options.steps)][WARMUP_STEPS:]
    started = time.perf_counter()
    tensors: dict[str, Tensor | ShardedRows] = {
        name: ShardedRows(tensor, options.labels) for name, tensor in table.state_dict().items()
    }
    write_tensors(Path(folder) / "rows.safetensors", tensors, {}, processes)
    saved = time.perf_counter() - started
    held = sum(tensor.nbytes for tensor in table.state_dict().values())
    worst = processes.maximum(torch.tensor([resident, held, statistics.median(seconds), saved], dtype=torch.float64))
    if processes.is_rank_zero:
        memory, rows, step_seconds, save_seconds = worst.tolist()
        print(
            f"{world_size} processes: {rows / 1e6:,.0f} MB of rows and state per process ({memory / 1e6:,.0f} MB "
            f"resident), {1000 * step_seconds:.1f} ms per step, {save_seconds:.1f} s per save"
        )
    dist.destroy_process_group()


def step(table: RowTable, at: int, options: argparse.Namespace) -> float:
    """Gather the rows of a pool, compute gradients and update the rows; return the seconds."""
    pool = np.random.default_rng(at).choice(options.labels, options.pool, replace=False)
    started = time.perf_counter()
    rows_PD = table.take(torch.from_numpy(pool))
    (rows_PD * rows_PD).sum().backward()  # type: ignore[no-untyped-call]
    update_rows_(table, *table.pop_gradients(), 1e-3)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
