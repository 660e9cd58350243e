"""How fast an engine answers while it never lacks work: what a queue's length means in time."""

WINDOW = 0.2  # seconds without an idle moment: a queue can grow that long before its pace is known


class Pace:
    """Texts a second, of the time in which more texts always waited; None until that was known of this engine."""

    def __init__(self) -> None:
        self.rate: float | None = None
        self._since: float | None = None  # when the present window began
        self._done = 0  # texts answered in it
        self._caught_up = True  # whether nothing is left of what came while there was no engine

    def answered(self, texts: int, more: bool, now: float) -> bool:
        """The engine answered so many texts at `now` (seconds); `more` wait. Whether the rate is a new one."""
        if not more:
            self._since, self._caught_up = None, True
            return False
        if self._since is None:
            self._since, self._done = now, 0
            return False
        self._done += texts
        if now - self._since < WINDOW or not self._caught_up:
            return False
        rate = self._done / (now - self._since)
        self.rate = rate if self.rate is None else (self.rate + rate) / 2
        self._since, self._done = now, 0
        return True

    def forget(self) -> None:
        """The engine has gone, and what comes until there is another waits for it. Nothing is known of that one."""
        self.rate = self._since = None
        self._caught_up = False
