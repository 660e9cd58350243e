"""A call in a forked process, so that a crash, a hang or a lack of memory in it affects nothing else.

For programs that have imported what they need and started no threads of their own or of a library: not for the tests'
own process.
"""

import json
import os
import resource
import signal
import traceback
from collections.abc import Callable

MEMORY = 8 << 30  # bytes of address space of one call


def start_forked(call: Callable[[], object]) -> int:
    """Run the call in a forked process, which ends with it, with code 1 after an exception; return its process id."""
    if child := os.fork():
        return child
    code = 1
    try:
        call()
        code = 0
    except BaseException:  # noqa: BLE001  # it must not go on with the program of its parent
        traceback.print_exc()
    finally:
        os._exit(code)


def forked(call: Callable[[], tuple[str, str]], seconds: int = 20) -> tuple[str, str]:
    """Return what the call returns in a forked process; or ("died", signal) or ("hung", seconds)."""
    ours, theirs = os.pipe()

    def limited() -> None:
        signal.alarm(seconds)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.write(theirs, json.dumps(call()).encode())

    child = start_forked(limited)
    os.close(theirs)
    with open(ours, "rb") as pipe:
        said = pipe.read()
    number = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if number == -signal.SIGALRM:
        return "hung", f"more than {seconds} s"
    if number:
        return "died", signal.Signals(-number).name if number < 0 else f"code {number}"
    outcome, how = json.loads(said)
    return outcome, how
