"""Run commands that leave no process behind, even if the test fails."""

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from tests.support.service import wait_until

STARTING = 120.0  # seconds until a training run must have begun: importing PyTorch alone takes many on a busy machine


@contextmanager
def running(command: Sequence[str | Path], **options: Any) -> Iterator["subprocess.Popen[str]"]:
    """Run a command; when the block ends, kill it and the processes it started, if they still run."""
    with subprocess.Popen([str(word) for word in command], text=True, **options) as process:
        try:
            yield process
        finally:
            kill_with_children(process)


def kill_with_children(process: "subprocess.Popen[str]") -> None:
    """Kill a process and all of its descendants."""
    with suppress(psutil.NoSuchProcess):
        if process.poll() is None:
            parent = psutil.Process(process.pid)
            for one in [*parent.children(recursive=True), parent]:
                with suppress(psutil.NoSuchProcess):
                    one.kill()


def wait_for_file(path: Path, process: "subprocess.Popen[str]") -> None:
    """Wait until a running command has written a file. Raises AssertionError when the command ends before it."""
    wait_until(lambda: path.is_file() or process.poll() is not None, STARTING)
    assert process.poll() is None, process.communicate()
