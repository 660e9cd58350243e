"""Train one recipe with one seed and rank the test queries, in a separate process to measure its peak memory.

    python -m benchmarks.measuring.recipe_process DATASET FOLDER RECIPE [KEY=VALUE ...]

`diptych train` writes FOLDER/checkpoint; this program adds rankings.json, seen_rankings.json (of the labels with a
training positive) and cost.json to FOLDER; cost.json of a cascade has the recall of its shortlists too. Shapes: Q
queries, L labels.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import diptych
from benchmarks.peers.process import TIMED_QUERIES, peak_mib
from training.checkpoint.files import read_facts
from training.checkpoint.opened import Checkpoint, load_checkpoint
from training.data.dataset import Dataset, Split
from training.data.ragged import Ragged
from training.data.token_cache import tokenize_in_memory
from training.evaluation.cascade.ranker import CASCADE_MIX, CascadeRanker, shortlist_recall
from training.evaluation.checkpoint_evaluation import checkpoint_memory, label_ranker, selected_mix, tuned_mix
from training.evaluation.encoding import encode_labels, encode_queries
from training.evaluation.headline import UNIFIED
from training.evaluation.ranking import rank_labels
from training.evaluation.scoring import ScoreMix, mixes_by_head


def main() -> int:
    """Train or resume, then write rankings and costs. Returns the exit code of `diptych train` if it fails."""
    dataset_folder, folder, recipe = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    checkpoint, training = folder / "checkpoint", folder / "training.json"
    is_new, finished = not checkpoint.exists(), (checkpoint / "checkpoint.json").is_file()
    if is_new:
        training.unlink(missing_ok=True)  # of a checkpoint that was deleted
    settings = [part for override in sys.argv[4:] for part in ("--set", override)]
    where = ["--dataset", str(dataset_folder), "--out", str(checkpoint)]
    started, started_cpu = time.perf_counter(), time.process_time()
    if code := diptych.main(["train", *where, "--recipe", recipe, *settings]):
        return code
    wall, cpu = time.perf_counter() - started, time.process_time() - started_cpu
    if not training.is_file():
        cost = {
            "train_seconds": read_facts(checkpoint).history[-1].seconds,
            # The time of an earlier process is unknown.
            "wall_seconds": wall if is_new else None,
            "train_cpu_seconds": cpu if is_new else None,
            "peak_mib": None if finished else peak_mib(),
        }
        training.write_text(json.dumps(cost), encoding="utf-8")
    opened, dataset = load_checkpoint(checkpoint), Dataset.open(dataset_folder)
    search = ExactSearch(opened, dataset) if opened.recipe.cascade is None else CascadeSearch(opened, dataset)
    (folder / "rankings.json").write_text(json.dumps(search.rankings()), encoding="utf-8")
    seen = search.rankings(opened.positives_L > 0)
    (folder / "seen_rankings.json").write_text(json.dumps(seen), encoding="utf-8")
    cost = json.loads(training.read_text(encoding="utf-8"))
    cost |= {"seconds_per_thousand": search.seconds_per_thousand(), "classifier_weight": opened.classifier_weight}
    if isinstance(search, CascadeSearch):
        cost["shortlist_recall"] = search.shortlist_recalls()
    if cost["peak_mib"] is not None:
        cost["peak_mib"] = peak_mib()  # of training and search
    (folder / "cost.json").write_text(json.dumps(cost), encoding="utf-8")
    return 0


class ExactSearch:
    """Exact search of a checkpoint's labels for the test queries that have a true label."""

    def __init__(self, opened: Checkpoint, dataset: Dataset) -> None:
        self.opened, self.queries, self.cpu = opened, dataset.scored("test"), torch.device("cpu")
        label_tokens = tokenize_in_memory(dataset.label_texts, opened.tokenizer)
        self.labels = encode_labels(
            opened.unified, label_tokens, opened.positives_L, self.cpu, opened.cone_fraction, opened.label_frequency_L
        )
        self.memory = checkpoint_memory(opened, self.cpu)

    def rankings(self, allowed_L: NDArray[np.bool_] | None = None) -> dict[str, list[list[int]]]:
        """Return the rows of the labels `allowed_L` (None: all) by head, best first, without excluded labels."""
        heads = mixes_by_head(selected_mix(self.opened), tuned_mix(self.opened))
        mixes = list(dict.fromkeys(heads.values()))
        ranked = self.rank(self.queries.texts, mixes, self.queries.exclude, allowed_L)
        return {head: ranked[mix].tolist() for head, mix in heads.items()}

    def seconds_per_thousand(self) -> float:
        """Return the CPU time per thousand queries on one thread: tokenize, encode and score every label (no index)."""
        mix = selected_mix(self.opened)
        return cpu_seconds(self.queries.texts, lambda texts: self.rank(texts, [mix], Ragged.empty(len(texts))))

    def rank(
        self, texts: list[str], mixes: list[ScoreMix], exclude: Ragged, allowed_L: NDArray[np.bool_] | None = None
    ) -> dict[ScoreMix, Any]:
        """Rank the labels `allowed_L` (None: all) for any texts; return rankings [Q, K] by mix."""
        tokens = tokenize_in_memory(texts, self.opened.tokenizer)
        queries = encode_queries(self.opened.unified, tokens, self.cpu)
        return rank_labels(queries, self.labels, mixes, exclude, allowed_L, self.memory)


class CascadeSearch:
    """Search of a cascade with the recipe's shortlists for the test queries that have a true label."""

    def __init__(self, opened: Checkpoint, dataset: Dataset) -> None:
        self.opened, self.queries = opened, dataset.scored("test")
        self.ranker = self._ranker(self.queries)

    def rankings(self, allowed_L: NDArray[np.bool_] | None = None) -> dict[str, list[list[int]]]:
        """Return the rows of the labels `allowed_L` (None: all), best first, without excluded labels."""
        return {UNIFIED: self.ranker.rank([CASCADE_MIX], allowed_L)[CASCADE_MIX].tolist()}

    def shortlist_recalls(self) -> dict[str, list[float]]:
        """Return the shortlist recall per level for all true labels, and for those with a training positive."""
        labels = self.queries.labels
        seen = labels.keep(self.opened.positives_L[labels.values] > 0)
        return {"all": shortlist_recall(self.ranker, labels), "seen": shortlist_recall(self.ranker, seen)}

    def seconds_per_thousand(self) -> float:
        """Return the CPU time per thousand queries on one thread: tokenize, encode and search."""
        rows = np.arange(min(TIMED_QUERIES, len(self.queries)))
        queries = self.queries.take(rows)
        return cpu_seconds(self.queries.texts, lambda _: self._ranker(queries).rank([CASCADE_MIX]))

    def _ranker(self, queries: Split) -> CascadeRanker:
        ranker = label_ranker(self.opened, queries, torch.device("cpu"))
        assert isinstance(ranker, CascadeRanker)
        return ranker


def cpu_seconds(texts: list[str], search: Callable[[list[str]], object]) -> float:
    """Return the CPU time per thousand queries of a search for the first TIMED_QUERIES texts, on one thread."""
    timed, threads = texts[:TIMED_QUERIES], torch.get_num_threads()
    torch.set_num_threads(1)
    started = time.process_time()
    search(timed)
    spent = time.process_time() - started
    torch.set_num_threads(threads)
    return 1000 * spent / len(timed)


if __name__ == "__main__":
    sys.exit(main())
