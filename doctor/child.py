"""Run a program in a child process: a library built for another CPU crashes only the child."""

import signal
import subprocess
import sys
from typing import NamedTuple

from retrieval.system.sandbox import child_environment

TIMEOUT_SECONDS = 120


class ChildResult(NamedTuple):
    """The last line of output, and why the program failed; `failure` is empty if it succeeded."""

    output: str
    failure: str


def run_python(program: str) -> ChildResult:
    """Run a Python program with the import path of this process."""
    try:
        ended = subprocess.run(
            [sys.executable, "-P", "-c", program],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", env=child_environment(),
            timeout=TIMEOUT_SECONDS, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return ChildResult("", f"no answer within {TIMEOUT_SECONDS} s")
    if ended.returncode < 0:
        return ChildResult("", f"the process ended by {signal.Signals(-ended.returncode).name}")
    last = (ended.stderr if ended.returncode else ended.stdout).strip().rpartition("\n")[2]
    return ChildResult("", last or f"exit code {ended.returncode}") if ended.returncode else ChildResult(last, "")
