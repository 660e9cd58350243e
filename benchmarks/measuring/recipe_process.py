"""One recipe and seed in a process of its own, so that its peak memory is its own: train, then ask the test queries.

    python -m benchmarks.measuring.recipe_process DATASET FOLDER RECIPE [KEY=VALUE ...]

FOLDER/checkpoint is trained by the very command a user calls; rankings.json and cost.json come beside it. Shapes: Q
queries.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

import diptych
from benchmarks.peers.process import TIMED_QUERIES, peak_mib
from training.checkpoint.files import read_facts
from training.checkpoint.opened import Checkpoint, load_checkpoint
from training.data.dataset import Dataset
from training.data.ragged import Ragged
from training.data.token_cache import tokenize_in_memory
from training.evaluation.checkpoint_evaluation import selected_mix
from training.evaluation.encoding import encode_labels, encode_queries
from training.evaluation.ranking import rank_labels
from training.evaluation.scoring import ScoreMix, mixes_by_head


def main() -> int:
    """Train or go on training, then write rankings and costs; the exit code of `diptych train` when that fails."""
    dataset_folder, folder, recipe = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    checkpoint, training = folder / "checkpoint", folder / "training.json"
    untouched, finished = not checkpoint.exists(), (checkpoint / "checkpoint.json").is_file()
    if untouched:
        training.unlink(missing_ok=True)  # of a run that somebody removed
    settings = [part for override in sys.argv[4:] for part in ("--set", override)]
    where = ["--dataset", str(dataset_folder), "--out", str(checkpoint)]
    started, started_cpu = time.perf_counter(), time.process_time()
    if code := diptych.main(["train", *where, "--recipe", recipe, *settings]):
        return code
    wall, cpu = time.perf_counter() - started, time.process_time() - started_cpu
    if not training.is_file():
        cost = {
            "train_seconds": read_facts(checkpoint).history[-1].seconds,
            # What an earlier process did is not known here.
            "wall_seconds": wall if untouched else None,
            "train_cpu_seconds": cpu if untouched else None,
            "peak_mib": None if finished else peak_mib(),
        }
        training.write_text(json.dumps(cost), encoding="utf-8")
    opened, dataset = load_checkpoint(checkpoint), Dataset.open(dataset_folder)
    asked = Answers(opened, dataset)
    rankings = asked.rankings()
    (folder / "rankings.json").write_text(json.dumps(rankings), encoding="utf-8")
    cost = json.loads(training.read_text(encoding="utf-8"))
    cost |= {"seconds_per_thousand": asked.seconds_per_thousand(), "classifier_weight": opened.classifier_weight}
    if cost["peak_mib"] is not None:
        cost["peak_mib"] = peak_mib()  # answering may have needed more
    (folder / "cost.json").write_text(json.dumps(cost), encoding="utf-8")
    return 0


class Answers:
    """A checkpoint's exact answers to the test queries that have truth."""

    def __init__(self, opened: Checkpoint, dataset: Dataset) -> None:
        self.opened, self.asked, self.cpu = opened, dataset.scored("test"), torch.device("cpu")
        label_tokens = tokenize_in_memory(dataset.label_texts, opened.tokenizer)
        self.labels = encode_labels(opened.model, label_tokens, opened.positives_L, self.cpu, opened.cone_fraction)

    def rankings(self) -> dict[str, list[list[int]]]:
        """Label rows by head, best first, excluded labels left out."""
        heads = mixes_by_head(selected_mix(self.opened))
        found = self.ask(self.asked.texts, list(dict.fromkeys(heads.values())), self.asked.exclude)
        return {head: found[mix].tolist() for head, mix in heads.items()}

    def seconds_per_thousand(self) -> float:
        """Processor time of one thread that tokenizes, encodes and looks at every label (no index is built here)."""
        texts, threads = self.asked.texts[:TIMED_QUERIES], torch.get_num_threads()
        torch.set_num_threads(1)
        started = time.process_time()
        self.ask(texts, [selected_mix(self.opened)], Ragged.empty(len(texts)))
        spent = time.process_time() - started
        torch.set_num_threads(threads)
        return 1000 * spent / len(texts)

    def ask(self, texts: list[str], mixes: list[ScoreMix], exclude: Ragged) -> dict[ScoreMix, Any]:
        """Return exact rankings [Q, K] of any texts, by mix."""
        tokens = tokenize_in_memory(texts, self.opened.tokenizer)
        queries = encode_queries(self.opened.model, tokens, self.cpu)
        return rank_labels(queries, self.labels, mixes, exclude, exact=mixes)


if __name__ == "__main__":
    sys.exit(main())
