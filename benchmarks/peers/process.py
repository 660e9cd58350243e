"""What every peer's process does: read the task, learn, answer, and write what that cost.

    python -m benchmarks.peers.MODULE TASK OUT SETTINGS THREADS

Runs in an environment of the peer's own, so nothing in this folder but environments.py may import the project.

TASK holds texts.json (`train`, `test`, `labels`) and positives.npz (`values`, `offsets` of the train rows' label rows;
`depth_Q`, how many labels each test query wants). OUT receives rankings.json and cost.json. Nobody here sees the test
truth or which labels are excluded: a query is asked for as many more labels as it excludes, and they are taken out when
it is scored. Shapes: N training queries, Q test queries, L labels, F features.
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
class Task:
    """Texts, training positives Y_NL as a sparse 0/1 matrix, and the depth each test query is answered to."""

    train_texts: list[str]
    label_texts: list[str]
    test_texts: list[str]
    positives_NL: Any
    depth_Q: Any

    @classmethod
    def read(cls, folder: Path) -> "Task":
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
    """A system to compare with; `settings` are its own, as systems.py lists them."""

    def __init__(self, settings: dict[str, Any], threads: int) -> None:
        self.settings = settings
        self.threads = threads

    @abstractmethod
    def fit(self, task: Task) -> None:
        """Learn from the training texts and their positives."""

    @abstractmethod
    def rank(self, texts: list[str], depth_Q: Any) -> list[list[int]]:
        """Up to `depth_Q[q]` label rows for each query, best first, in one thread."""


def run(kind: type[Peer]) -> None:
    """The whole life of a peer's process; `kind` is what to run."""
    task_folder, out = Path(sys.argv[1]), Path(sys.argv[2])
    task, peer = Task.read(task_folder), kind(json.loads(sys.argv[3]), int(sys.argv[4]))
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
    """Most memory this process held at once, in MiB.

    VmHWM and not getrusage: the latter starts at what the parent held when it started this process.
    """
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
    if found is None:
        raise RuntimeError("/proc/self/status has no VmHWM; peak memory is measured on Linux only")
    return int(found[1]) / 1024


def best_first(scores: Any, rows: Any, depth: int) -> list[int]:
    """The `depth` rows of greatest score, best first; equal scores by row number."""
    if len(scores) > depth:
        least = np.partition(scores, len(scores) - depth)[len(scores) - depth]
        scores, rows = scores[scores >= least], rows[scores >= least]
    return [int(row) for row in rows[np.lexsort((rows, -scores))[:depth]]]
