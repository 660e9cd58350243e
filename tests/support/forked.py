"""A call in a forked process, so that whatever becomes of it becomes of nothing else.

For programs that have imported what they need and started no threads of their own or of a library: not for the tests'
own process.
"""

import json
import os
import resource
import signal
from collections.abc import Callable

MEMORY = 8 << 30  # bytes of addresses: a call that asks for more must not disturb its neighbours on the machine


def forked(call: Callable[[], tuple[str, str]], seconds: int = 20) -> tuple[str, str]:
    """What the call returns in a process of its own; or ("died", signal) or ("hung", seconds)."""
    ours, theirs = os.pipe()
    child = os.fork()
    if not child:
        signal.alarm(seconds)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.write(theirs, json.dumps(call()).encode())
        os._exit(0)
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
