"""A line about a long run every half minute, for output that is not a terminal."""

from collections.abc import Callable
from threading import Event, Thread

SECONDS = 30.0


class StatusLog:
    """Calls `write` with the text of `status` every `seconds` between `start` and `stop`, from a thread of its own.

    A thread also reports work that has no progress, such as one long sort. If a call fails, the thread ends, and `stop`
    returns the error.
    """

    def __init__(self, status: Callable[[], str], write: Callable[[str], None], seconds: float = SECONDS) -> None:
        self._status, self._write, self._seconds = status, write, seconds
        self._stopped = Event()
        self._failure: Exception | None = None
        self._thread = Thread(target=self._run, name="status log", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> Exception | None:
        """Stop the thread, if it was started; nothing is written afterwards. Return the error that ended it earlier."""
        self._stopped.set()
        if self._thread.ident is not None:
            self._thread.join()
        return self._failure

    def _run(self) -> None:
        try:
            while not self._stopped.wait(self._seconds):
                self._write(self._status())
        except Exception as error:  # noqa: BLE001  # `stop` returns it
            self._failure = error
