"""Stop a command within seconds on SIGTERM, at every stage, with its state saved.

The first SIGTERM raises StopRequested in the main thread, so clean-up code removes unfinished files. Code that must not
be interrupted runs inside `deferred`; the signal is then raised at the next `interruptible` block. Native code can
delay signals in the main thread, so a second thread ends the process after GRACE_SECONDS, unless state is being saved.
Files are renamed into place when they are complete, so that end loses no more than a crash.

The exit code is 128 plus the signal number: 143 after SIGTERM, 130 after Ctrl-C.
"""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

GRACE_SECONDS = 8.0
ONE_REQUEST_SECONDS = 1.0  # within it, a repeated signal is the same request: terminal and torchrun both send it
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequested(SystemExit):
    """Stop this process after a signal; the exit code is 128 plus the signal number."""

    code: int

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)


class _State:
    requested: int | None = None
    since = 0.0
    deferred = False
    saving = False


def install() -> None:
    """Install the handlers of SIGTERM and Ctrl-C. Call it in the main thread."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    # Python's C handler writes the signal number here at once, even if the main thread is in native code.
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    threading.Thread(target=_end_after_grace, args=(read,), name="stopping", daemon=True).start()
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # a shell lets background commands ignore Ctrl-C
            signal.signal(number, _on_signal)


def requested() -> int | None:
    """Return the signal that this process received to stop; None without one."""
    return _State.requested


def note(number: int) -> None:
    """Record a signal that an event loop handled."""
    if _State.requested is None:
        _State.requested, _State.since = number, time.monotonic()


@contextmanager
def deferred() -> Iterator[None]:
    """Delay StopRequested until the end of the block; a second signal ends the process at once."""
    before, _State.deferred = _State.deferred, True
    try:
        yield
    finally:
        _State.deferred = before
    _raise_if_requested()


@contextmanager
def interruptible() -> Iterator[None]:
    """Raise StopRequested inside the block, for a new or a delayed signal, even within `deferred`.

    The code inside must leave consistent state when it is interrupted.
    """
    before, _State.deferred = _State.deferred, False
    try:
        _raise_if_requested()
        yield
    finally:
        _State.deferred = before


@contextmanager
def saving() -> Iterator[None]:
    """Keep the process alive beyond GRACE_SECONDS while the block saves state."""
    _State.saving = True
    try:
        yield
    finally:
        _State.saving = False


def _raise_if_requested() -> None:
    if _State.requested is not None and not _State.deferred:
        raise StopRequested(_State.requested)


def _on_signal(number: int, _frame: FrameType | None) -> None:
    if _State.requested is not None:
        if time.monotonic() - _State.since > ONE_REQUEST_SECONDS:  # a second request: stop at once
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        return
    note(number)
    if _State.deferred:
        return
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise StopRequested(number)


def _end_after_grace(read: int) -> None:
    while (got := os.read(read, 1)) and got[0] != signal.SIGTERM:
        pass
    time.sleep(GRACE_SECONDS)
    while _State.saving:
        time.sleep(0.1)
    os._exit(128 + signal.SIGTERM)
