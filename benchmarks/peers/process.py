"""The process of a peer: read the task, train, rank, and write rankings and costs.

    python -m benchmarks.peers.MODULE TASK OUT SETTINGS THREADS

Runs in the environment of the peer, so only environments.py in this folder may import Diptych.

TASK has texts.json (`train`, `test`, `labels`) and positives.npz (`values` and `offsets` of the label rows of the
training queries; `depth_Q`, the number of labels to rank per test query). OUT receives rankings.json and cost.json.
Peers do not know true and excluded labels of test queries. A query's depth includes its number of excluded labels,
which are removed before scoring. Shapes: N training queries, Q test queries, L labels, F features.
"""

import json
import re
import sys
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

TIMED_QUERIES = 1000
TIMED_DEPTH = 10


@dataclass(frozen=True)
class PeerTask:
    """Texts, training positives [N, L] as a sparse 0/1 matrix, and the number of labels to rank per test query [Q]."""

    train_texts: list[str]
    label_texts: list[str]
    test_texts: list[str]
    positives_NL: Any
    depth_Q: Any

    @classmethod
    def read(cls, folder: Path) -> "PeerTask":
        """Read what measuring.scoring.write_task wrote."""
        texts = json.loads((folder / "texts.json").read_text(encoding="utf-8"))
        with np.load(folder / "positives.npz", allow_pickle=False) as arrays:
            values, offsets, depth_Q = arrays["values"], arrays["offsets"], arrays["depth_Q"]
        shape = len(texts["train"]), len(texts["labels"])
        ones = np.ones(len(values), np.float32)
        return cls(
            texts["train"], texts["labels"], texts["test"], sp.csr_matrix((ones, values, offsets), shape), depth_Q
        )


class Peer(ABC):
    """A system to compare with; systems.py lists its `settings`."""

    def __init__(self, settings: dict[str, Any], threads: int) -> None:
        self.settings = settings
        self.threads = threads

    @abstractmethod
    def fit(self, task: PeerTask) -> None:
        """Train on the training texts and their positives."""

    @abstractmethod
    def rank(self, texts: list[str], depth_Q: Any) -> list[list[int]]:
        """Return up to `depth_Q[q]` label rows per query, best first, using one thread."""


def run(kind: type[Peer]) -> None:
    """Run a peer: train on the task, measure ranking, and write rankings and costs."""
    task_folder, out = Path(sys.argv[1]), Path(sys.argv[2])
    task, peer = PeerTask.read(task_folder), kind(json.loads(sys.argv[3]), int(sys.argv[4]))
    started, started_cpu = time.perf_counter(), time.process_time()
    peer.fit(task)
    cost = {"train_seconds": time.perf_counter() - started, "train_cpu_seconds": time.process_time() - started_cpu}
    timed = task.test_texts[:TIMED_QUERIES]
    started_cpu = time.process_time()
    peer.rank(timed, np.full(len(timed), TIMED_DEPTH))
    cost["seconds_per_thousand"] = 1000 * (time.process_time() - started_cpu) / len(timed)
    rankings = peer.rank(task.test_texts, task.depth_Q)
    (out / "rankings.json").write_text(json.dumps({"unified": rankings}), encoding="utf-8")
    cost["peak_mib"] = peak_mib()
    (out / "cost.json").write_text(json.dumps(cost), encoding="utf-8")


def peak_mib() -> float:
    """Return the peak memory of this process in MiB.

    Uses VmHWM because getrusage includes the memory of the parent at the start of this process.
    """
    match = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
    if match is None:
        raise RuntimeError("/proc/self/status has no VmHWM; peak memory is measured on Linux only")
    return int(match[1]) / 1024


def best_first(scores: Any, rows: Any, depth: int) -> list[int]:
    """Return the `depth` rows with the highest scores, best first; equal scores by row number."""
    if len(scores) > depth:
        lowest = np.partition(scores, len(scores) - depth)[len(scores) - depth]
        scores, rows = scores[scores >= lowest], rows[scores >= lowest]
    return [int(row) for row in rows[np.lexsort((rows, -scores))[:depth]]]
