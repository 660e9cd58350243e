"""Run a program in a child process: a library built for another CPU crashes only the child."""

import signal
import subprocess
import sys
from typing import NamedTuple

from retrieval.system.sandbox import child_environment

PATIENCE_SECONDS = 120


class Ended(NamedTuple):
    """The last line that was printed; and why the program did not end well, empty where it did."""

    said: str
    failure: str


def tried(program: str) -> Ended:
    """Run a Python program that imports from where this process does."""
    try:
        ended = subprocess.run(
            [sys.executable, "-P", "-c", program],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", env=child_environment(),
            timeout=PATIENCE_SECONDS, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return Ended("", f"no answer within {PATIENCE_SECONDS} s")
    if ended.returncode < 0:
        return Ended("", f"the process ended by {signal.Signals(-ended.returncode).name}")
    last = (ended.stderr if ended.returncode else ended.stdout).strip().rpartition("\n")[2]
    return Ended("", last or f"exit code {ended.returncode}") if ended.returncode else Ended(last, "")
