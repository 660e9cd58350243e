"""Run all steps on this folder's data: prepare → train → export → serve, then send a few queries to the server.

    python examples/keywords/demo.py --folder demo [--port 8000] [--once]

Every step is a command of `diptych` and is printed before it runs.
"""

import argparse
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

HERE = Path(os.path.relpath(Path(__file__).parent))
QUERIES = ["credit card", "rainy day", "shopping basket", "delete file", "electric car", "loud music"]
START_SECONDS = 120


def main() -> int:
    """Run the steps and the queries; then stop (--once) or keep the server running until Ctrl-C."""
    options = arguments()
    folder, seconds = options.folder, {}
    check_port(options.port)
    for stage, parts in stages(folder).items():
        seconds[stage] = timed(folder, *parts)
    started = time.perf_counter()
    with subprocess.Popen(announced("serve", "--store", folder / "store", "--port", options.port)) as server:
        try:
            url = f"http://127.0.0.1:{options.port}"
            wait_until_ready(server, url)
            seconds["serve, until ready"] = time.perf_counter() - started
            ask(url)
            print("\nwall time: " + ", ".join(f"{stage} {spent:.1f} s" for stage, spent in seconds.items()), flush=True)
            if not options.once:
                print(f"Serving on {url} until Ctrl-C.", flush=True)
                server.wait()
        except KeyboardInterrupt:
            pass  # the user ends the demo; the server is stopped below
        finally:
            server.send_signal(signal.SIGTERM)
        return server.wait(timeout=60)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Run all steps on the keywords example.")
    parser.add_argument("--folder", type=Path, required=True, help="folder for dataset, checkpoint and store")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--once", action="store_true", help="stop after the answers")
    return parser.parse_args()


def check_port(port: int) -> None:
    """Exit early if another server uses the port."""
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", port)) == 0:
            sys.exit(f"error: port {port} is in use. Choose another one: make demo PORT={port + 1}")


def stages(folder: Path) -> dict[str, tuple[object, ...]]:
    """Return the commands of each step before serving."""
    dataset, checkpoint, store = folder / "dataset", folder / "checkpoint", folder / "store"
    return {
        "prepare": ("prepare", HERE, "--out", dataset),
        "train": ("train", "--dataset", dataset, "--out", checkpoint),
        "evaluate": ("evaluate", checkpoint, "--dataset", dataset, "--worst", "1"),
        "export": ("export", checkpoint, "--store", store, "--activate"),
    }


def announced(*parts: object) -> list[str]:
    """Print a `diptych` command and return its arguments for this Python."""
    words = [str(part) for part in parts]
    print(f"\n$ diptych {shlex.join(words)}", flush=True)
    return [sys.executable, "-m", "diptych", *words]


def timed(folder: Path, *parts: object) -> float:
    """Run a command and return its duration in seconds. Exit if it fails."""
    started = time.perf_counter()
    code = subprocess.run(announced(*parts), check=False).returncode
    if code:
        print(f"If {folder}/ was made by another version of Diptych, remove it and try again.", file=sys.stderr)
        sys.exit(code)
    return time.perf_counter() - started


def wait_until_ready(server: subprocess.Popen[bytes], url: str) -> None:
    """Wait until /readyz answers 200. Exit if the server ends or takes too long."""
    deadline = time.monotonic() + START_SECONDS
    while server.poll() is None and time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"{url}/readyz", timeout=5):
                return
        except OSError:
            time.sleep(0.1)
    sys.exit(server.poll() or 1)


def ask(url: str) -> None:
    """POST a few queries and print the answers."""
    body = json.dumps({"queries": QUERIES, "k": 5}).encode()
    request = urllib.request.Request(f"{url}/predict", body, {"Content-Type": "application/json"})
    print(f"\nPOST {url}/predict {body.decode()}")
    with urllib.request.urlopen(request, timeout=30) as response:
        answer: dict[str, Any] = json.load(response)
    for result in answer["results"]:
        hits = "   ".join(f"{hit['text']} {hit['score']:.2f}" for hit in result["hits"])
        print(f"  {result['query']:<16} → {hits}")


if __name__ == "__main__":
    sys.exit(main())
