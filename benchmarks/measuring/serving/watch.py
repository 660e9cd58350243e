"""Monitor a live service from outside: memory of its processes, and single requests."""

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, Self

from tests.support.service import Client, Service

PERIOD = 0.5  # seconds between two samples of the memory
PAUSE = 0.02  # between two single requests


class Probe(NamedTuple):
    """One single request: time of sending (monotonic clock), duration in seconds, and status; 0 without an answer."""

    sent: float
    seconds: float
    status: int


class Memory(NamedTuple):
    """A sample of the memory, with the number of engines."""

    at: float
    bytes: int
    engines: int


class PeriodicWatcher:
    """Context manager that calls `sample` in a thread, `pause` seconds after its last return."""

    def __init__(self, sample: Callable[[], object], pause: float) -> None:
        self._sample, self._pause = sample, pause
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
            self._sample()


class Probes(PeriodicWatcher):
    """Single requests, one after the other, on a separate connection."""

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
        except (OSError, ValueError, IndexError):  # refused or closed by the service
            self._client = None
        self.seen.append(Probe(sent, time.monotonic() - sent, status))


class MemorySamples(PeriodicWatcher):
    """Memory of the service: the sum of front and engines."""

    def __init__(self, service: Service) -> None:
        super().__init__(self._see, PERIOD)
        self.seen: list[Memory] = []
        self._service = service

    def _see(self) -> None:
        engines = self._service.engines()
        used = memory([self._service.process.pid, *engines])
        self.seen.append(Memory(time.monotonic(), used, len(engines)))


def memory(pids: Sequence[int]) -> int:
    """Return the memory of processes in bytes: PSS divides shared pages among the processes that use them."""
    total = 0
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text("ascii").splitlines()
        except OSError:
            continue
        total += sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total


def back_to_normal(probes: Sequence[Probe], after: float, slowest: float, in_a_row: int = 5) -> float | None:
    """Return the seconds from `after` until the first of `in_a_row` consecutive 200s within `slowest` seconds each.

    None if that never happens.
    """
    later = [probe for probe in probes if probe.sent >= after]
    for index in range(len(later) - in_a_row + 1):
        if all(probe.status == 200 and probe.seconds <= slowest for probe in later[index : index + in_a_row]):
            return later[index].sent + later[index].seconds - after
    return None
