"""Run a page like a reader: block after block, in one shell, in a scratch folder, with the real commands.

Four things differ from a reader's shell, so that it takes seconds. `diptych train` gets a tiny recipe, `diptych
evaluate` few resamples and `diptych loadtest` one second. `diptych serve` runs in the background on a free port.
"""

import os
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from tests.support.pages import Block
from tests.support.service import has_ended, wait_until
from tests.support.training.small_run import SMALL

SHIM = """#!/usr/bin/env bash
set -euo pipefail
real=({python} -m diptych)
case "${{1:-}}" in
    train) exec "${{real[@]}}" "$@" {train} ;;
    evaluate) exec "${{real[@]}}" "$@" --resamples 100 ;;
    loadtest) exec "${{real[@]}}" "$@" --rate 20 --duration 1s --max-lag 10s ;;
    serve) ;;
    *) exec "${{real[@]}}" "$@" ;;
esac
# A process that has ended may be a zombie, for which `kill -0` succeeds.
runs() {{ grep -qs '^State:[[:space:]]*[^ZX]' "/proc/$1/status"; }}
stop() {{
    pid=$(cat service.pid)
    kill "$pid" && while runs "$pid"; do sleep 0.1; done
    rm service.pid
}}
[ ! -f service.pid ] || stop  # its port must be free for the next service
"${{real[@]}}" "$@" >service.log 2>&1 &
echo $! >service.pid
for _ in $(seq 600); do
    if curl -fs "localhost:{port}/readyz" >/dev/null; then exit 0; fi
    kill -0 "$(cat service.pid)" || break
    sleep 0.1
done
cat service.log >&2
exit 1
"""
# Appended after the page's --set options, so these values win.
TRAIN = [*SMALL, "optimizer.epochs=2", "batching.batch_size=256", "validation.every_epochs=2"]


def run_page(page: Iterable[Block], folder: Path) -> str:
    """Run the blocks of a page in `folder` and return their output. Raises AssertionError with the failed block."""
    port = _free_port()
    _write_commands(folder / ".bin", port)
    script = "\n".join(_step(block, port) for block in page if block.language in ("sh", "python") and not block.reason)
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("DIPTYCH_")},
        "PATH": f"{folder / '.bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(Path(__file__).resolve().parents[3]),
        "DIPTYCH_PORT": str(port),
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "100",
    }
    try:
        done = subprocess.run(
            ["bash", "-c", f"set -euo pipefail\n{script}"],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
    finally:
        _stop_service(folder)
    assert done.returncode == 0, done.stdout[-6000:]
    return done.stdout


def _step(block: Block, port: int) -> str:
    header = f"echo '=== {block.place}'"
    text = block.text.replace(":8000", f":{port}")
    return (
        f"{header}\n{text}" if block.language == "sh" else f"{header}\npython - <<'END OF BLOCK'\n{text}\nEND OF BLOCK"
    )


def _write_commands(folder: Path, port: int) -> None:
    folder.mkdir()
    train = shlex.join(word for one in TRAIN for word in ("--set", one))
    shim = folder / "diptych"
    shim.write_text(SHIM.format(python=shlex.quote(sys.executable), train=train, port=port), encoding="utf-8")
    shim.chmod(0o755)


def _stop_service(folder: Path) -> None:
    pid_file = folder / "service.pid"
    if pid_file.is_file():
        pid = int(pid_file.read_text())
        try:
            os.kill(pid, signal.SIGTERM)
        except ProcessLookupError:
            return  # it has already ended; the page's commands have reported that
        try:
            wait_until(lambda: has_ended(pid))
        except AssertionError:
            os.kill(pid, signal.SIGKILL)
            raise


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
