"""Estimate the throughput of an engine, which converts the length of a queue to time."""

WINDOW_SECONDS = 0.2  # of one measurement, without an idle moment


class ThroughputEstimate:
    """Texts per second of an engine while more texts always wait; None until one window was measured."""

    def __init__(self) -> None:
        self.texts_per_second: float | None = None
        self._window_start: float | None = None
        self._texts = 0  # answered in the present window
        self._caught_up = True  # whether the queue was empty since the engine started

    def update(self, texts: int, more_waiting: bool, now: float) -> bool:
        """Count texts that were answered at `now`, in seconds. Return whether the estimate has changed."""
        if not more_waiting:
            self._window_start, self._caught_up = None, True
            return False
        if self._window_start is None:
            self._window_start, self._texts = now, 0
            return False
        self._texts += texts
        if now - self._window_start < WINDOW_SECONDS or not self._caught_up:
            return False
        rate = self._texts / (now - self._window_start)
        self.texts_per_second = rate if self.texts_per_second is None else (self.texts_per_second + rate) / 2
        self._window_start, self._texts = now, 0
        return True

    def reset(self) -> None:
        """Forget the estimate: the engine is gone.

        A queue that grows while there is no engine says nothing about the next one, so measuring starts when the next
        engine has emptied it.
        """
        self.texts_per_second = self._window_start = None
        self._caught_up = False
