"""An orderly end on SIGTERM: every command stops within seconds, wherever it is, with its state saved.

The first SIGTERM raises StopRequested in the main thread, so files that are half written are removed on the way out.
What must not be interrupted runs inside `deferred`; there the signal is remembered, and raised by the next
`interruptible` part. Native code can keep the main thread from hearing a signal for long, so a second thread ends the
process after GRACE_SECONDS, except while state is being saved. Every file is renamed into place when it is whole, so
that end loses no more than a crash would.

The exit code is 128 plus the signal's number: 143 after SIGTERM, 130 after Ctrl-C.
"""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

GRACE_SECONDS = 8.0
ONE_REQUEST_SECONDS = 1.0  # a terminal and torchrun both send the signal that ends a group
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequested(SystemExit):
    """A signal asked this process to stop; the code is 128 plus its number."""

    code: int

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)


class _State:
    requested: int | None = None
    since = 0.0
    deferred = False
    saving = False


def install() -> None:
    """Handle SIGTERM and Ctrl-C as this module says, from now on. Call it in the main thread."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    # The system's own handler writes the number here at once, though the main thread be in native code.
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    threading.Thread(target=_end_after_grace, args=(read,), name="stopping", daemon=True).start()
    for number in SIGNALS:
        signal.signal(number, _on_signal)


def requested() -> int | None:
    """The signal that asked this process to stop; None while none has."""
    return _State.requested


def note(number: int) -> None:
    """Remember a signal that an event loop handled in its own way."""
    if _State.requested is None:
        _State.requested, _State.since = number, time.monotonic()


@contextmanager
def deferred() -> Iterator[None]:
    """Only remember a signal inside; a later second one ends the process at once. It is raised at the end."""
    before, _State.deferred = _State.deferred, True
    try:
        yield
    finally:
        _State.deferred = before
    _raise_if_requested()


@contextmanager
def interruptible() -> Iterator[None]:
    """Raise StopRequested for a signal that comes inside, or came before, though the caller defers signals.

    What runs inside must leave nothing half changed when it is interrupted.
    """
    before, _State.deferred = _State.deferred, False
    try:
        _raise_if_requested()
        yield
    finally:
        _State.deferred = before


@contextmanager
def saving() -> Iterator[None]:
    """Let the process live beyond the grace while state is saved inside."""
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
        if time.monotonic() - _State.since > ONE_REQUEST_SECONDS:  # asked once more: at once
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
