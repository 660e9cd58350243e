"""Check that a change of the code changes no result: weights, bundle and HTTP answers of two source trees.

    python -m benchmarks.same_results OLD_TREE NEW_TREE --work FOLDER [--source examples/keywords]

Each tree prepares the source, trains three epochs with seed 0, exports, serves and answers 200 test queries, on one
core. Tensors, files and hits must be identical. JSON files may differ in names, times and versions only.
"""

import argparse
import hashlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyarrow.parquet as pq
from safetensors.numpy import load_file

QUERIES, QUERIES_PER_REQUEST, START_SECONDS = 200, 4, 120
VOLATILE = {"created", "finished", "seconds", "versions", "diptych_version", "device", "sha256", "bytes"}
VOLATILE_PARTS = ("seconds", "bytes", "memory", "tally", "stats", "description")
Outcome = dict[str, Any]


def main() -> int:
    """Compare two trees and print one line per difference; 1 if there is any."""
    options = arguments()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # several threads would build another graph each time
    outcomes = []
    for name, tree in (("old", options.old), ("new", options.new)):
        folder = options.work.resolve() / name
        folder.mkdir(parents=True, exist_ok=True)
        outcomes.append(run(tree.resolve(), options.source, folder))
    old, new = outcomes
    differences = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
    for key in differences:
        print(f"differs: {key}: {shortened(old.get(key))} → {shortened(new.get(key))}")
    print(f"{len(old)} results compared, {len(differences)} differ")
    return 1 if differences else 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path, help="source tree before the change, e.g. a git worktree")
    parser.add_argument("new", type=Path, help="source tree after the change")
    parser.add_argument("--work", type=Path, required=True, help="folder for both runs; delete it to start again")
    parser.add_argument("--source", type=Path, default=Path("examples/keywords"), help="relative to each tree")
    return parser.parse_args()


def run(tree: Path, source: Path, folder: Path) -> Outcome:
    """Run all stages with the code of `tree`; return every result by name."""
    dataset, checkpoint, store = folder / "dataset", folder / "checkpoint", folder / "store"
    call(tree, "prepare", source, "--out", dataset)
    overrides = ("--set", "optimizer.epochs=3", "--set", "seed=0")
    call(tree, "train", "--dataset", dataset, "--out", checkpoint, *overrides)
    if not (store / "CURRENT").is_file():
        call(tree, "export", checkpoint, "--store", store, "--activate")
    return {
        **{f"dataset {path.name}": digest(path.read_bytes()) for path in sorted(dataset.glob("*.parquet"))},
        **checkpoint_results(checkpoint),
        **bundle_results(store),
        **answers(tree, dataset, store, folder / "serve.log"),
    }


def call(tree: Path, *words: object) -> None:
    command = [sys.executable, "-m", "diptych", *map(str, words)]
    print(f"{tree}$ diptych {' '.join(command[3:])}", file=sys.stderr, flush=True)
    subprocess.run(command, cwd=tree, env=environment(tree), check=True, stdout=subprocess.DEVNULL)


def environment(tree: Path) -> dict[str, str]:
    """Return variables that take the code from `tree` and leave one thread to each library."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    return os.environ | threads | {"PYTHONPATH": str(tree)}


def checkpoint_results(folder: Path) -> Outcome:
    """Return a hash of each tensor and table, and the values of checkpoint.json without their names."""
    tensors = load_file(folder / "model.safetensors")
    results: Outcome = {f"weights {name}": array_digest(tensor) for name, tensor in tensors.items()}
    results["tokenizer"] = digest((folder / "tokenizer.json").read_bytes())
    for name in ("labels", "validation"):
        results[f"checkpoint {name}"] = digest(repr(pq.read_table(folder / f"{name}.parquet").to_pylist()).encode())
    facts = json.loads((folder / "checkpoint.json").read_bytes())
    results["checkpoint.json best"] = Counter(leaves(facts["best"]))
    results["checkpoint.json recipe"] = Counter(leaves(facts["recipe"]))
    return results


def bundle_results(store: Path) -> Outcome:
    """Return a hash of each file of the active bundle, and the values of its manifest without their names."""
    bundle = store / "bundles" / (store / "CURRENT").read_text().strip()
    manifest = json.loads((bundle / "manifest.json").read_bytes())
    files = {path.name: file_digest(path) for path in sorted(bundle.iterdir()) if path.suffix != ".json"}
    return {
        **{f"bundle {name}": value for name, value in files.items()},
        "bundle golden.json": Counter(leaves(json.loads((bundle / "golden.json").read_bytes()))),
        "bundle manifest.json": Counter(leaves(manifest)),
    }


def answers(tree: Path, dataset: Path, store: Path, log: Path) -> Outcome:
    """Serve the store with the code of `tree`; return the hits of each test query."""
    texts = pq.read_table(dataset / "test.parquet").column("text").to_pylist()[:QUERIES]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "diptych", "serve", "--store", str(store), "--port", str(port)]
    with log.open("w") as file, subprocess.Popen(command, cwd=tree, env=environment(tree), stderr=file) as server:
        try:
            url = f"http://127.0.0.1:{port}"
            wait_until_ready(url)
            groups = [texts[at : at + QUERIES_PER_REQUEST] for at in range(0, len(texts), QUERIES_PER_REQUEST)]
            results = [result for group in groups for result in ask(url, group)]
        finally:
            server.terminate()
    return {f"answer {index} {text!r}": result for index, (text, result) in enumerate(zip(texts, results, strict=True))}


def wait_until_ready(url: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            with urllib.request.urlopen(f"{url}/readyz", timeout=5):
                return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def ask(url: str, texts: list[str]) -> list[Any]:
    body = json.dumps({"queries": texts, "k": 10}).encode()
    request = urllib.request.Request(f"{url}/predict", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as response:
        results: list[Any] = json.load(response)["results"]
    return results


def leaves(value: Any) -> Iterator[str]:
    """Yield every value in a JSON document as text, except times, sizes and versions."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key not in VOLATILE and not any(part in key for part in VOLATILE_PARTS):
                yield from leaves(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from leaves(inner)
    else:
        yield json.dumps(value)


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def file_digest(path: Path) -> str:
    """Hash a file; of an ONNX file what it computes, without the names of the Python classes it was traced from."""
    if path.suffix != ".onnx":
        return digest(path.read_bytes())
    model = onnx.load(path)
    for part in (model, model.graph, *model.graph.node, *model.graph.value_info, *model.graph.initializer):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    return digest(model.SerializeToString(deterministic=True))


def array_digest(array: np.ndarray[Any, Any]) -> str:
    return digest(f"{array.dtype}{array.shape}".encode() + array.tobytes())


def shortened(value: object) -> str:
    text = repr(value)
    return text if len(text) < 200 else f"{text[:200]}…"


if __name__ == "__main__":
    sys.exit(main())
