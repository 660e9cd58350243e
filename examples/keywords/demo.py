"""The whole way on this folder's data: prepare → train → export → serve, then a few questions to the live server.

    python examples/keywords/demo.py --folder demo [--port 8000] [--once]

Every stage is the command that a person would type, and is printed before it runs.
"""

import argparse
import json
import shlex
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
QUERIES = ["credit card", "rainy day", "shopping basket", "delete a file", "electric car", "loud music"]
START_SECONDS = 120


def main() -> int:
    """Run the stages, ask, and either end (--once) or leave the server running until Ctrl-C."""
    options = arguments()
    folder, seconds = options.folder, {}
    for stage, command in stages(folder).items():
        seconds[stage] = timed(command)
    command = diptych("serve", "--store", folder / "store", "--port", options.port)
    print(f"\n$ {shlex.join(command)}", flush=True)
    started = time.perf_counter()
    with subprocess.Popen(command) as server:
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
            pass  # the person's way to end the demo; the server is stopped below
        finally:
            server.send_signal(signal.SIGTERM)
        return server.wait(timeout=60)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="The whole way on the keywords example.")
    parser.add_argument("--folder", type=Path, required=True, help="where dataset, checkpoint and store go")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--once", action="store_true", help="end after the answers")
    return parser.parse_args()


def stages(folder: Path) -> dict[str, list[str]]:
    """The commands of each stage before serving."""
    dataset, checkpoint, store = folder / "dataset", folder / "checkpoint", folder / "store"
    return {
        "prepare": diptych("prepare", HERE, "--out", dataset),
        "train": diptych("train", "--dataset", dataset, "--recipe", "keywords", "--out", checkpoint),
        "evaluate": diptych("evaluate", checkpoint, "--dataset", dataset),
        "export": diptych("export", checkpoint, "--store", store, "--activate"),
    }


def diptych(*parts: object) -> list[str]:
    """`diptych` with `parts`, run by this Python."""
    return [sys.executable, "-m", "diptych", *(str(part) for part in parts)]


def timed(command: list[str]) -> float:
    """Seconds that a command took; ends the demo when it fails."""
    print(f"\n$ {shlex.join(command)}", flush=True)
    started = time.perf_counter()
    code = subprocess.run(command, check=False).returncode
    if code:
        sys.exit(code)
    return time.perf_counter() - started


def wait_until_ready(server: subprocess.Popen[bytes], url: str) -> None:
    """Return when /readyz says yes; ends the demo when the server has ended or takes too long."""
    deadline = time.monotonic() + START_SECONDS
    while server.poll() is None and time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"{url}/readyz", timeout=5):
                return
        except (urllib.error.URLError, TimeoutError):
            time.sleep(0.1)
    sys.exit(server.poll() or 1)


def ask(url: str) -> None:
    """POST a few queries and print what comes back."""
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
