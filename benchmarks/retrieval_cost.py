"""Measure the cost of `retrieval`: relative to its parts, by number of labels, and offline.

    python benchmarks/retrieval_cost.py --of STORE DATASET [--of …] --work FOLDER --markdown FILE [--only PART …]
        [--labels-of STORE DATASET] [--sizes 10000 100000 1000000] [--offline 100000 1000000] [--threads 1]

parts: `Retriever.search` against the sum of tokenizer, ONNX Runtime and hnswlib, for every STORE, on the test queries
of its DATASET. scale: HNSW against exact search on the label vectors of --labels-of (default: the first STORE),
extended with jittered copies. offline: `diptych predict` of the first STORE on variations of its queries. Results and
indexes stay in the work folder, and on the page until their part is measured again.
"""

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from benchmarks.measuring import bare_parts, label_scale, offline
from benchmarks.measuring.retrieval_page import page
from benchmarks.measuring.running import count, run_command
from retrieval import open_bundle
from retrieval.errors import BadInput
from training.data.dataset import Dataset

BATCHES = {1: 300, 64: 8}  # batches of a round, by their size
SCALE_QUERIES = 1_000


def main() -> int:
    """Measure and write the page. Prints an error and returns 1 if a part cannot be measured."""
    return run_command(measure, arguments())


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Cost of retrieval.")
    pair: dict[str, Any] = {"type": Path, "nargs": 2, "metavar": ("STORE", "DATASET")}
    of_help = "a store or a bundle's folder, and the prepared dataset with its test queries"
    parser.add_argument("--of", action="append", required=True, help=of_help, **pair)
    parser.add_argument("--work", type=Path, required=True, help="folder for indexes and results")
    parser.add_argument("--markdown", type=Path, required=True, help="the page")
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS), help="parts to measure again")
    parser.add_argument("--labels-of", help="store whose label vectors are extended (default: the first)", **pair)
    parser.add_argument(
        "--sizes", type=count, nargs="+", default=[10_000, 100_000, 1_000_000], help="numbers of labels"
    )
    parser.add_argument("--offline", type=count, nargs="+", default=[100_000, 1_000_000], help="numbers of queries")
    parser.add_argument("--weight", type=float, help="classifier weight, offline (default: the bundle's)")
    parser.add_argument("--rounds", type=count, default=7, help="rounds of parts")
    parser.add_argument("--threads", type=count, default=1, help="threads of a search and of an index build")
    return parser.parse_args()


def measure(options: argparse.Namespace, console: Console) -> Path:
    """Measure the chosen parts and write the page; return its path."""
    if not options.markdown.resolve().parent.is_dir():
        raise BadInput(f"--markdown '{options.markdown}': its folder does not exist. Create it first.")
    options.work.mkdir(parents=True, exist_ok=True)
    for name in options.only:
        result = PARTS[name](options, lambda line: console.print(line, markup=False, highlight=False))
        facts = {"command": _command(options, name), "machine": _machine(), "load": os.getloadavg()[1], **result}
        (options.work / f"{name}.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")
    measured = {name: options.work / f"{name}.json" for name in PARTS}
    facts = {name: json.loads(path.read_text("utf-8")) for name, path in measured.items() if path.is_file()}
    options.markdown.write_text("\n".join(page(facts)) + "\n", encoding="utf-8")
    page_path: Path = options.markdown
    return page_path


def parts(options: argparse.Namespace, log: Callable[[str], object]) -> dict[str, Any]:
    """Measure every bundle with both batch sizes."""
    rows = []
    for store, dataset in options.of:
        texts = _queries(dataset)
        with open_bundle(store, threads=options.threads) as retriever:
            manifest = retriever.manifest
            for batch, batches in BATCHES.items():
                log(f"{retriever.name}: batches of {batch}")
                rounds = bare_parts.rounds(retriever, texts, batch, batches, options.rounds)
                rows.append(
                    {
                        "encoder": manifest.model.encoder, "labels": manifest.labels.count, "dim": retriever.dim,
                        "effort": manifest.index.ef_search_at(manifest.classifier_weight), "batch": batch,
                        "rounds": [asdict(one) | {"ratios": one.ratios(), "sums": one.sums()} for one in rounds],
                    }
                )  # fmt: skip
    return {"rows": rows}


def scale(options: argparse.Namespace, log: Callable[[str], object]) -> dict[str, Any]:
    """Measure HNSW and exact search on one bundle's label vectors, at its default weight."""
    store, dataset = options.labels_of or options.of[0]
    texts = _queries(dataset)[:SCALE_QUERIES]
    with open_bundle(store, threads=options.threads) as retriever:
        model, weight = retriever.manifest.model, retriever.manifest.classifier_weight
        query_QD = np.concatenate(retriever.encode(texts), axis=1) * model.query_scale(weight)
        scales = label_scale.measure(
            retriever.vectors_LD[:], model.dual_dim, query_QD, sorted(options.sizes), options.work, options.threads, log
        )
        return {
            "rows": [asdict(one) for one in scales], "dataset": Dataset.open(dataset).meta.name, "dim": retriever.dim,
            "real": len(retriever.vectors_LD), "weight": weight, "queries": len(texts),
        }  # fmt: skip


def predict(options: argparse.Namespace, log: Callable[[str], object]) -> dict[str, Any]:
    """Measure each number of queries, then interrupt and resume with the smallest number."""
    (store, dataset), rows = options.of[0], []
    texts = _queries(dataset)
    for queries in sorted(options.offline):
        log(f"diptych predict of {queries:,} queries")
        rows.append(asdict(offline.measure(store, texts, queries, options.work, options.weight)))
    log("diptych predict, interrupted and resumed")
    shards, same = offline.measure_resume(store, texts, min(options.offline), options.work, options.weight)
    return {"rows": rows, "shards": shards, "same": same, "weight": options.weight}


def _queries(dataset: Path) -> Sequence[str]:
    return Dataset.open(dataset).scored("test").texts


def _command(options: argparse.Namespace, name: str) -> str:
    words = ["python benchmarks/retrieval_cost.py --of STORE DATASET … --work FOLDER --markdown FILE --only", name]
    numbers = {"parts": [options.rounds], "scale": options.sizes, "offline": options.offline}[name]
    words += [{"parts": "--rounds", "scale": "--sizes", "offline": "--offline"}[name], *map(str, numbers)]
    return " ".join([*words, "--threads", str(options.threads)])


def _machine() -> str:
    return f"Python {platform.python_version()}, {platform.machine()}, {os.cpu_count()} processors"


PARTS: dict[str, Callable[[argparse.Namespace, Callable[[str], object]], dict[str, Any]]] = {
    "parts": parts,
    "scale": scale,
    "offline": predict,
}


if __name__ == "__main__":
    sys.exit(main())
