"""End this process with its parent, even while it is blocked in native code or file access."""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def end_with_parent(parent: int) -> None:
    """Ask the kernel to kill this process when the process `parent` ends. Linux only.

    The kernel acts when the thread that started this process ends, so start it from the parent's main thread.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # the parent ended before the call
        sys.exit(1)
