"""What is seen of a live service from outside: memory of its processes, and single requests all the while."""

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, Self

from tests.support.service import Client, Service

PERIOD = 0.5  # seconds between two looks at the memory
PAUSE = 0.02  # between two single requests


class Probe(NamedTuple):
    """One single request: when it was sent (seconds of the monotonic clock), how long it took; 0 without an answer."""

    sent: float
    seconds: float
    status: int


class Memory(NamedTuple):
    """Memory at one moment, and how many engines there were."""

    at: float
    bytes: int
    engines: int


class Watching:
    """Calls `look` in a thread of its own, `pause` seconds after its last return, until the block ends."""

    def __init__(self, look: Callable[[], object], pause: float) -> None:
        self._look, self._pause = look, pause
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join(30)

    def _run(self) -> None:
        while not self._ending.wait(self._pause):
            self._look()


class Probes(Watching):
    """Single requests, one after the other on a connection of their own."""

    def __init__(self, service: Service, bodies: Sequence[bytes]) -> None:
        super().__init__(self._ask, PAUSE)
        self.seen: list[Probe] = []
        self._service, self._bodies = service, bodies
        self._client: Client | None = None

    def _ask(self) -> None:
        sent, status = time.monotonic(), 0
        try:
            self._client = self._client or self._service.client()
            status = self._client.post("/predict", self._bodies[len(self.seen) % len(self._bodies)]).status
        except (OSError, ValueError, IndexError):  # refused, cut off, or cut off within a line
            self._client = None
        self.seen.append(Probe(sent, time.monotonic() - sent, status))


class Memories(Watching):
    """The service's memory, front and engines together."""

    def __init__(self, service: Service) -> None:
        super().__init__(self._see, PERIOD)
        self.seen: list[Memory] = []
        self._service = service

    def _see(self) -> None:
        engines = self._service.engines()
        held = memory([self._service.process.pid, *engines])
        self.seen.append(Memory(time.monotonic(), held, len(engines)))


def memory(pids: Sequence[int]) -> int:
    """Bytes these processes hold (PSS: what several share is divided among them); one that has ended holds nothing."""
    total = 0
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text("ascii").splitlines()
        except OSError:
            continue
        total += sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total


def back_to_normal(probes: Sequence[Probe], after: float, slowest: float, in_a_row: int = 5) -> float | None:
    """Seconds from `after` until the first of so many answers in a row, each a 200 within `slowest` seconds, has come.

    None when that never was.
    """
    later = [probe for probe in probes if probe.sent >= after]
    for place in range(len(later) - in_a_row + 1):
        if all(probe.status == 200 and probe.seconds <= slowest for probe in later[place : place + in_a_row]):
            return later[place].sent + later[place].seconds - after
    return None
